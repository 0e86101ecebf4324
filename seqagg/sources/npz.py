"""Arrays in ``.npz`` files: what `numpy.savez` writes.

Nothing in them is unpickled, and how much they unpack to is looked at before anything is unpacked.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import partial

from seqagg.errors import SourceError
from seqagg.files import check_unpacked
from seqagg.sources import arrays
from seqagg.sources.base import Batch, File, Options, unchanged
from seqagg.sources.npy import NpyMember

TAKES = arrays.TAKES

_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError)


def read(files: Sequence[File], options: Options, notes: list[str]) -> Iterator[Batch]:
    """Songs of ``.npz`` files."""
    for file in files:
        with unchanged(file.path):
            try:
                with zipfile.ZipFile(file.path) as archive:
                    yield from arrays.read_arrays(_members(archive, file), options, file, notes)
            except _BROKEN as error:
                raise SourceError(f"is no whole .npz file: {error}", file=file.path) from None
            except RuntimeError as error:
                raise SourceError(f"cannot be unpacked: {error}", file=file.path) from None


def _members(archive: zipfile.ZipFile, file: File) -> dict[str, arrays.Member]:
    entries = [entry for entry in archive.infolist() if not entry.filename.endswith("/")]
    check_unpacked(sum(entry.file_size for entry in entries), file.path, SourceError)
    members: dict[str, arrays.Member] = {}
    for entry in entries:
        name = entry.filename.removesuffix(".npy")
        if name == entry.filename:
            what = f"holds {entry.filename!r}, which is no .npy file"
            raise SourceError(what, file=file.path)
        if name in members:
            raise SourceError("two arrays of this name", file=file.path, column=name)
        members[name] = NpyMember(partial(archive.open, entry), entry.file_size, name, file)
    return members
