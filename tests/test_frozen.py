"""Named frames through frozen classifiers of every make.

Truth is what the libraries give for a song by itself, and loops over songs.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC, LinearSVC

import seqagg
from seqagg import CacheError, ParameterError, SongError, Songs
from seqagg.files import atomic_write
from seqagg.frozen import score_songs, score_to_cache, scoring, store
from seqagg.frozen.models import frame_model
from seqagg.logodds import to_log_odds
from tests.conftest import assert_same_songs

Array = npt.NDArray[Any]

COLUMNS = ["jig", "polka", "reel"]
N_FEATURES = 4


def some_frames(n_songs: int = 12, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, n_songs)
    return {
        f"song {i}": rng.normal(size=(n, N_FEATURES)).astype(np.float32)
        for i, n in enumerate(lengths)
    }


FRAMES = some_frames()
WEIGHTS = np.random.default_rng(1).normal(size=(N_FEATURES, len(COLUMNS))).astype(np.float32)


def softmax(frames: Array) -> Array:
    odds = np.exp(frames @ WEIGHTS)
    return odds / odds.sum(axis=1, keepdims=True)


def by_hand(model: Any = softmax, frames: Mapping[str, Array] = FRAMES, **fields: Any) -> Songs:
    """Songs that `model` scores one by one."""
    known = {"columns": COLUMNS, "kind": "probability"} | fields
    return Songs.from_arrays([model(x) for x in frames.values()], ids=list(frames), **known)


def score(model: Any = softmax, frames: Any = FRAMES, *args: Any, **options: Any) -> Songs:
    known: dict[str, Any] = {"columns": COLUMNS, "kind": "probability"} | options
    return score_songs(model, frames, *args, **known)


def flat(frames: Mapping[str, Array]) -> tuple[Array, list[str]]:
    return np.concatenate([*frames.values()]), [s for s, x in frames.items() for _ in x]


# What frames come in.


def in_pieces(frames: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """Frame by frame, all songs in turn."""
    for i in range(max(map(len, frames.values()))):
        yield from ((song, x[i : i + 1]) for song, x in frames.items() if i < len(x))


def as_table(frames: Mapping[str, Array]) -> pd.DataFrame:
    values, ids = flat(frames)
    return pd.DataFrame(values, columns=[f"f{i}" for i in range(N_FEATURES)]).assign(song=ids)


class Loaded(Mapping[str, Array]):
    """A mapping that loads a song when it is asked for, and says which were."""

    def __init__(self, frames: Mapping[str, Array]) -> None:
        self.frames, self.asked = frames, list[str]()

    def __getitem__(self, song: str) -> Array:
        self.asked.append(song)
        return self.frames[song]

    def __iter__(self) -> Iterator[str]:
        return iter(self.frames)

    def __len__(self) -> int:
        return len(self.frames)


@pytest.mark.parametrize("batch_size", [1, 7, 1024])
def test_every_input_gives_the_same_songs(tmp_path: Path, batch_size: int) -> None:
    values, ids = flat(FRAMES)
    np.save(tmp_path / "frames.npy", values)
    on_disk = np.load(tmp_path / "frames.npy", mmap_mode="r")
    shuffled = np.random.default_rng(0).permutation(len(values))
    back = list(dict.fromkeys(np.array(ids)[shuffled].tolist()))
    inputs: list[tuple[Any, ...]] = [
        (FRAMES,),
        (Loaded(FRAMES),),
        (list(FRAMES.items()),),
        (in_pieces(FRAMES),),
        ((pair for pair in FRAMES.items()),),
        (values, ids),
        (values, np.array(ids)),
        (values.tolist(), ids),
        (torch.from_numpy(values), ids),
        (on_disk, pd.Series(ids)),
        (as_table(FRAMES), "song"),
        (pa.table(as_table(FRAMES)), "song"),
        (pl.from_pandas(as_table(FRAMES)), "song"),
    ]
    for given in inputs:
        songs = score(softmax, *given, batch_size=batch_size)
        assert songs.ids.tolist() == list(FRAMES), type(given[0])
        assert_allclose(songs.values, by_hand().values, rtol=1e-6)
    # Frames of a song stay in the order in which they come, wherever they stand.
    songs = score(softmax, values[shuffled], np.array(ids)[shuffled], batch_size=batch_size)
    assert songs.ids.tolist() == back
    for i, song in enumerate(back):
        rows = [row for row in shuffled if ids[row] == song]
        assert_allclose(songs[i], softmax(values[rows]), rtol=1e-6)


def test_names_survive_whatever_they_are() -> None:
    frames = {
        "../a b/ü.wav": FRAMES["song 0"],
        7: FRAMES["song 1"],
        Path("x/y.mp3"): FRAMES["song 2"],
    }
    assert score(frames=frames).ids.tolist() == ["../a b/ü.wav", "7", "x/y.mp3"]
    assert score(frames=[(b"\xc3\xbc", FRAMES["song 0"])]).ids.tolist() == ["ü"]


def test_what_is_known_of_songs_goes_along() -> None:
    labels = {song: COLUMNS[i % 3] for i, song in enumerate(FRAMES)} | {"another": "jig"}
    groups = {song: i // 2 for i, song in enumerate(FRAMES)}
    songs = score(labels=labels | {"song 3": None}, groups=groups, note="by hand")
    assert songs.labels.tolist() == [*COLUMNS, None, *(COLUMNS * 4)[4:]]
    assert songs.groups.tolist() == [str(i // 2) for i in range(12)]
    assert songs.note == "by hand"
    table = as_table(FRAMES)
    table = table.assign(genre=table.song.map(labels), side="train", artist=table.song.map(groups))
    found = score(softmax, table, "song", labels="genre", split="side", groups="artist")
    assert found.labels.tolist() == (COLUMNS * 4)[:12]
    assert set(found.split) == {"train"}
    values, ids = flat(FRAMES)
    again = score(softmax, values, ids, labels=table.genre, groups=table.artist.to_numpy())
    assert_same_songs(again, found.replace(split=None))


def test_songs_may_have_several_labels() -> None:
    three = {song: FRAMES[song] for song in ["song 0", "song 1", "song 2"]}
    names = [("jig", "reel"), (), None]
    rows = [[1, 0, 1], [0, 0, 0], None]
    for given in (names, rows):
        labels = dict(zip(three, given, strict=True))
        songs = score(frames=three, labels=labels, task="multilabel", check=False)
        assert songs.labels.tolist() == names
    with pytest.raises(SongError, match=r"'song 0': has the label 'jig', not a list"):
        score(frames=three, labels=dict.fromkeys(three, "jig"), task="multilabel", check=False)
    with pytest.raises(SongError, match=r"'song 0': has the labels \('jig', 'reel'\): is"):
        score(frames=three, labels=dict.fromkeys(three, ("jig", "reel")))


def test_a_song_without_frames_keeps_its_place() -> None:
    songs = score(frames={"a": FRAMES["song 0"], "b": np.empty((0, 4)), "c": FRAMES["song 1"]})
    assert songs.ids.tolist() == ["a", "b", "c"]
    assert songs.lengths.tolist() == [len(FRAMES["song 0"]), 0, len(FRAMES["song 1"])]


def test_a_frame_of_nan_is_missing_and_never_reaches_the_model() -> None:
    frames = {song: x.copy() for song, x in FRAMES.items()}
    frames["song 4"][0] = np.nan
    frames["song 5"][:] = np.nan

    def strict(x: Array) -> Array:
        assert np.isfinite(x).all()
        return softmax(x)

    for size in (1, 5, 1024):
        songs = score(strict, frames, batch_size=size)
        expected = by_hand()
        expected.values[np.isnan(flat(frames)[0]).all(axis=1)] = np.nan
        assert_allclose(songs.values, expected.values, rtol=1e-6)


BAD_INPUT: list[tuple[Any, Any, str]] = [
    ([FRAMES["song 0"]], None, "item 0 is ndarray, not a pair"),
    (FRAMES["song 0"], None, "ndarray and without song_ids"),
    ([(FRAMES["song 0"], FRAMES["song 1"])], None, "item 0 begins with an array"),
    ([(None, FRAMES["song 0"])], None, "item 0 has no song id"),
    ([("a", FRAMES["song 0"]), ("", FRAMES["song 1"])], None, "item 1 has no song id"),
    ({"a": FRAMES["song 0"], "b": np.zeros((2, 5))}, None, r"'b': .* shape \(5,\), those before"),
    ({"a": np.zeros(4)}, None, r"'a': its frames have shape \(4,\)"),
    ({"a": [[1.0], [1.0, 2.0]]}, None, "'a': its frames are of different shapes"),
    ({"a": [["x", "y"]]}, None, "'a': its frames are <U1, not numbers"),
    ({"a": np.zeros((2, 4)), b"a": np.zeros((2, 4))}, None, "'a': stands there twice"),
    (flat(FRAMES)[0], ["a"], "1 song ids for"),
    (flat(FRAMES)[0], [float("nan")] * len(flat(FRAMES)[0]), "frame 0 has no song id"),
    (iter(FRAMES.values()), ["a"], "song_ids go with an array"),
    (as_table(FRAMES), None, "song_ids must name the column"),
    (as_table(FRAMES), "title", "'title': the data frame has no such column"),
    (as_table(FRAMES).assign(x="y"), "song", "'x': is .*string, not numbers"),
]


@pytest.mark.parametrize(("frames", "ids", "words"), BAD_INPUT)
def test_bad_input_is_named(frames: Any, ids: Any, words: str) -> None:
    with pytest.raises((SongError, ParameterError), match=words):
        score(softmax, frames, ids)


def test_bad_labels_are_named() -> None:
    values, ids = flat(FRAMES)
    with pytest.raises(SongError, match="'song 1': has no labels; None would say"):
        score(labels={"song 0": "jig"})
    with pytest.raises(SongError, match="'song 0': its frames have labels 'jig' and 'reel'"):
        score(softmax, values[:2], ["song 0"] * 2, labels=["jig", "reel"])
    with pytest.raises(ParameterError, match="labels has 1 values for"):
        score(softmax, values, ids, labels=["jig"])
    with pytest.raises(ParameterError, match="labels must be a mapping"):
        score(labels=["jig"] * 12)
    with pytest.raises(ParameterError, match="'genre': the data frame has no such column"):
        score(softmax, as_table(FRAMES), "song", labels="genre")


# Models.


class Network(torch.nn.Module):
    """Layers that behave otherwise in training."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        layers = (torch.nn.BatchNorm1d(N_FEATURES), torch.nn.Dropout(0.5))
        self.layers = torch.nn.Sequential(*layers, torch.nn.Linear(N_FEATURES, 3)).to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.layers(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pytorch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = Network(dtype)
    network.layers[0].running_mean += 1.0
    network.train()
    network.layers[1].eval()  # modes are the user's own, and come back
    before = {name: value.clone() for name, value in network.state_dict().items()}
    songs = score(network, {s: x.astype(np.float64) for s, x in FRAMES.items()}, kind="logit")
    assert [network.training, network.layers[0].training, network.layers[1].training] == [
        True,
        True,
        False,
    ]
    assert all((value == before[name]).all() for name, value in network.state_dict().items())
    network.eval()
    with torch.no_grad():
        expected = [network(torch.from_numpy(x).to(dtype)).float() for x in FRAMES.values()]
    precision = 0.02 if dtype == torch.bfloat16 else 1e-5
    assert_allclose(songs.values, torch.cat(expected), atol=precision)
    assert all(weight.grad is None for weight in network.parameters())


def test_pytorch_takes_frames_that_are_no_floats() -> None:
    table = torch.nn.Sequential(torch.nn.Embedding(9, 3), torch.nn.Flatten(), torch.nn.Linear(6, 3))
    frames = {"a": np.array([[1, 2], [3, 8]]), "b": np.array([[0, 0]])}
    songs = score(table, frames, kind="logit")
    expected = table(torch.tensor([[1, 2], [3, 8], [0, 0]])).detach()
    assert_allclose(songs.values, expected, rtol=1e-6)


@pytest.fixture(scope="module")
def keras() -> Any:
    os.environ["KERAS_BACKEND"] = "torch"
    return importlib.import_module("keras")


# Keras's own: it wraps tensors for NumPy as one did before NumPy 2.
OF_KERAS = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@OF_KERAS
def test_keras(keras: Any) -> None:
    model = keras.Sequential(
        [
            keras.layers.Input((2, 2)),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    squares = {song: x.reshape(-1, 2, 2) for song, x in FRAMES.items()}
    songs = score(model, squares)
    assert_allclose(
        songs.values, by_hand(lambda x: model.predict(x, verbose=0), squares).values, rtol=1e-5
    )
    as_method = score(lambda x: model.predict(x, verbose=0), squares)
    assert_allclose(as_method.values, songs.values, rtol=1e-5)


@OF_KERAS
def test_keras_with_dropout_left_on_is_caught(keras: Any) -> None:
    model = keras.Sequential(
        [keras.layers.Dropout(0.5), keras.layers.Dense(3, activation="softmax")]
    )
    with pytest.raises(ParameterError, match="is dropout on"):
        score(lambda x: model(x, training=True))


FITTED_X, FITTED_Y = (
    np.vstack([*FRAMES.values()]),
    [COLUMNS[i % 3] for i in range(len(flat(FRAMES)[0]))],
)


def test_scikit_learn() -> None:
    model = LogisticRegression().fit(FITTED_X, FITTED_Y)
    songs = score_songs(model, FRAMES, kind="probability")
    assert songs.columns == tuple(model.classes_)
    assert_allclose(songs.values, by_hand(model.predict_proba).values, rtol=1e-5)
    logits = score_songs(model, FRAMES, kind="logit")
    assert_allclose(logits.values, by_hand(model.decision_function, kind="logit").values, rtol=1e-5)
    assert_allclose(logits.log_odds().values, songs.log_odds().values, atol=1e-4)


def test_classes_are_put_under_their_own_names() -> None:
    model = LogisticRegression().fit(FITTED_X, FITTED_Y)
    turned = ["reel", "waltz", "jig", "polka"]
    songs = score_songs(model, FRAMES, kind="probability", columns=turned)
    expected = np.vstack([model.predict_proba(x) for x in FRAMES.values()])
    assert_allclose(songs.values[:, [2, 3, 0]], expected, rtol=1e-5)
    assert (songs.values[:, 1] == 0).all()
    log_odds = score_songs(model, FRAMES, kind="logit", columns=turned).log_odds()
    assert_allclose(log_odds.values[:, [2, 3, 0]], to_log_odds(expected, "probability"), atol=1e-3)
    assert (log_odds.values[:, 1] < -15).all()
    codes = LogisticRegression().fit(FITTED_X, [COLUMNS.index(y) for y in FITTED_Y])
    named = score_songs(codes, FRAMES, kind="probability", columns=COLUMNS)
    assert_allclose(named.values, expected, rtol=1e-5)
    with pytest.raises(ParameterError, match="classes jig, polka, reel, the columns are a, b, c"):
        score_songs(model, FRAMES, kind="probability", columns=["a", "b", "c"])


@pytest.mark.parametrize("kind", ["logit", "log_odds"])
def test_a_decision_between_two_classes_becomes_two_columns(kind: Any) -> None:
    y = [label == "jig" for label in FITTED_Y]
    model = LogisticRegression().fit(FITTED_X, y)
    log_odds = score_songs(model, FRAMES, kind=kind).log_odds()
    p = np.vstack([model.predict_proba(x) for x in FRAMES.values()])
    assert_allclose(log_odds.values, np.log(p / (1 - p)), atol=1e-4)
    assert log_odds.columns == ("False", "True")


def test_scikit_learn_with_several_labels() -> None:
    y = np.random.default_rng(0).integers(0, 2, (len(FITTED_X), 3))
    y[:, 2] = 0  # a label that nothing has
    for model in (
        RandomForestClassifier(5, random_state=0),
        MLPClassifier((3,), max_iter=600, tol=1),
    ):
        fitted = model.fit(FITTED_X, y)
        songs = score(fitted, task="multilabel")
        found = fitted.predict_proba(np.vstack([*FRAMES.values()]))
        if isinstance(found, list):
            found = np.stack([found[0][:, 1], found[1][:, 1], np.zeros(len(FITTED_X))], axis=1)
        assert_allclose(songs.values, found, rtol=1e-5)


def test_columns_of_a_data_frame_are_given_in_the_order_of_the_fit() -> None:
    table = as_table(FRAMES)
    features = [f"f{i}" for i in range(N_FEATURES)]
    model = LogisticRegression().fit(table[features], FITTED_Y)
    with pytest.warns(UserWarning, match="valid feature names"):
        plain = score_songs(model, FRAMES, kind="probability")
    turned = table[["f2", "song", "f0", "f3", "f1"]].assign(more=1.0)
    assert_same_songs(score_songs(model, turned, "song", kind="probability"), plain)
    with pytest.raises(ParameterError, match="'f3': the data frame has no such column"):
        score_songs(model, turned.drop(columns="f3"), "song", kind="probability")


@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [
        (LinearSVC(), "probability", "no predict_proba, so it gives no probability; .* logit or"),
        (RandomForestClassifier(2), "logit", "no decision_function, so it gives no logit"),
        (SVC(decision_function_shape="ovo"), "log_odds", "gives 6 columns of scores for 4 names"),
    ],
)
def test_estimators_that_cannot_give_what_is_asked(model: Any, kind: Any, words: str) -> None:
    fitted = model.fit(FITTED_X, [str(i % 4) for i in range(len(FITTED_X))])
    with pytest.raises(ParameterError, match=words):
        score_songs(fitted, FRAMES, kind=kind)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (LogisticRegression(), "has no classes_: is it fitted"),
        (3, "int is no frame classifier; that is a Keras model"),
        (Network, "type is no frame classifier"),
        ("model.h5", r"model\.h5: not an \.onnx file"),
        ("none.onnx", r"none\.onnx: no such file"),
    ],
)
def test_what_is_no_model_is_refused(model: Any, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        score(model)


def test_columns_must_be_named() -> None:
    with pytest.raises(ParameterError, match="columns are missing"):
        score_songs(softmax, FRAMES, kind="probability")


# ONNX files, written node by node.


FLOAT, DOUBLE = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE


def write_onnx(path: Path, batch: int | str, kind: int = FLOAT, n_outputs: int = 1) -> Path:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    weights = onnx.numpy_helper.from_array(WEIGHTS.astype(dtype), "weights")
    nodes = [
        onnx.helper.make_node("MatMul", ["frames", "weights"], ["logits"]),
        onnx.helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    outputs = [
        onnx.helper.make_tensor_value_info(name, kind, [batch, 3])
        for name in ["probabilities", "logits"][:n_outputs]
    ]
    given = onnx.helper.make_tensor_value_info("frames", kind, [batch, N_FEATURES])
    graph = onnx.helper.make_graph(nodes, "frames", [given], outputs, [weights])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


@pytest.mark.parametrize("batch", ["n", 5, 1])
@pytest.mark.parametrize("kind", [FLOAT, DOUBLE])
def test_onnx(tmp_path: Path, batch: int | str, kind: int) -> None:
    path = write_onnx(tmp_path / "model.onnx", batch, kind)
    assert_allclose(score(path).values, by_hand().values, rtol=1e-5)
    assert_allclose(score(str(path), batch_size=7).values, by_hand().values, rtol=1e-5)


def test_an_onnx_session_will_do(tmp_path: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(write_onnx(tmp_path / "model.onnx", "n"))
    assert_allclose(score(session).values, by_hand().values, rtol=1e-5)


def test_onnx_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"1 inputs and 2 outputs .*logits: tensor\(float\)"):
        score(write_onnx(tmp_path / "two.onnx", "n", n_outputs=2))
    (tmp_path / "foreign.onnx").write_bytes(b"not a model")
    with pytest.raises(ParameterError, match=r"foreign\.onnx: cannot be read as ONNX"):
        score(tmp_path / "foreign.onnx")


def test_an_onnx_file_for_other_frames_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_onnx(tmp_path / "model.onnx", "n")
    wide = {"a": np.zeros((2, N_FEATURES + 1), dtype=np.float32)}
    with pytest.raises(ParameterError, match=r"model\.onnx: .* frames of shape \(5,\): ") as error:
        score_songs(path, wide, kind="probability", columns=["a", "b", "c"])
    (tmp_path / "cut.onnx").write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ParameterError, match=r"cut\.onnx: cannot be read as ONNX"):
        score(tmp_path / "cut.onnx")
    assert len(str(error.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")  # onnxruntime has things to say, too


def test_without_onnxruntime_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_onnx(tmp_path / "model.onnx", "n")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ParameterError, match=r"pip install 'seqagg\[onnx\]'"):
        score(path)


# What can be told of scores.


def test_what_a_function_may_return() -> None:
    for scores in (
        lambda x: softmax(x).astype(np.float16),
        lambda x: torch.from_numpy(softmax(x)).requires_grad_(),
        lambda x: softmax(x).tolist(),
    ):
        assert_allclose(score(scores).values, by_hand().values, atol=1e-3)
    one = score(lambda x: softmax(x)[:, 0], columns=["jig"], task="multilabel")
    assert_allclose(one.values[:, 0], by_hand().values[:, 0], rtol=1e-6)


BAD_SCORES: list[tuple[Any, dict[str, Any], str]] = [
    (lambda x: softmax(x)[:-1], {}, r"gives \d+ rows of scores for \d+ frames .*'song 0'"),
    (lambda x: softmax(x)[:, :2], {}, "gives 2 columns of scores for 3 names"),
    (lambda x: {"scores": softmax(x)}, {}, "gives dict, not an array"),
    (lambda x: (softmax(x), softmax(x)), {}, r"gives tuple of shape \(2, \d+, 3\), not an array"),
    (lambda x: softmax(x)[:, None], {}, r"gives ndarray of shape \(\d+, 1, 3\)"),
    (lambda x: np.full((len(x), 3), "a"), {}, "not an array of shape"),
    (lambda x: x @ WEIGHTS, {}, "'song 0': column .*has a score of .*: no probability"),
    (lambda x: np.full((len(x), 3), np.nan), {}, "gives NaN for every frame"),
    (softmax, {"kind": "logit"}, "declared as logit, but .* lie between 0 and 1 and sum to one"),
    (softmax, {"kind": "log_odds"}, "declared as log_odds, but .* and sum to one"),
    (lambda x: 1 / (1 + np.exp(-x @ WEIGHTS)), {"kind": "logit"}, "frames lie between 0 and 1: is"),
    (softmax, {"batch_size": 0}, "batch_size=0 must be 1 or more"),
]


@pytest.mark.parametrize(("model", "options", "words"), BAD_SCORES)
def test_bad_scores_are_refused(model: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises((ParameterError, SongError), match=words):
        score(model, **options)


def test_a_bad_score_is_named_with_song_frame_and_column() -> None:
    def infinite(x: Array) -> Array:
        scores = x @ WEIGHTS
        scores[(x == FRAMES["song 9"][2]).all(axis=1), 1] = np.inf
        return scores

    with pytest.raises(
        SongError, match="song 'song 9': column 'polka': frame 2 has a score of inf"
    ):
        score(infinite, in_pieces(FRAMES), kind="logit", batch_size=9)


def test_rounding_beyond_one_is_rounding() -> None:
    def sure(x: Array) -> Array:
        return np.where(np.arange(3) == (x[:, :1] > 0), 1 + 1e-7, -1e-7)

    songs = score(sure)
    assert (songs.values.min(), songs.values.max()) == (0, 1)


def test_missing_scores_stay_missing() -> None:
    def unsure(x: Array) -> Array:
        return np.where(x[:, :1] > 1, np.nan, softmax(x))

    songs = score(unsure)
    assert_array_equal(np.isnan(songs.values).all(axis=1), flat(FRAMES)[0][:, 0] > 1)


def test_some_sums_that_are_not_one_are_worth_a_warning() -> None:
    def torn(x: Array) -> Array:
        return np.where((x == FRAMES["song 2"][0]).all(axis=1)[:, None], 0, softmax(x))

    with pytest.warns(UserWarning, match="probabilities of 1 frames do not sum .*of song 'song 2'"):
        score(torn)
    score(torn, task="multilabel")
    score(lambda x: softmax(x) / 2)  # one against the rest: legitimate, and for `inspect` to say


def test_shuffled_scores_are_caught() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ParameterError, match="are the frames shuffled"):
        score(lambda x: softmax(x)[rng.permutation(len(x))])
    with pytest.raises(ParameterError, match="an order of its own"):
        score(lambda x: softmax(x)[np.argsort(x[:, 0])])


def test_a_model_that_normalises_over_the_batch_is_caught() -> None:
    def normalised(x: Array) -> Array:
        return softmax((x - x.mean(axis=0)) / x.std(axis=0))

    with pytest.raises(ParameterError, match="does the model normalise over the batch"):
        score(normalised)
    assert len(score(normalised, check=False)) == len(FRAMES)


def test_a_models_own_error_says_where() -> None:
    def broken(x: Array) -> Array:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory") as caught:
        score(broken)
    assert "the first of song 'song 0'" in caught.value.__notes__[0]


def test_progress_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int | None]] = []

    @contextlib.contextmanager
    def counted(text: str, unit: str) -> Iterator[Any]:
        assert (text, unit) == ("scoring", "frames")
        yield lambda done, total: seen.append((done, total))

    monkeypatch.setattr(scoring, "counted", counted)
    values, ids = flat(FRAMES)
    score(softmax, values, ids, batch_size=20)
    assert seen == [(20, 50), (40, 50), (50, 50)]
    seen.clear()
    score(frames=in_pieces(FRAMES), batch_size=40)
    assert seen == [(40, None), (50, None)]


