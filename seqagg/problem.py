"""Who is scored by whom: songs that can be used, their classes, folds, and what was said.

Conventions
-----------
``y`` holds positions in the sorted classes, shape (n_songs,); where songs have several labels each
it is an indicator of shape (n_songs, n_classes).

Folds are drawn from the songs in the order of their names, so that the order in which they are
given moves no song to another fold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from seqagg.aggregators.base import Aggregator
from seqagg.aggregators.checks import check_labels, find_classes, find_targets
from seqagg.errors import ParameterError, SongError
from seqagg.evaluation import group_indices
from seqagg.folds import grouped_folds
from seqagg.songs import Songs

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Fold:
    """Positions of the songs learnt from and scored; the number is None for a given split."""

    number: int | None
    train: Ints
    test: Ints


@dataclass(frozen=True)
class Problem:
    """Songs that can be used, what their classes are, and who is scored by whom."""

    songs: Songs
    classes: Array  # (n_classes,), sorted, of the labels' own type
    columns_are_classes: bool
    y: Ints  # (n_songs,), into classes, or an indicator (n_songs, n_classes)
    groups: Ints  # (n_songs,)
    folds: list[Fold]

    @property
    def multilabel(self) -> bool:
        """Whether songs have several labels each."""
        return self.y.ndim == 2

    @property
    def names(self) -> tuple[str, ...]:
        """The classes as text."""
        return tuple(str(c) for c in self.classes)

    @property
    def scored(self) -> Ints:
        """Positions of the songs that are scored, in the order given."""
        return np.sort(np.concatenate([fold.test for fold in self.folds]))

    @property
    def has(self) -> npt.NDArray[np.bool_]:
        """Which song has which class, shape (n_songs, n_classes)."""
        if self.multilabel:
            return np.asarray(self.y == 1)
        return np.asarray(self.y[:, None] == np.arange(len(self.names)))


@dataclass(frozen=True)
class Run:
    """What one method said; songs that are not scored have -1 and NaN."""

    prediction: Ints  # of the shape of y
    probability: Floats  # (n_songs, n_classes)
    fit_seconds: list[float]  # one per fold
    predict_seconds: list[float]
    fitted: list[Aggregator]  # one per fold, where they are needed again


def select_songs(
    songs: Songs, *, given_split: bool
) -> tuple[Songs, dict[str, tuple[str, ...]], bool]:
    """Songs that can be used, the others by reason, and whether the split given is followed."""
    if not isinstance(songs, Songs):
        raise SongError(f"a benchmark needs Songs with labels, not {type(songs).__name__}")
    if songs.labels is None:
        raise SongError("labels are needed: give songs that carry labels")
    sides = [] if songs.split is None else songs.split.tolist()
    has_split = given_split and {"train", "test"} <= set(sides)
    usable = songs.log_odds().present()
    lengths = usable.lengths
    reasons: list[str | None] = []
    for i, label in enumerate(songs.labels):
        if has_split and sides[i] not in ("train", "test"):
            reasons.append("neither train nor test")
        elif label is None or label != label:  # NaN, as pandas has it
            reasons.append("no label")
        else:
            reasons.append(None if lengths[i] else "no frame left")
    left_out = {
        why: tuple(str(song) for song, r in zip(songs.ids, reasons, strict=True) if r == why)
        for why in dict.fromkeys(reasons)
        if why is not None
    }
    kept = usable[np.array([reason is None for reason in reasons], dtype=bool)]
    for side in ("train", "test") if has_split else ():
        if side not in kept.split:
            raise SongError(f"no song of split {side!r} has a label and a frame")
    if len(kept) == 0:
        raise SongError("no song has a label and a frame")
    return kept, left_out, has_split


def pose(songs: Songs, has_split: bool, n_folds: int, seed: int) -> Problem:
    """Find the classes of songs that can be used, and who is scored by whom.

    Parameters
    ----------
    songs : Songs
        From `select_songs`.
    has_split : bool
        Whether the split they carry is followed.
    n_folds, seed : int
        Of the folds drawn otherwise.
    """
    if songs.task == "multilabel":
        songs, y, classes, columns_are_classes = _name_columns_of_several(songs)
        if (y == y[0]).all():
            raise SongError("all songs have the same labels: nothing to tell apart")
    else:
        songs, labels, classes, columns_are_classes = _name_columns(songs)
        if len(classes) < 2:
            raise SongError(f"all songs have the label {classes[0]!s}: nothing to tell apart")
        y = np.searchsorted(classes, labels)
    groups = group_indices(songs.groups, len(songs))
    if has_split:
        sides = [np.flatnonzero(songs.split == side) for side in ("train", "test")]
        folds = [Fold(None, *sides)]
    else:
        folds = _draw_folds(songs, y, groups, n_folds, seed)
    problem = Problem(songs, classes, columns_are_classes, y, groups, folds)
    if not columns_are_classes:
        _refuse_unseen(problem)
    return problem


def _name_columns(songs: Songs) -> tuple[Songs, Array, Array, bool]:
    """Songs, their labels, the classes, and whether the columns are the classes.

    Columns without names get those of their classes. Otherwise the songs of a fold that lacks
    a class could be read another way than all songs are.
    """
    labels = check_labels(songs, None, required=True)
    assert labels is not None
    classes, columns_are_classes = find_classes(songs, labels, positions=True)
    if not columns_are_classes or songs.columns is not None:
        return songs, labels, classes, columns_are_classes
    if labels.dtype.kind not in "iuU":
        labels, classes = labels.astype(str), classes.astype(str)
    songs = songs.replace(columns=[str(c) for c in classes], labels=labels)
    return songs, labels, np.sort(classes), True


def _name_columns_of_several(songs: Songs) -> tuple[Songs, Ints, Array, bool]:
    """Songs, their indicator, the classes, and whether the columns are the classes."""
    targets = find_targets(songs, None, required=True, positions=True)
    assert targets.y is not None
    columns_are_classes = targets.class_of_column is not None
    if columns_are_classes and songs.columns is None:
        songs = songs.replace(columns=targets.classes.tolist())
    return songs, targets.y, targets.classes, columns_are_classes


def _draw_folds(songs: Songs, y: Ints, groups: Ints, n_folds: int, seed: int) -> list[Fold]:
    """Folds that keep groups together and, as far as that allows, classes in proportion."""
    order = np.array(sorted(range(len(songs)), key=lambda i: str(songs.ids[i])))
    # Numbered by first appearance (of several labels, ordered by the songs that have them): what
    # classes and groups are called moves no song either.
    labels = y[order]
    labels = labels[:, np.lexsort(labels)] if y.ndim == 2 else group_indices(labels, len(y))
    units = group_indices(groups[order], len(y))
    n_groups = int(units.max()) + 1
    if n_groups < n_folds:
        raise ParameterError(f"{n_groups} groups are too few for {n_folds} folds")
    return [
        Fold(number, np.sort(order[train]), np.sort(order[test]))
        for number, (train, test) in enumerate(grouped_folds(labels, units, n_folds, seed))
    ]


def _refuse_unseen(problem: Problem) -> None:
    """Refuse a label to be predicted that no training song has."""
    has = problem.has
    for fold in problem.folds:
        unseen = has[fold.test] & ~has[fold.train].any(axis=0)
        if unseen.any():
            row = int(np.argmax(unseen.any(axis=1)))
            song, label = fold.test[row], problem.names[int(np.argmax(unseen[row]))]
            where = "" if fold.number is None else f" of fold {fold.number}"
            raise SongError(
                f"label {label!r} was never seen in training: no training song{where} has it",
                song=str(problem.songs.ids[song]),
            )
