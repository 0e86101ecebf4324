"""What songs must fulfil before a method sees them: labels, groups, classes, columns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from seqagg.errors import SongError
from seqagg.songs import Songs

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Targets:
    """What songs are labelled with, in numbers.

    Attributes
    ----------
    classes : ndarray of shape (n_classes,)
        Sorted.
    class_of_column : ndarray of int, shape (n_columns,), or None
        Index into `classes`; None where columns are not the classes.
    y : ndarray of int, shape (n_songs,) or (n_songs, n_classes), or None
        Index of each song's class, or with several labels per song an indicator; None if no
        labels are given.
    multilabel : bool
        Whether a song has any number of labels.
    """

    classes: Array
    class_of_column: Ints | None
    y: Ints | None
    multilabel: bool


def find_targets(songs: Songs, y: Any, *, required: bool, positions: bool) -> Targets:
    """Classes and labels of training songs, whatever `fit` was given; see `find_classes`.

    The columns of an indicator are numbered, and where songs have as many columns, these are
    the classes by their place.
    """
    if is_indicator(y):
        indicator = check_indicator(songs, y)
        n_classes = indicator.shape[1]
        places = np.arange(n_classes) if n_classes == songs.n_columns else None
        return Targets(np.arange(n_classes), places, indicator, True)
    several = has_several_labels(songs, y)
    lists = check_label_lists(songs, y, required=required) if several else None
    if several:
        labels = None if lists is None else _label_array([part for row in lists for part in row])
    else:
        labels = check_labels(songs, y, required=required)
    classes, are_columns = find_classes(songs, labels, positions)
    if len(classes) == 0:
        raise SongError("no song has a label, and columns have no names to take for classes")
    places = class_of_column(songs.columns, classes) if are_columns else None
    if labels is None:
        return Targets(classes, places, None, several)
    index = (
        np.searchsorted(classes, labels) if lists is None else indicator_of(songs, lists, classes)
    )
    return Targets(classes, places, index, several)


def is_indicator(y: Any) -> bool:
    """Whether labels are a matrix: an array, a data frame, or SciPy's sparse one."""
    return getattr(y, "ndim", 1) == 2


def has_several_labels(songs: Songs, y: Any) -> bool:
    """Whether labels are lists, one per song."""
    if y is None:
        return songs.task == "multilabel"
    return any(isinstance(label, list | tuple | set | frozenset) for label in y)


def check_indicator(songs: Songs, y: Any) -> Ints:
    """Indicator of shape (n_songs, n_classes), of 0 and 1."""
    array = np.asarray(y.toarray() if hasattr(y, "toarray") else y)
    if len(array) != len(songs):
        raise SongError(f"{len(array)} rows of the indicator for {len(songs)} songs")
    if array.shape[1] == 0:
        raise SongError("the indicator has no column, and so there is no class")
    bad = ~((array == 0) | (array == 1))
    if bad.any():
        song, column = (int(i) for i in np.argwhere(bad)[0])
        raise SongError(
            f"column {column} of the indicator holds {array[song, column]!s}, neither 0 nor 1",
            song=str(songs.ids[song]),
        )
    return array.astype(np.int64)


def check_label_lists(songs: Songs, y: Any, *, required: bool) -> list[tuple[Any, ...]] | None:
    """Labels of each song, or None."""
    given = songs.labels if y is None else y
    if given is None:
        if required or songs.columns is None:
            raise SongError("labels are needed: pass y, or songs that carry labels")
        return None
    listed = list(given)
    if len(listed) != len(songs):
        raise SongError(f"labels of {len(listed)} songs for {len(songs)} songs")
    for song, labels in zip(songs.ids, listed, strict=True):
        if labels is None or labels != labels:  # NaN, as pandas has it
            raise SongError("the label is missing", song=str(song))
        if not isinstance(labels, list | tuple | set | frozenset):
            raise SongError(f"{labels!s} is no list of labels, as others are", song=str(song))
        # A list of numbers could as well be a row of an indicator.
        ordered = isinstance(labels, list | tuple)
        if any(part is None or (ordered and not isinstance(part, str)) for part in labels):
            raise SongError(
                "labels in a list must be text; give numbers as sets, or an indicator as an array",
                song=str(song),
            )
    return [tuple(labels) for labels in listed]


def indicator_of(songs: Songs, lists: list[tuple[Any, ...]], classes: Array) -> Ints:
    """Indicator of lists of labels; an error names a label that is none of the classes."""
    index = {label: k for k, label in enumerate(classes.tolist())}
    out = np.zeros((len(lists), len(classes)), dtype=np.int64)
    for row, labels in enumerate(lists):
        for label in labels:
            if label not in index:
                raise unseen_label(songs, row, label)
            out[row, index[label]] = 1
    return out


def unseen_label(songs: Songs, row: int, label: Any) -> SongError:
    """Make the error for a label that no training song had."""
    return SongError(f"label {label!s} was never seen in training", song=str(songs.ids[row]))


