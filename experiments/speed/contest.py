"""How long do several ways of doing the same take, next to each other?

Conventions
-----------
Times are in seconds, both by the clock on the wall and of the processor; where other programs want
the processor too, the second is the steadier. The first way of a contest is seqagg's, and ratios
are to it: 3 is three times as long. A *limit* is no rival but a part of the work that nobody can
leave out, such as reading the scores.

The ways take turns, A, B, A, B: what disturbs the machine for a while disturbs all of them. A quick
way runs twice in its turn, and the second time counts: the one before it had the processor's cache.
"""  # noqa: D400

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

QUICK = 0.02
"""Seconds below which a way runs twice in its turn."""

Array = npt.NDArray[Any]
Clock = Callable[[], float]
Metrics = dict[str, float]


@dataclass(frozen=True)
class Sizes:
    """How much there is to do; `frames` is the mean number of frames per song."""

    songs: int | None = None
    frames: int | None = None
    columns: int | None = None
    states: int | None = None

    def __str__(self) -> str:
        named = (("songs", self.songs), ("frames", self.frames), ("columns", self.columns))
        parts = [f"{n:,} {name}" for name, n in (*named, ("states", self.states)) if n is not None]
        return ", ".join(parts)


def _no_metrics(_: Any) -> Metrics:
    return {}


@dataclass(frozen=True)
class Way:
    """One way of doing what the contest is about.

    Attributes
    ----------
    name : str
    run : callable
        What is timed.
    part : float
        Share of the songs that it is given, the first ones; times are divided by it.
    limit : bool
        Whether it does a part of the work only.
    answer : callable
        Makes an array, a row per song, of what `run` returned. It is not timed.
    metrics : callable
        Makes further metrics of what `run` returned.
    """

    name: str
    run: Callable[[], Any]
    part: float = 1.0
    limit: bool = False
    answer: Callable[[Any], Array] = np.asarray
    metrics: Callable[[Any], Metrics] = _no_metrics


def largest_error(ours: Array, theirs: Array) -> Metrics:
    """Largest difference, relative to seqagg's answer, or absolute where that is below 1."""
    ours, theirs = ours[: len(theirs)].astype(np.float64), theirs.astype(np.float64)
    return {"error": float((np.abs(theirs - ours) / np.maximum(np.abs(ours), 1)).max())}


def no_comparison(ours: Array, theirs: Array) -> Metrics:
    """Nothing, where ways end in different places by design."""
    return {}


@dataclass(frozen=True)
class Contest:
    """Ways to do one thing, seqagg's first.

    Attributes
    ----------
    name : str
        What is done.
    setting : str
        What sizes do not say: kind of covariances, kind of file.
    sizes : Sizes
    ways : sequence of Way
    n_bytes : float, optional
        Of the scores that are read.
    n_products : float, optional
        Floating point operations of the matrix products in it.
    compare : callable
        Makes metrics of seqagg's answer and another.
    """

    name: str
    setting: str
    sizes: Sizes
    ways: Sequence[Way]
    n_bytes: float | None = None
    n_products: float | None = None
    compare: Callable[[Array, Array], Metrics] = largest_error


@dataclass(frozen=True)
class Turns:
    """Times of one way, a number per round."""

    wall: list[float]
    processor: list[float]


@dataclass(frozen=True)
class Measured:
    """A contest, and the metrics of each of its ways."""

    contest: Contest
    metrics: Mapping[str, Metrics]

    def rivals(self) -> dict[str, float]:
        """Ratio of every way that is neither seqagg's nor a limit."""
        return {
            way.name: self.metrics[way.name]["ratio"]
            for way in self.contest.ways
            if not way.limit and not way.name.startswith("seqagg")
        }


def processor_seconds() -> float:
    """Processor time of this process, all its threads, and of processes that it waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + used.ru_utime + used.ru_stime


def measure(
    contest: Contest,
    rounds: int,
    budget: float,
    wall: Clock = time.perf_counter,
    processor: Clock = processor_seconds,
) -> Measured:
    """Let the ways of a contest take turns.

    Parameters
    ----------
    contest : Contest
    rounds : int
        Most rounds that count.
    budget : float
        Seconds after which no round begins. A first round within it warms up and does not count;
        one beyond it is the only one.
    wall, processor : callable
        Clocks.
    """
    end = wall() + budget
    turns, results = take_turns(contest.ways, wall, processor)
    if wall() < end:
        turns, _ = take_turns(contest.ways, wall, processor)
        for _ in range(rounds - 1):
            if wall() >= end:
                break
            more, _ = take_turns(contest.ways, wall, processor)
            for name, own in more.items():
                turns[name].wall.extend(own.wall)
                turns[name].processor.extend(own.processor)
    first = contest.ways[0]
    reference = first.answer(results[first.name])
    metrics = {}
    for way in contest.ways:
        row = time_metrics(contest, way, turns)
        row |= way.metrics(results[way.name])
        if way is not first and not way.limit:
            row |= contest.compare(reference, way.answer(results[way.name]))
        metrics[way.name] = row
    return Measured(contest, metrics)


def take_turns(
    ways: Sequence[Way], wall: Clock, processor: Clock
) -> tuple[dict[str, Turns], dict[str, Any]]:
    """One round: times of each way, for all songs, and what it returned."""
    turns, results = {}, {}
    for way in ways:
        for _ in range(2):
            began, processor_began = wall(), processor()
            results[way.name] = way.run()
            processor_took, took = processor() - processor_began, wall() - began
            if took > QUICK:
                break
        turns[way.name] = Turns([took / way.part], [processor_took / way.part])
    return turns, results


def time_metrics(contest: Contest, way: Way, turns: Mapping[str, Turns]) -> Metrics:
    """Medians of a way, its ratios to seqagg's and its rates."""
    ours, own = turns[contest.ways[0].name], turns[way.name]
    by_round = [a / b for a, b in zip(own.wall, ours.wall, strict=True)]
    row = {
        "seconds": median(own.wall),
        "seconds_low": min(own.wall),
        "seconds_high": max(own.wall),
        "processor_seconds": median(own.processor),
        "ratio": median(own.wall) / median(ours.wall),
        "ratio_low": min(by_round),
        "ratio_high": max(by_round),
        "rounds": len(own.wall),
        "part": way.part,
    }
    if median(ours.processor) > 0:
        row["processor_ratio"] = median(own.processor) / median(ours.processor)
    if contest.n_bytes is not None:
        row["gb_per_second"] = contest.n_bytes / row["seconds"] / 1e9
    if contest.n_products is not None:
        row["gflops"] = contest.n_products / row["seconds"] / 1e9
    return row
