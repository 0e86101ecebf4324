"""Multiple-instance learning: a frame network and a pooling, learnt from song labels alone.

Conventions
-----------
A frame network maps frames, shape (n_frames, n_columns) or (n_frames, *feature_shape), to class
scores in log-odds, shape (n_frames, n_classes). A pooling maps the frame scores of padded songs,
shape (n_songs, longest, n_classes), and a mask, True inside, to song scores in log-odds.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from seqagg.aggregators.base import Array, Floats, Ints, OnEmpty
from seqagg.aggregators.batches import heard
from seqagg.aggregators.network import NetworkAggregator, certain
from seqagg.aggregators.parameters import check_choice, check_count, check_range
from seqagg.aggregators.pooling import POOLINGS, Average, Parts, Pooling, make_pooling
from seqagg.aggregators.start import (
    CLIP,
    LEAST_PROBABILITY,
    AverageStart,
    calibrate,
    center_and_spread,
    make_linear_start,
    make_start,
)
from seqagg.aggregators.team import Dropout, borrowed_chance
from seqagg.averages import WholeSongs
from seqagg.certainty import AS_IT_IS, Certainty
from seqagg.errors import ModelFileError, ParameterError, SongError
from seqagg.songs import Songs, as_frames, as_songs
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


class PooledNetwork(nn.Module):
    """A frame network, a pooling, and how far their score is to be believed.

    Where columns are classes, their mean probability may have a share in the score, which no frame
    has by itself, and what that makes a certainty.
    """

    share: Tensor
    certainty: Tensor

    def __init__(
        self,
        frame: nn.Module,
        pooling: Pooling,
        scale: float,
        feature_shape: tuple[int, ...],
        share: float = 0.0,
        certainty: Certainty = AS_IT_IS,
    ) -> None:
        super().__init__()
        self.frame = frame
        self.pooling = pooling
        self.register_buffer("share", torch.tensor(float(share)))
        self.register_buffer("certainty", torch.tensor(certainty))
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.feature_shape = feature_shape

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Score padded songs, shape (n_songs, n_classes)."""
        return self.judge(self.listen(frames, lengths))

    def judge(self, parts: Parts) -> Tensor:
        """Score songs by what was gathered of them."""
        n = len(self.pooling.start)
        score = self.pooling.result(parts[:n])
        if self.share > 0:
            mean = _probability.result(parts[n:])
            score = score + self.share * mean.clamp(min=LEAST_PROBABILITY).log()
            score = certain(score, self.certainty)
        return torch.as_tensor(self.scale * score)

    @property
    def start(self) -> tuple[float, ...]:
        """What is gathered of no frame."""
        return self.pooling.start + (_probability.start if self.share > 0 else ())

    def join(self, one: Parts, other: Parts) -> Parts:
        """What is gathered of all frames, from that of two pieces."""
        n = len(self.pooling.start)
        return self.pooling.join(one[:n], other[:n]) + _probability.join(one[n:], other[n:])

    def listen(self, frames: Tensor, lengths: Tensor) -> Parts:
        """Gather what is kept of padded songs."""
        frames = frames.to(self.scale.dtype)
        steps = torch.arange(frames.shape[1], device=frames.device)
        inside = steps < lengths[:, None]  # (n_songs, longest)
        # Padding never enters the frame network: a batch norm would learn from it.
        found = self.frame(frames[inside].reshape(-1, *self.feature_shape))
        scores = found.new_zeros(*inside.shape, found.shape[1])
        scores = scores.masked_scatter(inside[:, :, None], found)
        gathered = self.pooling.gather(scores, inside[:, :, None])
        if self.share > 0:
            gathered += _probability.gather(torch.sigmoid(frames), inside[:, :, None])
        return gathered


_probability = Average()


