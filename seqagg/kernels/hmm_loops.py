"""The recursions of hidden Markov models, over packs of songs and song by song in log space.

Conventions
-----------
Arrays over a pack have shape (n_rows, n_columns): a row is a state, and the rows of model m are
``first[m]:first[m + 1]``; a column is a frame (see `seqagg.kernels.packing`). ``transmat`` has the
row of a state in that order, and as many columns as the largest model has states. A state's
*share* is its probability given the frames so far.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np


def _jit(function: Any) -> Any:
    # contract: a product and a sum in one instruction, which rounds less, not more.
    return numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})(function)


_BLOCK = 256
"""Columns whose monomials are computed at a time, so that they stay in the cache."""


@_jit
def subtract_top(log_b, first, top):  # type: ignore[no-untyped-def]
    """Subtract from each column of a model its largest value, which goes to `top`."""
    for m in range(len(first) - 1):
        for c in range(log_b.shape[1]):
            top[m, c] = -np.inf
        for r in range(first[m], first[m + 1]):
            for c in range(log_b.shape[1]):
                top[m, c] = max(top[m, c], log_b[r, c])
        for r in range(first[m], first[m + 1]):
            for c in range(log_b.shape[1]):
                log_b[r, c] -= top[m, c]


@_jit
def gather(frames, rows, starts, center, out):  # type: ignore[no-untyped-def]
    """Fill `out`, shape (n_features, n_columns), with the frames of the columns less the center.

    Song by song: reads then follow memory, and it is the writes, into the cache, that jump.
    """
    n_steps = len(starts) - 1
    for c in range(starts[1] - starts[0]):
        for t in range(n_steps):
            if starts[t] + c >= starts[t + 1]:
                break
            row, here = max(rows[starts[t] + c], 0), max(starts[t], 0) + c
            for d in range(len(center)):
                out[d, here] = frames[row, d] - center[d]


@_jit
def fill_monomials(x, here, n, full, out):  # type: ignore[no-untyped-def]
    """Fill `out` with 1, x, and x^2 or all products x_i x_j, i <= j, of n columns of `x`."""
    here = max(here, 0)
    for c in range(n):
        out[0, c] = 1
    place = 1 + len(x)
    for i in range(len(x)):
        for c in range(n):
            out[1 + i, c] = x[i, here + c]
        for j in range(i, len(x) if full else i + 1):
            for c in range(n):
                out[place, c] = x[i, here + c] * x[j, here + c]
            place += 1


@_jit
def densities(x, weights, full, out):  # type: ignore[no-untyped-def]
    """Fill `out`, shape (n_rows, n_columns), with the weighted sums of the monomials of `x`.

    For a few rows, where a matrix product would wait for the memory of all monomials.
    """
    block = np.empty((weights.shape[1], _BLOCK), x.dtype)
    for here in range(0, x.shape[1], _BLOCK):
        n = min(_BLOCK, x.shape[1] - here)
        fill_monomials(x, here, n, full, block)
        _multiply(weights, block, 0, 0, out, 0, here, n)


@_jit
def moments(x, posteriors, full, out):  # type: ignore[no-untyped-def]
    """Add to `out`, shape (n_states, n_monomials), the expected sums of the monomials of `x`."""
    block = np.empty((out.shape[1], _BLOCK), x.dtype)
    for here in range(0, x.shape[1], _BLOCK):
        n = min(_BLOCK, x.shape[1] - here)
        fill_monomials(x, here, n, full, block)
        for r in range(len(out)):
            for m in range(len(block)):
                out[r, m] += _dot(posteriors, r, here, block, m, 0, n)


@_jit
def add_transitions(previous, b, transmat, out):  # type: ignore[no-untyped-def]
    """Add the expected transitions that `backward` left behind."""
    for i in range(len(out)):
        for j in range(len(out)):
            out[i, j] += transmat[i, j] * _dot(previous, i, 0, b, j, 0, b.shape[1])


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
def _dot(a, i, there, b, j, here, n):  # type: ignore[no-untyped-def]
    """Sum of products of two rows, in an order that the compiler may choose."""
    there, here, i, j = max(there, 0), max(here, 0), max(i, 0), max(j, 0)
    total = 0.0
    for c in range(n):
        total += a[i, there + c] * b[j, here + c]
    return total


@_jit
def forward(  # type: ignore[no-untyped-def]
    b, starts, first, startprob, transmat, watched, tiny, mixing, before, alpha, scales, lost
):
    """Fill the shares and scales of a run of steps; mark the songs that scaling loses.

    ``before`` holds the shares of the step before the run, and has no column at the start of the
    songs. The log of a song's likelihood is the sum of the logs of its scales. A song is lost
    where a scale is below `mixing`, or in watched models where the share of a state is below
    `tiny`: a state that others cannot step into at once may be the one that later frames need.
    """
    inverse = np.empty(starts[1], b.dtype)
    for m in range(len(first) - 1):
        least = tiny if watched[m] else mixing
        low, high = max(first[m], 0), max(first[m + 1], 0)
        arrive = transmat[low:high, : high - low].T.copy()
        for t in range(len(starts) - 1):
            # max(.., 0) tells the compiler that an index counts from the front. Without it, it
            # checks every one, and cannot work on several columns at once: 7 times slower.
            here, n = max(starts[t], 0), starts[t + 1] - starts[t]
            begins = t == 0 and before.shape[1] == 0
            if begins:
                for j in range(low, high):
                    for c in range(n):
                        alpha[j, here + c] = startprob[j]
            elif t == 0:
                _multiply(arrive, before, low, 0, alpha, low, here, n)
            else:
                _multiply(arrive, alpha, low, starts[t - 1], alpha, low, here, n)
            if watched[m]:
                for j in range(low, high):
                    for c in range(n):
                        reached = alpha[j, here + c]
                        lost[m, c] |= (reached > 0) & (reached * b[j, here + c] < tiny)
            for c in range(n):
                scales[m, here + c] = 0
            for j in range(low, high):
                for c in range(n):
                    share = alpha[j, here + c] * b[j, here + c]
                    alpha[j, here + c] = share
                    scales[m, here + c] += share
            for c in range(n):
                fine = scales[m, here + c] >= least
                lost[m, c] |= not fine
                scales[m, here + c] = scales[m, here + c] if fine else 1.0
                inverse[c] = 1 / scales[m, here + c]
            for j in range(low, high):
                for c in range(n):
                    alpha[j, here + c] *= inverse[c]


@_jit
def _multiply(weights, old, low, there, new, first, here, n):  # type: ignore[no-untyped-def]
    """Fill rows of `new`, from row `first` and column `here` on, with ``weights @ old``.

    `old` counts from row `low` and column `there`; n columns. Two rows of the result and four of
    `old` are done at a time, to load and store less.
    """
    n_new, n_old = weights.shape
    low, there, first, here = max(low, 0), max(there, 0), max(first, 0), max(here, 0)
    for j in range(n_new):
        for c in range(n):
            new[first + j, here + c] = 0
    for j in range(0, n_new - 1, 2):
        _add_two(weights, j, old, low, there, new, first + j, here, n)
    if n_new % 2:
        last = max(first + n_new - 1, 0)
        for i in range(n_old):
            u = weights[n_new - 1, i]
            for c in range(n):
                new[last, here + c] += u * old[low + i, there + c]


@_jit
def _add_two(weights, j, old, low, there, new, to, here, n):  # type: ignore[no-untyped-def]
    """Add two rows of a product, see `_multiply`."""
    low, there, to, here = max(low, 0), max(there, 0), max(to, 0), max(here, 0)
    n_old = weights.shape[1]
    fours = n_old - n_old % 4
    for i in range(0, fours, 4):
        u, v, w, x = weights[j, i], weights[j, i + 1], weights[j, i + 2], weights[j, i + 3]
        q, r, s, t = (
            weights[j + 1, i],
            weights[j + 1, i + 1],
            weights[j + 1, i + 2],
            weights[j + 1, i + 3],
        )
        k = low + i
        for c in range(n):
            a, b = old[k, there + c], old[k + 1, there + c]
            d, e = old[k + 2, there + c], old[k + 3, there + c]
            new[to, here + c] += u * a + v * b + w * d + x * e
            new[to + 1, here + c] += q * a + r * b + s * d + t * e
    for i in range(fours, n_old):
        u, q = weights[j, i], weights[j + 1, i]
        for c in range(n):
            a = old[low + i, there + c]
            new[to, here + c] += u * a
            new[to + 1, here + c] += q * a


@_jit
def backward(b, starts, transmat, scales, alpha, previous):  # type: ignore[no-untyped-def]
    """Turn the shares of one model into posteriors, and densities into what transitions weigh.

    Afterwards ``transmat[i, j] * sum(previous[i] * b[j])`` is the expected number of transitions
    from i to j; ``previous`` is filled with the shares of the step before each column.
    """
    n_states, n_steps = len(alpha), len(starts) - 1
    beta = np.ones((n_states, starts[1]))
    for t in range(n_steps - 1, -1, -1):
        here, n = max(starts[t], 0), starts[t + 1] - starts[t]
        if t < n_steps - 1:
            there = max(starts[t + 1], 0)
            n_next = starts[t + 2] - there
            _multiply(transmat, b, 0, there, beta, 0, 0, n_next)
            for i in range(n_states):
                for c in range(n_next):
                    previous[i, there + c] = alpha[i, here + c]
                    # Out of reach, what follows may be beyond all floats.
                    beta[i, c] = beta[i, c] if alpha[i, here + c] > 0 else 0.0
        for i in range(n_states):
            for c in range(n):
                b[i, here + c] *= beta[i, c] / scales[0, here + c]
                alpha[i, here + c] *= beta[i, c]
    for i in range(n_states):
        for c in range(starts[1]):
            b[i, c] = 0
            previous[i, c] = 0


@_jit
def add_steps(values, starts):  # type: ignore[no-untyped-def]
    """Sum of each song's columns, shape (n_models, n_songs), in float64."""
    out = np.zeros((len(values), starts[1]))
    for m in range(len(values)):
        for t in range(len(starts) - 1):
            here = max(starts[t], 0)
            for c in range(starts[t + 1] - here):
                out[m, c] += values[m, here + c]
    return out


