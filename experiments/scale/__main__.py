"""What do a hundred million songs cost, and what becomes too slow first?

    python -m experiments.scale                 10^4 and 10^5 songs
    python -m experiments.scale --million       10^6 too: 1 GB of disk

Songs of 30 frames and 10 columns are labelled from a folder of files into a folder of tables: in
one process, in two, and by two workers of a Ray cluster. In ``scale.parquet`` stands one number per
row, with the columns engine, method, songs, nodes, metric, value: seconds (of the clock from the
first task's begin to the last one's end, starting apart; of the processors), bytes, songs a second,
tasks a second. Clusters of several nodes are Ray's own imitation, all on this machine: they tell
what handing out tasks costs, and nothing of networks. The model of cost is `cost`; its prices
(`PRICES`, `NETWORK`) are to be replaced by your own.
"""  # noqa: D400

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from experiments.runs import first_line, folder, parser
from experiments.scale.work import Span, draw, fit, nothing, timed_part
from experiments.speed.limits import machine
from seqagg.engines import Engine
from seqagg.files import atomic_write
from seqagg.overview import overview
from seqagg.scale import Job, make_parts
from seqagg.shards import find_shards, write_shards

NAME = "scale"
METHODS = ("logodds", "gru")
WORKERS = 2
ENGINES = {
    "loop": "one process",
    "processes": f"{WORKERS} processes",
    "ray": f"{WORKERS} workers of Ray",
}
NODES = (1, 2, 4, 8)
N_SONGS = 10**8

PRICES = {"core_hour": 0.04, "gigabyte_month": 0.023}
"""In dollars, of the order that clouds ask in 2026: a core with 4 GiB, and an object store."""

NETWORK = 10e9 / 8 / 16
"""Bytes a second of a core's share, 16 cores having 10 Gbit/s."""

SCHEMA = pa.schema(
    [
        ("engine", pa.string()),
        ("method", pa.string()),
        ("songs", pa.int64()),
        ("nodes", pa.int64()),
        ("metric", pa.string()),
        ("value", pa.float64()),
    ]
)

Row = tuple[str | None, str | None, int | None, int | None, str, float]
Costs = Mapping[str, float]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, keep the table, answer."""
    made = parser(__doc__, NAME)
    made.add_argument("--million", action="store_true", help="10^6 songs too")
    options = made.parse_args(arguments)
    print(first_line(__doc__))
    rows: list[Row] = []
    for row in measure(options):
        rows.append(row)
        engine, method, n_songs, nodes, metric, value = row
        about = (engine, method, n_songs and f"{n_songs:,} songs", nodes and f"{nodes} nodes")
        print(f"  {', '.join(str(x) for x in about if x)}: {metric} {value:,.4g}", flush=True)
    told = answer(rows)
    write(folder(options) / f"{NAME}.parquet", rows, told, options.quick)
    print(told)


def measure(options: argparse.Namespace) -> Iterator[Row]:
    """All numbers, one by one."""
    sizes = (300, 600) if options.quick else (10**4, 10**5) + (10**6,) * options.million
    with tempfile.TemporaryDirectory(prefix="seqagg-scale-") as scratch:
        place = Path(scratch)
        for method in METHODS:
            fit(method, place / f"{method}.safetensors")
        for n_songs in sizes:
            yield from _measure_size(place, n_songs)
    if _has_ray():
        for n_nodes in NODES[:1] if options.quick else NODES:
            yield from _measure_handing_out(n_nodes, 20 if options.quick else 2000)


def _measure_size(place: Path, n_songs: int) -> Iterator[Row]:
    songs = place / f"songs-{n_songs}"
    started = time.perf_counter()
    manifest = write_shards(draw(n_songs), songs, max(n_songs // 20, 1))
    yield None, None, n_songs, None, "write_seconds", time.perf_counter() - started
    yield None, None, n_songs, None, "bytes_in", manifest.n_bytes
    started = time.perf_counter()
    overview(songs, find_shards(songs))
    yield None, None, n_songs, None, "inspect_seconds", time.perf_counter() - started
    engines = {"loop": Engine(), "processes": Engine(jobs=WORKERS)}
    if _has_ray():
        engines["ray"] = Engine("ray", jobs=WORKERS)
    for method in METHODS:
        if method != METHODS[0] and n_songs > 10**5:
            continue  # as long per song as of fewer
        model = (place / f"{method}.safetensors").read_bytes()
        for name, engine in engines.items():
            out = place / f"{name}-{method}-{n_songs}"
            job, parts = Job(str(songs), str(out), model, None), make_parts(songs, manifest)
            started = time.time()
            spans = [span for _, span in engine.run(timed_part, job, parts)]
            for metric, value in _summary(spans, started).items():
                yield name, method, n_songs, None, metric, value
            n_bytes = sum(file.stat().st_size for file in out.rglob("*.parquet"))
            yield name, method, n_songs, None, "bytes_out", n_bytes


def _summary(spans: Sequence[Span], started: float) -> dict[str, float]:
    begin, end = min(s.begin for s in spans), max(s.end for s in spans)
    return {
        "start_seconds": begin - started,
        "seconds": end - begin,
        "cpu_seconds": sum(s.cpu for s in spans),
        "songs_per_second": sum(s.n_songs for s in spans) / (end - begin),
        "bytes_resident": max(s.bytes_resident for s in spans),
    }


def _measure_handing_out(n_nodes: int, n_tasks: int) -> Iterator[Row]:
    """Tasks a second through a cluster of nodes of one core, all on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster: Any = Cluster(True, head_node_args={**node, "include_dashboard": False})
    try:
        for _ in range(n_nodes - 1):
            cluster.add_node(**node)
        ray.init(cluster.address, log_to_driver=False)
        engine = Engine("ray")
        list(engine.run(nothing, None, range(4 * n_nodes)))  # workers start
        started = time.perf_counter()
        list(engine.run(nothing, None, range(n_tasks)))
        yield (
            "ray",
            None,
            None,
            n_nodes,
            "tasks_per_second",
            n_tasks / (time.perf_counter() - started),
        )
    finally:
        ray.shutdown()
        cluster.shutdown()


