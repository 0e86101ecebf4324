"""Songs x aggregators x splits -> one tidy table of results.

Conventions
-----------
Every method is scored on the same songs, each of them once, and compared in pairs with the two
baselines (mean of probabilities, mean of log-odds), which are computed whether or not they are
asked for.
Songs reach the methods in the order given; `seqagg.problem` says who is scored by whom.

Where songs have several labels each, ``y`` and predictions are indicators of shape
(n_songs, n_classes), and methods are compared by the label ranking average precision of each song.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sklearn.base import clone

from seqagg import evaluation_multilabel
from seqagg.aggregators import make_aggregator
from seqagg.aggregators.base import Aggregator
from seqagg.engines import Engine
from seqagg.errors import ParameterError, SongError
from seqagg.evaluation import Comparison, compare, compare_scores, evaluate, holm
from seqagg.problem import Fold, Problem, Run, pose, select_songs
from seqagg.results import (
    METADATA_KEY,
    BenchmarkResult,
    ComparisonRow,
    Row,
    command_line,
    comparison_rows,
    predictions_schema,
    results_table,
    songs_checksum,
    type_name,
    versions,
)
from seqagg.songs import Songs
from seqagg.timelines import make_timelines

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Method = str | tuple[str, Aggregator]
Progress = Callable[[int, int, str], object]

METHODS = ("majority", "mean", "logodds", "hmm", "gru")
BASELINES = ("mean", "logodds")


_DEFAULT_FOLDS = 5
_FEW_GROUPS = 20
"""Below so many, bootstrap intervals are noticeably too narrow."""


def benchmark(
    songs: Songs,
    methods: Sequence[Method] = METHODS,
    *,
    cv: int | None = None,
    seed: int = 0,
    n_seeds: int = 1,
    name: str = "songs",
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
    n_resamples: int = 10_000,
    checksum: str | None = None,
    command: str | None = None,
    timelines: int = 0,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> BenchmarkResult:
    """Score methods on labelled songs, and compare them with averaging.

    Songs whose split is ``train`` are learnt from and those of ``test`` scored. Without a split,
    or with `cv`, folds are drawn that keep groups together and classes in proportion, and each
    song is scored by a model that has seen no song of its group.

    Parameters
    ----------
    songs : Songs
        With labels. Songs without one, and songs without a frame, are left out and named.
        Scores must be out of fold for the frame classifier, or learnt methods look bad.
    methods : sequence of str or (str, Aggregator)
        Names in `seqagg.aggregators.AGGREGATORS`, or aggregators of your own with a name. The
        order has no influence on any number.
    cv : int, optional
        Number of folds. None = the split the songs carry, or 5 folds.
    seed : int
        Of the folds, of the resampling and of every aggregator with a `random_state`.
    n_seeds : int
        Methods with a `random_state` are fitted with so many, from `seed` on. They are compared by
        the first; the others say what chance makes of a method, on the same folds.
    name : str
        What the cache is called in the results.
    parameters : mapping of str to mapping, optional
        Method -> its parameters by name.
    n_resamples : int
        Of the bootstrap in `seqagg.evaluation.compare`.
    checksum : str, optional
        sha256 of the file the songs are from; of the songs' content by default.
    command : str, optional
        How this was called, for the provenance; what Python was started with by default.
    timelines : int
        Songs whose timelines are kept for the report, those first on which methods differ.
        Above 0 the table `BenchmarkResult.timelines` is made.
    progress : callable, optional
        Called with (fits done, fits in all, what is next), so that a command can draw a bar.
    engine : Engine, optional
        Who fits; this process by default. Every method, fold and seed is a task of its own, and
        no number depends on who does it.

    Returns
    -------
    BenchmarkResult

    Raises
    ------
    SongError
        Names the song that cannot be used: a label that no training song has, say.
    ParameterError
        For methods or parameters that do not exist, or fewer groups than folds.

    Notes
    -----
    Where labels are not the names of columns there is nothing to average: methods that need it
    are left out, and `BenchmarkResult.notes` says so.

    Examples
    --------
    >>> songs = Songs.from_arrays(
    ...     [[[1.0, -1.0]], [[2.0, -2.0]], [[-1.0, 1.0], [-3.0, 3.0]], [[-2.0, 2.0]]],
    ...     columns=["jig", "reel"],
    ...     labels=["jig", "jig", "reel", "jig"],
    ... )
    >>> result = benchmark(songs, ["majority", "mean"], cv=2)
    >>> [(row["method"], row["accuracy"]) for row in result.summary()]
    [('majority', 0.75), ('mean', 0.75)]
    """
    _check_numbers(cv, seed, n_seeds, n_resamples, timelines)
    aggregators = _make_aggregators(methods, parameters or {}, seed)
    used, left_out, has_split = select_songs(songs, given_split=cv is None)
    problem = pose(used, has_split, cv or _DEFAULT_FOLDS, seed)
    aggregators, notes = _applicable(aggregators, problem)
    shown = [m for m in _names(methods) if m in aggregators]
    tried = {(m, seed): aggregator for m, aggregator in aggregators.items()}
    for other in range(seed + 1, seed + n_seeds):
        others = _make_aggregators(methods, parameters or {}, other)
        tried |= {(m, other): others[m] for m in shown if _has_chance(others[m], aggregators[m])}
    keep = seed if timelines else None
    all_runs = _run_all(tried, problem, progress, engine or Engine(), keep)
    runs = {m: all_runs[m, seed] for m in aggregators}
    comparisons = _compare_all(shown, runs, problem, seed, n_resamples)
    notes += _group_notes(problem)
    learnt = [m for m in shown if not aggregators[m].needs_class_columns]
    provenance = {
        "command": command_line() if command is None else command,
        "versions": versions(),
        "cache": name,
        "checksum": songs_checksum(songs) if checksum is None else checksum,
        "seed": seed,
        "n_seeds": n_seeds,
        "task": songs.task,
        "classes": problem.names,
        "columns": problem.songs.columns,
        "folds": None if has_split else len(problem.folds),
        "n_train": len(problem.folds[0].train) if has_split else None,
        "n_groups": None
        if songs.groups is None
        else len(np.unique(problem.groups[problem.scored])),
        "learnt": learnt,
        "n_resamples": n_resamples,
        "parameters": {m: aggregators[m].get_params(deep=False) for m in shown},
        "left_out": {why: {"n": len(ids), "first": ids[:20]} for why, ids in left_out.items()},
        "notes": notes,
    }
    metadata = {METADATA_KEY: json.dumps(provenance, ensure_ascii=False, default=type_name)}
    of_pairs = [row for pair in comparisons for row in comparison_rows(pair)]
    results, predictions = [], []
    for at in range(seed, seed + n_seeds):
        own = {m: all_runs[m, at] for m in shown if (m, at) in all_runs}
        if own:
            rows = [row for m, run in own.items() for row in _metric_rows(m, run, problem)]
            results.append(results_table(rows + (of_pairs if at == seed else []), name, at))
            predictions.append(_predictions_table(own, problem, at))
    told = make_timelines(problem, runs, learnt, timelines, seed) if timelines else None
    return BenchmarkResult(
        results=pa.concat_tables(results).replace_schema_metadata(metadata),
        predictions=pa.concat_tables(predictions).replace_schema_metadata(metadata),
        timelines=told and told.replace_schema_metadata(metadata),
        comparisons=comparisons,
        classes=problem.names,
        left_out=left_out,
        notes=tuple(notes),
    )


# Methods.


def _check_numbers(
    cv: int | None, seed: int, n_seeds: int, n_resamples: int, timelines: int
) -> None:
    """Refuse before hours of fitting what would be refused after them."""
    if cv is not None and cv < 2:
        raise ParameterError(f"cv={cv} is below 2")
    if n_seeds < 1:
        raise ParameterError(f"n_seeds={n_seeds} is below 1")
    if not 0 <= seed <= 2**32 - n_seeds:
        raise ParameterError(f"seed={seed} is not between 0 and 2**32 - 1")
    if n_resamples < 1:
        raise ParameterError(f"n_resamples={n_resamples} is below 1")
    if timelines < 0:
        raise ParameterError(f"timelines={timelines} is below 0")


def _names(methods: Sequence[Method]) -> list[str]:
    return [m if isinstance(m, str) else m[0] for m in methods]


def _make_aggregators(
    methods: Sequence[Method], parameters: Mapping[str, Mapping[str, Any]], seed: int
) -> dict[str, Aggregator]:
    """Unfitted aggregators, those asked for and the baselines, with parameters and seed set."""
    if isinstance(methods, str) or len(methods) == 0:
        raise ParameterError("methods must be a list of one or more")
    wanted: dict[str, Aggregator | None] = {}
    for method in methods:
        name, own = (method, None) if isinstance(method, str) else method
        if name in wanted:
            raise ParameterError(f"method {name!r} stands there twice")
        if own is not None and (name in BASELINES or not isinstance(own, Aggregator)):
            why = "is the name of a baseline" if name in BASELINES else "is no Aggregator"
            raise ParameterError(f"method {name!r} {why}")
        wanted[name] = own
    wanted = {**dict.fromkeys(BASELINES), **wanted}
    for name in parameters:
        if name not in wanted:
            raise ParameterError(f"parameters for {name!r}, which is not among the methods")
    return {
        name: _make_aggregator(name, own, parameters.get(name, {}), seed)
        for name, own in wanted.items()
    }


def _make_aggregator(
    name: str, own: Aggregator | None, parameters: Mapping[str, Any], seed: int
) -> Aggregator:
    if own is None:
        aggregator = make_aggregator(name, **parameters)
    else:
        try:
            aggregator = clone(own).set_params(**parameters)
        except ValueError as error:
            raise ParameterError(f"method {name!r}: {error}") from None
    seeds = {
        key: seed
        for key, value in aggregator.get_params().items()
        if key not in parameters
        and (key == "random_state" or (key.endswith("__random_state") and value is None))
    }
    seeded: Aggregator = aggregator.set_params(**seeds)
    return seeded


def _has_chance(one: Aggregator, other: Aggregator) -> bool:
    """Whether another seed made another aggregator."""
    seeds = [
        {k: v for k, v in a.get_params().items() if k.endswith("random_state")}
        for a in (one, other)
    ]
    return seeds[0] != seeds[1]


def _applicable(
    aggregators: dict[str, Aggregator], problem: Problem
) -> tuple[dict[str, Aggregator], list[str]]:
    """Leave out the methods that need columns which are classes, where they are not."""
    if problem.columns_are_classes:
        return aggregators, []
    kept = {m: a for m, a in aggregators.items() if not a.needs_class_columns}
    columns = set(problem.songs.columns or ())
    foreign = np.array([name not in columns for name in problem.names])
    has = problem.has
    first = int(np.argmax((has & foreign).any(axis=1)))
    label = problem.names[int(np.argmax(has[first] & (foreign | ~foreign.any())))]
    why = f"labels such as {label!r} are not the names of columns: nothing to average"
    if not kept:
        raise SongError(f"{why}; a learnt method does without", song=str(problem.songs.ids[first]))
    left = [m for m in aggregators if m not in kept]
    return kept, [f"{why}, so that {', '.join(left)} are left out and no baseline is compared"]


# Runs.


class _Task(NamedTuple):
    name: str
    seed: int
    aggregator: Aggregator  # unfitted
    fold: int
    keep: bool  # whether the fitted one is needed again


class _Said(NamedTuple):
    """What a method said of the songs of one fold."""

    prediction: Ints
    probability: Floats
    fit_seconds: float
    predict_seconds: float
    fitted: Aggregator | None


def _run_all(
    aggregators: Mapping[tuple[str, int], Aggregator],
    problem: Problem,
    progress: Progress | None,
    engine: Engine,
    keep: int | None,
) -> dict[tuple[str, int], Run]:
    """Runs by method and seed; the fitted aggregators of one seed are kept."""
    report = progress or (lambda done, total, text: None)
    n_songs, n_classes, n_folds = len(problem.songs), len(problem.classes), len(problem.folds)
    tasks = [
        _Task(m, seed, a, i, seed == keep)
        for (m, seed), a in aggregators.items()
        for i in range(n_folds)
    ]
    runs = {
        key: Run(
            prediction=np.full(problem.y.shape, -1),
            probability=np.full((n_songs, n_classes), np.nan),
            fit_seconds=[0.0] * n_folds,
            predict_seconds=[0.0] * n_folds,
            fitted=[],
        )
        for key in aggregators
    }
    fitted: dict[tuple[str, int, int], Aggregator | None] = {}
    several = len({task.seed for task in tasks}) > 1
    texts = [_text(task, problem, several) for task in tasks] + ["done"]
    report(0, len(tasks), texts[0])
    for n_done, (position, said) in enumerate(engine.run(_run_fold, problem, tasks), 1):
        task = tasks[position]
        run, test = runs[task.name, task.seed], problem.folds[task.fold].test
        run.prediction[test], run.probability[test] = said.prediction, said.probability
        run.fit_seconds[task.fold] = said.fit_seconds
        run.predict_seconds[task.fold] = said.predict_seconds
        fitted[task.name, task.seed, task.fold] = said.fitted
        report(n_done, len(tasks), texts[n_done])
    for key, run in runs.items():
        in_order = (fitted[*key, i] for i in range(n_folds))
        run.fitted.extend(one for one in in_order if one is not None)
    return runs


def _text(task: _Task, problem: Problem, several: bool) -> str:
    text = f"{task.name}, seed {task.seed}" if several else task.name
    if problem.folds[task.fold].number is None:
        return text
    return f"{text}, fold {task.fold + 1} of {len(problem.folds)}"


def _run_fold(problem: Problem, task: _Task) -> _Said:
    aggregator, fold = clone(task.aggregator), problem.folds[task.fold]
    started = time.perf_counter()
    aggregator.fit(problem.songs[fold.train], groups=_groups_apart(problem, fold))
    fitted = time.perf_counter()
    test = problem.songs[fold.test]
    prediction = aggregator.predict(test)
    predicted = time.perf_counter()
    if not np.array_equal(aggregator.classes_, problem.classes):
        raise ParameterError(f"method {task.name!r} has other classes than the songs")
    if not problem.multilabel:
        prediction = np.searchsorted(problem.classes, prediction)
    probability = aggregator.predict_proba(test)
    kept = aggregator if task.keep else None
    return _Said(prediction, probability, fitted - started, predicted - fitted, kept)


def _groups_apart(problem: Problem, fold: Fold) -> Ints:
    """Groups that a method must keep together when it tries itself on training songs.

    It should meet there what it meets in the songs scored: new groups, or, where groups stand on
    both sides of the split given, new songs of groups that it knows.
    """
    train, test = problem.groups[fold.train], problem.groups[fold.test]
    return np.arange(len(train)) if np.isin(test, train).any() else train


def _compare_all(
    shown: Sequence[str],
    runs: Mapping[str, Run],
    problem: Problem,
    seed: int,
    n_resamples: int,
) -> tuple[ComparisonRow, ...]:
    """Every method shown against every baseline, adjusted for their number by baseline."""
    metric = "lrap" if problem.multilabel else "accuracy"
    rows = []
    for baseline in (b for b in BASELINES if b in runs):
        pairs = {
            m: _compare(runs[m], runs[baseline], problem, seed, n_resamples)
            for m in shown
            if m != baseline
        }
        adjusted = holm([pair.p_value for pair in pairs.values()])
        rows += [
            ComparisonRow(m, baseline, pair, float(p), metric)
            for (m, pair), p in zip(pairs.items(), adjusted, strict=True)
        ]
    return tuple(rows)


def _compare(a: Run, b: Run, problem: Problem, seed: int, n_resamples: int) -> Comparison:
    """Compare by right or wrong, or by how well several labels are ranked."""
    scored = problem.scored
    y, groups = problem.y[scored], problem.groups[scored]
    if problem.multilabel:
        ranked_a, ranked_b = (
            evaluation_multilabel.lrap_of_songs(y, run.probability[scored]) for run in (a, b)
        )
        return compare_scores(ranked_a, ranked_b, groups, seed, n_resamples)
    return compare(y, a.prediction[scored], b.prediction[scored], groups, seed, n_resamples)


def _group_notes(problem: Problem) -> list[str]:
    notes = []
    n_groups = len(np.unique(problem.groups[problem.scored]))
    if n_groups < _FEW_GROUPS:
        notes.append(f"only {n_groups} groups are scored: intervals are somewhat too narrow")
    for fold in problem.folds:
        shared = np.intersect1d(problem.groups[fold.train], problem.groups[fold.test])
        if len(shared):
            notes.append(f"groups on both sides of the split: {len(shared)}")
    return notes


# Tables.


def _metric_rows(method: str, run: Run, problem: Problem) -> Iterator[Row]:
    parts = [
        (fold.number, fold.test, [i])
        for i, fold in enumerate(problem.folds)
        if fold.number is not None  # a given split is one part: all scored songs together
    ]
    everything = (None, problem.scored, list(range(len(problem.folds))))
    for number, test, folds in (*parts, everything):
        answers = problem.y[test], run.prediction[test], run.probability[test]
        if problem.multilabel:
            found = evaluation_multilabel.evaluate(*answers)
        else:
            found = evaluate(*answers, np.arange(len(problem.names)))
        found["n_songs"] = len(test)
        found["fit_seconds"] = sum(run.fit_seconds[i] for i in folds)
        found["predict_seconds"] = sum(run.predict_seconds[i] for i in folds)
        for metric, value in found.items():
            yield method, number, metric, value


def _predictions_table(runs: Mapping[str, Run], problem: Problem, seed: int) -> pa.Table:
    scored = problem.scored
    n_scored, n_classes = len(scored), len(problem.names)
    fold_of: Array = np.full(len(problem.songs), None)
    for fold in problem.folds:
        fold_of[fold.test] = fold.number
    offsets = pa.array(np.arange(n_scored + 1) * n_classes, type=pa.int32())
    tables = []
    for method, run in runs.items():
        flat = pa.array(run.probability[scored].astype(np.float32).reshape(-1))
        columns = [
            [str(song) for song in problem.songs.ids[scored]],
            [method] * n_scored,
            fold_of[scored].tolist(),
            [seed] * n_scored,
            _names_of(problem.y[scored], problem),
            _names_of(run.prediction[scored], problem),
            pa.ListArray.from_arrays(offsets, flat),
        ]
        tables.append(pa.table(columns, schema=predictions_schema(problem.multilabel)))
    return pa.concat_tables(tables)


def _names_of(y: Ints, problem: Problem) -> pa.Array:
    """Name of each song's class, or list of the names of its classes."""
    if not problem.multilabel:
        return pa.array(problem.names).take(pa.array(y))
    names = [[problem.names[k] for k in np.flatnonzero(row)] for row in y]
    return pa.array(names, type=pa.list_(pa.string()))
