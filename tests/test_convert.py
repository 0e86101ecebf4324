"""seqagg convert: from files to a cache in one command, whole or not at all, always the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from seqagg import MeanLogOdds, Songs, SourceError, read_cache, write_cache
from seqagg.cache import CacheWriter
from seqagg.cli import main
from seqagg.commands.convert import _FORMATS
from seqagg.manifest import read_manifest
from seqagg.places import place_of
from seqagg.prediction import predict_cache, predictions
from seqagg.sources import FORMATS, convert, read, to_arrow, to_pandas
from seqagg.sources.base import File
from seqagg.sources.detection import SUFFIXES
from tests.conftest import assert_same_songs, mixed_songs


def run(*args: Any) -> str:
    done = CliRunner().invoke(main, ["convert", *map(str, args)])
    assert done.exit_code == 0, done.output
    return done.stdout


def refuse(*args: Any) -> str:
    done = CliRunner().invoke(main, ["convert", *map(str, args)])
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    return done.stderr


def tagged(n: int = 40, seed: int = 0) -> Songs:
    """Songs as a tagger scores them: the columns are no classes, and genres are numbers."""
    songs = mixed_songs(n, seed)
    assert songs.labels is not None
    number = {label: str(i) for i, label in enumerate(sorted(set(songs.labels)))}
    return songs.replace(
        ids=[f"{label}/{label}.{i:05}.au" for i, label in enumerate(songs.labels)],
        labels=[number[label] for label in songs.labels],
        columns=[f"column_{i}" for i in range(songs.n_columns)],
    )


def save_x_y_ids(songs: Songs, path: Path) -> Path:
    """As people publish it: frames below each other, label and name beside every one."""
    labels = np.array([int(label) for label in songs.labels])  # type: ignore[union-attr]
    np.savez(
        path,
        X=songs.values,
        Y=np.repeat(labels, songs.lengths),
        IDS=np.repeat(songs.ids.astype(str), songs.lengths),
    )
    return path


def test_from_published_arrays_to_a_benchmark(tmp_path: Path) -> None:
    songs = tagged(60)
    train = save_x_y_ids(songs[:40], tmp_path / "training.npz")
    test = save_x_y_ids(songs[40:], tmp_path / "evaluation.npz")
    out = tmp_path / "songs.parquet"
    said = json.loads(
        run("--train", train, "--test", test, "--kind", "log_odds", "--out", out, "--json")
    )
    assert (said["format"], said["n_songs"], said["n_labelled"]) == ("npz", 60, 60)
    assert any("--classes" in note for note in said["notes"])
    split = ["train"] * 40 + ["test"] * 20
    assert_same_songs(read_cache(out), songs.replace(split=split))
    args = ["benchmark", out, "--methods", "stack", "--json"]
    done = CliRunner().invoke(main, [str(a) for a in args])
    assert done.exit_code == 0, done.output
    method = json.loads(done.stdout)["methods"][0]
    assert method["n_songs"] == 20
    assert method["accuracy"] > 0.6
    named = tmp_path / "named.parquet"
    run(
        *("--train", train, "--test", test, "--kind", "log_odds", "--out", named),
        *("--classes", "blues,jazz,metal", "--ids", "stem", "--folder-is", "group"),
    )
    found = read_cache(named)
    assert found.labels is not None
    assert found.groups is not None
    assert found.labels.tolist() == found.groups.tolist()
    assert found.ids.tolist() == [f"{label}.{i:05}" for i, label in enumerate(found.labels)]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_cache_becomes_another(tmp_path: Path, suffix: str) -> None:
    songs = tagged()
    write_cache(songs, tmp_path / "a.parquet")
    run(tmp_path / "a.parquet", "--out", tmp_path / f"b.{suffix}")
    assert_same_songs(read_cache(tmp_path / f"b.{suffix}"), songs)
    words = refuse(tmp_path / "a.parquet", "--kind", "logit", "--out", tmp_path / "c.parquet")
    assert "a.parquet: is of kind log_odds, not logit" in words


@pytest.mark.parametrize("kind", ["probability", "logit", "log_odds"])
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_log_odds_of_whatever_scores(tmp_path: Path, suffix: str, kind: Any) -> None:
    songs = mixed_songs(200)
    values = songs.values.copy()
    values[5, 1] = np.nan
    if kind == "probability":
        values = 1 / (1 + np.exp(-values))
        values[7] = [0, 1, 0.5]
    songs = songs.replace(values=values, kind=kind, start=np.arange(len(values)), note="a note")
    model = MeanLogOdds().fit(mixed_songs(60, seed=1))
    files = {name: tmp_path / f"{name}.{suffix}" for name in ("before", "after")}
    write_cache(songs, files["before"])
    said = json.loads(run(files["before"], "--log-odds", "--out", files["after"], "--json"))
    assert said["kind"] == "log_odds"
    found = read_cache(files["after"])
    assert_same_songs(found, songs.log_odds())
    assert found.kind == "log_odds"
    model.save(tmp_path / "m.safetensors")
    tables = []
    for file in files.values():
        predict_cache(tmp_path / "m.safetensors", file, tmp_path / "l.parquet")
        tables.append(pq.read_table(tmp_path / "l.parquet").to_pandas())
    pd.testing.assert_frame_equal(*tables, rtol=0, atol=1e-6)


def test_log_odds_batch_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No piece that is converted is much larger than a batch."""
    monkeypatch.setattr("seqagg.sources.base.BATCH_BYTES", 2000)
    monkeypatch.setattr("seqagg.sources.metadata.BATCH_BYTES", 2000)
    sizes: list[int] = []
    convert_songs = Songs.log_odds

    def counted(self: Songs) -> Songs:
        sizes.append(self.values.nbytes)
        return convert_songs(self)

    monkeypatch.setattr(Songs, "log_odds", counted)
    songs = mixed_songs(200)
    songs = songs.replace(values=1 / (1 + np.exp(-songs.values)), kind="probability")
    to_pandas(songs).to_csv(tmp_path / "a.csv", index=False)
    options: dict[str, Any] = {"kind": "probability", "format": "table", "label": "label"}
    monkeypatch.setattr("seqagg.sources.text._BLOCK", 2000)
    convert(tmp_path / "a.csv", tmp_path / "o", songs_per_shard=60, log_odds=True, **options)
    assert len(sizes) > 10
    assert max(sizes) <= 4000
    assert sum(sizes) == songs.values.nbytes
    expected = convert_songs(read(tmp_path / "a.csv", **options))
    assert_same_songs(read_cache(tmp_path / "o"), expected)


