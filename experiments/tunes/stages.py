"""The stages of the command, each from the files of the one before; `store` lists the files."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.tunes import classifier, split
from experiments.tunes.spectrogram import HOP, Spectrogram, cut_frames, log_mel
from experiments.tunes.store import load_json, save_array, save_json
from experiments.tunes.synth import draw_player, render
from experiments.tunes.tunes import GENRES, find_corpus, read_tunes
from seqagg import MeanLogOdds, Songs, write_cache
from seqagg.frozen import out_of_fold

Song = dict[str, Any]
Scores = NDArray[np.float32]

N_FOLDS = 5
MANTISSA_BITS = 12
NOTE = (
    "Dance tunes of O'Neill's Music of Ireland (1903) and Ryan's Mammoth Collection (1883), "
    "rendered with random tempo, key and timbre; genre probabilities of 5 s frames, one every "
    "2.5 s, by a small Keras network; training songs out of fold"
)


@dataclass(frozen=True)
class Settings:
    """What decides the result, apart from the code."""

    tunes_per_genre: int | None = None  # None: all
    epochs: int = 4
    seed: int = 0


def make_tunes(work: Path, settings: Settings) -> list[Song]:
    """Read, choose and split the tunes; `store` lists the fields."""
    path = work / "tunes.json"
    if path.exists():
        return list(load_json(path))
    tunes = read_tunes(find_corpus(), settings.tunes_per_genre)
    sides = split.deal(tunes, [0.6, 0.4], settings.seed)
    train = [tune for tune, side in zip(tunes, sides, strict=True) if side == 0]
    folds = split.deal(train, [1 / N_FOLDS] * N_FOLDS, settings.seed + 1)
    fold_of = {tune.song_id: fold for tune, fold in zip(train, folds, strict=True)}
    songs = []
    for tune in tunes:
        fold = fold_of.get(tune.song_id, -1)
        songs.append(asdict(tune) | {"split": "test" if fold < 0 else "train", "fold": fold})
    save_json(path, songs)
    return songs


def make_spectrograms(work: Path, songs: list[Song], settings: Settings, jobs: int) -> None:
    """Render the tunes that have no spectrogram yet."""
    folder = work / "spectrograms"
    missing = [song for song in songs if not (folder / f"{song['song_id']}.npy").exists()]
    calls = [(song["song_id"], song["notes"], settings.seed, folder) for song in missing]
    in_processes(render_one, calls, jobs, every=200)


def render_one(song: tuple[str, list[Any], int, Path]) -> str:
    """Render one tune and keep its spectrogram; the audio itself is not kept."""
    song_id, notes, seed, folder = song
    audio = render(notes, draw_player(song_id, seed))
    save_array(folder / f"{song_id}.npy", log_mel(audio))
    return song_id


class Spectrograms(Mapping[str, Spectrogram]):
    """Frames of each song, loaded when they are asked for."""

    def __init__(self, work: Path, songs: list[Song]) -> None:
        self._folder = work / "spectrograms"
        self._ids = [song["song_id"] for song in songs]

    def __getitem__(self, song_id: str) -> Spectrogram:
        """Frames in decibels, shape (n_frames, frame_steps, n_mels)."""
        return cut_frames(np.load(self._folder / f"{song_id}.npy", allow_pickle=False))

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)


def make_scores(work: Path, songs: list[Song], settings: Settings, jobs: int) -> Songs:
    """Score training songs by networks that have not seen them, test songs by one of all."""
    known = {name: {song["song_id"]: song[name] for song in songs} for name in songs[0]}
    return out_of_fold(
        partial(classifier.train, epochs=settings.epochs, seed=settings.seed),
        Spectrograms(work, songs),
        labels=known["genre"],
        groups=known["group"],
        split=known["split"],
        cv=known["fold"],
        columns=GENRES,
        kind="probability",
        note=NOTE,
        batch_size=classifier.PREDICTION_BATCH,
        n_jobs=jobs,
        work=work / "predictions",
    )


def make_cache(scores: Songs, out: Path) -> None:
    """Round the scores and write the cache."""
    start = np.concatenate([np.arange(n) * HOP for n in scores.lengths])
    songs = scores.replace(values=rounded(scores.values), start=start)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_cache(songs, out)
    describe(songs)
    print(f"{out}: {out.stat().st_size:,} bytes")


def rounded(probability: Scores) -> Scores:
    """Round to `MANTISSA_BITS`, so that the file packs well; the highest column takes up the rest.

    Rows still sum to 1, and the log-odds of a column near 1 stay as exact as those of the others.
    """
    fraction, exponent = np.frexp(probability.astype(np.float64))
    unit = 2.0**MANTISSA_BITS
    values = np.ldexp(np.round(fraction * unit) / unit, exponent)
    rows, highest = np.arange(len(values)), values.argmax(axis=1)
    values[rows, highest] = 0
    values[rows, highest] = 1 - values.sum(axis=1)
    return values.astype(np.float32)


def describe(songs: Songs) -> None:
    """Print counts, and how often frames and songs are right by the highest column."""
    assert songs.labels is not None
    assert songs.split is not None
    counts = Counter(zip(songs.labels, songs.split, strict=True))
    for genre in GENRES:
        print(f"{genre:>12}: {counts[genre, 'train']:4} train {counts[genre, 'test']:4} test")
    for side in ("train", "test"):
        own = songs[songs.split == side]
        truth = np.array([GENRES.index(genre) for genre in own.labels])
        frames = own.values.argmax(axis=1) == np.repeat(truth, own.lengths)
        right = MeanLogOdds().fit(own).score(own)
        print(
            f"{side}: {len(own)} songs, {len(frames)} frames, {frames.mean():.1%} of them right; "
            f"{right:.1%} of the songs by mean log-odds"
        )


def in_processes(function: Callable[[Any], str], calls: list[Any], jobs: int, every: int) -> None:
    """Call a function on each item in fresh processes, saying how far it is."""
    if not calls:
        return
    context = multiprocessing.get_context("spawn")  # a forked process inherits torch's threads
    with ProcessPoolExecutor(min(jobs, len(calls)), mp_context=context) as pool:
        futures = [pool.submit(function, call) for call in calls]
        for done, future in enumerate(as_completed(futures), start=1):
            name = future.result()
            if done % every == 0 or done == len(calls):
                print(f"  {done} of {len(calls)} ({name})", flush=True)
