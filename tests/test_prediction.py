"""A whole cache labelled batch by batch: as if at once, in little memory, whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import functools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import seqagg
from seqagg import Songs, cache, cache_pieces, prediction, sources, write_cache
from seqagg.aggregators import make_aggregator
from seqagg.cache import CacheBatches
from seqagg.errors import CacheError, ParameterError, SongError
from seqagg.prediction import predict_cache
from tests.conftest import COLUMNS, assert_same_songs, order_free_songs

SUFFIXES = (".parquet", ".arrow")

both_kinds_of_file = pytest.mark.parametrize("suffix", SUFFIXES)


@pytest.fixture
def songs() -> Songs:
    """Songs as probabilities, with missing frames, splits, and labels known and unknown."""
    drawn = order_free_songs(90)
    values = 1 / (1 + np.exp(-drawn.values.astype(float)))
    values[drawn.offsets[:-1:7], 1] = np.nan
    labels = [None if i % 10 == 3 else label for i, label in enumerate(drawn.labels)]
    split = ["train" if i % 3 else "test" for i in range(90)]
    return drawn.replace(values=values, kind="probability", labels=labels, split=split)


@pytest.fixture
def model(tmp_path: Path, songs: Songs) -> Path:
    path = tmp_path / "m.safetensors"
    known = songs[[label is not None for label in songs.labels]]
    seqagg.MeanLogOdds().fit(known).save(path)
    return path


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some five songs at a time, and a map that is given back after some batches."""
    monkeypatch.setattr(prediction, "CacheBatches", functools.partial(CacheBatches, n_bytes=600))
    monkeypatch.setattr(cache_pieces, "_MAPPED_BYTES", 2000)
    monkeypatch.setattr(cache, "_ROW_GROUP_BYTES", 3000)
    monkeypatch.setattr(prediction, "_ROWS", 30)


def in_folder(songs: Songs, folder: Path, suffix: str) -> Path:
    """Three files, of which the second has no labels and no split."""
    folder.mkdir()
    for i, part in enumerate(
        (songs[:20], songs[20:50].replace(labels=None, split=None), songs[50:])
    ):
        write_cache(part, folder / f"{i}{suffix}")
    return folder


