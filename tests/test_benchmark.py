"""The benchmark: who is scored by whom, and that its two tables say so."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sklearn.metrics
from click.testing import CliRunner

from seqagg import (
    MeanLogOdds,
    MeanProbability,
    ParameterError,
    SongError,
    Songs,
    evaluation_multilabel,
    write_cache,
)
from seqagg.aggregators import make_aggregator
from seqagg.aggregators.base import Aggregator
from seqagg.benchmark import BASELINES, benchmark
from seqagg.cli import main
from seqagg.evaluation import compare, compare_scores, holm
from seqagg.logodds import to_log_odds
from seqagg.report.facts import find_answers
from seqagg.results import BenchmarkResult, read_results, songs_checksum
from tests.conftest import order_free_songs

AVERAGES = ("majority", "mean", "logodds")
GENRES = ("blues", "jazz", "metal")


class Nearest(Aggregator):
    """The class whose training songs' mean log-odds are nearest: learns, needs no column."""

    def __init__(self, *, random_state: int | None = None, on_empty: str = "error") -> None:
        self.random_state = random_state
        self.on_empty = on_empty  # type: ignore[assignment]

    def _fit(self, songs: Songs, y: Any, groups: Any) -> None:
        means = np.array([frames.mean(axis=0) for frames in songs])
        # A class without a training song is put where no song is.
        self._centres = np.array(
            [
                means[y == k].mean(axis=0) if (y == k).any() else np.full(means.shape[1], 99.0)
                for k in range(len(self.classes_))
            ]
        )

    def _log_scores(self, songs: Songs) -> Any:
        means = np.array([frames.mean(axis=0) for frames in songs])
        return -np.linalg.norm(means[:, None] - self._centres, axis=2)


class Diary(Nearest):
    """Writes down which songs it was given, and fits once."""

    entries: ClassVar[list[tuple[str, list[str]]]] = []

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> Aggregator:
        assert not hasattr(self, "classes_"), "fitted for the second time"
        self.entries.append(("fit", X.ids.tolist()))
        return super().fit(X, y, groups)

    def predict(self, X: Any) -> Any:
        self.entries.append(("predict", X.ids.tolist()))
        return super().predict(X)


class Dice(Nearest):
    """Random scores, seeded."""

    def _log_scores(self, songs: Songs) -> Any:
        rng = np.random.default_rng(self.random_state)
        return rng.normal(size=(len(songs), len(self.classes_)))


def make_songs(
    n: int = 60, seed: int = 0, columns: tuple[str, ...] = GENRES, **fields: Any
) -> Songs:
    """Songs of log-odds that are hard enough for methods to differ."""
    rng = np.random.default_rng(seed)
    labels = [columns[i % len(columns)] for i in range(n)]
    arrays = []
    for label in labels:
        frames = rng.normal(0.0, 2.0, (rng.integers(1, 6), len(columns)))
        frames[:, columns.index(label)] += 1.0
        arrays.append(frames)
    given = {"columns": columns, "labels": labels, "ids": [f"song {i}" for i in range(n)]}
    return Songs.from_arrays(arrays, **given | fields)


def artists(n: int = 60, per_artist: int = 4) -> list[str]:
    """Groups of songs that stand apart from each other."""
    return [f"artist {i % (n // per_artist)}" for i in range(n)]


def sides(n: int = 60) -> list[str]:
    return ["test" if i % 7 in (0, 3, 5) else "train" for i in range(n)]


def rows(result: BenchmarkResult, method: str) -> dict[str, dict[str, Any]]:
    """The predictions of one method, by song."""
    found = [row for row in result.predictions.to_pylist() if row["method"] == method]
    by_song = {row["song_id"]: row for row in found}
    assert len(by_song) == len(found)
    return by_song


def value(result: BenchmarkResult, method: str, metric: str, fold: int | None = None) -> float:
    found = [
        row["value"]
        for row in result.results.to_pylist()
        if (row["method"], row["metric"], row["fold"]) == (method, metric, fold)
    ]
    assert len(found) == 1
    return float(found[0])


def without_times(result: BenchmarkResult) -> list[dict[str, Any]]:
    found = result.results.to_pylist()
    return [row for row in found if not row["metric"].endswith("_seconds")]


# Who is scored by whom.


def test_a_split_is_followed() -> None:
    songs = make_songs(split=sides())
    result = benchmark(songs, [*AVERAGES, ("nearest", Nearest())])
    train, test = (songs[np.flatnonzero(songs.split == side)] for side in ("train", "test"))
    for name, aggregator in (("logodds", MeanLogOdds()), ("nearest", Nearest())):
        found = rows(result, name)
        by_hand = aggregator.fit(train)
        assert list(found) == test.ids.tolist()
        assert [row["prediction"] for row in found.values()] == by_hand.predict(test).tolist()
        assert [row["label"] for row in found.values()] == test.labels.tolist()
        assert {row["fold"] for row in found.values()} == {None}
        np.testing.assert_allclose(
            [row["proba"] for row in found.values()],
            by_hand.predict_proba(test),
            rtol=1e-6,
            atol=1e-7,
        )
    assert set(result.results["fold"].to_pylist()) == {None}


