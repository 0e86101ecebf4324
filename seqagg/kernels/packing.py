"""Songs side by side, frame by frame, without padding.

Conventions
-----------
A pack holds songs of similar length, the longest first. Its columns are their first frames, then
the second frames of those that have one, and so on: step t has the columns
``starts[t]:starts[t + 1]``, in the same order of songs, so that a song's next frame stands at the
same place in the next step. A loop over time then does the same to long, contiguous runs of songs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pack:
    """Places of the frames of some songs."""

    songs: Ints  # (n_songs,) which songs, the longest first
    rows: Ints  # (n_columns,) which frame each column is
    starts: Ints  # (n_steps + 1,) where each step starts

    @property
    def n_steps(self) -> int:
        """Number of frames of the longest song."""
        return len(self.starts) - 1

    def song_of_column(self) -> Ints:
        """Place within `songs` of the song that each column belongs to, shape (n_columns,)."""
        return np.arange(len(self.rows)) - np.repeat(self.starts[:-1], np.diff(self.starts))

    def windows(self, n_columns: int) -> Iterator[tuple[int, int]]:
        """Runs of steps of at most so many columns each, but of one step at least."""
        first = 0
        while first < self.n_steps:
            end = int(np.searchsorted(self.starts, self.starts[first] + n_columns, "right")) - 1
            end = max(first + 1, end)
            yield first, end
            first = end


def pack_songs(offsets: Ints, n_songs: int) -> list[Pack]:
    """Pack songs, none of them empty, so many at a time.

    Parameters
    ----------
    offsets : ndarray of int, shape (n_all_songs + 1,)
    n_songs : int
        Songs per pack.
    """
    lengths = np.diff(offsets)
    order = np.argsort(-lengths, kind="stable")
    return [_pack(offsets, lengths, order[i : i + n_songs]) for i in range(0, len(order), n_songs)]


def _pack(offsets: Ints, lengths: Ints, songs: Ints) -> Pack:
    mine = lengths[songs]
    # Songs with more than t frames, for every step t.
    widths = len(songs) - np.searchsorted(mine[::-1], np.arange(mine[0]), "right")
    starts = np.concatenate([[0], np.cumsum(widths)])
    step = np.repeat(np.arange(mine[0]), widths)
    place = np.arange(starts[-1]) - starts[step]
    return Pack(songs, offsets[songs][place] + step, starts)
