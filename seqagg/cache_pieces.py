"""The files of a cache, read in pieces: tables of a few songs, of as many columns as are wanted."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seqagg.cache_table import COLUMNS, check_widths, header_of
from seqagg.errors import CacheError, SeqaggError
from seqagg.files import check_regular
from seqagg.manifest import NAME as MANIFEST
from seqagg.manifest import read_manifest
from seqagg.places import Place, Remote, place_of, size_of

SUFFIXES = (".parquet", ".arrow")

BATCH_BYTES = 16 * 2**20
"""Scores that are read at a time: few enough to stay in a processor's cache until they are used."""

_SMALL_FILE = 64 * 2**20
"""Bytes of a Parquet file that are not too many to be read at once."""

_TINY_FILE = 2**20
"""Bytes of a Parquet file that other threads do not read faster."""

_MAPPED_BYTES = 16 * BATCH_BYTES
"""What of a memory-mapped file is used before its pages are given back."""


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
        with reading(file), file.open("rb") if isinstance(file, Path) else file.open() as content:
            digests[file.name] = hashlib.file_digest(content, "sha256").hexdigest()
    if not source.is_dir():
        return digests[source.name]
    lines = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def cache_files(source: Place) -> list[Place]:
    """The files of a cache, in the order of their names."""
    if not source.is_dir():
        if isinstance(source, Path) and source.exists() and not source.is_file():
            raise CacheError("is no regular file", file=source)  # a pipe would be waited for
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


def _leaves(metadata: Any) -> list[Any]:
    """Column chunks of all row groups."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    return [group.column(i) for group in groups for i in range(group.num_columns)]


def read_table(path: Place, names: list[str]) -> pa.Table:
    """Those columns of a file, if they are there."""
    with reading(path):
        if path.suffix == ".arrow":
            table = _open_arrow(path)[0].read_all()
            _refuse_repeated(path, table.schema)
            table = table.select(_present(table.schema, names))
        else:
            with open_parquet(path) as file:
                _refuse_repeated(path, file.schema_arrow)
                present = _present(file.schema_arrow, names)
                # To hand a small file to other threads takes longer than to read it.
                table = file.read(columns=present, use_threads=size_of(path) > _TINY_FILE)
        table.validate(full=True)
    return table


def read_columns(file: Place, names: list[str]) -> tuple[pa.Table, dict[str, Any]]:
    """Some columns of a cache file, those that it has, and what it declares."""
    table = read_table(file, names)
    return table, header_of(file, table.schema.metadata)


def count_frames(file: Place) -> int:
    """Frames of a cache file, from its footer or its offsets."""
    with reading(file):
        if file.suffix == ".arrow":
            lengths = pc.list_value_length(read_table(file, ["scores"])["scores"])
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
    file = pq.ParquetFile(source, page_checksum_verification=True, **settings)
    check_widths(file.schema_arrow, path, CacheError)
    return file


def buffer_size(path: Place, size: int) -> int:
    """Bytes that each column of a Parquet file should be read through, 0 for all at once.

    One row group of another writer may be the whole file. Where it is small it may as well be read
    at once, and a file that lies about the size of a column takes no more memory than it has. Over
    a network a buffer would be too many requests, so a row group is fetched in a few.
    """
    if isinstance(path, Remote) and path.data is None:
        return 0
    return size if size_of(path) > _SMALL_FILE else 0


def read_tables(path: Place, n_bytes: int, groups: range | None = None) -> Iterator[pa.Table]:
    """All columns of a file, about so many bytes at a time."""
    pieces = _arrow_pieces if path.suffix == ".arrow" else _parquet_pieces
    with reading(path):
        yield from pieces(path, n_bytes, groups)


def _parquet_pieces(path: Place, n_bytes: int, groups: range | None) -> Iterator[pa.Table]:
    far = isinstance(path, Remote) and path.data is None
    with open_parquet(path, pre_buffer=far, buffer_size=buffer_size(path, 2**20)) as file:
        names = _present(file.schema_arrow, COLUMNS)
        for i in range(file.num_row_groups) if groups is None else groups:
            group = file.metadata.row_group(i)
            n_songs = _songs_in(n_bytes, group.num_rows, group.total_byte_size)
            for batch in file.iter_batches(n_songs, [i], names, use_threads=False):
                batch.validate(full=True)
                table = pa.Table.from_batches([batch])
                yield table.replace_schema_metadata(file.schema_arrow.metadata)


def _arrow_pieces(path: Place, n_bytes: int, groups: range | None) -> Iterator[pa.Table]:
    file, mapped = _open_arrow(path)
    used = 0
    for i in range(file.num_record_batches) if groups is None else groups:
        batch = file.get_batch(i)
        batch.validate(full=True)  # even to ask for its size ends the process where it is damaged
        n_songs = _songs_in(n_bytes, len(batch), batch.nbytes)
        for first in range(0, len(batch), n_songs):
            table = pa.Table.from_batches([batch.slice(first, n_songs)])
            yield table.select(_present(table.schema, COLUMNS))
            used += n_bytes
            if used >= _MAPPED_BYTES and mapped is not None and hasattr(mapped, "madvise"):
                # Pages once read would count as ours. Whoever still needs one gets it again.
                mapped.madvise(mmap.MADV_DONTNEED)
                used = 0


def _open_arrow(path: Place) -> tuple[Any, mmap.mmap | None]:
    """An Arrow file, and the memory that it is where it lies on this machine."""
    if not isinstance(path, Path):
        return pa.ipc.open_file(path.open()), None
    with path.open("rb") as source:
        mapped = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
    return pa.ipc.open_file(pa.py_buffer(mapped)), mapped


def _songs_in(n_bytes: int, n_songs: int, n_all_bytes: int) -> int:
    return max(1, n_bytes * n_songs // max(n_all_bytes, 1))


def _present(schema: pa.Schema, names: list[str]) -> list[str]:
    return [name for name in names if name in schema.names]


@contextmanager
def reading(path: Place) -> Iterator[None]:
    """Say of every error that Arrow may raise which file it is about."""
    if path.suffix not in SUFFIXES:
        raise CacheError(f"not a cache: the name ends in none of {', '.join(SUFFIXES)}", file=path)
    try:
        if isinstance(path, Path):
            check_regular(path, CacheError)
        elif not path.exists():
            raise CacheError("no such file", file=path)
        yield
    except SeqaggError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise CacheError(f"cannot be read: {error}", file=path) from None


def _refuse_repeated(path: Place, schema: pa.Schema) -> None:
    for name in COLUMNS:
        if schema.names.count(name) > 1:
            raise CacheError("two columns of this name", file=path, column=name)
