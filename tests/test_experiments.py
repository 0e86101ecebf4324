"""The scripts of `experiments`, on tiny songs.

What they compute for themselves is checked against enumeration and published tables; the rest is
that they run, go on where they stopped, and write what the README shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.io import wavfile

from experiments import (
    big_table,
    caches,
    digits,
    embedded,
    end_to_end,
    gpu,
    known_limit,
    leak,
    learning_curve,
    readme,
    runs,
    speech,
)
from experiments.caches import Cache, find_caches
from experiments.pictures import cliques, draw_ranks
from experiments.scale import __main__ as scale_main
from experiments.tables import Outcome, Results, compare_runs
from experiments.tunes import stages
from experiments.tunes.store import load_json, save_json
from seqagg import MeanLogOdds, Songs, write_cache
from tests.conftest import assert_same_songs, order_free_songs, order_songs
from tests.reference import hmm_log_likelihood_by_enumeration

METHODS = "mean,logodds,stack,gru"


def divided(songs: Songs) -> Songs:
    """Every fourth song for the test; twelve groups, none on both sides."""
    split = ["test" if i % 4 == 3 else "train" for i in range(len(songs))]
    groups = [f"group {i % 12}" for i in range(len(songs))]
    return songs.replace(split=split, groups=groups)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of two tiny caches; the songs that come with seqagg stay out of it."""
    monkeypatch.setattr(caches, "embedded_cache", lambda: None)
    folder = tmp_path / "data"
    write_cache(divided(order_songs(36)), folder / "ordered.parquet")
    write_cache(divided(order_free_songs(36)), folder / "unordered.parquet")
    return folder