def test_log_odds_that_cannot_be(tmp_path: Path) -> None:
    cache = tmp_path / "a.parquet"
    write_cache(Songs([[1.0]], [0, 1], columns=["a"], ids=["x"], kind="logit"), cache)
    out = tmp_path / "o.parquet"
    assert "a.parquet: a single column of softmax logits" in refuse(
        cache, "--log-odds", "--out", out
    )
    said = refuse(cache, "--kind", "log_odds", "--out", out)
    assert "a.parquet: is of kind logit, not log_odds; --log-odds writes them" in said
    audacity = ("--to", "audacity", "--threshold", 0.5, "--window", 1)
    assert "--log-odds is for a cache" in refuse(cache, "--log-odds", *audacity, "--out", out)
    assert not out.exists()


@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_a_folder_of_files_of_equal_numbers_of_songs(tmp_path: Path, where: str) -> None:
    songs = tagged()
    write_cache(songs, tmp_path / "a.parquet")
    out = tmp_path / "songs" if where == "folder" else f"memory://{tmp_path}/songs"
    said = json.loads(run(tmp_path / "a.parquet", "--shards", 15, "--out", out, "--json"))
    assert (said["out"], said["n_songs"]) == (str(out), 40)
    manifest = read_manifest(place_of(out))
    assert manifest is not None
    assert [shard.n_songs for shard in manifest.shards] == [15, 15, 10]
    assert_same_songs(read_cache(out), songs)
    assert "choose a new folder" in refuse(tmp_path / "a.parquet", "--shards", 9, "--out", out)


def test_shards_that_cannot_be_written(tmp_path: Path) -> None:
    write_cache(tagged(), tmp_path / "a.parquet")
    assert "give --shards" in refuse(tmp_path / "a.parquet", "--out", "memory://b/songs.parquet")
    audacity = ("--to", "audacity", "--shards", 3, "--threshold", 0.5, "--window", 1)
    assert "not for --to audacity" in refuse(
        tmp_path / "a.parquet", *audacity, "--out", tmp_path / "labels"
    )
    write_cache(tagged()[-1:], tmp_path / "b.parquet")
    words = refuse(tmp_path, "--format", "cache", "--shards", 20, "--out", tmp_path / "songs")
    assert "stands in" in words
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


