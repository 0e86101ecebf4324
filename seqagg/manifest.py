"""The list of files that a folder of songs is made of, with counts and checksums.

Conventions
-----------
``_manifest.json`` in the folder. Its name begins as the names that Arrow, Spark and others leave
out when they read a folder of Parquet files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqagg.errors import CacheError, ParameterError, SeqaggError
from seqagg.files import same_file
from seqagg.parsing import parse_json
from seqagg.places import Place, read_bytes, writing

NAME = "_manifest.json"
VERSION = 1


def refuse_replacing(out: Place, *read: object) -> None:
    """Refuse to write over what is read, or into the folder of a cache, which is no more one then.

    Parameters
    ----------
    out : Path or Remote
        File that is to be written.
    *read
        Paths that it may not be, nor stand in; what is no path is not looked at. Object stores
        are not asked.

    Raises
    ------
    ParameterError
    """
    if not isinstance(out, Path):
        return
    if any(same_file(out, one) or same_file(out.parent, one) for one in read):
        raise ParameterError("is what is read, or in it; --out must be elsewhere", file=out)
    if (out.parent / NAME).exists():
        raise ParameterError("is in the folder of a cache; --out must be elsewhere", file=out)


@dataclass(frozen=True)
class Shard:
    """One file of a folder.

    Attributes
    ----------
    file : str
        Its name in the folder.
    n_songs, n_frames, n_bytes : int
    sha256 : str or None
        In hexadecimal; None where nobody has read the file yet.
    """

    file: str
    n_songs: int
    n_frames: int
    n_bytes: int
    sha256: str | None


@dataclass(frozen=True)
class Manifest:
    """All files of a folder, in the order of their names; no song stands in two of them.

    Attributes
    ----------
    header : dict
        ``columns``, ``kind`` and ``task``, in which the files agree.
    shards : tuple of Shard
    """

    header: dict[str, Any]
    shards: tuple[Shard, ...]

    @property
    def n_songs(self) -> int:
        """Songs of all files."""
        return sum(shard.n_songs for shard in self.shards)

    @property
    def n_frames(self) -> int:
        """Frames of all files."""
        return sum(shard.n_frames for shard in self.shards)

    @property
    def n_bytes(self) -> int:
        """Bytes of all files."""
        return sum(shard.n_bytes for shard in self.shards)

    def digest(self) -> str:
        """The sha256 of what the manifest says, in hexadecimal."""
        return hashlib.sha256(self._text().encode()).hexdigest()

    def write(self, folder: Place) -> None:
        """Write it into a folder."""
        with writing(folder / NAME) as path:
            path.write_text(self._text(), encoding="utf-8")

    def _text(self) -> str:
        shards = [dataclasses.asdict(shard) for shard in self.shards]
        content = {
            "version": VERSION,
            **self.header,
            "n_songs": self.n_songs,
            "n_frames": self.n_frames,
            "shards": shards,
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def read_manifest(folder: Place) -> Manifest | None:
    """The manifest of a folder, None if it has none.

    Raises
    ------
    CacheError
        When it cannot be read or contradicts itself.
    """
    try:
        content = parse_json(read_bytes(folder / NAME))
    except FileNotFoundError:
        return None
    except SeqaggError:
        raise
    except (OSError, ValueError) as error:
        raise CacheError(f"cannot be read: {error}", file=folder / NAME) from None
    try:
        if content["version"] != VERSION:
            raise CacheError(f"version {content['version']!r} is unknown", file=folder / NAME)
        header = {name: content[name] for name in ("columns", "kind", "task")}
        shards = sorted((Shard(**shard) for shard in content["shards"]), key=lambda s: s.file)
        manifest = Manifest(header, tuple(shards))
        numbers = [(s.n_songs, s.n_frames, s.n_bytes) for s in shards]
        if not all(type(n) is int and n >= 0 for three in numbers for n in three):
            raise TypeError("a number of songs, frames or bytes is none")
        sums = (content["n_songs"], content["n_frames"])
    except (KeyError, TypeError) as error:
        raise CacheError(f"is no manifest: {error}", file=folder / NAME) from None
    names = [shard.file for shard in manifest.shards]
    plain = all(isinstance(name, str) and os.path.basename(name) == name for name in names)
    if not plain or len(set(names)) < len(names) or sums != (manifest.n_songs, manifest.n_frames):
        raise CacheError("is no manifest: it contradicts itself", file=folder / NAME)
    return manifest
