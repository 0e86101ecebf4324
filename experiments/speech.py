"""Recordings of spoken digits -> log-mel frames, and a network that says which digit a frame is of.

Conventions
-----------
Recordings are called ``digit_speaker_index.wav``. A spectrogram has shape (n_steps, n_mels), one
step every `HOP` seconds, in natural logarithms of power, the mean of each band over the recording
taken away. A frame is `FRAME_STEPS` steps in a row, shape (frame_steps, n_mels), a new one every
`FRAME_HOP` steps; a recording shorter than a frame is one, with its last step repeated. Mel is
O'Shaughnessy's formula.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.fft
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.io import wavfile
from torch import nn

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

WINDOW, HOP = 0.025, 0.010  # seconds
N_MELS = 32
LOWEST, HIGHEST = 60.0, 3800.0  # Hz
FLOOR = 1e-6  # of the loudest cell of a recording: silence says nothing
FRAME_STEPS, FRAME_HOP = 8, 2
FRAME_SECONDS = FRAME_HOP * HOP
"""From the start of one frame to that of the next."""


@dataclass(frozen=True)
class Recording:
    """One spoken digit."""

    path: Path
    digit: str
    speaker: str
    index: int


class Recordings(Mapping[str, Floats]):
    """Frames of each recording of a folder, made when they are asked for.

    Attributes
    ----------
    known : dict of str to Recording
        By the name of the file without its suffix.
    """

    def __init__(self, folder: Path, indices: range | None = None) -> None:
        found = [_read_name(path) for path in sorted(folder.glob("*_*_*.wav"))]
        self.known = {
            own.path.stem: own for own in found if indices is None or own.index in indices
        }
        if not self.known:
            raise SystemExit(f"{folder} holds no recordings called digit_speaker_index.wav")

    def __getitem__(self, name: str) -> Floats:
        """Frames, shape (n_frames, frame_steps, n_mels)."""
        rate, sound = wavfile.read(self.known[name].path)
        return cut_frames(log_mel(sound.astype(np.float32), rate))

    def __iter__(self) -> Iterator[str]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)

    def checksum(self) -> str:
        """Sha256 of all recordings and their names."""
        digest = hashlib.sha256()
        for name, own in self.known.items():
            digest.update(name.encode() + hashlib.sha256(own.path.read_bytes()).digest())
        return digest.hexdigest()


def log_mel(sound: Floats, rate: int) -> Floats:
    """Spectrogram of a recording, shape (n_steps, n_mels)."""
    length, spacing = round(WINDOW * rate), round(HOP * rate)
    padded = np.pad(sound, (0, max(0, length - len(sound))))
    windows = sliding_window_view(padded, length)[::spacing] * np.hamming(length)
    size = scipy.fft.next_fast_len(2 * length, real=True)
    power = np.abs(scipy.fft.rfft(windows, size, axis=1)) ** 2  # (n_steps, size // 2 + 1)
    mel = power @ mel_filters(size, rate).T  # (n_steps, n_mels)
    logarithm = np.log(np.maximum(mel, FLOOR * max(float(mel.max()), 1e-9)))
    return np.asarray(logarithm - logarithm.mean(axis=0), dtype=np.float32)


def mel_filters(size: int, rate: int) -> NDArray[np.float64]:
    """Triangular filters over the bins of a transform, shape (n_mels, size // 2 + 1)."""
    mels = np.linspace(_mel(LOWEST), _mel(HIGHEST), N_MELS + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)  # Hz
    bins = np.fft.rfftfreq(size, 1 / rate)
    below, centre, above = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - below) / (centre - below), (above - bins) / (above - centre)
    return np.maximum(0, np.minimum(rising, falling))


def cut_frames(spectrogram: Floats) -> Floats:
    """Frames of a recording, shape (n_frames, frame_steps, n_mels)."""
    missing = max(0, FRAME_STEPS - len(spectrogram))
    padded = np.pad(spectrogram, ((0, missing), (0, 0)), mode="edge")
    windows = sliding_window_view(padded, FRAME_STEPS, axis=0)[::FRAME_HOP]
    return np.ascontiguousarray(windows.transpose(0, 2, 1))


def train(
    frames: Floats, digits: Ints, groups: Ints, *, n_digits: int, epochs: int, seed: int
) -> nn.Module:
    """Train a frame network, as `seqagg.frozen.out_of_fold` asks for it.

    Parameters
    ----------
    frames : ndarray of shape (n_frames, frame_steps, n_mels)
    digits : ndarray of int, shape (n_frames,)
        Column of each frame's digit.
    groups : ndarray of int, shape (n_frames,)
        Of no use here, where nothing is held out.
    n_digits, epochs, seed : int
        Columns, passes over the frames, and the seed of weights, dropout and shuffling.

    Returns
    -------
    torch.nn.Module
        Frames -> logits.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Flatten(),
            nn.BatchNorm1d(FRAME_STEPS * N_MELS),
            nn.Linear(FRAME_STEPS * N_MELS, 128),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(128, n_digits),
        )
        x, y = torch.from_numpy(frames), torch.from_numpy(digits)
        optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=1e-2)
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(len(x)), 256):
                if len(rows) == 1:  # nothing to normalise over
                    continue
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return network


def _read_name(path: Path) -> Recording:
    digit, speaker, index = path.stem.split("_")
    if not index.isdecimal():
        raise SystemExit(f"{path} is not called digit_speaker_index.wav")
    return Recording(path, digit, speaker, int(index))


def _mel(hertz: float) -> float:
    return 2595 * float(np.log10(1 + hertz / 700))
