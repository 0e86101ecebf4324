"""Gaussian hidden Markov models over many songs: likelihood, posteriors, EM.

Conventions
-----------
``frames`` has shape (n_frames, n_features), float64; song i has rows
``offsets[i]:offsets[i + 1]``, at least one. ``covars`` has shape (n_states, n_features) for
diagonal and (n_states, n_features, n_features) for full covariances. Likelihoods are in nats.

A log density is linear in the *monomials* 1, x and x^2 (for full covariances, all products) of a
frame, so that those of all states and frames are one matrix product, and so are the sums that the
M-step needs. The recursions are those of [1]_, scaled frame by frame, over songs side by side.
Where scaling underflows, because a left-right model forbids the only states that explain a frame,
or where monomials would cancel, the song is done again in log space.

References
----------
.. [1] L. R. Rabiner, "A tutorial on hidden Markov models and selected applications in speech
   recognition", Proceedings of the IEEE 77(2), 1989.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, reduce
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt

from seqagg.kernels.hmm_loops import (
    Rows,
    log_forward,
    log_forward_backward,
    log_sum,
    run_backward,
    run_forward,
)
from seqagg.kernels.packing import Pack, gather, pack_songs
from seqagg.threads import count_threads

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_LOG_2PI = float(np.log(2 * np.pi))

_SONGS = 128
"""Songs side by side: enough for long loops."""

_WINDOW = 384
"""Frames whose densities are computed at a time, so that they stay in the processor's cache: three
steps of most packs. (Of four, the doubles of a row fill a page, and those of all rows have the same
places in the cache.)
"""


@dataclass(frozen=True)
class _Precision:
    """What numbers of a type can hold.

    A share below `tiny` is lost. It does not matter where every state can be entered from every
    other with a chance of `mixing`, and the shares of a frame sum to that before scaling: the next
    step would drown it. Where means are further than `far` from the center, in squared standard
    deviations, the monomials cancel, and leave fewer digits than the type could give.
    """

    tiny: float
    mixing: float
    far: float


_DOUBLE = np.dtype(np.float64)

_PRECISION = {
    np.dtype(np.float32): _Precision(tiny=1e-36, mixing=1e-12, far=1e3),
    _DOUBLE: _Precision(tiny=1e-280, mixing=1e-100, far=1e8),
}


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
    """What the E-step hands to the M-step: sums over frames, which add up over songs."""

    log_likelihood: float
    start: Floats  # (n_states,) expected number of songs that start there
    transitions: Floats  # (n_states, n_states) expected number of transitions
    moments: Floats  # (n_states, n_monomials) expected monomials of the frames less the center
    center: Floats  # (n_features,)

    def __add__(self, other: Expectations) -> Expectations:
        """Sum over both sets of songs, by one model and about one center."""
        return Expectations(
            self.log_likelihood + other.log_likelihood,
            self.start + other.start,
            self.transitions + other.transitions,
            self.moments + other.moments,
            self.center,
        )


@cache
def _upper(n: int) -> tuple[Ints, Ints]:
    """Row and column of each product of two features, in the order of the monomials."""
    return np.triu_indices(n)


@cache
def _place_in_upper(n: int) -> Ints:
    """Place of each product among the monomials, shape (n, n)."""
    place = np.empty((n, n), dtype=np.int64)
    first, second = _upper(n)
    place[first, second] = place[second, first] = np.arange(len(first))
    return place


def density_weights(means: Floats, covars: Floats, center: Floats) -> tuple[Floats, float]:
    """What the monomials of centred frames weigh in the log density of each state.

    Returns
    -------
    weights : ndarray of shape (n_states, n_monomials)
    farthest : float
        Largest squared distance of a state from the center, in its own standard deviations.
    """
    means = means - center
    n = means.shape[1]
    if covars.ndim == 2:
        precision = 1 / covars
        linear, square = means * precision, -0.5 * precision
        log_determinant = np.log(covars).sum(axis=1)
    else:
        inverse_root = np.linalg.inv(np.linalg.cholesky(covars))
        precision = inverse_root.swapaxes(1, 2) @ inverse_root
        linear = (precision @ means[:, :, None])[:, :, 0]
        first, second = _upper(n)
        square = -np.where(first == second, 0.5, 1.0) * precision[:, first, second]
        log_determinant = -2 * np.log(np.diagonal(inverse_root, axis1=1, axis2=2)).sum(axis=1)
    distance = (means * linear).sum(axis=1)
    constant = -0.5 * (n * _LOG_2PI + log_determinant + distance)
    return np.hstack([constant[:, None], linear, square]), float(distance.max())


def log_density(frames: Floats, means: Floats, covars: Floats) -> Floats:
    """Log density of each frame under each state, shape (n_frames, n_states).

    Slower than by monomials, and exact wherever the states are.
    """
    n_features = means.shape[1]
    out = np.empty((len(frames), len(means)))
    for state, (mean, covar) in enumerate(zip(means, covars, strict=True)):
        if covar.ndim == 1:
            white = (frames - mean) / np.sqrt(covar)
            log_determinant = np.log(covar).sum()
        else:
            inverse = np.linalg.inv(np.linalg.cholesky(covar))
            white = (frames - mean) @ inverse.T
            log_determinant = -2 * np.log(np.diagonal(inverse)).sum()
        out[:, state] = -0.5 * (
            n_features * _LOG_2PI + log_determinant + np.einsum("ij,ij->i", white, white)
        )
    return out


def log_likelihoods(
    frames: Floats,
    offsets: Ints,
    models: Sequence[GaussianParameters],
    dtype: npt.DTypeLike = np.float64,
    n_jobs: int | None = None,
) -> Floats:
    """Log likelihood of each song under each model.

    Parameters
    ----------
    frames : ndarray of shape (n_frames, n_features)
    offsets : ndarray of int, shape (n_songs + 1,)
    models : sequence of GaussianParameters
        All with diagonal or all with full covariances; numbers of states may differ.
    dtype : float32 or float64
        What is computed in. A song that float32 cannot hold is done in float64.
    n_jobs : int, optional
        Threads, as joblib counts them. The answer does not depend on it.

    Returns
    -------
    ndarray of float64, shape (n_songs, n_models)
    """
    center = np.concatenate([model.means for model in models]).mean(axis=0)
    rows = _rows(models, center, np.dtype(dtype))
    out = np.empty((len(offsets) - 1, len(models)))
    lost = np.zeros(out.shape, dtype=bool)

    def score(pack: Pack) -> None:
        x = _gathered(pack, frames, center.astype(dtype))
        places = (pack.starts, pack.windows, pack.widest)
        total, product, gone, *_ = run_forward(x, *places, rows, False)
        out[pack.songs], lost[pack.songs] = (total + np.log(product)).T, gone.T

    packs = _packs(offsets)
    n = max(1, min(count_threads(n_jobs), len(packs)))
    with ThreadPoolExecutor(n) as pool:  # joblib's takes 5 ms to begin, as long as 400 songs
        list(pool.map(score, packs))
    again = np.flatnonzero(lost.any(axis=1))
    if len(again) and np.dtype(dtype) == np.float32:
        mine = [frames[offsets[i] : offsets[i + 1]] for i in again]
        ends = np.cumsum([0, *map(len, mine)])
        out[again] = log_likelihoods(np.concatenate(mine), ends, models, n_jobs=n_jobs)
        return out
    for i in again:
        for m in np.flatnonzero(lost[i]):
            out[i, m] = _log_space_likelihood(frames[offsets[i] : offsets[i + 1]], models[int(m)])
    return out


def _rows(models: Sequence[GaussianParameters], center: Floats, dtype: np.dtype[Any]) -> Rows:
    """What the compiled loops need of models. All songs are lost if the monomials would cancel."""
    precision = _PRECISION[dtype]
    n_states = [model.n_states for model in models]
    first = np.cumsum([0, *n_states])
    transmat = np.zeros((first[-1], max(n_states)), dtype)
    for begin, model in zip(first, models, strict=False):
        transmat[begin : begin + model.n_states, : model.n_states] = model.transmat
    startprob, means, covars = (
        np.concatenate([getattr(model, name) for model in models])
        for name in ("startprob", "means", "covars")
    )
    found, farthest = density_weights(means, covars, center)
    # Of an odd number of rows, BLAS takes up to three times as long as of the next even one.
    weights = np.zeros((len(found) + len(found) % 2, found.shape[1]), dtype)
    weights[: len(found)] = found
    cancel = farthest > precision.far
    return Rows(
        weights=weights,
        full=covars.ndim == 3,
        first=first,
        startprob=startprob.astype(dtype),
        transmat=transmat,
        watched=np.array([model.transmat.min() < precision.mixing for model in models]),
        tiny=dtype.type(np.inf if cancel else precision.tiny),
        mixing=dtype.type(np.inf if cancel else precision.mixing),
    )


def _log_space_likelihood(frames: Floats, model: GaussianParameters) -> float:
    log_b = log_density(frames, model.means, model.covars)
    with np.errstate(divide="ignore"):
        table = log_forward(log_b, np.log(model.startprob), np.log(model.transmat))
    return float(log_sum(table[-1]))


def expectations(
    frames: Floats, offsets: Ints, model: GaussianParameters, center: Floats | None = None
) -> Expectations:
    """E-step: expected starts, transitions and moments given the songs.

    Parameters
    ----------
    frames : ndarray of shape (n_frames, n_features)
    offsets : ndarray of int, shape (n_songs + 1,)
    model : GaussianParameters
    center : ndarray of shape (n_features,), optional
        About which moments are taken; the mean frame by default. Near the frames, or the
        M-step's differences lose digits.
    """
    center = frames.mean(axis=0) if center is None else center
    return _expect(_gathered_packs(frames, offsets, center), model, center)


def posteriors(frames: Floats, offsets: Ints, model: GaussianParameters) -> Floats:
    """Probability of each state in each frame given its song, shape (n_frames, n_states)."""
    center = frames.mean(axis=0)
    rows = _rows([model], center, _DOUBLE)
    out = np.empty((len(frames), model.n_states))
    # In one window, the first, of which posteriors are kept.
    for pack in pack_songs(offsets[:-1], np.diff(offsets), _SONGS, len(frames)):
        x = _gathered(pack, frames, center)
        _, states, lost = _both_ways(pack, x, rows, center)
        for place, first in enumerate(pack.first):
            mine = pack.columns(place)
            if lost[place]:
                _, states[:, mine] = _log_space_expectations(x[:, mine], model, center)
            out[first : first + len(mine)] = states[:, mine].T
    return out


def _packs(offsets: Ints) -> list[Pack]:
    return pack_songs(offsets[:-1], np.diff(offsets), _SONGS, _WINDOW)


def _gathered(pack: Pack, frames: Floats, center: Floats) -> Floats:
    """Frames of a pack less the center, shape (n_features, n_columns)."""
    x = np.empty((len(center), pack.starts[-1]), center.dtype)
    gather(frames, pack.first, 1, pack.starts, center, x)
    return x


def _gathered_packs(frames: Floats, offsets: Ints, center: Floats) -> list[tuple[Pack, Floats]]:
    """All packs and their frames less the center.

    They share one array: memory for many comes from the system page by page, which takes longer
    than to fill it.
    """
    packs = _packs(offsets)
    ends = np.cumsum([len(center) * pack.starts[-1] for pack in packs])
    rooms = np.split(np.empty(ends[-1]), ends[:-1])
    packed = [(pack, x.reshape(len(center), -1)) for pack, x in zip(packs, rooms, strict=True)]
    for pack, x in packed:
        gather(frames, pack.first, 1, pack.starts, center, x)
    return packed


def _expect(
    packed: list[tuple[Pack, Floats]], model: GaussianParameters, center: Floats
) -> Expectations:
    """Expectations given all songs, packed and gathered."""
    rows = _rows([model], center, _DOUBLE)
    parts = []
    for pack, x in packed:
        found, _, lost = _both_ways(pack, x, rows, center)
        parts.append(found)
        for place in np.flatnonzero(lost):
            mine = x[:, pack.columns(int(place))]
            parts.append(_log_space_expectations(mine, model, center)[0])
    return reduce(add, parts)


def _both_ways(
    pack: Pack, x: Floats, rows: Rows, center: Floats
) -> tuple[Expectations, Floats, npt.NDArray[np.bool_]]:
    """Expectations of the songs that scaling did not lose.

    Returns
    -------
    expectations : Expectations
    posteriors : ndarray of shape (n_states, columns of the first window)
    lost : ndarray of bool, shape (n_songs,)
    """
    places = (pack.starts, pack.windows, pack.widest)
    total, product, lost, *found = run_forward(x, *places, rows, True)
    flat, transitions, moments = run_backward(x, *places, rows, lost, *found)
    n_states, n = len(rows.startprob), pack.starts[pack.windows[1]]
    states = flat[: n_states * n].reshape(n_states, n)
    start = states[:, : len(pack.songs)].sum(axis=1)
    likelihood = (total + np.log(product))[~lost].sum()
    return Expectations(float(likelihood), start, transitions, moments, center), states, lost[0]


def _log_space_expectations(
    x: Floats, model: GaussianParameters, center: Floats
) -> tuple[Expectations, Floats]:
    """Expectations and posteriors of one song, of frames less the center (n_features, n_frames)."""
    log_b = log_density(x.T + center, model.means, model.covars)
    states, transitions = np.empty_like(log_b), np.zeros_like(model.transmat)
    total = log_forward_backward(log_b, model.startprob, model.transmat, states, transitions)
    squares = x * x
    if model.covars.ndim == 3:
        first, second = _upper(len(x))
        squares = x[first] * x[second]
    moments = (np.vstack([np.ones(len(log_b)), x, squares]) @ states).T
    return Expectations(float(total), states[0], transitions, moments, center), states.T


def maximize(
    found: Expectations, model: GaussianParameters, shrinkage: float
) -> GaussianParameters:
    """M-step, by hmmlearn's formulas.

    Parameters
    ----------
    found : Expectations
    model : GaussianParameters
        Transitions and starts that are zero in it stay forbidden.
    shrinkage : float
        Covariances are drawn towards the identity as if this many more frames had it: hmmlearn's
        ``covars_prior=shrinkage`` (times the identity if full) with
        ``covars_weight=shrinkage + 1`` (diagonal) or ``shrinkage + n_features`` (full).
    """
    n = len(found.center)
    weight, first, second = (
        found.moments[:, 0],
        found.moments[:, 1 : n + 1],
        found.moments[:, n + 1 :],
    )
    alive = weight > 1e-10
    offset = first / np.where(alive, weight, 1.0)[:, None]
    if model.covars.ndim == 2:
        spread = np.maximum(second - first * offset, 0)
        covars = (shrinkage + spread) / (shrinkage + weight)[:, None]
    else:
        spread = second[:, _place_in_upper(n)] - first[:, :, None] * offset[:, None, :]
        covars = (shrinkage * np.eye(n) + spread) / (shrinkage + weight)[:, None, None]
    means = found.center + offset
    if not alive.all():  # a state that no frame is in keeps its place rather than becoming NaN
        means[~alive], covars[~alive] = model.means[~alive], model.covars[~alive]
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
    center = frames.mean(axis=0)
    packed = _gathered_packs(frames, offsets, center)
    history: list[float] = []
    for _ in range(n_iter):
        found = _expect(packed, model, center)
        model = maximize(found, model, shrinkage)
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
    counts = np.where(before > 0, counts, 0.0)
    total = counts.sum(axis=-1, keepdims=True)
    return np.asarray(np.divide(counts, total, out=before.copy(), where=total > 0))
