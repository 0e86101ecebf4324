"""The result table: what a benchmark found, as files with their provenance inside.

Conventions
-----------
A *result table* has one row per method, seed, fold and metric; fold null means all scored songs
together. The table of predictions has one row per method, seed and scored song; where songs have
several labels each, ``label`` and ``prediction`` are lists. Both carry their provenance, as JSON in
the schema metadata under ``seqagg``. Methods are compared by the first seed.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seqagg.errors import ResultsError
from seqagg.evaluation import Comparison
from seqagg.files import check_regular
from seqagg.markup import card, plain_table, table
from seqagg.parsing import parse_json
from seqagg.result_files import (
    PAGE_FILE,
    PREDICTIONS_FILE,
    RESULTS_FILE,
    TIMELINES_FILE,
    Own,
    find_own,
    is_own,
    moment_of,
    place_of_own,
    write_files,
)
from seqagg.songs import Songs
from seqagg.wording import how_scored, points, verdict

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


_NEVER_NULL = {"method", "metric", "value", "song_id", "prediction", "proba"}


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

_OF_TIMELINES = "song_id n_frames early_marks early_score start log_odds marks toward against"
TIMELINES = (*_OF_TIMELINES.split(), "belief", "contribution", "state", "shuffled")
"""Columns of the table of timelines."""

_PROVENANCE = "command versions cache checksum seed task classes columns folds n_train n_groups"
_ASKED = (*_PROVENANCE.split(), "learnt", "left_out", "notes", "n_resamples", "parameters")
"""What the page and the notebook ask of the provenance."""

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
    timelines : pyarrow.Table or None
        What happened in the songs, if it was asked for: see `seqagg.timelines.make_timelines`.
    """

    results: pa.Table
    predictions: pa.Table
    comparisons: tuple[ComparisonRow, ...]
    classes: tuple[str, ...]
    left_out: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]
    timelines: pa.Table | None = None

    @property
    def provenance(self) -> dict[str, Any]:
        """How it was made: command, versions, checksum of the cache, seed, and more."""
        found: dict[str, Any] = json.loads(self.results.schema.metadata[METADATA_KEY])
        return found

    def summary(self) -> list[dict[str, Any]]:
        """Table to show: one row per method, metric -> value over all songs.

        Beside the metrics of `results`, of the first seed, a row has ``method``; where it was
        compared, ``verdict_mean`` and ``verdict_logodds``; and where several seeds were tried,
        ``accuracy_of_seeds`` (or ``lrap_of_seeds``), a list.
        """
        rows: dict[str, dict[str, Any]] = {}
        about = self.provenance
        score = "lrap" if about["task"] == "multilabel" else "accuracy"
        for row in self.results.to_pylist():
            if row["fold"] is None:
                found = rows.setdefault(row["method"], {"method": row["method"]})
                if row["seed"] == about["seed"]:
                    found[row["metric"]] = row["value"]
                if row["metric"] == score and about.get("n_seeds", 1) > 1:
                    found.setdefault(f"{score}_of_seeds", []).append(row["value"])
        for pair in self.comparisons:
            rows[pair.method][f"verdict_{pair.baseline}"] = pair.comparison.verdict
        return list(rows.values())

    def verdicts(self) -> list[str]:
        """Say of each learnt method whether it pays, or averaging log-odds is as good."""
        learnt = self.provenance["learnt"]
        return [
            verdict(row.method, row.comparison, row.metric)
            for row in self.comparisons
            if row.baseline == "logodds" and row.method in learnt
        ]

    def __repr__(self) -> str:
        """Table and verdicts, as ``print`` shows them."""
        headers, lines, facts = self._shown()
        return "\n".join([*plain_table(headers, lines), "", *facts])

    def _repr_html_(self) -> str:
        """Table and verdicts, as a notebook shows them."""
        headers, lines, facts = self._shown()
        name = str(self.provenance["cache"])
        return card(name, facts, [table(headers, lines, "Methods compared")])

    def _shown(self) -> tuple[list[str], list[list[str]], list[str]]:
        """Header and rows of the table that people see, and what is said below it."""
        rows, about = self.summary(), self.provenance
        pairs = {
            row.method: row.comparison for row in self.comparisons if row.baseline == "logodds"
        }
        score = "lrap" if about["task"] == "multilabel" else "accuracy"
        lines = []
        for row in rows:
            pair = pairs.get(row["method"])
            difference = "" if pair is None else points(pair.difference)
            if pair is not None:
                difference += f" ({points(pair.low)} to {points(pair.high)})"
            error = f"{100 * row['calibration_error']:.1f}"
            lines.append(
                [
                    row["method"],
                    f"{100 * row[score]:.1f}",
                    difference,
                    f"{row['log_loss']:.3f}",
                    error,
                ]
            )
        headers = [
            "method",
            "LRAP, %" if score == "lrap" else "accuracy, %",
            "points against logodds (95 %)",
            "log loss, nats",
            "calibration error, %",
        ]
        facts = [how_scored(about, int(rows[0]["n_songs"])), *self.verdicts()]
        return headers, lines, facts

    def write(self, folder: str | os.PathLike[str], page: str | None = None) -> None:
        """Write the tables as ``results.parquet`` and so on, all of them or none.

        Killed at any moment, it leaves what `read_results` reads as the old tables, or as these.

        Parameters
        ----------
        folder : path-like
            Made if it is not there.
        page : str, optional
            From `seqagg.report.build_page`: written with the tables, as ``report.html``.

        Raises
        ------
        OSError
            When the folder cannot be written. The tables are then as they were.
        """
        others = {PREDICTIONS_FILE: self.predictions, TIMELINES_FILE: self.timelines}
        pages = {} if page is None else {PAGE_FILE: page}
        write_files(Path(folder), self.results, others | pages)


