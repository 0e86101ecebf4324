from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal

from seqagg import MajorityVote, MeanLogOdds, MeanProbability, Songs, averages
from seqagg.aggregators.base import Aggregator
from seqagg.aggregators.saving import pack, unpack
from seqagg.certainty import LEAST_WEIGHT, Certainty
from seqagg.errors import ModelFileError, ParameterError, SongError
from seqagg.kernels.segments import segment_max, segment_mean, segment_sum, segment_votes
from tests import reference
from tests.conftest import frames_of, integer_labels, order_free_songs

Floats = npt.NDArray[np.float64]
Rule = type[Aggregator]

RULES: list[Rule] = [MajorityVote, MeanProbability, MeanLogOdds]

every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)


def probability_songs(*songs: Any, columns: Any = ("blues", "jazz", "metal", "rock")) -> Songs:
    return Songs.from_arrays(songs, columns=columns, kind="probability")


def log_odds_songs() -> st.SearchStrategy[list[Floats]]:
    """One to four songs of one to six frames and three to five columns."""

    def of_width(n_columns: int) -> st.SearchStrategy[list[Floats]]:
        shape = st.tuples(st.integers(1, 6), st.just(n_columns))
        numbers = st.floats(-20, 20, width=32)
        return st.lists(hnp.arrays(np.float32, shape, elements=numbers), min_size=1, max_size=4)

    return st.integers(3, 5).flatmap(of_width)


def fitted(rule: Rule, songs: list[Floats]) -> Aggregator:
    """Without labels nothing is calibrated: the probabilities are the rule's own."""
    columns = [f"c{k}" for k in range(songs[0].shape[1])]
    return rule().fit(Songs.from_arrays(songs, columns=columns))


def decision_by_loop(rule: Rule, frames: Floats) -> list[float]:
    probabilities = [[reference.logistic(float(z)) for z in frame] for frame in frames]
    if rule is MajorityVote:
        return reference.vote_shares(frames.tolist())
    if rule is MeanProbability:
        return reference.mean_over_frames(probabilities)
    return [reference.logistic(z) for z in reference.mean_over_frames(frames.tolist())]


class TestWorkedExample:
    """Five frames of four genres, by hand."""

    FRAMES = (
        (0.5, 0.2, 0.3, 0.9),
        (0.9, 0.2, 0.3, 0.3),
        (0.5, 0.2, 0.3, 0.7),
        (0.1, 0.2, 0.3, 0.5),
        (0.9, 0.2, 0.3, 0.4),
    )
    COLUMNS = ("blues", "jazz", "metal", "rock")
    # blues in log-odds: 0, log 9, 0, -log 9, log 9; their mean is 0.4394, of probability 0.6081.
    # rock: log 9, log(3/7), log(7/3), 0, log(2/3); their mean is 0.3584, of probability 0.5886.
    EXPECTED = (
        (MajorityVote, (0.4, 0.0, 0.0, 0.6), "rock"),
        (MeanProbability, (0.58, 0.2, 0.3, 0.56), "blues"),
        (MeanLogOdds, (0.6081, 0.2, 0.3, 0.5886), "blues"),
    )

    @pytest.mark.parametrize(("rule", "decision", "label"), EXPECTED)
    def test_decision_and_label(self, rule: Rule, decision: tuple[float, ...], label: str) -> None:
        songs = probability_songs(self.FRAMES)
        model = rule().fit(songs)
        assert model.classes_.tolist() == list(self.COLUMNS)
        assert_allclose(model.decision_function(songs), [decision], atol=5e-5)
        assert model.predict(songs).tolist() == [label]

    @pytest.mark.parametrize(("rule", "decision", "label"), EXPECTED)
    @pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
    def test_names_follow_the_columns(
        self, rule: Rule, decision: tuple[float, ...], label: str, order: tuple[int, ...]
    ) -> None:
        frames = np.array(self.FRAMES)[:, list(order)]
        songs = probability_songs(frames, columns=[self.COLUMNS[k] for k in order])
        model = rule().fit(songs)
        by_name = dict(zip(model.classes_, model.decision_function(songs)[0], strict=True))
        for name, expected in zip(self.COLUMNS, decision, strict=True):
            assert by_name[name] == pytest.approx(expected, abs=5e-5)
        assert model.predict(songs).tolist() == [label]

    @pytest.mark.parametrize(("rule", "decision", "label"), EXPECTED)
    def test_columns_in_another_order_at_prediction(
        self, rule: Rule, decision: tuple[float, ...], label: str
    ) -> None:
        model = rule().fit(probability_songs(self.FRAMES))
        frames = np.array(self.FRAMES)[:, ::-1]
        songs = probability_songs(frames, columns=self.COLUMNS[::-1])
        assert_allclose(model.decision_function(songs), [decision], atol=5e-5)
        assert model.predict(songs).tolist() == [label]

    def test_probabilities_without_labels_are_the_normalized_rule(self) -> None:
        songs = probability_songs(self.FRAMES)
        mean = np.array([0.58, 0.2, 0.3, 0.56])
        assert_allclose(
            MeanProbability().fit(songs).predict_proba(songs), [mean / mean.sum()], rtol=1e-6
        )
        # One more vote, shared out as the mean shares it: 2.58, 0.2, 0.3 and 3.56 votes.
        votes = np.array([2.58, 0.2, 0.3, 3.56])
        assert_allclose(
            MajorityVote().fit(songs).predict_proba(songs), [votes / votes.sum()], rtol=1e-6
        )