def rows_of(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def right(*values: int, groups: Any = None) -> Outcome:
    n = np.arange(len(values)) if groups is None else np.array(groups)
    return Outcome({"accuracy": float(np.mean(values))}, np.array(values, dtype=bool), n)


# Caches.


def test_what_is_no_cache_of_labelled_songs_is_named_and_left_out(data, capsys):
    pq.write_table(pa.table({"a": [1]}), data / "other.parquet")
    write_cache(order_songs(3).replace(labels=None), data / "unlabelled.parquet")
    assert [cache.name for cache in find_caches(data)] == ["ordered", "unordered"]
    lines = capsys.readouterr().err.splitlines()
    assert ["other.parquet" in lines[0], "unlabelled.parquet" in lines[1]] == [True, True]


def test_no_cache_at_all_is_one_line(data):
    with pytest.raises(SystemExit, match="--data"):
        find_caches(None)


def test_quick_keeps_a_few_songs_of_each_class_and_side(data):
    write_cache(divided(order_songs(90)), data / "ordered.parquet")
    whole, quick = find_caches(data)[0], find_caches(data, quick=True)[0]
    parts = list(zip(quick.songs.split, quick.songs.labels, strict=True))
    assert max(parts.count(part) for part in parts) == caches.QUICK_SONGS
    assert quick.checksum != whole.checksum


# Tables.


def test_a_table_is_read_as_it_was_written(tmp_path):
    keys = {"method": pa.string(), "seed": pa.int64()}
    table = Results(tmp_path / "t.parquet", keys)
    table.add(("b", 1), right(1, 0, 1, groups=[0, 0, 1]), {"n": [1, 2]})
    table.add(("a", 0), right(1, 1, 1), {"n": [1]})
    table.sum_up({("a", None): {"accuracy": 1.0}})
    table.about = {"answer": "yes"}
    table.write()
    read = Results(tmp_path / "t.parquet", keys)
    assert read.metrics == table.metrics
    assert read.about == table.about
    assert read.source(("b", 1)) == {"n": [1, 2]}
    for cell, outcome in table.outcomes.items():
        assert_array_equal(read.outcomes[cell].right, outcome.right)
        assert_array_equal(read.outcomes[cell].groups, outcome.groups)
    assert read.has(("a", 0), {"n": [1]})
    assert not read.has(("a", 0), {"n": [2]})
    assert not read.has(("a", 1), {"n": [1]})
    assert read.summed("method") == ["a"]


def test_a_run_whose_songs_were_not_kept_is_made_again(tmp_path):
    table = Results(tmp_path / "t.parquet", {"seed": pa.int64()})
    table.add((0,), right(1), {})
    table.write()
    (tmp_path / "t_songs.parquet").unlink()
    assert not Results(tmp_path / "t.parquet", {"seed": pa.int64()}).has((0,), {})


def test_another_table_of_that_name_is_refused(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "t.parquet")
    with pytest.raises(SystemExit, match=r"t\.parquet"):
        Results(tmp_path / "t.parquet", {"seed": pa.int64()})


def test_runs_are_compared_by_the_difference_of_their_means():
    ours, theirs = [right(1, 1, 0, 0), right(1, 0, 0, 0)], [right(0, 1, 0, 1)]
    found = compare_runs(ours, theirs)
    assert found.difference == pytest.approx(3 / 8 - 4 / 8)
    assert found.n_groups == 4
    reverse = compare_runs(theirs, ours)
    assert (reverse.low, reverse.high) == (-found.high, -found.low)


# The big table.


def test_big_table(data, tmp_path, capsys, monkeypatch):
    arguments = ["--data", str(data), "--out", str(tmp_path), "--quick", "--methods", METHODS]
    big_table.main(arguments)
    lines = said(capsys)
    assert lines[0].endswith("?")
    assert "ordered: stack" in lines[-1]
    rows = rows_of(tmp_path / "big_table.parquet")
    assert list(rows[0]) == ["cache", "method", "seed", "metric", "value"]
    runs_made = {
        (row["cache"], row["method"], row["seed"]) for row in rows if row["seed"] is not None
    }
    expected = [("mean", 0), ("logodds", 0), ("stack", 0), ("stack", 1), ("gru", 0), ("gru", 1)]
    assert runs_made == {(c, *rest) for c in ("ordered", "unordered") for rest in expected}
    one = {r["metric"] for r in rows if (r["method"], r["seed"]) == ("stack", 1)}
    assert one >= {"accuracy", "log_loss", "calibration_error", "fit_seconds"}
    assert one >= {f"accuracy_minus_logodds{end}" for end in ("", "_low", "_high")}
    assert (tmp_path / "big_table.svg").read_text().startswith("<?xml")
    again_nothing_is_computed(arguments, monkeypatch)
    a_changed_cache_is_computed_again(data, arguments, monkeypatch)


def again_nothing_is_computed(arguments, monkeypatch):
    computed = counted(monkeypatch)
    big_table.main(arguments)
    assert computed == []


def a_changed_cache_is_computed_again(data, arguments, monkeypatch):
    write_cache(divided(order_songs(36, seed=1)), data / "ordered.parquet")
    computed = counted(monkeypatch)
    big_table.main([*arguments, "--methods", "mean,logodds"])
    assert computed == [("mean", 0), ("logodds", 0)]
    big_table.main([*arguments, "--methods", "mean,logodds", "--again"])
    assert computed[2:] == [("mean", 0), ("mean", 0), ("logodds", 0), ("logodds", 0)]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Method and seed of every run that is computed from now on."""
    computed: list[tuple[str, int]] = []

    def score(songs: Songs, method: str, seed: int, quick: bool) -> Outcome:
        computed.append((method, seed))
        return runs.score(songs, method, seed, quick)

    monkeypatch.setattr(big_table, "score", score)
    return computed


def test_a_stopped_run_goes_on(data, tmp_path, monkeypatch):
    def stop(*arguments: Any) -> Outcome:
        if arguments[1] == "logodds":
            raise KeyboardInterrupt
        return runs.score(*arguments)

    monkeypatch.setattr(big_table, "score", stop)
    arguments = ["--data", str(data), "--out", str(tmp_path), "--quick"]
    with pytest.raises(KeyboardInterrupt):
        big_table.main([*arguments, "--methods", "mean,logodds"])
    computed = counted(monkeypatch)
    big_table.main([*arguments, "--methods", "mean,logodds"])
    assert computed == [("logodds", 0), ("logodds", 0)]


def test_processes_find_what_one_finds(tmp_path):
    tables = []
    for jobs in ("1", "2"):
        out = tmp_path / jobs
        leak.main(["--quick", "--out", str(out), "--jobs", jobs, "--methods", "logodds,stack"])
        tables.append([r for r in rows_of(out / "leak.parquet") if "seconds" not in r["metric"]])
    assert tables[0] == tables[1]


@pytest.mark.parametrize(("n_methods", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (10, 3.164)])
def test_critical_difference_is_demsars(n_methods, q):
    """Table 5a of Demsar 2006."""
    expected = q * np.sqrt(n_methods * (n_methods + 1) / (6 * 14))
    assert_allclose(big_table.critical_difference(n_methods, 14), expected, rtol=3e-4)


def test_ranks_count_caches_of_the_same_songs_once(tmp_path):
    table = Results(tmp_path / "t.parquet", big_table.KEYS)
    accuracies = {"one": (0.5, 0.6, 0.7), "two": (0.9, 0.6, 0.7), "other": (0.5, 0.5, 0.9)}
    for cache, values in accuracies.items():
        source = {"songs": "others" if cache == "other" else "the same"}
        for method, value in zip(("mean", "logodds", "gru"), values, strict=True):
            table.add((cache, method, 0), right(1), source)
            table.metrics[cache, method, None] = {"accuracy": value}
    found = big_table.mean_ranks(table)
    assert found.n_sets == 2
    assert found.ranks == {"mean": 2.0, "logodds": 2.75, "gru": 1.25}


def test_cliques_are_the_longest_runs_within_the_critical_difference():
    assert cliques([1.0, 1.5, 2.4, 4.0], 1.0) == [(0, 1), (1, 2)]
    assert cliques([1.0, 1.5, 1.9], 1.0) == [(0, 2)]
    assert cliques([1.0, 3.0], 1.0) == []


def test_a_picture_has_the_same_bytes_every_time(tmp_path):
    for name in ("a.svg", "b.svg"):
        draw_ranks(tmp_path / name, {"gru": 1.2, "mean": 1.8}, 1.5, ["a remark"])
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


# The learning curve.


def test_learning_curve(data, tmp_path, capsys):
    learning_curve.main(
        ["--data", str(data), "--out", str(tmp_path), "--quick", "--methods", "stack,hmm"]
    )
    lines = said(capsys)
    assert lines[0].endswith("?")
    assert lines[-1].startswith("Beats averaging: ordered: stack")
    rows = rows_of(tmp_path / "learning_curve.parquet")
    assert list(rows[0]) == ["cache", "method", "size", "draw", "metric", "value"]
    assert {row["method"] for row in rows} == {"logodds", "stack", "hmm"}
    assert (tmp_path / "learning_curve.svg").exists()


def test_subsets_are_nested_and_draw_groups_whole():
    songs = divided(order_songs(90))
    before: set[int] = set()
    for size in (5, 30, 60, 68):
        chosen = learning_curve.draw_subset(songs, size, draw=3)
        assert size <= len(chosen) < max(size, 3 * 8) + 8
        assert before <= set(chosen.tolist())
        assert set(songs.split[chosen]) == {"train"}
        assert set(songs.labels[chosen]) == set(songs.labels)
        groups = set(songs.groups[chosen])
        assert {i for i, g in enumerate(songs.groups) if g in groups} == set(chosen.tolist())
        before = set(chosen.tolist())


def test_groups_on_both_sides_by_design_are_not_drawn_whole():
    songs = divided(order_songs(60)).replace(groups=[f"speaker {i % 2}" for i in range(60)])
    assert len(learning_curve.draw_subset(songs, 10, draw=0)) == 10


def test_sizes_double_up_to_all_songs():
    assert learning_curve.sizes(30) == [30]
    assert learning_curve.sizes(250) == [25, 50, 100, 250]
    assert learning_curve.sizes(443) == [25, 50, 100, 200, 443]


def test_songs_without_a_split_are_divided_by_group():
    songs = order_songs(30).replace(groups=[str(i // 3) for i in range(30)])
    found = learning_curve.with_split(Cache("a", songs, "")).songs
    sides = [set(found.groups[found.split == side]) for side in ("train", "test")]
    assert sides[0].isdisjoint(sides[1])
    assert len(sides[0] | sides[1]) == 10


def test_a_method_beats_averaging_from_the_size_on_from_which_it_always_does(tmp_path):
    table = Results(tmp_path / "t.parquet", learning_curve.KEYS)
    for size, low in ((25, 0.1), (50, -0.1), (100, 0.1), (200, 0.2)):
        row = {"accuracy_minus_logodds": 0.3, "accuracy_minus_logodds_low": low}
        row["accuracy_minus_logodds_high"] = 0.4
        table.metrics["a", "gru", size, None] = row
    assert learning_curve.verdict(table, "a", "gru") == (
        "from 100 songs, +30.0 [+20.0, +40.0] with 200"
    )
    table.metrics["b", "gru", 50, None] = {"accuracy_minus_logodds": -0.025}
    assert learning_curve.at_worst(table, "gru") == "-2.5 (b, 50 songs)"
    assert learning_curve.at_worst(table, "hmm") == ""


# The leak.


def test_leak(tmp_path, capsys):
    leak.main(["--out", str(tmp_path), "--quick", "--methods", "logodds,stack"])
    lines = said(capsys)
    assert lines[0].endswith("?")
    assert "stack" in lines[-1]
    rows = rows_of(tmp_path / "leak.parquet")
    assert list(rows[0]) == ["inputs", "method", "draw", "metric", "value"]
    assert {row["inputs"] for row in rows} == {"in fold", "out of fold"}
    assert (tmp_path / "leak.svg").exists()


def test_only_the_training_scores_are_in_fold_or_out_of_fold():
    setting = leak.QUICK_SETTING
    inside, outside = (leak.scored_songs(setting, inputs, 0) for inputs in leak.INPUTS)
    n = setting.n_train * setting.n_frames
    assert_array_equal(inside.values[n:], outside.values[n:])
    columns = np.repeat(np.searchsorted(leak.CLASSES, inside.labels.astype(str)), setting.n_frames)
    seen, unseen = ((s.values.argmax(axis=1) == columns)[:n].mean() for s in (inside, outside))
    new = (inside.values.argmax(axis=1) == columns)[n:].mean()
    assert seen > new + 0.1
    assert abs(unseen - new) < 0.1


# The known limit.


@pytest.mark.parametrize("name", known_limit.LAWS)
def test_the_posterior_is_that_of_enumeration(name):
    law = known_limit.LAWS[name]()
    whole = known_limit.sample(law, 6, np.random.default_rng(0), "test")
    songs = Songs.from_arrays([frames[: 1 + i % 5] for i, frames in enumerate(whole)])
    found = known_limit.log_posterior(law, songs)
    for i, frames in enumerate(songs):
        distance = frames.astype(float)[:, None, None, :] - law.log_odds_mean
        log_b = -0.5 * (distance**2).sum(axis=-1) / known_limit.VARIANCE
        scores = [
            hmm_log_likelihood_by_enumeration(law.start[k], law.trans[k], log_b[:, k])
            for k in range(len(known_limit.CLASSES))
        ]
        expected = np.array(scores) - np.log(np.exp(scores).sum())
        assert_allclose(found[i], expected, rtol=1e-9, atol=1e-9)


def test_averaging_is_the_best_decision_where_order_says_nothing():
    songs = known_limit.held_out_songs("order says nothing", 300)
    best = known_limit.log_posterior(known_limit.order_says_nothing(), songs).argmax(axis=1)
    said = MeanLogOdds().fit(songs).predict(songs)
    assert_array_equal(said, np.array(known_limit.CLASSES)[best])


def test_frames_say_nothing_where_order_says_everything():
    law = known_limit.order_says_everything()
    for start, trans in zip(law.start, law.trans, strict=True):
        assert_allclose(trans.sum(axis=1), 1, rtol=1e-12)
        assert_allclose(start @ trans, start, rtol=1e-12)  # even at every frame
    assert (law.mean == law.mean[0]).all()


@pytest.mark.parametrize("name", known_limit.LAWS)
def test_the_limit_is_as_right_as_it_expects_to_be(name):
    metrics = known_limit.score_limit(name, 2000).metrics
    error = known_limit.binomial_error(metrics["accuracy"], 2000)
    assert abs(metrics["accuracy"] - metrics["expected_accuracy"]) < 3 * error


@pytest.mark.parametrize("name", known_limit.LAWS)
def test_songs_follow_their_law(name):
    law = known_limit.LAWS[name]()
    songs = known_limit.sample(law, 3000, np.random.default_rng(1), "train")
    y = np.searchsorted(known_limit.CLASSES, songs.labels.astype(str))
    third = songs.values[songs.offsets[:-1] + 2]
    for k in range(len(known_limit.CLASSES)):
        state = law.start[k] @ law.trans[k] @ law.trans[k]
        assert_allclose(third[y == k].mean(axis=0), state @ law.log_odds_mean[k], atol=0.3)


def test_known_limit(tmp_path, capsys):
    known_limit.main(["--out", str(tmp_path), "--quick", "--methods", "logodds,stack"])
    lines = said(capsys)
    assert lines[0].endswith("?")
    assert lines[-1].startswith("With 40 training songs, order says nothing")
    rows = rows_of(tmp_path / "known_limit.parquet")
    assert list(rows[0]) == ["law", "method", "n_train", "draw", "metric", "value"]
    assert {row["method"] for row in rows} == {"limit", "logodds", "stack"}
    means = {(r["law"], r["method"], r["metric"]): r["value"] for r in rows if r["draw"] is None}
    assert means["order says nothing", "logodds", "below_limit"] == 0
    assert means["order says everything", "logodds", "below_limit"] > 0.3
    assert (tmp_path / "known_limit.svg").exists()


# The songs that come with seqagg.


def not_again(*given: Any, **options: Any) -> None:
    pytest.fail("what was computed is computed again")


def tunes_of_two_sounds(work: Path) -> Songs:
    """Work directory of `experiments.tunes`, and frame scores of its songs.

    One genre is loud in the low half of the spectrogram, the other in the high half.
    """
    rng = np.random.default_rng(0)
    rows, scores = [], []
    (work / "spectrograms").mkdir(parents=True)
    for i in range(24):
        genre, low = ("jig", 0) if i % 2 else ("reel", 20)
        decibels = rng.uniform(-60, -40, (160 + 80 * (i % 3), 40))
        decibels[:, low : low + 20] += 30
        np.save(work / "spectrograms" / f"tune {i}.npy", decibels.astype(np.float16))
        side = "test" if i % 4 > 1 else "train"
        rows.append({"song_id": f"tune {i}", "genre": genre, "group": f"g{i}", "split": side})
        scores.append(rng.normal(size=(1 + i % 3, 2)))
    save_json(work / "tunes.json", rows)
    return Songs.from_arrays(
        scores,
        ids=[row["song_id"] for row in rows],
        columns=["jig", "reel"],
        labels=[row["genre"] for row in rows],
        groups=[row["group"] for row in rows],
        split=[row["split"] for row in rows],
    )


def test_end_to_end(tmp_path, monkeypatch, capsys):
    songs = tunes_of_two_sounds(tmp_path / "work")
    monkeypatch.setattr(end_to_end, "embedded_cache", lambda: Cache("tunes", songs, "0"))
    monkeypatch.setattr(end_to_end, "AGGREGATORS", ("logodds", "stack"))
    monkeypatch.setattr(
        end_to_end, "WAYS", {"two stages": ("logodds", "stack"), "end to end": ("average",)}
    )
    monkeypatch.setattr(end_to_end, "POOLINGS", ("average",))
    monkeypatch.setattr(end_to_end, "QUICK", {"epochs": 8, "batch_size": 4})
    arguments = ["--quick", "--work", str(tmp_path / "work"), "--out", str(tmp_path)]
    end_to_end.main(arguments)
    assert "end to end, average 100.0 %" in said(capsys)[-1]
    rows = rows_of(tmp_path / "end_to_end.parquet")
    (gain,) = (
        row["value"]
        for row in rows
        if row["way"] == "end to end"
        and row["seed"] is None
        and row["metric"] == "accuracy_minus_two_stages"
    )
    (averaged,) = (
        row["value"]
        for row in rows
        if (row["way"], row["method"], row["metric"], row["seed"])
        == ("two stages", "logodds", "accuracy", 0)
    )
    assert gain == pytest.approx(1 - averaged)
    end_to_end.main(arguments)
    assert not any(line.startswith("1/") for line in said(capsys))
    table = readme.end_to_end_table(tmp_path)
    assert any(line.startswith("| end to end, `average` | 100.0 |") for line in table)


def test_end_to_end_without_spectrograms_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(end_to_end, "embedded_cache", lambda: Cache("tunes", order_songs(4), "0"))
    with pytest.raises(SystemExit, match="no spectrograms; python -m"):
        end_to_end.main(["--quick", "--work", str(tmp_path), "--out", str(tmp_path)])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras
def test_tunes_are_scored_out_of_fold(tmp_path, monkeypatch):
    tunes_of_two_sounds(tmp_path)
    known = load_json(tmp_path / "tunes.json")
    songs = [
        song | {"fold": -1 if song["split"] == "test" else i % 4} for i, song in enumerate(known)
    ]
    found = stages.make_scores(tmp_path, songs, stages.Settings(epochs=1), jobs=1)
    assert found.fold.tolist() == [song["fold"] for song in songs]
    assert found.labels.tolist() == [song["genre"] for song in songs]
    lengths = [1 + i % 3 for i in range(24)]
    assert found.lengths.tolist() == lengths
    assert_allclose(found.values.sum(axis=1), 1, atol=1e-5)
    # Once scored they are not scored again.
    monkeypatch.setattr(stages.classifier, "train", not_again)
    again = stages.make_scores(tmp_path, songs, stages.Settings(epochs=1), jobs=1)
    assert_same_songs(again, found)


# Spoken digits.


def test_a_tone_is_loud_in_its_own_band():
    rate = 8000
    mels = np.linspace(*(2595 * np.log10(1 + np.array([60, 3800]) / 700)), speech.N_MELS + 2)
    centres = 700 * (10 ** (mels[1:-1] / 2595) - 1)
    for band in (5, 16, 28):
        time = np.arange(rate) / rate
        sound = np.sin(2 * np.pi * centres[band] * time) * (time < 0.5)
        spectrogram = speech.log_mel(sound.astype(np.float32), rate)
        assert spectrogram.shape == (98, speech.N_MELS)  # 25 ms every 10 ms of a second
        assert spectrogram[:45].mean(axis=0).argmax() == band
        assert_allclose(spectrogram.mean(axis=0), 0, atol=1e-4)


def test_frames_are_cut_one_after_the_other():
    steps = np.arange(13 * 3, dtype=np.float32).reshape(13, 3)
    frames = speech.cut_frames(steps)
    assert frames.shape == (3, speech.FRAME_STEPS, 3)
    for i, frame in enumerate(frames):
        assert_array_equal(frame, steps[2 * i : 2 * i + 8])
    short = speech.cut_frames(steps[:5])
    assert_array_equal(short[0], steps[[0, 1, 2, 3, 4, 4, 4, 4]])


def spoken_tones(folder: Path) -> Path:
    """Digits that differ in the order of two tones, by three speakers who differ in pitch."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    time = np.arange(1600) / 8000
    for digit, tones in enumerate([(500, 1500), (1500, 500), (1500, 1500)]):
        for speaker, pitch in (("ann", 1.0), ("bob", 1.1), ("cy", 1.2)):
            for index in range(2, 9):
                sound = np.concatenate([np.sin(2 * np.pi * f * pitch * time) for f in tones])
                sound = 8000 * sound + rng.normal(scale=300, size=len(sound))
                name = f"{digit}_{speaker}_{index}.wav"
                wavfile.write(folder / name, 8000, sound.astype(np.int16))
    return folder


def test_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(digits, "QUICK_NETWORK", {"epochs": 10, "seed": 0})
    arguments = ["--data", str(spoken_tones(tmp_path / "data")), "--out", str(tmp_path), "--quick"]
    arguments += ["--methods", "logodds,stack", "--work", str(tmp_path / "work")]
    digits.main(arguments)
    lines = said(capsys)
    assert lines[0].endswith("?")
    assert lines[-1].startswith("seen speakers: ")
    rows = rows_of(tmp_path / "digits.parquet")
    assert list(rows[0]) == ["speakers", "method", "seed", "metric", "value"]
    means = {
        (row["speakers"], row["method"], row["metric"]): row["value"]
        for row in rows
        if row["seed"] is None
    }
    # Index 3 and 4 are the test; each speaker is the test once.
    for speakers, n_songs in (("seen speakers", 3 * 3 * 2), ("new speakers", 3 * 3 * 5)):
        assert means[speakers, "stack", "n_songs"] == n_songs
        assert means[speakers, "stack", "accuracy"] > 0.8
    table = readme.digits_table(tmp_path)
    assert table[0] == (
        "| accuracy, % | seen speakers<br>18 recordings | new speakers<br>45 recordings |"
    )
    # Nothing is trained or computed again.
    monkeypatch.setattr(speech, "train", not_again)
    digits.main(arguments)
    assert said(capsys)[1:] == lines[-1:]


def test_nobody_judges_who_has_trained(tmp_path):
    """The models behind the scores of a speaker's turn have not seen the speaker."""
    recordings = speech.Recordings(spoken_tones(tmp_path / "data"), digits.QUICK_INDICES)
    turns = digits.score_frames(recordings, {"epochs": 1, "seed": 0}, tmp_path / "work")
    assert len(turns[digits.NEW]) == 3
    for songs in turns[digits.NEW]:
        sides = [set(songs.groups[songs.split == side]) for side in ("train", "test")]
        assert len(sides[1]) == 1
        assert not sides[0] & sides[1]
        for speaker in sides[0]:
            assert len(set(songs.fold[songs.groups == speaker])) == 1
    (seen,) = turns[digits.SEEN]
    assert {name.split("_")[2] for name in seen.ids[seen.split == "test"]} == {"3", "4"}


def test_a_folder_without_recordings_is_one_line(tmp_path):
    for name in (None, "a_b_c.wav"):
        if name:
            (tmp_path / name).touch()
        with pytest.raises(SystemExit, match=r"digit_speaker_index\.wav"):
            digits.main(["--data", str(tmp_path), "--quick", "--out", str(tmp_path)])


def test_embedded(tmp_path, monkeypatch, capsys):
    cache = Cache("tunes", divided(order_songs(36)), "0" * 64)
    monkeypatch.setattr(embedded, "embedded_cache", lambda: cache)
    embedded.main(["--out", str(tmp_path), "--quick"])
    assert said(capsys)[-1].endswith("points on the mean of log-odds.")
    rows = rows_of(tmp_path / "embedded.parquet")
    assert {row["method"] for row in rows} == {"majority", "mean", "logodds", "hmm", "gru"}
    table = readme.fill("<!-- table: embedded -->\n<!-- end -->\n", tmp_path)[0]
    assert "| `gru` |" in table
    assert "9 songs scored" in table


def test_embedded_songs_that_are_not_there_are_one_line(monkeypatch):
    monkeypatch.setattr(embedded, "embedded_cache", lambda: None)
    with pytest.raises(SystemExit, match=r"experiments\.tunes"):
        embedded.main(["--quick"])


# The README.


@pytest.mark.parametrize("page", ["README.md", "experiments/scale/README.md"])
def test_readme_agrees_with_the_results(page, capsys):
    readme.main(["--check", "--readme", str(readme.README.parent / page)])
    assert said(capsys) == ["README and results agree"]


@pytest.fixture
def copy(tmp_path: Path) -> list[str]:
    """Arguments for a README of its own, filled from results of its own."""
    known_limit.main(["--out", str(tmp_path), "--quick", "--methods", "logodds"])
    leak.main(["--out", str(tmp_path), "--quick", "--methods", "logodds,stack"])
    file = tmp_path / "README.md"
    names = ["known-limit", "leak", "big-table"]
    parts = [f"<!-- table: {name} -->\nold\n<!-- end -->" for name in names]
    file.write_text("before\n" + "\nbetween\n".join(parts) + "\nafter\n")
    return ["--readme", str(file), "--results", str(tmp_path)]


def test_readme_is_filled_and_then_agrees(copy, tmp_path, capsys):
    readme.main(copy)
    assert said(capsys)[-1] == "changed: known-limit, leak, big-table"
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n<!-- table: known-limit -->\n|  | order says nothing |")
    assert "\n<!-- end -->\nbetween\n<!-- table: leak -->\n| accuracy, % |" in text
    assert text.endswith("<!-- table: big-table -->\n<!-- end -->\nafter\n")  # no results
    readme.main([*copy, "--check"])
    assert said(capsys) == ["README and results agree"]
    assert (tmp_path / "README.md").read_text() == text


@pytest.mark.parametrize("change", [("order says much", "order says little"), ("| `stack` |", "|")])
def test_check_fails_where_readme_and_results_differ(copy, tmp_path, change):
    readme.main(copy)
    file = tmp_path / "README.md"
    text = file.read_text().replace(*change)
    file.write_text(text)
    name = "known-limit" if "order" in change[0] else "leak"
    with pytest.raises(SystemExit, match=f"differs from the results in: {name}"):
        readme.main([*copy, "--check"])
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table: typo -->\n<!-- end -->\n", "no table typo; there are embedded"),
        ("<!-- table: leak -->\n", "table leak has no line"),
        ("<!-- table: leak -->\n<!-- table: embedded -->\n<!-- end -->\n", "table leak has no"),
    ],
)
def test_markers_that_cannot_be_filled_are_one_line(tmp_path, text, message):
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(SystemExit, match=message):
        readme.main(["--readme", str(tmp_path / "README.md"), "--results", str(tmp_path)])


