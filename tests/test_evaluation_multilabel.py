"""Metrics of several labels per song: scikit-learn's, plain loops, and numbers by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numpy.testing import assert_allclose
from sklearn import metrics
from sklearn.calibration import calibration_curve

from seqagg.errors import ParameterError, SongError
from seqagg.evaluation import compare, compare_scores
from seqagg.evaluation_multilabel import (
    brier,
    calibration_error,
    evaluate,
    log_loss,
    lrap_of_songs,
    macro_f1,
    mean_average_precision,
    micro_f1,
    subset_accuracy,
)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def answers(seed: int, digits: int = 3) -> tuple[Ints, Ints, Floats]:
    """Labels, predictions and probabilities of songs, some with all labels and some with none."""
    rng = np.random.default_rng(seed)
    y = (rng.random((60, 4)) < [0.5, 0.4, 0.3, 0.1]).astype(np.int64)
    y[:3], y[3:6] = 0, 1
    p = np.round(rng.beta(1, 1, y.shape) * 0.6 + 0.4 * y, digits)  # with equal ones, if coarse
    return y, (p >= 0.5).astype(np.int64), p


@pytest.mark.parametrize("seed", range(4))
def test_evaluate_agrees_with_scikit_learn(seed: int) -> None:
    y, said, p = answers(seed, digits=1 + 2 * (seed % 2))
    clipped = p.clip(np.finfo(float).eps, 1 - np.finfo(float).eps)
    expected = {
        "mean_average_precision": metrics.average_precision_score(y, p, average="macro"),
        "lrap": metrics.label_ranking_average_precision_score(y, p),
        "micro_f1": metrics.f1_score(y, said, average="micro"),
        "macro_f1": metrics.f1_score(y, said, average="macro"),
        "subset_accuracy": metrics.accuracy_score(y, said),
        "log_loss": metrics.log_loss(y.ravel(), clipped.ravel()),
        "brier": metrics.brier_score_loss(y.ravel(), p.ravel()),
    }
    found = evaluate(y, said, p)
    assert found.keys() == {*expected, "calibration_error"}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-12), name


def test_calibration_error_agrees_with_the_curve_of_scikit_learn() -> None:
    y, _, _ = answers(0)
    p = np.random.default_rng(0).random(y.shape)
    found, said = calibration_curve(y.ravel(), p.ravel(), n_bins=15, strategy="uniform")
    share = np.histogram(p, np.linspace(0, 1, 16))[0] / p.size
    assert calibration_error(y, p) == pytest.approx(float(share @ np.abs(found - said)))


@pytest.mark.parametrize("seed", range(4))
def test_lrap_of_a_song_is_that_of_scikit_learn(seed: int) -> None:
    y, _, p = answers(seed, digits=1)
    found = lrap_of_songs(y, p)
    for i in range(len(y)):
        expected = metrics.label_ranking_average_precision_score(y[[i]], p[[i]])
        assert found[i] == pytest.approx(expected, rel=1e-12)


def test_lrap_by_hand() -> None:
    """The labels are first and third; then half of both that tie for the first place."""
    y = [[1, 0, 1, 0], [1, 0, 0, 0]]
    p = [[0.9, 0.5, 0.4, 0.1], [0.7, 0.7, 0.2, 0.1]]
    assert lrap_of_songs(y, p).tolist() == pytest.approx([(1 + 2 / 3) / 2, 1 / 2])


def test_classes_that_no_song_has_do_not_count() -> None:
    y, said, p = answers(1)
    none = np.zeros((60, 1), np.int64)
    wider = np.hstack([y, none]), np.hstack([said, none]), np.hstack([p, 0.1 + none])
    assert mean_average_precision(wider[0], wider[2]) == mean_average_precision(y, p)
    assert macro_f1(wider[0], wider[1]) == macro_f1(y, said)
    # But one that is predicted and never right does.
    assert macro_f1(wider[0], np.hstack([said, none + 1])) == pytest.approx(0.8 * macro_f1(y, said))


def test_where_no_song_has_a_label() -> None:
    y = np.zeros((3, 2), np.int64)
    assert math.isnan(mean_average_precision(y, y / 2))
    assert (micro_f1(y, y), macro_f1(y, y), subset_accuracy(y, y)) == (0, 0, 1)
    assert lrap_of_songs(y, y / 2).tolist() == [1, 1, 1]


def test_an_impossible_label_costs_much_but_not_all() -> None:
    assert log_loss([[1]], [[0.0]]) == pytest.approx(36.04, abs=0.01)
    assert brier([[1]], [[0.0]]) == 1


@pytest.mark.parametrize(
    ("y", "p", "error", "message"),
    [
        ([1, 0], [[0.5], [0.5]], ParameterError, r"shape \(n_songs, n_classes\), not \(2,\)"),
        ([[1, 2]], [[0.5, 0.5]], SongError, "row 0 of an indicator holds neither 0 nor 1"),
        ([[1, 0], [np.nan, 0]], [[0.5, 0.5]] * 2, SongError, "row 1 of an indicator"),
        (np.empty((0, 2)), np.empty((0, 2)), SongError, "no songs"),
        ([[1, 0]], [[0.5, 0.5, 0.1]], ParameterError, r"labels have shape \(1, 2\)"),
        ([[1, 0]], [[0.5, 1.5]], ParameterError, "row 0 holds something that is no probability"),
        ([[1, 0]], [[0.5, np.nan]], ParameterError, "row 0 holds"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    y: Any, p: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        lrap_of_songs(y, p)


def test_predictions_of_another_shape_and_bins_below_one_are_refused() -> None:
    with pytest.raises(ParameterError, match="predictions"):
        subset_accuracy([[1, 0]], [[1], [0]])
    with pytest.raises(ParameterError, match="n_bins=0"):
        calibration_error([[1]], [[0.5]], n_bins=0)


# Comparison by scores.


def test_scores_of_right_and_wrong_are_compared_as_labels_are() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2, (2, 80))
    groups = np.arange(80) // 3
    assert compare_scores(a, b, groups, seed=3) == compare(np.ones(80, int), a, b, groups, seed=3)


def test_the_interval_of_scores_is_that_of_a_loop_over_drawn_groups() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 60))
    groups = np.arange(60) // 4
    found = compare_scores(a, b, groups, n_resamples=20_000)
    means = []
    for _ in range(20_000):
        drawn = rng.integers(0, 15, 15)
        means.append(np.mean((a - b).reshape(15, 4)[drawn]))
    assert found.difference == pytest.approx(np.mean(a - b))
    assert_allclose([found.low, found.high], np.quantile(means, [0.025, 0.975]), atol=0.006)
    assert found.wins_a == (a > b).sum()
    assert found.wins_b == (a < b).sum()


def test_scores_that_agree_differ_by_nothing() -> None:
    a = np.random.default_rng(0).random(9)
    found = compare_scores(a, a)
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


@pytest.mark.parametrize(
    ("a", "b", "settings", "message"),
    [
        ([0.5], [0.5, 0.1], {}, "shapes"),
        ([], [], {}, "shapes"),
        ([0.5], [1.5], {}, "not between 0 and 1"),
        ([0.5], [np.nan], {}, "not between 0 and 1"),
        ([0.5], [0.5], {"seed": -1}, "seed=-1"),
        ([0.5], [0.5], {"n_resamples": 0}, "n_resamples=0"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(
    a: Any, b: Any, settings: dict[str, int], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        compare_scores(a, b, **settings)
