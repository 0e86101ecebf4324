"""Frames in, decisions out, while the songs play.

Conventions
-----------
A line of input is a frame of a song, in time order within the song; lines of other songs may stand
between them. What is said is a *record*, a dict that JSON can hold: ``song``, ``frame`` (how many
have come, missing ones too), ``prediction``, ``probability`` (of several labels, a list of each)
and ``status``, which is "playing", "decided" (early, and for good) or "ended".
"""

from __future__ import annotations

import csv
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from seqagg.decision import NEVER, EarlyRule, early_decisions, early_rule
from seqagg.errors import ParameterError, SongError
from seqagg.folds import group_indices, grouped_folds
from seqagg.logodds import Kind
from seqagg.parsing import parse_json
from seqagg.songs import Songs

if TYPE_CHECKING:
    from seqagg.aggregators.base import Aggregator

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Song = str | int | None
Record = dict[str, Any]

_CHUNK = 2**16
_LONGEST_LINE = 2**22

_STREAMS = 64
"""Streams at first; there are twice as many whenever they do not suffice."""

_MOST_DECIDED = 2**18
"""Decided songs whose names are remembered: those of which a frame came last."""

_SIDE_BY_SIDE = 256
"""Labelled songs that are listened to at a time."""

_FOLDS = 5
"""Of songs that a model was fitted to."""


class Line(NamedTuple):
    """A frame of a song, or its end."""

    number: int
    song: Song
    scores: list[Any] | None  # None is the end
    columns: tuple[str, ...] | None


# Deciding early.


@dataclass(frozen=True)
class Calibrated:
    """A rule to decide early, and what it does to the songs that it was chosen on.

    Attributes
    ----------
    rule : EarlyRule
    n_songs, n_decided, n_wrong : int
        Songs listened to; of these, decided before or at their end; of these, decided wrongly.
    share_heard : float or None
        Median share of the frames that it took, of the songs that are decided.
    """

    rule: EarlyRule
    n_songs: int
    n_decided: int
    n_wrong: int
    share_heard: float | None


def calibrate_early(
    model: Aggregator, songs: Songs, error_rate: float, *, fitted_to: bool = False
) -> Calibrated:
    """Choose on labelled songs when a song may be decided while it plays.

    Parameters
    ----------
    model : Aggregator
        Of songs with one label each.
    songs : Songs
        Those without a label or without a frame are left out.
    error_rate : float
        See `seqagg.decision.early_rule`, which makes the promise.
    fitted_to : bool
        Whether the model was fitted to these songs. Then each is listened to by a model like it
        of the songs in other folds, five in all, which keep groups together.
    """
    if model.multilabel_:
        raise ParameterError("early decisions are for songs with one label each")
    labels = np.full(len(songs), None) if songs.labels is None else songs.labels
    usable = np.array([label is not None for label in labels]) & (songs.lengths > 0)
    if not usable.any():
        raise ParameterError("no song has both a label and a frame: no rule can be chosen")
    songs, labels = songs[usable], labels[usable].astype(str)
    beliefs, said = _unseen_beliefs(model, songs) if fitted_to else _beliefs(model, songs)
    right = [mine == label for mine, label in zip(said, labels, strict=True)]
    rule = early_rule(beliefs, right, error_rate)
    decided = early_decisions(beliefs, rule)
    n_wrong = sum(not right[i][t] for i, t in decided.items())
    heard = [(t + 1) / len(beliefs[i]) for i, t in decided.items()]
    share = float(np.median(heard)) if heard else None
    return Calibrated(rule, len(songs), len(decided), n_wrong, share)


def _unseen_beliefs(
    model: Aggregator, songs: Songs
) -> tuple[list[Floats], list[npt.NDArray[np.str_]]]:
    """What models of other folds believe, as `_beliefs` gives it."""
    from sklearn.base import clone

    y = np.unique(np.asarray(songs.labels).astype(str), return_inverse=True)[1]
    folds = grouped_folds(y, group_indices(songs.groups, len(songs)), _FOLDS, 0)
    if not folds:
        raise ParameterError("all songs are of one group: none can be held out")
    beliefs: list[Any] = [None] * len(songs)
    said = list(beliefs)
    for learn, held in folds:
        found = _beliefs(clone(model).fit(songs[learn]), songs[held])
        for i, belief, names in zip(held.tolist(), *found, strict=True):
            beliefs[i], said[i] = belief, names
    return beliefs, said


