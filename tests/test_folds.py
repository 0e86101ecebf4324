"""Folds inside the training songs, and which groups they keep whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from seqagg.aggregators.stacking import StackingAggregator
from seqagg.folds import Fold, grouped_folds
from tests.conftest import order_songs

Ints = npt.NDArray[np.int64]

SONGS_AND_GROUPS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 7)), min_size=1, max_size=40
)
"""Class and group of each song."""


def assert_partition(folds: list[Fold], n: int) -> None:
    """Every song is held out once, and learnt from in all other folds."""
    held_out = np.concatenate([held for _, held in folds])
    assert sorted(held_out.tolist()) == list(range(n))
    for learn, held in folds:
        assert len(learn) > 0
        assert len(held) > 0
        assert sorted([*learn.tolist(), *held.tolist()]) == list(range(n))


class TestGroupedFolds:
    @settings(max_examples=60, deadline=None)
    @given(songs=SONGS_AND_GROUPS, n_folds=st.integers(1, 6), seed=st.integers(0, 3))
    def test_groups_are_never_on_both_sides(
        self, songs: list[tuple[int, int]], n_folds: int, seed: int
    ) -> None:
        """Whatever the songs: few, of one class, of classes without a song. Warnings are errors."""
        y, groups = np.array(songs).T
        folds = grouped_folds(y, groups, n_folds, seed)
        if min(n_folds, len(set(groups.tolist()))) < 2:
            assert folds == []
            return
        assert 2 <= len(folds) <= n_folds
        assert_partition(folds, len(songs))
        for learn, held in folds:
            assert set(groups[learn].tolist()).isdisjoint(groups[held].tolist())

    @pytest.mark.parametrize("groups", [np.arange(60), np.arange(60) // 2])
    def test_classes_are_spread_evenly(self, groups: Ints) -> None:
        y = np.repeat([0, 1, 2], [30, 18, 12])
        for _, held in grouped_folds(y, groups, 3, seed=0):
            assert np.bincount(y[held]).tolist() == [10, 6, 4]

    def test_a_rare_class_is_held_out_once(self) -> None:
        """One song of class 2 is missing from most folds, and may be."""
        y = np.array([0, 1] * 10 + [2])
        folds = grouped_folds(y, np.arange(21), 5, seed=0)
        assert len(folds) == 5
        assert_partition(folds, 21)
        assert sum(2 in y[held] for _, held in folds) == 1

    def test_fewer_songs_of_every_class_than_folds(self) -> None:
        folds = grouped_folds(np.arange(8) // 2, np.arange(8), 4, seed=0)
        assert len(folds) == 4
        assert_partition(folds, 8)

    def test_fewer_folds_where_there_are_fewer_groups(self) -> None:
        groups = np.arange(30) // 10
        folds = grouped_folds(np.arange(30) % 3, groups, 5, seed=0)
        assert len(folds) == 3
        assert sorted(set(groups[held].tolist()) == {k} for k, (_, held) in enumerate(folds))
        assert_partition(folds, 30)

    @pytest.mark.parametrize("n", [1, 10])
    def test_one_group_leaves_nothing_to_hold_out(self, n: int) -> None:
        assert grouped_folds(np.arange(n) % 3, np.zeros(n, np.int64), 3, seed=0) == []

    def test_one_fold_is_none(self) -> None:
        assert grouped_folds(np.arange(10) % 3, np.arange(10), 1, seed=0) == []

    @pytest.mark.parametrize("groups", [np.arange(30), np.arange(30) // 2])
    def test_seeds(self, groups: Ints) -> None:
        y = np.arange(30) % 3

        def held_out(seed: int) -> list[list[int]]:
            return [held.tolist() for _, held in grouped_folds(y, groups, 3, seed)]

        assert held_out(0) == held_out(0)
        assert held_out(0) != held_out(1)

    def test_names_of_groups_do_not_matter_when_each_song_is_its_own(self) -> None:
        y = np.arange(30) % 3
        one = grouped_folds(y, np.arange(30), 3, seed=0)
        other = grouped_folds(y, np.arange(30)[::-1] + 100, 3, seed=0)
        for a, b in zip(one, other, strict=True):
            assert_array_equal(a[1], b[1])


class TestGroupsOfSongs:
    """Which groups a method keeps whole inside `fit`, told by the weights that it then finds."""

    SPEAKER = np.array([f"speaker {i // 4}" for i in range(48)])
    KEPT = (np.arange(48) // 4) % 3
    CUT = np.arange(48) % 4

    def weights(self, groups: Any = None, **fields: Any) -> list[float]:
        model = StackingAggregator(random_state=3)
        model.fit(order_songs(48).replace(**fields), groups=groups)
        return list(model.weights_)

    def test_grouped_and_ungrouped_differ(self) -> None:
        """Without this the tests below would say nothing."""
        assert self.weights(groups=self.SPEAKER) != self.weights()

    def test_groups_come_with_the_songs(self) -> None:
        assert self.weights(groups=self.SPEAKER) == self.weights(groups=self.SPEAKER)

    def test_groups_that_the_frame_classifier_kept_whole(self) -> None:
        found = self.weights_with_fold(self.KEPT)
        assert found == self.weights(groups=self.SPEAKER)

    def test_groups_that_the_frame_classifier_cut_are_not_kept(self) -> None:
        """Its averages of held-out songs have heard the speakers, so the methods may as well."""
        assert self.weights_with_fold(self.CUT) == self.weights()

    def test_explicit_groups_always_are(self) -> None:
        songs = order_songs(48).replace(groups=self.SPEAKER, fold=self.CUT)
        model = StackingAggregator(random_state=3).fit(songs, groups=self.SPEAKER)
        assert list(model.weights_) == self.weights(groups=self.SPEAKER)

    def test_songs_that_no_fold_scored_do_not_cut(self) -> None:
        fold = self.KEPT.copy()
        fold[::4] = -1
        assert self.weights_with_fold(fold) == self.weights(groups=self.SPEAKER)

    def test_a_song_without_a_group_is_its_own(self) -> None:
        """Whether it is written None or NaN."""
        some: list[Any] = self.SPEAKER.tolist()
        some[8:] = [None] * 40
        unique = [*some[:8], *(f"alone {i}" for i in range(40))]
        nan = [*some[:8], *[float("nan")] * 40]
        assert self.weights(groups=some) == self.weights(groups=unique)
        assert self.weights(groups=nan) == self.weights(groups=unique)

    def weights_with_fold(self, fold: Ints) -> list[float]:
        songs = order_songs(48).replace(groups=self.SPEAKER, fold=fold)
        return list(StackingAggregator(random_state=3).fit(songs).weights_)
