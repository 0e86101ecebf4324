"""Fits to more songs than one machine holds.

Conventions
-----------
A method is fitted to a sample of the songs first, chosen by their ids alone, so that it does not
depend on how they lie in files: shapes, bases, weights of a mix, temperatures are few numbers. Then
all songs come in, part by part, which `fit_to_all` does for each method in its way:

- `hmm`: the states. In every iteration of EM each part gives its sums, `Expectations`, which are
  added up in the order of the parts: the EM of one process, to rounding.
- `gru`, `mil`: the weights. In every epoch networks hear another sample, see `OtherSamples`.
- `stack`: all of it. Each part gives the summaries of its songs, up to `HELD_BYTES` in all.
- averages: prior and calibration. Each part gives the scores of its songs, up to `HELD_BYTES`.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache, reduce
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt

from seqagg.aggregators.base import Aggregator
from seqagg.aggregators.checks import check_groups
from seqagg.aggregators.hmm import ROUNDING, HMMAggregator
from seqagg.aggregators.lessons import Without
from seqagg.aggregators.stacking import StackingAggregator, Summaries
from seqagg.aggregators.summaries import n_summaries
from seqagg.averages import HeldAverages
from seqagg.cache import read_songs
from seqagg.calibration import smoothed_prior
from seqagg.engines import Engine, ray_cluster
from seqagg.errors import SongError
from seqagg.kernels.hmm import Expectations, GaussianParameters, expectations, maximize
from seqagg.manifest import Manifest
from seqagg.places import everywhere, place_of
from seqagg.progress import steps
from seqagg.scale import Part, make_parts
from seqagg.songs import Songs
from seqagg.threads import one_thread_each

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SAMPLE = 200_000
"""Songs that are held at once: of 30 frames and 10 columns, 240 MB."""

HELD_BYTES = 2**30
"""Bytes of scores or summaries that are held; of more songs, a sample of these."""

_SLICES = threading.Lock()
"""Networks that are trained in threads read the same songs; one of them does it for all."""


@dataclass(frozen=True)
class _Source:
    """Songs of a cache that have a label, of a split."""

    cache: str
    split: str | None

    def songs(self, part: Part) -> Iterator[Songs]:
        """Those of a part."""
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
    """Those of them whose hash, as a share of the highest, is in a range."""

    source: _Source
    low: float
    high: float

    def songs(self, part: Part) -> Iterator[Songs]:
        """Those of a part."""
        for songs in self.source.songs(part):
            if self.high - self.low < 1:
                places = np.array([_place(str(song)) for song in songs.ids])
                yield songs[(places >= self.low) & (places < self.high)]
            else:
                yield songs


@dataclass(frozen=True)
class _Learner:
    """A method, fitted to a sample, and the songs it is to learn from."""

    songs: _Sampled
    aggregator: Aggregator


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
    source = _Source(everywhere(place_of(cache)), split)
    sampled = _Sampled(source, 0.0, n_songs / max(manifest.n_songs, 1))
    found = _in_order(engine or Engine(), _read, sampled, make_parts(place_of(cache), manifest))
    songs = Songs.concatenate([piece for pieces in found for piece in pieces])
    if len(songs) == 0:
        raise SongError("no song of the sample has a label")
    return songs


@dataclass(frozen=True)
class OtherSamples:
    """Lessons for networks: another sample of a cache in every epoch, until all were heard.

    Then it begins again. The whole cache is read for each sample, so that no order in which songs
    lie in files can mislead a network; to read takes much less time than to learn.

    Parameters
    ----------
    source
    parts : tuple of Part
        Of the cache.
    n_samples : int
        In how many samples the songs are dealt out.
    share : float
        How large one is, as a share of the sample that the method is fitted to.
    """

    source: _Source
    parts: tuple[Part, ...]
    n_samples: int
    share: float

    def __call__(self, aggregator: Aggregator, without: Without, epoch: int) -> tuple[Songs, Ints]:
        """Songs and labels of an epoch, as private methods get them."""
        with _SLICES:
            songs = _slice(self, epoch % self.n_samples)
        groups = _or_none(songs.groups, songs)
        pairs = zip(songs.ids, groups, strict=True)
        kept = [str(i) not in without.ids and str(g) not in without.groups for i, g in pairs]
        usable, y, _ = _canonical(aggregator, songs[np.array(kept, dtype=bool)])
        return usable, y


@lru_cache(maxsize=2)
def _slice(lessons: OtherSamples, number: int) -> Songs:
    n = lessons.n_samples
    sampled = _Sampled(lessons.source, number / n, (number + 1) / n)
    return Songs.concatenate([songs for part in lessons.parts for songs in sampled.songs(part)])


def other_samples(
    cache: str | os.PathLike[str],
    manifest: Manifest,
    *,
    n_songs: int = SAMPLE,
    split: str | None = None,
) -> OtherSamples:
    """Lessons for the networks of a method that is fitted to the sample of a cache.

    Parameters are those of `sample_songs`; see `hearing`.
    """
    place = place_of(cache)
    n_samples = math.ceil(manifest.n_songs / n_songs)
    share = manifest.n_songs / n_songs / n_samples
    parts = tuple(make_parts(place, manifest))
    return OtherSamples(_Source(everywhere(place), split), parts, n_samples, share)


def fit_to_all(
    aggregator: Aggregator,
    cache: str | os.PathLike[str],
    manifest: Manifest,
    *,
    split: str | None = None,
    engine: Engine | None = None,
) -> int | None:
    """Let a method that was fitted to a sample learn from all songs of a cache.

    Parameters
    ----------
    aggregator : Aggregator
        Changed in place.
    cache, manifest, split, engine
        As for `sample_songs`.

    Returns
    -------
    int or None
        From how many songs it has learnt now; None where the method learns from all in its own
        fit, or from the sample alone.

    Raises
    ------
    SongError
        Names a song whose label the sample does not have.
    """
    _slice.cache_clear()  # nobody hears them any more
    source, parts = _open(cache, manifest, split)
    if isinstance(aggregator, HMMAggregator):
        return _fit_hmm(aggregator, source, parts, engine or Engine())[1]
    if isinstance(aggregator, StackingAggregator):
        n_numbers = n_summaries(aggregator.n_features_in_, aggregator.n_parts)
        n_numbers += 2 * aggregator.n_features_in_
        learn: Any = _learn_from_summaries
    elif aggregator.needs_class_columns:
        n_numbers, learn = len(aggregator.classes_), _learn_from_scores
    else:
        return None
    share = HELD_BYTES / (8 * n_numbers * max(manifest.n_songs, 1))
    if share * manifest.n_songs < len(aggregator.doubts_):
        return None  # no more than it has learnt from
    learner = _Learner(_Sampled(source, 0.0, share), aggregator)
    y: Ints = learn(learner, parts, engine or Engine())
    prior = smoothed_prior(y, len(aggregator.classes_))
    aggregator.class_prior_ = prior[aggregator._rank_of_class()]
    return len(y)


def _learn_from_scores(learner: _Learner, parts: list[Part], engine: Engine) -> Ints:
    """Calibrate what learns nothing else; gives the labels."""
    found = _in_order(engine, _score, learner, parts)
    scores, y = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    learner.aggregator._calibrate(scores, y)
    return y


def _score(learner: _Learner, part: Part) -> tuple[Floats, Ints]:
    """Log scores and labels of a part's songs."""
    aggregator = learner.aggregator
    scores = [np.empty((0, len(aggregator.classes_)))]
    labels = [aggregator._canonical_labels(None)]
    for songs in learner.songs.songs(part):
        usable, y, _ = _canonical(aggregator, songs)
        scores.append(aggregator._log_scores(usable))
        labels.append(y)
    return np.concatenate(scores), np.concatenate(labels)