def test_the_same_files_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seqagg.sources.base.BATCH_BYTES", 300)
    monkeypatch.setattr("seqagg.cache._ROW_GROUP_BYTES", 3000)
    songs = tagged()
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(4):
        part = to_pandas(songs[10 * i : 10 * i + 10])
        part.to_csv(folder / f"part {i}.csv", index=False)
    for out in (folder / "x.parquet", folder / "x.arrow"):
        found = []
        for _ in range(2):  # the second time the first cache lies in the folder that is read
            run(folder, "--format", "table", "--kind", "log_odds", "--out", out)
            found.append(out.read_bytes())
        assert found[0] == found[1]
        assert_same_songs(read_cache(out), songs)
        out.unlink()


def test_batches_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqagg.sources.base.BATCH_BYTES", 2000)
    monkeypatch.setattr("seqagg.sources.metadata.BATCH_BYTES", 2000)
    songs = tagged(200)
    largest: list[int] = []
    write = CacheWriter.write

    def counted(self: Any, batch: Songs) -> None:
        largest.append(batch.values.nbytes)
        write(self, batch)

    monkeypatch.setattr("seqagg.cache.CacheWriter.write", counted)
    pq.write_table(to_arrow(songs), tmp_path / "a.parquet")
    np.save(tmp_path / "b.npy", songs.values)
    np.save(tmp_path / "n.npy", songs.lengths)
    save_x_y_ids(songs, tmp_path / "c.npz")
    write_cache(songs, tmp_path / "d.parquet")
    options: dict[str, Any] = {"kind": "log_odds"}
    for name, more in (
        ("a.parquet", {}),
        ("b.npy", {"lengths": tmp_path / "n.npy"}),
        ("c.npz", {}),
    ):
        largest.clear()
        convert(tmp_path / name, tmp_path / "out.parquet", **options, **more)
        assert len(largest) > 10
        assert max(largest) <= 4000
        assert sum(largest) == songs.values.nbytes


# Which files, and in what format.


def test_the_tables_of_formats_agree() -> None:
    assert list(FORMATS) == list(SUFFIXES) == _FORMATS


def test_what_cannot_be_told_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("name,a,b\nx,0.1,0.9\n")
    out = ("--out", tmp_path / "o.parquet")
    words = refuse(tmp_path / "a.csv", "--kind", "probability", *out)
    assert "a.csv: the format cannot be told by the columns 'name', 'a', 'b'; " in words
    assert "--song names" in words
    words = refuse(tmp_path / "a.csv", "--song", "name", *out)
    assert "a.csv: what are these scores? --kind says it" in words
    run(tmp_path / "a.csv", "--song", "name", "--kind", "probability", *out)
    words = refuse(tmp_path / "a.csv", "--format", "table", "--kind", "probability", *out)
    assert "no column 'song_id'; --song names the column of song ids; there are 'name'" in words
    (tmp_path / "a.dat").write_text("x")
    assert "the format of .dat files is not known; --format says it" in refuse(
        tmp_path / "a.dat", *out
    )
    for suffix in (".npz", ".npy", ".h5", ".parquet", ".arrow"):
        (tmp_path / f"a{suffix}").write_text("song_id,a\n")
        assert f"is no {suffix} file, whatever its name says" in refuse(
            tmp_path / f"a{suffix}", *out
        )


def test_folders(tmp_path: Path) -> None:
    songs = tagged(6)
    folder, out = tmp_path / "in", tmp_path / "o.parquet"
    (folder / "deep" / ".hidden").mkdir(parents=True)
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    for i, frames in enumerate(songs):
        np.save(folder / "deep" / f"{i}.npy", frames)
    np.save(folder / "deep" / ".hidden" / "7.npy", songs[0])
    run(folder, "--kind", "log_odds", "--out", out)
    assert read_cache(out).ids.tolist() == [f"deep/{i}" for i in range(6)]
    np.save(folder / "0.npy", songs[0])
    words = refuse(folder, "--kind", "log_odds", "--ids", "name", "--out", out)
    assert "song '0'" in words
    assert f"{folder}/0.npy too" in words or f"{folder}/deep/0.npy too" in words
    np.savez(folder / "deep" / "1.npz", songs[1])
    words = refuse(folder, "--kind", "log_odds", "--out", out)
    assert "--format says which are meant" in words
    assert "is given twice" in refuse(folder, folder / "0.npy", "--format", "npy", "--out", out)
    (folder / "self.npy").symlink_to(folder / "self.npy")
    assert "self.npy: " in refuse(folder, "--kind", "log_odds", "--format", "npy", "--out", out)
    assert "holds no raven file" in refuse(folder, "--format", "raven", "--out", out)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name")
