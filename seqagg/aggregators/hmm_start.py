"""Where EM begins: frames whitened within classes, and a first model of them.

Conventions
-----------
``(x - center) @ basis`` has the identity as its covariance within classes; of songs with several
labels each, about what their labels add up to. Starting models have
unit covariances there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seqagg.kernels.hmm import GaussianParameters
from seqagg.kernels.segments import segment_mean, segment_sum
from seqagg.songs import Songs

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MOST_ROTATED = 256
"""Columns up to which covariances between them are taken into account."""

_EIGENVALUE_FLOOR = 1e-2
"""Smallest eigenvalue of the columns' correlation that whitening stretches to 1."""

_KMEANS_FRAMES = 2000
_KMEANS_ROUNDS = 10


@dataclass(frozen=True)
class Shape:
    """What a class's HMM looks like before it is fitted."""

    n_states: int
    covariance_type: str
    topology: str

    def __str__(self) -> str:
        return f"{self.n_states} {self.covariance_type} {self.topology} states"


@dataclass(frozen=True)
class Whitening:
    """Linear map to whitened frames; of many columns, each by itself."""

    center: Floats  # (n_columns,)
    basis: Floats  # (n_columns, n_columns), or (n_columns,) beyond MOST_ROTATED

    def __call__(self, songs: Songs) -> Floats:
        """Whiten all frames, shape (n_frames, n_columns)."""
        centered = songs.values - self.center
        return np.asarray(centered * self.basis if self.basis.ndim == 1 else centered @ self.basis)


def whiten_within(songs: Songs, y: Ints) -> Whitening:
    """Basis in which frames have the identity as their covariance within classes."""
    expected = _sums_of_labels(songs, y) if y.ndim == 2 else _means_of_classes(songs, y)
    residual = songs.values - np.repeat(expected, songs.lengths, axis=0)
    if residual.shape[1] > MOST_ROTATED:
        spread = np.sqrt(np.maximum((residual**2).mean(axis=0), 1e-6))
        return Whitening(songs.values.mean(axis=0, dtype=np.float64), 1 / spread)
    covariance = residual.T @ residual / len(residual)
    spread = np.sqrt(np.maximum(np.diagonal(covariance), 1e-6))
    values, vectors = np.linalg.eigh(covariance / np.outer(spread, spread))
    basis = vectors / np.sqrt(np.maximum(values, _EIGENVALUE_FLOOR)) / spread[:, None]
    return Whitening(songs.values.mean(axis=0, dtype=np.float64), basis)


def _means_of_classes(songs: Songs, y: Ints) -> Floats:
    """Mean frame of each song's class, shape (n_songs, n_columns)."""
    member = (y == np.arange(y.max() + 1)[:, None]).astype(float)
    n_frames = np.maximum(member @ songs.lengths, 1)[:, None]
    return np.asarray((member @ segment_sum(songs.values, songs.offsets) / n_frames)[y])


def _sums_of_labels(songs: Songs, y: Ints) -> Floats:
    """Least-squares frame of each song as a sum over its labels, shape (n_songs, n_columns).

    With one label per song this is the mean frame of its class.
    """
    labels = np.hstack([np.ones((len(y), 1)), y])
    mean = segment_mean(songs.values, songs.offsets)
    weight = np.sqrt(songs.lengths)[:, None]
    per_label = np.linalg.lstsq(weight * labels, weight * mean)[0]
    return np.asarray(labels @ per_label)


def starting_model(
    frames: Floats, offsets: Ints, n_states: int, shape: Shape, rng: np.random.Generator
) -> GaussianParameters:
    """First model of a class's frames: states by k-means, or equal parts of the songs."""
    n_features = frames.shape[1]
    if shape.topology == "ergodic":
        means = _kmeans(frames, n_states, rng)
        startprob = np.full(n_states, 1 / n_states)
        leave = 0.3 / max(n_states - 1, 1)
        transmat = np.full((n_states, n_states), leave)
        np.fill_diagonal(transmat, 1 - leave * (n_states - 1))
    else:
        means = _means_of_parts(frames, offsets, n_states)
        startprob, transmat = _left_right(n_states, float(np.diff(offsets).mean()))
    covars = np.ones((n_states, n_features))
    if shape.covariance_type == "full":
        covars = np.tile(np.eye(n_features), (n_states, 1, 1))
    return GaussianParameters(startprob, transmat, means, covars)


