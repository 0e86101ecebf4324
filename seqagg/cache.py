"""The cache: `Songs` in a Parquet or Arrow IPC file, format 1.

Conventions
-----------
One row per song: ``song_id``, ``scores`` (list of fixed-size lists of float32, frames in time
order) and, where known, ``label``, ``group``, ``split``, ``fold``, ``start`` (seconds). The schema
metadata ``seqagg`` declares format version, column names, kind, task and note. ``.parquet`` is the
file to keep (compressed, checksummed pages), ``.arrow`` the file to work with (memory-mapped,
nothing is copied). A folder of such files is one cache, in the order of their names.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seqagg.errors import CacheError, SeqaggError
from seqagg.files import atomic_write
from seqagg.logodds import Kind, Task
from seqagg.songs import Songs

VERSION = 1
SUFFIXES = (".parquet", ".arrow")

_METADATA_KEY = b"seqagg"
_KNOWN_KEYS = {"version", "columns", "kind", "task", "note"}
_ROW_GROUP_BYTES = 64 * 2**20
"""Uncompressed scores per Parquet row group: what a reader must hold at once."""


def write_cache(songs: Songs, path: str | os.PathLike[str]) -> None:
    """Write songs to a cache file, whole or not at all.

    Parameters
    ----------
    songs : Songs
        Columns must be named and labels be strings (or sequences of strings if multilabel).
    path : path-like
        Ends in ``.parquet`` or ``.arrow``.

    Raises
    ------
    CacheError
        When the songs do not fit the format, or the suffix is another.
    """
    target = Path(path)
    if target.suffix not in SUFFIXES:
        raise CacheError(f"a cache ends in {' or '.join(SUFFIXES)}", file=path)
    table = _to_table(songs, target)
    with atomic_write(target) as temporary:
        if target.suffix == ".arrow":
            with (
                pa.OSFile(os.fspath(temporary), "wb") as sink,
                pa.ipc.new_file(sink, table.schema) as writer,
            ):
                writer.write_table(table)
            return
        bytes_per_song = 4 * songs.values.size // max(len(songs), 1) + 1
        # Scores do not repeat, so a dictionary only costs; splitting the bytes of the floats
        # lets zstd see the exponents together.
        encodings = {"scores.list.element.list.element": "BYTE_STREAM_SPLIT"}
        if songs.start is not None:
            encodings["start.list.element"] = "BYTE_STREAM_SPLIT"
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            use_dictionary=[n for n in ("label", "group", "split") if n in table.column_names],
            column_encoding=encodings,
            write_page_checksum=True,
            row_group_size=max(1, _ROW_GROUP_BYTES // bytes_per_song),
        )


def read_cache(path: str | os.PathLike[str]) -> Songs:
    """Read a cache file, or a folder of them.

    Page checksums of Parquet files are verified. Columns of the table that format 1 does not
    name are left unread.

    Parameters
    ----------
    path : path-like
        A ``.parquet`` or ``.arrow`` file, or a folder that holds some.

    Raises
    ------
    CacheError
        Names the file, song and column that cannot be used.
    """
    source = Path(path)
    if not source.is_dir():
        return _read_file(source)
    files = sorted(
        p for p in source.iterdir() if p.suffix in SUFFIXES and not p.name.startswith(".")
    )
    if not files:
        raise CacheError(f"the folder holds no {' or '.join(SUFFIXES)} file", file=path)
    return _concatenate([_read_file(p) for p in files], files)


def _to_table(songs: Songs, target: Path) -> pa.Table:
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
    return table.replace_schema_metadata({_METADATA_KEY: json.dumps(header, ensure_ascii=False)})


def _ids(songs: Songs, target: Path) -> pa.Array:
    for row, name in enumerate(songs.ids):
        if name is None:
            raise CacheError(f"song {row} has no id", file=target, column="song_id")
    return _strings(songs.ids, "song_id", songs, target)


def _strings(
    values: npt.NDArray[Any] | None,
    column: str,
    songs: Songs,
    target: Path,
    kind: pa.DataType | None = None,
) -> pa.Array | None:
    if values is None:
        return None
    wanted = kind or pa.string()
    try:
        return pa.array(
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


def _is_unicode(value: Any) -> bool:
    """Whether it is text that UTF-8 can hold: a lone surrogate is not."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _read_file(path: Path) -> Songs:
    table = _read_table(path)
    header = _read_header(path, table.schema.metadata)
    columns = header["columns"]
    ids = _read_ids(path, table)
    values, offsets = _read_scores(path, table, ids, columns)
    fields: dict[str, Any] = {
        "ids": ids,
        "labels": _read_labels(path, table, header["task"]),
        "groups": _read_strings(path, table, "group"),
        "split": _read_strings(path, table, "split"),
        "fold": _read_fold(path, table),
        "start": _read_start(path, table, ids, offsets),
    }
    try:
        return Songs(values, offsets, **fields, **header)
    except SeqaggError as error:
        raise CacheError(error.message, file=path, song=error.song, column=error.column) from None


