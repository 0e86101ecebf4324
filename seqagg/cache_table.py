"""Songs as a table of Arrow and back: what a cache holds, every column of it checked.

Conventions
-----------
One row per song: ``song_id``, ``scores`` (list of fixed-size lists of float32, frames in time
order) and, where known, ``label``, ``group``, ``split``, ``fold``, ``start`` (seconds). The schema
metadata ``seqagg`` declares format version, column names, kind, task and note.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from seqagg.errors import CacheError, SeqaggError
from seqagg.logodds import Kind, Task
from seqagg.parsing import parse_json
from seqagg.places import Place
from seqagg.songs import Songs

VERSION = 1

HEADER_KEY = b"seqagg"

_KNOWN_KEYS = {"version", "columns", "kind", "task", "note"}

MOST_CLAIMED = 1_000_000
"""A header can claim any number of them, where there are no frames."""

COLUMNS = ["song_id", "label", "group", "split", "fold", "start", "scores"]


class Names:
    """Names that were met, as 8 bytes each, so that those of many million songs may be held.

    That two of a hundred million different names share their 64 bits happens once in 3,700 times;
    and then in this process alone.
    """

    def __init__(self) -> None:
        self._runs: list[npt.NDArray[np.int64]] = []  # each sorted, each shorter than the last

    def add(self, names: Iterable[Any]) -> int | None:
        """Add names, of text or Arrow; return the position of the first that was met before."""
        text = names.to_pylist() if isinstance(names, pa.Array | pa.ChunkedArray) else names
        new = np.fromiter(map(hash, text), np.int64)
        order = np.argsort(new, kind="stable")
        run = new[order]
        met = np.zeros(len(new), dtype=bool)
        met[order[1:]] = run[1:] == run[:-1]
        for known in self._runs:
            place = np.minimum(np.searchsorted(known, new), len(known) - 1)
            met |= known[place] == new
        if met.any():
            return int(np.argmax(met))
        if len(run):
            self._runs.append(run)
        while len(self._runs) > 1 and len(self._runs[-1]) >= len(self._runs[-2]):
            both = np.concatenate([self._runs.pop(), self._runs.pop()])
            self._runs.append(np.sort(both, kind="stable"))
        return None


def songs_of_table(path: Place, table: pa.Table, header: dict[str, Any]) -> Songs:
    """Songs of a table as a cache has it.

    Parameters
    ----------
    path : Path
        Named in errors.
    table : pyarrow.Table
        Columns of the names and types of format 1.
    header : dict
        ``columns``, ``kind``, ``task`` and ``note``.

    Raises
    ------
    CacheError
        Names the song and column that cannot be used.
    """
    songs, text = to_songs(path, table, header)
    return songs._with(**{name: as_objects(column) for name, column in text.items()})


def table_of_songs(songs: Songs, target: Path | None = None) -> pa.Table:
    """Songs as a cache has them, declared in the schema metadata.

    Parameters
    ----------
    songs : Songs
    target : Path, optional
        Named in errors.

    Raises
    ------
    CacheError
        When the songs do not fit the format.
    """
    if songs.columns is None:
        raise CacheError("the columns have no names; a cache needs them", file=target)
    if songs.offsets[-1] > np.iinfo(np.int32).max:
        raise CacheError("more than 2**31 frames; write several files into a folder", file=target)
    for text in (*songs.columns, songs.note):
        if not _is_unicode(text):
            raise CacheError(f"{text!a} cannot be written as UTF-8", file=target)
    offsets = pa.array(songs.offsets.astype(np.int32))
    flat = pa.array(songs.values.reshape(-1))
    frames = pa.FixedSizeListArray.from_arrays(flat, songs.n_columns)
    label_type = pa.string() if songs.task == "multiclass" else pa.list_(pa.string())
    data = {
        "song_id": _ids(songs, target),
        "label": _strings(songs.labels, "label", songs, target, label_type),
        "group": _strings(songs.groups, "group", songs, target),
        "split": _strings(songs.split, "split", songs, target),
        "fold": None
        if songs.fold is None
        else pa.array(songs.fold, mask=songs.fold < 0, type=pa.int32()),
        "start": None
        if songs.start is None
        else pa.ListArray.from_arrays(offsets, pa.array(songs.start)),
        "scores": pa.ListArray.from_arrays(offsets, frames),
    }
    table = pa.table({name: column for name, column in data.items() if column is not None})
    header = {
        "version": VERSION,
        "columns": list(songs.columns),
        "kind": songs.kind,
        "task": songs.task,
        "note": songs.note,
    }
    return table.replace_schema_metadata({HEADER_KEY: json.dumps(header, ensure_ascii=False)})


def _ids(songs: Songs, target: Path | None) -> pa.Array:
    for row, name in enumerate(songs.ids):
        if name is None:
            raise CacheError(f"song {row} has no id", file=target, column="song_id")
    return _strings(songs.ids, "song_id", songs, target)


def _strings(
    values: npt.NDArray[Any] | None,
    column: str,
    songs: Songs,
    target: Path | None,
    kind: pa.DataType | None = None,
) -> pa.Array | None:
    if values is None:
        return None
    wanted = kind or pa.string()
    try:
        array = pa.array(
            [list(v) if isinstance(v, tuple) else v for v in values]
            if pa.types.is_list(wanted)
            else values,
            type=wanted,
        )
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeError) as error:
        for song, value in zip(songs.ids, values, strict=True):
            parts = value if isinstance(value, tuple) and pa.types.is_list(wanted) else [value]
            if not all(part is None or _is_unicode(part) for part in parts):
                raise CacheError(
                    f"{value!r} is no text; a cache keeps ids, labels, groups and splits as text",
                    file=target,
                    song=str(song),
                    column=column,
                ) from None
        raise CacheError(str(error), file=target, column=column) from None
    if pa.types.is_list(wanted) and array.flatten().null_count:
        row = next(i for i, value in enumerate(values) if value is not None and None in value)
        what = "one of its labels is None"
        raise CacheError(what, file=target, song=str(songs.ids[row]), column=column)
    return array


def _is_unicode(value: Any) -> bool:
    """Whether it is text that UTF-8 can hold: a lone surrogate is not."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def to_songs(
    path: Place, table: pa.Table, header: dict[str, Any]
) -> tuple[Songs, dict[str, pa.Array | None]]:
    """Songs without a Python object for each, and by field their text, which stays Arrow."""
    ids = read_ids(path, table)
    text = {
        "labels": _read_labels(path, table, header["task"]),
        "groups": find_column(path, table, "group", "string", is_text),
        "split": find_column(path, table, "split", "string", is_text),
    }
    values, offsets = _read_scores(path, table, ids, header["columns"])
    fold, start = _read_fold(path, table), _read_start(path, table, ids, offsets)
    try:
        return Songs(values, offsets, ids=ids, fold=fold, start=start, **header), text
    except SeqaggError as error:
        raise CacheError(error.message, file=path, song=error.song, column=error.column) from None


