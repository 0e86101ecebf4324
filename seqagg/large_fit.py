"""Fits to more songs than one machine holds.

Conventions
-----------
What has few numbers to find (shapes, bases, weights of a mix, temperatures) is found on a sample of
the songs, chosen by their ids alone, so that it does not depend on how they lie in files. The
states of HMMs are then fitted to all songs: in every iteration each part of the cache gives its
sums, `Expectations`, which are added up in the order of the parts: the EM of one process, to
rounding.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt

from seqagg.aggregators.hmm import HMMAggregator
from seqagg.cache import read_songs
from seqagg.engines import Engine, ray_cluster
from seqagg.errors import SongError
from seqagg.kernels.hmm import Expectations, GaussianParameters, expectations, maximize
from seqagg.manifest import Manifest
from seqagg.places import everywhere, place_of
from seqagg.progress import steps
from seqagg.scale import Part, make_parts
from seqagg.songs import Songs

Ints = npt.NDArray[np.int64]

SAMPLE = 200_000
"""Songs that are held at once: of 30 frames and 10 columns, 240 MB."""


@dataclass(frozen=True)
class _Source:
    cache: str
    split: str | None

    def songs(self, part: Part) -> Iterator[Songs]:
        """Songs of a part that have a label, of the split."""
        folder = place_of(self.cache)
        file = folder / part.file if folder.is_dir() else folder
        groups = None if part.groups is None else range(*part.groups)
        for songs in read_songs(file, groups):
            known = np.array([x is not None for x in _or_none(songs.labels, songs)], dtype=bool)
            if self.split is not None:
                known &= np.array([s == self.split for s in _or_none(songs.split, songs)])
            yield songs[known]


@dataclass(frozen=True)
class _Sampled:
    source: _Source
    share: float


@dataclass(frozen=True)
class _Models:
    source: _Source
    aggregator: HMMAggregator
    models: Mapping[int, GaussianParameters]


@dataclass(frozen=True)
class _Sums:
    """What a part says of the models."""

    expectations: Mapping[int, Expectations]
    n_frames: Mapping[int, int]
    counts: npt.NDArray[np.int64]  # songs of each class, canonical order
    n_songs: int


def sample_songs(
    cache: str | os.PathLike[str],
    manifest: Manifest,
    *,
    n_songs: int = SAMPLE,
    split: str | None = None,
    engine: Engine | None = None,
) -> Songs:
    """Some songs of a cache with labels, the same wherever they lie.

    Parameters
    ----------
    cache : path-like
        Folder of cache files, or one file; a path or a URL that every worker can read.
    manifest : Manifest
        Of the cache.
    n_songs : int
        About how many, if all had labels and were of the split.
    split : str, optional
        Only the songs of this split.
    engine : Engine, optional
        Who reads; this process by default.

    Raises
    ------
    SongError
        When there is none.
    """
    shared = _Sampled(
        _Source(everywhere(place_of(cache)), split), n_songs / max(manifest.n_songs, 1)
    )
    found = _in_order(engine or Engine(), _sample, shared, make_parts(place_of(cache), manifest))
    songs = Songs.concatenate([piece for pieces in found for piece in pieces])
    if len(songs) == 0:
        raise SongError("no song of the sample has a label")
    return songs


def fit_hmm_to_all(
    aggregator: HMMAggregator,
    cache: str | os.PathLike[str],
    manifest: Manifest,
    *,
    split: str | None = None,
    engine: Engine | None = None,
) -> list[float]:
    """Fit the models of an HMM aggregator, fitted to a sample, to all songs of a cache.

    Parameters
    ----------
    aggregator : HMMAggregator
        Changed in place: the models, and the class prior.
    cache, manifest, split, engine
        As for `sample_songs`.

    Returns
    -------
    list of float
        Log likelihood of all songs, in nats, before each M-step.

    Raises
    ------
    SongError
        Names a song whose label the sample does not have.
    """
    engine = engine or Engine()
    source, parts = (
        _Source(everywhere(place_of(cache)), split),
        make_parts(place_of(cache), manifest),
    )
    models, moving = dict(aggregator._models), set(aggregator._models)
    before: dict[int, float] = {}
    history: list[float] = []
    connected = ray_cluster(engine.jobs, engine.address) if engine.name == "ray" else nullcontext()
    with connected, steps("EM", aggregator.n_iter) as step:
        for _ in range(aggregator.n_iter):
            shared = _Models(source, aggregator, {k: models[k] for k in sorted(moving)})
            sums = _in_order(engine, _expect, shared, parts)
            for k in sorted(moving):
                mine = [part.expectations[k] for part in sums if k in part.expectations]
                total = reduce(add, mine)
                models[k] = maximize(total, models[k], aggregator.shrinkage)
                n_frames = sum(part.n_frames.get(k, 0) for part in sums)
                gain = total.log_likelihood - before.get(k, -np.inf)
                before[k] = total.log_likelihood
                if gain < aggregator.tol * n_frames:
                    moving.discard(k)
            history.append(sum(before.values()))
            step(f"{history[-1]:.6g} nats")
            if not moving:
                break
    aggregator._models = models
    _set_prior(aggregator, sums)
    aggregator._set_hmms()
    n_songs = sum(part.n_songs for part in sums)
    aggregator.fit_report_ += f"\n{len(history)} iterations of EM over all {n_songs} songs"
    return history


def _in_order(engine: Engine, function: Any, shared: Any, parts: list[Part]) -> list[Any]:
    found = dict(engine.run(function, shared, parts))
    return [found[i] for i in range(len(parts))]


def _sample(shared: _Sampled, part: Part) -> list[Songs]:
    limit = int(shared.share * 2.0**64)
    return [
        songs[np.array([_hash(str(song)) < limit for song in songs.ids], dtype=bool)]
        for songs in shared.source.songs(part)
    ]


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _expect(shared: _Models, part: Part) -> _Sums:
    aggregator, n_classes = shared.aggregator, len(shared.aggregator.classes_)
    sums: dict[int, Expectations] = {}
    n_frames: dict[int, int] = {}
    counts, n_songs = np.zeros(n_classes, dtype=np.int64), 0
    for songs in shared.source.songs(part):
        usable = aggregator._canonical(aggregator._check_songs(songs))
        filled = usable.lengths > 0
        y = aggregator._canonical_labels(_positions(songs, aggregator))[filled]
        usable = usable[filled]
        frames, offsets = aggregator._whitening(usable), usable.offsets
        counts += y.sum(axis=0) if y.ndim == 2 else np.bincount(y, minlength=n_classes)
        n_songs += len(y)
        for k, mine in _songs_of(y, shared.models).items():
            rows = np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in mine])
            ends = np.concatenate([[0], np.cumsum(usable.lengths[mine])])
            # Whitened frames lie about the origin.
            center = np.zeros(frames.shape[1])
            found = expectations(frames[rows], ends, shared.models[k], center)
            sums[k] = sums[k] + found if k in sums else found
            n_frames[k] = n_frames.get(k, 0) + len(rows)
    return _Sums(sums, n_frames, counts, n_songs)


def _songs_of(y: Ints, models: Mapping[int, GaussianParameters]) -> dict[int, Ints]:
    """Songs of each model; that of several labels at once, the background, is of all."""
    if y.ndim == 1:
        masks = {k: y == k for k in models}
    else:
        masks = {k: y[:, k] == 1 if k < y.shape[1] else np.ones(len(y), bool) for k in models}
    return {k: np.flatnonzero(mask) for k, mask in masks.items() if mask.any()}


def _positions(songs: Songs, aggregator: HMMAggregator) -> Ints:
    """Labels as positions in the classes, or as an indicator."""
    position = {str(name): i for i, name in enumerate(aggregator.classes_)}
    learnt = {
        str(name)
        for name, k in zip(aggregator.classes_, aggregator._rank_of_class(), strict=True)
        if k in aggregator._models
    }
    assert songs.labels is not None
    for song, label in zip(songs.ids, songs.labels, strict=True):
        for name in label if aggregator.multilabel_ else [label]:
            if name not in learnt:
                raise SongError(
                    f"label {name!r} is not in the sample; take a larger one", song=str(song)
                )
    if not aggregator.multilabel_:
        return np.array([position[name] for name in songs.labels], dtype=np.int64)
    out = np.zeros((len(songs), len(position)), dtype=np.int64)
    for i, names in enumerate(songs.labels):
        out[i, [position[name] for name in names]] = 1
    return out


def _set_prior(aggregator: HMMAggregator, sums: list[_Sums]) -> None:
    """As `smoothed_prior` of all labels."""
    counts = np.sum([part.counts for part in sums], axis=0)
    if aggregator.multilabel_:
        prior = (counts + 1.0) / (sum(part.n_songs for part in sums) + 2.0)
    else:
        prior = (counts + 1.0) / (counts + 1.0).sum()
    aggregator.class_prior_ = prior[aggregator._rank_of_class()]


def _or_none(values: Any, songs: Songs) -> Any:
    return [None] * len(songs) if values is None else values
