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

import hashlib
import json
import mmap
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
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
from seqagg.manifest import NAME as MANIFEST
from seqagg.manifest import read_manifest
from seqagg.places import Place, Remote, place_of, size_of
from seqagg.songs import Songs

VERSION = 1
SUFFIXES = (".parquet", ".arrow")

HEADER_KEY = b"seqagg"
_KNOWN_KEYS = {"version", "columns", "kind", "task", "note"}
_ROW_GROUP_BYTES = 64 * 2**20
"""Uncompressed scores per Parquet row group: what a reader must hold at once."""

_BATCH_BYTES = 16 * 2**20
"""Scores that are read at a time: few enough to stay in a processor's cache until they are used."""

_SMALL_FILE = 64 * 2**20
"""Bytes of a Parquet file that are not too many to be read at once."""

_MOST_PACKED = 64
"""How many times smaller scores are when packed, at most; more is taken as it comes."""

_MAPPED_BYTES = 16 * _BATCH_BYTES
"""What of a memory-mapped file is used before its pages are given back."""

_COLUMNS = ["song_id", "label", "group", "split", "fold", "start", "scores"]


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
        for name in _COLUMNS:
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


def checksum(path: str | os.PathLike[str]) -> str:
    """Hex sha256 of a cache file; of a folder, of what ``sha256sum`` says of its files.

    Parameters
    ----------
    path : path-like
        A ``.parquet`` or ``.arrow`` file, or a folder that holds some.

    Raises
    ------
    CacheError
        Where there is no such file.
    """
    source = place_of(path)
    digests = {}
    for file in cache_files(source):
        with _reading(file), file.open("rb") if isinstance(file, Path) else file.open() as content:
            digests[file.name] = hashlib.file_digest(content, "sha256").hexdigest()
    if not source.is_dir():
        return digests[source.name]
    lines = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    return hashlib.sha256(lines.encode()).hexdigest()


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

    def __init__(self, path: str | os.PathLike[str], *, n_bytes: int = _BATCH_BYTES) -> None:
        self._path = place_of(path)
        self._n_bytes = n_bytes
        self._files = cache_files(self._path)
        self.splits: Counter[str] = Counter()
        all_ids = []
        headers = []
        for file in self._files:
            table = _read_table(file, ["song_id", "split"])
            headers.append(header_of(file, table.schema.metadata))
            _refuse_differences(headers[0], headers[-1], self._files[0], file)
            all_ids.append(_read_ids(file, table).cast(pa.large_string()))
            _refuse_twice(all_ids[-1], file)
            split = _column(file, table, "split", "string", _is_text)
            if split is not None:
                for found in split.drop_null().value_counts():
                    self.splits[found["values"].as_py()] += found["counts"].as_py()
        ids = pa.chunked_array(all_ids)
        if len(self._files) > 1:
            _refuse_twice(ids, self._path)
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
    n_bytes: int = _BATCH_BYTES,
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
    for table in _read_tables(file, n_bytes, groups):
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
    file: Place, groups: range | None = None, *, n_bytes: int = _BATCH_BYTES
) -> Iterator[Songs]:
    """Songs of a cache file some at a time, with everything that is said of them."""
    for table in _read_tables(file, n_bytes, groups):
        yield songs_of_table(file, table, header_of(file, table.schema.metadata))


def _usable(
    file: Place,
    table: pa.Table,
    header: dict[str, Any],
    refuse: Callable[[str, str], object] | None,
) -> list[tuple[Songs, dict[str, pa.Array | None]]]:
    """Songs of a table; where some are refused, in the pieces that lie between them."""
    try:
        return [_to_songs(file, table, header)]
    except CacheError as error:
        if refuse is None or error.song is None:
            raise
        if len(table) == 1:
            refuse(error.song, error.message)
            return []
    half = len(table) // 2
    parts = (table.slice(0, half), table.slice(half))
    return [songs for part in parts for songs in _usable(file, part, header, refuse)]


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
    songs, text = _to_songs(path, table, header)
    return songs._with(**{name: _objects(column) for name, column in text.items()})


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


