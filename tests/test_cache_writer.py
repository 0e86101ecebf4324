"""A cache written some songs at a time is the cache written at once, or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seqagg import CacheError, Songs, read_cache, write_cache
from seqagg.cache import CacheWriter
from seqagg.cache_table import Names
from tests.conftest import assert_same_songs

formats = pytest.mark.parametrize("suffix", ["parquet", "arrow"])


def songs_of(n: int, seed: int = 0) -> Songs:
    rng = np.random.default_rng(seed)
    arrays = [rng.random((n_frames, 3)) for n_frames in rng.integers(0, 6, n)]
    return Songs.from_arrays(
        arrays,
        columns=["a", "b", "c"],
        kind="probability",
        ids=[f"song {i}" for i in range(n)],
        labels=["a" if i % 3 else None for i in range(n)],
        groups=[f"artist {i // 2}" for i in range(n)],
        fold=np.arange(n) % 4 - 1,
        start=[np.arange(len(a)) * 3.0 for a in arrays],
    )


def write_all(batches: Iterable[Songs], path: Path) -> None:
    with CacheWriter(path) as cache:
        for songs in batches:
            cache.write(songs)


@formats
@pytest.mark.parametrize("n_at_a_time", [1, 7, 100])
def test_pieces_make_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, n_at_a_time: int
) -> None:
    monkeypatch.setattr("seqagg.cache._ROW_GROUP_BYTES", 300)
    songs = songs_of(50)
    with CacheWriter(tmp_path / f"c.{suffix}") as cache:
        for first in range(0, 50, n_at_a_time):
            cache.write(songs[first : first + n_at_a_time])
    assert (cache.n_songs, cache.n_frames) == (50, len(songs.values))
    assert_same_songs(read_cache(tmp_path / f"c.{suffix}"), songs)


def test_row_groups_are_filled_before_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Songs(np.zeros((5, 2)), [0, 5], columns=["a", "b"])  # 40 bytes
    monkeypatch.setattr("seqagg.cache._ROW_GROUP_BYTES", 400)
    with CacheWriter(tmp_path / "c.parquet") as cache:
        for i in range(35):
            cache.write(one.replace(ids=[str(i)]))
    metadata = pq.read_metadata(tmp_path / "c.parquet")
    assert [metadata.row_group(i).num_rows for i in range(4)] == [10, 10, 10, 5]


@formats
def test_no_songs_may_be_written_but_something_must_be(tmp_path: Path, suffix: str) -> None:
    with CacheWriter(tmp_path / f"c.{suffix}") as cache:
        cache.write(songs_of(3)[:0])
    assert len(read_cache(tmp_path / f"c.{suffix}")) == 0
    with pytest.raises(CacheError, match="no song to write"), CacheWriter(tmp_path / "d.parquet"):
        pass
    assert not (tmp_path / "d.parquet").exists()


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (songs_of(9)[2:3], "'song 2' stands there twice"),
        (songs_of(9)[6:].replace(groups=None), "'group': some songs have it"),
        (songs_of(9)[6:].replace(split=["test"] * 3), "'split': some songs have it"),
        (songs_of(9)[6:].replace(columns=["a", "c", "b"]), "differ in columns"),
        (songs_of(9)[6:].replace(kind="log_odds"), "differ in kind"),
        (songs_of(9)[6:].replace(note="new"), "differ in note"),
    ],
)
@formats
def test_songs_that_do_not_fit_leave_the_old_file(
    tmp_path: Path, suffix: str, second: Songs, words: str
) -> None:
    path = tmp_path / f"c.{suffix}"
    write_cache(songs_of(2), path)
    with pytest.raises(CacheError, match=words):
        write_all([songs_of(9)[:6], second], path)
    assert_same_songs(read_cache(path), songs_of(2))
    assert list(tmp_path.iterdir()) == [path]


@formats
def test_an_interrupt_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    def interrupted() -> Iterator[Songs]:
        yield songs_of(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_all(interrupted(), tmp_path / f"c.{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_names_find_what_a_set_finds() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        names, known = Names(), set[str]()
        for _ in range(20):
            batch = [str(i) for i in rng.integers(0, 400, rng.integers(0, 12))]
            expected = next(
                (i for i, name in enumerate(batch) if name in known or name in batch[:i]), None
            )
            assert names.add(pa.array(batch, pa.string())) == expected
            if expected is not None:
                break
            known.update(batch)