class TestBatches:
    @both_kinds_of_file
    def test_together_they_are_the_cache(self, songs: Songs, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"songs{suffix}"
        starts = np.arange(len(songs.values), dtype=np.float32)
        songs = songs.replace(fold=np.arange(90) % 4, start=starts, note="a note")
        write_cache(songs, path)
        batches = CacheBatches(path, n_bytes=600)
        assert batches.n_songs == 90
        assert batches.splits == {"train": 60, "test": 30}
        pieces = list(batches.read())
        assert len(pieces) > 10
        assert [x for _, labels in pieces for x in labels.to_pylist()] == songs.labels.tolist()
        parts = [part for part, _ in pieces]
        whole = Songs.from_arrays(
            [array for part in parts for array in part],
            start=[
                part.start[a:b]
                for part in parts
                for a, b in zip(part.offsets[:-1], part.offsets[1:], strict=True)
            ],
            ids=[i for part in parts for i in part.ids],
            fold=np.concatenate([part.fold for part in parts]),
            columns=parts[0].columns,
            kind=parts[0].kind,
            note=parts[0].note,
        )
        assert_same_songs(whole, songs.replace(labels=None, split=None))

    @both_kinds_of_file
    def test_one_split(self, songs: Songs, tmp_path: Path, suffix: str) -> None:
        source = in_folder(songs, tmp_path / "folder", suffix)
        pieces = list(CacheBatches(source, n_bytes=600).read("test"))
        found = [i for part, _ in pieces for i in part.ids]
        middle = set(songs.ids[20:50])
        assert found == [i for i in songs.ids[songs.split == "test"] if i not in middle]

    def test_a_row_group_larger_than_a_batch_is_read_in_pieces(
        self, songs: Songs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cache, "_ROW_GROUP_BYTES", 2**30)
        write_cache(songs, tmp_path / "songs.parquet")
        assert pq.ParquetFile(tmp_path / "songs.parquet").num_row_groups == 1
        assert len(list(CacheBatches(tmp_path / "songs.parquet", n_bytes=600).read())) > 10

    def test_files_that_differ_are_refused(self, songs: Songs, tmp_path: Path) -> None:
        write_cache(songs[:5], tmp_path / "a.parquet")
        write_cache(songs[5:].replace(columns=["a", "b", "c"]), tmp_path / "b.parquet")
        with pytest.raises(
            CacheError, match=r"b\.parquet: columns differ from those of a\.parquet"
        ):
            CacheBatches(tmp_path)


class TestTable:
    @both_kinds_of_file
    @pytest.mark.parametrize("out", ["l.csv", "l.parquet"])
    @pytest.mark.parametrize("method", ["majority", "mean", "logodds", "stack"])
    def test_as_if_labelled_at_once(
        self, songs: Songs, tmp_path: Path, suffix: str, out: str, method: str
    ) -> None:
        known = songs[[label is not None for label in songs.labels]]
        model = make_aggregator(method).fit(known)
        model.save(tmp_path / "m.safetensors")
        write_cache(songs, tmp_path / f"songs{suffix}")
        report = predict_cache(
            tmp_path / "m.safetensors", tmp_path / f"songs{suffix}", tmp_path / out
        )
        rows = read(tmp_path / out)
        assert rows[0] == ["song_id", "prediction", *COLUMNS]
        assert [row[0] for row in rows[1:]] == songs.ids.tolist()
        assert [row[1] for row in rows[1:]] == model.predict(songs).tolist()
        proba = np.array([row[2:] for row in rows[1:]], dtype=float)
        if method == "stack":
            assert np.allclose(proba, model.predict_proba(songs), rtol=1e-12)
        else:
            assert np.array_equal(proba, model.predict_proba(songs)), "to the bit"
        assert report.n_songs == 90
        assert report.n_labelled == len(known)
        assert report.accuracy == model.score(known)

    def test_a_folder_some_of_whose_files_have_no_labels(
        self, songs: Songs, model: Path, tmp_path: Path
    ) -> None:
        source = in_folder(songs, tmp_path / "folder", ".parquet")
        report = predict_cache(model, source, tmp_path / "l.csv")
        known = [i for i in (*range(20), *range(50, 90)) if songs.labels[i] is not None]
        assert report.n_labelled == len(known)
        assert report.accuracy == seqagg.load(model).score(songs[known])
        assert [row[0] for row in read(tmp_path / "l.csv")[1:]] == songs.ids.tolist()

    def test_the_names_of_songs_stay_arrow(
        self, songs: Songs, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_cache(songs, tmp_path / "songs.parquet")

        def ids(self: Songs) -> Any:
            raise AssertionError("a Python object for each song")

        monkeypatch.setattr(Songs, "ids", property(ids))
        predict_cache(model, tmp_path / "songs.parquet", tmp_path / "l.csv", split="test")
        assert len(read(tmp_path / "l.csv")) == 1 + 30

    def test_several_labels_of_a_song(self, tmp_path: Path) -> None:
        drawn = order_free_songs(40)
        labels = [[], ["blues"], ["metal", "jazz"], None] * 10
        songs = drawn.replace(labels=labels, task="multilabel")
        known = songs[[label is not None for label in labels]]
        model = seqagg.MeanLogOdds().fit(known)
        model.save(tmp_path / "m.safetensors")
        write_cache(songs, tmp_path / "songs.parquet")
        report = None
        for out in ("l.csv", "l.parquet"):
            report = predict_cache(
                tmp_path / "m.safetensors", tmp_path / "songs.parquet", tmp_path / out
            )
            assert report.multilabel
            assert report.n_labelled == 30
            assert report.accuracy == model.score(known)
        sets = [
            [c for c, has in zip(COLUMNS, row, strict=True) if has] for row in model.predict(songs)
        ]
        assert pq.read_table(tmp_path / "l.parquet")["prediction"].to_pylist() == sets
        assert [row[1] for row in read(tmp_path / "l.csv")[1:]] == ["|".join(s) for s in sets]

    @pytest.mark.parametrize("keep", [False, True])
    @pytest.mark.parametrize("out", ["l.csv", "l.parquet"])
    def test_formulas(self, tmp_path: Path, out: str, keep: bool) -> None:
        """Text in .csv, unless they are to be kept; a number with its sign is no formula."""
        columns = ["=cmd|' /C calc'!A0", "@SUM(1)", "-x"]
        ids = ["+1+1", "-3.5e7", "-", "\t=1", "safe=1", "'=1", "\r@", "1-2", "+49", "-.5", "-12"]
        ids += ["\n=1", " =1", "\u00a0-x", "\ufeff=1", "-1\n", "\ttab", "''", "'x", "|", ""]
        ids += [sign + "1" for sign in "\uff1d\uff0b\uff0d\uff20"]
        songs = order_free_songs(len(ids), columns=columns).replace(ids=ids)
        model = seqagg.MeanLogOdds().fit(songs)
        model.save(tmp_path / "m.safetensors")
        write_cache(songs, tmp_path / "songs.parquet")
        files = (tmp_path / "m.safetensors", tmp_path / "songs.parquet", tmp_path / out)
        report = predict_cache(*files, **({"escape_formulas": False} if keep else {}))
        header, *rows = read(tmp_path / out)
        plain = {"-3.5e7", "safe=1", "1-2", "+49", "-.5", "-12", "''", "'x", "|", ""}
        formulas = set(ids) - plain
        if out == "l.parquet":
            assert report.n_formulas == 0
        else:
            assert report.n_formulas == len(columns) + len(formulas) + len(songs)
        mark = "" if keep or out == "l.parquet" else "'"
        assert header == ["song_id", "prediction", *(mark + c for c in sorted(columns))]
        assert [row[0] for row in rows] == [(mark if i in formulas else "") + i for i in ids]
        assert [row[1] for row in rows] == [mark + label for label in model.predict(songs)]

    def test_labels_of_songs_come_back_from_a_table_of_predictions(self, tmp_path: Path) -> None:
        columns = ["=a", "b", "'-c"]
        ids = ["=1", "'=1", "''=1", "'1", "-5.2", *map(str, range(25))]
        songs = order_free_songs(30, columns=columns).replace(ids=ids)
        model = seqagg.MeanLogOdds().fit(songs)
        model.save(tmp_path / "m.safetensors")
        write_cache(songs.replace(labels=None), tmp_path / "songs.parquet")
        predict_cache(tmp_path / "m.safetensors", tmp_path / "songs.parquet", tmp_path / "l.csv")
        options = {"labels": tmp_path / "l.csv", "label": "prediction"}
        found = sources.read(tmp_path / "songs.parquet", **options)
        assert found.labels.tolist() == model.predict(songs).tolist()
        # A table of somebody else means what it says.
        (tmp_path / "own.csv").write_text("song_id,label\n'=1,b\n")
        found = sources.read(tmp_path / "songs.parquet", labels=tmp_path / "own.csv")
        assert [i for i, label in zip(ids, found.labels, strict=True) if label] == ["'=1"]

    def test_classes_of_any_name(self, tmp_path: Path) -> None:
        """Parquet's settings are by path, in which a dot stands between the parts."""
        columns = ["a.b", "prediction.list.element", 'ü,\n"']
        songs = order_free_songs(30).replace(columns=columns, labels=None)
        model = seqagg.MeanLogOdds().fit(songs)
        model.save(tmp_path / "m.safetensors")
        write_cache(songs, tmp_path / "songs.parquet")
        for out in ("l.csv", "l.parquet"):
            predict_cache(tmp_path / "m.safetensors", tmp_path / "songs.parquet", tmp_path / out)
            rows = read(tmp_path / out)
            assert rows[0] == ["song_id", "prediction", *model.classes_]
            assert [row[1] for row in rows[1:]] == model.predict(songs).tolist()

    def test_how_far_it_is(
        self, songs: Songs, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_cache(songs, tmp_path / "songs.parquet")
        told: list[tuple[int, int]] = []

        @contextlib.contextmanager
        def counted(text: str, unit: str) -> Any:
            yield lambda done, total: told.append((done, total))

        monkeypatch.setattr(prediction, "counted", counted)
        predict_cache(model, tmp_path / "songs.parquet", tmp_path / "l.csv", split="test")
        assert len(told) > 5
        assert told == sorted(told)
        assert told[-1] == (30, 30)


class TestWholeOrNotAtAll:
    @both_kinds_of_file
    def test_a_song_twice_in_different_batches(
        self, songs: Songs, model: Path, tmp_path: Path, suffix: str
    ) -> None:
        path = tmp_path / f"songs{suffix}"
        write_table_with_ids(songs, path, [*songs.ids[:-1], songs.ids[1]])
        self.refused(model, path, tmp_path, CacheError, r"songs.*song 'song 1': .*twice")

    def test_a_song_twice_in_different_files(
        self, songs: Songs, model: Path, tmp_path: Path
    ) -> None:
        source = in_folder(songs, tmp_path / "folder", ".parquet")
        write_cache(songs[5:6], source / "9.parquet")
        self.refused(model, source, tmp_path, CacheError, r"folder: song 'song 5': .*twice")

    @both_kinds_of_file
    def test_a_score_in_a_late_batch(
        self, songs: Songs, model: Path, tmp_path: Path, suffix: str
    ) -> None:
        path = tmp_path / f"songs{suffix}"
        values = songs.values.copy()
        values[songs.offsets[85] + 1, 2] = 1.5
        bad = songs._with(values=values)
        write_cache(bad, path)
        what = r"songs\..*song 'song 85': column 'metal': frame 1 has a probability outside"
        self.refused(model, path, tmp_path, CacheError, what)

    def test_a_song_without_a_frame_in_a_late_batch(
        self, songs: Songs, model: Path, tmp_path: Path
    ) -> None:
        values = songs.values.copy()
        values[songs.offsets[80] : songs.offsets[81]] = np.nan
        write_cache(songs.replace(values=values), tmp_path / "songs.arrow")
        self.refused(
            model, tmp_path / "songs.arrow", tmp_path, SongError, "song 'song 80': no frame is left"
        )

    def test_a_damaged_page_in_a_late_row_group(
        self, songs: Songs, model: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "songs.parquet"
        write_cache(songs, path)
        metadata = pq.ParquetFile(path).metadata
        assert metadata.num_row_groups > 2
        scores = metadata.row_group(metadata.num_row_groups - 1).column(metadata.num_columns - 1)
        data = bytearray(path.read_bytes())
        data[scores.data_page_offset + scores.total_compressed_size - 3] ^= 1
        path.write_bytes(data)
        self.refused(model, path, tmp_path, CacheError, r"songs\.parquet: cannot be read")

    def test_a_split_that_is_not_there(self, songs: Songs, model: Path, tmp_path: Path) -> None:
        write_cache(songs, tmp_path / "songs.parquet")
        with pytest.raises(ParameterError, match="there are test, train"):
            predict_cache(model, tmp_path / "songs.parquet", tmp_path / "l.csv", split="valid")

    @staticmethod
    def refused(model: Path, source: Path, folder: Path, error: Any, match: str) -> None:
        for out in (folder / "out" / "l.csv", folder / "out" / "l.parquet"):
            out.parent.mkdir(exist_ok=True)
            out.write_text("old")
            with pytest.raises(error, match=match):
                predict_cache(model, source, out)
            assert out.read_text() == "old"
        assert sorted(p.name for p in out.parent.iterdir()) == ["l.csv", "l.parquet"]


STOPPED = """
import os, signal, sys
from seqagg import cache, prediction

cache.BATCH_BYTES, prediction._ROWS = 600, 5
prediction.CacheBatches = lambda path: cache.CacheBatches(path, n_bytes=600)
label, model, source, out = prediction._label, *sys.argv[1:4]

def stop_after_some(aggregator, songs, labels, table, report, refuse):
    label(aggregator, songs, labels, table, report, refuse)
    if report.n_songs > 40:
        os.kill(os.getpid(), int(sys.argv[4]))

prediction._label = stop_after_some
signal.signal(signal.SIGINT, signal.default_int_handler)
from seqagg.cli import main
main(["predict", model, source, "--out", out])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_stopped_in_the_middle(songs: Songs, model: Path, tmp_path: Path, name: str) -> None:
    write_cache(songs, tmp_path / "songs.parquet")
    out = tmp_path / "out" / "l.csv"
    out.parent.mkdir()
    out.write_text("old")
    number = getattr(signal, name)
    command = [sys.executable, "-c", STOPPED, model, tmp_path / "songs.parquet", out]
    done = subprocess.run([*command, str(int(number))], capture_output=True, text=True, timeout=60)
    assert out.read_text() == "old"
    if name == "SIGINT":
        assert (done.returncode, done.stderr) == (130, "seqagg: interrupted\n")
        assert os.listdir(out.parent) == ["l.csv"]
    else:
        assert done.returncode == -number
    predict_cache(model, tmp_path / "songs.parquet", out)
    assert len(read(out)) == 91
    assert os.listdir(out.parent) == ["l.csv"], "what the killed one left is swept"


MEMORY = r"""
import functools, re, sys
from pathlib import Path
from seqagg import cache, cache_pieces, prediction

cache_pieces._MAPPED_BYTES = 8 * 2**20
prediction.CacheBatches = functools.partial(cache.CacheBatches, n_bytes=2**20)
model, small, *large, out = sys.argv[1:]
peaks = []
for source in (small, *large):
    prediction.predict_cache(model, source, out)
    # Not ru_maxrss, in which the process that started this one still counts.
    status = Path("/proc/self/status").read_text()
    peaks.append(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1024)
print(*peaks)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_cache(tmp_path: Path, monkeypatch: Any) -> None:
    """120 MB of scores, in one row group: a writer of another kind knows no better."""
    monkeypatch.setattr(cache, "_ROW_GROUP_BYTES", 2**30)
    n, n_frames, columns = 8_000, 375, [f"c{k}" for k in range(10)]
    values = np.tile(np.float32(0.1), (n * n_frames, 10))
    large = Songs(values, np.arange(n + 1) * n_frames, columns=columns, kind="probability")
    small = large[:100]
    seqagg.MeanLogOdds().fit(small).save(tmp_path / "m.safetensors")
    write_cache(small, tmp_path / "small.parquet")
    for suffix in SUFFIXES:
        write_cache(large, tmp_path / f"large{suffix}")
    files = ["m.safetensors", "small.parquet", "large.parquet", "large.arrow", "l.parquet"]
    code = [sys.executable, "-c", MEMORY, *(tmp_path / name for name in files)]
    done = subprocess.run(code, capture_output=True, text=True, check=True)
    before, *after = map(int, done.stdout.split())
    assert max(after) - before < 60, f"{after} MiB after {before}; the scores are 114"


def write_table_with_ids(songs: Songs, path: Path, ids: list[str]) -> None:
    """Cache of songs whose ids `Songs` would refuse."""
    good = path.with_name(f"good{path.suffix}")
    write_cache(songs, good)
    if path.suffix == ".parquet":
        table = pq.read_table(good)
    else:
        with pa.memory_map(os.fspath(good)) as source:
            table = pa.ipc.open_file(source).read_all()
    table = table.set_column(0, "song_id", pa.array(ids))
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=20, write_page_checksum=True)
    else:
        with (
            pa.OSFile(os.fspath(path), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as writer,
        ):
            writer.write_table(table, max_chunksize=20)


def read(path: Path) -> list[list[Any]]:
    """Rows of a table of predictions, with its header."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        columns = [column.to_pylist() for column in table.columns]
        return [table.column_names, *map(list, zip(*columns, strict=True))]
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))
