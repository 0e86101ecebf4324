"""The laws that speak of answers, on songs drawn by chance; those of our choice are in `test_laws`.

A few frames of magnitudes from denormal to the end of float32, of ties, constant columns, songs
that are there twice; all for the models of `test_laws`, and averages also fitted to what is drawn.
"""

from __future__ import annotations

import copy
import functools
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal
from threadpoolctl import threadpool_limits

from seqagg import Songs, averages, load
from seqagg.aggregators.base import Aggregator
from seqagg.logodds import LIMIT, to_probability
from tests import test_laws as laws
from tests.conftest import COLUMNS, frames_of, shake
from tests.test_laws import CASES, Case, assert_same_answers

Array = npt.NDArray[Any]

MOST = float(np.finfo(np.float32).max)

USUAL = st.floats(-20, 20, width=32)
TIED = st.sampled_from([0.0, 1.0, -1.0, 30.0, -30.0])
FAR = st.floats(-1000, 1000, width=32)
ANY = st.floats(width=32, allow_nan=False)
EXTREME = st.sampled_from([0.0, 1e-45, -1e-45, 1e4, -1e4, MOST, -MOST, np.inf, -np.inf])

every_case = pytest.mark.parametrize("case", CASES, ids=str)


@st.composite
def frames(draw: st.DrawFn, numbers: tuple[st.SearchStrategy[float], ...], n_columns: int) -> Array:
    """Frames of one song, numbers of one sort."""
    shape = (draw(st.integers(1, 12)), n_columns)
    array: Array = draw(hnp.arrays(np.float32, shape, elements=draw(st.sampled_from(numbers))))
    if draw(st.booleans()):
        array[:, draw(st.integers(0, n_columns - 1))] = array[0, 0]
    return array


@st.composite
def songs_of(
    draw: st.DrawFn,
    numbers: tuple[st.SearchStrategy[float], ...] = (USUAL, TIED, ANY, EXTREME),
    kinds: tuple[str, ...] = ("log_odds", "probability", "logit"),
    columns: tuple[str, ...] = COLUMNS,
    n: int = 5,
) -> Songs:
    """A song to n, and one of them perhaps again."""
    arrays = draw(st.lists(frames(numbers, len(columns)), min_size=1, max_size=n))
    arrays += draw(st.lists(st.sampled_from(arrays), max_size=1))
    kind: Any = draw(st.sampled_from(kinds))
    if kind == "probability":
        arrays = [to_probability(array) for array in arrays]
    elif kind == "logit":  # which is never infinite
        arrays = [np.nan_to_num(array) for array in arrays]
    return Songs.from_arrays(arrays, columns=columns, kind=kind)


@functools.cache
def fitted(case: Case, *, to_stream: bool = False) -> Aggregator:
    """Model of `test_laws`; networks are shaken, for some of them stayed where they began."""
    model = laws.fitted_to_stream(case) if to_stream else laws.fitted(case)
    return shake(copy.deepcopy(model)) if case.name in ("gru", "mil") else model


def of_task(songs: Songs, case: Case) -> Songs:
    return songs.replace(task=case.queries.task)


def assert_probabilities(model: Aggregator, songs: Songs) -> None:
    proba, log_proba = model.predict_proba(songs), model.predict_log_proba(songs)
    assert np.isfinite(log_proba).all()
    assert np.isfinite(model.decision_function(songs)).all()
    assert ((proba >= 0) & (proba <= 1)).all()
    there = proba >= np.finfo(float).tiny  # below, digits go, and at last the number
    assert_allclose(np.log(proba[there]), log_proba[there], rtol=1e-9, atol=1e-9)
    predicted = model.predict(songs)
    if model.multilabel_:
        assert predicted.tolist() == (proba >= model.thresholds_).tolist()
        return
    assert_allclose(proba.sum(axis=1), 1, rtol=1e-12)
    # Of two that are equal to the last digit, scores may still know the higher one.
    places = np.searchsorted(model.classes_, predicted)
    assert_array_equal(proba[np.arange(len(songs)), places], proba.max(axis=1))


@every_case
@settings(max_examples=25, derandomize=True)
@given(songs=songs_of())
def test_answers_are_probabilities(case: Case, songs: Songs) -> None:
    assert_probabilities(fitted(case), of_task(songs, case))


