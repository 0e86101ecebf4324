"""Abstention and label sets: what they promise must hold on songs never seen."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from scipy.special import logit
from sklearn.metrics import f1_score

import seqagg
from seqagg.decision import (
    EarlyRule,
    abstain,
    best_thresholds,
    doubt_limit,
    doubts_of,
    early_decisions,
    early_rule,
    label_sets,
)
from seqagg.errors import ParameterError


def noisy_songs(n: int, seed: int) -> tuple[seqagg.Songs, np.ndarray]:
    """Songs of three classes whose frames are often wrong."""
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=n)
    arrays = [rng.normal(size=(rng.integers(3, 9), 3)) * 2 + 1.2 * np.eye(3)[k] for k in y]
    labels = np.array(["air", "jig", "reel"])[y]
    return seqagg.Songs.from_arrays(arrays, columns=["air", "jig", "reel"], labels=labels), labels


def test_abstain_by_hand():
    probability = np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.4, 0.35, 0.25]])
    assert abstain(np.array(["a", "b", "a"]), probability, 0.5).tolist() == ["a", "b", None]
    assert abstain(np.array([3, 1, 3]), probability, 0.9).tolist() == [None, None, None]


def test_the_limit_is_the_rank_of_the_theorem():
    doubts = np.arange(1, 10) / 10  # nine songs: with the new one, ten equally likely ranks
    assert doubt_limit(doubts, 0.1) == 0.9
    assert doubt_limit(doubts, 0.2) == 0.8
    assert doubt_limit(doubts, 0.5) == 0.5
    assert doubt_limit(doubts, 0.05) == np.inf  # nine songs cannot promise it
    assert doubt_limit(np.empty(0), 0.5) == np.inf


def test_sets_by_hand():
    probability = np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.34, 0.33, 0.33]])
    found = label_sets(probability, 0.7)
    assert found.tolist() == [[True, True, False], [False, True, False], [True, True, True]]
    assert label_sets(probability, 0.1).sum(axis=1).tolist() == [1, 1, 1]
    assert label_sets(probability, np.inf).all()


@pytest.mark.parametrize("method", [seqagg.MeanLogOdds(), seqagg.HMMAggregator(n_states=1)])
def test_coverage_is_what_was_promised(method):
    missed = {0.05: [], 0.2: []}
    for seed in range(20):
        train, _ = noisy_songs(150, seed)
        test, labels = noisy_songs(300, 1000 + seed)
        method.fit(train)
        for error_rate, own in missed.items():
            sets = method.predict_set(test, error_rate=error_rate)
            own.append(~sets[np.arange(len(labels)), np.searchsorted(method.classes_, labels)])
            assert sets.any(axis=1).all()
    for error_rate, own in missed.items():
        # 20 training sets are 20 draws of the coverage; its deviation over them is near
        # sqrt(e (1 - e) / 150).
        error = np.sqrt(error_rate * (1 - error_rate) / 150 / 20)
        assert np.mean(own) < error_rate + 4 * error
        # The likeliest class is always in, so a promise weaker than the accuracy is kept too well.
        assert np.mean(own) > 0


def test_predict_withholds_below_the_threshold():
    train, _ = noisy_songs(60, 0)
    test, labels = noisy_songs(200, 1)
    model = seqagg.MeanLogOdds().fit(train)
    every, some = model.predict(test), model.predict(test, abstain_below=0.8)
    held = model.predict_proba(test).max(axis=1) < 0.8
    assert 0 < held.sum() < len(test)
    assert all(answer is None for answer in some[held])
    assert (some[~held] == every[~held]).all()
    assert (some[~held] == labels[~held]).mean() > (every == labels).mean()


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan])
def test_thresholds_outside_their_range(value):
    model = seqagg.MeanLogOdds().fit(noisy_songs(20, 0)[0])
    with pytest.raises(ParameterError, match="abstain_below"):
        model.predict(noisy_songs(5, 1)[0], abstain_below=value)
    with pytest.raises(ParameterError, match="error_rate"):
        model.predict_set(noisy_songs(5, 1)[0], error_rate=value)


def test_a_loaded_model_makes_the_same_sets(tmp_path):
    train, test = noisy_songs(60, 0)[0], noisy_songs(50, 1)[0]
    model = seqagg.MeanLogOdds().fit(train)
    model.save(tmp_path / "m.safetensors")
    loaded = seqagg.load(tmp_path / "m.safetensors")
    assert (loaded.predict_set(test) == model.predict_set(test)).all()


# Several labels per song.


def songs_of_several(n: int, seed: int) -> tuple[seqagg.Songs, np.ndarray]:
    """Songs of three classes, none, one or several of them, whose frames are often wrong."""
    rng = np.random.default_rng(seed)
    y = (rng.random((n, 3)) < [0.5, 0.3, 0.15]).astype(np.int64)
    arrays = [rng.normal(size=(rng.integers(3, 9), 3)) * 2 + 2.4 * row - 2 for row in y]
    return seqagg.Songs.from_arrays(arrays), y


@pytest.mark.parametrize("seed", range(8))
def test_no_cut_has_a_higher_f1_than_the_threshold_before_it_is_drawn_to_a_half(seed):
    rng = np.random.default_rng(seed)
    y = (rng.random((40, 2)) < [0.4, 0.1]).astype(np.int64)
    scores = np.round(rng.normal(-1, 1, (40, 2)) + y, seed % 3)  # with and without equal songs
    least = np.minimum(y.sum(axis=0), 40 - y.sum(axis=0))
    cuts = logit(best_thresholds(scores, y)) * (least + 10) / np.maximum(least, 1)
    for k in np.flatnonzero(least):
        found = f1_score(y[:, k], scores[:, k] >= cuts[k] - 1e-9)
        assert found == max(f1_score(y[:, k], scores[:, k] >= cut) for cut in scores[:, k])


def test_a_threshold_stands_halfway_between_two_songs_and_is_drawn_to_a_half():
    scores = np.array([[-3.0], [-2.5], [-1.5], [-1.0]] * 5)
    y = np.array([[0], [0], [1], [1]] * 5)
    assert logit(best_thresholds(scores, y))[0] == pytest.approx(-2.0 * 10 / 20)


def test_few_songs_move_a_threshold_little():
    """One lucky song of a rare class must not open the door to all."""
    scores = np.linspace(-9, -5, 500)[:, None]
    y = np.zeros((500, 1), np.int64)
    y[100] = 1
    assert 0.3 < best_thresholds(scores, y)[0] < 0.5


def test_a_threshold_where_nothing_can_be_learnt():
    scores = np.random.default_rng(0).normal(size=(9, 2))
    assert best_thresholds(scores, np.tile([0, 1], (9, 1))).tolist() == [0.5, 0.5]
    assert best_thresholds(np.empty((0, 2)), np.empty((0, 2), np.int64)).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_threshold_of_songs_far_out_is_no_certainty(sign):
    scores = np.array([[1e4 * sign], [1e4 * sign + 1], [1e4 * sign + 2]] * 50)
    (threshold,) = best_thresholds(scores, np.array([[0], [1], [1]] * 50))
    assert 0 < threshold < 1
    assert abs(threshold - (sign > 0)) < 1e-15


def test_a_doubt_is_that_of_the_least_probable_label():
    log_odds = logit(np.array([[0.9, 0.6, 0.1], [0.2, 0.6, 0.1], [0.9, 0.9, 0.9]]))
    y = np.array([[1, 1, 0], [0, 0, 1], [0, 0, 0]])
    assert doubts_of(log_odds, y).tolist() == pytest.approx([0.4, 0.9, 0])


def test_a_song_may_go_without_a_label():
    probability = np.array([[0.5, 0.3], [0.1, 0.05]])
    found = label_sets(probability, 0.7, never_empty=False)
    assert found.tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("method", [seqagg.MeanLogOdds(), seqagg.StackingAggregator()])
def test_sets_hold_all_labels_as_often_as_was_promised(method):
    missed = {0.05: [], 0.2: []}
    for seed in range(20):
        test, y = songs_of_several(300, 1000 + seed)
        method.fit(*songs_of_several(150, seed))
        for error_rate, own in missed.items():
            sets = method.predict_set(test, error_rate=error_rate)
            own.append((~sets & (y == 1)).any(axis=1))
    for error_rate, own in missed.items():
        error = np.sqrt(error_rate * (1 - error_rate) / 150 / 20)
        assert error_rate / 2 < np.mean(own) < error_rate + 4 * error


def test_the_set_of_a_song_without_a_label_may_be_empty():
    model = seqagg.MeanLogOdds().fit(*songs_of_several(100, 0))
    silent = [np.full((5, 3), -9.0)]
    assert not model.predict_set(silent, error_rate=0.2).any()


def test_several_labels_are_not_withheld_one_by_one():
    model = seqagg.MeanLogOdds().fit(*songs_of_several(20, 0))
    with pytest.raises(ParameterError, match="abstain_below is for songs with one label each"):
        model.predict(songs_of_several(5, 1)[0], abstain_below=0.5)


class TestEarlyDecisions:
    """Two classes, frames that favour the right one a little; beliefs that are too sure."""

    @staticmethod
    def songs(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        log_odds = 0.8 * np.cumsum(rng.normal(0.3, 1.2, (n, 40)), axis=1)
        return 1 / (1 + np.exp(-np.abs(log_odds))), log_odds > 0

    @staticmethod
    def outcomes(beliefs: np.ndarray, right: np.ndarray, rule: EarlyRule) -> list[bool]:
        """Whether each song that is decided early is decided rightly, by a loop."""
        found = []
        for belief, is_right in zip(beliefs, right, strict=True):
            for t in range(len(belief)):
                if t + 1 >= rule.min_frames and belief[t] >= rule.threshold:
                    found.append(bool(is_right[t]))
                    break
        return found

    @pytest.mark.parametrize("error_rate", [0.1, 0.2])
    def test_the_promised_error_holds_as_often_as_promised(self, error_rate: float) -> None:
        rng = np.random.default_rng(0)
        everyone = self.songs(4000, rng)
        # A belief taken at its word would break the promise.
        at_its_word = self.outcomes(*everyone, EarlyRule(1 - error_rate))
        assert 1 - np.mean(at_its_word) > 1.3 * error_rate
        n = 150
        found = Counter(early_rule(*self.songs(200, rng), error_rate) for _ in range(n))
        broken = 0
        for rule, times in found.items():
            outcomes = self.outcomes(*everyone, rule)
            broken += times * (len(outcomes) > 0 and 1 - np.mean(outcomes) > error_rate)
        assert broken <= n * 0.1 + 3 * math.sqrt(n * 0.1 * 0.9)
        # A promise is kept as well by who never decides.
        assert found[EarlyRule()] < n / 20
        usual = found.most_common(1)[0][0]
        assert len(self.outcomes(*everyone, usual)) > 2000

    def test_how_many_songs_it_takes(self) -> None:
        """All are right: 0.9 ** n must be below 0.1 / 42, for 42 rules, which it is from 58 on."""
        for n, threshold in ((57, math.inf), (58, 1 / (1 + math.exp(-6)))):
            rule = early_rule([[1.0]] * n, [[True]] * n, 0.1)
            assert rule == (pytest.approx(threshold), 1)

    def test_confidence_costs_songs(self) -> None:
        many = [[1.0]] * 58, [[True]] * 58
        assert early_rule(*many, 0.1, confidence=0.95) == EarlyRule()
        assert early_rule(*many, 0.1, confidence=0.5).threshold < 1

    def test_songs_that_are_never_sure_are_not_counted(self) -> None:
        beliefs = [[0.6, 0.97]] * 70 + [[0.6, 0.7]] * 500
        right = [[False, True]] * 70 + [[False, False]] * 500
        rule = early_rule(beliefs, right, 0.1)
        assert 0.7 < rule.threshold <= 0.97
        assert early_decisions(beliefs, rule) == dict.fromkeys(range(70), 1)

    def test_beliefs_that_are_firm_too_soon_have_to_wait(self) -> None:
        """Always as sure as can be, but right only from the third frame on."""
        beliefs = [[1.0] * 5] * 100
        assert early_rule(beliefs, [[False, False, True, True, True]] * 100, 0.1).min_frames == 3
        assert early_rule(beliefs, [[True] * 5] * 100, 0.1).min_frames == 1

    def test_the_first_frame_that_is_sure_decides(self) -> None:
        beliefs = [[0.5, 0.8, 0.9], [0.2], [0.9, 0.1], []]
        assert early_decisions(beliefs, EarlyRule(0.8)) == {0: 1, 2: 0}
        assert early_decisions(beliefs, EarlyRule(0.8, 3)) == {0: 2}
        assert early_decisions(beliefs, EarlyRule()) == {}

    def test_no_songs_no_promise(self) -> None:
        assert early_rule([], [], 0.5) == EarlyRule()

    @pytest.mark.parametrize("value", [0, 1, -0.1, float("nan")])
    def test_rates_outside_their_range(self, value: float) -> None:
        with pytest.raises(ParameterError, match=r"error_rate=.* is not between 0 and 1"):
            early_rule([[1.0]], [[True]], value)
        with pytest.raises(ParameterError, match=r"confidence=.* is not between 0 and 1"):
            early_rule([[1.0]], [[True]], 0.1, confidence=value)
