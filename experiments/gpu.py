"""When does a GPU pay?

    python -m experiments.gpu

Contests of the networks by public names, on a GPU and on the processor of the same machine, taking
turns: fits and predictions of `gru`, with batches of the default size and with large ones, and of
`mil` with a convolutional network of the user's own; and the same GRU as tutorials train it on a
GPU, random batches of packed songs. ``error`` is the largest difference between probabilities. In
``gpu.parquet`` stands one number per row, as in ``speed.parquet``, and in its schema metadata
under ``seqagg`` what was measured with.
"""  # noqa: D400

from __future__ import annotations

import argparse
import copy
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.runs import first_line, folder, parser
from experiments.speed.contest import Contest, Sizes, Way, measure, no_comparison
from experiments.speed.gru import (
    BATCH,
    N_COLUMNS,
    PackedNetwork,
    make_data,
    make_network,
    make_optimizer,
    padded,
    update,
)
from experiments.speed.limits import machine
from experiments.speed.peers import versions
from experiments.speed.table import lines_of, write
from seqagg import GRUAggregator, MILAggregator, Songs
from seqagg.aggregators.network import song_loss

NAME = "gpu"

ROUNDS, BUDGET = 5, 12.0
"""Most rounds of a contest, and the seconds after which none begins."""

LARGE_BATCH = 1024

PATCH = (40, 32)
"""Mel bands and times of a frame that a network of the user's own hears."""


@dataclass(frozen=True)
class _Size:
    """How many songs, and passes over them."""

    fitted: int
    many: int
    predicted: int
    patches: int
    epochs: int


