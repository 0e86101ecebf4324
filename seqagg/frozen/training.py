"""Frame classifiers trained for the purpose: every song scored by one that has not seen it.

Conventions
-----------
Songs are numbered in the order in which they come. *Training songs* have a label and, where there
is a split, are of ``train``; all others are scored by the model of all training songs, and their
fold is -1.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seqagg.cache import read_cache, write_cache
from seqagg.errors import CacheError, ParameterError, SongError
from seqagg.folds import Fold, group_indices, grouped_folds
from seqagg.frozen.checks import Scorer, missing_frames
from seqagg.frozen.models import frame_model
from seqagg.frozen.named import NamedFrames
from seqagg.frozen.scoring import score_named
from seqagg.logodds import Kind, Task
from seqagg.progress import steps
from seqagg.songs import Songs

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


def out_of_fold(
    make_model: Any,
    frames: Any,
    labels: Any,
    song_ids: Any = None,
    groups: Any = None,
    cv: Any = 5,
    *,
    kind: Kind = "probability",
    columns: Sequence[str] | None = None,
    task: Task = "multiclass",
    split: Any = None,
    seed: int = 0,
    note: str = "",
    batch_size: int = 1024,
    check: bool = True,
    n_jobs: int | None = None,
    work: str | os.PathLike[str] | None = None,
) -> Songs:
    """Train a frame classifier per fold, and score each song by one that has not seen it.

    Parameters
    ----------
    make_model : scikit-learn estimator or callable
        An estimator is cloned and fitted. A function is called for each fold with

        - frames, ndarray of shape (n_frames, ...), those of all songs to learn from, without the
          missing ones;
        - labels, ndarray of int, shape (n_frames,), positions in `columns`; of several labels an
          indicator of shape (n_frames, n_columns);
        - groups, ndarray of int, shape (n_frames,): frames that belong on one side of any further
          split, for early stopping, say;

        and returns a fitted model that `score_songs` takes.
    frames, song_ids
        As in `score_songs`; frames of a mapping are loaded when they are needed, for each fold.
    labels, groups, split : mapping, array-like of shape (n_frames,) or str
        As in `score_songs`. A song without a group is its own. Without a split all songs with a
        label are training songs.
    cv : int, scikit-learn splitter, iterable of (learn, held) or mapping
        Number of folds, classes in proportion and groups whole; or what makes them of the training
        songs, `LeaveOneGroupOut` say; or the fold of each song, by its name.
    kind : {"probability", "logit", "log_odds"}
        What the models' scores are.
    columns : sequence of str, optional
        Names of the models' outputs; the labels of the training songs, sorted, by default.
    task : {"multiclass", "multilabel"}
        In the latter, the label of a song is a sequence of names, or a row of 0 and 1.
    seed : int
        Of the folds. The models' own chance is theirs.
    note : str
        Free text, kept in the cache.
    batch_size, check
        As in `score_songs`.
    n_jobs : int, optional
        Folds that are worked on side by side, in processes.
    work : path-like, optional
        Folder in which the scores of each fold are kept, so that a killed run does not train again
        what it has trained. It serves one model: songs, labels and folds are seen to be the same.

    Returns
    -------
    Songs
        All songs in the order in which they came, with label, group, split and fold.

    Raises
    ------
    SongError
        Names the song whose frames, label or scores cannot be used.
    ParameterError
        For folds that do not hold out each training song once, or part a group.
    CacheError
        If `work` holds scores of other songs, labels or folds.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> frames = {f"song {i}": [[i % 2 + 0.1], [i % 2 - 0.1]] for i in range(8)}
    >>> labels = {song: "reel" if frames[song][0][0] > 1 else "jig" for song in frames}
    >>> songs = out_of_fold(LogisticRegression(), frames, labels, cv=2)
    >>> songs.columns, sorted(songs.fold.tolist())
    (('jig', 'reel'), [0, 0, 0, 0, 1, 1, 1, 1])
    """
    songs = _collect(frames, song_ids, labels, groups, split, columns, task)
    trainer = _Trainer(make_model, songs, kind, batch_size, check)
    folds = _folds(cv, songs, songs.training, seed)
    others = np.setdiff1d(np.arange(len(songs.names)), songs.training)
    return _scored(trainer, folds, others, n_jobs, work).replace(note=note)


def nested_out_of_fold(
    make_model: Any,
    frames: Any,
    labels: Any,
    song_ids: Any = None,
    groups: Any = None,
    cv: Any = 5,
    inner: Any = 5,
    *,
    kind: Kind = "probability",
    columns: Sequence[str] | None = None,
    task: Task = "multiclass",
    seed: int = 0,
    note: str = "",
    batch_size: int = 1024,
    check: bool = True,
    n_jobs: int | None = None,
    work: str | os.PathLike[str] | None = None,
) -> Iterator[Songs]:
    """Hold out every song twice: from the frame classifiers, and from what learns of their scores.

    Where the comparison of aggregators is itself cross-validated, a song that judges must not have
    trained the models whose scores an aggregator has learnt from; see `seqagg.nested`.

    Parameters
    ----------
    cv : int, scikit-learn splitter, iterable of (learn, held) or mapping
        The outer folds, as in `out_of_fold`.
    inner : int or scikit-learn splitter
        The folds of each outer fold's training songs.
    make_model, frames, labels, song_ids, groups, kind, columns, task, seed, note, batch_size, \
    check, n_jobs, work
        As in `out_of_fold`. Songs without a label are left out.

    Yields
    ------
    Songs
        For each outer fold all songs, those held out as the split ``test``, the others as
        ``train``, scored out of fold by models that have seen no song of ``test``.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> frames = {f"song {i}": [[i % 2 + 0.1], [i % 2 - 0.1]] for i in range(8)}
    >>> labels = {song: "reel" if frames[song][0][0] > 1 else "jig" for song in frames}
    >>> for songs in nested_out_of_fold(LogisticRegression(), frames, labels, cv=2, inner=2):
    ...     print(songs.split.tolist().count("test"), sorted(songs.fold.tolist()))
    4 [-1, -1, -1, -1, 0, 0, 1, 1]
    4 [-1, -1, -1, -1, 0, 0, 1, 1]
    """
    songs = _collect(frames, song_ids, labels, groups, None, columns, task)
    trainer = _Trainer(make_model, songs, kind, batch_size, check)
    for turn, (train, test) in enumerate(_folds(cv, songs, songs.training, seed)):
        folds = _folds(inner, songs, train, seed)
        own = None if work is None else Path(work) / f"outer-{turn}"
        found = _scored(trainer, folds, test, n_jobs, own)
        split = np.where(np.isin(songs.training, test), "test", "train")
        yield found.replace(split=split, note=note)


@dataclass(frozen=True)
class _Collection:
    """Songs to learn from and to score.

    Attributes
    ----------
    names : list of str
    load : list of callable
        What gives the frames of each song.
    columns : tuple of str
    labels, groups, split : list or None
        As `Songs` has them.
    y : ndarray of int, shape (n_songs,) or (n_songs, n_columns)
        Column of each song's label, or an indicator; means nothing where there is no label.
    group_of : ndarray of int, shape (n_songs,)
    training : ndarray of int
        The training songs.
    """

    names: list[str]
    load: list[Callable[[], Array]]
    columns: tuple[str, ...]
    task: Task
    labels: list[Any]
    groups: list[Any] | None
    split: list[Any] | None
    y: Ints
    group_of: Ints
    training: Ints


def _collect(
    frames: Any,
    song_ids: Any,
    labels: Any,
    groups: Any,
    split: Any,
    columns: Sequence[str] | None,
    task: Task,
) -> _Collection:
    fields = {"labels": labels, "groups": groups, "split": split}
    source = NamedFrames(frames, song_ids, fields=fields)
    songs = source.by_song()
    known, sides, own = source.labels(task, columns), source.field("split"), source.field("groups")
    if known is None:
        raise ParameterError("labels are missing: there is nothing to learn")
    taught = [
        label is not None and (sides is None or sides[i] == "train")
        for i, label in enumerate(known)
    ]
    training = np.flatnonzero(taught)
    if not len(training):
        raise SongError("no training song has a label")
    sets = [(label,) if isinstance(label, str) else label or () for label in known]
    learnt = {name for i in training for name in sets[i]}
    outputs = tuple(str(name) for name in columns or sorted(learnt))
    if not learnt <= set(outputs):
        strange = min(learnt - set(outputs))
        song = next(name for name, label in zip(songs, sets, strict=True) if strange in label)
        raise SongError(f"its label {strange!r} is the name of no column", song=song)
    indicator = np.array([[name in label for name in outputs] for label in sets], dtype=np.int64)
    return _Collection(
        names=list(songs),
        load=list(songs.values()),
        columns=outputs,
        task=task,
        labels=known,
        groups=own,
        split=sides,
        y=indicator if task == "multilabel" else indicator.argmax(axis=1),
        group_of=group_indices(own, len(songs)),
        training=training,
    )


@dataclass(frozen=True)
class _Trainer:
    """Trains a frame classifier on some songs and scores others by it."""

    make_model: Any
    songs: _Collection
    kind: Kind
    batch_size: int
    check: bool

    def __call__(self, learn: Ints, held: Ints, kept: Path | None) -> Songs:
        """Scores of the songs `held` by a model of the songs `learn`, in a file if there is one."""
        if kept is None:
            return self._score(learn, held)
        # What decides the scores, but for the model and the frames.
        taught = [(self.songs.names[i], self.songs.labels[i]) for i in learn]
        text = json.dumps([taught, [self.songs.names[i] for i in held], self.kind])
        digest = hashlib.sha256(text.encode()).hexdigest()
        if not kept.exists():
            write_cache(self._score(learn, held).replace(note=digest), kept)
        found = read_cache(kept)
        if found.note != digest:
            raise CacheError("made of other songs, labels or folds: remove it", file=kept)
        return found.replace(note="")

    def _score(self, learn: Ints, held: Ints) -> Songs:
        songs = self.songs
        asked = frame_model(self._fitted(learn), self.kind, songs.columns, coded=True)
        scorer = Scorer(asked, self.kind, songs.task, self.check)
        source = NamedFrames((songs.names[i], songs.load[i]()) for i in held)
        return score_named(scorer, source, self.batch_size)

    def _fitted(self, learn: Ints) -> Any:
        """Model of all frames of some songs."""
        parts = [self.songs.load[i]() for i in learn]
        which = np.repeat(learn, [len(part) for part in parts])  # (n_frames,)
        if not len(which):
            raise SongError("the songs to learn from have no frames")
        frames = np.concatenate([part for part in parts if len(part)])
        missing = missing_frames(frames)
        if missing.any():
            frames, which = frames[~missing], which[~missing]
        y = self.songs.y[which]
        if _is_estimator(self.make_model):
            from sklearn.base import clone

            return clone(self.make_model).fit(frames, y)
        return self.make_model(frames, y, self.songs.group_of[which])


def _is_estimator(model: Any) -> bool:
    """Whether it is a scikit-learn estimator; refuses what is neither that nor a function."""
    if hasattr(model, "get_params") and hasattr(model, "fit") and not isinstance(model, type):
        return True
    if callable(model) and not hasattr(model, "fit") and not hasattr(model, "parameters"):
        return False
    raise ParameterError(
        f"{getattr(model, '__name__', type(model).__name__)} cannot be trained anew for each fold; "
        "give a scikit-learn estimator, or a function that builds and fits a model"
    )


def _scored(
    trainer: _Trainer,
    folds: Sequence[Fold],
    others: Ints,
    n_jobs: int | None,
    work: str | os.PathLike[str] | None,
) -> Songs:
    """Songs by the models of the folds, and other songs by the model of all that are in folds."""
    turns = [*folds]
    names = [f"fold-{number}.parquet" for number in range(len(folds))]
    if len(others):
        turns.append((np.sort(np.concatenate([held for _, held in folds])), others))
        names.append("others.parquet")
    kept = [None if work is None else Path(work) / name for name in names]
    calls = [partial(trainer, *turn, path) for turn, path in zip(turns, kept, strict=True)]
    with steps("frame models", len(calls)) as done:
        parts = []
        for part in _results(calls, n_jobs):
            parts.append(part)
            done("")
    numbers = [*range(len(folds)), -1][: len(parts)]
    fold = np.repeat(numbers, [len(part) for part in parts])
    held = np.concatenate([held for _, held in turns])
    order = np.argsort(held)
    songs, chosen = trainer.songs, held[order]
    found: Songs = Songs.concatenate(parts).replace(fold=fold)[order]
    return found.replace(
        labels=[songs.labels[i] for i in chosen],
        groups=None if songs.groups is None else [songs.groups[i] for i in chosen],
        split=None if songs.split is None else [songs.split[i] for i in chosen],
    )


def _results(calls: Sequence[Callable[[], Songs]], n_jobs: int | None) -> Iterator[Songs]:
    if n_jobs in (None, 1):
        for call in calls:
            yield call()
        return
    from joblib import Parallel, delayed

    yield from Parallel(n_jobs=n_jobs, return_as="generator")(delayed(call)() for call in calls)


def _folds(cv: Any, songs: _Collection, training: Ints, seed: int) -> list[Fold]:
    """Folds of the training songs, checked; indices count all songs."""
    y, groups = songs.y[training], songs.group_of[training]
    if isinstance(cv, Integral):
        if int(cv) < 2:
            raise ParameterError(f"cv={cv} must be 2 or more")
        found = grouped_folds(y, groups, int(cv), seed)
        if not found:
            raise ParameterError("all training songs are of one group: none can be held out")
    elif isinstance(cv, Mapping):
        found = _declared_folds(cv, [songs.names[i] for i in training])
    else:
        from sklearn.model_selection import check_cv

        found = [(np.asarray(a), np.asarray(b)) for a, b in _split(check_cv(cv), y, groups)]
    held = np.concatenate([held for _, held in found])
    if not np.array_equal(np.sort(held), np.arange(len(training))):
        raise ParameterError("the folds do not hold out every training song once")
    for number, (learn, held) in enumerate(found):
        both = np.flatnonzero(np.isin(groups, groups[held]) & np.isin(groups, groups[learn]))
        if len(both):
            song = songs.names[training[both[0]]]
            raise ParameterError(f"its group is on both sides of fold {number}", song=song)
    return [(training[learn], training[held]) for learn, held in found]


def _split(splitter: Any, y: Ints, groups: Ints) -> Any:
    return splitter.split(np.zeros((len(groups), 1)), y, groups)


def _declared_folds(cv: Mapping[Any, Any], names: Sequence[str]) -> list[Fold]:
    fold_of = {str(song): fold for song, fold in cv.items()}
    for name in names:
        if name not in fold_of:
            raise SongError("has no fold", song=name)
    own = np.array([fold_of[name] for name in names])
    return [(np.flatnonzero(own != fold), np.flatnonzero(own == fold)) for fold in np.unique(own)]
