"""Loops over flat values and offsets, against slow oracles and hmmlearn."""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hmmlearn.hmm import GaussianHMM
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import multivariate_normal
from threadpoolctl import threadpool_limits

from seqagg.kernels.hmm import (
    Expectations,
    GaussianParameters,
    expectations,
    fit_em,
    log_density,
    log_likelihoods,
    maximize,
    posteriors,
    with_jacobian,
)
from seqagg.kernels.hmm_loops import _add_products
from seqagg.kernels.packing import pack_songs
from seqagg.kernels.segments import segment_max, segment_mean, segment_sum, segment_votes
from tests import reference, reference_models

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

KINDS = ("diag", "full")
TOPOLOGIES = ("ergodic", "left-right")

LEFT_RIGHT = np.array([[0.6, 0.3, 0.1], [0.0, 0.7, 0.3], [0.0, 0.0, 1.0]])

every_kind = pytest.mark.parametrize("kind", KINDS)
every_cut = pytest.mark.parametrize(
    ("window", "side_by_side"), [(1, 1), (1, 3), (50, 3), (50, 512), (512, 512)]
)
every_topology = pytest.mark.parametrize("topology", TOPOLOGIES)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """hmmlearn's small matrices only lose time to a second thread."""
    with threadpool_limits(1):
        yield


def random_model(kind: str, topology: str = "ergodic", seed: int = 0) -> GaussianParameters:
    """Three states over two features, far enough apart to be told from each other."""
    rng = np.random.default_rng(seed)
    start, trans = rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(3), size=3)
    if topology == "left-right":
        start, trans = np.array([0.8, 0.2, 0.0]), LEFT_RIGHT
    covars = rng.uniform(0.3, 2.0, (3, 2))
    if kind == "full":
        roots = rng.normal(size=(3, 2, 2))
        covars = roots @ roots.swapaxes(1, 2) + 0.3 * np.eye(2)
    return GaussianParameters(start, trans, rng.normal(0, 2, (3, 2)), covars)


def random_songs(*lengths: int, n_features: int = 2, seed: int = 1) -> tuple[Floats, Ints]:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 2, (sum(lengths), n_features)), np.cumsum([0, *lengths])


def one_column(*values: float) -> tuple[Floats, Ints]:
    """One song of one feature."""
    return np.array(values, dtype=float)[:, None], np.array([0, len(values)])


def hmmlearn_of(model: GaussianParameters, **settings: Any) -> GaussianHMM:
    kind = "full" if model.covars.ndim == 3 else "diag"
    hmm = GaussianHMM(model.n_states, kind, init_params="", implementation="log", **settings)
    hmm.n_features = model.means.shape[1]
    hmm.startprob_, hmm.transmat_ = model.startprob, model.transmat
    hmm.means_, hmm.covars_ = model.means, model.covars
    return hmm


def log_likelihood(frames: Floats, offsets: Ints, model: GaussianParameters) -> Floats:
    return log_likelihoods(frames, offsets, [model])[:, 0]


def songs_of(frames: Floats, offsets: Ints) -> list[Floats]:
    return [frames[first:end] for first, end in itertools.pairwise(offsets)]


def scipy_log_density(frames: Floats, model: GaussianParameters) -> list[list[float]]:
    """Shape (n_frames, n_states); `scipy` takes a row of variances for a diagonal."""
    return [
        [
            float(multivariate_normal.logpdf(frame, mean, covar))
            for mean, covar in zip(model.means, model.covars, strict=True)
        ]
        for frame in frames
    ]


def log_joint(frames: Floats, offsets: Ints, model: GaussianParameters) -> list[float]:
    """Log likelihood of each song by the loop in log space."""
    return [
        reference.hmm_log_likelihood_by_loop(
            model.startprob, model.transmat, scipy_log_density(song, model)
        )
        for song in songs_of(frames, offsets)
    ]


def assert_expectations_by_loop(
    found: Expectations, frames: Floats, offsets: Ints, model: GaussianParameters, rtol: float
) -> None:
    start, trans = model.startprob, model.transmat
    expected: list[list[float]] = []
    transitions, starts = np.zeros_like(trans), np.zeros_like(start)
    for song in songs_of(frames, offsets):
        log_b = scipy_log_density(song, model)
        expected += reference_models.hmm_posteriors_by_loop(start, trans, log_b)
        starts += expected[-len(song)]
        transitions += reference_models.hmm_transitions_by_loop(start, trans, log_b)
    assert_allclose(posteriors(frames, offsets, model), expected, rtol=rtol, atol=1e-12)
    assert_allclose(found.start, starts, rtol=rtol, atol=1e-12)
    assert_allclose(found.transitions, transitions, rtol=rtol, atol=1e-12)


