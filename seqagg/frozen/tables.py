"""Tables of frame features as people have them: a row per frame, the song in a file name.

Conventions
-----------
Rows are put in order: songs as they first appear, the frames of each by time or number where there
is one. Rows are counted from 1, without the header. A row with an empty feature is a missing frame.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seqagg.errors import CacheError, ParameterError
from seqagg.files import check_regular, check_unpacked
from seqagg.folds import group_indices, grouped_folds

Array = npt.NDArray[Any]
Texts = list[str | None]

SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet")

FILE_NAME = r"(?P<song>.+)[._-](?P<frame>\d+)(\.[A-Za-z][A-Za-z0-9]*)?"
"""What stands before the last number is the song: ``blues.00000`` of ``blues.00000.3.wav``."""

_MOST_COLUMNS = 100_000
_LISTED = 20
_PIECE = 2**22
_FINEST = 20
"""Parts into which songs are divided at most, some of which become the test."""


@dataclass(frozen=True)
class FeatureTable:
    """Frames of a table, in order.

    Attributes
    ----------
    frames : ndarray of shape (n_frames, n_features)
        NaN in all features where one was empty.
    features : list of str
    song_ids : list of str, one for each frame
    labels, groups, split : list of str or None, one for each frame
        The latter two are None if nothing says them.
    start : ndarray of shape (n_frames,), or None
        Seconds.
    left_out : list of str
        Columns that were taken for no feature, with the reason.
    """

    frames: Array
    features: list[str]
    song_ids: list[str]
    labels: Texts
    groups: Texts | None
    split: Texts | None
    start: Array | None
    left_out: list[str]


@dataclass(frozen=True)
class Roles:
    """Columns of a table that are no features.

    Attributes
    ----------
    song, label, group, split, time : str
        Columns with the song, its label, its group, its split and the frame's start in seconds.
    pattern : str, optional
        Regular expression that all of the text in `song` must match: its group ``song`` is the
        song, ``frame`` the number of the frame, ``group`` the group.
    drop : sequence of str
        Further columns that are no features.
    """

    song: str
    label: str
    group: str | None = None
    split: str | None = None
    time: str | None = None
    pattern: str | None = None
    drop: Sequence[str] = ()

    @property
    def text(self) -> list[str]:
        """Columns that hold text, whatever it looks like."""
        return [name for name in (self.song, self.label, self.group, self.split) if name]

    @property
    def columns(self) -> list[str]:
        """All columns that are named."""
        return [*self.text, *([self.time] if self.time else []), *self.drop]


def read_features(path: Path, roles: Roles) -> FeatureTable:
    """Read a table of frame features.

    Parameters
    ----------
    path : Path
        ``.csv``, ``.tsv`` (either may be ``.gz``) or ``.parquet``.
    roles : Roles
        What stands in which column. All other columns of numbers are features, but for those that
        count the rows or repeat the label.

    Raises
    ------
    CacheError
        Names the file, row and column that cannot be used.
    """
    try:
        return _read_features(_read(path, roles.text), roles)
    except CacheError as error:
        message, song, column = error.message, error.song, error.column
        raise CacheError(message, file=path, song=song, column=column) from None


def with_test_songs(table: FeatureTable, size: float, seed: int) -> FeatureTable:
    """Divide the songs: about so large a share is the test, groups whole, classes in proportion.

    Songs without a label are on neither side.

    Raises
    ------
    ParameterError
        If all songs are of one group.
    """
    first = {song: row for row, song in reversed([*enumerate(table.song_ids)])}
    songs = [song for song in dict.fromkeys(table.song_ids) if table.labels[first[song]]]
    rows = [first[song] for song in songs]
    y = np.unique([str(table.labels[row]) for row in rows], return_inverse=True)[1]
    groups = None if table.groups is None else [table.groups[row] for row in rows]
    n_parts = max(2, Fraction(size).limit_denominator(_FINEST).denominator)
    parts = grouped_folds(y, group_indices(groups, len(songs)), n_parts, seed)
    if not parts:
        raise ParameterError("all songs are of one group: none can be set aside for a test")
    n_test = min(max(1, round(size * len(parts))), len(parts) - 1)
    side = dict.fromkeys(songs, "train")
    side |= {songs[i]: "test" for _, held in parts[:n_test] for i in held}
    return replace(table, split=[side.get(song) for song in table.song_ids])


def _read(path: Path, as_text: Sequence[str]) -> pa.Table:
    if not path.name.lower().endswith(SUFFIXES):
        raise CacheError(f"a table of features ends in {', '.join(SUFFIXES)}")
    check_regular(path, CacheError)
    try:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            table = pq.read_table(path, page_checksum_verification=True)
        else:
            table = _read_csv(path, as_text)
        table.validate(full=True)
        names = table.column_names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CacheError(f"cannot be read: {error}") from None
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise CacheError("two columns of this name", column=twice)
    if not len(table):
        raise CacheError("the table has no rows")
    return table


def _read_csv(path: Path, as_text: Sequence[str]) -> pa.Table:
    from pyarrow import csv

    delimiter = "\t" if ".tsv" in path.name.lower() else ","
    with pa.input_stream(path) as file:
        head = file.read_buffer(2**25).to_pybytes().partition(b"\n")[0]
    n_columns = head.count(delimiter.encode()) + 1
    if n_columns > _MOST_COLUMNS:
        raise CacheError(f"{n_columns} columns, of which {_MOST_COLUMNS} are the most")
    # Types are guessed from the first block alone: let it be the whole table, where it may be.
    return csv.read_csv(
        path,
        read_options=csv.ReadOptions(block_size=min(max(_size(path), 2**20), 2**30)),
        parse_options=csv.ParseOptions(delimiter=delimiter),
        convert_options=csv.ConvertOptions(column_types=dict.fromkeys(as_text, pa.string())),
    )


def _size(path: Path) -> int:
    """Bytes of a table, unpacked, of which there must not be very many: all will be in memory."""
    if path.suffix.lower() != ".gz":
        return path.stat().st_size
    n_bytes = 0
    with pa.input_stream(path) as file:
        while (piece := file.read_buffer(_PIECE)).size:
            n_bytes += piece.size
            check_unpacked(n_bytes, path, CacheError)
    return n_bytes


def _read_features(table: pa.Table, roles: Roles) -> FeatureTable:
    for name in roles.columns:
        if name not in table.column_names:
            found = ", ".join(table.column_names[:_LISTED])
            raise CacheError(f"no such column; there are {found}", column=name)
    labels = _text(table, roles.label)
    said = _matched(_text(table, roles.song), roles)
    songs = [str(song) for song in said["song"]]
    _refuse_songs_that_are_classes(songs, labels, roles)
    groups = _text(table, roles.group) if roles.group else said.get("group")
    split = _text(table, roles.split) if roles.split else None
    start = _numbers(table, roles.time) if roles.time else None
    features, left_out = _choose_features(table, roles.columns, labels)
    frames = _whole(np.column_stack([_numbers(table, name) for name in features]), features)
    order = _order(songs, said.get("frame"), start)
    return FeatureTable(
        frames=frames[order],
        features=features,
        song_ids=[songs[row] for row in order],
        labels=[labels[row] for row in order],
        groups=None if groups is None else [groups[row] for row in order],
        split=None if split is None else [split[row] for row in order],
        start=None if start is None else start[order],
        left_out=left_out,
    )


def _text(table: pa.Table, name: str) -> Texts:
    """Column as text; what is empty is None."""
    values = table[name].to_pylist()
    return [None if value is None or value == "" else str(value) for value in values]


def _numbers(table: pa.Table, name: str) -> Array:
    """Column as float64; what is empty is NaN."""
    kind = table[name].type
    if not _is_number(kind):
        raise CacheError(f"is {kind}, not numbers", column=name)
    return np.asarray(table[name].cast(pa.float64()).to_numpy())


def _is_number(kind: pa.DataType) -> bool:
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    return any(test(kind) for test in tests)


def _matched(names: Texts, roles: Roles) -> dict[str, Texts]:
    """What the text of the song's column says, by what it is about."""
    if None in names:
        raise CacheError(f"row {names.index(None) + 1} has no song", column=roles.song)
    if roles.pattern is None:
        return {"song": names}
    try:
        wanted = re.compile(roles.pattern)
    except re.error as error:
        raise ParameterError(f"pattern {roles.pattern!r}: {error}") from None
    known = {"song", "frame", "group"} & set(wanted.groupindex)
    if "song" not in known:
        raise ParameterError(f"pattern {roles.pattern!r} has no group (?P<song>...)")
    found: dict[str, Texts] = {what: [] for what in known}
    for row, name in enumerate(names, start=1):
        match = wanted.fullmatch(str(name))
        if not match or not match["song"]:
            like = "it does not end in a number" if roles.pattern == FILE_NAME else roles.pattern
            raise CacheError(
                f"row {row}: {name!r} does not say its song ({like})", column=roles.song
            )
        number = match["frame"] if "frame" in known else "0"
        if number is None or not number.isdecimal():
            raise CacheError(f"row {row}: {number!r} is no number of a frame", column=roles.song)
        for what, values in found.items():
            values.append(match[what])
    return found


