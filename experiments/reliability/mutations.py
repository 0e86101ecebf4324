"""Changes to valid files, on bytes and, so that they get past the first check, on what they mean.

Conventions
-----------
A mutation takes bytes and a source of chance and gives bytes. It never looks at the clock, at other
inputs or at the disk: the same chance makes the same file again.
"""

from __future__ import annotations

import bz2
import copy
import functools
import gzip
import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa

DEEP: list[Any] = []
for _ in range(50):
    DEEP = [DEEP]

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 255, 65536, 2**31 - 1, 2**31, -(2**63), 2**64, 10**30),
    *(0.0, -0.0, 0.5, 1e-320, 1e308, -1e38, 3.4e38),
    *("", "0", "-1", "x" * 300, "\x00", "\n", "\u202e", "é", "scores", "song_id", "label"),
    *("../../etc/passwd", "/dev/zero", "C:\\x", "nan", "inf", "1e999", "=1+1", "@x", "<script>"),
    *("pickle", "hmm", "gru", "logit", "probability", "log_odds", "multilabel", "float16", "<f4"),
    *([], {}, [[]], [0] * 40, [1, 2], DEEP, {"tuple": [1]}, {"tuple": 3}, {"": ""}),
)
"""Values that somebody may not have thought of."""

PICKLE = b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R."
"""Runs a command where it is unpickled."""

_NUMBERS = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-45, -1e-45, 1e30, -1e38, 3e38, np.inf, np.nan)
_BYTES = (b"\x00", b"\xff", b"\x7f", b"\x80", b"{", b"}", b'"', b"\n", b"PAR1", b"PK\x03\x04")


def scramble(data: bytes, chance: Random) -> bytes:
    """Change a few bytes, or many, anywhere."""
    out = bytearray(data)
    for _ in range(1 + int(chance.expovariate(0.5))):
        n = len(out)
        at = chance.randrange(n + 1)
        kind = chance.randrange(9)
        length = min(1 << chance.randrange(8), n - at)
        if kind <= 2 and at < n:
            out[at] ^= 1 << chance.randrange(8)
        elif kind == 3 and at < n:
            out[at] = chance.randrange(256)
        elif kind == 4:
            out[at:at] = chance.choice(_BYTES) * (1 + chance.randrange(4))
        elif kind == 5:
            del out[at : at + length]
        elif kind == 6:
            out[at:at] = out[at : at + length]
        elif kind == 7 and at + 8 <= n:
            number = chance.choice((0, 1, -1, 2**31 - 1, -(2**31), 2**62, n, n + 1))
            width = chance.choice(("<i", "<q"))
            value = number if width == "<q" else max(min(number, 2**31 - 1), -(2**31))
            struct.pack_into(width, out, at, value)
        elif kind == 8:
            other = chance.randrange(n + 1)
            out[at : at + length] = out[other : other + length]
    if chance.random() < 0.03:
        del out[chance.randrange(len(out) + 1) :]
    return bytes(out)


def change_json(value: Any, chance: Random) -> Any:
    """A JSON value with something in it replaced, left out, added or doubled."""
    places = _places(value)
    for _ in range(1 + int(chance.expovariate(1.0))):
        holder, key = chance.choice(places)
        if holder is None:
            continue
        kind = chance.randrange(6)
        try:
            if kind <= 2:
                holder[key] = copy.deepcopy(chance.choice(ODD))  # which what follows may change
            elif kind == 3:
                del holder[key]
            elif kind == 4:
                if isinstance(holder, dict):
                    holder[str(chance.choice(ODD))] = holder[key]
                else:
                    holder.insert(key, holder[key])
            else:
                other, name = chance.choice(places)
                if other is not None:
                    holder[key] = copy.deepcopy(other[name])
        except (KeyError, IndexError, ValueError, RecursionError):
            continue  # an earlier change took it away, or put it into itself
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = [(None, None)]
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        keys: Any = holder if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])
    return found


def change_array(array: np.ndarray[Any, Any], chance: Random) -> np.ndarray[Any, Any]:
    """An array with other numbers, of another type or of another shape."""
    try:
        return _changed(array, chance)
    except (ValueError, TypeError):  # text, or rows of a structure, that are no numbers
        return array[:0] if array.ndim else array


def _changed(array: np.ndarray[Any, Any], chance: Random) -> np.ndarray[Any, Any]:
    kind = chance.randrange(10)
    with np.errstate(all="ignore"):
        if kind <= 5 and array.size and array.dtype.kind in "fiub":
            out = array.copy()
            n = chance.choice((1, 1, 2, out.size))
            value = chance.choice(_NUMBERS)
            if array.dtype.kind == "f":
                out.flat[[chance.randrange(out.size) for _ in range(n)]] = value
            else:
                out.flat[chance.randrange(out.size)] = chance.choice((0, 1, 2, 127, 255))
            return out
        if kind == 6:
            return array.astype(chance.choice(("f2", "f4", "f8", "i1", "u8", "?", ">f8")))
        if kind == 7:
            return array.reshape(chance.choice(((-1,), (1, -1), (-1, 1), array.shape[::-1])))
        if kind == 8:
            return array[: max(0, len(array) - 1)] if array.ndim else array[None]
        return np.concatenate([array, array]) if array.ndim else array[None]


