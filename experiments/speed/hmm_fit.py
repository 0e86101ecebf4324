"""How fast are hidden Markov models fitted?

Contest "hmm EM": iterations of EM from the same start, without a stopping rule, on the songs of one
class, against hmmlearn's two implementations; the answers are the log likelihoods before each
iteration. Contest "hmm fit": everything that makes one HMM per class, `HMMAggregator` with one
start and no folds against a `GaussianHMM` per class, each with its own k-means start and as many
iterations. hmmlearn gets the frames as seqagg whitens them, ready made: "diag" means diagonal
there. They end in different places: ``nats_per_frame`` is the log likelihood per training frame,
by hmmlearn's `score` for both, in the columns as they were. (seqagg draws covariances towards the
one within classes.)
"""  # noqa: D400

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from experiments.speed.contest import Array, Contest, Metrics, Sizes, Way, no_comparison
from experiments.speed.hmm import (
    COVARIANCES,
    N_CLASSES,
    N_COLUMNS,
    Data,
    random_model,
    sample,
    to_hmmlearn,
)
from seqagg import HMMAggregator, Songs
from seqagg.aggregators.hmm_start import whiten_within
from seqagg.kernels.hmm import GaussianParameters, fit_em

EM_ITER, N_ITER = 10, 20
"""Iterations of EM alone, all of which take the same time, and of a whole fit."""

EM_SHAPES = ((100, 3), (100, 8), (1_000, 3), (1_000, 8))
FIT_SHAPES = ((300, 3), (300, 8))
QUICK_SHAPES = ((2 * N_CLASSES, 2),)
"""Songs and states."""

_NO_TOLERANCE = -1e9
"""No iteration loses so much, so that all are run."""


def contests(quick: bool) -> Iterator[Contest]:
    """EM, then whole fits, for every number of songs and states."""
    for songs, n_states in QUICK_SHAPES if quick else EM_SHAPES:
        for covariance in COVARIANCES:
            yield em(songs, n_states, covariance)
    for songs, n_states in QUICK_SHAPES if quick else FIT_SHAPES:
        for covariance in COVARIANCES:
            yield whole_fit(songs, n_states, covariance)


def em(songs: int, n_states: int, covariance: str) -> Contest:
    """EM from one start."""
    rng = np.random.default_rng([songs, n_states])
    truth = random_model(n_states, covariance, rng)
    data = sample([truth], songs, rng)
    start = blurred(truth, rng)

    def ours() -> list[float]:
        found = fit_em(
            data.frames, data.offsets, start, shrinkage=1.0, n_iter=EM_ITER, tol=_NO_TOLERANCE
        )
        return found[1]

    ways = [Way("seqagg", ours, metrics=_last)]
    # The slower of its two is left out where it would take longer than all the rest.
    for implementation in ("scaling", "log") if songs < 1_000 else ("scaling",):
        name, run = f"hmmlearn {implementation}", em_by_hmmlearn(data, start, implementation)
        ways.append(Way(name, run, metrics=_last))
    frames = round(len(data.frames) / songs)
    return Contest("hmm EM", covariance, Sizes(songs, frames, N_COLUMNS, n_states), ways)


def blurred(model: GaussianParameters, rng: np.random.Generator) -> GaussianParameters:
    """Start that knows roughly where the states are."""
    n = model.n_states
    ones = np.ones((n, N_COLUMNS))
    return replace(
        model,
        startprob=np.full(n, 1 / n),
        transmat=np.full((n, n), 1 / n),
        means=model.means + rng.standard_normal(model.means.shape),
        covars=ones if model.covars.ndim == 2 else ones[:, :, None] * np.eye(N_COLUMNS),
    )


def em_by_hmmlearn(
    data: Data, start: GaussianParameters, implementation: str
) -> Callable[[], list[float]]:
    """EM by hmmlearn, with the prior that equals seqagg's shrinkage of 1."""
    full = start.covars.ndim == 3
    lengths = data.lengths

    def fit() -> list[float]:
        hmm = to_hmmlearn(
            start,
            covars_prior=np.eye(N_COLUMNS) if full else 1.0,
            covars_weight=1.0 + (N_COLUMNS if full else 1),
            n_iter=EM_ITER,
            tol=_NO_TOLERANCE,
            init_params="",
            implementation=implementation,
        )
        hmm.fit(data.frames, lengths)
        return [float(value) for value in hmm.monitor_.history]

    return fit


def _last(history: list[float]) -> Metrics:
    return {"log_likelihood": history[-1], "iterations": float(len(history))}


def whole_fit(songs: int, n_states: int, covariance: str) -> Contest:
    """A model per class, from songs to fitted models."""
    rng = np.random.default_rng([songs, n_states])
    models = [random_model(n_states, covariance, rng) for _ in range(N_CLASSES)]
    data = sample(models, songs, rng)
    data = Data(data.frames.astype(np.float32).astype(np.float64), data.offsets)
    classes = np.arange(songs) % N_CLASSES
    labelled = Songs(
        data.frames.astype(np.float32),
        data.offsets,
        columns=[f"column {k}" for k in range(N_COLUMNS)],
        labels=[f"class {k}" for k in classes],
    )
    whitening = whiten_within(labelled, classes)
    white = Data(whitening(labelled), data.offsets)
    stretch = float(np.linalg.slogdet(whitening.basis)[1])
    of_class = [np.flatnonzero(classes == k) for k in range(N_CLASSES)]
    plain, whitened = ([_songs_of(d, index) for index in of_class] for d in (data, white))

    def ours() -> list[Any]:
        model = HMMAggregator(
            n_states=n_states,
            covariance_type=covariance,  # type: ignore[arg-type]
            topology="ergodic",
            n_restarts=1,
            n_folds=1,
            n_iter=N_ITER,
            tol=_NO_TOLERANCE,
            n_jobs=1,
        )
        model.fit(labelled)
        return [model.hmms_[f"class {k}"] for k in range(N_CLASSES)]

    def likelihood(hmms: list[Any], songs_of: list[Data], more: float = 0.0) -> Metrics:
        total = sum(
            hmm.score(own.frames, own.lengths) for hmm, own in zip(hmms, songs_of, strict=True)
        )
        return {"nats_per_frame": total / len(data.frames) + more}

    ways = [
        Way("seqagg", ours, answer=_nothing, metrics=lambda hmms: likelihood(hmms, plain)),
        Way(
            "hmmlearn",
            lambda: models_by_hmmlearn(whitened, n_states, covariance),
            answer=_nothing,
            metrics=lambda hmms: likelihood(hmms, whitened, stretch),
        ),
    ]
    frames = round(len(data.frames) / songs)
    sizes = Sizes(songs, frames, N_COLUMNS, n_states)
    return Contest("hmm fit", covariance, sizes, ways, compare=no_comparison)


def models_by_hmmlearn(of_class: list[Data], n_states: int, covariance: str) -> list[Any]:
    """Fit a model to the songs of each class."""
    from hmmlearn.hmm import GaussianHMM

    return [
        GaussianHMM(
            n_states,
            covariance,
            n_iter=N_ITER,
            tol=_NO_TOLERANCE,
            implementation="scaling",
            random_state=0,
        ).fit(own.frames, own.lengths)
        for own in of_class
    ]


def _songs_of(data: Data, index: Array) -> Data:
    songs = [data.frames[data.offsets[i] : data.offsets[i + 1]] for i in index]
    return Data(np.concatenate(songs), np.cumsum([0, *map(len, songs)]))


def _nothing(_: Any) -> Array:
    return np.empty(0)