def _read_table(path: Path) -> pa.Table:
    if path.suffix not in SUFFIXES:
        raise CacheError(f"not a cache: the name ends in none of {', '.join(SUFFIXES)}", file=path)
    if not path.exists():
        raise CacheError("no such file", file=path)
    wanted = ["song_id", "label", "group", "split", "fold", "start", "scores"]
    try:
        if path.suffix == ".arrow":
            with pa.memory_map(os.fspath(path)) as source:
                table = pa.ipc.open_file(source).read_all()
        else:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                table = file.read(columns=[n for n in wanted if n in file.schema_arrow.names])
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise CacheError(f"cannot be read: {error}", file=path) from None
    for name in wanted:
        if table.column_names.count(name) > 1:
            raise CacheError("two columns of this name", file=path, column=name)
    return table


def _read_header(path: Path, metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """Fields for `Songs`, from the declaration in the schema metadata."""
    if not metadata or _METADATA_KEY not in metadata:
        raise CacheError("no seqagg metadata; 'seqagg convert' makes a cache of it", file=path)
    try:
        header = json.loads(metadata[_METADATA_KEY])
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


def _column(path: Path, table: pa.Table, name: str, wanted: str, matches: Any) -> pa.Array | None:
    if name not in table.column_names:
        return None
    chunked = table[name]
    # Joining would copy even a single chunk, and with it a memory-mapped file.
    column = chunked.chunk(0) if chunked.num_chunks == 1 else chunked.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # no chunk at all, in an empty table
        column = pa.array([], column.type)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_null(column.type):
        return None
    if not matches(column.type):
        raise CacheError(f"holds {column.type}, not {wanted}", file=path, column=name)
    return column


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _read_strings(path: Path, table: pa.Table, name: str) -> npt.NDArray[Any] | None:
    column = _column(path, table, name, "string", _is_text)
    return None if column is None else column.to_numpy(zero_copy_only=False)


def _read_ids(path: Path, table: pa.Table) -> npt.NDArray[Any]:
    ids = _read_strings(path, table, "song_id")
    if ids is None:
        raise CacheError("no column of this name", file=path, column="song_id")
    if table["song_id"].null_count:
        row = int(np.argmax([i is None for i in ids]))
        raise CacheError(f"row {row} has no id", file=path, column="song_id")
    return ids


def _read_labels(path: Path, table: pa.Table, task: Task) -> npt.NDArray[Any] | None:
    if task == "multiclass":
        return _read_strings(path, table, "label")
    column = _column(
        path,
        table,
        "label",
        "list of string",
        lambda kind: _is_list(kind) and _is_text(kind.value_type),
    )
    if column is None:
        return None
    listed = column.to_pylist()
    labels = np.empty(len(listed), dtype=object)
    for i, names in enumerate(listed):
        labels[i] = None if names is None else tuple(names)
    return labels


def _read_fold(path: Path, table: pa.Table) -> npt.NDArray[np.int32] | None:
    column = _column(path, table, "fold", "int32", pa.types.is_integer)
    if column is None:
        return None
    try:
        return np.asarray(pc.fill_null(column.cast(pa.int32()), -1), dtype=np.int32)
    except pa.ArrowInvalid as error:
        raise CacheError(str(error), file=path, column="fold") from None


def _read_start(
    path: Path, table: pa.Table, ids: npt.NDArray[Any], offsets: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32] | None:
    column = _column(
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
            song=ids[song],
            column="start",
        )
    return np.asarray(column.flatten().cast(pa.float32()))


def _is_scores(kind: pa.DataType) -> bool:
    if not _is_list(kind):
        return False
    frame = kind.value_type
    is_frame = pa.types.is_fixed_size_list(frame) or _is_list(frame)
    return bool(is_frame and pa.types.is_floating(frame.value_type))


def _read_scores(
    path: Path, table: pa.Table, ids: npt.NDArray[Any], columns: list[str]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Flat values and offsets, without a Python object per song."""
    scores = _column(path, table, "scores", "list of fixed_size_list of float32", _is_scores)
    if scores is None:
        raise CacheError("no column of this name", file=path, column="scores")
    _refuse_null(path, ids, scores, np.arange(len(scores)), "the song has no scores (null)")
    lengths = np.asarray(pc.list_value_length(scores), dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    frames = scores.flatten()
    song_of_frame = np.repeat(np.arange(len(lengths)), lengths)
    _refuse_null(path, ids, frames, song_of_frame, "a frame is null; a missing frame is NaN")
    if pa.types.is_fixed_size_list(frames.type):
        wrong = np.full(len(frames), frames.type.list_size != len(columns))
        found = np.full(len(frames), frames.type.list_size)
    else:
        found = np.asarray(pc.list_value_length(frames))
        wrong = found != len(columns)
    if wrong.any():
        frame = int(np.argmax(wrong))
        raise CacheError(
            f"frame {frame - offsets[song_of_frame[frame]]} has {found[frame]} scores for "
            f"{len(columns)} columns",
            file=path,
            song=ids[song_of_frame[frame]],
            column="scores",
        )
    values = frames.flatten()
    if values.null_count:
        at = int(np.argmax(np.asarray(values.is_null())))
        raise CacheError(
            "a score is null; a missing frame is NaN",
            file=path,
            song=ids[song_of_frame[at // len(columns)]],
            column=columns[at % len(columns)],
        )
    flat = np.asarray(values.cast(pa.float32()))
    return flat.reshape(-1, max(len(columns), 1)), offsets


def _refuse_null(
    path: Path, ids: npt.NDArray[Any], array: pa.Array, song_of: npt.NDArray[Any], what: str
) -> None:
    if array.null_count:
        first = int(np.argmax(np.asarray(array.is_null())))
        raise CacheError(what, file=path, song=ids[song_of[first]], column="scores")


def _concatenate(parts: list[Songs], files: list[Path]) -> Songs:
    first = parts[0]
    for part, file in zip(parts, files, strict=True):
        for name in ("columns", "kind", "task"):
            if getattr(part, name) != getattr(first, name):
                raise CacheError(f"{name} differ from those of {files[0].name}", file=file)
    fields: dict[str, Any] = {"ids": np.concatenate([p.ids for p in parts])}
    for name, unknown in (("labels", None), ("groups", None), ("split", None), ("fold", -1)):
        if any(getattr(p, name) is not None for p in parts):
            fields[name] = np.concatenate(
                [_or_full(getattr(p, name), len(p), unknown) for p in parts]
            )
    if any(p.start is not None for p in parts):
        fields["start"] = np.concatenate(
            [_or_full(p.start, len(p.values), np.nan).astype(np.float32) for p in parts]
        )
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([p.lengths for p in parts]))])
    try:
        return first.replace(
            values=np.concatenate([p.values for p in parts]), offsets=offsets, **fields
        )
    except SeqaggError as error:
        raise CacheError(error.message, file=files[0].parent, song=error.song) from None


def _or_full(array: npt.NDArray[Any] | None, n: int, value: Any) -> npt.NDArray[Any]:
    return np.full(n, value, dtype=object if value is None else None) if array is None else array