def test_what_would_never_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.csv")
    out = ("--out", tmp_path / "o.parquet")
    assert "a.csv: is no regular file" in refuse(tmp_path / "a.csv", *out)
    assert "a.csv: is no regular file" in refuse(tmp_path, *out)
    assert "nowhere.csv: no such file" in refuse(tmp_path / "nowhere.csv", *out)


def test_files_that_differ(tmp_path: Path) -> None:
    songs = tagged(6)
    for i in range(3):
        np.savez(tmp_path / f"{i}.npz", **dict(zip("ab", songs[2 * i : 2 * i + 2], strict=True)))
    out = tmp_path / "o.parquet"
    words = refuse(tmp_path, "--kind", "log_odds", "--out", out)
    assert "1.npz: song 'a': this song stands in" in words
    np.savez(tmp_path / "1.npz", c=songs[2][:, :2], d=songs[3][:, :2])
    words = refuse(tmp_path, "--kind", "log_odds", "--out", out)
    assert "1.npz: 2 columns, and 3 in" in words
    save_x_y_ids(songs[2:4], tmp_path / "1.npz")
    words = refuse(tmp_path, "--kind", "log_odds", "--out", out)
    assert "1.npz: labels, unlike " in words
    assert not out.exists()
    write_cache(songs[:2], tmp_path / "a.parquet")
    write_cache(songs[2:].replace(kind="logit"), tmp_path / "b.parquet")
    words = refuse(tmp_path / "a.parquet", tmp_path / "b.parquet", "--out", out)
    assert "b.parquet: kind logit differs from that of" in words


# A file that changes, and a writer that dies.


def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("base", "metadata"):
        monkeypatch.setattr(f"seqagg.sources.{name}.BATCH_BYTES", 100)
    monkeypatch.setattr("seqagg.sources.text._BLOCK", 1000)
    write = CacheWriter.write
    songs = tagged()
    out = tmp_path / "o.parquet"
    for path in (tmp_path / "a.npz", tmp_path / "a.parquet", tmp_path / "a.csv"):
        if path.suffix == ".npz":
            save_x_y_ids(songs, path)
        elif path.suffix == ".parquet":
            pq.write_table(to_arrow(songs), path)
        else:
            to_pandas(songs).to_csv(path, index=False)

        def touched(self: Any, batch: Songs, path: Path = path) -> None:
            os.utime(path, ns=(1, 1))
            write(self, batch)

        monkeypatch.setattr("seqagg.cache.CacheWriter.write", touched)
        with pytest.raises(SourceError, match=f"{path.name}: changed while it was read"):
            convert(path, out, kind="log_odds")
        assert not out.exists()


