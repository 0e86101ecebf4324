"""Scores and detections in the formats of opensoundscape, sed_scores_eval, BirdNET and Raven.

Files are written as these libraries write them: the DataFrames of the first two by pandas, line by
line the tables of the others.
"""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from seqagg import ParameterError, Songs, SourceError
from seqagg.sources import from_dataframe, read, to_audacity
from tests.conftest import assert_same_songs

CLASSES = ["Black-capped Chickadee", "House Finch", "Tawny Owl"]
THRESHOLD = 0.6
WINDOWS = 12


def opensoundscape_scores() -> pd.DataFrame:
    """What `CNN.predict` gives: logits by file and times, a clip of NaN where it failed."""
    rng = np.random.default_rng(0)
    clips = [(f"data/{f}.wav", 3.0 * i, 3.0 * i + 3) for f in ("a", "b") for i in range(4)]
    index = pd.MultiIndex.from_tuples(clips, names=["file", "start_time", "end_time"])
    scores = pd.DataFrame(rng.normal(0, 5, (8, 3)).astype(np.float32), index=index, columns=CLASSES)
    scores.iloc[2] = np.nan
    return scores


def test_opensoundscape(tmp_path: Path) -> None:
    scores = opensoundscape_scores()
    expected = Songs(
        scores.to_numpy(), [0, 4, 8], columns=CLASSES, kind="logit", start=[0, 3, 6, 9] * 2,
        ids=["data/a.wav", "data/b.wav"],
    )  # fmt: skip
    scores.to_csv(tmp_path / "scores.csv")
    scores.to_parquet(tmp_path / "scores.parquet")
    scores.reset_index().to_feather(tmp_path / "scores.feather")
    for suffix in ("csv", "parquet", "feather"):
        assert_same_songs(read(tmp_path / f"scores.{suffix}", kind="logit"), expected)
    names = {"song": "file", "time": "start_time", "end": "end_time"}
    assert_same_songs(from_dataframe(scores, kind="logit", **names), expected)  # type: ignore[arg-type]
    assert np.isnan(expected.values[2]).all()
    assert expected.present().lengths.tolist() == [3, 4]


