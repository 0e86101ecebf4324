"""One HMM per class: hmmlearn's objects, the mix with averaging, hard songs."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import cluster
from sklearn.metrics import log_loss
from threadpoolctl import threadpool_limits

from seqagg import HMMAggregator, MeanLogOdds, Songs, load
from seqagg.aggregators.base import Aggregator
from seqagg.aggregators.hmm_start import Shape, kmeans_plusplus
from seqagg.aggregators.start import AverageStart
from seqagg.errors import ParameterError
from tests import reference, reference_models
from tests.conftest import (
    COLUMNS,
    frames_of,
    integer_labels,
    leaning,
    mix_of,
    order_free_songs,
    order_songs,
)

Floats = npt.NDArray[np.float64]

QUICK: dict[str, Any] = {
    "n_states": 2,
    "covariance_type": "diag",
    "topology": "ergodic",
    "n_restarts": 1,
    "n_iter": 5,
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """hmmlearn's small matrices only lose time to a second thread."""
    with threadpool_limits(1):
        yield


def log_prior(model: Aggregator) -> Floats:
    return np.log(model.class_prior_)


def hmmlearn_scores(model: HMMAggregator, songs: Songs) -> Floats:
    """hmmlearn's own log likelihoods, shape (n_songs, n_classes); without a model, the lowest."""
    out = np.full((len(songs), len(model.classes_)), np.inf)
    for i, array in enumerate(frames_of(songs)):
        for k, label in enumerate(model.classes_.tolist()):
            if label in model.hmms_:
                out[i, k] = model.hmms_[label].score(array.astype(np.float64))
    return np.where(np.isinf(out), out.min(axis=1, keepdims=True), out)


def averages(songs: Songs, start: AverageStart) -> Floats:
    mix = mix_of(start)
    return np.array([reference.mixed_average(a.tolist(), *mix) for a in frames_of(songs)])


def iterations(model: HMMAggregator) -> list[int]:
    """Of EM, class by class."""
    return [int(n) for n in re.findall(r"(\d+) iterations", model.fit_report_)]


@pytest.mark.parametrize("n_clusters", [1, 2, 3, 8])
@pytest.mark.parametrize("seed", range(3))
def test_frames_are_drawn_as_scikit_learn_draws_them(n_clusters: int, seed: int) -> None:
    frames = np.random.default_rng(seed).normal(size=(300, 4))
    expected, _ = cluster.kmeans_plusplus(frames, n_clusters, random_state=seed)
    assert_array_equal(kmeans_plusplus(frames, n_clusters, seed), expected)


def covariance_of(frames: Floats) -> Floats:
    return np.cov(frames.T, bias=True)