class TestFourDefects:
    """Of the widely copied example (section 2 of the design)."""

    @every_rule
    def test_the_average_runs_over_frames(self, rule: Rule) -> None:
        # Square, so that the wrong axis has the right shape. Over classes, frame 0 would win.
        frames = [[0.6, 0.4, 0.9], [0.1, 0.2, 0.3], [0.1, 0.2, 0.3]]
        songs = probability_songs(frames, columns=("jig", "reel", "waltz"))
        assert rule().fit(songs).predict(songs).tolist() == ["waltz"]

    @every_rule
    def test_label_names_are_not_sorted_behind_the_columns(self, rule: Rule) -> None:
        songs = probability_songs([[0.9, 0.1]], [[0.2, 0.8]], columns=("rock", "blues"))
        assert rule().fit(songs, ["rock", "blues"]).predict(songs).tolist() == ["rock", "blues"]

    @every_rule
    def test_a_class_without_a_vote_keeps_its_place(self, rule: Rule) -> None:
        songs = probability_songs([[0.2, 0.1, 0.3, 0.9]] * 3, [[0.9, 0.2, 0.1, 0.3]])
        model = rule().fit(songs, ["rock", "blues"])
        assert model.classes_.tolist() == ["blues", "jazz", "metal", "rock"]
        proba = model.predict_proba(songs)
        assert proba.shape == (2, 4)
        assert (proba > 0).all()
        assert model.predict(songs).tolist() == ["rock", "blues"]

    @every_rule
    def test_certainty_is_not_infinite(self, rule: Rule) -> None:
        songs = probability_songs([[1, 0, 0, 0], [0.2, 0.5, 0.2, 0.1]], [[0, 1, 0, 0]])
        model = rule().fit(songs, ["blues", "jazz"])
        for answer in (model.decision_function(songs), model.predict_log_proba(songs)):
            assert np.isfinite(answer).all()
        assert model.predict(songs).tolist() == ["blues", "jazz"]


class TestAgainstLoops:
    @every_rule
    @settings(max_examples=50)
    @given(songs=log_odds_songs())
    def test_decision(self, rule: Rule, songs: list[Floats]) -> None:
        expected = [decision_by_loop(rule, frames) for frames in songs]
        assert_allclose(fitted(rule, songs).decision_function(songs), expected, rtol=1e-6)

    @every_rule
    @settings(max_examples=50)
    @given(songs=log_odds_songs())
    def test_prediction(self, rule: Rule, songs: list[Floats]) -> None:
        model = fitted(rule, songs)
        for frames, label in zip(songs, model.predict(songs), strict=True):
            decision = decision_by_loop(rule, frames)
            second, first = sorted(decision)[-2:]
            if first - second > 1e-6:
                assert label == model.classes_[decision.index(first)]

    @settings(max_examples=50)
    @given(songs=log_odds_songs())
    def test_probabilities_of_means(self, songs: list[Floats]) -> None:
        for rule in (MeanProbability, MeanLogOdds):
            decision = np.array([decision_by_loop(rule, frames) for frames in songs])
            expected = decision / decision.sum(axis=1, keepdims=True)
            assert_allclose(fitted(rule, songs).predict_proba(songs), expected, rtol=1e-6)

    @settings(max_examples=50)
    @given(songs=log_odds_songs())
    def test_kernels(self, songs: list[Floats]) -> None:
        values = np.concatenate(songs)
        offsets = np.cumsum([0, *map(len, songs)])
        means = [reference.mean_over_frames(frames.tolist()) for frames in songs]
        assert_allclose(segment_mean(values, offsets), means, rtol=1e-12, atol=1e-12)
        sums = [[math.fsum(column) for column in frames.T.tolist()] for frames in songs]
        assert_allclose(segment_sum(values, offsets), sums, rtol=1e-12, atol=1e-12)
        tops = [[max(column) for column in frames.T.tolist()] for frames in songs]
        assert_array_equal(segment_max(values, offsets), tops)
        votes = [
            [share * len(frames) for share in reference.vote_shares(frames.tolist())]
            for frames in songs
        ]
        assert_allclose(segment_votes(values, offsets), votes, rtol=1e-12)

    @pytest.mark.parametrize("kernel", [segment_sum, segment_mean, segment_max, segment_votes])
    def test_kernels_of_no_song(self, kernel: Any) -> None:
        assert kernel(np.empty((0, 3), np.float32), np.array([0])).shape == (0, 3)

    @every_rule
    def test_a_song_longer_than_any_buffer_is_its_own(self, rule: Rule) -> None:
        rng = np.random.default_rng(0)
        songs = [rng.normal(size=(n, 3)) for n in (1, 20_000, 3, 8192)]
        model = fitted(rule, songs)
        together = model.decision_function(songs)
        alone = np.concatenate([model.decision_function([frames]) for frames in songs])
        assert_array_equal(together, alone)


