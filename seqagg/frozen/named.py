"""Frames that know their song, whatever they come in.

Conventions
-----------
Frames of a song stand in time order. A *block* is some frames, each with its song's number (songs
are numbered as they appear) and its own position in the song.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from seqagg.errors import ParameterError, SongError
from seqagg.frozen.models import to_numpy
from seqagg.logodds import Task

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
_ROWS = 4096
"""Frames that are taken out of one array at a time."""


@dataclass(frozen=True)
class Block:
    """Some frames.

    Attributes
    ----------
    frames : ndarray of shape (n_frames, ...)
    codes, ranks : ndarray of int, shape (n_frames,)
        Number of each frame's song, and position of the frame in it.
    names : list of str
        Songs met so far, by their number.
    """

    frames: Array
    codes: Ints
    ranks: Ints
    names: list[str]

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: Any) -> Block:
        return Block(self.frames[rows], self.codes[rows], self.ranks[rows], self.names)

    def song(self, row: int) -> str:
        """Name of a frame's song."""
        return self.names[int(self.codes[row])]

    @staticmethod
    def join(blocks: Sequence[Block]) -> Block:
        """Blocks below each other; a single one is not copied."""
        if len(blocks) == 1:
            return blocks[0]
        return Block(
            np.concatenate([block.frames for block in blocks]),
            np.concatenate([block.codes for block in blocks]),
            np.concatenate([block.ranks for block in blocks]),
            blocks[0].names,
        )


_EMPTY = Block(np.empty((0, 1)), np.empty(0, np.int64), np.empty(0, np.int64), [])


