"""Networks on a GPU: what a processor says of the same numbers, and fits that can be relied on.

A machine without a GPU skips all of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

import seqagg
from seqagg import Songs
from seqagg.aggregators import make_aggregator
from seqagg.aggregators.pooling import POOLINGS
from seqagg.checkpoints import checkpoints
from seqagg.errors import ParameterError
from tests.conftest import order_free_songs, order_songs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")

CLOSE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}
"""How far probabilities of two devices may be from each other."""

SMALL: dict[str, Any] = {"epochs": 3, "hidden_size": 8, "n_folds": 2, "n_repeats": 1}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gru": ("gru", {}),
    "gru, one direction": ("gru", {"bidirectional": False}),
    "gru, two layers": ("gru", {"n_layers": 2}),
    "plain gru": ("gru", {"base": "none"}),
    **{f"mil, {pooling}": ("mil", {"pooling": pooling}) for pooling in POOLINGS},
}


def new(case: str, **parameters: Any) -> Any:
    method, own = CASES[case]
    return make_aggregator(method, **SMALL | own | parameters)


def far_songs(n: int) -> Songs:
    """Log-odds in the hundreds, on songs of one frame and of many."""
    rng = np.random.default_rng(0)
    arrays = [300 * rng.normal(size=(length, 3)) for length in np.resize([1, 700, 3, 40], n)]
    names = order_songs(3).columns
    return Songs.from_arrays(arrays, columns=names, labels=np.resize(names, n).tolist())


@pytest.mark.parametrize("multilabel", [False, True], ids=["one label", "labels"])
@pytest.mark.parametrize("case", CASES)
def test_a_gpu_answers_what_a_processor_answers(
    case: str, multilabel: bool, tmp_path: Path
) -> None:
    """Whichever of them has fitted the model."""
    songs = order_songs(24, multilabel=multilabel)
    queries = [order_songs(40, seed=1, multilabel=multilabel), order_songs(1), far_songs(9)]
    for fitted_on in ("cpu", "cuda"):
        new(case, device=fitted_on).fit(songs).save(tmp_path / "model.safetensors")
        there, here = (seqagg.load(tmp_path / "model.safetensors") for _ in range(2))
        there.device, here.device = "cuda", "cpu"
        for network in here.networks_:
            network.to("cpu")
        for network in there.networks_:
            network.to("cuda")
        for some in queries:
            found, expected = there.predict_proba(some), here.predict_proba(some)
            assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize("case", CASES)
def test_the_same_seed_gives_the_same_bits(case: str) -> None:
    songs, queries = order_songs(24), order_songs(9, seed=1)
    found = [new(case, device="cuda").fit(songs).decision_function(queries) for _ in range(2)]
    assert_array_equal(*found)


@pytest.mark.parametrize("n_jobs", [None, 4])
def test_networks_side_by_side_are_those_one_after_the_other(n_jobs: int | None) -> None:
    songs, queries = order_songs(24), order_songs(9, seed=1)
    found = [
        new("gru", device="cuda", n_folds=4, n_jobs=jobs).fit(songs).decision_function(queries)
        for jobs in (1, n_jobs)
    ]
    assert_array_equal(*found)


def test_order_is_learnt() -> None:
    """By a GPU as by a processor; frames without their order are one in three."""
    songs, queries = order_songs(96), order_songs(60, seed=1)
    settings: dict[str, Any] = {"epochs": 25, "hidden_size": 16, "batch_size": 8, "min_crop": 0.8}
    right = [
        new("gru", device=device, **settings).fit(songs).score(queries, queries.labels)
        for device in ("cuda", "cpu")
    ]
    assert min(right) > 0.9


def test_where_order_says_nothing_it_is_averaging() -> None:
    songs, queries = order_free_songs(60), order_free_songs(60, seed=1)
    mean = make_aggregator("logodds").fit(songs).predict(queries)
    found = new("gru", device="cuda").fit(songs).predict(queries)
    assert (found == mean).mean() > 0.95


@pytest.mark.parametrize("case", ["gru", "gru, two layers", "mil, attention"])
def test_a_fit_goes_on_where_it_was(case: str, tmp_path: Path) -> None:
    """From the checkpoint of an epoch, to the same bits."""
    songs, queries = order_songs(24), order_songs(9, seed=1)
    whole = new(case, device="cuda").fit(songs).decision_function(queries)
    written = 0

    def stop() -> None:
        nonlocal written
        written += 1
        if written == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), checkpoints(tmp_path, every=0.0, written=stop):
        new(case, device="cuda", n_jobs=1).fit(songs)
    with checkpoints(tmp_path, every=0.0):
        found = new(case, device="cuda", n_jobs=1).fit(songs).decision_function(queries)
    assert_array_equal(found, whole)


def test_streams_are_the_batch_answer() -> None:
    songs, queries = order_songs(24), order_songs(6, seed=1)
    for case in ("gru, one direction", "mil, attention"):
        model = new(case, device="cuda").fit(songs)
        stream = model.stream(len(queries))
        for i, frames in enumerate(queries):
            for frame in frames:
                stream.update(frame[None], which=[i])
        assert_allclose(stream.predict_proba(), model.predict_proba(queries), **CLOSE)


def test_a_network_of_the_users_own() -> None:
    """With batch norm, PyTorch's dropout and features of two axes."""
    rng = np.random.default_rng(0)
    y = np.resize(["air", "jig", "reel"], 36)
    mean = {"air": -1.0, "jig": 0.0, "reel": 1.0}
    arrays = [rng.normal(mean[k], 1.0, (rng.integers(3, 9), 8, 6)).astype(np.float32) for k in y]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Flatten(), nn.Linear(48, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2)
        )
        network.append(nn.Linear(16, 3))
    settings: dict[str, Any] = {"epochs": 20, "n_folds": 2, "pooling": "average"}
    found = []
    for device in ("cuda", "cuda", "cpu"):
        model = make_aggregator("mil", network=network, device=device, **settings)
        found.append(model.fit(arrays, y).predict_proba(arrays))
        assert (model.predict(arrays) == y).mean() > 0.9
    assert_array_equal(found[0], found[1])


def test_a_gpu_that_is_not_there() -> None:
    device = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ParameterError, match=f"device='{device}'"):
        make_aggregator("gru", device=device).fit(order_songs(6))


def test_auto_takes_it() -> None:
    model = new("gru", device="auto").fit(order_songs(12))
    assert {p.device.type for network in model.networks_ for p in network.parameters()} == {"cuda"}


def test_the_memory_of_a_fit_is_given_back() -> None:
    songs = order_songs(24)
    model = new("gru", device="cuda").fit(songs)
    model.predict(songs)
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        model = new("gru", device="cuda").fit(songs)
        model.predict(songs)
    assert torch.cuda.memory_allocated() <= before + 2**20
