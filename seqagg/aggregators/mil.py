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
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from seqagg.aggregators.base import Array, Floats, Ints, OnEmpty
from seqagg.aggregators.network import Dropout, NetworkAggregator, check_count, check_range
from seqagg.aggregators.start import AverageStart, calibrate, center_and_spread, make_linear_start
from seqagg.errors import ModelFileError, ParameterError, SongError
from seqagg.songs import Songs, as_songs

_CLIP = 8.0
"""Standardized log-odds beyond this say no more than this."""


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
        x = ((frames - self.center) / self.spread).clamp(-_CLIP, _CLIP)
        correction = self.output(self.dropout(torch.relu(self.hidden(x))))
        return torch.as_tensor(frames @ self.weight + self.bias + correction)


class Average(nn.Module):
    """Mean over frames."""

    def forward(self, scores: Tensor, inside: Tensor) -> Tensor:
        """Pool."""
        return torch.as_tensor((scores * inside).sum(dim=1) / inside.sum(dim=1))


class Max(nn.Module):
    """Highest frame of each class."""

    def forward(self, scores: Tensor, inside: Tensor) -> Tensor:
        """Pool."""
        return scores.masked_fill(~inside, -math.inf).amax(dim=1)


class Attention(nn.Module):
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

    def forward(self, scores: Tensor, inside: Tensor) -> Tensor:
        """Pool."""
        attention = self.output(torch.tanh(self.hidden(scores / 4)))
        weight = attention.masked_fill(~inside, -math.inf).softmax(dim=1)
        return torch.as_tensor((weight * scores).sum(dim=1))


class AutoPool(nn.Module):
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

    def forward(self, scores: Tensor, inside: Tensor) -> Tensor:
        """Pool."""
        weight = (self.alpha * scores).masked_fill(~inside, -math.inf).softmax(dim=1)
        return torch.as_tensor((weight * scores).sum(dim=1))


class LinearSoftmax(nn.Module):
    """Mean of probabilities weighted by themselves [1]_.

    References
    ----------
    .. [1] Y. Wang, J. Li and F. Metze, "A comparison of five multiple instance learning pooling
       functions for sound event detection with weak labeling", ICASSP 2019, table 1.
    """

    def forward(self, scores: Tensor, inside: Tensor) -> Tensor:
        """Pool."""
        # The product of p and 1 - p keeps both ends of the logit apart from 0.
        p, q = torch.sigmoid(scores) * inside, torch.sigmoid(-scores) * inside
        hit, miss = (p * p).sum(dim=1), (p * q).sum(dim=1)
        tiny = torch.finfo(scores.dtype).tiny
        return hit.clamp(min=tiny).log() - miss.clamp(min=tiny).log()


class NoisyOr(nn.Module):
    """Probability that not all frames are without the class, were they independent [1]_.

    References
    ----------
    .. [1] O. Maron and T. Lozano-Perez, "A framework for multiple-instance learning", NIPS 1997.
    """

    def forward(self, scores: Tensor, inside: Tensor) -> Tensor:
        """Pool."""
        # The sum of -log(1 - p), which is what softplus gives.
        total = (nn.functional.softplus(scores) * inside).sum(dim=1)
        total = total.clamp(min=torch.finfo(scores.dtype).tiny)
        return torch.as_tensor(total + torch.log(-torch.expm1(-total)))


_POOLINGS: dict[str, type[nn.Module]] = {
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
        self, frame: nn.Module, pooling: nn.Module, scale: float, feature_shape: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.frame = frame
        self.pooling = pooling
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.feature_shape = feature_shape

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Score padded songs, shape (n_songs, n_classes)."""
        steps = torch.arange(frames.shape[1], device=frames.device)
        inside = steps < lengths[:, None]  # (n_songs, longest)
        # Padding never enters the frame network: a batch norm would learn from it.
        found = self.frame(frames[inside].reshape(-1, *self.feature_shape))
        scores = found.new_zeros(*inside.shape, found.shape[1])
        scores = scores.masked_scatter(inside[:, :, None], found)
        return torch.as_tensor(self.scale * self.pooling(scores, inside[:, :, None]))


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