def _beliefs(model: Aggregator, songs: Songs) -> tuple[list[Floats], list[npt.NDArray[np.str_]]]:
    """Probability and name of the likeliest class after each frame of each song."""
    names, order = model.classes_.astype(str), np.argsort(songs.lengths)
    best = np.empty(len(songs.values), dtype=np.int64)
    belief = np.empty(len(songs.values))
    for begin in range(0, len(order), _SIDE_BY_SIDE):
        mine = order[begin : begin + _SIDE_BY_SIDE]
        stream = model.stream(len(mine))
        for t in range(int(songs.lengths[mine].max())):
            playing = np.flatnonzero(songs.lengths[mine] > t)
            rows = songs.offsets[mine[playing]] + t
            frames = Songs(
                songs.values[rows],
                np.arange(len(rows) + 1),
                columns=songs.columns,
                kind=songs.kind,
                task=songs.task,
            )
            found = stream.update(frames, playing)
            best[rows], belief[rows] = found.argmax(axis=1), found.max(axis=1)
    ends = songs.offsets[1:-1]
    return np.split(belief, ends), np.split(names[best], ends)


# Listening.


class Listener:
    """Listens to any number of songs, and says what changes.

    A song that is neither decided nor ended is remembered, since its next frame may still come. Of
    decided songs the names are, so that what comes of them is not taken for new songs: a quarter of
    a million, those first forgotten of which nothing has come for the longest time.

    Parameters
    ----------
    model : Aggregator
        Fitted, one that can stream.
    kind : {"log_odds", "probability", "logit"}
        What the scores of frames are.
    rule : EarlyRule
        When a song is decided; what comes of it later is not listened to.
    every : int, optional
        Say something every so many frames of a song, even where nothing changes.
    """

    def __init__(
        self,
        model: Aggregator,
        kind: Kind = "log_odds",
        *,
        rule: EarlyRule = NEVER,
        every: int | None = None,
    ) -> None:
        if model.multilabel_ and np.isfinite(rule.threshold):
            raise ParameterError("early decisions are for songs with one label each")
        self._model = model
        self._kind: Kind = kind
        self._rule = rule
        self._every = every
        self._stream = model.stream(_STREAMS)
        self._free = list(range(_STREAMS))
        self._place: dict[Song, int] = {}
        self._n_frames: dict[Song, int] = {}
        self._said: dict[Song, Any] = {}
        self._decided: OrderedDict[Song, None] = OrderedDict()

    def hear(self, lines: Iterable[Line]) -> Iterator[Record]:
        """Take in lines, those of different songs at a time, and say what changes.

        Raises
        ------
        SongError
            Names the line that cannot be used, once those before it have been heard.
        """
        together: list[Line] = []
        songs: set[Song] = set()
        try:
            for line in lines:
                self._check_width(line)
                fresh = line.song not in songs and line.columns == _columns(together, line)
                if line.scores is None or not fresh:
                    yield from self._hear_together(together)
                    together, songs = [], set()
                if line.scores is None:
                    yield from self._end(line.song)
                    self._decided.pop(line.song, None)
                elif line.song in self._decided:
                    self._decided.move_to_end(line.song)
                else:
                    together.append(line)
                    songs.add(line.song)
        except SongError:
            yield from self._hear_together(together)
            raise
        yield from self._hear_together(together)

    def end(self) -> Iterator[Record]:
        """Say the last word on all songs that still play."""
        for song in list(self._place):
            yield from self._end(song)

    def _check_width(self, line: Line) -> None:
        n = self._model.n_features_in_
        if line.scores is not None and line.columns is None and len(line.scores) != n:
            raise _refusal(line, f"{len(line.scores)} scores, not {n}")

    def _hear_together(self, lines: list[Line]) -> Iterator[Record]:
        if not lines:
            return
        songs = self._songs(lines)
        places = np.array([self._place_of(line.song) for line in lines])
        try:
            beliefs = self._stream.update(songs, places)
        except SongError as error:  # names of columns, which all of them have in common
            raise _refusal(lines[0], error.message, error.column) from None
        for line, belief in zip(lines, beliefs, strict=True):
            yield from self._weigh(line.song, belief)

    def _songs(self, lines: list[Line]) -> Songs:
        """A song of one frame for each line."""
        with np.errstate(over="ignore"):  # beyond float32 it is infinite, and that is log-odds too
            values = np.array([line.scores for line in lines], np.float64).astype(np.float32)
        try:
            return Songs(
                values,
                np.arange(len(lines) + 1),
                columns=lines[0].columns or self._model.columns_,
                kind=self._kind,
                task="multilabel" if self._model.multilabel_ else "multiclass",
            )
        except SongError as error:
            about = lines[0] if error.song is None else lines[int(error.song)]
            raise _refusal(about, error.message, error.column) from None

    def _weigh(self, song: Song, belief: Floats) -> Iterator[Record]:
        self._n_frames[song] += 1
        record = self._record(song, belief)
        decided = self._decides(record)
        news = song not in self._said or self._said[song] != record["prediction"]
        due = self._every is not None and record["frame"] % self._every == 0
        if decided:
            yield record | {"status": "decided"}
            self._decided[song] = None
            if len(self._decided) > _MOST_DECIDED:
                self._decided.popitem(last=False)
            self._drop(song)
        elif news or due:
            self._said[song] = record["prediction"]
            yield record

    def _decides(self, record: Record) -> bool:
        threshold, min_frames = self._rule
        if not np.isfinite(threshold):  # of several labels, there are several probabilities
            return False
        return bool(record["frame"] >= min_frames and record["probability"] >= threshold)

    def _end(self, song: Song) -> Iterator[Record]:
        if song in self._place:
            belief = self._stream.predict_proba([self._place[song]])[0]
            yield self._record(song, belief) | {"status": "ended"}
            self._drop(song)

    def _record(self, song: Song, belief: Floats) -> Record:
        model = self._model
        record: Record = {"song": song, "frame": self._n_frames[song]}
        if model.thresholds_ is not None:
            chosen = np.flatnonzero(belief >= model.thresholds_)
            record["prediction"] = model.classes_[chosen].tolist()
            record["probability"] = belief[chosen].tolist()
        else:
            best = int(belief.argmax())
            record["prediction"] = model.classes_[best].item()
            record["probability"] = float(belief[best])
        return record | {"status": "playing"}

    def _place_of(self, song: Song) -> int:
        """Stream of a song; a new one begins where another has ended."""
        if song not in self._place:
            if not self._free:
                self._grow()
            self._place[song] = self._free.pop()
            self._n_frames[song] = 0
        return self._place[song]

    def _grow(self) -> None:
        n = len(self._stream)
        larger = self._model.stream(2 * n)
        state = larger.state()
        for name, array in self._stream.state().items():
            state[name][: len(array)] = array
        larger.restore(state)
        self._stream = larger
        self._free = list(range(n, 2 * n))

    def _drop(self, song: Song) -> None:
        place = self._place.pop(song)
        self._stream.reset([place])
        self._free.append(place)
        self._n_frames.pop(song)
        self._said.pop(song, None)


