"""How fast does the recurrent network learn and answer?

Contests "gru training" and "gru inference". seqagg pads songs of similar length together and runs
the backward direction over each song's own reversal; the others draw songs at random and pack them
(``pack_padded_sequence``), as tutorials do, once in a plain PyTorch loop and once in skorch's. The
network has the same numbers in all of them, the same pooling, loss, optimizer and number of
updates; chance (dropout, noise, crops) is left out, so that one update on all songs is the same in
all. ``loss`` is that of all songs after training, in nats; batches differ, so it differs.
"""  # noqa: D400

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from experiments.speed.contest import (
    Array,
    Contest,
    Sizes,
    Way,
    no_comparison,
)
from experiments.speed.peers import installed
from seqagg import Songs
from seqagg.aggregators.batches import Batches
from seqagg.aggregators.gru import SongNetwork
from seqagg.aggregators.network import network_scores, song_loss
from seqagg.aggregators.start import center_and_spread, identity_start

N_COLUMNS = 10
LENGTHS = (20, 200)
"""Fewest and most frames of a song."""

SHAPES = ((640, 64),)
QUICK_SHAPES = ((12, 4),)
"""Songs and units of the network."""

BATCH = 64
"""Songs per update, seqagg's default."""

_ANSWERED = 128
"""Songs per batch of inference, as in seqagg."""

_RATE, _DECAY, _NORM = 5e-3, 1e-2, 1.0
"""Learning rate, weight decay, largest norm of a gradient."""


@dataclass(frozen=True)
class Data:
    """Songs of ten classes, and the numbers of their classes."""

    songs: Songs
    y: Tensor

    @property
    def each(self) -> list[Tensor]:
        """Frames of each song."""
        return [torch.from_numpy(np.array(song)) for song in self.songs]


def make_data(n: int) -> Data:
    """Log-odds of songs of random length."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(LENGTHS[0], LENGTHS[1] + 1, n)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    y = np.arange(n) % N_COLUMNS
    values = 2 * rng.standard_normal((offsets[-1], N_COLUMNS), dtype=np.float32)
    values[np.arange(len(values)), np.repeat(y, lengths)] += 0.5
    columns = [f"class {k}" for k in range(N_COLUMNS)]
    return Data(Songs(values, offsets, columns=columns), torch.as_tensor(y))


def make_network(songs: Songs, hidden_size: int, bidirectional: bool) -> SongNetwork:
    """Network of seqagg, without chance; its last layer as if it had learnt something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SongNetwork(
            identity_start(N_COLUMNS),
            *center_and_spread(songs),
            scale=1.0,
            hidden_size=hidden_size,
            n_layers=1,
            bidirectional=bidirectional,
            dropout=0.0,
        )
        nn.init.normal_(network.output.weight, std=0.05)
    return network