def test_cross_validation_keeps_groups_apart_and_scores_every_song_once() -> None:
    songs = make_songs(groups=artists())
    result = benchmark(songs, [("nearest", Nearest())], cv=4)
    found = rows(result, "nearest")
    assert list(found) == songs.ids.tolist()
    fold = np.array([row["fold"] for row in found.values()])
    assert set(fold) == {0, 1, 2, 3}
    for artist in set(songs.groups):
        assert len(set(fold[songs.groups == artist])) == 1
    for k in range(4):
        by_hand = Nearest().fit(songs[fold != k]).predict(songs[fold == k])
        said = [row["prediction"] for row in found.values() if row["fold"] == k]
        assert said == by_hand.tolist()
        assert value(result, "nearest", "n_songs", k) == (fold == k).sum()


def test_every_fold_gets_a_fresh_method_and_songs_in_the_order_given() -> None:
    songs = make_songs(60)
    position = {song: i for i, song in enumerate(songs.ids)}
    Diary.entries.clear()
    benchmark(songs, [("diary", Diary())], cv=3)
    assert [what for what, _ in Diary.entries] == ["fit", "predict"] * 3
    for (_, train), (_, test) in zip(Diary.entries[::2], Diary.entries[1::2], strict=True):
        assert sorted(train + test) == sorted(songs.ids)
        for part in (train, test):
            assert part == sorted(part, key=position.__getitem__)


def test_folds_have_classes_in_proportion() -> None:
    songs = make_songs(60, labels=["blues"] * 40 + ["jazz"] * 15 + ["metal"] * 5)
    found = rows(benchmark(songs, ["mean"], cv=5), "mean")
    for k in range(5):
        labels = [row["label"] for row in found.values() if row["fold"] == k]
        assert [labels.count(genre) for genre in GENRES] == [8, 3, 1]


def test_cv_goes_before_the_split_and_defaults_to_five() -> None:
    songs = make_songs(split=sides())
    assert len(rows(benchmark(songs, ["mean"], cv=3), "mean")) == 60
    only_train = songs.replace(split=["train"] * 60)
    found = rows(benchmark(only_train, ["mean"]), "mean")
    assert {row["fold"] for row in found.values()} == {0, 1, 2, 3, 4}


def test_seed_draws_other_folds() -> None:
    songs = make_songs()
    folds = [benchmark(songs, ["mean"], seed=s).predictions["fold"].to_pylist() for s in (0, 0, 1)]
    assert folds[0] == folds[1]
    assert folds[0] != folds[2]


def test_a_class_smaller_than_the_folds_is_scored() -> None:
    songs = make_songs(60, labels=["blues"] * 40 + ["jazz"] * 19 + ["metal"])
    result = benchmark(songs, ["mean", ("nearest", Nearest())], cv=5)
    assert rows(result, "mean")["song 59"]["prediction"] in GENRES
    assert math.isfinite(value(result, "nearest", "log_loss"))


def test_classes_all_smaller_than_the_folds_are_scored() -> None:
    assert len(rows(benchmark(make_songs(6), ["mean"], cv=5), "mean")) == 6


def test_fewer_groups_than_folds_are_refused() -> None:
    songs = make_songs(groups=[f"artist {i % 4}" for i in range(60)])
    with pytest.raises(ParameterError, match="4 groups are too few for 5 folds"):
        benchmark(songs, ["mean"])
    assert len(rows(benchmark(songs, ["mean"], cv=4), "mean")) == 60


# What is left out.


def test_songs_that_cannot_be_used_are_left_out_and_named() -> None:
    songs = make_songs(split=["valid", *sides()[1:]])
    values, labels = songs.values.copy(), songs.labels.copy()
    values[songs.offsets[1] : songs.offsets[2]] = np.nan  # song 1, every frame missing
    labels[[2, 3]] = [None, math.nan]
    result = benchmark(songs.replace(values=values, labels=labels), AVERAGES)
    assert result.left_out == {
        "neither train nor test": ("song 0",),
        "no frame left": ("song 1",),
        "no label": ("song 2", "song 3"),
    }
    expected = {"song " + str(i) for i in range(4, 60) if songs.split[i] == "test"}
    assert set(rows(result, "mean")) == expected
    stated = provenance(result.results)["left_out"]
    assert stated["no label"] == {"n": 2, "first": ["song 2", "song 3"]}


def test_a_song_of_no_frame_at_all_is_left_out_of_the_folds() -> None:
    arrays = [np.array(frames) for frames in make_songs(30)]
    arrays[7] = np.empty((0, 3))
    songs = Songs.from_arrays(arrays, columns=GENRES, labels=make_songs(30).labels)
    result = benchmark(songs, ["mean"], cv=3)
    assert result.left_out == {"no frame left": ("7",)}
    assert len(rows(result, "mean")) == 29


