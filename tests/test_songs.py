from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from numpy.testing import assert_array_equal
from scipy.sparse import csr_array
from sklearn.model_selection import GroupKFold
from sklearn.utils import _safe_indexing, indexable

from seqagg import MeanLogOdds, Songs
from seqagg.errors import SongError
from seqagg.logodds import LIMIT
from seqagg.songs import all_finite, as_songs
from tests.conftest import assert_same_songs

# Four songs of 2, 0, 3 and 1 frames; the number in a frame says which frame it is.
ARRAYS = [[[0, 10], [1, 11]], np.empty((0, 2)), [[2, 12], [3, 13], [4, 14]], [[5, 15]]]
START = [[0.0, 5.0], [], [1.0, 6.0, 11.0], [2.0]]


def songs(**fields: Any) -> Songs:
    known: dict[str, Any] = {
        "columns": ["a", "b"],
        "ids": ["w", "x", "y", "z"],
        "labels": ["a", None, "b", "a"],
        "groups": ["g", "g", None, "h"],
        "split": ["train", "test", None, "train"],
        "fold": [0, 1, -1, 0],
        "start": START,
        "note": "four",
    }
    return Songs.from_arrays(ARRAYS, **(known | fields))


def flat(**fields: Any) -> Songs:
    """Three songs of one frame and two columns, by the constructor."""
    return Songs([[1, 2], [3, 4], [5, 6]], [0, 1, 2, 3], **fields)