class TestSegments:
    def test_against_loops(self) -> None:
        frames, offsets = random_songs(1, 7, 1, 30, n_features=3)
        frames = np.round(frames)  # so that there are equal highest columns
        songs = [song.tolist() for song in songs_of(frames, offsets)]
        columns = [list(zip(*song, strict=True)) for song in songs]
        assert_allclose(segment_sum(frames, offsets), [[math.fsum(c) for c in s] for s in columns])
        means = [reference.mean_over_frames(song) for song in songs]
        assert_allclose(segment_mean(frames, offsets), means)
        assert_array_equal(segment_max(frames, offsets), [[max(c) for c in s] for s in columns])
        votes = [np.array(reference.vote_shares(song)) * len(song) for song in songs]
        assert_allclose(segment_votes(frames, offsets), votes)

    def test_float32_is_summed_in_float64(self) -> None:
        """2 ** 24 + 1 is no float32."""
        values = np.array([[2.0**24], [1.0], [1.0], [1.0]], np.float32)
        offsets = np.array([0, 4])
        assert segment_sum(values, offsets).tolist() == [[2.0**24 + 3]]
        assert segment_mean(values, offsets).tolist() == [[(2.0**24 + 3) / 4]]

    def test_a_huge_song_costs_its_neighbour_no_digit(self) -> None:
        """A difference of running sums would."""
        values = np.array([[1e16], [1e16], [0.1], [0.2]])
        assert segment_sum(values, np.array([0, 2, 4]))[1, 0] == 0.1 + 0.2


class TestDensity:
    @every_kind
    def test_equals_scipy(self, kind: str) -> None:
        model = random_model(kind)
        frames, _ = random_songs(40)
        expected = scipy_log_density(frames, model)
        assert_allclose(log_density(frames, model.means, model.covars), expected, rtol=1e-10)

    def test_diagonal_equals_the_sum_over_features(self) -> None:
        model = random_model("diag")
        frames, _ = random_songs(10)
        expected = [
            [
                reference.gaussian_log_density(frame, mean, var)
                for mean, var in zip(model.means, model.covars, strict=True)
            ]
            for frame in frames
        ]
        assert_allclose(log_density(frames, model.means, model.covars), expected, rtol=1e-12)


class TestLikelihood:
    @every_kind
    @every_topology
    def test_equals_the_sum_over_all_paths(self, kind: str, topology: str) -> None:
        model = random_model(kind, topology)
        frames, offsets = random_songs(1, 2, 6, 1)
        expected = [
            reference.hmm_log_likelihood_by_enumeration(
                model.startprob, model.transmat, scipy_log_density(song, model)
            )
            for song in songs_of(frames, offsets)
        ]
        assert_allclose(log_likelihood(frames, offsets, model), expected, rtol=1e-10)

    @every_kind
    @every_topology
    def test_equals_hmmlearn(self, kind: str, topology: str) -> None:
        model = random_model(kind, topology)
        frames, offsets = random_songs(1, 40, 3, 500)
        hmm = hmmlearn_of(model)
        expected = [hmm.score(song) for song in songs_of(frames, offsets)]
        assert_allclose(log_likelihood(frames, offsets, model), expected, rtol=1e-10)

    def test_a_song_of_one_frame_is_a_mixture(self) -> None:
        model = random_model("diag")
        frames, offsets = random_songs(1, 1, 1)
        densities = np.exp(scipy_log_density(frames, model))
        expected = np.log(densities @ model.startprob)
        assert_allclose(log_likelihood(frames, offsets, model), expected, rtol=1e-12)

    @every_kind
    def test_one_state_is_the_sum_of_its_densities(self, kind: str) -> None:
        model = random_model(kind)
        single = GaussianParameters(np.ones(1), np.ones((1, 1)), model.means[:1], model.covars[:1])
        frames, offsets = random_songs(3, 50)
        densities = multivariate_normal.logpdf(frames, model.means[0], model.covars[0])
        expected = [densities[:3].sum(), densities[3:].sum()]
        assert_allclose(log_likelihood(frames, offsets, single), expected, rtol=1e-12)

    def test_a_song_is_alone(self) -> None:
        model = random_model("full")
        frames, offsets = random_songs(5, 1, 200, 17)
        together = log_likelihood(frames, offsets, model)
        for song, expected in zip(songs_of(frames, offsets), together, strict=True):
            alone = log_likelihood(song, np.array([0, len(song)]), model)
            assert_allclose(alone, expected, rtol=1e-12)