def _columns(together: list[Line], line: Line) -> tuple[str, ...] | None:
    """Columns of the lines that wait to be heard together."""
    return together[0].columns if together else line.columns


def _refusal(line: Line, message: str, column: str | None = None) -> SongError:
    song = None if line.song is None else str(line.song)
    return SongError(message, file=_place(line.number), song=song, column=column)


# Reading.


def _place(number: int) -> str:
    return f"standard input, line {number}"


def read_lines(source: BinaryIO, form: str) -> Iterator[Iterator[Line]]:
    """Lines of input as they come, all that are there at a time.

    Parameters
    ----------
    source : binary file
        Waited for.
    form : {"json", "csv"}
        JSON lines: ``{"song": "a", "scores": [...]}``, or the array alone where there is but one
        song; scores may be an object, by the names of columns; ``"end": true``, with scores or
        without, says that no more will come. CSV: a header with the names of the columns, and
        ``song`` where there are several; all of them end with the input. A missing score is null,
        NaN or an empty cell.

    Raises
    ------
    SongError
        Names the line that cannot be read, when its turn comes.
    """
    parse = _parse_json if form == "json" else _CSVParser()
    for numbered in _complete_lines(source):
        yield _parsed(parse, numbered)


def _parsed(
    parse: Callable[[int, str], list[Line]], numbered: Iterable[tuple[int, bytes]]
) -> Iterator[Line]:
    for number, raw in numbered:
        try:
            text = raw.decode("utf-8").strip("\r\n")
            lines = parse(number, text) if text.strip() else []
        except (ValueError, csv.Error) as error:
            if isinstance(error, SongError):
                raise
            raise SongError(f"cannot be read: {error}", file=_place(number)) from None
        yield from lines