class TestLikelihoods:
    """Ours are of whitened frames, hmmlearn's of plain ones: a constant per frame lies between."""

    @pytest.mark.parametrize("covariance_type", ["diag", "full"])
    @pytest.mark.parametrize("topology", ["ergodic", "left-right"])
    def test_decision_is_hmmlearns_score_and_the_prior(
        self, covariance_type: Any, topology: Any
    ) -> None:
        model = HMMAggregator(
            n_states=3, covariance_type=covariance_type, topology=topology, decision="likelihood"
        )
        model.fit(order_songs(40))  # 14, 13 and 13 songs: the prior has something to say
        assert len(set(log_prior(model))) == 2
        queries = order_songs(10, seed=1)
        expected = hmmlearn_scores(model, queries) + log_prior(model)
        constant = (expected - model.decision_function(queries)) / queries.lengths[:, None]
        assert_allclose(constant, constant[0, 0], rtol=1e-8, atol=1e-8)
        assert model.predict(queries).tolist() == model.classes_[expected.argmax(axis=1)].tolist()

    def test_hybrid_decision_is_the_mix_that_the_weights_say(self) -> None:
        model = HMMAggregator(**QUICK).fit(order_songs(40))
        queries = order_songs(10, seed=1)
        a, b, c = model.weights_
        assert min(a, b) > 0
        per_frame = hmmlearn_scores(model, queries) / queries.lengths[:, None]
        expected = a * per_frame + b * averages(queries, model._start) + c * log_prior(model)
        expected = expected + leaning(model)
        constant = expected - model.decision_function(queries)
        assert_allclose(constant, constant[0, 0], rtol=1e-7, atol=1e-7)

    def test_columns_in_the_users_order(self) -> None:
        """`hmms_` take frames as they were given to `fit`, whatever the order inside."""
        order = [2, 0, 1]
        songs, queries = order_songs(40), order_songs(6, seed=1)
        plain = HMMAggregator(**QUICK).fit(songs)
        columns = [COLUMNS[k] for k in order]
        permuted = songs.replace(values=songs.values[:, order], columns=columns)
        other = HMMAggregator(**QUICK).fit(permuted)
        for label in COLUMNS:
            for array in frames_of(queries):
                expected = plain.hmms_[label].score(array.astype(np.float64))
                found = other.hmms_[label].score(array[:, order].astype(np.float64))
                assert found == pytest.approx(expected, rel=1e-9)
        means = [hmm.means_ for hmm in other.hmms_.values()]
        assert_allclose(means, [hmm.means_[:, order] for hmm in plain.hmms_.values()], rtol=1e-9)

    @pytest.mark.parametrize("labels", [["b", "a", "c"], [7, -3, 12], [0.5, 0.25, 1.0]])
    def test_models_are_named_by_plain_labels(self, labels: list[Any]) -> None:
        songs = order_free_songs(30)
        y = np.array([labels[k] for k in integer_labels(songs)])
        model = HMMAggregator(**QUICK | {"n_states": 1}).fit(frames_of(songs), y)
        assert list(model.hmms_) == sorted(labels)
        assert {type(label) for label in model.hmms_} == {type(labels[0])}
        # Each is likeliest on the songs of its own class.
        for label in labels:
            own = songs[y == label]
            scores = {name: hmm.score(own.values, own.lengths) for name, hmm in model.hmms_.items()}
            assert max(scores, key=lambda name: scores[name]) == label

    def test_those_of_a_file_score_where_seqagg_is_not(self, tmp_path: Path) -> None:
        """Their parameters are taken to a process that has hmmlearn alone."""
        model = HMMAggregator(**QUICK, decision="likelihood").fit(order_songs(40))
        model.save(tmp_path / "hmm.safetensors")
        loaded = load(tmp_path / "hmm.safetensors")
        assert isinstance(loaded, HMMAggregator)
        queries = order_songs(5, seed=1)
        parts = ("startprob_", "transmat_", "means_", "covars_")
        hmms = enumerate(loaded.hmms_[label] for label in loaded.classes_)
        arrays = {f"{k}{part}": getattr(hmm, part) for k, hmm in hmms for part in parts}
        songs = {f"song{i}": array.astype(float) for i, array in enumerate(queries)}
        np.savez(tmp_path / "arrays.npz", **arrays, **songs)
        code = f"""
import sys
import numpy as np
sys.modules["seqagg"] = None
from hmmlearn.hmm import GaussianHMM
with np.load("arrays.npz") as arrays:
    for i in range(5):
        for k in range(3):
            hmm = GaussianHMM(len(arrays[f"{{k}}startprob_"]), "full")
            for part in {parts}:
                setattr(hmm, part, arrays[f"{{k}}{{part}}"])
            print(hmm.score(arrays[f"song{{i}}"]))"""
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        scores = np.array(done.stdout.split(), dtype=float).reshape(5, 3) + log_prior(model)
        constant = (scores - loaded.decision_function(queries)) / queries.lengths[:, None]
        assert_allclose(constant, constant[0, 0], rtol=1e-9)

    def test_far_frames_get_a_score(self) -> None:
        model = HMMAggregator(n_states=3, decision="likelihood").fit(order_songs(45))
        far = np.full((3, 3), 60.0)
        expected = [model.hmms_[label].score(far) for label in model.classes_] + log_prior(model)
        constant = expected - model.decision_function([far])[0]
        assert_allclose(constant, constant[0], rtol=1e-8)

    def test_a_class_without_songs_has_no_model_and_no_chance(self) -> None:
        songs = order_songs(30)
        seen = songs[integer_labels(songs) != 1]
        model = HMMAggregator(**QUICK, decision="likelihood").fit(seen)
        assert list(model.hmms_) == ["blues", "metal"]
        assert model.classes_.tolist() == ["blues", "jazz", "metal"]
        assert model.biases_ is None
        decision = model.decision_function(songs) - log_prior(model)
        assert_allclose(decision[:, 1], decision[:, [0, 2]].min(axis=1), rtol=1e-9)
        assert "jazz: no training song" in model.fit_report_