def cost(rows: Sequence[Row], method: str) -> Costs:
    """What 10^8 songs take, from what the largest number measured took.

    The processors' seconds grow with the songs; each task takes the head node its time; bytes go
    through the cores' share of the network once in and once out.
    """
    found = {row[:5]: row[5] for row in rows}
    engine = "ray" if _has(rows, "ray") else "processes"
    n = max(n or 0 for e, m, n, _, _, _ in rows if e == engine and m == method)
    about = {
        metric: found[engine, method, n, None, metric] for metric in ("cpu_seconds", "bytes_out")
    }
    n_bytes = found[None, None, n, None, "bytes_in"] + about["bytes_out"]
    core_seconds = about["cpu_seconds"] / n
    network_seconds = n_bytes / n / NETWORK
    core_hours = N_SONGS * (core_seconds + network_seconds) / 3600
    rates = [row[5] for row in rows if row[4] == "tasks_per_second"]
    return {
        "songs_per_core_second": 1 / core_seconds,
        "network_share": network_seconds / (core_seconds + network_seconds),
        "bytes_per_song": n_bytes / n,
        "core_hours": core_hours,
        "dollars_per_million": core_hours * PRICES["core_hour"] / (N_SONGS / 10**6),
        "store_dollars_per_million_month": 1e6 * n_bytes / n / 1e9 * PRICES["gigabyte_month"],
        # Shards of 50,000 songs, and the slowest rate of handing out that was met.
        "head_songs_per_second": 50_000 * min(rates) if rates else float("nan"),
    }


def answer(rows: Sequence[Row]) -> str:
    """The plan for 10^8 songs, in words."""
    lines = []
    for method in METHODS:
        found = cost(rows, method)
        lines += [
            f"{method}: {found['songs_per_core_second']:,.0f} songs a second and core; 10^8 songs "
            f"take {found['core_hours']:,.2f} core hours, ${found['dollars_per_million']:.4f} per "
            f"million songs at ${PRICES['core_hour']} a core hour.",
            f"  {found['bytes_per_song']:,.0f} bytes a song in and out: "
            f"{found['network_share']:.0%} of the time, and to keep them "
            f"${found['store_dollars_per_million_month']:.3f} per million songs and month.",
        ]
        cores = found["head_songs_per_second"] / found["songs_per_core_second"]
        if cores == cores:
            lines.append(f"  The head node hands out enough for {cores:,.0f} cores.")
    return "\n".join(lines)


def write(path: Path, rows: Sequence[Row], told: str, quick: bool) -> None:
    """Write one number per row."""
    about = {
        "question": first_line(__doc__),
        "answer": told,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "machine": machine(),
        "load": os.getloadavg()[0],
    }
    schema = SCHEMA.with_metadata({b"seqagg": json.dumps({"about": about})})
    table = pa.table([list(column) for column in zip(*rows, strict=True)], schema=schema)
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def _has(rows: Sequence[Row], engine: str) -> bool:
    return any(row[0] == engine and row[1] is not None for row in rows)


def _has_ray() -> bool:
    from importlib.util import find_spec

    return find_spec("ray") is not None


if __name__ == "__main__":
    main()