def sizes(case: Case) -> tuple[st.SearchStrategy[float], ...]:
    """Numbers of which a method has all digits in whatever order it adds them up."""
    # Products of matrices are added up in an order that depends on the size of the batch.
    networks = case.name in ("gru", "mil")
    return (USUAL, TIED, FAR) if networks else (USUAL, TIED, ANY, EXTREME)


@every_case
@settings(max_examples=25, derandomize=True)
@given(data=st.data())
def test_each_song_is_answered_for_itself(case: Case, data: st.DataObject) -> None:
    model, songs = fitted(case), of_task(data.draw(songs_of(sizes(case))), case)
    together = answers(model, songs)
    alone = np.vstack([answers(model, songs[[i]]) for i in range(len(songs))])
    assert_same_answers(together, alone, model)
    order = data.draw(st.permutations(range(len(songs))))
    assert_same_answers(answers(model, songs[order]), together[order], model)


@every_case
@settings(max_examples=25, derandomize=True)
@given(
    songs=songs_of(kinds=("log_odds", "probability")),  # a softmax sums its columns in their order
    order=st.permutations(range(len(COLUMNS))),
)
def test_names_say_which_column_is_which(case: Case, songs: Songs, order: list[int]) -> None:
    model, songs = fitted(case), of_task(songs, case)
    assert_array_equal(answers(model, reordered(songs, order)), answers(model, songs))


@every_case
@settings(max_examples=25, derandomize=True)
@given(songs=songs_of(), seed=st.integers(0, 2**16))
def test_missing_frames_are_as_if_not_there(case: Case, songs: Songs, seed: int) -> None:
    model, songs = fitted(case), of_task(songs, case)
    assert_array_equal(answers(model, with_missing_frames(songs, seed)), answers(model, songs))


@every_case
@settings(max_examples=25, derandomize=True)
@given(songs=songs_of())
def test_saved_and_loaded(case: Case, songs: Songs) -> None:
    model, songs = fitted(case), of_task(songs, case)
    assert_array_equal(answers(loaded(case), songs), answers(model, songs))
    assert loaded(case).predict(songs).tolist() == model.predict(songs).tolist()


@every_case
@settings(max_examples=15, derandomize=True)
@given(data=st.data())
def test_by_several_threads(case: Case, data: st.DataObject) -> None:
    """Those of a method itself, those of the libraries below it, and those that ask it at once."""
    model, songs = fitted(case), of_task(data.draw(songs_of(sizes(case))), case)
    alone = answers(model, songs)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with threadpool_limits(2):
            assert_same_answers(answers(model, songs), alone, model)
    finally:
        torch.set_num_threads(before)
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(functools.partial(answers, model), [songs] * 4):
            assert_array_equal(found, alone)
    if not laws.learns(model):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(averages, "_BYTES_A_THREAD", 1)
            patch.setattr(model, "n_jobs", 2)
            assert_array_equal(answers(model, songs), alone)


@every_case
@settings(max_examples=15, derandomize=True)
@given(data=st.data())
def test_a_stream_answers_as_a_batch_of_the_prefix(case: Case, data: st.DataObject) -> None:
    model = fitted(case, to_stream=True)
    songs = of_task(data.draw(songs_of(sizes(case), kinds=("log_odds",), n=2)), case)
    for array in frames_of(songs):
        pieces = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=12), label="pieces")
        ends = [end for end in np.cumsum(pieces).tolist() if end < len(array)] + [len(array)]
        assert_streams(model, array, ends)


# Averages, fitted to what is drawn.

of_averages = pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in ("majority", "mean", "logodds")], ids=str
)


@st.composite
def labelled_songs(draw: st.DrawFn, **options: Any) -> Songs:
    """Songs of two to ten columns, with one or two labels each."""
    columns = tuple("abcdefghij")[: draw(st.integers(2, 10))]
    songs = draw(songs_of(columns=columns, **options))
    some = st.lists(st.sampled_from(columns), min_size=1, max_size=2, unique=True).map(tuple)
    labels = draw(st.lists(some, min_size=len(songs), max_size=len(songs)))
    return songs.replace(labels=labels, task="multilabel")


def with_labels(songs: Songs, case: Case) -> Songs:
    """Songs that have the first of their labels alone, where the case is one of single labels."""
    if case.multilabel:
        return songs
    assert songs.labels is not None
    return songs.replace(labels=[row[0] for row in songs.labels], task="multiclass")


