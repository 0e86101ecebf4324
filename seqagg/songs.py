"""Songs: the frame scores of many recordings, flat.

Conventions
-----------
The frames of all songs stand below each other in ``values``, shape (n_frames, n_columns), float32,
in time order; song i has rows ``offsets[i]:offsets[i + 1]``. This is Arrow's own layout of a list
column, so a cache becomes `Songs` without a Python object per song. A frame with a NaN in any
column is a missing frame.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NoReturn, cast, get_args

import numpy as np
import numpy.typing as npt

from seqagg.errors import SongError
from seqagg.logodds import Kind, Task, to_log_odds
from seqagg.markup import card, table

Array = npt.NDArray[Any]

_PER_SONG = ("ids", "labels", "groups", "split", "fold")

_FINITE = (float(np.finfo(np.float32).min), float(np.finfo(np.float32).max))

_SHOWN_SONGS, _SHOWN_COLUMNS = 6, 20
"""What a notebook shows of them."""

_ROUNDING = 1e-6
"""How far beyond 0 and 1 a probability is still one: float32 and six digits of text round so."""

ALLOWED = {"probability": (-_ROUNDING, 1 + _ROUNDING), "logit": _FINITE}
"""Kind of scores -> the least and the greatest that there may be."""


class Songs:
    """Frame scores of songs, with their names and labels.

    Behaves as a sequence of frame arrays: ``songs[3]`` is the array of one song, a slice, an index
    array or a mask gives `Songs`. scikit-learn's splitters and searches take it as it is.

    Parameters
    ----------
    values : array-like of shape (n_frames, n_columns)
        Scores of all frames, kept as float32. NaN marks a missing frame.
    offsets : array-like of shape (n_songs + 1,)
        Where each song starts in `values`.
    columns : sequence of str, optional
        Names of the columns.
    kind : {"log_odds", "probability", "logit"}
        What the scores are. Declared, never guessed. ``logit`` means raw scores before softmax
        (multiclass) or before the logistic function (multilabel).
    task : {"multiclass", "multilabel"}
        Whether a song has one label or a list of them.
    ids : array-like of shape (n_songs,), optional
        Unique names; the position in the collection by default.
    labels : array-like of shape (n_songs,), optional
        None = unknown. In a multilabel collection each is a sequence of strings, or a text in which
        ``|`` joins them.
    groups : array-like of shape (n_songs,), optional
        What must not be on both sides of a split. None = the song itself.
    split : array-like of shape (n_songs,), optional
        ``"train"``, ``"test"`` or other; None = neither.
    fold : array-like of int, shape (n_songs,), optional
        Fold of the frame classifier that scored the song; -1 = none.
    start : array-like of shape (n_frames,), optional
        Start of each frame in seconds.
    note : str
        Free text, kept in the cache.

    Raises
    ------
    SongError
        Names the song or column that does not fit.
    """

    def __init__(
        self,
        values: npt.ArrayLike,
        offsets: npt.ArrayLike,
        *,
        columns: Sequence[str] | None = None,
        kind: Kind = "log_odds",
        task: Task = "multiclass",
        ids: Iterable[str] | None = None,
        labels: Iterable[Any] | None = None,
        groups: Iterable[Any] | None = None,
        split: Iterable[str | None] | None = None,
        fold: npt.ArrayLike | None = None,
        start: npt.ArrayLike | None = None,
        note: str = "",
    ) -> None:
        self.values = np.ascontiguousarray(as_frames(values))
        self.offsets = np.ascontiguousarray(offsets, dtype=np.int64)
        self.columns = None if columns is None else tuple(str(c) for c in columns)
        self.kind: Kind = kind
        self.task: Task = task
        # Text of Arrow stays Arrow, and positions unwritten, until somebody asks for the names.
        self._ids: Any = ids if ids is None or _is_arrow(ids) else _object_array(ids)
        self.labels = None if labels is None else _object_array(labels, task)
        self.groups = None if groups is None else _object_array(groups)
        self.split = None if split is None else _object_array(split)
        self.fold = None if fold is None else _int32(fold)
        self.start = None if start is None else _float32(start)
        self.note = note
        self._check()

    @classmethod
    def from_arrays(
        cls,
        arrays: Iterable[npt.ArrayLike],
        *,
        start: Iterable[npt.ArrayLike] | None = None,
        **fields: Any,
    ) -> Songs:
        """Collect one array of shape (n_frames_i, n_columns) per song.

        Parameters
        ----------
        arrays : iterable of array-like
            Frame scores, frames in time order.
        start : iterable of array-like of shape (n_frames_i,), optional
            Frame starts in seconds, a list per song.
        **fields
            The other parameters of `Songs`.
        """
        listed, ids = list(arrays), fields.get("ids")
        names = list(ids) if ids is not None else [str(i) for i in range(len(listed))]
        frames = [as_frames(a, name) for a, name in zip_longest(listed, names[: len(listed)])]
        if ids is not None:
            fields["ids"] = names
        columns = fields.get("columns")
        width = len(columns) if columns is not None else _common_width(frames)
        for name, array in zip(names, frames, strict=False):
            if len(array) and (array.ndim != 2 or array.shape[1] != width):
                raise SongError(
                    f"frames have shape {array.shape}, not (n_frames, {width})", song=str(name)
                )
        offsets = np.concatenate([[0], np.cumsum([len(a) for a in frames], dtype=np.int64)])
        filled = [a for a in frames if a.size]
        values = np.concatenate(filled) if filled else np.empty((0, width), np.float32)
        return cls(
            values, offsets, start=None if start is None else _flat(start, frames, names), **fields
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Songs]) -> Songs:
        """Songs of several collections, one after the other.

        Parameters
        ----------
        parts : sequence of Songs
            Of one kind, task and set of columns, the same fields filled.

        Raises
        ------
        SongError
            Where they do not fit together, or a song stands in two of them.
        """
        if not parts:
            raise SongError("no songs to concatenate")
        first = parts[0]
        for name in ("kind", "task", "columns", "n_columns"):
            for part in parts[1:]:
                if getattr(part, name) != getattr(first, name):
                    raise SongError(
                        f"songs differ in {name}: {getattr(first, name)} and {getattr(part, name)}"
                    )
        fields: dict[str, Any] = {}
        for name in (*_PER_SONG, "start"):
            found = [getattr(part, name) for part in parts]
            if any(value is None for value in found) and any(value is not None for value in found):
                raise SongError(f"some songs have {name}, others have not")
            fields[name] = None if found[0] is None else np.concatenate(found)
        lengths = np.concatenate([part.lengths for part in parts])
        return first.replace(
            values=np.concatenate([part.values for part in parts]),
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            **fields,
        )

    def _check(self) -> None:
        n = self.offsets.size - 1
        if self.offsets.ndim != 1 or n < 0:
            raise SongError(f"offsets have shape {self.offsets.shape}, not (n_songs + 1,)")
        if self.values.ndim != 2 or self.values.shape[1] == 0:
            raise SongError(f"values have shape {self.values.shape}, not (n_frames, n_columns)")
        if self.offsets[0] != 0 or (np.diff(self.offsets) < 0).any():
            raise SongError("offsets must start at 0 and never fall")
        if self.offsets[-1] != len(self.values):
            raise SongError(f"offsets end at {self.offsets[-1]}, values at {len(self.values)}")
        if self.kind not in get_args(Kind):
            raise SongError(f"kind {self.kind!r} is none of {', '.join(get_args(Kind))}")
        if self.task not in get_args(Task):
            raise SongError(f"task {self.task!r} is none of {', '.join(get_args(Task))}")
        if self.columns is not None:
            if len(self.columns) != self.values.shape[1]:
                raise SongError(
                    f"{len(self.columns)} column names for {self.values.shape[1]} columns"
                )
            _refuse_duplicates(self.columns, "column")
            for name in self.columns:
                if "\0" in name:  # with which NumPy ends text
                    raise SongError("a name with a NUL in it", column=name)
        for name in _PER_SONG:
            field = self._ids if name == "ids" else getattr(self, name)
            if field is not None and len(field) != n:
                raise SongError(f"{len(field)} {name} for {n} songs")
        if self.start is not None and len(self.start) != len(self.values):
            raise SongError(f"{len(self.start)} frame starts for {len(self.values)} frames")
        if self.start is not None and np.isinf(self.start).any():
            song, frame = self._place_of(int(np.argmax(np.isinf(self.start))))
            raise SongError(f"frame {frame} starts at no 32-bit number of seconds", song=song)
        if _is_arrow(self._ids) and len(self._ids.unique()) < n:
            _refuse_duplicates(self.ids, "song")
        elif isinstance(self._ids, np.ndarray):
            _refuse_duplicates(self._ids, "song")
        self._check_scores()

    def _check_scores(self) -> None:
        if self.kind == "log_odds" or _within(self.values, *ALLOWED[self.kind]):
            return
        least, most = ALLOWED[self.kind]
        wrong = (self.values < least) | (self.values > most)
        first = int(np.argmax(wrong.any(axis=1)))
        song, frame = self._place_of(first)
        column = int(np.argmax(wrong[first]))
        logit = self.kind == "logit"
        what = "an infinite logit" if logit else "a probability outside [0, 1]"
        raise SongError(
            f"frame {frame} has {what}: {self.values[first, column]}",
            song=song,
            column=str(column) if self.columns is None else self.columns[column],
        )

    def _place_of(self, frame: int) -> tuple[str, int]:
        """Name of the song of one of all frames, and which of its own it is."""
        song = int(np.searchsorted(self.offsets, frame, side="right")) - 1
        return str(self.ids[song]), frame - int(self.offsets[song])

    @property
    def ids(self) -> Array:
        """Names of the songs, text, shape (n_songs,)."""
        if not isinstance(self._ids, np.ndarray):
            found = map(str, range(len(self))) if self._ids is None else self._ids.to_pylist()
            self._ids = _object_array(found)
        return self._ids

    def arrow_ids(self) -> Any:
        """Names of the songs as an array of Arrow."""
        import pyarrow as pa

        return self._ids if _is_arrow(self._ids) else pa.array(self.ids, pa.string())

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: of Arrow text it would be the whole file's."""
        return self.__dict__ | {"_ids": self.ids}

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def shape(self) -> tuple[int]:
        """Number of songs, as scikit-learn asks for it."""
        return (len(self),)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Frames per song, missing ones included, shape (n_songs,)."""
        return np.diff(self.offsets)

    @property
    def n_columns(self) -> int:
        """Number of columns."""
        return int(self.values.shape[1])

    def __iter__(self) -> Iterator[npt.NDArray[np.float32]]:
        for first, end in zip(self.offsets[:-1], self.offsets[1:], strict=True):
            yield self.values[first:end]

    def __getitem__(self, key: Any) -> Any:
        """Frames of one song for an integer; `Songs` for a slice, index array or mask."""
        if isinstance(key, tuple) and len(key) == 2 and key[1] is Ellipsis:
            key = key[0]  # scikit-learn's indexing of array-likes
        if isinstance(key, int | np.integer):
            i = range(len(self))[int(key)]
            return self.values[self.offsets[i] : self.offsets[i + 1]]
        if isinstance(key, slice) and key.step in (None, 1):
            return self._between(*key.indices(len(self))[:2])
        return self._take(np.arange(len(self))[key])

    def _between(self, first: int, end: int) -> Songs:
        """Songs that stand together, whose frames are not copied."""
        end = max(first, end)
        frames = slice(self.offsets[first], self.offsets[end])
        fields = {name: getattr(self, name) for name in _PER_SONG if name != "ids"}
        return self._with(
            _ids=self._ids[first:end] if _is_arrow(self._ids) else self.ids[first:end],
            values=self.values[frames],
            offsets=self.offsets[first : end + 1] - self.offsets[first],
            start=None if self.start is None else self.start[frames],
            **{n: None if field is None else field[first:end] for n, field in fields.items()},
        )

    def _take(self, index: npt.NDArray[np.int64]) -> Songs:
        lengths = self.lengths[index]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        rows = np.repeat(self.offsets[:-1][index] - offsets[:-1], lengths) + np.arange(offsets[-1])
        fields = {name: getattr(self, name) for name in _PER_SONG if name != "ids"}
        return self._with(
            _ids=self._ids.take(index) if _is_arrow(self._ids) else self.ids[index],
            values=self.values[rows],
            offsets=offsets,
            start=None if self.start is None else self.start[rows],
            **{name: None if field is None else field[index] for name, field in fields.items()},
        )

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("Songs have unequal lengths and are no array; use .values and .offsets")

    def __repr__(self) -> str:
        names = f", columns={list(self.columns)}" if self.columns is not None else ""
        return (
            f"<Songs: {len(self)} songs, {len(self.values)} frames, {self.n_columns} columns of "
            f"{self.kind}{names}>"
        )

    def _repr_html_(self) -> str:
        """Facts and the first songs, as a notebook shows them."""
        lengths = self.lengths
        spread = f", {lengths.min()} to {lengths.max()} a song" if len(self) else ""
        facts = [f"{len(self.values)} frames{spread}; {self.n_columns} columns of {self.kind}"]
        if self.columns is not None:
            facts.append(f"columns: {', '.join(self.columns[:_SHOWN_COLUMNS])}")
            facts[-1] += ", ..." if self.n_columns > _SHOWN_COLUMNS else ""
        fields = {"label": self.labels, "group": self.groups, "split": self.split}
        given = {name: field for name, field in fields.items() if field is not None}
        rows = [
            [str(self.ids[i]), str(lengths[i]), *(_shown(field[i]) for field in given.values())]
            for i in range(min(len(self), _SHOWN_SONGS))
        ]
        caption = f"the first {len(rows)} of {len(self)} songs"
        listed = table(["song", "frames", *given], rows, caption)
        return card(f"{len(self)} songs, {self.task}", facts, [listed])

    def replace(self, **fields: Any) -> Songs:
        """Copy, with some fields set anew by the names of the parameters of `Songs`."""
        names = ("values", "offsets", "columns", "kind", "task", *_PER_SONG, "start", "note")
        kept = {name: getattr(self, name) for name in names if name != "ids"}
        return Songs(**kept | {"ids": self._ids if _is_arrow(self._ids) else self.ids} | fields)

    def _with(self, **fields: Any) -> Songs:
        """Like `replace` for fields that are known to fit: nothing is checked again."""
        other = object.__new__(Songs)
        other.__dict__.update(self.__dict__ | fields)
        return other

    def log_odds(self) -> Songs:
        """Convert the scores to log-odds, in nats."""
        if self.kind == "log_odds" and _within(self.values, *_FINITE):
            return self
        if self.kind == "logit" and self.task == "multiclass" and self.n_columns < 2:
            raise SongError("a single column of softmax logits has no log-odds")
        # Imported here: a compiler is no small thing to wait for.
        from seqagg.kernels.odds import log_odds_of_logits, log_odds_of_probability

        if self.kind == "probability":
            values = log_odds_of_probability(self.values)
        elif self.kind == "logit" and self.task == "multiclass":
            values = log_odds_of_logits(self.values)
        else:
            values = to_log_odds(self.values, self.kind, self.task)
        return self._with(values=values.astype(np.float32, copy=False), kind="log_odds")

    def present(self) -> Songs:
        """Leave out the missing frames."""
        if self.values.size == 0 or not np.isnan(self.values.min()):
            return self
        missing = np.isnan(self.values).any(axis=1)
        kept = np.concatenate([[0], np.cumsum(~missing)])
        return self._with(
            values=self.values[~missing],
            offsets=kept[self.offsets],
            start=None if self.start is None else self.start[~missing],
        )


def as_frames(scores: npt.ArrayLike, song: object = None) -> npt.NDArray[np.float32]:
    """Frame scores as an array of float32; what is masked is missing.

    Raises
    ------
    SongError
        Names the song whose scores are no numbers, or of frames of unequal length.
    """
    name = None if song is None else str(song)
    if isinstance(scores, np.ma.MaskedArray):
        with np.errstate(over="ignore"):
            scores = np.ma.filled(scores.astype(np.float32), np.nan)
    if isinstance(scores, np.ndarray) and scores.dtype.kind == "c":
        raise SongError("Complex data not supported: scores are real numbers", song=name)
    try:
        with np.errstate(over="ignore"):  # beyond float32 it is infinite
            return np.asarray(scores, dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise SongError(f"frames are no table of numbers: {error}", song=name) from None


def as_songs(X: Any) -> Songs:
    """`Songs` from what an aggregator accepts.

    Parameters
    ----------
    X : Songs, list of arrays of shape (n_frames_i, n_columns), or array
        Plain input is log-odds. A 2-D array is read as songs of one frame each, a 3-D array as
        songs of equal length.
    """
    if isinstance(X, Songs):
        return X
    if isinstance(X, np.ndarray) and X.ndim == 2:
        return Songs(X, np.arange(len(X) + 1))
    # To go through these one by one would give something else than rows.
    if hasattr(X, "toarray"):
        raise SongError("sparse input is not supported; pass its toarray()")
    if hasattr(X, "columns"):
        raise SongError("expected Songs, got a table; seqagg.sources.from_dataframe makes them")
    if isinstance(X, str | bytes) or not isinstance(X, Iterable):
        raise SongError(f"expected Songs or a list of frame arrays, got {type(X).__name__}")
    arrays = list(X)
    if not arrays:
        raise SongError("no songs")
    return Songs.from_arrays(arrays)


def _is_arrow(items: Any) -> bool:
    """Whether it is an array of Arrow; whoever has not imported that has none."""
    arrow = sys.modules.get("pyarrow")
    return arrow is not None and isinstance(items, arrow.Array)


def all_finite(values: npt.NDArray[np.float32]) -> bool:
    """Whether all are finite, in one look at them; where some are huge it may not be seen."""
    with np.errstate(all="ignore"):
        return bool(np.isfinite(np.add.reduce(values, axis=None)))


def _within(values: npt.NDArray[np.float32], low: float, high: float) -> bool:
    """Whether no value is outside [low, high]; a NaN is not. No copy, at memory speed."""
    if values.size == 0:
        return True
    least, most = np.fmin.reduce(values, axis=None), np.fmax.reduce(values, axis=None)
    return bool(np.isnan(least) or (least >= low and most <= high))


def labels_of(item: Any) -> tuple[Any, ...] | None:
    """Labels of a song; in a text, as tables that seqagg writes have them, | joins them."""
    if isinstance(item, str):
        return tuple(item.split("|")) if item else ()
    return None if item is None else tuple(item)


def _object_array(items: Iterable[Any], task: Task | None = None) -> Array:
    """One-dimensional array of Python objects, None kept, numpy scalars unwrapped."""
    if isinstance(items, Mapping):
        raise SongError("a value for each song, in their order, is expected, and not a mapping")
    if isinstance(items, np.ndarray) and items.dtype != object:
        items = items.tolist()
    listed = list(items)
    if task == "multilabel":
        listed = [labels_of(item) for item in listed]
    array = np.empty(len(listed), dtype=object)
    array[:] = listed if task != "multilabel" else None
    if task == "multilabel":
        for i, item in enumerate(listed):  # a slice assignment would unpack the tuples
            array[i] = item
    return array


def _flat(
    start: Iterable[npt.ArrayLike], frames: Sequence[Array], names: Sequence[Any]
) -> npt.NDArray[np.float32]:
    """Frame starts of all songs below each other."""
    parts = [_float32(s).reshape(-1) for s in start]
    if len(parts) != len(frames):
        raise SongError(f"frame starts of {len(parts)} songs for {len(frames)} songs")
    for name, part, array in zip(names, parts, frames, strict=True):
        if len(part) != len(array):
            raise SongError(f"{len(part)} frame starts for {len(array)} frames", song=str(name))
    return np.concatenate([np.empty(0, np.float32), *parts])


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _float32(start: npt.ArrayLike) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):  # what is too large is refused with what is infinite
        return np.ascontiguousarray(start, dtype=np.float32)


def _int32(fold: npt.ArrayLike) -> npt.NDArray[np.int32]:
    given = np.asarray(fold)
    with np.errstate(invalid="ignore"):
        narrow = np.ascontiguousarray(given, dtype=np.int32)
    if (narrow != given).any():
        raise SongError(f"fold {given[narrow != given][0]} is no 32-bit integer")
    return narrow


def _common_width(frames: Sequence[Array]) -> int:
    matrices = [a for a in frames if a.ndim == 2 and a.shape[1]]
    widths = [a.shape[1] for a in matrices if len(a)] or [a.shape[1] for a in matrices]
    if not widths:
        bad = next((a for a in frames if a.size), None)
        shape = "no frame" if bad is None else f"frames of shape {bad.shape}"
        raise SongError(f"songs have {shape}; expected arrays of shape (n_frames, n_columns)")
    return int(widths[0])


def _refuse_duplicates(names: Sequence[Any] | Array, what: str) -> None:
    if len(set(names)) == len(names):
        return
    seen: set[Any] = set()
    for name in names:
        if name in seen:
            raise SongError(f"{what} {name!r} stands there twice", **cast(Any, {what: str(name)}))
        seen.add(name)
