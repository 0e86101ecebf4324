"""A recurrent network over frame log-odds that starts from averaging.

Conventions
-----------
Padded batches have shape (n_songs, longest, n_columns), frames in time order, padding at the end.
Networks run in float32, in the canonical order of columns and classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from seqagg.aggregators.base import Aggregator, Array, Floats, Ints, OnEmpty
from seqagg.aggregators.start import AverageStart, fit_start, identity_start
from seqagg.calibration import fit_inverse_temperature
from seqagg.errors import ModelFileError, ParameterError
from seqagg.folds import Fold, grouped_folds
from seqagg.progress import steps
from seqagg.songs import Songs

_CLIP = 8.0
"""Standardized log-odds beyond this say no more than this."""


class SongNetwork(nn.Module):
    """Class scores of songs: ``scale * average + correction``.

    The average is linear in the mean log-odds; the correction comes from a GRU over the frames,
    pooled over time by mean and maximum. Its last layer starts at zero, so that the untrained
    network *is* averaging.

    Parameters
    ----------
    start : AverageStart
    center, spread : ndarray of shape (n_columns,)
        What standardizes the columns.
    scale : float
        Inverse temperature of the average at the start; 0 leaves the average out.
    hidden_size, n_layers : int
    bidirectional : bool
    dropout : float
    """

    center: Tensor
    spread: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        start: AverageStart,
        center: Floats,
        spread: Floats,
        scale: float,
        *,
        hidden_size: int,
        n_layers: int,
        bidirectional: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        n_columns, n_classes = start.weight.shape
        for name, value in (
            ("center", center),
            ("spread", spread),
            ("weight", start.weight),
            ("bias", start.bias),
        ):
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32))
        self.scale = nn.Parameter(torch.tensor(float(scale)), requires_grad=scale != 0)
        inner = dropout if n_layers > 1 else 0.0

        def gru() -> nn.GRU:
            return nn.GRU(n_columns, hidden_size, n_layers, batch_first=True, dropout=inner)

        self.forwards = gru()
        self.backwards = gru() if bidirectional else None
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(2 * hidden_size * (2 if bidirectional else 1), n_classes)
        if scale != 0:
            nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Score padded songs.

        Parameters
        ----------
        frames : Tensor of shape (n_songs, longest, n_columns)
            Log-odds; what stands in the padding does not matter as long as it is finite.
        lengths : Tensor of int, shape (n_songs,)

        Returns
        -------
        Tensor of shape (n_songs, n_classes)
        """
        steps_ = torch.arange(frames.shape[1], device=frames.device)
        inside = (steps_ < lengths[:, None])[:, :, None]  # (n_songs, longest, 1)
        count = lengths[:, None].to(frames.dtype)
        average = (frames * inside).sum(dim=1) / count  # (n_songs, n_columns)
        x = ((frames - self.center) / self.spread).clamp(-_CLIP, _CLIP)
        states = [self.forwards(x)[0]]
        if self.backwards is not None:
            # Each song's own frames backwards: a padded bidirectional GRU would start in the
            # padding. Pooling does not ask for the order, so it is not turned round again.
            back = (lengths[:, None] - 1 - steps_).clamp(min=0)  # (n_songs, longest)
            reverse = x.gather(1, back[:, :, None].expand_as(x))
            states.append(self.backwards(reverse)[0])
        h = torch.cat(states, dim=2)  # (n_songs, longest, directions * hidden)
        mean = (h * inside).sum(dim=1) / count
        highest = h.masked_fill(~inside, -1.0).amax(dim=1)  # a GRU's states are above -1
        correction = self.output(self.dropout(torch.cat([mean, highest], dim=1)))
        linear = average @ self.weight + self.bias
        return torch.as_tensor(self.scale * linear + correction)