def refuse_twice(ids: pa.Array, path: Place) -> None:
    """Refuse an id that several songs have."""
    if len(ids.unique()) == len(ids):
        return
    counts = ids.value_counts()
    name = counts.field("values").filter(pc.greater(counts.field("counts"), 1))[0].as_py()
    raise CacheError(f"song {name!r} stands there twice", file=path, song=name)


def header_of(path: Place, metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """Fields for `Songs`, from the declaration in the schema metadata."""
    if not metadata or HEADER_KEY not in metadata:
        raise CacheError("no seqagg metadata; 'seqagg convert' makes a cache of it", file=path)
    try:
        header = parse_json(metadata[HEADER_KEY])
    except ValueError as error:
        raise CacheError(f"metadata is no JSON: {error}", file=path) from None
    if not isinstance(header, dict):
        raise CacheError("metadata is no JSON object", file=path)
    if header.get("version") != VERSION or type(header["version"]) is not int:
        raise CacheError(
            f"format version {header.get('version')!r}; this seqagg reads {VERSION}", file=path
        )
    unknown = sorted(set(header) - _KNOWN_KEYS)
    if unknown:
        raise CacheError(f"metadata has unknown keys: {', '.join(unknown)}", file=path)
    if not isinstance(header.get("note", ""), str):
        raise CacheError("the note in the metadata is no text", file=path)
    columns = header.get("columns")
    if not isinstance(columns, list) or not all(isinstance(c, str) for c in columns):
        raise CacheError("metadata must list the names of the columns", file=path)
    task = header.get("task", "multiclass")
    for name, value, allowed in (
        ("kind", header.get("kind"), get_args(Kind)),
        ("task", task, get_args(Task)),
    ):
        if value not in allowed:
            raise CacheError(f"{name} {value!r} is none of {', '.join(allowed)}", file=path)
    return {
        "columns": columns,
        "kind": header["kind"],
        "task": task,
        "note": header.get("note", ""),
    }


def find_column(
    path: Place, table: pa.Table, name: str, wanted: str, matches: Any
) -> pa.Array | None:
    """Column of a table, of the type that is wanted; None if there is none."""
    if name not in table.column_names:
        return None
    chunked = table[name]
    kind = chunked.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_null(kind):
        return None
    if not matches(kind):  # before anything is done with it: there are types that cannot be joined
        raise CacheError(f"holds {chunked.type}, not {wanted}", file=path, column=name)
    # Joining would copy even a single chunk, and with it a memory-mapped file.
    column = chunked.chunk(0) if chunked.num_chunks == 1 else chunked.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # no chunk at all, in an empty table
        column = pa.array([], column.type)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column


def is_text(kind: pa.DataType) -> bool:
    """Whether a column is text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def read_ids(path: Place, table: pa.Table) -> pa.Array:
    """Ids of the songs, none of which is missing."""
    ids = find_column(path, table, "song_id", "string", is_text)
    if ids is None:
        raise CacheError("no column of this name", file=path, column="song_id")
    if ids.null_count:
        row = int(np.argmax(np.asarray(ids.is_null())))
        raise CacheError(f"row {row} has no id", file=path, column="song_id")
    return ids


def _read_labels(path: Place, table: pa.Table, task: Task) -> pa.Array | None:
    if task == "multiclass":
        return find_column(path, table, "label", "string", is_text)
    labels = find_column(
        path,
        table,
        "label",
        "list of string",
        lambda kind: _is_list(kind) and is_text(kind.value_type),
    )
    names = None if labels is None else flattened(labels)
    if names is not None and names.null_count:
        at = int(np.argmax(np.asarray(names.is_null())))
        row = int(np.asarray(pc.list_parent_indices(labels))[at])
        song = read_ids(path, table)[row].as_py()
        raise CacheError("one of its labels is null", file=path, song=song, column="label")
    return labels


def check_widths(schema: pa.Schema, file: Any, error: type[SeqaggError]) -> None:
    """Refuse a column of endless frames before it is read: Arrow fills up those that are null.

    Parameters
    ----------
    schema : pyarrow.Schema
    file : Place, path-like or None
        Named in the error.
    error : type
        Of what is raised.
    """
    for field in schema:
        kind = field.type
        while _is_list(kind) or pa.types.is_fixed_size_list(kind):
            if pa.types.is_fixed_size_list(kind) and kind.list_size > MOST_CLAIMED:
                what = f"has {kind.list_size:,} columns, more than {MOST_CLAIMED:,}"
                raise error(what, file=file, column=field.name)
            kind = kind.value_type


def flattened(lists: pa.Array) -> pa.Array:
    """What lists hold, one after the other.

    Of no lists at all the only offset is validated by nobody, and Arrow ends the process at one
    beyond the end.
    """
    return lists.flatten() if len(lists) else pa.array([], lists.type.value_type)


def as_objects(column: pa.Array | None) -> npt.NDArray[Any] | None:
    """Text as `Songs` has it: a string, a tuple of strings or None for each song."""
    if column is None:
        return None
    if not _is_list(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    labels = np.empty(len(column), dtype=object)
    for i, names in enumerate(column.to_pylist()):
        labels[i] = None if names is None else tuple(names)
    return labels


def _read_fold(path: Place, table: pa.Table) -> npt.NDArray[np.int32] | None:
    column = find_column(path, table, "fold", "int32", pa.types.is_integer)
    if column is None:
        return None
    try:
        return np.asarray(pc.fill_null(column.cast(pa.int32()), -1), dtype=np.int32)
    except pa.ArrowInvalid as error:
        raise CacheError(str(error), file=path, column="fold") from None


def _read_start(
    path: Place, table: pa.Table, ids: pa.Array, offsets: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32] | None:
    column = find_column(
        path,
        table,
        "start",
        "list of float32",
        lambda kind: _is_list(kind) and pa.types.is_floating(kind.value_type),
    )
    if column is None:
        return None
    lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0), dtype=np.int64)
    if (lengths != np.diff(offsets)).any():
        song = int(np.argmax(lengths != np.diff(offsets)))
        raise CacheError(
            f"{lengths[song]} starts for {np.diff(offsets)[song]} frames",
            file=path,
            song=ids[song].as_py(),
            column="start",
        )
    return np.asarray(flattened(column).cast(pa.float32()))


def _is_scores(kind: pa.DataType) -> bool:
    if not _is_list(kind):
        return False
    frame = kind.value_type
    is_frame = pa.types.is_fixed_size_list(frame) or _is_list(frame)
    return bool(is_frame and pa.types.is_floating(frame.value_type))


def _read_scores(
    path: Place, table: pa.Table, ids: pa.Array, columns: list[str]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Flat values and offsets, without a Python object per song."""
    scores = find_column(path, table, "scores", "list of fixed_size_list of float32", _is_scores)
    if scores is None:
        raise CacheError("no column of this name", file=path, column="scores")
    if scores.null_count:
        song = int(np.argmax(np.asarray(scores.is_null())))
        raise _bad_scores(path, ids, song, "the song has no scores (null)")
    offsets = np.zeros(len(scores) + 1, dtype=np.int64)
    np.cumsum(np.asarray(pc.list_value_length(scores)), out=offsets[1:])

    def song_of(frame: int) -> int:
        return int(np.searchsorted(offsets, frame, side="right")) - 1

    frames = flattened(scores)
    if frames.null_count:
        frame = int(np.argmax(np.asarray(frames.is_null())))
        what = "a frame is null; a missing frame is NaN"
        raise _bad_scores(path, ids, song_of(frame), what)
    wrong = _first_of_other_width(frames, len(columns))
    if wrong is not None:
        frame, width = wrong
        song = song_of(frame)
        what = f"frame {frame - offsets[song]} has {width} scores for {len(columns)} columns"
        raise _bad_scores(path, ids, song, what)
    values = flattened(frames)
    if values.null_count:
        frame, column = divmod(int(np.argmax(np.asarray(values.is_null()))), len(columns))
        what = "a score is null; a missing frame is NaN"
        raise _bad_scores(path, ids, song_of(frame), what, columns[column])
    flat = np.asarray(values.cast(pa.float32()))
    return flat.reshape(-1, max(len(columns), 1)), offsets


def _first_of_other_width(frames: pa.Array, width: int) -> tuple[int, int] | None:
    """First frame that has not so many scores, and how many it has."""
    if pa.types.is_fixed_size_list(frames.type):
        found = frames.type.list_size
        return (0, found) if found != width and len(frames) else None
    widths = np.asarray(pc.list_value_length(frames))
    if (widths == width).all():
        return None
    frame = int(np.argmax(widths != width))
    return frame, int(widths[frame])


def _bad_scores(
    path: Place, ids: pa.Array, song: int, what: str, column: str = "scores"
) -> CacheError:
    return CacheError(what, file=path, song=ids[song].as_py(), column=column)


def how_headers_differ(
    first: Mapping[str, Any], other: Mapping[str, Any], first_place: object
) -> str | None:
    """Say how a file does not go together with the first one; None if it does.

    Parameters
    ----------
    first, other : mapping
        With ``columns``, ``kind`` and ``task``.
    first_place : object
        Where the first header stands.
    """
    for name in ("kind", "task"):
        if other[name] != first[name]:
            return f"{name} {other[name]} differs from that of {first_place}, {first[name]}"
    here, there = list(other["columns"] or ()), list(first["columns"] or ())
    if here == there:
        return None
    parts = [
        f"only {where}: {', '.join(map(repr, names[:3]))}{' ...' if len(names) > 3 else ''}"
        for where, names in (
            ("here", [name for name in here if name not in there]),
            ("there", [name for name in there if name not in here]),
        )
        if names
    ]
    how = "; ".join(parts) if parts else "they stand in another order"
    if len(here) != len(there):
        return f"{len(here)} columns, and {len(there)} in {first_place}: {how}"
    return f"columns differ from those of {first_place}: {how}"