class TestMajorityTies:
    def test_equal_votes_are_decided_by_the_mean_probability(self) -> None:
        songs = probability_songs([[0.6, 0.5], [0.1, 0.9]], columns=("jig", "reel"))
        model = MajorityVote().fit(songs)
        # 0.35 against 0.7; with two classes the decision is the difference of the shares.
        assert_array_equal(model.decision_function(songs), [0])
        assert model.predict(songs).tolist() == ["reel"]

    def test_equal_highest_columns_share_a_vote(self) -> None:
        songs = probability_songs([[0.5, 0.5, 0.1], [0.1, 0.7, 0.2]], columns=("a", "b", "c"))
        model = MajorityVote().fit(songs)
        assert_array_equal(model.decision_function(songs), [[0.25, 0.75, 0]])

    def test_the_mean_decides_between_equal_votes_only(self) -> None:
        """Two votes are more than five thirds, however high the mean of the others."""
        frames = [[0.9, 0.8, 0.8, 0.8]] * 2 + [[0.0, 1.0, 1.0, 1.0]] * 5
        songs = probability_songs(frames)
        model = MajorityVote().fit(songs)
        assert_allclose(model.decision_function(songs), [[2 / 7, 5 / 21, 5 / 21, 5 / 21]])
        assert model.predict(songs).tolist() == ["blues"]


class TestTwoClasses:
    @every_rule
    def test_the_decision_is_that_of_the_second_less_that_of_the_first(self, rule: Rule) -> None:
        rng = np.random.default_rng(0)
        songs = [rng.normal(size=(n, 2)) for n in (3, 4)]
        expected = [np.diff(decision_by_loop(rule, frames))[0] for frames in songs]
        model = rule().fit(Songs.from_arrays(songs, columns=["jig", "reel"]))
        assert_allclose(model.decision_function(songs), expected, atol=1e-6)
        assert model.predict_proba(songs).shape == (2, 2)