def test_missing_frames_are_skipped() -> None:
    songs = make_songs(30)
    arrays = [np.vstack([frames, np.full((2, 3), np.nan)]) for frames in songs]
    gappy = Songs.from_arrays(arrays, columns=GENRES, labels=songs.labels, ids=songs.ids)
    whole, gaps = (benchmark(s, ["mean"], cv=3).predictions for s in (songs, gappy))
    assert whole.to_pylist() == gaps.to_pylist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "labels are needed"),
        ({"labels": [None] * 60}, "no song has a label and a frame"),
        ({"labels": ["blues"] * 60, "columns": ("a", "b", "c")}, "all songs have the label blues"),
        ({"labels": [("blues",)] * 60, "task": "multilabel"}, "all songs have the same labels"),
        ({"labels": [None] * 60, "task": "multilabel"}, "no song has a label and a frame"),
        (
            {"labels": ["blues", *[None] * 59], "split": ["train", "test"] * 30},
            "no song of split 'test' has a label and a frame",
        ),
    ],
)
def test_songs_without_an_answer_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SongError, match=message):
        benchmark(make_songs().replace(**change), ["mean"])


def test_plain_arrays_are_refused() -> None:
    with pytest.raises(SongError, match="needs Songs with labels, not list"):
        benchmark([np.zeros((2, 3))], ["mean"])  # type: ignore[arg-type]


# Classes.


def test_labels_that_are_no_columns_go_to_methods_that_learn() -> None:
    rename = {"blues": "slow", "jazz": "swing", "metal": "loud"}
    songs = make_songs()
    songs = songs.replace(labels=[rename[label] for label in songs.labels])
    result = benchmark(songs, [*AVERAGES, ("nearest", Nearest())])
    assert set(result.predictions["method"].to_pylist()) == {"nearest"}
    assert result.classes == ("loud", "slow", "swing")
    assert result.comparisons == ()
    assert "not the names of columns" in result.notes[0]
    assert "mean, logodds, majority are left out" in result.notes[0]
    with pytest.raises(SongError, match=r"song 'song 0': labels such as 'slow' are not the names"):
        benchmark(songs, AVERAGES)


@pytest.mark.parametrize("cv", [None, 5])
def test_a_label_never_seen_in_training_is_refused(cv: int | None) -> None:
    songs = make_songs(split=sides())
    labels = songs.labels.copy()
    labels[7] = "polka"  # a test song, and the only one
    with pytest.raises(SongError, match="song 'song 7': label 'polka' was never seen in training"):
        benchmark(songs.replace(labels=labels), [("nearest", Nearest())], cv=cv)


def test_a_column_without_a_training_song_is_still_a_class() -> None:
    songs = make_songs(split=sides())
    labels, split = songs.labels.copy(), songs.split.copy()
    split[labels == "metal"] = "test"
    result = benchmark(songs.replace(split=split), ["mean"])
    metal = [row for row in rows(result, "mean").values() if row["label"] == "metal"]
    assert len(metal) == 20
    assert any(row["prediction"] == "metal" for row in metal)


@pytest.mark.parametrize("labels", [(0, 2, 5), ("a", "c", "f"), (0.5, 2.0, 5.0), (False, True)])
def test_unnamed_columns_keep_their_class_in_a_fold_that_lacks_one(labels: tuple[Any, ...]) -> None:
    """The last class has one song: its training fold has fewer labels than columns."""
    index = [0, 1] * 5 + [len(labels) - 1]
    scores = [np.where(np.arange(len(labels)) == k, 3.0, -3.0)[None] for k in index]
    songs = Songs.from_arrays(scores, labels=[labels[k] for k in index])
    result = benchmark(songs, ["mean"], cv=2)
    assert result.classes == tuple(map(str, labels))
    said = [row["prediction"] for row in rows(result, "mean").values()]
    assert said == [str(labels[k]) for k in index]


def test_integer_labels_are_scored_in_their_own_order() -> None:
    columns = tuple(map(str, range(12)))
    songs = make_songs(48, columns=columns)
    numbers = songs.replace(labels=[int(label) for label in songs.labels])
    as_text, as_numbers = (benchmark(s, ["mean"], cv=3) for s in (songs, numbers))
    assert as_numbers.classes == columns
    assert as_text.classes == tuple(sorted(columns))
    said = [row["prediction"] for row in rows(as_text, "mean").values()]
    assert said == [row["prediction"] for row in rows(as_numbers, "mean").values()]
    assert value(as_text, "mean", "log_loss") == pytest.approx(
        value(as_numbers, "mean", "log_loss")
    )


def test_the_kind_of_scores_is_heeded() -> None:
    rng = np.random.default_rng(0)
    logits = make_songs().replace(values=rng.normal(0, 3, make_songs().values.shape), kind="logit")
    found = [row["proba"] for row in rows(benchmark(logits, ["logodds"]), "logodds").values()]
    odds = logits.replace(values=to_log_odds(logits.values, "logit"), kind="log_odds")
    expected = [row["proba"] for row in rows(benchmark(odds, ["logodds"]), "logodds").values()]
    np.testing.assert_array_equal(found, expected)


# The numbers.


