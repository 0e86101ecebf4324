"""The choice between averaging and a blend of the learnt methods."""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize
from scipy.special import softmax
from sklearn.metrics import log_loss

from seqagg import Songs, load
from seqagg.aggregators import make_aggregator
from seqagg.aggregators.auto import AutoAggregator
from seqagg.aggregators.saving import pack, unpack
from seqagg.calibration import paired_gain
from seqagg.certainty import AS_IT_IS
from seqagg.errors import ModelFileError, ParameterError
from tests import reference, reference_models
from tests.conftest import (
    COLUMNS,
    frames_of,
    integer_labels,
    leaning,
    order_free_songs,
    order_songs,
    songs_sometimes_of_no_use,
)

Floats = npt.NDArray[np.float64]

PARAMETERS: dict[str, dict[str, Any]] = {
    "hmm": {"n_states": 3, "covariance_type": "diag", "topology": "left-right", "n_iter": 5},
    "gru": {"epochs": 3, "hidden_size": 8},
}

TAGS = ("guitar", "piano", "voice")


def auto(*methods: str, **settings: Any) -> AutoAggregator:
    chosen = {name: PARAMETERS[name] for name in methods if name in PARAMETERS}
    return AutoAggregator(methods=methods, parameters=chosen, **settings)


def blend_by_hand(model: AutoAggregator, train: Songs, queries: Songs) -> Floats:
    """Weighted sum of the log probabilities of the methods, each fitted on its own, and biases."""
    total = np.tile(leaning(model), (len(queries), 1))
    for name, weight in model.weights_.items():
        alone = make_aggregator(name, **PARAMETERS.get(name, {})).fit(train)
        assert alone.classes_.tolist() == model.classes_.tolist()
        total += weight * alone.predict_log_proba(queries)
    return total


def songs_without_order(n: int, seed: int) -> Songs:
    arrays, labels = reference_models.songs_of_varied_noise(n, seed)
    return Songs.from_arrays(arrays, columns=[f"c{k}" for k in range(6)], labels=labels)


