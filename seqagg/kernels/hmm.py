"""Gaussian hidden Markov models over many songs: likelihood, posteriors, EM.

Conventions
-----------
``frames`` has shape (n_frames, n_features), float64; song i has rows
``offsets[i]:offsets[i + 1]``, at least one. ``log_b`` has shape (n_frames, n_states): the log
density of each frame under each state. ``covars`` has shape (n_states, n_features) for diagonal
and (n_states, n_features, n_features) for full covariances. Likelihoods are in nats.

The recursions are those of [1]_, scaled frame by frame. Where scaling underflows,
because a left-right model forbids the only states that explain a frame, the song is done again in
log space.

References
----------
.. [1] L. R. Rabiner, "A tutorial on hidden Markov models and selected applications in speech
   recognition", Proceedings of the IEEE 77(2), 1989.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_TINY = 1e-280
"""Smallest share of a state that the scaled recursions trust."""

_LOG_2PI = float(np.log(2 * np.pi))


@dataclass(frozen=True)
class GaussianParameters:
    """What a Gaussian HMM consists of, under hmmlearn's names."""

    startprob: Floats  # (n_states,)
    transmat: Floats  # (n_states, n_states), rows sum to 1
    means: Floats  # (n_states, n_features)
    covars: Floats  # (n_states, n_features) or (n_states, n_features, n_features)

    @property
    def n_states(self) -> int:
        """Number of states."""
        return len(self.startprob)


@dataclass(frozen=True)
class Expectations:
    """What the E-step hands to the M-step."""

    log_likelihood: float
    start: Floats  # (n_states,) expected number of songs that start there
    transitions: Floats  # (n_states, n_states) expected number of transitions
    posteriors: Floats  # (n_frames, n_states), rows sum to 1


def log_density(frames: Floats, means: Floats, covars: Floats) -> Floats:
    """Log density of each frame under each state, shape (n_frames, n_states)."""
    n_features = means.shape[1]
    if covars.ndim == 2:
        # (x - m)^2 / v opened up, so that all frames and states are two matrix products.
        precision = 1 / covars
        constant = -0.5 * (
            n_features * _LOG_2PI + np.log(covars).sum(axis=1) + (means**2 * precision).sum(axis=1)
        )
        linear, square = frames @ (means * precision).T, frames**2 @ precision.T
        return np.asarray(constant + linear - 0.5 * square)
    out = np.empty((len(frames), len(means)))
    for state, (mean, covar) in enumerate(zip(means, covars, strict=True)):
        inverse = np.linalg.inv(np.linalg.cholesky(covar))
        white = (frames - mean) @ inverse.T
        log_determinant = -2 * np.log(np.diagonal(inverse)).sum()
        out[:, state] = -0.5 * (
            n_features * _LOG_2PI + log_determinant + np.einsum("ij,ij->i", white, white)
        )
    return out


def log_likelihood(frames: Floats, offsets: Ints, model: GaussianParameters) -> Floats:
    """Log likelihood of each song, shape (n_songs,)."""
    log_b = log_density(frames, model.means, model.covars)
    return np.asarray(_forward(log_b, *_writable(offsets, model.startprob, model.transmat)))


def expectations(frames: Floats, offsets: Ints, model: GaussianParameters) -> Expectations:
    """E-step: expected starts, transitions and states given the songs."""
    log_b = log_density(frames, model.means, model.covars)
    posteriors = np.empty_like(log_b)
    transitions = np.zeros_like(model.transmat)
    total = _forward_backward(
        log_b, *_writable(offsets, model.startprob, model.transmat), posteriors, transitions
    )
    start = posteriors[offsets[:-1]].sum(axis=0)
    return Expectations(float(total), start, transitions, posteriors)


