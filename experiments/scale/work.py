"""The work that is measured: songs drawn, tables written, tasks that do nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seqagg import GRUAggregator, MeanLogOdds, Songs
from seqagg.scale import Job, Part, label_part

N_FRAMES, N_COLUMNS = 30, 10
COLUMNS = tuple(f"genre {k}" for k in range(N_COLUMNS))
BATCH = 10_000


class Span(NamedTuple):
    """How a part was done: seconds of the clock and of the processor, and the worker's memory."""

    n_songs: int
    begin: float
    end: float
    cpu: float
    bytes_resident: int
    """The most that the worker has held so far."""


def draw(n_songs: int, seed: int = 0) -> Iterator[Songs]:
    """Songs of 30 frames of 10 probabilities, in batches."""
    for first in range(0, n_songs, BATCH):
        n = min(BATCH, n_songs - first)
        rng = np.random.default_rng([seed, first])
        label = rng.integers(N_COLUMNS, size=n)
        logits = rng.standard_normal((n, N_FRAMES, N_COLUMNS), dtype=np.float32)
        logits[np.arange(n), :, label] += 1.0
        odds = np.exp(2 * logits)
        yield Songs(
            (odds / odds.sum(axis=2, keepdims=True)).reshape(-1, N_COLUMNS),
            np.arange(n + 1) * N_FRAMES,
            columns=COLUMNS,
            kind="probability",
            ids=[f"song {i:09d}" for i in range(first, first + n)],
            labels=[COLUMNS[k] for k in label],
        )


def fit(method: str, path: Path) -> None:
    """A model whose labelling costs what that of a model learnt for longer costs."""
    songs = next(draw(500, seed=1))
    made = MeanLogOdds() if method == "logodds" else GRUAggregator(epochs=1, n_folds=3, n_repeats=1)
    made.fit(songs).save(path)


def timed_part(job: Job, part: Part) -> Span:
    """Label a part, and say what it took."""
    begin, cpu = time.time(), time.process_time()
    record = label_part(job, part)
    cpu = time.process_time() - cpu
    return Span(record.n_songs, begin, time.time(), cpu, _most_held())


def _most_held() -> int:
    """Bytes; of Linux, where ``ru_maxrss`` would count the process that this one came from."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def nothing(shared: None, item: int) -> int:
    """A task of no work: what it takes is what handing it out takes."""
    return item
