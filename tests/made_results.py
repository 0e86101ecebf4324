"""Results of a benchmark made up from random numbers, as large and as odd as a test wants them.

A real benchmark of 10,000 songs takes minutes; the page asks only for its tables.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seqagg.evaluation import compare, evaluate, holm
from seqagg.results import (
    METADATA_KEY,
    BenchmarkResult,
    ComparisonRow,
    comparison_rows,
    predictions_schema,
    results_table,
)
from seqagg.timelines import _lists, even_marks, growing_marks

Floats = npt.NDArray[np.float64]


def made_result(
    n_songs: int,
    *,
    classes: Sequence[str] = ("blues", "jazz", "metal"),
    methods: Sequence[str] = ("mean", "logodds", "hmm", "gru"),
    ids: Sequence[str] | None = None,
    frames: tuple[int, int] = (5, 40),
    timelines: bool = True,
    seed: int = 0,
) -> BenchmarkResult:
    """Songs whose last method is right a little more often than the others."""
    rng = np.random.default_rng(seed)
    n_classes = len(classes)
    names = [f"song {i}" for i in range(n_songs)] if ids is None else list(ids)
    y = rng.integers(n_classes, size=n_songs)
    proba: dict[str, Floats] = {}
    for k, method in enumerate(methods):
        scores = rng.normal(size=(n_songs, n_classes))
        scores[np.arange(n_songs), y] += 0.5 + 0.5 * (k == len(methods) - 1)
        p = np.exp(scores)
        proba[method] = p / p.sum(axis=1, keepdims=True)
    said = {m: p.argmax(axis=1) for m, p in proba.items()}
    pairs = []
    for base in (m for m in ("mean", "logodds") if m in methods):
        found = {m: compare(y, said[m], said[base], n_resamples=500) for m in methods if m != base}
        adjusted = holm([c.p_value for c in found.values()])
        pairs += [
            ComparisonRow(m, base, c, float(p))
            for (m, c), p in zip(found.items(), adjusted, strict=True)
        ]
    metadata = {METADATA_KEY: json.dumps(_provenance(classes, methods, timelines))}
    rows = []
    for m in methods:
        found_metrics = evaluate(y, said[m], proba[m], np.arange(n_classes))
        found_metrics |= {"n_songs": n_songs, "fit_seconds": 1.0, "predict_seconds": 0.1}
        rows += [(m, None, name, value) for name, value in found_metrics.items()]
    rows += [row for pair in pairs for row in comparison_rows(pair)]
    told = _timelines(rng, names, y, said, proba, classes, methods, frames) if timelines else None
    return BenchmarkResult(
        results=results_table(rows, "made", 0).replace_schema_metadata(metadata),
        predictions=_predictions(names, y, said, proba, classes).replace_schema_metadata(metadata),
        comparisons=tuple(pairs),
        classes=tuple(classes),
        left_out={},
        notes=(),
        timelines=told and told.replace_schema_metadata(metadata),
    )


def _provenance(
    classes: Sequence[str], methods: Sequence[str], timelines: bool
) -> dict[str, object]:
    return {
        "command": "seqagg benchmark <made>.parquet",
        "versions": {"python": "3.11", "seqagg": "0.1.0"},
        "cache": "made",
        "checksum": "0" * 64,
        "seed": 0,
        "task": "multiclass",
        "classes": list(classes),
        "columns": list(classes),
        "folds": None,
        "n_train": 100,
        "n_groups": None,
        "learnt": [m for m in methods if m not in ("majority", "mean", "logodds")],
        "n_resamples": 500,
        "parameters": {m: {} for m in methods},
        "left_out": {},
        "notes": [],
    }


def _predictions(
    ids: Sequence[str],
    y: npt.NDArray[np.int64],
    said: dict[str, npt.NDArray[np.int64]],
    proba: dict[str, Floats],
    classes: Sequence[str],
) -> pa.Table:
    names = pa.array(list(classes))
    n = len(ids)
    tables = []
    for m, p in proba.items():
        lists = _lists(list(p), np.float32)
        columns = [
            list(ids),
            [m] * n,
            [None] * n,
            [0] * n,
            names.take(pa.array(y)),
            names.take(pa.array(said[m])),
            lists,
        ]
        tables.append(pa.table(columns, schema=predictions_schema(multilabel=False)))
    return pa.concat_tables(tables)


def _timelines(
    rng: np.random.Generator,
    ids: Sequence[str],
    y: npt.NDArray[np.int64],
    said: dict[str, npt.NDArray[np.int64]],
    proba: dict[str, Floats],
    classes: Sequence[str],
    methods: Sequence[str],
    frames: tuple[int, int],
) -> pa.Table:
    n, n_classes = len(ids), len(classes)
    lengths = rng.integers(frames[0], frames[1] + 1, size=n)
    shown = [m for m in methods if m not in ("majority", "mean")]
    marks = [even_marks(int(k)) for k in lengths]
    early = [growing_marks(int(k)) for k in lengths]
    toward = said[methods[-1]]
    against = np.where(said["logodds"] == toward, (toward + 1) % n_classes, said["logodds"])

    def belief(m: str) -> list[Floats]:
        """From nothing known to the answer of the whole song."""
        return [
            1 / n_classes + (p - 1 / n_classes) * (k / k[-1])[:, None]
            for p, k in zip(proba[m], marks, strict=True)
        ]

    def early_score(m: str) -> list[Floats]:
        right = (said[m] == y).astype(np.float64)
        return [np.full(len(k), r) for r, k in zip(right, early, strict=True)]

    def drawn(per_song: Sequence[npt.NDArray[np.int64]], high: float) -> list[Floats]:
        return [rng.normal(0, high, len(k)) for k in per_song]

    names = pa.array(list(classes))
    by_method = {
        "early_score": [_lists(early_score(m), np.float32) for m in methods],
        "belief": [_lists(belief(m), np.float32) for m in shown],
        "contribution": [_lists(drawn(marks, 0.3), np.float32) for m in shown],
    }
    heat = [rng.normal(-1, 2, (int(k), n_classes)) for k in lengths]
    states = [rng.integers(3, size=int(k)) for k in lengths]
    learnt = shown[1:]
    shuffled = [pa.array(rng.random(n), pa.float32()) for _ in learnt]
    return pa.table(
        {
            "song_id": pa.array(list(ids)),
            "n_frames": pa.array(lengths.astype(np.int32)),
            "early_marks": _lists(early, np.int32),
            "early_score": pa.StructArray.from_arrays(by_method["early_score"], list(methods)),
            "start": _lists([2.5 * np.arange(int(k)) for k in lengths], np.float32),
            "log_odds": _lists(heat, np.float32),
            "marks": _lists(marks, np.int32),
            "toward": names.take(pa.array(toward)),
            "against": names.take(pa.array(against)),
            "belief": pa.StructArray.from_arrays(by_method["belief"], shown),
            "contribution": pa.StructArray.from_arrays(by_method["contribution"], shown),
            "state": pa.StructArray.from_arrays([_lists(states, np.int32)], ["hmm"]),
            "shuffled": pa.StructArray.from_arrays(shuffled, learnt),
        }
    )