class NamedFrames:
    """Frames in blocks, and the songs that they are of.

    Parameters
    ----------
    frames : mapping, iterable of pairs, data frame or array
        A mapping from song to its frames; pairs (song, frames), a song's frames in one piece or
        several; a data frame (pandas, polars, Arrow, whatever Arrow can read) with a row per
        frame; or an array of shape (n_frames, ...), which need not fit into memory.
    song_ids : array-like of shape (n_frames,), or str, optional
        Song of each frame of an array; the column of a data frame that says it.
    fields : mapping of str to Any
        What there is to know of songs, by what it is: a mapping from song to value, a value per
        frame beside an array, or the name of a column of the data frame. None is left out.
    features : sequence of str, optional
        Columns of a data frame, in the order in which the model wants them.

    Attributes
    ----------
    names : list of str
        Songs in the order in which they came, complete once `blocks` has gone through.
    n_frames : int or None
        None where nobody knows yet.
    """

    def __init__(
        self,
        frames: Any,
        song_ids: Any = None,
        *,
        fields: Mapping[str, Any] | None = None,
        features: Sequence[str] | None = None,
    ) -> None:
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}
        self.n_frames: int | None = None
        self._fields = {what: value for what, value in (fields or {}).items() if value is not None}
        self._shape: tuple[int, ...] | None = None
        self._codes: Ints | None = None
        self._frames = frames
        if hasattr(frames, "__arrow_c_stream__"):
            self._frames, song_ids = self._read_table(frames, song_ids, features)
        if song_ids is not None:
            self._number(song_ids)
        elif not isinstance(frames, Mapping):
            _refuse_unnamed(frames)

    def blocks(self, skip: Callable[[str], bool] = lambda song: False) -> Iterator[Block]:
        """All frames in the order in which they come.

        Parameters
        ----------
        skip : callable
            Whether a song of a mapping need not be looked at.
        """
        if self._codes is not None:
            ranks = ranks_within(self._codes)
            for first in range(0, len(self._codes), _ROWS):
                rows = slice(first, first + _ROWS)
                frames = self._checked(self._frames[rows])
                yield Block(frames, self._codes[rows], ranks[rows], self.names)
            return
        pairs = self._pairs(skip) if isinstance(self._frames, Mapping) else self._frames
        lengths: list[int] = []
        for position, pair in enumerate(pairs):
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                what = type(pair).__name__
                raise SongError(f"item {position} is {what}, not a pair (song, frames)")
            if hasattr(pair[0], "shape") and pair[0].shape:
                raise SongError(f"item {position} begins with an array, not with a song id")
            code = self._add(song_name(pair[0], f"item {position}"))
            lengths += [0] * (code + 1 - len(lengths))
            frames = self._checked(pair[1], str(pair[0]))
            n = len(frames)
            if n:
                ranks = np.arange(lengths[code], lengths[code] + n)
                yield Block(frames, np.full(n, code), ranks, self.names)
            lengths[code] += n

    def labels(self, task: Task, columns: Sequence[str] | None) -> list[Any] | None:
        """Label of each song as text, of a multilabel task its labels; see `field`.

        Of a multilabel task a row of 0 and 1, one for each of the columns, will do too.
        """
        found = self._known("labels")
        if found is None or task == "multilabel":
            return found and [
                None if label is None else _label_set(label, columns, song)
                for song, label in zip(self.names, found, strict=True)
            ]
        for song, label in zip(self.names, found, strict=True):
            if isinstance(label, tuple):
                raise SongError(f"has the labels {label}: is the task not multilabel?", song=song)
        return [None if label is None else str(label) for label in found]

    def field(self, what: str) -> list[str | None] | None:
        """What is known of each song as text, in the order of `names`; None if nothing was given.

        Raises
        ------
        SongError
            For a song of which nothing is said, or whose frames say different things.
        """
        found = self._known(what)
        return found and [None if value is None else str(value) for value in found]

    def _known(self, what: str) -> list[Any] | None:
        given = self._fields.get(what)
        if given is None:
            return None
        if isinstance(given, Mapping):
            known = {song_name(song, what): _plain(value) for song, value in given.items()}
            for song in self.names:
                if song not in known:
                    raise SongError(f"has no {what}; None would say that it is unknown", song=song)
            return [known[song] for song in self.names]
        if self._codes is None or isinstance(given, str):
            raise ParameterError(f"{what} must be a mapping from song to what it has")
        values = [_plain(value) for value in given]
        if len(values) != len(self._codes):
            raise ParameterError(f"{what} has {len(values)} values for {len(self._codes)} frames")
        found: dict[int, Any] = {}
        for code, value in zip(self._codes.tolist(), values, strict=True):
            if found.setdefault(code, value) != value:
                song = self.names[code]
                raise SongError(f"its frames have {what} {found[code]!r} and {value!r}", song=song)
        return [found[code] for code in range(len(self.names))]

    def by_song(self) -> Mapping[str, Callable[[], Array]]:
        """Song -> a function that gives all its frames; those of a mapping stay where they are."""
        if isinstance(self._frames, Mapping):
            found = {song: partial(self._of_key, key, song) for song, key in self._keys()}
            for song in found:
                self._add(song)
            return found
        if self._codes is None:  # pairs, which can be gone through but once
            whole = Block.join([*self.blocks()] or [_EMPTY])
            self._frames, self._codes = whole.frames, whole.codes
        ends = np.cumsum(np.bincount(self._codes, minlength=len(self.names)))
        rows = np.split(np.argsort(self._codes, kind="stable"), ends[:-1])
        return {
            song: partial(self._of_rows, own, song)
            for song, own in zip(self.names, rows, strict=True)
        }

    def _of_key(self, key: Any, song: str) -> Array:
        return self._checked(self._frames[key], song)

    def _of_rows(self, rows: Ints, song: str) -> Array:
        return self._checked(self._frames[rows], song)

    def _read_table(
        self, table: Any, song_ids: Any, features: Sequence[str] | None
    ) -> tuple[Array, Any]:
        """Take a data frame apart into numbers and song ids."""
        import pyarrow as pa

        found = pa.table(table)
        if len(set(found.column_names)) < len(found.column_names):
            raise ParameterError("two columns of the data frame have the same name")
        if not isinstance(song_ids, str):
            raise ParameterError("song_ids must name the column of the data frame with the songs")
        named = {song_ids}
        for what, value in self._fields.items():
            if isinstance(value, str):
                named.add(value)
                self._fields[what] = _column(found, value).to_pylist()
        ids = _column(found, song_ids).to_pylist()
        wanted = features or [name for name in found.column_names if name not in named]
        if not wanted:
            raise ParameterError("the data frame has no columns but those that describe songs")
        return np.column_stack([_numbers(found, name) for name in wanted]), ids

    def _number(self, song_ids: Any) -> None:
        ids = song_ids.tolist() if isinstance(song_ids, np.ndarray) else list(song_ids)
        if isinstance(self._frames, list):
            self._frames = self._checked(self._frames)
        try:
            self.n_frames = len(self._frames)
        except TypeError:
            what = type(self._frames).__name__
            raise ParameterError(f"song_ids go with an array of frames, not {what}") from None
        if len(ids) != self.n_frames:
            raise SongError(f"{len(ids)} song ids for {self.n_frames} frames")
        codes = (self._add(song_name(name, f"frame {row}")) for row, name in enumerate(ids))
        self._codes = np.fromiter(codes, np.int64, len(ids))

    def _add(self, song: str) -> int:
        """Number of a song, a new one if it is new."""
        number = self._numbers.setdefault(song, len(self.names))
        if number == len(self.names):
            self.names.append(song)
        return number

    def _keys(self) -> Iterator[tuple[str, Any]]:
        """Songs of a mapping, with what it calls them."""
        seen = set()
        for key in self._frames:
            song = song_name(key, "a key")
            if song in seen:
                raise SongError("stands there twice", song=song)
            seen.add(song)
            yield song, key

    def _pairs(self, skip: Callable[[str], bool]) -> Iterator[tuple[str, Any]]:
        for song, key in self._keys():
            if skip(song):
                self._add(song)
            else:
                yield song, self._frames[key]

    def _checked(self, frames: Any, song: str | None = None) -> Array:
        """Array of numbers, frames of the same shape as all others."""
        try:
            array = to_numpy(frames)
        except ValueError:
            raise SongError("its frames are of different shapes", song=song) from None
        if array.dtype.kind not in "fiub":
            raise SongError(f"its frames are {array.dtype}, not numbers", song=song)
        if array.shape[0:1] == (0,):
            return array
        if array.ndim < 2:
            shape = array.shape
            raise SongError(f"its frames have shape {shape}, not (n_frames, ...)", song=song)
        if self._shape is None:
            self._shape = array.shape[1:]
        elif array.shape[1:] != self._shape:
            raise SongError(
                f"its frames have shape {array.shape[1:]}, those before {self._shape}", song=song
            )
        return array