class TestSequence:
    def test_length_shape_and_lengths(self) -> None:
        s = songs()
        assert len(s) == 4
        assert s.shape == (4,)
        assert s.n_columns == 2
        assert_array_equal(s.lengths, [2, 0, 3, 1])

    def test_iteration_gives_the_arrays_in_order(self) -> None:
        for frames, expected in zip(songs(), ARRAYS, strict=True):
            assert_array_equal(frames, np.reshape(expected, (-1, 2)))

    @pytest.mark.parametrize("key", [2, -2, np.int64(2), np.int32(-2)])
    def test_an_integer_gives_the_frames_of_one_song(self, key: Any) -> None:
        assert_array_equal(songs()[key], ARRAYS[2])

    def test_songs_that_stand_together_are_not_copied(self) -> None:
        whole = songs()
        assert np.shares_memory(whole[1:3].values, whole.values)

    @pytest.mark.parametrize("key", [4, -5])
    def test_an_integer_out_of_range_ends_iteration(self, key: int) -> None:
        with pytest.raises(IndexError, match="out of range"):
            songs()[key]

    @pytest.mark.parametrize(
        ("key", "chosen"),
        [
            (slice(1, 3), [1, 2]),
            (slice(None, None, -1), [3, 2, 1, 0]),
            (slice(0, 0), []),
            (slice(3, 1), []),
            (slice(-3, 9), [1, 2, 3]),
            (slice(0, 4, 2), [0, 2]),
            ([3, 0], [3, 0]),
            (np.array([2, 2, -1]), [2, 2, 3]),
            (np.array([], dtype=int), []),
            (np.array([True, False, True, False]), [0, 2]),
            ([False, False, False, True], [3]),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("ellipsis", [False, True])
    def test_other_keys_give_songs_with_all_their_fields(
        self, key: Any, chosen: list[int], ellipsis: bool
    ) -> None:
        taken = songs()[(key, Ellipsis) if ellipsis else key]
        expected = songs()
        assert taken.columns == expected.columns
        assert (taken.kind, taken.task, taken.note) == ("log_odds", "multiclass", "four")
        assert len(taken) == len(chosen)
        for position, i in enumerate(chosen):
            assert_array_equal(taken[position], expected[i])
            for field in ("ids", "labels", "groups", "split", "fold"):
                assert getattr(taken, field)[position] == getattr(expected, field)[i], field
            first, end = taken.offsets[position : position + 2]
            assert_array_equal(taken.start[first:end], START[i])

    def test_indexing_twice_is_indexing_once(self) -> None:
        assert_same_songs(songs()[[3, 2, 0]][1:], songs()[[2, 0]])

    def test_what_is_taken_is_a_copy(self) -> None:
        s = songs()
        s[[0, 2]].values[:] = 99
        assert_array_equal(s[0], ARRAYS[0])

    @pytest.mark.parametrize("mask", [[True, False], [True] * 5])
    def test_a_mask_of_another_length_is_refused(self, mask: list[bool]) -> None:
        with pytest.raises(IndexError, match="boolean index did not match"):
            songs()[np.array(mask)]

    def test_no_array_is_made_silently(self) -> None:
        with pytest.raises(TypeError, match="unequal lengths"):
            np.asarray(songs())

    def test_scikit_learn_keeps_the_container(self) -> None:
        s = songs()
        (same,) = indexable(s)
        assert same is s
        assert_same_songs(_safe_indexing(s, np.array([0, 3])), s[[0, 3]])
        for train, test in GroupKFold(2).split(s, s.labels, groups=["g", "g", "h", "h"]):
            assert isinstance(_safe_indexing(s, train), Songs)
            assert {*train, *test} == {0, 1, 2, 3}

    def test_pickle(self) -> None:
        assert_same_songs(pickle.loads(pickle.dumps(songs())), songs())

    def test_a_pickled_part_does_not_carry_the_whole(self) -> None:
        big = Songs(np.zeros((100_000, 2)), np.arange(0, 100_001, 1000))
        assert len(pickle.dumps(big[:1])) < 20_000

    def test_repr_says_what_it_is(self) -> None:
        text = "<Songs: 4 songs, 6 frames, 2 columns of log_odds, columns=['a', 'b']>"
        assert repr(songs()) == text


class TestConstruction:
    def test_from_arrays_lays_the_frames_below_each_other(self) -> None:
        s = songs()
        assert_array_equal(s.values, np.stack([np.arange(6), np.arange(10, 16)], axis=1))
        assert_array_equal(s.offsets, [0, 2, 2, 5, 6])
        assert_array_equal(s.start, [0, 5, 1, 6, 11, 2])
        assert (s.values.dtype, s.offsets.dtype) == (np.float32, np.int64)

    def test_defaults(self) -> None:
        s = flat()
        assert (s.kind, s.task, s.columns, s.note) == ("log_odds", "multiclass", None, "")
        assert s.ids.tolist() == ["0", "1", "2"]
        assert [s.labels, s.groups, s.split, s.fold, s.start] == [None] * 5

    @pytest.mark.parametrize("empty", [[], np.empty((0, 2)), np.empty((0, 0)), np.empty((0, 7))])
    def test_an_empty_song_may_have_any_width(self, empty: Any) -> None:
        s = Songs.from_arrays([empty, [[1, 2]], empty])
        assert_array_equal(s.lengths, [0, 1, 0])
        assert_array_equal(s.values, [[1, 2]])

    def test_generators_are_taken(self) -> None:
        s = Songs.from_arrays((a for a in ARRAYS), ids=(i for i in "wxyz"), start=iter(START))
        assert s.ids.tolist() == ["w", "x", "y", "z"]
        assert_array_equal(s.start, [0, 5, 1, 6, 11, 2])

    def test_numpy_scalars_become_python_objects(self) -> None:
        s = flat(labels=np.array([200, -56, 1], dtype=np.int64), ids=np.array(["p", "q", "r"]))
        assert [type(label) for label in s.labels] == [int] * 3
        assert s.labels.tolist() == [200, -56, 1]
        assert [type(i) for i in s.ids] == [str] * 3

    def test_labels_of_several_names(self) -> None:
        s = flat(task="multilabel", labels=[["a", "b"], None, []])
        assert s.labels.tolist() == [("a", "b"), None, ()]
        same_length = flat(task="multilabel", labels=[["a"], ["b"], ["a"]])
        assert same_length.labels.tolist() == [("a",), ("b",), ("a",)]

    def test_groups_may_be_tuples(self) -> None:
        groups = [("miles", "1959"), ("miles", "1970"), ("miles", "1970")]
        assert flat(groups=groups).groups.tolist() == groups

    def test_contiguous_float32_is_not_copied(self) -> None:
        values = np.zeros((3, 2), np.float32)
        assert np.shares_memory(Songs(values, [0, 1, 3]).values, values)

    def test_other_memory_layouts_are_read_right(self) -> None:
        values = np.arange(12.0).reshape(3, 4)
        s = Songs(np.asfortranarray(values)[:, ::2], [0, 1, 3])
        assert_array_equal(s.values, [[0, 2], [4, 6], [8, 10]])

    def test_replace_sets_fields_and_checks_them(self) -> None:
        s = songs()
        assert s.replace(note="new").note == "new"
        assert_same_songs(s.replace(note="new").replace(note="four"), s)
        with pytest.raises(SongError, match="2 labels for 4 songs"):
            s.replace(labels=["a", "b"])

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"ids": ["p", "q", "p"]}, r"^song 'p': "),
            ({"ids": ["p", "q"]}, "2 ids for 3 songs"),
            ({"labels": ["p", "q"]}, "2 labels for 3 songs"),
            ({"groups": ["p"] * 4}, "4 groups for 3 songs"),
            ({"split": ["train"]}, "1 split for 3 songs"),
            ({"fold": [0, 1]}, "2 fold for 3 songs"),
            ({"start": [0.0, 1.0]}, "2 frame starts for 3 frames"),
            ({"columns": ["a"]}, "1 column names for 2 columns"),
            ({"columns": ["a", "a"]}, r"^column 'a': "),
            ({"kind": "probabilities"}, "kind 'probabilities' is none of probability, logit"),
            ({"task": "regression"}, "task 'regression' is none of multiclass, multilabel"),
            ({"values": np.zeros(6)}, r"values have shape \(6,\)"),
            ({"values": np.zeros((3, 2, 1))}, r"values have shape \(3, 2, 1\)"),
            ({"values": np.zeros((3, 0))}, r"values have shape \(3, 0\)"),
            ({"offsets": [1, 2, 3, 3]}, "offsets must start at 0"),
            ({"offsets": [0, 2, 1, 3]}, "offsets must start at 0 and never fall"),
            ({"offsets": [0, 1, 2, 4]}, "offsets end at 4, values at 3"),
            ({"offsets": [0, 1, 2]}, "offsets end at 2, values at 3"),
            ({"offsets": []}, "offsets"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_what_does_not_fit_is_refused(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(SongError, match=message):
            flat().replace(**fields)

    @pytest.mark.parametrize(
        ("kind", "value", "what"),
        [
            ("probability", 1.5, r"a probability outside \[0, 1\]: 1.5"),
            ("probability", -0.25, r"a probability outside \[0, 1\]: -0.25"),
            ("probability", np.inf, r"a probability outside \[0, 1\]: inf"),
            ("logit", np.inf, "an infinite logit: inf"),
            ("logit", -np.inf, "an infinite logit: -inf"),
        ],
    )
    def test_an_impossible_score_is_named(self, kind: str, value: float, what: str) -> None:
        arrays = [np.full((2, 2), 0.5), np.empty((0, 2)), np.full((3, 2), 0.5)]
        arrays[2][1, 1] = value
        with pytest.raises(SongError, match=f"^song 'r': column 'b': frame 1 has {what}$") as info:
            Songs.from_arrays(arrays, ids=["p", "q", "r"], columns=["a", "b"], kind=kind)
        assert (info.value.song, info.value.column, info.value.file) == ("r", "b", None)

    @pytest.mark.parametrize("seconds", [np.inf, -np.inf, 1e39])
    def test_an_impossible_start_is_named(self, seconds: float) -> None:
        arrays, start = [np.zeros((2, 2)), np.zeros((3, 2))], [[0.0, 1.0], [0.0, seconds, np.nan]]
        with pytest.raises(SongError, match=r"^song 'q': frame 1 starts at no 32-bit number"):
            Songs.from_arrays(arrays, ids=["p", "q"], start=start)

    @pytest.mark.parametrize("kind", ["probability", "logit", "log_odds"])
    def test_a_missing_frame_is_no_impossible_score(self, kind: str) -> None:
        s = Songs([[np.nan, 0.5], [0.5, 0.5]], [0, 2], kind=kind)
        assert_array_equal(s.present().values, [[0.5, 0.5]])

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            (
                [[[1, 2]], [[1, 2, 3]]],
                r"^song 'q': frames have shape \(1, 3\), not \(n_frames, 2\)",
            ),
            ([[[1, 2]], [1, 2]], r"^song 'q': frames have shape \(2,\)"),
            ([[[1, 2]], [[[1, 2]]]], r"^song 'q': frames have shape \(1, 1, 2\)"),
            ([[[1, 2]], np.empty((3, 0))], r"^song 'q': "),
            ([[], []], "no frame"),
            ([[1, 2], [3, 4]], r"shape \(2,\)"),
        ],
    )
    def test_arrays_of_another_shape_are_named(self, arrays: Any, message: str) -> None:
        with pytest.raises(SongError, match=message):
            Songs.from_arrays(arrays, ids=["p", "q"])

    def test_starts_must_fit_song_by_song(self) -> None:
        """As many in all is not enough: the starts of one song would move to the next."""
        with pytest.raises(SongError, match=r"'p'"):
            Songs.from_arrays([[[1, 2]], [[3, 4], [5, 6]]], ids=["p", "q"], start=[[0, 5], [0]])

    @pytest.mark.parametrize("fold", [[2**40, 0, 0], np.array([2**40, 0, 0])])
    def test_a_fold_beyond_int32_is_refused(self, fold: Any) -> None:
        with pytest.raises(SongError, match="fold"):
            flat(fold=fold)


