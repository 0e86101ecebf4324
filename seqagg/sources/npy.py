"""Arrays in ``.npy`` files: one array for each song, or one for all of them and its companions.

Beside a single array of many songs, ``--lengths``, ``--mask``, ``--song``, ``--label`` and so on
name other files, ``.npy`` or ``.txt`` with an entry a line.
"""

from __future__ import annotations

import dataclasses
import math
import os
import tokenize
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from seqagg.errors import SourceError
from seqagg.sources import arrays
from seqagg.sources.base import Batch, File, Options, unchanged
from seqagg.sources.rows import PER_SONG

TAKES = arrays.TAKES - {"scores"}

_SCORES = "scores"
_LONGEST_TEXT = 2**28


def read(files: Sequence[File], options: Options, notes: list[str]) -> Iterator[Batch]:
    """Songs of ``.npy`` files."""
    companions = {
        role: os.fspath(path)
        for role in arrays.USUAL
        if role != _SCORES and (path := _companion(role, options)) is not None
    }
    options = dataclasses.replace(options, **companions)  # type: ignore[arg-type]  # text, as said
    if companions and len(files) > 1:
        role = next(iter(companions))
        raise SourceError(
            f"--{role} goes with a single file, and these are {len(files)}; a second table of "
            "songs is --labels",
            file=companions[role],
        )
    for file in files:
        with ExitStack() as stack:
            members: dict[str, arrays.Member] = {_SCORES: _open(file, stack)}
            for path in companions.values():
                members[path] = _open(File(Path(path), path), stack)
            if companions:
                yield from arrays.read_arrays(members, options, file, notes)
            else:
                yield from arrays.read_arrays({file.name: members[_SCORES]}, options, file, notes)


def _companion(role: str, options: Options) -> str | None:
    joined = role in PER_SONG and options.labels is not None
    return None if joined else getattr(options, role)


def _open(file: File, stack: ExitStack) -> arrays.Member:
    stack.enter_context(unchanged(file.path))
    if file.path.suffix == ".txt":
        return _lines(file)
    member = NpyMember(lambda: file.path.open("rb"), file.path.stat().st_size, file.name, file)
    if member.fortran:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that Python 2 wrote it
            return arrays.Held(np.load(file.path, mmap_mode="r", allow_pickle=False))
    return member


def _lines(file: File) -> arrays.Member:
    """An entry a line."""
    with file.path.open("rb") as handle:
        content = handle.read(_LONGEST_TEXT)
    try:
        entries = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        row = content[: error.start].count(b"\n") + 1
        raise SourceError(f"row {row} is no UTF-8", file=file.path) from None
    array = np.array(entries or np.empty(0, "U1"))
    if len(entries) and all(entry.strip().isdecimal() for entry in entries):
        array = np.array([int(entry) for entry in entries])
    return arrays.Held(array)


class NpyMember:
    """An array in NumPy's format, read from front to back.

    Parameters
    ----------
    open_stream : callable
        Opens a binary file at the start of the array. It is open while the array is being read.
    size : int
        Bytes that the array must have with its header.
    name : str
        Named in errors, as the column.
    file : File

    Raises
    ------
    SourceError
        When it is none, is cut short, or holds what only pickle could read.
    """

    def __init__(
        self, open_stream: Callable[[], IO[bytes]], size: int, name: str, file: File
    ) -> None:
        self._open, self._name, self._file = open_stream, name, file
        try:
            with open_stream() as stream, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that Python 2 wrote it
                version = np.lib.format.read_magic(stream)
                read_header = _HEADERS[version]
                self.shape, fortran, self.dtype = read_header(stream)
                self._begin = stream.tell()
        except KeyError:
            raise self._wrong("is of a version of the format that is not known") from None
        except (*_NO_HEADER, OSError) as error:
            raise self._wrong(f"is no NumPy array: {error}") from None
        if bool in map(type, self.shape):  # which to Python are whole numbers, but not to NumPy
            raise self._wrong(f"is no NumPy array: of shape {self.shape}")
        arrays.check_dtype(self.dtype, name, file)
        n_bytes = math.prod(self.shape) * self.dtype.itemsize
        if min(self.shape, default=0) < 0 or n_bytes != size - self._begin:
            what = f"is cut short or damaged: {size - self._begin} bytes for {self.dtype}"
            raise self._wrong(f"{what} of shape {self.shape}")
        self.fortran = fortran and len(self.shape) > 1
        self._stream: IO[bytes] | None = None
        self._n_taken = 0
        self._held: arrays.Held | None = None

    def take(self, n: int) -> npt.NDArray[Any]:
        """Give the next `n` rows, or what is left of them."""
        if self.fortran:  # has no rows before it is whole
            if self._held is None:
                everything = self._read(math.prod(self.shape), last=True)
                self._held = arrays.Held(everything.reshape(self.shape, order="F"))
            return self._held.take(n)
        if not self.shape:
            return self._read(1, last=True)
        n = min(n, self.shape[0] - self._n_taken)
        self._n_taken += n
        items = self._read(n * math.prod(self.shape[1:]), last=self._n_taken == self.shape[0])
        return items.reshape(n, *self.shape[1:])

    def _read(self, n_items: int, last: bool) -> npt.NDArray[Any]:
        array = np.empty(n_items, self.dtype)
        view, n_read = memoryview(array.view(np.uint8)), 0  # type: ignore[arg-type]
        if self._stream is None:
            self._stream = self._open()
            self._stream.read(self._begin)
        while n_read < len(view):
            n = self._stream.readinto(view[n_read:])  # type: ignore[attr-defined]
            if not n:
                raise self._wrong("is cut short")
            n_read += n
        if last:
            self._stream.close()
        return array

    def _wrong(self, what: str) -> SourceError:
        column = None if self._name == self._file.name else self._name
        return SourceError(what, file=self._file.path, column=column)


_NO_HEADER = (ValueError, TypeError, EOFError, SyntaxError, tokenize.TokenError)
"""What NumPy raises where a header is none."""

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
