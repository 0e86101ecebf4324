"""Tables of frame features: `seqagg frames`, and what it makes of the tables that people have.

The table is of the form in which GTZAN's features are passed around: a row per segment, the song
and the segment's number in the file name.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from numpy.testing import assert_allclose
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from seqagg import ParameterError, read_cache
from seqagg.cli import main
from seqagg.commands.frames import _MODELS
from seqagg.frozen.classifiers import FRAME_CLASSIFIERS, frame_classifier
from tests.conftest import assert_same_songs

GENRES = ["blues", "jazz", "metal"]
FEATURES = ["chroma_stft_mean", "chroma_stft_var", "rms_mean", "tempo", "mfcc1_mean"]
N_SONGS, N_SEGMENTS = 10, 12


def gtzan_like(seed: int = 0) -> pd.DataFrame:
    """Segments of songs, in the order in which a folder lists them: 10 stands before 2."""
    rng = np.random.default_rng(seed)
    rows = []
    for genre, centre in zip(GENRES, 2 * np.eye(len(FEATURES)), strict=False):
        for song in range(N_SONGS):
            own = centre + rng.normal(scale=0.5, size=len(FEATURES))
            for segment in sorted(range(N_SEGMENTS), key=str):
                values = own + rng.normal(size=len(FEATURES))
                rows.append([f"{genre}.{song:05d}.{segment}.wav", 66149, *values, genre])
    table = pd.DataFrame(rows, columns=["filename", "length", *FEATURES, "label"])
    return table.assign(tempo=100 + 40 * table.tempo)


TABLE = gtzan_like()


def write(table: pd.DataFrame, path: Path, **options: Any) -> Path:
    if path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    else:
        table.to_csv(path, **({"index": False} | options))
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write(TABLE, tmp_path / "features_3_sec.csv")


def frames(path: Path, *options: str, out: str = "songs.parquet") -> Path:
    """Make a cache of a table."""
    cache = path.parent / out
    done = CliRunner().invoke(main, ["frames", str(path), *kaggle(options), "--out", str(cache)])
    assert done.exit_code == 0, done.output
    return cache


def kaggle(options: Sequence[str]) -> list[str]:
    """Options, with those that the table of this form needs."""
    usual = {"--song-from": "filename", "--label": "label"}
    if "--song" in options:
        usual.pop("--song-from")
    return [word for pair in usual.items() if pair[0] not in options for word in pair] + [*options]


def refused(path: Path, *options: str) -> str:
    cache = path.parent / "never.parquet"
    done = CliRunner().invoke(main, ["frames", str(path), *kaggle(options), "--out", str(cache)])
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert not cache.exists()
    return done.stderr


def test_two_commands_from_a_table_to_a_benchmark_of_songs(table: Path) -> None:
    cache = frames(table)
    run = ["benchmark", str(cache), "--methods", "mean,logodds,stack", "--json"]
    done = CliRunner().invoke(main, run)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    rows = {row["method"]: row for row in found["methods"]}
    assert list(rows) == ["mean", "logodds", "stack"]
    assert rows["logodds"]["n_songs"] == len(GENRES) * N_SONGS * 0.3
    assert rows["logodds"]["accuracy"] > 0.8


def test_songs_have_their_frames_in_order_and_no_two_sides(table: Path) -> None:
    songs = read_cache(frames(table))
    assert songs.ids.tolist() == [f"{g}.{i:05d}" for g in GENRES for i in range(N_SONGS)]
    assert songs.lengths.tolist() == [N_SEGMENTS] * len(songs)
    assert songs.columns == tuple(GENRES)
    assert songs.kind == "logit"
    assert [songs.labels[i] == name.split(".")[0] for i, name in enumerate(songs.ids)]
    sides = [songs.labels[songs.split == side].tolist() for side in ("train", "test")]
    assert [[side.count(genre) for genre in GENRES] for side in sides] == [[7] * 3, [3] * 3]
    assert set(songs.fold[songs.split == "train"]) == set(range(5))
    assert set(songs.fold[songs.split == "test"]) == {-1}


def test_scores_are_those_of_a_model_of_the_training_songs(table: Path) -> None:
    songs = read_cache(frames(table))
    split = dict(zip(songs.ids, songs.split, strict=True))
    known = TABLE.assign(song=TABLE.filename.str.extract(r"(.*)\.\d+\.wav")[0])
    known["segment"] = known.filename.str.extract(r"\.(\d+)\.wav")[0].astype(int)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    train = known[known.song.map(split) == "train"]
    columns = ["length", *FEATURES]
    model.fit(train[columns].to_numpy(), train.label)
    for i in np.flatnonzero(songs.split == "test"):
        own = known[known.song == songs.ids[i]].sort_values("segment")
        expected = model.decision_function(own[columns].to_numpy())
        assert_allclose(songs[int(i)], expected, atol=1e-3)


def test_the_same_seed_gives_the_same_bytes(table: Path) -> None:
    caches = [
        frames(table, "--model", "mlp", "--seed", s, out=f"{n}.parquet")
        for n, s in enumerate("001")
    ]
    assert caches[0].read_bytes() == caches[1].read_bytes()
    assert read_cache(caches[2]).split.tolist() != read_cache(caches[0]).split.tolist()


@pytest.mark.parametrize("name", ["t.tsv", "t.csv.gz", "t.parquet", "T.CSV"])
def test_other_files_give_the_same_songs(table: Path, name: str) -> None:
    path = table.parent / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(table.read_bytes()))
    else:
        write(TABLE, path, sep="\t" if name.endswith(".tsv") else ",")
    expected = read_cache(frames(table))
    assert_same_songs(read_cache(frames(path)).replace(note=expected.note), expected)


def test_every_classifier(table: Path) -> None:
    assert list(FRAME_CLASSIFIERS) == list(_MODELS)
    for name in FRAME_CLASSIFIERS:
        songs = read_cache(frames(table, "--model", name, "--cv", "2"))
        right = songs.values.argmax(axis=1) == np.repeat(
            [GENRES.index(label) for label in songs.labels], songs.lengths
        )
        assert right.mean() > 0.6, name
        assert songs.kind == FRAME_CLASSIFIERS[name][1]
    with pytest.raises(ParameterError, match="no frame classifier 'tree'; there are logistic, svm"):
        frame_classifier("tree")


# Columns that are no features.


def test_row_numbers_and_what_says_the_label_are_left_out(tmp_path: Path) -> None:
    table = TABLE.assign(
        row=np.arange(len(TABLE)) + 7,
        label_id=TABLE.label.map({"blues": 4, "jazz": 0, "metal": 2}),
        artist="x",
        none=np.nan,
        beat=TABLE.tempo > 100,
    )
    path = write(table, tmp_path / "t.csv", index=True)
    cache = tmp_path / "songs.parquet"
    arguments = ["frames", str(path), *kaggle(["--drop", "length"]), "--out", str(cache)]
    done = CliRunner().invoke(main, [*arguments, "--json"])
    found = json.loads(done.stdout)
    assert found["features"] == [*FEATURES, "beat"]
    assert found["left_out"] == [
        "'' (it has no name, as row numbers have none)",
        "'row' (it counts the rows)",
        "'label_id' (it says the label)",
        "'artist' (string, not numbers)",
        "'none' (empty)",
    ]
    done = CliRunner().invoke(main, arguments)
    assert done.stderr.splitlines()[1] == "seqagg: warning: left out: 'row' (it counts the rows)"
    assert "6 features: chroma_stft_mean, chroma_stft_var, rms_mean" in done.stdout


def test_a_frame_with_an_empty_feature_is_missing(table: Path) -> None:
    holes = TABLE.copy()
    holes.loc[3, "tempo"] = np.nan
    holes.loc[5, FEATURES] = np.nan
    songs = read_cache(frames(write(holes, table.parent / "holes.csv")))
    # In the order of the folder, rows 3 and 5 are the segments 11 and 3.
    assert np.flatnonzero(np.isnan(songs[0]).all(axis=1)).tolist() == [3, 11]
    assert np.isnan(songs.values).all(axis=1).sum() == 2


# Groups, splits, times.


def with_columns(table: pd.DataFrame) -> pd.DataFrame:
    """The table with song, number and more in columns of their own."""
    song = table.filename.str.extract(r"(.*)\.\d+\.wav")[0]
    number = table.filename.str.extract(r"\.(\d+)\.wav")[0].astype(int)
    artist = table.label + (song.str[-1].astype(int) // 2).astype(str)
    return table.drop(columns=["filename", "length"]).assign(
        song=song,
        at=number * 3.0,
        artist=artist,
        side=np.where(artist.str[-1] == "4", "test", "train"),
    )


def test_columns_may_say_it_all(tmp_path: Path) -> None:
    path = write(with_columns(TABLE), tmp_path / "t.csv")
    options = ["--song", "song", "--group", "artist", "--split", "side", "--time", "at"]
    songs = read_cache(frames(path, *options))
    assert songs.split.tolist() == (["train"] * 8 + ["test"] * 2) * 3
    assert songs.start.tolist() == [3.0 * i for i in range(N_SEGMENTS)] * len(songs)
    assert songs.groups[3] == "blues1"
    for group in set(songs.groups):
        assert len(set(songs.fold[songs.groups == group])) == 1
    drawn = read_cache(frames(path, *options[:4], "--drop", "at", "--test-size", "0.4"))
    assert (drawn.split == "test").sum() == 12
    for group in set(drawn.groups):
        assert len(set(drawn.split[drawn.groups == group])) == 1


def test_a_pattern_takes_names_apart(tmp_path: Path) -> None:
    parts = TABLE.filename.str.extract(r"(\w+)\.(\d+)\.(\d+)\.wav")
    names = "calls/" + parts[0] + "_" + parts[1] + "@" + parts[2] + ".flac"
    path = write(TABLE.assign(filename=names), tmp_path / "t.csv")
    pattern = r"calls/(?P<song>(?P<group>\w+_\d{4})\d)@(?P<frame>\d+)\.flac"
    songs = read_cache(frames(path, "--pattern", pattern, "--test-size", "0", "--cv", "3"))
    assert songs.ids[0] == "blues_00000"
    assert set(songs.groups) == {f"{genre}_0000" for genre in GENRES}
    assert songs.split is None
    assert_allclose(songs.lengths, N_SEGMENTS)


def test_songs_without_a_label_are_scored_too(table: Path) -> None:
    unknown = TABLE.assign(label=TABLE.label.where(~TABLE.filename.str.startswith("jazz.00003")))
    songs = read_cache(frames(write(unknown, table.parent / "t.csv")))
    (row,) = np.flatnonzero(songs.ids == "jazz.00003")
    assert [songs.labels[row], songs.split[row], songs.fold[row]] == [None, None, -1]


# What cannot be used.


def test_bad_tables_are_refused_in_one_line(table: Path) -> None:
    text = table.read_text()

    def changed(old: str, new: str) -> Path:
        path = table.parent / f"bad {len([*table.parent.iterdir()])}.csv"
        path.write_text(text.replace(old, new, 1))
        return path

    for path, words in [
        (changed("blues.00000.0.wav", "first.wav"), "column 'filename': row 1: 'first.wav'"),
        (changed("blues.00000.0.wav", ""), "column 'filename': row 1 has no song"),
        (changed("blues.00000.1.wav", "blues.00000.0.wav"), "rows 1 and 2 have the same number, 0"),
        (changed(",blues\n", ",jazz\n"), "song 'blues.00000': its frames have labels 'jazz' and"),
        (changed("tempo", "rms_mean"), "column 'rms_mean': two columns of this name"),
        (changed(",label", ",genre"), "column 'label': no such column; there are filename, length"),
        (changed("66149,", "66149,0,"), ".csv: cannot be read: CSV parse error: Expected 8 col"),
        (changed("66149", "inf"), "column 'length': row 1 is infinite"),
        (table.parent / "none.csv", "none.csv: no such file"),
        (table.parent / "t.xlsx", "t.xlsx: a table of features ends in .csv, .tsv"),
    ]:
        assert words in refused(path), words
    (table.parent / "latin.csv").write_bytes(text.replace("blues", "bl\u00fces").encode("latin-1"))
    assert "latin.csv: cannot be read" in refused(table.parent / "latin.csv")
    (table.parent / "empty.csv").write_text("filename,label,a\n")
    assert "empty.csv: the table has no rows" in refused(table.parent / "empty.csv")
    (table.parent / "void.csv").write_text("")
    assert "void.csv: cannot be read: Empty CSV file" in refused(table.parent / "void.csv")
    (table.parent / "wide.csv").write_text("filename,label" + ",a" * 1_000_000 + "\n")
    assert "wide.csv: 1000002 columns, of which 100000" in refused(table.parent / "wide.csv")
    (table.parent / "foreign.parquet").write_bytes(b"PAR1 no more PAR1")
    assert "foreign.parquet: cannot be read" in refused(table.parent / "foreign.parquet")


def test_what_unpacks_to_very_much_more_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = b"filename,label,a\n" + b"blues.0.0,blues,0\n" * 500_000
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(rows))
    monkeypatch.setattr("seqagg.files._SMALL", 2**20)
    words = refused(path)
    assert f"t.csv.gz: would unpack from {path.stat().st_size:,} bytes to 8,388,608" in words


def test_songs_that_became_classes_are_noticed(tmp_path: Path) -> None:
    whole = TABLE.assign(filename=TABLE.filename.str.replace(r"\.\d+\.wav", ".wav", regex=True))
    path = write(whole.drop_duplicates("filename"), tmp_path / "features_30_sec.csv")
    assert "all rows of a class become one song, such as 'blues'" in refused(path)
    assert read_cache(frames(path, "--song", "filename")).lengths.tolist() == [1] * 30


def test_bad_options_are_refused(table: Path, tmp_path: Path) -> None:
    for options, words in [
        (["--song", "filename", "--song-from", "filename"], "one of --song and --song-from"),
        (["--song", "filename", "--pattern", "x"], "--pattern needs --song-from"),
        (["--pattern", "("], "pattern '(': missing )"),
        (["--pattern", ".*"], "has no group (?P<song>...)"),
        (["--split", "label", "--test-size", "0.2"], "two ways to say the same"),
        (["--drop", "nothing"], "column 'nothing': no such column"),
        (["--time", "label"], "column 'label': is string, not numbers"),
        (["--group", "length"], "all songs are of one group: none can be set aside"),
        (["--group", "length", "--test-size", "0"], "all training songs are of one group"),
    ]:
        assert words in refused(table, *options), words
    holes = TABLE.assign(tempo=TABLE.tempo.where(TABLE.tempo > 125))
    found = refused(write(holes, tmp_path / "holes.csv"))
    assert "column 'tempo': is empty in" in found
    out = ["--out", str(tmp_path / "songs.csv")]
    done = CliRunner().invoke(main, ["frames", str(table), *kaggle([]), *out])
    assert "songs.csv: a cache ends in .parquet or .arrow" in done.stderr