def song_name(value: Any, where: str) -> str:
    """Name of a song as text."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if value is None or value == "" or value != value:
        raise SongError(f"{where} has no song id")
    return str(value)


def ranks_within(codes: Ints) -> Ints:
    """Position of each frame in its song, shape (n_frames,)."""
    order = np.argsort(codes, kind="stable")
    lengths = np.bincount(codes)
    starts = np.cumsum(lengths) - lengths
    ranks = np.empty(len(codes), np.int64)
    ranks[order] = np.arange(len(codes)) - np.repeat(starts, lengths)
    return ranks


def _refuse_unnamed(frames: Any) -> None:
    if hasattr(frames, "shape") or not isinstance(frames, Iterable) or isinstance(frames, str):
        raise ParameterError(
            f"frames are {type(frames).__name__} and without song_ids: give the song of each "
            "frame, or a mapping from song to frames, or pairs (song, frames)"
        )


def _column(table: Any, name: str) -> Any:
    if name not in table.column_names:
        raise ParameterError("the data frame has no such column", column=name)
    return table[name]


def _numbers(table: Any, name: str) -> Array:
    import pyarrow as pa

    column = _column(table, name)
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise ParameterError(f"is {kind}, not numbers: leave it out", column=name)
    if pa.types.is_boolean(kind) or column.null_count:
        column = column.cast(pa.float64())
    return np.asarray(column.to_numpy())


def _plain(value: Any) -> Any:
    """Value that can be compared; NaN, as pandas has what is missing, becomes None."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | set | frozenset):
        return tuple(sorted(value) if isinstance(value, set | frozenset) else value)
    return value if value == value else None


def _label_set(value: Any, columns: Sequence[str] | None, song: str) -> tuple[str, ...]:
    if not isinstance(value, tuple):
        raise SongError(f"has the label {value!r}, not a list of labels", song=song)
    is_row = columns is not None and len(value) == len(columns)
    if columns and is_row and all(isinstance(part, int | float) for part in value):
        return tuple(name for name, there in zip(columns, value, strict=True) if there)
    return tuple(str(part) for part in value)
