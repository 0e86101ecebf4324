"""What methods make of a song as it plays, and what each stretch of it did for their answer.

Conventions
-----------
A *mark* is a number of frames heard from the start of a song; missing frames do not count. The
belief at a mark is what `predict_proba` says of the frames up to it as a song of their own. The
frames between one mark and the next are a *stretch*.

What a stretch *contributes* is in nats, towards one class and away from another. To averaging
log-odds it is exact: the stretch's share of the lead in mean log-odds. To every other method it is
what the lead in log probability loses when the song is heard without the stretch (with several
labels per song: the log-odds of the one class). Whether the order of the frames matters is tried
by shuffling them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seqagg.aggregators.base import Aggregator
from seqagg.calibration import log_probabilities
from seqagg.evaluation_multilabel import lrap_of_songs
from seqagg.problem import Fold, Problem, Run
from seqagg.progress import steps
from seqagg.songs import Songs
from seqagg.threads import one_thread_each

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

AVERAGING = "logodds"
"""The method that stands for averaging."""

MOST_MARKS = 40
"""Marks of one song at which beliefs and contributions are taken."""

_SHUFFLES = 10
"""Orders of a song's frames that are tried."""

_SONGS_AT_ONCE = 100
"""Songs whose variants are listed at a time."""

_FRAMES_AT_ONCE = 200_000
"""Frames of variants that are scored at a time."""


def even_marks(n_frames: int, most: int = MOST_MARKS) -> Ints:
    """Marks after every frame, or so many evenly spread ones; the last is the whole song."""
    if n_frames <= most:
        return np.arange(1, n_frames + 1)
    return np.rint(np.linspace(0, n_frames, most + 1)[1:]).astype(np.int64)