class TestCalibration:
    def overconfident(self) -> tuple[Songs, npt.NDArray[np.int64]]:
        """Log-odds ten times as large as they should be."""
        songs = order_free_songs(60, columns=("blues", "jazz", "metal"), gap=0.5)
        songs = songs.replace(values=10 * songs.values)
        return songs, integer_labels(songs)

    def loss(self, log_proba: Floats, y: npt.NDArray[np.int64]) -> float:
        return -math.fsum(row[k] for row, k in zip(log_proba, y, strict=True)) / len(y)

    @pytest.mark.parametrize("rule", RULES[1:], ids=lambda rule: rule.__name__)
    def test_no_other_temperature_is_much_likelier(self, rule: Rule) -> None:
        songs, y = self.overconfident()
        own = rule().fit(songs.replace(labels=None)).predict_log_proba(songs)
        calibrated = self.loss(rule().fit(songs).predict_log_proba(songs), y)
        by_hand = []
        for beta in np.geomspace(0.001, 100, 400):
            log_proba = [beta * row - reference.log_sum_exp(beta * row) for row in own]
            by_hand.append(self.loss(np.array(log_proba), y))
        # The prior on the temperature is worth one of the 60 songs.
        assert min(by_hand) - 1e-9 <= calibrated <= min(by_hand) + 0.02

    def test_no_other_weight_of_the_shares_is_much_likelier(self) -> None:
        songs, y = self.overconfident()
        own = MajorityVote().fit(songs.replace(labels=None)).predict_log_proba(songs)
        calibrated = self.loss(MajorityVote().fit(songs).predict_log_proba(songs), y)
        by_hand, by_temperature = [], []
        for beta in np.geomspace(0.01, 10, 40):
            for weight in np.linspace(-2, 20, 45):
                rows = [beta * (row + weight * np.exp(row)) for row in own]
                log_proba = [row - reference.log_sum_exp(row) for row in rows]
                by_hand.append(self.loss(np.array(log_proba), y))
                if weight == 0:
                    by_temperature.append(by_hand[-1])
        # Shares count by a power of theirs, and the priors are worth two of the 60 songs.
        assert calibrated < min(by_temperature) - 0.004
        assert abs(calibrated - min(by_hand)) < 0.01

    def test_the_shares_leave_the_order_of_votes(self) -> None:
        rng = np.random.default_rng(0)
        log_shares = np.log(rng.dirichlet(np.full(4, 0.3), size=2000))
        log_shares[::2, 1] = log_shares[::2, 0] + 1e-6
        for power in (0.1, 1.0, 8.0):
            mixed = Certainty(1.0, LEAST_WEIGHT / power, power).of(log_shares)
            assert_array_equal(np.argsort(mixed, axis=1), np.argsort(log_shares, axis=1))

    @pytest.mark.parametrize("shape", [[-1.0, 2.5], [1.0, 0.0], [np.nan, 1.0], [1.0], [1e300, 1.0]])
    def test_a_file_that_would_turn_the_order_round(self, shape: list[float]) -> None:
        songs, _ = self.overconfident()
        model = MajorityVote().fit(songs)
        header, arrays = pack(model)
        with pytest.raises(ModelFileError, match=r"share_weight|finite"):
            unpack(header, arrays | {"state.share_weight": np.array(shape)})

    def test_overconfidence_is_taken_back(self) -> None:
        songs, y = self.overconfident()
        own = MeanLogOdds().fit(songs.replace(labels=None)).predict_log_proba(songs)
        model = MeanLogOdds().fit(songs)
        assert model.inverse_temperature_ < 0.8
        assert self.loss(model.predict_log_proba(songs), y) < self.loss(own, y) - 0.1

    @every_rule
    def test_labels_change_neither_prediction_nor_decision(self, rule: Rule) -> None:
        songs, _ = self.overconfident()
        with_labels, without = rule().fit(songs), rule().fit(songs.replace(labels=None))
        assert without.inverse_temperature_ == 1
        assert_array_equal(with_labels.predict(songs), without.predict(songs))
        assert_array_equal(with_labels.decision_function(songs), without.decision_function(songs))

    @every_rule
    def test_the_prior_counts_each_class_once_more(self, rule: Rule) -> None:
        songs = probability_songs(*[[[0.1, 0.2, 0.3, 0.4]]] * 3)
        model = rule().fit(songs, ["jazz", "jazz", "rock"])
        # 0 + 1, 2 + 1, 0 + 1 and 1 + 1 of 3 + 4.
        assert_allclose(model.class_prior_, np.array([1, 3, 1, 2]) / 7, rtol=1e-15)


