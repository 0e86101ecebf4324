"""Nested splits: frame model, aggregator and verdict, each on songs that the last has not seen.

An aggregator learns from frame scores. Scores of songs that the frame model was trained on look
far too good, so the aggregator's training songs must be scored out of fold; and if the songs that
judge the aggregator were among those that trained these frame models, they have leaked into its
training after all. Two loops keep all three apart: the outer one holds out the songs that judge,
the inner one goes through the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from seqagg.errors import ParameterError, SongError
from seqagg.folds import Fold, grouped_folds
from seqagg.songs import Songs

Ints = npt.NDArray[np.int64]
Score = Callable[[Ints, Ints], Songs]
"""``score(learn, held)`` trains a frame model on the songs `learn` and scores the songs `held`."""


@dataclass(frozen=True)
class NestedFold:
    """One turn of the outer loop; all indices count the same songs.

    Attributes
    ----------
    train : ndarray of int
        Songs that the aggregator is fitted to.
    test : ndarray of int
        Songs that judge it.
    inner : list of (learn, held)
        Folds of the training songs: the frame model of `learn` scores `held`.
    """

    train: Ints
    test: Ints
    inner: list[Fold]

    def score(self, score: Score) -> tuple[Songs, Songs]:
        """Score the songs of this turn, with one frame model more than there are inner folds.

        Parameters
        ----------
        score : callable
            ``score(learn, held)`` trains a frame model on the songs `learn` and returns `Songs`,
            the songs `held` in that order.

        Returns
        -------
        train : Songs
            All training songs, each by a frame model that had not seen its group, `fold` set.
        test : Songs
            By the frame model of all training songs.

        Raises
        ------
        SongError
            If `score` returns another number of songs than it was asked for.
        """
        parts = [_scored(score, learn, held) for learn, held in self.inner]
        train = Songs.concatenate(parts)
        turn = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        order = np.argsort(np.concatenate([held for _, held in self.inner]))
        train = train.replace(fold=turn)[order]
        return train, _scored(score, self.train, self.test)


def nested_folds(
    labels: Any, groups: Any = None, *, n_outer: int = 5, n_inner: int = 5, seed: int = 0
) -> list[NestedFold]:
    """Split songs twice: into those that judge and the others, and these into folds again.

    Parameters
    ----------
    labels : array-like of shape (n_songs,) or (n_songs, n_classes)
        Labels of any type or an indicator, spread as evenly over folds as the groups allow.
    groups : array-like of shape (n_songs,), optional
        Never on both sides of a split (artist, speaker); each song its own by default.
    n_outer, n_inner : int
        Folds, at least 2; fewer are made where there are fewer groups.
    seed : int
        Of the shuffles.

    Returns
    -------
    list of NestedFold
        Every song judges once.

    Examples
    --------
    >>> for fold in nested_folds(["jig", "reel"] * 6, n_outer=3, n_inner=2):
    ...     print(len(fold.train), len(fold.test), [len(held) for _, held in fold.inner])
    8 4 [4, 4]
    8 4 [4, 4]
    8 4 [4, 4]
    """
    if min(n_outer, n_inner) < 2:
        raise ParameterError(f"n_outer={n_outer} and n_inner={n_inner} must be 2 or more")
    y = np.asarray(labels)
    if y.ndim == 1:
        y = np.unique(y, return_inverse=True)[1]
    group_of = np.arange(len(y)) if groups is None else np.unique(groups, return_inverse=True)[1]
    if len(group_of) != len(y):
        raise ParameterError(f"{len(group_of)} groups for {len(y)} labels")
    found = []
    for train, test in grouped_folds(y, group_of, n_outer, seed):
        inner = grouped_folds(y[train], group_of[train], n_inner, seed)
        found.append(NestedFold(train, test, [(train[a], train[b]) for a, b in inner]))
    if not found or not all(fold.inner for fold in found):
        n_groups = len(np.unique(group_of))
        raise ParameterError(f"{n_groups} groups of songs are too few to be split twice")
    return found


def _scored(score: Score, learn: Ints, held: Ints) -> Songs:
    songs = score(learn, held)
    if len(songs) != len(held):
        raise SongError(f"asked to score {len(held)} songs, got {len(songs)}")
    return songs
