"""Does memory stay as it is over a thousand fits, and an answer, whoever asks at the same time?

    python -m experiments.reliability.endurance --fits 1000 --predictions 100000

A fifth of the calls warms up. From then on garbage is collected at ten moments, and objects of
Python are counted and bytes of memory that are resident: the last three moments must not lie above
the first three by more than one object for ten calls, or 4 MiB in all. Then threads ask for
probabilities at the same time, each of other songs, while libraries use one thread or several, and
must get the bits that one gets alone.
"""  # noqa: D400

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from experiments.reliability.seeds import QUICK, small_songs
from experiments.runs import first_line
from seqagg.aggregators import AGGREGATORS, make_aggregator
from seqagg.aggregators.base import Aggregator

MOMENTS = 10
MOST_OBJECTS, MOST_BYTES = 0.1, 4 * 2**20
"""What may stay: objects for each call, and bytes in all."""

N_THREADS = 8

Counts = dict[str, float]


def main(arguments: Sequence[str] | None = None) -> None:
    """Put all methods to the test; exit 1 if memory grows or answers differ."""
    parser = argparse.ArgumentParser(
        "python -m experiments.reliability.endurance", description=first_line(__doc__)
    )
    parser.add_argument("--fits", type=int, default=1000, help="of every method; default: 1000")
    parser.add_argument("--predictions", type=int, default=100_000, help="default: 100000")
    options = parser.parse_args(arguments)
    found = run(options.fits, options.predictions)
    print(json.dumps(found, indent=1))
    sys.exit(bool(problems(found)))


def run(n_fits: int, n_predictions: int) -> dict[str, Counts]:
    """What stays in memory of every method, and how many answers were others.

    Returns
    -------
    dict of dict
        For every method ``fits`` and ``predictions``, ``fit_objects``, ``fit_bytes``,
        ``predict_objects``, ``predict_bytes`` (what they left), ``asked`` and ``differences``
        (answers of threads at the same time).
    """
    return {method: _endure(method, n_fits, n_predictions) for method in AGGREGATORS}


def problems(found: dict[str, Counts]) -> list[str]:
    """What is wrong, in words."""
    told = []
    for method, own in found.items():
        for act, n in (("fit", own["fits"]), ("predict", own["predictions"])):
            objects, n_bytes = own[f"{act}_objects"], own[f"{act}_bytes"]
            if objects > MOST_OBJECTS * n or n_bytes > MOST_BYTES:
                told.append(f"{method}: {n} x {act} leaves {objects} objects, {n_bytes} bytes")
        if own["differences"]:
            told.append(f"{method}: {own['differences']} answers differ")
    return told


def _endure(method: str, n_fits: int, n_predictions: int) -> Counts:
    songs = small_songs(n=12)

    def fit() -> Aggregator:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that so few songs and rounds are not enough
            return make_aggregator(method, **QUICK.get(method, {})).fit(songs)

    model = fit()
    fits = what_stays(fit, n_fits)
    predictions = what_stays(lambda: model.predict_proba(songs), n_predictions)
    return {
        "fits": n_fits,
        "predictions": n_predictions,
        **{f"fit_{name}": n for name, n in fits.items()},
        **{f"predict_{name}": n for name, n in predictions.items()},
        **ask_at_once(model),
    }


def what_stays(call: Callable[[], Any], n: int) -> Counts:
    """Objects and bytes that so many calls leave, after a fifth of them as a warm-up."""
    for _ in range(n // 5):
        call()
    gc.collect()
    gc.freeze()  # so that only what is new is looked at
    counts = []
    for _ in range(MOMENTS):
        for _ in range(n // MOMENTS):
            call()
        gc.collect()
        counts.append((len(gc.get_objects()), _resident()))
    gc.unfreeze()
    first, last = (
        [statistics.median(column) for column in zip(*part, strict=True)]
        for part in (counts[:3], counts[-3:])
    )
    return {"objects": last[0] - first[0], "bytes": last[1] - first[1]}


def _resident() -> int:
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])


def ask_at_once(model: Aggregator, n_times: int = 20) -> Counts:
    """How many answers of threads at the same time differ from those that one gets alone."""
    asked = [small_songs(n=3 + i) for i in range(N_THREADS)]
    alone = [model.predict_proba(songs) for songs in asked]

    def differences(i: int) -> int:
        answers = [model.predict_proba(asked[i]) for _ in range(n_times)]
        return sum(not np.array_equal(answer, alone[i]) for answer in answers)

    before, n_different = torch.get_num_threads(), 0
    try:
        for n_inside in (1, 4):
            torch.set_num_threads(n_inside)
            with threadpool_limits(n_inside), ThreadPoolExecutor(N_THREADS) as pool:
                n_different += sum(pool.map(differences, range(N_THREADS)))
    finally:
        torch.set_num_threads(before)
    return {"asked": 2 * N_THREADS * n_times, "differences": n_different}


if __name__ == "__main__":
    main()
