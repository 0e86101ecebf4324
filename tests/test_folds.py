"""Folds inside the training songs, and which groups they keep whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from seqagg import Songs
from seqagg.aggregators.base import Aggregator, OnEmpty
from seqagg.errors import SongError
from seqagg.folds import Fold, grouped_folds
from seqagg.kernels.segments import segment_mean
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

    @settings(max_examples=40, deadline=None)
    @given(
        songs=st.lists(
            st.tuples(*[st.integers(0, 1)] * 3, st.integers(0, 7)), min_size=1, max_size=40
        ),
        n_folds=st.integers(1, 6),
    )
    def test_several_labels_per_song(
        self, songs: list[tuple[int, int, int, int]], n_folds: int
    ) -> None:
        """Whatever the labels: on all songs, on none, songs without any."""
        y, groups = np.array(songs)[:, :3], np.array(songs)[:, 3]
        folds = grouped_folds(y, groups, n_folds, seed=0)
        if min(n_folds, len(set(groups.tolist()))) < 2:
            assert folds == []
            return
        assert_partition(folds, len(songs))
        for learn, held in folds:
            assert set(groups[learn].tolist()).isdisjoint(groups[held].tolist())

    @pytest.mark.parametrize("groups", [np.arange(60), np.arange(60) // 2])
    def test_the_rarest_of_several_labels_is_spread_evenly(self, groups: Ints) -> None:
        """Nearly all songs have the first label; 12 have the second, 6 the third, 6 have none."""
        y = np.zeros((60, 3), np.int64)
        y[6:, 0] = y[10:22, 1] = y[20:26, 2] = 1
        for _, held in grouped_folds(y, groups, 3, seed=0):
            assert y[held, 2].sum() == 2
            assert 2 <= y[held, 1].sum() <= 6
            assert (y[held].sum(axis=1) == 0).sum() == 2

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
        assert sorted(sorted(set(groups[held].tolist())) for _, held in folds) == [[0], [1], [2]]
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


class Spy(Aggregator):
    """Keeps the groups that `fit` hands to a method."""

    def __init__(self, *, on_empty: OnEmpty = "error") -> None:
        self.on_empty = on_empty

    def _fit(self, songs: Songs, y: Ints, groups: Ints) -> None:
        self.groups_ = groups

    def _log_scores(self, songs: Songs) -> npt.NDArray[np.float64]:
        return segment_mean(songs.values, songs.offsets)


class TestGroupsOfSongs:
    """Which groups a method keeps whole inside `fit`."""

    SPEAKER = np.array([f"speaker {i // 4}" for i in range(24)])
    TOGETHER = (np.arange(24) // 4).tolist()
    ALONE = np.arange(24).tolist()
    KEPT = (np.arange(24) // 4) % 3
    CUT = np.arange(24) % 4

    def groups(self, explicit: Any = None, **carried: Any) -> list[int]:
        """Groups that a method sees, when some are given to `fit` and some come with the songs."""
        return Spy().fit(order_songs(24).replace(**carried), groups=explicit).groups_.tolist()

    def test_none(self) -> None:
        assert self.groups() == self.ALONE
        assert self.groups(fold=self.KEPT) == self.ALONE

    def test_explicit(self) -> None:
        assert self.groups(self.SPEAKER) == self.TOGETHER
        assert self.groups(self.SPEAKER.tolist()) == self.TOGETHER

    def test_with_the_songs(self) -> None:
        assert self.groups(groups=self.SPEAKER) == self.TOGETHER

    def test_explicit_ones_replace_those_of_the_songs(self) -> None:
        assert self.groups(["a", "b"] * 12, groups=self.SPEAKER) == [0, 1] * 12

    def test_that_the_frame_classifier_kept_whole(self) -> None:
        assert self.groups(groups=self.SPEAKER, fold=self.KEPT) == self.TOGETHER

    def test_that_the_frame_classifier_cut(self) -> None:
        """Its averages of held-out songs have heard the speakers, so the methods may as well."""
        assert self.groups(groups=self.SPEAKER, fold=self.CUT) == self.ALONE

    def test_one_cut_group_is_enough(self) -> None:
        fold = self.KEPT.copy()
        fold[0] += 1
        assert self.groups(groups=self.SPEAKER, fold=fold) == self.ALONE

    def test_songs_that_no_fold_scored_do_not_cut(self) -> None:
        fold = self.KEPT.copy()
        fold[::4] = -1
        assert self.groups(groups=self.SPEAKER, fold=fold) == self.TOGETHER
        assert self.groups(groups=self.SPEAKER, fold=np.full(24, -1)) == self.TOGETHER

    def test_explicit_ones_are_kept_whatever_the_folds(self) -> None:
        for fold in (self.CUT, self.KEPT):
            assert self.groups(self.SPEAKER, groups=self.SPEAKER, fold=fold) == self.TOGETHER

    @pytest.mark.parametrize("nothing", [None, float("nan")])
    def test_a_song_without_a_group_is_its_own(self, nothing: Any) -> None:
        some = ["speaker 0", nothing, "speaker 0", nothing, *["speaker 1"] * 20]
        assert self.groups(some) == [0, 1, 0, 2, *[3] * 20]

    def test_songs_without_frames_take_their_groups_along(self) -> None:
        songs = order_songs(6)
        emptied = Songs.from_arrays(
            [np.empty((0, 3)) if i == 1 else array for i, array in enumerate(songs)],
            columns=songs.columns,
            labels=songs.labels,
        )
        model = Spy(on_empty="prior").fit(emptied, groups=["a", "b", "c", "c", "d", "d"])
        assert model.groups_.tolist() == [0, 2, 2, 3, 3]

    def test_as_many_as_songs(self) -> None:
        with pytest.raises(SongError, match=r"^23 groups for 24 songs"):
            self.groups(self.SPEAKER[1:])
