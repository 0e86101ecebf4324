"""Temperatures, biases and mixes against grids and scipy on independent code."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression

from seqagg.calibration import (
    fit_calibration,
    fit_inverse_temperature,
    fit_mixture_weights,
    log_probabilities,
    negative_log_likelihood,
    prior_scores,
    smoothed_prior,
    song_losses,
    unseen_losses,
)
from seqagg.certainty import AS_IT_IS, LEAST_WEIGHT, Certainty, fit_certainty, read_certainty
from seqagg.errors import ModelFileError
from seqagg.folds import grouped_folds
from tests.reference_models import logistic_prior, loss_of_mix, loss_of_several

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def random_scores(n: int, scale: float, seed: int = 0) -> tuple[Floats, Ints]:
    """Scores of three classes, right on most songs."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    return (np.eye(3)[y] + rng.normal(size=(n, 3))) * scale, y


def labels_drawn_from(log_scores: Floats, seed: int = 0) -> Ints:
    """One label per song, drawn from the softmax of its scores."""
    rng = np.random.default_rng(seed)
    return np.array([rng.choice(len(p), p=p) for p in softmax(log_scores, axis=1)])


def cost_of_temperature(beta: float, scores: Floats, y: Ints) -> float:
    return loss_of_mix([beta], [scores.tolist()], y.tolist()) + 0.5 * math.log(beta) ** 2


def cost_of_mix(weights: Any, parts: Floats, y: Ints, around: Any) -> float:
    loss = loss_of_mix(list(weights), parts.tolist(), y.tolist())
    return loss + 0.5 * sum((w - a) ** 2 for w, a in zip(weights, around, strict=True))


class TestNegativeLogLikelihood:
    def test_against_a_loop(self) -> None:
        scores, y = random_scores(20, scale=3.0)
        expected = loss_of_mix([1.0], [scores.tolist()], y.tolist()) / 20
        assert negative_log_likelihood(scores, y) == pytest.approx(expected, rel=1e-12)

    def test_scores_without_opinion(self) -> None:
        assert negative_log_likelihood(np.zeros((5, 4)), np.arange(5) % 4) == pytest.approx(
            math.log(4)
        )

    def test_scores_beyond_the_range_of_exp(self) -> None:
        scores = np.array([[0.0, 2000.0], [-3000.0, -1000.0]])
        assert negative_log_likelihood(scores, np.array([1, 0])) == pytest.approx(1000)


class TestInverseTemperature:
    @pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 1000.0])
    @pytest.mark.parametrize("n", [5, 60])
    def test_no_grid_point_is_better(self, scale: float, n: int) -> None:
        scores, y = random_scores(n, scale)
        found = fit_inverse_temperature(scores, y)
        grid = np.exp(np.linspace(-9.9, 9.9, 800))
        costs = [cost_of_temperature(beta, scores, y) for beta in grid]
        assert cost_of_temperature(found, scores, y) <= min(costs) + 1e-9
        assert abs(math.log(found / grid[np.argmin(costs)])) < 0.03

    @pytest.mark.parametrize("beta", [0.05, 1.0, 4.0])
    def test_finds_the_temperature_that_labels_were_drawn_at(self, beta: float) -> None:
        scores, _ = random_scores(4000, scale=1 / beta)
        y = labels_drawn_from(beta * scores)
        assert fit_inverse_temperature(scores, y) == pytest.approx(beta, rel=0.07)

    def test_a_constant_per_song_changes_nothing(self) -> None:
        scores, y = random_scores(60, 1.0)
        shifted = scores + np.random.default_rng(1).normal(0, 100, (60, 1))
        expected = fit_inverse_temperature(scores, y)
        assert fit_inverse_temperature(shifted, y) == pytest.approx(expected, rel=1e-6)

    def test_finite_where_every_song_is_right(self) -> None:
        """The more songs say so, the surer."""
        found = []
        for n in (3, 30, 300):
            y = np.arange(n) % 3
            beta = fit_inverse_temperature(np.eye(3)[y], y)
            assert np.isfinite(beta)
            # Where the pull of the prior, log(beta) / beta, is that of the songs.
            wrong = 2 * math.exp(-beta) / (1 + 2 * math.exp(-beta))
            assert n * wrong == pytest.approx(math.log(beta) / beta, rel=1e-3)
            found.append(beta)
        assert 1 < found[0] < found[1] < found[2] < 20

    def test_never_turns_scores_round(self) -> None:
        """Scores that are wrong on every song are not believed, but not negated either."""
        y = np.arange(30) % 3
        found = fit_inverse_temperature(-5 * np.eye(3)[y], y)
        assert 0 < found < 0.1

    def test_scores_without_opinion_stay_as_they_are(self) -> None:
        found = fit_inverse_temperature(np.zeros((10, 3)), np.arange(10) % 3)
        assert found == pytest.approx(1, abs=1e-5)

    def test_nothing_to_learn_from(self) -> None:
        assert fit_inverse_temperature(np.empty((0, 3)), np.empty(0, np.int64)) == 1
        assert fit_inverse_temperature(np.ones((4, 1)), np.zeros(4, np.int64)) == 1


