"""The recursions of hidden Markov models, over packs of songs and song by song in log space.

Conventions
-----------
Songs stand side by side, step by step, and work goes window by window: see
`seqagg.kernels.packing`. Arrays over a window have shape (n_rows, n_columns): a row is a state, a
column a frame. A state's *share* is its probability given the frames so far.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from seqagg.kernels.elementary import exp, jit_fused, jit_summed
from seqagg.kernels.packing import matrix

Array = npt.NDArray[Any]

_LOG_2 = float(np.log(2))

_FEW_ROWS = 6
"""Of so many states of all models, BLAS takes longer than a loop."""


class Rows(NamedTuple):
    """The states of several models, one below the other, as numbers of one type."""

    weights: Array  # (n_rows or more, n_monomials) of the log densities
    full: bool  # whether covariances are
    first: Array  # (n_models + 1,) of int: where the rows of each model start
    startprob: Array  # (n_rows,)
    transmat: Array  # (n_rows, most states of a model)
    watched: Array  # (n_models,) of bool: whether a state's share must not underflow
    tiny: Any  # what share is lost
    mixing: Any  # least chance of every transition in models that are not watched


# Compiled functions that others call are compiled anew for each combination of types, and 0 has a
# type of its own: hence starts[0]. On max(.., 0) see `seqagg.kernels.packing`.


@jit_fused
def run_forward(x, starts, windows, n_most, rows, keep):  # type: ignore[no-untyped-def]
    """Run all models forward over the songs of a pack.

    Parameters
    ----------
    x : ndarray of shape (n_features, n_columns)
        Frames of the pack less the center.
    starts, windows : ndarray of int
        Of the pack.
    n_most : int
        Columns of the widest window.
    rows : Rows
    keep : bool
        Whether to keep all densities and shares, as `run_backward` needs them.

    Returns
    -------
    total, product : ndarray of shape (n_models, n_songs)
        The log likelihood is ``total + log(product)``.
    lost : ndarray of bool, shape (n_models, n_songs)
        Songs that scaling lost.
    densities, shares, inverse : ndarray of shape (n_rows, n_columns) or, the last one, (n_columns,)
        Densities relative to the highest of a frame, shares, and 1 / the scale of each frame of the
        last model.
    """
    n_rows, (n_b, n_monomials) = len(rows.startprob), rows.weights.shape
    n_models, n_songs, dtype = len(rows.watched), starts[1], rows.weights.dtype
    flat_b, flat_monomials = np.empty(n_b * n_most, dtype), np.empty(n_monomials * n_most, dtype)
    densities = np.empty((n_rows, starts[-1] if keep else starts[0]), dtype)
    shares = np.empty((n_rows, starts[-1] if keep else n_songs), dtype)
    inverse = np.empty(starts[-1], dtype)
    total, product = np.zeros((n_models, n_songs)), np.ones((n_models, n_songs))
    lost = np.zeros((n_models, n_songs), np.bool_)
    for w in range(len(windows) - 1):
        begin, end = windows[w], windows[w + 1]
        n = starts[end] - starts[begin]
        b, monomials = matrix(flat_b, n_b, n), matrix(flat_monomials, n_monomials, n)
        _fill_monomials(x, starts[begin], rows.full, monomials)
        if n_rows <= _FEW_ROWS:
            _multiply(rows.weights[:n_rows], monomials, starts[0], starts[0], b, n)
        else:
            np.dot(rows.weights, monomials, b)
        for m in range(n_models):
            _forward(b, starts, begin, end, rows, m, shares, inverse, keep, total, product, lost)
        if keep:
            _put(b, starts[begin], densities)
    return total, product, lost, densities, shares, inverse


@jit_fused
def run_backward(x, starts, windows, n_most, rows, lost, densities, shares, inverse):  # type: ignore[no-untyped-def]
    """Run one model backward, after `run_forward`. Songs that are lost add nothing.

    Returns
    -------
    posteriors : ndarray of shape (n_states * columns of the first window,)
        Of the first window, a row per state. (There is more behind it.)
    transitions : ndarray of shape (n_states, n_states)
    moments : ndarray of shape (n_states, n_monomials)
    """
    n_states, n_monomials = len(rows.startprob), rows.weights.shape[1]
    flat_b, flat_monomials = np.empty(n_states * n_most), np.empty(n_monomials * n_most)
    flat_states, flat_previous = np.empty(n_states * n_most), np.empty(n_states * n_most)
    transitions, moments = np.zeros((n_states, n_states)), np.zeros((n_states, n_monomials))
    beta = np.empty((n_states, starts[1]))
    for w in range(len(windows) - 2, -1, -1):
        begin, end = windows[w], windows[w + 1]
        n = starts[end] - starts[begin]
        b, states = matrix(flat_b, n_states, n), matrix(flat_states, n_states, n)
        previous, monomials = (
            matrix(flat_previous, n_states, n),
            matrix(flat_monomials, n_monomials, n),
        )
        _backward(
            densities,
            shares,
            inverse,
            starts,
            begin,
            end,
            rows.transmat,
            lost[0],
            beta,
            previous,
            b,
            states,
        )
        _add_products(previous, b, transitions)
        _fill_monomials(x, starts[begin], rows.full, monomials)
        _add_products(states, monomials, moments)
    return flat_states, transitions * rows.transmat, moments


@jit_fused
def _put(some, here, out):  # type: ignore[no-untyped-def]
    """Copy the columns of a window to their place."""
    here = max(here, 0)
    for r in range(len(out)):
        for c in range(some.shape[1]):
            out[r, here + c] = some[r, c]


@jit_summed
def _add_products(a, b, out):  # type: ignore[no-untyped-def]
    """Add ``a @ b.T``. BLAS, made for large matrices, takes two to five times as long of these.

    Two rows of a and four of b are done at a time, to load less.
    """
    n_a, n_b, n = len(a), len(b), a.shape[1]
    fours = n_b - n_b % 4
    for i in range(0, n_a - 1, 2):
        for j in range(0, fours, 4):
            s0 = s1 = s2 = s3 = t0 = t1 = t2 = t3 = 0.0
            for c in range(n):
                s, t = a[i, c], a[i + 1, c]
                s0 += s * b[j, c]
                s1 += s * b[j + 1, c]
                s2 += s * b[j + 2, c]
                s3 += s * b[j + 3, c]
                t0 += t * b[j, c]
                t1 += t * b[j + 1, c]
                t2 += t * b[j + 2, c]
                t3 += t * b[j + 3, c]
            for k, (s, t) in enumerate(((s0, t0), (s1, t1), (s2, t2), (s3, t3))):
                out[i, j + k] += s
                out[i + 1, j + k] += t
    for i in range(n_a):
        for j in range(fours if i < n_a - n_a % 2 else 0, n_b):
            s0 = 0.0
            for c in range(n):
                s0 += a[i, c] * b[j, c]
            out[i, j] += s0


@jit_fused
def _fill_monomials(x, here, full, out):  # type: ignore[no-untyped-def]
    """Fill `out` with 1, x, and x^2 or all products x_i x_j, i <= j, of the columns from `here`."""
    here, n = max(here, 0), out.shape[1]
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


@jit_fused
def _forward(  # type: ignore[no-untyped-def]
    b, starts, begin, end, rows, m, shares, inverse, keep, total, product, lost
):
    """Run model m through a window, whose log densities `b` become densities.

    A song is lost where a scale is below `mixing`, or in watched models where the share of a state
    is below `tiny`: a state that others cannot step into at once may be the one that later frames
    need.
    """
    low, high = max(rows.first[m], 0), max(rows.first[m + 1], 0)
    arrive = rows.transmat[low:high, : high - low].T.copy()
    ahead = np.empty((high - low, lost.shape[1]), b.dtype)
    top, scale = np.empty(b.shape[1], b.dtype), np.empty(lost.shape[1], b.dtype)
    _densities(b, low, high, top)
    for t in range(begin, end):
        here, n = max(starts[t] - starts[begin], 0), starts[t + 1] - starts[t]
        at = max(starts[t], 0) if keep else 0
        if t > 0:
            _multiply(arrive, shares, low, starts[t - 1] if keep else starts[0], ahead, n)
        else:
            for j in range(high - low):
                for c in range(n):
                    ahead[j, c] = rows.startprob[low + j]
        if rows.watched[m]:
            _watch(ahead, b, low, here, rows.tiny, lost[m], n)
        _weigh(ahead, b, low, here, scale, n)
        least = rows.tiny if rows.watched[m] else rows.mixing
        _account(total[m], product[m], lost[m], top, here, scale, least, n)
        for c in range(n):
            inverse[at + c] = 1 / scale[c]
        for j in range(high - low):
            for c in range(n):
                shares[low + j, at + c] = ahead[j, c] * inverse[at + c]


@jit_fused
def _densities(b, low, high, top):  # type: ignore[no-untyped-def]
    """Turn log densities into densities relative to the highest of each frame, which is `top`."""
    low, n = max(low, 0), b.shape[1]
    for c in range(n):
        top[c] = b[low, c]
    for j in range(low + 1, high):
        for c in range(n):
            top[c] = max(top[c], b[j, c])
    for j in range(low, high):
        for c in range(n):
            b[j, c] = exp(b[j, c] - top[c])


@jit_fused
def _watch(ahead, b, low, here, tiny, lost, n):  # type: ignore[no-untyped-def]
    """Mark the songs with a state that was reached, and whose share will be too small to keep."""
    low, here = max(low, 0), max(here, 0)
    for j in range(len(ahead)):
        for c in range(n):
            lost[c] |= (ahead[j, c] > 0) & (ahead[j, c] * b[low + j, here + c] < tiny)


@jit_fused
def _weigh(ahead, b, low, here, scale, n):  # type: ignore[no-untyped-def]
    """Multiply what is expected by what is seen; their sum is the scale."""
    low, here = max(low, 0), max(here, 0)
    for c in range(n):
        scale[c] = 0
    for j in range(len(ahead)):
        for c in range(n):
            share = ahead[j, c] * b[low + j, here + c]
            ahead[j, c] = share
            scale[c] += share


@jit_fused
def _account(total, product, lost, top, here, scale, least, n):  # type: ignore[no-untyped-def]
    """Take what a step says of the likelihoods.

    To multiply scales is cheaper than to add their logs. Powers of two are moved from the product
    to the total, lest it underflow.
    """
    here = max(here, 0)
    for c in range(n):
        fine = scale[c] >= least
        lost[c] |= not fine
        scale[c] = scale[c] if fine else 1
        bits = np.float64(product[c] * np.float64(scale[c])).view(np.int64)
        power = (bits >> 52) - 1023
        product[c] = np.int64(bits - (power << 52)).view(np.float64)
        total[c] += np.float64(top[here + c]) + power * _LOG_2


@jit_fused
def _backward(  # type: ignore[no-untyped-def]
    densities, shares, inverse, starts, begin, end, transmat, lost, beta, previous, b, states
):
    """Run backward through a window.

    Parameters
    ----------
    beta : ndarray of shape (n_states, n_songs)
        Scaled chance of all that follows the window, and afterwards the step before it.
    previous, b, states : ndarray of shape (n_states, columns of the window)
        Takes the shares of the step before each frame (0 for the first), what transitions weigh,
        and posteriors. The expected number of transitions from i to j into the window is
        ``transmat[i, j] * sum(previous[i] * b[j])``.
    """
    for t in range(end - 1, begin - 1, -1):
        here, n = max(starts[t], 0), starts[t + 1] - starts[t]
        to, last = max(starts[t] - starts[begin], 0), max(starts[max(t - 1, 0)], 0)
        n_next = starts[t + 2] - starts[t + 1] if t < len(starts) - 2 else 0
        for i in range(len(b)):
            for c in range(n_next):
                # Out of reach, what follows may be beyond all floats.
                beta[i, c] = beta[i, c] if shares[i, here + c] > 0 else 0.0
            for c in range(n_next, n):
                beta[i, c] = 0.0 if lost[c] else 1.0
            for c in range(n):
                b[i, to + c] = densities[i, here + c] * beta[i, c] * inverse[here + c]
                states[i, to + c] = shares[i, here + c] * beta[i, c]
                previous[i, to + c] = shares[i, last + c] if t > 0 else 0.0
        _multiply(transmat, b, starts[0], starts[t] - starts[begin], beta, n)


@jit_fused
def _multiply(weights, old, low, there, new, n):  # type: ignore[no-untyped-def]
    """Fill n columns of `new` with ``weights @ old``, `old` from row `low` and column `there` on.

    Two rows of the result and up to eight of `old` are done at a time, to load and store less.
    """
    n_new, n_old = weights.shape
    low, there = max(low, 0), max(there, 0)
    eights, fours = n_old - n_old % 8, n_old - n_old % 4
    for j in range(n_new):
        for c in range(n):
            new[j, c] = 0
    for j in range(0, n_new - 1, 2):
        for i in range(0, eights, 8):
            k, a, d = low + i, _four(weights, j, i), _four(weights, j, i + 4)
            e, f = _four(weights, j + 1, i), _four(weights, j + 1, i + 4)
            for c in range(n):
                new[j, c] += _dot(a, old, k, there + c) + _dot(d, old, k + 4, there + c)
                new[j + 1, c] += _dot(e, old, k, there + c) + _dot(f, old, k + 4, there + c)
        for i in range(eights, fours, 4):
            k, a, e = low + i, _four(weights, j, i), _four(weights, j + 1, i)
            for c in range(n):
                new[j, c] += _dot(a, old, k, there + c)
                new[j + 1, c] += _dot(e, old, k, there + c)
        for i in range(fours, n_old):
            k, u, v = low + i, weights[j, i], weights[j + 1, i]
            for c in range(n):
                new[j, c] += u * old[k, there + c]
                new[j + 1, c] += v * old[k, there + c]
    if n_new % 2:
        for i in range(n_old):
            k, u = low + i, weights[n_new - 1, i]
            for c in range(n):
                new[n_new - 1, c] += u * old[k, there + c]


@jit_fused
def _four(weights, j, i):  # type: ignore[no-untyped-def]
    return weights[j, i], weights[j, i + 1], weights[j, i + 2], weights[j, i + 3]


@jit_fused
def _dot(four, old, k, c):  # type: ignore[no-untyped-def]
    """Sum of four products."""
    first = four[0] * old[k, c] + four[1] * old[k + 1, c]
    return first + (four[2] * old[k + 2, c] + four[3] * old[k + 3, c])


@jit_fused
def log_sum(values):  # type: ignore[no-untyped-def]
    """Log of the sum of exponentials."""
    top = values.max()
    if top == -np.inf:
        return top
    return top + np.log(np.exp(values - top).sum())


@jit_fused
def log_forward(log_b, log_start, log_trans):  # type: ignore[no-untyped-def]
    """Log of the joint probability of each state and the frames up to it, of one song."""
    table = np.empty_like(log_b)
    table[0] = log_start + log_b[0]
    for t in range(1, len(log_b)):
        for j in range(log_b.shape[1]):
            table[t, j] = log_sum(table[t - 1] + log_trans[:, j]) + log_b[t, j]
    return table


@jit_fused
def _log_backward(log_b, log_trans):  # type: ignore[no-untyped-def]
    table = np.zeros_like(log_b)
    for t in range(len(log_b) - 2, -1, -1):
        for i in range(log_b.shape[1]):
            table[t, i] = log_sum(log_trans[i] + log_b[t + 1] + table[t + 1])
    return table


@jit_fused
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
