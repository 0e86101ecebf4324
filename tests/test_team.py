"""Networks trained by many: the network of one process, to rounding."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import Tensor

from seqagg import GRUAggregator, Songs
from seqagg.aggregators.lessons import Lessons, hearing
from seqagg.aggregators.team import Team, together
from tests.conftest import order_songs

QUICK: dict[str, Any] = {"epochs": 4, "hidden_size": 4, "n_folds": 2, "batch_size": 7}


class Adder:
    """Sums of tensors of several threads, added up in the order of their ranks."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=60)
        self._given: dict[int, Tensor] = {}

    def of(self, rank: int) -> Callable[[Tensor], None]:
        def add(tensor: Tensor) -> None:
            self._given[rank] = tensor.clone()
            self._barrier.wait()
            total = torch.stack([self._given[i] for i in sorted(self._given)]).sum(dim=0)
            self._barrier.wait()
            tensor.copy_(total)

        return add


def fit_by_threads(
    make: Callable[[], GRUAggregator], songs: Songs, size: int, lessons: Lessons | None = None
) -> list[Any]:
    """What each of a team comes to."""
    adder, lock, make_network = Adder(size), threading.Lock(), GRUAggregator._seeded_network

    def one_at_a_time(*args: Any) -> Any:
        """For new networks get their numbers from PyTorch's global chance, which is but one."""
        with lock:
            return make_network(*args)

    def fit(rank: int) -> GRUAggregator:
        with together(Team(rank, size, adder.of(rank))), hearing(lessons):
            return make().fit(songs)  # type: ignore[return-value]

    with (
        patch.object(GRUAggregator, "_seeded_network", one_at_a_time),
        ThreadPoolExecutor(size) as pool,
    ):
        return list(pool.map(fit, range(size)))


def states(model: GRUAggregator) -> dict[str, Any]:
    return model._state() | {"temperature": np.array(model.inverse_temperature_)}


@pytest.mark.parametrize("size", [2, 3, 8])
def test_a_team_trains_what_one_process_does(size: int) -> None:
    """Batches of up to seven songs: of eight processes one hears nothing."""
    songs = order_songs(30)

    def make() -> GRUAggregator:
        return GRUAggregator(**QUICK, noise=0.1, shift=0.2)

    alone = make().fit(songs)
    team = fit_by_threads(make, songs, size)
    for model in team:
        for one, other in zip(alone.history_, model.history_, strict=True):
            for a, b in zip(one, other, strict=True):
                assert_allclose([*a.values()], [*b.values()], rtol=1e-4, equal_nan=True)
        assert_allclose(model.predict_proba(songs), alone.predict_proba(songs), atol=1e-4)
        for name, array in states(team[0]).items():
            assert_array_equal(states(model)[name], array, err_msg=name)


def test_one_process_is_a_team_of_its_own() -> None:
    songs = order_songs(20)
    alone = GRUAggregator(**QUICK).fit(songs)
    with together(Team(0, 1, lambda tensor: None)):
        found = GRUAggregator(**QUICK).fit(songs)
    for name, array in states(alone).items():
        assert_array_equal(states(found)[name], array, err_msg=name)


def test_batches_in_parts_are_shared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    songs, settings = order_songs(24), QUICK | {"batch_size": 16}
    monkeypatch.setattr("seqagg.aggregators.batches._PADDED_FRAMES", 30)
    alone = GRUAggregator(**settings).fit(songs)
    found, _ = fit_by_threads(lambda: GRUAggregator(**settings), songs, 2)
    assert_allclose(found.predict_proba(songs), alone.predict_proba(songs), atol=1e-4)
