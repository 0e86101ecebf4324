"""Frame classifiers that are trained per fold: who was trained on what, and whom they score.

Truth is scikit-learn's own `cross_val_predict` on frames, and models that remember what they saw.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, LeaveOneGroupOut, cross_val_predict
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from seqagg import CacheError, MeanLogOdds, ParameterError, SongError, Songs, read_cache
from seqagg.folds import group_indices
from seqagg.frozen import nested_out_of_fold, out_of_fold
from seqagg.inspection import inspect
from tests.conftest import assert_same_songs

Array = npt.NDArray[Any]

COLUMNS = ["jig", "polka", "reel"]
N = 24


def some_songs(seed: int = 0) -> dict[str, Any]:
    """Frames, labels and artists of songs, by song."""
    rng = np.random.default_rng(seed)
    names = [f"song {i}" for i in range(N)]
    which = np.arange(N) % 3
    frames = [rng.normal(np.eye(3)[k], 1.0, (rng.integers(3, 8), 3)) for k in which]
    return {
        "frames": dict(zip(names, frames, strict=True)),
        "labels": {name: COLUMNS[k] for name, k in zip(names, which, strict=True)},
        "groups": {name: f"artist {i // 3}" for i, name in enumerate(names)},
    }


SONGS = some_songs()


def stacked(songs: Mapping[str, Any] = SONGS) -> tuple[Array, Array, Array, Array]:
    """Frames of all songs, and the song, label and group of each."""
    ids = np.array([song for song, x in songs["frames"].items() for _ in x])
    values = np.concatenate([*songs["frames"].values()])
    labels = np.array([songs["labels"][song] for song in ids])
    return values, ids, labels, np.array([songs["groups"][song] for song in ids])


class Recorder:
    """Builds classifiers that know the frames they saw, and says which songs these were of.

    The score of a frame is 1 in the first column if its classifier has seen it, else in the second.
    """

    def __init__(self, frames: Mapping[str, Array]) -> None:
        self.song_of = {tuple(row): song for song, x in frames.items() for row in x.tolist()}
        self.seen: list[set[str]] = []
        self.given: list[tuple[Array, Array, Array]] = []

    def __call__(self, frames: Array, labels: Array, groups: Array) -> Any:
        self.given.append((frames, labels, groups))
        own = {tuple(row) for row in frames.tolist()}
        self.seen.append({self.song_of[row] for row in own})

        def score(x: Array) -> Array:
            known = np.array([tuple(row) in own for row in x.tolist()])
            return np.stack([known, ~known, np.zeros(len(x))], axis=1)

        return score


def test_scores_are_those_of_cross_val_predict() -> None:
    values, _, labels, groups = stacked()
    songs = out_of_fold(LogisticRegression(), **SONGS, cv=GroupKFold(4))
    expected = cross_val_predict(
        LogisticRegression(),
        values,
        labels,
        groups=groups,
        cv=frame_folds(songs),
        method="predict_proba",
    )
    assert_allclose(songs.values, expected, atol=1e-6)
    assert songs.columns == tuple(COLUMNS)
    assert songs.ids.tolist() == list(SONGS["frames"])
    assert songs.labels.tolist() == list(SONGS["labels"].values())
    assert songs.groups.tolist() == list(SONGS["groups"].values())
    assert songs.split is None
    folds = [set(songs.fold[songs.groups == group]) for group in set(songs.groups)]
    assert set(map(len, folds)) == {1}


def frame_folds(songs: Songs) -> list[tuple[Array, Array]]:
    fold = np.repeat(songs.fold, songs.lengths)
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in np.unique(fold)]


def test_no_song_is_scored_by_a_model_that_has_seen_its_group() -> None:
    split = {song: "test" if i >= 18 else "train" for i, song in enumerate(SONGS["frames"])}
    record = Recorder(SONGS["frames"])
    songs = out_of_fold(record, **SONGS, cv=3, split=split)
    assert (songs.values[:, 1] == 1).all()
    train = {song for song, side in split.items() if side == "train"}
    assert len(record.seen) == 4
    assert record.seen[-1] == train
    for fold, seen in enumerate(record.seen[:-1]):
        held = {song for song, own in zip(songs.ids, songs.fold, strict=True) if own == fold}
        assert seen | held == train
        groups = [{SONGS["groups"][song] for song in side} for side in (seen, held)]
        assert not groups[0] & groups[1]
    assert_array_equal(songs.fold == -1, songs.split == "test")
    assert not any("both sides" in warning for warning in inspect(songs).warnings)


def test_what_a_function_is_given() -> None:
    frames = {song: x.copy() for song, x in SONGS["frames"].items()}
    frames["song 5"][1] = np.nan
    record = Recorder(frames)
    out_of_fold(record, frames, SONGS["labels"], groups=SONGS["groups"], cv=2, check=False)
    for x, y, groups in record.given:
        assert np.isfinite(x).all()
        songs = [record.song_of[tuple(row)] for row in x.tolist()]
        assert [COLUMNS[k] for k in y] == [SONGS["labels"][song] for song in songs]
        artists = [SONGS["groups"][song] for song in songs]
        assert_array_equal(group_indices(artists, len(songs)), group_indices(groups, len(songs)))


def test_every_input_gives_the_same_songs() -> None:
    values, ids, labels, groups = stacked()
    table = pd.DataFrame(values, columns=["a", "b", "c"]).assign(song=ids, y=labels, g=groups)
    expected = out_of_fold(LogisticRegression(), **SONGS, cv=3)
    pairs = ((song, x[i : i + 1]) for i in range(8) for song, x in SONGS["frames"].items())
    for given in (
        (values, labels, ids, groups),
        (table, "y", "song", "g"),
        (pairs, SONGS["labels"], None, SONGS["groups"]),
    ):
        assert_same_songs(out_of_fold(LogisticRegression(), *given, cv=3), expected)


def test_an_estimator_is_left_as_it_was() -> None:
    model = make_pipeline(StandardScaler(), LogisticRegression())
    songs = out_of_fold(model, **SONGS, kind="logit")
    assert not hasattr(model[-1], "coef_")
    again = out_of_fold(model, **SONGS).log_odds()
    assert_allclose(songs.log_odds().values, again.values, atol=1e-3)


def test_folds_may_be_given_by_song() -> None:
    cv = {song: i // 3 % 2 for i, song in enumerate(SONGS["frames"])}
    songs = out_of_fold(LogisticRegression(), **SONGS, cv=cv)
    assert songs.fold.tolist() == list(cv.values())
    alone = out_of_fold(LogisticRegression(), **SONGS, cv=LeaveOneGroupOut())
    assert len(set(alone.fold)) == 8


def test_processes_find_what_one_finds() -> None:
    one = out_of_fold(LogisticRegression(), **SONGS, cv=3)
    assert_same_songs(out_of_fold(LogisticRegression(), **SONGS, cv=3, n_jobs=2), one)


def test_a_class_that_a_fold_has_not_seen() -> None:
    labels = SONGS["labels"] | dict.fromkeys(["song 0", "song 1", "song 2"], "waltz")
    known = SONGS | {"labels": labels}
    for kind in ("probability", "logit"):
        songs = out_of_fold(LogisticRegression(), **known, cv=4, kind=kind).log_odds()
        assert songs.columns == (*COLUMNS, "waltz")
        assert (songs[0][:, 3] < -15).all()
        assert (songs[5][:, 3] > -15).all()


def test_songs_without_a_label_are_scored_by_the_model_of_all_others() -> None:
    labels = SONGS["labels"] | {"song 4": None}
    record = Recorder(SONGS["frames"])
    songs = out_of_fold(record, **(SONGS | {"labels": labels}), cv=2)
    assert songs.fold[4] == -1
    assert songs.labels[4] is None
    assert record.seen[-1] == set(SONGS["frames"]) - {"song 4"}
    assert (songs.values[:, 1] == 1).all()


def test_columns_may_be_in_another_order_than_the_labels() -> None:
    turned = ["reel", "waltz", "jig", "polka"]
    songs = out_of_fold(LogisticRegression(), **SONGS, columns=turned)
    plain = out_of_fold(LogisticRegression(), **SONGS)
    assert_allclose(songs.values[:, [2, 3, 0]], plain.values, atol=1e-6)
    numbers = SONGS | {"labels": {s: 2 - COLUMNS.index(y) for s, y in SONGS["labels"].items()}}
    named = out_of_fold(LogisticRegression(), **numbers, columns=["2", "0", "1"])
    assert_allclose(named.values[:, [0, 2, 1]], plain.values, atol=1e-5)


def test_songs_with_several_labels() -> None:
    rng = np.random.default_rng(0)
    labels = {
        song: [name for name in COLUMNS if name == own or rng.random() < 0.3]
        for song, own in SONGS["labels"].items()
    }
    model = OneVsRestClassifier(LogisticRegression())
    known = SONGS | {"labels": labels}
    songs = out_of_fold(model, **known, task="multilabel", cv=3)
    values, ids, _, _ = stacked()
    indicator = np.array([[int(name in labels[song]) for name in COLUMNS] for song in ids])
    expected = np.empty(indicator.shape)
    for learn, held in frame_folds(songs):
        expected[held] = model.fit(values[learn], indicator[learn]).predict_proba(values[held])
    assert_allclose(songs.values, expected, atol=1e-6)
    assert songs.labels.tolist() == [tuple(label) for label in labels.values()]
    rows = {song: [int(name in label) for name in COLUMNS] for song, label in labels.items()}
    known = SONGS | {"labels": rows}
    again = out_of_fold(model, **known, task="multilabel", columns=COLUMNS, cv=3)
    assert_same_songs(again, songs)


# Keras and PyTorch.


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_keras_learns_and_scores() -> None:
    os.environ["KERAS_BACKEND"] = "torch"
    keras = importlib.import_module("keras")

    def make_model(frames: Array, labels: Array, groups: Array) -> Any:
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.layers.Dense(3, activation="softmax")])
        model.compile(keras.optimizers.Adam(0.1), "sparse_categorical_crossentropy")
        model.fit(frames.astype("float32"), labels, epochs=8, batch_size=32, verbose=0)
        return model

    assert accuracy(out_of_fold(make_model, **SONGS, cv=2)) > 0.5


def test_pytorch_learns_and_scores() -> None:
    import torch

    def make_model(frames: Array, labels: Array, groups: Array) -> Any:
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Dropout(0.1), torch.nn.Linear(3, 3))
        x, y = torch.tensor(frames, dtype=torch.float32), torch.tensor(labels)
        optimizer = torch.optim.Adam(network.parameters(), 0.05)
        for _ in range(60):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()
        return network

    assert accuracy(out_of_fold(make_model, **SONGS, cv=2, kind="logit")) > 0.5


def accuracy(songs: Songs) -> float:
    """Frames that are right; a third would be by chance."""
    truth = np.repeat([COLUMNS.index(label) for label in songs.labels], songs.lengths)
    return float((songs.values.argmax(axis=1) == truth).mean())


# Nested.


def test_nested_holds_songs_out_of_everything() -> None:
    record = Recorder(SONGS["frames"])
    judged: list[str] = []
    turns = nested_out_of_fold(record, **SONGS, cv=3, inner=2)
    for turn, songs in enumerate(turns):
        test = set(songs.ids[songs.split == "test"])
        judged += test
        models = record.seen[3 * turn :]
        assert len(models) == 3
        assert not any(seen & test for seen in models)
        assert (songs.values[:, 1] == 1).all()
        assert models[-1] == set(songs.ids) - test
        assert_array_equal(songs.fold == -1, songs.split == "test")
        assert not set(songs.groups[songs.split == "test"]) & set(
            songs.groups[songs.split == "train"]
        )
    assert sorted(judged) == sorted(SONGS["frames"])


def test_nested_songs_are_ready_for_an_aggregator() -> None:
    for songs in nested_out_of_fold(LogisticRegression(), **SONGS, cv=2, inner=LeaveOneGroupOut()):
        train, test = (songs[songs.split == side] for side in ("train", "test"))
        assert MeanLogOdds().fit(train).score(test) > 0.5


# Going on where it stopped.


def test_what_is_trained_is_not_trained_again(tmp_path: Path) -> None:
    split = {song: "test" if i >= 18 else "train" for i, song in enumerate(SONGS["frames"])}
    record = Recorder(SONGS["frames"])

    def stopped(*given: Array) -> Any:
        if len(record.seen) == 2:
            raise KeyboardInterrupt
        return record(*given)

    with pytest.raises(KeyboardInterrupt):
        out_of_fold(stopped, **SONGS, cv=3, split=split, work=tmp_path / "w")
    assert [path.name for path in sorted((tmp_path / "w").iterdir())] == [
        "fold-0.parquet",
        "fold-1.parquet",
    ]
    songs = out_of_fold(record, **SONGS, cv=3, split=split, work=tmp_path / "w", note="n")
    assert len(record.seen) == 4
    whole = out_of_fold(Recorder(SONGS["frames"]), **SONGS, cv=3, split=split, note="n")
    assert_same_songs(songs, whole)
    assert read_cache(tmp_path / "w").n_columns == 3
    with pytest.raises(CacheError, match=r"fold-0\.parquet: made of other songs, labels or folds"):
        out_of_fold(record, **SONGS, cv=3, split=split, work=tmp_path / "w", seed=1)
    turns = nested_out_of_fold(record, **SONGS, cv=2, inner=2, work=tmp_path / "n")
    assert len([*turns]) == 2
    assert len([*(tmp_path / "n").rglob("*.parquet")]) == 6


# What cannot be done.


BAD: list[tuple[dict[str, Any], str]] = [
    ({"labels": None}, "labels are missing"),
    ({"labels": dict.fromkeys(SONGS["frames"])}, "no training song has a label"),
    ({"frames": {}}, "no training song has a label"),
    ({"split": dict.fromkeys(SONGS["frames"], "test")}, "no training song has a label"),
    ({"columns": ["jig", "reel"]}, "'song 1': its label 'polka' is the name of no column"),
    ({"cv": 1}, "cv=1 must be 2 or more"),
    ({"groups": dict.fromkeys(SONGS["frames"], "a")}, "all training songs are of one group"),
    ({"cv": {"song 0": 0}}, "'song 1': has no fold"),
    (
        {"cv": {song: i % 2 for i, song in enumerate(SONGS["frames"])}},
        "'song 0': its group is on b",
    ),
    ({"cv": [(np.arange(12), np.arange(12, 24))]}, "do not hold out every training song once"),
    ({"frames": {song: np.empty((0, 3)) for song in SONGS["frames"]}}, "learn from have no frames"),
]


@pytest.mark.parametrize(("changed", "words"), BAD)
def test_bad_input_is_named(changed: dict[str, Any], words: str) -> None:
    with pytest.raises((SongError, ParameterError), match=words):
        out_of_fold(LogisticRegression(), **(SONGS | {"cv": 2} | changed))


def test_what_cannot_be_trained_anew_is_refused() -> None:
    import torch

    for model in (LogisticRegression, torch.nn.Linear(3, 3), 3):
        with pytest.raises(ParameterError, match="cannot be trained anew for each fold; give a"):
            out_of_fold(model, **SONGS)
    with pytest.raises(ParameterError, match="NoneType is no frame classifier"):
        out_of_fold(lambda frames, labels, groups: None, **SONGS)
