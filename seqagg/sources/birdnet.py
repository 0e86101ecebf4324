"""Results of BirdNET-Analyzer: CSV with a row per detection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from seqagg.sources import sparse
from seqagg.sources.base import Batch, File, Options

TAKES = sparse.TAKES

FORMAT = sparse.Format(
    song=("File",),
    time=("Start (s)",),
    end=("End (s)",),
    scores=("Confidence",),
    class_column=("Common name", "Scientific name"),
    suffixes=(".BirdNET.results.csv", ".csv"),
)
"""Older versions have no column of files: then a recording is called as its file of results."""


def read(files: Sequence[File], options: Options, notes: list[str]) -> Iterator[Batch]:
    """Songs of results of BirdNET-Analyzer; its confidences are probabilities."""
    yield from sparse.read_detections(files, options, notes, FORMAT, "BirdNET")
