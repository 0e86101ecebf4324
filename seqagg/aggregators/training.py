"""The training of one network, as it can be put down after an epoch and taken up again."""

from __future__ import annotations

import math
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
        header = {
            "best_epoch": self.best_epoch,
            "rng": self.rng.bit_generator.state,
            "schedule": self.schedule.state_dict(),
            "groups": [group | {"betas": list(group["betas"])} for group in groups],
        }
        tensors = {
            "generator": self.generator.get_state(),
            **({"global": torch.get_rng_state()} if self.uses_global else {}),
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
        if found is None:
            return
        header, arrays = found
        self.record = take_record(arrays)
        tensors = {n: torch.tensor(a) for n, a in arrays.items()}

        def under(start: str) -> dict[str, Tensor]:
            parts = {n: t for n, t in tensors.items() if n.startswith(f"{start}/")}
            return {n.removeprefix(f"{start}/"): t for n, t in parts.items()}

        self.network.load_state_dict(under("network"))
        device = next(iter(self.best.values())).device
        self.best = {n: t.to(device) for n, t in under("best").items()}
        self.best_epoch = header["best_epoch"]
        states: dict[int, dict[str, Tensor]] = {}
        for n, tensor in under("optimizer").items():
            number, _, part = n.partition("/")
            states.setdefault(int(number), {})[part] = tensor
        self.optimizer.load_state_dict({"state": states, "param_groups": header["groups"]})
        self.schedule.load_state_dict(header["schedule"])
        self.rng.bit_generator.state = header["rng"]
        self.generator.set_state(tensors["generator"])
        if self.uses_global:
            torch.set_rng_state(tensors["global"])


def _copy_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def record_arrays(record: Record) -> dict[str, Array]:
    """Arrays of a record, for files and other processes."""
    return {"history": text_array(record.history), "scores": np.stack(record.scores)}


def take_record(arrays: dict[str, Array]) -> Record:
    """Take a record back out of arrays, among which it is."""
    return Record(from_text_array(arrays.pop("history")), list(arrays.pop("scores")))
