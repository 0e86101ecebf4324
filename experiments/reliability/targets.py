"""What reads files of others, with valid files to begin with: a new reader is one line here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import seqagg
from experiments.reliability import folders, readers, seeds
from experiments.reliability import mutations as m
from experiments.reliability.stores import change_store
from experiments.reliability.tables import change_table
from seqagg.aggregators import make_aggregator
from seqagg.sources.text import PACKED

FINDINGS = Path(__file__).parent / "findings"
"""What fuzzing found, and was more than refused: ``TARGET.WHAT.SUFFIX``."""

FORGED = Path(__file__).parent / "forged"
"""Files made by hand of what readers should refuse, named alike."""

Mutation = Callable[[bytes, Random], bytes]


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes
    ----------
    suffix : str
        Of its files.
    read : callable
        Reads a file, or raises a `SeqaggError`. What it gives must hold what it promises.
    seeds : callable
        Makes valid files in a folder, and gives their content.
    mutate : callable
    weight : int
        Its share of the inputs.
    """

    suffix: str
    read: Callable[[Path], Any]
    seeds: Callable[[Path], Iterable[bytes]]
    mutate: Mutation
    weight: int = 1


FORMS = {"json": ".jsonl", "parquet": ".parquet", "file": ".feather", "stream": ".arrows"}
"""Form of a typed table -> end of its files' names."""


def findings(name: str) -> list[Path]:
    """Files that a target was once brought down by, or might be."""
    pattern = f"{name.replace(' ', '-')}.*"
    return sorted([*FINDINGS.glob(pattern), *FORGED.glob(pattern)])