# Into a cache.


OPTIONS: dict[str, Any] = {"columns": COLUMNS, "kind": "probability"}


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("seconds", [0.0, 1000.0])
def test_a_cache_holds_what_memory_would(
    tmp_path: Path, suffix: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_SHARD_SECONDS", seconds)
    monkeypatch.setattr(store, "_CHUNK_BYTES", 100)
    path = tmp_path / f"songs{suffix}"
    frames = FRAMES | {"empty": np.empty((0, N_FEATURES)), "last": FRAMES["song 0"]}
    known = {"labels": dict.fromkeys(frames, "jig"), "note": "n"}
    for given in (frames, [(s, x) for s, x in in_pieces(frames)] + [("empty", frames["empty"])]):
        score_to_cache(softmax, given, path, batch_size=5, **OPTIONS, **known)
        expected = score(softmax, given, **known)
        found = seqagg.read_cache(path)
        assert_allclose(found.values, expected.values, rtol=1e-6)
        assert_same_songs(found.replace(values=expected.values), expected)
        assert [p.name for p in tmp_path.iterdir()] == [path.name]


class Counting:
    """Counts the frames that it scores, and stops after some calls."""

    def __init__(self, calls: int | None = None) -> None:
        self.frames, self.left = 0, calls

    def __call__(self, x: Array) -> Array:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        self.frames += len(x)
        return softmax(x)


@pytest.mark.parametrize("pieces", [False, True])
def test_a_stopped_run_goes_on(
    tmp_path: Path, pieces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_SHARD_SECONDS", 0.0)
    frames = some_frames(40, seed=3)
    n_frames = len(flat(frames)[0])
    path = tmp_path / "songs.parquet"

    def run(model: Any, **options: Any) -> Loaded:
        source = Loaded(frames)
        given = in_pieces(frames) if pieces else source
        score_to_cache(model, given, path, batch_size=8, **(OPTIONS | options))
        return source

    with pytest.raises(KeyboardInterrupt):
        run(Counting(12))
    assert not path.exists()
    rest = Counting()
    loaded = run(rest)
    assert 0 < rest.frames < n_frames
    if not pieces:
        assert len(loaded.asked) < len(frames)
    expected = score(softmax, in_pieces(frames) if pieces else frames)
    assert_allclose(seqagg.read_cache(path).values, expected.values, rtol=1e-6)
    assert seqagg.read_cache(path).ids.tolist() == expected.ids.tolist()
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_left_by_another_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_SHARD_SECONDS", 0.0)
    path = tmp_path / "songs.parquet"
    with pytest.raises(KeyboardInterrupt):
        score_to_cache(Counting(8), FRAMES, path, batch_size=4, **OPTIONS)
    folder = "songs.parquet.partial"
    with pytest.raises(CacheError, match=rf"{folder}: song 'song 0': holds other scores"):
        score_to_cache(lambda x: softmax(-x), FRAMES, path, **OPTIONS)
    with pytest.raises(CacheError, match=rf"{folder}: holds scores of other columns"):
        score_to_cache(softmax, FRAMES, path, columns=COLUMNS[::-1], kind="probability")
    others = {song: x for song, x in FRAMES.items() if song != "song 1"}
    with pytest.raises(CacheError, match=rf"{folder}: song 'song 1': \d frames were scored before"):
        score_to_cache(softmax, others, path, **OPTIONS)
    score_to_cache(softmax, FRAMES, path, **OPTIONS)
    assert_allclose(seqagg.read_cache(path).values, by_hand().values, rtol=1e-6)


def test_only_one_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "songs.parquet"

    def again(x: Array) -> Array:
        with pytest.raises(CacheError, match="partial: another process is at work here"):
            score_to_cache(softmax, FRAMES, path, **OPTIONS)
        return softmax(x)

    score_to_cache(again, FRAMES, path, **OPTIONS)
    with pytest.raises(CacheError, match=r"a cache ends in \.parquet or \.arrow"):
        score_to_cache(softmax, FRAMES, tmp_path / "songs.csv", **OPTIONS)


KILLED = """
import sys, time
import numpy as np
from seqagg.frozen import score_to_cache, store

store._SHARD_SECONDS = 0.05

def slow(x):
    time.sleep(0.02)
    return 1 / (1 + np.exp(-x))

with np.load(sys.argv[1]) as frames:
    score_to_cache(
        slow, frames, sys.argv[2], columns=list("abcd"), kind="probability", batch_size=8
    )
"""


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    frames = some_frames(300, seed=5)
    np.savez(tmp_path / "frames.npz", **frames)
    path = tmp_path / "songs.parquet"
    arguments = [sys.executable, "-c", KILLED, str(tmp_path / "frames.npz"), str(path)]
    process = subprocess.Popen(arguments)
    deadline = time.monotonic() + 60
    folder = tmp_path / "songs.parquet.partial"
    while len([*folder.glob("*.arrow")]) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not path.exists()
    asked = []

    def model(x: Array) -> Array:
        asked.append(len(x))
        return 1 / (1 + np.exp(-x))

    options: dict[str, Any] = {"columns": list("abcd"), "kind": "probability"}
    with np.load(tmp_path / "frames.npz") as stored:
        score_to_cache(model, stored, path, **options)
    assert 0 < sum(asked) < len(flat(frames)[0])
    expected = score_songs(model, frames, **options)
    assert_allclose(seqagg.read_cache(path).values, expected.values, rtol=1e-6)
    assert seqagg.read_cache(path).ids.tolist() == list(frames)
    assert not folder.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("half", [False, True])
def test_a_run_killed_while_it_writes_a_shard_goes_on(
    tmp_path: Path, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there of the shard is hidden beside the others, and is none of them."""
    monkeypatch.setattr(store, "_SHARD_SECONDS", 0.0)
    path = tmp_path / "songs.parquet"
    with pytest.raises(KeyboardInterrupt):
        score_to_cache(Counting(8), FRAMES, path, batch_size=4, **OPTIONS)
    folder = tmp_path / "songs.parquet.partial"
    last = max(folder.glob("[!.]*.arrow"))
    with atomic_write(last) as temporary:  # this is its name, and this what a kill does to it
        stem, suffix = temporary.stem, temporary.suffix
        temporary.write_bytes(last.read_bytes())
    data = last.read_bytes()
    last.rename(folder / f"{stem}{suffix}")
    (folder / f"{stem}{suffix}").write_bytes(data[: len(data) // 2] if half else data)
    score_to_cache(softmax, FRAMES, path, **OPTIONS)
    assert_allclose(seqagg.read_cache(path).values, by_hand().values, rtol=1e-6)
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_killed_while_it_tidies_up_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever shards are still there when the cache is, nothing is taken for something else."""
    monkeypatch.setattr(store, "_SHARD_SECONDS", 0.0)
    path, unlink, left = tmp_path / "songs.parquet", Path.unlink, [2]

    def killed(self: Path, missing_ok: bool = False) -> None:
        if self.suffix == ".arrow":
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        unlink(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            score_to_cache(softmax, FRAMES, path, batch_size=4, **OPTIONS)
    folder = tmp_path / "songs.parquet.partial"
    assert path.exists()
    assert [*folder.glob("*.arrow")]
    rest = Counting()
    score_to_cache(rest, FRAMES, path, batch_size=4, **OPTIONS)
    assert 0 < rest.frames < len(flat(FRAMES)[0])
    assert_allclose(seqagg.read_cache(path).values, by_hand().values, rtol=1e-6)
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_shard_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_SHARD_SECONDS", 0.0)
    path = tmp_path / "songs.parquet"
    with pytest.raises(KeyboardInterrupt):
        score_to_cache(Counting(8), FRAMES, path, batch_size=4, **OPTIONS)
    (tmp_path / "songs.parquet.partial" / "00000000.arrow").unlink()
    with pytest.raises(CacheError, match=r"00000001\.arrow: the one before it is missing"):
        score_to_cache(softmax, FRAMES, path, **OPTIONS)


def test_importing_it_imports_no_framework() -> None:
    code = (
        "import seqagg.frozen, sys; "
        "print(*({'torch', 'keras', 'sklearn', 'onnxruntime', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_model_knows_its_columns() -> None:
    model = LogisticRegression().fit(FITTED_X, FITTED_Y)
    assert frame_model(model, "probability").columns == tuple(COLUMNS)
    assert frame_model(softmax, "logit", COLUMNS).columns == tuple(COLUMNS)
