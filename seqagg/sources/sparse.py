"""Detections to songs: tables that leave out every score below a threshold.

Conventions
-----------
A row says that a class has some score in the window from start to end, in seconds. A window is a
frame. What no row says is `Options.fill`: nobody but the user knows the threshold. Windows without
any detection have no row, so without `Options.hop` they are no frames; with it frames stand at 0,
hop, 2 hop, ... up to the last window of the recording that has a row. The table of detections is
held in memory, the scores are not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from seqagg.errors import ParameterError, SourceError
from seqagg.logodds import Kind
from seqagg.songs import Songs
from seqagg.sources.base import Batch, File, Floats, Ints, Options, n_at_a_time, unchanged
from seqagg.sources.columnar import Table, open_table

TAKES = {
    *("columns", "song", "time", "end", "scores", "class_column", "fill", "hop"),
    *("delimiter", "decimal"),
}

Mask = npt.NDArray[np.bool_]

_NO_CALL = "nocall"
"""Class of the row that BirdNET writes for a recording without any detection."""

_OF_RAVEN = {"view": "View", "begin": "Begin Time (s)"}

_OFF_GRID = 0.05
"""Share of a hop by which a window may be off its place: others round their times."""


class Format(NamedTuple):
    """How a format calls its columns, the likelier name first; and its files.

    Attributes
    ----------
    song, time, end, scores, class_column : tuple of str
    suffixes : tuple of str
        Ends of file names that do not belong to the name of the recording.
    """

    song: tuple[str, ...]
    time: tuple[str, ...]
    end: tuple[str, ...]
    scores: tuple[str, ...]
    class_column: tuple[str, ...]
    suffixes: tuple[str, ...]


@dataclass
class _Detections:
    """Detections of all recordings, column by column."""

    songs: dict[str, File] = field(default_factory=dict)  # in the order of the files
    classes: dict[str, int] = field(default_factory=dict)
    parts: list[tuple[Ints, Ints, npt.NDArray[np.float64], Floats]] = field(default_factory=list)
    lengths: Counter[float] = field(default_factory=Counter)

    def claim(self, song: str, file: File) -> None:
        """Say that a file has the detections of a recording: all of them."""
        if self.songs.setdefault(song, file).path != file.path:
            what = f"stands in {self.songs[song].path} too"
            raise SourceError(what, file=file.path, song=song)


def read_detections(
    files: Sequence[File], options: Options, notes: list[str], form: Format, name: str
) -> Iterator[Batch]:
    """Songs of the detections of all files; the classes are those found, if none are named.

    Raises
    ------
    SourceError
        Names row and column of what cannot be.
    """
    if options.fill is None:
        what = f"{name} leaves out what is below a threshold; --fill says what score that has"
        raise SourceError(what, file=files[0].path)
    if options.kind in (None, "probability") and not 0 <= options.fill <= 1:
        raise ParameterError(f"fill={options.fill} is no probability")
    found = _Detections()
    if options.columns is not None:
        found.classes = {column: i for i, column in enumerate(options.columns)}
    for file in files:
        with unchanged(file.path):
            table = open_table(file.path, options)
            _read_file(table, file, options, form, found, notes)
    if options.columns is None:
        order = sorted(found.classes)
        rank = np.array([order.index(column) for column in found.classes], dtype=np.int64)
        found.parts = [(song, rank[cls], start, score) for song, cls, start, score in found.parts]
        found.classes = {column: i for i, column in enumerate(order)}
    if not found.classes:
        raise SourceError("there is no detection, and --columns names no class", file=files[0].path)
    if options.hop is None:
        notes.append("windows without a detection are not in the files; --hop puts them in")
    yield from _songs(found, options)


def _read_file(
    table: Table,
    file: File,
    options: Options,
    form: Format,
    found: _Detections,
    notes: list[str],
) -> None:
    names = _find_names(table, options, form, file)
    types: dict[str, Any] = {names["class_column"]: pa.string(), names["scores"]: pa.float32()}
    types |= {names[role]: pa.float64() for role in ("time", "end", "begin") if role in names}
    types |= {names[role]: pa.string() for role in ("song", "view") if role in names}
    batches = [batch for batch, _ in table.batches(types)]
    rows = pa.Table.from_batches(batches, pa.schema(list(types.items())))
    if "song" not in names:
        song = file.stem(*form.suffixes)
        found.claim(song, file)
        rows = rows.append_column("", pa.repeat(song, len(rows)))
        names = names | {"song": ""}
    elif len(rows) == 0:
        notes.append(f"{file.name} has no row, which would have named a recording")
    _add(rows, names, table, file, options, found)


def _find_names(table: Table, options: Options, form: Format, file: File) -> dict[str, str]:
    names = {}
    for role in ("song", "time", "end", "scores", "class_column"):
        asked = getattr(options, role)
        usual = (asked,) if asked is not None else getattr(form, role)
        there = [name for name in usual if name in table.names]
        if there:
            names[role] = there[0]
        elif role != "song" or asked is not None:
            raise SourceError("no such column", file=file.path, column=usual[0])
    return names | {role: name for role, name in _OF_RAVEN.items() if name in table.names}


def _add(
    rows: pa.Table,
    names: dict[str, str],
    table: Table,
    file: File,
    options: Options,
    found: _Detections,
) -> None:
    """Check the rows of a file and add them."""
    numbers = np.arange(len(rows))
    if "view" in names and len(rows):  # Raven saves a selection once for each view of the sound
        of_one = pc.equal(rows[names["view"]], rows[names["view"]][0])
        rows, numbers = rows.filter(of_one), numbers[np.asarray(of_one)]

    def check(bad: npt.NDArray[np.bool_], role: str, what: str) -> None:
        if bad.any():
            row = int(np.argmax(bad))
            place = f"row {table.place(int(numbers[row]))}: {what}"
            raise SourceError(place, file=file.path, column=names[role] or None)

    song, songs = _codes(rows[names["song"]])
    check(np.isin(song, [i for i, name in enumerate(songs) if not name]), "song", "no recording")
    for name in songs:
        found.claim(name, file)
    if names["time"] == names.get("begin") and len(songs) > 1 and options.time is None:
        what = "runs on from one recording to the next, and there is no 'File Offset (s)'"
        raise SourceError(what, file=file.path, column=names["time"])
    position = {name: i for i, name in enumerate(found.songs)}
    song = np.array([position[name] for name in songs], np.int64)[song]

    column, classes = _codes(rows[names["class_column"]])
    real = ~np.isin(column, [i for i, name in enumerate(classes) if name == _NO_CALL])
    numbers, song, column, rows = numbers[real], song[real], column[real], rows.filter(real)
    check(np.isin(column, [i for i, n in enumerate(classes) if not n]), "class_column", "no class")
    if options.columns is not None:
        unknown = [i for i, name in enumerate(classes) if name not in found.classes]
        check(np.isin(column, unknown), "class_column", "a class that --columns does not name")
    for name in classes:
        if name != _NO_CALL:
            found.classes.setdefault(name, len(found.classes))
    column = np.array([found.classes.get(name, -1) for name in classes], np.int64)[column]

    start, end, score = (
        np.asarray(pc.fill_null(rows[names[role]], np.nan)) for role in ("time", "end", "scores")
    )
    if "begin" in names and names["begin"] != names["time"]:
        # Begin and end are counted through all recordings of a table, the offset within one.
        end = start + end - np.asarray(pc.fill_null(rows[names["begin"]], np.nan))
    check(~np.isfinite(start), "time", "no time")
    check(~(end > start), "end", "a window that ends before it starts")
    if options.kind in (None, "probability"):
        check(~((score >= 0) & (score <= 1)), "scores", "no confidence between 0 and 1")
    check(~np.isfinite(score), "scores", "no score")
    merged = "a window longer than most: detections in a row that were merged"
    check(_longer_than_most(end - start, found), "end", merged)
    order = np.lexsort([start, column, song])
    again = np.all([np.diff(x[order]) == 0 for x in (song, column, start)], axis=0)
    twice = np.isin(np.arange(len(order)), order[1:][again])
    check(twice, "class_column", "this class has a score in this window already")
    found.parts.append((song, column, start, score))


def _codes(column: pa.ChunkedArray) -> tuple[Ints, list[Any]]:
    """Text as positions in a list of the different ones, in the order in which they come."""
    if len(column) == 0:
        return np.empty(0, np.int64), []
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    return np.asarray(encoded.indices).astype(np.int64), encoded.dictionary.to_pylist()


def _longer_than_most(lengths: npt.NDArray[np.float64], found: _Detections) -> Mask:
    rounded = np.round(lengths, 3)
    found.lengths.update(rounded.tolist())
    usual = found.lengths.most_common(1)[0][0] if len(rounded) else 0.0
    longer: Mask = rounded > 1.01 * usual
    return longer


def _songs(found: _Detections, options: Options) -> Iterator[Batch]:
    """Fill the frames of some songs at a time."""
    song, column, start, score = (
        np.concatenate([part[i] for part in found.parts]) if found.parts else np.empty(0)
        for i in range(4)
    )
    order = np.lexsort([start, song])
    song, column, start, score = song[order], column[order], start[order], score[order]
    names, files = list(found.songs), list(found.songs.values())
    bounds = np.searchsorted(song, np.arange(len(names) + 1))
    kind: Kind = options.kind or "probability"
    at_a_time = n_at_a_time(len(found.classes))
    waiting: list[tuple[Floats, npt.NDArray[np.float64]]] = []
    first = 0
    for i in range(len(names)):
        here = slice(bounds[i], bounds[i + 1])
        frame, times = _grid(start[here], options.hop, names[i], files[i])
        frames = np.full((len(times), len(found.classes)), options.fill, dtype=np.float32)
        frames[frame, column[here].astype(np.int64)] = score[here]
        waiting.append((frames, times))
        if sum(len(f) for f, _ in waiting) >= at_a_time or i == len(names) - 1:
            songs = Songs.from_arrays(
                [f for f, _ in waiting],
                start=[t for _, t in waiting],
                columns=list(found.classes),
                kind=kind,
                task=options.task or "multiclass",
                ids=names[first : i + 1],
                note=options.note,
            )
            yield Batch(songs, files[first : i + 1], (i + 1) / len(names))
            waiting, first = [], i + 1


def _grid(
    start: npt.NDArray[np.float64], hop: float | None, song: str, file: File
) -> tuple[Ints, npt.NDArray[np.float64]]:
    """Frame of every detection, and times of the frames."""
    if hop is None:
        times, frame = np.unique(start, return_inverse=True)
        return frame.astype(np.int64), times
    frame = np.round(start / hop).astype(np.int64)
    off = np.abs(start - frame * hop) > _OFF_GRID * hop
    if off.any():
        what = f"a window at {start[off][0]:g} s, which is no multiple of --hop {hop:g}"
        raise SourceError(what, file=file.path, song=song)
    return frame, np.arange(frame.max() + 1 if len(frame) else 0) * hop
