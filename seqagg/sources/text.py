"""Text tables: CSV, TSV and their like, in pieces, with the row and column of whatever is wrong.

Conventions
-----------
UTF-8, a header, cells quoted with ``"`` where need be; packed if the name ends in ``.gz``, ``.bz2``
or ``.zst``. Row 1 is the header, and rows are counted as an editor counts lines. Arrow reads; only
where it stops does a slower reader look for the place that it stopped at.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv as pa_csv

from seqagg.errors import SourceError
from seqagg.files import check_regular
from seqagg.sources.base import MOST_COLUMNS

PACKED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
"""End of a file's name -> what it is packed with."""

SUFFIXES = (".csv", ".tsv", ".txt", *(kind + end for kind in (".csv", ".tsv") for end in PACKED))

NOTHING = ["", "NA", "N/A", "NaN", "nan", "NULL", "null", "None", "-nan", "#N/A"]
"""Cells of numbers that hold none."""

_LONGEST_LINE = 32 * 2**20
_FIRST_LOOK = 2**16
_BLOCK = 2**22

_DELIMITERS = ";\t|,"

Cell = Literal["number", "whole", "comma", "text", "nothing", "list", "other"]


class TextTable:
    """A text table.

    Parameters
    ----------
    path : Path
    delimiter : str, optional
        Comma for ``.csv``, else a tab; or what makes several columns of the header, if that makes
        but one.
    decimal : {".", ","}

    Attributes
    ----------
    names : list of str
        Names of the columns; empty for a column without one.

    Raises
    ------
    SourceError
        Names the row and column that cannot be read.
    """

    def __init__(
        self, path: Path, delimiter: str | None = None, decimal: Literal[".", ","] = "."
    ) -> None:
        check_regular(path, SourceError)
        self.path = path
        self._decimal = decimal
        given = "\t" if delimiter in ("\\t", "tab") else delimiter
        if given is not None and len(given) != 1:
            raise SourceError(f"the delimiter {delimiter!r} is not one character", file=path)
        self._head = self._read_head()
        self._check_head()
        self.delimiter = given or self._find_delimiter()
        self.names = self._read_names()

    def _read_head(self) -> bytes:
        """The first lines, with the header whole."""
        size = _FIRST_LOOK
        while True:
            try:
                with self._open() as stream:
                    # pyarrow's read() keeps what it has reserved for ever where it fails.
                    head: bytes = stream.read_buffer(size).to_pybytes()
            except (OSError, pa.ArrowException) as error:
                raise SourceError(f"cannot be read: {error}", file=self.path) from None
            self._complete = len(head) < size
            if len(head) < size or b"\n" in head[: size // 2] or b"\r" in head[: size // 2]:
                return head
            if size >= _LONGEST_LINE:
                raise SourceError(
                    "has no end of line in its first 32 MiB: no table", file=self.path
                )
            size *= 8

    def _check_head(self) -> None:
        if not self._head.strip():
            raise SourceError("is empty", file=self.path)
        if self._head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise SourceError("is text in UTF-16; save it as UTF-8", file=self.path)

    def _open(self) -> Any:
        """The text, unpacked, and closing with it the file."""
        return unpacked(pa.OSFile(str(self.path)), self.path)

    def _read_names(self) -> list[str]:
        names = next(self._first_rows(self.delimiter), [])
        if len(names) > MOST_COLUMNS:
            raise SourceError(
                f"has {len(names):,} columns; a table has a row per frame and a column per class "
                f"(most: {MOST_COLUMNS:,})",
                file=self.path,
            )
        try:
            codecs.getincrementaldecoder("utf-8-sig")().decode(self._head, final=self._complete)
        except UnicodeDecodeError:
            raise self._bad_byte(names) from None
        other = next((d for d in _DELIMITERS if d in names[0]), None) if len(names) == 1 else None
        if other:
            what = f"has a single column, with {other!r} in its name; --delimiter tells cells apart"
            raise SourceError(what, file=self.path)
        twice = [name for name, n in Counter(names).items() if n > 1 and name]
        if twice:
            raise SourceError("two columns of this name", file=self.path, column=twice[0])
        return names

    def _find_delimiter(self) -> str:
        """The one that the suffix promises, or where that parts nothing, the first that does."""
        usual = "," if ".csv" in [kind.lower() for kind in self.path.suffixes[-2:]] else "\t"
        tried = (usual, *_DELIMITERS)
        return next((d for d in tried if len(next(self._first_rows(d), [])) > 1), usual)

    def _first_rows(self, delimiter: str) -> Iterator[list[str]]:
        """Header and rows of the first lines, the last one perhaps cut short."""
        text = self._head.decode("utf-8-sig", errors="replace")
        return self._rows(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))

    def _rows(self, reader: Any) -> Iterator[list[str]]:
        try:
            yield from reader
        except csv.Error as error:
            what = f"row {reader.line_num + 1}: {error}"
            raise SourceError(what, file=self.path) from None

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """What the first rows hold, by column."""
        found: dict[str, Cell] = dict.fromkeys(self.names, "nothing")
        rows = list(self._first_rows(self.delimiter))[1:]
        for row in rows if self._complete else rows[:-1]:
            for name, cell in zip(self.names, row, strict=False):
                found[name] = _wider(found[name], _cell(cell, self._decimal))
        return found

    def batches(self, types: dict[str, pa.DataType]) -> Iterator[tuple[pa.RecordBatch, float]]:
        """Some columns, in pieces, and how much of the file has been read, in [0, 1].

        Parameters
        ----------
        types : dict
            Name of a column -> its type. An empty cell of text is empty text.
        """
        options: dict[str, Any] = {
            "read_options": pa_csv.ReadOptions(block_size=max(_BLOCK, 128 * len(self.names))),
            "parse_options": pa_csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True),
            "convert_options": pa_csv.ConvertOptions(
                column_types=types,
                include_columns=list(types),
                null_values=NOTHING,
                decimal_point=self._decimal,
            ),
        }
        size = max(self.path.stat().st_size, 1)
        try:
            with (
                pa.OSFile(str(self.path)) as file,
                unpacked(file, self.path) as stream,
                pa_csv.open_csv(stream, **options) as reader,
            ):
                for batch in reader:
                    yield batch, min(1.0, file.tell() / size)
        except (pa.ArrowException, OSError, UnicodeError) as error:
            self._find_fault(types)
            raise SourceError(f"cannot be read: {error}", file=self.path) from None

    def place(self, row: int) -> int:
        """Row, as an editor counts, of a row of data counted from 0."""
        for i, (line, _) in enumerate(self._slowly()):
            if i == row:
                return line
        return row + 2

    def _slowly(self) -> Iterator[tuple[int, list[str]]]:
        """Rows of data and the lines on which they begin."""
        with self._open() as stream:
            line = length = 0

            def lines() -> Iterator[str]:
                nonlocal length
                text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
                while part := text.readline(_LONGEST_LINE):
                    length += len(part)
                    if length >= _LONGEST_LINE:
                        raise self._too_long(line + 1)
                    yield part

            reader = csv.reader(lines(), delimiter=self.delimiter)
            for row in self._rows(reader):
                if row and line:
                    yield line + 1, row
                line, length = reader.line_num, 0

    def _too_long(self, line: int) -> SourceError:
        what = f"row {line}: is longer than {_LONGEST_LINE >> 20} MiB"
        return SourceError(what, file=self.path)

    def _find_fault(self, types: dict[str, pa.DataType]) -> None:
        """Raise an error that names the first row and column that cannot be read."""
        numbers = [i for i, n in enumerate(self.names) if n in types and types[n] != pa.string()]
        line = 1
        try:
            for line, row in self._slowly():
                if len(row) != len(self.names):
                    cells = f"{len(row)} cells for {len(self.names)} columns"
                    raise SourceError(f"row {line}: {cells}", file=self.path)
                for i in numbers:
                    held = _cell(row[i], self._decimal)
                    if held in ("text", "comma"):
                        what = f"row {line}: {row[i][:40]!r} is no number"
                        if held == "comma":
                            what += "; --decimal ',' reads decimal commas"
                        raise SourceError(what, file=self.path, column=self.names[i])
        except UnicodeDecodeError:
            # Lines are decoded in blocks: look for the very byte.
            raise self._bad_byte(self.names) from None
        except (OSError, EOFError) as error:
            raise SourceError(f"row {line + 1}: {error}", file=self.path) from None

    def _bad_byte(self, names: list[str]) -> SourceError:
        number = 0
        try:
            with self._open() as stream:
                lines = io.BufferedReader(stream)
                for number, line in enumerate(iter(lambda: lines.readline(_LONGEST_LINE), b""), 1):
                    if len(line) == _LONGEST_LINE:
                        return self._too_long(number)
                    try:
                        line.decode("utf-8")
                    except UnicodeDecodeError as error:
                        before = line[: error.start].count(self.delimiter.encode())
                        name = names[before] if before < len(names) else None
                        what = f"row {number}: byte {line[error.start]:#04x} is no UTF-8"
                        return SourceError(what, file=self.path, column=name)
        except (OSError, EOFError) as error:  # what is packed may be damaged before that byte
            return SourceError(f"row {number + 1}: {error}", file=self.path)
        return SourceError("is not UTF-8", file=self.path)


def unpacked(file: pa.NativeFile, path: Path) -> pa.NativeFile:
    """What is in a file, which may be packed as its name says."""
    packed = PACKED.get(path.suffix.lower())
    return pa.CompressedInputStream(file, packed) if packed else file


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|inf|infinity|nan)", re.I)
_WHOLE = re.compile(r"[+-]?\d+")
_SWAPPED = str.maketrans(".,", ",.")


def _cell(cell: str, decimal: str) -> Cell:
    cell = cell.strip()
    if cell in NOTHING:
        return "nothing"
    if _WHOLE.fullmatch(cell):
        return "whole"
    swapped = cell.translate(_SWAPPED)
    if _NUMBER.fullmatch(cell if decimal == "." else swapped):
        return "number"
    return "comma" if decimal == "." and _NUMBER.fullmatch(swapped) else "text"


def _wider(one: Cell, other: Cell) -> Cell:
    """What a column holds: numbers, if there are any, so that what is none of them is an error."""
    order: list[Cell] = ["nothing", "text", "whole", "comma", "number"]
    return max(one, other, key=order.index)
