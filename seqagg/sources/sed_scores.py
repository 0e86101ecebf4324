"""Scores of sed_scores_eval: a ``.tsv`` file per recording with onset, offset and the classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from seqagg.sources import table
from seqagg.sources.base import Batch, File, Options, unchanged
from seqagg.sources.columnar import open_table

TAKES = {"columns", "ignore", "delimiter", "decimal"}

NAMES = {"time": "onset", "end": "offset"}


def read(files: Sequence[File], options: Options, notes: list[str]) -> Iterator[Batch]:
    """Songs of score files, each named by its file."""
    for file in files:
        with unchanged(file.path):
            opened = open_table(file.path, options)
            song = file.stem(".tsv")
            yield from table.read_table(opened, options, notes, file=file, names=NAMES, song=song)
