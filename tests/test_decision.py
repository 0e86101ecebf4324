"""Abstention and label sets: what they promise must hold on songs never seen."""

from __future__ import annotations

import numpy as np
import pytest

import seqagg
from seqagg.decision import abstain, doubt_limit, label_sets
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
@pytest.mark.parametrize("error_rate", [0.05, 0.2])
def test_coverage_is_what_was_promised(method, error_rate):
    missed = []
    for seed in range(20):
        train, _ = noisy_songs(150, seed)
        test, labels = noisy_songs(300, 1000 + seed)
        sets = method.fit(train).predict_set(test, error_rate=error_rate)
        missed.append(~sets[np.arange(len(labels)), np.searchsorted(method.classes_, labels)])
    # 20 training sets are 20 draws of the coverage; its deviation over them is near
    # sqrt(e (1 - e) / 150).
    error = np.sqrt(error_rate * (1 - error_rate) / 150 / 20)
    assert np.mean(missed) < error_rate + 4 * error
    # The likeliest class is always in, so a promise weaker than the accuracy is kept too well.
    assert np.mean(missed) > 0
    assert sets.any(axis=1).all()


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
