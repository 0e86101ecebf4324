"""Labels for Audacity: where in a song a class has a score above a threshold.

Conventions
-----------
A file per song, a line per label: start and end in seconds and the name of the class, with tabs
between them. Windows of a class that touch or overlap are one label.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from seqagg.errors import ParameterError, SourceError
from seqagg.files import growing_folder
from seqagg.songs import Songs

_SAFE = " !#$&'()+,;=@[]{}~"
_LONGEST_NAME = 240
_TOUCH = 1e-3
"""Seconds by which windows that touch may be apart: starts are kept as float32."""


def to_audacity(
    songs: Songs, folder: str | os.PathLike[str], *, threshold: float, window: float
) -> None:
    """Write a folder of label files, one for each song, named by it.

    Parameters
    ----------
    songs : Songs
        Frames without a start follow one another.
    folder : path-like
        Must not be there yet; it appears when all files are written. In the names of files, ``/``
        and the like stand as in web addresses, ``%2F``.
    threshold : float
        Least score, in the units of the scores, that gives a label.
    window : float
        Length of a frame, in seconds.

    Raises
    ------
    SourceError
        When the folder is there, or a song's name is too long for a file.
    """
    write_labels([songs], folder, threshold=threshold, window=window)


def write_labels(
    batches: Iterable[Songs], folder: str | os.PathLike[str], *, threshold: float, window: float
) -> None:
    """Write the label files of songs that come in batches; see `to_audacity`."""
    if not window > 0:
        raise ParameterError(f"window={window} is no number of seconds")
    if os.path.lexists(folder):
        raise SourceError("is there already", file=folder)
    with growing_folder(folder) as growing:
        for songs in batches:
            _write(songs, growing, threshold, window)


def _write(songs: Songs, folder: Path, threshold: float, window: float) -> None:
    columns = songs.columns or tuple(map(str, range(songs.n_columns)))
    words = [" ".join(name.split()) for name in columns]  # a tab or a line end would be read as one
    for i, name in enumerate(songs.ids):
        here = slice(songs.offsets[i], songs.offsets[i + 1])
        scores = songs.values[here]
        start = np.arange(len(scores)) * window if songs.start is None else songs.start[here]
        file = quote(str(name), safe=_SAFE)
        file = "%2E" + file[1:] if file.startswith(".") else file
        if len(file) > _LONGEST_NAME:
            raise SourceError("this name is too long for a file", song=str(name))
        lines = [
            f"{first:.6f}\t{end:.6f}\t{words[column]}\n"
            for first, end, column in spans(scores >= threshold, start, window)
        ]
        (folder / f"{file}.txt").write_text("".join(lines), encoding="utf-8")


def spans(
    above: npt.NDArray[np.bool_], start: npt.NDArray[np.floating], window: float
) -> list[tuple[float, float, int]]:
    """Start, end and column of every stretch in which a class is above the threshold.

    Parameters
    ----------
    above : ndarray of bool, shape (n_frames, n_columns)
    start : ndarray of shape (n_frames,)
        Seconds, rising.
    window : float
        Length of a frame, in seconds.
    """
    found = []
    for column in range(above.shape[1]):
        times = start[above[:, column]].astype(np.float64)
        breaks = np.flatnonzero(np.diff(times) > window + _TOUCH) + 1
        found += [
            (float(s[0]), float(s[-1]) + window, column) for s in np.split(times, breaks) if len(s)
        ]
    return sorted(found)