def check_labels(songs: Songs, y: Any, *, required: bool) -> Array | None:
    """Labels as an array of their own type, or None."""
    given = songs.labels if y is None else y
    if given is None:
        if required or songs.columns is None:
            raise SongError("labels are needed: pass y, or songs that carry labels")
        return None
    listed = given.tolist() if isinstance(given, np.ndarray) else list(given)
    if len(listed) != len(songs):
        raise SongError(f"{len(listed)} labels for {len(songs)} songs")
    for song, label in zip(songs.ids, listed, strict=True):
        if label is None or label != label:  # NaN, as pandas has it
            raise SongError("the label is missing", song=str(song))
        if isinstance(label, float) and math.isinf(label):
            raise SongError("the label is infinite", song=str(song))
        if isinstance(label, list | tuple | np.ndarray):
            raise SongError("a song takes one label, not several", song=str(song))
    return _label_array(listed)


def _label_array(listed: list[Any]) -> Array:
    """Labels as an array of their own type; text if there is none."""
    labels = np.asarray(listed) if listed else np.empty(0, dtype=np.str_)
    texts = sum(isinstance(label, str) for label in listed)
    if labels.dtype == object or 0 < texts < len(listed):
        raise SongError(f"labels mix types: {sorted({type(label).__name__ for label in listed})}")
    if texts and any("\0" in label for label in listed):  # with which NumPy ends text
        raise SongError("a label with a NUL in it")
    return labels


def check_groups(songs: Songs, groups: Any) -> Ints:
    """Group of each song as an index; a song without a group is its own.

    Groups that come with the songs are kept together only if the frame classifier kept them
    together. Where its folds cut through a group (speakers who are on both sides by design), the
    averages of held-out songs have heard that group, and a method tried on groups it has not
    heard would be compared with them on unequal terms.
    """
    given = songs.groups if groups is None else groups
    if given is None:
        return np.arange(len(songs))
    listed = given.tolist() if isinstance(given, np.ndarray) else list(given)
    if len(listed) != len(songs):
        raise SongError(f"{len(listed)} groups for {len(songs)} songs")
    index: dict[Any, int] = {}
    # NaN is how pandas says None.
    keys = [("song", i) if g is None or g != g else ("group", g) for i, g in enumerate(listed)]
    found = np.array([index.setdefault(key, len(index)) for key in keys], dtype=np.int64)
    if groups is None and songs.fold is not None:
        scored = songs.fold >= 0
        pairs = np.unique(np.stack([found[scored], songs.fold[scored]]), axis=1)
        if pairs.shape[1] > len(np.unique(pairs[0])):
            return np.arange(len(songs))
    return found


def find_classes(songs: Songs, labels: Array | None, positions: bool) -> tuple[Array, bool]:
    """Sorted classes, and whether the columns are the classes.

    Columns without names stand for the sorted labels, where as many occur as there are columns.
    With fewer labels, if they are integers and `positions` says so, the columns are classes
    0 .. n_columns - 1; a learnt method would rather learn what the columns mean.
    """
    if labels is None:
        return np.unique(np.asarray(songs.columns)), True
    found = np.unique(labels)
    if songs.columns is not None:
        names = np.asarray(songs.columns)
        if found.dtype.kind in "iu":
            found_names = np.array([str(label) for label in found])
            if np.isin(found_names, names).all() and _are_integers(songs.columns):
                return np.unique(names.astype(np.int64)), True
        if found.dtype.kind == "U" and np.isin(found, names).all():
            return np.unique(names), True
        return found, False
    if len(found) == songs.n_columns:
        return found, True
    if positions and found.dtype.kind in "iu" and found[0] >= 0 and found[-1] < songs.n_columns:
        return np.arange(songs.n_columns), True
    return found, False


def _are_integers(columns: tuple[str, ...]) -> bool:
    return all(c == str(int(c)) for c in columns if c.lstrip("-").isdecimal()) and all(
        c.lstrip("-").isdecimal() for c in columns
    )


def class_of_column(columns: tuple[str, ...] | None, classes: Array) -> Ints:
    """Index into the sorted classes of each column."""
    if columns is None:
        return np.arange(len(classes))
    return np.searchsorted(classes, np.asarray(columns).astype(classes.dtype))


def not_columns(songs: Songs, targets: Targets) -> SongError:
    """Make the error for labels that are not the names of columns, naming the first such song."""
    classes, y = targets.classes, targets.y
    if songs.columns is None or y is None or (targets.multilabel and classes.dtype.kind in "iu"):
        return SongError(
            f"{len(classes)} labels for {songs.n_columns} columns without names: an averaging "
            "rule must know which column is which class; give Songs with named columns"
        )
    foreign = ~np.isin([str(c) for c in classes], [str(c) for c in songs.columns])
    has = y.astype(bool) if targets.multilabel else y[:, None] == np.arange(len(classes))
    first = int(np.argmax((has & foreign).any(axis=1)))
    label = classes[has[first] & foreign][0]
    return SongError(
        f"label {label!s} is the name of no column: averaging needs columns that are "
        "classes (where scikit-learn has numbered the labels, pass plain arrays); a learnt method "
        "does not",
        song=str(songs.ids[first]),
    )


def reorder_columns(songs: Songs, columns: tuple[str, ...]) -> Songs:
    """Put the columns in the order of the training songs, or name the one that differs."""
    if songs.columns == columns:
        return songs
    assert songs.columns is not None
    for name in columns:
        if name not in songs.columns:
            raise SongError("the model was fitted with this column; the songs lack it", column=name)
    for name in songs.columns:
        if name not in columns:
            raise SongError("the model was fitted without this column", column=name)
    order = [songs.columns.index(name) for name in columns]
    return songs._with(values=songs.values[:, order], columns=columns)
