"""The GRU that starts from averaging: PyTorch's own, padding, crops, early stopping."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import seqagg.aggregators.batches
from seqagg import GRUAggregator, MeanLogOdds, Songs, load
from seqagg.aggregators.batches import Batches
from seqagg.aggregators.exact import exact_float32
from seqagg.aggregators.gru import SongNetwork
from seqagg.aggregators.recurrent import mean_and_highest
from seqagg.aggregators.start import AverageStart
from seqagg.certainty import AS_IT_IS, Certainty
from seqagg.errors import ParameterError
from seqagg.kernels import gru_training
from seqagg.kernels.gru import pooled_states
from tests import reference, reference_models
from tests.conftest import (
    COLUMNS,
    frames_of,
    integer_labels,
    leaning,
    mix_of,
    order_free_songs,
    order_songs,
)

Floats = npt.NDArray[np.float64]

LENGTHS = (7, 1, 12, 2, 7)

QUICK: dict[str, Any] = {"epochs": 3, "hidden_size": 8, "n_folds": 2, "n_repeats": 1}
LEARNS_ORDER: dict[str, Any] = {
    "epochs": 20,
    "hidden_size": 16,
    "min_crop": 0.8,
    "n_folds": 2,
    "n_repeats": 1,
    "batch_size": 8,
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small only lose time to a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def new_network(
    *,
    n_layers: int = 1,
    bidirectional: bool = True,
    scale: float = 1.7,
    n_columns: int = 3,
    n_classes: int = 3,
    trained: bool = True,
    share: float = 0.0,
    certainty: Certainty = AS_IT_IS,
    seed: int = 0,
) -> SongNetwork:
    """Network in evaluation; one that counts as trained has an output layer other than zero."""
    rng = np.random.default_rng(seed)
    weight, bias = rng.normal(size=(n_columns, n_classes)), rng.normal(size=n_classes)
    start = AverageStart(weight, bias, share, certainty)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SongNetwork(
            start,
            rng.normal(size=n_columns),
            rng.uniform(0.5, 2, n_columns),
            scale,
            hidden_size=5,
            n_layers=n_layers,
            bidirectional=bidirectional,
            dropout=0.3,
            noise=0.7,
            shift=0.3,
        ).eval()
        if trained:
            nn.init.normal_(network.output.weight)
            nn.init.normal_(network.output.bias)
    return network


def random_songs(n_columns: int = 3, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(n, n_columns, generator=generator) for n in LENGTHS]


def scores(network: SongNetwork, songs: list[Tensor], padding: float = 0.0) -> Tensor:
    """Scores of songs in one padded batch, shape (n_songs, n_classes)."""
    frames = pad_sequence(songs, batch_first=True, padding_value=padding)
    with torch.inference_mode():
        return network(frames, torch.tensor([len(song) for song in songs]))


def average_scores(network: SongNetwork, songs: list[Tensor]) -> Floats:
    """Scale times the certain mean log-odds @ weight + bias + share * log mean probability."""
    mean = np.array([reference.mean_over_frames(song.tolist()) for song in songs])
    linear = mean @ network.weight.double().numpy() + network.bias.double().numpy()
    if network.share > 0:
        log_p = [reference.log_mean_probability(song.tolist()) for song in songs]
        linear += float(network.share) * np.array(log_p)
    linear = np.array([reference.as_certain(row, mix_of(network)[1]) for row in linear.tolist()])
    return float(network.scale.detach()) * linear


def standardized(network: SongNetwork, song: Tensor) -> Tensor:
    """What the GRU hears; beyond 8 deviations log-odds say no more."""
    return ((song - network.center) / network.spread).clamp(-8, 8)


def copy_direction(source: nn.GRU, target: nn.GRU, suffix: str) -> None:
    """Put the weights of a GRU of one direction into one direction of another."""
    values = {name + suffix: value for name, value in source.state_dict().items()}
    target.load_state_dict(values, strict=False)
    assert set(values) <= set(target.state_dict())


def songs_of_noise(n: int, seed: int) -> Songs:
    arrays, labels = reference_models.songs_of_varied_noise(n, seed)
    return Songs.from_arrays(arrays, columns=[f"c{k}" for k in range(6)], labels=labels)


class TestUntrained:
    @pytest.mark.parametrize("bidirectional", [True, False])
    @pytest.mark.parametrize(
        ("share", "certainty"),
        [(0.0, AS_IT_IS), (0.4, AS_IT_IS), (0.4, Certainty(0.7, 1.9, 1.2))],
    )
    def test_is_averaging(self, bidirectional: bool, share: float, certainty: Certainty) -> None:
        network = new_network(
            bidirectional=bidirectional, trained=False, share=share, certainty=certainty
        )
        songs = random_songs()
        assert_allclose(
            scores(network, songs), average_scores(network, songs), rtol=1e-5, atol=1e-5
        )

    def test_the_gru_has_no_say_at_all(self) -> None:
        """Not by a bit, whatever its weights are."""
        network, songs = new_network(trained=False), random_songs()
        before = scores(network, songs)
        for parameter in network.forwards.parameters():
            nn.init.normal_(parameter)
        assert torch.equal(scores(network, songs), before)

    def test_nor_have_dropout_and_noise(self) -> None:
        network, songs = new_network(trained=False), random_songs()
        expected = scores(network, songs)
        assert torch.equal(scores(network.train(), songs), expected)

    def test_without_base_the_average_has_no_say(self) -> None:
        network, songs = new_network(scale=0.0, trained=False), random_songs()
        assert not network.scale.requires_grad
        before = scores(network, songs)
        assert before.abs().min() > 0
        network.weight.add_(1.0)
        assert torch.equal(scores(network, songs), before)


class TestAgainstPyTorch:
    """Scores of padded batches equal those of PyTorch's GRU on packed songs."""

    def expected(self, network: SongNetwork, songs: list[Tensor], pooled: Tensor) -> Floats:
        with torch.inference_mode():
            correction = network.output(pooled).double().numpy()
        return average_scores(network, songs) + correction

    def test_bidirectional(self) -> None:
        network, songs = new_network(), random_songs()
        assert network.backwards is not None
        gru = nn.GRU(3, 5, batch_first=True, bidirectional=True)
        copy_direction(network.forwards, gru, "")
        copy_direction(network.backwards, gru, "_reverse")
        heard = [standardized(network, song) for song in songs]
        with torch.inference_mode():
            pooled = reference_models.pooled_states_of_packed(gru, heard)
            # A song by itself needs neither packing nor padding.
            alone = [gru(song)[0] for song in heard]
            by_hand = torch.stack([torch.cat([h.mean(dim=0), h.amax(dim=0)]) for h in alone])
        assert_allclose(pooled, by_hand, rtol=1e-5, atol=1e-6)
        expected = self.expected(network, songs, pooled)
        assert_allclose(scores(network, songs), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("n_layers", [1, 2])
    def test_one_direction(self, n_layers: int) -> None:
        network, songs = new_network(n_layers=n_layers, bidirectional=False), random_songs()
        gru = nn.GRU(3, 5, n_layers, batch_first=True)
        gru.load_state_dict(network.forwards.state_dict())
        heard = [standardized(network, song) for song in songs]
        with torch.inference_mode():
            pooled = reference_models.pooled_states_of_packed(gru, heard)
        expected = self.expected(network, songs, pooled)
        assert_allclose(scores(network, songs), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(("side_by_side", "window"), [(1, 1), (3, 10), (128, 512)])
    @pytest.mark.parametrize("backwards", [False, True])
    def test_compiled_states(
        self, backwards: bool, side_by_side: int, window: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However the work is cut up; also of units that are full, and hear much."""
        monkeypatch.setattr("seqagg.kernels.gru._SONGS", side_by_side)
        monkeypatch.setattr("seqagg.kernels.gru._WINDOW", window)
        generator = torch.Generator().manual_seed(1)
        gru = nn.GRU(3, 20, batch_first=True)
        for i, parameter in enumerate(gru.parameters()):
            nn.init.normal_(parameter, std=0.3 * (i + 1), generator=generator)
        songs = [3 * torch.randn(n, 3, generator=generator) for n in (40, 1, 7, 7, 90, 2)]
        lengths = np.array([len(song) for song in songs])
        mean, highest = pooled_states(
            [parameter.detach().numpy() for parameter in gru.parameters()],
            torch.cat(songs).numpy(),
            np.cumsum(lengths) - lengths,
            lengths,
            backwards=backwards,
        )
        turned = [song.flip(0) if backwards else song for song in songs]
        with torch.inference_mode():
            expected = reference_models.pooled_states_of_packed(gru, turned)
        assert_allclose(np.hstack([mean, highest]), expected, rtol=1e-5, atol=2e-6)

    @pytest.mark.parametrize("loud", [1.0, 10.0])
    @pytest.mark.parametrize("backwards", [False, True])
    def test_compiled_slopes(
        self, backwards: bool, loud: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Those that autograd finds through packed songs; also of units that are full.

        Whatever the batch before has left in memory.
        """
        rooms, room = gru_training._Rooms(), np.full(100_000, np.nan, np.float32)
        rooms.give_back(room)
        monkeypatch.setattr(gru_training, "_rooms", rooms)
        generator = torch.Generator().manual_seed(2)
        gru = nn.GRU(3, 20, batch_first=True)
        for parameter in gru.parameters():
            nn.init.normal_(parameter, std=0.4, generator=generator)
        songs = [loud * torch.randn(n, 3, generator=generator) for n in (40, 1, 7, 7, 90, 2)]
        frames = pad_sequence(songs, batch_first=True, padding_value=5.0)
        lengths = torch.tensor([len(song) for song in songs])
        weight = torch.randn(6, 40, generator=generator)

        def slopes(pooled: Tensor) -> list[Tensor]:
            return list(torch.autograd.grad((weight * pooled).sum(), list(gru.parameters())))

        found = torch.hstack(mean_and_highest(gru, frames, lengths, backwards=backwards))
        turned = [song.flip(0) if backwards else song for song in songs]
        expected = reference_models.pooled_states_of_packed(gru, turned)
        assert_allclose(found.detach(), expected.detach(), rtol=1e-5, atol=2e-6)
        for own, theirs in zip(slopes(found), slopes(expected), strict=True):
            assert_allclose(own, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
        assert np.isfinite(room).any(), "it was used"
        assert rooms.take(1) is room

    def test_units_that_are_full_from_the_first_frame(self) -> None:
        """Their states are 1 and -1 to the last bit."""
        gru = nn.GRU(1, 2, batch_first=True)
        with torch.no_grad():
            for parameter in gru.parameters():
                parameter.zero_()
            gru.bias_ih_l0[:] = torch.tensor([0.0, 0, -200, -200, 100, -100])
        frames = torch.zeros(3, 5, 1)
        mean, highest = mean_and_highest(gru, frames, torch.tensor([5, 3, 1]), backwards=False)
        for found in (mean, highest):
            assert_array_equal(found.detach(), [[1, -1]] * 3)
        slopes = torch.autograd.grad((mean + highest).sum(), list(gru.parameters()))
        assert all(torch.isfinite(slope).all() for slope in slopes)

    @pytest.mark.parametrize("n_songs", [1, 3])
    def test_slopes_of_songs_of_one_frame(self, n_songs: int) -> None:
        gru, frames = nn.GRU(3, 4, batch_first=True), torch.randn(n_songs, 1, 3)
        ones = torch.ones(n_songs, dtype=torch.int64)
        mean, highest = mean_and_highest(gru, frames, ones, backwards=False)
        found = torch.autograd.grad((mean + 2 * highest).sum(), list(gru.parameters()))
        expected = torch.autograd.grad(3 * gru(frames)[0].sum(), list(gru.parameters()))
        for own, theirs in zip(found, expected, strict=True):
            assert_allclose(own, theirs, rtol=1e-5, atol=1e-6)

    def test_slopes_along_frames_are_pytorchs(self) -> None:
        """Whoever puts a network before the GRU can train both."""
        gru, frames = nn.GRU(3, 4, batch_first=True), torch.randn(2, 5, 3, requires_grad=True)
        mean, highest = mean_and_highest(gru, frames, torch.tensor([5, 3]), backwards=True)
        (found,) = torch.autograd.grad((mean + highest).sum(), frames)
        assert found[0].abs().min() > 0
        assert found[1, 3:].abs().max() == 0

    @pytest.mark.parametrize("bidirectional", [True, False])
    def test_with_gradients_and_without(self, bidirectional: bool) -> None:
        network, songs = new_network(bidirectional=bidirectional), random_songs()
        frames = pad_sequence(songs, batch_first=True)
        found = network(frames, torch.tensor(LENGTHS))
        assert found.requires_grad
        assert_allclose(scores(network, songs), found.detach(), rtol=1e-5, atol=1e-5)

    def test_layers_of_two_directions_do_not_mix(self) -> None:
        """Each direction has a stack of its own, as its own frames turned round show."""
        network, songs = new_network(n_layers=2), random_songs()
        assert network.backwards is not None
        heard = [standardized(network, song) for song in songs]
        halves = []
        with torch.inference_mode():
            for gru, turned in ((network.forwards, False), (network.backwards, True)):
                one_way = [song.flip(0) if turned else song for song in heard]
                halves.append(reference_models.pooled_states_of_packed(gru, one_way))
        # (mean, max) of one direction each -> means, then maxima
        (mean, highest), (back_mean, back_highest) = (half.split(5, dim=1) for half in halves)
        pooled = torch.cat([mean, back_mean, highest, back_highest], dim=1)
        expected = self.expected(network, songs, pooled)
        assert_allclose(scores(network, songs), expected, rtol=1e-4, atol=1e-5)


class TestNoise:
    @pytest.mark.parametrize("part", ["dropout", "noise", "shift"])
    def test_only_while_training(self, part: str) -> None:
        network, songs = new_network(), random_songs()
        # The others would hide it.
        network.dropout.share = 0.5 if part == "dropout" else 0.0
        network.noise.deviation = 0.5 if part == "noise" else 0.0
        network.shift.deviation = 0.5 if part == "shift" else 0.0
        assert torch.equal(scores(network, songs), scores(network, songs))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            first, second = (scores(network.train(), songs) for _ in range(2))
        assert (first - second).abs().max() > 1e-2
        assert torch.equal(scores(network.eval(), songs), scores(new_network(), songs))

    def test_dropout_keeps_the_expected_score(self) -> None:
        network, song = new_network(), random_songs()[0]
        expected = scores(network, [song])
        network.noise.deviation = network.shift.deviation = 0.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            many = scores(network.train(), [song] * 20_000)
        assert_allclose(many.mean(dim=0), expected[0], rtol=0, atol=0.05)

    def test_noise_has_the_deviation_asked_for(self) -> None:
        network = new_network()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            noise = network.train().noise(torch.ones(20_000)) - 1
        assert float(noise.std()) == pytest.approx(0.7, rel=0.03)
        assert float(noise.mean()) == pytest.approx(0, abs=0.03)

    def test_a_shift_moves_all_frames_of_a_song_alike(self) -> None:
        network = new_network().train()
        network.noise.deviation = 0.0
        heard: list[Tensor] = []
        network.noise.register_forward_pre_hook(lambda _, args: heard.append(args[0]))
        frames = torch.randn(2000, 4, 3, generator=torch.Generator().manual_seed(0))
        lengths = torch.full((2000,), 4)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network(frames, lengths)
            network.shift.deviation = 0.0
            network(frames, lengths)
        moved = (heard[0] - heard[1]).detach()  # (n_songs, n_frames, n_columns)
        assert_allclose(moved, moved[:, :1].expand_as(moved), atol=1e-6)
        assert float(moved[:, 0].std()) == pytest.approx(0.3, rel=0.05)
        assert_allclose(np.corrcoef(moved[:, 0].T), np.eye(3), rtol=0, atol=0.1)


class TestPadding:
    @pytest.mark.parametrize("bidirectional", [True, False])
    def test_company_does_not_matter(self, bidirectional: bool) -> None:
        network, songs = new_network(bidirectional=bidirectional), random_songs()
        alone = torch.cat([scores(network, [song]) for song in songs])
        assert_allclose(scores(network, songs), alone, rtol=1e-5, atol=1e-5)
        assert_allclose(scores(network, songs[::-1]).flip(0), alone, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("padding", [1.0, -1e6, 3e38])
    def test_what_stands_in_it_does_not_leak(self, padding: float) -> None:
        network, songs = new_network(), random_songs()
        assert torch.equal(scores(network, songs, padding), scores(network, songs))

    def test_no_gradient_flows_out_of_it(self) -> None:
        network, songs = new_network(), random_songs()
        frames = pad_sequence(songs, batch_first=True).requires_grad_()
        network(frames, torch.tensor(LENGTHS)).sum().backward()
        assert frames.grad is not None
        for gradient, length in zip(frames.grad, LENGTHS, strict=True):
            assert (gradient[length:] == 0).all()
            assert (gradient[:length] != 0).any()

    def test_songs_in_many_batches_are_put_back_in_order(self) -> None:
        """Scores are computed for 256 songs at a time, sorted by length."""
        model = GRUAggregator(**QUICK).fit(order_songs(30))
        queries = order_songs(300, seed=1)
        some = [0, 7, 150, 255, 256, 299]
        assert_allclose(
            model.predict_log_proba(queries)[some],
            model.predict_log_proba(queries[some]),
            rtol=1e-5,
            atol=1e-5,
        )


class TestCrops:
    """Frames that tell which frame of which song they are."""

    WHOLE = np.array([1, 2, 3, 10, 10, 11, 17, 40, 41, 5])

    def batches(self) -> Batches:
        song = np.repeat(np.arange(len(self.WHOLE)), self.WHOLE)
        place = np.concatenate([np.arange(n) for n in self.WHOLE])
        songs = Songs(np.stack([song, place], axis=1), np.cumsum([0, *self.WHOLE]))
        return Batches(songs, torch.device("cpu"))

    def epoch(
        self, seed: int = 0, min_crop: float = 0.5, songs: Any = None, batch_size: int = 4
    ) -> dict[int, tuple[int, int]]:
        """First frame and length of the crop of each song."""
        chosen = np.arange(len(self.WHOLE)) if songs is None else np.array(songs)
        crops: dict[int, tuple[int, int]] = {}
        rng = np.random.default_rng(seed)
        for [(index, frames, lengths)] in self.batches().shuffled(
            chosen, batch_size, min_crop, rng
        ):
            assert 1 <= len(index) <= batch_size
            assert frames.shape == (len(index), int(lengths.max()), 2)
            for song, rows, length in zip(index.tolist(), frames, lengths.tolist(), strict=True):
                assert (rows[:, 0] == song).all()  # padding, too, is of the song itself
                places = rows[:length, 1].tolist()
                assert places == list(range(int(places[0]), int(places[0]) + length))
                assert places[-1] < self.WHOLE[song]
                assert song not in crops
                crops[song] = (int(places[0]), length)
        return crops

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("min_crop", [0.01, 0.5, 0.9])
    def test_every_song_once_and_within_itself(self, seed: int, min_crop: float) -> None:
        crops = self.epoch(seed, min_crop)
        assert sorted(crops) == list(range(len(self.WHOLE)))
        for song, (_, length) in crops.items():
            assert max(1, round(min_crop * self.WHOLE[song])) <= length <= self.WHOLE[song]

    def test_all_places_and_lengths_occur(self) -> None:
        """A song of ten frames at least half heard: lengths 5 to 10, starts 0 to 5."""
        crops = [self.epoch(seed)[3] for seed in range(300)]
        assert {length for _, length in crops} == {5, 6, 7, 8, 9, 10}
        assert {first for first, _ in crops} == {0, 1, 2, 3, 4, 5}
        ends = [first + length for first, length in crops]
        assert set(ends) == {5, 6, 7, 8, 9, 10}
        # Neither end of the song is heard more often than the other.
        at_start = np.mean([first == 0 for first, _ in crops])
        assert np.mean(np.array(ends) == 10) == pytest.approx(at_start, abs=0.12)

    def test_whole_songs(self) -> None:
        crops = self.epoch(min_crop=1.0)
        assert crops == {song: (0, n) for song, n in enumerate(self.WHOLE)}

    def test_only_the_songs_asked_for(self) -> None:
        assert sorted(self.epoch(songs=[7, 2, 5])) == [2, 5, 7]

    def test_epochs_and_seeds_differ(self) -> None:
        assert self.epoch(seed=0) == self.epoch(seed=0)
        assert self.epoch(seed=0) != self.epoch(seed=1)
        rng = np.random.default_rng(0)
        everyone = np.arange(len(self.WHOLE))
        first, second = (
            [index.tolist() for [(index, _, _)] in self.batches().shuffled(everyone, 4, 0.5, rng)]
            for _ in range(2)
        )
        assert first != second

    def test_songs_of_a_batch_are_of_similar_length(self) -> None:
        rng = np.random.default_rng(0)
        everyone = np.arange(len(self.WHOLE))
        spans = []
        for [(_, _, lengths)] in self.batches().shuffled(everyone, 2, 1.0, rng):
            spans.append(int(lengths.max() - lengths.min()))
        assert max(spans) <= 7  # in batches of two neighbours; 17 and 40 are not together
        assert len(spans) == 5

    @pytest.mark.parametrize("limit", [1, 20, 40, 90])
    def test_songs_too_long_for_their_batch_come_in_parts(
        self, limit: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(seqagg.aggregators.batches, "_PADDED_FRAMES", limit)
        everyone, rng = np.arange(len(self.WHOLE)), np.random.default_rng(0)
        (batch,) = self.batches().shuffled(everyone, 10, 1.0, rng)
        parts = [*batch, *self.batches().sorted(everyone, 10)]
        heard = [i for index, _, _ in batch for i in index.tolist()]
        assert sorted(heard) == everyone.tolist()
        assert len(batch) == {1: 10, 20: 6, 40: 5, 90: 3}[limit]
        for index, frames, _ in parts:
            assert len(index) == 1 or frames.shape[0] * frames.shape[1] <= limit

    def test_parts_of_a_batch_make_one_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        settings: Any = {"epochs": 3, "n_folds": 2, "dropout": 0.0, "noise": 0.0, "batch_size": 16}
        songs = order_songs(24)
        whole = GRUAggregator(**settings).fit(songs)
        monkeypatch.setattr(seqagg.aggregators.batches, "_PADDED_FRAMES", 30)
        parts = GRUAggregator(**settings).fit(songs)
        for one, other in zip(whole.history_, parts.history_, strict=True):
            for a, b in zip(one, other, strict=True):
                assert_allclose([*a.values()], [*b.values()], rtol=1e-4, equal_nan=True)

    def test_sorted_songs_are_whole_and_in_place(self) -> None:
        songs = np.array([7, 0, 3, 9])
        seen = {}
        for place, frames, lengths in self.batches().sorted(songs, 3):
            for i, rows, length in zip(place, frames, lengths.tolist(), strict=True):
                assert rows[:length, 1].tolist() == list(range(length))
                assert length == self.WHOLE[songs[i]]
                seen[int(i)] = int(rows[0, 0])
        assert seen == {i: int(song) for i, song in enumerate(songs)}


class TestLearning:
    @pytest.mark.parametrize("base", ["mean", "none"])
    def test_order_is_learnt(self, base: Any) -> None:
        model = GRUAggregator(**LEARNS_ORDER, base=base, learning_rate=2e-2).fit(order_songs(60))
        unseen = order_songs(60, seed=1)
        assert MeanLogOdds().fit(unseen).score(unseen) < 0.5
        assert model.score(unseen) > 0.75

    def test_averaging_is_kept_where_order_says_nothing(self) -> None:
        train, unseen = songs_of_noise(60, 0), songs_of_noise(600, 1)
        averaging = MeanLogOdds().fit(train)
        model = GRUAggregator(epochs=10, hidden_size=16, n_folds=2).fit(train)
        accuracy = averaging.score(unseen)
        assert 0.7 < accuracy < 0.9
        assert model.score(unseen) > accuracy - 0.02
        losses = [
            log_loss(unseen.labels.tolist(), m.predict_proba(unseen)) for m in (model, averaging)
        ]
        assert losses[0] < losses[1] + 0.05

    def test_epoch_0_counts(self) -> None:
        """Steps this large ruin a network, so what is left is averaging."""
        songs, queries = songs_of_noise(60, 0), songs_of_noise(20, 1)
        model = GRUAggregator(**QUICK, learning_rate=10.0).fit(songs)
        for network, history in zip(model.networks_, model.history_, strict=True):
            losses = [row["held_out"] for row in history]
            assert min(losses) == losses[0]
            assert (network.output.weight == 0).all()
            assert (network.output.bias == 0).all()
        assert model.fit_report_.count("untrained") == 2
        expected = np.mean(
            [
                float(network.scale.detach())
                * np.array(
                    [
                        reference.mixed_average(array.tolist(), *mix_of(network))
                        for array in frames_of(queries)
                    ]
                )
                for network in model.networks_
            ],
            axis=0,
        )
        expected = expected + leaning(model)
        assert_allclose(model.decision_function(queries), expected, rtol=1e-4, atol=1e-5)

    def test_the_scale_at_the_start_is_the_best_for_the_songs_learnt_from(self) -> None:
        songs = songs_of_noise(40, 0)
        settings = {"epochs": 1, "hidden_size": 4, "n_repeats": 1, "learning_rate": 1e-8}
        (network,) = GRUAggregator(**settings).fit(songs, groups=["all"] * 40).networks_
        mix = mix_of(network)
        mean = [reference.mixed_average(array.tolist(), *mix) for array in frames_of(songs)]
        y = integer_labels(songs).tolist()

        def cost(beta: float) -> float:
            return reference_models.loss_of_mix([beta], [mean], y) + 0.5 * math.log(beta) ** 2

        scale = float(network.scale.detach())
        assert cost(scale) <= min(cost(0.99 * scale), cost(1.01 * scale))

    def test_gradients_are_clipped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before, after = [], []
        clip = nn.utils.clip_grad_norm_

        def spy(parameters: Iterator[nn.Parameter], max_norm: float) -> Tensor:
            listed = list(parameters)
            norm = clip(listed, max_norm)
            gradients = [p.grad.norm() for p in listed if p.grad is not None]
            before.append(float(norm))
            after.append(float(torch.stack(gradients).norm()))
            return norm

        monkeypatch.setattr(nn.utils, "clip_grad_norm_", spy)
        GRUAggregator(**QUICK, batch_size=8, max_gradient=0.05).fit(order_songs(24))
        assert len(before) == 2 * 3 * 2  # folds, epochs, batches of twelve songs
        assert max(before) > 0.05
        assert max(after) <= 0.05 * (1 + 1e-4)

    def test_seeds(self) -> None:
        songs, queries = order_songs(30), order_songs(6, seed=1)
        settings = QUICK | {"base": "none"}
        first, again, other = (
            GRUAggregator(**settings, random_state=seed).fit(songs).decision_function(queries)
            for seed in (0, 0, 1)
        )
        assert_array_equal(again, first)
        assert np.abs(other - first).max() > 1e-3

    def test_networks_of_the_folds_differ(self) -> None:
        model = GRUAggregator(**QUICK, base="none").fit(order_songs(30))
        one, other = (network.state_dict() for network in model.networks_)
        assert not torch.equal(one["forwards.weight_hh_l0"], other["forwards.weight_hh_l0"])

    def test_scores_of_the_networks_are_averaged(self) -> None:
        """Columns sorted by their means already, so that the inside order is the outside one."""
        songs, queries = order_songs(30), order_songs(6, seed=1)
        shifted = songs.replace(values=songs.values + np.array([0, 5, 10], np.float32))
        model = GRUAggregator(**QUICK, base="none").fit(shifted)
        frames = [torch.tensor(array) for array in frames_of(queries)]
        expected = np.mean([scores(network, frames) for network in model.networks_], axis=0)
        expected = expected + leaning(model)
        assert_allclose(model.decision_function(queries), expected, rtol=1e-4, atol=1e-5)

    def test_columns_that_are_no_classes(self) -> None:
        tags = [f"tag {j}" for j in range(6)]

        def tagged(n: int, seed: int) -> Songs:
            """Three columns tell the class by their mean, three are noise."""
            songs = order_free_songs(n, seed)
            noise = np.random.default_rng(seed).normal(size=songs.values.shape)
            return songs.replace(values=np.hstack([noise, songs.values]), columns=tags)

        model = GRUAggregator(**QUICK).fit(tagged(45, 0))
        assert model.classes_.tolist() == list(COLUMNS)
        assert model.predict_proba(tagged(5, 1)).shape == (5, 3)
        assert model.score(tagged(60, 1)) > 0.85
        # The network starts from a regression on the means, which has learnt as much already.
        first = [history[0]["held_out"] for history in model.history_]
        assert max(first) < 0.6 * math.log(3)

    def test_groups_are_kept_together_inside(self) -> None:
        arrays, labels, albums = reference_models.songs_of_albums(24, 4, seed=0)
        songs = Songs.from_arrays(arrays, columns=[f"tag {j}" for j in range(4)], labels=labels)
        strange, unknown, _ = reference_models.songs_of_albums(60, 1, seed=1)
        settings = {"epochs": 15, "hidden_size": 16, "batch_size": 32, "n_folds": 3}
        fooled = GRUAggregator(**settings).fit(songs)
        aware = GRUAggregator(**settings).fit(songs, groups=albums)
        losses = [log_loss(unknown, model.predict_proba(strange)) for model in (fooled, aware)]
        assert losses[0] > 1.3 * math.log(3)
        assert losses[1] < 1.15 * math.log(3)

    @pytest.mark.parametrize(("groups", "expected"), [(None, 0.0), (list("aabbccddee"), 0.5)])
    def test_songs_in_groups_are_shifted(self, groups: Any, expected: float) -> None:
        songs = order_songs(10)
        model = GRUAggregator(**QUICK).fit(songs, groups=groups)
        assert [network.shift.deviation for network in model.networks_] == [expected] * 2
        model = GRUAggregator(**QUICK, shift=0.1).fit(songs, groups=groups)
        assert model.networks_[0].shift.deviation == 0.1


class TestPasses:
    """As many as 600 steps need, from 30 to 120."""

    @pytest.mark.parametrize(
        ("n", "batch_size", "expected"), [(30, 1, 30), (13, 1, 60), (13, 64, 120)]
    )
    def test_the_fewer_steps_the_more_passes(self, n: int, batch_size: int, expected: int) -> None:
        songs = order_songs(n)  # of 13, 3 are held out
        model = GRUAggregator(
            hidden_size=1, n_folds=1, patience=1000, batch_size=batch_size, bidirectional=False
        ).fit(songs)
        assert len(model.history_[0]) == 1 + expected

    def test_patience_ends_halfway(self) -> None:
        """Steps too small to gain anything."""
        model = GRUAggregator(
            hidden_size=1,
            n_folds=1,
            n_repeats=1,
            batch_size=64,
            learning_rate=1e-8,
            bidirectional=False,
        ).fit(order_songs(13))
        (history,) = model.history_
        best = min(range(len(history)), key=lambda i: history[i]["held_out"])
        assert len(history) == 1 + best + 60


class TestHistory:
    def test_complete(self) -> None:
        model = GRUAggregator(epochs=5, patience=9, hidden_size=8, n_folds=3).fit(order_songs(30))
        assert len(model.networks_) == len(model.history_) == 3 * model.n_repeats == 6
        for history in model.history_:
            assert [row["epoch"] for row in history] == list(range(6))
            assert all(set(row) == {"epoch", "crops", "held_out"} for row in history)
            assert math.isnan(history[0]["crops"])
            assert np.isfinite([row["crops"] for row in history[1:]]).all()
            assert np.isfinite([row["held_out"] for row in history]).all()

    def test_patience_is_counted_from_the_best_epoch(self) -> None:
        settings = {"epochs": 30, "patience": 2, "hidden_size": 8, "learning_rate": 0.05}
        model = GRUAggregator(**settings).fit(songs_of_noise(48, 0))
        for history in model.history_:
            losses = [row["held_out"] for row in history]
            assert len(losses) < 31
            assert len(losses) - 1 == int(np.argmin(losses)) + 2

    def test_report(self) -> None:
        model = GRUAggregator(**QUICK).fit(order_songs(30))
        lines = model.fit_report_.splitlines()
        assert lines[0].startswith("2 networks")
        for number, (line, history) in enumerate(zip(lines[1:], model.history_, strict=True)):
            losses = [row["held_out"] for row in history]
            assert line.startswith(f"network {number}: ")
            assert line.endswith(f"held-out loss {losses[0]:.3f} -> {min(losses):.3f}")

    def test_training_lowers_the_loss(self) -> None:
        model = GRUAggregator(**LEARNS_ORDER, base="none", learning_rate=2e-2).fit(order_songs(60))
        for history in model.history_:
            assert history[0]["held_out"] == pytest.approx(math.log(3), abs=0.3)
            assert min(row["held_out"] for row in history) < 0.6 * math.log(3)
            assert history[1]["crops"] == pytest.approx(math.log(3), abs=0.5)
            assert history[-1]["crops"] < 0.8 * history[1]["crops"]

    def test_the_best_epoch_is_the_one_that_is_kept(self) -> None:
        """With 1 of n_folds songs in five are held out; here all but those are copies of one.

        So the held-out loss can be computed from outside, whichever songs they are.
        """
        songs = order_songs(3)
        copies = Songs.from_arrays(
            frames_of(songs) * 5, columns=COLUMNS, labels=songs.labels.tolist() * 5
        )
        model = GRUAggregator(
            base="none",
            n_folds=1,
            n_repeats=1,
            epochs=8,
            hidden_size=8,
            learning_rate=0.1,
            dropout=0.0,
        ).fit(copies)
        (history,) = model.history_
        scores_ = model.decision_function(songs).tolist()

        def loss_at(log_beta: float) -> float:
            return reference_models.loss_of_mix([math.exp(log_beta)], [scores_], [0, 1, 2])

        # By the temperature that suits the held-out songs, as they will be in the end.
        best = minimize_scalar(lambda t: loss_at(t) + t**2 / 2, bounds=(-9, 9), method="bounded")
        loss = loss_at(best.x) / 3
        assert loss == pytest.approx(min(row["held_out"] for row in history), abs=1e-4)

    @pytest.mark.parametrize("why", ["one group", "one song"])
    def test_without_songs_to_hold_out_the_last_epoch_is_kept(self, why: str) -> None:
        songs = order_songs(9 if why == "one group" else 1)
        model = GRUAggregator(**QUICK).fit(songs, groups=["all"] * len(songs))
        (history,) = model.history_
        assert len(history) == 4
        assert all(math.isnan(row["held_out"]) for row in history)
        assert np.isfinite(model.predict_log_proba(songs)).all()
        if why == "one group":
            assert (model.networks_[0].output.weight != 0).any()

    def test_one_fold_is_the_first_of_five(self) -> None:
        model = GRUAggregator(**QUICK | {"n_folds": 1}).fit(order_songs(30))
        assert len(model.networks_) == len(model.history_) == 1
        assert np.isfinite(model.history_[0][0]["held_out"])


class TestGainByChance:
    SETTINGS: ClassVar[dict[str, Any]] = {"epochs": 15, "hidden_size": 8, "learning_rate": 0.02}

    def test_the_best_of_many_epochs_on_noise_does_not_count(self, tmp_path: Path) -> None:
        """Chance gains more than a standard error on one draw in six."""
        other, n_counted = songs_of_noise(30, 100), 0
        for seed in range(4):
            noise = songs_of_noise(40, seed)
            trained = GRUAggregator(**self.SETTINGS).fit(noise)
            best = [np.argmin([row["held_out"] for row in rows]) for rows in trained.history_]
            assert max(best) > 0  # some fold looked better trained
            if "all as they start" not in trained.fit_report_:
                n_counted += 1
                continue
            still = GRUAggregator(epochs=1, hidden_size=8, learning_rate=1e-8).fit(noise)
            assert_allclose(trained.predict_proba(other), still.predict_proba(other), atol=1e-6)
            trained.save(tmp_path / "gru.safetensors")
            assert load(tmp_path / "gru.safetensors").fit_report_ == trained.fit_report_
        assert n_counted <= 1

    def test_a_gain_beyond_chance_does(self) -> None:
        songs = order_songs(60)
        trained = GRUAggregator(**LEARNS_ORDER, base="none", learning_rate=2e-2).fit(songs)
        assert "all as they start" not in trained.fit_report_
        assert any(p.abs().max() > 0 for n in trained.networks_ for p in n.output.parameters())


class TestSurroundings:
    def test_pytorch_is_left_as_it_was(self) -> None:
        torch.manual_seed(99)
        generator = torch.get_rng_state()
        torch.set_num_threads(2)
        model = GRUAggregator(**QUICK).fit(order_songs(12))
        model.predict(order_songs(3))
        assert torch.equal(torch.get_rng_state(), generator)
        assert torch.get_num_threads() == 2
        assert torch.get_default_dtype() == torch.float32
        assert torch.is_grad_enabled()
        assert not torch.are_deterministic_algorithms_enabled()

    def test_threads_are_given_back_after_an_error(self) -> None:
        torch.set_num_threads(2)
        model = GRUAggregator(**QUICK)
        model.fit(order_songs(12))
        model.networks_ = [None]
        with pytest.raises(AttributeError):
            model.predict(order_songs(3))
        assert torch.get_num_threads() == 2

    def test_in_a_program_that_computes_in_float64(self) -> None:
        songs, queries = order_songs(12), order_songs(3, seed=1)
        averaging = GRUAggregator(**QUICK).fit(songs).history_[0][0]["held_out"]
        torch.set_default_dtype(torch.float64)
        try:
            model = GRUAggregator(**QUICK).fit(songs)
            assert np.isfinite(model.predict_log_proba(queries)).all()
            assert torch.get_default_dtype() == torch.float64
        finally:
            torch.set_default_dtype(torch.float32)
        assert model.history_[0][0]["held_out"] == pytest.approx(averaging, rel=1e-5)
        for network in model.networks_:
            assert {p.dtype for p in network.parameters()} == {torch.float32}

    @pytest.mark.parametrize("settings", [{}, {"n_layers": 2, "dropout": 0.5}], ids=str)
    def test_networks_side_by_side_are_those_one_after_the_other(
        self, settings: dict[str, Any]
    ) -> None:
        """Also with the dropout between layers, whose chance is PyTorch's global one."""
        songs, queries = order_songs(24), order_songs(4, seed=1)
        found = []
        for n_jobs in (1, 3, 3, None, -1):
            model = GRUAggregator(**QUICK | settings | {"n_folds": 3}, base="none", n_jobs=n_jobs)
            torch.manual_seed(len(found))
            generator = torch.get_rng_state()
            found.append(model.fit(songs).decision_function(queries))
            assert torch.equal(torch.get_rng_state(), generator)
        for other in found[1:]:
            assert_array_equal(other, found[0])

    def test_networks_can_be_asked_by_hand(self) -> None:
        """They are in evaluation, so that dropout does not answer."""
        model = GRUAggregator(**QUICK).fit(order_songs(12))
        assert not any(network.training for network in model.networks_)


class TestDevice:
    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
    @pytest.mark.parametrize("device", ["cuda", "cuda:1"])
    def test_no_gpu(self, device: str) -> None:
        with pytest.raises(ParameterError, match="this machine has no CUDA device") as info:
            GRUAggregator(device=device).fit(order_songs(6))
        assert f"device={device!r}" in str(info.value)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
    def test_what_a_gpu_has_learnt_is_answered_without_one(self, tmp_path: Path) -> None:
        songs = order_songs(12)
        model = GRUAggregator(**QUICK).fit(songs)
        model.device = "cuda"  # as the parameters of a model from another machine say
        model.save(tmp_path / "model.safetensors")
        loaded = seqagg.load(tmp_path / "model.safetensors")
        assert loaded.device == "cuda"
        assert_array_equal(loaded.predict_proba(songs), model.predict_proba(songs))

    def test_exactness_is_put_back_by_the_last_of_several_threads(self) -> None:
        rnn: Any = torch.backends.cudnn.rnn
        barrier = threading.Barrier(3)

        def compute(order: int) -> None:
            with exact_float32(torch.device("cuda")):
                barrier.wait()
                time.sleep(0.01 * order)
                assert rnn.fp32_precision == "ieee"

        before = rnn.fp32_precision
        assert before != "ieee"
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(compute, range(3)))
        assert rnn.fp32_precision == before

    def test_auto(self) -> None:
        songs, queries = order_songs(12), order_songs(3, seed=1)
        found = GRUAggregator(**QUICK, device="auto").fit(songs).predict_proba(queries)
        expected = GRUAggregator(**QUICK).fit(songs).predict_proba(queries)
        assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


class TestFiles:
    @pytest.mark.parametrize(
        "settings",
        [
            {"bidirectional": False},
            {"n_layers": 2, "dropout": 0.0},
            {"base": "none"},
            {"n_folds": 1},
        ],
        ids=str,
    )
    def test_saved_and_loaded(self, settings: dict[str, Any], tmp_path: Path) -> None:
        queries = order_songs(6, seed=1)
        model = GRUAggregator(**QUICK | settings).fit(order_songs(24))
        model.save(tmp_path / "gru.safetensors")
        loaded = load(tmp_path / "gru.safetensors")
        assert_array_equal(loaded.predict_log_proba(queries), model.predict_log_proba(queries))
        assert loaded.get_params() == model.get_params()
        assert len(loaded.networks_) == len(model.networks_)
        assert str(loaded.history_) == str(model.history_)  # NaN is not equal to itself
        assert loaded.fit_report_ == model.fit_report_


class TestParameters:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("base", "max"),
            ("hidden_size", 0),
            ("n_layers", 1.5),
            ("epochs", 0),
            ("patience", 0),
            ("batch_size", 0),
            ("n_folds", 0),
            ("n_jobs", 0),
            ("dropout", -0.1),
            ("dropout", 1.0),
            ("noise", -0.1),
            ("min_crop", 0.0),
            ("min_crop", 1.1),
            ("min_crop", float("nan")),
            ("learning_rate", 0.0),
            ("weight_decay", -1.0),
            ("max_gradient", 0.0),
            ("device", "tpu"),
            ("on_empty", "skip"),
        ],
    )
    def test_out_of_range(self, name: str, value: Any) -> None:
        with pytest.raises(ParameterError, match=f"{name}={value!r}"):
            GRUAggregator(**{name: value}).fit(order_songs(6))
