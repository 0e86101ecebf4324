"""Songs and their timelines in few bytes, for `page.js` to unpack.

Conventions
-----------
Numbers of a song that the page draws go as one byte each, in base64: probabilities and scores as
255ths, log-odds as 255ths of the way between the two ends of the scale, contributions from the
negative of the greatest (1) over nothing (128) to the greatest (255), states as they are (255 for
none). A long song is drawn by stretches: log-odds are means over them, states the most frequent.

The timeline of a song is one line of JSON, which the page parses when the song is opened:
``[frames, marks or 0, seconds, columns, classes, toward, against, greatest, shuffled, base64]``.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seqagg.report.facts import Answers
from seqagg.results import BenchmarkResult

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MOST_COLUMNS = 12
"""Columns of a song's heat map: those of the classes in question, then the highest."""

MOST_BYTES = 12_000_000
"""Of all timelines; if they have more, they are drawn by fewer stretches."""


def pack_songs(answers: Answers) -> dict[str, Any]:
    """What the list of songs shows, column by column."""
    methods = answers.methods
    packed: dict[str, Any] = {
        "classes": answers.classes,
        "methods": methods,
        "averaging": -1 if answers.averaging is None else methods.index(answers.averaging),
        "favourite": methods.index(answers.favourite),
        "multilabel": answers.multilabel,
        "ids": answers.ids,
        "frames": None if answers.n_frames is None else answers.n_frames.tolist(),
        "label": _positions(answers.has, answers.multilabel),
        "said": [_positions(answers.said[m], answers.multilabel) for m in methods],
        "score": [_text(_share(answers.score[m])) for m in methods],
        "sure": [_text(_share(answers.proba[m].max(axis=1))) for m in methods],
    }
    return packed


def _positions(has: npt.NDArray[np.bool_], multilabel: bool) -> Any:
    """Number of each song's class, or list of the numbers of its classes."""
    if not multilabel:
        return has.argmax(axis=1).tolist()
    return [np.flatnonzero(row).tolist() for row in has]


def pack_timelines(result: BenchmarkResult, answers: Answers) -> tuple[dict[str, Any], list[str]]:
    """Head that all timelines share, and a line of JSON for each song that has one."""
    table = result.timelines
    if table is None:
        return {"songs": []}, []
    mask = table["log_odds"].is_valid()
    rows = np.flatnonzero(mask.to_numpy())
    told = _Told(table.filter(mask), result, answers, rows)
    most = next((m for m in (40, 24, 16, 10) if told.size(m) <= MOST_BYTES), 6)
    lines = [json.dumps(told.line(k, most), separators=(",", ":")) for k in range(len(rows))]
    head = {
        "songs": rows.tolist(),
        "shown": told.shown,
        "paths": told.paths,
        "columns": told.columns,
        "ends": told.ends,
        "seconds": told.starts is not None,
    }
    return head, lines


class _Told:
    """The songs with a timeline, out of Arrow."""

    def __init__(
        self, table: pa.Table, result: BenchmarkResult, answers: Answers, rows: Ints
    ) -> None:
        self.answers, self.rows = answers, rows
        self.said = [answers.said[m].argmax(axis=1) for m in answers.methods]
        self.frames = _rows_of(table["log_odds"])
        self.marks = _rows_of(table["marks"])
        starts = table["start"]
        self.starts = None if starts.null_count else _rows_of(starts)
        self.toward = [answers.classes.index(name) for name in table["toward"].to_pylist()]
        self.against = [
            -1 if name is None else answers.classes.index(name)
            for name in table["against"].to_pylist()
        ]
        self.belief = _by_method(table["belief"])
        self.contribution = _by_method(table["contribution"])
        self.state = _by_method(table["state"])
        self.shuffled = {
            field.name: table["shuffled"].combine_chunks().field(field.name).to_pylist()
            for field in _fields(table["shuffled"])
        }
        self.shown, self.paths = list(self.belief), list(self.state)
        numbers = [str(c + 1) for c in range(self.frames[0].shape[1])]
        self.columns = result.provenance["columns"] or numbers
        self.position = {name: c for c, name in enumerate(self.columns)}
        every = np.concatenate([f.reshape(-1) for f in self.frames])
        low, high = np.quantile(every, [0.02, 0.98])
        self.ends = float(np.floor(low)), float(max(np.ceil(high), np.floor(low) + 1))

    def size(self, most: int) -> float:
        """Bytes of all lines, drawn by at most so many stretches; about."""
        n_methods = len(self.shown)
        columns = min(len(self.columns), MOST_COLUMNS)
        classes = min(len(self.answers.classes), 3)
        rows = columns + n_methods * (classes + 1) + len(self.paths)
        cells = sum(min(len(marks), most) for marks in self.marks)
        return 4 / 3 * rows * cells + 160 * len(self.rows)

    def line(self, k: int, most: int) -> list[Any]:
        """Timeline of a song, drawn by at most so many stretches."""
        frames, marks = self.frames[k].astype(np.float64), self.marks[k]
        kept = _thinned(len(marks), most)  # positions of the marks that stay
        marks = marks[kept]
        n, whole = len(frames), len(marks) == len(frames)
        first = np.concatenate([[0], marks[:-1]])
        means = frames if whole else np.add.reduceat(frames, first) / (marks - first)[:, None]
        classes = self._classes(k)
        columns = self._columns(classes, means)
        low, high = self.ends
        parts = [_share((means[:, columns].T - low) / (high - low))]
        parts += [_share(self.belief[m][k][kept][:, classes].T) for m in self.shown]
        greatest = []
        for m in self.shown:
            starts = np.concatenate([[0], kept[:-1] + 1])
            added = np.add.reduceat(self.contribution[m][k].astype(np.float64), starts)
            greatest.append(float(np.abs(added).max()))
            parts.append(_signed(added, greatest[-1]))
        parts += [_most_frequent(self.state[m][k], first, marks) for m in self.paths]
        return [
            n,
            0 if whole else marks.tolist(),
            _seconds(None if self.starts is None else self.starts[k], first),
            columns,
            classes,
            self.toward[k],
            self.against[k],
            [float(f"{g:.3g}") for g in greatest],
            [None if (s := self.shuffled.get(m)) is None else round(s[k], 3) for m in self.shown],
            _text(np.concatenate([p.reshape(-1) for p in parts])),
        ]

    def _classes(self, k: int) -> list[int]:
        """Classes whose belief is drawn: the pair, the truth, and what was answered."""
        i, answers = self.rows[k], self.answers
        found = [self.toward[k], self.against[k], *np.flatnonzero(answers.has[i]).tolist()[:3]]
        if not answers.multilabel:
            found += [int(said[i]) for said in self.said]
        return list(dict.fromkeys(c for c in found if c >= 0))[:5]

    def _columns(self, classes: list[int], means: Floats) -> list[int]:
        """Columns drawn: those of these classes, then the highest on average."""
        named = [self.position.get(self.answers.classes[k], -1) for k in classes]
        highest = np.argsort(-means.mean(axis=0), kind="stable").tolist()
        return list(dict.fromkeys(c for c in [*named, *highest] if c >= 0))[:MOST_COLUMNS]