class TestChoice:
    def test_averaging_where_order_says_nothing(self) -> None:
        """By chance some sets of songs seem to gain more than a standard error."""
        kept, lost = [], []
        for seed in range(4):
            train, unseen = songs_without_order(60, seed), songs_without_order(300, 99)
            model = auto("stack").fit(train)
            averages = set(model.weights_) <= {"mean", "logodds"}
            kept.append(averages)
            last = model.fit_report_.splitlines()[-1]
            assert last.endswith("averaging is kept" if averages else "it is used")
            lost.append(make_aggregator("logodds").fit(train).score(unseen) - model.score(unseen))
        assert sum(kept) >= 3
        assert np.mean(lost) < 0.04  # between the averages themselves there are 0.02

    def test_the_kept_averages_answer(self) -> None:
        songs, queries = songs_without_order(48, 0), songs_without_order(30, 9)
        model = auto("gru", "stack", n_errors=math.inf).fit(songs)
        assert set(model.weights_) <= {"mean", "logodds"}
        expected = blend_by_hand(model, songs, queries)
        assert_allclose(model.decision_function(queries), expected, rtol=1e-6, atol=1e-6)

    def test_the_better_average_is_kept(self) -> None:
        """Frames so sure that they are wrong at times: one outweighs all others in log-odds."""
        rng = np.random.default_rng(0)

        def outlier_songs(n: int) -> Songs:
            songs = order_free_songs(n, int(rng.integers(1000)), gap=0.7)
            values = songs.values.copy()
            hit = rng.random(len(values)) < 0.15
            values[hit, rng.integers(0, 3, hit.sum())] = 40.0
            return songs.replace(values=values)

        model = auto("stack", n_errors=math.inf).fit(outlier_songs(400))
        assert set(model.weights_) == {"mean"}

    def test_kept_averages_lie_halfway_from_the_likeliest_to_equal_weights(self) -> None:
        """Against a search that knows no slopes, over losses by loops."""
        songs = songs_without_order(40, 2)
        model = auto("stack", n_errors=math.inf).fit(songs)
        y = np.searchsorted(model.classes_, songs.labels.astype(str)).tolist()
        names = ("mean", "logodds")
        parts = [make_aggregator(n).fit(songs).predict_log_proba(songs).tolist() for n in names]
        around = np.zeros(2)
        around[np.argmin([reference_models.loss_of_mix([1.0], [part], y) for part in parts])] = 1

        def cost(weights: Floats) -> float:
            found = np.abs(weights)
            prior = 0.5 * ((found - around) ** 2).sum()
            return reference_models.loss_of_mix(found.tolist(), parts, y) + float(prior)

        options = {"xatol": 1e-7, "fatol": 1e-10, "maxiter": 4000}
        likeliest = np.abs(minimize(cost, [0.5, 0.5], method="Nelder-Mead", options=options).x)
        wanted = dict(zip(names, (likeliest + 0.5) / 2, strict=True))
        assert model.weights_ == pytest.approx(wanted, abs=1e-3)

    def test_the_blend_where_order_matters(self) -> None:
        songs, unseen = order_songs(45), order_songs(60, seed=1)
        model = auto("hmm", "gru", "stack").fit(songs)
        assert {"hmm", "stack"} & set(model.weights_)
        assert model.fit_report_.endswith("it is used")
        assert model.score(unseen) > 0.9
        averages = [make_aggregator(name).fit(songs).score(unseen) for name in ("mean", "logodds")]
        assert max(averages) < 0.5

    def test_the_blend_is_the_weighted_sum_of_its_methods(self) -> None:
        songs, queries = order_songs(45), order_songs(12, seed=1)
        model = auto("hmm", "stack").fit(songs)
        assert len(model.weights_) >= 2
        expected = blend_by_hand(model, songs, queries)
        assert_allclose(model.decision_function(queries), expected, rtol=1e-6, atol=1e-6)

    def test_a_useless_method_is_left_out(self) -> None:
        """Three epochs of a tiny network are averaging, give or take nothing."""
        model = auto("hmm", "gru", "stack").fit(order_songs(45))
        assert set(model.candidates_) == set(model.weights_)
        assert min(model.weights_.values()) >= 0.01
        assert not set(model.weights_) > {"mean", "logodds"}

    def test_how_many_standard_errors_is_up_to_the_user(self) -> None:
        songs = order_songs(45)
        careful = auto("stack", n_errors=1e6).fit(songs)
        assert set(careful.weights_) <= {"mean", "logodds"}
        careless = auto("stack", n_errors=-1e6).fit(songs_without_order(48, 4))
        assert careless.fit_report_.endswith("it is used")

    def test_every_method_and_its_loss_are_in_the_report(self) -> None:
        model = auto("stack", "hmm").fit(order_songs(30))
        lines = model.fit_report_.splitlines()
        assert [line.partition(":")[0] for line in lines[:-1]] == [
            "mean",
            "logodds",
            "stack",
            "hmm",
            "blend",
            "averaging",
        ]
        assert all("held-out loss " in line for line in lines[:-1])
        mix = " + ".join(f"{w:.2f} {name}" for name, w in model.weights_.items())
        assert lines[-3].endswith(mix)

    def test_losses_in_the_report_are_of_songs_held_out(self) -> None:
        """Labels drawn at random: a stack that had seen them would be far below chance."""
        rng = np.random.default_rng(0)
        songs = order_songs(60).replace(labels=rng.choice(COLUMNS, 60))
        model = auto("stack").fit(songs)
        losses = [float(line.split()[3]) for line in model.fit_report_.splitlines()[:3]]
        assert min(losses) > 0.9 * math.log(3)

    def test_the_loss_of_a_method_that_averages_models_is_that_of_all(self) -> None:
        """Two networks of ten have not heard a song; what the other eight add is foreseen."""
        songs = order_songs(60)
        model = AutoAggregator(methods=("gru",), parameters={"gru": {"epochs": 30}}).fit(songs)
        gru = model.candidates_["gru"]
        votes = gru._votes.scores
        assert votes.shape == (2, 60, 3)
        in_order = model.classes_[model._class_order]
        names = [str(c) for c in in_order[gru.classes_[gru._class_order]]]

        def loss(scores: Floats) -> float:
            p = softmax(gru.inverse_temperature_ * scores, axis=1)
            order = np.argsort(names)
            return float(log_loss(songs.labels, p[:, order], labels=sorted(names)))

        pair = loss(votes.mean(axis=0))
        share = (1 / 2 - 1 / 10) / (1 - 1 / 2)
        expected = (1 + share) * pair - share * (loss(votes[0]) + loss(votes[1])) / 2
        assert expected < pair
        (line,) = (x for x in model.fit_report_.splitlines() if x.startswith("gru:"))
        assert float(line.split()[3]) == pytest.approx(expected, abs=6e-5)

    def test_the_seed_reaches_every_method(self) -> None:
        model = auto("hmm", "stack", random_state=7).fit(order_songs(30))
        learnt = [m for name, m in model.candidates_.items() if name not in ("mean", "logodds")]
        assert learnt
        assert all(m.random_state == 7 for m in learnt)
        own = AutoAggregator(methods=("stack",), parameters={"stack": {"random_state": 3}})
        assert own.fit(order_songs(30)).candidates_["stack"].random_state == 3

    def test_without_songs_to_hold_out_an_average_is_kept(self) -> None:
        model = auto("stack").fit(order_songs(30), groups=["all"] * 30)
        assert set(model.weights_) <= {"mean", "logodds"}
        assert np.isfinite(model.predict_log_proba(order_songs(3, seed=1))).all()


