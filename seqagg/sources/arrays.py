"""Named arrays to songs, whatever holds them: ``.npy``, ``.npz``, HDF5.

Conventions
-----------
Three layouts. Frames below each other, shape (n_frames, n_columns), with a song id for every frame
or the number of frames of every song. Padded songs, shape (n_songs, most_frames, n_columns), with
what is true where a frame is real, or with numbers of frames. Or an array for every song, called by
its name. Arrays are read from front to back and never whole, unless they are small or turned.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from seqagg.errors import SourceError
from seqagg.songs import Songs
from seqagg.sources.base import (
    Batch,
    File,
    Floats,
    Ints,
    Options,
    as_scores,
    n_at_a_time,
    named_columns,
)
from seqagg.sources.rows import PER_SONG, Rows, RowsToSongs, as_field

Array = npt.NDArray[Any]

TAKES = {
    *("columns", "scores", "song", "time", "label", "group", "split", "fold"),
    *("lengths", "mask", "transpose"),
}

USUAL = {
    "scores": ("scores", "X"),
    "song": ("song_id", "song_ids", "IDS", "ids"),
    "time": ("start",),
    "label": ("label", "labels", "Y", "y"),
    "group": ("group", "groups"),
    "split": ("split",),
    "fold": ("fold",),
    "lengths": ("lengths",),
    "mask": ("mask",),
}
"""What is in an array -> how it is called, if no other name is given."""


class Member(Protocol):
    """An array in a file.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def take(self, n: int) -> Array:
        """Give the next `n` rows, or what is left of them."""


def whole(member: Member) -> Array:
    """All of an array from which nothing has been taken yet."""
    return member.take(member.shape[0] if member.shape else 1)


def check_dtype(dtype: np.dtype[Any], name: str, file: File) -> None:
    """Refuse what only pickle could read, and what is neither numbers nor text."""
    if dtype.hasobject:
        what = "holds Python objects, which only pickle could read: save plain arrays"
        raise SourceError(what, file=file.path, column=name)
    if dtype.names is not None or dtype.kind not in "fiubUS" or dtype.itemsize == 0:
        raise SourceError(f"holds {dtype}", file=file.path, column=name)


def read_arrays(
    members: dict[str, Member], options: Options, file: File, notes: list[str]
) -> Iterator[Batch]:
    """Songs of the arrays of one file.

    Raises
    ------
    SourceError
        When arrays do not fit together, or say what cannot be.
    """
    roles = _find_roles(members, options, file)
    if "scores" not in roles:
        yield from _one_array_a_song(members, options, file)
        return
    left = [name for name in members if name not in roles.values()]
    if left:
        notes.append(f"arrays that were not asked for are left out: {', '.join(left)}")
    arrays = {role: members[name] for role, name in roles.items()}
    work = _Arrays(arrays, roles, options, file)
    n_dimensions = len(arrays["scores"].shape)
    if n_dimensions == 3:
        yield from work.padded()
    elif n_dimensions != 2:
        shape = arrays["scores"].shape
        raise work.wrong("scores", f"has shape {shape}, not (n_frames, n_columns)")
    elif "lengths" in arrays:
        yield from work.stacked()
    elif "song" in arrays and arrays["song"].shape != ():
        yield from work.by_ids()
    else:
        yield from work.single()


def _find_roles(members: dict[str, Member], options: Options, file: File) -> dict[str, str]:
    roles = {}
    for role, usual in USUAL.items():
        joined = role in PER_SONG and options.labels is not None
        asked = None if joined else getattr(options, role)
        if asked is not None and asked not in members:
            there = f"no such array; there are {', '.join(members)}"
            raise SourceError(there, file=file.path, column=asked)
        found = [asked] if asked is not None else [name for name in usual if name in members]
        if len(found) > 1:
            which = f"which of {', '.join(map(str, found))} is it? --{role} says so"
            raise SourceError(which, file=file.path)
        if found:
            roles[role] = found[0]
    rest = [name for name in members if name not in roles.values()]
    if "scores" not in roles and roles and len(rest) == 1:
        roles["scores"] = rest[0]
    if "scores" not in roles and roles:
        what = f"which array holds the scores? --scores says so; there are {', '.join(members)}"
        raise SourceError(what, file=file.path)
    return roles