class TestOneState:
    """With a single state all is known in closed form."""

    SHRINKAGE = 17.0

    def songs(self) -> tuple[Songs, list[Floats], Floats]:
        """Songs, frames of each class, and the covariance within classes."""
        rng = np.random.default_rng(0)
        roots = rng.normal(size=(3, 3, 3))
        arrays = [rng.normal(size=(12, 3)) @ roots[i % 3] + i % 3 for i in range(60)]
        labels = [COLUMNS[i % 3] for i in range(60)]
        songs = Songs.from_arrays(arrays, columns=COLUMNS, labels=labels)
        exact = frames_of(songs)
        of_class = [np.concatenate(exact[k::3]).astype(np.float64) for k in range(3)]
        within = np.mean([covariance_of(frames) for frames in of_class], axis=0)
        return songs, of_class, within

    def test_full_covariances_are_drawn_towards_that_within_classes(self) -> None:
        songs, of_class, within = self.songs()
        model = HMMAggregator(
            n_states=1, covariance_type="full", topology="ergodic", shrinkage=self.SHRINKAGE
        ).fit(songs)
        for label, frames in zip(COLUMNS, of_class, strict=True):
            hmm, n = model.hmms_[label], len(frames)
            expected = self.SHRINKAGE * within + n * covariance_of(frames)
            assert_allclose(hmm.covars_[0], expected / (self.SHRINKAGE + n), rtol=1e-6, atol=1e-6)
            assert_allclose(hmm.means_[0], frames.mean(axis=0), rtol=1e-6, atol=1e-6)
            assert hmm.startprob_.tolist() == [1]
            assert hmm.transmat_.tolist() == [[1]]

    def test_diagonal_covariances_are_so_where_classes_share_one(self) -> None:
        """Then whitening makes them diagonal, and nothing is lost."""
        songs, of_class, _ = self.songs()
        alike = songs.replace(labels=["blues"] * 60)
        model = HMMAggregator(n_states=1, covariance_type="diag", topology="ergodic").fit(alike)
        frames = np.concatenate(of_class)
        assert_allclose(model.hmms_["blues"].covars_[0], covariance_of(frames), rtol=1e-5)
        assert_allclose(model.hmms_["blues"].means_[0], frames.mean(axis=0), rtol=1e-5)


