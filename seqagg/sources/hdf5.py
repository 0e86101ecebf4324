"""Arrays in HDF5 files; h5py, of the extra ``hdf5``, reads them.

Links to other files, data that lie elsewhere and filters that are not h5py's own are refused.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from seqagg.errors import ParameterError, SourceError
from seqagg.sources import arrays
from seqagg.sources.base import Batch, File, Options, check_unpacked, unchanged

TAKES = arrays.TAKES


def read(files: Sequence[File], options: Options, notes: list[str]) -> Iterator[Batch]:
    """Songs of HDF5 files."""
    try:
        h5py: Any = importlib.import_module("h5py")
    except ImportError:
        raise ParameterError("HDF5 files need h5py: pip install 'seqagg[hdf5]'") from None
    for file in files:
        with unchanged(file.path):
            try:
                with h5py.File(file.path, "r") as store:
                    yield from arrays.read_arrays(_members(h5py, store, file), options, file, notes)
            except SourceError:
                raise
            except (OSError, RuntimeError, KeyError, ValueError) as error:
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
    check_unpacked(n_bytes, file.path)
    return found


class _Dataset:
    """A dataset, as a member."""

    def __init__(self, h5py: Any, dataset: Any, name: str, file: File) -> None:
        if dataset.is_virtual or dataset.external:
            raise SourceError("lies in another file", file=file.path, column=name)
        text = h5py.check_string_dtype(dataset.dtype)
        self._is_text = text is not None and text.length is None
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
