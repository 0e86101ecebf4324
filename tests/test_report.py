"""The page without a browser: its numbers, its words, its errors."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import beta
from sklearn import metrics
from sklearn.calibration import calibration_curve

from seqagg import benchmark
from seqagg.errors import ResultsError
from seqagg.palette import METHODS, method_colour
from seqagg.report import build_page, figures, write_report
from seqagg.report.facts import (
    by_class,
    by_length,
    confusion,
    early,
    find_answers,
    interval,
    reliability,
)
from seqagg.report.payload import MOST_BYTES, pack_timelines
from seqagg.report.story import headline, how_sure, tell, tell_songs
from seqagg.results import BenchmarkResult, read_results
from tests.conftest import mixed_songs
from tests.made_results import made_result

CLASSES = ("blues", "jazz", "metal", "rock")


def made(n: int = 300, **more: Any) -> BenchmarkResult:
    return made_result(n, classes=CLASSES, **more)


# Facts, beside what scikit-learn finds in the same table.


def columns_of(result: BenchmarkResult, method: str) -> tuple[list[str], list[str], np.ndarray]:
    rows = [r for r in result.predictions.to_pylist() if r["method"] == method]
    labels, said = ([r[name] for r in rows] for name in ("label", "prediction"))
    return labels, said, np.array([r["proba"] for r in rows])


def test_reliability_is_scikit_learns() -> None:
    result = made()
    labels, said, proba = columns_of(result, "gru")
    right = np.array(labels) == np.array(said)
    share, confidence = calibration_curve(right, proba.max(axis=1), n_bins=10)
    found = reliability(find_answers(result), "gru")
    np.testing.assert_allclose(found.share, share)
    np.testing.assert_allclose(found.at, confidence, rtol=1e-6)
    assert found.count.sum() == len(right)


def test_confusion_and_classes_are_scikit_learns() -> None:
    result = made()
    answers = find_answers(result)
    labels, said, _ = columns_of(result, "hmm")
    expected = metrics.confusion_matrix(labels, said, labels=CLASSES)
    assert confusion(answers, "hmm").tolist() == expected.tolist()
    recall = metrics.recall_score(labels, said, labels=CLASSES, average=None)
    np.testing.assert_allclose(by_class(answers, "hmm").share, recall)
    assert by_class(answers, "hmm").count.tolist() == expected.sum(axis=1).tolist()


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (3, 7), (7, 7), (50, 200)])
def test_intervals_are_clopper_and_pearsons(hits: int, n: int) -> None:
    low = beta.ppf(0.025, hits, n - hits + 1) if hits else 0.0
    high = beta.ppf(0.975, hits + 1, n - hits) if hits < n else 1.0
    assert interval(hits / n, n) == pytest.approx((low, high))


def test_accuracy_by_frames_heard() -> None:
    """At every mark, each song by the last of its own marks that is not beyond."""
    result = made()
    assert result.timelines is not None
    marks, curves = early(result) or pytest.fail("no curve")
    rows = result.timelines.to_pylist()
    assert marks[0] == 1
    assert marks[-1] <= np.quantile([r["n_frames"] for r in rows], 0.95)
    for mark, value in zip(marks, curves["gru"], strict=True):
        each = [
            max(
                (m, s)
                for m, s in zip(r["early_marks"], r["early_score"]["gru"], strict=True)
                if m <= mark
            )[1]
            for r in rows
        ]
        assert value == pytest.approx(np.mean(each))


def test_accuracy_by_length() -> None:
    result = made()
    answers = find_answers(result)
    found = by_length(answers, "gru")
    assert found is not None
    assert found.count.sum() == 300
    assert len(found.count) == 5
    assert (np.diff(found.at) > 0).all()
    assert np.average(found.share, weights=found.count) == pytest.approx(
        answers.score["gru"].mean()
    )
    assert by_length(find_answers(made(timelines=False)), "gru") is None


# Files.


def test_results_come_back_as_they_were(tmp_path: Path) -> None:
    songs = mixed_songs(40)
    groups = [f"artist {i // 2}" for i in range(40)]
    result = benchmark(
        songs.replace(groups=groups),
        ["mean", "hmm"],
        cv=2,
        timelines=9,
        n_resamples=50,
        parameters={"hmm": {"n_states": 1, "n_iter": 2}},
    )
    result.write(tmp_path)
    found = read_results(tmp_path)
    for name in ("results", "predictions", "timelines"):
        back, was = getattr(found, name), getattr(result, name)
        assert back.to_pylist() == was.to_pylist()
        assert back.schema.metadata == was.schema.metadata
    assert found.comparisons == result.comparisons
    assert found.classes == result.classes
    assert found.provenance == result.provenance
    assert found.verdicts() == result.verdicts()
    assert build_page(found) == build_page(result)


def test_files_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"results.parquet: no such file; 'seqagg benchmark"):
        read_results(tmp_path)
    made(20).write(tmp_path)
    (tmp_path / "predictions.parquet").write_bytes(b"PAR1 not at all")
    with pytest.raises(ResultsError, match=r"predictions.parquet: cannot be read"):
        read_results(tmp_path)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "predictions.parquet")
    with pytest.raises(
        ResultsError, match=r"predictions.parquet: is no table of a benchmark: song_id"
    ):
        read_results(tmp_path)
    made(20).write(tmp_path)
    table = made(20).results.replace_schema_metadata({"seqagg": "{"})
    pq.write_table(table, tmp_path / "results.parquet")
    with pytest.raises(ResultsError, match=r"results.parquet: cannot be read"):
        read_results(tmp_path)


def test_tables_of_two_benchmarks_are_not_mixed(tmp_path: Path) -> None:
    made(20).write(tmp_path)
    made(20, timelines=False).write(tmp_path)
    assert read_results(tmp_path).timelines is None, "those of the first are gone"
    made(20, methods=("mean", "gru"), timelines=False).write(tmp_path / "other")
    (tmp_path / "other" / "predictions.parquet").rename(tmp_path / "predictions.parquet")
    with pytest.raises(ResultsError, match=r"predictions.parquet: is of another benchmark"):
        read_results(tmp_path)


def test_a_flipped_bit_is_seen(tmp_path: Path) -> None:
    made(200).write(tmp_path)
    path = tmp_path / "timelines.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)
    with pytest.raises(ResultsError, match=r"timelines.parquet: cannot be read"):
        read_results(tmp_path)


def test_tables_that_do_not_fit_together() -> None:
    result = made(20)
    shorter = replace(result, predictions=result.predictions.slice(0, 50))
    with pytest.raises(ResultsError, match="do not fit together"):
        build_page(shorter)
    with pytest.raises(ResultsError, match="not of the same songs"):
        build_page(replace(result, timelines=made(21).timelines))


# Words.


def test_the_headline_is_the_verdict_of_the_terminal() -> None:
    result = made(1000)
    answers = find_answers(result)
    assert answers.favourite == "gru"
    assert headline(result, answers) == result.verdicts()[-1]
    assert headline(result, answers).endswith("it pays here.")
    pair = next(r for r in result.comparisons if (r.method, r.baseline) == ("gru", "logodds"))
    said = how_sure(result, answers)
    assert f"{pair.comparison.wins_a} songs are right only with gru" in said
    assert "Holm's correction for 3 comparisons" in said


@pytest.mark.parametrize("methods", [("mean", "logodds"), ("mean", "gru"), ("gru",), ("logodds",)])
def test_whatever_was_compared_there_is_a_headline(methods: tuple[str, ...]) -> None:
    result = made(60, methods=methods, timelines=False)
    page = build_page(result)
    title = headline(result, find_answers(result))
    assert methods[-1] in title or "mean" in title
    assert title.replace(" %", "\u00a0%") in page
    for method in methods:
        assert (
            f'<span class="key m{methods.index(method)}" aria-hidden="true"></span>{method}' in page
        )


def test_averages_alone_have_timelines_too() -> None:
    songs = mixed_songs(30)
    result = benchmark(songs, ["majority", "mean", "logodds"], cv=2, timelines=30, n_resamples=50)
    lines = pack_timelines(result, find_answers(result))[1]
    assert len(lines) == 30
    assert lines[0] in build_page(result)


def test_a_song_told_in_words_says_what_the_tables_say() -> None:
    result = made(300)
    answers = find_answers(result)
    gain, loss = tell_songs(result, answers)
    assert gain is not None
    assert loss is not None
    rows = result.predictions.to_pylist()
    for story, winner, loser in ((gain, "gru", "logodds"), (loss, "logodds", "gru")):
        said = {r["method"]: r for r in rows if r["song_id"] == story.song}
        assert said[winner]["prediction"] == said[winner]["label"] != said[loser]["prediction"]
        assert f"is labelled {said['gru']['label']}." in story.text
        for method, called in (("logodds", "Averaging (logodds)"), ("gru", "gru")):
            sure = f"{100 * max(said[method]['proba']):.0f} %"
            assert f"{called} says {said[method]['prediction']} with {sure}" in story.text
        song = result.timelines.to_pylist()[story.row]
        assert song["song_id"] == story.song
        a, b = (CLASSES.index(song[side]) for side in ("toward", "against"))
        above = sum(frame[a] > frame[b] for frame in song["log_odds"])
        assert re.search(rf"\b({above}|none|all) of its {song['n_frames']} frames", story.text)


def test_order_tells_only_where_it_does() -> None:
    result = made(50)
    assert result.timelines is not None
    answers = find_answers(result)
    song = result.timelines.to_pylist()[0]
    played = song["belief"]["gru"][-1][CLASSES.index(song["toward"])]
    for share, words in ((1.0, "order is not why"), (0.2, "frames is why")):
        shuffled = pa.StructArray.from_arrays(
            [pa.array([share * played] * 50, pa.float32())] * 2, ["hmm", "gru"]
        )
        index = result.timelines.column_names.index("shuffled")
        table = result.timelines.set_column(index, "shuffled", shuffled)
        assert words in tell(replace(result, timelines=table), answers, 0).text


# The page.


class Outline(HTMLParser):
    """What a browser would take for markup."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in ("meta", "link", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_markup_is_well_formed_and_names_stay_text() -> None:
    odd = ("<script>alert(1)</script>", "a & \"b\" 'c'", "</script>", "<!-- x")
    result = made_result(40, classes=odd, ids=[f"{odd[i % 4]} {i}" for i in range(40)])
    page = build_page(result)
    found = Outline(page)
    assert found.open == []
    assert len(found.ids) == len(set(found.ids))
    assert found.tags.count("script") == 3
    assert "<script>alert" not in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    assert json.loads(data[1])["classes"] == list(odd)


