"""Folders of files as one cache, on this machine and at a URL, counted without their scores."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seqagg import Songs, read_cache, write_cache
from seqagg.cache import CacheBatches
from seqagg.cache_pieces import count_frames
from seqagg.errors import CacheError, ParameterError
from seqagg.inspection import inspect
from seqagg.manifest import NAME, Manifest, read_manifest
from seqagg.overview import overview
from seqagg.places import Remote, place_of, read_bytes
from seqagg.shards import find_shards, index_shards, write_shards
from tests.conftest import assert_same_songs, order_free_songs

UNREAD = ("n_missing", "frames_per_song", "empty_songs", "sum_to_one", "saturated")


@pytest.fixture(scope="module")
def songs() -> Songs:
    """Songs with groups, splits, folds, and labels known and unknown."""
    n = 100
    drawn = order_free_songs(n)
    return drawn.replace(
        labels=[None if i % 10 == 3 else label for i, label in enumerate(drawn.labels)],
        groups=[None if i % 17 == 0 else f"artist {i // 4}" for i in range(n)],
        split=[None if i % 19 == 0 else "test" if i % 9 < 3 else "train" for i in range(n)],
        fold=np.arange(n) % 5 - 1,
    )


@pytest.fixture(params=["path", "file://", "memory://"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    scheme = "" if request.param == "path" else request.param
    return f"{scheme}{tmp_path}/songs"


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_shards_together_are_the_songs(songs: Songs, folder: str, suffix: str) -> None:
    pieces = [songs[:7], songs[7:64], songs[64:]]
    manifest = write_shards(iter(pieces), folder, 30, suffix=suffix)
    assert [shard.n_songs for shard in manifest.shards] == [30, 30, 30, 10]
    assert manifest.n_frames == len(songs.values)
    assert_same_songs(read_cache(folder), songs)
    assert find_shards(folder) == manifest
    there = place_of(folder)
    assert sorted(p.name for p in there.iterdir()) == [
        NAME,
        *(f"songs-0000{i}{suffix}" for i in range(4)),
    ]
    for shard in manifest.shards:
        data = read_bytes(there / shard.file)
        assert (shard.n_bytes, shard.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    batches = CacheBatches(folder, n_bytes=400)
    assert [str(i) for part, _ in batches.read() for i in part.ids] == songs.ids.tolist()


def test_a_manifest_made_later_is_the_same(songs: Songs, tmp_path: Path) -> None:
    written = write_shards([songs], tmp_path / "songs", 30)
    (tmp_path / "songs" / NAME).unlink()
    assert find_shards(tmp_path / "songs").n_frames == written.n_frames
    assert index_shards(tmp_path / "songs") == written
    assert read_manifest(tmp_path / "songs") == written


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_songs_without_frames_have_none(tmp_path: Path, suffix: str) -> None:
    """Parquet counts them as a value each."""
    songs = Songs(np.ones((4, 2)), [0, 0, 3, 3, 4, 4], columns=["a", "b"], ids=list("vwxyz"))
    write_cache(songs, tmp_path / f"songs{suffix}")
    assert count_frames(tmp_path / f"songs{suffix}") == 4


def test_readers_of_parquet_folders_see_the_files_alone(songs: Songs, tmp_path: Path) -> None:
    write_shards([songs], tmp_path / "songs", 30)
    assert pq.read_table(tmp_path / "songs")["song_id"].to_pylist() == songs.ids.tolist()


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_overview_says_what_inspect_does_without_the_scores(
    songs: Songs, tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if task == "multilabel":
        several = [None if x is None else [x, "jazz"][: i % 3] for i, x in enumerate(songs.labels)]
        songs = songs.replace(labels=[x and sorted(set(x)) for x in several], task=task)
    manifest = write_shards([songs], tmp_path / "songs", 30)
    monkeypatch.setattr("seqagg.cache_table._read_scores", pytest.fail)
    found, expected = overview(tmp_path / "songs", manifest), inspect(songs)
    blank = {"n_frames": None, "n_missing": None}
    blank |= {"frame_accuracy": None, "frame_accuracy_error": None}
    parts = tuple(dataclasses.replace(part, **blank) for part in expected.parts)
    expected = dataclasses.replace(expected, parts=parts, **dict.fromkeys(UNREAD))
    assert dataclasses.replace(found, **dict.fromkeys(UNREAD)) == expected


def test_overview_tells_a_file_that_was_cut_short(songs: Songs, tmp_path: Path) -> None:
    manifest = write_shards([songs], tmp_path / "songs", 30)
    cut = tmp_path / "songs" / "songs-00002.parquet"
    cut.write_bytes(cut.read_bytes()[:-50])
    assert "songs-00002.parquet" in overview(tmp_path / "songs", manifest).warnings[0]


class TestRefusals:
    def test_a_song_twice(self, songs: Songs, tmp_path: Path) -> None:
        with pytest.raises(CacheError, match="twice") as caught:
            write_shards([songs, songs[55:56]], tmp_path / "songs", 30)
        assert caught.value.song == songs.ids[55]
        assert list(tmp_path.iterdir()) == []  # nothing half written

    def test_a_song_in_two_files_without_manifest(self, songs: Songs, tmp_path: Path) -> None:
        write_cache(songs[:50], tmp_path / "a.parquet")
        write_cache(songs[49:], tmp_path / "b.parquet")
        with pytest.raises(CacheError, match="twice"):
            find_shards(tmp_path)

    def test_songs_of_other_columns(self, songs: Songs, tmp_path: Path) -> None:
        other = songs[50:].replace(columns=["x", "y", "z"])
        with pytest.raises(CacheError, match="columns"):
            write_shards([songs[:50], other], tmp_path / "songs", 50)

    def test_a_folder_that_is_not_empty(self, songs: Songs, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").touch()
        with pytest.raises(CacheError, match="new folder"):
            write_shards([songs], tmp_path)

    def test_no_songs_and_no_number(self, tmp_path: Path) -> None:
        with pytest.raises(CacheError, match="no song"):
            write_shards([], tmp_path / "songs")
        with pytest.raises(ParameterError, match="below 1"):
            write_shards([], tmp_path / "songs", 0)

    @pytest.mark.parametrize("change", ["missing", "more"])
    def test_other_files_than_the_manifest_lists(
        self, songs: Songs, tmp_path: Path, change: str
    ) -> None:
        folder = tmp_path / "songs"
        write_shards([songs], folder, 30)
        if change == "missing":
            (folder / "songs-00001.parquet").unlink()
        else:
            write_cache(songs[:5], folder / "more.parquet")
        with pytest.raises(CacheError, match=r"songs-00001|more"):
            read_cache(folder)

    @pytest.mark.parametrize(
        "change",
        [
            {"version": 2},
            {"n_songs": 99},
            {"shards": [{"file": "../x"}]},
            {"shards": None},
            {"kind": ...},
        ],
    )
    def test_a_manifest_that_is_none(
        self, songs: Songs, tmp_path: Path, change: dict[str, object]
    ) -> None:
        folder = tmp_path / "songs"
        write_shards([songs], folder)
        content = json.loads((folder / NAME).read_text()) | change
        content = {name: value for name, value in content.items() if value is not ...}
        (folder / NAME).write_text(json.dumps(content))
        with pytest.raises(CacheError) as caught:
            read_cache(folder)
        assert caught.value.file == str(folder / NAME)

    def test_a_file_at_a_url_is_named_by_it(self, songs: Songs, tmp_path: Path) -> None:
        url = f"memory://{tmp_path}/songs"
        with pytest.raises(CacheError, match="no such file") as caught:
            read_cache(f"{url}/1.parquet")
        assert caught.value.file == f"{url}/1.parquet"
        with pytest.raises(ParameterError, match="nonsense"):
            read_cache("nonsense://a/b.parquet")


def test_what_a_killed_writer_left_is_swept(songs: Songs, tmp_path: Path) -> None:
    left = tmp_path / ".songs.growing"
    left.mkdir()
    (left / "songs-00007.parquet").touch()
    write_shards([songs], tmp_path / "songs", 30)
    assert [p.name for p in tmp_path.iterdir()] == ["songs"]
    assert len(read_cache(tmp_path / "songs")) == 100


def test_a_manifest_is_told_from_another_by_its_digest() -> None:
    header = {"columns": ["a"], "kind": "logit", "task": "multiclass"}
    other = header | {"kind": "probability"}
    assert Manifest(header, ()).digest() != Manifest(other, ()).digest()


def test_bytes_that_are_held_are_fetched_once(songs: Songs, tmp_path: Path) -> None:
    place = place_of(f"memory://{tmp_path}/1.parquet")
    assert isinstance(place, Remote)
    write_cache(songs, tmp_path / "1.parquet")
    place.put(tmp_path / "1.parquet")
    held = place.held()
    place.put(Path(__file__))
    assert pa.py_buffer((tmp_path / "1.parquet").read_bytes()).equals(held.data)
    with held.open() as file:
        assert pq.read_table(file).num_rows == 100
