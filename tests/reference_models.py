"""Slow oracles of the learnt methods, beside those of `reference`.

Conventions
-----------
A song is a list of frames, a frame a list of numbers, one per column. Nothing here imports seqagg.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from tests.reference import Frames, Matrix, log_sum_exp, safe_log, softmax

Floats = npt.NDArray[np.float64]


# Hidden Markov models in log space, for songs too long to enumerate.


def _forward(start: Sequence[float], trans: Matrix, log_b: Matrix) -> list[list[float]]:
    states = range(len(start))
    table = [[safe_log(start[j]) + log_b[0][j] for j in states]]
    for frame in log_b[1:]:
        before = table[-1]
        table.append(
            [
                log_sum_exp([before[i] + safe_log(trans[i][j]) for i in states]) + frame[j]
                for j in states
            ]
        )
    return table


def _backward(trans: Matrix, log_b: Matrix) -> list[list[float]]:
    states = range(len(trans))
    table = [[0.0 for _ in states]]
    for frame in reversed(log_b[1:]):
        after = table[0]
        table.insert(
            0,
            [
                log_sum_exp([safe_log(trans[i][j]) + frame[j] + after[j] for j in states])
                for i in states
            ],
        )
    return table


def hmm_posteriors_by_loop(
    start: Sequence[float], trans: Matrix, log_b: Matrix
) -> list[list[float]]:
    """P(state at t | all frames), shape (n_frames, n_states)."""
    forward, backward = _forward(start, trans, log_b), _backward(trans, log_b)
    total = log_sum_exp(forward[-1])
    return [
        [math.exp(a + b - total) for a, b in zip(*rows, strict=True)]
        for rows in zip(forward, backward, strict=True)
    ]


def hmm_transitions_by_loop(
    start: Sequence[float], trans: Matrix, log_b: Matrix
) -> list[list[float]]:
    """Expected number of steps from state i to state j, shape (n_states, n_states)."""
    forward, backward = _forward(start, trans, log_b), _backward(trans, log_b)
    total = log_sum_exp(forward[-1])
    return [
        [
            math.fsum(
                math.exp(
                    forward[t][i]
                    + safe_log(trans[i][j])
                    + log_b[t + 1][j]
                    + backward[t + 1][j]
                    - total
                )
                for t in range(len(log_b) - 1)
            )
            for j in range(len(start))
        ]
        for i in range(len(start))
    ]


# Recurrent networks: PyTorch's own, on packed sequences.


def pooled_states_of_packed(gru: nn.GRU, songs: Sequence[Tensor]) -> Tensor:
    """Mean and maximum over each song's own frames, shape (n_songs, 2 * directions * hidden)."""
    states, lengths = pad_packed_sequence(
        gru(pack_sequence(list(songs), enforce_sorted=False))[0], batch_first=True
    )
    pooled = []
    for rows, length in zip(states, lengths, strict=True):
        own = rows[: int(length)]
        pooled.append(torch.cat([own.mean(dim=0), own.amax(dim=0)]))
    return torch.stack(pooled)


# Summaries of songs.


def summary_of_song(frames: Frames, n_parts: int, clip: float, with_pairs: bool) -> list[float]:
    """Moments, extremes, parts, transitions and length of one song."""
    frames = [[min(max(value, -clip), clip) for value in frame] for frame in frames]
    columns = list(zip(*frames, strict=True))
    n = len(frames)
    means = [math.fsum(column) / n for column in columns]
    out = list(means)
    for column, mean in zip(columns, means, strict=True):
        out.append(math.sqrt(math.fsum((value - mean) ** 2 for value in column) / n))
    out += [min(column) for column in columns]
    out += [max(column) for column in columns]
    for part in range(n_parts):
        first, end = n * part // n_parts, n * (part + 1) // n_parts
        inside = range(first, max(end, first + 1))
        out += [
            math.fsum(column[t] for t in inside) / len(inside) - mean
            for column, mean in zip(columns, means, strict=True)
        ]
    if with_pairs:
        shares = [softmax(frame) for frame in frames]
        for i in range(len(columns)):
            for j in range(len(columns)):
                pairs = itertools.pairwise(shares)
                out.append(math.fsum(before[i] * after[j] for before, after in pairs) / n)
    return [*out, math.log(n)]


# Calibration.


def loss_of_mix(weights: Sequence[float], parts: Sequence[Matrix], y: Sequence[int]) -> float:
    """Sum over songs of -log P(true class) under a log-linear mix, in nats."""
    losses = []
    for song, true in enumerate(y):
        mixed = [
            math.fsum(w * part[song][k] for w, part in zip(weights, parts, strict=True))
            for k in range(len(parts[0][song]))
        ]
        losses.append(log_sum_exp(mixed) - mixed[true])
    return math.fsum(losses)


def loss_of_several(
    weights: Sequence[float],
    bias: Sequence[float],
    parts: Sequence[Matrix],
    y: Sequence[Sequence[int]],
) -> float:
    """Sum over songs and classes of the cross-entropy of a mix of log-odds, in nats."""
    losses = []
    for song, row in enumerate(y):
        for k, has in enumerate(row):
            z = bias[k] + math.fsum(w * p[song][k] for w, p in zip(weights, parts, strict=True))
            losses.append(log_sum_exp([0.0, z]) - has * z)
    return math.fsum(losses)


def logistic_prior(values: Sequence[float]) -> float:
    """-log of logistic densities, in nats: each value was once right and once wrong."""
    return math.fsum(log_sum_exp([0.0, z]) + log_sum_exp([0.0, -z]) for z in values)


def paired_gain_by_loop(
    before: Sequence[float], after: Sequence[float], groups: Sequence[int]
) -> tuple[float, float]:
    """Mean gain per song, and its standard error when only groups are independent."""
    n = len(before)
    gains = [b - a for b, a in zip(before, after, strict=True)]
    mean = math.fsum(gains) / n
    squares = []
    for group in set(groups):
        mine = [gain - mean for gain, g in zip(gains, groups, strict=True) if g == group]
        squares.append(math.fsum(mine) ** 2)
    return mean, math.sqrt(math.fsum(squares)) / n


# Songs.


def songs_of_albums(
    n_albums: int, songs_per_album: int, seed: int
) -> tuple[list[Floats], list[str], list[str]]:
    """Songs whose label is drawn album by album, and nothing but the album can be heard.

    Returns
    -------
    arrays : list of ndarray of shape (8, 4)
    labels : list of str, of three
    albums : list of str
    """
    rng = np.random.default_rng(seed)
    arrays, labels, albums = [], [], []
    for album in range(n_albums):
        sound = rng.normal(0, 4, 4)
        for _ in range(songs_per_album):
            arrays.append(sound + rng.normal(0, 0.3, (8, 4)))
            labels.append(("blues", "jazz", "metal")[album % 3])
            albums.append(f"album {seed}-{album}")
    return arrays, labels, albums


def songs_of_varied_noise(n: int, seed: int) -> tuple[list[Floats], list[str]]:
    """Independent normal frames about the class, whose spread is drawn anew for each song.

    The highest mean is the best answer there is.

    Returns
    -------
    arrays : list of ndarray of shape (n_frames_i, 6)
    labels : list of str, "c0" to "c5"
    """
    rng = np.random.default_rng(seed)
    arrays = []
    for i in range(n):
        frames = rng.normal(size=(rng.integers(8, 16), 6)) * rng.lognormal(0, 0.5)
        frames[:, i % 6] += 0.7
        arrays.append(frames)
    return arrays, [f"c{i % 6}" for i in range(n)]