def maximize(
    frames: Floats, found: Expectations, model: GaussianParameters, shrinkage: float
) -> GaussianParameters:
    """M-step, by hmmlearn's formulas.

    Parameters
    ----------
    frames : ndarray of shape (n_frames, n_features)
    found : Expectations
    model : GaussianParameters
        Transitions and starts that are zero in it stay forbidden.
    shrinkage : float
        Covariances are drawn towards the identity as if this many more frames had it: hmmlearn's
        ``covars_prior=shrinkage`` (times the identity if full) with
        ``covars_weight=shrinkage + 1`` (diagonal) or ``shrinkage + n_features`` (full).
    """
    weight = found.posteriors.sum(axis=0)
    # A state that no frame is in keeps its place rather than becoming NaN.
    alive = weight > 1e-10
    safe = np.where(alive, weight, 1.0)[:, None]
    means = np.where(alive[:, None], found.posteriors.T @ frames / safe, model.means)
    if model.covars.ndim == 2:
        spread = found.posteriors.T @ frames**2 - means**2 * weight[:, None]
        covars = (shrinkage + np.maximum(spread, 0)) / (shrinkage + weight)[:, None]
    else:
        covars = np.empty_like(model.covars)
        for state in range(model.n_states):
            centred = frames - means[state]
            spread = (centred * found.posteriors[:, state, None]).T @ centred
            covars[state] = (shrinkage * np.eye(len(spread)) + spread) / (shrinkage + weight[state])
    covars = np.where(alive.reshape(-1, *[1] * (covars.ndim - 1)), covars, model.covars)
    return GaussianParameters(
        startprob=_normalized(found.start, model.startprob),
        transmat=_normalized(found.transitions, model.transmat),
        means=means,
        covars=covars,
    )


def fit_em(
    frames: Floats,
    offsets: Ints,
    model: GaussianParameters,
    *,
    shrinkage: float,
    n_iter: int,
    tol: float,
) -> tuple[GaussianParameters, list[float]]:
    """Expectation maximization from a starting model.

    Stops, as hmmlearn does, when an iteration gains less than `tol` nats over all songs.

    Returns
    -------
    model : GaussianParameters
    history : list of float
        Log likelihood of all songs before each M-step.
    """
    history: list[float] = []
    for _ in range(n_iter):
        found = expectations(frames, offsets, model)
        model = maximize(frames, found, model, shrinkage)
        history.append(found.log_likelihood)
        if len(history) > 1 and history[-1] - history[-2] < tol:
            break
    return model, history


def with_jacobian(model: GaussianParameters, basis: Floats, center: Floats) -> GaussianParameters:
    """Model of ``x`` whose ``(x - center) @ basis`` follows `model`, with full covariances.

    Its log likelihood is that of `model` plus ``log |det basis|`` per frame.
    """
    back = np.linalg.inv(basis)
    full = model.covars
    if full.ndim == 2:
        full = full[:, :, None] * np.eye(full.shape[1])
    return replace(
        model,
        means=model.means @ back + center,
        covars=np.einsum("ji,sjk,kl->sil", back, full, back),
    )


def _normalized(counts: Floats, before: Floats) -> Floats:
    """Counts as probabilities along the last axis; a row without counts stays as before."""
    counts = np.where(before == 0, 0.0, counts)
    total = counts.sum(axis=-1, keepdims=True)
    return np.where(total > 0, counts / np.where(total > 0, total, 1.0), before)


