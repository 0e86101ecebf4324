"""Folds inside the training songs: what a learnt method is tried on must be new to it.

Conventions
-----------
``groups`` are indices, shape (n_songs,), and so is ``y``, or it is an indicator of shape
(n_songs, n_classes). A fold is a pair of index arrays, the songs to
learn from and the songs held out; the held-out parts together are all songs, each once.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from seqagg.errors import ParameterError

Ints = npt.NDArray[np.int64]
Fold = tuple[Ints, Ints]


def grouped_folds(y: Ints, groups: Ints, n_folds: int, seed: int) -> list[Fold]:
    """Stratified folds that keep groups whole.

    Parameters
    ----------
    y : ndarray of int, shape (n_songs,) or (n_songs, n_classes)
        Class of each song, spread as evenly over the folds as the groups allow. Of several
        labels of a song it is the rarest that is spread.
    groups : ndarray of int, shape (n_songs,)
        Never on both sides of a fold.
    n_folds : int
        Fewer are made where there are fewer groups.
    seed : int
        Of the shuffle.

    Returns
    -------
    list of (learn, held_out)
        Empty if all songs are of one group: then nothing can be held out.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if y.ndim == 2:
        y = _rarest(y)
    n_groups = len(np.unique(groups))
    n_folds = min(n_folds, n_groups)
    if n_folds < 2:
        return []
    if np.bincount(y).max() < n_folds:  # scikit-learn refuses to stratify so few songs
        y = np.zeros_like(y)
    # Groups are placed one by one, which costs seconds where every song is its own.
    alone = n_groups == len(groups)
    kind = StratifiedKFold if alone else StratifiedGroupKFold
    splitter = kind(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class with fewer songs than folds is missing from some of them, and may be.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        folds = list(splitter.split(np.empty(len(y)), y, None if alone else groups))
    return [(learn, held) for learn, held in folds if len(learn) and len(held)]


def group_indices(groups: Iterable[Any] | None, n_songs: int) -> Ints:
    """Index of each song's group, numbered by first appearance, shape (n_songs,).

    A song whose group is unknown (None, or NaN as pandas has it) is a group of its own.
    """
    if groups is None:
        return np.arange(n_songs)
    listed = groups.tolist() if isinstance(groups, np.ndarray) else list(groups)
    if len(listed) != n_songs:
        raise ParameterError(f"{len(listed)} groups for {n_songs} songs")
    keys: list[Hashable] = [
        ("song", i) if group is None or group != group else ("group", group)
        for i, group in enumerate(listed)
    ]
    index: dict[Hashable, int] = {}
    return np.array([index.setdefault(key, len(index)) for key in keys], dtype=np.int64)


def _rarest(indicator: Ints) -> Ints:
    """Index of each song's rarest label; one more than the last where it has none."""
    frequency = np.where(indicator == 1, indicator.sum(axis=0), len(indicator) + 1)
    bare = ~indicator.any(axis=1)
    return np.asarray(np.where(bare, indicator.shape[1], frequency.argmin(axis=1)))
