"""What reads files of others, with valid files to begin with: a new reader is one line here."""

from __future__ import annotations

import functools
import io
import json
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import seqagg
from experiments.reliability import mutations as m
from experiments.reliability.stores import change_store, store
from experiments.reliability.tables import change_table
from seqagg import Songs, live, sources
from seqagg.aggregators import AGGREGATORS, make_aggregator
from seqagg.cache import CacheBatches
from seqagg.frozen import score_songs
from seqagg.frozen.tables import FILE_NAME, Roles, read_features, with_test_songs
from seqagg.results import read_results
from seqagg.shards import find_shards, index_shards
from seqagg.sources.text import PACKED

FINDINGS = Path(__file__).parent / "findings"
"""What was once more than refused, ``TARGET.WHAT.SUFFIX``: valid files no more than others."""

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


# Valid files.


def small_songs(*, multilabel: bool = False, n: int = 9) -> Songs:
    """Songs of every field."""
    rng = np.random.default_rng(0)
    columns = ["jig", "reel", "waltz"]
    arrays = [rng.normal(2 * np.eye(3)[i % 3], 1, (2 + i % 4, 3)) for i in range(n)]
    labels: list[Any] = [columns[i % 3] for i in range(n)]
    if multilabel:
        labels = [(columns[i % 3], "jig")[: 1 + (i % 3 == 1)] for i in range(n)]
    return Songs.from_arrays(
        arrays,
        columns=columns,
        labels=labels,
        ids=[f"song {i}" for i in range(n)],
        groups=[f"artist {i // 2}" for i in range(n)],
        split=["train" if i % 3 else "test" for i in range(n)],
        fold=np.arange(n) % 2,
        start=[5.0 * np.arange(len(a)) for a in arrays],
        task="multilabel" if multilabel else "multiclass",
    )


def caches(suffix: str, folder: Path) -> Iterable[bytes]:
    """Small caches, with and without what is optional."""
    plain = Songs.from_arrays([[[0.1, 0.9]], [[1.0, 0.0]]], columns=["a", "b"], kind="probability")
    for i, songs in enumerate([small_songs(), small_songs(multilabel=True), plain]):
        path = folder / f"{i}{suffix}"
        seqagg.write_cache(songs, path)
        yield path.read_bytes()


QUICK: dict[str, dict[str, Any]] = {
    "hmm": {"n_states": 2, "n_iter": 2, "n_folds": 2, "min_frames": 2, "covariance_type": "diag"},
    "gru": {"hidden_size": 2, "epochs": 1, "n_folds": 2},
    "mil": {"hidden_size": 2, "epochs": 1, "n_folds": 2},
    "stack": {"n_folds": 2, "n_parts": 2},
    "auto": {"methods": ("stack",), "n_errors": -100.0},
}


def networks(_: Path) -> Iterable[bytes]:
    """Frame classifiers as ONNX graphs: linear, and with a softmax."""
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.eye(4, 2, dtype=np.float32), "weight")
    nodes = [
        helper.make_node("MatMul", ["frames", "weight"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
    ]
    given = helper.make_tensor_value_info("frames", TensorProto.FLOAT, ["n", 4])
    for n in (1, 2):
        (name,) = nodes[n - 1].output
        wanted = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2])
        graph = helper.make_graph(nodes[:n], "frames", [given], [wanted], [weight])
        opsets = [helper.make_opsetid("", 17)]
        yield helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


