"""Processes that train a network together, and the chance that they share.

Conventions
-----------
All processes of a team do the same, with the same songs in the same order, and each hears its own
songs of a batch: every `size`-th, from its `rank` on. Gradients are summed up over the team before
each step, so that all processes hold the same network, which is that of one process to rounding.
What is random is drawn for all songs of a batch, and each process takes what belongs to its own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Team:
    """A process among others.

    Parameters
    ----------
    rank : int
        Which of them it is.
    size : int
        How many there are.
    add : callable, optional
        Puts the sum over the team in the place of a tensor, the same bits in each process.
    """

    rank: int = 0
    size: int = 1
    add: Callable[[Tensor], object] | None = None

    def mine(self, n: int) -> slice:
        """Which of `n` songs this process hears."""
        return slice(self.rank, n, self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the team, in place of the tensor."""
        if self.add is not None:
            self.add(tensor)
        return tensor

    def sum_gradients(self, network: nn.Module) -> None:
        """Give every process the gradients of all songs."""
        if self.size == 1:
            return
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        total = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, own in zip(gradients, torch.split(total, sizes), strict=True):
            gradient.copy_(own.view_as(gradient))


ALONE = Team()

CPU = torch.device("cpu")

_team: ContextVar[Team] = ContextVar("seqagg_team", default=ALONE)


@contextlib.contextmanager
def together(team: Team) -> Iterator[None]:
    """Train the networks of fits within the block as one of a team."""
    token = _team.set(team)
    try:
        yield
    finally:
        _team.reset(token)


def current_team() -> Team:
    """The team of the innermost `together`; this process alone by default."""
    return _team.get()


_global_chance = threading.RLock()


@contextlib.contextmanager
def borrowed_chance(device: torch.device = CPU, team: Team = ALONE) -> Iterator[None]:
    """Have PyTorch's global generator within the block, and leave it as it was.

    There is one for all threads, so one at a time has it; but those of a team, which wait for each
    other, are processes.
    """
    devices = [device] if device.type == "cuda" else []
    with contextlib.ExitStack() as stack:
        if team.size == 1:
            stack.enter_context(_global_chance)
        stack.enter_context(torch.random.fork_rng(devices=devices))
        yield


@dataclass
class Chance:
    """Source of what is random while a network is trained.

    Attributes
    ----------
    generator : torch.Generator
        In the same state in all processes of the team.
    team : Team
    n_songs : int
        Songs of the batch at hand, of all processes together.
    """

    generator: torch.Generator
    team: Team
    n_songs: int = 0

    def draw(self, how: Callable[..., Tensor], x: Tensor) -> Tensor:
        """Random numbers for x, whose first axis is that of the songs."""
        alike: dict[str, Any] = {"device": x.device, "dtype": x.dtype}
        if self.team.size == 1:
            return how(x.shape, generator=self.generator, **alike)
        drawn = how((self.n_songs, *x.shape[1:]), generator=self.generator, **alike)
        mine = drawn[self.team.mine(self.n_songs)]
        return mine if len(mine) else drawn[:1]  # as in `share`


class Random(nn.Module):
    """Part of a network that is random while training, by a chance of its own.

    With PyTorch's global one networks could not be trained in threads.
    """

    chance: Chance | None = None

    def draw(self, how: Callable[..., Tensor], x: Tensor) -> Tensor:
        """Random numbers of the shape of x."""
        if self.chance is None:
            return how(x.shape, device=x.device, dtype=x.dtype)
        return self.chance.draw(how, x)


class Dropout(Random):
    """Leave out a share of the values while training, and make up for it in the others."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Values with some of them 0."""
        if not self.training or self.share == 0:
            return x
        kept = self.draw(torch.rand, x) >= self.share
        return torch.as_tensor(x * kept / (1 - self.share))


class Noise(Random):
    """Gaussian noise while training."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation

    def forward(self, x: Tensor) -> Tensor:
        """Blur the values."""
        if not self.training or self.deviation == 0:
            return x
        return torch.as_tensor(x + self.deviation * self.draw(torch.randn, x))


def set_chance(network: nn.Module, chance: Chance | None) -> None:
    """Give all that is random in a network its source."""
    for module in network.modules():
        if isinstance(module, Random):
            module.chance = chance