class TestConversion:
    def test_log_odds_of_probabilities(self) -> None:
        s = songs(labels=None).replace(values=np.full((6, 2), [0.5, 0.9]), kind="probability")
        converted = s.log_odds()
        assert converted.kind == "log_odds"
        # log(0.9 / 0.1) = log 9
        np.testing.assert_allclose(converted.values, np.full((6, 2), [0, np.log(9)]), rtol=1e-6)
        assert_same_songs(converted.replace(values=s.values, kind="probability"), s)

    def test_log_odds_of_log_odds_are_the_same_object(self) -> None:
        s = songs()
        assert s.log_odds() is s

    def test_infinite_log_odds_end_where_certain_probabilities_do(self) -> None:
        s = Songs([[np.inf, -np.inf], [np.nan, np.inf]], [0, 2]).log_odds()
        limit = np.float32(LIMIT)
        assert_array_equal(s.values, [[limit, -limit], [np.nan, limit]])

    def test_logits_of_softmax_and_of_the_logistic_function_differ(self) -> None:
        z = [[1.0, 2.0, 4.0]]
        multilabel = Songs(z, [0, 1], kind="logit", task="multilabel").log_odds()
        assert_array_equal(multilabel.values, z)
        multiclass = Songs(z, [0, 1], kind="logit").log_odds()
        # Of the last: 4 - log(e + e^2) by the definition.
        assert multiclass.values[0, 2] == pytest.approx(4 - np.log(np.e + np.e**2), rel=1e-6)

    def test_a_single_column_of_softmax_logits_says_nothing(self) -> None:
        with pytest.raises(SongError, match="single column"):
            Songs([[1.0]], [0, 1], kind="logit").log_odds()

    def test_present_leaves_out_missing_frames_with_their_starts(self) -> None:
        s = songs()
        values = s.values.copy()
        values[0, 1] = np.nan
        values[5] = np.nan
        left = s.replace(values=values).present()
        assert_array_equal(left.offsets, [0, 1, 1, 4, 4])
        assert_array_equal(left.values[:, 0], [1, 2, 3, 4])
        assert_array_equal(left.start, [5, 1, 6, 11])
        assert left.ids.tolist() == s.ids.tolist()

    def test_present_songs_are_not_copied(self) -> None:
        s = songs()
        assert s.present() is s


