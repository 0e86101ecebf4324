"""JSON Lines on their way to Arrow's reader, which some that are forged would bring down.

A block that begins with ``null`` ends the process, as do values some thousand deep, which before
that take minutes (Arrow 26). A key that is missing takes as much memory as one that is there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seqagg.errors import SourceError

_DEEPEST = 100
"""Lists and objects within each other; frames of songs are three deep."""

_LONGEST = 2**25
_MANY_CELLS = 10**7

_SPARSEST = 4
"""Cells for each colon in a block of many cells."""

_KEY = re.compile(rb'("(?:[^"\\]|\\.)*")\s*:', re.DOTALL)

_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class CheckedLines:
    """A stream of bytes, all of whose lines are objects that are not too deep, or empty.

    Parameters
    ----------
    stream : file-like
    path : Path
        Named in errors.
    n_columns : int, optional
        How many columns are made of it; one of every key, if not given.
    """

    def __init__(self, stream: Any, path: Path, n_columns: int | None = None) -> None:
        self._stream, self._path, self._n_columns = stream, path, n_columns
        self._rest = b""
        self._n_lines = 0

    @property
    def closed(self) -> bool:
        """Whether it is."""
        return bool(self._stream.closed)

    def close(self) -> None:
        """Close the stream."""
        self._stream.close()

    def read(self, n: int) -> bytes:
        """Give some bytes, the last line of which, if it goes on, is looked at next time."""
        data: bytes = self._stream.read_buffer(n).to_pybytes()
        whole = self._rest + data
        end = max(whole.rfind(b"\n"), whole.rfind(b"\r", 0, -1)) + 1 if data else len(whole)
        self._rest = whole[end:]
        if len(self._rest) > _LONGEST:
            raise self._wrong(self._n_lines, f"is longer than {_LONGEST >> 20} MiB")
        self._check(whole[:end])
        return data

    def _check(self, lines: bytes) -> None:
        if b"\r" in lines:  # which is the end of a line to Arrow
            lines = lines.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        text = lines.strip()
        n_breaks = text.count(b"\n")
        if n_breaks != text.count(b"}\n{") or (text and (text[:1], text[-1:]) != (b"{", b"}")):
            for i, line in enumerate(lines.split(b"\n")):
                inner = line.strip(b" \t")
                if inner and (inner[:1], inner[-1:]) != (b"{", b"}"):
                    raise self._wrong(self._n_lines + i, "is none")
        if _may_be_deep(lines):
            for i, line in enumerate(lines.split(b"\n")):
                if _depth(line) > _DEEPEST:
                    raise self._wrong(self._n_lines + i, "holds too many lists in lists")
        n_lines, n_colons = lines.count(b"\n"), lines.count(b":")
        most = max(_MANY_CELLS, _SPARSEST * n_colons)
        n_columns = n_colons if self._n_columns is None else self._n_columns
        if n_lines * n_columns > most and self._n_columns is None:
            n_columns = len(set(_KEY.findall(lines)))
        if n_lines * n_columns > most:
            raise self._wrong(self._n_lines + n_lines - 1, "and those before have few of the keys")
        self._n_lines += n_lines

    def _wrong(self, line: int, what: str) -> SourceError:
        said = f"is not JSON Lines, an object a line: line {line + 1} {what}"
        return SourceError(said, file=self._path)


def _may_be_deep(lines: bytes) -> bool:
    """Whether much more is opened than closed anywhere, brackets in text included."""
    depth = np.cumsum(_steps(lines), dtype=np.int32)
    return bool((depth - np.minimum.accumulate(depth)).max(initial=0) >= _DEEPEST)


def _depth(line: bytes) -> int:
    return int(np.cumsum(_steps(_TEXT.sub(b"", line)), dtype=np.int32).max(initial=0))


def _steps(text: bytes) -> npt.NDArray[np.int8]:
    """1 for what opens, -1 for what closes."""
    brackets = np.frombuffer(text.translate(None, _NO_BRACKETS), np.uint8)
    return np.where((brackets | 32) == ord("{"), 1, -1).astype(np.int8)
