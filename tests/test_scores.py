"""Log scores as SciPy has them, song by song."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import log_expit as log_expit_of_scipy
from scipy.special import log_softmax as log_softmax_of_scipy

from seqagg.kernels.scores import log_expit, log_softmax


@pytest.mark.parametrize("n_classes", [1, 2, 3, 10, 100])
@pytest.mark.parametrize("size", [1e-12, 1.0, 30.0, 1e4])
def test_the_softmax_is_that_of_scipy(n_classes, size):
    scores = np.random.default_rng(0).normal(0.0, size, (150, n_classes))
    assert_allclose(log_softmax(scores), log_softmax_of_scipy(scores, axis=1), atol=1e-14)


def test_the_log_of_the_logistic_function_keeps_its_digits():
    log_odds = np.concatenate([np.linspace(-800, 800, 4001), [0.0, 5e-324, -1e-17, 1e308, -1e308]])
    least = np.finfo(np.float64).tiny  # what is below may be 0
    assert_allclose(log_expit(log_odds), log_expit_of_scipy(log_odds), rtol=1e-14, atol=least)


def test_no_song_depends_on_the_others():
    scores = np.random.default_rng(1).normal(0.0, 3.0, (200, 7))
    for function in (log_softmax, log_expit):
        alone = [function(scores[i : i + 1])[0] for i in range(200)]
        assert_array_equal(function(scores), alone)


def test_what_cannot_be_known_stays_with_its_song():
    scores = np.array([[np.nan, 0.0, 1.0], [0.0, np.nan, 1.0], [1.0, 1.0, 1.0]])
    assert np.isnan(log_softmax(scores)[:2]).all()
    assert_allclose(log_softmax(scores)[2], -np.log(3.0))
    assert_array_equal(np.isnan(log_expit(scores)), np.isnan(scores))
    assert_array_equal(log_softmax(np.array([[-np.inf, 0.0]])), [[-np.inf, 0.0]])


def test_other_layouts_and_types_have_the_same_answer():
    scores = np.random.default_rng(2).normal(0.0, 3.0, (90, 5)).astype(np.float32)
    for function in (log_softmax, log_expit):
        expected = function(scores.astype(np.float64))
        assert_array_equal(function(np.asfortranarray(scores)), expected)
        assert_array_equal(function(scores[::-1]), expected[::-1])
