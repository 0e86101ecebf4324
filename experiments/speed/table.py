"""What was measured, as a table: for the file, and for people.

Conventions
-----------
``value`` is in seconds, or a ratio to seqagg's, or what the metric's name says. Sizes that a
contest does not have are null; ``frames`` is per song.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from experiments.speed.contest import Measured, Metrics
from seqagg.files import atomic_write

SCHEMA = pa.schema(
    [
        ("contest", pa.string()),
        ("setting", pa.string()),
        ("way", pa.string()),
        ("songs", pa.int64()),
        ("frames", pa.int64()),
        ("columns", pa.int64()),
        ("states", pa.int64()),
        ("metric", pa.string()),
        ("value", pa.float64()),
    ]
)

SHOWN = {
    "gb_per_second": "{:.3g} GB/s",
    "error": "error {:.1g}",
    "changed_decisions": "{:.0f} songs changed",
    "log_likelihood": "ends at {:.8g} nats",
    "nats_per_frame": "{:.3f} nats per frame",
    "loss": "loss {:.3f}",
    "megabytes": "{:.3g} MB",
    "gflops": "{:.3g} GFLOP/s",
}
"""Metrics that are printed beside times, and how."""


def write(path: Path, found: Sequence[Measured], about: Mapping[str, Any]) -> None:
    """Write one number per row."""
    rows = [
        (own.contest.name, own.contest.setting, way, *astuple(own.contest.sizes), metric, value)
        for own in found
        for way, metrics in own.metrics.items()
        for metric, value in metrics.items()
    ]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(SCHEMA)
    schema = SCHEMA.with_metadata({b"seqagg": json.dumps({"about": about})})
    table = pa.table([list(column) for column in columns], schema=schema)
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def lines_of(own: Measured) -> list[str]:
    """Lines that show a contest, the ways below each other."""
    contest = own.contest
    named = f"{contest.name}, {contest.setting}" if contest.setting else contest.name
    first = own.metrics[contest.ways[0].name]
    lines = ["", f"{named}: {contest.sizes} ({_rounds(first['rounds'])})"]
    lines.append(f"  {'':26s} {'time':>10s} {'ratio':>7s} {'on the processor':>17s}")
    for way in contest.ways:
        metrics = own.metrics[way.name]
        lines.append(f"  {way.name:26s} {_numbers(metrics)}  {_remarks(metrics)}".rstrip())
    return lines


def _rounds(n: float) -> str:
    return "1 round" if n == 1 else f"{n:.0f} rounds"


def _numbers(metrics: Metrics) -> str:
    processor = metrics.get("processor_ratio", float("nan"))
    return f"{_time(metrics['seconds']):>10s} {metrics['ratio']:7.2f} {processor:17.2f}"


def _remarks(metrics: Metrics) -> str:
    parts = [form.format(metrics[name]) for name, form in SHOWN.items() if name in metrics]
    if metrics["part"] < 1:
        parts.append(f"timed on {metrics['part']:.1%} of the songs")
    return ", ".join(parts)


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def answer(found: Sequence[Measured]) -> str:
    """What was found, in words: the fastest rival of each contest, and how times grow."""
    ratios: dict[str, list[float]] = {}
    for own in found:
        if rivals := own.rivals():
            ratios.setdefault(own.contest.name, []).append(min(rivals.values()))
    parts = [f"{name} {_range(values)}" for name, values in ratios.items()]
    if not parts:
        return "There is no other way to compare with."
    told = f"The fastest other way took, in units of seqagg's time: {', '.join(parts)}."
    grown = [f"{name} {_range(values)}" for name, values in growth(found).items()]
    if not grown:
        return told
    return (
        f"{told} A frame of the most songs took, in units of one of the fewest: {', '.join(grown)}."
    )


def growth(found: Sequence[Measured]) -> dict[str, list[float]]:
    """For each contest, seqagg's time per frame of the most songs over that of the fewest.

    Compared are contests that differ in songs alone; their frames need not agree to the last one.
    """
    costs: dict[tuple[Any, ...], list[tuple[int, float]]] = {}
    for own in found:
        setting, sizes = (own.contest.name, own.contest.setting), own.contest.sizes
        if sizes.songs and sizes.frames:
            key = (*setting, round(math.log2(sizes.frames)), sizes.columns, sizes.states)
            seconds = own.metrics[own.contest.ways[0].name]["seconds"]
            cost = seconds / (sizes.songs * sizes.frames)
            costs.setdefault(key, []).append((sizes.songs, cost))
    ratios: dict[str, list[float]] = {}
    for key, of_songs in costs.items():
        if len(of_songs) > 1:
            ratios.setdefault(key[0], []).append(max(of_songs)[1] / min(of_songs)[1])
    return ratios


def _range(ratios: Sequence[float]) -> str:
    low, high = (f"{ratio:.2g}" for ratio in (min(ratios), max(ratios)))
    return low if low == high else f"{low} to {high}"