# NumPy's files.


def change_npy(data: bytes, chance: Random) -> bytes:
    """A ``.npy`` file whose header lies, or whose numbers are other ones."""
    if chance.random() < 0.2:
        return scramble(data, chance)
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except ValueError:
        return scramble(data, chance)
    if chance.random() < 0.5:
        buffer = io.BytesIO()
        np.save(buffer, change_array(array, chance), allow_pickle=False)
        return buffer.getvalue()
    descr = chance.choice(("|O", "<f4", "<f8", ">f2", "<U9", "|S3", "<i8", "<M8[s]", "|V4", "|b1"))
    shape = chance.choice(
        ((), (0,), (1,), (2, 2), (10**12,), (-1,), (2**40, 0), (3,) * 40, (True, 4))
    )
    header = {
        "descr": chance.choice((descr, array.dtype.str)),
        "fortran_order": chance.choice((True, False)),
        "shape": chance.choice((shape, array.shape)),
    }
    text = repr(header) if chance.random() < 0.9 else str(chance.choice(ODD))
    text = text.ljust(117 + chance.randrange(20)) + "\n"
    version = chance.choice((b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x03\x00"))
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
    body = PICKLE if chance.random() < 0.1 else array.tobytes()
    return b"\x93NUMPY" + version + length + text.encode() + body


def change_zip(data: bytes, chance: Random) -> bytes:
    """A zip with another entry, one less, one that lies, or packed as a bomb is."""
    if chance.random() < 0.2:
        return scramble(data, chance)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [(name, archive.read(name)) for name in archive.namelist()]
    except (zipfile.BadZipFile, ValueError):
        return scramble(data, chance)
    at = chance.randrange(len(entries))
    name, content = entries[at]
    kind = chance.randrange(8)
    if kind <= 4 and name.endswith(".npy"):
        entries[at] = (name, change_npy(content, chance))
    elif kind <= 4 and name.endswith(".json"):
        changed = change_json(json.loads(content), chance)
        entries[at] = (name, json.dumps(changed).encode())
    elif kind == 5:
        entries[at] = (str(chance.choice(ODD)) or "x", content)
    elif kind == 6:
        del entries[at]
    else:
        entries.append((name, chance.choice((content, bytes(100_000), PICKLE))))
    packing = zipfile.ZIP_DEFLATED if chance.random() < 0.1 else zipfile.ZIP_STORED
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packing) as archive:
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content, packing)
    return buffer.getvalue()


# Model files.


def change_model(data: bytes, chance: Random) -> bytes:
    """A model file that says something else, under the right checksum."""
    said, held = _model(data)
    content, arrays = json.loads(said), dict(held)
    for _ in range(1 + int(chance.expovariate(1.0))):
        if chance.random() < 0.35:
            content = change_json(content, chance)
        elif arrays:
            _change_one_array(arrays, chance)
    if not isinstance(content, dict):
        content = {"header": content}
    return signed(content, arrays, chance)


@functools.lru_cache(100)
def _model(data: bytes) -> tuple[str, dict[str, np.ndarray[Any, Any]]]:
    """What a model file says, and its arrays, which cannot be written to."""
    length = int.from_bytes(data[:8], "little")
    outer = json.loads(data[8 : 8 + length])
    said = outer.pop("__metadata__")["seqagg"]
    body = data[8 + length :]
    arrays = {
        name: np.frombuffer(body[slice(*entry["data_offsets"])], _DTYPES[entry["dtype"]]).reshape(
            entry["shape"]
        )
        for name, entry in outer.items()
    }
    return said, arrays


def _change_one_array(arrays: dict[str, np.ndarray[Any, Any]], chance: Random) -> None:
    name = chance.choice(list(arrays))
    array = arrays[name]
    kind = chance.randrange(8)
    if kind == 0:
        del arrays[name]
    elif kind == 1:
        arrays[chance.choice((name + "x", "state.0.scale", "state.history", "9"))] = array
    elif kind == 2:
        other = chance.choice(list(arrays))
        arrays[name], arrays[other] = arrays[other], array
    elif array.dtype == np.uint8 and array.ndim == 1 and array.size:
        raw = array.tobytes()
        if raw[:2] == b"PK":
            raw = change_zip(raw, chance)
        else:
            try:
                raw = json.dumps(change_json([json.loads(raw)], chance)[:1]).encode()[1:-1]
            except (ValueError, IndexError, TypeError):
                raw = scramble(raw, chance)
        arrays[name] = np.frombuffer(raw, np.uint8)
    else:
        arrays[name] = change_array(array, chance)


_DTYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
    "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
_NAMES = {np.dtype(kind): name for name, kind in _DTYPES.items()}