def _refuse_songs_that_are_classes(songs: list[str], labels: Texts, roles: Roles) -> None:
    """Names like ``blues.00000.wav`` have no number of a frame: it is that of the song."""
    n_songs, n_classes = len(set(songs)), len({label for label in labels if label is not None})
    if roles.pattern is not None and n_songs <= n_classes:
        raise CacheError(
            f"all rows of a class become one song, such as {songs[0]!r}; names that are songs "
            "already are for --song",
            column=roles.song,
        )


def _order(songs: list[str], numbers: Texts | None, start: Array | None) -> list[int]:
    """Rows by song, in a song by time or number."""
    code: dict[str, int] = {}
    codes = [code.setdefault(song, len(code)) for song in songs]
    if start is not None:
        what, keys = "start", start.tolist()
    elif numbers is not None:
        what, keys = "number", [int(str(number)) for number in numbers]
    else:
        return [int(row) for row in np.argsort(codes, kind="stable")]
    order = sorted(range(len(songs)), key=lambda row: (codes[row], keys[row]))
    for row, following in itertools.pairwise(order):
        if codes[row] == codes[following] and not keys[row] < keys[following]:
            rows = f"rows {row + 1} and {following + 1}"
            raise CacheError(f"{rows} have the same {what}, {keys[row]:g}", song=songs[row])
    return order


