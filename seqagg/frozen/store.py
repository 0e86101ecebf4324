"""Scores that are kept while they come, so that a killed run goes on where it stopped.

Conventions
-----------
Beside the cache ``songs.parquet`` stands the folder ``songs.parquet.partial`` until the cache is
complete. Its shards, caches of their own, hold what was scored, in order; a song may be in several
of them. Each is written whole or not at all.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seqagg.cache import CacheWriter, read_cache, write_cache
from seqagg.cache_pieces import SUFFIXES
from seqagg.errors import CacheError
from seqagg.files import atomic_write, only_one
from seqagg.frozen.named import Block, Ints
from seqagg.parsing import parse_json
from seqagg.places import read_bytes
from seqagg.songs import Songs

Floats = npt.NDArray[np.float32]

_SHARD_BYTES = 32 * 2**20
_SHARD_SECONDS = 30.0
"""What a kill may cost."""

_CHUNK_BYTES = 64 * 2**20
"""Scores that are put together at a time."""


class Memory:
    """Scores that are kept in memory.

    Parameters
    ----------
    names : list of str
        Songs by their number, growing while scores come.
    """

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._codes: list[Ints] = []
        self._scores: list[Floats] = []
        self.n_bytes = 0

    due = False

    def flush(self) -> None:
        """Write nothing: memory is all there is."""

    def add(self, block: Block, scores: Floats) -> None:
        """Keep the scores of a block, those of each song after what is there."""
        self._codes.append(block.codes)
        self._scores.append(scores)
        self.n_bytes += scores.nbytes

    def songs(self, whole: bool, **fields: Any) -> Songs:
        """Songs of what was added; the whole collection, or those alone that have frames here."""
        n_columns = len(fields["columns"])
        codes = np.concatenate([np.empty(0, np.int64), *self._codes])
        scores = np.concatenate([np.empty((0, n_columns), np.float32), *self._scores])
        lengths = np.bincount(codes, minlength=len(self._names))
        chosen = np.arange(len(lengths)) if whole else np.flatnonzero(lengths)
        ids = [self._names[number] for number in chosen]
        order = np.argsort(codes, kind="stable")
        offsets = np.concatenate([[0], np.cumsum(lengths[chosen])])
        return Songs(scores[order], offsets, ids=ids, **fields)


class Store:
    """Scores that are kept in shards beside the cache that they will become.

    Parameters
    ----------
    path : path-like
        The cache.
    names : list of str
        Songs by their number, growing while scores come.
    header : mapping of str to Any
        ``columns``, ``kind`` and ``task`` of `Songs`.

    Attributes
    ----------
    folder : Path
        Where the shards are.
    trusted : bool
        What an earlier run has left, if anything, is known to be of this model and these frames.

    Raises
    ------
    CacheError
        If what stands there is of other columns, or another process is at it.
    """

    def __init__(
        self, path: str | os.PathLike[str], names: list[str], header: Mapping[str, Any]
    ) -> None:
        self._target = Path(path)
        if self._target.suffix not in SUFFIXES:
            raise CacheError(f"a cache ends in {' or '.join(SUFFIXES)}", file=path)
        self.folder = self._target.with_name(f"{self._target.name}.partial")
        self._header = {**header, "columns": list(header["columns"])}
        self._names = names
        self._shards: list[Songs] = []
        self._places: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        self._stored: Counter[str] = Counter()
        self._met: Counter[str] = Counter()  # of what was found, frames that came again
        self._new = Memory(names)
        self._written = time.monotonic()
        self._stack = ExitStack()

    def __enter__(self) -> Store:
        with self._stack as stack:
            self.folder.mkdir(parents=True, exist_ok=True)
            stack.callback(os.close, only_one(self.folder / "lock"))
            self._check_header()
            for path in sorted(self.folder.glob("[!.]*.arrow")):  # a kill leaves hidden halves
                self._include(path)
            self._found = Counter(self._stored)
            self.trusted = not self._found
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def stored(self, song: str) -> Floats:
        """Scores that a run before has left of a song, shape (n_frames, n_columns)."""
        return np.concatenate([self._shards[shard][row] for shard, row in self._places[song]])

    def skips(self, song: str) -> bool:
        """Whether a song of a mapping need not be loaded, since all of it is there."""
        if self.trusted and self._found[song]:
            self._met[song] = self._found[song]
            return True
        return False

    def missing(self, block: Block) -> npt.NDArray[np.bool_]:
        """Which frames of a block have no scores yet, shape (n_frames,)."""
        if not self._found:
            return np.ones(len(block), bool)
        numbers, which, counts = np.unique(block.codes, return_inverse=True, return_counts=True)
        songs = [self._names[number] for number in numbers]
        self._met.update(dict(zip(songs, counts.tolist(), strict=True)))
        found = np.array([self._found[song] for song in songs])
        return np.asarray(block.ranks >= found[which])

    def add(self, block: Block, scores: Floats) -> None:
        """Keep the scores of a block, those of each song after what is there."""
        self._new.add(block, scores)

    @property
    def due(self) -> bool:
        """Whether so much has come that a kill should not cost it."""
        waited = time.monotonic() - self._written
        return self._new.n_bytes >= _SHARD_BYTES or waited >= _SHARD_SECONDS

    def flush(self) -> None:
        """Write what has come."""
        if self._new.n_bytes:
            path = self._path(len(self._shards))
            write_cache(self._new.songs(whole=False, **self._header), path)
            self._include(path)
        self._new = Memory(self._names)
        self._written = time.monotonic()

    def finish(self, fields: Mapping[str, Sequence[Any] | None], note: str) -> None:
        """Write the cache, and take the folder away.

        Parameters
        ----------
        fields : mapping of str to sequence
            ``labels``, ``groups`` and ``split`` of all songs, in the order of the names.
        note : str
        """
        self.flush()
        for song, n in self._found.items():
            if self._met[song] < n:
                raise CacheError(
                    f"{n} frames were scored before, of which {self._met[song]} came again: the "
                    "folder is of other frames; remove it to start anew",
                    file=self.folder,
                    song=song,
                )
        with CacheWriter(self._target) as cache:
            for songs in self._chunks(fields, note):
                cache.write(songs)
        # The last first: what a kill leaves of them is then what a shorter run would have left.
        for number in reversed(range(len(self._shards))):
            self._path(number).unlink()
        shutil.rmtree(self.folder)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08d}.arrow"

    def _chunks(self, fields: Mapping[str, Sequence[Any] | None], note: str) -> Iterator[Songs]:
        """All songs, in the order of the names, as many at a time as may be in memory."""
        names = self._names
        none = np.empty((0, len(self._header["columns"])), np.float32)
        n_bytes = none.itemsize * none.shape[1]
        before = np.cumsum([0, *(self._stored[name] * n_bytes for name in names)])[:-1]
        for rows in _equal_runs(before // _CHUNK_BYTES):
            own = names[rows]
            known = {what: values and values[rows] for what, values in fields.items()}
            yield Songs.from_arrays(
                [self.stored(name) if self._stored[name] else none for name in own],
                ids=own,
                note=note,
                **self._header,
                **known,
            )

    def _include(self, path: Path) -> None:
        if path != self._path(len(self._shards)):
            what = "the one before it is missing; remove the folder to start anew"
            raise CacheError(what, file=path)
        shard = read_cache(path)
        for row, (name, n) in enumerate(zip(shard.ids, shard.lengths.tolist(), strict=True)):
            self._places[name].append((len(self._shards), row))
            self._stored[name] += n
        self._shards.append(shard)

    def _check_header(self) -> None:
        path = self.folder / "header.json"
        if not path.exists():
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps(self._header), encoding="utf-8")
            return
        try:
            there = parse_json(read_bytes(path))
        except ValueError as error:
            raise CacheError(f"is damaged: {error}; remove its folder", file=path) from None
        if there != self._header:
            raise CacheError(
                "holds scores of other columns or of another kind; remove it to start anew",
                file=self.folder,
            )


def _equal_runs(values: Ints) -> Iterator[slice]:
    cuts = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return (slice(first, end) for first, end in itertools.pairwise(cuts))
