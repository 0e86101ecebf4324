from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal

from seqagg.logodds import (
    LIMIT,
    PROBABILITY_MARGIN,
    Kind,
    Task,
    from_logits,
    from_probability,
    to_log_odds,
    to_probability,
)
from tests import reference

EPS = np.finfo(np.float64).eps


def logit_rows(largest: float) -> st.SearchStrategy[Any]:
    """Arrays of 1 to 3 frames and 2 to 5 columns."""
    shapes = st.tuples(st.integers(1, 3), st.integers(2, 5))
    return hnp.arrays(np.float64, shapes, elements=st.floats(-largest, largest))


class TestFromProbability:
    @given(st.floats(PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN))
    def test_agrees_with_60_digits(self, p: float) -> None:
        # log(p / (1 - p)) near p = 1/2 is a difference of two numbers near log 2.
        expected = reference.log_odds_of_probability(p)
        assert_allclose(from_probability(np.array([p]))[0], expected, rtol=4 * EPS, atol=4 * EPS)

    def test_worked_values(self) -> None:
        p = np.array([0.5, 0.9, 0.1, 0.75])
        assert_allclose(from_probability(p), [0, np.log(9), -np.log(9), np.log(3)], rtol=1e-15)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_certainty_stays_finite(self, dtype: Any) -> None:
        odds = from_probability(np.array([0.0, 1.0, 1e-30], dtype=dtype))
        assert odds.dtype == dtype
        assert_allclose(odds, [-LIMIT, LIMIT, -LIMIT], rtol=1e-7)

    def test_certainty_counts_as_the_last_float32_below_1(self) -> None:
        last = np.nextafter(np.float32(1), np.float32(0))
        expected = reference.log_odds_of_probability(float(last))
        assert expected == pytest.approx(LIMIT, rel=1e-12)
        before = np.nextafter(last, np.float32(0))
        assert from_probability(np.array([before]))[0] < np.float32(LIMIT)

    @given(st.lists(st.floats(0, 1), min_size=2, max_size=5))
    def test_order_is_kept(self, p: list[float]) -> None:
        odds = from_probability(np.sort(np.array(p)))
        assert (np.diff(odds) >= 0).all()

    @given(st.floats(PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN))
    def test_round_trip(self, p: float) -> None:
        back = to_probability(from_probability(np.array([p])))
        # An error e in the log-odds is p (1 - p) e in the probability.
        assert_allclose(back, [p], rtol=LIMIT * 4 * EPS)

    def test_a_missing_score_stays_missing(self) -> None:
        assert_array_equal(from_probability(np.array([np.nan, 0.5])), [np.nan, 0])


