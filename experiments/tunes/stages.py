"""The stages of the command, each from the files of the one before; `store` lists the files."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.tunes import classifier, split
from experiments.tunes.spectrogram import HOP, log_mel
from experiments.tunes.store import load_arrays, load_json, save_array, save_json
from experiments.tunes.synth import draw_player, render
from experiments.tunes.tunes import GENRES, find_corpus, read_tunes

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


def make_predictions(work: Path, songs: list[Song], settings: Settings, jobs: int) -> None:
    """Score training songs by networks that have not seen them, test songs by one of all."""
    train = [song for song in songs if song["split"] == "train"]
    tasks = []
    for fold, name in task_names().items():
        task = classifier.Task(
            work=work,
            name=name,
            train=[(s["song_id"], GENRES.index(s["genre"])) for s in train if s["fold"] != fold],
            score=[song["song_id"] for song in songs if song["fold"] == fold],
            n_genres=len(GENRES),
            epochs=settings.epochs,
            seed=settings.seed,
        )
        if not task.result.exists():
            tasks.append(task)
    in_processes(classifier.run, tasks, jobs, every=1)


def task_names() -> dict[int, str]:
    """Names of the files in ``predictions``, by the fold of the songs in them."""
    return {-1: "test"} | {fold: f"fold-{fold}" for fold in range(N_FOLDS)}


def make_cache(work: Path, songs: list[Song], out: Path) -> None:
    """Gather the scores in the order of the songs and write the cache."""
    from seqagg import Songs, write_cache

    scores = read_predictions(work)
    arrays = [rounded(scores[song["song_id"]]) for song in songs]
    cache = Songs.from_arrays(
        arrays,
        columns=GENRES,
        kind="probability",
        ids=[song["song_id"] for song in songs],
        labels=[song["genre"] for song in songs],
        groups=[song["group"] for song in songs],
        split=[song["split"] for song in songs],
        fold=np.array([song["fold"] for song in songs]),
        start=[np.arange(len(array)) * HOP for array in arrays],
        note=NOTE,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_cache(cache, out)
    describe(songs, arrays)
    print(f"{out}: {out.stat().st_size:,} bytes")


def read_predictions(work: Path) -> dict[str, Scores]:
    """Frame probabilities by song, from all files of the folder."""
    scores: dict[str, Scores] = {}
    for name in task_names().values():
        stored = load_arrays(work / "predictions" / f"{name}.npz")
        parts = np.split(stored["probability"], stored["offsets"][1:-1])
        scores |= dict(zip(stored["song_id"].tolist(), parts, strict=True))
    return scores


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


def describe(songs: list[Song], arrays: list[Scores]) -> None:
    """Print counts, and how often frames and songs are right by the highest column."""
    counts = Counter((song["genre"], song["split"]) for song in songs)
    for genre in GENRES:
        print(f"{genre:>12}: {counts[genre, 'train']:4} train {counts[genre, 'test']:4} test")
    for side in ("train", "test"):
        own = [
            (array, GENRES.index(song["genre"]))
            for array, song in zip(arrays, songs, strict=True)
            if song["split"] == side
        ]
        frames = np.concatenate([array.argmax(axis=1) == genre for array, genre in own])
        means = [log_odds(array).mean(axis=0).argmax() == genre for array, genre in own]
        print(
            f"{side}: {len(own)} songs, {len(frames)} frames, {frames.mean():.1%} of them right; "
            f"{np.mean(means):.1%} of the songs by mean log-odds"
        )


def log_odds(probability: Scores) -> NDArray[np.float64]:
    """Log-odds of probabilities, in nats."""
    wide = np.clip(probability.astype(np.float64), 1e-7, 1 - 1e-7)
    return np.asarray(np.log(wide) - np.log1p(-wide))


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
