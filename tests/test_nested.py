"""Nested splits: who may see what."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numpy.testing import assert_array_equal
from sklearn.linear_model import LogisticRegression

from seqagg import Songs
from seqagg.errors import ParameterError, SongError
from seqagg.nested import NestedFold, nested_folds

Ints = npt.NDArray[np.int64]

N = 36
LABELS = np.array(["jig", "reel", "waltz"] * 12)
GROUPS = np.array([f"artist {i // 2 % 9}" for i in range(N)])


def groups_of(songs: Ints) -> set[str]:
    return set(GROUPS[songs].tolist())


def recording(calls: list[tuple[set[int], set[int]]]) -> Any:
    """A frame model that only writes down what it was trained on and what it scored."""

    def score(learn: Ints, held: Ints) -> Songs:
        calls.append((set(learn.tolist()), set(held.tolist())))
        values = [[float(song), float(len(calls))] for song in held]
        return Songs(values, np.arange(len(held) + 1), ids=[f"song {i}" for i in held])

    return score


class TestFolds:
    def test_three_kinds_of_songs_share_no_group(self) -> None:
        folds = nested_folds(LABELS, GROUPS, n_outer=3, n_inner=4)
        assert sorted(np.concatenate([fold.test for fold in folds]).tolist()) == list(range(N))
        for fold in folds:
            assert sorted([*fold.train.tolist(), *fold.test.tolist()]) == list(range(N))
            held = np.concatenate([held for _, held in fold.inner])
            assert sorted(held.tolist()) == sorted(fold.train.tolist())
            for learn, held in fold.inner:
                assert set(learn.tolist()) | set(held.tolist()) == set(fold.train.tolist())
                assert groups_of(learn).isdisjoint(groups_of(held))
                assert groups_of(fold.test).isdisjoint(groups_of(learn) | groups_of(held))

    def test_an_indicator_and_songs_without_groups(self) -> None:
        indicator = np.random.default_rng(0).integers(0, 2, (N, 4))
        folds = nested_folds(indicator, n_outer=2, n_inner=2)
        assert [len(fold.test) for fold in folds] == [18, 18]

    def test_seeds(self) -> None:
        one, same, other = (nested_folds(LABELS, seed=seed)[0].test for seed in (0, 0, 1))
        assert_array_equal(one, same)
        assert set(one.tolist()) != set(other.tolist())

    @pytest.mark.parametrize(
        ("labels", "groups", "sizes", "message"),
        [
            (LABELS, ["one"] * N, {}, "1 groups of songs are too few to be split twice"),
            (LABELS, ["a", "b"] * 18, {}, "2 groups of songs are too few to be split twice"),
            (LABELS, ["a", "b"], {}, "2 groups for 36 labels"),
            (LABELS, None, {"n_inner": 1}, "must be 2 or more"),
        ],
    )
    def test_what_cannot_be_split(
        self, labels: Any, groups: Any, sizes: dict[str, int], message: str
    ) -> None:
        with pytest.raises(ParameterError, match=message):
            nested_folds(labels, groups, **sizes)


class TestScore:
    def test_no_model_scores_what_it_was_trained_on_and_none_sees_the_test_songs(self) -> None:
        for fold in nested_folds(LABELS, GROUPS, n_outer=3, n_inner=3):
            calls: list[tuple[set[int], set[int]]] = []
            train, test = fold.score(recording(calls))
            assert len(calls) == len(fold.inner) + 1
            for learn, held in calls:
                assert learn.isdisjoint(held)
                assert learn.isdisjoint(fold.test.tolist())
            assert calls[-1] == (set(fold.train.tolist()), set(fold.test.tolist()))
            assert train.ids.tolist() == [f"song {i}" for i in sorted(fold.train)]
            assert test.ids.tolist() == [f"song {i}" for i in fold.test]
            assert train.fold is not None
            # The recording wrote the number of its call beside each song.
            assert_array_equal(train.values[:, 1], train.fold + 1)
            assert_array_equal(train.values[:, 0], sorted(fold.train))

    def test_a_model_that_loses_a_song(self) -> None:
        def score(learn: Ints, held: Ints) -> Songs:
            return Songs(np.zeros((len(held) - 1, 2)), np.arange(len(held)))

        (fold, *_) = nested_folds(LABELS)
        with pytest.raises(SongError, match="asked to score"):
            fold.score(score)

    def test_with_a_classifier_that_learns_songs_by_heart(self) -> None:
        """Features say nothing; in fold they would be right on every frame."""
        rng = np.random.default_rng(0)
        features = rng.normal(size=(N, 200))

        def score(learn: Ints, held: Ints) -> Songs:
            model = LogisticRegression(C=1e3).fit(features[learn], LABELS[learn])
            return Songs(
                model.decision_function(features[held]),
                np.arange(len(held) + 1),
                ids=[str(i) for i in held],
                columns=model.classes_.tolist(),
                kind="logit",
                labels=LABELS[held],
            )

        fold: NestedFold = nested_folds(LABELS)[0]
        train, _ = fold.score(score)
        assert train.labels is not None
        guessed = np.array(train.columns)[train.values.argmax(axis=1)]
        assert (guessed == train.labels).mean() < 0.7
        in_fold = score(fold.train, fold.train)
        assert (np.array(in_fold.columns)[in_fold.values.argmax(axis=1)] == in_fold.labels).all()