def test_sed_scores_eval(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    expected = []
    for name, n in (("a.1", 5), ("b", 0), ("c", 3)):
        times = np.arange(n + 1) * 0.064
        scores = rng.random((n, 3))
        frame = pd.DataFrame(
            np.concatenate([times[:-1, None], times[1:, None], scores], axis=1),
            columns=["onset", "offset", *CLASSES],
        )
        frame.to_csv(tmp_path / f"{name}.tsv", sep="\t", index=False)
        expected.append((name, scores, times[:-1]))
    names, arrays, starts = zip(*expected, strict=True)
    songs = Songs.from_arrays(
        [a.reshape(-1, 3) for a in arrays], ids=names, start=starts, columns=CLASSES,
        kind="probability",
    )  # fmt: skip
    assert_same_songs(read(tmp_path, kind="probability"), songs)
    frame["onset"] = 0.5
    frame.to_csv(tmp_path / "c.tsv", sep="\t", index=False)
    with pytest.raises(SourceError, match=r"c\.tsv: song 'c': column 'onset': row 3: a frame at"):
        read(tmp_path, kind="probability")


# Detections.


def detections(n_recordings: int = 4, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Confidences by recording, 0 where they are below the threshold; nothing in the third."""
    rng = np.random.default_rng(seed)
    found = {}
    for i in range(n_recordings):
        scores = np.round(rng.random((WINDOWS, 3)), 4)
        found[f"/data/site {i}/rec_{i}.wav"] = np.where(scores >= THRESHOLD, scores, 0) * (i != 2)
    return found


CSV = "Start (s),End (s),Scientific name,Common name,Confidence"
RAVEN = (
    "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\t"
    "Common Name\tSpecies Code\tConfidence\tBegin Path\tFile Offset (s)"
)


def rows_of(scores: np.ndarray[Any, Any]) -> list[tuple[float, str, float]]:
    return [(3.0 * w, CLASSES[c], scores[w, c]) for w, c in zip(*np.nonzero(scores), strict=True)]


def birdnet_csv(found: dict[str, Any], file_column: bool = True) -> str:
    lines = [CSV + (",File" if file_column else "")]
    for file, scores in found.items():
        for start, name, score in rows_of(scores):
            line = f"{start},{start + 3},Genus {name},{name},{score:.4f}"
            lines.append(line + (f",{file}" if file_column else ""))
    return "\n".join(lines) + "\n"


def raven_table(found: dict[str, Any], combined: bool) -> str:
    lines, before = [RAVEN], 0.0
    for file, scores in found.items():
        for start, name, score in rows_of(scores):
            begin = start + (before if combined else 0)
            columns = [
                len(lines), "Spectrogram 1", 1, begin, begin + 3, 0, 15000, name, name[:6].lower(),
                f"{score:.4f}", file, start,
            ]  # fmt: skip
            lines.append("\t".join(map(str, columns)))
        if not scores.any() and not combined:
            lines.append(f"1\tSpectrogram 1\t1\t0\t3\t0\t15000\tnocall\tnocall\t1.0\t{file}\t0")
        before += 3 * WINDOWS + 1.7
    return "\n".join(lines) + "\n"


def dense(found: dict[str, Any], fill: float, hop: bool) -> Songs:
    """Frames of all recordings, in plain loops."""
    arrays, starts = [], []
    for scores in found.values():
        used = [w for w in range(WINDOWS) if scores[w].any()]
        windows = list(range(used[-1] + 1 if used else 0)) if hop else used
        arrays.append([[x if x > 0 else fill for x in scores[w]] for w in windows])
        starts.append([3.0 * w for w in windows])
    return Songs.from_arrays(
        [np.reshape(a, (-1, 3)) for a in arrays],
        ids=list(found), start=starts, columns=CLASSES, kind="probability",
    )  # fmt: skip


@pytest.mark.parametrize("n_bytes", [1, 10**6])
@pytest.mark.parametrize("hop", [3.0, None])
def test_birdnet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hop: float | None, n_bytes: int
) -> None:
    monkeypatch.setattr("seqagg.sources.base.BATCH_BYTES", n_bytes)
    found = detections()
    heard = {file: scores for file, scores in found.items() if scores.any()}
    (tmp_path / "all.csv").write_text(birdnet_csv(found))
    options: dict[str, Any] = {"fill": 0.1, "hop": hop}
    assert_same_songs(read(tmp_path / "all.csv", **options), dense(heard, 0.1, hop is not None))
    by_latin = read(tmp_path / "all.csv", class_column="Scientific name", **options)
    assert by_latin.columns == tuple(f"Genus {name}" for name in CLASSES)
    for file, scores in found.items():
        path = tmp_path / "each" / f"{Path(file).stem}.BirdNET.results.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text(birdnet_csv({file: scores}, file_column=False))
    names = [Path(file).stem for file in found]
    expected = dense(found, 0.1, hop is not None).replace(ids=names)
    assert_same_songs(read(tmp_path / "each", **options), expected)


@pytest.mark.parametrize("hop", [3.0, None])
def test_raven(tmp_path: Path, hop: float | None) -> None:
    found = detections()
    options: dict[str, Any] = {"fill": 0.1, "hop": hop}
    (tmp_path / "BirdNET_SelectionTable.txt").write_text(raven_table(found, combined=True))
    heard = {file: scores for file, scores in found.items() if scores.any()}
    songs = read(tmp_path / "BirdNET_SelectionTable.txt", **options)
    assert_same_songs(songs, dense(heard, 0.1, hop is not None))
    for file, scores in found.items():
        path = tmp_path / "each" / f"{Path(file).stem}.BirdNET.selection.table.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(raven_table({file: scores}, combined=False))
    assert_same_songs(read(tmp_path / "each", **options), dense(found, 0.1, hop is not None))


def test_raven_saves_a_selection_once_for_each_view(tmp_path: Path) -> None:
    found = detections()
    header, *lines = raven_table(found, combined=True).splitlines()
    both = [v for line in lines for v in (line.replace("Spectrogram", "Waveform"), line)]
    (tmp_path / "t.txt").write_text("\n".join([header, *both]))
    heard = {file: scores for file, scores in found.items() if scores.any()}
    assert_same_songs(read(tmp_path / "t.txt", fill=0.1, hop=3), dense(heard, 0.1, True))


def test_classes_may_be_named_in_advance(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(birdnet_csv(detections()))
    named = ["Wren", *reversed(CLASSES)]
    songs = read(tmp_path / "t.csv", fill=0.1, hop=3, columns=named)
    assert songs.columns == tuple(named)
    assert (songs.values[:, 0] == np.float32(0.1)).all()
    plain = read(tmp_path / "t.csv", fill=0.1, hop=3)
    np.testing.assert_array_equal(songs.values[:, :0:-1], plain.values)


LINE = "0.0,3.0,Strix aluco,Tawny Owl,0.9,a.wav\n"


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        (LINE, {"fill": None}, "BirdNET leaves out what is below a threshold; --fill says"),
        (LINE, {"fill": 1.5}, "fill=1.5 is no probability"),
        (LINE, {"hop": 0}, "hop=0 is no number of seconds"),
        (LINE, {"columns": ["Wren"]}, "'Common name': row 2: a class that --columns does not name"),
        (LINE + LINE, {}, "'Common name': row 3: this class has a score in this window already"),
        (LINE + "3.0,12.0,S,Owl,0.9,a.wav\n", {}, "'End .s.': row 3: a window longer than"),
        (LINE + "3.0,6.0,S,Owl,1.1,a.wav\n", {}, "'Confidence': row 3: no confidence between"),
        (LINE + "3.0,6.0,S,Owl,,a.wav\n", {}, "'Confidence': row 3: no confidence between"),
        (LINE + "3.0,6.0,S,Owl,x,a.wav\n", {}, "column 'Confidence': row 3: 'x' is no number"),
        (LINE + "3.0,2.0,S,Owl,0.5,a.wav\n", {}, "'End \\(s\\)': row 3: a window that ends before"),
        (LINE + ",6.0,S,Owl,0.5,a.wav\n", {}, "'Start \\(s\\)': row 3: no time"),
        (LINE + "3.0,6.0,S,,0.5,a.wav\n", {}, "'Common name': row 3: no class"),
        (LINE + "3.0,6.0,S,Owl,0.5,\n", {}, "column 'File': row 3: no recording"),
        (LINE + "3.0,6.0,S,Owl,0.5,a,b.wav\n", {}, "row 3: 7 cells for 6 columns"),
        (LINE + "4.0,7.0,S,Owl,0.5,a.wav\n", {"hop": 3}, "a window at 4 s, which is no multiple"),
        (LINE, {"scores": "Score"}, "column 'Score': no such column"),
        ("", {}, "there is no detection, and --columns names no class"),
    ],
)  # fmt: skip
def test_detections_that_cannot_be(
    tmp_path: Path, rows: str, options: dict[str, Any], words: str
) -> None:
    (tmp_path / "t.csv").write_text(CSV + ",File\n" + rows)
    with pytest.raises((SourceError, ParameterError), match=words):
        read(tmp_path / "t.csv", **({"fill": 0.1} | options))


def test_recordings_in_two_files_and_times_that_run_on(tmp_path: Path) -> None:
    found = detections()
    (tmp_path / "a.csv").write_text(birdnet_csv(found))
    (tmp_path / "b.csv").write_text(birdnet_csv(found))
    with pytest.raises(SourceError, match=r"b\.csv: song '/data/site 0/.*a\.csv too"):
        read(tmp_path, fill=0.1)
    table = pd.read_csv(io.StringIO(raven_table(found, combined=True)), sep="\t")
    table.drop(columns="File Offset (s)").to_csv(tmp_path / "t.txt", sep="\t", index=False)
    with pytest.raises(SourceError, match=r"'Begin Time .s.': runs on from one recording to the"):
        read(tmp_path / "t.txt", fill=0.1)
    one = table[table["Begin Path"] == next(iter(found))].drop(columns="File Offset (s)")
    one.to_csv(tmp_path / "t.txt", sep="\t", index=False)
    first = dict([next(iter(found.items()))])
    assert_same_songs(read(tmp_path / "t.txt", fill=0.1), dense(first, 0.1, False))


# Labels for Audacity.


def label_lines(frames: Any, starts: Any, window: float, threshold: float) -> list[str]:
    """One class after another, one frame after another."""
    spans = []
    for column in range(frames.shape[1]):
        begin = end = None
        for frame, start in zip(frames, starts, strict=True):
            if not frame[column] >= threshold:
                continue
            if end is not None and start <= end + 1e-3:
                end = start + window
                continue
            if end is not None:
                spans.append((begin, end, column))
            begin, end = start, start + window
        if end is not None:
            spans.append((begin, end, column))
    return [f"{b:.6f}\t{e:.6f}\t{CLASSES[c]}" for b, e, c in sorted(spans)]


@pytest.mark.parametrize("window", [3.0, 1.5, 4.5])
def test_labels_for_audacity(tmp_path: Path, window: float) -> None:
    songs = dense(detections(), 0.1, hop=True).replace(
        ids=["a/b.wav", "../up", ".hidden", "Ä ü.wav"]
    )
    songs.values[1] = np.nan
    to_audacity(songs, tmp_path / "labels", threshold=0.7, window=window)
    files = {path.name: path for path in (tmp_path / "labels").iterdir()}
    names = ["a%2Fb.wav.txt", "%2E.%2Fup.txt", "%2Ehidden.txt", "%C3%84 %C3%BC.wav.txt"]
    assert sorted(files) == sorted(names)
    assert songs.start is not None
    for i, name in enumerate(names):
        here = slice(songs.offsets[i], songs.offsets[i + 1])
        lines = label_lines(songs[i], songs.start[here].astype(float), window, 0.7)
        assert files[name].read_text().splitlines() == lines
    with pytest.raises(SourceError, match="is there already"):
        to_audacity(songs, tmp_path / "labels", threshold=0.7, window=3)
    long = songs[:1].replace(ids=["x" * 300])
    with pytest.raises(SourceError, match="too long for a file"):
        to_audacity(long, tmp_path / "new", threshold=0.7, window=3)
    with pytest.raises(ParameterError, match="window=0"):
        to_audacity(long, tmp_path / "new", threshold=0.7, window=0)
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_labels_that_a_killed_writer_left_are_swept(tmp_path: Path) -> None:
    code = """
import os, signal, sys
import numpy as np
from seqagg import Songs
from seqagg.sources.audacity import write_labels

def songs():
    yield Songs(np.ones((3, 1)), [0, 3], columns=["a"], ids=["half"])
    os.kill(os.getpid(), signal.SIGKILL)

write_labels(songs(), sys.argv[1], threshold=0.0, window=1)
"""
    command = [sys.executable, "-c", code, tmp_path / "labels"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len([*tmp_path.rglob("half.txt")]) == 1
    songs = Songs(np.ones((3, 1)), [0, 3], columns=["a"], ids=["whole"])
    to_audacity(songs, tmp_path / "labels", threshold=0.0, window=1)
    found = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")]
    assert sorted(found) == ["labels", "labels/whole.txt"]


def test_labels_of_frames_without_times_follow_one_another(tmp_path: Path) -> None:
    songs = Songs(np.array([[1.0], [-1.0], [2.0], [2.0]]), [0, 4], columns=["a\tb\nc"], ids=["x"])
    to_audacity(songs, tmp_path / "labels", threshold=0.0, window=2)
    text = (tmp_path / "labels" / "x.txt").read_text()
    assert text == "0.000000\t2.000000\ta b c\n4.000000\t8.000000\ta b c\n"
