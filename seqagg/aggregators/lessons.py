"""What networks hear in an epoch: the training songs, or others each time.

Conventions
-----------
Of a cache that no machine holds, a method is fitted to a sample, which decides all but the weights
of its networks; these hear another sample in every epoch. Songs that a network is stopped on, and
songs of their groups, are never among those.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from seqagg.aggregators.batches import Batches
from seqagg.aggregators.team import Team
from seqagg.songs import Songs

if TYPE_CHECKING:
    from seqagg.aggregators.base import Aggregator

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Without:
    """Songs that must not be learnt from, by their ids and by their groups."""

    ids: frozenset[str]
    groups: frozenset[str]


class Lessons(Protocol):
    """Where the songs of an epoch come from."""

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
    team : Team
    lessons : callable, optional
        From an epoch, counted from 0, to other songs to learn from, and their labels.
    """

    number: int
    learn: Ints
    held: Ints
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
def hearing(lessons: Lessons) -> Iterator[None]:
    """Let networks of fits within the block learn from other songs in every epoch."""
    token = _lessons.set(lessons)
    try:
        yield
    finally:
        _lessons.reset(token)


def lessons_without(
    aggregator: Aggregator, songs: Songs, held: Ints, groups: Ints
) -> Callable[[int], tuple[Songs, Ints]] | None:
    """Lessons of the innermost `hearing` without the songs held out; None outside of it."""
    lessons = _lessons.get()
    if lessons is None:
        return None
    apart: frozenset[str] = frozenset()
    if songs.groups is not None and len(np.unique(groups)) < len(groups):
        apart = frozenset(str(group) for group in songs.groups[held] if group is not None)
    return partial(lessons, aggregator, Without(frozenset(map(str, songs.ids[held])), apart))
