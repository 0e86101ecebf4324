"""A folder of songs labelled file by file, by as many workers as there are.

Conventions
-----------
A *part* is a file of the cache, or some row groups of a large Parquet file. `label_part` does one,
the same whoever calls it: it writes ``NAME.parquet`` whole or not at all, then its record
``_job/NAME.json`` with counts and the checksum of what was written. A part with a record that fits
is done; so a job that was stopped, however, goes on where it was when it is started again, and a
part that two workers do at once comes out the same. ``_job/job.json`` says what the job is,
``_job/account.json`` what became of every song: in = out + refused.

A song that cannot be used is refused, with the reason, and so are all songs of a file that is
damaged. Tables are those of `seqagg.prediction`, to the bit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqagg.cache import read_batches
from seqagg.cache_pieces import cache_files, open_parquet
from seqagg.engines import Engine
from seqagg.errors import CacheError, ModelFileError, ParameterError
from seqagg.files import check_regular, taking_turns
from seqagg.manifest import Manifest, Shard
from seqagg.model_file import check_suffix
from seqagg.parsing import parse_json
from seqagg.places import Place, Remote, everywhere, place_of, read_bytes, size_of, writing
from seqagg.prediction import PredictionReport, write_labels
from seqagg.progress import counted
from seqagg.shards import find_shards, sha256_of

if TYPE_CHECKING:
    from seqagg.aggregators.base import Aggregator

VERSION = 1
JOB = "_job"
"""Folder of job, records and account. Readers of Parquet folders leave such names out."""

_LARGE = 256 * 2**20
"""Bytes of a file above which its row groups are dealt out."""

_NAMED = 20
"""Refused songs and failed parts that an account names; the records have all."""


@dataclass(frozen=True)
class Part:
    """What one task does.

    Attributes
    ----------
    name : str
        Of its table, without suffix.
    file : str
        In the folder of the cache.
    groups : tuple of int, or None
        First row group, and the first that is no more of it; None for the whole file.
    n_songs : int
    n_bytes : int
        Of the file.
    sha256 : str or None
        Of the file.
    """

    name: str
    file: str
    groups: tuple[int, int] | None
    n_songs: int
    n_bytes: int
    sha256: str | None


@dataclass(frozen=True)
class Job:
    """What all tasks share: places of cache and tables, the model file's bytes, the split."""

    cache: str
    out: str
    model: bytes
    split: str | None


@dataclass
class Record:
    """What became of a part.

    Attributes
    ----------
    n_songs : int
        Songs labelled.
    refused : dict of str to str
        Song -> reason, of songs that could not be used.
    failed : str or None
        Why no song of the part could be used.
    n_bytes, sha256
        Of the table; None if there is none.
    n_labelled, n_right, unseen_labels, multilabel
        As in `PredictionReport`.
    before : bool
        Whether it had been done before.
    """

    n_songs: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    failed: str | None = None
    n_bytes: int | None = None
    sha256: str | None = None
    n_labelled: int = 0
    n_right: int = 0
    unseen_labels: list[str] = field(default_factory=list)
    multilabel: bool = False
    before: bool = False


@dataclass
class Account:
    """What became of every song.

    Attributes
    ----------
    n_songs, n_out, n_refused : int
        Songs in = songs in the tables + songs refused. Of a part that failed all are refused,
        whatever their split.
    n_parts, n_before : int
        Parts, and how many of them had been done before.
    refused : dict of str to str
        The first refused songs and the reasons.
    failed : dict of str to str
        The first parts of which no song could be used, and the reasons.
    n_failed : int
        Number of such parts.
    report : PredictionReport
        How well, where labels are known.
    """

    n_parts: int
    n_before: int = 0
    n_refused: int = 0
    n_failed: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    report: PredictionReport = field(default_factory=PredictionReport)

    @property
    def n_out(self) -> int:
        """Songs in the tables."""
        return self.report.n_songs

    @property
    def n_songs(self) -> int:
        """Songs in."""
        return self.n_out + self.n_refused

    def add(self, part: Part, record: Record) -> None:
        """Count a part."""
        self.n_before += record.before
        self.n_refused += len(record.refused) if record.failed is None else part.n_songs
        self.n_failed += record.failed is not None
        for song, why in record.refused.items():
            if len(self.refused) < _NAMED:
                self.refused[song] = why
        if record.failed is not None and len(self.failed) < _NAMED:
            self.failed[part.name] = record.failed
        unseen, several = set(record.unseen_labels), record.multilabel
        counts = (record.n_songs, record.n_labelled, record.n_right)
        self.report.add(PredictionReport(*counts, unseen, several))

    def as_json(self) -> dict[str, Any]:
        """All numbers, for programs."""
        return {
            "n_songs": self.n_songs,
            "n_out": self.n_out,
            "n_refused": self.n_refused,
            "n_parts": self.n_parts,
            "n_done_before": self.n_before,
            "n_failed": self.n_failed,
            "failed": self.failed,
            "refused": self.refused,
            "n_labelled": self.report.n_labelled,
            "accuracy": self.report.accuracy,
            "unseen_labels": sorted(self.report.unseen_labels),
        }


