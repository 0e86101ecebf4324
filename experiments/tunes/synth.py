"""Notes of a tune -> audio, on an instrument and at a speed drawn for that tune alone.

Conventions
-----------
Audio is float32, mono, `RATE` samples a second. Nothing drawn here depends on the genre: tempo,
key, timbre, decay and noise come from the song's id by a hash that is the same everywhere.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.tunes.tunes import Note

Audio = NDArray[np.float32]

RATE = 16_000  # samples a second
CYCLE = 2048  # samples in the wavetable, one cycle of the tone
RELEASE = 0.03  # seconds in which a note fades after its end
RING = 0.5  # seconds left for the last note to fade


@dataclass(frozen=True)
class Player:
    """How one tune is played.

    Attributes
    ----------
    tempo : float
        Quarter notes a minute.
    transposition : float
        Semitones; not whole, since instruments are not tuned alike.
    harmonics : array of shape (n_harmonics,)
        Amplitudes of the tone's partials.
    attack, decay : float
        Seconds to full loudness, and from there to 1/e.
    noise : float
        Decibels of white noise, relative to the music.
    seed : int
        Of what differs from note to note.
    """

    tempo: float
    transposition: float
    harmonics: NDArray[np.float64]
    attack: float
    decay: float
    noise: float
    seed: int


def stable_seed(*parts: object) -> int:
    """Turn names into a seed that is the same in every process, unlike Python's `hash`."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def draw_player(song_id: str, seed: int) -> Player:
    """Draw the player of a tune."""
    own_seed = stable_seed("player", seed, song_id)
    rng = np.random.default_rng(own_seed)
    ranks = np.arange(1, rng.integers(4, 13))
    harmonics = ranks ** -rng.uniform(0.6, 2.2) * rng.uniform(0.5, 1.0, len(ranks))
    harmonics[1::2] *= rng.uniform(0.1, 1.0)  # clarinets lack the even partials, fiddles do not
    return Player(
        tempo=float(rng.uniform(70, 130)),
        transposition=float(rng.integers(-6, 7) + rng.uniform(-0.3, 0.3)),
        harmonics=harmonics,
        attack=float(rng.uniform(0.003, 0.04)),
        decay=float(np.exp(rng.uniform(np.log(0.12), np.log(2.0)))),
        noise=float(rng.uniform(-35, -10)),
        seed=own_seed,
    )


def render(notes: list[Note], player: Player) -> Audio:
    """Play a tune.

    Returns
    -------
    array of shape (n_samples,)
        Peak 1 before the noise is added.
    """
    rng = np.random.default_rng(player.seed + 1)
    beat = 60 / player.tempo
    end = max(onset + duration for onset, duration, _ in notes) * beat
    audio = np.zeros(int((end + RING) * RATE), dtype=np.float32)
    shift = rng.normal(0, 0.006, len(notes))  # seconds; nobody plays like a clock
    loudness = 10 ** rng.uniform(-0.15, 0.15, len(notes))
    for (onset, duration, pitch), late, gain in zip(notes, shift, loudness, strict=True):
        start = max(0, int((onset * beat + late) * RATE))
        tone = _tone(pitch + player.transposition, duration * beat, player)
        tone = tone[: len(audio) - start]
        audio[start : start + len(tone)] += np.float32(gain) * tone
    audio /= max(float(np.abs(audio).max()), 1e-9)
    power = float(np.mean(audio**2)) * 10 ** (player.noise / 10)
    audio += np.float32(power**0.5) * rng.standard_normal(len(audio), dtype=np.float32)
    return audio


def _tone(pitch: float, seconds: float, player: Player) -> Audio:
    frequency = 440 * 2 ** ((pitch - 69) / 12)
    time = np.arange(int((seconds + RELEASE) * RATE), dtype=np.float32) / RATE  # (n_samples,)
    phase = (time * np.float32(frequency * CYCLE)).astype(np.int64) % CYCLE
    wave = _cycle(player.harmonics, frequency)[phase]
    rise = np.minimum(time / player.attack, 1)
    fall = np.clip((seconds + RELEASE - time) / RELEASE, 0, 1)
    return (wave * rise * fall * np.exp(-time / player.decay)).astype(np.float32)


def _cycle(harmonics: NDArray[np.float64], frequency: float) -> Audio:
    """One cycle of the tone, without the partials that the sampling rate cannot carry."""
    audible = harmonics[: max(1, int(RATE / 2 / frequency))]
    spectrum = np.zeros(CYCLE // 2 + 1, dtype=np.complex128)
    spectrum[1 : len(audible) + 1] = -0.5j * CYCLE * audible
    return np.fft.irfft(spectrum).astype(np.float32)
