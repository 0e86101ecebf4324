"""A recurrent network over frame log-odds that starts from averaging.

Conventions
-----------
Padded batches have shape (n_songs, longest, n_columns), frames in time order, padding at the end.
Networks run in float32, in the canonical order of columns and classes.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from seqagg.aggregators.base import Array, Floats, Ints, OnEmpty
from seqagg.aggregators.batches import heard
from seqagg.aggregators.exact import exact_float32
from seqagg.aggregators.network import (
    NetworkAggregator,
    certain,
    mean_probability,
)
from seqagg.aggregators.parameters import check_choice, check_count, check_flag, check_range
from seqagg.aggregators.recurrent import mean_and_highest
from seqagg.aggregators.start import (
    CLIP,
    LEAST_PROBABILITY,
    AverageStart,
    calibrate,
    center_and_spread,
    make_start,
)
from seqagg.aggregators.team import Dropout, Noise, borrowed_chance
from seqagg.averages import Averages, RunningAverages, WholeSongs
from seqagg.errors import ParameterError
from seqagg.songs import Songs
from seqagg.streaming import Memory
from seqagg.threads import one_thread_each

_SHIFT = 0.5
"""Where `shift` is "auto" and songs come in groups."""


class SongNetwork(nn.Module):
    """Class scores of songs: ``scale * average + correction``.

    The average is an `AverageStart`; the correction comes from a GRU over the frames,
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
    noise : float
    shift : float
    """

    center: Tensor
    spread: Tensor
    weight: Tensor
    bias: Tensor
    share: Tensor
    certainty: Tensor

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
        noise: float = 0.0,
        shift: float = 0.0,
    ) -> None:
        super().__init__()
        n_columns, n_classes = start.weight.shape
        for name, value in (
            ("center", center),
            ("spread", spread),
            ("weight", start.weight),
            ("bias", start.bias),
            ("share", start.share),
            ("certainty", start.certainty),
        ):
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32))
        self.scale = nn.Parameter(torch.tensor(float(scale)), requires_grad=scale != 0)
        self.noise = Noise(noise)
        self.shift = Noise(shift)
        inner = dropout if n_layers > 1 else 0.0

        def gru() -> nn.GRU:
            return nn.GRU(n_columns, hidden_size, n_layers, batch_first=True, dropout=inner)

        self.forwards = gru()
        self.backwards = gru() if bidirectional else None
        self.dropout = Dropout(dropout)
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
        inside = torch.arange(frames.shape[1], device=frames.device) < lengths[:, None]
        inside = inside[:, :, None]  # (n_songs, longest, 1)
        # Answers are to be exact for log-odds of any size; training is not that particular.
        exact = frames if torch.is_grad_enabled() else frames.double()
        count = lengths[:, None].to(exact.dtype)
        average = (exact * inside).sum(dim=1) / count  # (n_songs, n_columns)
        x = self._standardized(frames)
        x = self.noise(x + self.shift(torch.zeros_like(x[:, :1])))
        heard = [mean_and_highest(self.forwards, x, lengths, backwards=False)]
        if self.backwards is not None:
            heard.append(mean_and_highest(self.backwards, x, lengths, backwards=True))
        means, highest = zip(*heard, strict=True)
        probability = mean_probability(exact, inside, count) if self.share > 0 else None
        return self.judge(average, probability, torch.cat([*means, *highest], dim=1))

    def judge(self, average: Tensor, probability: Tensor | None, pooled: Tensor) -> Tensor:
        """Score songs by what was heard of them.

        Parameters
        ----------
        average, probability : Tensor of shape (n_songs, n_columns)
            Mean log-odds and mean probability; the latter only where its share is above 0. In
            doubles, the score is as exact.
        pooled : Tensor of shape (n_songs, 2 * directions * hidden)
            Mean and maximum of the states of the GRU.
        """
        correction = self.output(self.dropout(pooled))
        linear = average @ self.weight.to(average.dtype) + self.bias
        if probability is not None:
            linear = linear + self.share * probability.clamp(min=LEAST_PROBABILITY).log()
            linear = certain(linear, self.certainty)
        return torch.as_tensor(self.scale * linear + correction)

    def listen(
        self, frames: Tensor, lengths: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Go on from a state of the GRU, shape (n_layers, n_songs, hidden).

        Returns
        -------
        total, highest : Tensor of shape (n_songs, hidden)
            Sum and maximum of the states that these frames bring.
        state : Tensor
            That after the last frame of each song.
        """
        x = self._standardized(frames)
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        with exact_float32(frames.device):
            states, state = self.forwards(packed, state)
        h, _ = pad_packed_sequence(
            states, batch_first=True
        )  # (n_songs, longest, hidden), 0 outside
        outside = torch.arange(h.shape[1], device=h.device) >= lengths[:, None]
        return h.sum(dim=1), h.masked_fill(outside[:, :, None], -1.0).amax(dim=1), state

    def _standardized(self, frames: Tensor) -> Tensor:
        return ((frames - self.center) / self.spread).clamp(-CLIP, CLIP)