def test_metrics_are_those_of_the_predictions() -> None:
    result = benchmark(make_songs(groups=artists()), [*AVERAGES, ("nearest", Nearest())], cv=3)
    for method in (*AVERAGES, "nearest"):
        for fold in (None, 0, 1, 2):
            part = [r for r in rows(result, method).values() if fold in (None, r["fold"])]
            label, said = ([row[name] for row in part] for name in ("label", "prediction"))
            proba = np.array([row["proba"] for row in part])
            expected = {
                "accuracy": sklearn.metrics.accuracy_score(label, said),
                "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(label, said),
                "macro_f1": sklearn.metrics.f1_score(label, said, average="macro"),
                "log_loss": sklearn.metrics.log_loss(label, proba / proba.sum(1, keepdims=True)),
                "n_songs": len(part),
            }
            found = {metric: value(result, method, metric, fold) for metric in expected}
            assert found == pytest.approx(expected, rel=1e-5)


def test_comparisons_are_those_of_the_predictions() -> None:
    songs = make_songs(groups=artists())
    methods = (*AVERAGES, "nearest")
    result = benchmark(songs, [*AVERAGES, ("nearest", Nearest())], seed=3, n_resamples=500)
    said = {m: [row["prediction"] for row in rows(result, m).values()] for m in methods}
    for baseline in BASELINES:
        others = [m for m in methods if m != baseline]
        expected = {
            m: compare(songs.labels, said[m], said[baseline], songs.groups, 3, 500) for m in others
        }
        adjusted = dict(zip(others, holm([c.p_value for c in expected.values()]), strict=True))
        pairs = [pair for pair in result.comparisons if pair.baseline == baseline]
        assert {pair.method: pair.comparison for pair in pairs} == expected
        for m in others:
            of_method = {
                "accuracy_minus_{}": expected[m].difference,
                "accuracy_minus_{}_low": expected[m].low,
                "accuracy_minus_{}_high": expected[m].high,
                "wins_over_{}": expected[m].wins_a,
                "losses_to_{}": expected[m].wins_b,
                "mcnemar_p_{}": expected[m].p_value,
                "holm_p_{}": adjusted[m],
            }
            for name, number in of_method.items():
                assert value(result, m, name.format(baseline)) == number
    difference = value(result, "nearest", "accuracy_minus_mean")
    apart = value(result, "nearest", "accuracy") - value(result, "mean", "accuracy")
    assert difference == pytest.approx(apart)
    assert difference != 0


def test_baselines_are_compared_with_though_not_asked_for() -> None:
    songs = make_songs()
    alone = benchmark(songs, [("nearest", Nearest())])
    beside = benchmark(songs, ["mean", "logodds", ("nearest", Nearest())])
    assert set(alone.results["method"].to_pylist()) == {"nearest"}
    assert set(alone.predictions["method"].to_pylist()) == {"nearest"}
    for baseline in BASELINES:
        name = f"accuracy_minus_{baseline}_low"
        assert value(alone, "nearest", name) == value(beside, "nearest", name)


def test_baselines_take_their_parameters_where_not_asked_for() -> None:
    result = benchmark(make_songs(), ["majority"], parameters={"mean": {"on_empty": "prior"}})
    assert [pair.baseline for pair in result.comparisons] == ["mean", "logodds"]


def test_seconds_of_all_folds_add_up() -> None:
    result = benchmark(make_songs(), ["mean"], cv=3)
    for metric in ("fit_seconds", "predict_seconds"):
        parts = [value(result, "mean", metric, k) for k in range(3)]
        assert min(parts) > 0
        assert value(result, "mean", metric) == pytest.approx(sum(parts))


def test_summary_has_a_row_for_each_method() -> None:
    result = benchmark(make_songs(), ["logodds", ("nearest", Nearest())])
    first, second = result.summary()
    assert (first["method"], second["method"]) == ("logodds", "nearest")
    assert first["accuracy"] == value(result, "logodds", "accuracy")
    assert second["holm_p_mean"] == value(result, "nearest", "holm_p_mean")
    verdicts = {(p.method, p.baseline): p.comparison.verdict for p in result.comparisons}
    assert second["verdict_logodds"] == verdicts["nearest", "logodds"]
    assert "verdict_logodds" not in first


# Invariances.


def test_order_of_methods_changes_no_number() -> None:
    songs = make_songs(groups=artists())
    methods = [*AVERAGES, ("nearest", Nearest()), ("dice", Dice())]
    forth, back = (benchmark(songs, m, cv=3) for m in (methods, methods[::-1]))
    assert back.summary()[0]["method"] == "dice"

    def ordered(found: list[dict[str, Any]]) -> list[str]:
        return sorted(json.dumps(row, sort_keys=True) for row in found)

    assert ordered(without_times(forth)) == ordered(without_times(back))
    assert ordered(forth.predictions.to_pylist()) == ordered(back.predictions.to_pylist())


def test_order_of_songs_changes_no_fold_and_no_prediction() -> None:
    songs = make_songs(groups=artists())
    shuffled = songs[np.random.default_rng(1).permutation(60)]
    one, other = (
        benchmark(s, [*AVERAGES, ("nearest", Nearest())], cv=3) for s in (songs, shuffled)
    )
    for method in (*AVERAGES, "nearest"):
        expected = rows(one, method)
        for song, row in rows(other, method).items():
            np.testing.assert_allclose(row.pop("proba"), expected[song].pop("proba"), rtol=1e-5)
            assert row == expected[song]


