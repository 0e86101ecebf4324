"""What `inspect` counts, against plain loops, and what it warns of, and what it does not."""

import dataclasses
import json

import numpy as np
import pytest

from seqagg.inspection import FEW_SONGS, inspect
from seqagg.songs import Songs

COLUMNS = ["blues", "jazz", "rock"]


def make(n=60, *, sharp=None, seed=0, **fields):
    """Songs of probabilities, half train and half test; `sharp` log-odds favour the label."""
    rng = np.random.default_rng(seed)
    labels = [COLUMNS[i % 3] for i in range(n)]
    split = ["train" if i < n // 2 else "test" for i in range(n)]
    sharp = sharp or {"train": 1.0, "test": 1.0}
    arrays = []
    for label, side in zip(labels, split, strict=True):
        z = rng.normal(size=(rng.integers(2, 9), 3)) + sharp[side] * (np.array(COLUMNS) == label)
        arrays.append(np.exp(z) / np.exp(z).sum(axis=1, keepdims=True))
    defaults = {
        "columns": COLUMNS,
        "kind": "probability",
        "labels": labels,
        "split": split,
        "groups": [f"artist {i // 2}" for i in range(n)],
    }
    return Songs.from_arrays(arrays, **(defaults | fields))


def warned(songs, *words):
    found = inspect(songs).warnings
    assert all("\n" not in warning for warning in found)
    return [w for w in found if all(word in w for word in words)]


def test_clean_songs_get_no_warning():
    assert inspect(make()).warnings == ()


def test_counts():
    songs = make(n=20, labels=[None, *(COLUMNS[i % 3] for i in range(1, 20))], note="hello")
    found = inspect(songs)
    assert found.n_songs == 20
    assert found.n_frames == len(songs.values)
    assert found.n_unlabelled == 1
    assert found.columns == tuple(COLUMNS)
    assert (found.kind, found.task, found.note) == ("probability", "multiclass", "hello")
    lengths = sorted(map(len, songs))
    assert found.frames_per_song == (lengths[0], np.median(lengths), lengths[-1])
    assert [(p.name, p.n_songs, p.n_labelled) for p in found.parts] == [
        ("train", 10, 9),
        ("test", 10, 10),
    ]
    assert found.classes == {"blues": (3, 3), "jazz": (3, 4), "rock": (3, 3)}
    assert found.n_groups == 10
    assert found.n_folds is None


def test_the_result_is_plain_json():
    json.dumps(dataclasses.asdict(inspect(make())), allow_nan=False)


def test_parts_are_ordered_and_songs_without_a_split_apart():
    split = ["valid", None, "test", "train", "a", "train"]
    found = inspect(make(6, split=split))
    assert [(p.name, p.n_songs) for p in found.parts] == [
        ("train", 2),
        ("test", 1),
        ("a", 1),
        ("valid", 1),
        (None, 1),
    ]
    assert [p.name for p in inspect(make(6, split=None)).parts] == [None]


def test_frame_accuracy_is_that_of_a_plain_loop():
    songs = make(30)
    values = songs.values.copy()
    values[::7] = np.nan
    values[1::7, 0] = np.nan  # one column is enough for a frame to be missing
    values[2::7] = [0.4, 0.4, 0.2]  # blues and jazz share the frame
    songs = songs.replace(values=values)
    found = inspect(songs)
    missing = 0
    for part in found.parts:
        right = n = 0.0
        for frames, label, split in zip(songs, songs.labels, songs.split, strict=True):
            for row in frames if split == part.name else []:
                if np.isnan(row).any():
                    missing += 1
                    continue
                top = [c for c, p in zip(COLUMNS, row, strict=True) if p == max(row)]
                right += (label in top) / len(top)
                n += 1
        assert part.frame_accuracy == pytest.approx(right / n, abs=1e-12)
    assert missing > 0
    assert found.n_missing == missing == sum(part.n_missing for part in found.parts)


def test_the_standard_error_is_that_of_drawing_groups_anew():
    songs = make(400, sharp={"train": 0.7, "test": 0.7})
    part = inspect(songs).parts[0]
    frames = list(songs)[:200]
    labels = [COLUMNS.index(label) for label in songs.labels[:200]]
    right = np.array([(f.argmax(axis=1) == k).sum() for f, k in zip(frames, labels, strict=True)])
    length = np.array([len(f) for f in frames])
    right, length = right.reshape(-1, 2).sum(axis=1), length.reshape(-1, 2).sum(axis=1)
    draws = np.random.default_rng(0).integers(0, len(right), (4000, len(right)))
    accuracies = right[draws].sum(axis=1) / length[draws].sum(axis=1)
    assert part.frame_accuracy_error == pytest.approx(accuracies.std(), rel=0.05)


@pytest.mark.parametrize("kind", ["log_odds", "logit"])
def test_other_kinds_have_the_same_frame_accuracy(kind):
    songs = make()
    other = songs.replace(values=np.log(songs.values), kind="logit")
    if kind == "log_odds":
        other = other.log_odds()
    found = inspect(other)
    assert [p.frame_accuracy for p in found.parts] == [
        p.frame_accuracy for p in inspect(songs).parts
    ]
    assert found.sum_to_one is None
    assert found.saturated == (None if kind == "logit" else 0.0)


def test_songs_without_columns_labels_or_groups():
    songs = Songs.from_arrays([np.zeros((2, 3)), np.zeros((1, 3))])
    found = inspect(songs)
    assert found.columns == ("0", "1", "2")
    assert found.classes == {}
    assert found.n_groups is None
    assert found.parts[0].frame_accuracy is None
    assert found.warnings == ("no song has a label: nothing can be learnt or measured",)


def test_whole_numbers_as_labels_name_columns_without_names():
    songs = Songs.from_arrays([np.eye(3), np.eye(3)], labels=[0, 2])
    assert inspect(songs).parts[0].frame_accuracy == pytest.approx(1 / 3)


def test_no_songs_at_all():
    songs = Songs(np.empty((0, 3)), [0], columns=COLUMNS, kind="probability")
    found = inspect(songs)
    assert (found.n_songs, found.n_frames, found.frames_per_song) == (0, 0, (0, 0.0, 0))
    assert found.saturated is None


def test_many_labels_per_song():
    labels = [("blues", "jazz"), ("jazz",), (), None]
    songs = make(4, task="multilabel", labels=labels, split=None)
    found = inspect(songs)
    assert found.classes == {"blues": (1,), "jazz": (2,)}
    assert found.n_unlabelled == 1  # an empty list is an answer
    assert found.parts[0].frame_accuracy is None
    assert found.sum_to_one is None


# Warnings.


def test_a_group_on_both_sides_is_named():
    groups = [f"artist {i}" for i in range(60)]
    groups[3] = groups[40] = "Miles"
    (warning,) = warned(make(groups=groups), "both sides of the split", "group")
    assert "1 group on both sides of the split, in train and in test (Miles)" in warning
    groups = [f"artist {i % 30}" for i in range(60)]
    (warning,) = warned(make(groups=groups), "groups on both sides")
    assert warning.startswith("30 groups")
    assert "and 27 more" in warning


def test_songs_without_a_group_are_no_group_together():
    assert not warned(make(groups=[None] * 60))


def test_train_frames_that_the_classifier_had_seen():
    songs = make(120, sharp={"train": 4.0, "test": 1.0})
    (warning,) = warned(songs, "out of fold")
    assert "of the train frames are right but only" in warning


def test_a_gap_that_chance_explains_is_no_warning():
    warnings = [
        warned(make(24, seed=seed, sharp={"train": 1.1, "test": 1.0}), "out of fold")
        for seed in range(40)
    ]
    assert sum(map(len, warnings)) <= 1


def test_test_frames_better_than_train_frames_are_no_warning():
    assert not warned(make(120, sharp={"train": 1.0, "test": 4.0}), "out of fold")


def copy_scores(songs, source, target):
    arrays = list(songs)
    arrays[target] = arrays[source].copy()
    fields = ("columns", "kind", "labels", "split", "groups", "ids")
    return Songs.from_arrays(arrays, **{name: getattr(songs, name) for name in fields})


def test_the_same_scores_on_both_sides_are_named():
    songs = make(sharp={"train": 1, "test": 1})
    longest = int(np.argmax(songs.lengths[:30]))
    twin = longest + 30
    (warning,) = warned(copy_scores(songs, longest, twin), "same scores", "both sides")
    assert f"{longest} = {twin}" in warning


def test_the_same_scores_within_a_side_matter_where_groups_or_labels_differ():
    songs = make()
    long = [i for i in range(30) if songs.lengths[i] >= 4]
    a, b = next((a, b) for a in long for b in long if b >= a + 2 and (b - a) % 3)
    found = copy_scores(songs, a, b)
    assert warned(found, "several groups", f"{a} = {b}")
    assert warned(found, "different labels", f"{a} = {b}")
    same = found.replace(groups=["one"] * 30 + ["other"] * 30)
    assert not warned(same, "several groups")


def test_short_songs_that_agree_by_chance_are_no_duplicates():
    arrays = [[[1.0, 0.0, 0.0]], [[0.2, 0.4, 0.4]]] * 30
    assert not warned(
        Songs.from_arrays(
            arrays,
            columns=COLUMNS,
            kind="probability",
            labels=["jazz"] * 60,
            split=["train"] * 30 + ["test"] * 30,
        ),
        "same scores",
    )


def test_labels_that_name_no_column():
    labels = [["blues", "jazz", "polka"][i % 3] for i in range(60)]
    (warning,) = warned(make(labels=labels), "column")
    assert warning.startswith("1 label of 20 songs without a column of that name (polka)")
    labels = [["calm", "loud", "sad"][i % 3] for i in range(60)]
    (warning,) = warned(make(labels=labels), "column")
    assert "only methods that learn" in warning
    assert inspect(make(labels=labels)).parts[0].frame_accuracy is None


def test_classes_that_train_lacks_or_has_few_of():
    labels = ["blues"] * 26 + ["jazz"] * 4 + ["rock"] * 30
    songs = make(labels=labels)
    assert warned(songs, "1 class without a train song: rock")
    assert warned(songs, f"1 class with fewer than {FEW_SONGS} songs to learn from (jazz: 4)")
    assert warned(make(9, split=None), f"3 classes with fewer than {FEW_SONGS} songs")


def test_probabilities_that_do_not_sum_to_one_are_reported_not_refused():
    songs = make()
    sigmoid = songs.replace(values=songs.values * 0.5)
    assert inspect(sigmoid).sum_to_one == 0.0
    assert warned(sigmoid, "100.0% of the frames do not sum to one", "one-against-rest")
    rounded = songs.replace(values=songs.values.round(3))
    assert inspect(rounded).sum_to_one == 1.0


def test_saturated_probabilities_are_reported():
    songs = make()
    values = songs.values.copy()
    values[::10] = [1.0, 0.0, 0.0]
    n = len(values[::10])
    found = inspect(songs.replace(values=values))
    assert found.saturated == pytest.approx(n / len(values))
    assert warned(songs.replace(values=values), "exactly 0 or 1", "16.6 nats")
    infinite = songs.log_odds().replace(values=np.where(values == 1, np.inf, 0.5))
    assert inspect(infinite).saturated == pytest.approx((values == 1).mean())


def test_songs_without_a_frame_left_are_named():
    songs = make()
    arrays = list(songs)
    arrays[4], arrays[7] = arrays[4] * np.nan, arrays[7][:0]
    fields = ("columns", "kind", "labels", "split", "groups")
    songs = Songs.from_arrays(arrays, **{name: getattr(songs, name) for name in fields})
    assert inspect(songs).empty_songs == ("4", "7")
    assert warned(songs, "2 songs without a frame left (4, 7)", "on_empty=prior")


def test_the_songs_are_left_as_they_were():
    songs = make()
    before = songs.values.copy()
    inspect(songs)
    assert np.array_equal(songs.values, before)