def test_every_method_has_its_row_and_every_song_its_line() -> None:
    result = made(30)
    page = build_page(result)
    lines = re.search(r'<script type="text/plain" id="timelines">(.*?)</script>', page, re.DOTALL)
    assert lines is not None
    assert len(lines[1].split("\n")) == 30
    for row in result.summary():
        assert f"{100 * row['accuracy']:.1f}" in page
        assert f"{row['log_loss']:.3f}" in page
    about = result.provenance
    assert "seqagg benchmark &lt;made&gt;.parquet" in page
    assert about["checksum"] in page


def test_heat_comes_back_from_its_bytes() -> None:
    """To half a step of the scale, each stretch its mean."""
    result = made(20, frames=(50, 90))
    assert result.timelines is not None
    head, lines = pack_timelines(result, find_answers(result))
    low, high = head["ends"]
    for line, song in zip(lines, result.timelines.to_pylist(), strict=True):
        n, marks, seconds, columns, *_, text = json.loads(line)
        assert n == song["n_frames"]
        assert marks == song["marks"]
        assert seconds["first"] == 0.0
        assert seconds["step"] == 2.5
        stored = np.frombuffer(base64.b64decode(text), dtype=np.uint8).astype(float)
        heat = stored[: len(columns) * len(marks)].reshape(len(columns), -1)
        frames = np.array(song["log_odds"])
        for row, column in zip(heat, columns, strict=True):
            parts = np.split(frames[:, column], marks[:-1])
            expected = np.clip([part.mean() for part in parts], low, high)
            np.testing.assert_allclose(
                low + row / 255 * (high - low), expected, atol=(high - low) / 500
            )


