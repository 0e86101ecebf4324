"""Which files are meant, and in what format they are: as their own marks say, or asked for."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from seqagg.errors import ParameterError, SourceError
from seqagg.files import check_regular
from seqagg.sources.base import File, Options
from seqagg.sources.columnar import (
    ARROW_MARK,
    ARROW_SUFFIXES,
    JSON_SUFFIXES,
    PARQUET_SUFFIXES,
    ColumnTable,
    open_table,
)
from seqagg.sources.text import SUFFIXES as TEXT_SUFFIXES
from seqagg.sources.text import TextTable

_HDF5_SUFFIXES = (".h5", ".hdf5", ".he5")
_COLUMN_SUFFIXES = PARQUET_SUFFIXES + ARROW_SUFFIXES + JSON_SUFFIXES
_TEXT = TEXT_SUFFIXES + _COLUMN_SUFFIXES

SUFFIXES: dict[str, tuple[str, ...]] = {
    "table": _TEXT,
    "songs": _COLUMN_SUFFIXES,
    "cache": (".parquet", ".arrow"),
    "npz": (".npz",),
    "npy": (".npy",),
    "hdf5": _HDF5_SUFFIXES,
    "opensoundscape": _TEXT,
    "sed_scores": (".tsv",),
    "birdnet": (".csv", ".csv.gz"),
    "raven": (".txt", ".tsv"),
}
"""Format -> ends of the names of its files, by which they are found in a folder."""

_MARKS = {
    (".npz",): (b"PK",),
    (".npy",): (b"\x93NUMPY",),
    _HDF5_SUFFIXES: (b"\x89HDF\r\n\x1a\n",),
    PARQUET_SUFFIXES: (b"PAR1",),
    ARROW_SUFFIXES: (ARROW_MARK, b"\xff\xff\xff\xff"),
}
"""Ends of a file's name -> what it may then begin with."""

_LONGEST_MARK = max(len(mark) for marks in _MARKS.values() for mark in marks)


def find_files(
    sources: Iterable[tuple[str | os.PathLike[str], str | None]],
    format: str | None,
    without: Iterable[str | os.PathLike[str] | None] = (),
) -> list[File]:
    """Files that are meant by files and folders, in the order given, in folders by name.

    In folders, hidden files and links to folders are passed over, and files whose name does not end
    as those of the format do.

    Parameters
    ----------
    sources : iterable of (path, split or None)
    format : str or None
        Any, if None.
    without : iterable of path or None
        What is written, or read for something else, and may lie in one of the folders.
    """
    passed_over = {os.path.abspath(path) for path in without if path is not None}
    files = []
    suffixes = SUFFIXES[format] if format else tuple(s for all_ in SUFFIXES.values() for s in all_)
    for source, split in sources:
        path = Path(source)
        if path.is_dir():
            found = [
                File(file, name, split)
                for file, name in _walk(path, suffixes)
                if os.path.abspath(file) not in passed_over
            ]
            if not found:
                kinds = f"{format} file" if format else "file of a known format"
                raise SourceError(f"the folder holds no {kinds}", file=path)
            files += found
        else:
            check_regular(path, SourceError)
            files.append(File(path, _unicode(path.name, path), split))
    for path_given, n in Counter(os.path.abspath(file.path) for file in files).items():
        if n > 1:
            raise SourceError("is given twice", file=path_given)
    return files


def _walk(folder: Path, suffixes: tuple[str, ...]) -> list[tuple[Path, str]]:
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(root, name)
            if not name.startswith(".") and name.lower().endswith(suffixes):
                check_regular(path, SourceError)
                found.append((path, _unicode(path.relative_to(folder).as_posix(), path)))
    return found


def _unicode(name: str, path: Path) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise SourceError(f"the name {name!a} is no UTF-8") from None
    return name


def detect(files: Sequence[File], options: Options) -> str:
    """Format of files.

    Raises
    ------
    SourceError
        When they do not say, or do not all say the same.
    """
    first: dict[str, File] = {}
    for file in files:
        first.setdefault(file.path.suffix.lower(), file)
    found = {suffix: _detect(file.path, options) for suffix, file in first.items()}
    (one, chosen), *others = found.items()
    for other, format in others:
        if format != chosen:
            what = (
                f"{one} files are {chosen}, {other} files {format}: --format says which are meant"
            )
            raise SourceError(what, file=first[other].path)
    return chosen


def _detect(path: Path, options: Options) -> str:
    suffix = path.suffix.lower()
    for suffixes, marks in _MARKS.items():
        if suffix in suffixes and not _first_bytes(path, _LONGEST_MARK).startswith(marks):
            raise SourceError(f"is no {suffix} file, whatever its name says", file=path)
    if suffix in (".npz", ".npy"):
        return suffix[1:]
    if suffix in _HDF5_SUFFIXES:
        return "hdf5"
    if path.name.lower().endswith(_TEXT):
        table = open_table(path, options)
        if isinstance(table, ColumnTable):
            return _detect_columns(table, options)
        return _detect_text(table, options)
    raise SourceError(f"the format of {suffix or 'this'} files is not known; {_ASK}", file=path)


def _first_bytes(path: Path, n: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(n)
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror}", file=path) from None


_ASK = "--format says it: " + ", ".join(SUFFIXES)


def _detect_columns(table: ColumnTable, options: Options) -> str:
    metadata = table.schema.metadata or {}
    if b"seqagg" in metadata:
        return "cache"
    scores = options.scores or "scores"
    if scores in table.names:
        kind = table.schema.field(scores).type
        if table.cells[scores] == "list" and table.schema.names.count(scores) == 1:
            return "songs" if _is_list(kind) else "table"
    return _of_names(table.names, options, table.path)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_nested(kind) and pa.types.is_nested(kind.value_type))


def _detect_text(table: TextTable, options: Options) -> str:
    names = table.names
    if {"Start (s)", "End (s)", "Confidence"} <= set(names):
        return "birdnet"
    if {"Begin Time (s)", "End Time (s)"} <= set(names) and "Selection" in names:
        return "raven"
    if names[:2] == ["onset", "offset"] and table.path.suffix == ".tsv":
        return "sed_scores"
    return _of_names(names, options, table.path)


def _of_names(names: Sequence[str], options: Options, path: Path | None) -> str:
    if {"file", "start_time", "end_time"} <= set(names) and options.song is None:
        return "opensoundscape"
    if options.song is not None or "song_id" in names:
        return "table"
    shown = ", ".join(repr(name) for name in names[:8]) + (", ..." if len(names) > 8 else "")
    raise SourceError(
        f"the format cannot be told by the columns {shown}; if it is a table with a row per frame, "
        f"--song names the column of song ids, else {_ASK}",
        file=path,
    )


def check_format(format: str) -> None:
    """Refuse a format that there is not."""
    if format not in SUFFIXES:
        raise ParameterError(f"no format {format!r}; there are {', '.join(SUFFIXES)}")
