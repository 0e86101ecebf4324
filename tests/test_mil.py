"""Multiple-instance learning: poolings against their formulas, and learning through a network."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.special import log_softmax
from torch import nn

import seqagg
from seqagg.aggregators.batches import Batches
from seqagg.aggregators.mil import MILAggregator, PooledNetwork
from seqagg.aggregators.network import network_scores
from seqagg.aggregators.pooling import POOLINGS, make_pooling
from seqagg.certainty import AS_IT_IS
from seqagg.errors import ModelFileError, ParameterError, SongError
from tests import reference
from tests.conftest import mix_of

FAST: dict[str, Any] = {"epochs": 3, "hidden_size": 8}


def songs_of(n: int, seed: int, n_columns: int = 3) -> seqagg.Songs:
    """Songs whose classes are columns, frames often wrong."""
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=n)
    names = ["air", "jig", "reel"]
    arrays = [
        rng.normal(size=(rng.integers(2, 9), n_columns)) + 1.5 * np.eye(3, n_columns)[k] for k in y
    ]
    columns = names if n_columns == 3 else [f"tag {j}" for j in range(n_columns)]
    return seqagg.Songs.from_arrays(arrays, columns=columns, labels=[names[k] for k in y])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def pooled_by_hand(kind: str, scores: list[float]) -> float:
    """One class of one song, by the formula of each pooling's source, untrained."""
    p = [sigmoid(s) for s in scores]
    if kind == "max":
        return max(scores)
    if kind == "linear-softmax":
        return logit(sum(q * q for q in p) / sum(p))
    if kind == "noisy-or":
        return logit(1 - math.prod(1 - q for q in p))
    return sum(scores) / len(scores)  # average; attention and auto-pool start there


@pytest.mark.parametrize("kind", POOLINGS)
def test_poolings_by_hand(kind: str) -> None:
    rng = np.random.default_rng(0)
    lengths = [4, 1, 3]
    scores = rng.normal(size=(3, 4, 2)).astype(np.float32)
    inside = torch.arange(4) < torch.tensor(lengths)[:, None]
    pooling = make_pooling(kind, 2)
    for padding in (0.0, 7.0):
        padded = torch.tensor(scores).masked_fill(~inside[:, :, None], padding)
        found = pooling(padded, inside[:, :, None]).detach().numpy()
        for i, n in enumerate(lengths):
            wanted = [pooled_by_hand(kind, scores[i, :n, k].tolist()) for k in range(2)]
            np.testing.assert_allclose(found[i], wanted, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("kind", POOLINGS)
@pytest.mark.parametrize("level", [-80.0, 80.0])
def test_poolings_stay_finite_where_frames_are_sure(kind: str, level: float) -> None:
    pooling = make_pooling(kind, 2)
    scores = torch.full((1, 5, 2), level, requires_grad=True)
    found = pooling(scores, torch.ones(1, 5, 1, dtype=torch.bool))
    assert torch.isfinite(found).all()
    assert (torch.sign(found) == math.copysign(1, level)).all()
    found.sum().backward()
    assert torch.isfinite(scores.grad).all()


def test_auto_pool_between_mean_and_maximum() -> None:
    scores = torch.tensor([[[1.0], [3.0], [2.0]]])
    inside = torch.ones(1, 3, 1, dtype=torch.bool)
    pooling = make_pooling("auto", 1)
    for alpha, wanted in ((0.0, 2.0), (60.0, 3.0), (-60.0, 1.0)):
        pooling.alpha.data.fill_(alpha)
        assert pooling(scores, inside).item() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("kind", ["average", "attention", "auto"])
def test_untrained_it_is_averaging(kind: str) -> None:
    songs = songs_of(40, 0)
    # At such a rate training ends where it begins, whether or not that passes for a gain.
    model = MILAggregator(pooling=kind, n_folds=2, learning_rate=1e-8, **FAST).fit(songs)
    averages = []
    for network in model.networks_:
        mix = mix_of(network)
        assert 0 < mix[0] < 1
        by_loops = [reference.mixed_average(song.tolist(), *mix) for song in songs]
        averages.append(network.scale.item() * np.array(by_loops))
    scores = np.mean(averages, axis=0)
    found = model.predict_log_proba(songs)
    calibrated = model.inverse_temperature_ * scores + model.biases_
    assert_allclose(found, log_softmax(calibrated, axis=1), atol=1e-5)


@pytest.mark.parametrize("kind", ["max", "linear-softmax", "noisy-or"])
def test_other_poolings_have_no_share_of_the_mean_probability(kind: str) -> None:
    model = MILAggregator(pooling=kind, n_folds=2, **FAST).fit(songs_of(40, 0))
    assert [float(network.share) for network in model.networks_] == [0, 0]
    assert all(mix_of(network)[1] == AS_IT_IS for network in model.networks_)


def test_columns_that_are_no_classes() -> None:
    train, test = songs_of(120, 0, n_columns=6), songs_of(120, 1, n_columns=6)
    model = MILAggregator(**FAST).fit(train)
    assert model.score(test) > 0.7


class Patches(nn.Module):
    """A frame network over patches (2, 3): the class is the sign of one difference."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Score frames of shape (n_frames, 2, 3)."""
        assert frames.shape[1:] == (2, 3)
        return torch.as_tensor(self.body(frames))


def patches(n: int, seed: int) -> tuple[list[np.ndarray], list[str]]:
    rng = np.random.default_rng(seed)
    y = rng.integers(2, size=n)
    frames = [rng.normal(size=(rng.integers(3, 8), 2, 3)) for _ in y]
    for array, k in zip(frames, y, strict=True):
        array[:, 0, 1] += 1.5 * (2 * k - 1)
    return frames, [("calm", "wild")[k] for k in y]


def test_a_network_of_your_own_learns_from_patches() -> None:
    torch.manual_seed(0)
    network = Patches()
    before = [p.clone() for p in network.parameters()]
    (x, y), (unseen, labels) = patches(120, 0), patches(100, 1)
    model = MILAggregator(network=network, pooling="average", batch_size=8, n_folds=2).fit(x, y)
    assert model.score(unseen, labels) > 0.9
    # The network given is a pattern: its own weights stay as they were.
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    with pytest.raises(ModelFileError, match="parameter network is a Patches"):
        model.save("never-written.safetensors")


def test_patches_of_two_shapes() -> None:
    x, y = patches(10, 0)
    x[3] = x[3][:, :, :2]
    with pytest.raises(SongError, match="song '3'"):
        MILAggregator(network=Patches()).fit(x, y)


def test_padding_never_enters_the_frame_network() -> None:
    seen = []

    class Spy(nn.Module):
        def forward(self, frames: torch.Tensor) -> torch.Tensor:
            seen.append(len(frames))
            return frames

    songs = songs_of(5, 0)
    network = PooledNetwork(Spy(), make_pooling("average", 1), 1.0, (3,))
    network_scores(network, Batches(songs, torch.device("cpu")), np.arange(5), 3)
    assert sum(seen) == len(songs.values)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_side_by_side_or_one_after_the_other(n_jobs: int) -> None:
    songs = songs_of(60, 0)
    first = MILAggregator(n_jobs=1, **FAST).fit(songs).predict_proba(songs)
    assert (MILAggregator(n_jobs=n_jobs, **FAST).fit(songs).predict_proba(songs) == first).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "median"}, "pooling='median'"),
        ({"network": "cnn"}, r"torch\.nn\.Module"),
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"device": "tpu"}, "device='tpu'"),
        ({"min_crop": 0.0}, "min_crop"),
    ],
)
def test_parameters_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        MILAggregator(**settings).fit(songs_of(9, 0))
