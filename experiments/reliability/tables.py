"""Changes to Parquet and Arrow files that leave them whole: columns, types, values, claims."""

from __future__ import annotations

import functools
import io
import json
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from experiments.reliability.mutations import ODD, change_json, scramble
from seqagg.cache_table import check_widths
from seqagg.errors import CacheError

_TYPES = (
    *(pa.string(), pa.large_string(), pa.binary(), pa.int8(), pa.int64(), pa.uint64(), pa.bool_()),
    *(pa.float16(), pa.float32(), pa.float64(), pa.null(), pa.date32(), pa.timestamp("us")),
    *(pa.list_(pa.string()), pa.list_(pa.float32()), pa.large_list(pa.list_(pa.float64()))),
    *(pa.list_(pa.list_(pa.float32(), 2)), pa.list_(pa.list_(pa.float32(), 0))),
    *(pa.dictionary(pa.int8(), pa.string()), pa.map_(pa.string(), pa.float32())),
    pa.struct([("a", pa.float32())]),
)
_NAMES = ("song_id", "scores", "label", "group", "split", "fold", "start", "x", "", "song_id ")
_TEXTS = tuple(text for text in ODD if isinstance(text, str))


def change_table(data: bytes, chance: Random) -> bytes:
    """A Parquet or Arrow file like this one, with something in it changed, written anew."""
    if chance.random() < 0.35:
        return scramble(data, chance)
    kind = {b"ARROW1": "file", b"\xff\xff\xff\xff": "stream"}
    form = next((form for mark, form in kind.items() if data.startswith(mark)), "parquet")
    table = _read(data, form)
    if table is None:
        return scramble(data, chance)
    try:
        for _ in range(1 + int(chance.expovariate(1.0))):
            table = _changed(table, chance)
        return _written(table, form, chance)
    except (pa.ArrowException, ValueError, TypeError, OSError, KeyError, IndexError, OverflowError):
        return scramble(data, chance)  # there is no such table


@functools.lru_cache(100)
def _read(data: bytes, form: str) -> pa.Table | None:
    """The table in a file, if it is one that can be read: findings of old need not be."""
    source = pa.BufferReader(data)
    try:
        if form == "file":
            table = pa.ipc.open_file(source).read_all()
        elif form == "stream":
            table = pa.ipc.open_stream(source).read_all()
        else:
            file = pq.ParquetFile(source)
            check_widths(file.schema_arrow, None, CacheError)  # what it refuses takes gigabytes
            table = file.read()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, CacheError):
        return None
    return table


def _changed(table: pa.Table, chance: Random) -> pa.Table:
    kind = chance.randrange(10)
    if kind <= 2:
        return _other_claims(table, chance)
    if not table.num_columns:
        return table
    at = chance.randrange(table.num_columns)
    name, column = table.column_names[at], table.column(at)
    if kind == 3:
        return table.remove_column(at)
    if kind == 4:
        return table.add_column(at, chance.choice((name, *_NAMES)), column)
    if kind == 5:
        return table.rename_columns(
            [chance.choice(_NAMES) if i == at else n for i, n in enumerate(table.column_names)]
        )
    if kind == 6:
        return table.set_column(at, name, column.cast(chance.choice(_TYPES)))
    if kind == 7:
        return table.slice(chance.randrange(len(table) + 1), chance.randrange(3))
    if kind == 8:
        return pa.concat_tables([table, table.slice(0, chance.randrange(len(table) + 1))])
    return table.set_column(at, name, _other_values(column, chance))


def _other_claims(table: pa.Table, chance: Random) -> pa.Table:
    metadata = dict(table.schema.metadata or {})
    if not metadata or chance.random() < 0.05:
        return table.replace_schema_metadata({"seqagg": str(chance.choice(ODD))})
    key = chance.choice(sorted(metadata))
    if key != b"seqagg" or chance.random() < 0.1:
        metadata[key] = scramble(metadata[key], chance)
    else:
        metadata[key] = json.dumps(change_json([json.loads(metadata[key])], chance)[:1])[1:-1]
    return table.replace_schema_metadata(metadata)


def _other_values(column: pa.ChunkedArray, chance: Random) -> pa.Array:
    """The same column with an entry that is null, empty, odd or of another length."""
    values: list[Any] = column.to_pylist()
    at = chance.randrange(len(values)) if values else 0
    if not values:
        return pa.array(values, column.type)
    found = values[at]
    if isinstance(found, list):
        kind = chance.randrange(6)
        if kind == 0:
            found = None
        elif kind == 1:
            found = []
        elif kind == 2 and found:
            found = found[:-1]
        elif kind == 3:
            found = found * 2
        elif found:
            inner = chance.randrange(len(found))
            odd = (None, np.nan, np.inf, -np.inf, 2.0, -1.0, 1e-45, 3e38, "x")
            if isinstance(found[inner], list) and found[inner]:
                frame = list(found[inner])
                frame[chance.randrange(len(frame))] = chance.choice(odd)
                found[inner] = chance.choice((frame, None, frame[:-1], []))
            else:
                found[inner] = chance.choice(odd)
    elif isinstance(found, str):
        found = chance.choice((None, values[0], *_TEXTS))
    else:
        found = chance.choice((None, 0, -1, 2**31, 2**62))
    values[at] = found
    return pa.array(values, column.type)


def _written(table: pa.Table, form: str, chance: Random) -> bytes:
    sink = io.BytesIO()
    if form != "parquet":
        options = pa.ipc.IpcWriteOptions(
            compression=chance.choice((None, None, "lz4", "zstd")), use_threads=False
        )
        new = pa.ipc.new_file if form == "file" else pa.ipc.new_stream
        with new(sink, table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=chance.choice((1, 2, 1000)))
    else:
        pq.write_table(
            table,
            sink,
            compression=chance.choice(("none", "zstd", "snappy")),
            use_dictionary=chance.choice((True, False)),
            write_page_checksum=chance.choice((True, True, False)),
            data_page_version=chance.choice(("1.0", "2.0")),
            row_group_size=chance.choice((1, 2, 1000)),
        )
    data = sink.getvalue()
    return scramble(data, chance) if chance.random() < 0.1 else data
