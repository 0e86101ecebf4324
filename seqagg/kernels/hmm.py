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
the song is done again in log space.

References
----------
.. [1] L. R. Rabiner, "A tutorial on hidden Markov models and selected applications in speech
   recognition", Proceedings of the IEEE 77(2), 1989.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from joblib import effective_n_jobs

from seqagg.kernels.hmm_loops import (
    add_steps,
    add_transitions,
    backward,
    densities,
    fill_monomials,
    forward,
    gather,
    log_forward,
    log_forward_backward,
    log_sum,
    moments,
    subtract_top,
)
from seqagg.kernels.packing import Pack, pack_songs

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_LOG_2PI = float(np.log(2 * np.pi))

_SCORED_SONGS, _LEARNT_SONGS = 512, 128
"""Songs side by side: enough for long loops. EM keeps all their frames at hand, scoring a few."""

_WINDOW_CELLS = 1 << 17
"""Densities computed at a time when scoring, states times frames."""

_FEW_ROWS = 16
"""Up to so many, sums over monomials beat a matrix product."""


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


def density_weights(model: GaussianParameters, center: Floats) -> tuple[Floats, float]:
    """What the monomials of centred frames weigh in the log density of each state.

    Returns
    -------
    weights : ndarray of shape (n_states, n_monomials)
    farthest : float
        Largest squared distance of a state from the center, in its own standard deviations.
    """
    means = model.means - center
    n = means.shape[1]
    if model.covars.ndim == 2:
        precision = 1 / model.covars
        linear, square = means * precision, -0.5 * precision
        log_determinant = np.log(model.covars).sum(axis=1)
    else:
        inverse_root = np.linalg.inv(np.linalg.cholesky(model.covars))
        precision = inverse_root.swapaxes(1, 2) @ inverse_root
        linear = (precision @ means[:, :, None])[:, :, 0]
        first, second = np.triu_indices(n)
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
    rows = _Rows.of(models, np.dtype(dtype))
    if rows.cancel:
        rows = _Rows.of(models, _DOUBLE)
    out = np.empty((len(offsets) - 1, len(models)))
    lost = np.zeros(out.shape, dtype=bool)
    packs = pack_songs(offsets, _SCORED_SONGS)

    def score(mine: list[Pack]) -> None:
        own = replace(rows, memory=_Memory(rows.dtype))
        for pack in mine:
            out[pack.songs], lost[pack.songs] = _score_pack(frames, pack, own)

    n = max(1, min(effective_n_jobs(n_jobs), len(packs)))
    with ThreadPoolExecutor(n) as pool:  # joblib's takes 5 ms to begin, as long as 300 songs
        list(pool.map(score, [packs[i::n] for i in range(n)]))
    again = np.flatnonzero(lost.any(axis=1))
    if len(again) and rows.dtype == np.float32:
        mine = [frames[offsets[i] : offsets[i + 1]] for i in again]
        ends = np.cumsum([0, *map(len, mine)])
        out[again] = log_likelihoods(np.concatenate(mine), ends, models, n_jobs=n_jobs)
        return out
    for i in again:
        for m in np.flatnonzero(lost[i]):
            out[i, m] = _log_space_likelihood(frames[offsets[i] : offsets[i + 1]], models[int(m)])
    return out