@functools.cache
def models() -> tuple[bytes, ...]:
    """A small model file of every method, and stacks with classifiers of the user's."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.naive_bayes import GaussianNB
    from sklearn.tree import DecisionTreeClassifier

    made = [
        make_aggregator(method, **QUICK.get(method, {})).fit(small_songs(multilabel=several))
        for method in AGGREGATORS
        for several in (False, True)
    ]
    made += [
        make_aggregator("hmm", **QUICK["hmm"] | settings).fit(small_songs())
        for settings in (
            {"covariance_type": "full"},
            {"dtype": "float32", "decision": "likelihood"},
        )
    ]
    classifiers = (
        DecisionTreeClassifier(max_depth=2),
        HistGradientBoostingClassifier(max_iter=1, min_samples_leaf=1, max_bins=4),
        GaussianNB(),
    )
    made += [
        make_aggregator("stack", classifier=c, n_parts=1, n_folds=2).fit(small_songs())
        for c in classifiers
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors")
        return tuple(bytes_of(path, model.save) for model in made)


def bytes_of(path: Path, write: Callable[[Path], Any]) -> bytes:
    """What is written to a file."""
    write(path)
    return path.read_bytes()


def tables(delimiter: str, columns: str, times: bool, folder: Path) -> Iterable[bytes]:
    """Tables with a row per frame."""
    rows = [columns, "a.wav,0.0,3.0,0.5,0.25", "a.wav,3.0,6.0,,", "b.wav,0,3,1.0,0.0"]
    if not times:
        rows = [",".join(row.split(",")[:1] + row.split(",")[3:]) for row in rows]
    yield "\n".join(rows).replace(",", delimiter).encode()


def packed(packing: str, columns: str, folder: Path) -> Iterable[bytes]:
    """The same, packed."""
    yield from (m.pack(data, packing) for data in tables(",", columns, True, folder))


def typed_tables(form: str, folder: Path) -> Iterable[bytes]:
    """Tables with a row per frame, whose columns have types."""
    labels = pa.array(["jig", "jig", None]).dictionary_encode()
    table = pa.table(
        {
            "song_id": ["a", "a", "b"],
            "start": [0.0, 3.0, 0.0],
            "jig": pa.array([0.5, None, 1.0], pa.float32()),
            "reel": pa.array([0.25, 1.0, 0.0], pa.float16()),
            "label": labels.cast(pa.string()) if form == "json" else labels,
            "fold": [0, 0, 1],
        }
    )
    yield of_table(table, form)


def nested_tables(form: str, folder: Path) -> Iterable[bytes]:
    """Tables with a row per song."""
    songs = {"song_id": ["a", "b"], "label": ["jig", None], "fold": [0, 1], "split": ["train"] * 2}
    frames: list[Any] = [[[0.5, 1.0], [1.0, 0.0]], [[0.25, 0.0]]]
    for kind in (pa.list_(pa.list_(pa.float64())), pa.list_(pa.list_(pa.float32(), 2))):
        yield of_table(pa.table(songs | {"scores": pa.array(frames, kind)}), form)


def of_table(table: pa.Table, form: str) -> bytes:
    """A table as JSON Lines, Parquet, an Arrow file or stream."""
    if form == "json":
        return b"\n".join(json.dumps(row).encode() for row in table.to_pylist())
    sink = io.BytesIO()
    if form == "parquet":
        pq.write_table(table, sink)
    else:
        new = pa.ipc.new_file if form == "file" else pa.ipc.new_stream
        with new(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue()


def features(folder: Path) -> Iterable[bytes]:
    """Tables of features, of which frame classifiers learn."""
    head = "filename,start,x,y,label,artist"
    songs = [(label, song) for label, some in (("jig", "abc"), ("reel", "def")) for song in some]
    rows = [f"{s}.{i}.wav,{3 * i},{i}.5,{-i},{label},{s}er" for label, s in songs for i in (0, 1)]
    yield "\n".join([head, *rows, ""]).encode()


def song_labels(folder: Path) -> Iterable[bytes]:
    """Second tables, with what is known of songs."""
    yield b"song_id,label,group\na,jig,x\nb,reel,y\nc,,\n"


def birdnet(folder: Path) -> Iterable[bytes]:
    """Detections of BirdNET."""
    head = "Start (s),End (s),Scientific name,Common name,Confidence,File"
    rows = ["0.0,3.0,Strix aluco,Tawny Owl,0.9,a.wav", "3.0,6.0,Carduelis,House Finch,0.7,a.wav"]
    yield "\n".join([head, *rows, rows[0].replace("a.wav", "b.wav"), ""]).encode()


def raven(folder: Path) -> Iterable[bytes]:
    """Selections of Raven."""
    head = (
        "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\t"
        "Common Name\tSpecies Code\tConfidence\tBegin Path\tFile Offset (s)"
    )
    row = "{}\tSpectrogram 1\t1\t{}\t{}\t0\t15000\tTawny Owl\ttawowl\t0.9\t/data/{}.wav\t{}"
    rows = [row.format(1, 0, 3, "a", 0), row.format(2, 3, 6, "a", 3), row.format(3, 7, 10, "b", 0)]
    yield "\n".join([head, *rows, ""]).encode()


def array_sets() -> list[dict[str, Any]]:
    """Arrays of songs: padded, flat with lengths, and one for each song."""
    rng = np.random.default_rng(0)
    ids, label = np.array(["one", "two"]), np.array(["jig", "reel"])
    scores = rng.random((2, 3, 2)).astype(np.float32)
    return [
        {"scores": scores, "lengths": np.array([3, 2]), "song": ids, "label": label},
        {"scores": scores.reshape(6, 2), "lengths": np.array([4, 2]), "song": ids},
        {"one": scores[0], "two": scores[1, :2]},
    ]


def npz(folder: Path) -> Iterable[bytes]:
    """The same arrays in a zip."""
    for arrays in array_sets():
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        yield buffer.getvalue()


def npy(folder: Path) -> Iterable[bytes]:
    """One array for each song."""
    orders: tuple[Literal["C", "F"], ...] = ("C", "F")
    for order in orders:
        buffer = io.BytesIO()
        np.save(buffer, np.asarray(np.ones((4, 3), np.float32), order=order))
        yield buffer.getvalue()


def hdf5(folder: Path) -> Iterable[bytes]:
    """The same arrays, as they are and packed."""
    for layout in ({}, {"compression": "gzip"}):
        yield from (store(arrays, layout) for arrays in array_sets())


def json_frames(folder: Path) -> Iterable[bytes]:
    """Frames as JSON lines."""
    lines: list[Any] = [
        {"song": "a", "scores": [0.5, -1, None]},
        {"song": "b", "scores": {"jig": 1, "reel": 0, "waltz": 2.5}},
        {"song": "a", "end": True},
        [1, 2, 3],
    ]
    yield b"\n".join(json.dumps(line).encode() for line in lines)


def csv_frames(folder: Path) -> Iterable[bytes]:
    """Frames as CSV."""
    yield b"song,jig,reel,waltz\na,1,0,0.5\nb,-1,,2\na,1e4,0,0\n"


def results(folder: Path) -> Iterable[bytes]:
    """A result table, beside which its predictions lie."""
    seqagg.benchmark(small_songs(n=30), ["mean", "logodds"], n_resamples=10).write(folder)
    yield (folder / "results.parquet").read_bytes()


# Reading, and what must be true of what was read.


def check_songs(songs: Songs, folder: Path) -> None:
    """Songs that were read can be worked with and written."""
    assert len(songs.ids) == len(set(songs.ids)) == len(songs)
    odds = songs.log_odds() if songs.n_columns > 1 or songs.kind != "logit" else songs
    left = odds.present()
    if odds is not songs:
        assert np.isfinite(left.values).all()
    if len(songs) and songs.columns is not None and songs.kind == "probability":
        model = seqagg.MeanLogOdds(on_empty="prior")
        p = model.fit(songs.replace(labels=None, task="multiclass")).predict_proba(songs)
        assert np.isfinite(p).all()


def read_cache(path: Path) -> None:
    """Read at once, and batch by batch."""
    songs = seqagg.read_cache(path)
    check_songs(songs, path.parent)
    batches = CacheBatches(path, n_bytes=50)
    assert sum(len(part) for part, _ in batches.read()) == batches.n_songs == len(songs)
    seqagg.write_cache(songs, path.parent / f"again{path.suffix}")


def read_model(path: Path) -> None:
    """A model that is loaded answers with finite numbers; one in four is saved again."""
    model = seqagg.load(path)
    n = model.n_features_in_
    queries = [np.full((2, n), 30.0), np.linspace(-5, 5, 3 * n).reshape(3, n)]
    p = model.predict_proba(queries)
    assert np.isfinite(p).all()
    assert p.shape == (2, len(model.classes_))
    if zlib.crc32(path.read_bytes()) % 4 == 0:  # the checks of writing take as long as the rest
        model.save(path.parent / "again.safetensors")


def read_network(path: Path) -> None:
    """A frame classifier of an ONNX file, asked for scores."""
    frames = np.linspace(-3, 3, 20, dtype=np.float32).reshape(5, 4)
    songs = score_songs(path, {"a": frames}, kind="logit", columns=["jig", "reel"], check=False)
    check_songs(songs, path.parent)


def read_source(path: Path, format: str, **options: Any) -> None:
    """Convert, which reads in bounded memory, and read."""
    songs = sources.read(path, format, **options)
    check_songs(songs, path.parent)


def listen(path: Path, form: str, model: Any) -> None:
    """Hear all lines, and say the last word."""
    listener = live.Listener(model)
    with path.open("rb") as source:
        for lines in live.read_lines(source, form):
            for record in listener.hear(lines):
                json.dumps(record, allow_nan=False)
    for record in listener.end():
        json.dumps(record, allow_nan=False)


def read_labels(path: Path, songs: Path, task: Any) -> None:
    """Songs of one file, their labels of another."""
    read_source(songs, "table", kind="logit", labels=path, task=task, label="label", group="group")


def read_frames(path: Path) -> None:
    """Features, and songs set aside."""
    roles = Roles(song="filename", label="label", group="artist", time="start", pattern=FILE_NAME)
    table = read_features(path, roles)
    assert len(table.frames) == len(table.song_ids) == len(table.labels)
    with_test_songs(table, 0.3, 0)


def read_folder(path: Path, folder: Path) -> None:
    """A folder of caches, by its list."""
    (folder / "_manifest.json").write_bytes(path.read_bytes())
    found = find_shards(folder)
    songs = seqagg.read_cache(folder)
    assert all(shard.file in ("shard-0.parquet", "shard-1.parquet") for shard in found.shards)
    check_songs(songs, path.parent)


def shards(folder: Path) -> bytes:
    """Two caches and their list, which is given."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    songs = small_songs()
    for i in range(2):
        seqagg.write_cache(songs[slice(i, None, 2)], folder / f"shard-{i}.parquet")
    index_shards(folder)
    return (folder / "_manifest.json").read_bytes()


