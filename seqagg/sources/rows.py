"""Rows to songs: tables with a row per frame, in which the rows of a song stand together.

Conventions
-----------
Rows come in pieces of any size. A song is complete once a row of another one follows, so the rows
of the last song of a piece wait for the next piece; all else is done on whole pieces at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from seqagg.cache_table import Names
from seqagg.errors import SourceError
from seqagg.logodds import Kind, Task
from seqagg.songs import ALLOWED, Songs
from seqagg.sources.base import Floats, Ints

PER_SONG = ("label", "group", "split", "fold")
"""What is said of a song, in every one of its rows."""

AGAIN = (
    "this song stands there already; its rows must stand together (--sort gathers those of a table)"
)

_FINITE = (float(np.finfo(np.float32).min), float(np.finfo(np.float32).max))


class Rows(NamedTuple):
    """Frames below each other.

    Attributes
    ----------
    ids : pyarrow.Array of str, length n
    values : ndarray of shape (n, n_columns)
    start, end : ndarray of float64, shape (n,), or None
        Seconds.
    said : dict
        Some of `PER_SONG`, by name, as text, lists of text, or integers (fold).
    share : float
        How much of the file has been read, in [0, 1].
    """

    ids: pa.Array
    values: Floats
    start: npt.NDArray[np.float64] | None
    end: npt.NDArray[np.float64] | None
    said: dict[str, pa.Array]
    share: float


class Found(NamedTuple):
    """Songs, the row at which each begins, and how much of the file has been read."""

    songs: Songs
    rows: Ints
    share: float


@dataclass
class RowsToSongs:
    """Puts the rows of songs together.

    Parameters
    ----------
    file : Path or None
        Named in errors.
    columns : tuple of str
    kind, task
        As `Songs` have them.
    names : dict
        How the file calls ``song``, ``start``, ``end`` and what is said of songs.
    place : callable
        Number of a row (from 0) -> the number that a user knows it by.
    note : str
    """

    file: Path | None
    columns: tuple[str, ...]
    kind: Kind
    task: Task
    names: dict[str, str]
    place: Callable[[int], int] = int
    note: str = ""
    _n_before: int = 0
    _last: Rows | None = None  # the last row of the piece before
    _waiting: list[Rows] = field(default_factory=list)
    _waiting_from: int = 0

    def songs(self, pieces: Iterable[Rows]) -> Iterator[Found]:
        """Songs of rows that come in pieces.

        Raises
        ------
        SourceError
            Names row and column of what cannot be.
        """
        for piece in pieces:
            if len(piece.ids) == 0:
                continue
            begins = self._check(piece)
            if len(begins):
                whole = [*self._waiting, _cut(piece, 0, int(begins[-1]))]
                firsts = self._n_before + begins[:-1]
                if self._waiting:
                    firsts = np.concatenate([[self._waiting_from], firsts])
                if len(firsts):
                    yield self._join(whole, firsts, piece.share)
                self._waiting = [_cut(piece, int(begins[-1]), len(piece.ids))]
                self._waiting_from = self._n_before + int(begins[-1])
            else:
                self._waiting.append(piece)
            self._n_before += len(piece.ids)
            self._last = _cut(piece, len(piece.ids) - 1, len(piece.ids))
        if self._waiting:
            yield self._join(self._waiting, np.array([self._waiting_from]), 1.0)

    def empty(self, name: str, timed: bool) -> Songs:
        """A song without a frame."""
        return Songs(
            np.empty((0, len(self.columns)), np.float32),
            [0, 0],
            columns=self.columns,
            kind=self.kind,
            task=self.task,
            ids=[name],
            start=[] if timed else None,
            note=self.note,
        )

    def _join(self, parts: list[Rows], firsts: Ints, share: float) -> Found:
        parts = [part for part in parts if len(part.ids)]
        begin = int(firsts[0])
        local = firsts - begin
        ids = pa.concat_arrays([part.ids for part in parts]).take(pa.array(local))
        twice = Names().add(ids)
        if twice is not None:
            what = f"row {self.place(int(firsts[twice]))}: {AGAIN}"
            raise SourceError(what, file=self.file, song=ids[twice].as_py())
        values = parts[0].values if len(parts) == 1 else np.concatenate([p.values for p in parts])
        fields: dict[str, Any] = {}
        if parts[0].start is not None:
            fields["start"] = np.concatenate([p.start for p in parts if p.start is not None])
        for name in parts[0].said:
            heads = pa.concat_arrays([part.said[name] for part in parts]).take(pa.array(local))
            fields |= as_field(name, heads)
        songs = Songs(
            values,
            np.concatenate([local, [len(values)]]),
            columns=self.columns,
            kind=self.kind,
            task=self.task,
            ids=ids,
            note=self.note,
            **fields,
        )
        return Found(songs, firsts, share)

    def _check(self, piece: Rows) -> Ints:
        """Refuse what cannot be, and return where songs begin."""
        unnamed = np.asarray(pc.fill_null(pc.equal(piece.ids, ""), True))
        if unnamed.any():
            raise self._wrong(piece, int(np.argmax(unnamed)), "song", "no song id")
        last = self._last
        new = _changes(None if last is None else last.ids, piece.ids)
        for name, column in piece.said.items():
            other = _changes(None if last is None else last.said[name], column) & ~new
            if other.any():
                row = int(np.argmax(other))
                before = column[row - 1] if row else last.said[name][0]  # type: ignore[union-attr]
                what = f"{column[row].as_py()!r} after {before.as_py()!r} in the same song"
                raise self._wrong(piece, row, name, what)
        self._check_times(piece, new)
        self._check_scores(piece)
        return np.flatnonzero(new)

    def _check_times(self, piece: Rows, new: npt.NDArray[np.bool_]) -> None:
        for name, seconds in (("start", piece.start), ("end", piece.end)):
            beyond = np.zeros(0, bool) if seconds is None else ~(np.abs(seconds) <= _FINITE[1])
            if seconds is not None and beyond.any():
                row = int(np.argmax(beyond))
                raise self._wrong(piece, row, name, f"{seconds[row]} is no time")
        if piece.start is None:
            return
        last = None if self._last is None else self._last.start
        before = np.concatenate([[-np.inf] if last is None else last, piece.start[:-1]])
        back = (piece.start <= before) & ~new
        if back.any():
            row = int(np.argmax(back))
            now, then = piece.start[row], before[row]
            raise self._wrong(
                piece, row, "start", f"a frame at {now:g} s follows one at {then:g} s"
            )
        if piece.end is not None and (piece.end <= piece.start).any():
            row = int(np.argmax(piece.end <= piece.start))
            ends = f"a frame ends at {piece.end[row]:g} s that starts at {piece.start[row]:g} s"
            raise self._wrong(piece, row, "end", ends)

    def _check_scores(self, piece: Rows) -> None:
        """What `Songs` would refuse, where the row is still known."""
        if self.kind == "log_odds" or not piece.values.size:
            return
        low, high = ALLOWED[self.kind]
        what = "is no finite logit" if self.kind == "logit" else "is no probability"
        least, most = np.fmin.reduce(piece.values, None), np.fmax.reduce(piece.values, None)
        if least < low or most > high:
            bad = (piece.values < low) | (piece.values > high)
            row, column = divmod(int(np.argmax(bad)), bad.shape[1])
            raise self._error(
                piece, row, self.columns[column], f"{piece.values[row, column]:.8g} {what}"
            )

    def _wrong(self, piece: Rows, row: int, role: str, what: str) -> SourceError:
        return self._error(piece, row, self.names[role], what)

    def _error(self, piece: Rows, row: int, column: str, what: str) -> SourceError:
        name = piece.ids[row].as_py()
        return SourceError(
            f"row {self.place(self._n_before + row)}: {what}",
            file=self.file,
            song=name or None,
            column=column,
        )


def as_field(name: str, column: pa.Array) -> dict[str, Any]:
    """What is said of songs, as `Songs` take it."""
    if name == "fold":
        return {"fold": np.asarray(pc.fill_null(column, -1))}
    field_name = {"label": "labels", "group": "groups", "split": "split"}[name]
    listed = column.to_pylist()
    return {field_name: [tuple(v) if isinstance(v, list) else v for v in listed]}


def _cut(rows: Rows, first: int, end: int) -> Rows:
    return Rows(
        rows.ids[first:end],
        rows.values[first:end],
        None if rows.start is None else rows.start[first:end],
        None if rows.end is None else rows.end[first:end],
        {name: column[first:end] for name, column in rows.said.items()},
        rows.share,
    )


def _changes(last: pa.Array | None, column: pa.Array) -> npt.NDArray[np.bool_]:
    """Whether each row differs from the one before; nulls are alike.

    The one before the first is `last`, the end of the piece before; without it, the first differs.
    """
    both = column if last is None else pa.concat_arrays([last, column])
    if pa.types.is_list(both.type) or pa.types.is_large_list(both.type):
        both = pc.binary_join(both, "\x1f")
    codes = np.asarray(pc.fill_null(both.dictionary_encode().indices, -1))
    differs = codes[1:] != codes[:-1]
    return np.concatenate([[True], differs]) if last is None else differs
