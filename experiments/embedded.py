"""What does `seqagg benchmark` find on the songs that come with it?

    python -m experiments.embedded

The five methods of the command, seed 0. ``embedded.parquet`` is the benchmark's own table, with
the columns cache, method, fold, seed, metric, value.
"""  # noqa: D400

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

import seqagg
from experiments.caches import Cache, embedded_cache, few_songs
from experiments.runs import QUICK, first_line, folder, parser
from experiments.tables import interval, points
from seqagg.benchmark import METHODS
from seqagg.files import atomic_write
from seqagg.results import BenchmarkResult

NAME = "embedded"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, keep its table, answer."""
    options = parser(__doc__, NAME).parse_args(arguments)
    print(first_line(__doc__))
    cache = embedded_cache()
    if cache is None:
        raise SystemExit("the songs are not there yet: python -m experiments.tunes makes them")
    found = run(few_songs(cache) if options.quick else cache, options.quick)
    keep(found, folder(options) / f"{NAME}.parquet")
    print(answer(found))


def run(cache: Cache, quick: bool) -> BenchmarkResult:
    """Benchmark of the methods of the command."""
    return seqagg.benchmark(
        cache.songs,
        METHODS,
        seed=0,
        name=cache.name,
        checksum=cache.checksum,
        command=f"python -m experiments.{NAME}",
        parameters={m: p for m, p in QUICK.items() if m in METHODS} if quick else None,
    )


def keep(found: BenchmarkResult, path: Path) -> None:
    """Write the table of results."""
    with atomic_write(path) as temporary:
        pq.write_table(found.results, temporary, compression="zstd", write_page_checksum=True)


def answer(found: BenchmarkResult) -> str:
    """What was found, in a sentence."""
    rows = {row["method"]: row for row in found.summary()}
    best = max(rows, key=lambda method: rows[method]["accuracy"])
    text = f"{best} is right on {points(rows[best]['accuracy'])} % of the songs"
    name = "accuracy_minus_logodds"
    if name in rows[best]:
        text += f", {interval(rows[best], name)} points on the mean of log-odds"
    return text + "."


if __name__ == "__main__":
    main()
