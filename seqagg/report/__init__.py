"""Result tables -> one self-contained HTML page."""

from __future__ import annotations

import os

from seqagg.files import atomic_write
from seqagg.report.page import build_page
from seqagg.results import BenchmarkResult

__all__ = ["build_page", "write_report"]


def write_report(result: BenchmarkResult, path: str | os.PathLike[str]) -> None:
    """Write the page of a benchmark, whole or not at all.

    Parameters
    ----------
    result : BenchmarkResult
        From `seqagg.benchmark`, or `seqagg.results.read_results`.
    path : path-like
        An ``.html`` file; it needs neither network nor other files.

    Raises
    ------
    ResultsError
        When the tables do not fit together.
    OSError
        When the file cannot be written.

    Examples
    --------
    >>> result = seqagg.benchmark(songs, ["mean", "gru"], timelines=1000)  # doctest: +SKIP
    >>> write_report(result, "report.html")  # doctest: +SKIP
    """
    text = build_page(result)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
