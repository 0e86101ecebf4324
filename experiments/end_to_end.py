"""Does it pay to train the frame network through the pooling, on labels of songs alone?

    python -m experiments.tunes          once: renders the songs, keeps their spectrograms
    python -m experiments.end_to_end

Two ways from spectrograms to the genre of a tune, both with the same layers. *Two stages*: a frame
network is trained on frames, each labelled as its song, then frozen, and its scores are
aggregated; that is the cache that comes with seqagg. *End to end*: `MILAggregator` trains the
frame network through the pooling, whole songs at once, and no frame ever has a label.
``end_to_end.parquet`` has the columns way, method, seed, metric, value; seed null is the mean over
seeds, with the paired difference from two stages and mean log-odds on the same test songs.
"""  # noqa: D400

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn

import seqagg
from experiments.caches import embedded_cache
from experiments.runs import Run, first_line, folder, one_thread, parser, run_all, score, source_of
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
from experiments.tunes.spectrogram import FLOOR, cut_frames
from experiments.tunes.store import load_json
from seqagg.evaluation import evaluate, group_indices

Frames = npt.NDArray[np.float32]

NAME = "end_to_end"
KEYS = {"way": pa.string(), "method": pa.string(), "seed": pa.int64()}
TWO_STAGES, END_TO_END = "two stages", "end to end"
AGGREGATORS = ("logodds", "stack", "mil", "gru")
POOLINGS = ("average", "attention")
WAYS = {TWO_STAGES: AGGREGATORS, END_TO_END: POOLINGS}
BASELINE = (TWO_STAGES, "logodds")
CHANNELS = 8

SETTINGS: Mapping[str, Any] = {
    "epochs": 8,
    "n_folds": 1,
    "min_crop": 1.0,
    "batch_size": 16,
    "learning_rate": 4e-3,
    "weight_decay": 1e-3,
}
QUICK: Mapping[str, Any] = {"epochs": 1}


