"""Scores of opensoundscape: what `CNN.predict` gives, as ``to_csv`` or ``to_parquet`` writes it.

A row per clip, indexed by file, start and end time; a clip that could not be read is a row of NaN,
a missing frame. Its scores are logits unless an activation layer was asked for, so their kind must
be said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from seqagg.sources import table
from seqagg.sources.base import Batch, File, Options, unchanged
from seqagg.sources.columnar import open_table

TAKES = table.TAKES

NAMES = table.NAMES | {"song": "file", "time": "start_time", "end": "end_time"}
"""Its index; the rest is as in other tables."""


def read(files: Sequence[File], options: Options, notes: list[str]) -> Iterator[Batch]:
    """Songs of score tables."""
    for file in files:
        with unchanged(file.path):
            opened = open_table(file.path, options)
            yield from table.read_table(opened, options, notes, file=file, names=NAMES)
