"""Compiled log-odds against the definition and against 60 digits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal

from seqagg.kernels import elementary
from seqagg.kernels.odds import log_odds_of_logits, log_odds_of_probability
from seqagg.logodds import LIMIT, from_logits, from_probability
from tests import reference

Floats = npt.NDArray[np.float64]

CONVERSIONS: Any = [
    (log_odds_of_probability, from_probability),
    (log_odds_of_logits, from_logits),
]


def of_each(function: Any, numbers: Floats) -> Floats:
    """A function that other loops call, called by one for once."""
    return np.array([function(x) for x in numbers])


class TestElementary:
    RNG = np.random.default_rng(0)

    def test_exp(self) -> None:
        x = np.concatenate([-self.RNG.uniform(0, 708, 2000), -self.RNG.uniform(0, 1, 500), [0.0]])
        assert_allclose(of_each(elementary.exp, x), [math.exp(y) for y in x], rtol=1e-15)
        assert of_each(elementary.exp, np.array([-1e6, -np.inf])).max() < 1e-307

    def test_exp_of_float32(self) -> None:
        x = np.concatenate([-self.RNG.uniform(0, 87, 2000), [0.0]]).astype(np.float32)
        found = of_each(elementary.exp, x)
        assert_allclose(found, [math.exp(y) for y in x], rtol=2e-7)
        assert elementary.exp(np.float32(-np.inf)) == 0
        assert math.isnan(elementary.exp(np.float32(np.nan)))

    def test_log(self) -> None:
        x = np.exp(self.RNG.uniform(-700, 700, 2000))
        near = 1 + self.RNG.normal(0, 1e-3, 1000)
        for y in (x, near, [1.0, 2.0, 0.5, 2.0**-960, 2.0**960, np.finfo(float).tiny]):
            assert_allclose(of_each(elementary.log, y), [math.log(z) for z in y], rtol=1e-15)

    def test_expit(self) -> None:
        x = self.RNG.uniform(-700, 700, 2000)
        assert_allclose(
            of_each(elementary.expit, x), [reference.logistic(y) for y in x], rtol=1e-15
        )
        assert of_each(elementary.expit, np.array([-np.inf, 0.0, np.inf])).tolist() == [
            elementary.exp(-np.inf),
            0.5,
            1.0,
        ]

    @pytest.mark.parametrize("function", [elementary.exp, elementary.log, elementary.expit])
    def test_nan_stays(self, function: Any) -> None:
        assert math.isnan(function(np.nan))


class TestAgainstTheDefinition:
    @settings(deadline=None)
    @given(hnp.arrays(np.float32, (3, 4), elements=st.floats(0, 1, width=32)))
    def test_probabilities(self, p: Any) -> None:
        found = log_odds_of_probability(p)
        assert found.dtype == np.float32
        assert_allclose(found, from_probability(p), rtol=1.3e-7)

    @settings(deadline=None)  # the first example waits for the compiler
    @given(
        st.integers(2, 6).flatmap(
            lambda n: hnp.arrays(np.float32, (3, n), elements=st.floats(-200, 200, width=32))
        )
    )
    def test_logits(self, z: Any) -> None:
        found = log_odds_of_logits(z)
        assert found.dtype == np.float32
        assert_allclose(found, from_logits(z), rtol=1.3e-7, atol=1e-12)
        expected = [reference.log_odds_of_softmax(row) for row in z.astype(float).tolist()]
        assert_allclose(found, expected, rtol=1e-7, atol=1e-12)

    def test_far_out(self) -> None:
        z = np.array([[1e30, -1e30, 0], [5, 5, 5], [1e38, 1e38, -1e38]], np.float32)
        assert_allclose(log_odds_of_logits(z), from_logits(z), rtol=1.3e-7, atol=1e-12)
        most = np.finfo(np.float32).max
        for convert in (log_odds_of_logits, from_logits):
            assert_array_equal(
                convert(np.array([[-most, most / 2, -most]], np.float32)), [[-most, most, -most]]
            )
        p = np.array([[0, 1, 1e-30, 0.5]], np.float32)
        assert_allclose(log_odds_of_probability(p), [[-LIMIT, LIMIT, -LIMIT, 0]], rtol=1e-7)

    @pytest.mark.parametrize(("fast", "defined"), CONVERSIONS)
    def test_missing_frames(self, fast: Any, defined: Any) -> None:
        scores = np.random.default_rng(0).random((50, 5), dtype=np.float32)
        scores[::3, 2] = np.nan
        scores[::7, 0] = np.nan
        found = fast(scores)
        assert_array_equal(np.isnan(found), np.isnan(defined(scores)))
        assert_allclose(found, defined(scores), rtol=1.3e-7, atol=1e-7)


@pytest.mark.parametrize(("fast", "defined"), CONVERSIONS)
class TestEachFrameByItself:
    def test_to_the_bit(self, fast: Any, defined: Any) -> None:
        scores = np.random.default_rng(0).random((100, 10), dtype=np.float32)
        alone = [fast(scores[[i]])[0] for i in range(100)]
        assert_array_equal(fast(scores), alone)

    def test_read_only_and_strided(self, fast: Any, defined: Any) -> None:
        scores = np.random.default_rng(0).random((100, 10), dtype=np.float32)
        before = scores.copy()
        expected = fast(scores)
        scores.flags.writeable = False
        assert_array_equal(fast(scores), expected)
        assert_array_equal(fast(np.asfortranarray(scores)), expected)
        assert_array_equal(fast(scores[::2]), expected[::2])
        assert_array_equal(scores, before)

    def test_no_frame(self, fast: Any, defined: Any) -> None:
        assert fast(np.empty((0, 3), np.float32)).shape == (0, 3)
