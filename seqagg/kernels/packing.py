"""Songs side by side, frame by frame, without padding.

Conventions
-----------
A pack holds songs of similar length, the longest first. Its columns are their first frames, then
the second frames of those that have one, and so on: step t has the columns
``starts[t]:starts[t + 1]``, in the same order of songs, so that a song's next frame stands at the
same place in the next step. A loop over time then does the same to long, contiguous runs of songs.
A *window* is a run of steps, few enough for what is computed from them to stay in the processor's
cache.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seqagg.kernels.elementary import jit_fused

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pack:
    """Places of the frames of some songs."""

    songs: Ints  # (n_songs,) which songs, the longest first
    first: Ints  # (n_songs,) first frame of each
    starts: Ints  # (n_steps + 1,) where each step starts
    windows: Ints  # (n_windows + 1,) step that each window starts with
    widest: int  # columns of the widest window

    def columns(self, place: int) -> Ints:
        """Columns of the song at a place, in time order."""
        n_frames = int((np.diff(self.starts) > place).sum())
        return self.starts[:n_frames] + place


def pack_songs(first: Ints, lengths: Ints, n_songs: int, n_columns: int) -> list[Pack]:
    """Pack songs, none of them empty, so many at a time.

    Parameters
    ----------
    first, lengths : ndarray of int, shape (n_all_songs,)
        First frame of each song, and how many it has.
    n_songs : int
        Songs per pack.
    n_columns : int
        Columns per window, at most; but a window has one step at least.
    """
    order = np.argsort(-lengths, kind="stable")
    packs = []
    for i in range(0, len(order), n_songs):
        songs = order[i : i + n_songs]
        mine = lengths[songs]
        # Songs with more than t frames, for every step t.
        widths = len(songs) - np.searchsorted(mine[::-1], np.arange(mine[0]), "right")
        starts = np.concatenate([[0], np.cumsum(widths)])
        windows = _windows(starts.tolist(), n_columns)
        widest = int(np.diff(starts[windows]).max())
        packs.append(Pack(songs, first[songs], starts, windows, widest))
    return packs


def _windows(starts: list[int], n_columns: int) -> Ints:
    steps = [0]
    while steps[-1] < len(starts) - 1:
        end = bisect_right(starts, starts[steps[-1]] + n_columns) - 1
        steps.append(max(steps[-1] + 1, end))
    return np.array(steps)


# max(.., 0) tells the compiler that an index counts from the front. Without it, it checks every
# one, and cannot work on several columns at once: 7 times slower. Nor can it on a slice of columns.


@jit_fused
def gather(frames, first, stride, starts, center, out):  # type: ignore[no-untyped-def]
    """Fill `out`, shape (n_features, n_columns), with the frames of a pack less the center.

    Song c has its first frame in row ``first[c]``, and each next one `stride` rows further.
    """
    for t in range(len(starts) - 1):
        here, n = max(starts[t], 0), starts[t + 1] - starts[t]
        for d in range(len(center)):
            for c in range(n):
                out[d, here + c] = frames[max(first[c] + t * stride, 0), d] - center[d]


@jit_fused
def matrix(flat, n_rows, n_columns):  # type: ignore[no-untyped-def]
    """Beginning of a flat array as a matrix."""
    return flat[: n_rows * n_columns].reshape(n_rows, n_columns)
