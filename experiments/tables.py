"""Tables of results that a stopped experiment goes on with.

Conventions
-----------
A *cell* is one run of an experiment, named by the values of the table's keys: (cache, method,
seed), say. The table has the keys as columns, then ``metric`` and ``value``, one row per number.
A second file, ``NAME_songs.parquet``, has one row per cell: which of the scored songs were right,
and the group of each (null where each is its own). A cell with a null key sums up over it, and is
computed anew from the others every time. What a cell was made from stands in the schema metadata
under ``seqagg``, as JSON.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from seqagg import compare
from seqagg.evaluation import Comparison
from seqagg.files import atomic_write

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Cell = tuple[str | int | None, ...]
Source = Mapping[str, Any]

_METADATA_KEY = b"seqagg"
_PER_SONG = {"right": pa.list_(pa.bool_()), "group": pa.list_(pa.int32())}


@dataclass(frozen=True)
class Outcome:
    """What one run found.

    Attributes
    ----------
    metrics : dict of str to float
    right : ndarray of bool, shape (n_songs,)
        Which of the scored songs got their label.
    groups : ndarray of int, shape (n_songs,)
        Group of each of them.
    """

    metrics: Mapping[str, float]
    right: Bools
    groups: Ints


class Results:
    """A table of results and its file.

    Parameters
    ----------
    path : Path
        Where the table is kept. It is read if it is there.
    keys : mapping of str to pyarrow.DataType
        Columns that name a cell.

    Attributes
    ----------
    metrics : dict of cell to dict of str to float
    outcomes : dict of cell to Outcome
        Those cells that are runs.
    about : dict of str to Any
        What is said of the whole table: its question and answer.
    """

    def __init__(self, path: Path, keys: Mapping[str, pa.DataType]) -> None:
        self.path = path
        self.keys = dict(keys)
        self.metrics: dict[Cell, dict[str, float]] = {}
        self.outcomes: dict[Cell, Outcome] = {}
        self.about: dict[str, Any] = {}
        self._sources: dict[Cell, str] = {}
        if path.exists():
            self._read()

    def has(self, cell: Cell, source: Source) -> bool:
        """Whether the cell is there and was made from just this."""
        return cell in self.outcomes and self._sources.get(cell) == _text(source)

    def source(self, cell: Cell) -> dict[str, Any]:
        """What a run was made from."""
        found: dict[str, Any] = json.loads(self._sources[cell])
        return found

    def add(self, cell: Cell, outcome: Outcome, source: Source) -> None:
        """Put a run into the table, in place of an older one of that name."""
        self.outcomes[cell] = outcome
        self.metrics[cell] = dict(outcome.metrics)
        self._sources[cell] = _text(source)

    def drop(self, cells: Iterable[Cell]) -> None:
        """Forget cells."""
        for cell in list(cells):
            self.outcomes.pop(cell, None)
            self.metrics.pop(cell, None)
            self._sources.pop(cell, None)

    def sum_up(self, summaries: Mapping[Cell, Mapping[str, float]]) -> None:
        """Replace all cells that sum up."""
        self.drop([cell for cell in self.metrics if None in cell])
        self.metrics |= {cell: dict(found) for cell, found in summaries.items()}

    def matching(self, **wanted: str | int) -> list[Cell]:
        """Runs with these values of keys, in order."""
        place = {name: i for i, name in enumerate(self.keys)}
        return sorted(
            cell
            for cell in self.outcomes
            if all(cell[place[name]] == value for name, value in wanted.items())
        )

    def summed(self, key: str) -> list[Any]:
        """Every value of a key in the cells that sum up, sorted."""
        place = list(self.keys).index(key)
        return sorted({cell[place] for cell in self.metrics if None in cell} - {None})

    def write(self) -> None:
        """Write both files, each whole or not at all."""
        # Songs first: a run that is in one file only is made again.
        _write(self._songs_table(), self._songs_path())
        _write(self._table(), self.path)

    def _table(self) -> pa.Table:
        cells = sorted(self.metrics, key=lambda cell: [(key is None, key) for key in cell])
        rows = [
            (*cell, metric, float(value))
            for cell in cells
            for metric, value in self.metrics[cell].items()
        ]
        schema = pa.schema([*self.keys.items(), ("metric", pa.string()), ("value", pa.float64())])
        cells_of: dict[str, list[Cell]] = {}
        for cell in cells:
            if cell in self._sources:
                cells_of.setdefault(self._sources[cell], []).append(cell)
        sources = [{"made from": json.loads(s), "cells": own} for s, own in cells_of.items()]
        metadata = {_METADATA_KEY: json.dumps({"about": self.about, "sources": sources})}
        return _table(rows, schema.with_metadata(metadata))

    def _songs_table(self) -> pa.Table:
        rows = [
            (*cell, outcome.right.tolist(), _plain_groups(outcome.groups))
            for cell, outcome in sorted(self.outcomes.items(), key=lambda item: item[0])
        ]
        return _table(rows, pa.schema([*self.keys.items(), *_PER_SONG.items()]))

    def _songs_path(self) -> Path:
        return self.path.with_name(f"{self.path.stem}_songs.parquet")

    def _read(self) -> None:
        table = pq.read_table(self.path)
        if table.column_names != [*self.keys, "metric", "value"]:
            raise SystemExit(f"{self.path} holds another table: remove it")
        metadata = json.loads(table.schema.metadata[_METADATA_KEY])
        self.about = metadata["about"]
        for *key, metric, value in zip(*table.to_pydict().values(), strict=True):
            self.metrics.setdefault(tuple(key), {})[metric] = value
        if not self._songs_path().exists():
            return
        for row in pq.read_table(self._songs_path()).to_pylist():
            cell = tuple(row[name] for name in self.keys)
            if cell in self.metrics:
                groups = range(len(row["right"])) if row["group"] is None else row["group"]
                self.outcomes[cell] = Outcome(
                    self.metrics[cell], np.array(row["right"]), np.array(groups)
                )
        for part in metadata["sources"]:
            self._sources |= {tuple(cell): _text(part["made from"]) for cell in part["cells"]}


def compare_runs(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> Comparison:
    """Difference of the mean accuracies of two methods' runs, on the same songs.

    Every run of the one is paired with every run of the other, and songs are resampled by group,
    a song with all its pairs at once: the interval says what other songs would change, the runs
    being as they are. Its p-value and wins count pairs, which are not independent.
    """
    pairs = list(itertools.product(ours, theirs))
    right = np.concatenate([a.right for a, _ in pairs])
    return compare(
        np.ones(len(right), dtype=bool),
        right,
        np.concatenate([b.right for _, b in pairs]),
        np.concatenate([a.groups for a, _ in pairs]),
    )


def difference(name: str, found: Comparison) -> dict[str, float]:
    """Metrics of a paired difference and its 95 % interval."""
    return {name: found.difference, f"{name}_low": found.low, f"{name}_high": found.high}


def mean_and_spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Metrics of the mean, the lowest and the highest of the runs' values."""
    return {name: float(np.mean(values)), f"{name}_low": min(values), f"{name}_high": max(values)}


def points(share: float, sign: bool = False) -> str:
    """Share in percent, with one decimal and, unless it is 0.0, a sign where wanted."""
    number = round(100 * share, 1) + 0.0  # -0.0 becomes 0.0
    return f"{number:+.1f}" if sign and number else f"{number:.1f}"


def interval(metrics: Mapping[str, float], name: str) -> str:
    """Paired difference in points and its interval: +1.2 [-0.3, +2.8]."""
    low, high = metrics[f"{name}_low"], metrics[f"{name}_high"]
    return f"{points(metrics[name], True)} [{points(low, True)}, {points(high, True)}]"


def _plain_groups(groups: Ints) -> list[int] | None:
    alone = np.array_equal(groups, np.arange(len(groups)))
    return None if alone else [int(group) for group in groups]


def _table(rows: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
    return pa.table([list(column) for column in columns], schema=schema)


def _write(table: pa.Table, path: Path) -> None:
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def _text(source: Source) -> str:
    return json.dumps(source, sort_keys=True)
