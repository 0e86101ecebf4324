"""What networks hear in an epoch: the training songs, or others each time.

Conventions
-----------
Of a cache that no machine holds, a method is fitted to a sample, which decides all but the weights
of its networks; these hear another sample in every epoch. Songs that a network is stopped on, and
songs of their groups, are never among those.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from seqagg.folds import Fold
from seqagg.songs import Songs

if TYPE_CHECKING:
    from torch import Tensor

    from seqagg.aggregators.base import Aggregator
    from seqagg.aggregators.batches import Batches
    from seqagg.aggregators.team import Team

Ints = npt.NDArray[np.int64]

_SPARE = 5.0
"""Standard deviations by which the songs of an epoch may be more than they are on average."""


@dataclass(frozen=True)
class Without:
    """Songs that must not be learnt from, by their ids and by their groups."""

    ids: frozenset[str]
    groups: frozenset[str]


class Lessons(Protocol):
    """Where the songs of an epoch come from."""

    @property
    def share(self) -> float:
        """How many there are in an epoch, as a share of the songs that the method is fitted to."""

    def __call__(self, aggregator: Aggregator, without: Without, epoch: int) -> tuple[Songs, Ints]:
        """Songs and labels of an epoch, counted from 0, as private methods get them."""


@dataclass(frozen=True)
class Turn:
    """What one network is trained and stopped on, and by whom.

    Attributes
    ----------
    number : int
    learn, held : ndarray of int
        Songs to learn from, and songs to be stopped on.
    n_songs : int
        The most songs of an epoch.
    team : Team
    lessons : callable, optional
        From an epoch, counted from 0, to other songs to learn from, and their labels.
    """

    number: int
    learn: Ints
    held: Ints
    n_songs: int
    team: Team
    lessons: Callable[[int], tuple[Songs, Ints]] | None


@dataclass(frozen=True)
class Lesson:
    """Songs of an epoch, and what `as_target` makes of their labels."""

    batches: Batches
    songs: Ints
    target: Tensor


_lessons: ContextVar[Lessons | None] = ContextVar("seqagg_lessons", default=None)


@contextlib.contextmanager
def hearing(lessons: Lessons | None) -> Iterator[None]:
    """Let networks of fits within the block learn from other songs in every epoch, if from any."""
    token = _lessons.set(lessons)
    try:
        yield
    finally:
        _lessons.reset(token)


def make_turns(
    aggregator: Aggregator, songs: Songs, groups: Ints, folds: list[Fold], team: Team
) -> list[Turn]:
    """A turn for each fold, with the lessons of the innermost `hearing`, if there are any."""
    lessons = _lessons.get()
    if lessons is None:
        return [Turn(i, *fold, len(fold[0]), team, None) for i, fold in enumerate(folds)]
    mean = lessons.share * len(songs)
    n_songs = math.ceil(mean + _SPARE * math.sqrt(mean))
    grouped = len(np.unique(groups)) < len(groups)
    turns = []
    for i, (learn, held) in enumerate(folds):
        without = _named(songs[held], grouped)
        turns.append(Turn(i, learn, held, n_songs, team, partial(lessons, aggregator, without)))
    return turns


def _named(songs: Songs, grouped: bool) -> Without:
    groups = songs.groups if grouped and songs.groups is not None else ()
    return Without(
        frozenset(str(song) for song in songs.ids),
        frozenset(str(group) for group in groups if group is not None),
    )