class _Batches:
    """Songs as padded batches of similar length."""

    def __init__(self, songs: Songs, device: torch.device) -> None:
        self.values = torch.as_tensor(songs.values, device=device)
        self.first = songs.offsets[:-1]
        self.lengths = songs.lengths
        self.device = device

    def padded(self, first: Ints, lengths: Ints) -> tuple[Tensor, Tensor]:
        """Frames of shape (n_songs, longest, n_columns), and lengths."""
        rows = first[:, None] + np.arange(lengths.max())
        # Padding repeats a frame that exists; the network does not look at it.
        rows = np.minimum(rows, (first + lengths - 1)[:, None])
        index = torch.as_tensor(rows, device=self.device)
        return self.values[index], torch.as_tensor(lengths, device=self.device)

    def shuffled(
        self, songs: Ints, batch_size: int, min_crop: float, rng: np.random.Generator
    ) -> Iterator[tuple[Ints, Tensor, Tensor]]:
        """Every song once, as a random contiguous crop, in random batches of similar length."""
        whole = self.lengths[songs]
        share = rng.uniform(min_crop, 1.0, len(songs))
        lengths = np.maximum(1, np.rint(whole * share)).astype(np.int64)
        first = self.first[songs] + (rng.random(len(songs)) * (whole - lengths + 1)).astype(int)
        # A little noise on the length keeps the same songs from meeting in every epoch.
        order = np.argsort(lengths * rng.uniform(0.9, 1.1, len(songs)), kind="stable")
        batches = np.array_split(order, max(1, math.ceil(len(order) / batch_size)))
        for i in rng.permutation(len(batches)):
            chosen = batches[i]
            yield (songs[chosen], *self.padded(first[chosen], lengths[chosen]))

    def sorted(self, songs: Ints, batch_size: int) -> Iterator[tuple[Ints, Tensor, Tensor]]:
        """Every song once and whole, by length; positions within `songs` come with them."""
        order = np.argsort(self.lengths[songs], kind="stable")
        for begin in range(0, len(order), batch_size):
            chosen = order[begin : begin + batch_size]
            index = songs[chosen]
            yield (chosen, *self.padded(self.first[index], self.lengths[index]))


def network_scores(network: SongNetwork, batches: _Batches, songs: Ints) -> Floats:
    """Scores of whole songs, shape (n_songs, n_classes), without dropout."""
    network.eval()
    out = np.empty((len(songs), len(network.output.bias)))
    with torch.inference_mode():
        for place, frames, lengths in batches.sorted(songs, 256):
            out[place] = network(frames, lengths).double().cpu().numpy()
    return out