def _one_array_a_song(members: dict[str, Member], options: Options, file: File) -> Iterator[Batch]:
    """Every array is a song; the only one is named by the file."""
    if not members:
        raise SourceError("holds no array", file=file.path)
    for name, member in members.items():
        song = name if len(members) > 1 else file.stem()
        work = _Arrays({"scores": member}, {"scores": name}, options, file)
        if len(member.shape) == 3 and len(members) == 1:
            yield from work.padded()
        elif len(member.shape) == 2:
            yield from work.single(song)
        else:
            what = f"has shape {member.shape}, not (n_frames, n_columns)"
            raise SourceError(what, file=file.path, song=song)


class _Arrays:
    """The arrays of a file by what is in them.

    Parameters
    ----------
    arrays, names : dict
        Arrays, and their names in the file.
    """

    def __init__(
        self, arrays: dict[str, Member], names: dict[str, str], options: Options, file: File
    ) -> None:
        self.arrays = arrays
        self.names = names
        self.options = options
        self.file = file
        self.scores = arrays["scores"]
        if self.scores.dtype.kind not in "fiu":
            raise self.wrong("scores", f"holds {self.scores.dtype}, not numbers")
        turned = options.transpose and len(self.scores.shape) > 1
        self.n_columns = self.scores.shape[-2 if turned else -1] if self.scores.shape else 0
        self.columns = named_columns(options, self.n_columns, file.path)
        self.fixed: dict[str, Any] = {
            "columns": self.columns,
            "kind": options.declared(file.path),
            "task": options.task or "multiclass",
            "note": options.note,
        }

    def wrong(self, role: str, what: str) -> SourceError:
        return SourceError(what, file=self.file.path, column=self.names[role])

    # Frames below each other.

    def _frames(self) -> Member:
        """Scores of shape (n_frames, n_columns); turned ones are held whole."""
        if not self.options.transpose:
            return self.scores
        return Held(whole(self.scores).T)

    def by_ids(self) -> Iterator[Batch]:
        """An id for every frame."""
        scores = self._frames()
        n_frames = scores.shape[0]
        roles = [role for role in ("song", "time", *PER_SONG) if role in self.arrays]
        for role in roles:
            if self.arrays[role].shape[:1] != (n_frames,):
                shape = self.arrays[role].shape
                hint = "; --lengths says how many frames each song has" if role == "song" else ""
                raise self.wrong(role, f"has shape {shape} for {n_frames} frames{hint}")
        work = RowsToSongs(
            file=self.file.path,
            names={("start" if r == "time" else r): self.names[r] for r in roles},
            **self.fixed,
        )
        for found in work.songs(self._rows(scores, n_frames, roles)):
            rows = found.rows
            yield Batch(
                found.songs,
                [self.file] * len(found.songs),
                found.share,
                lambda song, rows=rows: int(rows[song]),  # type: ignore[misc]
            )

    def _rows(self, scores: Member, n_frames: int, roles: list[str]) -> Iterator[Rows]:
        at_a_time = n_at_a_time(self.n_columns)
        for first in range(0, n_frames, at_a_time):
            n = min(at_a_time, n_frames - first)
            values = as_scores(scores.take(n))
            taken = {role: self.arrays[role].take(n) for role in roles}
            said = {role: self._said(taken[role], role) for role in roles if role in PER_SONG}
            start = taken["time"].astype(np.float64) if "time" in taken else None
            ids = self._said(taken["song"], "song")
            yield Rows(ids, values, start, None, said, (first + n) / n_frames)

    def stacked(self) -> Iterator[Batch]:
        """The number of frames of every song."""
        scores = self._frames()
        lengths = self._lengths(scores.shape[0], "frames")
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        if offsets[-1] != scores.shape[0]:
            what = f"sum to {offsets[-1]}, for {scores.shape[0]} frames"
            raise self.wrong("lengths", what)
        fields = self._fields_of_songs(len(lengths), offsets)
        start = self._time(scores.shape[0])
        first = 0
        while first < len(lengths):
            most = offsets[first] + n_at_a_time(self.n_columns)
            end = max(first + 1, int(np.searchsorted(offsets, most, side="right")) - 1)
            values = as_scores(scores.take(int(offsets[end] - offsets[first])))
            here = slice(int(offsets[first]), int(offsets[end]))
            yield self._batch(
                values,
                offsets[first : end + 1] - offsets[first],
                None if start is None else start[here],
                {name: column[first:end] for name, column in fields.items()},
                end / len(lengths),
            )
            first = end
        if not len(lengths):
            empty = np.empty((0, self.n_columns), np.float32)
            yield self._batch(empty, np.zeros(1, np.int64), start, fields, 1.0)

    def single(self, name: str | None = None) -> Iterator[Batch]:
        """All frames are those of one song."""
        scores = self._frames()
        n_frames = scores.shape[0]
        fields: dict[str, pa.Array] = {"song": pa.array([name or self.file.stem()])}
        for role in ("song", *PER_SONG):
            if role in self.arrays:
                array = np.atleast_1d(whole(self.arrays[role]))
                if len(array) != 1:
                    what = f"has {len(array)} entries, and there is no array of song ids or lengths"
                    raise self.wrong(role, what + ": --song or --lengths names it")
                fields[role] = self._said(array, role)
        values = as_scores(whole(scores))
        yield self._batch(values, np.array([0, n_frames]), self._time(n_frames), fields, 1.0)

    # Padded songs.

    def padded(self) -> Iterator[Batch]:
        """Songs of equal length, or padded to it."""
        n_songs, first_axis, second_axis = self.scores.shape
        n_frames = second_axis if self.options.transpose else first_axis
        lengths = self._lengths(n_songs, "songs") if "lengths" in self.arrays else None
        for role in ("mask", "time"):
            if role in self.arrays and self.arrays[role].shape != (n_songs, n_frames):
                shape = self.arrays[role].shape
                raise self.wrong(role, f"has shape {shape}, not {(n_songs, n_frames)}")
        if lengths is not None and len(lengths) and lengths.max() > n_frames:
            raise self.wrong("lengths", f"says {lengths.max()} frames where there are {n_frames}")
        fields = self._fields_of_songs(n_songs, None)
        at_a_time = max(1, n_at_a_time(self.n_columns) // max(n_frames, 1))
        for first in range(0, n_songs, at_a_time):
            end = min(first + at_a_time, n_songs)
            values = self.scores.take(end - first)
            if self.options.transpose:
                values = values.swapaxes(1, 2)
            real = self._real(values, first, end, lengths)
            frames, offsets, kept = cut_padding(as_scores(values), real)
            start = None
            if "time" in self.arrays:
                start = self.arrays["time"].take(end - first)[kept].astype(np.float32)
            here = {name: column[first:end] for name, column in fields.items()}
            yield self._batch(frames, offsets, start, here, end / n_songs)

    def _real(
        self, values: Array, first: int, end: int, lengths: Ints | None
    ) -> npt.NDArray[np.bool_]:
        """Which frames are real."""
        n_songs, n_frames = values.shape[:2]
        real = np.ones((n_songs, n_frames), dtype=bool)
        if "mask" in self.arrays:
            mask = self.arrays["mask"].take(end - first)
            if not ((mask == 0) | (mask == 1)).all():
                raise self.wrong("mask", "holds other than true and false, 1 and 0")
            real &= mask.astype(bool)
        if lengths is not None:
            real &= np.arange(n_frames) < lengths[first:end, None]
        if "mask" not in self.arrays and lengths is None and n_frames > 1:
            looks = (values[:, -1] == 0).all(axis=1)
            if looks.any():
                song = first + int(np.argmax(looks))
                what = "ends in zeros as if padded: --lengths or --mask says which frames are real"
                raise self.wrong("scores", f"song {song} {what}")
        return real

    # What songs have beside their frames.

    def _lengths(self, n: int, what: str) -> Ints:
        member = self.arrays["lengths"]
        if len(member.shape) != 1 or member.dtype.kind not in "iu":
            raise self.wrong("lengths", f"holds {member.dtype} of shape {member.shape}")
        lengths = whole(member).astype(np.int64)
        if what == "songs" and len(lengths) != n:
            raise self.wrong("lengths", f"has {len(lengths)} entries for {n} songs")
        if (lengths < 0).any():
            raise self.wrong("lengths", "says what cannot be a number of frames")
        return lengths

    def _time(self, n_frames: int) -> Floats | None:
        if "time" not in self.arrays:
            return None
        time = whole(self.arrays["time"])
        if time.shape != (n_frames,) or time.dtype.kind not in "fiu":
            raise self.wrong("time", f"holds {time.dtype} of shape {time.shape}")
        return time.astype(np.float32)

    def _fields_of_songs(self, n_songs: int, offsets: Ints | None) -> dict[str, pa.Array]:
        """Ids and the like; what is said of every frame must be the same in all of a song."""
        stem = self.file.stem()
        fields = {"song": pa.array([f"{stem}/{i}" for i in range(n_songs)], pa.string())}
        for role in ("song", *PER_SONG):
            if role not in self.arrays:
                continue
            array = np.atleast_1d(whole(self.arrays[role]))
            of_frames = offsets is not None and len(array) == offsets[-1] != n_songs
            if len(array) != n_songs and not of_frames:
                raise self.wrong(role, f"has {len(array)} entries for {n_songs} songs")
            if of_frames:
                assert offsets is not None
                array = self._same_in_songs(array, offsets, role)
            fields[role] = self._said(array, role)
        return fields

    def _same_in_songs(self, array: Array, offsets: Ints, role: str) -> Array:
        if (np.diff(offsets) == 0).any():
            song = int(np.argmax(np.diff(offsets) == 0))
            raise self.wrong(role, f"is said of frames, but song {song} has none")
        heads = array[offsets[:-1]]
        same = array == np.repeat(heads, np.diff(offsets), axis=0)
        if not same.all():
            frame = int(np.argmin(same.reshape(len(same), -1).all(axis=1)))
            raise self.wrong(role, f"row {frame}: differs from the rest of the song")
        return heads

    def _said(self, array: Array, role: str) -> pa.Array:
        """Ids, labels and the like as text (folds as integers)."""
        try:
            if role == "fold":
                return pa.array(array.astype(np.int64)).cast(pa.int32())
            if role == "label" and array.ndim == 2:
                return self._of_indicator(array)
            if array.ndim != 1:
                raise self.wrong(role, f"has shape {array.shape}")
            text = as_text(array)
            return text if role == "song" else pc.if_else(pc.equal(text, ""), None, text)
        except (ValueError, UnicodeError, pa.ArrowException) as error:
            if isinstance(error, SourceError):
                raise
            raise self.wrong(role, f"cannot be read as text: {error}") from None

    def _of_indicator(self, array: Array) -> pa.Array:
        """Numbers of the classes that are 1 in each row."""
        if array.dtype.kind in "US" or not ((array == 0) | (array == 1)).all():
            raise self.wrong("label", f"has shape {array.shape}, but is no matrix of 0 and 1")
        if self.options.task == "multilabel":
            return pa.array([list(map(str, np.flatnonzero(row))) for row in array])
        if not (array.sum(axis=1) == 1).all():
            row = int(np.argmax(array.sum(axis=1) != 1))
            raise self.wrong(
                "label",
                f"row {row}: {int(array[row].sum())} classes; one song, one "
                "label, or --task multilabel",
            )
        return as_text(array.argmax(axis=1))

    def _batch(
        self,
        values: Floats,
        offsets: Ints,
        start: Floats | None,
        fields: dict[str, pa.Array],
        share: float,
    ) -> Batch:
        more: dict[str, Any] = {}
        for name, column in fields.items():
            if name != "song":
                more |= as_field(name, column)
        songs = Songs(values, offsets, ids=fields["song"], start=start, **self.fixed, **more)
        return Batch(songs, [self.file] * len(songs), share)


class Held:
    """An array in memory, as a member."""

    def __init__(self, array: Array) -> None:
        self._array, self._n_taken = array, 0
        self.shape, self.dtype = array.shape, array.dtype

    def take(self, n: int) -> Array:
        """Give the next `n` rows, or what is left of them."""
        first = self._n_taken
        self._n_taken = min(first + n, len(self._array))
        return self._array[first : self._n_taken]


def cut_padding(
    values: Floats, real: npt.NDArray[np.bool_]
) -> tuple[Floats, Ints, npt.NDArray[np.bool_]]:
    """Cut off what is not real before the first and after the last real frame.

    Parameters
    ----------
    values : ndarray of shape (n_songs, most_frames, n_columns)
    real : ndarray of bool, shape (n_songs, most_frames)

    Returns
    -------
    values : ndarray of shape (n_frames, n_columns)
        What is not real between two real frames is a missing frame, of NaN.
    offsets : ndarray of shape (n_songs + 1,)
    kept : ndarray of bool, shape (n_songs, most_frames)
    """
    after = np.maximum.accumulate(real, axis=1)
    before = np.maximum.accumulate(real[:, ::-1], axis=1)[:, ::-1]
    kept = after & before
    frames = np.array(values[kept], dtype=np.float32)
    frames[~real[kept]] = np.nan
    return frames, np.concatenate([[0], np.cumsum(kept.sum(axis=1))]), kept


def as_text(array: Array) -> pa.Array:
    """Text, bytes in UTF-8, whole numbers or true and false as text; NaN is unknown."""
    if array.dtype.kind == "S":
        return pa.array(array, pa.binary()).cast(pa.string())
    if array.dtype.kind == "f":
        if not (np.isnan(array) | (array == np.floor(array))).all():
            raise ValueError("numbers with a fraction")
        known = pa.array(array, from_pandas=True)
        return known.cast(pa.int64()).cast(pa.string())
    if array.dtype.kind == "U":
        return pa.array(array, pa.string())
    return pa.array(array).cast(pa.string())
