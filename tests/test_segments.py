"""Reductions at memory speed: right to the last digits, and each song by itself to the bit."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from seqagg.kernels import segments
from seqagg.kernels.segments import (
    segment_max,
    segment_mean,
    segment_mean_log_odds,
    segment_mean_probability,
    segment_mean_within,
    segment_sum,
    segment_votes,
)
from seqagg.logodds import LIMIT, PROBABILITY_MARGIN, from_probability
from tests import reference

Values = npt.NDArray[np.floating[Any]]
Offsets = npt.NDArray[np.int64]
Reduction = Callable[[Values, Offsets], Values]


def mean_within(values: Values, offsets: Offsets) -> Values:
    return segment_mean_within(values, offsets, 0.2, 0.7)


REDUCTIONS: list[Reduction] = [
    segment_sum,
    segment_mean,
    segment_max,
    segment_votes,
    segment_mean_log_odds,
    segment_mean_probability,
    mean_within,
]

every_reduction = pytest.mark.parametrize("reduce", REDUCTIONS, ids=lambda f: f.__name__)

WIDTHS = [1, 2, 3, 7, 8, 10, 31, 32, 33, 50]
LENGTHS = (1, 2, 3, 8, 9, 30, 40, 41, 130)
"""About the widths of registers, and the 40 factors of a product."""


def songs(n_columns: int, seed: int = 0, *, lengths: Any = LENGTHS) -> tuple[Values, Offsets]:
    """Probabilities, some of them equal and some exactly 0 or 1."""
    rng = np.random.default_rng(seed)
    values = rng.random((sum(lengths), n_columns), dtype=np.float32)
    values[rng.random(values.shape) < 0.2] = 0.5
    values[rng.random(values.shape) < 0.02] = 0
    values[rng.random(values.shape) < 0.02] = 1
    return values, np.cumsum([0, *lengths])


def parts(values: Values, offsets: Offsets) -> list[Values]:
    return np.split(values, offsets[1:-1])


@pytest.mark.parametrize("n_columns", WIDTHS)
class TestAgainstLoops:
    def test_sum_mean_and_max(self, n_columns: int) -> None:
        values, offsets = songs(n_columns)
        columns = [song.astype(float).T.tolist() for song in parts(values, offsets)]
        sums = [[math.fsum(column) for column in song] for song in columns]
        means = [reference.mean_over_frames(song.tolist()) for song in parts(values, offsets)]
        assert_allclose(segment_sum(values, offsets), sums, rtol=1e-14)
        assert_allclose(segment_mean(values, offsets), means, rtol=1e-14)
        found = segment_max(values, offsets)
        assert found.dtype == np.float32
        assert_array_equal(found, [[max(column) for column in song] for song in columns])

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_mean_within(self, n_columns: int, dtype: type[np.floating[Any]]) -> None:
        """The limits are of the type of the values, as NumPy has it."""
        values, offsets = songs(n_columns)
        values = values.astype(dtype)
        clipped = np.clip(values, 0.2, 0.7)
        assert clipped.dtype == dtype
        means = [reference.mean_over_frames(song.tolist()) for song in parts(clipped, offsets)]
        assert_allclose(mean_within(values, offsets), means, rtol=1e-14)

    def test_votes(self, n_columns: int) -> None:
        values, offsets = songs(n_columns)
        expected = [
            np.multiply(reference.vote_shares(song.tolist()), len(song))
            for song in parts(values, offsets)
        ]
        assert_allclose(segment_votes(values, offsets), expected, rtol=1e-12, atol=1e-12)

    def test_mean_probability(self, n_columns: int) -> None:
        values, offsets = songs(n_columns)
        log_odds = 60 * (values - 0.5)
        expected = [
            reference.mean_over_frames([[reference.logistic(z) for z in row] for row in song])
            for song in parts(log_odds.astype(float), offsets)
        ]
        assert_allclose(segment_mean_probability(log_odds, offsets), expected, rtol=1e-14)

    def test_mean_log_odds_is_the_mean_of_the_definition(self, n_columns: int) -> None:
        values, offsets = songs(n_columns)
        expected = segment_mean(from_probability(values.astype(float)), offsets)
        found = segment_mean_log_odds(values, offsets)
        assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
        rounded = segment_mean(from_probability(values), offsets)
        size = segment_mean(np.abs(from_probability(values)), offsets)
        assert (np.abs(found - rounded) <= 1e-6 * size).all()


class TestExtremes:
    def test_log_odds_with_sixty_digits(self) -> None:
        """Sums of logs of numbers that no product of a few of them may lose."""
        p = np.array([2.0**-24, 1e-6, 0.3, 0.5, 1 - 2.0**-24, 0.999, 0.9999999])
        frames = np.float32(np.resize(p, 200))[:, None]
        expected = math.fsum(reference.log_odds_of_probability(float(x)) for x in frames[:, 0])
        found = segment_mean_log_odds(frames, np.array([0, 200]))
        assert found[0, 0] == pytest.approx(expected / 200, rel=1e-13)

    @pytest.mark.parametrize("n_frames", [1, 39, 40, 41, 500])
    def test_certainty_stays_finite(self, n_frames: int) -> None:
        values = np.tile(np.array([0.0, 1.0], np.float32), (n_frames, 1))
        found = segment_mean_log_odds(values, np.array([0, n_frames]))
        assert_allclose(found, [[-LIMIT, LIMIT]], rtol=1e-14)

    def test_an_even_bet_is_nothing(self) -> None:
        even = np.full((77, 3), 0.5, np.float32)
        assert (segment_mean_log_odds(even, np.array([0, 77])) == 0).all()
        assert (segment_mean_probability(even * 0, np.array([0, 77])) == 0.5).all()

    def test_log_odds_beyond_all_probabilities(self) -> None:
        z = np.array([[-np.inf, np.inf, -1e6, 1e6, -700.0, 745.0, 0.0]])
        expected = [[0, 1, 0, 1, reference.logistic(-700.0), 1, 0.5]]
        found = segment_mean_probability(z, np.array([0, 1]))
        assert_allclose(found, expected, rtol=1e-14, atol=4e-308)

    def test_infinite_values(self) -> None:
        values, offsets = np.array([[np.inf, -np.inf], [1.0, 2.0]], np.float32), np.array([0, 2])
        assert segment_sum(values, offsets).tolist() == [[np.inf, -np.inf]]
        assert segment_max(values, offsets).tolist() == [[np.inf, 2.0]]

    def test_an_equal_share_of_many_columns(self) -> None:
        assert_allclose(segment_votes(np.zeros((5, 7)), np.array([0, 5])), np.full((1, 7), 5 / 7))

    @every_reduction
    def test_no_song(self, reduce: Reduction) -> None:
        assert reduce(np.empty((0, 4), np.float32), np.array([0])).shape == (0, 4)


@every_reduction
class TestEachSongByItself:
    @pytest.mark.parametrize("n_columns", [1, 3, 10, 50])
    def test_alone_or_in_company_to_the_bit(self, reduce: Reduction, n_columns: int) -> None:
        values, offsets = songs(n_columns)
        alone = [reduce(song, np.array([0, len(song)]))[0] for song in parts(values, offsets)]
        assert_array_equal(reduce(values, offsets), alone)

    @pytest.mark.parametrize("n_columns", [3, 10, 50])
    def test_columns_in_any_order_to_the_bit(self, reduce: Reduction, n_columns: int) -> None:
        values, offsets = songs(n_columns)
        order = np.random.default_rng(1).permutation(n_columns)
        assert_array_equal(reduce(values[:, order], offsets), reduce(values, offsets)[:, order])

    def test_in_many_threads_to_the_bit(self, reduce: Reduction) -> None:
        values, offsets = songs(10, lengths=LENGTHS * 50)
        expected, found = reduce(values, offsets), {}

        def work(i: int) -> None:
            found[i] = reduce(values, offsets)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i in range(4):
            assert_array_equal(found[i], expected)

    def test_a_nan_stays_in_its_song_and_column(self, reduce: Reduction) -> None:
        values, offsets = songs(10)
        expected = reduce(values, offsets)
        for frame in (offsets[5], offsets[6] - 1, offsets[5] + 11):
            holed = values.copy()
            holed[frame, 3] = np.nan
            found = reduce(holed, offsets)
            lost = np.zeros(expected.shape, bool)
            lost[5, slice(None) if reduce is segment_votes else 3] = True
            assert_array_equal(found, np.where(lost, np.nan, expected))


@every_reduction
class TestWhateverTheArrayIsLike:
    def test_same_answer_and_no_new_compilation(self, reduce: Reduction) -> None:
        values, offsets = songs(10)
        expected = reduce(values, offsets)
        before = compiled()
        fixed, fixed_offsets = values.copy(), offsets.copy()
        fixed.flags.writeable = fixed_offsets.flags.writeable = False
        every_second = np.repeat(values, 2, axis=0)[::2]
        inner = np.hstack([values, values])[:, :10]
        turned = np.asfortranarray(values)
        for array in (fixed, every_second, inner, turned):
            assert_array_equal(reduce(array, fixed_offsets), expected)
        shifted = np.repeat(offsets, 2)[::2].astype(np.int64)
        assert_array_equal(reduce(values, shifted), expected)
        assert compiled() == before

    def test_input_is_left_as_it_was(self, reduce: Reduction) -> None:
        values, offsets = songs(3)
        before = values.copy(), offsets.copy()
        reduce(values, offsets)
        assert_array_equal(values, before[0])
        assert_array_equal(offsets, before[1])
        assert values.flags.writeable
        assert offsets.flags.writeable

    def test_float64_keeps_its_digits(self, reduce: Reduction) -> None:
        values = np.random.default_rng(0).random((30, 4))
        one = np.array([0, 30])
        assert_allclose(reduce(values, one), reduce(values.astype(np.float32), one), rtol=1e-6)
        if reduce is segment_mean:
            means = reference.mean_over_frames(values.tolist())
            assert_allclose(reduce(values, one)[0], means, rtol=1e-15)


@every_reduction
def test_what_no_cache_holds_is_the_same_to_the_bit(reduce: Reduction) -> None:
    """Memory is asked ahead there, beyond the last frame too."""
    lengths = [300, 1, 700, 41]
    n_more = segments._CACHED // (4 * 10 * 300)
    values, offsets = songs(10, lengths=[*lengths, *[300] * n_more, 700])
    values[0, 3] = np.nan
    assert values.nbytes > segments._CACHED
    large = reduce(values, offsets)
    for which in (slice(0, 4), slice(len(offsets) - 2, None)):
        some = offsets[which.start : which.start + 5]
        few = reduce(values[some[0] : some[-1]], some - some[0])
        assert_array_equal(large[which], few)


def compiled() -> int:
    """Signatures of all loops."""
    loops = vars(segments).values()
    return sum(len(loop.signatures) for loop in loops if hasattr(loop, "signatures"))


def test_the_margin_leaves_room_for_the_factors_of_a_product() -> None:
    assert np.finfo(np.float64).tiny < PROBABILITY_MARGIN**segments._MOST_FACTORS


def test_the_library_is_imported_without_a_compiler() -> None:
    code = "import sys, seqagg, seqagg.cli, seqagg.prediction; print('numba' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"
