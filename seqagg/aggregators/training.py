"""The training of one network, as it can be put down after an epoch and taken up again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from seqagg.aggregators.state import from_text_array, text_array
from seqagg.checkpoints import Stage

Array = npt.NDArray[Any]

History = list[dict[str, float]]
"""Of each epoch, from 0 on: its number, the loss on crops and that on held-out songs, in nats."""

_OF_SCHEDULE = ("last_epoch", "_step_count", "_last_lr")
"""What changes in a schedule from step to step; all else is what the parameters make it."""

LARGEST = 1e9
"""A weight beyond it is no fitted one, and a few of them multiply to infinity."""

Scores = npt.NDArray[np.float32]


@dataclass
class Record:
    """How a network did from epoch to epoch.

    Attributes
    ----------
    history : list of dict
        Losses, from epoch 0 on.
    scores : list of ndarray of shape (n_judged, n_classes)
        What it said of songs held out.
    """

    history: History
    scores: list[Scores]


@dataclass
class Training:
    """Everything that the next epoch depends on.

    Attributes
    ----------
    network : torch.nn.Module
    optimizer : torch.optim.Optimizer
    schedule : torch.optim.lr_scheduler.LRScheduler
    rng : numpy.random.Generator
        Draws crops and batches.
    generator : torch.Generator
        Draws what dropout and noise do.
    uses_global : bool
        Whether PyTorch's global generator has a part in it.
    record : Record
        From epoch 0 on.
    best : dict of str to Tensor
        Numbers of the network after its best epoch.
    best_epoch : int
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Any
    rng: np.random.Generator
    generator: torch.Generator
    uses_global: bool
    record: Record
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0

    def __post_init__(self) -> None:
        self.best = _copy_of(self.network)

    def note(self, losses: dict[str, float], scores: Scores) -> None:
        """Add an epoch to the record; it may be the best so far."""
        history = self.record.history
        history.append(losses)
        self.record.scores.append(scores)
        held_out = losses["held_out"]
        # Without songs to hold out, the last epoch is as good as any.
        if math.isnan(held_out) or held_out < history[self.best_epoch]["held_out"]:
            self.best, self.best_epoch = _copy_of(self.network), len(history) - 1

    def keep(self, stage: Stage, name: str) -> None:
        """Write a checkpoint, where one is due."""
        if not stage.is_due(name):
            return
        groups = self.optimizer.state_dict()["param_groups"]
        schedule = self.schedule.state_dict()
        header = {
            "best_epoch": self.best_epoch,
            "rng": self.rng.bit_generator.state,
            "schedule": {name: schedule[name] for name in _OF_SCHEDULE},
            "groups": [{"lr": group["lr"], "betas": list(group["betas"])} for group in groups],
        }
        tensors = {
            "generator": self.generator.get_state(),
            **({"global": self._global_generator().get_state()} if self.uses_global else {}),
            **{f"network/{n}": t for n, t in self.network.state_dict().items()},
            **{f"best/{n}": t for n, t in self.best.items()},
            **{
                f"optimizer/{i}/{n}": t
                for i, state in self.optimizer.state_dict()["state"].items()
                for n, t in state.items()
            },
        }
        arrays = {n: t.detach().cpu().numpy() for n, t in tensors.items()}
        stage.write(name, header, arrays | record_arrays(self.record))

    def take_up(self, stage: Stage, name: str) -> None:
        """Go back to the last checkpoint, if there is one."""
        found = stage.read(name)
        if found is not None:
            with stage.going_on():
                self._go_back(*found)

    def _go_back(self, header: Mapping[str, Any], arrays: dict[str, Array]) -> None:
        record = take_record(arrays)
        tensors = {n: torch.tensor(a) for n, a in arrays.items()}
        if not self._fits(tensors) or not is_record(record):
            return
        if not 0 <= header["best_epoch"] < len(record.history):
            raise ValueError("the best epoch is none of those on record")
        self.record = record
        self.network.load_state_dict(_under("network/", tensors))
        device = next(iter(self.best.values())).device
        self.best = {n: t.to(device) for n, t in _under("best/", tensors).items()}
        self.best_epoch = header["best_epoch"]
        self._set_optimizer(header, _under("optimizer/", tensors))
        self.rng.bit_generator.state = header["rng"]
        self.generator.set_state(tensors["generator"])
        if self.uses_global:
            self._global_generator().set_state(tensors["global"])

    def _global_generator(self) -> torch.Generator:
        """PyTorch's own, of the device that trains."""
        device = self.generator.device
        if device.type == "cpu":
            return torch.default_generator
        return torch.cuda.default_generators[device.index or 0]

    def _set_optimizer(self, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Bring optimizer and schedule to where they were."""
        states: dict[int, dict[str, Tensor]] = {}
        for n, tensor in tensors.items():
            number, _, part = n.partition("/")
            states.setdefault(int(number), {})[part] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        for group, then in zip(groups, header["groups"], strict=True):
            lr, betas = float(then["lr"]), tuple(map(float, then["betas"]))
            in_schedule = 0 <= lr <= 2 * group["max_lr"] and len(betas) == 2
            if not in_schedule or not all(0 <= beta < 1 for beta in betas):
                raise ValueError("learning rate or momentum is not of this schedule")
            group |= {"lr": lr, "betas": betas}
        schedule = {name: header["schedule"][name] for name in _OF_SCHEDULE}
        n_steps = schedule["last_epoch"]
        in_schedule = type(n_steps) is int and 0 <= n_steps < self.schedule.total_steps
        if not in_schedule or schedule["_step_count"] != n_steps + 1:
            raise ValueError("the number of steps is not of this schedule")
        if schedule["_last_lr"] != [group["lr"] for group in groups]:
            raise ValueError("the last learning rate is not that of the optimizer")
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        self.schedule.load_state_dict(schedule)

    def _fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether tensors are of the names, shapes and types of this training, and no nonsense.

        PyTorch's compiled optimizers do not look, and write beyond the end of those too short.
        """
        wanted = {
            "generator": self.generator.get_state(),
            **({"global": self._global_generator().get_state()} if self.uses_global else {}),
            **{f"network/{n}": t for n, t in self.network.state_dict().items()},
            **{f"best/{n}": t for n, t in self.best.items()},
        }
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for i, parameter in enumerate(parameters):
            if f"optimizer/{i}/step" in tensors:  # else it has not had a gradient
                wanted[f"optimizer/{i}/step"] = torch.zeros(())
                for part in ("exp_avg", "exp_avg_sq"):
                    wanted[f"optimizer/{i}/{part}"] = parameter
        states = _under("optimizer/", tensors)
        positive = [t for n, t in states.items() if n.endswith(("/step", "/exp_avg_sq"))]
        return could_be(tensors, wanted) and all((t >= 0).all() for t in positive)


def _under(start: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors whose names begin so, by the rest of their names."""
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}


def could_be(some: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    """Whether tensors have the names, shapes and types of others, and are no nonsense."""
    one, two = ({n: (t.dtype, t.shape) for n, t in ts.items()} for ts in (some, wanted))
    return one == two and all(
        # Masks of the user's networks may be infinite, but those are what they are now.
        (tensor.abs() <= LARGEST).all() or torch.equal(tensor, wanted[name].cpu())
        for name, tensor in some.items()
    )


def _copy_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def record_arrays(record: Record) -> dict[str, Array]:
    """Arrays of a record, for files and other processes."""
    return {"history": text_array(record.history), "scores": np.stack(record.scores)}


def take_record(arrays: dict[str, Array]) -> Record:
    """Take a record back out of arrays, among which it is."""
    return Record(from_text_array(arrays.pop("history")), list(arrays.pop("scores")))


def is_record(record: Record) -> bool:
    """Whether a record that was kept is one, with scores for each epoch."""
    return (
        is_history(record.history)
        and len(record.history) == len(record.scores)
        and all((np.abs(scores) <= LARGEST).all() for scores in record.scores)
    )


def is_history(history: Any) -> bool:
    """Whether that which was kept is a history: a row for each epoch, of numbers, or NaN."""
    if not isinstance(history, list) or not history:
        return False
    keys = {"epoch", "crops", "held_out"}
    rows = [row for row in history if isinstance(row, dict) and set(row) == keys]
    numbers = [row[key] for row in rows for key in keys]
    return len(rows) == len(history) and all(
        type(x) in (int, float) and not abs(x) > LARGEST for x in numbers
    )
