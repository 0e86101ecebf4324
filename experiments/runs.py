"""One run of an experiment, and the loop over all of them that can be stopped and go on.

Conventions
-----------
A run fits one method to training songs and scores it on test songs, by `seqagg.benchmark`. It
computes in one thread, so that its numbers do not depend on the machine's number of cores or on
``--jobs``.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import seqagg
from experiments.tables import Cell, Outcome, Results, Source
from seqagg import Songs
from seqagg.aggregators import make_aggregator
from seqagg.evaluation import group_indices

RESULTS = Path(__file__).parent / "results"
"""Where results that the README shows are kept."""

QUICK_RESULTS = Path("build") / "experiments"

METHODS = ("majority", "mean", "logodds", "stack", "mil", "hmm", "gru", "auto")
"""All methods, those that take long last."""

AVERAGING = ("majority", "mean", "logodds")
"""Methods without chance, for which one seed is enough."""

_NETWORK = {"hidden_size": 4, "epochs": 2, "n_folds": 2}

QUICK: Mapping[str, Mapping[str, Any]] = {
    "hmm": {"n_states": 2, "covariance_type": "diag", "n_iter": 3, "n_restarts": 1, "n_folds": 2},
    "gru": _NETWORK,
    "mil": _NETWORK,
    "stack": {"n_folds": 2},
    "auto": {"methods": ("stack",), "parameters": {"stack": {"n_folds": 2}}},
}
"""Parameters with which ``--quick`` shows that a script runs, and nothing else."""

_KEPT = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "log_loss",
    "brier",
    "calibration_error",
    "n_songs",
    "fit_seconds",
    "predict_seconds",
    "accuracy_minus_logodds",
    "accuracy_minus_logodds_low",
    "accuracy_minus_logodds_high",
    "wins_over_logodds",
    "losses_to_logodds",
)
"""Metrics of a benchmark that a run keeps."""


@dataclass(frozen=True)
class Run:
    """Something to compute for a cell.

    Attributes
    ----------
    cell : tuple
        Values of the table's keys.
    source : mapping
        Everything that decides the outcome, as JSON: the run is not made again while it is equal.
    compute : callable
        Gives the outcome. It must pickle, to go to another process.
    """

    cell: Cell
    source: Source
    compute: Callable[[], Outcome]


def parser(doc: str | None, prog: str) -> argparse.ArgumentParser:
    """Options that all experiments share."""
    made = argparse.ArgumentParser(f"python -m experiments.{prog}", description=first_line(doc))
    made.add_argument("--out", type=Path, metavar="DIR", help="where results are kept")
    made.add_argument("--quick", action="store_true", help="a few songs, to see that it runs")
    return made


def add_data(made: argparse.ArgumentParser) -> None:
    """Option of the experiments that read caches."""
    made.add_argument("--data", type=Path, metavar="FOLDER", help="a folder of caches")


def add_runs(made: argparse.ArgumentParser, default: Sequence[str]) -> None:
    """Options of the experiments that make runs of several methods."""
    made.add_argument("--jobs", type=int, default=1, help="processes; the result is the same")
    made.add_argument("--again", action="store_true", help="compute what is there already, too")
    made.add_argument(
        "--methods",
        type=names_among(METHODS),
        default=list(default),
        metavar="A,B,...",
        help=f"default: {','.join(default)}",
    )


def names_among(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Reader of a command line's ``A,B,...``, each of which must be known."""

    def read(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"no {name}; there are {', '.join(known)}")
        return names

    return read


def folder(options: argparse.Namespace) -> Path:
    """Where results go: with ``--quick`` never to those that the README shows."""
    if options.out is not None:
        return Path(options.out)
    return QUICK_RESULTS if options.quick else RESULTS


def first_line(doc: str | None) -> str:
    """Question that a script answers: the first line of its docstring."""
    return (doc or "").partition("\n")[0]


def source_of(method: str, quick: bool, **data: Any) -> dict[str, Any]:
    """What decides the outcome of a run, but for its seed, which is in the cell."""
    parameters = make_aggregator(method, **_parameters(method, quick)).get_params(deep=False)
    parameters.pop("random_state", None)
    return {**data, "seqagg": seqagg.__version__, "parameters": _plain(parameters)}


def score(songs: Songs, method: str, seed: int, quick: bool) -> Outcome:
    """Fit a method to the training songs and score it on the test songs.

    Parameters
    ----------
    songs : Songs
        With labels. Without a split they are cross-validated by group.
    method : str
        Name in the table of aggregators.
    seed : int
        Of the method, and of the folds where there is no split.
    quick : bool
        Use the parameters of `QUICK`.
    """
    with one_thread():
        found = seqagg.benchmark(
            songs,
            [method],
            seed=seed,
            parameters={method: _parameters(method, quick)},
        )
    row = found.summary()[0]
    said = found.predictions.to_pydict()
    group_of = dict(
        zip(songs.ids.tolist(), group_indices(songs.groups, len(songs)).tolist(), strict=True)
    )
    return Outcome(
        {name: float(row[name]) for name in _KEPT if name in row},
        np.array(said["label"]) == np.array(said["prediction"]),
        np.array([group_of[song] for song in said["song_id"]]),
    )


def run_all(runs: Iterable[Run], results: Results, options: argparse.Namespace) -> None:
    """Compute the runs that the table does not have, writing it after each."""
    missing = [run for run in runs if options.again or not results.has(run.cell, run.source)]
    started = time.perf_counter()
    one = options.jobs == 1
    outcomes = _one_by_one(missing) if one else _side_by_side(missing, options.jobs)
    for done, (run, outcome) in enumerate(outcomes, start=1):
        results.add(run.cell, outcome, run.source)
        results.write()
        minutes = (time.perf_counter() - started) / 60
        shown = " ".join(str(key) for key in run.cell)
        accuracy = outcome.metrics.get("accuracy", float("nan"))
        print(f"{done}/{len(missing)} {shown}: {accuracy:.3f}, {minutes:.1f} min", flush=True)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keep every library to one thread."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def _parameters(method: str, quick: bool) -> Mapping[str, Any]:
    return QUICK.get(method, {}) if quick else {}


def _plain(value: Any) -> Any:
    """As JSON gives it back, so that what is read equals what is wanted."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _one_by_one(runs: Sequence[Run]) -> Iterator[tuple[Run, Outcome]]:
    for run in runs:
        yield run, run.compute()


def _side_by_side(runs: Sequence[Run], jobs: int) -> Iterator[tuple[Run, Outcome]]:
    """As runs end; few are handed out at a time, since each carries its songs."""
    waiting = list(reversed(runs))
    running: dict[Future[Outcome], Run] = {}
    # Forking a process that has started threads can hang.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        while waiting or running:
            while waiting and len(running) < 2 * jobs:
                run = waiting.pop()
                running[pool.submit(run.compute)] = run
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
