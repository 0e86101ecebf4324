from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal

from seqagg import Songs, read_cache, write_cache
from seqagg.errors import CacheError
from tests.conftest import assert_same_songs

FORMATS = ["parquet", "arrow"]

formats = pytest.mark.parametrize("suffix", FORMATS)


# What the tests write: with seqagg ...


def six_songs() -> Songs:
    """Everything that a cache can hold, an empty song and a missing frame among it."""
    rng = np.random.default_rng(0)
    lengths = [5, 0, 9, 3, 12, 7]
    arrays = [rng.random((n, 4)) for n in lengths]
    arrays[2][4] = np.nan
    return Songs.from_arrays(
        arrays,
        columns=["a", "b", "c", "d"],
        kind="probability",
        ids=[f"song {i}" for i in range(6)],
        labels=["a", "b", None, "d", "a", "b"],
        groups=["x", "y", "z", "x", None, "z"],
        split=["train", "train", "train", "test", "test", None],
        fold=[0, 1, 2, 0, 1, -1],
        start=[np.arange(n) * 5.0 for n in lengths],
        note="six",
    )


@st.composite
def any_songs(draw: st.DrawFn) -> Songs:
    kind = draw(st.sampled_from(["probability", "logit", "log_odds"]))
    task = draw(st.sampled_from(["multiclass", "multilabel"]))
    name = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
    columns = draw(st.lists(name, min_size=1, max_size=4, unique=True))
    ids = draw(st.lists(st.text(), max_size=5, unique=True))
    lengths = draw(st.lists(st.integers(0, 4), min_size=len(ids), max_size=len(ids)))
    numbers = {
        "probability": st.floats(0, 1, width=32),
        "logit": st.floats(width=32, allow_nan=False, allow_infinity=False),
        "log_odds": st.floats(width=32, allow_nan=False),
    }[kind]
    values = draw(hnp.arrays(np.float32, (sum(lengths), len(columns)), elements=numbers))
    missing = draw(hnp.arrays(bool, len(values)))
    values[missing] = np.nan

    def per_song(items: st.SearchStrategy[Any]) -> Any:
        return draw(st.none() | st.lists(items, min_size=len(ids), max_size=len(ids)))

    label = st.text() if task == "multiclass" else st.lists(st.text(), max_size=3)
    seconds = hnp.arrays(np.float32, len(values), elements=st.floats(0, 1e4, width=32))
    return Songs(
        values,
        np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        columns=columns,
        kind=kind,
        task=task,
        ids=ids,
        labels=per_song(st.none() | label),
        groups=per_song(st.none() | st.text()),
        split=per_song(st.none() | st.sampled_from(["train", "test", "other"])),
        fold=per_song(st.integers(-1, 9)),
        start=draw(st.none() | seconds),
        note=draw(st.text()),
    )


# ... and by others, with pyarrow.

FRAME_SCORES = [[[0.25, 0.5]], [[0.125, 0.75], [1.0, 0.0]]]
SCORES = pa.list_(pa.list_(pa.float32(), 2))
NESTED = pa.list_(pa.list_(pa.float32()))


def metadata(**changed: Any) -> dict[bytes, bytes]:
    header = {"version": 1, "columns": ["a", "b"], "kind": "probability", "task": "multiclass"}
    return {b"seqagg": json.dumps(header | changed).encode()}


def foreign_table(schema_metadata: dict[bytes, bytes] | None = None, **changed: Any) -> pa.Table:
    """Songs "x" of one frame and "y" of two; a column given as None is left out."""
    columns = {"song_id": pa.array(["x", "y"]), "scores": pa.array(FRAME_SCORES, SCORES)}
    kept = {name: column for name, column in (columns | changed).items() if column is not None}
    return pa.table(kept).replace_schema_metadata(schema_metadata or metadata())


def write_foreign(table: pa.Table, path: Path, **options: Any) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path, **options)
    else:
        with pa.ipc.new_file(str(path), table.schema, **options) as writer:
            writer.write_table(table)
    return path