@functools.cache
def kept(*, certain: bool = True) -> AutoAggregator:
    """Averaging, with its probabilities beside it unless these are not asked for."""
    with pytest.MonkeyPatch.context() as patch:
        if not certain:
            patch.setattr("seqagg.aggregators.auto.fit_certainty", lambda *_: AS_IT_IS)
        model = auto("stack", n_errors=1e9).fit(songs_sometimes_of_no_use(300))
    assert set(model.weights_) <= {"mean", "logodds"}
    return model


class TestCertainty:
    """What stands beside averaging, where that is kept."""

    def test_new_songs_are_likelier(self) -> None:
        unseen = songs_sometimes_of_no_use(600, 1)
        models = kept(), kept(certain=False)
        assert [model._certainty == AS_IT_IS for model in models] == [False, True]
        assert ["certainty" in model._learnt() for model in models] == [True, False]
        losses = [log_loss(unseen.labels, model.predict_proba(unseen)) for model in models]
        assert losses[0] < losses[1] - 0.01

    def test_it_is_the_blend_and_its_probabilities(self) -> None:
        model, without = kept(), kept(certain=False)
        unseen = songs_sometimes_of_no_use(60, 1)
        blend = without.decision_function(unseen) - leaning(without)
        by_loops = [reference.as_certain(row, model._certainty) for row in blend.tolist()]
        expected = np.array(by_loops) + leaning(model)
        assert_allclose(model.decision_function(unseen), expected, atol=1e-9)
        assert re.search(r"and beside it [\d.]+ of the probability that it", model.fit_report_)

    def test_not_by_chance(self) -> None:
        """Labels are drawn from the probabilities of averaging."""
        found = []
        for seed in range(6):
            rng = np.random.default_rng(seed)
            arrays = rng.normal(size=(120, 6, 3)) + rng.normal(size=(120, 1, 3))
            songs = Songs.from_arrays(list(arrays), columns=COLUMNS)
            p = make_aggregator("logodds").fit(songs).predict_proba(songs)
            labels = [rng.choice(COLUMNS, p=row) for row in p]
            found.append(auto("stack", n_errors=1e9).fit(songs, labels)._certainty != AS_IT_IS)
        assert sum(found) <= 2

    @pytest.mark.parametrize(
        "certainty", [(0.5, -1.0, 1.0), (0.0, 1.0, 1.0), (0.5,), (0.5, 1e200, 1.0)]
    )
    def test_a_file_that_says_what_cannot_be(self, certainty: tuple[float, ...]) -> None:
        header, arrays = pack(kept())
        wrong = arrays | {"state.certainty": np.array(certainty)}
        with pytest.raises(ModelFileError, match="certainty"):
            unpack(header, wrong)