def test_names_of_classes_and_groups_change_nothing() -> None:
    rename = {"blues": "z", "jazz": "y", "metal": "x"}
    songs = make_songs(groups=artists())
    renamed = songs.replace(
        columns=[rename[c] for c in GENRES],
        labels=[rename[label] for label in songs.labels],
        groups=[f"{artist[::-1]}!" for artist in songs.groups],
    )
    one, other = (benchmark(s, [*AVERAGES, ("nearest", Nearest())], cv=3) for s in (songs, renamed))
    for method in (*AVERAGES, "nearest"):
        expected = rows(one, method)
        for song, row in rows(other, method).items():
            assert row["fold"] == expected[song]["fold"]
            assert row["prediction"] == rename[expected[song]["prediction"]]
            assert row["proba"][::-1] == pytest.approx(expected[song]["proba"], rel=1e-5)


def test_names_of_classes_move_no_song_to_another_fold() -> None:
    """Uneven classes in uneven groups, where scikit-learn alone draws other folds."""
    columns = tuple("abcde")
    for seed in range(4):
        rng = np.random.default_rng(seed)
        songs = make_songs(columns=columns, groups=rng.integers(0, 20, 60)).replace(
            labels=rng.choice(columns, 60)
        )
        rename = dict(zip(columns, "zxywv", strict=True))
        renamed = songs.replace(
            columns=[rename[c] for c in columns], labels=[rename[k] for k in songs.labels]
        )
        one, other = (benchmark(s, ["mean"], n_resamples=1) for s in (songs, renamed))
        assert one.predictions["fold"].equals(other.predictions["fold"])


# Methods.


def test_seed_reaches_methods_that_take_chances() -> None:
    songs = make_songs()
    own = Dice(random_state=99)
    one, again, other = (benchmark(songs, [("dice", own)], seed=s, cv=2) for s in (1, 1, 2))
    fixed = benchmark(
        songs, [("dice", own)], seed=2, cv=2, parameters={"dice": {"random_state": 1}}
    )
    assert one.predictions.equals(again.predictions)
    assert provenance(one.results)["parameters"]["dice"]["random_state"] == 1
    assert provenance(other.results)["parameters"]["dice"]["random_state"] == 2
    assert provenance(fixed.results)["parameters"]["dice"]["random_state"] == 1
    assert own.random_state == 99
    assert not hasattr(own, "classes_")
    assert one.predictions["proba"].to_pylist() != other.predictions["proba"].to_pylist()


@pytest.mark.parametrize(
    ("methods", "settings", "message"),
    [
        ([], {}, "one or more"),
        ("mean", {}, "must be a list"),
        (["mena"], {}, "no method 'mena'; there are majority, mean"),
        (["mean", "mean"], {}, "'mean' stands there twice"),
        ([("mean", Nearest())], {}, "'mean' is the name of a baseline"),
        ([("mine", "mean")], {}, "'mine' is no Aggregator"),
        (["mean"], {"parameters": {"gru": {}}}, "parameters for 'gru'"),
        (["mean"], {"parameters": {"mean": {"size": 3}}}, "'mean' has no parameter size"),
        ([("mine", Nearest())], {"parameters": {"mine": {"size": 3}}}, "'mine': Invalid parameter"),
        (["mean"], {"cv": 1}, "cv=1"),
        (["mean"], {"seed": -1}, "seed=-1"),
        (["mean"], {"seed": 2**32}, "seed=4294967296"),
        (["mean"], {"n_resamples": 0}, "n_resamples=0"),
    ],
)
def test_bad_settings_are_refused_before_any_fit(
    methods: Any, settings: dict[str, Any], message: str
) -> None:
    def never(done: int, total: int, text: str) -> None:
        raise AssertionError("a fit began")

    with pytest.raises(ParameterError, match=message):
        benchmark(make_songs(), methods, progress=never, **settings)


def test_progress_counts_the_fits() -> None:
    seen: list[tuple[int, int, str]] = []
    benchmark(make_songs(), ["mean"], cv=2, progress=lambda *step: seen.append(step))
    assert [done for done, _, _ in seen] == [0, 1, 2, 3, 4]
    assert {total for _, total, _ in seen} == {4}
    assert seen[0][2] == "mean, fold 1 of 2"
    assert seen[-1][2] == "done"


# What a reader should know.


def test_few_groups_and_groups_on_both_sides_are_noted() -> None:
    six = make_songs(groups=[f"speaker {i % 6}" for i in range(60)], split=sides())
    notes = benchmark(six, ["mean"]).notes
    assert notes == (
        "only 6 groups are scored: intervals are somewhat too narrow",
        "groups on both sides of the split: 6",
    )
    assert benchmark(make_songs(), ["mean"]).notes == ()


# The tables.


def provenance(table: pa.Table) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(table.schema.metadata[b"seqagg"])
    return found