def growing_marks(n_frames: int) -> Ints:
    """Marks 1, 2, 3, 4, 6, 8, 12, ... below the number of frames, then the whole song."""
    powers = 2 ** np.arange(max(1, n_frames).bit_length())
    marks = np.unique(np.concatenate([powers, 3 * powers // 2]))
    return np.append(marks[marks < n_frames], n_frames)


def scores_of_frames(aggregator: Aggregator, songs: Songs, rows: Sequence[Ints]) -> Floats:
    """Calibrated scores of songs made of some frames of others, shape (n, n_classes).

    Parameters
    ----------
    aggregator : Aggregator
        Fitted.
    songs : Songs
        Without missing frames.
    rows : sequence of n ndarrays of int
        Frames of each song made, one or more, as positions in ``songs.values``.

    Returns
    -------
    ndarray
        Log probabilities up to a constant per row, or log-odds where songs have several labels.
    """
    lengths = np.array([len(r) for r in rows])
    n_before = np.cumsum(lengths) - lengths
    batches = np.searchsorted(n_before, np.arange(0, lengths.sum(), _FRAMES_AT_ONCE))
    fields: dict[str, Any] = {"columns": songs.columns, "kind": songs.kind, "task": songs.task}
    found = []
    for first, end in itertools.pairwise(np.unique([*batches, len(rows)])):
        offsets = np.concatenate([[0], np.cumsum(lengths[first:end])])
        made = Songs(songs.values[np.concatenate(rows[first:end])], offsets, **fields)
        found.append(aggregator._scores(made))
    return np.concatenate(found)


@dataclass(frozen=True)
class _Pair:
    """The classes that a song is between; against is -1 where each class is by itself."""

    toward: int
    against: int

    def lead(self, scores: Floats) -> Floats:
        """What the one has more than the other, shape (n,) of (n, n_classes)."""
        lead = scores[:, self.toward]
        return lead if self.against < 0 else lead - scores[:, self.against]


@dataclass
class _Details:
    """Timeline of one song; what methods say is by their names."""

    pair: _Pair
    marks: Ints
    belief: dict[str, Floats]  # (n_marks, n_classes)
    contribution: dict[str, Floats]  # (n_marks,)
    state: dict[str, Ints]  # (n_frames,), of a hidden Markov model of the class answered
    shuffled: dict[str, float]  # mean probability of the one class, frames shuffled


def make_timelines(
    problem: Problem, runs: Mapping[str, Run], learnt: Sequence[str], most: int, seed: int
) -> pa.Table:
    """Table of what happened in the songs that were scored.

    Parameters
    ----------
    problem : Problem
    runs : mapping of str to Run
        Method -> what it said, and the models that said it.
    learnt : sequence of str
        The methods among them that learn.
    most : int
        Songs that have details: those first on which averaging and the best learnt method are not
        equally right, then those on which any methods differ, then others by lot.
    seed : int
        Of the lot.

    Returns
    -------
    pyarrow.Table
        One row per scored song: ``song_id``, ``n_frames``, ``early_marks`` and, by method,
        ``early_score`` at them. Where a song has details, also ``log_odds`` of its frames and
        their ``start`` in seconds, if known; ``marks``; ``toward`` and ``against``, the classes it
        is between; and by method ``belief`` at the marks (in the order of the classes),
        ``contribution`` of the stretch that ends there, ``state`` of every frame, and
        ``shuffled``, what the one class gets when the frames are shuffled.
    """
    shown = [m for m in runs if m == AVERAGING or m in learnt]
    best = _best(problem, runs, learnt)
    chosen = set(_choose(problem, runs, best, most, seed).tolist())
    parts = [
        (number, mine[first : first + _SONGS_AT_ONCE])
        for number, fold in enumerate(problem.folds)
        for mine in [[i for i in fold.test.tolist() if i in chosen]]
        for first in range(0, len(mine), _SONGS_AT_ONCE)
    ]
    early: dict[int, dict[str, Array]] = {i: {} for i in problem.scored.tolist()}
    details: dict[int, _Details] = {}
    n_steps = len(problem.folds) * len(runs) + len(parts) * len(shown)
    with one_thread_each(), steps("timelines", n_steps) as step:
        for method, run in runs.items():
            for fold, aggregator in zip(problem.folds, run.fitted, strict=True):
                _score_early(method, aggregator, problem, fold, early)
                step(method)
        for number, mine in parts:
            blank = {i: _blank(problem, runs, best, i) for i in mine}
            for method in shown:
                _fill(method, runs[method], number, problem, blank, seed)
                step(method)
            details |= blank
    return _table(problem, early, details, list(runs), shown)


def _song_scores(problem: Problem, run: Run) -> Floats:
    """How right each scored song is: 1 or 0, or with several labels its LRAP."""
    scored = problem.scored
    y = problem.y[scored]
    if problem.multilabel:
        return lrap_of_songs(y, run.probability[scored])
    return np.asarray(run.prediction[scored] == y, dtype=np.float64)


def _best(problem: Problem, runs: Mapping[str, Run], learnt: Sequence[str]) -> str | None:
    """Learnt method that is right most often; of equals the first."""
    means = {m: float(_song_scores(problem, runs[m]).mean()) for m in learnt}
    return max(means, key=lambda m: means[m]) if means else None


def _choose(
    problem: Problem, runs: Mapping[str, Run], best: str | None, most: int, seed: int
) -> Ints:
    """Positions of the songs that have details."""
    scored = problem.scored
    scores = {m: _song_scores(problem, run) for m, run in runs.items()}
    every = np.stack(list(scores.values()))
    differ = (every != every[0]).any(axis=0).astype(int)
    if best is not None and AVERAGING in runs:
        differ += scores[best] != scores[AVERAGING]
    lot = np.random.default_rng(seed).random(len(scored))
    return np.sort(scored[np.lexsort((lot, -differ))[:most]])


def _score_early(
    method: str,
    aggregator: Aggregator,
    problem: Problem,
    fold: Fold,
    early: Mapping[int, dict[str, Array]],
) -> None:
    """Put in how right each song of a fold is after its growing marks."""
    songs = problem.songs
    rows, counts = [], []
    for i in fold.test.tolist():
        marks = growing_marks(int(songs.lengths[i]))
        rows += [songs.offsets[i] + np.arange(m) for m in marks]
        counts.append(len(marks))
    scores = scores_of_frames(aggregator, songs, rows)
    y = problem.y[np.repeat(fold.test, counts)]
    if problem.multilabel:
        right = lrap_of_songs(y, np.exp(log_probabilities(scores, True)))
    else:
        right = (scores.argmax(axis=1) == y).astype(np.float64)
    parts = np.split(right, np.cumsum(counts)[:-1])
    for i, part in zip(fold.test.tolist(), parts, strict=True):
        early[i][method] = part


def _blank(problem: Problem, runs: Mapping[str, Run], best: str | None, i: int) -> _Details:
    marks = even_marks(int(problem.songs.lengths[i]))
    return _Details(_pair(problem, runs, best, i), marks, {}, {}, {}, {})


def _pair(problem: Problem, runs: Mapping[str, Run], best: str | None, i: int) -> _Pair:
    """Classes that a song is between.

    What the best learnt method answers, against what averaging answers; where they agree, against
    the truth, and where that is the answer too, against the class that averaging has next.
    """
    averaging = runs.get(AVERAGING)
    said = runs[best] if best is not None else averaging
    if said is None:  # neither learnt nor averaged in log-odds
        said = next(iter(runs.values()))
    other = averaging or said
    if problem.multilabel:
        gap = np.abs(said.probability[i] - other.probability[i])
        return _Pair(int((gap if gap.any() else said.probability[i]).argmax()), -1)
    toward = int(said.prediction[i])
    rivals = [int(other.prediction[i]), int(problem.y[i])]
    rivals += [int(k) for k in np.argsort(-other.probability[i], kind="stable")]
    return _Pair(toward, next(k for k in rivals if k != toward))


def _fill(
    method: str,
    run: Run,
    number: int,
    problem: Problem,
    details: Mapping[int, _Details],
    seed: int,
) -> None:
    """Put in what a method made of songs that the model of a fold scored, by their positions."""
    songs, aggregator = problem.songs, run.fitted[number]
    tried = {i: _variants(songs, i, found.marks, seed) for i, found in details.items()}
    scores = scores_of_frames(aggregator, songs, [rows for made in tried.values() for rows in made])
    cuts = np.cumsum([len(made) for made in tried.values()])[:-1]
    for (i, found), own in zip(details.items(), np.split(scores, cuts), strict=True):
        n = len(found.marks)
        heard, shuffled, lacking = np.split(own, [n, n + _SHUFFLES])
        found.belief[method] = np.exp(log_probabilities(heard, problem.multilabel))
        if method == AVERAGING:
            found.contribution[method] = _shares(problem, i, found)
        else:
            # A song of one stretch cannot do without it: all its lead comes from there.
            whole = found.pair.lead(heard[-1:])
            found.contribution[method] = whole - (found.pair.lead(lacking) if n > 1 else 0.0)
            proba = np.exp(log_probabilities(shuffled, problem.multilabel))
            found.shuffled[method] = float(proba[:, found.pair.toward].mean())
        path = _state_path(aggregator, run, i, found.pair, problem)
        if path is not None:
            found.state[method] = path


def _variants(songs: Songs, i: int, marks: Ints, seed: int) -> list[Ints]:
    """Frames of a song up to every mark, then in other orders, then without every stretch."""
    rows = np.arange(songs.offsets[i], songs.offsets[i + 1])
    rng = np.random.default_rng([seed, i])
    starts = np.append(0, marks[:-1])
    return [
        *(rows[:mark] for mark in marks),
        *(rng.permutation(rows) for _ in range(_SHUFFLES)),
        *(
            np.delete(rows, slice(a, b))
            for a, b in zip(starts, marks, strict=True)
            if len(marks) > 1
        ),
    ]


def _shares(problem: Problem, i: int, found: _Details) -> Floats:
    """Share that each stretch has of the lead in mean log-odds, exactly."""
    columns = problem.songs.columns
    assert columns is not None  # a benchmark names them where they are classes
    of_class = [columns.index(name) for name in problem.names]
    lead = found.pair.lead(problem.songs[i].astype(np.float64)[:, of_class])
    return np.add.reduceat(lead, np.append(0, found.marks[:-1])) / len(lead)


def _state_path(
    aggregator: Aggregator, run: Run, i: int, pair: _Pair, problem: Problem
) -> Ints | None:
    """Likeliest states of the hidden Markov model of the class answered, if there is one."""
    hmms = getattr(aggregator, "hmms_", {})
    answer = problem.classes[pair.toward if problem.multilabel else run.prediction[i]]
    model = hmms.get(answer.item() if isinstance(answer, np.generic) else answer)
    if model is None:
        return None
    return np.asarray(model.decode(problem.songs[i].astype(np.float64))[1], dtype=np.int64)


# The table.


def _table(
    problem: Problem,
    early: Mapping[int, Mapping[str, Array]],
    details: Mapping[int, _Details],
    methods: Sequence[str],
    shown: Sequence[str],
) -> pa.Table:
    rows = problem.scored.tolist()
    songs = problem.songs[problem.scored]
    found = [details.get(i) for i in rows]
    names = [*problem.names, None]  # -1 is none

    def of(part: str, dtype: type | None) -> pa.Array:
        said = [m for m in shown if any(m in getattr(d, part) for d in details.values())]
        by_song = ([None if d is None else getattr(d, part).get(m) for d in found] for m in said)
        columns = [
            pa.array(v, pa.float32()) if dtype is None else _lists(v, dtype) for v in by_song
        ]
        return pa.StructArray.from_arrays(columns, said) if said else pa.nulls(len(found))

    frames = [None if d is None else a for d, a in zip(found, songs, strict=True)]
    starts = [None if d is None else a for d, a in zip(found, _starts(songs), strict=True)]
    by_method = [_lists([early[i][m] for i in rows], np.float32) for m in methods]
    columns = {
        "song_id": pa.array([str(song) for song in songs.ids], pa.string()),
        "n_frames": pa.array(songs.lengths.astype(np.int32)),
        "early_marks": _lists([growing_marks(n) for n in songs.lengths.tolist()], np.int32),
        "early_score": pa.StructArray.from_arrays(by_method, list(methods)),
        "start": _lists(starts, np.float32),
        "log_odds": _lists(frames, np.float32),
        "marks": _lists([None if d is None else d.marks for d in found], np.int32),
        "toward": pa.array([d and names[d.pair.toward] for d in found], pa.string()),
        "against": pa.array([d and names[d.pair.against] for d in found], pa.string()),
        "belief": of("belief", np.float32),
        "contribution": of("contribution", np.float32),
        "state": of("state", np.int32),
        "shuffled": of("shuffled", None),
    }
    return pa.table(columns)


def _starts(songs: Songs) -> list[Array | None]:
    """Seconds at which the frames of each song start, where that is known."""
    if songs.start is None:
        return [None] * len(songs)
    return list(np.split(songs.start, songs.offsets[1:-1]))


def _lists(arrays: Sequence[Array | None], dtype: type) -> pa.Array:
    """Column of lists, or of lists of rows, from an array per song; None is null."""
    filled = [a for a in arrays if a is not None]
    flat: Array = np.concatenate(filled).astype(dtype) if filled else np.empty(0, dtype)
    values = pa.array(flat.reshape(-1))
    if flat.ndim == 2:
        values = pa.FixedSizeListArray.from_arrays(values, flat.shape[1])
    lengths = [0 if a is None else len(a) for a in arrays]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    missing = pa.array([a is None for a in arrays])
    return pa.ListArray.from_arrays(offsets, values, mask=missing)