class FrameNetwork(nn.Module):
    """The layers of `experiments.tunes.classifier`: four convolutions, averaged over the frame."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(1, CHANNELS, (5, 5), stride=2, padding=2, bias=False),
            nn.BatchNorm2d(CHANNELS),
            nn.ReLU(),
        ]
        for before, after in ((1, 2), (2, 3), (3, 4)):
            layers += [
                nn.Conv2d(before * CHANNELS, after * CHANNELS, (5, 3), padding=(2, 1), bias=False),
                nn.MaxPool2d(2),
                nn.BatchNorm2d(after * CHANNELS),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.3)
        self.output = nn.Linear(4 * CHANNELS, n_classes)

    def forward(self, frames: Tensor) -> Tensor:
        """Score frames in decibels, shape (n_frames, frame_steps, n_mels)."""
        x = self.layers((frames * (2 / FLOOR) + 1)[:, None])  # (n_frames, channels, steps, mels)
        return torch.as_tensor(self.output(self.dropout(x.mean(dim=(2, 3)))))


def main(arguments: Sequence[str] | None = None) -> None:
    """Compute what is missing, then table and answer."""
    made = parser(__doc__, NAME)
    made.add_argument("--work", type=Path, default=Path("build/tunes"), metavar="DIR")
    made.add_argument("--jobs", type=int, default=1, help="processes; the result is the same")
    made.add_argument("--again", action="store_true", help="compute what is there already, too")
    made.add_argument("--seeds", type=int, default=None, help="default: 3")
    options = made.parse_args(arguments)
    print(first_line(__doc__))
    n_seeds = options.seeds or (1 if options.quick else 3)
    results = Results(folder(options) / f"{NAME}.parquet", KEYS)
    run_all(plan(options.work, n_seeds, options.quick), results, options)
    results.sum_up(summaries(results))
    results.about = {"question": first_line(__doc__), "answer": answer(results)}
    results.write()
    print(results.about["answer"])


def plan(work: Path, n_seeds: int, quick: bool) -> Iterator[Run]:
    """Runs, quick ones first."""
    cache = embedded_cache()
    if cache is None:
        sys.exit("the songs that come with seqagg are not there: python -m experiments.tunes")
    if not (work / "spectrograms").is_dir():
        sys.exit(f"{work}: no spectrograms; python -m experiments.tunes makes them")
    for seed in range(n_seeds):
        for method in AGGREGATORS:
            if seed == 0 or method != "logodds":
                yield Run(
                    (TWO_STAGES, method, seed),
                    source_of(method, quick, checksum=cache.checksum),
                    partial(score, cache.songs, method, seed, quick),
                )
    settings = {**SETTINGS, **(QUICK if quick else {})}
    for seed in range(n_seeds):
        for pooling in POOLINGS:
            yield Run(
                (END_TO_END, pooling, seed),
                {"checksum": cache.checksum, "seqagg": seqagg.__version__, "parameters": settings},
                partial(score_end_to_end, work, pooling, seed, settings),
            )


def score_end_to_end(work: Path, pooling: str, seed: int, settings: Mapping[str, Any]) -> Outcome:
    """Train through the pooling on the training tunes, score on the others."""
    songs = load_json(work / "tunes.json")
    sides = {side: [song for song in songs if song["split"] == side] for side in ("train", "test")}
    frames = {side: [_frames(work, song["song_id"]) for song in own] for side, own in sides.items()}
    labels = {side: np.array([song["genre"] for song in own]) for side, own in sides.items()}
    groups = {side: [song["group"] for song in own] for side, own in sides.items()}
    with one_thread(), torch.random.fork_rng():
        torch.manual_seed(seed)
        network = FrameNetwork(len(np.unique(labels["train"])))
        model = seqagg.MILAggregator(
            pooling=pooling,  # type: ignore[arg-type]
            network=network,
            random_state=seed,
            n_jobs=1,
            **settings,
        )
        began = time.perf_counter()
        model.fit(frames["train"], labels["train"], groups["train"])
        seconds = time.perf_counter() - began
        proba = model.predict_proba(frames["test"])
    said = model.classes_[proba.argmax(axis=1)]
    found = evaluate(labels["test"], said, proba, model.classes_)
    return Outcome(
        {**found, "fit_seconds": seconds},
        said == labels["test"],
        group_indices(groups["test"], len(said)),
    )


def summaries(results: Results) -> dict[Cell, dict[str, float]]:
    """Means over seeds, and paired differences from two stages and averaging."""
    found: dict[Cell, dict[str, float]] = {}
    baseline = _runs(results, *BASELINE)
    for way, method in sorted({(str(cell[0]), str(cell[1])) for cell in results.outcomes}):
        own = _runs(results, way, method)
        row = mean_and_spread("accuracy", [run.metrics["accuracy"] for run in own])
        for name in ("log_loss", "calibration_error", "fit_seconds"):
            row[name] = float(np.mean([run.metrics[name] for run in own]))
        row["n_seeds"] = len(own)
        if baseline:
            row |= difference("accuracy_minus_two_stages", compare_runs(own, baseline))
        found[way, method, None] = row
    return found


def answer(results: Results) -> str:
    """What was found, in a sentence."""
    parts = []
    for way, methods in WAYS.items():
        for method in methods:
            row = results.metrics[way, method, None]
            text = f"{way}, {method} {points(row['accuracy'])} %"
            if (way, method) != BASELINE:
                text += f", {interval(row, 'accuracy_minus_two_stages')} on frozen and averaged"
            parts.append(text)
    return "; ".join(parts) + "."


def _frames(work: Path, song_id: str) -> Frames:
    """Frames of a song in decibels, shape (n_frames, frame_steps, n_mels)."""
    stored = np.load(work / "spectrograms" / f"{song_id}.npy", allow_pickle=False)
    return cut_frames(stored).astype(np.float32)


def _runs(results: Results, way: str, method: str) -> list[Outcome]:
    return [results.outcomes[cell] for cell in results.matching(way=way, method=method)]


if __name__ == "__main__":
    main()