def _thinned(n_marks: int, most: int) -> Ints:
    """Positions of at most so many of the marks, the last among them."""
    if n_marks <= most:
        return np.arange(n_marks)
    return np.rint(np.linspace(0, n_marks, most + 1)[1:]).astype(np.int64) - 1


def _share(values: Array) -> npt.NDArray[np.uint8]:
    return np.asarray(np.rint(255 * np.clip(values, 0, 1)), dtype=np.uint8)


def _signed(values: Floats, limit: float) -> npt.NDArray[np.uint8]:
    scaled = np.clip(values / (limit or 1.0), -1, 1)
    return np.asarray(np.rint(128 + 127 * scaled), dtype=np.uint8)


def _most_frequent(states: Array | None, first: Ints, marks: Ints) -> npt.NDArray[np.uint8]:
    if states is None:
        return np.full(len(marks), 255, dtype=np.uint8)
    if len(marks) == len(states):
        return np.minimum(states, 254).astype(np.uint8)
    parts = (np.bincount(states[a:b]).argmax() for a, b in zip(first, marks, strict=True))
    return np.array([min(int(s), 254) for s in parts], dtype=np.uint8)


def _seconds(starts: Array | None, first: Ints) -> Any:
    """Where stretches start, in seconds: first and step if they are even, a list if not, or 0."""
    if starts is None:
        return 0
    at = starts[first].astype(np.float64)
    step = float((at[-1] - at[0]) / max(first[-1] - first[0], 1))
    even = at[0] + step * (first - first[0])
    if np.abs(at - even).max() <= 0.05:
        return {"first": round(float(at[0]), 3), "step": round(step, 4)}
    return [round(float(t), 2) for t in at]


def _text(numbers: npt.NDArray[np.uint8]) -> str:
    return base64.b64encode(numbers.tobytes()).decode()


def _fields(column: pa.ChunkedArray) -> Sequence[Any]:
    return list(column.type) if pa.types.is_struct(column.type) else []


def _by_method(column: pa.ChunkedArray) -> dict[str, list[Any]]:
    whole = column.combine_chunks()
    return {f.name: _rows_of(pa.chunked_array([whole.field(f.name)])) for f in _fields(column)}


def _rows_of(column: pa.ChunkedArray) -> list[Any]:
    """An array per song of a column of lists, or of lists of rows; None is null."""
    lists = column.combine_chunks()
    values, offsets = lists.values, lists.offsets.to_numpy()
    if pa.types.is_fixed_size_list(values.type):
        width = values.type.list_size
        flat = values.values.to_numpy(zero_copy_only=False).reshape(-1, width)
    else:
        flat = values.to_numpy(zero_copy_only=False)
    valid = lists.is_valid().to_numpy(zero_copy_only=False)
    return [
        flat[a:b] if ok else None for a, b, ok in zip(offsets[:-1], offsets[1:], valid, strict=True)
    ]