@of_averages
@settings(max_examples=30, derandomize=True)
@given(songs=labelled_songs())
def test_averages_of_any_songs_answer_with_probabilities(case: Case, songs: Songs) -> None:
    songs = with_labels(songs, case)
    model = laws.make(case).fit(songs)
    assert_probabilities(model, songs)
    assert ((model.doubts_ >= 0) & (model.doubts_ <= 1)).all()


@of_averages
@settings(max_examples=30, derandomize=True)
@given(songs=labelled_songs(kinds=("log_odds", "probability")), data=st.data())
def test_averages_of_any_songs_know_columns_by_name(
    case: Case, songs: Songs, data: st.DataObject
) -> None:
    songs = with_labels(songs, case)
    order = data.draw(st.permutations(range(songs.n_columns)))
    expected = answers(laws.make(case).fit(songs), songs)
    model = laws.make(case).fit(reordered(songs, order))
    for asked in (songs, reordered(songs, order)):
        assert_array_equal(answers(model, asked), expected)


@of_averages
@settings(max_examples=30, derandomize=True)
@given(songs=labelled_songs(), seed=st.integers(0, 2**16))
def test_averages_of_any_songs_skip_missing_frames(case: Case, songs: Songs, seed: int) -> None:
    songs = with_labels(songs, case)
    model = laws.make(case).fit(with_missing_frames(songs, seed))
    assert_array_equal(answers(model, songs), answers(laws.make(case).fit(songs), songs))


@of_averages
@settings(max_examples=15, derandomize=True)
@given(songs=labelled_songs())
def test_averages_of_any_songs_are_saved(case: Case, songs: Songs) -> None:
    songs = with_labels(songs, case)
    model = laws.make(case).fit(songs)
    assert_array_equal(answers(of_file(model), songs), answers(model, songs))


@of_averages
@settings(max_examples=30, derandomize=True)
@given(songs=labelled_songs(kinds=("log_odds",)))
def test_averages_of_any_songs_stream(case: Case, songs: Songs) -> None:
    songs = with_labels(songs, case)
    model = laws.make(case).fit(songs)
    for array in frames_of(songs):
        assert_streams(model, array, list(range(1, len(array) + 1)))


def assert_streams(model: Aggregator, array: Array, ends: list[int]) -> None:
    """A stream that hears a song in pieces which end there answers as a batch each time.

    But for the rounding of sums in another order, which is that of their largest term.
    """
    stream = model.stream()
    pieces = np.split(array, ends[:-1])
    heard = np.stack([stream.update(piece) for piece in pieces])
    expected = model.predict_proba([array[:end] for end in ends])
    largest = np.abs(np.nan_to_num(array, posinf=LIMIT, neginf=LIMIT)).max()
    rounding = np.finfo(float).eps * len(array) * largest * model.inverse_temperature_
    tolerance = 1e-5 if laws.learns(model) else 1e-12
    assert_allclose(heard, expected, rtol=tolerance, atol=max(tolerance, 10 * rounding))


def answers(model: Aggregator, songs: Songs) -> Array:
    """All numbers that a model says, with a decision for each class or one for two of them."""
    return np.column_stack([model.predict_log_proba(songs), model.decision_function(songs)])


def reordered(songs: Songs, order: list[int]) -> Songs:
    assert songs.columns is not None
    columns = [songs.columns[k] for k in order]
    return songs.replace(values=songs.values[:, order], columns=columns)


def with_missing_frames(songs: Songs, seed: int) -> Songs:
    """The same songs with up to three missing frames anywhere in each."""
    rng = np.random.default_rng(seed)
    arrays = []
    for array in songs:
        n = rng.integers(0, 4)
        missing = np.zeros((n, songs.n_columns))
        missing[np.arange(n), rng.integers(0, songs.n_columns, n)] = np.nan
        arrays.append(np.insert(array, rng.integers(0, len(array) + 1, n), missing, axis=0))
    fields = {name: getattr(songs, name) for name in ("columns", "labels", "kind", "task")}
    return Songs.from_arrays(arrays, **fields)


@functools.cache
def loaded(case: Case) -> Aggregator:
    return of_file(fitted(case))


def of_file(model: Aggregator) -> Aggregator:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        model.save(path)
        return load(path)
