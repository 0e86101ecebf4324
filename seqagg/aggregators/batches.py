"""Songs of unequal length as padded batches.

Conventions
-----------
Padded batches have shape (n_songs, longest, n_columns), frames in time order, padding at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seqagg.songs import Songs

Ints = npt.NDArray[np.int64]

_SCORED_SONGS = 128
"""Songs per batch outside training: on a processor the states of more do not stay in its cache."""

_SCORED_WIDTH = 2**17
"""Columns of all songs of such a batch on a GPU, where few narrow songs take as long as many."""

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

    def sorted(self, songs: Ints, batch_size: int | None = None) -> Iterator[Padded]:
        """Every song once and whole, by length; positions within `songs` come with them.

        Batches are as large as suits the device, if nothing else is said.
        """
        order = np.argsort(self.lengths[songs], kind="stable")
        for chosen in _parts(order, self.lengths[songs], batch_size or self._at_once()):
            index = songs[chosen]
            yield (chosen, *self.padded(self.first[index], self.lengths[index]))

    def _at_once(self) -> int:
        if self.device.type == "cpu":
            return _SCORED_SONGS
        return max(_SCORED_SONGS, _SCORED_WIDTH // self.values.shape[1])


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
