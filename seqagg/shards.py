"""Many files in one folder as one cache: writing them, counting them.

Conventions
-----------
A shard is a cache file of the folder. `seqagg.manifest` lists the shards; a folder without that
list is read all the same, but then nothing tells that a file is missing or cut short, and all ids
are read once to find a song that stands there twice.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from seqagg.cache import CacheWriter
from seqagg.cache_pieces import cache_files, count_frames, read_columns
from seqagg.cache_table import Names, how_headers_differ
from seqagg.errors import CacheError, ParameterError
from seqagg.files import growing_folder
from seqagg.manifest import Manifest, Shard, read_manifest
from seqagg.places import Place, Remote, place_of, size_of
from seqagg.songs import Songs

SONGS_PER_SHARD = 50_000
"""Of 30 frames and 10 columns, 50 MB: some seconds of work, and few enough files for 10^8 songs."""


def write_shards(
    songs: Iterable[Songs],
    folder: str | os.PathLike[str],
    songs_per_shard: int = SONGS_PER_SHARD,
    *,
    suffix: str = ".parquet",
) -> Manifest:
    """Write songs to a folder of cache files of equal numbers of songs, with a manifest.

    A folder of this machine appears when it is complete, at a URL its manifest does.

    Parameters
    ----------
    songs : iterable of Songs
        In batches of any size; no more than a shard and a batch are held.
    folder : path-like
        Path or URL. Must not hold anything yet.
    songs_per_shard : int
    suffix : {".parquet", ".arrow"}

    Returns
    -------
    Manifest

    Raises
    ------
    CacheError
        When songs differ in columns, kind or task, a song stands there twice, or the folder is
        not empty.
    """
    if songs_per_shard < 1:
        raise ParameterError(f"songs_per_shard={songs_per_shard} is below 1")
    target = place_of(folder)
    if target.exists() and (not target.is_dir() or any(True for _ in target.iterdir())):
        raise CacheError("is there already; choose a new folder", file=target)
    if isinstance(target, Remote):
        with tempfile.TemporaryDirectory(prefix="seqagg-") as scratch:
            manifest = _write_files(songs, Path(scratch), songs_per_shard, suffix, target)
        manifest.write(target)
        return manifest
    with growing_folder(target) as folder_of_this:
        manifest = _write_files(songs, folder_of_this, songs_per_shard, suffix, None)
        manifest.write(folder_of_this)
    return manifest


def find_shards(folder: str | os.PathLike[str]) -> Manifest:
    """The files of a cache: what its manifest says, or else what is counted now.

    Parameters
    ----------
    folder : path-like
        A folder of cache files, or one file; a path or a URL.

    Raises
    ------
    CacheError
        When files differ in columns, kind or task, or a song stands in two of them.
    """
    source = place_of(folder)
    files = cache_files(source)
    known = read_manifest(source) if source.is_dir() else None
    return known or _count(files, source, hashed=False)


def index_shards(folder: str | os.PathLike[str]) -> Manifest:
    """Count and hash the files of a folder, and write its manifest."""
    source = place_of(folder)
    if not source.is_dir():
        raise CacheError("is no folder", file=source)
    manifest = _count(cache_files(source), source, hashed=True)
    manifest.write(source)
    return manifest


def sha256_of(place: Place) -> str:
    """Hash a file, in hexadecimal."""
    if isinstance(place, Path):
        with place.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    with place.open() as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _count(files: list[Place], source: Place, hashed: bool) -> Manifest:
    names, shards, first = Names(), [], None
    for file in files:
        table, header = read_columns(file, ["song_id"])
        header = {name: header[name] for name in ("columns", "kind", "task")}
        first = header if first is None else first
        if difference := how_headers_differ(first, header, files[0].name):
            raise CacheError(difference, file=file)
        twice = names.add(table["song_id"])
        if twice is not None:
            song = table["song_id"][twice].as_py()
            raise CacheError(f"song {song!r} stands there twice", file=source, song=song)
        digest = sha256_of(file) if hashed else None
        shards.append(Shard(file.name, len(table), count_frames(file), size_of(file), digest))
    assert first is not None
    return Manifest(first, tuple(shards))


def _write_files(
    songs: Iterable[Songs], local: Path, per_shard: int, suffix: str, remote: Remote | None
) -> Manifest:
    """Write files into a folder of this machine, and move each to the other place, if any."""
    names, shards = Names(), []
    header: dict[str, Any] = {}
    for number, pieces in enumerate(_dealt(songs, per_shard)):
        file = local / f"songs-{number:05d}{suffix}"
        with CacheWriter(file) as cache:
            for piece in pieces:
                twice = names.add(piece.ids)
                if twice is not None:
                    song = str(piece.ids[twice])
                    raise CacheError(f"song {song!r} stands there twice", file=file, song=song)
                cache.write(piece)
        said = {name: getattr(pieces[0], name) for name in ("columns", "kind", "task")}
        said["columns"] = list(said["columns"])
        if number and said != header:
            raise CacheError("songs differ in columns, kind or task", file=file)
        header = said
        digest = sha256_of(file)
        shards.append(Shard(file.name, cache.n_songs, cache.n_frames, size_of(file), digest))
        if remote is not None:
            (remote / file.name).put(file)
            file.unlink()
    if not shards:
        raise CacheError("there is no song to write", file=remote or local)
    return Manifest(header, tuple(sorted(shards, key=lambda shard: shard.file)))


def _dealt(songs: Iterable[Songs], n: int) -> Iterator[list[Songs]]:
    """Batches of together `n` songs, the last of fewer."""
    waiting: list[Songs] = []
    missing = n
    for batch in songs:
        while len(batch) > 0:
            waiting.append(batch[:missing])
            batch, missing = batch[missing:], missing - len(waiting[-1])
            if missing == 0:
                yield waiting
                waiting, missing = [], n
    if waiting:
        yield waiting
