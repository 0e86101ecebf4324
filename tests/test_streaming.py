"""Streams beyond the law that every method obeys: options, length, place, saved state, errors."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import NotFittedError

import seqagg
from seqagg import Songs
from seqagg.aggregators import make_aggregator
from seqagg.aggregators.base import Aggregator
from seqagg.errors import ParameterError, SongError
from seqagg.kernels.hmm import GaussianParameters
from seqagg.kernels.hmm_filter import ForwardFilter
from tests import reference
from tests.conftest import COLUMNS, frames_of, integer_labels, mixed_songs, shake

Floats = npt.NDArray[np.float64]

TRAINING, QUERIES = mixed_songs(40), mixed_songs(6, seed=1)

QUICK = {"epochs": 3, "hidden_size": 8, "n_folds": 2, "n_repeats": 1}

OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "mean": ("mean", {}),
    "hmm": ("hmm", {"n_states": 2, "n_folds": 2}),
    "hmm likelihood": ("hmm", {"n_states": 2, "n_folds": 2, "decision": "likelihood"}),
    "hmm left-right": ("hmm", {"n_states": 3, "topology": "left-right", "min_frames": 1}),
    "hmm float32": ("hmm", {"n_states": 2, "n_folds": 2, "dtype": "float32"}),
    "gru": ("gru", QUICK | {"bidirectional": False}),
    "gru of two layers": ("gru", QUICK | {"bidirectional": False, "n_layers": 2}),
    "gru without averaging": ("gru", QUICK | {"bidirectional": False, "base": "none"}),
    **{
        f"mil {pooling}": ("mil", QUICK | {"pooling": pooling})
        for pooling in ("attention", "average", "auto", "max", "linear-softmax", "noisy-or")
    },
}


@functools.cache
def fitted(name: str) -> Aggregator:
    method, parameters = OPTIONS[name]
    model = make_aggregator(method, **parameters).fit(TRAINING)
    return shake(model) if method in ("gru", "mil") else model


MORE: dict[str, Callable[[], Aggregator]] = {
    "stack": lambda: seqagg.StackingAggregator(n_parts=1, n_folds=2).fit(TRAINING),
    "auto": lambda: seqagg.AutoAggregator(
        methods=("mean", "stack"), parameters={"stack": {"n_parts": 1}}, n_errors=-100.0
    ).fit(TRAINING),
    "own network": lambda: seqagg.MILAggregator(
        network=torch.nn.Linear(3, 3), pooling="average", epochs=1, n_folds=2
    ).fit(TRAINING),
}


def nudged(arrays: dict[str, Any], name: str) -> dict[str, Any]:
    """The arrays, a bit of the last byte of one of them changed."""
    array = np.array(arrays[name])
    array.reshape(-1).view(np.uint8)[-1] ^= 1
    return arrays | {name: array}


def prefixes(array: Any) -> list[Any]:
    return [array[: n + 1] for n in range(len(array))]


class TestOptions:
    @pytest.mark.parametrize("name", OPTIONS)
    def test_every_prefix(self, name: str) -> None:
        model = fitted(name)
        for array in frames_of(QUERIES):
            stream = model.stream()
            heard = [stream.update(frame) for frame in array]
            assert_allclose(heard, model.predict_proba(prefixes(array)), rtol=2e-6, atol=1e-6)

    @pytest.mark.parametrize("name", OPTIONS)
    @pytest.mark.parametrize("size", [1e2, 1e4, 1e8, 3e38])
    def test_every_prefix_of_log_odds_of_any_size(self, name: str, size: float) -> None:
        model, rng = fitted(name), np.random.default_rng(0)
        for _ in range(5):
            array = rng.choice([size, -size, 0, 1, -1], (8, 3)).astype(np.float32)
            stream = model.stream()
            heard = np.array([stream.update(frame) for frame in array])
            assert np.isfinite(heard).all()
            if size < 1e30:  # where even doubles have no digits left for the other frames
                assert_allclose(heard, model.predict_proba(prefixes(array)), rtol=2e-6, atol=1e-6)

    def test_many_columns_that_are_no_classes(self) -> None:
        rng = np.random.default_rng(0)
        songs = [rng.normal(i % 2, 2, (rng.integers(2, 9), 20)) for i in range(30)]
        model = seqagg.StackingAggregator(n_parts=1).fit(songs, ["a", "b"] * 15)
        stream = model.stream()
        heard = [stream.update(frame) for frame in songs[0]]
        assert_allclose(heard, model.predict_proba(prefixes(songs[0])), rtol=1e-9)

    def test_a_class_without_songs(self) -> None:
        seen = TRAINING[integer_labels(TRAINING) != 2]
        model = make_aggregator("hmm", n_states=2, n_folds=2).fit(seen)
        assert len(model.hmms_) == 2
        found = model.stream(len(QUERIES)).update(QUERIES)
        assert found.shape == (6, 3)
        assert_allclose(found, model.predict_proba(QUERIES), rtol=1e-9)

    def test_a_network_over_frames_of_any_shape(self) -> None:
        class Means(torch.nn.Module):
            def forward(self, frames: torch.Tensor) -> torch.Tensor:
                return torch.stack([frames.mean(dim=(1, 2)), frames.amax(dim=(1, 2))], dim=1)

        rng = np.random.default_rng(0)
        songs = [rng.normal(i % 2, 1, (5, 4, 3)).astype(np.float32) for i in range(12)]
        model = seqagg.MILAggregator(network=Means(), epochs=1, n_folds=2)
        model.fit(songs, ["a", "b"] * 6)
        stream = model.stream()
        stream.update(songs[3][:2])
        assert_allclose(stream.update(songs[3][2:]), model.predict_proba([songs[3]])[0], atol=1e-6)

    def test_a_blend_says_which_of_its_methods_cannot(self) -> None:
        model = seqagg.AutoAggregator(methods=("stack",), n_errors=-100.0).fit(TRAINING)
        assert "stack" in model.weights_
        with pytest.raises(ParameterError, match=r"^stack, which is in the blend: .*n_parts=1 can"):
            model.stream()

    def test_a_method_that_says_nothing_about_streams_has_none(self) -> None:
        class Plain(seqagg.MeanLogOdds):
            _memory = Aggregator._memory

        with pytest.raises(ParameterError, match=r"^Plain cannot stream$"):
            Plain().fit(TRAINING).stream()


class TestForwardFilter:
    """Against the forward recursion in log space, song by song."""

    @staticmethod
    def model(n_states: int, seed: int, *, full: bool = False, far: float = 1.0) -> Any:
        rng = np.random.default_rng(seed)
        roots = rng.normal(0, 1, (n_states, 2, 2))
        covars = roots @ roots.swapaxes(1, 2) + 0.5 * np.eye(2)
        return GaussianParameters(
            rng.dirichlet(np.ones(n_states)),
            rng.dirichlet(np.ones(n_states), n_states),
            far * rng.normal(0, 2, (n_states, 2)),
            covars if full else np.diagonal(covars, axis1=1, axis2=2).copy(),
        )

    @staticmethod
    def heard(models: list[GaussianParameters], frames: Floats) -> list[list[float]]:
        """Log likelihood of every prefix under every model, frame by frame."""
        filter_ = ForwardFilter(models)
        ahead, total = np.tile(filter_.start, (3, 1)), np.zeros((3, len(models)))
        found = []
        for frame in frames:
            filter_.hear(frame[None], np.array([0, 1]), np.array([1]), ahead, total)
            found.append(total[1].tolist())
        assert_array_equal(total[[0, 2]], 0)
        assert_array_equal(ahead[[0, 2]], [filter_.start] * 2)
        return found

    @staticmethod
    def by_loop(model: GaussianParameters, frames: Floats) -> list[float]:
        from scipy.stats import multivariate_normal

        densities = [
            multivariate_normal(mean, covar if covar.ndim == 2 else np.diag(covar))
            for mean, covar in zip(model.means, model.covars, strict=True)
        ]
        log_b = [[float(d.logpdf(frame)) for d in densities] for frame in frames]
        return [
            reference.hmm_log_likelihood_by_loop(
                model.startprob.tolist(), model.transmat.tolist(), log_b[: t + 1]
            )
            for t in range(len(frames))
        ]

    @pytest.mark.parametrize("full", [False, True])
    @pytest.mark.parametrize("far", [1.0, 1e5])
    def test_models_of_different_sizes(self, full: bool, far: float) -> None:
        models = [self.model(n, n, full=full, far=far) for n in (1, 2, 4)]
        frames = far * np.random.default_rng(9).normal(0, 2, (12, 2))
        expected = [self.by_loop(model, frames) for model in models]
        assert_allclose(np.transpose(self.heard(models, frames)), expected, rtol=1e-9)

    def test_a_state_whose_share_is_beyond_floats_is_not_lost(self) -> None:
        """For 60 frames all but state 0 are far away; then only state 1 explains what follows."""
        model = GaussianParameters(
            np.array([0.5, 0.5]), np.eye(2), np.array([[0.0, 0.0], [9.0, 9.0]]), np.ones((2, 2))
        )
        frames = np.vstack([np.zeros((60, 2)), np.full((80, 2), 9.0)])
        expected = self.by_loop(model, frames)
        assert min(expected) < -4000  # shares of exp(-4000) and less
        found = self.heard([model], frames)
        assert_allclose(np.ravel(found), expected, rtol=1e-10)

    def test_states_that_run_one_way(self) -> None:
        transmat = np.array([[0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 1.0]])
        means = np.array([[0.0, 0.0], [30.0, 0.0], [60.0, 0.0]])
        model = GaussianParameters(np.array([1.0, 0, 0]), transmat, means, np.ones((3, 2)))
        frames = np.array([[60.0, 0.0], [0.0, 0.0], [60.0, 0.0], [30.0, 0.0]])
        found = self.heard([model], frames)
        assert_allclose(np.ravel(found), self.by_loop(model, frames), rtol=1e-10)


class TestLength:
    @pytest.mark.parametrize(
        ("name", "n"),
        [("mean", 100_000), ("hmm", 100_000), ("gru", 20_000), ("mil attention", 20_000)],
    )
    def test_very_long_songs(self, name: str, n: int) -> None:
        model = fitted(name)
        frames = np.random.default_rng(0).normal(-1, 2, (n, 3)).astype(np.float32)
        stream = model.stream()
        for piece in np.array_split(frames, 50):
            found = stream.update(piece)
        assert stream.n_frames == [n]
        assert_allclose(found, model.predict_proba([frames])[0], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("name", ["mean", "hmm", "gru", "mil attention"])
    def test_a_late_frame_takes_no_longer_than_an_early_one(self, name: str) -> None:
        stream, frame = fitted(name).stream(), np.zeros(3)

        def least_seconds() -> float:
            seconds = []
            for _ in range(50):
                before = time.perf_counter()
                stream.update(frame)
                seconds.append(time.perf_counter() - before)
            return min(seconds)

        stream.update(frame)
        early = least_seconds()
        stream.update(np.zeros((10_000, 3)))
        assert least_seconds() < 2 * early


class TestMany:
    def test_thousands_at_once_are_as_good_as_one_by_one(self) -> None:
        model = fitted("hmm")
        frames = np.random.default_rng(0).normal(0, 2, (4, 3000, 3))
        streams = model.stream(3000)
        assert len(streams) == 3000
        for step in frames:
            found = streams.update(step)
        assert found.shape == (3000, 3)
        some = [0, 1, 1777, 2999]
        assert_allclose(found[some], model.predict_proba(list(frames[:, some].swapaxes(0, 1))))

    def test_some_of_them(self) -> None:
        model = fitted("mean")
        streams = model.stream(4)
        first, second = QUERIES[0], QUERIES[1]
        streams.update([first, second], [2, 0])
        mask = np.array([True, False, True, False])
        found = streams.predict_proba(mask)
        assert_allclose(found, model.predict_proba([second, first]))
        assert_allclose(streams.predict_proba([1, -1]), [model.class_prior_] * 2)
        assert streams.n_frames.tolist() == [len(second), 0, len(first), 0]

    @pytest.mark.parametrize("frames", [[], (), np.zeros((0, 3)), QUERIES[:0]])
    @pytest.mark.parametrize("which", [[], (), np.zeros(0, np.int64), [False, False]])
    def test_none_of_them(self, frames: Any, which: Any) -> None:
        streams = fitted("hmm").stream(2)
        streams.update(QUERIES[:2])
        before = streams.state()
        assert streams.update(frames, which).shape == (0, 3)
        assert streams.predict_proba(which).shape == (0, 3)
        streams.reset(which)
        assert_same_state(streams.state(), before)

    def test_no_frame_of_a_single_stream(self) -> None:
        stream = fitted("hmm").stream()
        heard = stream.update(QUERIES[0])
        before = stream.state()
        for nothing in ([], np.zeros((0, 3))):
            assert_array_equal(stream.update(nothing), heard)
        assert stream.update([], []).shape == stream.predict_proba([]).shape == (0, 3)
        assert_same_state(stream.state(), before)

    def test_nan_is_for_a_stream_that_pauses(self) -> None:
        streams = fitted("hmm").stream(2)
        streams.update(np.eye(3)[:2])
        before = streams.state()
        found = streams.update(np.array([[np.nan] * 3, [0, np.nan, 0]]))
        assert_array_equal(found, streams.predict_proba())
        assert_same_state(streams.state(), before)

    def test_forgetting(self) -> None:
        model = fitted("gru")
        streams = model.stream(3)
        begun = streams.state()
        streams.update(QUERIES[:3])
        after = streams.state()
        streams.reset([1])
        assert_array_equal(streams.predict_proba()[1], model.stream().predict_proba())
        assert_same_state(
            {k: a[[0, 2]] for k, a in streams.state().items() if k != "model"},
            {k: a[[0, 2]] for k, a in after.items() if k != "model"},
        )
        streams.reset()
        assert_same_state(streams.state(), begun)

    def test_columns_go_by_name(self) -> None:
        model = fitted("hmm")
        other = QUERIES.replace(
            values=QUERIES.values[:, [2, 0, 1]], columns=[COLUMNS[k] for k in (2, 0, 1)]
        )
        assert_array_equal(model.stream(6).update(other), model.stream(6).update(QUERIES))


def assert_same_state(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert_array_equal(one[name], other[name])


class TestErrors:
    def test_an_unfitted_method_has_no_streams(self) -> None:
        with pytest.raises(NotFittedError):
            seqagg.MeanLogOdds().stream()

    @pytest.mark.parametrize("n", [0, -1, 1.5, "2"])
    def test_no_number_of_streams(self, n: Any) -> None:
        with pytest.raises(ParameterError, match="is no whole number above 0"):
            fitted("mean").stream(n)

    @pytest.mark.parametrize(
        ("frames", "which", "message"),
        [
            ([np.zeros((1, 3))], None, "frames of 1 songs for 2 streams"),
            (np.zeros((2, 3)), [0], "frames of 2 songs for 1 streams"),
            (np.zeros((2, 3)), [1, -1], "a stream is there twice"),
            (np.zeros((2, 3)), [0, 2], "no such stream"),
            (np.zeros((2, 3)), [True], "no such stream"),
            (np.zeros((2, 3)), [0.0, 1.0], "no such stream"),
            (np.zeros((2, 4)), None, "songs have 4 columns, not 3"),
            (Songs(np.full((2, 3), 2.0), [0, 1, 2]).replace(columns=list("xyz")), None, "lack it"),
        ],
    )
    def test_what_cannot_be_used_changes_nothing(
        self, frames: Any, which: Any, message: str
    ) -> None:
        streams = fitted("hmm").stream(2)
        streams.update(QUERIES[:2])
        before = streams.state()
        with pytest.raises((ParameterError, SongError), match=message):
            streams.update(frames, which)
        assert_same_state(streams.state(), before)

    @pytest.mark.parametrize("name", ["mean", "hmm", "gru", "mil max"])
    @pytest.mark.parametrize("n", [10**15, 2**62, 10**30])
    def test_more_streams_than_memory_holds(self, name: str, n: int) -> None:
        with pytest.raises(ParameterError, match=f"^n={n} streams need more memory than there is$"):
            fitted(name).stream(n)

    def test_a_state_of_hmms_that_differ_by_their_seed_is_refused(self) -> None:
        """With a single fold no song is held out that could tell them apart."""
        parameters: dict[str, Any] = {"n_states": 3, "n_restarts": 1, "n_folds": 1, "tol": 1e-9}
        parameters |= {"covariance_type": "diag", "topology": "ergodic"}
        one, other, again = (
            seqagg.HMMAggregator(**parameters, random_state=seed).fit(TRAINING)
            for seed in (5, 6, 5)
        )
        assert_array_equal(one.doubts_, other.doubts_)
        first = one.classes_[0]
        assert not np.array_equal(one.hmms_[first].means_, other.hmms_[first].means_)
        state = one.stream().state()
        again.stream().restore(state)
        with pytest.raises(ParameterError, match="that of another fitted model"):
            other.stream().restore(state)

    @pytest.mark.parametrize("name", [*OPTIONS, "stack", "auto", "own network"])
    def test_every_array_of_a_model_tells_it_from_others(self, name: str, tmp_path: Path) -> None:
        model = MORE[name]() if name in MORE else fitted(name)
        state = model.stream().state()
        learnt = model._learnt()
        for part in learnt:
            changed = copy.copy(model)
            changed._learnt = lambda part=part: nudged(learnt, part)  # type: ignore[method-assign]
            with pytest.raises(ParameterError, match="that of another fitted model"):
                changed.stream().restore(state)
        if name != "own network":
            model.save(tmp_path / "m.safetensors")
            seqagg.load(tmp_path / "m.safetensors").stream().restore(state)

    def test_a_state_is_taken_back_only_where_it_belongs(self) -> None:
        streams = fitted("hmm").stream(2)
        streams.update(QUERIES[:2])
        state = streams.state()
        fresh = fitted("hmm").stream(2)
        fresh.restore(state)
        assert_array_equal(fresh.predict_proba(), streams.predict_proba())
        state["log_likelihood"][0] = 7.0  # a copy
        assert_array_equal(fresh.predict_proba(), streams.predict_proba())

        state = streams.state()
        untouched = fresh.state()
        for change, message in (
            ({"log_likelihood": state["log_likelihood"].astype(np.float32)}, "dtype float32"),
            ({"log_likelihood": state["log_likelihood"][:1]}, r"shape \(1, 3\), not"),
            ({"log_likelihood": state["log_likelihood"] * np.nan}, "holds NaN"),
            ({"log_likelihood": state["log_likelihood"] + np.inf}, "log_likelihood .* an infinity"),
            ({"ahead": state["ahead"] + np.inf}, "ahead .* an infinity"),
            ({"n_frames": -state["n_frames"]}, "n_frames .* below 0"),
            ({"something": state["n_frames"]}, "has not the arrays"),
            ({"model": state["model"] ^ 1}, "another fitted model"),
        ):
            with pytest.raises(ParameterError, match=message):
                fresh.restore(state | change)
            assert_same_state(fresh.state(), untouched)
        none: Any = None
        for nothing in (none, 3, [], "model"):
            with pytest.raises(ParameterError, match="has not the arrays"):
                fresh.restore(nothing)
        with pytest.raises(ParameterError, match="has not the arrays"):
            fitted("mean").stream(2).restore(state)
        with pytest.raises(ParameterError, match="another fitted model"):
            seqagg.MeanProbability().fit(QUERIES).stream(2).restore(
                fitted("mean").stream(2).state()
            )