def random_parts(n: int, scales: tuple[float, ...], seed: int = 0) -> tuple[Floats, Ints]:
    """One part per scale; the first knows most of the labels, the last nothing."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    knows = np.linspace(1.0, 0.0, len(scales))
    parts = [
        scale * (k * np.eye(3)[y] + rng.normal(size=(n, 3)))
        for scale, k in zip(scales, knows, strict=True)
    ]
    return np.stack(parts), y


class TestBiases:
    @pytest.mark.parametrize("n", [1, 8, 400])
    def test_scipy_on_independent_code_finds_nothing_better(self, n: int) -> None:
        scores, y = random_scores(n, scale=2.0)
        scores[:, 1] += 1.0

        def cost(theta: Floats) -> float:
            log_beta, biases = theta[0], theta[1:]
            shifted = [(math.exp(log_beta) * row + biases).tolist() for row in scores]
            prior = 0.5 * log_beta**2 + 0.5 * sum((b / 0.1) ** 2 for b in biases)
            return loss_of_mix([1.0], [shifted], y.tolist()) + prior

        beta, biases = fit_calibration(scores, y, biased=True)
        ours = cost(np.array([math.log(beta), *biases]))
        best = minimize(cost, np.zeros(4), method="BFGS", options={"gtol": 1e-9})
        assert ours <= best.fun + 1e-6 * n
        assert biases.sum() == pytest.approx(0, abs=1e-9)
        if n == 400:
            assert_allclose(biases, best.x[1:], atol=2e-3)
            assert biases.argmin() == 1

    def test_new_songs_of_a_classifier_that_leans_are_likelier(self) -> None:
        rng = np.random.default_rng(0)
        true = 2 * rng.normal(size=(4000, 5))
        y = labels_drawn_from(true)
        leaning = true + np.array([0.8, 0.0, -0.8, 0.4, -0.4])
        learn, new = slice(0, 2000), slice(2000, None)
        losses = {}
        for biased in (False, True):
            beta, biases = fit_calibration(leaning[learn], y[learn], biased=biased)
            losses[biased] = negative_log_likelihood(beta * leaning[new] + biases, y[new])
        assert losses[True] < losses[False] - 0.02

    def test_without_evidence_there_are_none(self) -> None:
        for y, scores in (([], np.empty((0, 3))), ([0, 1, 2], np.zeros((3, 3)))):
            beta, biases = fit_calibration(scores, np.array(y, dtype=int), biased=True)
            assert beta == pytest.approx(1.0)
            assert_allclose(biases, 0.0, atol=1e-9)

    def test_none_unless_asked_for(self) -> None:
        scores, y = random_scores(50, 2.0)
        assert_array_equal(fit_calibration(scores, y)[1], np.zeros(3))


class TestMixture:
    @pytest.mark.parametrize("n", [5, 60])
    def test_no_grid_point_is_better(self, n: int) -> None:
        parts, y = random_parts(n, (1.0, 2.0))
        around = np.array([0.0, 1.0])
        weights, loss = fit_mixture_weights(parts, y, around)
        axis = np.linspace(0, 3, 31)
        costs = [[cost_of_mix((a, b), parts, y, around) for b in axis] for a in axis]
        assert n * loss <= np.min(costs) + 1e-6
        best = np.unravel_index(np.argmin(costs), (31, 31))
        assert_allclose(weights, axis[list(best)], rtol=0, atol=0.11)

    @pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0), (10.0, 1.0, 0.1), (0.1, 5.0, 30.0)])
    @pytest.mark.parametrize("n", [6, 40])
    def test_scipy_without_gradients_finds_nothing_better(
        self, scales: tuple[float, ...], n: int
    ) -> None:
        parts, y = random_parts(n, scales)
        around = np.array([0.0, 1.0, 0.0])
        weights, loss = fit_mixture_weights(parts, y, around)
        assert n * loss == pytest.approx(cost_of_mix(weights, parts, y, around), rel=1e-9)
        found = minimize(
            lambda w: cost_of_mix(w, parts, y, around),
            weights,
            method="Nelder-Mead",
            bounds=[(0, None)] * 3,
            options={"initial_simplex": weights + 0.3 * np.vstack([np.eye(3), np.ones(3)])},
        )
        assert n * loss <= found.fun + 1e-3

    def test_perturbed_weights_are_worse(self) -> None:
        parts, y = random_parts(40, (1.0, 1.0, 1.0))
        around = np.array([0.0, 1.0, 0.0])
        weights, loss = fit_mixture_weights(parts, y, around)
        rng = np.random.default_rng(0)
        for size in (0.01, 0.3):
            for _ in range(20):
                other = np.maximum(weights + rng.normal(0, size, 3), 0)
                assert cost_of_mix(other, parts, y, around) > 40 * loss - 1e-6

    def test_finds_the_mix_that_labels_were_drawn_from(self) -> None:
        parts = np.random.default_rng(0).normal(0, 2, (3, 4000, 3))
        true = np.array([0.3, 1.5, 0.0])
        y = labels_drawn_from(np.tensordot(true, parts, axes=1))
        weights, loss = fit_mixture_weights(parts, y, np.zeros(3))
        assert_allclose(weights, true, rtol=0, atol=0.1)
        expected = negative_log_likelihood(np.tensordot(true, parts, axes=1), y)
        assert loss == pytest.approx(expected, rel=0.01)

    def test_weights_are_never_negative(self) -> None:
        """A part that is wrong on every song would deserve it."""
        parts, y = random_parts(60, (1.0, 1.0))
        parts[0] = -3 * np.eye(3)[y]
        weights, _ = fit_mixture_weights(parts, y, np.array([0.5, 1.0]))
        assert weights[0] == 0
        assert weights[1] >= 0

    def test_finite_where_every_song_is_right(self) -> None:
        y = np.arange(300) % 3
        parts = np.stack([np.eye(3)[y], 2 * np.eye(3)[y]])
        weights, loss = fit_mixture_weights(parts, y, np.array([0.0, 1.0]))
        assert (weights < 10).all()
        assert 0 < loss < 0.1

    def test_equal_parts_share(self) -> None:
        scores, y = random_scores(50, 1.0)
        weights, _ = fit_mixture_weights(np.stack([scores, scores]), y, np.zeros(2))
        assert weights[0] == pytest.approx(weights[1], rel=1e-3)

    def test_without_evidence_weights_stay_where_they_are(self) -> None:
        around = np.array([0.3, 1.2])
        weights, _ = fit_mixture_weights(np.zeros((2, 10, 3)), np.arange(10) % 3, around)
        assert_allclose(weights, around, rtol=1e-9)

    def test_a_song_that_counts_twice(self) -> None:
        parts, y = random_parts(40, (1.0, 2.0))
        counts = np.where(np.arange(40) < 10, 2.0, 1.0)
        twice = np.concatenate([np.arange(40), np.arange(10)])
        found, loss = fit_mixture_weights(parts, y, np.ones(2), counts=counts)
        expected, expected_loss = fit_mixture_weights(parts[:, twice], y[twice], np.ones(2))
        assert_allclose(found, expected, rtol=1e-3)
        assert loss == pytest.approx(expected_loss, rel=1e-6)

    def test_a_song_that_counts_against(self) -> None:
        """With a copy that counts -1 beside one that counts 2, all is as with one alone."""
        parts, y = random_parts(40, (1.0, 2.0))
        counts = np.repeat([2.0, -1.0], 40)
        found, loss = fit_mixture_weights(
            np.concatenate([parts, parts], axis=1), np.tile(y, 2), np.ones(2), counts=counts
        )
        expected, expected_loss = fit_mixture_weights(parts, y, np.ones(2))
        assert_allclose(found, expected, rtol=1e-3)
        assert loss == pytest.approx(expected_loss, rel=1e-6)

    def test_a_constant_per_song_and_part_changes_nothing(self) -> None:
        parts, y = random_parts(40, (1.0, 1.0))
        shifted = parts + np.random.default_rng(1).normal(0, 100, (2, 40, 1))
        expected, _ = fit_mixture_weights(parts, y, np.ones(2))
        found, _ = fit_mixture_weights(shifted, y, np.ones(2))
        assert_allclose(found, expected, rtol=1e-3, atol=1e-4)

    def test_input_is_not_changed(self) -> None:
        parts, y = random_parts(10, (1.0, 1.0))
        around = np.ones(2)
        before = parts.copy()
        fit_mixture_weights(parts, y, around)
        assert_array_equal(parts, before)
        assert around.tolist() == [1, 1]


class TestCertainty:
    def drawn(self, before: float, own: float, n: int) -> tuple[Floats, Ints]:
        scores = 2 * np.random.default_rng(0).normal(size=(n, 3))
        return scores, labels_drawn_from(before * scores + own * softmax(scores, axis=1))

    def test_no_other_weights_are_likelier(self) -> None:
        scores, y = self.drawn(0.4, 2.0, 300)
        before, own, sure = fit_certainty(scores, y)
        assert sure == fit_inverse_temperature(scores, y)
        parts, found = (
            np.stack([scores, softmax(sure * scores, axis=1)]),
            sure * np.array([before, own]),
        )
        least = cost_of_mix(found, parts, y, (1.0, 0.0))
        for step in ((0.02, 0), (-0.02, 0), (0, 0.1), (0, -0.1), (0.02, -0.1), (-0.02, 0.1)):
            assert cost_of_mix(found + step, parts, y, (1.0, 0.0)) > least

    def test_as_sure_as_the_scores_alone(self) -> None:
        scores, y = self.drawn(0.4, 2.0, 2000)
        certainty = fit_certainty(scores, y)
        assert 0 < certainty.before < 1
        both = fit_inverse_temperature(certainty.of(scores), y)
        assert both == pytest.approx(fit_inverse_temperature(scores, y), rel=0.01)

    def test_the_order_of_classes_stays(self) -> None:
        scores = 20 * np.random.default_rng(0).normal(size=(2000, 3))
        scores[::2, 1] = scores[::2, 0] + 1e-6
        for certainty in (Certainty(0.01, 9.0, 0.1), Certainty(1.0, LEAST_WEIGHT, 1.0)):
            found = certainty.of(scores)
            assert_array_equal(np.argsort(found, axis=1), np.argsort(scores, axis=1))

    def test_none_where_probabilities_would_have_to_count_against(self) -> None:
        assert fit_certainty(*self.drawn(1.0, -1.5, 2000)) == AS_IT_IS

    def test_none_where_scores_mislead(self) -> None:
        assert fit_certainty(*self.drawn(-1.0, 0.0, 500)) == AS_IT_IS

    def test_as_it_is_scores_stay(self) -> None:
        scores = np.random.default_rng(0).normal(size=(5, 3))
        assert AS_IT_IS.of(scores) is scores

    @pytest.mark.parametrize(
        "array", [np.ones(2), np.ones(3, int), np.array([1, np.nan, 1]), np.array([1.0, 1, 1e10])]
    )
    def test_what_is_none_is_refused(self, array: npt.NDArray[Any]) -> None:
        with pytest.raises(ModelFileError, match="a certainty is"):
            read_certainty(array)


class TestUnseenLosses:
    def test_each_song_by_what_was_fitted_to_others(self) -> None:
        parts, y = random_parts(31, (1.0, 2.0))
        groups, around = np.arange(31) // 2, np.array([0.0, 1.0])
        found = unseen_losses(parts, y, groups, around, 3)
        for learn, held in grouped_folds(y, groups, 5, 3):
            weights, _ = fit_mixture_weights(parts[:, learn], y[learn], around)
            mix = sum(w * part for w, part in zip(weights, parts, strict=True))
            beta = fit_inverse_temperature(mix[learn], y[learn])
            p = softmax(beta * mix[held], axis=1)
            expected = [-math.log(row[k]) for row, k in zip(p, y[held], strict=True)]
            assert_allclose(found[held], expected, rtol=1e-9)

    def test_weights_of_noise_gain_nothing(self) -> None:
        """Fitted to the songs that judge them, they would."""
        gains = np.zeros(2)
        for seed in range(20):
            scores, y = random_scores(30, 1.0, seed)
            noise = np.random.default_rng([seed, 1]).normal(size=(6, *scores.shape))
            parts, around = np.stack([scores, *noise]), np.eye(7)[0]
            _, own = fit_mixture_weights(parts, y, around)
            alone = unseen_losses(scores[None], y, np.arange(30), np.ones(1), 0).mean()
            other = unseen_losses(parts, y, np.arange(30), around, 0).mean()
            gains += alone - np.array([own, other])
        assert gains[0] > 0 > gains[1]

    def test_nothing_to_hold_out(self) -> None:
        parts, y = random_parts(10, (1.0, 1.0))
        losses = unseen_losses(parts, y, np.zeros(10, np.int64), np.ones(2), 0)
        assert np.isinf(losses).all()


def random_log_odds(n: int, scale: float = 1.0, seed: int = 0) -> tuple[Floats, Ints]:
    """Log-odds of three classes, one of them rare, too sure by `scale` and off by class."""
    rng = np.random.default_rng(seed)
    true = rng.normal([-0.5, 0.5, -2.5], 1.5, (n, 3))
    y = (rng.random((n, 3)) < expit(true)).astype(np.int64)
    return scale * true + np.array([1.0, -2.0, 0.5]), y


class TestSeveralLabels:
    """Scores are log-odds of each class by itself, calibrated by a slope and biases."""

    def test_losses_against_a_loop(self) -> None:
        scores, y = random_log_odds(20, 3.0)
        for song in range(20):
            one = scores[[song]].tolist(), y[[song]].tolist()
            expected = loss_of_several([1.0], [0.0] * 3, [one[0]], one[1])
            assert song_losses(scores, y)[song] == pytest.approx(expected, rel=1e-12)
        assert negative_log_likelihood(scores, y) == pytest.approx(song_losses(scores, y).mean())

    def test_probabilities_and_priors(self) -> None:
        y = np.array([[1, 0, 1], [1, 0, 0], [1, 0, 0]])
        prior = smoothed_prior(y, 3)
        assert_allclose(prior, [4 / 5, 1 / 5, 2 / 5])
        found = log_probabilities(prior_scores(prior, multilabel=True)[None], multilabel=True)
        assert_allclose(np.exp(found[0]), prior, rtol=1e-12)

    @pytest.mark.parametrize("scale", [0.01, 1.0, 50.0])
    @pytest.mark.parametrize("n", [8, 60])
    def test_scipy_without_gradients_finds_nothing_better(self, scale: float, n: int) -> None:
        scores, y = random_log_odds(n, scale)
        center = scores.mean()

        def cost(theta: Any) -> float:
            (log_beta, shared), own = theta[:2], theta[2:]
            bias = [shared + b - math.exp(log_beta) * center for b in own]
            loss = loss_of_several([math.exp(log_beta)], bias, [scores.tolist()], y.tolist())
            return loss + 0.5 * log_beta**2 + logistic_prior(theta[1:])

        beta, bias = fit_calibration(scores, y)
        sums = bias + beta * center
        shared = minimize(lambda b: logistic_prior([b[0], *(sums - b[0])]), [0.0], tol=1e-9).x[0]
        here = [math.log(beta), shared, *(sums - shared)]
        found = minimize(cost, here, method="Nelder-Mead")
        assert cost(here) <= found.fun + 2e-3

    def test_finds_the_slope_and_the_biases_that_labels_were_drawn_at(self) -> None:
        scores, y = random_log_odds(6000, 2.0)
        beta, bias = fit_calibration(scores, y)
        assert beta == pytest.approx(0.5, rel=0.05)
        assert_allclose(bias, -0.5 * np.array([1.0, -2.0, 0.5]), rtol=0, atol=0.15)

    def test_one_class_is_a_logistic_regression(self) -> None:
        scores, y = random_log_odds(3000, 2.0)
        beta, bias = fit_calibration(scores[:, [0]], y[:, [0]])
        model = LogisticRegression(C=1e6).fit(scores[:, [0]], y[:, 0])
        assert beta == pytest.approx(model.coef_[0, 0], rel=5e-3)
        assert bias[0] == pytest.approx(model.intercept_[0], abs=5e-3)

    @pytest.mark.parametrize("n", [3, 30])
    def test_a_class_on_every_song_or_on_none_is_smoothed(self, n: int) -> None:
        """Without an opinion in the scores, each class has been met and missed once more.

        What they share is even, since one is as frequent as the other is rare.
        """
        y = np.tile([1, 0], (n, 1))
        beta, bias = fit_calibration(np.zeros((n, 2)), y)
        assert np.isfinite(beta)
        assert_allclose(expit(bias), [(n + 1) / (n + 2), 1 / (n + 2)], rtol=1e-4)

    def test_finite_where_every_song_is_right(self) -> None:
        y = np.tile(np.eye(3, dtype=np.int64), (10, 1))
        for scale in (1e-3, 1.0, 1e3):
            scores = scale * (2.0 * y - 1)
            beta, bias = fit_calibration(scores, y)
            assert 0 < beta < 1e4
            assert np.isfinite(bias).all()
            assert (np.abs(expit(beta * scores + bias) - y) < 0.15).all()

    def test_classes_in_another_order_get_their_own_biases(self) -> None:
        scores, y = random_log_odds(60)
        order = [2, 0, 1]
        beta, bias = fit_calibration(scores, y)
        other, permuted = fit_calibration(scores[:, order], y[:, order])
        assert other == pytest.approx(beta, rel=1e-3)
        assert_allclose(permuted, bias[order], rtol=0, atol=1e-3)

    def test_nothing_to_learn_from(self) -> None:
        beta, bias = fit_calibration(np.empty((0, 3)), np.empty((0, 3), np.int64))
        assert (beta, bias.tolist()) == (1, [0, 0, 0])

    @pytest.mark.parametrize("calibrated", [False, True])
    @pytest.mark.parametrize("scales", [(1.0, 1.0), (30.0, 0.1)])
    def test_no_other_mix_is_better(self, scales: tuple[float, float], calibrated: bool) -> None:
        """Biases, where there are any, are whatever suits the weights best."""
        scores, y = random_log_odds(40)
        noise = np.random.default_rng(1).normal(size=scores.shape)
        parts = np.stack([scores * scales[0], (scores + 3 * noise) * scales[1]])
        around = np.array([0.0, 1.0])
        centered = parts if calibrated else parts - parts.mean(axis=(1, 2), keepdims=True)

        def cost(theta: Any) -> float:
            bias = [0.0] * 3 if calibrated else [theta[2] + own for own in theta[3:]]
            loss = loss_of_several(list(theta[:2]), bias, centered.tolist(), y.tolist())
            return loss + 0.5 * float(((theta[:2] - around) ** 2).sum()) + logistic_prior(theta[2:])

        weights, loss = fit_mixture_weights(parts, y, around, calibrated=calibrated)
        assert (weights >= 0).all()
        start = np.concatenate([weights, [] if calibrated else [0.1] * 4])
        bounds = [(0, None)] * 2 + [(None, None)] * (len(start) - 2)
        for _ in range(3):  # Nelder-Mead stops early
            found = minimize(cost, start, method="Nelder-Mead", bounds=bounds)
            start = found.x
        assert 40 * loss == pytest.approx(found.fun, abs=3e-2)

    @pytest.mark.parametrize("constant", [0.0, math.log(0.3), -1e5])
    def test_a_constant_has_no_say_in_a_mix(self, constant: float) -> None:
        """The bias says it better; nor does the rounding of its mean have any."""
        scores, y = random_log_odds(41)
        alone, _ = fit_mixture_weights(scores[None], y, np.ones(1))
        parts = np.stack([scores, np.full(scores.shape, constant)])
        weights, _ = fit_mixture_weights(parts, y, np.array([1.0, 0.5]))
        assert weights[1] == 0.5
        assert weights[0] == pytest.approx(alone[0], rel=1e-3)

    def test_classes_with_few_songs_share_what_others_have_learnt(self) -> None:
        """Every class has its threshold at 2; it is found for one of a single song too."""
        rng = np.random.default_rng(0)
        y = (rng.random((200, 8)) < 0.3).astype(np.int64)
        y[:, 0] = np.arange(200) == 7
        scores = rng.normal(0, 0.7, y.shape) + 4 * y
        beta, bias = fit_calibration(scores, y)
        assert -bias[0] / beta == pytest.approx(2, abs=0.6)