def test_text_without_markers_is_left_alone(tmp_path):
    assert readme.fill("no <!-- table: x --> here\n", tmp_path) == (
        "no <!-- table: x --> here\n",
        [],
    )


def test_big_table_and_learning_curve_in_the_readme(data, tmp_path):
    for script in (big_table, learning_curve):
        script.main(
            ["--data", str(data), "--out", str(tmp_path), "--quick", "--methods", "logodds,stack"]
        )
    text = "".join(
        f"<!-- table: {name} -->\n<!-- end -->\n" for name in ("big-table", "learning-curve")
    )
    filled, changed = readme.fill(text, tmp_path)
    assert changed == ["big-table", "learning-curve"]
    assert "|  | ordered<br>9 songs | unordered<br>9 songs |" in filled
    rows = {line.split("|")[1].strip(): line for line in filled.splitlines()[1:5]}
    assert "**" in rows["`stack`"].split("|")[2]
    assert "<br>" not in rows["`logodds`"]


def test_every_script_asks_a_question_in_its_first_line():
    for script in (big_table, digits, embedded, known_limit, leak, learning_curve, readme):
        assert runs.first_line(script.__doc__).endswith("?"), script.__name__


class TestScale:
    def test_it_measures_what_its_plan_is_made_of(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """In one process: that others do the same is tested elsewhere."""
        monkeypatch.setattr(scale_main, "_has_ray", lambda: False)
        monkeypatch.setattr(scale_main, "WORKERS", 1)
        scale_main.main(["--quick", "--out", str(tmp_path)])
        found = rows_of(tmp_path / "scale.parquet")
        done = [r for r in found if r["metric"] == "songs_per_second"]
        assert {(r["engine"], r["method"], r["songs"]) for r in done} == {
            (engine, method, n)
            for engine in ("loop", "processes")
            for method in ("logodds", "gru")
            for n in (300, 600)
        }
        assert all(row["value"] > 0 for row in done)
        assert "per million songs" in capsys.readouterr().out
        lines = readme.scale_table(tmp_path)
        shown = [line for line in lines if "| 600 |" in line]
        assert len(shown) == 4
        assert "`gru`, one process" in "".join(shown)

    def test_costs_are_those_of_the_largest_number_of_songs(self) -> None:
        """3.6 ms of a core and as much of its network, for a song of 281,250 bytes."""
        small = [("ray", "gru", 10, None, "cpu_seconds", 99.0)]
        large = [
            ("ray", "gru", 1000, None, "cpu_seconds", 3.6),
            ("ray", "gru", 1000, None, "bytes_out", 81.25e6),
            (None, None, 1000, None, "bytes_in", 200e6),
            ("ray", None, None, 1, "tasks_per_second", 100.0),
            ("ray", None, None, 8, "tasks_per_second", 50.0),
        ]
        found = scale_main.cost([*small, *large], "gru")
        assert_allclose(found["songs_per_core_second"], 1000 / 3.6)
        assert_allclose(found["network_share"], 0.5)
        assert_allclose(found["core_hours"], 2 * 0.0036 * 1e8 / 3600)
        assert_allclose(found["dollars_per_million"], 2 * 0.04)
        assert_allclose(found["head_songs_per_second"], 2.5e6)


def test_gpu_in_the_readme(tmp_path, monkeypatch, capsys):
    """Where there is no GPU it says so, and with --device cpu shows that it would run."""
    gpu.main(["--quick", "--device", "cpu", "--out", str(tmp_path)])
    capsys.readouterr()
    rows = pq.read_table(tmp_path / "gpu.parquet").to_pylist()
    assert "PyTorch packed, GPU" in {row["way"] for row in rows}
    errors = [row["value"] for row in rows if row["metric"] == "error"]
    assert errors == [0.0]
    filled, changed = readme.fill("<!-- table: gpu -->\n<!-- end -->\n", tmp_path)
    assert changed == ["gpu"]
    times = {row["contest"]: row["value"] for row in rows if row["metric"] == "seconds"}
    for contest in ("gru fit", "gru predict", "mil fit"):
        assert contest in times
        assert f"| {contest}, " in filled
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="this machine has no GPU"):
        gpu.main(["--quick", "--out", str(tmp_path)])