class TestEngines:
    @pytest.mark.parametrize("covariance_type", ["diag", "full"])
    @pytest.mark.parametrize("topology", ["ergodic", "left-right"])
    def test_hmmlearn_gives_the_same_answers(self, covariance_type: Any, topology: Any) -> None:
        songs, queries = order_songs(30), order_songs(10, seed=1)
        settings = QUICK | {"covariance_type": covariance_type, "topology": topology}
        ours = HMMAggregator(**settings, engine="seqagg").fit(songs)
        theirs = HMMAggregator(**settings, engine="hmmlearn").fit(songs)
        assert_allclose(theirs.weights_, ours.weights_, rtol=1e-5, atol=1e-6)
        assert_allclose(
            theirs.decision_function(queries), ours.decision_function(queries), rtol=1e-5, atol=1e-6
        )
        for label in COLUMNS:
            one, other = theirs.hmms_[label], ours.hmms_[label]
            assert_allclose(one.means_, other.means_, rtol=1e-6, atol=1e-6)
            assert_allclose(one.covars_, other.covars_, rtol=1e-6, atol=1e-6)
            assert_allclose(one.transmat_, other.transmat_, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("covariance_type", ["diag", "full"])
    def test_silence_at_both_ends(self, covariance_type: Any) -> None:
        """The way back to a tight state is forbidden, and plain scaling fails."""
        rng = np.random.default_rng(0)

        def silence(n: int) -> Floats:
            return np.array([-8.0, -8.0, 8.0]) + rng.normal(0, 0.01, (n, 3))

        arrays = []
        for i in range(20):
            music = rng.normal(-2, 2, (40, 3))
            music[:, i % 2] += 4
            arrays.append(np.concatenate([silence(40), music, silence(100 if i < 2 else 0)]))
        labels = [COLUMNS[i % 2] for i in range(20)]
        songs = Songs.from_arrays(arrays, columns=COLUMNS, labels=labels)
        settings = QUICK | {"topology": "left-right", "covariance_type": covariance_type}
        models = [
            HMMAggregator(**settings, decision="likelihood", shrinkage=1.0, engine=engine).fit(
                songs
            )
            for engine in ("hmmlearn", "seqagg")
        ]
        theirs, ours = (model.decision_function(songs) for model in models)
        assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("engine", ["seqagg", "hmmlearn"])
    def test_songs_of_one_frame_show_no_transition(self, engine: Any) -> None:
        songs = order_free_songs(45)
        firsts = [array[:1] for array in frames_of(songs)]
        model = HMMAggregator(**QUICK | {"min_frames": 5}, engine=engine)
        model.fit(Songs.from_arrays(firsts, columns=COLUMNS, labels=songs.labels))
        assert np.isfinite(model.decision_function(songs)).all()
        for hmm in model.hmms_.values():
            assert hmm.n_components == 2
            assert_allclose(hmm.transmat_.sum(axis=1), 1, rtol=1e-9)


class TestStates:
    def test_fewer_where_a_class_has_few_frames(self) -> None:
        rng = np.random.default_rng(0)
        frames_per_class = {"blues": 39, "jazz": 40, "metal": 9}
        songs = Songs.from_arrays(
            [rng.normal(size=(n, 3)) for n in frames_per_class.values()],
            columns=COLUMNS,
            labels=list(frames_per_class),
        )
        settings = QUICK | {"n_states": 5}
        model = HMMAggregator(**settings, min_frames=10).fit(songs)
        found = {label: hmm.n_components for label, hmm in model.hmms_.items()}
        assert found == {"blues": 3, "jazz": 4, "metal": 1}
        assert model.shape_.n_states == 5
        assert "blues: 1 songs, 39 frames, 3 states" in model.fit_report_
        more = HMMAggregator(**settings, min_frames=1).fit(songs)
        assert {hmm.n_components for hmm in more.hmms_.values()} == {5}

    @pytest.mark.parametrize("covariance_type", ["diag", "full"])
    @pytest.mark.parametrize("topology", ["ergodic", "left-right"])
    def test_a_class_with_one_song_of_one_frame(self, covariance_type: Any, topology: Any) -> None:
        songs = order_songs(20)
        single = songs[integer_labels(songs) != 1]
        lone = Songs.from_arrays(
            [*single, np.array([[-3.0, 4.0, -3.0]])],
            columns=COLUMNS,
            labels=[*single.labels, "jazz"],
        )
        model = HMMAggregator(covariance_type=covariance_type, topology=topology).fit(lone)
        assert model.hmms_["jazz"].n_components == 1
        assert_allclose(model.hmms_["jazz"].means_[0], [-3, 4, -3], rtol=1e-5)
        assert np.isfinite(model.decision_function(songs)).all()
        assert model.predict([np.array([[-3.0, 4.0, -3.0]] * 4)]).tolist() == ["jazz"]

    def test_left_right_models_never_go_back_and_skip_at_most_one(self) -> None:
        settings = QUICK | {"n_states": 4, "topology": "left-right", "n_iter": 20}
        model = HMMAggregator(**settings, min_frames=1).fit(order_songs(45))
        for hmm in model.hmms_.values():
            steps = np.arange(4)[None, :] - np.arange(4)[:, None]
            assert (hmm.transmat_[(steps < 0) | (steps > 2)] == 0).all()
            assert (hmm.startprob_[2:] == 0).all()
            assert_allclose(hmm.transmat_.sum(axis=1), 1, rtol=1e-9)

    def test_the_likeliest_start_is_kept(self) -> None:
        """Starts come from one generator, so the first of many is that of one alone."""
        likelihoods = []
        for n_restarts in (1, 6):
            settings = QUICK | {"n_states": 4, "n_restarts": n_restarts}
            model = HMMAggregator(**settings, min_frames=1).fit(order_free_songs(45))
            found = re.findall(r"(-?[\d.]+) nats per frame", model.fit_report_)
            likelihoods.append([float(value) for value in found])
        one, many = np.array(likelihoods)
        assert one.shape == (3,)
        assert (many >= one).all()
        assert many.sum() > one.sum()

    def test_em_stops_at_the_tolerance(self) -> None:
        songs = order_free_songs(45)
        counts = []
        for tol in (1e-1, 1e-6):
            model = HMMAggregator(**QUICK | {"n_iter": 40}, tol=tol).fit(songs)
            counts.append(sum(iterations(model)))
        assert counts[0] < counts[1]

    def test_the_tolerance_is_per_frame(self) -> None:
        """Twice the songs, all of them twice: EM takes the same steps, and as many."""
        songs = order_songs(30)
        twice = Songs.from_arrays(
            frames_of(songs) * 2, columns=COLUMNS, labels=songs.labels.tolist() * 2
        )
        settings = QUICK | {"topology": "left-right", "n_iter": 40, "shrinkage": 1e-9}
        once, again = (HMMAggregator(**settings, tol=2e-3).fit(s) for s in (songs, twice))
        assert iterations(again) == iterations(once)
        assert max(iterations(once)) < 40


class TestHardColumns:
    """Softmax columns depend on each other, taggers have columns that never move."""

    def assert_sound(self, songs: Songs, queries: Songs, **settings: Any) -> HMMAggregator:
        model = HMMAggregator(**QUICK | settings, decision="likelihood").fit(songs)
        assert np.isfinite(model.predict_log_proba(queries)).all()
        for hmm in model.hmms_.values():
            assert (np.linalg.eigvalsh(hmm.covars_) > 0).all()
        expected = hmmlearn_scores(model, queries) + log_prior(model)
        constant = (expected - model.decision_function(queries)) / queries.lengths[:, None]
        assert_allclose(constant, constant[0, 0], rtol=1e-5, atol=1e-5)
        return model

    @pytest.mark.parametrize("covariance_type", ["diag", "full"])
    def test_two_identical_columns(self, covariance_type: Any) -> None:
        def doubled(songs: Songs) -> Songs:
            values = np.hstack([songs.values, songs.values[:, :1]])
            return songs.replace(values=values, columns=[*COLUMNS, "blues again"])

        songs, queries = order_songs(45), order_songs(30, seed=1)
        settings = {"covariance_type": covariance_type, "n_states": 3, "n_iter": 20}
        model = self.assert_sound(doubled(songs), doubled(queries), **settings)
        plain = HMMAggregator(**QUICK | settings, decision="likelihood").fit(songs)
        assert plain.score(queries) > 0.9
        assert model.score(doubled(queries)) > 0.9

    @pytest.mark.parametrize("n_columns", [2, 3])
    @pytest.mark.parametrize("covariance_type", ["diag", "full"])
    def test_softmax_columns(self, n_columns: int, covariance_type: Any) -> None:
        """Of two, one is the other with its sign changed."""
        columns = COLUMNS[:n_columns]

        def softmax_songs(n: int, seed: int) -> Songs:
            return order_free_songs(n, seed, columns=columns).replace(kind="logit")

        queries = softmax_songs(30, 1)
        model = HMMAggregator(**QUICK | {"covariance_type": covariance_type})
        model.fit(softmax_songs(40, 0))
        assert np.isfinite(model.decision_function(queries)).all()
        assert model.score(queries) >= MeanLogOdds().fit(queries).score(queries) - 0.1
        for hmm in model.hmms_.values():
            assert (np.linalg.eigvalsh(hmm.covars_) > 0).all()

    @pytest.mark.parametrize("covariance_type", ["diag", "full"])
    def test_a_column_that_never_moves(self, covariance_type: Any) -> None:
        def stuck(songs: Songs) -> Songs:
            values = np.hstack([songs.values, np.full((len(songs.values), 1), -16.6, np.float32)])
            return songs.replace(values=values, columns=[*COLUMNS, "polka"])

        settings = {"covariance_type": covariance_type, "n_states": 3, "n_iter": 20}
        queries = stuck(order_songs(30, seed=1))
        model = self.assert_sound(stuck(order_songs(45)), queries, **settings)
        assert model.score(queries) > 0.9

    @pytest.mark.parametrize("engine", ["seqagg", "hmmlearn"])
    def test_nothing_ever_moves(self, engine: Any) -> None:
        songs = Songs.from_arrays(
            [np.zeros((4, 3))] * 6, columns=COLUMNS, labels=[*COLUMNS, *COLUMNS]
        )
        model = HMMAggregator(**QUICK, engine=engine).fit(songs)
        assert_allclose(model.predict_proba(songs), 1 / 3, rtol=1e-6)


class TestMix:
    def test_stays_with_averaging_where_order_and_distribution_say_no_more(self) -> None:
        """Frames are normal about their class, so the highest mean is the optimal decision.

        Songs differ in how noisy they are, which a likelihood takes for a hint.
        """
        train, unseen = noisy_songs(90, 0), noisy_songs(600, 1)
        averaging = MeanLogOdds().fit(train)
        accuracy = averaging.score(unseen)
        hybrid = HMMAggregator(n_states=3, n_iter=10).fit(train)
        likelihood = HMMAggregator(n_states=3, n_iter=10, decision="likelihood").fit(train)
        assert 0.7 < accuracy < 0.9
        assert hybrid.score(unseen) > accuracy - 0.02
        assert likelihood.score(unseen) < accuracy - 0.1
        losses = [
            log_loss(list(unseen.labels), model.predict_proba(unseen))
            for model in (hybrid, averaging)
        ]
        assert losses[0] < losses[1] + 0.1

    def test_wins_where_the_pace_alone_tells_classes_apart(self) -> None:
        train, unseen = songs_of_pace(60, 0), songs_of_pace(60, 1)
        settings = QUICK | {"n_iter": 20, "n_restarts": 2}
        assert HMMAggregator(**settings).fit(train).score(unseen) > 0.9

    def test_weights_are_never_negative(self) -> None:
        for songs in (order_songs(45), order_free_songs(45), noisy_songs(45, 3)):
            model = HMMAggregator(**QUICK).fit(songs)
            assert model.weights_.shape == (3,)
            assert (model.weights_ >= 0).all()

    def test_likelihoods_that_mislead_weigh_nothing(self) -> None:
        """Averages that are right on every song, and classes drawn at random for the frames."""
        rng = np.random.default_rng(0)
        arrays, labels = [], []
        for i in range(60):
            frames = rng.normal(size=(6, 3)) * 30
            frames -= frames.mean(axis=0)
            frames[:, i % 3] += 3
            arrays.append(frames)
            labels.append(COLUMNS[i % 3])
        songs = Songs.from_arrays(arrays, columns=COLUMNS, labels=labels)
        model = HMMAggregator(**QUICK).fit(songs)
        a, b, _ = model.weights_
        assert b >= 1
        assert a < 0.2 * b

    @pytest.mark.parametrize("why", ["one group", "one fold"])
    def test_without_songs_to_hold_out_averaging_decides(self, why: str) -> None:
        songs, queries = order_songs(30), order_songs(10, seed=1)
        if why == "one group":
            model = HMMAggregator(**QUICK).fit(songs, groups=["all"] * 30)
        else:
            model = HMMAggregator(**QUICK, n_folds=1).fit(songs)
        assert model.weights_.tolist() == [0, 1, 0]
        expected = averages(queries, model._start)
        expected = expected + leaning(model)
        assert_allclose(model.decision_function(queries), expected, rtol=1e-5)
        assert set(model.hmms_) == set(COLUMNS)

    def test_columns_that_are_no_classes(self) -> None:
        tags = [f"tag {j}" for j in range(6)]

        def tagged(n: int, seed: int) -> Songs:
            songs = order_songs(n, seed)
            noise = np.random.default_rng(seed).normal(size=songs.values.shape)
            return songs.replace(values=np.hstack([songs.values, noise]), columns=tags)

        model = HMMAggregator(n_states=3, n_iter=10).fit(tagged(60, 0))
        assert model.classes_.tolist() == list(COLUMNS)
        assert model.hmms_["jazz"].means_.shape == (3, 6)
        assert model.score(tagged(30, 1)) > 0.8


class TestShapes:
    def test_what_was_tried_and_chosen_is_reported(self) -> None:
        model = HMMAggregator(n_iter=3).fit(order_songs(45))
        losses = dict(
            re.findall(r"(\d+ \w+ [\w-]+ states) ([\d.]+)", model.fit_report_.splitlines()[1])
        )
        tried = [
            str(Shape(n, covariance, topology))
            for n in HMMAggregator.auto_states
            for covariance in ("diag", "full")
            for topology in ("ergodic", "left-right")
        ]
        assert list(losses) == tried
        assert model.fit_report_.startswith(f"asked for {model.shape_} per class\n")

    @pytest.mark.parametrize(("gap", "chosen"), [(0.05, 0), (1.0, 2)])
    def test_the_simplest_of_those_about_as_good_is_taken(self, gap: float, chosen: int) -> None:
        """The third shape is the best; by how much, compared with the noise, decides.

        But for the gap it has the first one's losses, on other songs of the class.
        """
        rng = np.random.default_rng(0)
        model = HMMAggregator(**QUICK).fit(order_songs(30))
        n_classes = len(model.classes_)
        y = np.repeat(np.arange(n_classes), 100)
        truth = np.eye(n_classes)[y]
        first = rng.normal(size=truth.shape) + truth
        other = first.reshape(n_classes, 100, n_classes)[:, ::-1].reshape(truth.shape)
        likelihoods = [first, first - 0.5 * truth, other + gap * truth]
        best, losses = model._choose(np.zeros_like(first), likelihoods, y, np.arange(len(y)))
        assert np.argmin(losses) == 2
        assert best == chosen
        assert model.weights_[0] > 0

    def test_averaging_is_simpler_than_any_shape(self) -> None:
        rng = np.random.default_rng(1)
        model = HMMAggregator(**QUICK).fit(order_songs(30))
        y = np.arange(300) % len(model.classes_)
        averages = rng.normal(size=(300, len(model.classes_)))
        averages[np.arange(300), y] += 2
        noise = [rng.normal(size=averages.shape) for _ in range(2)]
        model._choose(averages, noise, y, np.arange(300))
        assert model.weights_.tolist() == [0, 1, 0]

    def test_what_is_set_is_not_tried(self) -> None:
        model = HMMAggregator(
            n_states=2, covariance_type="full", topology="left-right", n_iter=2
        ).fit(order_songs(30))
        assert model.shape_ == Shape(2, "full", "left-right")
        losses = model.fit_report_.splitlines()[1]
        assert losses.count("states") == 1
        assert "2 full left-right states" in losses

    def test_states_that_follow_in_time_choose_more_than_one(self) -> None:
        """Two states suffice for songs of two halves, and one cannot tell which came first."""
        settings = {"covariance_type": "diag", "topology": "ergodic", "n_iter": 10}
        models = [HMMAggregator(n_states=n, **settings).fit(order_songs(45)) for n in (1, 3)]
        unseen = order_songs(45, seed=1)
        one, three = (model.score(unseen) for model in models)
        assert one < 0.55
        assert three > 0.9

    def test_weights_are_in_the_report(self) -> None:
        model = HMMAggregator(**QUICK).fit(order_songs(30))
        found = re.search(
            r"score = (\S+) log likelihood per frame \+ (\S+) average \+ (\S+) log prior",
            model.fit_report_,
        )
        assert found is not None
        assert_allclose([float(w) for w in found.groups()], model.weights_, rtol=1e-2, atol=1e-9)


class TestSilence:
    @pytest.mark.parametrize("engine", ["seqagg", "hmmlearn"])
    def test_nothing_is_printed_or_logged(
        self, engine: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        """With so much shrinkage the likelihood falls, about which hmmlearn logs a warning."""
        caplog.set_level(logging.DEBUG)
        level = logging.getLogger("hmmlearn.base").level
        settings = QUICK | {"n_states": 3, "topology": "left-right", "n_iter": 40, "tol": -1e9}
        model = HMMAggregator(**settings, shrinkage=1000.0, min_frames=1, engine=engine)
        model.fit(order_songs(30)).predict(order_songs(5, seed=1))
        assert "likelihood fell at some iteration" in model.fit_report_
        assert capfd.readouterr() == ("", "")
        assert caplog.records == []
        assert logging.getLogger("hmmlearn.base").level == level


class TestPrecision:
    @pytest.mark.parametrize("covariance_type", ["diag", "full"])
    def test_float32_scores_are_right_to_six_digits(self, covariance_type: Any) -> None:
        songs, queries = order_songs(40), order_songs(20, seed=1)
        settings = QUICK | {"covariance_type": covariance_type}
        double = HMMAggregator(**settings).fit(songs)
        single = HMMAggregator(**settings, dtype="float32", n_jobs=2).fit(songs)
        expected = double.decision_function(queries)
        found = single.decision_function(queries)
        assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert not np.array_equal(found, expected)
        assert single.predict(queries).tolist() == double.predict(queries).tolist()


class TestParameters:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("n_states", 0),
            ("n_states", 2.5),
            ("n_states", "many"),
            ("covariance_type", "tied"),
            ("topology", "circular"),
            ("decision", "vote"),
            ("shrinkage", 0.0),
            ("shrinkage", -1.0),
            ("shrinkage", float("nan")),
            ("min_frames", 0),
            ("n_restarts", 0),
            ("n_iter", 0),
            ("n_folds", 0),
            ("engine", "torch"),
            ("on_empty", "skip"),
        ],
    )
    def test_out_of_range(self, name: str, value: Any) -> None:
        with pytest.raises(ParameterError, match=rf"^{name}=.*{re.escape(str(value))}"):
            HMMAggregator(**{name: value}).fit(order_songs(6))

    def test_numpy_integers_will_do(self) -> None:
        settings = QUICK | {"n_states": np.int64(2), "n_iter": np.int32(3)}
        model = HMMAggregator(**settings).fit(order_songs(12))
        assert model.shape_.n_states == 2

    def test_seeds(self) -> None:
        songs, queries = order_songs(45), order_songs(5, seed=1)
        settings = QUICK | {"n_states": 4}
        first, again, other = (
            HMMAggregator(**settings, random_state=seed).fit(songs).decision_function(queries)
            for seed in (0, 0, 1)
        )
        assert_array_equal(again, first)
        assert np.abs(other - first).max() > 1e-3


