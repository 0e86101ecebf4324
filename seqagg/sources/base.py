"""What every source is asked and what it gives: options, files, batches of songs.

Conventions
-----------
A source is a module with ``TAKES``, the options it understands, and ``read``, which makes `Batch`
after `Batch` of files, options and notes. Batches hold whole songs, at most some megabytes of them,
in the order of the files; each has the same fields filled. Whatever a user should know but need not
act on is added to the notes. Rows of a text table are counted as an editor does, the header being
row 1; those of other tables from 0.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from seqagg.cache_table import MOST_CLAIMED
from seqagg.errors import ParameterError, SourceError
from seqagg.files import check_regular
from seqagg.logodds import Kind, Task
from seqagg.songs import Songs

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

BATCH_BYTES = 16 * 2**20
"""About how many bytes of scores are read at a time."""

MOST_COLUMNS = 100_000
"""Columns above which a table is more likely turned than wide."""

IDS = ("path", "name", "stem")
"""What of a path may be a song's id."""

DECIMALS = (".", ",")
"""What may stand before the decimals of a number in a text."""

_ALWAYS = {"kind", "task", "note", "ids", "folder_is", "classes", "labels", "labels_song"}

_OF_LABELS = {"label", "group", "split", "fold", "delimiter", "decimal"}


@dataclass(frozen=True)
class Options:
    """What files do not say by themselves.

    A name is that of a column in a table, of an array in ``.npz`` and HDF5, and beside a ``.npy``
    file the path of another ``.npy`` or ``.txt`` file.

    Attributes
    ----------
    kind : {"probability", "logit", "log_odds"}, optional
        What the scores are. Required where the format does not say.
    task : {"multiclass", "multilabel"}, optional
        Whether a song has one label or several; multiclass by default.
    columns : sequence of str, optional
        Names of the score columns, in order. In a table they choose the columns.
    ignore : sequence of str
        Columns of a table that are no scores.
    song, time, end, label, group, split, fold : str, optional
        Names of what holds song ids, start and end of frames in seconds, and so on.
    scores, lengths, mask : str, optional
        Names of the scores, of the number of frames of each song, and of what is true where a frame
        of a padded array is real.
    transpose : bool
        Arrays are (n_columns, n_frames).
    fill : float, optional
        Score of what a sparse table leaves out because it is below a threshold.
    hop : float, optional
        Seconds from one window to the next in a sparse table: windows without any detection are
        then filled, up to the last one with some.
    class_column : str, optional
        Column of a sparse table that names the class.
    delimiter : str, optional
        What stands between the cells of a text table; by its suffix and header if not given.
    decimal : {".", ","}
        What stands before the decimals of its numbers.
    sort : bool
        Gather the rows of songs that do not stand together, by time if there is any, in memory.
    classes : sequence of str or "columns", optional
        Names of labels that are numbers: the label 0 is the first. ``"columns"``: those of the
        score columns.
    ids : {"path", "name", "stem"}
        What of a path that names a song is its id: all of it, its last part, or that without its
        suffix.
    folder_is : {"label", "group", "split"}, optional
        What the folder in a path that names a song says.
    labels : path-like, optional
        A second table with labels, groups, splits or folds of songs.
    labels_song : str, optional
        Its column of song ids; as in the first table, or ``song_id``.
    note : str
        Free text, kept in the cache.
    """

    kind: Kind | None = None
    task: Task | None = None
    columns: Sequence[str] | None = None
    ignore: Sequence[str] = ()
    song: str | None = None
    time: str | None = None
    end: str | None = None
    label: str | None = None
    group: str | None = None
    split: str | None = None
    fold: str | None = None
    scores: str | None = None
    lengths: str | None = None
    mask: str | None = None
    transpose: bool = False
    fill: float | None = None
    hop: float | None = None
    class_column: str | None = None
    delimiter: str | None = None
    decimal: Literal[".", ","] = "."
    sort: bool = False
    classes: Sequence[str] | Literal["columns"] | None = None
    ids: Literal["path", "name", "stem"] = "path"
    folder_is: Literal["label", "group", "split"] | None = None
    labels: str | os.PathLike[str] | None = None
    labels_song: str | None = None
    note: str = ""

    def only(self, takes: Collection[str], source: str) -> None:
        """Refuse options that a source would not heed.

        With a second table, ``label`` and its like name the columns of that one.
        """
        known = _ALWAYS | set(takes) | (_OF_LABELS if self.labels is not None else set())
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in known and value != field.default:
                raise ParameterError(f"the format {source} takes no {field.name} ({value!r} given)")

    def declared(self, file: Path | None) -> Kind:
        """Kind of the scores, which must have been said."""
        if self.kind is None:
            raise SourceError(
                "what are these scores? --kind says it: probability, logit or log_odds",
                file=file,
            )
        return self.kind


@dataclass(frozen=True)
class File:
    """A file to read.

    Attributes
    ----------
    path : Path
    name : str
        Its path from the folder that was given, with ``/``, or just its name.
    split : str or None
        Split that all its songs were given.
    """

    path: Path
    name: str
    split: str | None = None

    def stem(self, *suffixes: str) -> str:
        """Name without one of these suffixes, or without what its last dot begins."""
        for suffix in suffixes:
            if self.name.endswith(suffix) and len(self.name) > len(suffix):
                return self.name.removesuffix(suffix)
        return self.name.removesuffix(self.path.suffix)


class Batch(NamedTuple):
    """Whole songs, and where they were read.

    Attributes
    ----------
    songs : Songs
    files : sequence of File, of length n_songs; empty if they come from memory
    share : float
        How much of the last of these files has been read, in [0, 1].
    row : callable or None
        Number of a song -> row at which it begins, where its file has rows. Not quick.
    """

    songs: Songs
    files: Sequence[File]
    share: float = 1.0
    row: Callable[[int], int] | None = None


@contextmanager
def unchanged(path: Path) -> Iterator[None]:
    """Refuse a file that is no longer at the end of the block what it was at its start."""
    check_regular(path, SourceError)
    before = _identity(path)
    yield
    if _identity(path) != before:
        raise SourceError("changed while it was read", file=path)


def _identity(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


def n_at_a_time(n_columns: int) -> int:
    """Frames of so many columns that make a batch."""
    return max(1, BATCH_BYTES // (4 * max(n_columns, 1)))


def numbered(n_columns: int) -> list[str]:
    """Names for columns that have none; no label is called so by chance."""
    return [f"column_{i}" for i in range(n_columns)]


def named_columns(options: Options, n_columns: int, file: Path | None) -> tuple[str, ...]:
    """Names of the columns of an array."""
    if n_columns > MOST_CLAIMED:
        raise SourceError(f"has {n_columns:,} columns, more than {MOST_CLAIMED:,}", file=file)
    if options.columns is None:
        return tuple(numbered(n_columns))
    if len(options.columns) != n_columns:
        raise SourceError(f"has {n_columns} columns, {len(options.columns)} are named", file=file)
    return tuple(options.columns)


def as_scores(array: npt.NDArray[Any]) -> Floats:
    """Array of numbers as scores."""
    with np.errstate(over="ignore", invalid="ignore"):  # a NaN may be one that signals
        return np.ascontiguousarray(array, dtype=np.float32)