def _complete_lines(source: BinaryIO) -> Iterator[list[tuple[int, bytes]]]:
    """Numbered lines, as soon as their ends are there."""
    read = getattr(source, "read1", source.read)
    rest, number = b"", 0
    while chunk := read(_CHUNK):
        *lines, rest = (rest + chunk).split(b"\n")
        yield [(number + i, line) for i, line in enumerate(lines, 1)]
        number += len(lines)
        if len(rest) > _LONGEST_LINE:
            raise SongError(f"is longer than {_LONGEST_LINE} bytes", file=_place(number + 1))
    if rest:
        yield [(number + 1, rest)]


def _parse_json(number: int, text: str) -> list[Line]:
    """A frame of a song, its end, or both."""
    found = parse_json(text)
    if isinstance(found, list):
        found = {"scores": found}
    if not isinstance(found, dict):
        raise ValueError("neither an object nor an array")
    song, scores, ends = found.get("song"), found.get("scores"), found.get("end")
    if isinstance(song, bool) or not isinstance(song, str | int | None):
        raise ValueError(f"song is {json.dumps(song)}, neither text nor a whole number")
    if not isinstance(ends, bool | None):
        raise ValueError(f"end is {json.dumps(ends)}, neither true nor false")
    end = [Line(number, song, None, None)] if ends else []
    if ends and scores is None:
        return end
    columns = None
    if isinstance(scores, dict):
        columns, scores = tuple(scores), list(scores.values())
    if not isinstance(scores, list) or not scores:
        raise ValueError("there are no scores")
    return [Line(number, song, [_number(score) for score in scores], columns), *end]


def _number(score: Any) -> float:
    if score is None:
        return float("nan")
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise ValueError(f"{json.dumps(score)} is no score")
    try:
        return float(score)
    except OverflowError:
        raise ValueError("a score is beyond all floats") from None


class _CSVParser:
    """Rows under a header that names them."""

    def __init__(self) -> None:
        self._columns: tuple[str, ...] = ()
        self._song: int | None = None

    def __call__(self, number: int, text: str) -> list[Line]:
        (row,) = csv.reader([text], strict=True)
        if not self._columns:
            self._read_header(row)
            return []
        n = len(self._columns) + (self._song is not None)
        if len(row) != n:
            raise ValueError(f"{len(row)} cells, not {n}")
        song = None if self._song is None else row.pop(self._song)
        scores = [float(cell) if cell.strip() else float("nan") for cell in row]
        return [Line(number, song, scores, self._columns)]

    def _read_header(self, row: list[str]) -> None:
        names = [name.strip().removeprefix("\ufeff") for name in row]
        self._song = names.index("song") if "song" in names else None
        self._columns = tuple(name for name in names if name != "song")
        if not self._columns or all(_is_number(name) for name in names):
            raise ValueError("the first line must name the columns")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