def models_of_all_sizes(kind: str) -> list[GaussianParameters]:
    """One state, two and three; the last two run one way."""
    three = random_model(kind, "left-right", seed=1)
    one = GaussianParameters(np.ones(1), np.ones((1, 1)), three.means[:1], three.covars[:1])
    two = GaussianParameters(
        np.array([1.0, 0.0]),
        np.array([[0.9, 0.1], [0.0, 1.0]]),
        three.means[1:] + 1,
        three.covars[:2],
    )
    return [random_model(kind), one, three, two]


class TestManyModels:
    LENGTHS = (5, 1, 200, 17, 17, 1, 90, 3)

    @every_kind
    @every_cut
    def test_each_equals_hmmlearn(
        self, kind: str, window: int, side_by_side: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However the work is cut up."""
        monkeypatch.setattr("seqagg.kernels.hmm._WINDOW", window)
        monkeypatch.setattr("seqagg.kernels.hmm._SONGS", side_by_side)
        frames, offsets = random_songs(*self.LENGTHS)
        models = models_of_all_sizes(kind)
        expected = [
            [hmmlearn_of(model).score(song) for model in models]
            for song in songs_of(frames, offsets)
        ]
        assert_allclose(log_likelihoods(frames, offsets, models), expected, rtol=1e-10)
        single = log_likelihoods(frames, offsets, models, np.float32)
        assert_allclose(single, expected, rtol=2e-6)

    @pytest.mark.parametrize("n_states", [4, 5, 8, 9, 13, 16])
    def test_many_states_equal_hmmlearn(self, n_states: int) -> None:
        """States are multiplied eight, four or one at a time."""
        rng = np.random.default_rng(n_states)
        model = GaussianParameters(
            rng.dirichlet(np.ones(n_states)),
            rng.dirichlet(np.ones(n_states), n_states),
            rng.normal(0, 2, (n_states, 2)),
            rng.uniform(0.3, 2.0, (n_states, 2)),
        )
        frames, offsets = random_songs(*self.LENGTHS)
        hmm = hmmlearn_of(model)
        expected = [hmm.score(song) for song in songs_of(frames, offsets)]
        found = log_likelihoods(frames, offsets, [random_model("diag"), model])
        assert_allclose(found[:, 1], expected, rtol=1e-10)
        states = hmm.predict_proba(frames, np.diff(offsets))
        assert_allclose(posteriors(frames, offsets, model), states, rtol=1e-7, atol=1e-12)

    def test_the_number_of_threads_changes_no_bit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("seqagg.kernels.hmm._SONGS", 2)
        frames, offsets = random_songs(*self.LENGTHS)
        models = models_of_all_sizes("diag")
        one = log_likelihoods(frames, offsets, models, n_jobs=1)
        assert_array_equal(log_likelihoods(frames, offsets, models, n_jobs=3), one)

    def test_no_song(self) -> None:
        models = models_of_all_sizes("diag")
        assert log_likelihoods(np.empty((0, 2)), np.array([0]), models).shape == (0, 4)

    @every_kind
    def test_float32_leaves_to_float64_what_it_cannot_hold(self, kind: str) -> None:
        """Squares of 1e5 would cancel to nothing in seven digits."""
        model = random_model(kind)
        far = dataclasses.replace(model, means=model.means + 1e5 * np.eye(3)[:, :2])
        frames, offsets = random_songs(30, 4)
        expected = log_likelihoods(frames, offsets, [far])
        assert_array_equal(log_likelihoods(frames, offsets, [far], np.float32), expected)

    @every_kind
    def test_float64_keeps_its_digits_far_from_the_center(self, kind: str) -> None:
        """Tight states at plus and minus 1e6: squares have 12 digits before the point."""
        model = random_model(kind)
        means = model.means + np.array([[1e6], [-1e6], [0.0]])
        far = dataclasses.replace(model, means=means, covars=model.covars * 1e-4)
        near = np.random.default_rng(0).normal(0, 1e-2, (12, 2)) + means[np.arange(12) % 3]
        offsets = np.array([0, 12])
        expected = log_joint(near, offsets, far)
        assert_allclose(log_likelihood(near, offsets, far), expected, rtol=1e-9)


class TestPacking:
    @pytest.mark.parametrize("lengths", [(3, 1, 2), (1,), (4, 4, 4), (2, 7, 1, 7, 5, 3)])
    @pytest.mark.parametrize("n_songs", [1, 2, 100])
    def test_every_frame_once_in_time_order(self, lengths: tuple[int, ...], n_songs: int) -> None:
        offsets = np.cumsum([0, *lengths])
        packs = pack_songs(offsets[:-1], np.array(lengths), n_songs, 4)
        seen = []
        for pack in packs:
            assert len(pack.songs) <= n_songs
            for c, song in enumerate(pack.songs):
                assert pack.first[c] == offsets[song]
                columns = pack.columns(c).tolist()
                assert len(columns) == lengths[song]
                assert columns == (pack.starts[: len(columns)] + c).tolist()
                seen += [(song, t) for t in range(len(columns))]
            mine = [pack.columns(c) for c in range(len(pack.songs))]
            assert sorted(np.concatenate(mine)) == list(range(pack.starts[-1]))
        assert sorted(seen) == [(i, t) for i, n in enumerate(lengths) for t in range(n)]

    def test_windows_cover_all_steps_and_keep_to_the_size(self) -> None:
        for size in (1, 4, 7, 100):
            (pack,) = pack_songs(np.array([0, 9, 14, 19]), np.array([9, 5, 5, 1]), 10, size)
            assert (pack.windows[0], pack.windows[-1]) == (0, 9)
            assert pack.widest == np.diff(pack.starts[pack.windows]).max()
            for first, end in itertools.pairwise(pack.windows):
                assert end == first + 1 or pack.starts[end] - pack.starts[first] <= size
                assert end == 9 or pack.starts[end + 1] - pack.starts[first] > size


SEPARATED = GaussianParameters(
    np.array([1.0, 0.0]),
    np.array([[0.5, 0.5], [0.0, 1.0]]),
    np.array([[0.0], [1e4]]),
    np.ones((2, 1)),
)
"""First about 0, then for good about 10,000."""

TEN_APART = GaussianParameters(
    np.array([0.5, 0.5]),
    np.array([[0.9, 0.1], [0.0, 1.0]]),
    np.array([[0.0], [10.0]]),
    np.ones((2, 1)),
)
"""States ten standard deviations apart, the second of them for good."""

TIGHT_AND_BROAD = GaussianParameters(
    np.array([0.9, 0.1]),
    np.array([[0.5, 0.5], [0.0, 1.0]]),
    np.array([[0.0], [3.0]]),
    np.array([[0.01], [1.0]]),
)

NEVER_MEET = GaussianParameters(
    np.array([0.5, 0.5]), np.eye(2), np.array([[0.0], [34.6]]), np.ones((2, 1))
)

UNREACHABLE = GaussianParameters(
    np.array([0.0, 1.0]), TEN_APART.transmat, TEN_APART.means, TEN_APART.covars
)

UNLIKELY = {
    "the only state allowed at the start explains nothing": (SEPARATED, [1e4, 1e4]),
    "a forbidden way back": (SEPARATED, [0.0, 1e4, 0.0, 1e4]),
    "both ways": (SEPARATED, [1e4, 0.0, 1e4, 0.0, 0.0]),
    "the state lost first is the one needed later": (NEVER_MEET, [40.0, 0.0, 0.0]),
    "lost frame by frame": (TEN_APART, [10.0] * 16 + [0.0] * 40),
    "a state that is never reached": (UNREACHABLE, [0.0] * 40),
    "a tight state that cannot come back": (TIGHT_AND_BROAD, [4.0] * 3 + [0.0] * 200),
}
"""What -> model, and song that it hardly explains: in plain scaling something becomes 0."""


@pytest.mark.parametrize(("model", "song"), UNLIKELY.values(), ids=UNLIKELY)
class TestUnderflow:
    def test_likelihood(self, model: GaussianParameters, song: list[float]) -> None:
        frames, offsets = one_column(*song)
        expected = log_joint(frames, offsets, model)
        assert np.isfinite(expected).all()
        assert_allclose(log_likelihood(frames, offsets, model), expected, rtol=1e-9)
        single = log_likelihoods(frames, offsets, [model], np.float32)
        assert_allclose(single[:, 0], expected, rtol=2e-6)

    def test_expectations(self, model: GaussianParameters, song: list[float]) -> None:
        frames, offsets = one_column(*song)
        found = expectations(frames, offsets, model)
        assert found.log_likelihood == pytest.approx(log_joint(frames, offsets, model)[0], rel=1e-9)
        # Likelihoods of 1e8 nats leave seven digits to their differences.
        assert_allclose(posteriors(frames, offsets, model).sum(axis=1), 1, rtol=1e-6)
        assert_expectations_by_loop(found, frames, offsets, model, rtol=1e-6)

    def test_neighbours_are_not_touched(self, model: GaussianParameters, song: list[float]) -> None:
        plain = [model.means[0, 0] + 0.5, model.means[0, 0] - 0.2]
        frames, _ = one_column(*plain, *song, *plain)
        offsets = np.cumsum([0, 2, len(song), 2])
        alone = posteriors(*one_column(*plain), model)
        found = posteriors(frames, offsets, model)
        assert_allclose(found[:2], alone, rtol=1e-12)
        assert_allclose(found[-2:], alone, rtol=1e-12)

    def test_em_learns_from_it(self, model: GaussianParameters, song: list[float]) -> None:
        frames, offsets = one_column(*song)
        fitted, history = fit_em(frames, offsets, model, shrinkage=1.0, n_iter=5, tol=-math.inf)
        assert history[1] > history[0] + 1
        for array in (fitted.startprob, fitted.transmat, fitted.means, fitted.covars):
            assert np.isfinite(array).all()


def sparse_model(rng: np.random.Generator) -> GaussianParameters:
    """Up to four states, some of them forbidden, unreachable or far apart."""
    n = int(rng.integers(1, 5))
    trans = rng.dirichlet(np.ones(n), n) * (rng.random((n, n)) < rng.choice([0.5, 1.0]))
    trans += 0.05 * np.eye(n)
    start = rng.dirichlet(np.ones(n)) * (rng.random(n) < 0.7) + 1e-3 * np.eye(n)[0]
    return GaussianParameters(
        start / start.sum(),
        trans / trans.sum(axis=1, keepdims=True),
        rng.normal(0, rng.choice([1.0, 5.0, 20.0, 100.0]), (n, 1)),
        rng.uniform(0.05, 1.0, (n, 1)),
    )


def test_random_models_and_songs_that_stay_in_one_state_for_a_while() -> None:
    rng = np.random.default_rng(0)
    for _ in range(120):
        model = sparse_model(rng)
        states = np.repeat(rng.integers(0, model.n_states, 5), rng.integers(1, 12, 5))
        frames = model.means[states] + rng.normal(0, 1, (len(states), 1))
        offsets = np.array([0, len(states) // 3, len(states)])
        offsets = np.unique(offsets)  # a song has a frame
        found = expectations(frames, offsets, model)
        expected = log_joint(frames, offsets, model)
        assert_allclose(log_likelihood(frames, offsets, model), expected, rtol=1e-9)
        assert found.log_likelihood == pytest.approx(sum(expected), rel=1e-9)
        assert_expectations_by_loop(found, frames, offsets, model, rtol=1e-5)


class TestExpectations:
    @every_kind
    @every_topology
    def test_equal_the_sums_over_all_paths(self, kind: str, topology: str) -> None:
        model = random_model(kind, topology)
        frames, offsets = random_songs(5, 1, 2)
        found = expectations(frames, offsets, model)
        expected: list[list[float]] = []
        transitions = np.zeros((3, 3))
        for song in songs_of(frames, offsets):
            oracle = (model.startprob, model.transmat, scipy_log_density(song, model))
            expected += reference.hmm_posteriors_by_enumeration(*oracle)
            transitions += reference.hmm_transitions_by_enumeration(*oracle)
        found_states = posteriors(frames, offsets, model)
        assert_allclose(found_states, expected, rtol=1e-9, atol=1e-14)
        assert_allclose(found.start, np.array(expected)[[0, 5, 6]].sum(axis=0), rtol=1e-9)
        assert_allclose(found.transitions, transitions, rtol=1e-9, atol=1e-14)

    @every_kind
    @every_topology
    def test_equal_hmmlearn(self, kind: str, topology: str) -> None:
        model = random_model(kind, topology)
        frames, offsets = random_songs(30, 1, 200, 4)
        found = expectations(frames, offsets, model)
        hmm = hmmlearn_of(model)
        lengths = np.diff(offsets)
        states = hmm.predict_proba(frames, lengths)
        assert_allclose(posteriors(frames, offsets, model), states, rtol=1e-7, atol=1e-12)
        assert found.log_likelihood == pytest.approx(hmm.score(frames, lengths), rel=1e-10)
        assert found.transitions.sum() == pytest.approx(len(frames) - len(lengths))
        assert found.start.sum() == pytest.approx(len(lengths))

    @every_kind
    @every_cut
    def test_do_not_depend_on_how_the_work_is_cut(
        self, kind: str, window: int, side_by_side: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = random_model(kind)
        frames, offsets = random_songs(*TestManyModels.LENGTHS)
        monkeypatch.setattr("seqagg.kernels.hmm._WINDOW", window)
        monkeypatch.setattr("seqagg.kernels.hmm._SONGS", side_by_side)
        found = expectations(frames, offsets, model)
        hmm = hmmlearn_of(model)
        states = hmm.predict_proba(frames, np.diff(offsets))
        centred = frames - found.center
        squares = centred**2
        if kind == "full":
            squares = np.stack([centred[:, 0] ** 2, centred.prod(axis=1), centred[:, 1] ** 2], 1)
        monomials = np.hstack([np.ones((len(frames), 1)), centred, squares])
        assert_allclose(found.moments, states.T @ monomials, rtol=1e-9, atol=1e-9)
        assert_allclose(found.start, states[offsets[:-1]].sum(axis=0), rtol=1e-9)
        assert_expectations_by_loop(found, frames, offsets, model, rtol=1e-7)

    @every_kind
    def test_those_of_parts_add_up(self, kind: str) -> None:
        model = random_model(kind)
        frames, offsets = random_songs(30, 1, 200, 4)
        center = np.array([0.3, -1.0])
        whole = expectations(frames, offsets, model, center)
        parts = expectations(frames[:31], offsets[:3], model, center) + expectations(
            frames[31:], offsets[2:] - 31, model, center
        )
        for name in ("log_likelihood", "start", "transitions", "moments"):
            assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-10)

    def test_likelihood_is_that_of_the_songs(self) -> None:
        model = random_model("full")
        frames, offsets = random_songs(30, 1, 200, 4)
        total = expectations(frames, offsets, model).log_likelihood
        assert total == pytest.approx(log_likelihood(frames, offsets, model).sum(), rel=1e-12)


def fit_with_hmmlearn(
    frames: Floats, offsets: Ints, model: GaussianParameters, shrinkage: float, n_iter: int
) -> GaussianHMM:
    """By the priors that `maximize` names; never stops early."""
    n_features = model.means.shape[1]
    full = model.covars.ndim == 3
    hmm = hmmlearn_of(
        model,
        covars_prior=shrinkage * np.eye(n_features) if full else shrinkage,
        covars_weight=shrinkage + (n_features if full else 1),
        n_iter=n_iter,
        tol=-math.inf,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return hmm.fit(frames, np.diff(offsets))


class TestEM:
    @every_kind
    @every_topology
    @pytest.mark.parametrize("shrinkage", [0.5, 30.0])
    def test_every_iteration_equals_hmmlearn(
        self, kind: str, topology: str, shrinkage: float
    ) -> None:
        model = random_model(kind, topology)
        frames, offsets = random_songs(40, 1, 25, 60)
        fitted, history = fit_em(
            frames, offsets, model, shrinkage=shrinkage, n_iter=12, tol=-math.inf
        )
        hmm = fit_with_hmmlearn(frames, offsets, model, shrinkage, n_iter=12)
        assert len(history) == 12
        assert_allclose(history, list(hmm.monitor_.history), rtol=1e-9)
        for ours, theirs in (
            (fitted.startprob, hmm.startprob_),
            (fitted.transmat, hmm.transmat_),
            (fitted.means, hmm.means_),
            (fitted.covars, hmm._covars_),
        ):
            assert_allclose(ours, theirs, rtol=1e-7, atol=1e-9)

    @every_kind
    def test_songs_simulated_from_a_model_lead_back_to_it(self, kind: str) -> None:
        rng = np.random.default_rng(0)
        true = GaussianParameters(
            np.array([0.7, 0.3]),
            np.array([[0.9, 0.1], [0.3, 0.7]]),
            np.array([[-2.0, 0.0], [2.0, 1.0]]),
            random_model(kind, seed=3).covars[:2],
        )
        hmm = hmmlearn_of(true)
        songs = [hmm.sample(20, random_state=int(rng.integers(2**31)))[0] for _ in range(200)]
        frames, offsets = np.concatenate(songs), np.arange(0, 4001, 20)
        begin = GaussianParameters(
            np.full(2, 0.5), np.full((2, 2), 0.5), np.array([[-1.0, 0.0], [1.0, 0.0]]), true.covars
        )
        fitted, _ = fit_em(frames, offsets, begin, shrinkage=1e-6, n_iter=100, tol=1e-6)
        assert_allclose(fitted.transmat, true.transmat, rtol=0, atol=0.05)
        assert_allclose(fitted.startprob, true.startprob, rtol=0, atol=0.12)
        assert_allclose(fitted.means, true.means, rtol=0, atol=0.15)
        assert_allclose(fitted.covars, true.covars, rtol=0.2, atol=0.1)

    @every_kind
    def test_likelihood_never_falls_without_shrinkage(self, kind: str) -> None:
        """Which is Baum's theorem; with shrinkage it is the penalized likelihood that rises."""
        frames, offsets = random_songs(40, 60)
        _, history = fit_em(
            frames, offsets, random_model(kind), shrinkage=1e-9, n_iter=30, tol=-math.inf
        )
        assert (np.diff(history) > -1e-8).all()
        assert history[-1] > history[0] + 1

    def test_stops_when_an_iteration_gains_too_little(self) -> None:
        frames, offsets = random_songs(40, 60)
        settings = {"shrinkage": 1.0, "n_iter": 100}
        _, history = fit_em(frames, offsets, random_model("diag"), tol=0.05, **settings)
        gains = np.diff(history)
        assert 2 <= len(gains) < 99
        assert gains[-1] < 0.05
        assert (gains[:-1] >= 0.05).all()

    def test_history_is_the_likelihood_before_each_step(self) -> None:
        frames, offsets = random_songs(40, 60)
        model = random_model("diag")
        settings = {"shrinkage": 1.0, "tol": -math.inf}
        _, history = fit_em(frames, offsets, model, n_iter=3, **settings)
        assert history[0] == pytest.approx(sum(log_joint(frames, offsets, model)), rel=1e-9)
        for n_iter in (1, 2):
            fitted, _ = fit_em(frames, offsets, model, n_iter=n_iter, **settings)
            expected = sum(log_joint(frames, offsets, fitted))
            assert history[n_iter] == pytest.approx(expected, rel=1e-9)

    def test_forbidden_ways_stay_forbidden(self) -> None:
        frames, offsets = random_songs(*[20] * 10)
        start = random_model("diag", "left-right")
        fitted, _ = fit_em(frames, offsets, start, shrinkage=1.0, n_iter=20, tol=-math.inf)
        assert (fitted.transmat[LEFT_RIGHT == 0] == 0).all()
        assert fitted.startprob[2] == 0
        assert_allclose(fitted.transmat.sum(axis=1), 1, rtol=1e-12)
        assert fitted.startprob.sum() == pytest.approx(1)

    def test_songs_of_one_frame(self) -> None:
        """Nothing is known of transitions then, so they stay as they were."""
        frames, offsets = random_songs(*[1] * 30)
        model = random_model("diag")
        fitted, history = fit_em(frames, offsets, model, shrinkage=1.0, n_iter=5, tol=-math.inf)
        assert_array_equal(fitted.transmat, model.transmat)
        assert np.isfinite(history).all()
        assert np.isfinite(fitted.means).all()

    @every_kind
    def test_a_state_that_no_frame_is_in_keeps_its_place(self, kind: str) -> None:
        model = random_model(kind)
        far = model.means.copy()
        far[1] = 1e3
        lost = GaussianParameters(model.startprob, model.transmat, far, model.covars)
        frames, offsets = random_songs(40, 60)
        fitted, history = fit_em(frames, offsets, lost, shrinkage=1.0, n_iter=10, tol=-math.inf)
        assert_array_equal(fitted.means[1], far[1])
        assert_array_equal(fitted.covars[1], model.covars[1])
        assert_array_equal(fitted.transmat[1], model.transmat[1])
        assert_allclose(fitted.transmat.sum(axis=1), 1, rtol=1e-12)
        # The others do as if it were not there.
        alive = [0, 2]
        trans = model.transmat[np.ix_(alive, alive)]
        others = GaussianParameters(
            model.startprob[alive] / model.startprob[alive].sum(),
            trans / trans.sum(axis=1, keepdims=True),
            model.means[alive],
            model.covars[alive],
        )
        expected, other_history = fit_em(
            frames, offsets, others, shrinkage=1.0, n_iter=10, tol=-math.inf
        )
        assert_allclose(history[2:], other_history[2:], rtol=1e-3)
        assert np.isfinite(fitted.means).all()
        assert_allclose(fitted.means[alive], expected.means, rtol=0.05, atol=0.05)


class TestMaximize:
    """One step by hand: two features, the responsibilities given."""

    FRAMES = ((0.0, 0.0), (2.0, 4.0), (5.0, 1.0))
    STATES = (0, 0, 1)
    CENTER = (3.0, -1.0)

    def found(self, kind: str) -> Expectations:
        moments = np.zeros((2, 5 if kind == "diag" else 6))
        for frame, state in zip(self.FRAMES, self.STATES, strict=True):
            x, y = frame[0] - self.CENTER[0], frame[1] - self.CENTER[1]
            squares = [x * x, y * y] if kind == "diag" else [x * x, x * y, y * y]
            moments[state] += [1, x, y, *squares]
        return Expectations(
            log_likelihood=0.0,
            start=np.array([1.0, 0.0]),
            transitions=np.array([[1.0, 1.0], [0.0, 0.0]]),
            moments=moments,
            center=np.array(self.CENTER),
        )

    @pytest.mark.parametrize(
        ("kind", "covars", "first", "second"),
        [
            # Two frames about (1, 2): squares sum to 2 and 8, products to 4. One frame alone: 0.
            ("diag", np.ones((2, 2)), [5 / 5, 11 / 5], [3 / 4, 3 / 4]),
            (
                "full",
                np.tile(np.eye(2), (2, 1, 1)),
                [[1.0, 0.8], [0.8, 2.2]],
                [[0.75, 0], [0, 0.75]],
            ),
        ],
        ids=KINDS,
    )
    def test_shrinkage_is_so_many_frames_worth(
        self, kind: str, covars: Any, first: Any, second: Any
    ) -> None:
        before = np.array([[0.5, 0.5], [0.25, 0.75]])
        model = GaussianParameters(np.full(2, 0.5), before, np.zeros((2, 2)), covars)
        step = maximize(self.found(kind), model, shrinkage=3.0)
        assert_allclose(step.means, [[1, 2], [5, 1]], rtol=1e-12)
        assert_allclose(step.covars[0], first, rtol=1e-12, atol=1e-12)
        assert_allclose(step.covars[1], second, rtol=1e-12, atol=1e-12)
        assert step.startprob.tolist() == [1, 0]
        assert step.transmat.tolist() == [[0.5, 0.5], [0.25, 0.75]]

    def test_what_is_forbidden_stays_forbidden(self) -> None:
        """Even if rounding should find a trace of it."""
        found = dataclasses.replace(
            self.found("diag"),
            start=np.array([0.5, 0.5]),
            transitions=np.array([[2.0, 2.0], [1.0, 3.0]]),
        )
        before = np.array([[0.5, 0.5], [0.0, 1.0]])
        start = np.array([1.0, 0.0])
        model = GaussianParameters(start, before, np.zeros((2, 2)), np.ones((2, 2)))
        step = maximize(found, model, shrinkage=3.0)
        assert step.startprob.tolist() == [1, 0]
        assert step.transmat.tolist() == [[0.5, 0.5], [0.0, 1.0]]


class TestJacobian:
    BASIS = np.array([[2.0, 0.3], [-0.4, 0.5]])
    CENTER = np.array([1.0, -3.0])

    @every_kind
    def test_density_changes_by_the_determinant(self, kind: str) -> None:
        model = random_model(kind)
        plain = with_jacobian(model, self.BASIS, self.CENTER)
        frames, _ = random_songs(20)
        white = (frames - self.CENTER) @ self.BASIS
        jacobian = math.log(abs(np.linalg.det(self.BASIS)))
        expected = np.array(scipy_log_density(white, model)) + jacobian
        assert_allclose(scipy_log_density(frames, plain), expected, rtol=1e-9)

    @every_kind
    def test_hmmlearn_scores_change_by_the_determinant_per_frame(self, kind: str) -> None:
        model = random_model(kind)
        plain = with_jacobian(model, self.BASIS, self.CENTER)
        frames, _ = random_songs(20)
        white = (frames - self.CENTER) @ self.BASIS
        jacobian = math.log(abs(np.linalg.det(self.BASIS)))
        expected = hmmlearn_of(model).score(white) + 20 * jacobian
        assert hmmlearn_of(plain).score(frames) == pytest.approx(expected, rel=1e-10)

    def test_moments_by_simulation_of_the_definition(self) -> None:
        """Whitened draws from a state, taken back, have the mean and covariance of `plain`."""
        model = random_model("full")
        plain = with_jacobian(model, self.BASIS, self.CENTER)
        draws = np.random.default_rng(0).multivariate_normal(
            model.means[1], model.covars[1], size=100_000
        )
        back = np.linalg.solve(self.BASIS.T, draws.T).T + self.CENTER
        assert_allclose(back.mean(axis=0), plain.means[1], rtol=0, atol=0.05)
        assert_allclose(np.cov(back.T), plain.covars[1], rtol=0.03, atol=0.05)


@pytest.mark.parametrize("n_a", [1, 2, 3, 5])
@pytest.mark.parametrize("n_b", [1, 3, 4, 5, 9])
@pytest.mark.parametrize("n", [1, 7, 384])
def test_products_of_few_rows(n_a: int, n_b: int, n: int) -> None:
    rng = np.random.default_rng([n_a, n_b, n])
    a, b, out = (rng.random(shape) for shape in ((n_a, n), (n_b, n), (n_a, n_b)))
    expected = out + a @ b.T
    _add_products(a, b, out)
    assert_allclose(out, expected, rtol=1e-13)