@_jit
def log_sum(values):  # type: ignore[no-untyped-def]
    """Log of the sum of exponentials."""
    top = values.max()
    if top == -np.inf:
        return top
    return top + np.log(np.exp(values - top).sum())


@_jit
def log_forward(log_b, log_start, log_trans):  # type: ignore[no-untyped-def]
    """Log of the joint probability of each state and the frames up to it, of one song."""
    table = np.empty_like(log_b)
    table[0] = log_start + log_b[0]
    for t in range(1, len(log_b)):
        for j in range(log_b.shape[1]):
            table[t, j] = log_sum(table[t - 1] + log_trans[:, j]) + log_b[t, j]
    return table


@_jit
def _log_backward(log_b, log_trans):  # type: ignore[no-untyped-def]
    table = np.zeros_like(log_b)
    for t in range(len(log_b) - 2, -1, -1):
        for i in range(log_b.shape[1]):
            table[t, i] = log_sum(log_trans[i] + log_b[t + 1] + table[t + 1])
    return table


@_jit
def log_forward_backward(log_b, startprob, transmat, posteriors, transitions):  # type: ignore[no-untyped-def]
    """Fill the posteriors of one song, add to its transitions, return its log likelihood."""
    log_trans = np.log(transmat)
    ahead = log_forward(log_b, np.log(startprob), log_trans)
    behind = _log_backward(log_b, log_trans)
    total = log_sum(ahead[-1])
    posteriors[:] = np.exp(ahead + behind - total)
    for t in range(len(log_b) - 1):
        for i in range(log_b.shape[1]):
            for j in range(log_b.shape[1]):
                transitions[i, j] += np.exp(
                    ahead[t, i] + log_trans[i, j] + log_b[t + 1, j] + behind[t + 1, j] - total
                )
    return total