class TestLossless:
    @settings(max_examples=60, deadline=None)
    @given(songs=any_songs())
    @formats
    def test_what_is_read_is_what_was_written(
        self, tmp_path_factory: pytest.TempPathFactory, suffix: str, songs: Songs
    ) -> None:
        folder = tmp_path_factory.mktemp("lossless")
        write_cache(songs, folder / f"one.{suffix}")
        back = read_cache(folder / f"one.{suffix}")
        assert_same_songs(back, songs)
        write_cache(back, folder / f"two.{suffix}")
        one, two = folder / f"one.{suffix}", folder / f"two.{suffix}"
        assert one.read_bytes() == two.read_bytes()

    @formats
    def test_songs_without_names_for_themselves_get_their_position(
        self, tmp_path: Path, suffix: str
    ) -> None:
        write_cache(Songs([[1.0]], [0, 1], columns=["a"]), tmp_path / f"c.{suffix}")
        assert read_cache(tmp_path / f"c.{suffix}").ids.tolist() == ["0"]

    @formats
    def test_scores_that_pack_to_next_to_nothing(self, tmp_path: Path, suffix: str) -> None:
        """A reader that goes by the size of the file, or by what it says, makes too little room."""
        songs = Songs(np.zeros((60_000, 8)), [0, 30_000, 60_000], columns=[*"abcdefgh"])
        write_cache(songs, tmp_path / f"c.{suffix}")
        assert_same_songs(read_cache(tmp_path / f"c.{suffix}"), songs)

    @formats
    def test_a_part_of_songs(self, tmp_path: Path, suffix: str) -> None:
        part = six_songs()[[4, 1, 2]]
        write_cache(part, tmp_path / f"c.{suffix}")
        assert_same_songs(read_cache(tmp_path / f"c.{suffix}"), part)

    def test_the_two_formats_hold_the_same(self, tmp_path: Path) -> None:
        for suffix in FORMATS:
            write_cache(six_songs(), tmp_path / f"c.{suffix}")
        one, two = (read_cache(tmp_path / f"c.{suffix}") for suffix in FORMATS)
        assert_same_songs(one, two)

    def test_several_row_groups(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("seqagg.cache._ROW_GROUP_BYTES", 200)
        write_cache(six_songs(), tmp_path / "c.parquet")
        assert pq.ParquetFile(tmp_path / "c.parquet").num_row_groups > 2
        assert_same_songs(read_cache(tmp_path / "c.parquet"), six_songs())

    @formats
    def test_a_path_may_be_text(self, tmp_path: Path, suffix: str) -> None:
        write_cache(six_songs(), f"{tmp_path}/new folder/c.{suffix}")
        assert_same_songs(read_cache(f"{tmp_path}/new folder/c.{suffix}"), six_songs())


class TestFormat:
    """Section 4 of the design, read with pyarrow alone: other programs rely on it."""

    @formats
    def test_types_and_metadata(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"c.{suffix}"
        write_cache(six_songs(), path)
        table = pq.read_table(path) if suffix == "parquet" else pa.ipc.open_file(path).read_all()
        item = "element" if suffix == "parquet" else "item"
        frame = pa.list_(pa.field(item, pa.float32()), 4)
        assert {field.name: field.type for field in table.schema} == {
            "song_id": pa.string(),
            "label": pa.string(),
            "group": pa.string(),
            "split": pa.string(),
            "fold": pa.int32(),
            "start": pa.list_(pa.field(item, pa.float32())),
            "scores": pa.list_(pa.field(item, frame)),
        }
        assert json.loads(table.schema.metadata[b"seqagg"]) == {
            "version": 1,
            "columns": ["a", "b", "c", "d"],
            "kind": "probability",
            "task": "multiclass",
            "note": "six",
        }

    @formats
    def test_rows(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"c.{suffix}"
        songs = six_songs()
        write_cache(songs, path)
        table = pq.read_table(path) if suffix == "parquet" else pa.ipc.open_file(path).read_all()
        assert table["song_id"].to_pylist() == songs.ids.tolist()
        assert table["label"].to_pylist() == ["a", "b", None, "d", "a", "b"]
        assert table["fold"].to_pylist() == [0, 1, 2, 0, 1, None]
        assert table["start"].to_pylist()[3] == [0.0, 5.0, 10.0]
        for row, frames in zip(table["scores"].to_pylist(), songs, strict=True):
            assert_array_equal(np.array(row, np.float32).reshape(-1, 4), frames)

    def test_several_labels_are_lists(self, tmp_path: Path) -> None:
        songs = Songs([[1.0]], [0, 1], columns=["a"], task="multilabel", labels=[["p", "q"]])
        write_cache(songs, tmp_path / "c.parquet")
        assert pq.read_table(tmp_path / "c.parquet")["label"].to_pylist() == [["p", "q"]]

    def test_parquet_is_compressed_and_its_pages_are_checksummed(self, tmp_path: Path) -> None:
        songs = Songs(np.zeros((10_000, 4)), [0, 10_000], columns=["a", "b", "c", "d"])
        write_cache(songs, tmp_path / "c.parquet")
        assert (tmp_path / "c.parquet").stat().st_size < songs.values.nbytes / 20

    def test_arrow_is_mapped_not_copied(self, tmp_path: Path) -> None:
        if not Path("/proc/self/maps").exists():
            pytest.skip("no /proc")
        write_cache(six_songs(), tmp_path / "c.arrow")
        songs = read_cache(tmp_path / "c.arrow")
        address = songs.values.__array_interface__["data"][0]
        for line in Path("/proc/self/maps").read_text().splitlines():
            first, _, end = line.split()[0].partition("-")
            if int(first, 16) <= address < int(end, 16):
                assert line.endswith("c.arrow")
                return
        pytest.fail("the scores lie in no mapped region")

    def test_mapped_songs_outlive_the_next_write(self, tmp_path: Path) -> None:
        write_cache(six_songs(), tmp_path / "c.arrow")
        songs = read_cache(tmp_path / "c.arrow")
        write_cache(six_songs()[:1], tmp_path / "c.arrow")
        assert_same_songs(songs, six_songs())


LAYOUTS: dict[str, dict[str, Any]] = {
    "format 1": {},
    "plain nested lists": {"scores": pa.array(FRAME_SCORES, NESTED)},
    "large lists": {
        "scores": pa.array(FRAME_SCORES, pa.large_list(pa.large_list(pa.float32()))),
        "song_id": pa.array(["x", "y"], pa.large_string()),
    },
    "large list of fixed-size lists": {
        "scores": pa.array(FRAME_SCORES, pa.large_list(pa.list_(pa.float32(), 2)))
    },
    "float64": {"scores": pa.array(FRAME_SCORES, pa.list_(pa.list_(pa.float64(), 2)))},
    "float16": {
        "scores": pa.array(FRAME_SCORES, pa.list_(pa.list_(pa.float64()))).cast(
            pa.list_(pa.list_(pa.float16()))
        )
    },
    "dictionary-encoded strings": {"song_id": pa.array(["x", "y"]).dictionary_encode()},
    "columns that the format does not name": {
        "artist": pa.array([{"name": "m"}, None]),
        "tempo": pa.array([120, 90]),
    },
}


class TestWhatOthersWrite:
    @formats
    @pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
    def test_other_layouts_are_read(
        self, tmp_path: Path, suffix: str, layout: dict[str, Any]
    ) -> None:
        songs = read_cache(write_foreign(foreign_table(**layout), tmp_path / f"c.{suffix}"))
        expected = Songs.from_arrays(
            FRAME_SCORES, ids=["x", "y"], columns=["a", "b"], kind="probability"
        )
        assert_same_songs(songs, expected)

    @formats
    def test_the_other_columns_in_other_types(self, tmp_path: Path, suffix: str) -> None:
        table = foreign_table(
            label=pa.array(["p", None]).dictionary_encode(),
            group=pa.array(["g", None], pa.large_string()),
            split=pa.nulls(2),
            fold=pa.array([3, None], pa.int64()),
            start=pa.array([[1.5], [0.0, 2.5]], pa.large_list(pa.float64())),
        )
        songs = read_cache(write_foreign(table, tmp_path / f"c.{suffix}"))
        assert songs.labels.tolist() == ["p", None]
        assert songs.groups.tolist() == ["g", None]
        assert songs.split is None
        assert_array_equal(songs.fold, [3, -1])
        assert_array_equal(songs.start, [1.5, 0, 2.5])

    @formats
    def test_several_labels_in_large_lists(self, tmp_path: Path, suffix: str) -> None:
        label = pa.array([["p", "q"], None], pa.large_list(pa.large_string()))
        table = foreign_table(metadata(task="multilabel"), label=label)
        songs = read_cache(write_foreign(table, tmp_path / f"c.{suffix}"))
        assert songs.labels.tolist() == [("p", "q"), None]

    def test_one_row_group_a_song_without_checksums(self, tmp_path: Path) -> None:
        path = write_foreign(foreign_table(), tmp_path / "c.parquet", row_group_size=1)
        assert_array_equal(read_cache(path).values, np.concatenate(FRAME_SCORES))

    @pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
    def test_record_batches_compressed_or_not(
        self, tmp_path: Path, compression: str | None
    ) -> None:
        table = pa.concat_tables([foreign_table().slice(0, 1), foreign_table().slice(1)])
        options = pa.ipc.IpcWriteOptions(compression=compression)
        path = write_foreign(table, tmp_path / "c.arrow", options=options)
        songs = read_cache(path)
        assert_array_equal(songs.values, np.concatenate(FRAME_SCORES))
        assert_array_equal(songs.offsets, [0, 1, 3])

    @formats
    def test_a_slice_of_a_table(self, tmp_path: Path, suffix: str) -> None:
        songs = read_cache(write_foreign(foreign_table().slice(1), tmp_path / f"c.{suffix}"))
        assert songs.ids.tolist() == ["y"]
        assert_array_equal(songs.values, FRAME_SCORES[1])

    @formats
    def test_no_song_at_all(self, tmp_path: Path, suffix: str) -> None:
        songs = read_cache(write_foreign(foreign_table().slice(2), tmp_path / f"c.{suffix}"))
        assert songs.values.shape == (0, 2)
        assert len(songs) == 0

    @formats
    def test_without_a_task_it_is_multiclass(self, tmp_path: Path, suffix: str) -> None:
        header = {"version": 1, "columns": ["a", "b"], "kind": "logit"}
        table = foreign_table({b"seqagg": json.dumps(header).encode(), b"other": b"x"})
        songs = read_cache(write_foreign(table, tmp_path / f"c.{suffix}"))
        assert (songs.task, songs.kind, songs.note) == ("multiclass", "logit", "")


class Broken(NamedTuple):
    table: pa.Table
    message: str
    song: str | None = None
    column: str | None = None


def broken_scores(scores: Any, nested: pa.DataType, *about: str, **changed: Any) -> Broken:
    return Broken(foreign_table(metadata(**changed), scores=pa.array(scores, nested)), *about)


def broken_header(message: str, column: str | None = None, **changed: Any) -> Broken:
    return Broken(foreign_table(metadata(**changed)), message, None, column)


def broken_column(message: str, song: str | None = None, **column: Any) -> Broken:
    (name,) = column
    return Broken(foreign_table(**column), message, song, name)


def twice(name: str) -> pa.Table:
    table = foreign_table(label=pa.array(["p", "q"]))
    return table.append_column(name, table[name])


BROKEN: dict[str, Broken] = {
    # The declaration.
    "no metadata": Broken(
        foreign_table().replace_schema_metadata({b"pandas": b"{}"}), "no seqagg metadata"
    ),
    "metadata no JSON": Broken(foreign_table({b"seqagg": b"{"}), "no JSON"),
    "metadata no text": Broken(foreign_table({b"seqagg": b"\xff\xfe"}), "no JSON"),
    "metadata no object": Broken(foreign_table({b"seqagg": b"[1]"}), "no JSON object"),
    "no version": broken_header("format version None; this seqagg reads 1", version=None),
    "later version": broken_header("format version 2; this seqagg reads 1", version=2),
    "unknown key": broken_header("unknown keys: colour, pages", pages=1, colour="red"),
    "no columns": broken_header("must list the names of the columns", columns=None),
    "columns no names": broken_header("must list the names of the columns", columns=[1, 2]),
    "columns twice": broken_header("twice", columns=["a", "a"], column="a"),
    "no kind": broken_header("kind None is none of probability", kind=None),
    "unknown kind": broken_header("kind 'softmax' is none of probability", kind="softmax"),
    "unknown task": broken_header("task 'ranking' is none of multiclass", task="ranking"),
    # The names of the songs.
    "no song_id": broken_column("no column of this name", song_id=None),
    "song_id null": broken_column("row 1 has no id", song_id=pa.array(["x", None])),
    "song_id no text": broken_column("holds int64, not string", song_id=pa.array([1, 2])),
    "song_id twice": Broken(foreign_table(song_id=pa.array(["x", "x"])), "twice", "x"),
    # The scores.
    "no scores": broken_column("no column of this name", scores=None),
    "scores not nested": broken_column(
        "holds list<.*>, not list of", scores=pa.array([[0.5], [0.5]])
    ),
    "scores no numbers": broken_column(
        "holds .*string.*, not list of", scores=pa.array([[["p"]], [["q"]]])
    ),
    "song without scores": broken_scores(
        [FRAME_SCORES[0], None], SCORES, "no scores", "y", "scores"
    ),
    "null frame": broken_scores(
        [FRAME_SCORES[0], [[0.5, 0.5], None]], NESTED, "a frame is null", "y", "scores"
    ),
    "null fixed-size frame": broken_scores(
        [FRAME_SCORES[0], [[0.5, 0.5], None]], SCORES, "a frame is null", "y", "scores"
    ),
    "null score": broken_scores(
        [FRAME_SCORES[0], [[0.5, 0.5], [None, 0.5]]], SCORES, "a score is null", "y", "a"
    ),
    "too few scores": broken_scores(
        [FRAME_SCORES[0], [[0.5, 0.5], [0.5]]],
        NESTED,
        "frame 1 has 1 scores for 2 columns",
        "y",
        "scores",
    ),
    "too many columns declared": Broken(
        foreign_table(metadata(columns=["a", "b", "c"])),
        "frame 0 has 2 scores for 3 columns",
        "x",
        "scores",
    ),
    "probability above 1": broken_scores(
        [FRAME_SCORES[0], [[0.5, 0.5], [0.5, 1.5]]],
        SCORES,
        r"frame 1 has a probability outside \[0, 1\]: 1.5",
        "y",
        "b",
    ),
    "probability beyond float32": broken_scores(
        [[[1e300, 0.5]], FRAME_SCORES[1]],
        pa.list_(pa.list_(pa.float64())),
        "frame 0 has a probability outside",
        "x",
        "a",
    ),
    "infinite logit": broken_scores(
        [[[0.5, -np.inf]], FRAME_SCORES[1]],
        SCORES,
        "frame 0 has an infinite logit: -inf",
        "x",
        "b",
        kind="logit",
    ),
    # The rest.
    "label no text": broken_column("holds int64, not string", label=pa.array([1, 2])),
    "several labels in a multiclass cache": broken_column(
        "holds list<.*>, not string", label=pa.array([["p"], ["q"]])
    ),
    "one label in a multilabel cache": Broken(
        foreign_table(metadata(task="multilabel"), label=pa.array(["p", "q"])),
        "holds string, not list of string",
        None,
        "label",
    ),
    "group no text": broken_column("holds double, not string", group=pa.array([1.0, 2.0])),
    "split no text": broken_column("holds bool, not string", split=pa.array([True, False])),
    "fold no integer": broken_column("holds double, not int32", fold=pa.array([0.0, 1.0])),
    "fold beyond int32": broken_column("1099511627776", fold=pa.array([0, 2**40])),
    "start no list": broken_column("holds double, not list of float32", start=pa.array([0.0, 1.0])),
    "too few starts": broken_column("1 starts for 2 frames", "y", start=pa.array([[0.0], [1.0]])),
    "no starts of a song": broken_column(
        "0 starts for 2 frames", "y", start=pa.array([[0.0], None])
    ),
    "column song_id twice": Broken(twice("song_id"), "(?i)two|twice|2 times", None, "song_id"),
    "column scores twice": Broken(twice("scores"), "(?i)two|twice|2 times", None, "scores"),
    "column label twice": Broken(twice("label"), "(?i)two|twice|2 times", None, "label"),
}


class TestRefusals:
    @formats
    @pytest.mark.parametrize("broken", BROKEN.values(), ids=list(BROKEN))
    def test_a_broken_file_song_and_column_are_named(
        self, tmp_path: Path, suffix: str, broken: Broken
    ) -> None:
        old_arrow = int(pa.__version__.partition(".")[0]) < 26
        if old_arrow and suffix == "parquet" and broken is BROKEN["null fixed-size frame"]:
            pytest.skip("Arrow refuses it before seqagg sees it")
        path = write_foreign(broken.table, tmp_path / f"c.{suffix}")
        with pytest.raises(CacheError, match=broken.message) as info:
            read_cache(path)
        error = info.value
        assert (error.file, error.song, error.column) == (str(path), broken.song, broken.column)
        assert str(error).startswith(f"{path}: ")
        assert len(str(error).splitlines()) == 1

    @formats
    @pytest.mark.parametrize("content", [b"", b"PAR1", b"ARROW1\0\0", b"song,score\n" * 100])
    def test_a_foreign_file(self, tmp_path: Path, suffix: str, content: bytes) -> None:
        path = tmp_path / f"c.{suffix}"
        path.write_bytes(content)
        with pytest.raises(CacheError, match=f"{path.name}: cannot be read"):
            read_cache(path)

    @formats
    def test_a_file_of_the_other_format(self, tmp_path: Path, suffix: str) -> None:
        other = {"parquet": "arrow", "arrow": "parquet"}[suffix]
        write_cache(six_songs(), tmp_path / f"c.{other}")
        (tmp_path / f"c.{other}").rename(tmp_path / f"c.{suffix}")
        with pytest.raises(CacheError, match="cannot be read"):
            read_cache(tmp_path / f"c.{suffix}")

    @formats
    def test_every_truncated_file(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"c.{suffix}"
        write_cache(six_songs(), path)
        whole = path.read_bytes()
        for length in [*range(0, len(whole), 37), len(whole) - 1]:
            path.write_bytes(whole[:length])
            with pytest.raises(CacheError, match="cannot be read"):
                read_cache(path)

    @formats
    def test_no_such_file(self, tmp_path: Path, suffix: str) -> None:
        with pytest.raises(CacheError, match=f"c.{suffix}: no such file"):
            read_cache(tmp_path / f"c.{suffix}")

    def test_another_suffix(self, tmp_path: Path) -> None:
        (tmp_path / "c.csv").write_text("song,score\n")
        with pytest.raises(CacheError, match=r"c.csv: not a cache: .*\.parquet, \.arrow"):
            read_cache(tmp_path / "c.csv")
        with pytest.raises(CacheError, match=r"new.csv: a cache ends in \.parquet or \.arrow"):
            write_cache(six_songs(), tmp_path / "new.csv")
        assert not (tmp_path / "new.csv").exists()

    @formats
    @pytest.mark.parametrize(
        ("fields", "message", "song", "column"),
        [
            ({"columns": None}, "columns have no names", None, None),
            ({"labels": ["p", 7]}, "7 is no text", "y", "label"),
            ({"labels": ["p", ("q", "r")]}, "'q', 'r'", "y", "label"),
            ({"labels": [["p"], ["q", 7]], "task": "multilabel"}, "7.* is no text", "y", "label"),
            (
                {"labels": [["p"], ["q", None]], "task": "multilabel"},
                "labels is None",
                "y",
                "label",
            ),
            ({"groups": [None, 7]}, "7 is no text", "y", "group"),
            ({"split": ["train", 7]}, "7 is no text", "y", "split"),
            ({"ids": ["x", 7]}, "7 is no text", "7", "song_id"),
            ({"ids": ["x", None]}, "no id", None, "song_id"),
            ({"labels": ["ä", "\udcff"]}, "udcff", "y", "label"),
            ({"ids": ["ä", "\udcff"]}, "udcff", "\udcff", "song_id"),
            ({"ids": ["x", "ä"], "groups": [None, 7]}, "7 is no text", "ä", "group"),
        ],
        ids=str,
    )
    def test_songs_that_do_not_fit_are_not_written(
        self,
        tmp_path: Path,
        suffix: str,
        fields: dict[str, Any],
        message: str,
        song: str | None,
        column: str | None,
    ) -> None:
        path = tmp_path / f"c.{suffix}"
        path.write_bytes(b"old")
        songs = Songs.from_arrays(FRAME_SCORES, ids=["x", "y"], columns=["a", "b"])
        with pytest.raises(CacheError, match=message) as info:
            write_cache(songs.replace(**fields), path)
        error = info.value
        assert (error.file, error.song, error.column) == (str(path), song, column)
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]

    @formats
    @pytest.mark.parametrize("fields", [{"columns": ["a", "\udcff"]}, {"note": "\udcff"}], ids=str)
    def test_a_declaration_that_is_no_text_is_not_written(
        self, tmp_path: Path, suffix: str, fields: dict[str, Any]
    ) -> None:
        songs = Songs([[1.0, 2.0]], [0, 1], columns=["a", "b"]).replace(**fields)
        with pytest.raises(CacheError, match=rf"c\.{suffix}: .*udcff"):
            write_cache(songs, tmp_path / f"c.{suffix}")
        assert list(tmp_path.iterdir()) == []

    @formats
    @pytest.mark.parametrize("column", ["song_id", "label"])
    def test_bytes_that_are_no_text(self, tmp_path: Path, suffix: str, column: str) -> None:
        offsets = np.array([0, 1, 2], np.int32)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"\xff\xfe")]
        table = foreign_table(**{column: pa.Array.from_buffers(pa.string(), 2, buffers)})
        path = write_foreign(table, tmp_path / f"c.{suffix}")
        with pytest.raises(CacheError, match=rf"c\.{suffix}: .*UTF-?8"):
            read_cache(path)


class TestDamage:
    """A flipped bit is found, or it changed nothing."""

    def flipped(self, path: Path, bits: npt.NDArray[np.int64]) -> list[Songs]:
        """What is read after each single flip that is not found out."""
        whole = path.read_bytes()
        read = []
        for bit in bits:
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << (bit % 8)
            path.write_bytes(damaged)
            with contextlib.suppress(CacheError):
                read.append(read_cache(path))
        return read

    def footer_start(self, path: Path) -> int:
        # A Parquet file ends in the footer, its length in four bytes, and b"PAR1".
        return path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[-8:-4], "little")

    def test_in_the_pages_everything_is_guarded(self, tmp_path: Path) -> None:
        path = tmp_path / "c.parquet"
        write_cache(six_songs(), path)
        bits = np.random.default_rng(0).choice(8 * self.footer_start(path), 400, replace=False)
        survivors = self.flipped(path, bits)
        assert len(survivors) < 100  # what a flip may change is a statistic that nobody reads
        for songs in survivors:
            assert_same_songs(songs, six_songs())

    def test_in_the_footer_the_scores_are_guarded(self, tmp_path: Path) -> None:
        path = tmp_path / "c.parquet"
        write_cache(six_songs(), path)
        first, end = 8 * self.footer_start(path), 8 * path.stat().st_size
        expected = six_songs()
        for songs in self.flipped(path, np.random.default_rng(1).integers(first, end, 200)):
            assert songs.values.tobytes() == expected.values.tobytes()
            assert_array_equal(songs.offsets, expected.offsets)


