"""The result table: what a benchmark found, as files with their provenance inside.

Conventions
-----------
A *result table* has one row per method, fold and metric; fold null means all scored songs together.
The table of predictions has one row per method and scored song; where songs have several labels
each, ``label`` and ``prediction`` are lists. Both carry their provenance, as
JSON in the schema metadata under ``seqagg``.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seqagg.evaluation import Comparison
from seqagg.files import atomic_write
from seqagg.songs import Songs

RESULTS = pa.schema(
    [
        ("cache", pa.string()),
        ("method", pa.string()),
        ("fold", pa.int32()),
        ("seed", pa.int64()),
        ("metric", pa.string()),
        ("value", pa.float64()),
    ]
)


def predictions_schema(multilabel: bool) -> pa.Schema:
    """Columns of the table of predictions."""
    labels = pa.list_(pa.string()) if multilabel else pa.string()
    return pa.schema(
        [
            ("song_id", pa.string()),
            ("method", pa.string()),
            ("fold", pa.int32()),
            ("seed", pa.int64()),
            ("label", labels),
            ("prediction", labels),
            ("proba", pa.list_(pa.float32())),
        ]
    )


METADATA_KEY = b"seqagg"


_PACKAGES = ("seqagg", "numpy", "scipy", "scikit-learn", "torch", "hmmlearn")


@dataclass(frozen=True)
class ComparisonRow:
    """One method against one baseline, on all scored songs.

    Attributes
    ----------
    method, baseline : str
        What was compared: a and b of `Comparison`.
    comparison : Comparison
    holm_p : float
        The p-value of the comparison, adjusted for all methods compared with this baseline.
    metric : {"accuracy", "lrap"}
        What they were compared by; the second where songs have several labels each.
    """

    method: str
    baseline: str
    comparison: Comparison
    holm_p: float
    metric: str = "accuracy"


@dataclass(frozen=True)
class BenchmarkResult:
    """What `benchmark` found.

    Attributes
    ----------
    results : pyarrow.Table
        Columns ``cache, method, fold, seed, metric, value``. Metrics are those of
        `seqagg.evaluation.evaluate`, ``n_songs``, ``fit_seconds`` and ``predict_seconds``; over
        all songs also, for each baseline, ``accuracy_minus_mean``, ``accuracy_minus_mean_low``,
        ``accuracy_minus_mean_high``, ``wins_over_mean``, ``losses_to_mean``, ``mcnemar_p_mean``
        and ``holm_p_mean``. Where songs have several labels each, metrics are those of
        `seqagg.evaluation_multilabel.evaluate`, and names begin with ``lrap`` and ``sign``
        instead of ``accuracy`` and ``mcnemar``.
    predictions : pyarrow.Table
        Columns ``song_id, method, fold, seed, label, prediction, proba``; the order of the
        probabilities is that of `classes`.
    comparisons : tuple of ComparisonRow
    classes : tuple of str
    left_out : dict of str to tuple of str
        Reason -> ids of the songs that were not used for it.
    notes : tuple of str
        What a reader of the numbers should know.
    """

    results: pa.Table
    predictions: pa.Table
    comparisons: tuple[ComparisonRow, ...]
    classes: tuple[str, ...]
    left_out: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]

    def summary(self) -> list[dict[str, Any]]:
        """Table to show: one row per method, metric -> value over all songs.

        Beside the metrics of `results` a row has ``method`` and, where it was compared,
        ``verdict_mean`` and ``verdict_logodds``.
        """
        rows: dict[str, dict[str, Any]] = {}
        for row in self.results.to_pylist():
            if row["fold"] is None:
                found = rows.setdefault(row["method"], {"method": row["method"]})
                found[row["metric"]] = row["value"]
        for pair in self.comparisons:
            rows[pair.method][f"verdict_{pair.baseline}"] = pair.comparison.verdict
        return list(rows.values())

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write ``results.parquet`` and ``predictions.parquet``, each whole or not at all.

        Parameters
        ----------
        folder : path-like
            Made if it is not there.

        Raises
        ------
        OSError
            When the folder cannot be written.
        """
        for name, table in (("results", self.results), ("predictions", self.predictions)):
            with atomic_write(Path(folder) / f"{name}.parquet") as temporary:
                pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def songs_checksum(songs: Songs) -> str:
    """Hex sha256 of what the songs hold: scores, columns, kind, ids, labels, groups, split."""
    names = ("columns", "kind", "task", "ids", "labels", "groups", "split")
    head = {name: getattr(songs, name) for name in names}
    digest = hashlib.sha256(json.dumps(head, default=_as_list).encode())
    digest.update(songs.offsets.astype("<i8").tobytes())
    digest.update(songs.values.astype("<f4").tobytes())
    return digest.hexdigest()


Row = tuple[str, int | None, str, float]
"""Method, fold, metric, value."""


def comparison_rows(pair: ComparisonRow) -> Iterator[Row]:
    """Lay a comparison out as rows of the result table."""
    found, baseline, metric = pair.comparison, pair.baseline, pair.metric
    test = "mcnemar" if metric == "accuracy" else "sign"
    values = {
        f"{metric}_minus_{baseline}": found.difference,
        f"{metric}_minus_{baseline}_low": found.low,
        f"{metric}_minus_{baseline}_high": found.high,
        f"wins_over_{baseline}": found.wins_a,
        f"losses_to_{baseline}": found.wins_b,
        f"{test}_p_{baseline}": found.p_value,
        f"holm_p_{baseline}": pair.holm_p,
    }
    for name, value in values.items():
        yield pair.method, None, name, value


def results_table(rows: Sequence[Row], cache: str, seed: int) -> pa.Table:
    """Make the result table, without its provenance."""
    method, fold, metric, value = (list(column) for column in zip(*rows, strict=True))
    n = len(rows)
    return pa.table([[cache] * n, method, fold, [seed] * n, metric, value], schema=RESULTS)


def command_line() -> str:
    """What Python was started with, without its folder."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def versions() -> dict[str, str | None]:
    """Versions of what the numbers depend on, without importing any of it."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def _as_list(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def type_name(value: Any) -> Any:
    """Stand-in for a parameter in JSON; never an address, which no rerun would repeat."""
    return value.item() if isinstance(value, np.generic) else type(value).__qualname__
