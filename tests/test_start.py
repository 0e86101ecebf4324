"""Where learnt methods start: the mix of the two averages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize, minimize_scalar
from scipy.special import softmax

from seqagg import Songs
from seqagg.aggregators.start import AverageStart, make_start, mix_averages
from seqagg.averages import WholeSongs
from seqagg.certainty import AS_IT_IS, Certainty, fit_certainty
from seqagg.errors import ModelFileError
from tests import reference, reference_models
from tests.conftest import (
    frames_of,
    integer_labels,
    order_free_songs,
    songs_sometimes_of_no_use,
)

Floats = npt.NDArray[np.float64]


def songs_with_outliers(n: int, seed: int) -> tuple[Songs, npt.NDArray[np.int64]]:
    """One frame of each song is sure of a class at random, the other nine lean to the right one."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    frames = rng.normal(size=(n, 10, 3))
    frames[np.arange(n), :, y] += 1.5
    frames[np.arange(n), 0, rng.integers(0, 3, n)] = 60.0
    return Songs(frames.reshape(-1, 3), np.arange(n + 1) * 10), y


def loss(scores: Floats, y: npt.NDArray[np.int64]) -> float:
    """Loss at the best temperature of a fine grid, by the loop over songs."""
    return min(
        reference_models.loss_of_mix([beta], [scores.tolist()], y.tolist())
        for beta in np.geomspace(0.01, 100, 300)
    )


@pytest.mark.parametrize("certainty", [AS_IT_IS, Certainty(0.6, 1.7, 1.3)])
def test_scores_are_the_mix_by_loops(certainty: Certainty) -> None:
    songs = order_free_songs(9)
    start = AverageStart(0.7 * np.eye(3), np.zeros(3), 0.3, certainty)
    expected = [
        reference.mixed_average(array.tolist(), 0.3, certainty) for array in frames_of(songs)
    ]
    assert_allclose(start.scores(songs), expected, rtol=1e-6)


def test_frames_that_are_wrongly_sure_are_outvoted_by_probability() -> None:
    songs, y = songs_with_outliers(150, 0)
    start = mix_averages(WholeSongs(songs), y)
    assert start.share > 0.9
    assert_allclose(start.weight + start.share * np.eye(3), np.eye(3), atol=1e-12)
    unseen, truth = songs_with_outliers(150, 1)
    alone = AverageStart(np.eye(3), np.zeros(3)).scores(unseen)
    assert (start.scores(unseen).argmax(axis=1) == truth).mean() > 0.9
    assert (alone.argmax(axis=1) == truth).mean() < 0.7


@pytest.mark.parametrize("outliers", [True, False])
def test_hardly_worse_than_either_average(outliers: bool) -> None:
    if outliers:
        songs, y = songs_with_outliers(150, 0)
    else:
        songs = order_free_songs(150, gap=0.7)
        y = integer_labels(songs)
    log_odds = AverageStart(np.eye(3), np.zeros(3)).scores(songs)
    probability = AverageStart(np.zeros((3, 3)), np.zeros(3), share=1.0).scores(songs)
    mixed = loss(mix_averages(WholeSongs(songs), y).scores(songs), y)
    assert mixed <= min(loss(log_odds, y), loss(probability, y)) + 0.5  # of all songs together


@pytest.mark.parametrize("outliers", [True, False])
def test_halfway_from_the_likeliest_mix_to_equal_shares(outliers: bool) -> None:
    """Against a search that knows no slopes, over losses by loops."""
    songs, y = songs_with_outliers(45, 0) if outliers else (order_free_songs(45), None)
    y = integer_labels(songs) if y is None else y
    parts = [
        AverageStart(np.eye(3), np.zeros(3)).scores(songs).tolist(),
        AverageStart(np.zeros((3, 3)), np.zeros(3), share=1.0).scores(songs).tolist(),
    ]

    def cost(weights: Floats, chosen: list[list[list[float]]], prior: float) -> float:
        return reference_models.loss_of_mix(weights, chosen, y.tolist()) + prior

    likeliest = minimize(
        lambda w: cost(np.abs(w), parts, 0.5 * ((np.abs(w) - [1.0, 0.0]) ** 2).sum()),
        [1.0, 1.0],
        method="Nelder-Mead",
        options={"xatol": 1e-7, "fatol": 1e-10, "maxiter": 4000},
    )
    alone = [
        np.exp(minimize_scalar(lambda b, p=part: cost([np.exp(b)], [p], 0.5 * b**2)).x)
        for part in parts
    ]
    log_odds, probability = (np.abs(likeliest.x) + np.array(alone) / 2) / 2
    start = mix_averages(WholeSongs(songs), y)
    shares = np.array([log_odds, probability]) / (log_odds + probability)
    assert_allclose([1 - start.share, start.share], shares, rtol=1e-3)
    assert_allclose(start.weight, (1 - start.share) * np.eye(3), atol=1e-12)


