"""Pooled states of a recurrent network, over songs side by side, without keeping the states.

Conventions
-----------
Numbers are float32. Arrays over a step of a pack (see `seqagg.kernels.packing`) have shape
(n_units, n_songs). Weights are PyTorch's, with its order of gates: reset, update, new.

PyTorch stores what every gate hears of every frame, and every state, and pools them afterwards:
most of its time goes into memory, and into a dozen passes over each step. Here a step is one
matrix product and one loop.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from seqagg.kernels.elementary import exp, jit_fused
from seqagg.kernels.packing import Ints, gather, matrix, pack_songs

Floats = npt.NDArray[np.float32]

_SONGS, _WINDOW = 128, 512
"""Songs side by side, and frames whose part in the gates is computed at a time."""


def pooled_states(
    weights: Sequence[Floats],
    values: Floats,
    first: Ints,
    lengths: Ints,
    *,
    backwards: bool,
) -> tuple[Floats, Floats]:
    """Mean and highest state of each unit over the frames of each song.

    Parameters
    ----------
    weights : sequence of ndarray
        ``weight_ih``, ``weight_hh``, ``bias_ih``, ``bias_hh`` of a layer of `torch.nn.GRU`.
    values : ndarray of shape (n_rows, n_columns)
        Frames; those of song i are the rows from ``first[i]`` on.
    first, lengths : ndarray of int, shape (n_songs,)
    backwards : bool
        Whether the network hears each song from its end.

    Returns
    -------
    mean, highest : ndarray of shape (n_songs, n_units)
    """
    heard, remembered, bias, new_bias = weights
    n_units = remembered.shape[1]
    bias = bias.copy()
    bias[: 2 * n_units] += new_bias[: 2 * n_units]
    mean, highest = (np.empty((len(first), n_units), np.float32) for _ in range(2))
    nothing = np.zeros(values.shape[1])
    for pack in pack_songs(first, lengths, _SONGS, _WINDOW):
        begin = pack.first + lengths[pack.songs] - 1 if backwards else pack.first
        x = np.empty((values.shape[1], pack.starts[-1]), np.float32)
        gather(values, begin, -1 if backwards else 1, pack.starts, nothing, x)
        places = (pack.starts, pack.windows, pack.widest)
        total, top = _run(x, *places, heard, remembered, bias, new_bias[2 * n_units :])
        mean[pack.songs] = total.T / lengths[pack.songs, None]
        highest[pack.songs] = top.T
    return mean, highest


@jit_fused
def _run(x, starts, windows, widest, heard, remembered, bias, new_bias):  # type: ignore[no-untyped-def]
    """Sum and maximum of the states of each song of a pack, shape (n_units, n_songs) both."""
    n_units, n_songs = len(new_bias), starts[1]
    flat_x, flat_state = np.empty(len(x) * widest, x.dtype), np.zeros(n_units * n_songs, x.dtype)
    flat_input = np.empty(3 * n_units * widest, x.dtype)
    flat_memory = np.empty(3 * n_units * n_songs, x.dtype)
    total = np.zeros((n_units, n_songs), x.dtype)
    highest = np.full((n_units, n_songs), np.float32(-1))  # states are above -1
    for w in range(len(windows) - 1):
        begin, end = windows[w], windows[w + 1]
        n = starts[end] - starts[begin]
        own, gates = matrix(flat_x, len(x), n), matrix(flat_input, 3 * n_units, n)
        _take(x, starts[begin], own)
        np.dot(heard, own, gates)
        for t in range(begin, end):
            n = starts[t + 1] - starts[t]
            if t > 0:
                _narrow(flat_state, n_units, starts[t] - starts[t - 1], n)
            state, memory = matrix(flat_state, n_units, n), matrix(flat_memory, 3 * n_units, n)
            np.dot(remembered, state, memory)
            here = starts[t] - starts[begin]
            _step(gates, here, memory, bias, new_bias, state, total, highest)
    return total, highest


@jit_fused
def _take(x, here, out):  # type: ignore[no-untyped-def]
    """Copy the columns from `here` on."""
    here = max(here, 0)
    for d in range(len(out)):
        for c in range(out.shape[1]):
            out[d, c] = x[d, here + c]


@jit_fused
def _narrow(flat, n_rows, before, n):  # type: ignore[no-untyped-def]
    """Keep the first n of so many columns of a matrix in a flat array."""
    if n < before:
        for i in range(1, n_rows):
            for c in range(n):
                flat[i * n + c] = flat[i * before + c]


@jit_fused
def _step(gates, here, memory, bias, new_bias, state, total, highest):  # type: ignore[no-untyped-def]
    """Turn states into those of the next frame, given what gates hear and remember."""
    n_units, here = len(state), max(here, 0)
    for i in range(n_units):
        j, k = n_units + i, 2 * n_units + i
        for c in range(state.shape[1]):
            reset = expit(gates[i, here + c] + memory[i, c] + bias[i])
            update = expit(gates[j, here + c] + memory[j, c] + bias[j])
            new = gates[k, here + c] + bias[k] + reset * (memory[k, c] + new_bias[i])
            new = np.float32(2) * expit(np.float32(2) * new) - np.float32(1)  # its tanh
            h = new + update * (state[i, c] - new)
            state[i, c] = h
            total[i, c] += h
            highest[i, c] = max(highest[i, c], h)


@jit_fused
def expit(x):  # type: ignore[no-untyped-def]
    """Logistic function of float32, in float32 throughout."""
    one, e = np.float32(1), exp(-abs(x))
    return (one if x > 0 else e) / (one + e)