class PackedNetwork(nn.Module):
    """The same scores, as PyTorch's documentation would have them computed.

    Parameters
    ----------
    network : SongNetwork
        Whose numbers are copied.
    """

    def __init__(self, network: SongNetwork) -> None:
        super().__init__()
        self.song_network = copy.deepcopy(network)
        first = self.song_network.forwards
        second = self.song_network.backwards
        self.gru = nn.GRU(
            first.input_size, first.hidden_size, batch_first=True, bidirectional=second is not None
        )
        state = {name: value.clone() for name, value in first.state_dict().items()}
        if second is not None:
            state |= {f"{k}_reverse": v.clone() for k, v in second.state_dict().items()}
        self.gru.load_state_dict(state)
        # What the packed one replaces must not be trained.
        del self.song_network.forwards, self.song_network.backwards

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Score padded songs, shape (n_songs, n_classes)."""
        own = self.song_network
        x = ((frames - own.center) / own.spread).clamp(-8.0, 8.0)
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        h, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        outside = torch.arange(h.shape[1], device=h.device) >= lengths[:, None]
        count = lengths[:, None]
        average = frames.masked_fill(outside[:, :, None], 0.0).sum(dim=1) / count
        mean = h.sum(dim=1) / count  # unpacked states are zero in the padding
        highest = h.masked_fill(outside[:, :, None], -torch.inf).amax(dim=1)
        correction = own.output(torch.cat([mean, highest], dim=1))
        return torch.as_tensor(own.scale * (average @ own.weight + own.bias) + correction)


def contests(quick: bool) -> Iterator[Contest]:
    """Training and inference, with one direction and with both."""
    for n, hidden_size in QUICK_SHAPES if quick else SHAPES:
        data = make_data(n)
        for bidirectional in (False, True):
            network = make_network(data.songs, hidden_size, bidirectional)
            yield training(data, network, BATCH)
            yield inference(data, network)


def training(data: Data, network: SongNetwork, batch_size: int) -> Contest:
    """One pass over the songs; all start from the network as it is."""
    trainers = {"seqagg": train, "plain PyTorch": train_packed}
    if installed("skorch"):
        import skorch.callbacks  # noqa: F401  (imports are not to be timed)

        trainers["skorch"] = train_by_skorch

    def way(name: str, trainer: Trainer) -> Way:
        run = lambda: trainer(network, data, batch_size)  # noqa: E731
        return Way(name, run, answer=_nothing, metrics=lambda found: {"loss": loss(found, data)})

    ways = [way(name, trainer) for name, trainer in trainers.items()]
    # The backward pass costs twice the forward pass.
    contest = _contest("gru training", data, network, ways, passes=3)
    return replace(contest, compare=no_comparison)


def inference(data: Data, network: SongNetwork) -> Contest:
    """Scores of all songs."""
    packed = PackedNetwork(network)
    ways = [
        Way("seqagg", lambda: answer(network, data)),
        Way("plain PyTorch", lambda: answer_packed(packed, data)),
    ]
    return _contest("gru inference", data, network, ways, passes=1)


def train(network: SongNetwork, data: Data, batch_size: int) -> nn.Module:
    """Batches of seqagg: songs of similar length."""
    network = copy.deepcopy(network).train()
    optimizer = make_optimizer(network)
    batches = Batches(data.songs, torch.device("cpu"))
    order = np.arange(len(data.songs))
    for [(index, frames, lengths)] in batches.shuffled(order, batch_size, 1.0, _chance()):
        update(network, optimizer, song_loss(network(frames, lengths), data.y[index]))
    return network


def train_packed(network: SongNetwork, data: Data, batch_size: int) -> nn.Module:
    """Random batches, packed."""
    packed = PackedNetwork(network).train()
    optimizer = make_optimizer(packed)
    songs = data.each
    order = _chance().permutation(len(songs))
    for index in np.array_split(order, math.ceil(len(order) / batch_size)):
        frames, lengths = padded([songs[i] for i in index])
        update(packed, optimizer, song_loss(packed(frames, lengths), data.y[index]))
    return packed


def train_by_skorch(network: SongNetwork, data: Data, batch_size: int) -> nn.Module:
    """Random batches, packed, in skorch's loop."""
    from skorch import NeuralNet
    from skorch.callbacks import GradientNormClipping

    def collate(items: list[tuple[Tensor, Tensor]]) -> tuple[dict[str, Tensor], Tensor]:
        frames, lengths = padded([song for song, _ in items])
        return {"frames": frames, "lengths": lengths}, torch.stack([y for _, y in items])

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = NeuralNet(
            PackedNetwork(network),
            nn.CrossEntropyLoss,
            optimizer=torch.optim.AdamW,
            optimizer__weight_decay=_DECAY,
            lr=_RATE,
            max_epochs=1,
            batch_size=batch_size,
            iterator_train__shuffle=True,
            iterator_train__collate_fn=collate,
            train_split=None,
            callbacks=[GradientNormClipping(_NORM)],
            verbose=0,
        )
        net.fit(_Pairs(data), None)
    trained: nn.Module = net.module_
    return trained


class _Pairs(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Songs and their classes, as skorch takes them."""

    def __init__(self, data: Data) -> None:
        self.songs, self.y = data.each, data.y

    def __len__(self) -> int:
        return len(self.songs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.songs[index], self.y[index]


Trainer = Callable[[SongNetwork, Data, int], nn.Module]


def make_optimizer(network: nn.Module) -> torch.optim.Optimizer:
    """Optimizer of all ways."""
    return torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=_DECAY)


def update(network: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(network.parameters(), _NORM)
    optimizer.step()


def padded(songs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Frames of shape (n_songs, longest, n_columns), and lengths."""
    return pad_sequence(songs, batch_first=True), torch.tensor([len(song) for song in songs])


def answer(network: nn.Module, data: Data) -> Array:
    """Scores by seqagg: batches of songs sorted by length."""
    batches = Batches(data.songs, torch.device("cpu"))
    return network_scores(network, batches, np.arange(len(data.songs)), N_COLUMNS)


def answer_packed(network: nn.Module, data: Data) -> Array:
    """Scores of packed batches, songs as they come."""
    songs = data.each
    network.eval()
    with torch.inference_mode():
        parts = [
            network(*padded(songs[begin : begin + _ANSWERED]))
            for begin in range(0, len(songs), _ANSWERED)
        ]
    return np.asarray(torch.cat(parts).double().numpy())


def loss(trained: nn.Module, data: Data) -> float:
    """Loss of all songs, in nats."""
    by = answer_packed if isinstance(trained, PackedNetwork) else answer
    return float(song_loss(torch.as_tensor(by(trained, data)), data.y))


def _contest(name: str, data: Data, network: SongNetwork, ways: list[Way], passes: int) -> Contest:
    directions = 2 if network.backwards is not None else 1
    hidden, n_frames = network.forwards.hidden_size, len(data.songs.values)
    products = 2.0 * 3 * hidden * (N_COLUMNS + hidden) * directions * n_frames * passes
    return Contest(
        name,
        "both directions" if directions == 2 else "one direction",
        Sizes(len(data.songs), round(n_frames / len(data.songs)), N_COLUMNS),
        ways,
        n_products=products,
    )


def _chance() -> np.random.Generator:
    return np.random.default_rng(0)


def _nothing(_: Any) -> Array:
    return np.empty(0)