def predict_folder(
    model: str | os.PathLike[str],
    cache: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    split: str | None = None,
    engine: Engine | None = None,
) -> Account:
    """Label the songs of a cache, a table for each of its files.

    Started again after it was stopped, it does what is missing.

    Parameters
    ----------
    model : path-like
        Model file.
    cache : path-like
        Folder of cache files, or one file; a path or a URL that every worker can read.
    out : path-like
        Folder for the tables, new or of the same job; a path or a URL that every worker can write.
    split : str, optional
        Only the songs of this split; ``"all"`` is as if it were not given.
    engine : Engine, optional
        Who works; this process by default.

    Returns
    -------
    Account

    Raises
    ------
    SeqaggError
        Names the file or parameter that cannot be used, or the file that could not be written.
    """
    source, target = place_of(cache), place_of(out)
    check_suffix(model)
    wanted = None if split == "all" else split
    manifest = find_shards(source)
    parts = make_parts(source, manifest)
    job = Job(everywhere(source), everywhere(target), _model_bytes(Path(model)), wanted)
    _loaded(job.model)  # refused here, if it is no model
    _claim(target, job, manifest)
    account, n_met = Account(len(parts)), 0
    with counted("predict", "songs") as advance:
        for i, record in (engine or Engine()).run(label_part, job, parts):
            account.add(parts[i], record)
            n_met += parts[i].n_songs
            advance(n_met, manifest.n_songs)
    if wanted is None and account.n_songs != manifest.n_songs:
        raise CacheError(f"{account.n_songs} of {manifest.n_songs} songs met", file=source)
    if wanted is not None and account.n_songs == 0:
        raise ParameterError(f"no song of split {wanted!r}")
    _write_json(target / JOB / "account.json", account.as_json())
    return account


def make_parts(cache: Place, manifest: Manifest) -> list[Part]:
    """Tasks for the files of a cache, in their order; the same for the same files.

    Parameters
    ----------
    cache : Path or Remote
    manifest : Manifest
        Of the cache.
    """
    files = cache_files(cache)
    return [
        part
        for file, shard in zip(files, manifest.shards, strict=True)
        for part in _parts_of(file, shard)
    ]


def label_part(job: Job, part: Part) -> Record:
    """Label the songs of a part, if that is not done yet.

    Everything that it needs is in its parameters, and doing it twice gives the same files.

    Raises
    ------
    OSError
        When the table cannot be written: a disk that is full, say. Nothing of it is then visible.
    """
    out = place_of(job.out)
    known = _finished(out, part, job.split)
    if known is not None:
        return known
    record, report = Record(), PredictionReport()
    target = out / f"{part.name}.parquet"
    try:
        file = _intact(_file_of(job, part), part)
        groups = None if part.groups is None else range(*part.groups)
        batches = read_batches(file, groups, split=job.split, refuse=record.refused.__setitem__)
        with writing(target) as path:
            refuse = record.refused.__setitem__
            write_labels(_loaded(job.model), batches, path, report, refuse)
            n_met = report.n_songs + len(record.refused)
            if job.split is None and n_met != part.n_songs:
                raise CacheError(f"has {n_met} songs, not {part.n_songs}", file=file)
            record.n_bytes, record.sha256 = size_of(path), sha256_of(path)
    except CacheError as error:
        record = Record(failed=str(error))
    else:
        record.n_songs, record.n_labelled = report.n_songs, report.n_labelled
        record.n_right, record.multilabel = report.n_right, report.multilabel
        record.unseen_labels = sorted(report.unseen_labels)
    _write_json(out / JOB / f"{part.name}.json", dataclasses.asdict(record))
    return record


def _parts_of(file: Place, shard: Shard) -> list[Part]:
    name = file.stem if file.suffix == ".parquet" else file.name
    whole = Part(name, file.name, None, shard.n_songs, shard.n_bytes, shard.sha256)
    if shard.n_bytes <= _LARGE or file.suffix != ".parquet" or size_of(file) != shard.n_bytes:
        return [whole]
    with open_parquet(file) as parquet:
        groups = [parquet.metadata.row_group(i) for i in range(parquet.num_row_groups)]
        n_bytes = [
            sum(g.column(i).total_compressed_size for i in range(g.num_columns)) for g in groups
        ]
    ends, held = [0], 0
    for i, n in enumerate(n_bytes):
        if held and held + n > _LARGE:
            ends.append(i)
            held = 0
        held += n
    ends.append(len(groups))
    return [
        dataclasses.replace(
            whole,
            name=f"{name}-{first:05d}",
            groups=(first, end),
            n_songs=sum(group.num_rows for group in groups[first:end]),
        )
        for first, end in pairwise(ends)
    ]


