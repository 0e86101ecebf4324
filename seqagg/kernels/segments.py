"""One number per song and column: reductions over the frames of each song, at memory speed.

Conventions
-----------
``values`` has shape (n_frames, n_columns), float32 or float64; song i has rows
``offsets[i]:offsets[i + 1]``, at least one. Results have shape (n_songs, n_columns) and are
accumulated in float64 in an order that depends on the length of the song and the number of columns
alone, so that a song's answer is its own, to the bit. A NaN makes NaN of its song and column, in
the votes of all columns.

A loop over ten columns is too short for a processor's wide registers. So several frames that stand
below each other are read as one wide one, into as many accumulators; these are folded when the
song ends.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from seqagg.kernels.elementary import expit, jit, log, readable
from seqagg.kernels.prefetch import prefetch
from seqagg.logodds import PROBABILITY_MARGIN

Array = npt.NDArray[Any]
Values = npt.NDArray[np.floating[Any]]
Offsets = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_LANES = 8
"""Numbers of 64 bits in the widest registers: accumulators come in multiples of these."""

_WIDE = 32
"""Columns from which on a single frame is wide enough."""

_CACHED = 2**23
"""Bytes of a table that may lie in a processor's cache."""

_AHEAD = 1024
"""Numbers to ask ahead for: a page or two."""

_LINE = 64
"""Bytes that memory brings at once."""

_MOST_FACTORS = 40
"""Clipped probabilities whose product is still a normal number: 2 ** (-24 * 40)."""


def segment_sum(values: Array, offsets: Offsets) -> Floats:
    """Sum over the frames of each song."""
    return _summed(values, offsets, mean=False)


def segment_mean(values: Array, offsets: Offsets) -> Floats:
    """Mean over the frames of each song."""
    return _summed(values, offsets, mean=True)


def segment_mean_within(values: Values, offsets: Offsets, low: float, high: float) -> Floats:
    """Mean over the frames of each song, of values that are moved into [low, high] first."""
    return _summed(values, offsets, (low, high), mean=True)


def segment_max(values: Values, offsets: Offsets) -> Values:
    """Largest value of each song and column, of the type of the values."""
    flat = _flat(values)
    out = np.empty((len(offsets) - 1, values.shape[1]), flat.dtype)
    _max(flat, readable(offsets), _width(values.shape[1]), out)
    return out


def segment_votes(values: Values, offsets: Offsets) -> Floats:
    """Frames of each song whose highest column it is.

    A frame with k equal highest columns gives each of them 1 / k of its vote.
    """
    out = np.zeros((len(offsets) - 1, values.shape[1]))
    _votes(_flat(values), readable(offsets), out)
    return out


def segment_mean_log_odds(probability: Values, offsets: Offsets) -> Floats:
    """Mean log-odds of each song and column, in nats, from probabilities.

    The log-odds are those of `seqagg.logodds.from_probability`, but not rounded to float32. A sum
    of logs is the log of a product, so one log does for the odds of many frames.
    """
    return _reduced(_mean_log_odds, probability, offsets)


def segment_mean_probability(log_odds: Values, offsets: Offsets) -> Floats:
    """Mean probability of each song and column, from log-odds in nats."""
    return _reduced(_mean_expit, log_odds, offsets)


def _summed(
    values: Array, offsets: Offsets, bounds: tuple[float, float] | None = None, *, mean: bool
) -> Floats:
    """Sums or means of the songs, of numbers that are moved into bounds first."""
    out = np.empty((len(offsets) - 1, values.shape[1]))
    flat = _flat(values)
    # Of what is None the compiler leaves nothing in the loop.
    low, high = (None, None) if bounds is None else map(flat.dtype.type, bounds)
    most = _width(values.shape[1])
    # What a cache holds need not be asked for; in short songs asking takes longer than it saves,
    # and doubles come as fast as they can.
    far = flat.nbytes > _CACHED and len(flat) > 8 * most * len(out) and flat.itemsize < 8
    _sum(flat, readable(offsets), most, low, high, _AHEAD if far else None, mean, out)
    return out


