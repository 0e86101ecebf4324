"""Selection tables of Raven, as BirdNET-Analyzer and others write them, of one recording or many.

In a table of many recordings, begin and end time run on from one to the next; the time within a
recording is its file offset.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from seqagg.sources import sparse
from seqagg.sources.base import Batch, File, Options

TAKES = sparse.TAKES

FORMAT = sparse.Format(
    song=("Begin Path", "Begin File"),
    time=("File Offset (s)", "Begin Time (s)"),
    end=("End Time (s)",),
    scores=("Confidence", "Score"),
    class_column=("Common Name", "Species", "Species Code"),
    suffixes=(".BirdNET.selection.table.txt", ".selections.txt", ".txt"),
)


def read(files: Sequence[File], options: Options, notes: list[str]) -> Iterator[Batch]:
    """Songs of selection tables; their confidences are probabilities unless said otherwise."""
    yield from sparse.read_detections(files, options, notes, FORMAT, "Raven")