class TestOneLook:
    def test_all_finite(self) -> None:
        values = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
        assert all_finite(values)
        assert all_finite(values[:0])
        assert all_finite(np.full((4, 3), 1e-45, np.float32))

    @pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("other", [0.0, 1.0, -3e38])
    def test_never_where_one_is_not(self, odd: float, other: float) -> None:
        for place in range(64):
            values = np.full((32, 2), other, np.float32)
            values.flat[place] = odd
            assert not all_finite(values)
            assert not all_finite(np.asfortranarray(values))

    def test_what_is_not_seen_is_looked_at_again(self) -> None:
        """The sum overflows, the values do not."""
        values = np.array([[3e38, 2e38], [1.0, 2.0]], np.float32)
        assert not all_finite(values)
        model = MeanLogOdds().fit(flat(columns=["a", "b"], labels=["a", "b", "a"]))
        assert_array_equal(model.predict(Songs(values, [0, 1, 2])), ["a", "b"])


class TestAsSongs:
    def test_songs_stay_what_they_are(self) -> None:
        s = songs()
        assert as_songs(s) is s

    def test_a_list_of_arrays(self) -> None:
        s = as_songs([np.array([[1, 2], [3, 4]]), [[5, 6]]])
        assert_array_equal(s.lengths, [2, 1])
        assert s.kind == "log_odds"

    def test_a_2d_array_is_one_frame_a_song(self) -> None:
        assert_array_equal(as_songs(np.zeros((3, 2))).lengths, [1, 1, 1])
        assert_array_equal(as_songs(np.zeros((3, 2), dtype=object)).lengths, [1, 1, 1])

    def test_a_3d_array_is_songs_of_equal_length(self) -> None:
        s = as_songs(np.arange(24).reshape(2, 3, 4))
        assert_array_equal(s.lengths, [3, 3])
        assert_array_equal(s[1], np.arange(12, 24).reshape(3, 4))

    def test_an_object_array_of_songs(self) -> None:
        arrays = np.empty(2, dtype=object)
        arrays[:] = [np.zeros((2, 3)), np.zeros((1, 3))]
        assert_array_equal(as_songs(arrays).lengths, [2, 1])

    @pytest.mark.parametrize(
        ("X", "message"),
        [
            ("jig", "got str"),
            (b"jig", "got bytes"),
            (3, "got int"),
            (None, "got NoneType"),
            ([], "no songs"),
            (csr_array(np.eye(3)), r"sparse input is not supported; pass its toarray\(\)"),
            (pd.DataFrame({"jig": [1.0]}), "got a table; seqagg.sources.from_dataframe"),
            (np.zeros((3, 2), complex), "Complex data not supported"),
            ([np.zeros((3, 2), complex)], "Complex data not supported"),
        ],
    )
    def test_the_rest_is_refused(self, X: Any, message: str) -> None:
        with pytest.raises(SongError, match=message):
            as_songs(X)