def test_averages_that_mislead_altogether_stay_as_they_are() -> None:
    songs, y = songs_with_outliers(60, 0)
    wrong = songs._with(values=-songs.values)
    start = mix_averages(WholeSongs(wrong), y)
    assert_array_equal(start.weight, np.eye(3))
    assert start.share == 0


@pytest.mark.parametrize("columns_are_classes", [True, False])
def test_where_there_is_but_one_average(columns_are_classes: bool) -> None:
    """Several labels per song, or columns that are no classes."""
    songs = order_free_songs(48, multilabel=columns_are_classes)
    start = make_start(WholeSongs(songs), integer_labels(songs), 3, columns_are_classes)
    assert (start.share, start.certainty) == (0, AS_IT_IS)
    assert str(start) == "the average is of log-odds"


@pytest.mark.parametrize("share", [-0.1, 1.1, np.nan])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    start = AverageStart(np.eye(2), np.zeros(2), 0.25)
    assert AverageStart.of_state(start.state()).share == 0.25
    with pytest.raises(ModelFileError, match=f"start_share is {share}"):
        AverageStart.of_state(start.state() | {"start_share": np.array(share)})


def test_the_mix_is_said_in_words() -> None:
    assert str(AverageStart(0.75 * np.eye(2), np.zeros(2), 0.25)) == (
        "the average is 0.75 mean log-odds + 0.25 log mean probability"
    )


def test_probabilities_beside_averages_where_that_is_likelier() -> None:
    songs, unseen = songs_sometimes_of_no_use(200, 0), songs_sometimes_of_no_use(600, 1)
    y, truth = integer_labels(songs), integer_labels(unseen)
    start = mix_averages(WholeSongs(songs), y)
    without = replace(start, certainty=AS_IT_IS)
    assert start.certainty == fit_certainty(without.scores(songs), y) != AS_IT_IS
    assert loss(start.scores(unseen), truth) < loss(without.scores(unseen), truth) - 5  # in sum
    order = [np.argsort(s.scores(unseen), axis=1) for s in (start, without)]
    assert_array_equal(*order)


def test_chance_alone_seldom_puts_probabilities_beside_averages() -> None:
    """Labels are drawn from the softmax of the mix."""
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        values = rng.normal(size=(2000, 3)) + np.repeat(rng.normal(size=(200, 3)), 10, axis=0)
        songs = Songs(values, np.arange(201) * 10)
        scores = AverageStart(0.5 * np.eye(3), np.zeros(3), share=0.5).scores(songs)
        y = np.array([rng.choice(3, p=p) for p in softmax(scores, axis=1)])
        found.append(mix_averages(WholeSongs(songs), y).certainty != AS_IT_IS)
    assert sum(found) <= 6  # a standard error is exceeded by one in six


def test_a_certainty_is_kept_and_one_that_is_none_refused() -> None:
    start = AverageStart(np.eye(2), np.zeros(2), 0.25, Certainty(0.6, 1.7, 1.3))
    assert AverageStart.of_state(start.state()).certainty == start.certainty
    with pytest.raises(ModelFileError, match=r"a certainty is 0\.6, -1\.7, 1\.3"):
        AverageStart.of_state(start.state() | {"start_certainty": np.array([0.6, -1.7, 1.3])})


def test_a_certainty_is_said_in_words() -> None:
    assert str(AverageStart(0.75 * np.eye(2), np.zeros(2), 0.25, Certainty(0.5, 1.0, 1.1))) == (
        "the average is 0.75 mean log-odds + 0.25 log mean probability, and beside it 2 of the "
        "probability that it makes"
    )
