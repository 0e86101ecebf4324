"""What methods that train a PyTorch network share: batches, training, folds, files.

Conventions
-----------
Padded batches have shape (n_songs, longest, n_columns), frames in time order, padding at the end.
Networks run in float32, in the canonical order of columns and classes, and map padded frames and
lengths to class scores of shape (n_songs, n_classes).
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from seqagg.aggregators.base import Aggregator, Array, Floats, Ints
from seqagg.aggregators.batches import Batches
from seqagg.aggregators.gain import judged, training_helps
from seqagg.aggregators.lessons import Lesson, Turn, make_turns
from seqagg.aggregators.parameters import check_count, check_range, check_seed
from seqagg.aggregators.state import from_text_array, text_array
from seqagg.aggregators.team import (
    ALONE,
    Chance,
    Team,
    borrowed_chance,
    current_team,
    set_chance,
)
from seqagg.aggregators.training import (
    LARGEST,
    History,
    Record,
    Scores,
    Training,
    could_be,
    is_history,
    is_record,
    record_arrays,
    take_record,
)
from seqagg.aggregators.votes import Votes
from seqagg.calibration import calibrated_losses
from seqagg.certainty import AS_IT_IS, read_certainty
from seqagg.checkpoints import Stage, current_stage
from seqagg.engines import engine_in_use
from seqagg.errors import ModelFileError, ParameterError
from seqagg.folds import Fold, grouped_folds
from seqagg.progress import steps
from seqagg.songs import Songs
from seqagg.threads import check_n_jobs, one_thread_each, side_by_side

_EPOCHS = 30
_FEWEST_STEPS = 600
_MOST_EPOCHS = 120
"""Where `epochs` is "auto": passes, and more for songs too few to make as many steps."""

_CERTAINTY = "certainty"
"""Buffer of a network that files leave out where it is `AS_IT_IS`: the first ones have none."""

_FARTHEST = 1e6
"""Log-odds beyond this count as this in a fit, or what it learns would not fit into float32."""


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


def certain(score: Tensor, certainty: Tensor) -> Tensor:
    """Score of shape (n_songs, n_classes), as a `Certainty` of three numbers has it."""
    if certainty[1] == 0:
        return score
    before, own, sure = certainty
    return torch.as_tensor(before * score + own * torch.softmax(sure * score, dim=1))


def network_scores(
    network: nn.Module, batches: Batches, songs: Ints, n_classes: int, team: Team = ALONE
) -> Floats:
    """Scores of whole songs, shape (n_songs, n_classes), without dropout.

    Each process of a team scores some of them, and has the scores of all.
    """
    network.eval()
    mine = team.mine(len(songs))
    out = torch.zeros((len(songs), n_classes), dtype=torch.float64, device=batches.device)
    own = out[mine]
    with torch.inference_mode():
        for place, frames, lengths in batches.sorted(songs[mine]):
            own[place] = network(frames, lengths).double()
    return team.sum(out).cpu().numpy()


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


class NetworkAggregator(Aggregator):
    """An aggregator that averages the scores of networks, one per grouped fold, or several.

    Each network is trained on the songs outside its fold and stopped on the songs inside. The
    untrained network is the first that early stopping considers. A subclass has the parameters
    named here, and `_new_network`. Unless training helps the songs held out, all networks stay as
    they start.
    """

    networks_: list[Any]
    history_: list[History]
    fit_report_: str
    _untrained: bool

    min_crop: float
    epochs: int | Literal["auto"]
    patience: int | Literal["auto"]
    batch_size: int
    learning_rate: float
    weight_decay: float
    max_gradient: float
    n_folds: int
    n_repeats: int
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
        for name in ("epochs", "patience", "batch_size", "n_folds", "n_repeats"):
            if name not in ("epochs", "patience") or getattr(self, name) != "auto":
                check_count(name, getattr(self, name))
        check_seed("random_state", self.random_state)
        check_n_jobs(self.n_jobs)
        check_range("min_crop", self.min_crop, 0.01, 1.0)
        check_range("learning_rate", self.learning_rate, 1e-8, 10.0)
        check_range("weight_decay", self.weight_decay, 0.0, 10.0)
        check_range("max_gradient", self.max_gradient, 1e-8, math.inf)
        if not re.fullmatch(r"cpu|auto|cuda(:\d+)?", str(self.device)):
            raise ParameterError(f"device={self.device!r} is none of cpu, cuda, auto")

    def _fit(self, songs: Songs, y: Ints, groups: Ints) -> Floats | None:
        n_devices = _count_gpus()
        if self.device.startswith("cuda") and _number_of(self.device) >= n_devices:
            there = f"cuda:0 to cuda:{n_devices - 1}" if n_devices else "no CUDA device"
            raise ParameterError(f"device={self.device!r}: this machine has {there}")
        values = songs.values
        if self._takes_log_odds() and not -_FARTHEST <= values.min() <= values.max() <= _FARTHEST:
            songs = songs._with(values=values.clip(-_FARTHEST, _FARTHEST))
        batches, team = Batches(songs, self._device()), current_team()
        rounds = [self._folds(y, groups, number) for number in range(self.n_repeats)]
        folds = list(itertools.chain(*rounds))
        # One after the other: all chance of a new network is PyTorch's global one.
        networks = [self._seeded_network(songs, y, fold, i) for i, fold in enumerate(folds)]
        turns = make_turns(self, songs, groups, folds, team)
        for network in networks:
            network.to(batches.device)
        before = self._ask_unseen(networks, rounds, batches, team)
        start = [copy.deepcopy(network.state_dict()) for network in networks]
        title = type(self).__name__.removesuffix("Aggregator")
        if batches.device.type == "cpu" and not engine_in_use().alone:
            with steps(title, len(folds)) as step:
                records = self._train_elsewhere(networks, songs, y, turns, step)
        else:
            with steps(title, sum(self._n_epochs(turn.n_songs) for turn in turns)) as step:
                records = self._train_here(networks, batches, y, turns, step)
        self.history_ = [record.history for record in records]
        after = self._ask_unseen(networks, rounds, batches, team)
        self._untrained = not training_helps(before, after, records, rounds, y, groups)
        if self._untrained:
            after = before
            for network, state in zip(networks, start, strict=True):
                network.load_state_dict(state)
        self.networks_ = networks
        self.fit_report_ = self._report()
        self._votes, held_out = after, after.mean
        if not after.heard.all():
            rest = np.flatnonzero(~after.heard)
            held_out[rest] = self._mean_scores(batches, rest, team)
        return held_out

    def _folds(self, y: Ints, groups: Ints, number: int) -> list[Fold]:
        """Folds of one of the times that songs are cut into them."""
        n_folds = self.n_folds if self.n_folds > 1 else 5
        seed = self._seed(number, 2) if number > 0 else self.random_state
        folds = grouped_folds(y, groups, n_folds, seed)
        return folds[: self.n_folds] or [(np.arange(len(y)), np.arange(0))]

    def _ask_unseen(
        self, networks: list[nn.Module], rounds: list[list[Fold]], batches: Batches, team: Team
    ) -> Votes:
        """Let every network score the songs that it is not trained on."""
        shape = (len(rounds), len(batches.lengths), len(self.classes_))
        votes = Votes(np.zeros(shape), np.zeros(shape[:2], dtype=bool), len(networks))
        places = [(r, held) for r, folds in enumerate(rounds) for _, held in folds]
        for network, (r, held) in zip(networks, places, strict=True):
            votes.scores[r, held] = self._network_scores(network, batches, held, team)
            votes.given[r, held] = True
        return votes

    def _train_here(
        self, networks: list[nn.Module], batches: Batches, y: Ints, turns: list[Turn], step: Any
    ) -> list[Record]:
        """Train in threads, or as one of a team."""
        stage = current_stage()  # here: the threads of the networks know of none
        tasks = [
            partial(self._train, network, batches, y, turn, step, stage)
            for network, turn in zip(networks, turns, strict=True)
        ]
        in_turn = not self._has_own_chance() or turns[0].team.size > 1
        return side_by_side(tasks, 1 if in_turn else self.n_jobs)

    def _train_elsewhere(
        self, networks: list[nn.Module], songs: Songs, y: Ints, turns: list[Turn], step: Any
    ) -> list[Record]:
        """Train each network as a task of the engine in use."""
        tasks = {f"fold {t.number}": (n, t) for n, t in zip(networks, turns, strict=True)}
        records: dict[int, Record] = {}
        shared = (self, songs, y)
        for name, arrays in current_stage().each(_train_one, shared, tasks, _is_trained):
            network, turn = tasks[name]
            records[turn.number] = take_record(arrays)
            network.load_state_dict({n: torch.tensor(a) for n, a in arrays.items()})
            network.eval()
            step(name)
        return [records[turn.number] for turn in turns]

    def _seeded_network(self, songs: Songs, y: Ints, fold: Fold, number: int) -> nn.Module:
        with borrowed_chance():
            torch.manual_seed(self._seed(number))
            return self._new_network(songs[fold[0]], y[fold[0]]).float()

    def _seed(self, *purpose: int) -> int:
        return int(np.random.default_rng([self.random_state, *purpose]).integers(2**31))

    def _has_own_chance(self) -> bool:
        """Whether all dropout of the networks is `Dropout`, none PyTorch's with its global one."""
        return True

    @contextlib.contextmanager
    def _seeded(self, batches: Batches, turn: Turn) -> Iterator[None]:
        """Seed PyTorch's global generator, if networks draw from it, and put it back as it was."""
        if self._has_own_chance():
            yield
            return
        with borrowed_chance(batches.device, turn.team):
            torch.manual_seed(self._seed(turn.number) + turn.team.rank)
            yield

    def _train(
        self,
        network: nn.Module,
        batches: Batches,
        y: Ints,
        turn: Turn,
        step: Any,
        stage: Stage,
        go_on: Callable[[], None],
    ) -> Record:
        """Train in place; leave the network as it was in its best epoch."""
        with self._seeded(batches, turn):
            n_epochs = self._n_epochs(turn.n_songs)
            patience = n_epochs // 2 if self.patience == "auto" else self.patience
            lesson = own = Lesson(batches, turn.learn, as_target(y).to(batches.device))
            held_out, scores = self._judge(network, batches, y, turn)
            record = Record([{"epoch": 0, "crops": math.nan, "held_out": held_out}], [scores])
            training = self._new_training(network, batches, turn, record)
            name = f"network {turn.number}"
            training.take_up(stage, name)
            for _ in training.record.history[1:]:
                step("")
            chance = Chance(training.generator, turn.team)
            set_chance(network, chance)
            for epoch in range(len(training.record.history), n_epochs + 1):
                if epoch - 1 - training.best_epoch >= patience:
                    break
                if turn.lessons is not None:
                    lesson = self._lesson_of(*turn.lessons(epoch - 1), turn.n_songs) or own
                crops = self._train_epoch(training, lesson, chance, go_on)
                held_out, scores = self._judge(network, batches, y, turn)
                training.note({"epoch": epoch, "crops": crops, "held_out": held_out}, scores)
                training.keep(stage, name)
                step(f"held-out loss {held_out:.3f}")
            network.load_state_dict(training.best)
            network.eval()
            set_chance(network, None)
            return training.record

    def _lesson_of(self, songs: Songs, y: Ints, most: int) -> Lesson | None:
        """Lesson of other songs, if there are any; no more than the schedule has steps for."""
        if len(y) == 0:
            return None
        batches = Batches(songs, self._device())
        return Lesson(batches, np.arange(min(len(y), most)), as_target(y).to(batches.device))

    def _new_training(
        self, network: nn.Module, batches: Batches, turn: Turn, record: Record
    ) -> Training:
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay, fused=True
        )
        n_steps = self._n_epochs(turn.n_songs) * self._n_batches(turn.n_songs)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            self.learning_rate,
            total_steps=n_steps + 1,
        )
        rng = np.random.default_rng([self.random_state, turn.number, 1])
        generator = torch.Generator(batches.device).manual_seed(self._seed(turn.number))
        alone = not self._has_own_chance()
        return Training(network, optimizer, schedule, rng, generator, alone, record)

    def _train_epoch(
        self, training: Training, lesson: Lesson, chance: Chance, go_on: Callable[[], None]
    ) -> float:
        """Hear every song once; gives the loss on crops, in nats per song."""
        network, optimizer, team = training.network, training.optimizer, chance.team
        network.train()
        total = 0.0
        for batch in lesson.batches.shuffled(
            lesson.songs, self.batch_size, self.min_crop, training.rng
        ):
            optimizer.zero_grad()
            n_songs = sum(len(index) for index, _, _ in batch)
            for index, frames, lengths in batch:
                go_on()
                chance.n_songs = len(index)
                mine = team.mine(len(index))
                own = index[mine]
                if len(own) == 0:  # with nothing to hear, to draw and to add as much as the others
                    loss = 0 * network(frames[:1], lengths[:1]).sum()
                else:
                    scores = network(frames[mine], lengths[mine])
                    loss = song_loss(scores, lesson.target[own]) * (len(own) / n_songs)
                loss.backward()
                total += float(loss.detach()) * n_songs
            team.sum_gradients(network)
            nn.utils.clip_grad_norm_(network.parameters(), self.max_gradient)
            optimizer.step()
            training.schedule.step()
        everyone = torch.tensor(total, dtype=torch.float64, device=lesson.batches.device)
        return float(team.sum(everyone)) / len(lesson.songs)

    def _judge(
        self, network: nn.Module, batches: Batches, y: Ints, turn: Turn
    ) -> tuple[float, Scores]:
        """Mean loss of the songs held out, and scores of those that are `judged`."""
        if len(turn.held) == 0:
            return math.nan, np.empty((0, len(self.classes_)), np.float32)
        # Calibrated, as scores will be in the end: songs of a group that the network has never
        # heard make it too sure of itself long before it stops telling them better apart.
        scores = self._network_scores(network, batches, turn.held, turn.team)
        loss = float(calibrated_losses(scores, y[turn.held]).mean())
        return loss, scores[judged(np.arange(len(turn.held)))].astype(np.float32)

    def _n_batches(self, n_songs: int) -> int:
        return max(1, math.ceil(n_songs / self.batch_size))

    def _n_epochs(self, n_songs: int) -> int:
        """Passes over so many songs."""
        if self.epochs != "auto":
            return self.epochs
        enough = math.ceil(_FEWEST_STEPS / self._n_batches(n_songs))
        return min(max(_EPOCHS, enough), _MOST_EPOCHS)

    def _network_scores(
        self, network: nn.Module, batches: Batches, songs: Ints, team: Team
    ) -> Floats:
        return network_scores(network, batches, songs, len(self.classes_), team)

    def _exact(self, network: nn.Module) -> nn.Module:
        """Network that answers as exactly as it can."""
        return network

    def _mean_scores(self, batches: Batches, songs: Ints, team: Team) -> Floats:
        networks = [self._exact(network) for network in self.networks_]
        scores = [self._network_scores(network, batches, songs, team) for network in networks]
        return np.asarray(np.mean(scores, axis=0))

    def _log_scores(self, songs: Songs) -> Floats:
        with one_thread_each():
            batches = Batches(songs, self._device())
            return self._mean_scores(batches, np.arange(len(songs)), ALONE)

    def _device(self) -> torch.device:
        # What a GPU has learnt is answered by a processor where there is no GPU, or by another GPU.
        n_devices, number = _count_gpus(), _number_of(self.device)
        if self.device == "cpu" or n_devices == 0:
            return torch.device("cpu")
        return torch.device("cuda", number if number < n_devices else 0)

    def _state(self) -> dict[str, Array]:
        return (
            {
                f"{number}.{name}": value.cpu().numpy()
                for number, network in enumerate(self.networks_)
                for name, value in network.state_dict().items()
                if name != _CERTAINTY or value[1] > 0
            }
            | {"history": text_array(self.history_)}
            | ({"untrained": np.array(True)} if self._untrained else {})
        )

    def _set_state(self, arrays: Mapping[str, Array]) -> None:
        by_number: dict[str, dict[str, Array]] = {}
        self.history_ = _read_history(arrays)
        self._untrained = "untrained" in arrays
        if self._untrained and (arrays["untrained"].dtype != bool or arrays["untrained"].shape):
            raise ModelFileError("whether the networks are untrained cannot be read")
        for name, array in arrays.items():
            if name in ("history", "untrained"):
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
        for found in by_number.values():
            if _CERTAINTY in found:
                read_certainty(found[_CERTAINTY])
                if not found.get("share", np.zeros(())).all():
                    raise ModelFileError("a certainty goes with a share of the mean probability")
            elif _CERTAINTY in blank[0].state_dict():
                found[_CERTAINTY] = np.array(AS_IT_IS, np.float32)
        self.networks_ = [
            _read_network(by_number[str(i)], network).to(self._device())
            for i, network in enumerate(blank)
        ]
        self.fit_report_ = self._report()

    def _report(self) -> str:
        lines = [f"{len(self.networks_)} networks"]
        if self._untrained:
            lines[0] += ", all as they start: training gains no more than chance would"
        for number, history in enumerate(self.history_):
            losses = [row["held_out"] for row in history]
            best = int(np.nanargmin(losses)) if not np.isnan(losses).all() else len(losses) - 1
            kept = "untrained, as it starts" if best == 0 else f"epoch {best}"
            lines.append(
                f"network {number}: {kept}, held-out loss {losses[0]:.3f} -> {losses[best]:.3f}"
            )
        return "\n".join(lines)