_WHOLE = _Size(fitted=1000, many=10_000, predicted=20_000, patches=60, epochs=4)
_QUICK = _Size(fitted=30, many=30, predicted=30, patches=12, epochs=1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and keep the table."""
    options = _options(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("this machine has no GPU")
    print(first_line(__doc__))
    found = []
    if not options.quick:
        for contest in contests(options.device, _QUICK):  # compiles, and starts CUDA
            measure(contest, rounds=1, budget=0.0)
    for contest in contests(options.device, _QUICK if options.quick else _WHOLE):
        rounds, budget = (1, 0.0) if options.quick else (ROUNDS, BUDGET)
        found.append(measure(contest, rounds, budget))
        print("\n".join(lines_of(found[-1])), flush=True)
    about = {
        "question": first_line(__doc__),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": options.quick,
        "versions": versions(),
        "machine": machine(),
        "card": _card(options.device),
    }
    write(folder(options) / f"{NAME}.parquet", found, about)


def contests(device: str, size: _Size) -> Iterator[Contest]:
    """All of them, the GPU first in each."""
    few, many = labelled(size.fitted), labelled(size.many)
    five = {"n_repeats": 1, "epochs": size.epochs}
    setting = f"five networks, {size.epochs} passes, batches of {BATCH}"
    yield fit_contest("gru fit", setting, few, device, five, networks=5)
    one = {"n_repeats": 1, "n_folds": 1, "epochs": size.epochs}
    for batch_size in (BATCH, LARGE_BATCH):
        more = [packed_way(many, size.epochs, batch_size, device)]
        setting = f"one network, {size.epochs} passes, batches of {batch_size}"
        options = one | {"batch_size": batch_size}
        yield fit_contest("gru fit", setting, many, device, options, networks=1, more=more)
    yield predict_contest(few, labelled(size.predicted), device)
    yield patches_contest(device, size)


def labelled(n: int) -> Songs:
    """Songs of `experiments.speed.gru`, with labels."""
    data = make_data(n)
    names = [f"class {k}" for k in range(N_COLUMNS)]
    labels = [names[k] for k in data.y.tolist()]
    return Songs(data.songs.values, data.songs.offsets, columns=names, labels=labels)


def fit_contest(
    name: str,
    setting: str,
    songs: Songs,
    device: str,
    options: dict[str, Any],
    networks: int,
    more: Sequence[Way] = (),
) -> Contest:
    """Fit a GRU; answers are not compared, as rounding takes the same training elsewhere."""

    def way(title: str, where: str) -> Way:
        def run() -> None:
            GRUAggregator(device=where, **options).fit(songs)
            _wait(where)

        return Way(title, run, answer=_nothing)

    ways = [way("seqagg, GPU", device), way(_processor(networks), "cpu"), *more]
    return Contest(name, setting, _sizes(songs), ways, compare=no_comparison)


def packed_way(songs: Songs, epochs: int, batch_size: int, device: str) -> Way:
    """Passes over random batches of packed songs, as tutorials have it."""
    network = PackedNetwork(make_network(songs, 64, bidirectional=True))
    each = [torch.from_numpy(np.array(song)) for song in songs]
    y = torch.as_tensor(np.arange(len(songs)) % N_COLUMNS)

    def run() -> None:
        trained = copy.deepcopy(network).to(device).train()
        optimizer = make_optimizer(trained)
        rng = np.random.default_rng(0)
        for _ in range(epochs):
            order = rng.permutation(len(each))
            for index in np.array_split(order, math.ceil(len(order) / batch_size)):
                frames, lengths = padded([each[i] for i in index])
                scores = trained(frames.to(device), lengths.to(device))
                update(trained, optimizer, song_loss(scores, y[index].to(device)))
        _wait(device)

    return Way("PyTorch packed, GPU", run, answer=_nothing)


def predict_contest(few: Songs, many: Songs, device: str) -> Contest:
    """Predict by one fitted model, wherever it is asked."""
    # Not one that starts from averaging: with order that says nothing it would stay there.
    options: dict[str, Any] = {"base": "none", "n_repeats": 1, "epochs": 1}
    model = GRUAggregator(**options).fit(few)

    def way(title: str, where: str) -> Way:
        own = copy.deepcopy(model)
        own.device = where
        for network in own.networks_:
            network.to(where)
        return Way(title, lambda: own.predict_proba(many))

    ways = [way("seqagg, GPU", device), way(_processor(1), "cpu")]
    return Contest("gru predict", "five networks", _sizes(many), ways)


def patches_contest(device: str, size: _Size) -> Contest:
    """Train a network of the user's own through the pooling, from patches of spectrograms."""
    rng = np.random.default_rng(0)
    y = np.arange(size.patches) % 4
    songs = [rng.normal(k, 4.0, (rng.integers(20, 60), *PATCH)).astype(np.float32) for k in y]

    def way(title: str, where: str) -> Way:
        def run() -> None:
            MILAggregator(
                network=make_convolutions(),
                device=where,
                n_folds=2,
                epochs=1,
                batch_size=8,
            ).fit(songs, y)
            _wait(where)

        return Way(title, run, answer=_nothing)

    ways = [way("seqagg, GPU", device), way(_processor(2), "cpu")]
    sizes = Sizes(len(songs), round(float(np.mean([len(song) for song in songs]))))
    setting = f"a convolutional network on {PATCH[0]} x {PATCH[1]}, a pass"
    return Contest("mil fit", setting, sizes, ways, compare=no_comparison)


def make_convolutions() -> nn.Module:
    """Small network from patches to four classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Unflatten(1, (1, PATCH[0])),
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 4),
        )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__, NAME)
    made.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to see that it runs"
    )
    return made.parse_args(arguments)


def _card(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "none"


def _processor(networks: int) -> str:
    """Way of the processor, which has a core for each network."""
    n_cores = min(networks, os.cpu_count() or 1)
    return "seqagg, one core" if n_cores == 1 else f"seqagg, {n_cores} cores"


def _sizes(songs: Songs) -> Sizes:
    return Sizes(len(songs), round(len(songs.values) / len(songs)), songs.n_columns)


def _wait(device: str) -> None:
    """Let the GPU end what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


def _nothing(_: Any) -> Any:
    return np.empty(0)


if __name__ == "__main__":
    main()