class TestFromLogits:
    @given(logit_rows(30))
    def test_agrees_with_60_digits(self, z: Any) -> None:
        expected = [reference.log_odds_of_softmax(row) for row in z]
        # The exact value is a difference of numbers as large as the logits.
        assert_allclose(from_logits(z), expected, rtol=1e-13, atol=1e-13)

    @given(logit_rows(1e4))
    def test_agrees_with_60_digits_far_out(self, z: Any) -> None:
        expected = [reference.log_odds_of_softmax(row) for row in z]
        assert_allclose(from_logits(z), expected, rtol=1e-12, atol=1e-11)

    def test_two_columns_are_their_difference(self) -> None:
        assert_allclose(from_logits(np.array([[3.0, 1.0]])), [[2, -2]], rtol=1e-15)

    def test_no_saturation(self) -> None:
        """The softmax rounds to 1, 0, 0; the log-odds still know how sure it was."""
        odds = from_logits(np.array([[60.0, 0.0, 0.0]], dtype=np.float32))
        # 60 - log 2 for the first; for the others -60, less log(1 + e^-60).
        assert_allclose(odds, [[60 - np.log(2), -60, -60]], rtol=1e-6)
        softmax = np.array([reference.softmax([60.0, 0.0, 0.0])], dtype=np.float32)
        assert from_probability(softmax)[0, 1] == pytest.approx(-LIMIT, rel=1e-6)

    def test_extreme_logits_do_not_overflow(self) -> None:
        z = np.array([[1e30, -1e30, 0.0], [-1e30, -1e30, -1e30]])
        assert_allclose(from_logits(z)[0], [1e30, -2e30, -1e30], rtol=1e-12)
        # Three equal scores have p = 1/3 each: log((1/3) / (2/3)).
        assert_allclose(from_logits(z)[1], np.full(3, -np.log(2)), rtol=1e-12)

    def test_equal_highest_columns_are_even_bets(self) -> None:
        assert_allclose(from_logits(np.array([[50.0, 50.0, -50.0]]))[0, :2], [0, 0], atol=1e-14)

    @given(logit_rows(50), st.floats(-100, 100))
    def test_a_constant_added_to_a_frame_changes_nothing(self, z: Any, constant: float) -> None:
        assert_allclose(from_logits(z + constant), from_logits(z), rtol=1e-9, atol=1e-11)

    @given(logit_rows(30))
    def test_the_logistic_function_gives_the_softmax(self, z: Any) -> None:
        expected = [reference.softmax(row) for row in z]
        assert_allclose(to_probability(from_logits(z)), expected, rtol=1e-12)

    def test_further_axes_are_kept(self) -> None:
        z = np.random.default_rng(0).normal(size=(2, 3, 4))
        assert_array_equal(from_logits(z), np.stack([from_logits(z[0]), from_logits(z[1])]))

    def test_the_input_is_not_changed(self) -> None:
        z = np.array([[1.0, 2.0, 3.0]])
        before = z.copy()
        from_logits(z)
        assert_array_equal(z, before)

    @pytest.mark.parametrize("row", [[np.nan, 1.0, 2.0], [np.nan, np.nan, np.nan]])
    def test_a_missing_frame_stays_missing_and_leaves_the_others_alone(
        self, row: list[float]
    ) -> None:
        full = np.array([[0.0, 1.0, 3.0]])
        odds = from_logits(np.concatenate([np.array([row]), full]))
        assert np.isnan(odds[0]).any()
        assert_array_equal(odds[1:], from_logits(full))

    def test_a_single_column_is_refused(self) -> None:
        with pytest.raises(ValueError, match="single column"):
            from_logits(np.array([[1.0]]))


class TestToLogOdds:
    @pytest.mark.parametrize(
        ("kind", "task", "expected"),
        [
            ("probability", "multiclass", [[np.log(1 / 3), np.log(3)]]),
            ("probability", "multilabel", [[np.log(1 / 3), np.log(3)]]),
            ("logit", "multiclass", [[-0.5, 0.5]]),
            ("logit", "multilabel", [[0.25, 0.75]]),
            ("log_odds", "multiclass", [[0.25, 0.75]]),
            ("log_odds", "multilabel", [[0.25, 0.75]]),
        ],
    )
    def test_what_the_scores_are_is_declared(
        self, kind: Kind, task: Task, expected: list[list[float]]
    ) -> None:
        scores = np.array([[0.25, 0.75]])
        assert_allclose(to_log_odds(scores, kind, task), expected, rtol=1e-15)

    def test_infinite_log_odds_are_certain_probabilities(self) -> None:
        odds = to_log_odds(np.array([[np.inf, -np.inf, np.nan, 3.0]]), "log_odds")
        certain = from_probability(np.array([[1.0, 0.0, np.nan]]))
        assert_array_equal(odds, np.append(certain, [[3.0]], axis=1))

    def test_what_is_infinite_is_beyond_what_is_finite(self) -> None:
        """As p = 1 is beyond 1 - 1e-12, and p = 0 below 1e-30; frame by frame."""
        frames = [[np.inf, 20, -70, -np.inf], [np.inf, 3, -3, -np.inf], [np.inf, 1e30, np.nan, 0]]
        expected = [[21, 20, -70, -71], [LIMIT, 3, -3, -LIMIT], [1e30, 1e30, np.nan, 0]]
        assert_array_equal(to_log_odds(np.array(frames), "log_odds"), expected)

    def test_finite_log_odds_may_pass_the_limit(self) -> None:
        """Logits say -60 where a probability could not; that is no error."""
        assert_array_equal(to_log_odds(np.array([[-60.0, 60.0]]), "log_odds"), [[-60, 60]])


def test_the_logistic_function_does_not_overflow() -> None:
    assert_array_equal(to_probability(np.array([-1e4, 0.0, 1e4])), [0, 0.5, 1])