class GRUAggregator(Aggregator):
    """Correct the mean log-odds by what a GRU hears in the order of the frames.

    The score of a song is ``scale * mean log-odds + correction``. The correction's last layer
    starts at zero and epoch 0 counts in early stopping, so where order says nothing the method
    stays with averaging. One network is trained per grouped fold, stopped on the songs of that
    fold, and their scores are averaged. While training, a song is heard as a random contiguous
    crop.

    Parameters
    ----------
    base : {"mean", "none"}
        Start from the mean log-odds, or from nothing (a plain GRU).
    hidden_size : int
        Units of the GRU, per direction.
    n_layers : int
        GRU layers.
    bidirectional : bool
        Whether a second GRU hears the song backwards.
    dropout : float
        Share of pooled states left out while training.
    min_crop : float
        Shortest crop, as a share of the song; 1 trains on whole songs.
    epochs : int
        Most passes over the training songs.
    patience : int
        Passes without a gain on the held-out songs before training stops.
    batch_size : int
        Songs per step, of similar length.
    learning_rate : float
        Peak of the one-cycle schedule.
    weight_decay : float
        Of AdamW.
    max_gradient : float
        Norm that gradients are clipped to.
    n_folds : int
        Networks, each stopped on another fold. With 1, the first of five folds is held out.
    device : {"cpu", "cuda", "auto"}
        Where to compute.
    random_state : int
        Seed; the same seed gives the same bits on the same machine.
    on_empty : {"error", "prior"}
        What a song without a single frame gets: an error that names it, or the class prior.

    Attributes
    ----------
    networks_ : list of torch.nn.Module
        The fitted networks, one per fold.
    history_ : list of list of dict
        For each network and epoch: loss on crops, loss on the held-out songs (nats per song).
    fit_report_ : str
        What was fitted, in words.
    """

    def __init__(
        self,
        *,
        base: Literal["mean", "none"] = "mean",
        hidden_size: int = 64,
        n_layers: int = 1,
        bidirectional: bool = True,
        dropout: float = 0.4,
        min_crop: float = 0.6,
        epochs: int = 60,
        patience: int = 15,
        batch_size: int = 32,
        learning_rate: float = 5e-3,
        weight_decay: float = 1e-2,
        max_gradient: float = 1.0,
        n_folds: int = 3,
        device: str = "cpu",
        random_state: int = 0,
        on_empty: OnEmpty = "error",
    ) -> None:
        self.base = base
        self.hidden_size = hidden_size
        self.n_layers = n_layers
        self.bidirectional = bidirectional
        self.dropout = dropout
        self.min_crop = min_crop
        self.epochs = epochs
        self.patience = patience
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.max_gradient = max_gradient
        self.n_folds = n_folds
        self.device = device
        self.random_state = random_state
        self.on_empty = on_empty

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.base not in ("mean", "none"):
            raise ParameterError(f"base={self.base!r} is neither 'mean' nor 'none'")
        for name in ("hidden_size", "n_layers", "epochs", "patience", "batch_size", "n_folds"):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < 1:
                raise ParameterError(f"{name}={value!r} is no whole number above 0")
        for name, low, high in (
            ("dropout", 0.0, 0.95),
            ("min_crop", 0.01, 1.0),
            ("learning_rate", 1e-8, 10.0),
            ("weight_decay", 0.0, 10.0),
            ("max_gradient", 1e-8, math.inf),
        ):
            if not low <= getattr(self, name) <= high:
                raise ParameterError(f"{name}={getattr(self, name)!r} is not in [{low}, {high}]")
        if self.device not in ("cpu", "auto") and not self.device.startswith("cuda"):
            raise ParameterError(f"device={self.device!r} is none of cpu, cuda, auto")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ParameterError(f"device={self.device!r}: this machine has no CUDA device")

    def _fit(self, songs: Songs, y: Ints, groups: Ints) -> Floats | None:
        n_classes = len(self.classes_)
        batches = _Batches(songs, self._device())
        folds = grouped_folds(y, groups, self.n_folds if self.n_folds > 1 else 5, self.random_state)
        folds = folds[: self.n_folds] or [(np.arange(len(y)), np.arange(0))]
        self.networks_: list[SongNetwork] = []
        self.history_: list[list[dict[str, float]]] = []
        held_out = np.zeros((len(y), n_classes))
        tried = np.zeros(len(y), dtype=bool)
        with steps("gru", len(folds) * self.epochs) as step:
            for number, fold in enumerate(folds):
                network, history = self._fit_network(songs, batches, y, fold, number, step)
                self.networks_.append(network)
                self.history_.append(history)
                held_out[fold[1]] = network_scores(network, batches, fold[1])
                tried[fold[1]] = True
        self.fit_report_ = self._report()
        if not tried.all():
            held_out[~tried] = np.mean(
                [network_scores(n, batches, np.flatnonzero(~tried)) for n in self.networks_], axis=0
            )
        return held_out

    def _fit_network(
        self, songs: Songs, batches: _Batches, y: Ints, fold: Fold, number: int, step: Any
    ) -> tuple[SongNetwork, list[dict[str, float]]]:
        rng = np.random.default_rng([self.random_state, number])
        devices = [batches.device] if batches.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(int(rng.integers(2**31)))
            network = self._new_network(songs, y, fold[0]).to(batches.device)
            return network, self._train(network, batches, y, fold, rng, step)

    def _new_network(self, songs: Songs, y: Ints, learn: Ints) -> SongNetwork:
        known = songs[learn]
        n_classes = len(self.classes_)
        if self._columns_are_classes:
            start = identity_start(n_classes)
        else:
            start = fit_start(known, y[learn], n_classes)
        scale = 0.0
        if self.base == "mean":
            scale = fit_inverse_temperature(start.scores(known), y[learn])
        values = known.values.astype(np.float64)
        return SongNetwork(
            start,
            values.mean(axis=0),
            np.maximum(values.std(axis=0), 1e-3),
            scale,
            **self._architecture(),
        )

    def _architecture(self) -> dict[str, Any]:
        names = ("hidden_size", "n_layers", "bidirectional", "dropout")
        return {name: getattr(self, name) for name in names}

    def _train(
        self,
        network: SongNetwork,
        batches: _Batches,
        y: Ints,
        fold: Fold,
        rng: np.random.Generator,
        step: Any,
    ) -> list[dict[str, float]]:
        """Train in place; leave the network as it was in its best epoch."""
        learn, held = fold
        target = torch.as_tensor(y, device=batches.device)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            self.learning_rate,
            total_steps=self.epochs * max(1, math.ceil(len(learn) / self.batch_size)) + 1,
        )
        history = [
            {"epoch": 0, "crops": math.nan, "held_out": self._loss(network, batches, held, y)}
        ]
        best = {name: value.clone() for name, value in network.state_dict().items()}
        best_epoch = 0
        for epoch in range(1, self.epochs + 1):
            network.train()
            total = 0.0
            for index, frames, lengths in batches.shuffled(
                learn, self.batch_size, self.min_crop, rng
            ):
                loss = nn.functional.cross_entropy(network(frames, lengths), target[index])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(network.parameters(), self.max_gradient)
                optimizer.step()
                schedule.step()
                total += float(loss.detach()) * len(index)
            held_out = self._loss(network, batches, held, y)
            history.append({"epoch": epoch, "crops": total / len(learn), "held_out": held_out})
            step(f"held-out loss {held_out:.3f}")
            # Without songs to hold out, the last epoch is as good as any.
            if math.isnan(held_out) or held_out < history[best_epoch]["held_out"]:
                best_epoch = epoch
                best = {name: value.clone() for name, value in network.state_dict().items()}
            if epoch - best_epoch >= self.patience:
                break
        network.load_state_dict(best)
        network.eval()
        return history

    def _loss(self, network: SongNetwork, batches: _Batches, songs: Ints, y: Ints) -> float:
        if len(songs) == 0:
            return math.nan
        scores = torch.as_tensor(network_scores(network, batches, songs))
        return float(nn.functional.cross_entropy(scores, torch.as_tensor(y[songs])))

    def _device(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    def _log_scores(self, songs: Songs) -> Floats:
        batches = _Batches(songs, self._device())
        everyone = np.arange(len(songs))
        return np.asarray(
            np.mean([network_scores(n, batches, everyone) for n in self.networks_], axis=0)
        )

    def _state(self) -> dict[str, Array]:
        return {
            f"{number}.{name}": value.cpu().numpy()
            for number, network in enumerate(self.networks_)
            for name, value in network.state_dict().items()
        }

    def _set_state(self, arrays: Mapping[str, Array]) -> None:
        numbers = {name.partition(".")[0] for name in arrays}
        if not numbers or numbers != {str(i) for i in range(len(numbers))}:
            raise ModelFileError("the networks are not numbered 0, 1, ...")
        device = self._device()
        self.networks_ = [
            _read_network(
                {
                    name.partition(".")[2]: array
                    for name, array in arrays.items()
                    if name.partition(".")[0] == str(number)
                },
                self._blank_network(),
            ).to(device)
            for number in range(len(numbers))
        ]
        self.history_ = []
        self.fit_report_ = f"{len(self.networks_)} networks of {self.hidden_size} units, loaded"

    def _blank_network(self) -> SongNetwork:
        n_columns = self.n_features_in_
        start = AverageStart(
            np.zeros((n_columns, len(self.classes_))), np.zeros(len(self.classes_))
        )
        zeros = np.zeros(n_columns)
        with torch.random.fork_rng(devices=[]):
            return SongNetwork(start, zeros, zeros, 1.0, **self._architecture())

    def _report(self) -> str:
        lines = [f"{len(self.networks_)} networks of {self.hidden_size} units"]
        for number, history in enumerate(self.history_):
            losses = [row["held_out"] for row in history]
            best = int(np.nanargmin(losses)) if not np.isnan(losses).all() else len(losses) - 1
            kept = "stayed with averaging" if best == 0 and self.base == "mean" else f"epoch {best}"
            lines.append(
                f"fold {number}: {kept}, held-out loss {losses[0]:.3f} -> {losses[best]:.3f}"
            )
        return "\n".join(lines)


def _read_network(arrays: Mapping[str, Array], network: SongNetwork) -> SongNetwork:
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: array.shape for name, array in arrays.items()}
    if found != wanted:
        odd = sorted(set(found.items()) ^ set(wanted.items()))[0][0]
        raise ModelFileError(f"array {odd} is missing, unknown or of the wrong shape")
    if (arrays["spread"] <= 0).any():
        raise ModelFileError("array spread is not positive")
    network.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    return network.eval()