def _file_of(job: Job, part: Part) -> Place:
    source = place_of(job.cache)
    return source / part.file if source.is_dir() else source


def _intact(file: Place, part: Part) -> Place:
    """The file, if it is the one that the manifest lists; of a store, with its bytes.

    Row groups are not hashed: the file would be read as often as it has parts, and pages of Parquet
    have checksums of their own.
    """
    try:
        n_bytes = size_of(file)
        if n_bytes != part.n_bytes:
            raise CacheError(f"is damaged: {n_bytes} bytes, not {part.n_bytes}", file=file)
        if part.groups is not None:
            return file
        if isinstance(file, Remote):
            file = file.held()
        if part.sha256 is not None and sha256_of(file) != part.sha256:
            raise CacheError("is damaged: its checksum is wrong", file=file)
    except OSError as error:
        raise CacheError(f"cannot be read: {error.strerror or error}", file=file) from None
    return file


def _finished(out: Place, part: Part, split: str | None) -> Record | None:
    """Record of a part that is done, its table being there as it was written."""
    try:
        record = Record(**parse_json(read_bytes(out / JOB / f"{part.name}.json")))
        table = out / f"{part.name}.parquet"
        if not _could_be(record, part, split) or size_of(table) != record.n_bytes:
            return None
        if sha256_of(table) != record.sha256:
            return None
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return dataclasses.replace(record, before=True)


def _could_be(record: Record, part: Part, split: str | None) -> bool:
    """Whether a record says what `label_part` may have found out; its file may hold anything."""
    lists = isinstance(record.refused, dict) and isinstance(record.unseen_labels, list)
    if record.failed is not None or not lists or not isinstance(record.multilabel, bool):
        return False
    texts = [*record.refused, *record.refused.values(), *record.unseen_labels]
    counts = [record.n_right, record.n_labelled, record.n_songs]
    if not all(map(_is_text, texts)) or not all(type(n) is int for n in counts):
        return False
    n_met = record.n_songs + len(record.refused)
    all_met = n_met == part.n_songs if split is None else n_met <= part.n_songs
    return all_met and 0 <= counts[0] <= counts[1] <= counts[2]


def _is_text(value: object) -> bool:
    """Whether it is text that can be written; JSON can hold half a character."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _model_bytes(model: Path) -> bytes:
    check_regular(model, ModelFileError)
    try:
        return model.read_bytes()
    except OSError as error:
        raise ModelFileError(f"cannot be read: {error.strerror or error}", file=model) from None


@lru_cache(maxsize=1)
def _loaded(model: bytes) -> Aggregator:
    from seqagg.aggregators.saving import load

    with tempfile.TemporaryDirectory(prefix="seqagg-") as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(model)
        return load(path)


def _claim(out: Place, job: Job, manifest: Manifest) -> None:
    """Say in the folder which job it is for; refuse one that is for another."""
    said = {
        "version": VERSION,
        "model": hashlib.sha256(job.model).hexdigest(),
        "cache": manifest.digest(),
        "split": job.split,
    }
    file = out / JOB / "job.json"
    # In this order: another job that has just begun says so before it writes anything else.
    strange = out.exists() and (not out.is_dir() or any(p.name != JOB for p in out.iterdir()))
    if not file.exists():
        if strange:
            raise ParameterError(f"{out} is there and holds no job; choose a new folder")
        _write_first(file, said)
    there = _read_job(file)
    other = [name for name in said if there.get(name) != said[name]]
    if other:
        raise ParameterError(f"{out} is of a job with another {other[0]}; choose a new folder")


def _write_first(file: Place, content: dict[str, Any]) -> None:
    """Write a file, unless somebody else has done so by now.

    Object stores have no locks. Of two that write there at the same time, the one whose file was
    written over finds the other's when it reads its own back, unless that came still later.
    """
    if isinstance(file, Remote):
        _write_json(file, content)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with taking_turns(file.with_name(f".{file.name}.lock")):
        if not file.exists():
            _write_json(file, content)


def _read_job(file: Place) -> dict[str, Any]:
    try:
        there = parse_json(read_bytes(file))
    except ValueError:
        there = None
    if not isinstance(there, dict):
        raise ParameterError(f"{file} is damaged; choose a new folder")
    return there


def _write_json(place: Place, content: dict[str, Any]) -> None:
    with writing(place) as path:
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