def signed(content: dict[str, Any], arrays: dict[str, Any], chance: Random) -> bytes:
    """A model file of that content, its table of arrays sometimes a lie, its checksum right."""
    content = {"sha256": "0" * 64} | {k: v for k, v in content.items() if k != "sha256"}
    table: dict[str, Any] = {"__metadata__": {"seqagg": json.dumps(content)}}
    body = b""
    for name, array in sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize):
        native = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
        end = len(body) + native.nbytes
        offsets, shape = [len(body), end], list(array.shape)
        if chance.random() < 0.003:
            offsets = [chance.choice((0, 1, end, 2**40)), chance.choice((0, end, 2**62))]
        if chance.random() < 0.003:
            shape = [chance.choice((0, -1, 2**33, 2**62))] * chance.randrange(4)
        table[name] = {"dtype": _NAMES[native.dtype], "shape": shape, "data_offsets": offsets}
        body += native.tobytes()
    head = json.dumps(table).encode()
    head += b" " * (-len(head) % 8)
    data = struct.pack("<Q", len(head)) + head + body
    return data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1)


# Text.

_WORDS = (
    "nan NaN inf -inf 1e999 -1 2 0 0.5 1e-320 0x10 1_0 abc ' =1+1 ; | null [] {} True 1,5 ../x é"
)
_CELLS = (*_WORDS.split(), "", " ", '"', '""', '"a,b"', '"a\nb"', "\ufeff", "\x00", "\t", "9" * 400)


def change_text(data: bytes, chance: Random) -> bytes:
    """A text table with other cells, lines and ends of lines."""
    if chance.random() < 0.2:
        return scramble(data, chance)
    text = data.decode("utf-8", "surrogateescape")
    delimiter = "\t" if text.count("\t") > text.count(",") else ","
    lines = [line.split(delimiter) for line in text.split("\n")]
    for _ in range(1 + int(chance.expovariate(0.7))):
        at = chance.randrange(len(lines)) if chance.random() < 0.7 else 0
        line = lines[at]
        cell = chance.randrange(len(line)) if line else 0
        kind = chance.randrange(9)
        if kind <= 3 and line:
            line[cell] = chance.choice(_CELLS)
        elif kind == 4 and line:
            del line[cell]
        elif kind == 5:
            line.insert(cell, chance.choice(_CELLS))
        elif kind == 6 and len(lines) > 1:
            del lines[at]
        elif kind == 7:
            lines.insert(chance.randrange(len(lines) + 1), list(line))
        elif line:
            other = chance.randrange(len(line))
            line[cell], line[other] = line[other], line[cell]
        if not lines:
            lines = [[""]]
    end = chance.choice(("\n", "\n", "\n", "\r\n", "\r"))
    said = end.join(delimiter.join(line) for line in lines)
    prefix = b"\xef\xbb\xbf" if chance.random() < 0.03 else b""
    return prefix + said.encode("utf-8", "surrogateescape")


def change_lines(data: bytes, chance: Random) -> bytes:
    """JSON lines with other values, or other lines."""
    if chance.random() < 0.3:
        return scramble(data, chance)
    lines = [json.loads(line) for line in data.splitlines() if line.strip()]
    lines = change_json(lines, chance)
    return b"\n".join(json.dumps(line).encode() for line in lines)


def change_document(data: bytes, chance: Random) -> bytes:
    """A JSON document that says something else."""
    if chance.random() < 0.2:
        return scramble(data, chance)
    return json.dumps(change_json([json.loads(data)], chance)[:1]).encode()[1:-1]


# Packed files.


def pack(data: bytes, packing: str) -> bytes:
    """Bytes as gzip, bzip2 or Zstandard write them."""
    if packing == "gzip":
        return gzip.compress(data, 1, mtime=0)
    if packing == "bz2":
        return bz2.compress(data, 1)
    return bytes(pa.compress(data, packing, asbytes=True))


def _unpack(data: bytes, packing: str) -> bytes:
    with pa.CompressedInputStream(pa.BufferReader(data), packing) as stream:
        return bytes(stream.read())


def change_packed(
    data: bytes, chance: Random, packing: str, mutate: Callable[[bytes, Random], bytes]
) -> bytes:
    """A packed file with other content, or packed badly, twice, in parts, or as a bomb is."""
    if chance.random() < 0.3:
        return scramble(data, chance)
    content = mutate(_unpack(data, packing), chance)
    kind = chance.randrange(12)
    if kind == 0:
        return pack(pack(content, packing), packing)
    if kind == 1:
        at = chance.randrange(len(content) + 1)
        return pack(content[:at], packing) + pack(content[at:], packing)
    if kind == 2:
        return pack(content, packing) + chance.choice((b"\x00" * 9, b"more", data, data[:7]))
    if kind == 3:
        return pack(content, chance.choice(("gzip", "bz2", "zstd")))
    if kind == 4 and chance.random() < 0.1:
        return pack(content + chance.choice((b"\n", b",", b"0", b'"', b" ")) * 2**20, packing)
    return pack(content, packing)