def test_tables_have_the_documented_columns(tmp_path: Path) -> None:
    benchmark(make_songs(), ["mean"], name="tunes", seed=5).write(tmp_path / "new" / "folder")
    read = {
        name: pq.read_table(tmp_path / "new" / "folder" / f"{name}.parquet")
        for name in ("results", "predictions")
    }
    text = pa.string()
    assert read["results"].schema.equals(
        pa.schema(
            {
                "cache": text,
                "method": text,
                "fold": pa.int32(),
                "seed": pa.int64(),
                "metric": text,
                "value": pa.float64(),
            }
        )
    )
    assert read["predictions"].schema.equals(
        pa.schema(
            {
                "song_id": text,
                "method": text,
                "fold": pa.int32(),
                "seed": pa.int64(),
                "label": text,
                "prediction": text,
                "proba": pa.list_(pa.field("element", pa.float32())),
            }
        )
    )
    assert set(read["results"]["cache"].to_pylist()) == {"tunes"}
    for table in read.values():
        assert set(table["seed"].to_pylist()) == {5}
        assert set(provenance(table)) >= {"command", "versions", "checksum", "seed", "classes"}


def test_probabilities_are_in_the_order_of_the_classes_in_the_metadata() -> None:
    result = benchmark(make_songs(columns=("metal", "jazz", "blues")), ["logodds"])
    classes = provenance(result.predictions)["classes"]
    assert classes == list(result.classes) == ["blues", "jazz", "metal"]
    for row in rows(result, "logodds").values():
        assert classes[int(np.argmax(row["proba"]))] == row["prediction"]
        assert sum(row["proba"]) == pytest.approx(1, abs=1e-6)


def test_a_rerun_writes_the_same_predictions(tmp_path: Path) -> None:
    songs = make_songs(groups=artists())
    for name in ("one", "two"):
        benchmark(songs, [*AVERAGES, ("dice", Dice())], cv=2).write(tmp_path / name)
    one, two = ((tmp_path / name / "predictions.parquet").read_bytes() for name in ("one", "two"))
    assert one == two


