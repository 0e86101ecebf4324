"""The files of a benchmark, which change together: whoever reads finds all old, or all new ones.

Conventions
-----------
``results.parquet`` leads: it says in its metadata, by checksum, which of the others are its own;
null says that there is none. New ones wait as ``.next.NAME`` until the new ``results.parquet`` is
renamed into its place. That is the moment from which on the new files count. Then they get their
names. Where a writer was killed before it came to that, readers find them where they wait, and the
next writer gives them their names. Writers take turns.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from seqagg.files import atomic_write, flush_folder, taking_turns
from seqagg.parsing import parse_json
from seqagg.shards import sha256_of

RESULTS_FILE = "results.parquet"
PREDICTIONS_FILE = "predictions.parquet"
TIMELINES_FILE = "timelines.parquet"
PAGE_FILE = "report.html"

OWN_KEY = b"seqagg_files"
"""Key of the metadata under which is said, in JSON, which files are their own."""

Own = Mapping[str, str | None]
"""Name -> sha256 in hexadecimal; None where there is no such file, no entry for any that may be."""

_OTHERS = (PREDICTIONS_FILE, TIMELINES_FILE, PAGE_FILE)
_LOCK = ".results.lock"


def write_files(
    folder: Path, results: pa.Table, others: Mapping[str, pa.Table | str | None]
) -> None:
    """Write files in place of those of another benchmark, all of them or none.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    results : pyarrow.Table
        The table that leads.
    others : mapping
        Name -> table or text; None for one that must not be there. A file without an entry stays
        as it is.

    Raises
    ------
    OSError
        When the folder cannot be written. The files are then as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with taking_turns(folder / _LOCK):
        _settle(folder)  # what one that was killed has left
        try:
            own = {
                name: None if content is None else _write_waiting(folder / name, content)
                for name, content in others.items()
            }
            flush_folder(folder)
            said = (results.schema.metadata or {}) | {OWN_KEY: json.dumps(own).encode()}
            with atomic_write(folder / RESULTS_FILE) as temporary:
                _write_table(results.replace_schema_metadata(said), temporary)
        finally:
            _settle(folder)


def find_own(results: pa.Table) -> tuple[pa.Table, Own]:
    """Take what it says of its files out of a table that leads.

    Raises
    ------
    ValueError
        When that is not what `write_files` writes there.
    """
    said = dict(results.schema.metadata or {})
    own = parse_json(said.pop(OWN_KEY, b"{}"))
    if not isinstance(own, dict) or not all(isinstance(v, str | None) for v in own.values()):
        raise ValueError("what it says of its files is no object of checksums")
    return results.replace_schema_metadata(said), own


def place_of_own(folder: Path, name: str, own: Own) -> Path:
    """Where to read one of the files: under its name, unless the one that is meant still waits."""
    waiting = _waiting(folder / name)
    return waiting if is_own(waiting, own.get(name)) else folder / name


def moment_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """What a reader compares before and after, to know that nobody wrote meanwhile."""
    found: dict[str, tuple[int, ...]] = {}
    paths = [folder / name for name in (RESULTS_FILE, *_OTHERS)]
    for path in (*paths, *map(_waiting, paths)):
        with contextlib.suppress(OSError, ValueError):
            status = path.stat()
            found[path.name] = (status.st_ino, status.st_mtime_ns, status.st_size)
    return found


def _waiting(path: Path) -> Path:
    return path.with_name(f".next.{path.name}")


def _write_waiting(path: Path, content: pa.Table | str) -> str:
    """Write what will become that file, and give its checksum."""
    waiting = _waiting(path)
    if isinstance(content, str):
        waiting.write_text(content, encoding="utf-8")
    else:
        _write_table(content, waiting)
    with waiting.open("rb") as file:
        os.fsync(file.fileno())
    return sha256_of(waiting)


def _write_table(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)


def _settle(folder: Path) -> None:
    """Give new files their names where they count, and take away what does not count."""
    own = _read_own(folder / RESULTS_FILE)
    for name in _OTHERS:
        waiting = _waiting(folder / name)
        if is_own(waiting, own.get(name)):
            os.replace(waiting, folder / name)
        waiting.unlink(missing_ok=True)
        if name in own and own[name] is None:
            (folder / name).unlink(missing_ok=True)
    flush_folder(folder)


def _read_own(path: Path) -> Own:
    """What a table that leads says of its files; nothing, where it is none."""
    if not path.is_file():
        return {}
    try:
        return find_own(pq.read_schema(path).empty_table())[1]
    except (pa.ArrowException, OSError, ValueError):
        return {}


def is_own(path: Path, sha256: str | None) -> bool:
    """Whether there is that file, with that content."""
    try:
        return sha256 is not None and path.is_file() and sha256_of(path) == sha256
    except FileNotFoundError:
        return False
