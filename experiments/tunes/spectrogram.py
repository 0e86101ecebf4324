"""Audio -> log-mel spectrogram of the song -> frames.

Conventions
-----------
A spectrogram has shape (n_steps, n_mels), `STEPS` steps a second, in decibels below the loudest
cell of the song, floored at `-FLOOR`. A frame is `FRAME` seconds of it, a new one starting every
`HOP` seconds; a tail shorter than a hop after the last whole frame is dropped, and a song
shorter than a frame is padded with silence to one. Mel is O'Shaughnessy's formula.
"""

from __future__ import annotations

import numpy as np
import scipy.fft
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from experiments.tunes.synth import RATE, Audio

Spectrogram = NDArray[np.float16]

STEPS = 32  # a second
WINDOW = 1024  # samples, 64 ms
N_MELS = 40
LOWEST, HIGHEST = 150.0, 6000.0  # Hz
FLOOR = 60.0  # dB
FRAME, HOP = 5.0, 2.5  # seconds
FRAME_STEPS, HOP_STEPS = int(FRAME * STEPS), int(HOP * STEPS)


def log_mel(audio: Audio) -> Spectrogram:
    """Compute the spectrogram of a whole song, shape (n_steps, n_mels)."""
    spacing = RATE // STEPS
    padded = np.pad(audio, (WINDOW // 2, WINDOW))
    windows = sliding_window_view(padded, WINDOW)[: len(audio) : spacing]
    windows = windows * np.hanning(WINDOW).astype(np.float32)  # (n_steps, window)
    power = np.abs(scipy.fft.rfft(windows, axis=1)) ** 2  # (n_steps, window // 2 + 1)
    mel = power @ mel_filters().T  # (n_steps, n_mels)
    decibels = 10 * np.log10(np.maximum(mel / max(float(mel.max()), 1e-12), 10 ** (-FLOOR / 10)))
    return np.asarray(decibels, dtype=np.float16)


def mel_filters() -> NDArray[np.float32]:
    """Build triangular filters, shape (n_mels, window // 2 + 1)."""
    mels = np.linspace(_mel(LOWEST), _mel(HIGHEST), N_MELS + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)  # Hz
    bins = np.fft.rfftfreq(WINDOW, 1 / RATE)
    below, centre, above = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - below) / (centre - below), (above - bins) / (above - centre)
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def cut_frames(spectrogram: Spectrogram) -> Spectrogram:
    """Cut a song into frames, shape (n_frames, frame_steps, n_mels)."""
    missing = max(0, FRAME_STEPS - len(spectrogram))
    padded = np.pad(spectrogram, ((0, missing), (0, 0)), constant_values=-FLOOR)
    windows = sliding_window_view(padded, FRAME_STEPS, axis=0)[::HOP_STEPS]
    return np.ascontiguousarray(windows.transpose(0, 2, 1))


def _mel(hertz: float) -> float:
    return 2595 * float(np.log10(1 + hertz / 700))