class GRUAggregator(NetworkAggregator):
    """Correct averaging by what a GRU hears in the order of the frames.

    The score of a song is ``scale * average + correction``. The correction's last layer
    starts at zero and epoch 0 counts in early stopping, so where order says nothing the method
    stays with averaging. One network is trained per grouped fold, stopped on the songs of that
    fold, twice over with other folds, and their scores are averaged. Unless that lowers the loss on
    these songs by more than a standard error, also where each network stops when the others are at
    their best, all networks stay as they start. While training, a song is heard as a random
    contiguous crop.

    Parameters
    ----------
    base : {"mean", "none"}
        Start from averaging, or from nothing (a plain GRU).
    hidden_size : int
        Units of the GRU, per direction.
    n_layers : int
        GRU layers.
    bidirectional : bool
        Whether a second GRU hears the song backwards.
    dropout : float
        Share of pooled states left out while training.
    noise : float
        Deviation of the noise added to the standardized log-odds while training.
    shift : float or "auto"
        Deviation of what is added to each standardized column of a song, all frames alike, while
        training: the frames of a speaker, room or artist never heard are off by as much. "auto"
        is 0.5 where songs come in groups, and so new songs from new groups, else 0.
    min_crop : float
        Shortest crop, as a share of the song; 1 trains on whole songs.
    epochs : int or "auto"
        Most passes over the training songs. "auto" is 30, and up to 120 where songs are so few
        that they make less than 600 steps.
    patience : int or "auto"
        Passes without a gain on the held-out songs, calibrated, before training stops. "auto" is
        half of all.
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

    def __init__(
        self,
        *,
        base: Literal["mean", "none"] = "mean",
        hidden_size: int = 64,
        n_layers: int = 1,
        bidirectional: bool = True,
        dropout: float = 0.4,
        noise: float = 0.5,
        shift: float | Literal["auto"] = "auto",
        min_crop: float = 0.6,
        epochs: int | Literal["auto"] = "auto",
        patience: int | Literal["auto"] = "auto",
        batch_size: int = 64,
        learning_rate: float = 5e-3,
        weight_decay: float = 1e-2,
        max_gradient: float = 1.0,
        n_folds: int = 5,
        n_repeats: int = 2,
        n_jobs: int | None = -1,
        device: str = "cpu",
        random_state: int = 0,
        on_empty: OnEmpty = "error",
    ) -> None:
        self.base = base
        self.hidden_size = hidden_size
        self.n_layers = n_layers
        self.bidirectional = bidirectional
        self.dropout = dropout
        self.noise = noise
        self.shift = shift
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
        check_choice("base", self.base, ("mean", "none"))
        check_flag("bidirectional", self.bidirectional)
        check_count("hidden_size", self.hidden_size)
        check_count("n_layers", self.n_layers)
        check_range("dropout", self.dropout, 0.0, 0.95)
        check_range("noise", self.noise, 0.0, 100.0)
        if self.shift != "auto":
            check_range("shift", self.shift, 0.0, 100.0)

    def _fit(self, songs: Songs, y: Ints, groups: Ints) -> Floats | None:
        grouped = len(np.unique(groups)) < len(songs)
        self._shift = (_SHIFT if grouped else 0.0) if self.shift == "auto" else self.shift
        return super()._fit(songs, y, groups)

    def _new_network(self, songs: Songs, y: Ints) -> SongNetwork:
        start = make_start(WholeSongs(songs), y, len(self.classes_), self._columns_are_classes)
        start, scale = calibrate(start, songs, y)
        if self.base == "none":
            scale = 0.0
        standard = center_and_spread(songs)
        return SongNetwork(start, *standard, scale, **self._architecture(), shift=self._shift)

    def _blank_network(self) -> SongNetwork:
        n_columns, n_classes = self.n_features_in_, len(self.classes_)
        start = AverageStart(np.zeros((n_columns, n_classes)), np.zeros(n_classes))
        zeros = np.zeros(n_columns)
        with borrowed_chance():
            return SongNetwork(start, zeros, zeros, 1.0, **self._architecture())

    def _memory(self, n: int) -> Memory:
        if self.bidirectional:
            raise ParameterError(
                "a GRU that hears songs backwards too must know their end, and cannot stream; "
                "bidirectional=False can"
            )
        return _Listening(self, n)

    def _has_own_chance(self) -> bool:
        # Between its layers PyTorch's GRU has a dropout of its own.
        return self.n_layers == 1 or self.dropout == 0

    def _architecture(self) -> dict[str, Any]:
        names = ("hidden_size", "n_layers", "bidirectional", "dropout", "noise")
        return {name: getattr(self, name) for name in names}


class _Listening(RunningAverages):
    """What the average and the GRU of each fold remember."""

    def __init__(self, method: GRUAggregator, n: int) -> None:
        self._networks: list[SongNetwork] = method.networks_
        self._device = method._device()
        hidden = np.zeros(method.hidden_size)
        start: dict[str, Array] = {}
        for i in range(len(self._networks)):
            start[f"{i}.state"] = np.zeros((method.n_layers, method.hidden_size), np.float32)
            start[f"{i}.total"] = hidden
            start[f"{i}.highest"] = np.full_like(hidden, -1, np.float32)  # states are above -1
        super().__init__(n, method.n_features_in_, ("log_odds", "probability"), start=start)

    def _hear(self, songs: Songs, which: Ints) -> None:
        super()._hear(songs, which)
        with one_thread_each(), torch.inference_mode():
            for place, frames, lengths in heard(songs, self._device):
                for i, network in enumerate(self._networks):
                    self._go_on(i, network, which[place], frames, lengths)

    def _go_on(
        self, i: int, network: SongNetwork, which: Ints, frames: Tensor, lengths: Tensor
    ) -> None:
        state, total, highest = (self.arrays[f"{i}.{x}"] for x in ("state", "total", "highest"))
        before = torch.as_tensor(state[which], device=self._device).transpose(0, 1).contiguous()
        more, high, after = network.listen(frames, lengths, before)
        state[which] = after.transpose(0, 1).cpu().numpy()
        total[which] += more.cpu().numpy()
        highest[which] = np.maximum(highest[which], high.cpu().numpy())

    def log_scores(self, which: Ints) -> Floats:
        averages = self.averages(which)
        with one_thread_each(), torch.inference_mode():
            found = [self._judged(i, averages, which) for i in range(len(self._networks))]
        return np.asarray(np.mean(found, axis=0))

    def _judged(self, i: int, averages: Averages, which: Ints) -> Floats:
        network = self._networks[i]
        mean = self.arrays[f"{i}.total"][which] / averages.lengths[:, None]
        pooled = np.hstack([mean, self.arrays[f"{i}.highest"][which]])
        log_odds = self._tensor(averages["log_odds"])
        probability = self._tensor(averages["probability"]) if network.share > 0 else None
        scores = network.judge(log_odds, probability, self._tensor(pooled).float())
        return np.asarray(scores.double().cpu().numpy())

    def _tensor(self, array: Floats) -> Tensor:
        return torch.as_tensor(array, dtype=torch.float64, device=self._device)