def _writable(*arrays: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
    """Copy what is read-only or strided: numba would compile the loops anew for it."""
    return tuple(np.require(array, requirements=["C", "W"]) for array in arrays)


def _jit(function: Any) -> Any:
    return numba.njit(cache=True, nogil=True, error_model="numpy")(function)


@_jit
def _log_sum(values):  # type: ignore[no-untyped-def]
    top = values.max()
    if top == -np.inf:
        return top
    return top + np.log(np.exp(values - top).sum())


@_jit
def _log_forward(log_b, log_start, log_trans):  # type: ignore[no-untyped-def]
    table = np.empty_like(log_b)
    table[0] = log_start + log_b[0]
    for t in range(1, len(log_b)):
        for j in range(log_b.shape[1]):
            table[t, j] = _log_sum(table[t - 1] + log_trans[:, j]) + log_b[t, j]
    return table


@_jit
def _log_backward(log_b, log_trans):  # type: ignore[no-untyped-def]
    table = np.zeros_like(log_b)
    for t in range(len(log_b) - 2, -1, -1):
        for i in range(log_b.shape[1]):
            table[t, i] = _log_sum(log_trans[i] + log_b[t + 1] + table[t + 1])
    return table


@_jit
def _log_forward_backward(log_b, startprob, transmat, posteriors, transitions):  # type: ignore[no-untyped-def]
    log_trans = np.log(transmat)
    forward = _log_forward(log_b, np.log(startprob), log_trans)
    backward = _log_backward(log_b, log_trans)
    total = _log_sum(forward[-1])
    posteriors[:] = np.exp(forward + backward - total)
    for t in range(len(log_b) - 1):
        for i in range(log_b.shape[1]):
            for j in range(log_b.shape[1]):
                transitions[i, j] += np.exp(
                    forward[t, i] + log_trans[i, j] + log_b[t + 1, j] + backward[t + 1, j] - total
                )
    return total


@_jit
def _longest(offsets):  # type: ignore[no-untyped-def]
    longest = 0
    for song in range(len(offsets) - 1):
        longest = max(longest, offsets[song + 1] - offsets[song])
    return longest


@_jit
def _scaled_forward(log_b, startprob, transmat, b, alpha, scales):  # type: ignore[no-untyped-def]
    """Fill densities, shares and scales of one song; its log likelihood, NaN if a share is lost."""
    n_states = len(startprob)
    total = 0.0
    for t in range(len(log_b)):
        top = log_b[t].max()
        scale = 0.0
        for j in range(n_states):
            reached = startprob[j]
            if t > 0:
                reached = 0.0
                for i in range(n_states):
                    reached += alpha[t - 1, i] * transmat[i, j]
            b[t, j] = np.exp(log_b[t, j] - top)
            alpha[t, j] = reached * b[t, j]
            # A state whose share underflows may be the one that later frames need.
            if reached > 0 and alpha[t, j] < _TINY:
                return np.nan
            scale += alpha[t, j]
        if scale < _TINY:
            return np.nan
        for j in range(n_states):
            alpha[t, j] /= scale
        scales[t] = scale
        total += np.log(scale) + top
    return total


@_jit
def _scaled_backward(transmat, b, alpha, scales, posteriors, transitions):  # type: ignore[no-untyped-def]
    """Fill the posteriors of one song, and add its expected transitions."""
    n, n_states = posteriors.shape
    beta = np.ones(n_states)
    weighted = np.empty(n_states)
    posteriors[n - 1] = alpha[n - 1]
    for t in range(n - 2, -1, -1):
        for j in range(n_states):
            weighted[j] = b[t + 1, j] * beta[j] / scales[t + 1]
        for i in range(n_states):
            back = 0.0
            if alpha[t, i] > 0:  # out of reach, what follows may be beyond all floats
                for j in range(n_states):
                    step = transmat[i, j] * weighted[j]
                    back += step
                    transitions[i, j] += alpha[t, i] * step
            beta[i] = back
            posteriors[t, i] = alpha[t, i] * back


@_jit
def _forward(log_b, offsets, startprob, transmat):  # type: ignore[no-untyped-def]
    """Log likelihood of each song."""
    out = np.empty(len(offsets) - 1)
    longest = _longest(offsets)
    b = np.empty((longest, len(startprob)))
    alpha = np.empty((longest, len(startprob)))
    scales = np.empty(longest)
    for song in range(len(out)):
        mine = log_b[offsets[song] : offsets[song + 1]]
        out[song] = _scaled_forward(mine, startprob, transmat, b, alpha, scales)
        if np.isnan(out[song]):
            out[song] = _log_sum(_log_forward(mine, np.log(startprob), np.log(transmat))[-1])
    return out


@_jit
def _forward_backward(log_b, offsets, startprob, transmat, posteriors, transitions):  # type: ignore[no-untyped-def]
    """Fill posteriors, add to transitions, return the log likelihood of all songs."""
    longest = _longest(offsets)
    b = np.empty((longest, len(startprob)))
    alpha = np.empty((longest, len(startprob)))
    scales = np.empty(longest)
    total = 0.0
    for song in range(len(offsets) - 1):
        first, end = offsets[song], offsets[song + 1]
        found = _scaled_forward(log_b[first:end], startprob, transmat, b, alpha, scales)
        if np.isnan(found):
            found = _log_forward_backward(
                log_b[first:end], startprob, transmat, posteriors[first:end], transitions
            )
        else:
            _scaled_backward(transmat, b, alpha, scales, posteriors[first:end], transitions)
        total += found
    return total
