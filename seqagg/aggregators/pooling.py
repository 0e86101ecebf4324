"""Poolings: what makes one score per class of the scores of a song's frames.

Conventions
-----------
A pooling maps the frame scores of padded songs, in log-odds, shape (n_songs, longest, n_classes),
and a mask, True inside, to song scores in log-odds, shape (n_songs, n_classes).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

Parts = tuple[Tensor, ...]


class Pooling(nn.Module, ABC):
    """What pools frame scores into song scores, by parts that can be joined.

    `gather` makes of some frames of a song arrays of shape (n_songs, n_classes); those of its
    other frames can be joined to them, and the `result` is that of all frames together.
    """

    start: ClassVar[tuple[float, ...]]
    """The parts of no frame."""

    starts_as_average: ClassVar[bool] = False
    """Whether untrained it is the mean over frames."""

    def forward(self, scores: Tensor, inside: Tensor) -> Tensor:
        """Pool."""
        return self.result(self.gather(scores, inside))

    @abstractmethod
    def gather(self, scores: Tensor, inside: Tensor) -> Parts:
        """Parts of padded frames."""

    def join(self, one: Parts, other: Parts) -> Parts:
        """Parts of all frames from those of two pieces; sums, if nothing else is said."""
        return tuple(a + b for a, b in zip(one, other, strict=True))

    def result(self, parts: Parts) -> Tensor:
        """Score of songs, shape (n_songs, n_classes); the first part, if nothing else is said."""
        return parts[0]


class Average(Pooling):
    """Mean over frames."""

    start: ClassVar[tuple[float, ...]] = (0.0, 0.0)
    starts_as_average: ClassVar[bool] = True

    def gather(self, scores: Tensor, inside: Tensor) -> Parts:
        """Sum and number of frames."""
        total = (scores * inside).sum(dim=1)
        return total, inside.sum(dim=1).to(scores.dtype).expand_as(total)

    def result(self, parts: Parts) -> Tensor:
        """Mean."""
        total, count = parts
        return total / count


class Max(Pooling):
    """Highest frame of each class."""

    start: ClassVar[tuple[float, ...]] = (-math.inf,)

    def gather(self, scores: Tensor, inside: Tensor) -> Parts:
        """Highest frame."""
        return (scores.masked_fill(~inside, -math.inf).amax(dim=1),)

    def join(self, one: Parts, other: Parts) -> Parts:
        """Higher of the two."""
        return (torch.maximum(one[0], other[0]),)


class _Weighted(Pooling):
    """Mean over frames by the softmax of an attention."""

    start: ClassVar[tuple[float, ...]] = (0.0, -math.inf)
    starts_as_average: ClassVar[bool] = True

    @abstractmethod
    def attention(self, scores: Tensor) -> Tensor:
        """Log of what each frame weighs, up to a constant."""

    def gather(self, scores: Tensor, inside: Tensor) -> Parts:
        """Mean, and the log of what all its frames weigh together."""
        attention = self.attention(scores).masked_fill(~inside, -math.inf)
        mean = (attention.softmax(dim=1) * scores).sum(dim=1)
        return mean, attention.detach().logsumexp(dim=1)

    def join(self, one: Parts, other: Parts) -> Parts:
        """Mean of the two means."""
        (mean, weight), (mean2, weight2) = one, other
        total = torch.logaddexp(weight, weight2)
        return mean * (weight - total).exp() + mean2 * (weight2 - total).exp(), total


class Attention(_Weighted):
    """Mean over frames, weighted by a network that hears the frame's scores [1]_.

    Starts with equal weights.

    References
    ----------
    .. [1] M. Ilse, J. Tomczak and M. Welling, "Attention-based deep multiple instance learning",
       ICML 2018.
    """

    def __init__(self, n_classes: int, hidden_size: int = 16) -> None:
        super().__init__()
        self.hidden = nn.Linear(n_classes, hidden_size)
        self.output = nn.Linear(hidden_size, n_classes)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def attention(self, scores: Tensor) -> Tensor:
        """Network over the scores of a frame."""
        return torch.as_tensor(self.output(torch.tanh(self.hidden(scores / 4))))


class AutoPool(_Weighted):
    """Mean over frames weighted by the softmax of a learnt multiple of their scores [1]_.

    The multiple starts at 0, the mean; towards infinity it becomes the maximum.

    References
    ----------
    .. [1] B. McFee, J. Salamon and J. P. Bello, "Adaptive pooling operators for weakly labeled
       sound event detection", IEEE/ACM TASLP 26(11), 2018, equation 8.
    """

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(n_classes))

    def attention(self, scores: Tensor) -> Tensor:
        """Multiple of the scores."""
        return self.alpha * scores


class LinearSoftmax(Pooling):
    """Mean of probabilities weighted by themselves [1]_.

    References
    ----------
    .. [1] Y. Wang, J. Li and F. Metze, "A comparison of five multiple instance learning pooling
       functions for sound event detection with weak labeling", ICASSP 2019, table 1.
    """

    start: ClassVar[tuple[float, ...]] = (0.0, 0.0)

    def gather(self, scores: Tensor, inside: Tensor) -> Parts:
        """Sums of p * p and of p * (1 - p)."""
        # The product of p and 1 - p keeps both ends of the logit apart from 0.
        p, q = torch.sigmoid(scores) * inside, torch.sigmoid(-scores) * inside
        return (p * p).sum(dim=1), (p * q).sum(dim=1)

    def result(self, parts: Parts) -> Tensor:
        """Log-odds of the weighted mean."""
        hit, miss = parts
        tiny = torch.finfo(hit.dtype).tiny
        return hit.clamp(min=tiny).log() - miss.clamp(min=tiny).log()


class NoisyOr(Pooling):
    """Probability that not all frames are without the class, were they independent [1]_.

    References
    ----------
    .. [1] O. Maron and T. Lozano-Perez, "A framework for multiple-instance learning", NIPS 1997.
    """

    start: ClassVar[tuple[float, ...]] = (0.0,)

    def gather(self, scores: Tensor, inside: Tensor) -> Parts:
        """Sum of -log(1 - p), which is what softplus gives."""
        return ((nn.functional.softplus(scores) * inside).sum(dim=1),)

    def result(self, parts: Parts) -> Tensor:
        """Log-odds of 1 less the product of all 1 - p."""
        total = parts[0].clamp(min=torch.finfo(parts[0].dtype).tiny)
        return torch.as_tensor(total + torch.log(-torch.expm1(-total)))


POOLINGS: dict[str, type[Pooling]] = {
    "average": Average,
    "max": Max,
    "attention": Attention,
    "auto": AutoPool,
    "linear-softmax": LinearSoftmax,
    "noisy-or": NoisyOr,
}
"""By the names that users give them."""


def make_pooling(name: str, n_classes: int) -> Pooling:
    """Make the pooling of that name, for so many classes; those that learn, learn for each."""
    kind = POOLINGS[name]
    return kind(n_classes) if kind in (Attention, AutoPool) else kind()
