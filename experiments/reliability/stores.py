"""Changes to HDF5 files that leave them whole: arrays, their layout, references to text."""

from __future__ import annotations

import importlib
import io
import zlib
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import numpy as np

from experiments.reliability.mutations import ODD, change_array, scramble

Arrays = Mapping[str, np.ndarray[Any, Any]]

_LAYOUTS: tuple[dict[str, Any], ...] = (
    {},
    {"chunks": True},
    {"compression": "gzip"},
    {"compression": "gzip", "shuffle": True},
    {"fletcher32": True},
    {"compression": "lzf"},
)


def store(arrays: Arrays, layout: Mapping[str, Any], **settings: Any) -> bytes:
    """An HDF5 file of arrays; text is of variable length."""
    h5py: Any = importlib.import_module("h5py")
    sink = io.BytesIO()
    with h5py.File(sink, "w", **settings) as file:
        for name, array in arrays.items():
            text = array.dtype.kind == "U"
            kind = h5py.string_dtype() if text else array.dtype
            content = array.astype(object) if text else array
            file.create_dataset(name, data=content, dtype=kind, **(layout if array.ndim else {}))
    return sink.getvalue()


def change_store(data: bytes, chance: Random, sets: Sequence[Arrays]) -> bytes:
    """The file with other bytes; or another file of one of these sets of arrays, changed."""
    if chance.random() < 0.5:
        return scramble(data, chance)
    arrays = dict(chance.choice(sets))
    name = chance.choice(list(arrays))
    kind = chance.randrange(4)
    if kind == 0:
        arrays[name] = change_array(arrays[name], chance)
    elif kind == 1:
        arrays["x/" + chance.choice("ab")] = arrays.pop(name)
    elif kind == 2:
        arrays[chance.choice(("label", "split", "fold", "start"))] = arrays[name]
    layout = chance.choice(_LAYOUTS)
    try:
        made = store(arrays, layout, libver=chance.choice(("earliest", "latest")))
    except (ValueError, TypeError, OSError):
        return scramble(data, chance)  # there is no such file
    if layout.get("compression") == "gzip" and chance.random() < 0.5:
        made = _other_references(made, chance)
    return scramble(made, chance) if chance.random() < 0.3 else made


def _other_references(data: bytes, chance: Random) -> bytes:
    """Packed text that refers to elsewhere, or says another length."""
    h5py: Any = importlib.import_module("h5py")
    sink = io.BytesIO(data)
    with h5py.File(sink, "r+") as file:
        for item in list(file.values()):
            text = isinstance(item, h5py.Dataset) and h5py.check_string_dtype(item.dtype)
            if not text or item.shuffle:
                continue
            _, packed = item.id.read_direct_chunk((0,) * item.ndim)
            references = bytearray(zlib.decompress(packed))
            width = chance.choice((4, 8))
            at = chance.randrange(0, len(references) - 8, 4)
            odd = [n for n in ODD if type(n) is int and 0 <= n < 2 ** (8 * width)]
            references[at : at + width] = chance.choice(odd).to_bytes(width, "little")
            packed = chance.choice((zlib.compress(references), zlib.compress(bytes(10**6))))
            item.id.write_direct_chunk((0,) * item.ndim, packed)
    return sink.getvalue()