def cache_files(source: Place) -> list[Place]:
    """The files of a cache, in the order of their names."""
    if not source.is_dir():
        return [source]
    try:
        there: list[Place] = list(source.iterdir())
    except OSError as error:
        raise CacheError(f"cannot be read: {error}", file=source) from None
    files = [p for p in there if p.suffix in SUFFIXES and not p.name.startswith(".")]
    if not files:
        raise CacheError(f"the folder holds no {' or '.join(SUFFIXES)} file", file=source)
    files.sort(key=lambda file: file.name)
    manifest = read_manifest(source)
    if manifest is not None:
        _refuse_other_files(source, {f.name for f in files}, {s.file for s in manifest.shards})
    return files


def _refuse_other_files(folder: Place, there: set[str], listed: set[str]) -> None:
    for names, what in ((listed - there, "is missing"), (there - listed, "is not listed")):
        if names:
            raise CacheError(f"{min(names)} {what}", file=folder / MANIFEST)


def _read_file(path: Place) -> Songs:
    if path.suffix != ".parquet":
        table = _read_table(path, _COLUMNS)
        return songs_of_table(path, table, header_of(path, table.schema.metadata))
    songs, text = _read_parquet(path)
    return songs._with(**{name: _objects(column) for name, column in text.items()})


def _read_parquet(path: Place) -> tuple[Songs, dict[str, pa.Array | None]]:
    """Decode by small pieces into one array: the memory of a piece serves the next one.

    All at once, most of the time goes into fresh memory, which is then copied into one piece.
    """
    table = _read_table(path, ["song_id"])
    header, ids = header_of(path, table.schema.metadata), _read_ids(path, table)
    parts: list[Songs] = []
    texts: list[dict[str, pa.Array | None]] = []
    with _reading(path):
        flat = np.empty(_expected_scores(path), dtype=np.float32)
        end = 0
        for piece in _read_tables(path, _BATCH_BYTES):
            songs, text = _to_songs(path, piece, header)
            start, end = end, end + songs.values.size
            flat = _with_room(flat, end)
            flat[start:end] = songs.values.reshape(-1)
            parts.append(songs._with(values=songs.values[:0]))
            texts.append(text)
    if not parts:
        return _to_songs(path, _read_table(path, _COLUMNS), header)
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