def _kmeans(frames: Floats, n_clusters: int, rng: np.random.Generator) -> Floats:
    """Centres by k-means++ and a few rounds of Lloyd on a sample of the frames.

    EM refines them; scikit-learn's k-means took longer than all of EM.
    """
    if len(frames) > _KMEANS_FRAMES:
        frames = frames[rng.choice(len(frames), _KMEANS_FRAMES, replace=False)]
    columns = np.ascontiguousarray(frames.T)
    centres = kmeans_plusplus(frames, n_clusters, int(rng.integers(2**31)))
    for _ in range(_KMEANS_ROUNDS):
        # Up to a constant per frame. A row per cluster: NumPy compares long rows eight at a time.
        distance = (centres**2).sum(axis=1)[:, None] - 2 * (centres @ columns)
        member = distance.argmin(axis=0) == np.arange(n_clusters)[:, None]
        count = member.sum(axis=1)[:, None]
        centres = np.where(count > 0, member @ frames / np.maximum(count, 1), centres)
    return np.asarray(centres)


def kmeans_plusplus(frames: Floats, n_clusters: int, seed: int) -> Floats:
    """Frames far from each other, shape (n_clusters, n_features).

    Each is drawn with a chance that grows with the squared distance from those before it, the best
    of a few draws. scikit-learn's function of this name draws the same; most of its time goes into
    checks.
    """
    rng = np.random.RandomState(seed)
    n_draws = 2 + int(np.log(n_clusters))
    square = (frames**2).sum(axis=1)

    def distance(chosen: Ints) -> Floats:
        found = square + square[chosen, None] - 2 * (frames[chosen] @ frames.T)
        return np.asarray(np.maximum(found, 0))

    chosen = [rng.choice(len(frames), p=np.full(len(frames), 1 / len(frames)))]
    closest = distance(np.array(chosen))[0]
    while len(chosen) < n_clusters:
        at = rng.uniform(size=n_draws) * closest.sum()
        drawn = np.minimum(np.searchsorted(np.cumsum(closest), at), len(frames) - 1)
        closer = np.minimum(closest, distance(drawn))
        best = closer.sum(axis=1).argmin()
        closest = closer[best]
        chosen.append(drawn[best])
    return frames[chosen]


def _means_of_parts(frames: Floats, offsets: Ints, n_parts: int) -> Floats:
    """Mean frame of each of the equal parts that songs are cut into."""
    lengths = np.diff(offsets)
    place = np.arange(len(frames)) - np.repeat(offsets[:-1], lengths)
    part = (place + 0.5) / np.repeat(lengths, lengths) * n_parts
    member = np.eye(n_parts)[np.minimum(part.astype(int), n_parts - 1)]
    count = member.sum(axis=0)[:, None]
    everywhere = frames.mean(axis=0)
    means = np.where(count > 0, member.T @ frames / np.maximum(count, 1), everywhere)
    return np.asarray(means)


def _left_right(n_states: int, mean_length: float) -> tuple[Floats, Floats]:
    """Starts and transitions of states that run one way and skip at most one."""
    leave = min(0.9, n_states / max(mean_length, 1.0))
    transmat = (
        (1 - leave) * np.eye(n_states)
        + 0.8 * leave * np.eye(n_states, k=1)
        + 0.2 * leave * np.eye(n_states, k=2)
    )
    startprob = np.array([0.9, 0.1, *[0.0] * n_states])[:n_states]
    return startprob / startprob.sum(), transmat / transmat.sum(axis=1, keepdims=True)
