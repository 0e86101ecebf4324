"""`seqagg stream`: what it says while songs play, when it decides, what it refuses."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import seqagg
from seqagg import HMMAggregator, MeanLogOdds, Songs, write_cache
from seqagg.aggregators.base import Aggregator
from seqagg.cli import main
from seqagg.decision import EarlyRule
from seqagg.errors import ParameterError, SongError
from seqagg.live import Line, Listener, calibrate_early
from seqagg.logodds import to_probability
from tests.conftest import COLUMNS, mixed_songs, order_free_songs

TRAINING, QUERIES = order_free_songs(60), order_free_songs(150, seed=1)


@pytest.fixture(scope="module")
def model() -> Aggregator:
    return seqagg.MeanLogOdds().fit(TRAINING)


@pytest.fixture(scope="module")
def file(model: Aggregator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "mean.safetensors"
    model.save(path)
    return path


def invoke(*args: Any, text: str | bytes) -> Result:
    return CliRunner().invoke(main, ["stream", *map(str, args)], input=text)


def records(*args: Any, text: str | bytes) -> list[dict[str, Any]]:
    done = invoke(*args, text=text)
    assert done.exit_code == 0, done.output
    return [json.loads(line, parse_constant=pytest.fail) for line in done.stdout.splitlines()]


def refusal(*args: Any, text: str | bytes) -> str:
    done = invoke(*args, text=text)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("seqagg: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def interleaved(songs: Songs) -> list[dict[str, Any]]:
    """The first frames of all songs, then the second ones, and so on."""
    return [
        {"song": str(name), "scores": array[t].tolist()}
        for t in range(int(songs.lengths.max()))
        for name, array in zip(songs.ids, songs, strict=True)
        if t < len(array)
    ]


def json_lines(lines: list[Any]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def line(song: str | None, *scores: float, number: int = 1) -> Line:
    return Line(number, song, list(scores) or None, None)


class TestListening:
    def test_last_words_are_those_of_a_batch(self, model: Aggregator, file: Path) -> None:
        """Many songs at once: more than there are streams at first."""
        found = records(file, text=json_lines(interleaved(QUERIES)))
        ended = {record["song"]: record for record in found if record["status"] == "ended"}
        assert list(ended) == QUERIES.ids.tolist()
        assert [r["prediction"] for r in ended.values()] == model.predict(QUERIES).tolist()
        assert [r["frame"] for r in ended.values()] == QUERIES.lengths.tolist()
        np.testing.assert_allclose(
            [r["probability"] for r in ended.values()],
            model.predict_proba(QUERIES).max(axis=1),
            rtol=1e-12,
        )

    def test_only_changes_are_said(self, model: Aggregator, file: Path) -> None:
        found = records(file, text=json_lines(interleaved(QUERIES)))
        for name, array in zip(QUERIES.ids[:40], QUERIES, strict=False):
            said = model.predict([array[: n + 1] for n in range(len(array))])
            changes = [n for n in range(len(said)) if n == 0 or said[n] != said[n - 1]]
            mine = [r for r in found if r["song"] == name and r["status"] == "playing"]
            assert [r["frame"] for r in mine] == [n + 1 for n in changes]
            assert [r["prediction"] for r in mine] == said[changes].tolist()

    def test_every_so_many_frames(self, file: Path) -> None:
        text = json_lines([[5.0, 0, 0]] * 7)
        found = records(file, "--every", 3, text=text)
        assert [(r["frame"], r["status"]) for r in found] == [
            *((n, "playing") for n in (1, 3, 6)),
            (7, "ended"),
        ]
        assert {r["song"] for r in found} == {None}
        assert found == records(file, "--every", 3, "--json", text=text)

    def test_a_song_ends_and_its_name_begins_anew(self, file: Path) -> None:
        lines: list[Any] = [
            {"song": "a", "scores": [9, 0, 0]},
            {"song": 7, "scores": [0, 9, 0]},
            {"song": "a", "end": True},
            {"song": "never heard of", "end": True},
            {"song": "a", "scores": [0, 0, 9]},
        ]
        found = records(file, text=json_lines(lines))
        assert [(r["song"], r["frame"], r["prediction"], r["status"]) for r in found] == [
            ("a", 1, "blues", "playing"),
            (7, 1, "jazz", "playing"),
            ("a", 1, "blues", "ended"),
            ("a", 1, "metal", "playing"),
            (7, 1, "jazz", "ended"),
            ("a", 1, "metal", "ended"),
        ]

    def test_a_last_frame_may_say_that_it_is_the_last(self, file: Path) -> None:
        lines: list[Any] = [
            {"song": "a", "scores": [9, 0, 0], "end": False},
            {"song": "a", "scores": [0, 99, 0], "end": True},
            {"song": "a", "scores": [0, 0, 9], "end": None},
            {"song": "b", "scores": {"jazz": 9, "metal": 0, "blues": 0}, "end": True},
            {"song": "a", "scores": None, "end": True},
        ]
        found = records(file, text=json_lines(lines))
        assert [(r["song"], r["frame"], r["prediction"], r["status"]) for r in found] == [
            ("a", 1, "blues", "playing"),
            ("a", 2, "jazz", "playing"),
            ("a", 2, "jazz", "ended"),
            ("a", 1, "metal", "playing"),
            ("b", 1, "jazz", "playing"),
            ("b", 1, "jazz", "ended"),
            ("a", 1, "metal", "ended"),
        ]

    def test_missing_scores_are_skipped_and_counted(self, file: Path) -> None:
        found = records(file, text="[null, 1, 2]\n\n[NaN, 0, 0]\n[5, 0, 0]\n")
        assert [(r["frame"], r["status"]) for r in found][-1] == (3, "ended")
        alone = records(file, text="[5, 0, 0]\n")
        assert found[-1]["probability"] == alone[-1]["probability"]

    def test_scores_by_name(self, file: Path) -> None:
        by_name = {"metal": 3.0, "blues": 1.0, "jazz": 2.0}
        lines = [{"scores": by_name}, {"scores": dict(sorted(by_name.items()))}, [1.0, 2.0, 3.0]]
        found = records(file, "--every", 1, text=json_lines(lines))
        assert len({r["probability"] for r in found}) == 1
        assert {r["prediction"] for r in found} == {"metal"}

    def test_probabilities(self, model: Aggregator, file: Path) -> None:
        songs = QUERIES[:5].replace(values=to_probability(QUERIES[:5].values), kind="probability")
        found = records(file, "--kind", "probability", text=json_lines(interleaved(songs)))
        np.testing.assert_allclose(
            [r["probability"] for r in found if r["status"] == "ended"],
            model.predict_proba(songs).max(axis=1),
            rtol=1e-12,
        )

    def test_csv(self, file: Path) -> None:
        text = 'jazz,song,metal,blues\r\n1,"a, b",2,0\r\n\r\n,c,1,1\r\n0,c,0,5'
        found = records(file, "--format", "csv", text=text)
        assert [
            (r["song"], r["frame"], r["prediction"]) for r in found if r["status"] == "ended"
        ] == [
            ("a, b", 1, "metal"),
            ("c", 2, "blues"),
        ]
        alone = records(file, "--format", "csv", text="\ufeffblues,jazz,metal\n9,0,0\n")
        assert [(r["song"], r["prediction"]) for r in alone] == [(None, "blues")] * 2

    def test_no_line_no_word(self, file: Path) -> None:
        assert records(file, text="") == records(file, text="\n \n") == []

    def test_several_labels(self, tmp_path: Path) -> None:
        songs = mixed_songs(60, multilabel=True)
        model = seqagg.MeanLogOdds().fit(songs)
        model.save(tmp_path / "m.safetensors")
        found = records(tmp_path / "m.safetensors", text=json_lines(interleaved(songs[:9])))
        ended = [r["prediction"] for r in found if r["status"] == "ended"]
        chosen = model.predict(songs[:9])
        assert ended == [model.classes_[row == 1].tolist() for row in chosen]
        with pytest.raises(ParameterError, match="songs with one label each"):
            Listener(model, rule=EarlyRule(0.9))
        with pytest.raises(ParameterError, match="songs with one label each"):
            calibrate_early(model, songs, 0.1)


class TestDeciding:
    def test_once_and_for_all(self, file: Path) -> None:
        lines = [
            *[{"song": "a", "scores": [2.0, 0, 0]}] * 4,
            *[{"song": "a", "scores": [0, 50, 0]}] * 4,
            {"song": "b", "scores": [1.0, 1, 1]},
        ]
        found = records(file, "--threshold", 0.5, text=json_lines(lines))
        assert [(r["song"], r["prediction"], r["status"]) for r in found] == [
            ("a", "blues", "decided"),
            ("b", "blues", "playing"),
            ("b", "blues", "ended"),
        ]

    def test_what_ends_with_a_frame_begins_anew_decided_or_not(self, file: Path) -> None:
        lines = [{"song": "a", "scores": [9, 0, 0], "end": end} for end in (False, True, True)]
        found = records(file, "--threshold", 0.5, text=json_lines(lines))
        assert [(r["frame"], r["status"]) for r in found] == [(1, "decided")] * 2

    def test_of_songs_without_end_a_bounded_number_is_remembered(
        self, model: Aggregator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of decided songs: those are forgotten of which nothing has come for longest."""
        monkeypatch.setattr("seqagg.live._MOST_DECIDED", 3)
        listener = Listener(model, rule=EarlyRule(0.5))

        def decided(*songs: str) -> list[Any]:
            return [r["song"] for r in listener.hear(line(song, 9, 0, 0) for song in songs)]

        assert decided("a", "b", "c") == ["a", "b", "c"]
        assert decided("a", "d", "a", "c", "d") == ["d"]
        assert list(listener._decided) == ["a", "c", "d"]
        assert decided("b") == ["b"], "it was forgotten"
        for i in range(1000):
            assert decided(str(i)) == [str(i)]
        assert len(listener._decided) == 3
        assert len(listener._stream) == 64, "streams are used again"

    def test_not_before_so_many_frames(self, file: Path) -> None:
        text = json_lines([[9.0, 0, 0]] * 4)
        found = records(file, "--threshold", 0.5, "--min-frames", 3, text=text)
        assert [(r["frame"], r["status"]) for r in found] == [(1, "playing"), (3, "decided")]

    def test_by_an_error_rate(self, model: Aggregator, file: Path, tmp_path: Path) -> None:
        songs = order_free_songs(300, seed=2)
        split = np.array(["train", "test"])[np.arange(300) % 2]
        # Training songs that would spoil everything, were they listened to.
        labels = np.where(split == "train", "no such class", songs.labels)
        write_cache(songs.replace(split=split, labels=labels), tmp_path / "c.parquet")
        arguments = (file, "--error-rate", 0.2, "--calibrate", tmp_path / "c.parquet")
        chosen = calibrate_early(model, songs[split == "test"], 0.2)
        threshold, min_frames = chosen.rule
        assert 0.5 <= threshold < 1
        assert chosen.n_songs == 150
        done = invoke(*arguments, text=json_lines(interleaved(QUERIES)))
        assert done.exit_code == 0, done.output
        assert done.stderr == (
            f"Decides at a probability of {threshold:.3f}, from frame {min_frames} on: of 150 "
            f"labelled songs {chosen.n_decided}, of these {chosen.n_wrong} wrongly, after "
            f"{chosen.share_heard:.0%} of the song (median).\n"
        )
        found = [json.loads(text) for text in done.stdout.splitlines()]
        decided = [r for r in found if r["status"] == "decided"]
        assert len(decided) > 50
        truth = dict(zip(QUERIES.ids, QUERIES.labels, strict=True))
        assert np.mean([r["prediction"] != truth[r["song"]] for r in decided]) < 0.2
        assert all(r["probability"] >= threshold and r["frame"] >= min_frames for r in decided)
        assert {r["song"] for r in decided}.isdisjoint(
            {r["song"] for r in found if r["status"] == "ended"}
        )
        some = invoke(*arguments, "--split", "train", text="")
        assert "none will be decided" in some.stderr
        assert some.exit_code == 0

    def test_the_rule_is_that_of_every_prefix(self, model: Aggregator) -> None:
        songs = order_free_songs(300, seed=4)
        chosen = calibrate_early(model, songs, 0.2)
        threshold, min_frames = chosen.rule
        decided = wrong = 0
        heard = []
        for array, label in zip(songs, songs.labels, strict=True):
            proba = model.predict_proba([array[: n + 1] for n in range(len(array))])
            sure = np.flatnonzero(proba.max(axis=1) >= threshold)
            sure = sure[sure + 1 >= min_frames]
            if len(sure):
                decided += 1
                wrong += model.classes_[proba[sure[0]].argmax()] != label
                heard.append((sure[0] + 1) / len(array))
        assert (chosen.n_decided, chosen.n_wrong) == (decided, wrong)
        assert chosen.share_heard == np.median(heard)
        assert wrong / decided < 0.2

    def test_songs_of_the_fit_are_listened_to_by_models_of_others(self) -> None:
        """An HMM of noise knows the songs that it was fitted to, and none that it was not."""
        rng = np.random.default_rng(0)
        arrays = [rng.normal(size=(6, 4)) for _ in range(60)]
        labels = np.array(["a", "b"])[rng.integers(0, 2, 60)]
        songs = Songs.from_arrays(arrays, columns=list("abcd"), labels=labels)
        rigid = {"n_states": 8, "min_frames": 1, "covariance_type": "full", "shrinkage": 1e-3}
        model = HMMAggregator(decision="likelihood", n_folds=1, **rigid).fit(songs)
        assert calibrate_early(model, songs, 0.2).n_decided > 50
        assert calibrate_early(model, songs, 0.2, fitted_to=True).n_decided == 0
        known = order_free_songs(150, seed=3)
        chosen = calibrate_early(MeanLogOdds().fit(known), known, 0.2, fitted_to=True)
        assert chosen.n_decided > 50
        one = known.replace(groups=["a"] * 150)
        with pytest.raises(ParameterError, match="all songs are of one group"):
            calibrate_early(MeanLogOdds().fit(one), one, 0.2, fitted_to=True)

    def test_songs_that_say_nothing_are_left_out(self, model: Aggregator) -> None:
        songs = Songs.from_arrays(
            [np.eye(3), np.empty((0, 3)), np.eye(3)],
            columns=COLUMNS,
            labels=["jazz", "jazz", None],
        )
        assert calibrate_early(model, songs, 0.5).n_songs == 1
        with pytest.raises(ParameterError, match="no song has both a label and a frame"):
            calibrate_early(model, songs[1:], 0.5)


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("{", "line 1: cannot be read"),
            ("[1, 2, 3]\nnonsense\n", "line 2: cannot be read"),
            ("[1, 2, 3]\n\n[1, 2]\n", "line 3: 2 scores, not 3"),
            ('{"song": "a", "scores": [1, 2, "x"]}', 'line 1: cannot be read: "x" is no score'),
            ("[1, 2, true]", "true is no score"),
            ("[1, 2, 1" + "0" * 400 + "]", "a score is beyond all floats"),
            ('{"song": "a"}', "there are no scores"),
            ('{"song": "a", "scores": []}', "there are no scores"),
            ('{"song": "a", "scores": [], "end": true}', "there are no scores"),
            ('{"song": "a", "scores": null}', "there are no scores"),
            ('{"song": "a", "scores": [1, 2, 3], "end": 1}', "end is 1, neither true nor false"),
            ('{"song": "a", "end": "yes"}', 'end is "yes", neither true nor false'),
            ('{"song": ["a"], "scores": [1, 2, 3]}', 'song is ["a"], neither'),
            ("7", "neither an object nor an array"),
            ('{"scores": {"blues": 1, "jazz": 2}}', "column 'metal'"),
            ('{"song": "a", "scores": {"blues": 1, "jazz": 2, "polka": 3}}', "column 'metal'"),
            ("[" * 100_000, "line 1: cannot be read"),
            (b"[1, 2, 3]\n\xff\xfe\n", "line 2: cannot be read"),
        ],
    )
    def test_json_lines(self, file: Path, text: str | bytes, words: str) -> None:
        said = refusal(file, text=text)
        assert said.startswith("seqagg: standard input, line ")
        assert words in said

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("1,2,3\n1,2,3\n", "line 1: cannot be read: the first line must name the columns"),
            ("song\na\n", "line 1: cannot be read: the first line must name the columns"),
            ("blues,jazz,metal\n1,2\n", "line 2: cannot be read: 2 cells, not 3"),
            ("blues,jazz,metal\n1,2,x\n", "line 2: cannot be read"),
            ('blues,jazz,metal\n1,2,"3\n', "line 2: cannot be read"),
            ("song,blues,jazz\na,1,2\n", "line 2: song 'a': column 'metal'"),
            ("blues,blues,metal\n1,2,3\n", "column 'blues': column 'blues' stands there twice"),
        ],
    )
    def test_csv(self, file: Path, text: str, words: str) -> None:
        assert words in refusal(file, "--format", "csv", text=text)

    def test_a_probability_out_of_range(self, file: Path) -> None:
        text = json_lines([{"song": s, "scores": [0.1, p, 0.2]} for s, p in (("a", 0.5), ("b", 2))])
        said = refusal(file, "--kind", "probability", text=text)
        assert "line 2: song 'b': column 'jazz'" in said

    def test_what_stands_before_a_bad_line_counts(self, file: Path) -> None:
        text = json_lines(interleaved(QUERIES[:3])[:3]) + "?\n"
        done = invoke(file, text=text)
        assert done.exit_code == 2
        assert len(done.stdout.splitlines()) == 3
        assert "line 4" in done.stderr

    def test_a_line_without_end(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("seqagg.live._LONGEST_LINE", 1000)
        assert "line 1: is longer than 1000 bytes" in refusal(file, text="[" + "1," * 100_000)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--error-rate", "0.1"], "go together"),
            (["--calibrate", "x.parquet"], "go together"),
            (["--split", "test"], "go together"),
            (["--error-rate", "1"], "--error-rate"),
            (["--threshold", "0"], "--threshold"),
            (["--min-frames", "3"], "--min-frames goes with --threshold"),
            (["--threshold", "0.5", "--error-rate", "0.1", "--calibrate", "x.parquet"], "exclude"),
            (["--error-rate", "0.1", "--calibrate", "nowhere.parquet"], "no such file"),
            (["--every", "0"], "--every"),
        ],
    )
    def test_options(self, file: Path, options: list[str], words: str) -> None:
        assert words in refusal(file, *options, text="")

    def test_a_method_that_cannot_stream(self, tmp_path: Path) -> None:
        seqagg.StackingAggregator().fit(TRAINING).save(tmp_path / "s.safetensors")
        assert "n_parts=1 can" in refusal(tmp_path / "s.safetensors", text="")

    def test_songs_of_the_wrong_width_are_named_by_the_listener(self, model: Aggregator) -> None:
        heard = Listener(model).hear([line("a", 1, 2, 3), line("b", 1, 2, number=2)])
        assert next(heard)["song"] == "a"
        with pytest.raises(SongError, match=r"^standard input, line 2: song 'b': 2 scores, not 3"):
            next(heard)