class TestColumnsThatAreNoClasses:
    def test_there_is_no_average_to_keep(self) -> None:
        songs, unseen = (order_songs(n, seed=n).replace(columns=TAGS) for n in (45, 60))
        model = auto("hmm", "stack").fit(songs)
        assert model.classes_.tolist() == list(COLUMNS)
        assert set(model.weights_) <= {"hmm", "stack"}
        assert "kept" not in model.fit_report_
        assert "mean:" not in model.fit_report_
        assert model.score(unseen) > 0.9

    def test_blend(self) -> None:
        songs, queries = (order_songs(n, seed=n).replace(columns=TAGS) for n in (45, 9))
        model = auto("hmm", "stack").fit(songs)
        expected = blend_by_hand(model, songs, queries)
        assert_allclose(model.decision_function(queries), expected, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("n_columns", [2, 5])
    def test_as_many_columns_as_there_are(self, n_columns: int) -> None:
        rng = np.random.default_rng(0)
        songs = order_songs(45)
        values = np.hstack([songs.values, rng.normal(size=(len(songs.values), 2))])[:, :n_columns]
        tags = [f"tag {j}" for j in range(n_columns)]
        model = auto("stack").fit(songs.replace(values=values, columns=tags))
        assert model.predict_proba(songs.replace(values=values, columns=tags)).shape == (45, 3)

    def test_integers_that_are_no_columns(self) -> None:
        songs, unseen = order_songs(45), order_songs(30, seed=1)
        y = 100 * integer_labels(songs)
        model = auto("stack").fit(songs.replace(columns=TAGS), y)
        assert model.classes_.tolist() == [0, 100, 200]
        found = model.predict(unseen.replace(columns=TAGS))
        assert np.mean(found == 100 * integer_labels(unseen)) > 0.9


class TestInput:
    def test_a_class_seen_by_no_song_gets_little(self) -> None:
        songs = order_songs(45)
        seen = songs[integer_labels(songs) != 1]
        model = auto("hmm", "stack").fit(seen)
        proba = model.predict_proba(songs)
        assert (proba[:, 1] > 0).all()
        assert proba[:, 1].max() < 0.2

    def test_groups_are_kept_together_inside(self) -> None:
        arrays, labels, albums = reference_models.songs_of_albums(24, 4, seed=0)
        songs = Songs.from_arrays(arrays, columns=[f"tag {j}" for j in range(4)], labels=labels)
        strange, unknown, _ = reference_models.songs_of_albums(60, 1, seed=1)
        fooled = auto("stack").fit(songs)
        aware = auto("stack").fit(songs, groups=albums)
        losses = [log_loss(unknown, model.predict_proba(strange)) for model in (fooled, aware)]
        assert losses[0] > 1.5 * math.log(3)
        assert losses[1] < 1.25 * math.log(3)

    def test_errors_are_per_group(self) -> None:
        """The same songs, each three times over, are no more evidence than once."""
        songs = order_songs(30)
        thrice = Songs.from_arrays(
            frames_of(songs) * 3, columns=COLUMNS, labels=songs.labels.tolist() * 3
        )
        groups = list(range(30)) * 3

        def error(model: AutoAggregator) -> float:
            return float(model.fit_report_.splitlines()[-1].split("error of ")[1].split(":")[0])

        grouped, alone = auto("stack").fit(thrice, groups=groups), auto("stack").fit(thrice)
        assert error(grouped) > 1.3 * error(alone)

    def test_saved_and_loaded(self, tmp_path: Path) -> None:
        queries = order_songs(9, seed=1)
        model = auto("hmm", "gru", "stack").fit(order_songs(45))
        model.save(tmp_path / "auto.safetensors")
        loaded = load(tmp_path / "auto.safetensors")
        assert loaded.weights_ == model.weights_
        assert loaded.fit_report_ == model.fit_report_
        assert list(loaded.candidates_) == list(model.candidates_)
        assert_allclose(
            loaded.predict_log_proba(queries), model.predict_log_proba(queries), rtol=1e-6
        )


class TestParameters:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"methods": "hmm"}, "methods must be a list of names"),
            ({"methods": ()}, "methods must be a list of names"),
            ({"methods": ("stack", "auto")}, "auto cannot choose itself"),
            ({"methods": ("polka",)}, "no method 'polka'"),
            ({"methods": ("gru",), "parameters": {"gru": {"units": 3}}}, "no parameter units"),
            ({"methods": ("stack",), "parameters": {"gruu": {"epochs": 3}}}, "gruu"),
            ({"on_empty": "skip"}, "on_empty='skip'"),
        ],
    )
    def test_refused(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ParameterError, match=message):
            AutoAggregator(**settings).fit(order_songs(6))

    def test_a_parameter_out_of_range_names_itself(self) -> None:
        model = AutoAggregator(methods=("stack",), parameters={"stack": {"n_parts": 0}})
        with pytest.raises(ParameterError, match=r"^n_parts=0 "):
            model.fit(order_songs(6))

    def test_a_list_of_methods_will_do(self) -> None:
        one = AutoAggregator(methods=["stack"]).fit(order_songs(30))
        other = AutoAggregator(methods=("stack",)).fit(order_songs(30))
        assert one.weights_ == other.weights_


