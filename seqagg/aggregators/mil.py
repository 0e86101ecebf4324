"""Multiple-instance learning: a frame network and a pooling, learnt from song labels alone.

Conventions
-----------
A frame network maps frames, shape (n_frames, n_columns) or (n_frames, *feature_shape), to class
scores in log-odds, shape (n_frames, n_classes). A pooling maps the frame scores of padded songs,
shape (n_songs, longest, n_classes), and a mask, True inside, to song scores in log-odds.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from seqagg.aggregators.base import Array, Floats, Ints, OnEmpty
from seqagg.aggregators.batches import heard
from seqagg.aggregators.network import (
    NetworkAggregator,
    check_count,
    check_range,
)
from seqagg.aggregators.start import (
    CLIP,
    AverageStart,
    calibrate,
    center_and_spread,
    make_linear_start,
)
from seqagg.aggregators.team import Dropout
from seqagg.errors import ModelFileError, ParameterError, SongError
from seqagg.songs import Songs, as_songs
from seqagg.streaming import Memory
from seqagg.threads import one_thread_each


class FrameNetwork(nn.Module):
    """Log-odds of frames, corrected by a small network that starts at zero.

    Untrained it is the identity where columns are classes.
    """

    center: Tensor
    spread: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(
        self, start: AverageStart, center: Floats, spread: Floats, hidden_size: int, dropout: float
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
        self.hidden = nn.Linear(n_columns, hidden_size)
        self.dropout = Dropout(dropout)
        self.output = nn.Linear(hidden_size, n_classes)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, frames: Tensor) -> Tensor:
        """Score frames, shape (n_frames, n_classes)."""
        x = ((frames - self.center) / self.spread).clamp(-CLIP, CLIP)
        correction = self.output(self.dropout(torch.relu(self.hidden(x))))
        return torch.as_tensor(frames @ self.weight + self.bias + correction)


Parts = tuple[Tensor, ...]


class Pooling(nn.Module, ABC):
    """What pools frame scores into song scores, by parts that can be joined.

    `gather` makes of some frames of a song arrays of shape (n_songs, n_classes); those of its
    other frames can be joined to them, and the `result` is that of all frames together.
    """

    start: ClassVar[tuple[float, ...]]
    """The parts of no frame."""

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


_POOLINGS: dict[str, type[Pooling]] = {
    "average": Average,
    "max": Max,
    "attention": Attention,
    "auto": AutoPool,
    "linear-softmax": LinearSoftmax,
    "noisy-or": NoisyOr,
}


class PooledNetwork(nn.Module):
    """A frame network, a pooling, and how far their score is to be believed."""

    def __init__(
        self, frame: nn.Module, pooling: Pooling, scale: float, feature_shape: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.frame = frame
        self.pooling = pooling
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.feature_shape = feature_shape

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Score padded songs, shape (n_songs, n_classes)."""
        return self.judge(self.listen(frames, lengths))

    def judge(self, parts: Parts) -> Tensor:
        """Score songs by what the pooling has gathered."""
        return torch.as_tensor(self.scale * self.pooling.result(parts))

    def listen(self, frames: Tensor, lengths: Tensor) -> Parts:
        """Gather what the pooling keeps of padded songs."""
        steps = torch.arange(frames.shape[1], device=frames.device)
        inside = steps < lengths[:, None]  # (n_songs, longest)
        # Padding never enters the frame network: a batch norm would learn from it.
        found = self.frame(frames[inside].reshape(-1, *self.feature_shape))
        scores = found.new_zeros(*inside.shape, found.shape[1])
        scores = scores.masked_scatter(inside[:, :, None], found)
        return self.pooling.gather(scores, inside[:, :, None])


