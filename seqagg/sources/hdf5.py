"""Arrays in HDF5 files; h5py, of the extra ``hdf5``, reads them.

Links to other files, data that lie elsewhere and filters that are not h5py's own are refused.

What the HDF5 library would follow for ever is looked at first (HDF5 File Format Specification 3.0).
Nodes of a *B-tree* (III.A.1) name the next of their level. Text of variable length lies in *global
heaps* (III.E) that a dataset refers to; the library reserves whatever a reference claims, or a
description of the driver that wrote a file in parts (II.B).
"""

from __future__ import annotations

import importlib
import mmap
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from seqagg.errors import ParameterError, SourceError
from seqagg.files import check_unpacked
from seqagg.sources import arrays
from seqagg.sources.base import Batch, File, Options, unchanged

TAKES = arrays.TAKES


def read(files: Sequence[File], options: Options, notes: list[str]) -> Iterator[Batch]:
    """Songs of HDF5 files."""
    try:
        h5py: Any = importlib.import_module("h5py")
    except ImportError:
        raise ParameterError("HDF5 files need h5py: pip install 'seqagg[hdf5]'") from None
    for file in files:
        with unchanged(file.path):
            _check_structure(file)
            try:
                with h5py.File(file.path, "r") as store:
                    yield from arrays.read_arrays(_members(h5py, store, file), options, file, notes)
            except SourceError:
                raise
            except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
                raise SourceError(f"cannot be read: {error}", file=file.path) from None


def _members(h5py: Any, store: Any, file: File) -> dict[str, arrays.Member]:
    found: dict[str, arrays.Member] = {}
    n_bytes = 0

    def add(name: str, item: Any) -> None:  # visits no soft and no external links
        nonlocal n_bytes
        if not isinstance(name, str):
            raise SourceError(f"a name in it is no UTF-8: {name!r}", file=file.path)
        if isinstance(item, h5py.Dataset):
            found[name] = _Dataset(h5py, item, name, file)
            n_bytes += item.nbytes

    store.visititems(add)
    check_unpacked(n_bytes, file.path, SourceError)
    return found


class _Dataset:
    """A dataset, as a member."""

    def __init__(self, h5py: Any, dataset: Any, name: str, file: File) -> None:
        if dataset.is_virtual or dataset.external:
            raise SourceError("lies in another file", file=file.path, column=name)
        text = h5py.check_string_dtype(dataset.dtype)
        self._is_text = text is not None and text.length is None
        if self._is_text:
            _check_text(dataset, name, file)
        self.shape = dataset.shape or ()
        self.dtype = np.dtype("U1") if self._is_text else dataset.dtype
        arrays.check_dtype(self.dtype, name, file)
        self._dataset = dataset.asstr() if self._is_text else dataset
        self._n_taken = 0

    def take(self, n: int) -> npt.NDArray[Any]:
        """Give the next `n` rows, or what is left of them."""
        if not self.shape:
            return np.array([self._dataset[()]])
        first = self._n_taken
        self._n_taken = min(first + n, self.shape[0])
        array = self._dataset[first : self._n_taken]
        return np.array(array, dtype=str) if self._is_text else np.asarray(array)


_NODE, _NEXT = b"TREE", slice(16, 24)
_DRIVERS = {b"\0": slice(48, 56), b"\1": slice(52, 60)}
"""Version of a superblock -> where it says where its driver is described; later ones do not."""


def _check_structure(file: File) -> None:
    """Refuse nodes of B-trees that follow each other in a circle, and a driver of any size."""
    if not file.path.stat().st_size:
        return
    following: dict[int, int] = {}
    with (
        file.path.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        base = max(0, data.find(b"\x89HDF\r\n\x1a\n"))
        first = data[base : base + 60]
        if first[_DRIVERS.get(first[8:9], slice(0))].strip(b"\xff"):
            raise SourceError("is one of the parts of a file", file=file.path)
        at = data.find(_NODE)
        while at >= 0:
            following[at - base] = int.from_bytes(data[at : at + 24][_NEXT], "little")
            at = data.find(_NODE, at + len(_NODE))
    while following:
        node, after = following.popitem()
        chain = {node}
        while after in following or after in chain:
            if after in chain:
                raise SourceError("its index runs in a circle", file=file.path)
            chain.add(after)
            after = following.pop(after)


_REFERENCE = np.dtype([("n_bytes", "<u4"), ("address", "<u8"), ("index", "<u4")])
_DEFLATE, _SHUFFLE = 1, 2


def _check_text(dataset: Any, name: str, file: File) -> None:
    """Refuse text whose references or heaps do not add up."""
    sizes = dataset.file.id.get_create_plist().get_sizes()
    if sizes != (8, 8):
        raise SourceError("its addresses are not of 8 bytes", file=file.path, column=name)
    with (
        file.path.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        for piece in _pieces(dataset, data, name, file):
            used = np.frombuffer(
                piece[: len(piece) // _REFERENCE.itemsize * _REFERENCE.itemsize], _REFERENCE
            )
            used = used[used["n_bytes"] > 0]
            fine = not len(used) or int(used["n_bytes"].max()) <= len(data)
            for address in np.unique(used["address"]).tolist():
                fine = fine and _is_heap(data, address)
            if not fine:
                raise SourceError("its text is damaged", file=file.path, column=name)


def _pieces(dataset: Any, data: mmap.mmap, name: str, file: File) -> Iterator[bytes]:
    """The references of a dataset, unpacked."""
    stored = dataset.id
    if dataset.chunks is None:
        first = stored.get_offset()
        if first is not None:
            yield data[first : first + stored.get_storage_size()]
        return
    properties = stored.get_create_plist()
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    size = _REFERENCE.itemsize * int(np.prod(dataset.chunks))
    check_unpacked(size * stored.get_num_chunks(), file.path, SourceError)
    for i in range(stored.get_num_chunks()):
        chunk = stored.get_chunk_info(i)
        piece = data[chunk.byte_offset : chunk.byte_offset + chunk.size]
        for place in reversed(range(len(filters))):
            if not chunk.filter_mask >> place & 1:
                piece = _unfiltered(piece, filters[place], size, name, file)
        yield piece


def _unfiltered(piece: bytes, kind: int, size: int, name: str, file: File) -> bytes:
    """What was given to one of HDF5's own filters."""
    if kind == _SHUFFLE and len(piece) % _REFERENCE.itemsize == 0:
        return np.frombuffer(piece, np.uint8).reshape(_REFERENCE.itemsize, -1).T.tobytes()
    if kind == _DEFLATE:
        try:
            return zlib.decompressobj().decompress(piece, size)
        except zlib.error as error:
            raise SourceError(
                f"its text is damaged: {error}", file=file.path, column=name
            ) from None
    what = "its text is packed, and not by gzip" if kind != _SHUFFLE else "its text is damaged"
    raise SourceError(what, file=file.path, column=name)


def _is_heap(data: mmap.mmap, first: int) -> bool:
    """Whether a global heap lies there whose objects fill it."""
    if first + 16 > len(data) or data[first : first + 4] != b"GCOL":
        return False
    end = first + int.from_bytes(data[first + 8 : first + 16], "little")
    place = first + 16
    while end <= len(data) and end - place >= 16:
        index = int.from_bytes(data[place : place + 2], "little")
        n_bytes = int.from_bytes(data[place + 8 : place + 16], "little")
        # Object 0 is what is free, and counts its head.
        step = n_bytes if index == 0 else 16 + -(-n_bytes // 8) * 8
        if step < 16:
            return False
        place += step
    return place <= end <= len(data)