class TestNamesFromArrow:
    """Text of Arrow becomes Python text when somebody asks for it."""

    def test_as_from_a_list(self) -> None:
        names = ["a", "b", "c"]
        songs = Songs(np.zeros((3, 2)), range(4), ids=pa.array(names))
        listed = Songs(np.zeros((3, 2)), range(4), ids=names)
        for choice in (slice(1, 3), [2, 0], np.array([True, False, True])):
            assert songs[choice].ids.tolist() == listed[choice].ids.tolist()
        assert songs.arrow_ids().to_pylist() == listed.arrow_ids().to_pylist() == names
        assert songs.ids.dtype == object
        assert songs.ids.tolist() == names

    def test_a_name_twice_or_too_few(self) -> None:
        with pytest.raises(SongError, match="song 'a' stands there twice"):
            Songs(np.zeros((3, 2)), range(4), ids=pa.array(["a", "b", "a"]))
        with pytest.raises(SongError, match="2 ids for 3 songs"):
            Songs(np.zeros((3, 2)), range(4), ids=pa.array(["a", "b"]))

    def test_a_pickle_holds_no_more_than_its_songs(self) -> None:
        names = pa.array([f"song {i}" for i in range(100_000)])
        few = Songs(np.zeros((3, 2)), range(4), ids=names[:3])
        assert len(pickle.dumps(few)) < 2_000
        assert pickle.loads(pickle.dumps(few)).ids.tolist() == ["song 0", "song 1", "song 2"]


