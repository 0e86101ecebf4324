"""Fixed-length summaries of songs that keep their order.

Conventions
-----------
A summary is one row per song, shape (n_songs, n_features), whatever the songs' lengths: the order
of frames survives in the parts of the song and in which column follows which.
"""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

from seqagg.aggregators.base import Array, Floats, Ints
from seqagg.kernels.segments import segment_max, segment_mean
from seqagg.songs import Songs

_CLIP = 12.0
"""Log-odds beyond this say no more than this."""

_MOST_TRANSITIONS = 16
"""Columns up to which all pairs of them are counted."""


def summarize(songs: Songs, n_parts: int) -> Floats:
    """Fixed-length summaries of songs of log-odds.

    Parameters
    ----------
    songs : Songs
        Log-odds without missing frames or empty songs.
    n_parts : int
        Equal parts that each song is cut into.

    Returns
    -------
    ndarray of shape (n_songs, n_features)
        Per column: mean, deviation, lowest and highest value, and the mean of each part less
        that of the song. With few columns, also how often each is followed by each other (the
        sum over neighbouring frames of the product of their softmaxes, per frame). Last the log
        of the number of frames.
    """
    x = clipped(songs)
    offsets = songs.offsets
    mean = segment_mean(x, offsets)
    return put_together(
        mean,
        segment_mean(x**2, offsets),
        (-segment_max(-x, offsets), segment_max(x, offsets)),
        [part - mean for part in _part_means(x, offsets, n_parts)],
        transitions(softmax(x, axis=1), offsets) if counts_pairs(x.shape[1]) else None,
        songs.lengths,
    )


def clipped(songs: Songs) -> Floats:
    """Log-odds that summaries are made of, shape (n_frames, n_columns)."""
    return songs.values.astype(np.float64).clip(-_CLIP, _CLIP)


def counts_pairs(n_columns: int) -> bool:
    """Whether a summary says how often a column follows another."""
    return n_columns <= _MOST_TRANSITIONS


def put_together(
    mean: Floats,
    mean_square: Floats,
    extremes: tuple[Array, Array],
    parts: list[Floats],
    pairs: Floats | None,
    lengths: Ints,
) -> Floats:
    """Put a summary together."""
    blocks = [mean, np.sqrt(np.maximum(mean_square - mean**2, 0)), *extremes, *parts]
    if pairs is not None:
        blocks.append(pairs)
    blocks.append(np.log(lengths)[:, None])
    return np.hstack(blocks)


def n_summaries(n_columns: int, n_parts: int) -> int:
    """Features that `summarize` makes of songs of so many columns."""
    pairs = n_columns**2 if counts_pairs(n_columns) else 0
    return (4 + n_parts) * n_columns + pairs + 1


def _part_means(x: Floats, offsets: Ints, n_parts: int) -> list[Floats]:
    """Mean of each part of each song; a part without a frame has the frame nearest to it."""
    total = np.vstack([np.zeros(x.shape[1]), np.cumsum(x, axis=0)])
    lengths = np.diff(offsets)
    means = []
    for part in range(n_parts):
        first = lengths * part // n_parts
        end = np.maximum(lengths * (part + 1) // n_parts, first + 1)
        first, end = offsets[:-1] + first, offsets[:-1] + end
        means.append((total[end] - total[first]) / (end - first)[:, None])
    return means


def transitions(p: Floats, offsets: Ints) -> Floats:
    """Mean product of neighbouring frames' shares, shape (n_songs, n_columns ** 2)."""
    n = p.shape[1]
    pairs = np.zeros((len(p), n * n))
    pairs[:-1] = (p[:-1, :, None] * p[1:, None, :]).reshape(-1, n * n)
    pairs[offsets[1:] - 1] = 0  # a song's last frame is followed by none
    return segment_mean(pairs, offsets)
