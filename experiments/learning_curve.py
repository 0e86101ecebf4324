"""From how many training songs on does a learnt method beat averaging?

    python -m experiments.learning_curve --data FOLDER

Methods learn from nested subsets of a cache's training songs, groups drawn whole, and are scored
on all its test songs. ``learning_curve.parquet`` has the columns cache, method, size, draw,
metric, value; draw null is the mean over draws. A method *beats averaging* at a size where the
whole 95 % interval of its paired difference from mean log-odds, over all draws, lies above zero.
"""  # noqa: D400

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from experiments.caches import Cache, find_caches
from experiments.runs import (
    METHODS,
    Run,
    add_data,
    add_runs,
    first_line,
    folder,
    parser,
    run_all,
    score,
    source_of,
)
from experiments.tables import (
    Cell,
    Outcome,
    Results,
    compare_runs,
    difference,
    interval,
    mean_and_spread,
    points,
)
from seqagg import Songs
from seqagg.evaluation import group_indices
from seqagg.folds import grouped_folds

Ints = npt.NDArray[np.int64]

NAME = "learning_curve"
KEYS = {"cache": pa.string(), "method": pa.string(), "size": pa.int64(), "draw": pa.int64()}
BASELINE = "logodds"
LEARNT = ("stack", "hmm", "gru")

_FIRST_SIZE = 25


def main(arguments: Sequence[str] | None = None) -> None:
    """Compute what is missing, then table, picture and answer."""
    made = parser(__doc__, NAME)
    add_data(made)
    add_runs(made, (BASELINE, *LEARNT))
    made.add_argument("--draws", type=int, default=None, help="default: 5")
    options = made.parse_args(arguments)
    print(first_line(__doc__))
    caches = [with_split(cache) for cache in find_caches(options.data, options.quick)]
    n_draws = options.draws or (2 if options.quick else 5)
    out = folder(options)
    results = Results(out / f"{NAME}.parquet", KEYS)
    for cache in caches:
        own = results.matching(cache=cache.name)
        results.drop(c for c in own if results.source(c)["checksum"] != cache.checksum)
    run_all(plan(caches, options.methods, n_draws, options.quick), results, options)
    results.sum_up(summaries(results))
    results.about = {"question": first_line(__doc__), "answer": answer(results)}
    results.write()
    draw(out / f"{NAME}.svg", results)
    print(results.about["answer"])


def plan(
    caches: Sequence[Cache], methods: Sequence[str], n_draws: int, quick: bool
) -> Iterator[Run]:
    """Runs, one draw of everything before the next."""
    wanted = [BASELINE, *(name for name in methods if name != BASELINE)]
    for number in range(n_draws):
        for cache in caches:
            n_train = len(_train(cache.songs))
            for size in sizes(n_train):
                for method in wanted:
                    yield Run(
                        (cache.name, method, size, number),
                        source_of(method, quick, checksum=cache.checksum),
                        partial(score_subset, cache.songs, method, size, number, quick),
                    )


def sizes(n_train: int) -> list[int]:
    """25, 50, 100, ... and all training songs, in place of a size that is nearly all."""
    doubled = [_FIRST_SIZE * 2**i for i in range(40) if _FIRST_SIZE * 2**i * 1.5 <= n_train]
    return [*doubled, n_train]


def score_subset(songs: Songs, method: str, size: int, draw: int, quick: bool) -> Outcome:
    """Score a method that learnt from `size` songs, or as few more as groups allow."""
    chosen = draw_subset(songs, size, draw)
    test = np.flatnonzero(songs.split == "test")
    found = score(songs[np.concatenate([chosen, test])], method, draw, quick)
    return replace(found, metrics={**found.metrics, "n_train": len(chosen)})


def draw_subset(songs: Songs, size: int, draw: int) -> Ints:
    """Positions of at least `size` training songs: whole groups, in an order drawn once.

    A smaller subset of the same draw is part of a larger one. One group of each class comes
    first and is always in, so that no class is missing. Where groups are on both sides of the
    split anyway (the same speakers, by a collection's design) single songs are drawn.
    """
    train = _train(songs)
    units = _units(songs)[train]
    assert songs.labels is not None
    labels = songs.labels[train]
    order = np.random.default_rng(draw).permutation(np.unique(units))
    rank = np.empty(units.max() + 1, dtype=np.int64)
    rank[order] = np.arange(len(order))
    for label in np.unique(labels.astype(str)):
        own = units[labels.astype(str) == label]
        rank[own[int(np.argmin(rank[own]))]] -= len(rank)  # before all others
    by_rank = np.argsort(rank[units], kind="stable")
    ends = np.flatnonzero(np.diff(rank[units][by_rank], append=len(rank))) + 1
    n_first = int((rank[np.unique(units)] < 0).sum())
    n_units = max(n_first, int(np.searchsorted(ends, size)) + 1)
    return np.sort(train[by_rank[: int(ends[min(n_units, len(ends)) - 1])]])


