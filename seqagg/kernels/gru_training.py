"""A recurrent network's pooled states, and how they change with its weights.

Conventions
-----------
Numbers are float32. A pack (see `seqagg.kernels.packing`) stands on its side: its frames are rows,
those of step t the rows ``starts[t]:starts[t + 1]``, so that what a matrix product needs of a step
lies in one piece. Weights are PyTorch's, with its order of gates: reset, update, new.

PyTorch records some thirty operations per step and goes back through them one by one: three
quarters of its time are no matrix products. Here a step is one product and a few loops, forwards
and back, and what the weights make of all steps is one product in the end. The memory for all this
is kept from batch to batch: from the system it came page by page, which took up to a quarter of the
way there.

References
----------
P. Werbos, "Backpropagation through time: what it does and how to do it", Proc. IEEE 78, 1990.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seqagg.kernels.elementary import exp, jit_fused
from seqagg.kernels.gru import expit
from seqagg.kernels.packing import Ints, pack_songs

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Heard:
    """What the way back needs of the way there."""

    songs: Ints  # (n_songs,) which songs, the longest first
    lengths: Ints  # (n_songs,) in this order
    starts: Ints  # (n_steps + 1,)
    x: Floats  # (n_frames, n_columns)
    room: Floats  # memory, which others have afterwards
    gates: Floats  # (n_frames, 3 * n_units) reset, update and new, as they were; in the room
    memory: Floats  # (n_frames, 3 * n_units) what each heard of the state before; in the room
    states: Floats  # (n_frames, n_units); in the room
    before: Floats  # (n_frames, n_units) for the way back, in the room
    highest: npt.NDArray[np.int32]  # (n_songs, n_units) step of the highest state


class _Rooms(threading.local):
    """Memory of a thread for the next songs that it hears."""

    most, largest = 2, 2**23  # one for each direction, 32 MiB of float32

    def __init__(self) -> None:
        self._spare: list[Floats] = []

    def take(self, size: int) -> Floats:
        """So many numbers or more."""
        room = self._spare.pop() if self._spare else np.empty(0, np.float32)
        return room if len(room) >= size else np.empty(size + size // 4, np.float32)

    def give_back(self, room: Floats) -> None:
        if len(self._spare) < self.most and len(room) <= self.largest:
            self._spare.append(room)


_rooms = _Rooms()


def hear(
    x: Floats,
    lengths: Ints,
    weights: tuple[Floats, Floats, Floats, Floats],
    *,
    backwards: bool,
) -> tuple[Floats, Floats, Heard]:
    """Mean and highest state of each unit over the frames of each song.

    Parameters
    ----------
    x : ndarray of shape (n_songs, longest, n_columns)
        Padded frames.
    lengths : ndarray of int, shape (n_songs,)
    weights : tuple of ndarray
        ``weight_ih``, ``weight_hh``, ``bias_ih``, ``bias_hh`` of a layer of `torch.nn.GRU`.
    backwards : bool
        Whether the network hears each song from its end.

    Returns
    -------
    mean, highest : ndarray of shape (n_songs, n_units)
    heard : Heard
        For `trace_back`.
    """
    heard, remembered, bias, memory_bias = weights
    (pack,) = pack_songs(np.zeros_like(lengths), lengths, len(lengths), sys.maxsize)
    songs, starts, sorted_lengths = pack.songs, pack.starts, lengths[pack.songs]
    n_frames, n_units = int(starts[-1]), remembered.shape[1]
    rows = np.empty((n_frames, x.shape[2]), np.float32)
    room = _rooms.take(8 * n_units * n_frames)
    parts = np.split(room[: 8 * n_units * n_frames], n_units * n_frames * np.array([3, 6, 7]))
    gates, memory, states, before = (part.reshape(n_frames, -1) for part in parts)
    mean, highest = np.empty((2, len(songs), n_units), np.float32)
    when = np.empty((len(songs), n_units), np.int32)
    _pack(x, songs, sorted_lengths, starts, backwards, rows)
    inner, across = np.ascontiguousarray(heard.T), np.ascontiguousarray(remembered.T)
    bias = bias.copy()
    bias[: 2 * n_units] += memory_bias[: 2 * n_units]
    own = memory_bias[2 * n_units :]
    _forwards(rows, starts, inner, across, bias, own, gates, memory, states, when)
    _pool(states, starts, songs, sorted_lengths, when, mean, highest)
    kept = (rows, room, gates, memory, states, before, when)
    return mean, highest, Heard(songs, sorted_lengths, starts, *kept)


def trace_back(
    heard: Heard, remembered: Floats, mean: Floats, highest: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    """Slopes along the weights, from those along the mean and the highest states.

    What was heard is used up.

    Parameters
    ----------
    heard : Heard
    remembered : ndarray of shape (3 * n_units, n_units)
        ``weight_hh``.
    mean, highest : ndarray of shape (n_songs, n_units)

    Returns
    -------
    tuple of ndarray
        In the order and the shapes of the weights.
    """
    slopes = (mean[heard.songs] / heard.lengths[:, None].astype(np.float32), highest[heard.songs])
    _back(heard.starts, *slopes, heard.highest, remembered, heard.gates, heard.memory, heard.states)
    _shift(heard.starts, heard.states, heard.before)
    found = (
        heard.gates.T @ heard.x,
        heard.memory.T @ heard.before,
        heard.gates.sum(axis=0),
        heard.memory.sum(axis=0),
    )
    _rooms.give_back(heard.room)
    return found


# max(.., 0) tells the compiler that an index counts from the front: see `seqagg.kernels.packing`.
# A loop that writes to an array and reads it elsewhere is not made wide; so each loop of a step
# does one thing, and what it may not write yet waits in a row of its own. That is 2 to 6 times as
# fast as one loop for all.


@jit_fused
def _pack(x, songs, lengths, starts, backwards, out):  # type: ignore[no-untyped-def]
    for t in range(len(starts) - 1):
        for c in range(starts[t + 1] - starts[t]):
            step = lengths[c] - 1 - t if backwards else t
            for d in range(x.shape[2]):
                out[starts[t] + c, d] = x[songs[c], step, d]


@jit_fused
def _forwards(x, starts, inner, across, bias, memory_bias, gates, memory, states, when):  # type: ignore[no-untyped-def]
    np.dot(x, inner, gates)
    n_units = states.shape[1]
    zeros = np.zeros((starts[1], n_units), x.dtype)
    highest = np.full((starts[1], n_units), np.float32(-np.inf))  # a state that is full is -1
    for t in range(len(starts) - 1):
        begin, end = starts[t], starts[t + 1]
        n = end - begin
        if t > 0:
            last = starts[t - 1]
            before = states[last : last + n]
            np.dot(before, across, memory[begin:end])
        else:
            before = zeros
            memory[begin:end] = 0
        _step(gates[begin:end], memory[begin:end], bias, memory_bias, before, states[begin:end])
        _note(states[begin:end], t, highest, when)


@jit_fused
def _step(gates, memory, bias, memory_bias, before, after):  # type: ignore[no-untyped-def]
    n_units = max(after.shape[1], 0)
    new = np.empty(n_units, after.dtype)
    for c in range(len(after)):
        for i in range(2 * n_units):
            gates[c, i] = expit(gates[c, i] + memory[c, i] + bias[i])
        for i in range(n_units):
            memory[c, 2 * n_units + i] += memory_bias[i]
        for i in range(n_units):
            k = 2 * n_units + i
            new[i] = _tanh(gates[c, k] + bias[k] + gates[c, i] * memory[c, k])
        for i in range(n_units):
            after[c, i] = new[i] + gates[c, n_units + i] * (before[c, i] - new[i])
        for i in range(n_units):
            gates[c, 2 * n_units + i] = new[i]


@jit_fused
def _note(states, t, highest, when):  # type: ignore[no-untyped-def]
    for c in range(len(states)):
        for i in range(states.shape[1]):
            higher = states[c, i] > highest[c, i]
            highest[c, i] = states[c, i] if higher else highest[c, i]
            when[c, i] = t if higher else when[c, i]


@jit_fused
def _pool(states, starts, songs, lengths, when, mean, highest):  # type: ignore[no-untyped-def]
    n_songs, n_units = when.shape
    total = np.zeros((n_songs, n_units), states.dtype)
    for t in range(len(starts) - 1):
        for c in range(starts[t + 1] - starts[t]):
            for i in range(n_units):
                total[c, i] += states[starts[t] + c, i]
    for c in range(n_songs):
        for i in range(n_units):
            mean[songs[c], i] = total[c, i] / np.float32(lengths[c])
            highest[songs[c], i] = states[starts[when[c, i]] + c, i]


@jit_fused
def _back(starts, mean, highest, when, remembered, gates, memory, states):  # type: ignore[no-untyped-def]
    """Put the slopes along the sums in the place of gates and memory."""
    n_songs, n_units = mean.shape
    carried = np.zeros((n_songs, n_units), states.dtype)
    flat = np.empty(n_songs * n_units, states.dtype)
    zeros = np.zeros((n_songs, n_units), states.dtype)
    for t in range(len(starts) - 2, -1, -1):
        begin, end = starts[t], starts[t + 1]
        n = end - begin
        last = starts[t - 1] if t > 0 else 0
        before = states[last : last + n] if t > 0 else zeros
        _step_back(gates[begin:end], memory[begin:end], before, t, mean, highest, when, carried)
        if t > 0:
            more = flat[: n * n_units].reshape(n, n_units)
            np.dot(memory[begin:end], remembered, more)
            for c in range(n):
                for i in range(n_units):
                    carried[c, i] += more[c, i]


@jit_fused
def _step_back(gates, memory, before, t, mean, highest, when, carried):  # type: ignore[no-untyped-def]
    one, zero = np.float32(1), np.float32(0)
    n_units = max(before.shape[1], 0)
    slope, to_new = np.empty((2, n_units), before.dtype)
    to_reset, to_update = np.empty((2, n_units), before.dtype)
    for c in range(len(gates)):
        for i in range(n_units):
            slope[i] = carried[c, i] + mean[c, i] + (highest[c, i] if when[c, i] == t else zero)
        for i in range(n_units):
            update, new = gates[c, n_units + i], gates[c, 2 * n_units + i]
            to_new[i] = slope[i] * (one - update) * (one - new * new)
        for i in range(n_units):
            update, new = gates[c, n_units + i], gates[c, 2 * n_units + i]
            to_update[i] = slope[i] * (before[c, i] - new) * update * (one - update)
        for i in range(n_units):
            reset = gates[c, i]
            to_reset[i] = to_new[i] * memory[c, 2 * n_units + i] * reset * (one - reset)
        for i in range(n_units):
            carried[c, i] = slope[i] * gates[c, n_units + i]
        for i in range(n_units):
            memory[c, 2 * n_units + i] = to_new[i] * gates[c, i]
        for i in range(n_units):
            memory[c, i] = to_reset[i]
            gates[c, i] = to_reset[i]
        for i in range(n_units):
            memory[c, n_units + i] = to_update[i]
            gates[c, n_units + i] = to_update[i]
        for i in range(n_units):
            gates[c, 2 * n_units + i] = to_new[i]


@jit_fused
def _shift(starts, states, before):  # type: ignore[no-untyped-def]
    """Copy the state before each frame."""
    before[: starts[1]] = 0
    for t in range(1, len(starts) - 1):
        for c in range(starts[t + 1] - starts[t]):
            for i in range(states.shape[1]):
                before[starts[t] + c, i] = states[starts[t - 1] + c, i]


@jit_fused
def _tanh(x):  # type: ignore[no-untyped-def]
    e = exp(np.float32(-2) * abs(x))
    found = (np.float32(1) - e) / (np.float32(1) + e)
    return found if x > 0 else -found
