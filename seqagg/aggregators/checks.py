"""What songs must fulfil before a method sees them: labels, groups, classes, columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from seqagg.errors import SongError
from seqagg.songs import Songs

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


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
        if isinstance(label, list | tuple | np.ndarray):
            raise SongError("a song takes one label, not several", song=str(song))
    labels = np.asarray(listed)
    texts = sum(isinstance(label, str) for label in listed)
    if labels.dtype == object or 0 < texts < len(listed):
        raise SongError(f"labels mix types: {sorted({type(label).__name__ for label in listed})}")
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


def not_columns(songs: Songs, labels: Array | None, classes: Array) -> SongError:
    """Make the error for labels that are not the names of columns, naming the first such song."""
    if songs.columns is None or labels is None:
        return SongError(
            f"{len(classes)} labels for {songs.n_columns} columns without names: an averaging "
            "rule must know which column is which class; give Songs with named columns"
        )
    names = {str(c) for c in songs.columns}
    first = next(i for i, label in enumerate(labels) if str(label) not in names)
    return SongError(
        f"label {labels[first]!s} is the name of no column: averaging needs columns that are "
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