def _learn_from_summaries(learner: _Learner, parts: list[Part], engine: Engine) -> Ints:
    """Fit a stack; gives the labels."""
    stack = learner.aggregator
    assert isinstance(stack, StackingAggregator)
    found = [piece for piece in _in_order(engine, _summarize, learner, parts) if piece is not None]
    summaries, labels, names = zip(*found, strict=True)
    averages = HeldAverages.joined(piece.averages for piece in summaries)
    joined = Summaries(np.concatenate([piece.features for piece in summaries]), averages)
    y, groups = np.concatenate(labels), check_groups(Songs.concatenate(names), None)
    with one_thread_each():
        held_out = stack._learn(joined, y, groups)
        if held_out is None:
            held_out = stack._mix(joined.features, stack._start.scores_of(averages))
    stack._calibrate(held_out, y)
    stack.fit_report_ += f"\nfitted to {len(y)} songs"
    return y


def _summarize(learner: _Learner, part: Part) -> tuple[Summaries, Ints, Songs] | None:
    """Summaries and labels of a part's songs, and the songs without their frames."""
    stack = learner.aggregator
    assert isinstance(stack, StackingAggregator)
    found = [_canonical(stack, songs) for songs in learner.songs.songs(part)]
    found = [one for one in found if len(one[1])]
    if not found:
        return None
    usable, labels, names = zip(*found, strict=True)
    songs = Songs.concatenate(usable)
    return stack._summaries(songs), np.concatenate(labels), Songs.concatenate(names)


