"""What methods that train a PyTorch network share: batches, training, folds, files.

Conventions
-----------
Padded batches have shape (n_songs, longest, n_columns), frames in time order, padding at the end.
Networks run in float32, in the canonical order of columns and classes, and map padded frames and
lengths to class scores of shape (n_songs, n_classes).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from seqagg.aggregators.base import Aggregator, Array, Floats, Ints, from_text_array, text_array
from seqagg.aggregators.training import Training
from seqagg.calibration import calibrated_losses
from seqagg.checkpoints import Stage, current_stage
from seqagg.errors import ModelFileError, ParameterError
from seqagg.folds import Fold, grouped_folds
from seqagg.progress import steps
from seqagg.songs import Songs
from seqagg.threads import check_n_jobs, one_thread_each, side_by_side

_EPOCHS = 30
_FEWEST_STEPS = 600
_MOST_EPOCHS = 120
"""Where `epochs` is "auto": passes, and more for songs too few to make as many steps."""

_SCORED_SONGS = 128
"""Songs per batch outside training: the states of more do not stay in the cache."""

_HEARD_FRAMES = 2**13
"""Frames that streams hear at a time, if that makes more songs: most bring a single one."""


_PADDED_FRAMES = 1 << 17
"""Frames per batch, padding included: more would not be faster, and take memory."""

Padded = tuple[Ints, Tensor, Tensor]
"""Songs, their frames of shape (n_songs, longest, n_columns), and their lengths."""

_FARTHEST = 1e30
"""Values beyond this count as this, so that float32 holds the sum over a song's frames."""


class Batches:
    """Songs as padded batches of similar length."""

    def __init__(self, songs: Songs, device: torch.device) -> None:
        values = songs.values
        if values.size and not -_FARTHEST <= values.min() <= values.max() <= _FARTHEST:
            values = values.clip(-_FARTHEST, _FARTHEST)
        self.values = torch.as_tensor(values, device=device)
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
    ) -> Iterator[list[Padded]]:
        """Every song once, as a random contiguous crop, in random batches of similar length.

        A batch comes in parts, one unless its padding would be too much.
        """
        whole = self.lengths[songs]
        share = rng.uniform(min_crop, 1.0, len(songs))
        lengths = np.maximum(1, np.rint(whole * share)).astype(np.int64)
        first = self.first[songs] + (rng.random(len(songs)) * (whole - lengths + 1)).astype(int)
        # A little noise on the length keeps the same songs from meeting in every epoch.
        order = np.argsort(lengths * rng.uniform(0.9, 1.1, len(songs)), kind="stable")
        batches = np.array_split(order, max(1, math.ceil(len(order) / batch_size)))
        for i in rng.permutation(len(batches)):
            chosen = batches[i]
            if len(chosen) * lengths[chosen].max() > _PADDED_FRAMES:
                chosen = chosen[np.argsort(lengths[chosen], kind="stable")]
            parts = _parts(chosen, lengths, batch_size)
            yield [(songs[part], *self.padded(first[part], lengths[part])) for part in parts]

    def sorted(self, songs: Ints, batch_size: int) -> Iterator[Padded]:
        """Every song once and whole, by length; positions within `songs` come with them."""
        order = np.argsort(self.lengths[songs], kind="stable")
        for chosen in _parts(order, self.lengths[songs], batch_size):
            index = songs[chosen]
            yield (chosen, *self.padded(self.first[index], self.lengths[index]))


def _parts(order: Ints, lengths: Ints, most: int) -> Iterator[Ints]:
    """Cut songs, which are in the order of their lengths, where they are too many or too long."""
    while len(order):
        first = order[:most]
        fit = np.arange(1, len(first) + 1) * lengths[first] <= _PADDED_FRAMES
        n = max(1, int(fit.sum()))
        yield order[:n]
        order = order[n:]