def test_write_replaces_an_earlier_benchmark_and_leaves_nothing_else(tmp_path: Path) -> None:
    for seed in (0, 1):
        benchmark(make_songs(), ["mean"], seed=seed).write(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["predictions.parquet", "results.parquet"]
    assert set(pq.read_table(tmp_path / "results.parquet")["seed"].to_pylist()) == {1}


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    result = benchmark(make_songs(), AVERAGES)
    result.write(tmp_path)
    whole = (tmp_path / "predictions.parquet").read_bytes()
    # What is behind the pages, and says how to read them, has no checksum of its own.
    footer = int.from_bytes(whole[-8:-4], "little")
    n_caught = 0
    for position in range(4, len(whole) - 8 - footer, 31):
        flipped = bytearray(whole)
        flipped[position] ^= 1
        try:
            read = pq.ParquetFile(io.BytesIO(flipped), page_checksum_verification=True).read()
        except (OSError, pa.ArrowException):
            n_caught += 1
        else:
            assert read.equals(result.predictions)
    assert n_caught > 10


def test_provenance_names_command_versions_and_input(monkeypatch: pytest.MonkeyPatch) -> None:
    songs = make_songs()
    monkeypatch.setattr(sys, "argv", ["/usr/bin/seqagg", "benchmark", "my tunes.parquet"])
    result = benchmark(songs, ["mean"], n_resamples=50, seed=3)
    found = provenance(result.results)
    assert found == provenance(result.predictions)
    assert found["command"] == "seqagg benchmark 'my tunes.parquet'"
    assert found["versions"]["python"] == sys.version.split()[0]
    assert found["versions"]["numpy"] == np.__version__
    assert found["versions"]["scikit-learn"] == sklearn.__version__
    assert set(found["versions"]) >= {"seqagg", "scipy", "torch", "hmmlearn"}
    assert found["checksum"] == songs_checksum(songs)
    assert (found["seed"], found["n_resamples"], found["folds"]) == (3, 50, 5)
    given = provenance(benchmark(songs, ["mean"], checksum="ab", command="make demo").results)
    assert (given["checksum"], given["command"]) == ("ab", "make demo")


def test_provenance_has_no_addresses_in_it() -> None:
    class Odd(Nearest):
        def __init__(self, *, hook: Any = None, on_empty: str = "error") -> None:
            super().__init__(on_empty=on_empty)
            self.hook = hook

    result = benchmark(make_songs(), [("odd", Odd(hook=MeanProbability()))])
    assert provenance(result.results)["parameters"]["odd"]["hook"] == "MeanProbability"


def test_checksum_is_that_of_the_content(tmp_path: Path) -> None:
    songs = make_songs(groups=artists(), split=sides())
    write_cache(songs, tmp_path / "songs.parquet")
    expected = songs_checksum(songs)
    assert len(expected) == 64
    assert songs_checksum(songs[np.arange(60)]) == expected

    def swapped(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        other = array.copy()
        other[[0, 1]] = array[[1, 0]]
        return other

    offsets = songs.offsets.copy()
    offsets[1] += 1 if offsets[1] < offsets[2] else -1
    changes: list[dict[str, Any]] = [
        {"values": swapped(songs.values)},
        {"offsets": offsets},
        {"columns": GENRES[::-1]},
        {"ids": swapped(songs.ids)},
        {"labels": swapped(songs.labels)},
        {"groups": swapped(songs.groups)},
        {"split": swapped(songs.split)},
        {"values": np.abs(songs.values) % 1},
        {"values": np.abs(songs.values) % 1, "kind": "probability"},
    ]
    found = {songs_checksum(songs.replace(**change)) for change in changes}
    assert len(found | {expected}) == len(changes) + 1


def test_averages_are_benchmarked_without_importing_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("torch", "hmmlearn"):
        monkeypatch.setitem(sys.modules, package, None)  # so that importing it fails
    versions = provenance(benchmark(make_songs(), AVERAGES, cv=2).results)["versions"]
    assert versions["torch"]
    assert versions["hmmlearn"]


# Several labels per song.


def songs_of_several(n: int = 60, **fields: Any) -> Songs:
    """Songs of none, one or several of three labels, frames out of the order of the alphabet."""
    rng = np.random.default_rng(0)
    columns = ("rock", "calm", "voice")
    has = rng.random((n, 3)) < [0.5, 0.4, 0.2]
    arrays = [rng.normal(1.5 * row - 1, 1.5, (rng.integers(3, 8), 3)) for row in has]
    labels = [tuple(c for c, h in zip(columns, row, strict=True) if h) for row in has]
    kept = {"columns": columns, "labels": labels, "task": "multilabel"}
    return Songs.from_arrays(arrays, ids=[f"song {i}" for i in range(n)], **(kept | fields))


def indicator(lists: Any, classes: tuple[str, ...]) -> npt.NDArray[np.int64]:
    return np.array([[int(c in row) for c in classes] for row in lists])


def test_several_labels_are_scored_and_compared_by_their_ranking() -> None:
    songs = songs_of_several(groups=artists())
    result = benchmark(songs, ["majority", "logodds"], cv=3)
    assert result.classes == ("calm", "rock", "voice")
    found = {m: list(rows(result, m).values()) for m in ("majority", "logodds")}
    truth = dict(zip(songs.ids, songs.labels, strict=True))
    ranked = {}
    for method, table in found.items():
        assert all(row["label"] == sorted(truth[row["song_id"]]) for row in table)
        y = indicator([row["label"] for row in table], result.classes)
        said = indicator([row["prediction"] for row in table], result.classes)
        p = np.array([row["proba"] for row in table])
        expected = evaluation_multilabel.evaluate(y, said, p)
        for metric, number in expected.items():
            assert value(result, method, metric) == pytest.approx(number, abs=1e-6), metric
        ranked[method] = evaluation_multilabel.lrap_of_songs(y, p)
    groups = dict(zip(songs.ids, songs.groups, strict=True))
    expected = compare_scores(
        ranked["majority"],
        ranked["logodds"],
        [groups[row["song_id"]] for row in found["logodds"]],
        seed=0,
    )
    pair = next(c for c in result.comparisons if c.baseline == "logodds")
    assert pair.metric == "lrap"
    assert (pair.comparison.wins_a, pair.comparison.wins_b) == (expected.wins_a, expected.wins_b)
    assert pair.comparison.difference == pytest.approx(expected.difference, abs=1e-9)
    assert value(result, "majority", "lrap_minus_logodds") == pair.comparison.difference
    assert value(result, "majority", "sign_p_logodds") == pair.comparison.p_value
    assert provenance(result.results)["task"] == "multilabel"


def test_unnamed_columns_are_named_by_the_sorted_labels() -> None:
    songs = songs_of_several()
    order = np.argsort(songs.columns)
    turned = songs.replace(values=songs.values[:, order], columns=None)
    one, other = (benchmark(s, ["mean"], cv=3).predictions for s in (songs, turned))
    assert one.to_pylist() == other.to_pylist()


def test_lists_of_labels_are_read_back(tmp_path: Path) -> None:
    benchmark(songs_of_several(), ["mean"], cv=3).write(tmp_path)
    read = pq.read_table(tmp_path / "predictions.parquet")
    lists = pa.list_(pa.field("element", pa.string()))
    assert read.schema.field("label").type == read.schema.field("prediction").type == lists
    assert [] in read["label"].to_pylist()


def test_tags_that_are_no_labels_go_to_methods_that_learn() -> None:
    songs = songs_of_several(columns=("guitar", "piano", "drums"))
    result = benchmark(songs, ["mean", "stack"], cv=3)
    assert [row["method"] for row in result.summary()] == ["stack"]
    assert "labels such as 'calm' are not the names of columns" in result.notes[0]


def test_one_of_several_labels_never_seen_in_training_is_refused() -> None:
    songs = songs_of_several(columns=("guitar", "piano", "drums"))
    labels = [*songs.labels[:-1], ("calm", "polka")]
    with pytest.raises(SongError, match=r"^song 'song 59': label 'polka' was never seen"):
        benchmark(songs.replace(labels=labels), ["stack"], cv=3)


def test_names_of_equally_rare_labels_move_no_song() -> None:
    """The songs that have both are counted with one of them, whatever the two are called."""
    lists = [[("rock", "calm"), ("rock",), ("calm",), ("voice",)][i] for i in np.arange(60) % 4]
    swapped = [[{"rock": "calm", "calm": "rock"}.get(c, c) for c in row] for row in lists]
    one, two = (
        benchmark(songs_of_several(labels=labels), ["mean"], cv=3).predictions["fold"].to_pylist()
        for labels in (lists, swapped)
    )
    assert one == two


def test_order_and_names_of_several_labels_move_no_song() -> None:
    songs = songs_of_several()
    other = {"rock": "a", "calm": "z", "voice": "m"}
    renamed = songs.replace(
        columns=[other[c] for c in songs.columns],
        labels=[[other[c] for c in reversed(row)] for row in songs.labels],
    )
    one, two = (benchmark(s, ["mean"], cv=3) for s in (songs, renamed))
    assert one.predictions["fold"].to_pylist() == two.predictions["fold"].to_pylist()
    for metric in ("lrap", "subset_accuracy", "log_loss"):
        assert value(two, "mean", metric) == pytest.approx(value(one, "mean", metric), rel=1e-6)


TWO_EPOCHS: dict[str, Any] = {"mil": {"epochs": 2, "n_folds": 2, "hidden_size": 4}}


@pytest.fixture(scope="module")
def seeded() -> BenchmarkResult:
    songs, methods = order_free_songs(48, gap=0.7), ["logodds", "mil"]
    return benchmark(songs, methods, cv=2, seed=3, n_seeds=3, parameters=TWO_EPOCHS)


class TestSeeds:
    """Methods that depend on chance, fitted several times on the same folds."""

    def test_the_first_is_what_it_is_alone(self, seeded: BenchmarkResult) -> None:
        songs = order_free_songs(48, gap=0.7)
        alone = benchmark(songs, ["logodds", "mil"], cv=2, seed=3, parameters=TWO_EPOCHS)
        first = pa.array(np.asarray(seeded.predictions["seed"]) == 3)
        table = seeded.predictions.filter(first)
        assert table.to_pylist() == alone.predictions.to_pylist()
        assert seeded.comparisons == alone.comparisons

    def test_the_others_are_those_of_their_seed_on_the_same_folds(
        self, seeded: BenchmarkResult
    ) -> None:
        rows = seeded.predictions.to_pylist()
        assert {(r["method"], r["seed"]) for r in rows} == {
            ("logodds", 3),
            *(("mil", seed) for seed in (3, 4, 5)),
        }
        folds = {}
        for row in rows:
            assert folds.setdefault(row["song_id"], row["fold"]) == row["fold"]
        songs = order_free_songs(48, gap=0.7)
        fold = np.array([folds[str(i)] for i in songs.ids])
        own = make_aggregator("mil", **TWO_EPOCHS["mil"], random_state=5)
        own.fit(songs[fold != 0])
        told = {r["song_id"]: r for r in rows if (r["method"], r["seed"]) == ("mil", 5)}
        held = songs[fold == 0]
        for song, proba in zip(held.ids, own.predict_proba(held), strict=True):
            assert told[str(song)]["proba"] == pytest.approx(proba.tolist(), rel=1e-6)

    def test_the_summary_has_the_first_and_the_scores_of_all(self, seeded: BenchmarkResult) -> None:
        averaging, mil = seeded.summary()
        of_seeds = [
            row["value"]
            for row in seeded.results.to_pylist()
            if (row["method"], row["fold"], row["metric"]) == ("mil", None, "accuracy")
        ]
        assert len(of_seeds) == 3
        assert mil["accuracy_of_seeds"] == of_seeds
        assert mil["accuracy"] == of_seeds[0]
        assert averaging["accuracy_of_seeds"] == [averaging["accuracy"]]

    def test_pages_and_files_keep_them_apart(self, seeded: BenchmarkResult, tmp_path: Path) -> None:
        seeded.write(tmp_path)
        found = read_results(tmp_path)
        assert found.summary() == seeded.summary()
        assert find_answers(found).methods == ("logodds", "mil")
        assert "mil" in seeded._repr_html_()

    def test_the_command_shows_the_lowest_and_the_highest(self, tmp_path: Path) -> None:
        write_cache(order_free_songs(48, gap=0.5), tmp_path / "songs.parquet")
        command = ["benchmark", str(tmp_path / "songs.parquet"), "--methods", "logodds,stack"]
        done = CliRunner().invoke(main, [*command, "--cv", "2", "--seeds", "2"])
        assert done.exit_code == 0, done.output
        assert ".." in next(line for line in done.stdout.splitlines() if "stack" in line)

    def test_fewer_than_one_is_refused(self) -> None:
        with pytest.raises(ParameterError, match="n_seeds=0"):
            benchmark(order_free_songs(12), ["mean"], cv=2, n_seeds=0)
