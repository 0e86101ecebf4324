"""Small synthetic songs with a known law, seeded.

Conventions
-----------
Every builder gives `Songs` of log-odds with named columns, columns = classes unless it says
otherwise, labels in turn, so that every class has the same number of songs (give or take one).
With `multilabel` a song has a list of labels, which may be empty or name all classes.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import settings

from seqagg import AutoAggregator, Songs
from seqagg.certainty import Certainty
from seqagg.logodds import Task

# The first call of a compiled loop takes a second, on a busy machine several.
settings.register_profile("any time", deadline=None)
settings.load_profile("any time")

# pytest-xdist tells its workers how wide the terminal is; commands would believe it.
os.environ.pop("COLUMNS", None)

# A shell starts what runs in its background deaf to Ctrl-C, and so would be all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

COLUMNS = ("blues", "jazz", "metal")

FRAMES = (5, 12)
"""Fewest and most frames of a song."""


def order_free_songs(
    n: int,
    seed: int = 0,
    *,
    columns: Sequence[str] = COLUMNS,
    gap: float = 2.0,
    multilabel: bool = False,
) -> Songs:
    """Songs whose frames are independent draws: `gap` nats more for the song's own columns."""
    rng = np.random.default_rng(seed)
    has = np.eye(len(columns))[np.arange(n) % len(columns)] == 1
    if multilabel:
        has = rng.random(has.shape) < 0.4
    arrays = []
    for own in has:
        n_frames = rng.integers(FRAMES[0], FRAMES[1] + 1)
        frames = rng.normal(-1.0, 1.5, (n_frames, len(columns)))
        frames[:, own] += gap
        arrays.append(frames)
    lists = [tuple(c for c, h in zip(columns, own, strict=True) if h) for own in has]
    labels: list[Any] = lists if multilabel else [row[0] for row in lists]
    return Songs.from_arrays(
        arrays, columns=columns, labels=labels, ids=names(n), task=task_of(multilabel)
    )


def order_songs(
    n: int, seed: int = 0, *, columns: Sequence[str] = COLUMNS, multilabel: bool = False
) -> Songs:
    """Songs that differ in nothing but the order of their segments.

    Each song visits every column for the same number of frames; class k begins with column k and
    goes on in turn. So the frames of all classes are the same set, and any rule that ignores
    their order knows nothing. With `multilabel` every other song goes on in the opposite turn, and
    has the label of its second column too.
    """
    rng = np.random.default_rng(seed)
    k = len(columns)
    arrays = []
    turns = [-1 if multilabel and (i // k) % 2 else 1 for i in range(n)]
    for i, turn in enumerate(turns):
        states = np.repeat((turn * np.arange(k) + i) % k, rng.integers(2, 5))
        frames = rng.normal(-1.0, 0.5, (len(states), k))
        frames[np.arange(len(states)), states] += 3.0
        arrays.append(frames)
    labels: list[Any] = [columns[i % k] for i in range(n)]
    if multilabel:
        two = [turn == -1 for turn in turns]
        labels = [(columns[i % k], columns[(i - 1) % k])[: 1 + two[i]] for i in range(n)]
    return Songs.from_arrays(
        arrays, columns=columns, labels=labels, ids=names(n), task=task_of(multilabel)
    )


def mixed_songs(n: int, seed: int = 0, *, multilabel: bool = False) -> Songs:
    """Half `order_songs`, half `order_free_songs` that are not easy: something for every method."""
    halves = [
        order_songs(n // 2, seed, multilabel=multilabel),
        order_free_songs(n - n // 2, seed, gap=1.0, multilabel=multilabel),
    ]
    arrays = [array for half in halves for array in half]
    labels = [label for half in halves for label in half.labels]
    return Songs.from_arrays(
        arrays, columns=COLUMNS, labels=labels, ids=names(n), task=task_of(multilabel)
    )


def task_of(multilabel: bool) -> Task:
    return "multilabel" if multilabel else "multiclass"


def names(n: int) -> list[str]:
    return [f"song {i}" for i in range(n)]


def leaning(model: Any) -> Any:
    """What the biases add to each class in `decision_function`, which no temperature has scaled."""
    return model.biases_ / model.inverse_temperature_


def frames_of(songs: Songs) -> list[npt.NDArray[np.float32]]:
    """Plain list of arrays, as people without a cache have it."""
    return [np.array(frames) for frames in songs]


def integer_labels(songs: Songs) -> npt.NDArray[np.int64]:
    """Position of each song's label among the columns, or an indicator of its several labels."""
    assert songs.columns is not None
    assert songs.labels is not None
    if songs.task == "multilabel":
        return np.array([[int(c in row) for c in songs.columns] for row in songs.labels])
    return np.array([songs.columns.index(label) for label in songs.labels])


def songs_sometimes_of_no_use(n: int, seed: int = 0) -> Songs:
    """A third of the songs are as sure as the others, of a class at random."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    said = np.where(rng.random(n) < 1 / 3, rng.integers(0, 3, n), y)
    frames = rng.normal(-3.0, 1.5, size=(n, 10, 3)) + rng.normal(0, 2, size=(n, 1, 3))
    frames[np.arange(n), :, said] += 5.5
    labels = [COLUMNS[k] for k in y]
    return Songs.from_arrays(list(frames), columns=COLUMNS, labels=labels)


def make_certain(model: Any) -> Any:
    """Give a fitted model of one label per song a certainty, whatever was worth it."""
    certainty = Certainty(0.6, 1.7, 1.3)
    start = getattr(model, "_start", None)
    if start is not None and start.share > 0:
        model._start = replace(start, certainty=certainty)
    for network in getattr(model, "networks_", []):
        if getattr(network, "share", 0) > 0:
            network.certainty.copy_(torch.tensor(certainty))
    if isinstance(model, AutoAggregator) and not model.multilabel_:
        model._certainty = certainty
    return model


def mix_of(start: Any) -> tuple[float, tuple[float, ...]]:
    """Share of the log mean probability in a start or network, and its certainty."""
    certainty = start.certainty
    return float(start.share), tuple(
        certainty if isinstance(certainty, tuple) else certainty.tolist()
    )


def shake(model: Any) -> Any:
    """Move every weight of the networks of a fitted model, in place.

    A short training leaves corrections near zero, where half of a network could be left out.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for network in model.networks_:
            for weight in network.parameters():
                weight += 0.3 * torch.randn(weight.shape, generator=generator)
    return model


def assert_same_songs(actual: Songs, expected: Songs) -> None:
    """Every field equal, scores bit for bit."""
    for name in ("columns", "kind", "task", "note"):
        assert getattr(actual, name) == getattr(expected, name), name
    for name in ("values", "offsets", "fold", "start"):
        one, other = getattr(actual, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        if one is not None:
            assert one.dtype == other.dtype, name
            assert one.shape == other.shape, name
            assert one.tobytes() == other.tobytes(), name
    for name in ("ids", "labels", "groups", "split"):
        one, other = getattr(actual, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        if one is not None:
            assert one.tolist() == other.tolist(), name