class MILAggregator(NetworkAggregator):
    """Learn what to make of a frame, and how to pool frames, from the labels of songs.

    On cached log-odds the frame network starts as the identity, so that average pooling starts
    as averaging, and so do attention and auto-pool. With a network of your own the songs are
    frame features of any shape, and the frame classifier itself is trained through the pooling.

    Parameters
    ----------
    pooling : {"attention", "average", "auto", "max", "linear-softmax", "noisy-or"}
        How frame scores become the score of a song.
    network : torch.nn.Module, optional
        Maps (n_frames, *feature_shape) to (n_frames, n_classes), classes sorted. It is copied,
        weights and all, once per fold. Songs are then arrays (n_frames_i, *feature_shape).
    hidden_size : int
        Hidden units of the frame network.
    dropout : float
        Share of hidden units left out while training.
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
    n_jobs : int or None
        Networks trained side by side, as scikit-learn counts jobs. The answer is the same.
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

    ignores_order: ClassVar[bool] = True

    def __init__(
        self,
        *,
        pooling: Literal[
            "attention", "average", "auto", "max", "linear-softmax", "noisy-or"
        ] = "attention",
        network: nn.Module | None = None,
        hidden_size: int = 32,
        dropout: float = 0.4,
        min_crop: float = 0.6,
        epochs: int = 40,
        patience: int = 15,
        batch_size: int = 32,
        learning_rate: float = 5e-3,
        weight_decay: float = 1e-2,
        max_gradient: float = 1.0,
        n_folds: int = 3,
        n_jobs: int | None = -1,
        device: str = "cpu",
        random_state: int = 0,
        on_empty: OnEmpty = "error",
    ) -> None:
        self.pooling = pooling
        self.network = network
        self.hidden_size = hidden_size
        self.dropout = dropout
        self.min_crop = min_crop
        self.epochs = epochs
        self.patience = patience
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.max_gradient = max_gradient
        self.n_folds = n_folds
        self.n_jobs = n_jobs
        self.device = device
        self.random_state = random_state
        self.on_empty = on_empty

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.pooling not in _POOLINGS:
            raise ParameterError(f"pooling={self.pooling!r} is none of {', '.join(_POOLINGS)}")
        if self.network is not None and not isinstance(self.network, nn.Module):
            raise ParameterError("network must be a torch.nn.Module")
        check_count("hidden_size", self.hidden_size)
        check_range("dropout", self.dropout, 0.0, 0.95)

    def _takes_log_odds(self) -> bool:
        return self.network is None

    def _as_songs(self, X: Any) -> Songs:
        if self.network is None or isinstance(X, Songs):
            return super()._as_songs(X)
        arrays = _frame_features(X)
        self._feature_shape: tuple[int, ...] = arrays[0].shape[1:]
        return as_songs([a.reshape(len(a), -1) for a in arrays])

    def _new_network(self, songs: Songs, y: Ints) -> PooledNetwork:
        if self.network is not None:
            shape = getattr(self, "_feature_shape", (songs.n_columns,))
            return self._pooled(copy.deepcopy(self.network), 1.0, shape)
        # Frames are scored before they are pooled, so the start must be linear in them.
        start = make_linear_start(songs, y, len(self.classes_), self._columns_are_classes)
        start, scale = calibrate(start, songs, y)
        center, spread = center_and_spread(songs)
        frame = FrameNetwork(start, center, spread, self.hidden_size, self.dropout)
        return self._pooled(frame, scale, (songs.n_columns,))

    def _memory(self, n: int) -> Memory:
        return _Listening(self, n)

    def _has_own_chance(self) -> bool:
        return self.network is None

    def _pooled(self, frame: nn.Module, scale: float, shape: tuple[int, ...]) -> PooledNetwork:
        kind = _POOLINGS[self.pooling]
        pooling = kind(len(self.classes_)) if kind in (Attention, AutoPool) else kind()
        return PooledNetwork(frame, pooling, scale, shape)

    def _blank_network(self) -> PooledNetwork:
        n_columns, n_classes = self.n_features_in_, len(self.classes_)
        start = AverageStart(np.zeros((n_columns, n_classes)), np.zeros(n_classes))
        zeros = np.zeros(n_columns)
        with torch.random.fork_rng(devices=[]):
            frame = FrameNetwork(start, zeros, zeros, self.hidden_size, self.dropout)
            return self._pooled(frame, 1.0, (n_columns,))

    def _state(self) -> dict[str, Array]:
        if self.network is not None:
            raise ModelFileError("a network of your own cannot be saved; save its state_dict")
        return super()._state()


class _Listening(Memory):
    """What the poolings of the networks have gathered."""

    def __init__(self, method: MILAggregator, n: int) -> None:
        self._networks: list[PooledNetwork] = method.networks_
        self._device = method._device()
        first = self._networks[0].pooling.start
        self._names = [
            [f"{i}.{part}" for part in range(len(first))] for i in range(len(self._networks))
        ]
        n_classes = len(method.classes_)
        start = {
            name: np.full(n_classes, value)
            for names in self._names
            for name, value in zip(names, first, strict=True)
        }
        super().__init__(n, start)

    def _hear(self, songs: Songs, which: Ints) -> None:
        with one_thread_each(), torch.inference_mode():
            for place, frames, lengths in heard(songs, self._device):
                for network, names in zip(self._networks, self._names, strict=True):
                    mine = which[place]
                    more = tuple(part.double().cpu() for part in network.listen(frames, lengths))
                    joined = network.pooling.join(self._parts(names, mine), more)
                    for name, part in zip(names, joined, strict=True):
                        self.arrays[name][mine] = part.numpy()

    def log_scores(self, which: Ints) -> Floats:
        with one_thread_each(), torch.inference_mode():
            found = [
                network.judge(tuple(p.float().to(self._device) for p in self._parts(names, which)))
                for network, names in zip(self._networks, self._names, strict=True)
            ]
        return np.asarray(np.mean([scores.double().cpu().numpy() for scores in found], axis=0))

    def _parts(self, names: list[str], which: Ints) -> Parts:
        return tuple(torch.as_tensor(self.arrays[name][which]) for name in names)


def _frame_features(X: Any) -> list[Array]:
    """Check that songs are arrays (n_frames_i, *feature_shape) of one feature shape."""
    if isinstance(X, str | bytes) or not isinstance(X, Iterable):
        raise SongError(f"expected a list of feature arrays, got {type(X).__name__}")
    arrays = [np.asarray(a, dtype=np.float32) for a in X]
    if not arrays:
        raise SongError("no songs")
    for i, array in enumerate(arrays):
        if array.ndim < 2 or array.shape[1:] != arrays[0].shape[1:]:
            raise SongError(
                f"frames have shape {array.shape}, not (n_frames, *{arrays[0].shape[1:]})",
                song=str(i),
            )
    return arrays
