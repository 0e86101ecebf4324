"""The model file: a JSON header and named arrays in one ``.safetensors`` file, format 1.

Conventions
-----------
The file holds numbers and text, nothing that could run. Its metadata has one key, ``seqagg``, with
JSON: the sha256 of the whole file (taken with 64 zeros in its own place), the format version and
the header. Every byte is thus under the checksum: lengths, names, shapes, padding and numbers. The
checksum tells damage, not malice; whoever reads a header must still check what it says.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import safetensors
from safetensors.numpy import load as from_safetensors
from safetensors.numpy import save as to_safetensors

from seqagg.errors import ModelFileError
from seqagg.files import atomic_write, check_regular
from seqagg.parsing import parse_json

VERSION = 1
SUFFIX = ".safetensors"

_KEY = "seqagg"
_METADATA = "__metadata__"
_NO_DIGEST = "0" * 64
_LONGEST_HEADER = 64 * 2**20
_DTYPES = {"bool", "float16", "float32", "float64"} | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}

Array = npt.NDArray[Any]


def write_model(
    path: str | os.PathLike[str], header: Mapping[str, Any], arrays: Mapping[str, npt.ArrayLike]
) -> None:
    """Write a header and arrays, whole or not at all, and read them back before they count.

    Parameters
    ----------
    path : path-like
        Ends in ``.safetensors``.
    header : mapping
        What JSON gives back as it was: no tuples, no NaN, keys of text.
    arrays : mapping of str to array-like
        Of booleans, integers or floats, in any memory order.

    Raises
    ------
    ModelFileError
        When header or arrays do not fit the format, or the file cannot be written.
    """
    target = Path(path)
    check_suffix(target)
    contiguous = {name: _contiguous(target, name, array) for name, array in arrays.items()}
    data = _encode(target, header, contiguous)
    try:
        with atomic_write(target) as temporary:
            temporary.write_bytes(data)
            read_header, read_arrays = _decode(target, temporary.read_bytes())
            if read_header != header or not _identical(read_arrays, contiguous):
                raise ModelFileError("was not read back as it was written", file=target)
    except OSError as error:
        raise ModelFileError(f"cannot be written: {error.strerror or error}", file=path) from None


def read_model(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Read the header and the arrays of a model file.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    header : dict
    arrays : dict of str to ndarray

    Raises
    ------
    ModelFileError
        When it is no model file, of another format version, or damaged in any bit.
    """
    source = Path(path)
    check_suffix(source)
    check_regular(source, ModelFileError)
    try:
        with source.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            start += file.read(_check_header_length(source, start, size))
            _check_size(source, start[8:], size - len(start))
            data = start + file.read(size - len(start))
    except OSError as error:
        raise ModelFileError(f"cannot be read: {error.strerror or error}", file=path) from None
    return _decode(source, data)


def check_suffix(path: str | os.PathLike[str]) -> None:
    """Refuse a path that does not end in ``.safetensors``, with `ModelFileError`."""
    if Path(path).suffix != SUFFIX:
        raise ModelFileError(f"a model file ends in {SUFFIX}", file=path)


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what fits models here, for whoever must find out why an answer changed."""
    found = {"python": platform.python_version()}
    for name in ("seqagg", "numpy", "scipy", "scikit-learn", "hmmlearn", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _contiguous(target: Path, name: str, array: npt.ArrayLike) -> Array:
    # safetensors writes the buffer as it lies, whatever the strides say. np.ascontiguousarray
    # would do but for arrays without a dimension, to which it gives one.
    ordered = np.asarray(array, order="C")
    if ordered.dtype.name not in _DTYPES:
        raise ModelFileError(
            f"array {name!r} holds {ordered.dtype}; a model file keeps bool, int and float",
            file=target,
        )
    return ordered.astype(ordered.dtype.newbyteorder("="), copy=False)


def _encode(target: Path, header: Mapping[str, Any], arrays: dict[str, Array]) -> bytes:
    # The digest stands first, so that its place is the first that holds its characters.
    content = {"sha256": _NO_DIGEST, "version": VERSION, "header": header}
    try:
        text = json.dumps(content, allow_nan=False)
        survives = json.loads(text) == content
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelFileError(f"the header is not JSON: {error}", file=target) from None
    if not survives:
        raise ModelFileError(
            "JSON would change the header (a tuple? a number as key?)", file=target
        )
    try:
        data = to_safetensors(arrays, metadata={_KEY: text})
    except safetensors.SafetensorError as error:
        raise ModelFileError(f"cannot be written: {error}", file=target) from None
    return data.replace(_NO_DIGEST.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def _decode(source: Path, data: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    content = _read_content(source, data)
    if content.get("version") != VERSION:
        raise ModelFileError(
            f"format version {content.get('version')!r}; this seqagg reads {VERSION}", file=source
        )
    digest = content.get("sha256")
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise ModelFileError("has no checksum", file=source)
    blank = data.replace(digest.encode(), _NO_DIGEST.encode(), 1)
    if hashlib.sha256(blank).hexdigest() != digest:
        raise ModelFileError("is damaged: its checksum is wrong", file=source)
    header = content.get("header")
    if not isinstance(header, dict):
        raise ModelFileError("has no header", file=source)
    try:
        arrays = from_safetensors(data)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ModelFileError(f"holds arrays that cannot be read: {error}", file=source) from None
    for name, array in arrays.items():
        if array.dtype.name not in _DTYPES:
            raise ModelFileError(f"array {name!r} holds {array.dtype}", file=source)
    return header, arrays


def _check_header_length(source: Path, start: bytes, size: int) -> int:
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= min(size - 8, _LONGEST_HEADER):
        raise ModelFileError("is no safetensors file, or was cut short", file=source)
    return length


def _check_size(source: Path, header: bytes, n_bytes: int) -> None:
    """Refuse a file that is longer or shorter than its arrays, before it is read."""
    arrays = [entry for name, entry in _read_json(source, header).items() if name != _METADATA]
    try:
        end = max((int(entry["data_offsets"][1]) for entry in arrays), default=0)
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        what = f"is no safetensors file, or damaged: {type(error).__name__}: {error}"
        raise ModelFileError(what, file=source) from None
    if end != n_bytes:
        raise ModelFileError(
            f"is damaged: its arrays take {end:,} bytes, and there are {n_bytes:,}", file=source
        )


def _read_content(source: Path, data: bytes) -> dict[str, Any]:
    """Read digest, version and header out of the metadata, nothing of which is trusted yet."""
    length = _check_header_length(source, data[:8], len(data))
    outer = _read_json(source, data[8 : 8 + length])
    metadata = outer.get(_METADATA)
    if not isinstance(metadata, dict) or not isinstance(metadata.get(_KEY), str):
        raise ModelFileError("is a safetensors file, but no seqagg model", file=source)
    return _read_json(source, metadata[_KEY])


def _read_json(source: Path, text: str | bytes) -> dict[str, Any]:
    try:
        value = parse_json(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except ValueError as error:
        raise ModelFileError(f"is no safetensors file, or damaged: {error}", file=source) from None
    if not isinstance(value, dict):
        raise ModelFileError("is no safetensors file, or damaged: no JSON object", file=source)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} stands there twice")
        found[name] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _identical(a: Mapping[str, Array], b: Mapping[str, Array]) -> bool:
    """Whether names, dtypes, shapes and bits agree; NaN equals itself."""
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype
        and a[name].shape == b[name].shape
        and a[name].tobytes() == b[name].tobytes()
        for name in a
    )