def with_split(cache: Cache) -> Cache:
    """Leave out songs without a label or a frame; hold out a third of the rest if no split."""
    songs = cache.songs
    assert songs.labels is not None
    labelled = np.array([label is not None for label in songs.labels])
    songs = songs[labelled & (songs.present().lengths > 0)]
    sides = set() if songs.split is None else set(songs.split.tolist())
    if {"train", "test"} <= sides:
        return replace(cache, songs=songs)
    _, y = np.unique(np.asarray(songs.labels, dtype=str), return_inverse=True)
    test = grouped_folds(y, group_indices(songs.groups, len(songs)), 3, seed=0)[0][1]
    split = np.full(len(songs), "train", dtype=object)
    split[test] = "test"
    return replace(cache, songs=songs.replace(split=split))


def summaries(results: Results) -> dict[Cell, dict[str, float]]:
    """Means over draws, and paired differences from averaging on the same training songs."""
    found: dict[Cell, dict[str, float]] = {}
    for cache, method, size in sorted({cell[:3] for cell in results.outcomes}):
        key = {"cache": cache, "size": size}
        own = _runs(results, method=method, **key)
        row = mean_and_spread("accuracy", [run.metrics["accuracy"] for run in own])
        row["n_train"] = float(np.mean([run.metrics["n_train"] for run in own]))
        row["n_draws"] = len(own)
        averaging = _runs(results, method=BASELINE, **key)
        if averaging and method != BASELINE:
            # Averaging says the same whatever it learnt from, so one draw of it is all.
            row |= difference(f"accuracy_minus_{BASELINE}", compare_runs(own, averaging[:1]))
        found[cache, method, size, None] = row
    return found


def first_better(results: Results, cache: str, method: str) -> int | None:
    """Smallest size from which on the method beats averaging at every size."""
    better = None
    for size, row in reversed(curve(results, cache, method)):
        if row.get(f"accuracy_minus_{BASELINE}_low", 0.0) <= 0:
            break
        better = size
    return better


def curve(results: Results, cache: str, method: str) -> list[tuple[int, Mapping[str, float]]]:
    """Sizes and their means over draws, in order."""
    return sorted(
        (
            (int(cell[2] or 0), row)
            for cell, row in results.metrics.items()
            if cell[:2] == (cache, method) and cell[3] is None
        ),
        key=lambda item: item[0],
    )


def verdict(results: Results, cache: str, method: str) -> str:
    """Where the method beats averaging, and how it stands with all training songs."""
    rows = curve(results, cache, method)
    if not rows:
        return ""
    better = first_better(results, cache, method)
    last, row = rows[-1]
    where = f"not with {last:,} songs" if better is None else f"from {better:,} songs"
    name = f"accuracy_minus_{BASELINE}"
    return where if name not in row else f"{where}, {interval(row, name)} with {last:,}"


def at_worst(results: Results, method: str) -> str:
    """Points that the method falls farthest below averaging, and from how many songs of what."""
    name = f"accuracy_minus_{BASELINE}"
    falls = [
        (row[name], size, cache)
        for cache in results.summed("cache")
        for size, row in curve(results, cache, method)
        if name in row
    ]
    if not falls:
        return ""
    lowest, size, cache = min(falls)
    return f"{points(lowest, sign=True)} ({cache}, {size:,} songs)"


def answer(results: Results) -> str:
    """What was found, in a sentence."""
    parts = []
    for cache in results.summed("cache"):
        said = {method: verdict(results, cache, method) for method in LEARNT}
        parts.append(f"{cache}: " + ", ".join(f"{m} {text}" for m, text in said.items() if text))
    return "Beats averaging: " + "; ".join(parts) + "."


def draw(path: Path, results: Results) -> None:
    """Accuracy against training songs, the mean of the draws between lowest and highest."""
    from experiments.pictures import Line, Panel, draw_curves

    panels = []
    for cache in results.summed("cache"):
        lines = {}
        for method in (m for m in METHODS if m in results.summed("method")):
            rows = [row for _, row in curve(results, cache, method)]
            columns: dict[str, list[Any]] = {
                name: [row[name] for row in rows]
                for name in ("n_train", "accuracy", "accuracy_low", "accuracy_high")
            }
            lines[method] = Line(*columns.values())
        panels.append(Panel(cache, {m: line for m, line in lines.items() if line.songs}))
    draw_curves(path, panels)


def _train(songs: Songs) -> Ints:
    return np.flatnonzero(np.asarray(songs.split) == "train")


def _units(songs: Songs) -> Ints:
    """What is drawn whole: the group of each song, or the song."""
    groups = group_indices(songs.groups, len(songs))
    train, test = (np.unique(groups[songs.split == side]) for side in ("train", "test"))
    return np.arange(len(songs)) if len(np.intersect1d(train, test)) else groups


def _runs(results: Results, **wanted: Any) -> list[Outcome]:
    return [results.outcomes[cell] for cell in results.matching(**wanted)]


if __name__ == "__main__":
    main()
