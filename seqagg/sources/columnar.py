"""Tables of typed columns in pieces: Parquet, Arrow, JSON Lines, and DataFrames of any library.

They answer as `TextTable` does: ``names``, ``cells``, ``batches`` and ``place``.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from seqagg.cache_pieces import buffer_size
from seqagg.cache_table import check_widths
from seqagg.errors import SourceError
from seqagg.files import check_regular
from seqagg.sources.base import BATCH_BYTES, MOST_COLUMNS, Options, n_at_a_time
from seqagg.sources.lines import CheckedLines
from seqagg.sources.text import PACKED, Cell, TextTable, unpacked

PARQUET_SUFFIXES = (".parquet", ".pq")
ARROW_SUFFIXES = (".arrow", ".arrows", ".feather", ".ipc")
JSON_SUFFIXES = tuple(kind + end for kind in (".jsonl", ".ndjson") for end in ("", *PACKED))

ARROW_MARK = b"ARROW1"
"""What an Arrow file begins with, but not a stream."""

FRAMES_KEY = b"seqagg.frames"
"""Schema metadata of a table with a row per frame that was made of `Songs`."""

_MOST_ROWS = 2**18
_JSON_BLOCK = 2**24
_BUFFERS = 2**25
"""Bytes of all buffers through which the columns of a Parquet file are read."""


Types = dict[str, pa.DataType | None]
"""Name of a column -> its type, or None for the one that it has."""


class ColumnTable:
    """A table in memory.

    Parameters
    ----------
    table : pyarrow.Table
    path : Path, optional
        Named in errors.

    Attributes
    ----------
    names : list of str
        Names of the columns.
    path : Path or None
    """

    def __init__(self, table: pa.Table, path: Path | None = None) -> None:
        self._table = table
        self._start(table.schema, path)

    def _start(self, schema: pa.Schema, path: Path | None) -> None:
        self.path = path
        self.schema = schema
        try:
            self.names = list(schema.names)
        except UnicodeDecodeError as error:
            raise SourceError(f"a name of a column is no UTF-8: {error}", file=path) from None
        check_widths(schema, path, SourceError)
        if len(self.names) > MOST_COLUMNS:
            raise SourceError(f"has {len(self.names):,} columns", file=path)
        twice = [name for name, n in Counter(self.names).items() if n > 1]
        if twice:
            raise SourceError("two columns of this name", file=path, column=twice[0])

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """What the columns hold."""
        return {field.name: _cell(field.type) for field in self.schema}

    def batches(
        self, types: Types, n_rows: int | None = None
    ) -> Iterator[tuple[pa.RecordBatch, float]]:
        """Some columns, in pieces, and how much of the table has been read, in [0, 1].

        Parameters
        ----------
        types : dict
            Name of a column -> its type; None leaves it as it is. A list of text stays one where
            text is asked for.
        n_rows : int, optional
            Most rows of a piece.
        """
        most = n_rows or min(n_at_a_time(len(types)), _MOST_ROWS)
        try:
            for batch, share in self._pieces(types, most):
                batch.validate(full=True)
                columns = [self._cast(self._of(batch, name), name, types[name]) for name in types]
                yield pa.RecordBatch.from_arrays(columns, names=list(types)), share
        except SourceError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise SourceError(f"cannot be read: {error}", file=self.path) from None

    def place(self, row: int) -> int:
        """Row as users count it."""
        return row

    def n_rows_at_a_time(self) -> int:
        """Rows that make a batch, where they may hold lists."""
        return max(1, int(BATCH_BYTES * len(self._table) / max(self._table.nbytes, 1)))

    def _pieces(self, types: Types, n_rows: int) -> Iterator[tuple[pa.RecordBatch, float]]:
        """Columns, which need not have these types yet."""
        n_read = 0
        for batch in self._table.select(list(types)).to_batches(n_rows):
            n_read += len(batch)
            yield batch, n_read / len(self._table)

    def _of(self, batch: pa.RecordBatch, name: str) -> pa.Array:
        try:
            return batch.column(name)
        except KeyError:  # the number of an Arrow type that pyarrow has no array for
            what = "is of a type that pyarrow cannot read"
            raise SourceError(what, file=self.path, column=name) from None

    def _cast(self, column: pa.Array, name: str, wanted: pa.DataType | None) -> pa.Array:
        if wanted is None:
            return column
        if pa.types.is_dictionary(column.type):
            values = column.dictionary
            if pa.types.is_string_view(values.type):  # polars' own, which Arrow cannot take from
                values = values.cast(pa.large_string())
            column = pa.DictionaryArray.from_arrays(column.indices, values).dictionary_decode()
        if pa.types.is_string(wanted):
            return self._text(column, name)
        if column.type == wanted:
            return column
        if _cell(column.type) not in ("number", "whole", "nothing"):
            raise SourceError(f"holds {column.type}, not numbers", file=self.path, column=name)
        return column.cast(wanted, safe=False)

    def _text(self, column: pa.Array, name: str) -> pa.Array:
        kind = column.type
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            return column.cast(pa.list_(pa.string()))
        if pa.types.is_floating(kind):  # whole numbers that some library made floats for a gap
            column = pc.if_else(pc.is_nan(column), None, column)
            column = column.cast(pa.int64())
        elif not (_cell(kind) in ("text", "whole", "nothing") or pa.types.is_boolean(kind)):
            raise SourceError(f"holds {kind}, not text", file=self.path, column=name)
        return column.cast(pa.string())


class ParquetTable(ColumnTable):
    """A Parquet file, whose page checksums are verified if it has some."""

    def __init__(self, path: Path) -> None:
        check_regular(path, SourceError)
        try:
            with pq.ParquetFile(path) as file:
                metadata, schema = file.metadata, file.schema_arrow
                self._n_rows = metadata.num_rows
                groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
                self._n_bytes = sum(group.total_byte_size for group in groups)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise SourceError(f"cannot be read: {error}", file=path) from None
        self._start(schema, path)

    def _pieces(self, types: Types, n_rows: int) -> Iterator[tuple[pa.RecordBatch, float]]:
        assert self.path is not None
        size = max(2**14, min(2**20, _BUFFERS // max(len(types), 1)))
        settings = {"page_checksum_verification": True, "pre_buffer": False}
        size = buffer_size(self.path, size)
        with pq.ParquetFile(self.path, **settings, buffer_size=size) as file:
            n_read = 0
            for batch in file.iter_batches(n_rows, columns=list(types)):
                n_read += len(batch)
                yield batch, n_read / max(self._n_rows, 1)

    def n_rows_at_a_time(self) -> int:
        """Rows that make a batch, where they may hold lists."""
        return max(1, int(BATCH_BYTES * self._n_rows / max(self._n_bytes, 1)))


class ArrowTable(ColumnTable):
    """Arrow IPC, memory-mapped: a file (Feather version 2), or a stream that was kept as one."""

    def __init__(self, path: Path) -> None:
        check_regular(path, SourceError)
        try:
            with pa.memory_map(str(path)) as source:
                schema = _open_ipc(source).schema
        except (pa.ArrowException, OSError, ValueError) as error:
            raise SourceError(f"cannot be read: {error}", file=path) from None
        self._start(schema, path)

    def _pieces(self, types: Types, n_rows: int) -> Iterator[tuple[pa.RecordBatch, float]]:
        assert self.path is not None
        with self.path.open("rb") as source:
            mapped = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
        included = [self.schema.get_field_index(name) for name in types]
        options = pa.ipc.IpcReadOptions(included_fields=included)
        used = 0
        for whole, before, share in _record_batches(pa.py_buffer(mapped), options):
            for first in range(0, len(whole), n_rows):
                piece = whole.slice(first, n_rows)
                yield piece, before + (share - before) * (first + len(piece)) / len(whole)
                used += piece.nbytes
                if used >= 16 * BATCH_BYTES and hasattr(mapped, "madvise"):
                    # Pages once read would count as ours. Whoever still needs one gets it again.
                    mapped.madvise(mmap.MADV_DONTNEED)
                    used = 0

    def n_rows_at_a_time(self) -> int:
        """Rows that make a batch, where they may hold lists."""
        assert self.path is not None
        try:
            with pa.memory_map(str(self.path)) as source:
                n_rows = sum(len(batch) for batch, *_ in _record_batches(source.read_buffer()))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise SourceError(f"cannot be read: {error}", file=self.path) from None
        return max(1, BATCH_BYTES * n_rows // self.path.stat().st_size)


def _open_ipc(source: Any, options: pa.ipc.IpcReadOptions | None = None) -> Any:
    """Reader of an Arrow file or of a stream, which begins without a mark of its own."""
    if source.read(len(ARROW_MARK)) == ARROW_MARK:
        return pa.ipc.open_file(source, options=options)
    source.seek(0)
    return pa.ipc.open_stream(source, options=options)


def _record_batches(
    data: pa.Buffer, options: pa.ipc.IpcReadOptions | None = None
) -> Iterator[tuple[pa.RecordBatch, float, float]]:
    """Batches, and the share of the data that lies before and up to the end of each."""
    source = pa.BufferReader(data)
    reader = _open_ipc(source, options)
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        n = reader.num_record_batches
        for i in range(n):
            yield reader.get_batch(i), i / n, (i + 1) / n
        return
    before = 0.0
    for batch in reader:
        share = source.tell() / max(data.size, 1)
        yield batch, before, share
        before = share


class JSONTable(ColumnTable):
    """JSON Lines: an object per row. The first block says which columns there are."""

    def __init__(self, path: Path) -> None:
        check_regular(path, SourceError)
        try:
            with self._open(path) as (_, reader):
                schema = reader.schema
        except SourceError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise SourceError(f"is not JSON Lines, an object a line: {error}", file=path) from None
        self._start(schema, path)

    @staticmethod
    @contextmanager
    def _open(path: Path, schema: pa.Schema | None = None) -> Iterator[tuple[pa.NativeFile, Any]]:
        read = pa_json.ReadOptions(block_size=_JSON_BLOCK)
        others = "infer" if schema is None else "ignore"
        parse = pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior=others)
        n_columns = None if schema is None else len(schema)
        with pa.OSFile(str(path)) as file:
            lines = pa.PythonFile(CheckedLines(unpacked(file, path), path, n_columns), mode="r")
            yield file, pa_json.open_json(lines, read, parse)

    def _pieces(self, types: Types, n_rows: int) -> Iterator[tuple[pa.RecordBatch, float]]:
        assert self.path is not None
        size = max(self.path.stat().st_size, 1)
        asked = pa.schema([(name, self._asked(name, kind)) for name, kind in types.items()])
        with self._open(self.path, asked) as (file, reader):
            for batch in reader:
                # At its end the reader closes what it reads.
                share = 1.0 if file.closed else min(1.0, file.tell() / size)
                for first in range(0, len(batch), n_rows):
                    yield batch.slice(first, n_rows).select(list(types)), share

    def _asked(self, name: str, kind: pa.DataType | None) -> pa.DataType:
        """Type of a column in all blocks: the first may hold only whole numbers, or nothing."""
        held = self.cells[name]
        if kind is not None and (
            held == "nothing" or (held != "text" and pa.types.is_floating(kind))
        ):
            return kind
        return self.schema.field(name).type

    def n_rows_at_a_time(self) -> int:
        """Rows that make a batch, where they may hold lists."""
        return _MOST_ROWS  # blocks are small


Table = TextTable | ColumnTable


def open_table(path: Path, options: Options) -> Table:
    """Open a table of any kind, by its suffix."""
    name = path.name.lower()
    if name.endswith(PARQUET_SUFFIXES):
        return ParquetTable(path)
    if name.endswith(ARROW_SUFFIXES):
        return ArrowTable(path)
    if name.endswith(JSON_SUFFIXES):
        return JSONTable(path)
    return TextTable(path, options.delimiter, options.decimal)


def table_of(data: Any) -> ColumnTable:
    """Table of a DataFrame: of pandas, polars, DuckDB, Arrow, or another that Arrow can take.

    Raises
    ------
    SourceError
        When it is none.
    """
    if isinstance(data, pa.Table):
        return ColumnTable(data)
    if isinstance(data, pa.RecordBatch):
        return ColumnTable(pa.Table.from_batches([data]))
    try:
        if hasattr(data, "__arrow_c_stream__"):
            return ColumnTable(pa.RecordBatchReader.from_stream(data).read_all())
        if hasattr(data, "__dataframe__"):
            from pyarrow.interchange import from_dataframe

            return ColumnTable(from_dataframe(data))
    except (pa.ArrowException, ValueError, TypeError, RuntimeError) as error:
        raise SourceError(f"the table cannot be read: {error}") from None
    raise SourceError(f"expected a DataFrame or an Arrow table, got {type(data).__name__}")


def _cell(kind: pa.DataType) -> Cell:
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_floating(kind) or types.is_decimal(kind):
        return "number"
    if types.is_integer(kind):
        return "whole"
    if types.is_null(kind):
        return "nothing"
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return "list"
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "text"
    return "other"


def matrix(batch: pa.RecordBatch, columns: list[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Columns of float32 side by side, shape (n_rows, n_columns); null is NaN."""
    if not columns or not len(batch):
        return np.empty((len(batch), len(columns)), dtype=np.float32)
    tensor = batch.select(columns).to_tensor(null_to_nan=True, row_major=True)
    return np.asarray(tensor.to_numpy(), dtype=np.float32)