def _canonical(aggregator: Aggregator, songs: Songs) -> tuple[Songs, Ints, Songs]:
    """Songs with a frame and their labels, as private methods get them, and without frames."""
    usable = aggregator._canonical(aggregator._of_known_columns(songs))
    filled = usable.lengths > 0
    y = aggregator._canonical_labels(_positions(songs, aggregator))[filled]
    usable = usable[filled]
    return usable, y, _without_frames(songs[filled])


def _without_frames(songs: Songs) -> Songs:
    """Who the songs are and where they belong."""
    return Songs(
        np.empty((0, songs.n_columns), np.float32),
        np.zeros(len(songs) + 1, np.int64),
        ids=songs.ids,
        groups=songs.groups,
        fold=songs.fold,
    )


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
    return _fit_hmm(aggregator, *_open(cache, manifest, split), engine or Engine())[0]


def _open(
    cache: str | os.PathLike[str], manifest: Manifest, split: str | None
) -> tuple[_Source, list[Part]]:
    place = place_of(cache)
    return _Source(everywhere(place), split), make_parts(place, manifest)


def _fit_hmm(
    aggregator: HMMAggregator, source: _Source, parts: list[Part], engine: Engine
) -> tuple[list[float], int]:
    """Course of EM, and the number of songs."""
    models, moving = dict(aggregator._models), set(aggregator._models)
    before: dict[int, float] = {}
    history: list[float] = []
    fell = False
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
                fell |= gain < -ROUNDING * abs(total.log_likelihood)
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
    if fell:
        aggregator.fit_report_ += ", likelihood fell at some iteration"
    return history, n_songs


def _in_order(engine: Engine, function: Any, shared: Any, parts: list[Part]) -> list[Any]:
    found = dict(engine.run(function, shared, parts))
    return [found[i] for i in range(len(parts))]


def _read(sampled: _Sampled, part: Part) -> list[Songs]:
    return list(sampled.songs(part))


def _place(name: str) -> float:
    """Where a song stands among all that could be, from 0 to below 1."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def _expect(shared: _Models, part: Part) -> _Sums:
    aggregator, n_classes = shared.aggregator, len(shared.aggregator.classes_)
    sums: dict[int, Expectations] = {}
    n_frames: dict[int, int] = {}
    counts, n_songs = np.zeros(n_classes, dtype=np.int64), 0
    for songs in shared.source.songs(part):
        usable, y, _ = _canonical(aggregator, songs)
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


def _positions(songs: Songs, aggregator: Aggregator) -> Ints:
    """Labels as positions in the classes, or as an indicator."""
    position = {str(name): i for i, name in enumerate(aggregator.classes_)}
    learnt = set(position)
    if isinstance(aggregator, HMMAggregator):
        rank = aggregator._rank_of_class()
        learnt = {name for name, i in position.items() if rank[i] in aggregator._models}
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