class TestFolder:
    def two(self, folder: Path, **fields: Any) -> Path:
        """Songs 2 to 5 in a.arrow, 0 and 1 in b.parquet."""
        folder.mkdir()
        write_cache(six_songs()[2:], folder / "a.arrow")
        write_cache(six_songs()[:2].replace(**fields), folder / "b.parquet")
        return folder

    def test_files_in_the_order_of_their_names(self, tmp_path: Path) -> None:
        folder = self.two(tmp_path / "songs.parquet")
        assert_same_songs(read_cache(folder), six_songs()[[2, 3, 4, 5, 0, 1]])

    def test_other_and_hidden_files_are_left_alone(self, tmp_path: Path) -> None:
        folder = self.two(tmp_path / "songs")
        (folder / "README.md").write_text("songs")
        (folder / ".a.0123.tmp.arrow").write_bytes(b"half")
        assert len(read_cache(folder)) == 6

    def test_what_one_file_does_not_know_is_unknown(self, tmp_path: Path) -> None:
        absent = {"labels": None, "groups": None, "split": None, "fold": None, "start": None}
        songs = read_cache(self.two(tmp_path / "songs", **absent))
        expected = six_songs()[2:]
        for field in ("labels", "groups", "split"):
            assert getattr(songs, field).tolist() == [*getattr(expected, field), None, None]
        assert_array_equal(songs.fold, [*expected.fold, -1, -1])
        assert_array_equal(songs.start, [*expected.start, *[np.nan] * 5])

    def test_what_no_file_knows_is_absent(self, tmp_path: Path) -> None:
        for name, rows in (("a", slice(2)), ("b", slice(2, 6))):
            write_cache(
                six_songs()[rows].replace(labels=None, start=None), tmp_path / f"{name}.arrow"
            )
        songs = read_cache(tmp_path)
        assert songs.labels is None
        assert songs.start is None

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            (
                {"columns": ["a", "b", "d", "c"]},
                "columns differ from those of a.arrow: they stand in another order",
            ),
            (
                {"columns": ["a", "b", "e", "c"]},
                "columns differ from those of a.arrow: only here: 'e'; only there: 'd'",
            ),
            ({"kind": "logit"}, "kind logit differs from that of a.arrow, probability"),
            (
                {"task": "multilabel", "labels": None},
                "task multilabel differs from that of a.arrow, multiclass",
            ),
        ],
    )
    def test_files_that_do_not_go_together(
        self, tmp_path: Path, fields: dict[str, Any], words: str
    ) -> None:
        folder = self.two(tmp_path / "songs", **fields)
        with pytest.raises(CacheError, match=rf"b\.parquet: {re.escape(words)}$"):
            read_cache(folder)

    def test_a_song_in_two_files(self, tmp_path: Path) -> None:
        folder = self.two(tmp_path / "songs", ids=["song 0", "song 5"])
        with pytest.raises(CacheError, match="twice") as info:
            read_cache(folder)
        assert (info.value.file, info.value.song) == (str(folder), "song 5")

    def test_a_broken_file_is_named(self, tmp_path: Path) -> None:
        folder = self.two(tmp_path / "songs")
        (folder / "b.parquet").write_bytes(b"half")
        with pytest.raises(CacheError, match=r"b\.parquet: cannot be read"):
            read_cache(folder)

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(CacheError, match="holds no"):
            read_cache(tmp_path)


