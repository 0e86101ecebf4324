"""What is in a collection of songs, and what is wrong with it. Numbers only, nothing is printed.

Conventions
-----------
Shares and accuracies are in [0, 1]. A frame is *right* if the column named like its song's label
is the highest; of k equal highest columns each has 1 / k of the frame. Missing frames count for
nothing but their number. Labels, groups and splits are spoken of as text. A song without a split
belongs to the part whose name is None.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from seqagg.logodds import LIMIT, Kind, Task
from seqagg.songs import Songs

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

FEW_SONGS = 10
"""Labelled songs of a class below which there is little to learn from."""

_SUM_TOLERANCE = 0.01
"""How far a frame's probabilities may sum from one: those rounded to three digits do."""

_GAP, _STANDARD_ERRORS = 0.05, 3.0
"""How much better than new songs, and how surely, training frames must be to be suspect."""

_SUSPECT_SATURATION = 0.01
_FEWEST_VALUES = 8
"""Different scores in a song, above which two songs with equal scores are no coincidence."""

_NAMED = 3
"""Songs, classes or groups that a warning names."""


@dataclass(frozen=True)
class Part:
    """The songs of one split.

    Attributes
    ----------
    name : str or None
        The split; None for the songs that have none.
    n_songs, n_labelled, n_groups : int
        A song without a group is its own.
    n_frames, n_missing : int or None
        Frames, missing ones included; missing frames. None where scores were not read.
    frame_accuracy : float or None
        Share of frames that are right, of songs whose label is the name of a column.
    frame_accuracy_error : float or None
        Its standard error, groups (or else songs) being drawn anew.
    """

    name: str | None
    n_songs: int
    n_labelled: int
    n_groups: int
    n_frames: int | None
    n_missing: int | None
    frame_accuracy: float | None
    frame_accuracy_error: float | None


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes
    ----------
    n_songs, n_frames, n_missing, n_unlabelled : int
        `n_missing` is None where scores were not read.
    columns : tuple of str
        Their positions where they have no names.
    kind, task, note : str
        As the songs declare them.
    frames_per_song : tuple of float, or None
        Fewest, median, most; missing frames included. None where scores were not read.
    parts : tuple of Part
        One per split, ``train`` and ``test`` first; a single one if there are no splits.
    classes : dict of str to tuple of int
        Songs of each label, in the order of `parts`.
    labels_without_column : tuple of str
        Labels that are the name of no column.
    n_groups : int or None
        None if the songs have no groups.
    n_folds : int or None
        Folds of the frame classifier, as the songs declare them.
    empty_songs : tuple of str
        Songs without a frame, or whose frames are all missing. Nothing where scores were not read.
    sum_to_one : float or None
        Share of frames whose probabilities sum to one; None for other kinds of scores.
    saturated : float or None
        Share of probabilities that are exactly 0 or 1, or of log-odds that say as much.
    warnings : tuple of str
        What is wrong, a line each.
    """

    n_songs: int
    n_frames: int
    n_missing: int | None
    n_unlabelled: int
    columns: tuple[str, ...]
    kind: Kind
    task: Task
    note: str
    frames_per_song: tuple[int, float, int] | None
    parts: tuple[Part, ...]
    classes: dict[str, tuple[int, ...]]
    labels_without_column: tuple[str, ...]
    n_groups: int | None
    n_folds: int | None
    empty_songs: tuple[str, ...]
    sum_to_one: float | None
    saturated: float | None
    warnings: tuple[str, ...]


def inspect(songs: Songs) -> Inspection:
    """Count what is in a collection of songs, and look for what spoils results.

    Parameters
    ----------
    songs : Songs

    Returns
    -------
    Inspection
    """
    missing: Mask = np.asarray(np.isnan(songs.values).any(axis=1))
    present = songs.present()
    parts_of_songs = _split_masks(songs)
    right = _right_frames(songs, present)
    classes = _count_classes(songs, list(parts_of_songs.values()))
    columns = _column_names(songs)
    parts = tuple(
        _describe(name, mask, songs, missing, present.lengths, right)
        for name, mask in parts_of_songs.items()
    )
    without = tuple(label for label in classes if label not in columns)
    empty = tuple(str(i) for i in songs.ids[present.lengths == 0])
    sum_to_one, saturated = _sum_to_one(present), _saturation(present)
    warnings = [
        *_warn_of_shared_groups(songs, parts_of_songs),
        *_warn_of_seen_frames(parts),
        *_warn_of_duplicates(songs),
        *warn_of_labels(classes, parts, without),
        *_warn_of_scores(sum_to_one, saturated),
        *_warn_of_empty(empty),
    ]
    lengths = songs.lengths if len(songs) else np.zeros(1, dtype=np.int64)
    return Inspection(
        n_songs=len(songs),
        n_frames=len(songs.values),
        n_missing=int(missing.sum()),
        n_unlabelled=int((~_labelled(songs)).sum()),
        columns=columns,
        kind=songs.kind,
        task=songs.task,
        note=songs.note,
        frames_per_song=(int(lengths.min()), float(np.median(lengths)), int(lengths.max())),
        parts=parts,
        classes=classes,
        labels_without_column=without,
        n_groups=None if songs.groups is None else len(set(_groups_of(songs))),
        n_folds=None if songs.fold is None else len(np.unique(songs.fold[songs.fold >= 0])),
        empty_songs=empty,
        sum_to_one=sum_to_one,
        saturated=saturated,
        warnings=tuple(warnings),
    )


# Counting.


def _column_names(songs: Songs) -> tuple[str, ...]:
    return songs.columns or tuple(str(i) for i in range(songs.n_columns))


def _split_masks(songs: Songs) -> dict[str | None, Mask]:
    """Songs of each split; train and test first, songs without a split last."""
    if songs.split is None:
        return {None: np.ones(len(songs), dtype=bool)}
    ordered = order_of_splits({None if s is None else str(s) for s in songs.split})
    return {
        name: np.array([(None if s is None else str(s)) == name for s in songs.split], dtype=bool)
        for name in ordered
    }


def order_of_splits(names: Iterable[str | None]) -> list[str | None]:
    """Train and test first, songs without a split last."""
    first = {"train": "0", "test": "1"}
    return sorted(names, key=lambda n: (n is None, first.get(str(n), "2"), str(n)))


def _labels_of(songs: Songs) -> list[tuple[str, ...]]:
    """Labels of each song as text: none, one, or several if multilabel."""
    if songs.labels is None:
        return [()] * len(songs)
    return [
        ()
        if label is None or label != label  # NaN, as pandas has it
        else tuple(str(part) for part in (label if songs.task == "multilabel" else [label]))
        for label in songs.labels
    ]


def _labelled(songs: Songs) -> Mask:
    """Songs whose labels are known; an empty list says that a song has none."""
    if songs.labels is None:
        return np.zeros(len(songs), dtype=bool)
    # NaN is how pandas says None.
    return np.array([label is not None and label == label for label in songs.labels], dtype=bool)


def _groups_of(songs: Songs) -> list[tuple[str, str]]:
    """Group of each song; a song without one is its own."""
    given = [None] * len(songs) if songs.groups is None else list(songs.groups)
    return [
        ("song", str(song)) if group is None or group != group else ("group", str(group))
        for song, group in zip(songs.ids, given, strict=True)
    ]


def _count_classes(songs: Songs, masks: Sequence[Mask]) -> dict[str, tuple[int, ...]]:
    labels = _labels_of(songs)
    counts = [Counter(n for i in np.flatnonzero(mask) for n in labels[i]) for mask in masks]
    names = sorted({name for count in counts for name in count})
    return {name: tuple(count[name] for count in counts) for name in names}


def _right_frames(songs: Songs, present: Songs) -> Floats | None:
    """Frames of each song that are right, shape (n_songs,); NaN where its label is no column."""
    columns = _column_names(songs)
    position = {name: i for i, name in enumerate(columns)}
    labels = _labels_of(songs)
    if songs.task == "multilabel" or not any(n in position for names in labels for n in names):
        return None
    column_of_song = np.array([position.get(names[0], -1) if names else -1 for names in labels])
    column = np.repeat(column_of_song, present.lengths)  # (n_frames,)
    highest = present.values.max(axis=1, keepdims=True, initial=-np.inf)
    is_highest = present.values == highest
    share = is_highest[np.arange(len(column)), column] / is_highest.sum(axis=1)
    sums = np.concatenate([[0.0], np.cumsum(share)])
    right = sums[present.offsets[1:]] - sums[present.offsets[:-1]]
    return np.where(column_of_song >= 0, right, np.nan)


def _describe(
    name: str | None,
    mask: Mask,
    songs: Songs,
    missing: Mask,
    n_present: npt.NDArray[np.int64],
    right: Floats | None,
) -> Part:
    groups = _groups_of(songs)
    chosen = np.flatnonzero(mask)
    index: dict[tuple[str, str], int] = {}
    group_of = np.array([index.setdefault(groups[i], len(index)) for i in chosen], dtype=np.int64)
    accuracy = error = None
    if right is not None:
        known = ~np.isnan(right[chosen])
        accuracy, error = _ratio(right[chosen][known], n_present[chosen][known], group_of[known])
    return Part(
        name=name,
        n_songs=len(chosen),
        n_labelled=int(_labelled(songs)[chosen].sum()),
        n_groups=len(index),
        n_frames=int(songs.lengths[chosen].sum()),
        n_missing=int(missing[np.repeat(mask, songs.lengths)].sum()),
        frame_accuracy=accuracy,
        frame_accuracy_error=error,
    )


def _ratio(
    right: Floats, frames: npt.NDArray[np.int64], group_of: npt.NDArray[np.int64]
) -> tuple[float | None, float | None]:
    """Share of frames that are right, and its standard error as a ratio of sums over groups.

    Frames of a song, and songs of a group, are right or wrong together: the groups are what is
    independent.

    References
    ----------
    W. Cochran, "Sampling techniques", 3rd edition, 1977, section 6.4.
    """
    if not frames.sum():
        return None, None
    share = float(right.sum() / frames.sum())
    surplus = np.bincount(group_of, weights=right - share * frames)  # of each group
    n_groups = len(np.unique(group_of))
    if n_groups < 2 and len(right) < 2:
        return share, None
    if n_groups < 2:  # nothing is known about other groups, but something about other songs
        return _ratio(right, frames, np.arange(len(right)))
    variance = (surplus**2).sum() * n_groups / (n_groups - 1) / frames.sum() ** 2
    return share, float(np.sqrt(variance))


def _sum_to_one(present: Songs) -> float | None:
    if present.kind != "probability" or present.task != "multiclass" or not len(present.values):
        return None
    total = present.values.sum(axis=1, dtype=np.float64)
    return float((np.abs(total - 1) <= _SUM_TOLERANCE).mean())


def _saturation(present: Songs) -> float | None:
    if present.kind == "logit" or not present.values.size:
        return None
    if present.kind == "probability":
        return float(((present.values == 0) | (present.values == 1)).mean())
    return float(np.isinf(present.values).mean())


# Warnings.


def _warn_of_shared_groups(songs: Songs, parts: dict[str | None, Mask]) -> Iterable[str]:
    if songs.groups is None or len(parts) < 2:
        return
    group_of = np.array([g for _, g in _groups_of(songs)], dtype=object)
    known = np.array([g is not None and g == g for g in songs.groups])
    sets = {name: set(group_of[mask & known]) for name, mask in parts.items() if name is not None}
    yield from warn_of_shared(sets)


def warn_of_shared(sets: dict[str, set[str]]) -> Iterable[str]:
    """Groups that stand in several splits, given the groups of each."""
    names = list(sets)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            shared = sorted(sets[a] & sets[b])
            if shared:
                yield (
                    f"{_count(len(shared), 'group')} on both sides of the split, in {a} and in "
                    f"{b} ({_name(shared)}): the accuracy on {b} is not that on new groups"
                )


def _warn_of_seen_frames(parts: Sequence[Part]) -> Iterable[str]:
    train = next((part for part in parts if part.name == "train"), None)
    if train is None or train.frame_accuracy is None:
        return
    for part in parts:
        if part.name in ("train", None) or part.frame_accuracy is None:
            continue
        if train.frame_accuracy_error is None or part.frame_accuracy_error is None:
            continue
        gap = train.frame_accuracy - part.frame_accuracy
        error = np.hypot(train.frame_accuracy_error, part.frame_accuracy_error)
        if gap > _GAP and gap > _STANDARD_ERRORS * error:
            yield (
                f"{train.frame_accuracy:.1%} of the train frames are right but only "
                f"{part.frame_accuracy:.1%} of the {part.name} frames: it seems that the frame "
                "classifier was trained on the very songs that it scored. Learnt methods then "
                "trust it too much; predictions of training rows must be out of fold (by models "
                "that had not seen the song)"
            )


def _warn_of_duplicates(songs: Songs) -> Iterable[str]:
    seen: dict[bytes, list[int]] = {}
    for i, frames in enumerate(songs):
        digest = hashlib.blake2b(frames.tobytes(), digest_size=16).digest()
        seen.setdefault(digest, []).append(i)
    groups, labels = _groups_of(songs), _labels_of(songs)
    split = [None] * len(songs) if songs.split is None else list(songs.split)
    across: list[str] = []
    apart: list[str] = []
    contradicting: list[str] = []
    for same in seen.values():
        if len(same) < 2 or len(np.unique(songs[same[0]])) < _FEWEST_VALUES:
            continue
        names = " = ".join(str(songs.ids[i]) for i in same[:_NAMED])
        if len({split[i] for i in same}) > 1:
            across.append(names)
        elif len({groups[i] for i in same}) > 1:
            apart.append(names)
        if len({frozenset(labels[i]) for i in same}) > 1:
            contradicting.append(names)
    if across:
        yield f"the same scores stand on both sides of the split: {_name(across)}"
    if apart:
        yield (
            f"the same scores stand in several groups, so that cross-validation sees them twice: "
            f"{_name(apart)}"
        )
    if contradicting:
        yield f"the same scores stand under different labels: {_name(contradicting)}"


def warn_of_labels(
    classes: dict[str, tuple[int, ...]], parts: Sequence[Part], without: Sequence[str]
) -> Iterable[str]:
    """Labels that nothing can be learnt of, or that no column speaks of."""
    if not classes:
        yield "no song has a label: nothing can be learnt or measured"
        return
    if len(without) == len(classes):
        yield (
            "no label is the name of a column: majority, mean and logodds cannot be used, only "
            "methods that learn"
        )
    elif without:
        n_songs = sum(sum(classes[label]) for label in without)
        yield (
            f"{_count(len(without), 'label')} of {_count(n_songs, 'song')} without a column of "
            f"that name ({_name(without)}): averaging can never answer with one"
        )
    names = [part.name for part in parts]
    if "train" in names:
        train = names.index("train")
        new = [label for label, count in classes.items() if not count[train]]
        learnable = {label: count[train] for label, count in classes.items() if count[train]}
        if new:
            yield f"{_count(len(new), 'class', 'classes')} without a train song: {_name(new)}"
    else:
        learnable = {label: sum(count) for label, count in classes.items()}
    few = {label: count for label, count in learnable.items() if count < FEW_SONGS}
    if few:
        yield (
            f"{_count(len(few), 'class', 'classes')} with fewer than {FEW_SONGS} songs to learn "
            f"from ({_name([f'{label}: {count}' for label, count in few.items()])})"
        )


def _warn_of_scores(sum_to_one: float | None, saturated: float | None) -> Iterable[str]:
    if sum_to_one is not None and sum_to_one < 0.99:
        yield (
            f"the probabilities of {1 - sum_to_one:.1%} of the frames do not sum to one; right "
            "for one-against-rest classifiers (every column is used as it is), else a mistake"
        )
    if saturated is not None and saturated > _SUSPECT_SATURATION:
        yield (
            f"{saturated:.1%} of the scores are probabilities of exactly 0 or 1, whose log-odds "
            f"are cut at {LIMIT:.1f} nats; the classifier's logits would say more"
        )


def _warn_of_empty(empty: Sequence[str]) -> Iterable[str]:
    if empty:
        yield (
            f"{_count(len(empty), 'song')} without a frame left ({_name(empty)}): methods refuse "
            "such songs, or with on_empty=prior answer with the class prior"
        )


def _name(items: Sequence[Any]) -> str:
    """Name the first few, and say how many more there are."""
    more = len(items) - _NAMED
    return ", ".join(map(str, items[:_NAMED])) + (f" and {more} more" if more > 0 else "")


def _count(n: int, one: str, many: str | None = None) -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"