class MILAggregator(NetworkAggregator):
    """Learn what to make of a frame, and how to pool frames, from the labels of songs.

    On cached log-odds the frame network starts as the identity, so that average pooling starts
    as averaging, to which the log mean probability adds its share, and so do attention and
    auto-pool; there all stay unless training helps the songs held out by more than chance would.
    With a network of your own the songs are frame features of any shape, and the frame classifier
    itself is trained through the pooling.

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
    n_repeats : int
        Times that songs are cut into other folds, with networks for each.
    n_jobs : int or None
        Networks trained side by side, as scikit-learn counts jobs. The answer is the same.
    device : {"cpu", "cuda", "auto"}
        Where to compute. Where there is no GPU, a loaded model answers on the processor.
    random_state : int
        Seed; the same seed gives the same bits on the same machine.
    on_empty : {"error", "prior"}
        What a song without a single frame gets: an error that names it, or the class prior.

    Attributes
    ----------
    networks_ : list of torch.nn.Module
        The fitted networks, one per fold and time.
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
        n_repeats: int = 1,
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
        self.n_repeats = n_repeats
        self.n_jobs = n_jobs
        self.device = device
        self.random_state = random_state
        self.on_empty = on_empty

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_choice("pooling", self.pooling, list(POOLINGS))
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
        about = (y, len(self.classes_), self._columns_are_classes)
        if POOLINGS[self.pooling].starts_as_average:
            start = make_start(WholeSongs(songs), *about)
        else:  # a share of the mean probability would be none of what this pooling gives
            start = make_linear_start(songs, *about)
        start, scale = calibrate(start, songs, y)
        center, spread = center_and_spread(songs)
        frame = FrameNetwork(start, center, spread, self.hidden_size, self.dropout)
        return self._pooled(frame, scale, (songs.n_columns,), start)

    def _exact(self, network: nn.Module) -> nn.Module:
        return network if self.network is not None else copy.deepcopy(network).double()

    def _memory(self, n: int) -> Memory:
        return _Listening(self, n)

    def _has_own_chance(self) -> bool:
        return self.network is None

    def _pooled(
        self,
        frame: nn.Module,
        scale: float,
        shape: tuple[int, ...],
        start: AverageStart | None = None,
    ) -> PooledNetwork:
        pooling = make_pooling(self.pooling, len(self.classes_))
        more = (0.0, AS_IT_IS) if start is None else (start.share, start.certainty)
        return PooledNetwork(frame, pooling, scale, shape, *more)

    def _blank_network(self) -> PooledNetwork:
        n_columns, n_classes = self.n_features_in_, len(self.classes_)
        start = AverageStart(np.zeros((n_columns, n_classes)), np.zeros(n_classes))
        zeros = np.zeros(n_columns)
        with borrowed_chance():
            frame = FrameNetwork(start, zeros, zeros, self.hidden_size, self.dropout)
            return self._pooled(frame, 1.0, (n_columns,))

    def _learnt(self) -> dict[str, Array]:
        return super()._state()

    def _state(self) -> dict[str, Array]:
        if self.network is not None:
            raise ModelFileError("a network of your own cannot be saved; save its state_dict")
        arrays = super()._state()
        shares = [name for name in arrays if name.endswith(".share")]
        # If all are 0 they are left out: files of old have none.
        if not any(arrays[name] for name in shares):
            return {name: array for name, array in arrays.items() if name not in shares}
        return arrays

    def _set_state(self, arrays: Mapping[str, Array]) -> None:
        if not any(name.endswith(".share") for name in arrays):
            numbers = {name.partition(".")[0] for name in arrays if "." in name}
            arrays = {**arrays, **{f"{n}.share": np.zeros((), np.float32) for n in numbers}}
        super()._set_state(arrays)


class _Listening(Memory):
    """What the poolings of the networks have gathered."""

    def __init__(self, method: MILAggregator, n: int) -> None:
        networks = [method._exact(network) for network in method.networks_]
        self._networks = cast(list[PooledNetwork], networks)
        self._device = method._device()
        n_classes = len(method.classes_)
        self._names: list[list[str]] = []
        start: dict[str, Array] = {}
        for i, network in enumerate(self._networks):
            first = {f"{i}.{part}": value for part, value in enumerate(network.start)}
            self._names.append(list(first))
            start |= {name: np.full(n_classes, value) for name, value in first.items()}
        super().__init__(n, start)

    def _hear(self, songs: Songs, which: Ints) -> None:
        with one_thread_each(), torch.inference_mode():
            for place, frames, lengths in heard(songs, self._device):
                for network, names in zip(self._networks, self._names, strict=True):
                    mine = which[place]
                    more = tuple(part.double().cpu() for part in network.listen(frames, lengths))
                    joined = network.join(self._parts(names, mine), more)
                    for name, part in zip(names, joined, strict=True):
                        self.arrays[name][mine] = part.numpy()

    def log_scores(self, which: Ints) -> Floats:
        with one_thread_each(), torch.inference_mode():
            found = [
                network.judge(tuple(p.to(network.scale) for p in self._parts(names, which)))
                for network, names in zip(self._networks, self._names, strict=True)
            ]
        return np.asarray(np.mean([scores.double().cpu().numpy() for scores in found], axis=0))

    def _parts(self, names: list[str], which: Ints) -> Parts:
        return tuple(torch.as_tensor(self.arrays[name][which]) for name in names)


def _frame_features(X: Any) -> list[Array]:
    """Check that songs are arrays (n_frames_i, *feature_shape) of one feature shape."""
    if isinstance(X, str | bytes) or not isinstance(X, Iterable):
        raise SongError(f"expected a list of feature arrays, got {type(X).__name__}")
    arrays = [as_frames(a, i) for i, a in enumerate(X)]
    if not arrays:
        raise SongError("no songs")
    for i, array in enumerate(arrays):
        if array.ndim < 2 or array.shape[1:] != arrays[0].shape[1:]:
            raise SongError(
                f"frames have shape {array.shape}, not (n_frames, *{arrays[0].shape[1:]})",
                song=str(i),
            )
    return arrays