def read_benchmark(path: Path, predictions: bytes) -> None:
    """A result table beside predictions."""
    folder = path.parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "results.parquet").write_bytes(path.read_bytes())
    (folder / "predictions.parquet").write_bytes(predictions)
    found = read_results(folder)
    found.summary()
    found.verdicts()


FORMS = {"json": ".jsonl", "parquet": ".parquet", "file": ".feather", "stream": ".arrows"}
"""Form of a typed table -> end of its files' names."""


def findings(name: str) -> list[Path]:
    """Files that a target was once brought down by."""
    return sorted(FINDINGS.glob(f"{name.replace(' ', '-')}.*"))


def make_targets(folder: Path) -> dict[str, Target]:
    """Every reader by name; the folder is for what they need beside their files."""
    folder.mkdir(exist_ok=True)
    (content,) = results(folder)
    predictions = (folder / "predictions.parquet").read_bytes()
    model = seqagg.MeanLogOdds(on_empty="prior").fit(small_songs())
    frames = "song_id,start,end,jig,reel"
    manifest = shards(folder / "shards")
    (folder / "songs.csv").write_bytes(b"song_id,jig,reel\na,0.5,1.5\na,0,1\nb,1,2\n")
    labels = partial(read_labels, songs=folder / "songs.csv")
    table = partial(tables, ",", frames, True)
    proba: dict[str, Any] = {"kind": "probability"}

    def source(
        format: str, suffix: str, seeds: Any, mutate: Mutation, weight: int = 1, **options: Any
    ) -> Target:
        return Target(suffix, partial(read_source, format=format, **options), seeds, mutate, weight)

    named: dict[str, Any] = {"scores": "scores", "lengths": "lengths", "song": "song"}
    return {
        "model": Target(".safetensors", read_model, lambda _: models(), m.change_model, 8),
        "model bytes": Target(".safetensors", read_model, lambda _: models(), m.scramble),
        "cache": Target(".parquet", read_cache, partial(caches, ".parquet"), change_table, 4),
        "arrow cache": Target(".arrow", read_cache, partial(caches, ".arrow"), change_table, 4),
        "results": Target(
            ".parquet",
            partial(read_benchmark, predictions=predictions),
            lambda _: [content],
            change_table,
        ),
        "stream json": Target(
            ".jsonl", partial(listen, form="json", model=model), json_frames, m.change_lines
        ),
        "stream csv": Target(
            ".csv", partial(listen, form="csv", model=model), csv_frames, m.change_text
        ),
        "table": source("table", ".csv", table, m.change_text, 2, time="start", end="end", **proba),
        "tsv": source(
            "table", ".tsv", partial(tables, "\t", frames, False), m.change_text, sort=True, **proba
        ),
        **{
            f"table {packing}": source(
                "table",
                f".csv{end}",
                partial(packed, packing, frames),
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
            for format, made in (("table", typed_tables), ("songs", nested_tables))
        },
        "json songs bz2": source(
            "songs",
            ".jsonl.bz2",
            lambda _: [m.pack(data, "bz2") for data in nested_tables("json", folder)],
            partial(m.change_packed, packing="bz2", mutate=m.change_lines),
            **proba,
        ),
        "songs": source("songs", ".parquet", partial(caches, ".parquet"), change_table, **proba),
        "cached": source("cache", ".arrow", partial(caches, ".arrow"), change_table),
        "features": Target(".csv", read_frames, features, m.change_text),
        "labels": Target(".csv", partial(labels, task=None), song_labels, m.change_text),
        "several labels": Target(
            ".tsv",
            partial(labels, task="multilabel"),
            lambda _: [b"song_id\tlabel\tgroup\na\tjig|reel\tx\na\twaltz\tx\nb\t\ty\n"],
            m.change_text,
        ),
        "manifest": Target(
            ".json",
            partial(read_folder, folder=folder / "shards"),
            lambda _: [manifest],
            m.change_document,
        ),
        "npz": source("npz", ".npz", npz, m.change_zip, 2, **proba),
        "npz named": source("npz", ".npz", npz, m.change_zip, **named, **proba),
        "npy": source("npy", ".npy", npy, m.change_npy, **proba),
        "hdf5": source("hdf5", ".h5", hdf5, partial(change_store, sets=array_sets()), 2, **proba),
        "opensoundscape": source(
            "opensoundscape",
            ".csv",
            partial(tables, ",", "file,start_time,end_time,jig,reel", True),
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
        "birdnet": source("birdnet", ".csv", birdnet, m.change_text, fill=0.1, hop=3.0),
        "onnx": Target(".onnx", read_network, networks, m.scramble),
        "raven": source("raven", ".txt", raven, m.change_text, fill=0.1),
    }