KILLED = """
import os, signal, sys
from seqagg.sources import convert
os.fsync = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
convert(sys.argv[1], sys.argv[2], kind="log_odds")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_conversion_leaves_the_old_cache(tmp_path: Path) -> None:
    path, out = save_x_y_ids(tagged(), tmp_path / "a.npz"), tmp_path / "out" / "o.parquet"
    convert(path, out, kind="log_odds", note="old")
    before = out.read_bytes()
    done = subprocess.run([sys.executable, "-c", KILLED, path, out], check=False)
    assert done.returncode == -signal.SIGKILL
    assert out.read_bytes() == before
    convert(path, out, kind="log_odds")
    assert list(out.parent.iterdir()) == [out]


# A second table.


def write_songs(tmp_path: Path, n: int = 6) -> Songs:
    songs = tagged(n).replace(labels=None, ids=[f"music/{i}.wav" for i in range(n)])
    to_pandas(songs).to_csv(tmp_path / "frames.csv", index=False)
    return songs


def test_labels_of_a_second_table(tmp_path: Path) -> None:
    songs = write_songs(tmp_path)
    rows = {
        "song_id": [f"music/{i}.wav" for i in (3, 1, 0, 9, 4, 5, 2)],
        "label": ["NA", "b", "=a()", "z", None, "b", "b"],
        "artist": ["x"] * 7,
        "split": ["train", "test"] * 3 + ["train"],
        "fold": [0, 1, 2, 0, 1, 2, None],
        "year": [1999] * 7,
    }
    table = pd.DataFrame(rows)
    table.to_csv(tmp_path / "labels.csv", index=False)
    table.to_parquet(tmp_path / "labels.parquet")
    expected = songs.replace(
        labels=["=a()", "b", "b", "NA", None, "b"],
        groups=["x"] * 6,
        split=["train", "test", "train", "train", "train", "test"],
        fold=[2, 1, -1, 0, 1, 2],
    )
    for name in ("labels.csv", "labels.parquet"):
        out = tmp_path / "o.parquet"
        said = json.loads(
            run(
                *(tmp_path / "frames.csv", "--kind", "log_odds", "--labels", tmp_path / name),
                *("--group", "artist", "--out", out, "--json"),
            )
        )
        assert_same_songs(read_cache(out), expected)
        (note,) = [note for note in said["notes"] if "9.wav" in note]
        assert note == f"1 songs of {tmp_path / name} are not among the songs (music/9.wav)"
    table["song_id"] = [Path(name).name for name in table["song_id"]]
    table.rename(columns={"song_id": "file"}).to_csv(tmp_path / "labels.csv", index=False)
    args = (tmp_path / "frames.csv", "--kind", "log_odds", "--labels", tmp_path / "labels.csv")
    out_args = ("--out", tmp_path / "o.parquet")
    assert "--labels-song names the column of song ids; there are file" in refuse(*args, *out_args)
    words = refuse(*args, "--labels-song", "file", *out_args)
    assert "has none of the songs: it has '3.wav', they are like 'music/0.wav'" in words
    run(*args, "--labels-song", "file", "--ids", "stem", "--group", "artist", *out_args)
    assert_same_songs(
        read_cache(tmp_path / "o.parquet"), expected.replace(ids=[str(i) for i in range(6)])
    )


def test_a_second_table_may_have_a_row_for_each_of_several_labels(tmp_path: Path) -> None:
    songs = write_songs(tmp_path, 4)
    (tmp_path / "labels.csv").write_text(
        "song_id,label,group\nmusic/0.wav,a,x\nmusic/1.wav,b|c,x\nmusic/0.wav,c,x\nmusic/2.wav,,y\n"
    )
    options: dict[str, Any] = {"kind": "log_odds", "labels": tmp_path / "labels.csv"}
    notes: list[str] = []
    found = read(tmp_path / "frames.csv", task="multilabel", notes=notes, **options)
    expected = songs.replace(
        task="multilabel", labels=[("a", "c"), ("b", "c"), None, None], groups=["x", "x", "y", None]
    )
    assert_same_songs(found, expected)
    assert any("1 songs are not in" in note for note in notes)
    with pytest.raises(
        SourceError, match=r"song 'music/0.wav': column 'label': row 4: 'c', in row"
    ):
        read(tmp_path / "frames.csv", **options)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("song_id,label\n", "labels.csv: has no row"),
        ("song_id,label\n,a\n", "column 'song_id': row 2: no song id"),
        ("song_id,genre\nx,a\n", "says nothing of songs"),
        ("song_id,label,fold\nmusic/0.wav,a,b\n", "column 'fold': is no whole number"),
        ("song_id,label\nmusic/0.wav\n", "row 2: 1 cells for 2 columns"),
    ],
)
def test_a_second_table_that_cannot_be(tmp_path: Path, content: str, words: str) -> None:
    write_songs(tmp_path)
    (tmp_path / "labels.csv").write_text(content)
    args = (tmp_path / "frames.csv", "--kind", "log_odds", "--labels", tmp_path / "labels.csv")
    assert words in refuse(*args, "--out", tmp_path / "o.parquet")
    assert not (tmp_path / "o.parquet").exists()


def test_what_is_said_of_songs_must_be_possible(tmp_path: Path) -> None:
    path = save_x_y_ids(tagged(6), tmp_path / "a.npz")
    kind, out = ("--kind", "log_odds"), ("--out", tmp_path / "o.parquet")
    words = refuse(path, *kind, "--classes", "blues,jazz", *out)
    assert "the label '2' is no number from 0 to 1" in words
    words = refuse(path, *kind, "--columns", "a,b", *out)
    assert "a.npz: has 3 columns, 2 are named" in words
    words = refuse(path, *kind, "--fill", "0.5", *out)
    assert "the format npz takes no fill" in words
    words = refuse(path, *kind, "--to", "audacity", *out)
    assert "needs --threshold and --window" in words
    assert "go with --to audacity" in refuse(path, *kind, "--window", "3", *out)
    assert "a cache ends in .parquet or .arrow" in refuse(path, *kind, "--out", tmp_path / "o.csv")
    assert "no file is given" in refuse(*kind, *out)
    np.savez(tmp_path / "b.npz", song=np.ones((2, 2)))
    words = refuse(tmp_path / "b.npz", *kind, "--folder-is", "label", *out)
    assert "b.npz: song 'b': its name has no folder" in words


def test_names_with_commas(tmp_path: Path) -> None:
    path = save_x_y_ids(tagged(6), tmp_path / "a.npz")
    out = tmp_path / "o.parquet"
    run(path, "--kind", "log_odds", "--columns", '"Speech, man",b,c', "--out", out)
    assert read_cache(out).columns == ("Speech, man", "b", "c")
    (tmp_path / "names.txt").write_text("Speech, man\nb\nc\n")
    run(path, "--kind", "log_odds", "--columns", f"@{tmp_path / 'names.txt'}", "--out", out)
    assert read_cache(out).columns == ("Speech, man", "b", "c")


def test_what_people_see(tmp_path: Path) -> None:
    path = save_x_y_ids(tagged(6), tmp_path / "a.npz")
    done = CliRunner().invoke(
        main, ["convert", str(path), "--kind", "log_odds", "--out", str(tmp_path / "o.parquet")]
    )
    assert "npz: 6 songs, " in done.stdout
    assert "6 songs with a label." in done.stdout
    assert done.stderr.count("seqagg: warning: ") == 2
    hostile = Songs([[1.0]], [0, 1], columns=["\x1b[31mred"], ids=["x"])
    write_cache(hostile, tmp_path / "h.parquet")
    assert "\x1b" not in run(tmp_path / "h.parquet", "--out", tmp_path / "i.parquet")


def test_labels_for_audacity_of_a_cache(tmp_path: Path) -> None:
    songs = tagged(3)
    write_cache(songs, tmp_path / "a.parquet")
    args = ("--to", "audacity", "--threshold", "0", "--window", "2", "--out", tmp_path / "labels")
    run(tmp_path / "a.parquet", *args)
    assert len(list((tmp_path / "labels").iterdir())) == 3


def test_every_option_is_that_of_the_library() -> None:
    from dataclasses import fields

    from seqagg.sources import Options

    command = main.commands["convert"]
    names = {p.name for p in command.params if isinstance(p, click.Option)}
    others = {"out", "shards", "train", "test", "format_", "to", "threshold", "window"}
    others |= {"log_odds", "as_json", "quiet"}
    assert names - others == {field.name for field in fields(Options)}


def test_predictions_as_a_table(tmp_path: Path) -> None:
    songs = mixed_songs(12)
    model = MeanLogOdds().fit(songs)
    table = predictions(model, songs)
    frame = table.to_pandas()
    assert frame["song_id"].tolist() == songs.ids.tolist()
    assert frame["prediction"].tolist() == model.predict(songs).tolist()
    np.testing.assert_array_equal(frame[list(model.classes_)], model.predict_proba(songs))
    model.save(tmp_path / "m.safetensors")
    write_cache(songs, tmp_path / "a.parquet")
    args = ["predict", "m.safetensors", "a.parquet", "--out", "p.parquet"]
    paths = [str(tmp_path / a) if "." in a else a for a in args]
    assert CliRunner().invoke(main, paths).exit_code == 0
    assert pq.read_table(tmp_path / "p.parquet").equals(table)
    several = predictions(MeanLogOdds().fit(mixed_songs(12, multilabel=True)), songs)
    assert several.schema.field("prediction").type == pa.list_(pa.string())


def test_names_of_files() -> None:
    file = File(Path("x/a.BirdNET.results.csv"), "x/a.BirdNET.results.csv")
    assert file.stem(".BirdNET.results.csv", ".csv") == "x/a"
    assert file.stem() == "x/a.BirdNET.results"
