"""Tables with a row per frame: song, optional time, one column per class.

CSV, TSV, Parquet, Arrow, and DataFrames in memory. Without ``columns``, every column that is
nothing else is a score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seqagg.cache_table import HEADER_KEY, flattened, header_of
from seqagg.errors import SourceError
from seqagg.sources.base import Batch, File, Ints, Options, unchanged
from seqagg.sources.columnar import FRAMES_KEY, ColumnTable, Table, matrix, open_table
from seqagg.sources.rows import PER_SONG, Rows, RowsToSongs

TAKES = {
    *("columns", "ignore", "song", "time", "end", "label", "group", "split", "fold"),
    *("delimiter", "decimal", "sort"),
}

NAMES = {
    "song": "song_id",
    "time": "start",
    "end": "end",
    "label": "label",
    "group": "group",
    "split": "split",
    "fold": "fold",
}
"""What is in a column -> its name, if no other is given."""

_UNNAMED = ("", "Unnamed: ", "__index_level_")
"""How pandas begins the name of an index without one."""


def read(files: Sequence[File], options: Options, notes: list[str]) -> Iterator[Batch]:
    """Songs of tables."""
    for file in files:
        with unchanged(file.path):
            table = open_table(file.path, options)
            yield from read_table(table, options, notes, file=file)


def read_table(
    table: Table,
    options: Options,
    notes: list[str],
    *,
    file: File | None = None,
    names: dict[str, str] = NAMES,
    song: str | None = None,
) -> Iterator[Batch]:
    """Songs of one table.

    Parameters
    ----------
    table, options, notes
    file : File, optional
    names : dict
        How columns are called if `options` say nothing else.
    song : str, optional
        Id of the one song of the table, which then has no column of ids.
    """
    options = as_declared(table, options)
    kind = options.declared(table.path)
    roles = find_roles(table, options, names, needs_song=song is None)
    columns = find_columns(table, options, roles, notes)
    types = {name: _TYPES.get(role, pa.string()) for role, name in roles.items()}
    types |= dict.fromkeys(columns, pa.float32())
    pieces: Iterator[tuple[pa.RecordBatch, float]] = table.batches(types)
    place: Callable[[int], int] = table.place
    if options.sort and "song" in roles:
        gathered, order = _gathered(pieces, roles, types)
        pieces, place = iter([(gathered, 1.0)]), lambda row: table.place(int(order[row]))
    work = RowsToSongs(
        file=table.path,
        columns=tuple(columns),
        kind=kind,
        task=options.task or "multiclass",
        names={"song": roles.get("song", "song_id"), **_called(roles)},
        place=place,
        note=options.note,
    )
    rows = (_rows(batch, share, roles, columns, table.path, song) for batch, share in pieces)
    empty = True
    for found in work.songs(rows):
        empty = False
        files = [] if file is None else [file] * len(found.songs)
        yield Batch(found.songs, files, found.share, partial(_row, place, found.rows))
    if empty and song is not None and file is not None:
        yield Batch(work.empty(song, "time" in roles), [file])


def as_declared(table: Table, options: Options) -> Options:
    """Options with what a table that was made of `Songs` says of itself."""
    metadata = table.schema.metadata or {} if isinstance(table, ColumnTable) else {}
    key = next((key for key in (FRAMES_KEY, HEADER_KEY) if key in metadata), None)
    if key is None:
        return options
    header = header_of(table.path or Path("the table"), {HEADER_KEY: metadata[key]})
    for name in ("kind", "task"):
        if getattr(options, name) not in (None, header[name]):
            what = f"is of {name} {header[name]}, not {getattr(options, name)}"
            raise SourceError(what, file=table.path)
    given = {"columns": options.columns, "note": options.note or None}
    return dataclasses.replace(options, **header | {k: v for k, v in given.items() if v})


def _row(place: Callable[[int], int], rows: Ints, song: int) -> int:
    return place(int(rows[song]))


_TYPES = {"time": pa.float64(), "end": pa.float64()}


def find_roles(
    table: Table, options: Options, names: dict[str, str], *, needs_song: bool = True
) -> dict[str, str]:
    """What is in a column -> its name, for those that are there.

    Raises
    ------
    SourceError
        When a column that was named is not there.
    """
    roles = {}
    for role, usual in names.items():
        joined = role in PER_SONG and options.labels is not None
        asked = None if joined else getattr(options, role)
        if asked is not None and asked not in table.names:
            raise SourceError(f"no such column; {_there(table)}", file=table.path, column=asked)
        if asked is not None or usual in table.names:
            roles[role] = asked if asked is not None else usual
    if needs_song and "song" not in roles:
        raise SourceError(
            f"no column {names['song']!r}; --song names the column of song ids; {_there(table)}",
            file=table.path,
        )
    twice = {name for name in roles.values() if list(roles.values()).count(name) > 1}
    if twice:
        raise SourceError("is named for two things", file=table.path, column=min(twice))
    return roles


def find_columns(
    table: Table, options: Options, roles: dict[str, str], notes: list[str]
) -> list[str]:
    """Names of the score columns."""
    taken = set(roles.values())
    for name in (*(options.columns or ()), *options.ignore):
        if name not in table.names:
            raise SourceError(f"no such column; {_there(table)}", file=table.path, column=name)
    if options.columns is not None:
        for name in options.columns:
            if name in taken or options.columns.count(name) > 1:
                raise SourceError("is named for two things", file=table.path, column=name)
        return list(options.columns)
    rest = [n for n in table.names if n not in taken and n not in options.ignore]
    unnamed = [n for n in rest if n == "" or n.startswith(_UNNAMED[1:])]
    if unnamed:
        notes.append(f"columns without a name of their own are left out: {unnamed}")
    columns = [name for name in rest if name not in unnamed]
    if not columns:
        raise SourceError(f"no column is left for scores; {_there(table)}", file=table.path)
    for name in columns:
        if table.cells[name] == "comma":
            raise SourceError(_COMMA, file=table.path, column=name)
        held = _NO_SCORES.get(table.cells[name])
        if held:
            raise SourceError(
                f"holds {held}: is it a score? --columns names the scores, --ignore what is none",
                file=table.path,
                column=name,
            )
        if name.lower() in _TIMES:
            raise SourceError(
                "is named as a time is, not a score: --time or --end takes it, --ignore leaves it "
                "out, --columns names the scores",
                file=table.path,
                column=name,
            )
    return columns


_TIMES = {
    *("time", "times", "timestamp", "seconds", "second", "duration", "frame", "frame_index"),
    *("start", "start_time", "start_s", "begin", "begin_time", "onset", "offset"),
    *("end", "end_time", "end_s"),
}
"""What no class is called; without ``--columns`` it would pass for one."""

_NO_SCORES = {"text": "text", "list": "lists", "whole": "whole numbers", "other": "no numbers"}

_COMMA = "holds numbers with a decimal comma: --decimal ',' reads them"


def _there(table: Table) -> str:
    shown = [repr(name) for name in table.names[:8]]
    more = len(table.names) - len(shown)
    return f"there are {', '.join(shown)}" + (f" and {more} more" if more else "")


def _called(roles: dict[str, str]) -> dict[str, str]:
    """Names of columns by what `RowsToSongs` calls them."""
    return {("start" if role == "time" else role): name for role, name in roles.items()}


def _rows(
    batch: pa.RecordBatch,
    share: float,
    roles: dict[str, str],
    columns: list[str],
    path: Path | None,
    song: str | None,
) -> Rows:
    seconds = {
        role: np.asarray(pc.fill_null(batch.column(roles[role]), np.nan))
        for role in ("time", "end")
        if role in roles
    }
    said = {
        role: said_of_songs(batch.column(roles[role]), role, roles[role], path)
        for role in PER_SONG
        if role in roles
    }
    ids = pa.repeat(song, len(batch)) if song is not None else batch.column(roles["song"])
    if pa.types.is_list(ids.type):
        raise SourceError("holds lists, not ids", file=path, column=roles["song"])
    values = matrix(batch, columns)
    return Rows(ids, values, seconds.get("time"), seconds.get("end"), said, share)


def said_of_songs(column: pa.Array, role: str, name: str, path: Path | None) -> pa.Array:
    """Labels, groups, splits or folds out of text; empty text is unknown."""
    if pa.types.is_list(column.type):
        if role != "label":
            raise SourceError("holds lists, not text", file=path, column=name)
        if flattened(column).null_count:
            raise SourceError("one of a song's labels is missing", file=path, column=name)
        return column
    known = pc.if_else(pc.equal(column, ""), None, column)
    if role != "fold":
        return known
    try:
        return pc.replace_substring_regex(known, r"^(-?\d+)\.0+$", r"\1").cast(pa.int32())
    except pa.ArrowInvalid as error:
        raise SourceError(f"is no whole number: {error}", file=path, column=name) from None


def _gathered(
    pieces: Iterator[tuple[pa.RecordBatch, float]],
    roles: dict[str, str],
    types: dict[str, pa.DataType],
) -> tuple[pa.RecordBatch, Ints]:
    """All rows, those of a song together and in time, and which row each was."""
    batches = [batch for batch, _ in pieces]
    if not batches:
        return pa.RecordBatch.from_pylist([], schema=pa.schema(list(types.items()))), np.arange(0)
    table = pa.Table.from_batches(batches).combine_chunks()
    songs = table[roles["song"]].chunk(0).dictionary_encode()
    codes = np.asarray(pc.fill_null(songs.indices, -1))
    keys = [np.asarray(table[roles["time"]])] if "time" in roles else []
    order = np.lexsort([*keys, codes])
    return table.take(pa.array(order)).combine_chunks().to_batches()[0], order