class TestPairedGain:
    def test_against_a_loop(self) -> None:
        rng = np.random.default_rng(0)
        before, after = rng.normal(size=(2, 50))
        for groups in (np.arange(50), np.arange(50) // 4, rng.integers(0, 9, 50)):
            found = paired_gain(before, after, groups)
            expected = reference_models.paired_gain_by_loop(
                before.tolist(), after.tolist(), groups.tolist()
            )
            assert_allclose(found, expected, rtol=1e-12)

    def test_by_hand(self) -> None:
        before, after = np.array([3.0, 1.0, 2.0, 2.0]), np.array([1.0, 1.0, 0.0, 0.0])
        # Gains 2, 0, 2, 2: mean 1.5, less that 0.5, -1.5, 0.5, 0.5.
        gain, error = paired_gain(before, after, np.arange(4))
        assert (gain, error) == pytest.approx((1.5, math.sqrt(3) / 4))
        gain, error = paired_gain(before, after, np.array([0, 0, 1, 1]))
        assert (gain, error) == pytest.approx((1.5, math.sqrt(2) / 4))

    def test_error_is_that_of_the_mean_where_songs_are_alone(self) -> None:
        rng = np.random.default_rng(0)
        before = rng.normal(size=200)
        _, error = paired_gain(before, np.zeros(200), np.arange(200))
        assert error == pytest.approx(before.std() / math.sqrt(200))

    def test_no_gain_has_no_error(self) -> None:
        losses = np.arange(6.0)
        assert paired_gain(losses, losses, np.arange(6)) == (0, 0)


def test_fitting_twice_gives_the_same_bits() -> None:
    songs, queries = order_songs(30), order_songs(9, seed=1)
    one, other = (auto("hmm", "stack").fit(songs).predict_log_proba(queries) for _ in range(2))
    assert_array_equal(one, other)


def test_a_saved_blend_is_read_by_other_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    songs = order_songs(40)
    model = AutoAggregator(methods=("stack",)).fit(songs)
    model.save(tmp_path / "old.safetensors")
    monkeypatch.setattr("seqagg.aggregators.saving.versions", lambda: {"numpy": "99.0"})
    loaded = load(tmp_path / "old.safetensors")
    np.testing.assert_array_equal(loaded.predict_proba(songs), model.predict_proba(songs))
    loaded.save(tmp_path / "new.safetensors")
    again = load(tmp_path / "new.safetensors")
    np.testing.assert_array_equal(again.predict_proba(songs), model.predict_proba(songs))