def make_targets(folder: Path) -> dict[str, Target]:
    """Every reader by name; the folder is for what they need beside their files."""
    folder.mkdir(exist_ok=True)
    (content,) = seeds.results(folder)
    predictions = (folder / "predictions.parquet").read_bytes()
    model = seqagg.MeanLogOdds(on_empty="prior").fit(seeds.small_songs())
    sequence_models: dict[str, dict[str, Any]] = {
        "hmm": {},
        "gru": {"base": "none", "bidirectional": False},
    }
    frames = "song_id,start,end,jig,reel"
    manifest = seeds.shards(folder / "shards")
    (folder / "songs.csv").write_bytes(b"song_id,jig,reel\na,0.5,1.5\na,0,1\nb,1,2\n")
    labels = partial(readers.read_labels, songs=folder / "songs.csv")
    jobs = folders.Jobs(folder / "jobs")
    table = partial(seeds.tables, ",", frames, True)
    proba: dict[str, Any] = {"kind": "probability"}

    def source(
        format: str, suffix: str, valid: Any, mutate: Mutation, weight: int = 1, **options: Any
    ) -> Target:
        return Target(
            suffix, partial(readers.read_source, format=format, **options), valid, mutate, weight
        )

    def in_job(name: str) -> Target:
        valid = jobs.file(name).read_bytes()
        return Target(".json", partial(jobs.read, name=name), lambda _: [valid], m.change_document)

    def in_fit(method: str, names: str) -> Target:
        fits = folders.Fits(folder / method, method, names)
        return Target(".safetensors", fits.read, lambda _: fits.seeds(), folders.change_checkpoint)

    def fitted(method: str, **parameters: Any) -> Any:
        made = make_aggregator(method, **seeds.QUICK[method] | parameters)
        return made.fit(seeds.small_songs())

    named: dict[str, Any] = {"scores": "scores", "lengths": "lengths", "song": "song"}
    return {
        "model": Target(
            ".safetensors", readers.read_model, lambda _: seeds.models(), m.change_model, 8
        ),
        "model bytes": Target(
            ".safetensors", readers.read_model, lambda _: seeds.models(), m.scramble
        ),
        "cache": Target(
            ".parquet", readers.read_cache, partial(seeds.caches, ".parquet"), change_table, 4
        ),
        "arrow cache": Target(
            ".arrow", readers.read_cache, partial(seeds.caches, ".arrow"), change_table, 4
        ),
        "results": Target(
            ".parquet",
            partial(readers.read_benchmark, predictions=predictions),
            lambda _: [content],
            change_table,
        ),
        "stream json": Target(
            ".jsonl",
            partial(readers.listen, form="json", model=model),
            seeds.json_frames,
            m.change_lines,
        ),
        "stream csv": Target(
            ".csv",
            partial(readers.listen, form="csv", model=model),
            seeds.csv_frames,
            m.change_text,
        ),
        **{
            f"stream {method}": Target(
                ".jsonl",
                partial(readers.listen, form="json", model=fitted(method, **parameters)),
                seeds.json_frames,
                m.change_lines,
            )
            for method, parameters in sequence_models.items()
        },
        "table": source("table", ".csv", table, m.change_text, 2, time="start", end="end", **proba),
        "tsv": source(
            "table",
            ".tsv",
            partial(seeds.tables, "\t", frames, False),
            m.change_text,
            sort=True,
            **proba,
        ),
        **{
            f"table {packing}": source(
                "table",
                f".csv{end}",
                partial(seeds.packed, packing, frames),
                partial(m.change_packed, packing=packing, mutate=m.change_text),
                time="start",
                end="end",
                **proba,
            )
            for end, packing in PACKED.items()
        },
        **{
            f"{form} {format}": source(
                format,
                suffix,
                partial(made, form),
                m.change_lines if form == "json" else change_table,
                **proba,
            )
            for form, suffix in FORMS.items()
            for format, made in (("table", seeds.typed_tables), ("songs", seeds.nested_tables))
        },
        "json songs bz2": source(
            "songs",
            ".jsonl.bz2",
            lambda _: [m.pack(data, "bz2") for data in seeds.nested_tables("json", folder)],
            partial(m.change_packed, packing="bz2", mutate=m.change_lines),
            **proba,
        ),
        "songs": source(
            "songs", ".parquet", partial(seeds.caches, ".parquet"), change_table, **proba
        ),
        "cached": source("cache", ".arrow", partial(seeds.caches, ".arrow"), change_table),
        "features": Target(".csv", readers.read_frames, seeds.features, m.change_text),
        "labels": Target(".csv", partial(labels, task=None), seeds.song_labels, m.change_text),
        "several labels": Target(
            ".tsv",
            partial(labels, task="multilabel"),
            lambda _: [b"song_id\tlabel\tgroup\na\tjig|reel\tx\na\twaltz\tx\nb\t\ty\n"],
            m.change_text,
        ),
        "manifest": Target(
            ".json",
            partial(readers.read_folder, folder=folder / "shards"),
            lambda _: [manifest],
            m.change_document,
        ),
        "job": in_job("job"),
        "record": in_job("shard-0"),
        "checkpoint gru": in_fit("gru", "network 0"),
        "checkpoint hmm": in_fit("hmm", "part *"),
        "checkpoint stack": in_fit("stack", "part *"),
        "header": Target(".json", folders.read_header, folders.headers, m.change_document),
        "npz": source("npz", ".npz", seeds.npz, m.change_zip, 2, **proba),
        "npz named": source("npz", ".npz", seeds.npz, m.change_zip, **named, **proba),
        "npy": source("npy", ".npy", seeds.npy, m.change_npy, **proba),
        "hdf5": source(
            "hdf5", ".h5", seeds.hdf5, partial(change_store, sets=seeds.array_sets()), 2, **proba
        ),
        "opensoundscape": source(
            "opensoundscape",
            ".csv",
            partial(seeds.tables, ",", "file,start_time,end_time,jig,reel", True),
            m.change_text,
            kind="logit",
        ),
        "sed_scores": source(
            "sed_scores",
            ".tsv",
            lambda _: [b"onset\toffset\tjig\treel\n0.0\t0.5\t0.1\t0.9\n0.5\t1.0\t0.2\t0.8\n"],
            m.change_text,
            **proba,
        ),
        "birdnet": source("birdnet", ".csv", seeds.birdnet, m.change_text, fill=0.1, hop=3.0),
        "onnx": Target(".onnx", readers.read_network, seeds.networks, m.scramble),
        "raven": source("raven", ".txt", seeds.raven, m.change_text, fill=0.1),
    }
