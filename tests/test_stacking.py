"""Summaries against plain loops, and any scikit-learn classifier on them."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import log_softmax
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import LinearSVC

from seqagg import MeanLogOdds, Songs, load
from seqagg.aggregators.stacking import StackingAggregator
from seqagg.aggregators.summaries import summarize
from seqagg.errors import ParameterError
from tests import reference, reference_models
from tests.conftest import (
    COLUMNS,
    frames_of,
    integer_labels,
    mix_of,
    order_free_songs,
    order_songs,
)

Floats = npt.NDArray[np.float64]

CLIP = 12.0
"""Log-odds beyond this say no more than this; so the module says."""


def songs_of_lengths(*lengths: int, n_columns: int = 3, seed: int = 0) -> Songs:
    rng = np.random.default_rng(seed)
    return Songs.from_arrays([rng.normal(0, 4, (n, n_columns)) for n in lengths])


def summaries_by_loop(songs: Songs, n_parts: int) -> list[list[float]]:
    with_pairs = songs.n_columns <= 16
    return [
        reference_models.summary_of_song(array.astype(float).tolist(), n_parts, CLIP, with_pairs)
        for array in frames_of(songs)
    ]


class TestSummaries:
    @pytest.mark.parametrize("n_parts", [1, 3, 4, 7])
    def test_against_a_loop(self, n_parts: int) -> None:
        """Some songs have fewer frames than parts."""
        songs = songs_of_lengths(20, 1, 2, 3, 5, 11, 1, 7)
        expected = summaries_by_loop(songs, n_parts)
        assert_allclose(summarize(songs, n_parts), expected, rtol=1e-7, atol=1e-7)

    @pytest.mark.parametrize(("n_columns", "with_pairs"), [(16, True), (17, False)])
    def test_pairs_of_many_columns_are_left_out(self, n_columns: int, with_pairs: bool) -> None:
        songs = songs_of_lengths(6, 1, 9, n_columns=n_columns)
        found = summarize(songs, 4)
        assert found.shape == (3, 8 * n_columns + (n_columns**2 if with_pairs else 0) + 1)
        assert_allclose(found, summaries_by_loop(songs, 4), rtol=1e-7, atol=1e-7)

    def test_a_song_by_hand(self) -> None:
        songs = Songs.from_arrays([[[0.0], [2.0], [4.0], [20.0]]])
        # 20 counts as 12; a softmax over one column is 1, and so are the three pairs of four.
        expected = [4.5, math.sqrt(20.75), 0, 12, 1 - 4.5, 8 - 4.5, 3 / 4, math.log(4)]
        assert_allclose(summarize(songs, 2), [expected], rtol=1e-12)

    def test_a_song_does_not_reach_into_the_next(self) -> None:
        songs = songs_of_lengths(5, 1, 4, 2)
        together = summarize(songs, 3)
        alone = np.vstack([summarize(songs[[i]], 3) for i in range(4)])
        assert_allclose(together, alone, rtol=1e-9, atol=1e-9)

    def test_order_is_kept(self) -> None:
        """Backwards, the moments are the same, the parts and the pairs change places."""
        songs = songs_of_lengths(12)
        backwards = Songs.from_arrays([array[::-1] for array in frames_of(songs)])
        one, other = summarize(songs, 4)[0], summarize(backwards, 4)[0]
        assert_allclose(other[:12], one[:12], rtol=1e-6)
        assert_allclose(other[12:24].reshape(4, 3), one[12:24].reshape(4, 3)[::-1], rtol=1e-5)
        assert_allclose(other[24:33].reshape(3, 3), one[24:33].reshape(3, 3).T, rtol=1e-5)
        assert np.abs(other[12:33] - one[12:33]).max() > 0.1


def chosen(model: StackingAggregator) -> tuple[float, float]:
    """Ridge and bound, from the report."""
    found = re.search(r"ridge ([\d.]+), features within ([\d.]+) deviations", model.fit_report_)
    assert found is not None
    return float(found[1]), float(found[2])


class TestDefaultClassifier:
    def test_score_is_the_mix_that_the_weights_say(self) -> None:
        """The classifier is scikit-learn's own, found again from the report."""
        songs, queries = order_songs(45), order_songs(12, seed=1)
        model = StackingAggregator().fit(songs)
        # Columns and classes inside are in an order of their own; a ridge does not mind.
        ridge, bound = chosen(model)
        assert ridge in StackingAggregator.ridges
        assert bound in StackingAggregator.bounds
        bounded = FunctionTransformer(lambda z: bound * np.tanh(z / bound))
        regression = LogisticRegression(C=ridge, tol=1e-8)
        pipeline = make_pipeline(StandardScaler(), bounded, regression)
        pipeline.fit(summarize(songs, 4), integer_labels(songs))
        log_p = np.log(pipeline.predict_proba(summarize(queries, 4)))
        mix = mix_of(model._start)
        mean = [reference.mixed_average(x.tolist(), *mix) for x in frames_of(queries)]
        a, b = model.weights_
        expected = a * log_p + b * np.array(mean)
        assert_allclose(model.decision_function(queries), expected, rtol=0, atol=0.03)

    def test_features_and_weights_are_in_the_report(self) -> None:
        model = StackingAggregator(n_parts=2).fit(order_songs(30))
        a, b = model.weights_
        n_features = summarize(order_songs(1), 2).shape[1]
        assert model.fit_report_.startswith(f"{n_features} features, ridge ")
        assert model.fit_report_.endswith(f"score = {a:.3g} log P + {b:.3g} average")

    def test_the_ridge_is_the_stronger_the_less_there_is_to_learn(self) -> None:
        songs = order_songs(45).replace(columns=["guitar", "piano", "voice"])
        labels = songs.labels.copy()
        labels[:15] = np.random.default_rng(0).permutation(labels[:15])
        ridges = [
            chosen(StackingAggregator().fit(s))[0] for s in (songs, songs.replace(labels=labels))
        ]
        assert ridges[0] > ridges[1]

    @pytest.mark.parametrize("far", [[12.0, -12.0, -12.0], [-12.0, -12.0, -12.0]])
    def test_a_frame_far_out_does_not_decide(self, far: list[float]) -> None:
        """Songs like any others, but one frame has what no frame of the training songs had."""
        songs, queries = order_songs(60), order_songs(30, seed=1)
        model = StackingAggregator().fit(songs)
        assert model.weights_[0] > 0
        frames = [x.copy() for x in frames_of(queries)]
        for x in frames:
            x[len(x) // 2] = far
        assert (model.predict(frames) == queries.labels).mean() > 0.9

    def test_weights_are_never_negative(self) -> None:
        for songs in (order_songs(30), order_free_songs(30)):
            weights = StackingAggregator().fit(songs).weights_
            assert weights.shape == (2,)
            assert (weights >= 0).all()

    def test_order_is_heard(self) -> None:
        unseen = order_songs(60, seed=1)
        assert MeanLogOdds().fit(unseen).score(unseen) < 0.5
        assert StackingAggregator().fit(order_songs(45)).score(unseen) > 0.9

    def test_little_is_lost_where_order_says_nothing(self) -> None:
        train, unseen = (order_free_songs(n, seed=n, gap=1.0) for n in (60, 300))
        averaging = MeanLogOdds().fit(train)
        model = StackingAggregator().fit(train)
        assert 0.7 < averaging.score(unseen) < 0.97
        assert model.score(unseen) > averaging.score(unseen) - 0.03
        losses = [
            log_loss(unseen.labels.tolist(), m.predict_proba(unseen)) for m in (model, averaging)
        ]
        assert losses[0] < losses[1] + 0.1

    def test_songs_shorter_than_the_parts(self) -> None:
        songs = Songs.from_arrays(
            [array[: 1 + i % 3] for i, array in enumerate(order_free_songs(45, gap=4.0))],
            columns=COLUMNS,
            labels=order_free_songs(45).labels,
        )
        model = StackingAggregator(n_parts=10).fit(songs)
        assert model.score(songs) > 0.9

    def test_more_than_sixteen_columns(self) -> None:
        columns = [f"genre {k:02}" for k in range(17)]
        songs = order_free_songs(68, columns=columns, gap=4.0)
        model = StackingAggregator().fit(songs)
        assert model.classes_.tolist() == columns
        assert model.score(order_free_songs(34, seed=1, columns=columns, gap=4.0)) > 0.8

    def test_columns_that_are_no_classes(self) -> None:
        tags = ["guitar", "piano", "voice"]
        model = StackingAggregator().fit(order_songs(60).replace(columns=tags))
        assert model.classes_.tolist() == list(COLUMNS)
        assert model.score(order_songs(45, seed=1).replace(columns=tags)) > 0.9

    def test_a_class_seen_in_some_folds_only(self) -> None:
        songs = order_songs(31)
        labels = ["polka", *songs.labels[1:]]
        named = songs.replace(columns=["guitar", "piano", "voice"], labels=labels)
        model = StackingAggregator().fit(named)
        assert model.classes_.tolist() == ["blues", "jazz", "metal", "polka"]
        assert np.isfinite(model.predict_log_proba(named)).all()
        assert (model.predict_proba(named)[:, 3] > 0).all()

    def test_songs_of_one_class(self) -> None:
        songs = order_songs(12).replace(labels=["jazz"] * 12)
        model = StackingAggregator().fit(songs)
        assert set(model.predict(songs)) == {"jazz"}
        assert np.isfinite(model.predict_log_proba(songs)).all()

    def test_without_songs_to_hold_out_averaging_is_kept(self) -> None:
        songs, unseen = order_songs(45), order_free_songs(30, seed=1)
        model = StackingAggregator().fit(songs, groups=["all"] * 45)
        assert model.weights_.tolist() == [0, 1]
        assert_array_equal(model.predict(unseen), MeanLogOdds().fit(songs).predict(unseen))

    def test_groups_are_kept_together_inside(self) -> None:
        losses = np.zeros(2)
        for seed in range(4):
            arrays, labels, albums = reference_models.songs_of_albums(24, 4, seed=2 * seed)
            songs = Songs.from_arrays(arrays, columns=[f"tag {j}" for j in range(4)], labels=labels)
            strange, unknown, _ = reference_models.songs_of_albums(60, 1, seed=2 * seed + 1)
            for i, groups in enumerate((None, albums)):
                model = StackingAggregator().fit(songs, groups=groups)
                losses[i] += log_loss(unknown, model.predict_proba(strange)) / 4
        assert losses[0] > 1.5 * math.log(3)
        assert losses[1] < 1.15 * math.log(3)

    def test_saved_and_loaded(self, tmp_path: Path) -> None:
        queries = order_songs(9, seed=1)
        model = StackingAggregator().fit(order_songs(30))
        model.save(tmp_path / "stack.safetensors")
        loaded = load(tmp_path / "stack.safetensors")
        assert_array_equal(loaded.predict_log_proba(queries), model.predict_log_proba(queries))
        assert_array_equal(loaded.weights_, model.weights_)
        assert loaded.fit_report_ == model.fit_report_


CLASSIFIERS: dict[str, Any] = {
    "forest": RandomForestClassifier(60, random_state=0),
    "bayes": GaussianNB(var_smoothing=0.1),
    "neighbours": make_pipeline(StandardScaler(), KNeighborsClassifier(9)),
}


class TestOtherClassifiers:
    @pytest.mark.parametrize("name", CLASSIFIERS)
    def test_order_is_heard(self, name: str) -> None:
        songs, unseen = order_songs(60), order_songs(60, seed=1)
        model = StackingAggregator(classifier=CLASSIFIERS[name]).fit(songs)
        assert model.score(unseen) > 0.8
        assert np.isfinite(model.predict_log_proba(unseen)).all()

    def test_score_is_the_mix_that_the_weights_say(self) -> None:
        """Labels sort another way than classes do inside, so both must be put back."""
        queries = order_songs(12, seed=1)
        songs = order_songs(45)
        model = StackingAggregator(classifier=GaussianNB(var_smoothing=0.1)).fit(songs)
        bayes = GaussianNB(var_smoothing=0.1).fit(summarize(songs, 4), songs.labels.astype(str))
        log_p = np.log(np.maximum(bayes.predict_proba(summarize(queries, 4)), 1e-6))
        mix = mix_of(model._start)
        mean = np.array([reference.mixed_average(a.tolist(), *mix) for a in frames_of(queries)])
        a, b = model.weights_
        found = model.decision_function(queries)
        assert bayes.classes_.tolist() == model.classes_.tolist()
        assert_allclose(found, a * log_p + b * mean, rtol=1e-6, atol=1e-6)
        expected = log_softmax(model.inverse_temperature_ * found, axis=1)
        assert_allclose(model.predict_log_proba(queries), expected, rtol=1e-9)

    @pytest.mark.parametrize("labels", [[10, -3, 200], ["b", "a", "c"], [0.5, 2.0, 1.0]])
    def test_any_labels(self, labels: list[Any]) -> None:
        songs, queries = order_songs(45), order_songs(30, seed=1)
        y = np.array([labels[k] for k in integer_labels(songs)])
        truth = np.array([labels[k] for k in integer_labels(queries)])
        model = StackingAggregator(classifier=CLASSIFIERS["bayes"]).fit(frames_of(songs), y)
        assert model.classes_.tolist() == sorted(labels)
        assert np.mean(model.predict(frames_of(queries)) == truth) > 0.8

    def test_a_class_missing_from_a_fold(self) -> None:
        """scikit-learn's `predict_proba` then has one column less, be it the first or the last."""
        songs = order_songs(31)
        weights = []
        for rare in ("accordion", "polka"):
            named = songs.replace(columns=["a", "b", "c"], labels=[rare, *songs.labels[1:]])
            model = StackingAggregator(classifier=CLASSIFIERS["bayes"]).fit(named)
            proba = model.predict_proba(named)
            assert proba.shape == (31, 4)
            assert (proba > 0).all()
            weights.append(model.weights_)
        assert_allclose(weights[0], weights[1], rtol=1e-6)

    def test_the_classifier_given_is_left_alone(self) -> None:
        given = GaussianNB()
        StackingAggregator(classifier=given).fit(order_songs(12))
        assert not hasattr(given, "classes_")


class TestParameters:
    @pytest.mark.parametrize(
        ("name", "value"),
        [("n_parts", 0), ("n_parts", 1.5), ("n_folds", 0), ("n_folds", "3"), ("on_empty", "skip")],
    )
    def test_out_of_range(self, name: str, value: Any) -> None:
        with pytest.raises(ParameterError, match=f"{name}={value!r}"):
            StackingAggregator(**{name: value}).fit(order_songs(6))

    def test_a_classifier_without_probabilities(self) -> None:
        with pytest.raises(ParameterError, match="needs predict_proba"):
            StackingAggregator(classifier=LinearSVC()).fit(order_songs(6))

    def test_parameters_of_the_classifier_can_be_searched(self) -> None:
        model = StackingAggregator(classifier=GaussianNB())
        model.set_params(classifier__var_smoothing=0.5)
        assert model.classifier.var_smoothing == 0.5