def read_results(folder: str | os.PathLike[str]) -> BenchmarkResult:
    """Read what `BenchmarkResult.write` wrote.

    Parameters
    ----------
    folder : path-like

    Returns
    -------
    BenchmarkResult
        As it was written, except that of the songs left out for a reason only the first are named.

    Raises
    ------
    ResultsError
        Names the file that is missing, damaged or not of this kind.
    """
    place = Path(folder)
    found: BenchmarkResult | ResultsError
    while True:
        before = moment_of(place)
        try:
            found = _read_folder(place)
        except ResultsError as error:
            found = error
        if moment_of(place) == before:  # else another benchmark was written meanwhile
            break
    if isinstance(found, ResultsError):
        raise found
    return found


def _read_folder(place: Path) -> BenchmarkResult:
    leader = place / RESULTS_FILE
    results = _read_table(leader, RESULTS)
    try:
        results, own = find_own(results)
        about = json.loads(results.schema.metadata[METADATA_KEY])
        schema = predictions_schema(about["task"] == "multilabel")
        found = BenchmarkResult(
            results=results,
            predictions=_read_beside(place, PREDICTIONS_FILE, schema, results, own),
            comparisons=(),
            classes=tuple(about["classes"]),
            left_out={why: tuple(songs["first"]) for why, songs in about["left_out"].items()},
            notes=tuple(about["notes"]),
            timelines=_read_timelines(place, results, own),
        )
        return replace(found, comparisons=tuple(_read_comparisons(found, about)))
    except ResultsError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        what = f"is no table of a benchmark: {type(error).__name__}: {error}"
        raise ResultsError(what, file=leader) from None


def _read_timelines(place: Path, results: pa.Table, own: Own) -> pa.Table | None:
    there = place_of_own(place, TIMELINES_FILE, own).exists()
    if not there or own.get(TIMELINES_FILE, "") is None:
        return None
    return _read_beside(place, TIMELINES_FILE, TIMELINES, results, own)


def _read_beside(
    place: Path, name: str, columns: Sequence[str] | pa.Schema, results: pa.Table, own: Own
) -> pa.Table:
    """Table of the same benchmark as the results."""
    try:
        path = place_of_own(place, name, own)
        found = _read_table(path, columns)
        same = own.get(name) is None or is_own(path, own[name])
    except OSError as error:
        raise ResultsError(f"cannot be read: {error}", file=place / name) from None
    if not same or found.schema.metadata != results.schema.metadata:
        raise ResultsError(f"is of another benchmark than {RESULTS_FILE}", file=path)
    return found


def _read_table(path: Path, columns: Sequence[str] | pa.Schema) -> pa.Table:
    """Table of a benchmark with these columns and its provenance."""
    if path.exists():
        check_regular(path, ResultsError)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            found = file.read()
        found.validate(full=True)
        about = parse_json((found.schema.metadata or {}).get(METADATA_KEY, b"{}"))
    except FileNotFoundError:
        raise ResultsError("no such file; 'seqagg benchmark --out' writes it", file=path) from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ResultsError(f"cannot be read: {error}", file=path) from None
    if not isinstance(about, dict):
        raise ResultsError("is no table of a benchmark: its provenance is no object", file=path)
    schema = columns if isinstance(columns, pa.Schema) else pa.schema([])
    missing = [name for name in schema.names or columns if name not in found.column_names]
    missing += [name for name in _ASKED if name not in about]
    if missing or found.num_rows == 0:
        what = f"{missing[0]} is missing" if missing else "it has no row"
        raise ResultsError(f"is no table of a benchmark: {what}", file=path)
    for field in schema:
        kinds = [other.type for other in found.schema if other.name == field.name]
        if kinds != [field.type]:
            what = f"is no table of a benchmark: holds {', '.join(map(str, kinds))}"
            raise ResultsError(what, file=path, column=field.name)
        if found[field.name].null_count and field.name in _NEVER_NULL:
            raise ResultsError("a row says nothing", file=path, column=field.name)
    return found


def _read_comparisons(found: BenchmarkResult, about: Mapping[str, Any]) -> Iterator[ComparisonRow]:
    """Take comparisons back out of the rows that `comparison_rows` made of them."""
    metric, test = ("lrap", "sign") if about["task"] == "multilabel" else ("accuracy", "mcnemar")
    summary = {row["method"]: row for row in found.summary()}
    for method, name in zip(
        *(found.results[c].to_pylist() for c in ("method", "metric")), strict=True
    ):
        if not name.startswith("holm_p_"):
            continue
        baseline, row = name.removeprefix("holm_p_"), summary[method]
        start, n_songs = f"{metric}_minus_{baseline}", int(row["n_songs"])
        pair = Comparison(
            difference=row[start],
            low=row[f"{start}_low"],
            high=row[f"{start}_high"],
            wins_a=int(row[f"wins_over_{baseline}"]),
            wins_b=int(row[f"losses_to_{baseline}"]),
            p_value=row[f"{test}_p_{baseline}"],
            n_songs=n_songs,
            n_groups=about["n_groups"] or n_songs,
        )
        yield ComparisonRow(method, baseline, pair, row[name], metric)


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
