"""Averages over the frames of songs, be they whole or still playing.

Conventions
-----------
Averages have shape (n_songs, n_columns) and go by their names:

- ``log_odds``, ``probability``, ``improbability`` (1 - p, with all its digits): means;
- ``votes``: how many frames have the column as their highest;
- ``approvals``: in how many frames its probability is at least 0.5.

A rule that is written in these names is the same for songs in a cache and for streams.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from seqagg.kernels.segments import (
    segment_mean,
    segment_mean_log_odds,
    segment_mean_probability,
    segment_mean_within,
    segment_sum,
    segment_votes,
)
from seqagg.logodds import PROBABILITY_MARGIN
from seqagg.songs import Songs
from seqagg.streaming import Memory
from seqagg.threads import count_threads

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_BYTES_A_THREAD = 4 * 2**20
"""What takes longer to read than a thread to begin."""

_COUNTS = ("votes", "approvals")


class Averages(ABC):
    """Averages of songs by name, and how many frames they are of, shape (n_songs,)."""

    lengths: Ints

    @abstractmethod
    def __getitem__(self, name: str) -> Floats:
        """Average of that name, shape (n_songs, n_columns)."""


class WholeSongs(Averages):
    """Averages of songs that are there from their first frame to their last.

    Parameters
    ----------
    songs : Songs
        Of log-odds or probabilities, a frame at least in each.
    order : ndarray of int, optional
        Columns in the order in which they are wanted.
    n_jobs : int, optional
        Threads that share many songs, as joblib counts them. The averages do not depend on it.
    """

    def __init__(self, songs: Songs, order: Ints | None = None, n_jobs: int | None = None) -> None:
        self.lengths = songs.lengths
        self._songs = songs
        self._order = order
        self._n_jobs = n_jobs

    def __getitem__(self, name: str) -> Floats:
        found = self._shared(_AVERAGES[name])
        # It is cheaper to put the averages in order than all frames.
        return found if self._order is None else found.take(self._order, axis=1)

    def _shared(self, average: Callable[[Songs], Floats]) -> Floats:
        songs = self._songs
        n = min(count_threads(self._n_jobs), songs.values.nbytes // _BYTES_A_THREAD)
        if n <= 1:
            return average(songs)
        frames = np.linspace(songs.offsets[0], songs.offsets[-1], n + 1)[1:-1]
        ends = [0, *np.searchsorted(songs.offsets, frames).tolist(), len(songs)]
        parts = [songs[first:end] for first, end in pairwise(ends)]
        with ThreadPoolExecutor(n) as pool:
            return np.concatenate(list(pool.map(average, parts)))


class HeldAverages(Averages):
    """Averages that were made once, of songs whose frames may be gone.

    Parameters
    ----------
    lengths : ndarray of int, shape (n_songs,)
    arrays : mapping from name to ndarray of shape (n_songs, n_columns)
    """

    def __init__(self, lengths: Ints, arrays: Mapping[str, Floats]) -> None:
        self.lengths = lengths
        self._arrays = arrays

    @classmethod
    def of(cls, songs: Songs, names: Iterable[str]) -> HeldAverages:
        """Averages of these names."""
        whole = WholeSongs(songs)
        return cls(songs.lengths, {name: whole[name] for name in names})

    @classmethod
    def joined(cls, parts: Iterable[HeldAverages]) -> HeldAverages:
        """Those of all songs."""
        listed = list(parts)
        names = listed[0]._arrays
        arrays = {name: np.concatenate([part[name] for part in listed]) for name in names}
        return cls(np.concatenate([part.lengths for part in listed]), arrays)

    def __getitem__(self, name: str) -> Floats:
        return self._arrays[name]

    def take(self, songs: Ints) -> HeldAverages:
        """Those of some songs."""
        arrays = {name: array[songs] for name, array in self._arrays.items()}
        return HeldAverages(self.lengths[songs], arrays)


class RunningAverages(Memory):
    """Averages of songs that are still playing.

    Parameters
    ----------
    n, n_columns : int
    names : iterable of str
        The averages that will be asked for.
    order : ndarray of int, optional
        Columns in the order in which they are wanted.
    start : mapping, optional
        What else is remembered of a stream, see `Memory`.
    """

    def __init__(
        self,
        n: int,
        n_columns: int,
        names: Iterable[str],
        order: Ints | None = None,
        start: Mapping[str, npt.ArrayLike] = {},
    ) -> None:
        self._names = tuple(names)
        self._order = order
        super().__init__(n, {**{name: np.zeros(n_columns) for name in self._names}, **start})

    def _hear(self, songs: Songs, which: Ints) -> None:
        found = WholeSongs(songs)
        for name in self._names:
            scale = 1 if name in _COUNTS else songs.lengths[:, None]
            self.arrays[name][which] += found[name] * scale

    def averages(self, which: Ints) -> Averages:
        """Averages of all frames that these streams have heard."""
        return _Heard(self.arrays, which, self._order)


class _Heard(Averages):
    def __init__(self, arrays: Mapping[str, Floats], which: Ints, order: Ints | None) -> None:
        self.lengths = arrays["n_frames"][which].astype(np.int64)
        self._arrays = arrays
        self._which = which
        self._order = order

    def __getitem__(self, name: str) -> Floats:
        found = self._arrays[name][self._which]
        if name not in _COUNTS:
            found /= self.lengths[:, None]
        return found if self._order is None else found.take(self._order, axis=1)


def _log_odds(songs: Songs) -> Floats:
    mean = segment_mean_log_odds if songs.kind == "probability" else segment_mean
    return mean(songs.values, songs.offsets)


def _probability(songs: Songs) -> Floats:
    if songs.kind == "probability":
        low, high = PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN
        return segment_mean_within(songs.values, songs.offsets, low, high)
    return segment_mean_probability(songs.values, songs.offsets)


def _improbability(songs: Songs) -> Floats:
    if songs.kind == "probability":
        return 1 - _probability(songs)
    return segment_mean_probability(-songs.values, songs.offsets)


def _votes(songs: Songs) -> Floats:
    return segment_votes(songs.values, songs.offsets)


def _approvals(songs: Songs) -> Floats:
    even = 0.5 if songs.kind == "probability" else 0.0
    return segment_sum((songs.values >= even).astype(np.float32), songs.offsets)


_AVERAGES: dict[str, Callable[[Songs], Floats]] = {
    "log_odds": _log_odds,
    "probability": _probability,
    "improbability": _improbability,
    "votes": _votes,
    "approvals": _approvals,
}
