"""The tree of errors: each says in one line which file, song or column it is about."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_LONGEST_NAME = 200
_LONGEST = 2000


class SeqaggError(ValueError):
    """Input that seqagg cannot use.

    Parameters
    ----------
    message : str
        What is wrong, and what would be right.
    file, song, column : str, optional
        What it is about; put before the message in this order.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | os.PathLike[str] | None = None,
        song: str | None = None,
        column: str | None = None,
    ) -> None:
        self.message = message
        self.file = None if file is None else os.fspath(file)
        self.song = song
        self.column = column
        about = [
            *([self.file] if self.file is not None else []),
            *([f"song {_shown(song)}"] if song is not None else []),
            *([f"column {_shown(column)}"] if column is not None else []),
        ]
        # One line, whatever an id or a library's message holds.
        line = " ".join(": ".join([*about, message]).split())
        super().__init__(line if len(line) <= _LONGEST else f"{line[:_LONGEST]}...")

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions pickle by their positional arguments alone; joblib's workers need the rest.
        return _rebuild, (type(self), self.message, self.file, self.song, self.column)


@contextlib.contextmanager
def about(file: object) -> Iterator[None]:
    """Let what is wrong with songs be said of this file, unless it names another."""
    try:
        yield
    except SongError as error:
        if error.file is not None:
            raise
        named = type(error)(error.message, file=str(file), song=error.song, column=error.column)
        raise named from None


def _shown(name: str) -> str:
    """Name in quotes; of the very long ones, that some file has by mistake, the beginning."""
    return repr(name) if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]!r}..."


def _rebuild(
    cls: type[SeqaggError], message: str, file: str | None, song: str | None, column: str | None
) -> SeqaggError:
    return cls(message, file=file, song=song, column=column)


class SongError(SeqaggError):
    """Songs whose frames, labels, groups or columns cannot be used."""


class CacheError(SeqaggError):
    """A cache file that cannot be read or written."""


class SourceError(SeqaggError):
    """Files or tables of others that cannot be made into songs."""


class ModelFileError(SeqaggError):
    """A model file that cannot be read, trusted or written."""


class ResultsError(SeqaggError):
    """A table of a benchmark that cannot be read."""


class ParameterError(SeqaggError):
    """A parameter of a method or a command outside what it accepts."""