def _choose_features(
    table: pa.Table, named: Sequence[str], labels: Texts
) -> tuple[list[str], list[str]]:
    """Names of the columns that are features, and of the others with the reason."""
    features, left_out = [], []
    for name in table.column_names:
        if name in named:
            continue
        why = next(_objections(name, table[name], labels), None)
        if why is None:
            features.append(name)
        else:
            left_out.append(f"{name!r} ({why})")
    if not features:
        raise CacheError("no column of numbers is left for the features")
    return features, left_out


def _objections(name: str, column: pa.ChunkedArray, labels: Texts) -> Iterator[str]:
    """Why a column is no feature."""
    if column.null_count == len(column):
        yield "empty"
    elif not _is_number(column.type):
        yield f"{column.type}, not numbers"
    elif not name or name.startswith("Unnamed: "):
        yield "it has no name, as row numbers have none"
    elif pa.types.is_integer(column.type) and (np.diff(column.to_numpy()) == 1).all():
        yield "it counts the rows"
    elif len(column.unique()) == len(set(labels)) > 1:
        pairs = set(zip(labels, column.to_pylist(), strict=True))
        if len(pairs) == len(set(labels)):
            yield "it says the label"


def _whole(frames: Array, features: list[str]) -> Array:
    """Make a missing frame of each row that is not complete."""
    infinite = np.isinf(frames)
    if infinite.any():
        row, column = np.argwhere(infinite)[0]
        raise CacheError(f"row {row + 1} is infinite", column=features[column])
    empty = np.isnan(frames)
    share = empty.mean(axis=0)
    if share.max() > 0.5:
        worst = int(share.argmax())
        raise CacheError(
            f"is empty in {share[worst]:.0%} of the rows: drop it", column=features[worst]
        )
    frames[empty.any(axis=1)] = np.nan
    return frames