class TestClasses:
    @every_rule
    def test_integers_without_names_are_positions_of_columns(self, rule: Rule) -> None:
        songs = [[[0.0, 3.0, 0.0]], [[0.0, 0.0, 3.0]]]
        model = rule().fit(songs, [1, 2])
        assert model.classes_.tolist() == [0, 1, 2]
        assert model.predict(songs).tolist() == [1, 2]

    @every_rule
    def test_as_many_labels_as_columns_without_names_are_the_sorted_labels(
        self, rule: Rule
    ) -> None:
        songs = [[[3.0, 0.0]], [[0.0, 3.0]]]
        assert rule().fit(songs, ["jig", "reel"]).predict(songs).tolist() == ["jig", "reel"]
        assert rule().fit(songs, [10, 20]).predict(songs).tolist() == [10, 20]
        assert rule().fit(songs, [False, True]).predict(songs).tolist() == [False, True]

    @every_rule
    def test_integers_that_are_names_of_columns(self, rule: Rule) -> None:
        songs = Songs.from_arrays([[[3.0, 0.0, 0.0]], [[0.0, 0.0, 3.0]]], columns=["7", "10", "8"])
        model = rule().fit(songs, [7, 8])
        assert model.classes_.tolist() == [7, 8, 10]
        assert model.predict(songs).tolist() == [7, 8]

    def test_large_labels_are_not_cut(self) -> None:
        songs = [[[3.0, 0.0]], [[0.0, 3.0]]]
        y = np.array([200, 2**40])
        assert MeanLogOdds().fit(songs, y).predict(songs).tolist() == [200, 2**40]

    @every_rule
    def test_names_given_as_numpy_or_pandas(self, rule: Rule) -> None:
        pd = pytest.importorskip("pandas")
        songs = order_free_songs(9)
        assert songs.labels is not None
        expected = rule().fit(songs).predict_proba(songs)
        for y in (np.array(songs.labels.tolist()), songs.labels, pd.Series(songs.labels)):
            assert_array_equal(
                rule().fit(songs.replace(labels=None), y).predict_proba(songs), expected
            )

    @pytest.mark.parametrize(
        ("y", "message"),
        [
            (None, "labels are needed"),
            (["a"], "1 labels for 2 songs"),
            (["a", None], r"^song '1': the label is missing"),
            ([1.0, math.nan], r"^song '1': the label is missing"),
            ([1.0, -math.inf], r"^song '1': the label is infinite"),
            ([np.array(["a"]), np.array(["b"])], r"^song '0': a song takes one label"),
            (["a", 1], "mix"),
            (["a", "b"], "2 labels for 3 columns without names"),
            ([0, 3], "2 labels for 3 columns without names"),
            ([-1, 0], "2 labels for 3 columns without names"),
        ],
        ids=str,
    )
    def test_labels_that_say_nothing_are_refused(self, y: Any, message: str) -> None:
        with pytest.raises(SongError, match=message):
            MeanLogOdds().fit([[[0.0, 1.0, 2.0]], [[1.0, 0.0, 2.0]]], y)

    def test_a_label_that_is_no_column_is_named_with_its_song(self) -> None:
        songs = order_free_songs(6)
        y = ["blues", "jazz", "metal", "polka", "jazz", "metal"]
        with pytest.raises(
            SongError, match=r"^song 'song 3': label polka is the name of no column"
        ):
            MeanLogOdds().fit(songs, y)

    def test_an_unknown_parameter_value_is_refused(self) -> None:
        with pytest.raises(ParameterError, match="on_empty='skip' is none of error, prior"):
            MeanLogOdds(on_empty="skip").fit(order_free_songs(6))

    def test_other_columns_at_prediction_are_named(self) -> None:
        model = MeanLogOdds().fit(order_free_songs(6))
        with pytest.raises(SongError, match=r"^column 'metal': .*the songs lack it"):
            model.predict(order_free_songs(6, columns=("blues", "jazz", "rock")))
        more = order_free_songs(6, columns=("blues", "jazz", "metal", "rock"))
        with pytest.raises(SongError, match=r"^column 'rock': .*fitted without this column"):
            model.predict(more)
        with pytest.raises(SongError, match="songs have 4 columns, not 3"):
            model.predict(frames_of(more))


@pytest.mark.parametrize("method", [MajorityVote, MeanProbability, MeanLogOdds])
@pytest.mark.parametrize("kind", ["probability", "log_odds"])
def test_threads_share_songs_and_change_no_bit(monkeypatch, method, kind):
    shared = []

    class Pool(averages.ThreadPoolExecutor):
        def map(self, *args, **kwargs):
            shared.append(self._max_workers)
            return super().map(*args, **kwargs)

    monkeypatch.setattr(averages, "_BYTES_A_THREAD", 100)
    monkeypatch.setattr(averages, "ThreadPoolExecutor", Pool)
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 40, 30)
    values = rng.random((lengths.sum(), 3), dtype=np.float32)
    songs = Songs(
        values,
        np.concatenate([[0], np.cumsum(lengths)]),
        kind=kind,
        columns=["a", "b", "c"],
        labels=["abc"[i % 3] for i in range(30)],
    )
    alone = method().fit(songs).predict_proba(songs)
    assert not shared
    for n_jobs in (2, 5):
        together = method(n_jobs=n_jobs).fit(songs)
        assert_array_equal(together.predict_proba(songs), alone)
        assert_array_equal(together.predict_proba(songs[:1]), alone[:1])
    assert {2, 5} <= set(shared)


def test_averages_know_how_many_threads_there_may_be():
    with pytest.raises(ParameterError, match="n_jobs=0"):
        MeanLogOdds(n_jobs=0).fit([[[1.0, 2.0]]], ["a"])