class _Memory:
    """Arrays by name, their memory used again: to get fresh pages takes as long as to fill them."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self._flat: dict[str, Floats] = {}

    def array(self, name: str, n_rows: int, n_columns: int) -> Floats:
        """Array that holds anything, valid until the name is asked for again."""
        size = n_rows * n_columns
        if name not in self._flat or self._flat[name].size < size:
            self._flat[name] = np.empty(size, self.dtype)
        return self._flat[name][:size].reshape(n_rows, n_columns)


@dataclass(frozen=True)
class _Rows:
    """The states of several models, one below the other."""

    models: Sequence[GaussianParameters]
    dtype: np.dtype[Any]
    center: Floats  # (n_features,)
    weights: Floats  # (n_rows, n_monomials) of the densities
    first: Ints  # (n_models + 1,) where the rows of each model start
    startprob: Floats  # (n_rows,)
    transmat: Floats  # (n_rows, most states of a model)
    watched: npt.NDArray[np.bool_]  # (n_models,) whether a state's share must not underflow
    cancel: bool  # whether the monomials would, and take too many digits with them
    memory: _Memory

    @property
    def full(self) -> bool:
        """Whether covariances are full."""
        return self.models[0].covars.ndim == 3

    @classmethod
    def of(
        cls,
        models: Sequence[GaussianParameters],
        dtype: np.dtype[Any],
        center: Floats | None = None,
        memory: _Memory | None = None,
    ) -> _Rows:
        if center is None:
            center = np.concatenate([model.means for model in models]).mean(axis=0)
        precision = _PRECISION[dtype]
        n_states = [model.n_states for model in models]
        transmat = np.zeros((sum(n_states), max(n_states)), dtype)
        first = np.concatenate([[0], np.cumsum(n_states)])
        for begin, model in zip(first, models, strict=False):
            transmat[begin : begin + model.n_states, : model.n_states] = model.transmat
        weights, farthest = zip(*(density_weights(model, center) for model in models), strict=True)
        return cls(
            models=models,
            dtype=dtype,
            center=center,
            weights=np.concatenate(weights).astype(dtype),
            first=first,
            startprob=np.concatenate([model.startprob for model in models]).astype(dtype),
            transmat=transmat,
            watched=np.array([model.transmat.min() < precision.mixing for model in models]),
            cancel=max(farthest) > precision.far,
            memory=memory or _Memory(dtype),
        )

    def log_density(self, x: Floats) -> Floats:
        """Log density of centred columns, shape (n_features, n_columns), under each row."""
        if self.cancel:
            frames = x.T + self.center
            found = [log_density(frames, model.means, model.covars).T for model in self.models]
            return np.concatenate(found)
        n_rows, n_monomials = self.weights.shape
        out = self.memory.array("b", n_rows, x.shape[1])
        if n_rows <= _FEW_ROWS:
            densities(x, self.weights, self.full, out)
            return out
        monomials = self.memory.array("monomials", n_monomials, x.shape[1])
        fill_monomials(x, 0, x.shape[1], self.full, monomials)
        return np.matmul(self.weights, monomials, out=out)

    def forward(self, pack: Pack, steps: tuple[int, int], b: Floats, before: Floats) -> _Ahead:
        """Run forward over some steps of a pack, from their log densities, which become `b`."""
        starts = pack.starts[steps[0] : steps[1] + 1]
        n_models, precision = len(self.models), _PRECISION[self.dtype]
        top = self.memory.array("top", n_models, b.shape[1])
        subtract_top(b, self.first, top)
        np.exp(b, out=b)
        alpha = self.memory.array("alpha", *b.shape)
        scales = self.memory.array("scales", *top.shape)
        lost = np.zeros((n_models, starts[1] - starts[0]), dtype=bool)
        forward(
            b,
            starts - starts[0],
            self.first,
            self.startprob,
            self.transmat,
            self.watched,
            self.dtype.type(precision.tiny),
            self.dtype.type(precision.mixing),
            before,
            alpha,
            scales,
            lost,
        )
        logs = np.log(scales, out=self.memory.array("logs", *top.shape))
        logs += top
        return _Ahead(alpha, scales, lost, add_steps(logs, starts - starts[0]))


@dataclass(frozen=True)
class _Ahead:
    """What a run of the forward recursion found."""

    alpha: Floats  # (n_rows, n_columns) shares of the states
    scales: Floats  # (n_models, n_columns)
    lost: npt.NDArray[np.bool_]  # (n_models, n_songs) songs that scaling lost
    log_likelihood: Floats  # (n_models, n_songs) of the steps of the run


def _score_pack(frames: Floats, pack: Pack, rows: _Rows) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Log likelihoods of packed songs, and which of them scaling lost, (n_songs, n_models) both."""
    total = np.zeros((len(rows.models), len(pack.songs)))
    lost = np.zeros(total.shape, dtype=bool)
    before = np.empty((len(rows.weights), 0), rows.dtype)
    for first, end in pack.windows(_WINDOW_CELLS // len(rows.weights)):
        starts = pack.starts[first : end + 1]
        x = rows.memory.array("x", len(rows.center), int(starts[-1] - starts[0]))
        gather(frames, pack.rows[starts[0] : starts[-1]], starts - starts[0], rows.center, x)
        b = rows.log_density(x)
        ahead = rows.forward(pack, (first, end), b, before)
        n_songs = starts[1] - starts[0]
        total[:, :n_songs] += ahead.log_likelihood
        lost[:, :n_songs] |= ahead.lost
        before = ahead.alpha[:, starts[-2] - starts[0] :].copy()
    return total.T, lost.T


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
    packed = _pack_columns(frames, offsets, center)
    return _expect(packed, center, model, _Memory(_DOUBLE))


def posteriors(frames: Floats, offsets: Ints, model: GaussianParameters) -> Floats:
    """Probability of each state in each frame given its song, shape (n_frames, n_states)."""
    center = frames.mean(axis=0)
    rows = _Rows.of([model], _DOUBLE, center)
    out = np.empty((len(frames), model.n_states))
    for pack, x in _pack_columns(frames, offsets, center):
        out[pack.rows] = _both_ways(pack, x, rows, np.zeros_like(model.transmat))[1].T
    return out


_Packed = list[tuple[Pack, Floats]]


def _pack_columns(frames: Floats, offsets: Ints, center: Floats) -> _Packed:
    """Packs of songs, and their frames less the center, shape (n_features, n_columns)."""
    packed = []
    for pack in pack_songs(offsets, _LEARNT_SONGS):
        x = np.empty((len(center), len(pack.rows)))
        gather(frames, pack.rows, pack.starts, center, x)
        packed.append((pack, x))
    return packed


def _expect(
    packed: _Packed, center: Floats, model: GaussianParameters, memory: _Memory
) -> Expectations:
    rows = _Rows.of([model], _DOUBLE, center, memory)
    start = np.zeros_like(model.startprob)
    transitions, expected = np.zeros_like(model.transmat), np.zeros_like(rows.weights)
    total = 0.0
    for pack, x in packed:
        found, states = _both_ways(pack, x, rows, transitions)
        total += found
        start += states[:, : pack.starts[1]].sum(axis=1)
        moments(x, states, rows.full, expected)
    return Expectations(total, start, transitions, expected, center)


def _both_ways(pack: Pack, x: Floats, rows: _Rows, transitions: Floats) -> tuple[float, Floats]:
    """Log likelihood of packed songs, and posteriors of their states; adds their transitions.

    Parameters
    ----------
    pack : Pack
    x : ndarray of shape (n_features, n_columns)
    rows : _Rows
        Of one model.
    transitions : ndarray of shape (n_states, n_states)
        Expected transitions are added to it.

    Returns
    -------
    log_likelihood : float
    states : ndarray of shape (n_states, n_columns)
    """
    (model,) = rows.models
    b = rows.log_density(x)
    ahead = rows.forward(pack, (0, pack.n_steps), b, np.empty((model.n_states, 0)))
    states, previous = ahead.alpha, rows.memory.array("previous", *b.shape)
    backward(b, pack.starts, rows.transmat, ahead.scales, states, previous)
    total, lost = ahead.log_likelihood[0], ahead.lost[0]
    if lost.any():
        song_of_column = pack.song_of_column()
        gone = lost[song_of_column]
        previous[:, gone], b[:, gone] = 0, 0
        for c in np.flatnonzero(lost):
            mine = np.flatnonzero(song_of_column == c)
            log_b = log_density(x[:, mine].T + rows.center, model.means, model.covars)
            found = np.empty_like(log_b)
            total[c] = log_forward_backward(
                log_b, model.startprob, model.transmat, found, transitions
            )
            states[:, mine] = found.T
    add_transitions(previous, b, rows.transmat, transitions)
    return float(total.sum()), states


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
    weight, first, second = np.split(found.moments, [1, n + 1], axis=1)
    # A state that no frame is in keeps its place rather than becoming NaN.
    alive = weight[:, 0] > 1e-10
    offset = first / np.where(alive[:, None], weight, 1.0)
    if model.covars.ndim == 2:
        spread = np.maximum(second - first * offset, 0)
        covars = (shrinkage + spread) / (shrinkage + weight)
    else:
        spread = np.empty_like(model.covars)
        upper = np.triu_indices(n)
        spread[:, upper[0], upper[1]] = spread[:, upper[1], upper[0]] = second
        spread -= first[:, :, None] * offset[:, None, :]
        covars = (shrinkage * np.eye(n) + spread) / (shrinkage + weight)[:, :, None]
    return GaussianParameters(
        startprob=_normalized(found.start, model.startprob),
        transmat=_normalized(found.transitions, model.transmat),
        means=np.where(alive[:, None], found.center + offset, model.means),
        covars=np.where(alive.reshape(-1, *[1] * (covars.ndim - 1)), covars, model.covars),
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
    packed, memory = _pack_columns(frames, offsets, center), _Memory(_DOUBLE)
    history: list[float] = []
    for _ in range(n_iter):
        found = _expect(packed, center, model, memory)
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
    counts = np.where(before == 0, 0.0, counts)
    total = counts.sum(axis=-1, keepdims=True)
    return np.where(total > 0, counts / np.where(total > 0, total, 1.0), before)
