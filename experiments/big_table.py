"""Which method is best, on which songs, and is the difference more than chance?

    python -m experiments.big_table --data FOLDER

Every cache of the folder, and the songs that come with seqagg, times every method times ten seeds
(averaging has no chance and needs one). ``big_table.parquet`` has the columns cache, method, seed,
metric, value; seed null is the mean over seeds, with the paired difference from mean log-odds and
from the best method of that cache. ``big_table.svg`` shows mean ranks over the sets of songs [1]_.
A stopped run goes on where it stopped; seed 0 of everything comes first.

References
----------
.. [1] J. Demsar, "Statistical comparisons of classifiers over multiple data sets", JMLR 7, 2006.
"""  # noqa: D400

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.stats import friedmanchisquare, rankdata, studentized_range

from experiments.caches import Cache, find_caches
from experiments.runs import (
    AVERAGING,
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

NAME = "big_table"
KEYS = {"cache": pa.string(), "method": pa.string(), "seed": pa.int64()}
BASELINE = "logodds"

_MEANS = ("log_loss", "calibration_error", "fit_seconds", "n_songs")
_FEW_SETS = 10
"""Below so many sets of songs, mean ranks hardly ever differ by the critical difference."""


@dataclass(frozen=True)
class Ranks:
    """Mean ranks of methods over sets of songs, and how far apart they must be.

    Attributes
    ----------
    ranks : dict of str to float
        1 is best.
    critical : float
        Nemenyi's critical difference at 5 %.
    p_value : float
        Friedman's test of all ranks being equal; NaN where it cannot be made.
    n_sets : int
        Sets of songs. Caches of the same songs are one set: their accuracies are averaged.
    """

    ranks: Mapping[str, float]
    critical: float
    p_value: float
    n_sets: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Compute what is missing, then table, picture and answer."""
    made = parser(__doc__, NAME)
    add_data(made)
    add_runs(made, METHODS)
    made.add_argument("--seeds", type=int, default=None, help="default: 10")
    options = made.parse_args(arguments)
    print(first_line(__doc__))
    caches = find_caches(options.data, options.quick)
    n_seeds = options.seeds or (2 if options.quick else 10)
    out = folder(options)
    results = Results(out / f"{NAME}.parquet", KEYS)
    drop_changed(results, caches)
    run_all(plan(caches, options.methods, n_seeds, options.quick), results, options)
    results.sum_up(summaries(results))
    ranks = mean_ranks(results)
    results.about = {"question": first_line(__doc__), "answer": answer(results, ranks)}
    results.write()
    draw(out / f"{NAME}.svg", ranks)
    print(results.about["answer"])


def plan(
    caches: Sequence[Cache], methods: Sequence[str], n_seeds: int, quick: bool
) -> Iterator[Run]:
    """Runs in the order in which they tell most: each seed of everything, quick methods first."""
    for seed in range(n_seeds):
        for method in sorted(methods, key=METHODS.index):
            if seed and method in AVERAGING:
                continue
            for cache in caches:
                data = {"checksum": cache.checksum, "songs": set_of_songs(cache)}
                yield Run(
                    (cache.name, method, seed),
                    source_of(method, quick, **data),
                    partial(score, cache.songs, method, seed, quick),
                )


def set_of_songs(cache: Cache) -> str:
    """Which songs a cache is about, whoever scored their frames."""
    return sha256("\n".join(sorted(cache.songs.ids)).encode()).hexdigest()[:16]


def drop_changed(results: Results, caches: Sequence[Cache]) -> None:
    """Forget runs on a cache that has changed: nothing could be compared with them."""
    for cache in caches:
        own = results.matching(cache=cache.name)
        results.drop(c for c in own if results.source(c)["checksum"] != cache.checksum)


def summaries(results: Results) -> dict[Cell, dict[str, float]]:
    """Means over seeds, and paired differences from averaging and from the best."""
    found: dict[Cell, dict[str, float]] = {}
    for cache in sorted({str(cell[0]) for cell in results.outcomes}):
        runs = {method: _runs(results, cache, method) for method in METHODS}
        runs = {method: own for method, own in runs.items() if own}
        best = max(runs, key=lambda method: _mean(runs[method], "accuracy"))
        for method, own in runs.items():
            row = mean_and_spread("accuracy", [run.metrics["accuracy"] for run in own])
            row |= {name: _mean(own, name) for name in _MEANS}
            row["n_seeds"] = len(own)
            if BASELINE in runs:
                compared = compare_runs(own, runs[BASELINE])
                row |= difference(f"accuracy_minus_{BASELINE}", compared)
            row |= difference("accuracy_minus_best", compare_runs(own, runs[best]))
            found[cache, method, None] = row
    return found


def mean_ranks(results: Results) -> Ranks:
    """Rank the methods that all caches have, by accuracy averaged over seeds."""
    caches = results.summed("cache")
    methods = [m for m in METHODS if all((c, m, None) in results.metrics for c in caches)]
    sets: dict[str, list[str]] = {}
    for cache in caches:
        first = results.matching(cache=cache)[0]
        sets.setdefault(results.source(first)["songs"], []).append(cache)
    accuracy = np.array(
        [
            [np.mean([results.metrics[c, m, None]["accuracy"] for c in own]) for m in methods]
            for own in sets.values()
        ]
    )  # (n_sets, n_methods)
    ranks = rankdata(-accuracy.round(9), axis=1).mean(axis=0)
    return Ranks(
        dict(zip(methods, ranks.tolist(), strict=True)),
        critical_difference(len(methods), len(sets)),
        _friedman(accuracy),
        len(sets),
    )


def critical_difference(n_methods: int, n_sets: int) -> float:
    """Nemenyi's: mean ranks closer than this may be equal, at 5 % over all pairs.

    ``q sqrt(k (k + 1) / (6 N))``, q the 95 % point of the studentized range over sqrt(2) [1]_.
    """
    if n_methods < 2:
        return 0.0
    q = studentized_range.ppf(0.95, n_methods, np.inf) / np.sqrt(2)
    return float(q * np.sqrt(n_methods * (n_methods + 1) / (6 * n_sets)))


def draw(path: Path, ranks: Ranks) -> None:
    """Critical-difference diagram."""
    from experiments.pictures import draw_ranks

    draw_ranks(path, ranks.ranks, ranks.critical, remarks(ranks))


def remarks(ranks: Ranks) -> list[str]:
    """What a reader of the ranks should know."""
    said = [
        f"Mean ranks over {ranks.n_sets} sets of songs; ranks joined by a bar may be equal "
        f"(Nemenyi, 5 %)."
    ]
    if not np.isnan(ranks.p_value):
        said.append(f"All ranks equal: p = {ranks.p_value:.2g} (Friedman).")
    if ranks.n_sets < _FEW_SETS:
        said.append(
            f"{ranks.n_sets} sets are too few for ranks to say much: the paired differences on "
            "each set say more."
        )
    return said


def answer(results: Results, ranks: Ranks) -> str:
    """What was found, in a sentence."""
    parts = []
    for cache in results.summed("cache"):
        cells = {method: (cache, method, None) for method in METHODS}
        own = {m: results.metrics[cell] for m, cell in cells.items() if cell in results.metrics}
        best = max(own, key=lambda method: own[method]["accuracy"])  # the simplest among equals
        text = f"{cache}: {best} {points(own[best]['accuracy'])} %"
        name = f"accuracy_minus_{BASELINE}"
        if best != BASELINE and name in own[best]:
            text += f", {interval(own[best], name)} on averaging"
        parts.append(text)
    by_rank = sorted(ranks.ranks.items(), key=lambda item: item[1])
    parts.append("mean ranks " + ", ".join(f"{name} {rank:.1f}" for name, rank in by_rank))
    return "; ".join(parts) + "."


def _runs(results: Results, cache: str, method: str) -> list[Outcome]:
    return [results.outcomes[cell] for cell in results.matching(cache=cache, method=method)]


def _mean(runs: Sequence[Outcome], metric: str) -> float:
    return float(np.mean([run.metrics[metric] for run in runs]))


def _friedman(accuracy: npt.NDArray[np.float64]) -> float:
    n_sets, n_methods = accuracy.shape
    if n_sets < 2 or n_methods < 3 or (accuracy == accuracy[:, :1]).all():
        return float("nan")
    return float(friedmanchisquare(*accuracy.round(9).T).pvalue)


if __name__ == "__main__":
    main()