def heard(songs: Songs, device: torch.device) -> Iterator[tuple[Ints, Tensor, Tensor]]:
    """Positions, padded frames and lengths of what streams hear, batch by batch."""
    size = max(_SCORED_SONGS, _HEARD_FRAMES // int(songs.lengths.max()))
    return Batches(songs, device).sorted(np.arange(len(songs)), size)


def mean_probability(frames: Tensor, inside: Tensor, count: Tensor) -> Tensor:
    """Each column's mean probability, shape (n_songs, n_columns).

    Parameters
    ----------
    frames : Tensor of shape (n_songs, longest, n_columns)
        Log-odds.
    inside : Tensor of bool, shape (n_songs, longest, 1)
    count : Tensor of shape (n_songs, 1)
        Frames of each song.
    """
    return torch.as_tensor((torch.sigmoid(frames) * inside).sum(dim=1) / count)


def network_scores(network: nn.Module, batches: Batches, songs: Ints, n_classes: int) -> Floats:
    """Scores of whole songs, shape (n_songs, n_classes), without dropout."""
    network.eval()
    out = np.empty((len(songs), n_classes))
    with torch.inference_mode():
        for place, frames, lengths in batches.sorted(songs, _SCORED_SONGS):
            out[place] = network(frames, lengths).double().cpu().numpy()
    return out


def as_target(y: Ints) -> Tensor:
    """Class indices, or the floats that a binary cross-entropy wants of an indicator."""
    return torch.as_tensor(y if y.ndim == 1 else y.astype(np.float32))


def song_loss(scores: Tensor, target: Tensor) -> Tensor:
    """Mean loss of songs, in nats, as `seqagg.calibration.song_losses` has it.

    Parameters
    ----------
    scores : Tensor of shape (n_songs, n_classes)
    target : Tensor of shape (n_songs,) or (n_songs, n_classes)
        From `as_target`.
    """
    if target.ndim == 1:
        return nn.functional.cross_entropy(scores, target)
    entropy = nn.functional.binary_cross_entropy_with_logits
    return entropy(scores, target.to(scores.dtype), reduction="sum") / len(target)


class Dropout(nn.Module):
    """Dropout whose chance is its own, so that networks can be trained in threads."""

    generator: torch.Generator | None = None

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Leave out a share of the values while training, and make up for it in the others."""
        if not self.training or self.share == 0:
            return x
        kept = torch.rand(x.shape, generator=self.generator, device=x.device) >= self.share
        return torch.as_tensor(x * kept / (1 - self.share))


class Noise(nn.Module):
    """Gaussian noise while training, whose chance is its own."""

    generator: torch.Generator | None = None

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation

    def forward(self, x: Tensor) -> Tensor:
        """Blur the values while training."""
        if not self.training or self.deviation == 0:
            return x
        noise = torch.randn(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)
        return torch.as_tensor(x + self.deviation * noise)


def set_generator(network: nn.Module, generator: torch.Generator | None) -> None:
    """Give all dropout and noise of a network its source of chance."""
    for module in network.modules():
        if isinstance(module, Dropout | Noise):
            module.generator = generator


class NetworkAggregator(Aggregator):
    """An aggregator that averages the scores of networks, one per grouped fold.

    Each network is trained on the songs outside its fold and stopped on the songs inside. The
    untrained network is the first that early stopping considers. A subclass has the parameters
    named here, and `_new_network`.
    """

    networks_: list[Any]
    history_: list[list[dict[str, float]]]
    fit_report_: str

    min_crop: float
    epochs: int | Literal["auto"]
    patience: int | Literal["auto"]
    batch_size: int
    learning_rate: float
    weight_decay: float
    max_gradient: float
    n_folds: int
    n_jobs: int | None
    device: str
    random_state: int

    @abstractmethod
    def _new_network(self, songs: Songs, y: Ints) -> nn.Module:
        """Network to train on these songs; chance comes from PyTorch's own generator."""

    @abstractmethod
    def _blank_network(self) -> nn.Module:
        """Network to put saved numbers into, once the shared attributes are there."""

    def _check_parameters(self) -> None:
        super()._check_parameters()
        for name in ("epochs", "patience", "batch_size", "n_folds"):
            if name not in ("epochs", "patience") or getattr(self, name) != "auto":
                check_count(name, getattr(self, name))
        check_n_jobs(self.n_jobs)
        check_range("min_crop", self.min_crop, 0.01, 1.0)
        check_range("learning_rate", self.learning_rate, 1e-8, 10.0)
        check_range("weight_decay", self.weight_decay, 0.0, 10.0)
        check_range("max_gradient", self.max_gradient, 1e-8, math.inf)
        if self.device not in ("cpu", "auto") and not self.device.startswith("cuda"):
            raise ParameterError(f"device={self.device!r} is none of cpu, cuda, auto")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ParameterError(f"device={self.device!r}: this machine has no CUDA device")

    def _fit(self, songs: Songs, y: Ints, groups: Ints) -> Floats | None:
        batches = Batches(songs, self._device())
        folds = grouped_folds(y, groups, self.n_folds if self.n_folds > 1 else 5, self.random_state)
        folds = folds[: self.n_folds] or [(np.arange(len(y)), np.arange(0))]
        title = type(self).__name__.removesuffix("Aggregator")
        with steps(title, sum(self._n_epochs(len(learn)) for learn, _ in folds)) as step:
            # One after the other: all chance of a new network is PyTorch's global one.
            networks = [self._seeded_network(songs, y, fold, i) for i, fold in enumerate(folds)]
            alone = not self._has_own_chance()
            train: Any = self._train_alone if alone else self._train
            stage = current_stage()  # here: the threads of the networks know of none
            tasks = [
                partial(train, network.to(batches.device), batches, y, fold, i, step, stage)
                for i, (network, fold) in enumerate(zip(networks, folds, strict=True))
            ]
            self.history_ = side_by_side(tasks, 1 if alone else self.n_jobs)
        self.networks_ = networks
        self.fit_report_ = self._report()
        held_out = np.zeros((len(y), len(self.classes_)))
        tried = np.zeros(len(y), dtype=bool)
        for network, (_, held) in zip(networks, folds, strict=True):
            held_out[held] = self._network_scores(network, batches, held)
            tried[held] = True
        if not tried.all():
            held_out[~tried] = self._mean_scores(batches, np.flatnonzero(~tried))
        return held_out

    def _seeded_network(self, songs: Songs, y: Ints, fold: Fold, number: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed(number))
            return self._new_network(songs[fold[0]], y[fold[0]]).float()

    def _seed(self, number: int) -> int:
        return int(np.random.default_rng([self.random_state, number]).integers(2**31))

    def _has_own_chance(self) -> bool:
        """Whether all dropout of the networks is `Dropout`, none PyTorch's with its global one."""
        return True

    def _train_alone(self, network: nn.Module, batches: Batches, y: Ints, *rest: Any) -> Any:
        """Train with PyTorch's global generator seeded, and put back as it was."""
        devices = [batches.device] if batches.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self._seed(rest[1]))
            return self._train(network, batches, y, *rest)

    def _train(
        self,
        network: nn.Module,
        batches: Batches,
        y: Ints,
        fold: Fold,
        number: int,
        step: Any,
        stage: Stage,
        go_on: Callable[[], None],
    ) -> list[dict[str, float]]:
        """Train in place; leave the network as it was in its best epoch."""
        learn, held = fold
        n_epochs = self._n_epochs(len(learn))
        patience = n_epochs // 2 if self.patience == "auto" else self.patience
        target = as_target(y).to(batches.device)
        before = {"epoch": 0, "crops": math.nan}
        history = [before | {"held_out": self._loss(network, batches, held, y)}]
        training = self._new_training(network, batches, len(learn), number, history)
        name = f"network {number}"
        training.take_up(stage, name)
        for _ in training.history[1:]:
            step("")
        set_generator(network, training.generator)
        for epoch in range(len(training.history), n_epochs + 1):
            if epoch - 1 - training.best_epoch >= patience:
                break
            crops = self._train_epoch(training, batches, learn, target, go_on)
            held_out = self._loss(network, batches, held, y)
            training.note({"epoch": epoch, "crops": crops, "held_out": held_out})
            training.keep(stage, name)
            step(f"held-out loss {held_out:.3f}")
        network.load_state_dict(training.best)
        network.eval()
        set_generator(network, None)
        return training.history

    def _new_training(
        self,
        network: nn.Module,
        batches: Batches,
        n_songs: int,
        number: int,
        history: list[dict[str, float]],
    ) -> Training:
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            self.learning_rate,
            total_steps=self._n_epochs(n_songs) * self._n_batches(n_songs) + 1,
        )
        rng = np.random.default_rng([self.random_state, number, 1])
        generator = torch.Generator(batches.device).manual_seed(self._seed(number))
        alone = not self._has_own_chance()
        return Training(network, optimizer, schedule, rng, generator, alone, history)

    def _train_epoch(
        self,
        training: Training,
        batches: Batches,
        songs: Ints,
        target: Tensor,
        go_on: Callable[[], None],
    ) -> float:
        """Hear every song once; gives the loss on crops, in nats per song."""
        network, optimizer = training.network, training.optimizer
        network.train()
        total = 0.0
        for batch in batches.shuffled(songs, self.batch_size, self.min_crop, training.rng):
            optimizer.zero_grad()
            n_songs = sum(len(index) for index, _, _ in batch)
            for index, frames, lengths in batch:
                go_on()
                loss = song_loss(network(frames, lengths), target[index]) * (len(index) / n_songs)
                loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach()) * n_songs
            nn.utils.clip_grad_norm_(network.parameters(), self.max_gradient)
            optimizer.step()
            training.schedule.step()
        return total / len(songs)

    def _loss(self, network: nn.Module, batches: Batches, songs: Ints, y: Ints) -> float:
        if len(songs) == 0:
            return math.nan
        # Calibrated, as scores will be in the end: songs of a group that the network has never
        # heard make it too sure of itself long before it stops telling them better apart.
        return float(
            calibrated_losses(self._network_scores(network, batches, songs), y[songs]).mean()
        )

    def _n_batches(self, n_songs: int) -> int:
        return max(1, math.ceil(n_songs / self.batch_size))

    def _n_epochs(self, n_songs: int) -> int:
        """Passes over so many songs."""
        if self.epochs != "auto":
            return self.epochs
        enough = math.ceil(_FEWEST_STEPS / self._n_batches(n_songs))
        return min(max(_EPOCHS, enough), _MOST_EPOCHS)

    def _network_scores(self, network: nn.Module, batches: Batches, songs: Ints) -> Floats:
        return network_scores(network, batches, songs, len(self.classes_))

    def _mean_scores(self, batches: Batches, songs: Ints) -> Floats:
        scores = [self._network_scores(network, batches, songs) for network in self.networks_]
        return np.asarray(np.mean(scores, axis=0))

    def _log_scores(self, songs: Songs) -> Floats:
        with one_thread_each():
            return self._mean_scores(Batches(songs, self._device()), np.arange(len(songs)))

    def _device(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    def _state(self) -> dict[str, Array]:
        return {
            f"{number}.{name}": value.cpu().numpy()
            for number, network in enumerate(self.networks_)
            for name, value in network.state_dict().items()
        } | {"history": text_array(self.history_)}

    def _set_state(self, arrays: Mapping[str, Array]) -> None:
        by_number: dict[str, dict[str, Array]] = {}
        self.history_ = _read_history(arrays)
        for name, array in arrays.items():
            if name == "history":
                continue
            number, _, part = name.partition(".")
            by_number.setdefault(number, {})[part] = array
        if not by_number or set(by_number) != {str(i) for i in range(len(by_number))}:
            raise ModelFileError("the networks are not numbered 0, 1, ...")
        if len(self.history_) != len(by_number):
            raise ModelFileError("the history is not that of the networks")
        if getattr(self, "n_layers", 0) > len(arrays):
            raise ModelFileError("there are more layers than arrays")
        with torch.device("meta"):  # no memory for numbers that the file does not have
            blank = [self._blank_network() for _ in by_number]
        self.networks_ = [
            _read_network(by_number[str(i)], network).to(self._device())
            for i, network in enumerate(blank)
        ]
        self.fit_report_ = self._report()

    def _report(self) -> str:
        lines = [f"{len(self.networks_)} networks"]
        for number, history in enumerate(self.history_):
            losses = [row["held_out"] for row in history]
            best = int(np.nanargmin(losses)) if not np.isnan(losses).all() else len(losses) - 1
            kept = "untrained, as it starts" if best == 0 else f"epoch {best}"
            lines.append(
                f"fold {number}: {kept}, held-out loss {losses[0]:.3f} -> {losses[best]:.3f}"
            )
        return "\n".join(lines)


def check_count(name: str, value: Any) -> None:
    """Refuse what is no whole number above 0."""
    if not isinstance(value, int | np.integer) or value < 1:
        raise ParameterError(f"{name}={value!r} is no whole number above 0")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside its range."""
    if not low <= value <= high:
        raise ParameterError(f"{name}={value!r} is not in [{low}, {high}]")


def _read_history(arrays: Mapping[str, Array]) -> list[list[dict[str, float]]]:
    history = from_text_array(arrays["history"])
    keys = {"epoch", "crops", "held_out"}
    if not isinstance(history, list) or not all(
        isinstance(row, dict) and set(row) == keys and all(np.isscalar(v) for v in row.values())
        for rows in history
        for row in rows
    ):
        raise ModelFileError("the history of the training cannot be read")
    return history


def _read_network(arrays: Mapping[str, Array], network: nn.Module) -> nn.Module:
    # Everything is float32: it was trained so.
    wanted = {name: ("float32", *value.shape) for name, value in network.state_dict().items()}
    found = {name: (array.dtype.name, *array.shape) for name, array in arrays.items()}
    if found != wanted:
        odd = sorted(set(found.items()) ^ set(wanted.items()))[0][0]
        raise ModelFileError(f"array {odd} is missing, unknown or of the wrong shape or type")
    for name, array in arrays.items():
        if name.rpartition(".")[2] == "spread" and (array <= 0).any():
            raise ModelFileError(f"array {name} is not positive")
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    network.load_state_dict(tensors, assign=True)
    return network.eval()
