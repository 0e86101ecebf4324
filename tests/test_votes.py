"""Votes of models that have not seen a song, and what training them gains."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import log_loss

from seqagg.aggregators.gain import judged, training_helps
from seqagg.aggregators.training import Record
from seqagg.aggregators.votes import Votes
from seqagg.calibration import calibrated_losses
from seqagg.folds import grouped_folds

Floats = npt.NDArray[np.float64]


def votes_of(scores: Floats, n_models: int = 10) -> Votes:
    return Votes(scores, np.ones(scores.shape[:2], dtype=bool), n_models)


class TestVotes:
    def test_mean_of_those_given(self) -> None:
        votes = votes_of(np.array([[[1.0, 3.0], [5.0, 7.0]], [[3.0, 5.0], [0.0, 0.0]]]))
        votes.given[1, 1] = False
        assert_array_equal(votes.mean, [[2, 4], [5, 7]])
        assert votes.heard.all()
        votes.given[0, 1] = False
        assert_array_equal(votes.heard, [True, False])

    @pytest.mark.parametrize(("n_votes", "n_models"), [(2, 10), (2, 4), (3, 15), (5, 5)])
    def test_share_of_a_loss_that_falls_with_the_models(self, n_votes: int, n_models: int) -> None:
        share = votes_of(np.zeros((n_votes, 1, 2)), n_models).share
        single, mean, whole = (0.7 + 0.3 / m for m in (1, n_votes, n_models))
        assert (1 + share) * mean - share * single == pytest.approx(whole)

    def test_no_share_of_what_cannot_be_told(self) -> None:
        assert votes_of(np.zeros((1, 3, 2))).share == 0
        some = votes_of(np.zeros((2, 3, 2)))
        some.given[1, 2] = False
        assert some.share == 0

    def test_loss_of_all_models_from_two(self) -> None:
        """Models with errors of their own; most of what eight more gain is foreseen."""
        rng = np.random.default_rng(0)
        y = rng.integers(3, size=20_000)
        models = np.eye(3)[y] + rng.normal(size=(10, len(y), 3))

        def loss(scores: Floats) -> float:
            p = np.exp(scores)
            return float(log_loss(y, p / p.sum(axis=1, keepdims=True)))

        share = votes_of(models[:2]).share
        single = (loss(models[0]) + loss(models[1])) / 2
        pair, whole = loss(models[:2].mean(axis=0)), loss(models.mean(axis=0))
        foreseen = (1 + share) * pair - share * single
        assert abs(foreseen - whole) < 0.3 * (pair - whole)


def oracle(records: list[Record], rounds: list[list[npt.NDArray[np.int64]]], y: Floats) -> bool:
    """Whether networks stopped where the others of their round are best have gained."""
    first, best = np.zeros((2, len(y), 3))
    counts = np.zeros((len(y), 1))
    place = 0
    for held_by in rounds:
        own = records[place : place + len(held_by)]
        place += len(held_by)
        for i, held in enumerate(held_by):
            others = [
                sum(
                    own[j].history[e]["held_out"] * len(held_by[j])
                    for j in range(len(own))
                    if j != i
                )
                for e in range(min(len(record.history) for record in own))
            ]
            first[held] += own[i].scores[0]
            best[held] += own[i].scores[others.index(min(others))]
            counts[held] += 1
    was, now = (calibrated_losses(x / counts, y).mean() for x in (first, best))
    return bool(now < was)


class TestTrainingHelps:
    """Networks whose scores on held-out songs are made up, epoch by epoch."""

    def make(
        self, gain: float, seed: int, noise: float = 1.0, n: int = 60, n_epochs: int = 12
    ) -> tuple[Votes, Votes, list[Record], list[list[npt.NDArray[np.int64]]], Floats]:
        """The truth counts for more from epoch to epoch; besides, there is noise."""
        rng = np.random.default_rng(seed)
        y = rng.integers(3, size=n)
        rounds = [[held for _, held in grouped_folds(y, np.arange(n), 4, r)] for r in range(2)]
        start = rng.normal(size=(n, 3)) + np.eye(3)[y]
        before, after = np.zeros((2, 2, n, 3))
        records = []
        for r, folds in enumerate(rounds):
            for held in folds:
                scores = [
                    start[held]
                    + (epoch > 0) * noise * rng.normal(size=(len(held), 3))
                    + gain * epoch / n_epochs * np.eye(3)[y[held]]
                    for epoch in range(n_epochs - len(records) % 3)
                ]
                losses = [float(calibrated_losses(s, y[held]).mean()) for s in scores]
                history = [{"epoch": float(e), "held_out": x} for e, x in enumerate(losses)]
                records.append(Record(history, [s.astype(np.float32) for s in scores]))
                before[r, held] = scores[0]
                after[r, held] = scores[int(np.argmin(losses))]
        return votes_of(before, 8), votes_of(after, 8), records, rounds, y

    def ask(self, gain: float, seed: int, **options: float) -> bool:
        before, after, records, rounds, y = self.make(gain, seed, **options)
        folds = [[(np.arange(0), held) for held in r] for r in rounds]
        return training_helps(before, after, records, folds, y, np.arange(len(y)))

    def test_what_all_epochs_gain(self) -> None:
        assert all(self.ask(3.0, seed) for seed in range(10))

    def test_the_best_epoch_by_chance(self) -> None:
        """With a fresh draw in each epoch the best of them looks better than the first."""
        looks_better, helps = 0, 0
        for seed in range(20):
            before, after, _, _, y = self.make(0.0, seed)
            was, now = (calibrated_losses(v.mean, y).mean() for v in (before, after))
            looks_better += bool(now < was)
            helps += self.ask(0.0, seed)
        assert looks_better == 20
        assert helps < 6

    def test_the_epoch_is_the_others_choice(self) -> None:
        found = []
        for seed in range(12):
            before, after, records, rounds, y = self.make(0.3, seed, noise=0.7)
            expected = oracle(records, rounds, y)
            was, now = (calibrated_losses(v.mean, y) for v in (before, after))
            gain = was - now
            clear = gain.mean() > gain.std() / np.sqrt(len(y))
            assert self.ask(0.3, seed, noise=0.7) == (expected and bool(clear))
            found.append(expected)
        assert 2 < sum(found) < 10

    def test_without_songs_held_out_nothing_speaks_against_it(self) -> None:
        votes = Votes(np.zeros((1, 5, 3)), np.zeros((1, 5), dtype=bool), 1)
        nothing = [[(np.arange(5), np.arange(0))]]
        assert training_helps(votes, votes, [], nothing, np.zeros(5, int), np.arange(5))

    def test_what_cannot_be_told_from_chance(self) -> None:
        before, _, records, rounds, y = self.make(3.0, 0)
        folds = [[(np.arange(0), held) for held in r] for r in rounds]
        assert not training_helps(before, before, records, folds, y, np.arange(len(y)))


def test_songs_that_are_judged() -> None:
    held = np.arange(0, 30, 3)
    assert_array_equal(judged(held), held)
    many = np.arange(5000) * 2
    some = judged(many)
    assert len(set(some.tolist())) == 1000
    assert (some[0], some[-1]) == (0, 9998)
    assert_allclose(np.diff(some), 10, atol=2)
