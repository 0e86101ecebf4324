"""Where files lie: a path on this machine, or a URL of an object store.

Conventions
-----------
A *place* is a `pathlib.Path` or a `Remote`, which has the few methods of a path that seqagg needs.
``file://`` is a path. ``s3://``, ``gs://`` and ``hdfs://`` go through Arrow's own file systems, all
others through fsspec, if its plug-in is installed. Nothing is visible under its name before it is
whole: a path by a rename, an object because stores show it when its upload ends.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from seqagg.errors import CacheError, ParameterError
from seqagg.files import atomic_write, check_regular

if TYPE_CHECKING:
    import pyarrow as pa

MOST_TEXT = 64 * 2**20
"""Bytes of a file of JSON or names: a manifest of 10^10 songs takes 40 of these 64 MiB."""


@dataclass(frozen=True)
class Remote:
    """A file or folder of an object store.

    Parameters
    ----------
    url : str
    data : pyarrow.Buffer, optional
        Its bytes, if they are held.
    """

    url: str
    data: pa.Buffer | None = None

    def __fspath__(self) -> str:
        return self.url

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> Remote:
        return Remote(f"{self.url.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """Last part of the URL."""
        return PurePosixPath(urlsplit(self.url).path).name

    @property
    def suffix(self) -> str:
        """End of the name from its last dot on."""
        return PurePosixPath(self.name).suffix

    @property
    def stem(self) -> str:
        """Name without its suffix."""
        return PurePosixPath(self.name).stem

    def exists(self) -> bool:
        """Whether there is a file or a folder."""
        return self.data is not None or self._info().type.name != "NotFound"

    def is_dir(self) -> bool:
        """Whether it is a folder, or the beginning of names of objects."""
        return self.data is None and self._info().type.name == "Directory"

    def size(self) -> int:
        """Number of bytes."""
        return int(self._info().size if self.data is None else self.data.size)

    def iterdir(self) -> Iterator[Remote]:
        """What lies in the folder."""
        from pyarrow.fs import FileSelector

        files, path = _file_system(self.url)
        for found in files.get_file_info(FileSelector(path)):
            yield self / found.base_name

    def open(self) -> Any:
        """Open it for reading, at any position."""
        if self.data is not None:
            from pyarrow import BufferReader

            return BufferReader(self.data)
        files, path = _file_system(self.url)
        return files.open_input_file(path)

    def held(self) -> Remote:
        """The same with its bytes, which are fetched in one go."""
        with self.open() as file:
            return replace(self, data=file.read_buffer())

    def put(self, source: Path) -> None:
        """Upload a file of this machine, whole or not at all."""
        from pyarrow.fs import LocalFileSystem, copy_files

        files, path = _file_system(self.url)
        files.create_dir(str(PurePosixPath(path).parent), recursive=True)
        copy_files(os.fspath(source), path, LocalFileSystem(), files)

    def _info(self) -> Any:
        files, path = _file_system(self.url)
        return files.get_file_info(path)


Place = Path | Remote


def place_of(name: str | os.PathLike[str]) -> Place:
    """The place that a path or URL names.

    Examples
    --------
    >>> place_of("s3://bucket/songs") / "1.parquet"
    Remote(url='s3://bucket/songs/1.parquet', data=None)
    >>> place_of("file:///songs/1.parquet").as_posix()
    '/songs/1.parquet'
    """
    if isinstance(name, Remote):
        return name
    text = os.fspath(name)
    if text.startswith("file://"):
        return Path(unquote(urlsplit(text).path))
    return Remote(text) if "://" in text else Path(text)


def everywhere(place: Place) -> str:
    """A path or URL that means the same in every process, whatever folder it works in."""
    return os.fspath(place.absolute() if isinstance(place, Path) else place)


@contextmanager
def writing(place: Place) -> Iterator[Path]:
    """Give a path to write to; what is written appears at the place when the block ends well."""
    if isinstance(place, Path):
        with atomic_write(place) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory(prefix="seqagg-") as folder:
        temporary = Path(folder) / place.name
        temporary.touch()
        yield temporary
        place.put(temporary)


def read_bytes(place: Place) -> bytes:
    """All bytes of a file of JSON or names, of which there are never very many.

    Raises
    ------
    FileNotFoundError
        Where there is none.
    CacheError
        When it would not end soon.
    """
    if isinstance(place, Path) and place.exists():
        check_regular(place, CacheError)
    with place.open("rb") if isinstance(place, Path) else place.open() as file:
        data: bytes = file.read(MOST_TEXT + 1)
    if len(data) > MOST_TEXT:
        raise CacheError(f"is longer than {MOST_TEXT >> 20} MiB", file=place)
    return data


def size_of(place: Place) -> int:
    """Number of bytes of a file."""
    return place.stat().st_size if isinstance(place, Path) else place.size()


@lru_cache(maxsize=64)
def _file_system_of(scheme: str, server: str) -> Any:
    """Arrow's file system for all URLs of a server; None if Arrow has none for it."""
    from pyarrow import ArrowInvalid, ArrowNotImplementedError
    from pyarrow.fs import FileSystem

    try:
        return FileSystem.from_uri(f"{scheme}://{server}/")[0]
    except (ArrowInvalid, ArrowNotImplementedError):
        return None


def file_system(place: Place) -> tuple[Any, str]:
    """Arrow's file system of a place, and the path in it."""
    from pyarrow.fs import LocalFileSystem

    return (LocalFileSystem(), str(place)) if isinstance(place, Path) else _file_system(place.url)


def remove(place: Place) -> None:
    """Remove a folder with all that is in it, if it is there."""
    if place.exists():
        files, path = file_system(place)
        files.delete_dir(path)


def _file_system(url: str) -> tuple[Any, str]:
    """File system of a URL, and the path in it."""
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    parts = urlsplit(url)
    files = _file_system_of(parts.scheme, parts.netloc)
    if files is not None:
        path = unquote(parts.path)
        return files, path if parts.scheme == "hdfs" else (parts.netloc + path).rstrip("/")
    try:
        from fsspec.core import url_to_fs

        other, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ParameterError(f"{url}: {error}") from None
    return PyFileSystem(FSSpecHandler(other)), path
