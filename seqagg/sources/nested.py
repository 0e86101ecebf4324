"""Tables with a row per song, whose frames are a list of lists: Parquet and Arrow files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from seqagg.cache_table import flattened, songs_of_table
from seqagg.errors import SourceError
from seqagg.sources.base import Batch, File, Options, named_columns, unchanged
from seqagg.sources.columnar import ColumnTable, Table, open_table
from seqagg.sources.rows import PER_SONG
from seqagg.sources.table import NAMES, as_declared, find_roles, said_of_songs

TAKES = {"columns", "scores", "song", "time", "label", "group", "split", "fold"}

_NAMES = {role: name for role, name in NAMES.items() if role != "end"} | {"scores": "scores"}
_OF_CACHE = {"song": "song_id", "time": "start", "scores": "scores"} | {n: n for n in PER_SONG}


def read(files: Sequence[File], options: Options, notes: list[str]) -> Iterator[Batch]:
    """Songs of tables with a row per song."""
    for file in files:
        with unchanged(file.path):
            yield from read_nested(open_table(file.path, options), options, file)


def read_nested(table: Table, options: Options, file: File | None = None) -> Iterator[Batch]:
    """Songs of one table."""
    if not isinstance(table, ColumnTable):
        raise SourceError("is no Parquet or Arrow file", file=table.path)
    options = as_declared(table, options)
    header: dict[str, Any] = {
        "kind": options.declared(table.path),
        "task": options.task or "multiclass",
        "note": options.note,
    }
    roles = find_roles(table, options, _NAMES)
    if "scores" not in roles:
        what = "no column 'scores'; --scores names the lists of frames"
        raise SourceError(what, file=table.path)
    types = {
        name: None if role in ("scores", "time") else pa.string() for role, name in roles.items()
    }
    n_before = 0
    for batch, share in table.batches(types, table.n_rows_at_a_time()):
        columns = {_OF_CACHE[role]: batch.column(name) for role, name in roles.items()}
        for role in PER_SONG:
            if role in roles:
                columns[role] = said_of_songs(columns[role], role, roles[role], table.path)
        piece = pa.table(columns)
        if "columns" not in header:
            header["columns"] = list(named_columns(options, _width(piece["scores"]), table.path))
        songs = songs_of_table(table.path or Path("the table"), piece, header)
        row = n_before.__add__
        n_before += len(songs)
        yield Batch(songs, [] if file is None else [file] * len(songs), share, row)


def _width(scores: pa.ChunkedArray) -> int:
    """Number of columns, by the type or the first frame; 1 for what is not even a list."""
    if not (pa.types.is_list(scores.type) or pa.types.is_large_list(scores.type)):
        return 1
    kind = scores.type.value_type
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    frames = [flattened(chunk).drop_null() for chunk in scores.chunks]
    first = next((f for f in frames if len(f)), None)
    if first is None or not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return 1
    return int(pc.list_value_length(first[:1])[0].as_py())