def _leaves(metadata: Any) -> list[Any]:
    """Column chunks of all row groups."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    return [group.column(i) for group in groups for i in range(group.num_columns)]


def _to_songs(
    path: Place, table: pa.Table, header: dict[str, Any]
) -> tuple[Songs, dict[str, pa.Array | None]]:
    """Songs without a Python object for each, and by field their text, which stays Arrow."""
    ids = _read_ids(path, table)
    text = {
        "labels": _read_labels(path, table, header["task"]),
        "groups": _column(path, table, "group", "string", _is_text),
        "split": _column(path, table, "split", "string", _is_text),
    }
    values, offsets = _read_scores(path, table, ids, header["columns"])
    fold, start = _read_fold(path, table), _read_start(path, table, ids, offsets)
    try:
        return Songs(values, offsets, ids=ids, fold=fold, start=start, **header), text
    except SeqaggError as error:
        raise CacheError(error.message, file=path, song=error.song, column=error.column) from None


def _read_table(path: Place, names: list[str]) -> pa.Table:
    """Those columns of a file, if they are there."""
    with _reading(path):
        if path.suffix == ".arrow":
            with (
                pa.memory_map(os.fspath(path)) if isinstance(path, Path) else path.open() as source
            ):
                table = pa.ipc.open_file(source).read_all()
            _refuse_repeated(path, table.schema)
            table = table.select(_present(table.schema, names))
        else:
            with open_parquet(path) as file:
                _refuse_repeated(path, file.schema_arrow)
                table = file.read(columns=_present(file.schema_arrow, names))
        table.validate(full=True)
    return table


def read_columns(file: Place, names: list[str]) -> tuple[pa.Table, dict[str, Any]]:
    """Some columns of a cache file, those that it has, and what it declares."""
    table = _read_table(file, names)
    return table, header_of(file, table.schema.metadata)


def count_frames(file: Place) -> int:
    """Frames of a cache file, from its footer or its offsets."""
    with _reading(file):
        if file.suffix == ".arrow":
            lengths = pc.list_value_length(_read_table(file, ["scores"])["scores"])
            return int(pc.sum(lengths).as_py() or 0)
        with open_parquet(file) as parquet:
            columns = [
                c for c in _leaves(parquet.metadata) if c.path_in_schema.startswith("scores.")
            ]
            n_columns = len(header_of(file, parquet.schema_arrow.metadata)["columns"])
    # A song without a frame is counted as one value that is null.
    n = sum(c.num_values - (c.statistics.null_count if c.statistics else 0) for c in columns)
    return int(n) // max(n_columns, 1)


def open_parquet(path: Place, **settings: Any) -> Any:
    """A `pyarrow.parquet.ParquetFile` whose pages are checked while they are read."""
    source = path if isinstance(path, Path) else path.open()
    return pq.ParquetFile(source, page_checksum_verification=True, **settings)


def buffer_size(path: Place, size: int) -> int:
    """Bytes that each column of a Parquet file should be read through, 0 for all at once.

    One row group of another writer may be the whole file. Where it is small it may as well be read
    at once, and a file that lies about the size of a column takes no more memory than it has. Over
    a network a buffer would be too many requests, so a row group is fetched in a few.
    """
    if isinstance(path, Remote) and path.data is None:
        return 0
    return size if size_of(path) > _SMALL_FILE else 0


def _read_tables(path: Place, n_bytes: int, groups: range | None = None) -> Iterator[pa.Table]:
    """All columns of a file, about so many bytes at a time."""
    pieces = _arrow_pieces if path.suffix == ".arrow" else _parquet_pieces
    with _reading(path):
        for table in pieces(path, n_bytes, groups):
            table.validate(full=True)
            yield table


def _parquet_pieces(path: Place, n_bytes: int, groups: range | None) -> Iterator[pa.Table]:
    far = isinstance(path, Remote) and path.data is None
    with open_parquet(path, pre_buffer=far, buffer_size=buffer_size(path, 2**20)) as file:
        names = _present(file.schema_arrow, _COLUMNS)
        for i in range(file.num_row_groups) if groups is None else groups:
            group = file.metadata.row_group(i)
            n_songs = _songs_in(n_bytes, group.num_rows, group.total_byte_size)
            for batch in file.iter_batches(n_songs, [i], names, use_threads=False):
                table = pa.Table.from_batches([batch])
                yield table.replace_schema_metadata(file.schema_arrow.metadata)


def _arrow_pieces(path: Place, n_bytes: int, groups: range | None) -> Iterator[pa.Table]:
    mapped = None
    if isinstance(path, Path):
        with path.open("rb") as source:
            mapped = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
    file = pa.ipc.open_file(path.open() if mapped is None else pa.py_buffer(mapped))
    used = 0
    for i in range(file.num_record_batches) if groups is None else groups:
        batch = file.get_batch(i)
        n_songs = _songs_in(n_bytes, len(batch), batch.nbytes)
        for first in range(0, len(batch), n_songs):
            table = pa.Table.from_batches([batch.slice(first, n_songs)])
            yield table.select(_present(table.schema, _COLUMNS))
            used += n_bytes
            if used >= _MAPPED_BYTES and mapped is not None and hasattr(mapped, "madvise"):
                # Pages once read would count as ours. Whoever still needs one gets it again.
                mapped.madvise(mmap.MADV_DONTNEED)
                used = 0


def _songs_in(n_bytes: int, n_songs: int, n_all_bytes: int) -> int:
    return max(1, n_bytes * n_songs // max(n_all_bytes, 1))


def _present(schema: pa.Schema, names: list[str]) -> list[str]:
    return [name for name in names if name in schema.names]


@contextmanager
def _reading(path: Place) -> Iterator[None]:
    """Say of every error that Arrow may raise which file it is about."""
    if path.suffix not in SUFFIXES:
        raise CacheError(f"not a cache: the name ends in none of {', '.join(SUFFIXES)}", file=path)
    try:
        if not path.exists():
            raise CacheError("no such file", file=path)
        yield
    except SeqaggError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise CacheError(f"cannot be read: {error}", file=path) from None


def _refuse_repeated(path: Place, schema: pa.Schema) -> None:
    for name in _COLUMNS:
        if schema.names.count(name) > 1:
            raise CacheError("two columns of this name", file=path, column=name)


def _refuse_twice(ids: pa.Array, path: Place) -> None:
    if len(ids.unique()) == len(ids):
        return
    counts = ids.value_counts()
    name = counts.field("values").filter(pc.greater(counts.field("counts"), 1))[0].as_py()
    raise CacheError(f"song {name!r} stands there twice", file=path, song=name)


def _refuse_differences(
    first: dict[str, Any], other: dict[str, Any], first_file: Place, file: Place
) -> None:
    for name in ("columns", "kind", "task"):
        if other[name] != first[name]:
            raise CacheError(f"{name} differ from those of {first_file.name}", file=file)


def header_of(path: Place, metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """Fields for `Songs`, from the declaration in the schema metadata."""
    if not metadata or HEADER_KEY not in metadata:
        raise CacheError("no seqagg metadata; 'seqagg convert' makes a cache of it", file=path)
    try:
        header = json.loads(metadata[HEADER_KEY])
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


def _column(path: Place, table: pa.Table, name: str, wanted: str, matches: Any) -> pa.Array | None:
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


def _read_ids(path: Place, table: pa.Table) -> pa.Array:
    ids = _column(path, table, "song_id", "string", _is_text)
    if ids is None:
        raise CacheError("no column of this name", file=path, column="song_id")
    if ids.null_count:
        row = int(np.argmax(np.asarray(ids.is_null())))
        raise CacheError(f"row {row} has no id", file=path, column="song_id")
    return ids


def _read_labels(path: Place, table: pa.Table, task: Task) -> pa.Array | None:
    if task == "multiclass":
        return _column(path, table, "label", "string", _is_text)
    return _column(
        path,
        table,
        "label",
        "list of string",
        lambda kind: _is_list(kind) and _is_text(kind.value_type),
    )


def _objects(column: pa.Array | None) -> npt.NDArray[Any] | None:
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
    column = _column(path, table, "fold", "int32", pa.types.is_integer)
    if column is None:
        return None
    try:
        return np.asarray(pc.fill_null(column.cast(pa.int32()), -1), dtype=np.int32)
    except pa.ArrowInvalid as error:
        raise CacheError(str(error), file=path, column="fold") from None


def _read_start(
    path: Place, table: pa.Table, ids: pa.Array, offsets: npt.NDArray[np.int64]
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
            song=ids[song].as_py(),
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
    path: Place, table: pa.Table, ids: pa.Array, columns: list[str]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Flat values and offsets, without a Python object per song."""
    scores = _column(path, table, "scores", "list of fixed_size_list of float32", _is_scores)
    if scores is None:
        raise CacheError("no column of this name", file=path, column="scores")
    if scores.null_count:
        song = int(np.argmax(np.asarray(scores.is_null())))
        raise _bad_scores(path, ids, song, "the song has no scores (null)")
    offsets = np.zeros(len(scores) + 1, dtype=np.int64)
    np.cumsum(np.asarray(pc.list_value_length(scores)), out=offsets[1:])

    def song_of(frame: int) -> int:
        return int(np.searchsorted(offsets, frame, side="right")) - 1

    frames = scores.flatten()
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
    values = frames.flatten()
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