KILLED_AT_THE_END = """
import os, signal, sys
from seqagg import read_cache, write_cache
songs = read_cache(sys.argv[1])
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
write_cache(songs, sys.argv[2])
"""

WRITES_WITHOUT_END = """
import sys
from seqagg import read_cache, write_cache
one, two = read_cache(sys.argv[1]), read_cache(sys.argv[2])
print("ready", flush=True)
while True:
    write_cache(one, sys.argv[3])
    write_cache(two, sys.argv[3])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL, no advisory locks")
class TestKilledWriter:
    @formats
    def test_the_old_file_stays_and_the_next_write_sweeps(
        self, tmp_path: Path, suffix: str
    ) -> None:
        other = tmp_path / "other.arrow"
        write_cache(six_songs()[:3], other)
        target = tmp_path / "folder" / f"c.{suffix}"
        write_cache(six_songs(), target)
        command = [sys.executable, "-c", KILLED_AT_THE_END, other, target]
        done = subprocess.run(command, capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert len(list(target.parent.iterdir())) == 2
        assert_same_songs(read_cache(target), six_songs())
        assert_same_songs(read_cache(target.parent), six_songs())
        write_cache(six_songs()[:3], target)
        assert list(target.parent.iterdir()) == [target]
        assert_same_songs(read_cache(target), six_songs()[:3])

    @formats
    def test_at_any_moment_the_file_is_one_or_the_other(self, tmp_path: Path, suffix: str) -> None:
        rng = np.random.default_rng(0)
        one = Songs(rng.random((50_000, 4)), [0, 50_000], columns=list("abcd"))
        two = one.replace(values=one.values + 1)
        write_cache(one, tmp_path / "one.arrow")
        write_cache(two, tmp_path / "two.arrow")
        target = tmp_path / f"c.{suffix}"
        write_cache(one, target)
        files = [tmp_path / "one.arrow", tmp_path / "two.arrow", target]
        for pause in rng.uniform(0, 0.1, 2):
            command = [sys.executable, "-c", WRITES_WITHOUT_END, *files]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
                assert writer.stdout is not None
                assert writer.stdout.readline() == b"ready\n"
                time.sleep(pause)
                writer.kill()
            found = read_cache(target)
            assert_same_songs(found, one if found.values[0, 0] < 1 else two)
        write_cache(one, target)
        assert sorted(tmp_path.iterdir()) == sorted(files)