class TestErrors:
    @pytest.mark.parametrize(
        "frames",
        [[[1, 2], [1]], [["a", "b"]], [[10**400, 1]], [[1j, 1]], [[{}, 1]]],
    )
    def test_frames_that_are_no_table_of_numbers(self, frames: Any) -> None:
        with pytest.raises(SongError, match="song 'b': frames are no table of numbers: "):
            Songs.from_arrays([[[1.0, 2.0]], frames], ids=["a", "b"])
        with pytest.raises(SongError, match="song '1': frames are no table of numbers: "):
            as_songs([[[1.0, 2.0]], frames])

    @pytest.mark.parametrize("field", ["labels", "groups", "split", "ids"])
    def test_a_mapping_is_no_list_of_values(self, field: str) -> None:
        with pytest.raises(SongError, match="in their order, is expected, and not a mapping"):
            Songs([[1.0]] * 2, [0, 1, 2], **{field: {"b": "x", "a": "y"}})

    def test_text_with_several_labels_does_not_fall_apart(self) -> None:
        labels = ["jig|reel", "reel", "", None, ["a|b"]]
        songs = Songs([[1.0]] * 5, range(6), task="multilabel", labels=labels)
        assert songs.labels is not None
        assert songs.labels.tolist() == [("jig", "reel"), ("reel",), (), None, ("a|b",)]

    def test_probabilities_may_be_rounded(self) -> None:
        songs = Songs([[1.0000001, -1e-7]], [0, 1], kind="probability")
        assert_array_equal(songs.log_odds().values, np.float32([[LIMIT, -LIMIT]]))
        with pytest.raises(SongError, match=r"frame 1 has a probability outside \[0, 1\]: 1.00001"):
            Songs([[1.0000001, 0.5], [1.00001, 0.5]], [0, 2], kind="probability")

    def test_what_is_masked_is_missing(self) -> None:
        song = np.ma.masked_less(np.array([[1.0, 2.0], [-9.0, 1.0]]), 0)
        assert_array_equal(as_songs([song]).values, [[1, 2], [np.nan, 1]])

    def test_an_error_says_all_it_is_about_in_one_line(self) -> None:
        error = SongError("bad\nthing", file="f.parquet", song="a\nb", column="c")
        assert str(error) == r"f.parquet: song 'a\nb': column 'c': bad thing"

    def test_an_error_survives_pickling(self) -> None:
        error = SongError("bad", file="f", song="s", column="c")
        back = pickle.loads(pickle.dumps(error))
        assert type(back) is SongError
        assert str(back) == str(error)
        assert (back.file, back.song, back.column) == ("f", "s", "c")


class TestConcatenate:
    def test_equals_what_it_was_cut_from(self) -> None:
        rng = np.random.default_rng(0)
        whole = Songs(
            rng.normal(size=(9, 2)),
            [0, 2, 2, 5, 9],
            columns=["a", "b"],
            ids=["p", "q", "r", "s"],
            labels=["a", None, "b", "a"],
            groups=["x", "x", None, "y"],
            split=["train", "train", "test", None],
            fold=[0, 1, 2, -1],
            start=np.arange(9.0),
            note="kept",
        )
        again = Songs.concatenate([whole[:1], whole[1:1], whole[1:]])
        assert_same_songs(again, whole)
        assert again.note == "kept"

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            ({"columns": ["a", "c"]}, "songs differ in columns"),
            ({"kind": "probability"}, "songs differ in kind: log_odds and probability"),
            ({"labels": ["a"]}, "some songs have labels, others have not"),
            ({"ids": ["0"]}, "song '0' stands there twice"),
        ],
    )
    def test_what_does_not_fit_together(self, other: dict[str, Any], message: str) -> None:
        one = Songs([[0.5, 0.5]], [0, 1], columns=["a", "b"], ids=["0"])
        fields: dict[str, Any] = {"columns": ["a", "b"], "ids": ["1"]} | other
        with pytest.raises(SongError, match=message):
            Songs.concatenate([one, Songs([[0.5, 0.5]], [0, 1], **fields)])

    def test_nothing(self) -> None:
        with pytest.raises(SongError, match="no songs"):
            Songs.concatenate([])
