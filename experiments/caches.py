"""Where songs come from: a folder of caches, and the songs that come with seqagg."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, replace
from hashlib import file_digest
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from seqagg import CacheError, Songs, read_cache

QUICK_SONGS = 6
"""Songs of each class on each side of the split that ``--quick`` keeps."""


@dataclass(frozen=True)
class Cache:
    """Labelled songs of a file.

    Attributes
    ----------
    name : str
        Name of the file without its suffix.
    songs : Songs
        One label per song.
    checksum : str
        sha256 of the file.
    """

    name: str
    songs: Songs
    checksum: str


def find_caches(data: Path | None, quick: bool = False) -> list[Cache]:
    """Songs that come with seqagg, then every cache of a folder, by name.

    Files that are no cache of labelled songs are named on standard error and left out.

    Parameters
    ----------
    data : Path, optional
        Folder of ``.parquet`` files.
    quick : bool
        Keep a few songs of each.

    Raises
    ------
    SystemExit
        When there is not a single cache.
    """
    found = [embedded_cache()]
    found += [_read(path) for path in sorted(data.glob("*.parquet"))] if data else []
    caches = [cache for cache in found if cache is not None]
    if not caches:
        raise SystemExit("no cache to work on: give a folder of them with --data")
    doubled = [name for name, n in Counter(cache.name for cache in caches).items() if n > 1]
    if doubled:
        raise SystemExit(f"{doubled[0]}.parquet comes with seqagg already: call yours otherwise")
    return [few_songs(cache) for cache in caches] if quick else caches


def embedded_cache() -> Cache | None:
    """Songs that come with seqagg, None in a copy that has not made them yet."""
    with as_file(files("seqagg") / "data" / "tunes.parquet") as path:
        return _read(path) if path.exists() else None


def few_songs(cache: Cache) -> Cache:
    """First `QUICK_SONGS` songs of each class, on each side of the split."""
    songs = cache.songs
    assert songs.labels is not None
    sides = [None] * len(songs) if songs.split is None else songs.split.tolist()
    seen: Counter[tuple[object, object]] = Counter()
    kept = np.zeros(len(songs), dtype=bool)
    for i, part in enumerate(zip(sides, songs.labels.tolist(), strict=True)):
        kept[i] = seen[part] < QUICK_SONGS
        seen[part] += 1
    return replace(cache, songs=songs[kept], checksum=f"{cache.checksum}, {kept.sum()} songs")


def _read(path: Path) -> Cache | None:
    try:
        songs = read_cache(path)
        if songs.task != "multiclass" or songs.labels is None:
            raise CacheError("songs without one label each", file=path)
    except CacheError as error:
        print(f"left out: {error}", file=sys.stderr)
        return None
    with path.open("rb") as file:
        return Cache(path.stem, songs, file_digest(file, "sha256").hexdigest())