def _reduced(loop: Any, values: Array, offsets: Offsets) -> Floats:
    """What a loop over wide frames makes of the songs."""
    out = np.empty((len(offsets) - 1, values.shape[1]))
    loop(_flat(values), readable(offsets), _width(values.shape[1]), out)
    return out


def _flat(values: Array) -> Array:
    """Values in one row."""
    floating = values.dtype in (np.float32, np.float64)
    return readable(values if floating else values.astype(np.float64)).reshape(-1)


def _width(n_columns: int) -> int:
    """Accumulators for a long song: a power of two times the number of columns."""
    frames = 1 if n_columns >= _WIDE else _LANES // gcd(_LANES, n_columns)
    while frames * n_columns < 2 * _LANES:
        frames *= 2
    return frames * n_columns


# The loops. `flat` is `values` in one row, `out` has a row per song.


@jit
def _fold(wide, width, n_columns):  # type: ignore[no-untyped-def]
    """Add the accumulators of each column up, into the first ones."""
    while width > n_columns:
        width //= 2
        low, high = wide[:width], wide[width : 2 * width]
        for j in range(width):
            low[j] += high[j]


@jit
def _within(x, low, high):  # type: ignore[no-untyped-def]
    """Move a number, which may be NaN, into bounds, if there are any."""
    if low is not None:
        x = low if x < low else x
        x = high if x > high else x
    return np.float64(x)


@jit
def _sum(flat, offsets, most, low, high, ahead, mean, out):  # type: ignore[no-untyped-def]
    """Sums of numbers within bounds, or means if `mean`."""
    n_columns = out.shape[1]
    wide = np.empty(most)
    for i in range(len(out)):
        song = flat[offsets[i] * n_columns : offsets[i + 1] * n_columns]
        width = most  # to fold many accumulators costs a short song more than they save
        while width > n_columns and len(song) < 4 * width:
            width //= 2
        at = min(width, len(song))
        head = song[:at]
        for j in range(len(head)):
            wide[j] = _within(head[j], low, high)
        wide[at:width] = 0.0
        while at + 2 * width <= len(song):  # in pairs, which halves the traffic with `wide`
            first, second = song[at : at + width], song[at + width : at + 2 * width]
            if ahead is not None:
                for j in range(0, 2 * width, _LINE // flat.itemsize):
                    prefetch(song, at + ahead + j)  # type: ignore[call-arg]
            for j in range(width):
                wide[j] += _within(first[j], low, high) + _within(second[j], low, high)
            at += 2 * width
        while at < len(song):
            part = song[at : min(at + width, len(song))]
            for j in range(len(part)):
                wide[j] += _within(part[j], low, high)
            at += width
        _fold(wide, width, n_columns)
        row = out[i]
        divisor = np.float64(offsets[i + 1] - offsets[i]) if mean else 1.0
        for k in range(n_columns):
            row[k] = wide[k] / divisor


@jit
def _max(flat, offsets, width, out):  # type: ignore[no-untyped-def]
    n_columns = out.shape[1]
    wide = np.empty(width, flat.dtype)
    for i in range(len(out)):
        song = flat[offsets[i] * n_columns : offsets[i + 1] * n_columns]
        wide[:] = -np.inf
        for at in range(0, len(song), width):
            part = song[at : min(at + width, len(song))]
            for j in range(len(part)):
                x = part[j]
                wide[j] = x if (x > wide[j]) | (x != x) else wide[j]
        row = out[i]
        row[:] = wide[:n_columns]
        for at in range(n_columns, width, n_columns):
            for k in range(n_columns):
                x = wide[at + k]
                row[k] = x if (x > row[k]) | (x != x) else row[k]


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"nnan", "nsz"})
def _highest(part):  # type: ignore[no-untyped-def]
    """Largest of some numbers; anything, if one is NaN."""
    top = part[0]
    for k in range(1, len(part)):
        top = part[k] if part[k] > top else top
    return top


@jit
def _has_nan(song):  # type: ignore[no-untyped-def]
    found = 0
    for j in range(len(song)):
        found += song[j] != song[j]
    return found > 0


