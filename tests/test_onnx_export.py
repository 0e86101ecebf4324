"""Exported graphs, run by onnxruntime, against the models they were made of."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from numpy.testing import assert_allclose, assert_array_equal

import seqagg
from seqagg.aggregators import make_aggregator
from seqagg.aggregators.base import Aggregator
from seqagg.cli import main
from seqagg.errors import ParameterError
from seqagg.onnx_export import export_onnx, to_onnx
from tests.conftest import (
    COLUMNS,
    frames_of,
    integer_labels,
    make_certain,
    mixed_songs,
    shake,
)

Floats = npt.NDArray[np.float32]

QUICK = {"epochs": 2, "hidden_size": 8, "n_folds": 2}
QUICK_HMM = {"n_folds": 2, "n_iter": 5, "min_frames": 1}

OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "majority": ("majority", {}),
    "mean": ("mean", {}),
    "logodds": ("logodds", {}),
    "hmm": ("hmm", QUICK_HMM | {"n_states": 3, "covariance_type": "diag"}),
    "hmm full": ("hmm", QUICK_HMM | {"n_states": 2, "covariance_type": "full"}),
    "hmm left-right": ("hmm", QUICK_HMM | {"n_states": 4, "topology": "left-right"}),
    "hmm likelihood": ("hmm", QUICK_HMM | {"n_states": 2, "decision": "likelihood"}),
    "gru": ("gru", QUICK),
    "gru one way": ("gru", QUICK | {"bidirectional": False}),
    "gru of two layers": ("gru", QUICK | {"n_layers": 2}),
    "gru without averaging": ("gru", QUICK | {"base": "none"}),
    **{
        f"mil {pooling}": ("mil", QUICK | {"pooling": pooling})
        for pooling in ("attention", "average", "auto", "max", "linear-softmax", "noisy-or")
    },
}
CASES = [(name, multilabel) for multilabel in (False, True) for name in OPTIONS]


@functools.cache
def fitted(name: str, multilabel: bool = False) -> Any:
    method, parameters = OPTIONS[name]
    model = make_aggregator(method, on_empty="prior", **parameters)
    model.fit(mixed_songs(40, multilabel=multilabel))
    return weigh_everything(model)


def weigh_everything(model: Any) -> Any:
    """Give every part of a mix some weight, whatever was worth it on these few songs."""
    if hasattr(model, "networks_"):
        shake(model)
    if isinstance(model, seqagg.HMMAggregator):
        model.weights_ = np.array([0.7, 0.4, 1.3])
    return make_certain(model)


@functools.cache
def session(name: str, multilabel: bool = False) -> onnxruntime.InferenceSession:
    return session_of(fitted(name, multilabel))


def session_of(model: Aggregator) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(to_onnx(model).SerializeToString())


def run(graph: onnxruntime.InferenceSession, songs: list[Any], *, longest: int = 0) -> Floats:
    """Answers of a graph; what stands in the padding is as strange as can be."""
    lengths = np.array([len(song) for song in songs], dtype=np.int64)
    width = next(song.shape[1] for song in songs if song.ndim == 2)
    padding = np.resize([np.nan, np.inf, -1e38], (max(longest, lengths.max()), width))
    padded = np.tile(padding.astype(np.float32), (len(songs), 1, 1))
    for row, song in zip(padded, songs, strict=True):
        row[: len(song)] = song
    (found,) = graph.run(None, {"log_odds": padded, "lengths": lengths})
    return np.asarray(found)


@pytest.mark.parametrize(("name", "multilabel"), CASES)
class TestAnswers:
    def test_songs_of_all_lengths_in_one_batch(self, name: str, multilabel: bool) -> None:
        model, graph = fitted(name, multilabel), session(name, multilabel)
        songs = frames_of(mixed_songs(20, seed=1, multilabel=multilabel))
        songs[0] = songs[0][:1]
        found = run(graph, songs, longest=30)
        assert found.dtype == np.float32
        assert_allclose(found, model.predict_proba(songs), rtol=0, atol=1e-6)
        for i in (0, 7, 19):
            assert_allclose(run(graph, [songs[i]]), found[[i]], rtol=0, atol=5e-7)

    def test_frames_that_are_missing_infinite_or_far_out(self, name: str, multilabel: bool) -> None:
        model, graph = fitted(name, multilabel), session(name, multilabel)
        songs = frames_of(mixed_songs(8, seed=2, multilabel=multilabel))
        songs[0][2] = np.nan
        songs[1][[0, -1], 1] = np.nan
        songs[2][1] = [np.inf, -np.inf, 0]
        songs[2][2] = [np.inf, 20, -np.inf]
        songs[2][3] = [-70, -np.inf, np.inf]
        songs[3] *= 100
        songs[4][:] = np.nan
        songs[5] = songs[5][:0]
        found = run(graph, songs)
        assert_allclose(found, model.predict_proba(songs), rtol=0, atol=1e-6)
        assert_allclose(found[[4, 5]], [model.class_prior_] * 2, rtol=1e-6)

    @pytest.mark.parametrize("size", [1e2, 1e4, 1e8])
    def test_log_odds_of_any_size(self, name: str, multilabel: bool, size: float) -> None:
        """Sums in which float32 would lose what little the other frames say."""
        model, graph = fitted(name, multilabel), session(name, multilabel)
        rng = np.random.default_rng(3)
        songs = [rng.choice([size, -size, 0, 1, -1], (6, 3)) for _ in range(30)]
        songs += [size * rng.normal(size=(6, 3)) for _ in range(30)]  # of no small ones
        songs = [song.astype(np.float32) for song in songs]
        assert_allclose(run(graph, songs), model.predict_proba(songs), rtol=0, atol=1e-6)

    def test_batches_without_songs_or_frames(self, name: str, multilabel: bool) -> None:
        graph = session(name, multilabel)
        nothing = np.zeros((0, 4, 3), np.float32)
        (found,) = graph.run(None, {"log_odds": nothing, "lengths": np.zeros(0, np.int64)})
        assert found.shape == (0, 3)
        silence = np.zeros((2, 0, 3), np.float32)
        (found,) = graph.run(None, {"log_odds": silence, "lengths": np.zeros(2, np.int64)})
        assert_allclose(found, [fitted(name, multilabel).class_prior_] * 2, rtol=1e-6)


@pytest.mark.parametrize("name", ["mean", "hmm", "gru", "mil attention"])
def test_a_song_much_longer_than_any_before(name: str) -> None:
    song = np.random.default_rng(0).normal(-1, 2, (3000, 3)).astype(np.float32)
    assert_allclose(run(session(name), [song]), fitted(name).predict_proba([song]), atol=1e-6)


@pytest.mark.parametrize("name", ["majority", "hmm", "gru", "mil noisy-or"])
def test_columns_and_classes_are_in_the_user_s_order(name: str) -> None:
    method, parameters = OPTIONS[name]
    order = [2, 0, 1]
    songs = mixed_songs(40)
    songs = songs.replace(values=songs.values[:, order], columns=[COLUMNS[k] for k in order])
    model = weigh_everything(make_aggregator(method, **parameters).fit(songs))
    assert_allclose(run(session_of(model), frames_of(songs)), model.predict_proba(songs), atol=1e-6)


@pytest.mark.parametrize("name", ["hmm", "gru", "mil average"])
def test_columns_that_are_no_classes(name: str) -> None:
    method, parameters = OPTIONS[name]
    rng = np.random.default_rng(0)
    songs = [rng.normal(i % 2, 2, (rng.integers(2, 9), 5)) for i in range(30)]
    model = make_aggregator(method, **parameters).fit(songs, [7, 11] * 15)
    model = weigh_everything(model)
    found = run(session_of(model), songs)
    assert found.shape == (30, 2)
    assert_allclose(found, model.predict_proba(songs), atol=1e-6)


@pytest.mark.parametrize("multilabel", [False, True])
def test_a_class_without_songs(multilabel: bool) -> None:
    songs = mixed_songs(60, multilabel=multilabel)
    has = integer_labels(songs)
    seen = songs[has[:, 2] == 0] if multilabel else songs[has != 2]
    model = weigh_everything(seqagg.HMMAggregator(**OPTIONS["hmm"][1]).fit(seen))
    assert len(model.hmms_) == 2
    assert_allclose(run(session_of(model), frames_of(songs)), model.predict_proba(songs), atol=1e-6)


def test_equal_votes_and_divided_frames() -> None:
    model = seqagg.MajorityVote().fit(mixed_songs(40))
    songs = [
        np.array(rows, np.float32)
        for rows in (
            [[2, 2, 0], [0, 0, 0]],
            [[1, 1, 0], [1, 0, 1], [3, 0, 0]],
            [[5, 0, 0], [0, 6, 0]],
        )
    ]
    assert_allclose(run(session_of(model), songs), model.predict_proba(songs), atol=1e-6)


def test_columns_too_many_to_be_rotated() -> None:
    rng = np.random.default_rng(0)
    songs = [rng.normal(i % 2, 1.0, (5, 300)).astype(np.float32) for i in range(12)]
    model = seqagg.HMMAggregator(
        n_states=1, covariance_type="diag", topology="ergodic", n_folds=2
    ).fit(songs, [i % 2 for i in range(12)])
    model = weigh_everything(model)
    assert_allclose(run(session_of(model), songs), model.predict_proba(songs), atol=1e-6)


def test_one_class() -> None:
    songs = mixed_songs(10)
    model = seqagg.MajorityVote().fit([a[:, :1] for a in songs], [0] * 10)
    assert_array_equal(run(session_of(model), [a[:, :1] for a in songs]), np.ones((10, 1)))


def test_the_card_and_the_names(tmp_path: Path) -> None:
    model = fitted("hmm")
    export_onnx(model, tmp_path / "hmm.onnx")
    written = onnx.load(tmp_path / "hmm.onnx")
    card = {entry.key: entry.value for entry in written.metadata_props}
    assert card["method"] == "hmm"
    assert card["seqagg_version"] == seqagg.__version__
    assert json.loads(card["columns"]) == list(model.columns_)
    assert json.loads(card["classes"]) == model.classes_.tolist()
    assert card["task"] == "multiclass"
    calibration = json.loads(card["calibration"])
    assert calibration["held_out_songs"] == 40
    assert calibration["held_out_log_loss"] == pytest.approx(-np.log(1 - model.doubts_).mean())
    assert calibration["inverse_temperature"] == model.inverse_temperature_
    assert calibration["biases"] == model.biases_.tolist()
    assert written.opset_import[0].version == 18
    loaded = onnxruntime.InferenceSession(tmp_path / "hmm.onnx")
    assert [(i.name, i.type, i.shape) for i in loaded.get_inputs()] == [
        ("log_odds", "tensor(float)", ["batch", "time", 3]),
        ("lengths", "tensor(int64)", ["batch"]),
    ]
    assert [(o.name, o.shape) for o in loaded.get_outputs()] == [("probabilities", ["batch", 3])]
    several = {e.key: e.value for e in to_onnx(fitted("mean", True)).metadata_props}
    assert several["task"] == "multilabel"
    assert json.loads(several["thresholds"]) == fitted("mean", True).thresholds_.tolist()


class TestRefusals:
    @pytest.mark.parametrize("method", ["stack", "auto"])
    def test_methods_without_a_graph(self, method: str) -> None:
        parameters = {"methods": ("stack",)} if method == "auto" else {}
        model = make_aggregator(method, **parameters).fit(mixed_songs(30))
        with pytest.raises(
            ParameterError, match=f"^method '{method}' has no ONNX graph; there are "
        ):
            to_onnx(model)

    def test_a_network_of_the_user_s(self) -> None:
        model = seqagg.MILAggregator(network=torch.nn.Linear(3, 3), epochs=1, n_folds=2)
        with pytest.raises(ParameterError, match="a network of your own has no ONNX graph here"):
            to_onnx(model.fit(mixed_songs(20)))

    def test_without_the_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "onnx", None)
        with pytest.raises(ParameterError, match=r"pip install 'seqagg\[onnx\]'"):
            to_onnx(fitted("mean"))

    def test_another_suffix(self, tmp_path: Path) -> None:
        with pytest.raises(ParameterError, match=r"an ONNX file ends in \.onnx"):
            export_onnx(fitted("mean"), tmp_path / "mean.pt")


class TestCommand:
    def test_export(self, tmp_path: Path) -> None:
        model, file, out = fitted("mean"), tmp_path / "m.safetensors", tmp_path / "m.onnx"
        model.save(file)
        arguments = ["export", str(file), "--onnx", "--out", str(out)]
        done = CliRunner().invoke(main, arguments)
        assert (done.exit_code, done.stderr) == (0, "")
        assert f"Written: {out}, {out.stat().st_size:,} bytes" in done.stdout
        found = run(onnxruntime.InferenceSession(out), frames_of(mixed_songs(5)))
        assert_allclose(found, model.predict_proba(mixed_songs(5)), atol=1e-6)
        said = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
        assert said["out"] == str(out)
        assert json.loads(said["card"]["classes"]) == list(COLUMNS)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["m.safetensors", "--out", "m.onnx"], "say in which format: --onnx"),
            (["m.safetensors", "--onnx"], "Missing option '--out'"),
            (["nowhere.safetensors", "--onnx", "--out", "m.onnx"], "no such file"),
            (["m.safetensors", "--onnx", "--out", "m.pt"], "an ONNX file ends in .onnx"),
        ],
    )
    def test_refusals(
        self, arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        fitted("mean").save("m.safetensors")
        done = CliRunner().invoke(main, ["export", *arguments])
        assert (done.exit_code, done.stdout) == (2, "")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
        assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]