def _count_gpus() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _number_of(device: str) -> int:
    """Which GPU "cuda:1" means; 0 where nothing is said."""
    return int(device.partition(":")[2] or 0)


def _train_one(
    shared: tuple[NetworkAggregator, Songs, Ints], item: tuple[nn.Module, Turn]
) -> dict[str, Array]:
    """Train one network: its numbers, and how it went."""
    (aggregator, songs, y), (network, turn) = shared, item
    batches = Batches(songs, aggregator._device())

    def nothing(*_: object) -> None:
        pass

    record = aggregator._train(network, batches, y, turn, nothing, Stage(), nothing)
    return {n: t.numpy() for n, t in network.state_dict().items()} | record_arrays(record)


def _is_trained(item: tuple[nn.Module, Turn], arrays: Mapping[str, Array]) -> bool:
    """Whether arrays that were kept can be what `_train_one` gives."""
    wanted = item[0].state_dict()
    tensors = {n: torch.tensor(a) for n, a in arrays.items() if n in wanted}
    if not could_be(tensors, wanted) or set(arrays) - set(tensors) != {"history", "scores"}:
        return False
    try:
        return is_record(take_record(dict(arrays)))
    except ValueError:
        return False


def _read_history(arrays: Mapping[str, Array]) -> list[History]:
    history = from_text_array(arrays["history"])
    if not isinstance(history, list) or not all(map(is_history, history)):
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
        if np.abs(array).max(initial=0) > LARGEST:
            raise ModelFileError(f"array {name} is too large for float32")
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    network.load_state_dict(tensors, assign=True)
    return network.eval()