class TestProcess:
    """A process of its own, whose ends are pipes."""

    @staticmethod
    @contextmanager
    def started(file: Path) -> Iterator[tuple[Any, Any, Any, Any]]:
        command = [sys.executable, "-m", "seqagg", "stream", str(file)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe) as process:
            yield process, process.stdin, process.stdout, process.stderr

    def test_an_answer_comes_at_once_and_ctrl_c_ends_it(self, file: Path) -> None:
        with self.started(file) as (process, stdin, stdout, stderr):
            stdin.write(b'{"song": "a", "scores": [9, 0, 0]}\n')
            # The input is still open: this would wait for ever if anything were held back.
            assert json.loads(stdout.readline())["prediction"] == "blues"
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
            assert stderr.read() == b"seqagg: interrupted\n"

    def test_whoever_has_seen_enough_may_go(self, file: Path) -> None:
        with self.started(file) as (process, stdin, stdout, stderr):
            stdin.write(b"[9, 0, 0]\n")
            stdout.readline()
            stdout.close()
            stdin.write(b"[0, 99, 0]\n")  # a change, to be said to nobody
            assert process.wait(30) == 0
            assert stderr.read() == b""

    @pytest.mark.skipif(sys.platform == "win32", reason="no such shell")
    @pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-"])
    def test_nobody_to_hear_or_to_speak_to(self, file: Path, closed: str) -> None:
        command = f"'{sys.executable}' -m seqagg stream '{file}' {closed}"
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith("seqagg: standard input or output is closed")
        assert done.stderr.count("\n") == 1