@jit
def _vote(frame, row):  # type: ignore[no-untyped-def]
    top, ties = _highest(frame), 0
    for k in range(len(frame)):
        ties += frame[k] == top
    for k in range(len(frame)):
        row[k] += 1 / ties if frame[k] == top else 0.0


@jit
def _votes(flat, offsets, out):  # type: ignore[no-untyped-def]
    """Votes of four frames at a time: a comparison waits for the one before, but not for others."""
    n = out.shape[1]
    for i in range(len(out)):
        row, song = out[i], flat[offsets[i] * n : offsets[i + 1] * n]
        if _has_nan(song):
            row[:] = np.nan
            continue
        at = 0
        while at + 4 * n <= len(song):
            a, b = song[at : at + n], song[at + n : at + 2 * n]
            c, d = song[at + 2 * n : at + 3 * n], song[at + 3 * n : at + 4 * n]
            top_a, top_b, top_c, top_d = a[0], b[0], c[0], d[0]
            # Where the highest stands first, and where its equal stood last.
            in_a = in_b = in_c = in_d = tie_a = tie_b = tie_c = tie_d = 0
            for k in range(1, n):
                tie_a = k if a[k] == top_a else tie_a
                tie_b = k if b[k] == top_b else tie_b
                tie_c = k if c[k] == top_c else tie_c
                tie_d = k if d[k] == top_d else tie_d
                in_a = k if a[k] > top_a else in_a
                in_b = k if b[k] > top_b else in_b
                in_c = k if c[k] > top_c else in_c
                in_d = k if d[k] > top_d else in_d
                top_a = a[k] if a[k] > top_a else top_a
                top_b = b[k] if b[k] > top_b else top_b
                top_c = c[k] if c[k] > top_c else top_c
                top_d = d[k] if d[k] > top_d else top_d
            if (tie_a > in_a) | (tie_b > in_b) | (tie_c > in_c) | (tie_d > in_d):
                for first in range(at, at + 4 * n, n):
                    _vote(song[first : first + n], row)
            else:
                row[in_a] += 1.0
                row[in_b] += 1.0
                row[in_c] += 1.0
                row[in_d] += 1.0
            at += 4 * n
        while at < len(song):
            _vote(song[at : at + n], row)
            at += n


@jit
def _mean_log_odds(flat, offsets, width, out):  # type: ignore[no-untyped-def]
    n_columns = out.shape[1]
    low, high = np.float64(PROBABILITY_MARGIN), np.float64(1 - PROBABILITY_MARGIN)
    yes, no = np.empty(width), np.empty(width)
    for i in range(len(out)):
        row = out[i]
        row[:] = 0.0
        song = flat[offsets[i] * n_columns : offsets[i + 1] * n_columns]
        for start in range(0, len(song), _MOST_FACTORS * n_columns):
            some = song[start : min(start + _MOST_FACTORS * n_columns, len(song))]
            yes[:] = 1.0
            no[:] = 1.0
            for at in range(0, len(some), width):
                part = some[at : min(at + width, len(some))]
                for j in range(len(part)):
                    p = np.float64(part[j])
                    p = low if p < low else (high if p > high else p)  # a NaN stays one
                    yes[j] *= p
                    no[j] *= 1.0 - p
            left = width
            while left > n_columns:
                left //= 2
                for j in range(left):
                    yes[j] *= yes[left + j]
                    no[j] *= no[left + j]
            for k in range(n_columns):
                row[k] += log(yes[k] / no[k])
        for k in range(n_columns):
            row[k] /= offsets[i + 1] - offsets[i]


@jit
def _mean_expit(flat, offsets, width, out):  # type: ignore[no-untyped-def]
    n_columns = out.shape[1]
    wide = np.empty(width)
    for i in range(len(out)):
        song = flat[offsets[i] * n_columns : offsets[i + 1] * n_columns]
        wide[:] = 0.0
        for at in range(0, len(song), width):
            part = song[at : min(at + width, len(song))]
            for j in range(len(part)):
                wide[j] += expit(np.float64(part[j]))
        _fold(wide, width, n_columns)
        row = out[i]
        for k in range(n_columns):
            row[k] = wide[k] / (offsets[i + 1] - offsets[i])
