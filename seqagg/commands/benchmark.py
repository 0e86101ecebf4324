"""Compare methods with averaging."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from seqagg.commands.options import (
    PlaceType,
    complete_methods,
    engine_options,
    json_option,
    quiet_option,
    seed_option,
)
from seqagg.errors import about
from seqagg.places import Place
from seqagg.terminal import print_json, show_benchmark, warn

if TYPE_CHECKING:
    from seqagg.engines import Engine
    from seqagg.results import BenchmarkResult
    from seqagg.songs import Songs

_COMPARED = "majority,mean,logodds,hmm,gru"
"""`benchmark.METHODS`, which would take a second to import for a line of help."""


@click.command(
    epilog="""\b
Examples:
  seqagg benchmark
  seqagg benchmark songs.parquet --methods mean,logodds,hmm,gru --out results
  seqagg benchmark songs.parquet --cv 10 --seed 1 --json
  seqagg benchmark songs.parquet --methods gru --seeds 5 --jobs 2
  seqagg benchmark songs.parquet --methods logodds,gru,auto --engine ray --address auto
"""
)
@click.argument("cache", type=PlaceType(), required=False)
@click.option(
    "--methods",
    metavar="A,B,...",
    shell_complete=complete_methods,
    help=f"Methods to compare.  [default: {_COMPARED}]",
)
@click.option(
    "--cv",
    type=click.IntRange(min=2),
    metavar="K",
    help="Cross-validate in K folds by group, even where the cache has a split.",
)
@seed_option
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Fit what depends on chance N times, with the seeds from --seed on.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for report.html, a page to look at, and the tables that it is made of.",
)
@click.option(
    "--timelines",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    metavar="N",
    help="Songs whose timelines the page shows, those first on which methods differ.",
)
@engine_options
@json_option
@quiet_option
def benchmark(
    cache: Place | None,
    methods: str | None,
    cv: int | None,
    seed: int,
    seeds: int,
    out: Path | None,
    timelines: int,
    engine: Engine,
    as_json: bool,
) -> None:
    """Compare methods on labelled songs, paired with plain averaging.

    Without CACHE, on the songs that come with seqagg. Where the cache has a split, methods learn
    from its train songs and are scored on its test songs; else they are cross-validated by group.

    With --jobs or --engine, every method, fold and seed is fitted side by side.
    """
    from seqagg.benchmark import METHODS
    from seqagg.benchmark import benchmark as run
    from seqagg.files import try_to_write
    from seqagg.inspection import inspect as look
    from seqagg.manifest import refuse_replacing
    from seqagg.result_files import RESULTS_FILE

    chosen = [m.strip() for m in methods.split(",")] if methods else METHODS
    name, songs, checksum = _songs_to_compare(cache)
    if out is not None:
        refuse_replacing(out / RESULTS_FILE, cache)
        try_to_write(out / RESULTS_FILE)
    with _fits_shown() as progress, about(name if cache is None else cache):
        result = run(
            songs,
            chosen,
            cv=cv,
            seed=seed,
            n_seeds=seeds,
            name=name,
            checksum=checksum,
            timelines=0 if out is None else timelines,
            progress=progress,
            engine=engine,
        )
        if out is not None:
            _write(result, out)
    warnings = look(songs).warnings
    if as_json:
        print_json(_benchmark_json(result, warnings, out))
    else:
        warn(warnings)
        show_benchmark(result, out)


def _songs_to_compare(cache: Place | None) -> tuple[str, Songs, str]:
    """Name, songs and checksum of the cache; None stands for the embedded one."""
    from importlib.resources import as_file, files

    from seqagg.cache import read_cache
    from seqagg.cache_pieces import checksum

    if cache is None:
        with as_file(files("seqagg") / "data" / "tunes.parquet") as path:
            return _songs_to_compare(path)
    resolved = cache.resolve() if isinstance(cache, Path) else cache
    name = resolved.name if resolved.is_dir() else resolved.stem
    return name, read_cache(cache), checksum(cache)


def _write(result: BenchmarkResult, out: Path) -> None:
    from seqagg.progress import waiting
    from seqagg.report import build_page

    result.write(out)  # what took hours to find is not lost, whatever becomes of the page
    with waiting("report"):
        result.write(out, build_page(result))


@contextmanager
def _fits_shown() -> Iterator[Callable[[int, int, str], None]]:
    """Draw one bar over all fits, on a terminal."""
    from seqagg.progress import shown, steps

    with shown(), ExitStack() as stack:
        advance: list[Callable[[str], None]] = []

        def report(done: int, total: int, text: str) -> None:
            if not advance:
                advance.append(stack.enter_context(steps("benchmark", total)))
            if done:
                advance[0](text)

        yield report


def _benchmark_json(
    result: BenchmarkResult, warnings: Sequence[str], out: Path | None
) -> dict[str, Any]:
    return {
        "provenance": result.provenance,
        "methods": result.summary(),
        "comparisons": [dataclasses.asdict(row) for row in result.comparisons],
        "classes": result.classes,
        "left_out": dict(result.left_out),
        "notes": result.notes,
        "warnings": warnings,
        "out": None if out is None else str(out),
    }
