"""One number per song and column: reductions over the frames of each song.

Conventions
-----------
``values`` has shape (n_frames, n_columns); song i has rows ``offsets[i]:offsets[i + 1]``, at least
one. Sums are accumulated in float64, song by song, so that a song's answer is its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.floating[Any]]
Offsets = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def segment_sum(values: npt.NDArray[Any], offsets: Offsets) -> Floats:
    """Sum over the frames of each song, shape (n_songs, n_columns)."""
    if len(offsets) == 1:
        return np.empty((0, values.shape[1]))
    return np.asarray(np.add.reduceat(values, offsets[:-1], axis=0, dtype=np.float64))


def segment_mean(values: Values, offsets: Offsets) -> Floats:
    """Mean over the frames of each song, shape (n_songs, n_columns)."""
    return segment_sum(values, offsets) / np.diff(offsets)[:, None]


def segment_max(values: Values, offsets: Offsets) -> Values:
    """Largest value of each song and column, shape (n_songs, n_columns)."""
    if len(offsets) == 1:
        return values[:0]
    return np.asarray(np.maximum.reduceat(values, offsets[:-1], axis=0))


def segment_votes(values: Values, offsets: Offsets) -> Floats:
    """Frames of each song whose highest column it is, shape (n_songs, n_columns).

    A frame with k equal highest columns gives each of them 1 / k of its vote.
    """
    highest = values == values.max(axis=1, keepdims=True)
    return segment_sum(highest / highest.sum(axis=1, keepdims=True), offsets)