def test_the_more_songs_the_coarser_their_timelines(monkeypatch: pytest.MonkeyPatch) -> None:
    result = made(100, frames=(60, 80))
    answers = find_answers(result)
    sizes = []
    for most in (MOST_BYTES, 60_000, 1):
        monkeypatch.setattr("seqagg.report.payload.MOST_BYTES", most)
        _, lines = pack_timelines(result, answers)
        sizes.append(len(json.loads(lines[0])[1]))
    assert sizes[0] == 40
    assert sizes[0] > sizes[1] > sizes[2] == 6


def test_fifty_classes(tmp_path: Path) -> None:
    names = [f"a rather long name of class {i}" for i in range(50)]
    result = made_result(400, classes=names)
    write_report(result, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The 10 classes of fewest songs are not shown." in page
    assert len(page) < 2_000_000


def test_ticks_are_round() -> None:
    assert figures.ticks(0, 1) == pytest.approx([0, 0.5, 1.0])
    assert figures.ticks(-0.093, 0.093) == pytest.approx([-0.05, 0, 0.05])
    assert figures.ticks(41.2, 55.7) == pytest.approx([45, 50, 55])


def test_names_at_the_ends_of_curves_do_not_overlap() -> None:
    places = figures._apart([10.0, 11.0, 9.0, 40.0], 14.0)
    assert np.diff(np.sort(places)).min() >= 14 - 1e-6
    assert np.argsort(places).tolist() == [2, 0, 1, 3]
    assert places[3] == 40.0


# Colours.


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_every_method_of_the_table_has_a_colour_of_its_own() -> None:
    from seqagg.aggregators import AGGREGATORS

    assert set(METHODS) == set(AGGREGATORS)
    for side in (0, 1):
        assert len({METHODS[m][side] for m in METHODS}) == len(METHODS)
    own = ["mine", "gru", "yours"]
    assert method_colour("mine", own) != method_colour("yours", own)
    assert method_colour("gru", own) == METHODS["gru"]


def test_dark_paper_has_brighter_colours() -> None:
    for light, dark in METHODS.values():
        assert luminance(dark) >= luminance(light)
        assert (luminance(dark) + 0.05) / (luminance("#14171b") + 0.05) > 3
