"""What reads a file, and what must be true of what was read."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

import seqagg
from seqagg import Songs, live, sources
from seqagg.cache import CacheBatches
from seqagg.frozen import score_songs
from seqagg.frozen.tables import FILE_NAME, Roles, read_features, with_test_songs
from seqagg.results import read_results
from seqagg.shards import find_shards


def check_songs(songs: Songs, folder: Path) -> None:
    """Songs that were read can be worked with and written."""
    assert len(songs.ids) == len(set(songs.ids)) == len(songs)
    odds = songs.log_odds() if songs.n_columns > 1 or songs.kind != "logit" else songs
    left = odds.present()
    if odds is not songs:
        assert np.isfinite(left.values).all()
    if len(songs) and songs.columns is not None and songs.kind == "probability":
        model = seqagg.MeanLogOdds(on_empty="prior")
        p = model.fit(songs.replace(labels=None, task="multiclass")).predict_proba(songs)
        assert np.isfinite(p).all()


def read_cache(path: Path) -> None:
    """Read at once, and batch by batch."""
    songs = seqagg.read_cache(path)
    check_songs(songs, path.parent)
    batches = CacheBatches(path, n_bytes=50)
    assert sum(len(part) for part, _ in batches.read()) == batches.n_songs == len(songs)
    seqagg.write_cache(songs, path.parent / f"again{path.suffix}")


def read_model(path: Path) -> None:
    """A model that is loaded answers with finite numbers; one in four is saved again."""
    model = seqagg.load(path)
    n = model.n_features_in_
    queries = [np.full((2, n), 30.0), np.linspace(-5, 5, 3 * n).reshape(3, n)]
    p = model.predict_proba(queries)
    assert np.isfinite(p).all()
    assert p.shape == (2, len(model.classes_))
    if zlib.crc32(path.read_bytes()) % 4 == 0:  # the checks of writing take as long as the rest
        model.save(path.parent / "again.safetensors")


def read_network(path: Path) -> None:
    """A frame classifier of an ONNX file, asked for scores."""
    frames = np.linspace(-3, 3, 20, dtype=np.float32).reshape(5, 4)
    songs = score_songs(path, {"a": frames}, kind="logit", columns=["jig", "reel"], check=False)
    check_songs(songs, path.parent)


def read_source(path: Path, format: str, **options: Any) -> None:
    """Convert, which reads in bounded memory, and read."""
    songs = sources.read(path, format, **options)
    check_songs(songs, path.parent)


def listen(path: Path, form: str, model: Any) -> None:
    """Hear all lines, and say the last word."""
    listener = live.Listener(model)
    with path.open("rb") as source:
        for lines in live.read_lines(source, form):
            for record in listener.hear(lines):
                json.dumps(record, allow_nan=False)
    for record in listener.end():
        json.dumps(record, allow_nan=False)


def read_labels(path: Path, songs: Path, task: Any) -> None:
    """Songs of one file, their labels of another."""
    read_source(songs, "table", kind="logit", labels=path, task=task, label="label", group="group")


def read_frames(path: Path) -> None:
    """Features, and songs set aside."""
    roles = Roles(song="filename", label="label", group="artist", time="start", pattern=FILE_NAME)
    table = read_features(path, roles)
    assert len(table.frames) == len(table.song_ids) == len(table.labels)
    with_test_songs(table, 0.3, 0)


def read_folder(path: Path, folder: Path) -> None:
    """A folder of caches, by its list."""
    (folder / "_manifest.json").write_bytes(path.read_bytes())
    found = find_shards(folder)
    songs = seqagg.read_cache(folder)
    assert all(shard.file in ("shard-0.parquet", "shard-1.parquet") for shard in found.shards)
    check_songs(songs, path.parent)


def read_benchmark(path: Path, predictions: bytes) -> None:
    """A result table beside predictions."""
    folder = path.parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "results.parquet").write_bytes(path.read_bytes())
    (folder / "predictions.parquet").write_bytes(predictions)
    found = read_results(folder)
    found.summary()
    found.verdicts()
