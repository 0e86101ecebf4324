"""Timelines: numbers found again by hand, one song and one prefix at a time."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from seqagg import HMMAggregator, MeanLogOdds, ParameterError, Songs, benchmark
from seqagg.aggregators.base import Aggregator
from seqagg.results import TIMELINES, BenchmarkResult
from seqagg.timelines import MOST_MARKS, even_marks, growing_marks
from tests.conftest import order_songs

QUICK: dict[str, Any] = {"n_states": 2, "covariance_type": "diag", "n_iter": 3, "n_restarts": 1}


class LastFrame(Aggregator):
    """The class whose column is highest in the last frame: all that counts is the order."""

    def __init__(self, *, on_empty: str = "error") -> None:
        self.on_empty = on_empty  # type: ignore[assignment]

    def _log_scores(self, songs: Songs) -> Any:
        return songs.values[songs.offsets[1:] - 1].astype(np.float64)


def song_set() -> Songs:
    """Songs of 1 to 60 frames, so that some have more frames than marks."""
    songs = order_songs(24)
    rng = np.random.default_rng(5)
    lengths = rng.integers(2, 12, len(songs))
    lengths[[1, 7]] = 1, 60
    arrays = [
        np.resize(frames, (n, frames.shape[1])) for frames, n in zip(songs, lengths, strict=True)
    ]
    arrays = [a + rng.normal(0, 1.5, a.shape) for a in arrays]
    return Songs.from_arrays(
        arrays,
        ids=songs.ids,
        columns=songs.columns,
        labels=songs.labels,
        start=[2.5 * np.arange(n) for n in lengths],
    )


@cache
def found() -> tuple[Songs, BenchmarkResult]:
    songs = song_set()
    methods = ["mean", ("last", LastFrame()), ("states", HMMAggregator(**QUICK))]
    return songs, benchmark(songs, methods, cv=2, timelines=100, n_resamples=50)


def rows() -> dict[str, dict[str, Any]]:
    table = found()[1].timelines
    assert table is not None
    return {row["song_id"]: row for row in table.to_pylist()}


def by_hand(method: str, song: str) -> tuple[Aggregator, np.ndarray]:
    """Model that scored a song, fitted again, and the frames of the song."""
    songs, result = found()
    fold_of = {r["song_id"]: r["fold"] for r in result.predictions.to_pylist()}
    train = np.array([fold_of[str(i)] != fold_of[song] for i in songs.ids])
    made = {"logodds": MeanLogOdds(), "last": LastFrame(), "states": HMMAggregator(**QUICK)}
    fitted = _fit(method, made[method], fold_of[song], train.tobytes())
    return fitted, songs[songs.ids.tolist().index(song)]


_fitted: dict[tuple[str, int], Aggregator] = {}


def _fit(method: str, aggregator: Aggregator, fold: int, train: bytes) -> Aggregator:
    if (method, fold) not in _fitted:
        songs = found()[0]
        _fitted[method, fold] = aggregator.fit(songs[np.frombuffer(train, dtype=bool)])
    return _fitted[method, fold]


METHODS = ["logodds", "last", "states"]


def ids() -> list[str]:
    songs = song_set()
    return [str(songs.ids[i]) for i in (1, 4, 7, 10)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("song", ids())
def test_beliefs_are_what_the_frames_so_far_would_be_given(song: str, method: str) -> None:
    row = rows()[song]
    model, frames = by_hand(method, song)
    assert row["marks"][-1] == len(frames) == row["n_frames"]
    for mark, belief in zip(row["marks"], row["belief"][method], strict=True):
        np.testing.assert_allclose(belief, model.predict_proba([frames[:mark]])[0], atol=1e-6)


@pytest.mark.parametrize("song", ids())
def test_averaging_is_taken_apart_exactly(song: str) -> None:
    row = rows()[song]
    songs = found()[0]
    frames = songs[songs.ids.tolist().index(song)].astype(np.float64)
    a, b = (songs.columns.index(row[side]) for side in ("toward", "against"))
    lead = frames[:, a].mean() - frames[:, b].mean()
    shares = row["contribution"]["logodds"]
    assert sum(shares) == pytest.approx(lead, abs=1e-5)
    first = frames[: row["marks"][0]]
    assert shares[0] == pytest.approx((first[:, a] - first[:, b]).sum() / len(frames), abs=1e-6)


@pytest.mark.parametrize("method", ["last", "states"])
@pytest.mark.parametrize("song", ids()[1:])
def test_others_by_what_they_lose_without_a_stretch(song: str, method: str) -> None:
    row = rows()[song]
    model, frames = by_hand(method, song)
    classes = found()[1].classes
    a, b = (classes.index(row[side]) for side in ("toward", "against"))

    def lead(heard: np.ndarray) -> float:
        log_p = model.predict_log_proba([heard])[0]
        return float(log_p[a] - log_p[b])

    starts = [0, *row["marks"][:-1]]
    for k in (0, len(starts) // 2, len(starts) - 1):
        without = np.delete(frames, slice(starts[k], row["marks"][k]), axis=0)
        expected = lead(frames) - lead(without)
        assert row["contribution"][method][k] == pytest.approx(expected, abs=1e-4)


def test_a_song_of_one_frame_owes_it_everything() -> None:
    row = rows()[ids()[0]]
    assert row["marks"] == [1]
    for method in METHODS:
        belief = np.array(row["belief"][method][0])
        a, b = (found()[1].classes.index(row[side]) for side in ("toward", "against"))
        if method != "logodds":
            expected = np.log(belief[a] / belief[b])
            assert row["contribution"][method] == [pytest.approx(expected, abs=1e-4)]


@pytest.mark.parametrize("song", ids())
def test_the_state_path_is_hmmlearns(song: str) -> None:
    row = rows()[song]
    model, frames = by_hand("states", song)
    answer = model.predict([frames])[0]
    path = model.hmms_[answer].predict(frames.astype(np.float64))
    assert row["state"] == {"states": path.tolist()}


def test_what_is_right_early_ends_as_what_is_right() -> None:
    songs, result = found()
    accuracy = {row["method"]: row["accuracy"] for row in result.summary()}
    ends = {m: np.mean([row["early_score"][m][-1] for row in rows().values()]) for m in accuracy}
    assert ends == pytest.approx(accuracy)
    for song in ids():
        row = rows()[song]
        model, frames = by_hand("last", song)
        label = songs.labels[songs.ids.tolist().index(song)]
        right = [model.predict([frames[:m]])[0] == label for m in row["early_marks"]]
        assert row["early_score"]["last"] == right


def test_shuffling_tells_who_listens_to_the_order() -> None:
    """Of the last of shuffled frames nothing is known but that it is one of them."""
    gaps = {"states": [], "last": []}
    for song, row in rows().items():
        k = found()[1].classes.index(row["toward"])
        assert "logodds" not in row["shuffled"]
        for method, gap in gaps.items():
            gap.append(abs(row["shuffled"][method] - row["belief"][method][-1][k]))
        if row["n_frames"] == 1:
            assert gaps["last"][-1] == pytest.approx(0, abs=1e-6)
        else:
            model, frames = by_hand("last", song)
            each = model.predict_proba(frames[:, None])[:, k]
            assert each.min() - 1e-6 <= row["shuffled"]["last"] <= each.max() + 1e-6
    assert np.mean(gaps["last"]) > 0.02


def test_songs_on_which_methods_differ_come_first() -> None:
    songs = song_set()
    methods = ["mean", ("last", LastFrame())]
    for most in (3, 12):
        result = benchmark(songs, methods, cv=2, timelines=most, n_resamples=50)
        right: dict[str, dict[str, bool]] = {}
        for r in result.predictions.to_pylist():
            right.setdefault(r["song_id"], {})[r["method"]] = r["label"] == r["prediction"]
        # Averaging log-odds is always compared with, though it is not shown.
        told = {r["song_id"]: r for r in result.timelines.to_pylist()}
        kept = [song for song, row in told.items() if row["log_odds"] is not None]
        assert len(kept) == most
        assert all(row["n_frames"] > 0 for row in told.values())
        final = {s: {m: v[-1] for m, v in row["early_score"].items()} for s, row in told.items()}
        rank = {
            s: (f["last"] != f["logodds"]) + (len(set(f.values())) > 1) for s, f in final.items()
        }
        others = [rank[s] for s in told if s not in kept]
        assert min(rank[s] for s in kept) >= max(others)


def test_a_timeline_depends_on_its_song_alone() -> None:
    songs = song_set()
    methods = ["mean", ("last", LastFrame()), ("states", HMMAggregator(**QUICK))]
    few = benchmark(songs, methods, cv=2, timelines=4, n_resamples=50).timelines.to_pylist()
    all_ = rows()
    for row in few:
        if row["log_odds"] is not None:
            whole = all_[row["song_id"]]
            for name in ("marks", "start", "log_odds"):
                assert row[name] == whole[name]
            for m in ("logodds", "last"):
                np.testing.assert_allclose(row["belief"][m], whole["belief"][m], atol=1e-6)
                assert row["shuffled"].get(m) == pytest.approx(whole["shuffled"].get(m), abs=1e-6)


def test_several_labels_per_song_are_each_by_themselves() -> None:
    rng = np.random.default_rng(2)
    has = rng.random((40, 3)) < 0.5
    columns = ["a", "b", "c"]
    songs = Songs.from_arrays(
        [rng.normal(1.5 * row - 0.7, 1.5, (6, 3)) for row in has],
        columns=columns,
        labels=[tuple(c for c, h in zip(columns, row, strict=True) if h) for row in has],
        split=["train"] * 20 + ["test"] * 20,
        task="multilabel",
    )
    result = benchmark(songs, ["logodds", "stack"], timelines=20, n_resamples=50)
    model = MeanLogOdds().fit(songs[:20])
    for i, row in zip(range(20, 40), result.timelines.to_pylist(), strict=True):
        assert row["against"] is None
        k = columns.index(row["toward"])
        expected = [model.predict_proba([songs[i][:m]])[0] for m in row["marks"]]
        np.testing.assert_allclose(row["belief"]["logodds"], expected, atol=1e-6)
        assert sum(row["contribution"]["logodds"]) == pytest.approx(songs[i][:, k].mean(), abs=1e-5)


def test_labels_that_are_no_columns() -> None:
    """There is nothing to average; what learns is told all the same."""
    songs = song_set()
    songs = songs.replace(
        labels=["x" if label == songs.labels[0] else "y" for label in songs.labels]
    )
    result = benchmark(songs, [("last", HMMAggregator(**QUICK))], cv=2, timelines=5, n_resamples=50)
    kept = [row for row in result.timelines.to_pylist() if row["log_odds"] is not None]
    assert len(kept) == 5
    assert {row["toward"] for row in kept} <= {"x", "y"}
    assert all(list(row["belief"]) == ["last"] for row in kept)


def test_without_asking_there_are_none() -> None:
    assert benchmark(song_set(), ["mean"], cv=2, n_resamples=50).timelines is None
    with pytest.raises(ParameterError, match="timelines=-1 is below 0"):
        benchmark(song_set(), ["mean"], timelines=-1)


def test_columns_of_the_table() -> None:
    assert found()[1].timelines.column_names == list(TIMELINES)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 39, 40, 41, 64, 1000])
def test_marks(n: int) -> None:
    even, growing = even_marks(n), growing_marks(n)
    for marks in (even, growing):
        assert marks[0] >= 1
        assert marks[-1] == n
        assert (np.diff(marks) > 0).all()
    assert len(even) == min(n, MOST_MARKS)
    assert np.diff(even).max(initial=1) - np.diff(even).min(initial=n) <= 1
    assert [m for m in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48) if m < n] == growing[:-1][
        :11
    ].tolist()
