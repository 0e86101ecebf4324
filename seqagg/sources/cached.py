"""Caches themselves: to join labels to them, to put some together, or to change the format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from seqagg.cache import CacheBatches
from seqagg.errors import SourceError
from seqagg.sources.base import Batch, File, Options, unchanged

TAKES: set[str] = set()


def read(files: Sequence[File], options: Options, notes: list[str]) -> Iterator[Batch]:
    """Songs of caches, which say themselves what they hold."""
    for file in files:
        with unchanged(file.path):
            cache, n_read = CacheBatches(file.path), 0
            for songs in cache.songs():
                for name in ("kind", "task"):
                    said, asked = getattr(songs, name), getattr(options, name)
                    if asked is not None and asked != said:
                        what = f"is of {name} {said}, not {asked}"
                        if asked == "log_odds":
                            what += "; --log-odds writes them, whatever the kind"
                        raise SourceError(what, file=file.path)
                n_read += len(songs)
                noted = songs.replace(note=options.note) if options.note else songs
                yield Batch(noted, [file] * len(songs), n_read / max(cache.n_songs, 1))
