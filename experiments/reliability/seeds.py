"""Valid files to begin with, of every kind that is read."""

from __future__ import annotations

import functools
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import seqagg
from experiments.reliability import mutations as m
from experiments.reliability.stores import store
from seqagg import Songs
from seqagg.aggregators import AGGREGATORS, make_aggregator
from seqagg.shards import index_shards


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


def shards(folder: Path) -> bytes:
    """Two caches and their list, which is given."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    songs = small_songs()
    for i in range(2):
        seqagg.write_cache(songs[slice(i, None, 2)], folder / f"shard-{i}.parquet")
    index_shards(folder)
    return (folder / "_manifest.json").read_bytes()
