"""The cache: `Songs` in a Parquet or Arrow IPC file, format 1.

Conventions
-----------
One row per song: ``song_id``, ``scores`` (list of fixed-size lists of float32, frames in time
order) and, where known, ``label``, ``group``, ``split``, ``fold``, ``start`` (seconds). The schema
metadata ``seqagg`` declares format version, column names, kind, task and note. ``.parquet`` is the
file to keep (compressed, checksummed pages), ``.arrow`` the file to work with (memory-mapped,
nothing is copied). A folder of such files is one cache, in the order of their names. Either may lie
on this machine or, for reading, at a URL.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seqagg.cache_pieces import (
    BATCH_BYTES,
    SUFFIXES,
    cache_files,
    open_parquet,
    read_table,
    read_tables,
    reading,
)
from seqagg.cache_table import (
    COLUMNS,
    HEADER_KEY,
    Names,
    as_objects,
    find_column,
    header_of,
    how_headers_differ,
    is_text,
    read_ids,
    refuse_twice,
    songs_of_table,
    table_of_songs,
    to_songs,
)
from seqagg.errors import CacheError, SeqaggError
from seqagg.files import atomic_write
from seqagg.places import Place, place_of, size_of
from seqagg.songs import Songs

_ROW_GROUP_BYTES = 64 * 2**20
"""Uncompressed scores per Parquet row group: what a reader must hold at once."""

_MOST_PACKED = 64
"""How many times smaller scores are when packed, at most; more is taken as it comes."""


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
    with CacheWriter(path) as cache:
        cache.write(songs)


class CacheWriter:
    """A cache file that is written some songs at a time, whole or not at all.

    The file appears under its name when the block ends well. A batch of songs is held until there
    are enough of them to be read at once; the same songs in the same batches give the same bytes.

    Parameters
    ----------
    path : path-like
        Ends in ``.parquet`` or ``.arrow``.

    Attributes
    ----------
    n_songs, n_frames : int
        What was written so far.

    Raises
    ------
    CacheError
        When the suffix is another, or no songs were written.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with CacheWriter(folder + "/songs.parquet") as cache:
    ...         for name in ["one", "two"]:
    ...             cache.write(Songs([[0.5, -0.5]], [0, 1], columns=["jig", "reel"], ids=[name]))
    ...     read_cache(folder + "/songs.parquet").ids.tolist()
    ['one', 'two']
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        if self._path.suffix not in SUFFIXES:
            raise CacheError(f"a cache ends in {' or '.join(SUFFIXES)}", file=path)
        self.n_songs = self.n_frames = 0
        self._names = Names()
        self._schema: pa.Schema | None = None
        self._writer: Any = None
        self._waiting: list[pa.Table] = []
        self._n_scores = 0
        self._stack = ExitStack()

    def __enter__(self) -> CacheWriter:
        self._temporary = self._stack.enter_context(atomic_write(self._path))
        return self

    def write(self, songs: Songs) -> None:
        """Add songs, whose columns, kind, task, note and fields are those of the first ones.

        Raises
        ------
        CacheError
            When they do not fit the format or the songs before, or a song is there already.
        """
        table = table_of_songs(songs, self._path)
        if self._writer is None:
            self._open(table.schema)
        self._check(table.schema)
        twice = self._names.add(table["song_id"])
        if twice is not None:
            name = table["song_id"][twice].as_py()
            raise CacheError(f"song {name!r} stands there twice", file=self._path, song=name)
        self.n_songs += len(songs)
        self.n_frames += len(songs.values)
        self._waiting.append(table)
        self._n_scores += songs.values.size
        if 4 * self._n_scores >= _ROW_GROUP_BYTES:
            self._flush()

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if kind is not None:
            self._stack.__exit__(kind, *error)
            return
        with self._stack:
            if self._writer is None:
                raise CacheError("there is no song to write", file=self._path)
            self._flush()

    def _open(self, schema: pa.Schema) -> None:
        self._schema = schema
        if self._path.suffix == ".arrow":
            sink = self._stack.enter_context(pa.OSFile(os.fspath(self._temporary), "wb"))
            self._writer = self._stack.enter_context(pa.ipc.new_file(sink, schema))
            return
        # Scores do not repeat, so a dictionary only costs; splitting the bytes of the floats
        # lets zstd see the exponents together.
        encodings = {"scores.list.element.list.element": "BYTE_STREAM_SPLIT"}
        if "start" in schema.names:
            encodings["start.list.element"] = "BYTE_STREAM_SPLIT"
        writer = pq.ParquetWriter(
            self._temporary,
            schema,
            compression="zstd",
            use_dictionary=[n for n in ("label", "group", "split") if n in schema.names],
            column_encoding=encodings,
            write_page_checksum=True,
        )
        self._writer = self._stack.enter_context(writer)

    def _check(self, schema: pa.Schema) -> None:
        assert self._schema is not None
        for name in COLUMNS:
            if (name in schema.names) != (name in self._schema.names):
                raise CacheError("some songs have it, others not", file=self._path, column=name)
        first, other = (json.loads(s.metadata[HEADER_KEY]) for s in (self._schema, schema))
        for key in first:
            if first[key] != other[key]:
                raise CacheError(f"songs differ in {key}", file=self._path)

    def _flush(self) -> None:
        """Write what waits, in row groups of about the same size."""
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting)
        n_groups = max(1, round(4 * self._n_scores / _ROW_GROUP_BYTES))
        if self._path.suffix == ".arrow":
            self._writer.write_table(table.combine_chunks())
        else:
            self._writer.write_table(table, max(1, -(-len(table) // n_groups)))
        self._waiting, self._n_scores = [], 0


def read_cache(path: str | os.PathLike[str]) -> Songs:
    """Read a cache file, or a folder of them.

    Page checksums of Parquet files are verified. Columns of the table that format 1 does not
    name are left unread.

    Parameters
    ----------
    path : path-like
        A ``.parquet`` or ``.arrow`` file, or a folder that holds some; a path or a URL.

    Raises
    ------
    CacheError
        Names the file, song and column that cannot be used.
    """
    source = place_of(path)
    files = cache_files(source)
    parts = [_read_file(file) for file in files]
    return _concatenate(parts, files, source) if source.is_dir() else parts[0]


class CacheBatches:
    """A cache that is read while it is used, some songs at a time.

    The ids of all songs are read at once, so that one that stands there twice is found before any
    work is done; all else is checked batch by batch as `read_cache` checks it.

    Parameters
    ----------
    path : path-like
        A ``.parquet`` or ``.arrow`` file, or a folder that holds some; a path or a URL.
    n_bytes : int
        About how much of the file a batch is.

    Attributes
    ----------
    n_songs : int
        Number of songs.
    splits : Counter of str
        Songs of each split.

    Raises
    ------
    CacheError
        Names the file, song and column that cannot be used.
    """

    def __init__(self, path: str | os.PathLike[str], *, n_bytes: int = BATCH_BYTES) -> None:
        self._path = place_of(path)
        self._n_bytes = n_bytes
        self._files = cache_files(self._path)
        self.splits: Counter[str] = Counter()
        all_ids = []
        headers = []
        for file in self._files:
            table = read_table(file, ["song_id", "split"])
            headers.append(header_of(file, table.schema.metadata))
            _refuse_differences(headers[0], headers[-1], self._files[0], file)
            all_ids.append(read_ids(file, table).cast(pa.large_string()))
            refuse_twice(all_ids[-1], file)
            split = find_column(file, table, "split", "string", is_text)
            if split is not None:
                for found in split.drop_null().value_counts():
                    self.splits[found["values"].as_py()] += found["counts"].as_py()
        ids = pa.chunked_array(all_ids)
        if len(self._files) > 1:
            refuse_twice(ids, self._path)
        self.n_songs = len(ids)

    def read(self, split: str | None = None) -> Iterator[tuple[Songs, pa.Array | None]]:
        """Songs of a split, or all, with their labels.

        Yields
        ------
        songs : Songs
            Ids, scores, fold and start.
        labels : pyarrow.Array of str or list of str, or None
            Null where the label is unknown.
        """
        for file in self._files:
            yield from read_batches(file, split=split, n_bytes=self._n_bytes)

    def songs(self) -> Iterator[Songs]:
        """All songs, with everything that is said of them."""
        for file in self._files:
            yield from read_songs(file, n_bytes=self._n_bytes)


def read_batches(
    file: Place,
    groups: range | None = None,
    *,
    split: str | None = None,
    n_bytes: int = BATCH_BYTES,
    refuse: Callable[[str, str], object] | None = None,
) -> Iterator[tuple[Songs, pa.Array | None]]:
    """Songs of a cache file some at a time, as `CacheBatches.read` gives them.

    Parameters
    ----------
    file : Path or Remote
    groups : range, optional
        Row groups (of ``.arrow``, record batches) to read; all by default.
    split : str, optional
        Only the songs of this split.
    n_bytes : int
        About how much of the file a batch is.
    refuse : callable, optional
        Called with the id of a song that cannot be used and the reason, instead of raising.

    Raises
    ------
    CacheError
        Names the file, song and column that cannot be used.
    """
    for table in read_tables(file, n_bytes, groups):
        header = header_of(file, table.schema.metadata)
        for songs, text in _usable(file, table, header, refuse):
            labels = text["labels"]
            if split is not None:
                there = text["split"]
                if there is None:
                    continue
                chosen = pc.fill_null(pc.equal(there, split), False)
                songs = songs[np.asarray(chosen)]
                labels = labels if labels is None else labels.filter(chosen)
            yield songs, labels


def read_songs(
    file: Place, groups: range | None = None, *, n_bytes: int = BATCH_BYTES
) -> Iterator[Songs]:
    """Songs of a cache file some at a time, with everything that is said of them."""
    for table in read_tables(file, n_bytes, groups):
        yield songs_of_table(file, table, header_of(file, table.schema.metadata))


def _usable(
    file: Place,
    table: pa.Table,
    header: dict[str, Any],
    refuse: Callable[[str, str], object] | None,
) -> list[tuple[Songs, dict[str, pa.Array | None]]]:
    """Songs of a table; where some are refused, in the pieces that lie between them."""
    try:
        return [to_songs(file, table, header)]
    except CacheError as error:
        if refuse is None or error.song is None:
            raise
        if len(table) == 1:
            refuse(error.song, error.message)
            return []
    half = len(table) // 2
    parts = (table.slice(0, half), table.slice(half))
    return [songs for part in parts for songs in _usable(file, part, header, refuse)]


def _read_file(path: Place) -> Songs:
    if path.suffix != ".parquet":
        table = read_table(path, COLUMNS)
        return songs_of_table(path, table, header_of(path, table.schema.metadata))
    songs, text = _read_parquet(path)
    return songs._with(**{name: as_objects(column) for name, column in text.items()})


def _read_parquet(path: Place) -> tuple[Songs, dict[str, pa.Array | None]]:
    """Decode by small pieces into one array: the memory of a piece serves the next one.

    All at once, most of the time goes into fresh memory, which is then copied into one piece.
    """
    table = read_table(path, ["song_id"])
    header, ids = header_of(path, table.schema.metadata), read_ids(path, table)
    parts: list[Songs] = []
    texts: list[dict[str, pa.Array | None]] = []
    with reading(path):
        flat = np.empty(_expected_scores(path), dtype=np.float32)
        end = 0
        for piece in read_tables(path, BATCH_BYTES):
            songs, text = to_songs(path, piece, header)
            start, end = end, end + songs.values.size
            flat = _with_room(flat, end)
            flat[start:end] = songs.values.reshape(-1)
            parts.append(songs._with(values=songs.values[:0]))
            texts.append(text)
    if not parts:
        return to_songs(path, read_table(path, COLUMNS), header)
    lengths = np.concatenate([part.lengths for part in parts])
    fields: dict[str, Any] = {
        name: None
        if getattr(parts[0], name) is None
        else np.concatenate([getattr(part, name) for part in parts])
        for name in ("fold", "start")
    }
    joined = {
        name: None if column is None else pa.concat_arrays([text[name] for text in texts])
        for name, column in texts[0].items()
    }
    values = flat[:end].reshape(-1, max(len(header["columns"]), 1))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    try:
        return Songs(values, offsets, ids=ids, **fields, **header), joined
    except SeqaggError as error:
        raise CacheError(error.message, file=path, song=error.song, column=error.column) from None


def _expected_scores(path: Place) -> int:
    """About as many scores as a Parquet file holds, or a few more.

    By the row groups alone: pyarrow ends the whole process over the metadata of a column that are
    damaged in some ways. What a file says of itself may be a lie, so its size counts too.
    """
    with open_parquet(path) as file:
        metadata = file.metadata
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    n_bytes = sum(max(group.total_byte_size, 0) for group in groups)
    return int(min(n_bytes, _MOST_PACKED * size_of(path)) // 4)


def _with_room(flat: npt.NDArray[np.float32], n: int) -> npt.NDArray[np.float32]:
    """The same array, or a larger copy, in which there is room for so many scores."""
    if n <= len(flat):
        return flat
    larger = np.empty(max(n, 2 * len(flat)), dtype=np.float32)
    larger[: len(flat)] = flat
    return larger


def _refuse_differences(
    first: dict[str, Any], other: dict[str, Any], first_file: Place, file: Place
) -> None:
    if difference := how_headers_differ(first, other, first_file.name):
        raise CacheError(difference, file=file)


def _concatenate(parts: list[Songs], files: list[Place], folder: Place) -> Songs:
    first = parts[0]
    for part, file in zip(parts, files, strict=True):
        _refuse_differences(vars(first), vars(part), files[0], file)
    names = [part.arrow_ids().cast(pa.large_string()) for part in parts]
    fields: dict[str, Any] = {"ids": pa.concat_arrays(names)}
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
        raise CacheError(error.message, file=folder, song=error.song) from None


def _or_full(array: npt.NDArray[Any] | None, n: int, value: Any) -> npt.NDArray[Any]:
    return np.full(n, value, dtype=object if value is None else None) if array is None else array