class TestGroups:
    def test_groups_are_kept_together_inside(self) -> None:
        """Albums have a sound of their own, which says nothing about other albums."""
        arrays, labels, albums = reference_models.songs_of_albums(24, 4, seed=0)
        tags = [f"tag {j}" for j in range(4)]
        songs = Songs.from_arrays(arrays, columns=tags, labels=labels)
        strange, unknown, _ = reference_models.songs_of_albums(60, 1, seed=1)
        settings = QUICK | {"n_states": 8, "n_iter": 10}
        fooled = HMMAggregator(**settings).fit(songs)
        aware = HMMAggregator(**settings).fit(songs, groups=albums)
        carried = HMMAggregator(**settings).fit(songs.replace(groups=albums))
        losses = [log_loss(unknown, model.predict_proba(strange)) for model in (fooled, aware)]
        assert losses[0] > 2 * np.log(3)
        assert losses[1] < 1.15 * np.log(3)
        assert_array_equal(carried.weights_, aware.weights_)


class TestFiles:
    def test_hmms_are_there_after_loading(self, tmp_path: Any) -> None:
        model = HMMAggregator(**QUICK).fit(order_songs(30))
        model.save(tmp_path / "model.safetensors")
        loaded = load(tmp_path / "model.safetensors")
        assert list(loaded.hmms_) == list(model.hmms_)
        for label, hmm in model.hmms_.items():
            frames = order_songs(1, seed=1)[0].astype(np.float64)
            assert loaded.hmms_[label].score(frames) == hmm.score(frames)
        assert_array_equal(loaded.weights_, model.weights_)
        assert (loaded.shape_, loaded.fit_report_) == (model.shape_, model.fit_report_)


def noisy_songs(n: int, seed: int) -> Songs:
    arrays, labels = reference_models.songs_of_varied_noise(n, seed)
    return Songs.from_arrays(arrays, columns=[f"c{k}" for k in range(6)], labels=labels)


def songs_of_pace(n: int, seed: int) -> Songs:
    """Two chords in turn: class "slow" changes every four frames, class "fast" every frame.

    Both hear each chord for 12 of 24 frames, and half of the songs begin with either.
    """
    rng = np.random.default_rng(seed)
    arrays = []
    for i in range(n):
        chord = (np.arange(24) // (4, 1)[i % 2] + rng.integers(2)) % 2
        arrays.append(rng.normal(size=(24, 2)) + 3 * np.eye(2)[chord])
    labels = [("slow", "fast")[i % 2] for i in range(n)]
    return Songs.from_arrays(arrays, columns=["tonic", "dominant"], labels=labels)
