"""The laws of every aggregator, over the whole table: a new line there is tested by itself.

The numbers are those of section 6 of the design.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from threadpoolctl import threadpool_limits

from seqagg import Songs, write_cache
from seqagg.aggregators import AGGREGATORS, make_aggregator
from seqagg.aggregators.base import Aggregator
from seqagg.aggregators.canonical import order_of_columns
from seqagg.errors import ParameterError, SongError
from seqagg.logodds import to_probability
from tests.conftest import (
    COLUMNS,
    assert_same_songs,
    frames_of,
    integer_labels,
    mixed_songs,
    order_free_songs,
    order_songs,
)

PARAMETERS: dict[str, dict[str, Any]] = {
    "hmm": {"n_iter": 5, "n_folds": 2},
    "gru": {"epochs": 40, "hidden_size": 16, "min_crop": 0.8, "n_folds": 2, "n_repeats": 1},
    "mil": {"epochs": 20, "hidden_size": 16, "n_folds": 2, "n_repeats": 1},
    "auto": {"methods": ("hmm", "stack"), "parameters": {"hmm": {"n_states": 3, "n_folds": 2}}},
}
"""What makes a slow method fast enough here, and still better than chance where order matters."""

STREAMING: dict[str, dict[str, Any]] = {
    "gru": {"bidirectional": False},
    "stack": {"n_parts": 1},
    "auto": {"parameters": {"hmm": {"n_states": 3}, "stack": {"n_parts": 1}}},
}
"""What methods need that by their defaults must know a song's end before they answer."""

ACCEPTED_FAILURES: dict[tuple[str, str], str] = {}
"""(test, method) -> why the method need not obey."""


@dataclass(frozen=True)
class Case:
    """A method, and whether songs have one label each or any number of them."""

    name: str
    multilabel: bool

    def __str__(self) -> str:
        return f"{self.name}-multilabel" if self.multilabel else self.name

    @property
    def training(self) -> Songs:
        """Songs to learn from; of one label each, one more of the first class in each half."""
        return MULTILABEL_TRAINING if self.multilabel else TRAINING

    @property
    def queries(self) -> Songs:
        return MULTILABEL_QUERIES if self.multilabel else QUERIES

    def order_songs(self, n: int, seed: int = 0) -> Songs:
        return order_songs(n, seed, multilabel=self.multilabel)

    def order_free_songs(self, n: int, seed: int = 0, **fields: Any) -> Songs:
        return order_free_songs(n, seed, multilabel=self.multilabel, **fields)

    @property
    def gap(self) -> float:
        """Nats by which frames tell the labels of a song, not very clearly."""
        return 2.5 if self.multilabel else 1.0

    def label(self, name: str) -> Any:
        """Label of a song that has this one alone."""
        return (name,) if self.multilabel else name


TRAINING = mixed_songs(62)
QUERIES = mixed_songs(20, seed=1)
MULTILABEL_TRAINING = mixed_songs(62, multilabel=True)
MULTILABEL_QUERIES = mixed_songs(20, seed=1, multilabel=True)

CASES = [Case(name, multilabel) for multilabel in (False, True) for name in AGGREGATORS]


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    reason = ACCEPTED_FAILURES.get((request.function.__name__, found.name))
    if reason is not None:
        pytest.skip(reason)
    return found


def make(case: Case, **parameters: Any) -> Aggregator:
    return make_aggregator(case.name, **(PARAMETERS.get(case.name, {}) | parameters))


@functools.cache
def fitted(case: Case) -> Aggregator:
    """Fitted where there is something to learn from the order of frames and from frames alone.

    A learnt method that stayed with averaging would obey many laws for no reason of its own.
    """
    return make(case).fit(case.training)


@functools.cache
def fitted_to_order(case: Case) -> Aggregator:
    return make(case).fit(case.order_songs(90 if case.multilabel else 45))


@functools.cache
def fitted_to_frames(case: Case) -> Aggregator:
    return make(case).fit(case.order_free_songs(45, gap=case.gap))


@functools.cache
def fitted_to_stream(case: Case) -> Aggregator:
    if case.name not in STREAMING:
        return fitted(case)
    return make(case, **STREAMING[case.name]).fit(case.training)


def learns(model: Aggregator) -> bool:
    """Whether the method has parameters to learn; the averaging rules have none."""
    return not model.needs_class_columns


def answers(model: Aggregator, X: Any) -> npt.NDArray[np.float64]:
    """All numbers that a model says about songs, shape (n_songs, 2 * n_classes)."""
    return np.hstack([model.predict_log_proba(X), model.decision_function(X)])


def assert_same_answers(
    one: npt.NDArray[np.float64], other: npt.NDArray[np.float64], model: Aggregator
) -> None:
    """Exactly for averaging; for learnt methods but for the rounding of float32."""
    tolerance = 1e-5 if learns(model) else 0
    assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def with_missing_frames(songs: Songs, seed: int = 0) -> Songs:
    """The same songs with one to three missing frames anywhere in each."""
    rng = np.random.default_rng(seed)
    arrays = []
    for array in frames_of(songs):
        for _ in range(rng.integers(1, 4)):
            missing = rng.normal(size=array.shape[1])
            missing[rng.integers(array.shape[1])] = np.nan
            array = np.insert(array, rng.integers(len(array) + 1), missing, axis=0)
        arrays.append(array)
    fields = {name: getattr(songs, name) for name in ("columns", "labels", "ids", "task")}
    return Songs.from_arrays(arrays, **fields)


class TestLaw1Probabilities:
    def test_shapes_sums_and_logs(self, case: Case) -> None:
        model = fitted(case)
        queries, shape = case.queries, (len(case.queries), len(COLUMNS))
        proba, log_proba = model.predict_proba(queries), model.predict_log_proba(queries)
        assert proba.shape == log_proba.shape == model.decision_function(queries).shape == shape
        assert np.isfinite(answers(model, queries)).all()
        if not case.multilabel:
            assert_allclose(proba.sum(axis=1), 1, rtol=1e-12)
        assert ((proba >= 0) & (proba <= 1)).all()
        assert_allclose(np.log(proba), log_proba, rtol=1e-9, atol=1e-9)

    def test_what_is_likeliest_or_likely_enough_is_predicted(self, case: Case) -> None:
        model = fitted(case)
        assert model.classes_.tolist() == sorted(COLUMNS)
        predicted = model.predict(case.queries)
        if case.multilabel:
            assert predicted.dtype == np.int64
            enough = model.predict_proba(case.queries) >= model.thresholds_
            assert predicted.tolist() == enough.tolist()
            return
        assert predicted.dtype == model.classes_.dtype
        likeliest = model.predict_proba(case.queries).argmax(axis=1)
        assert predicted.tolist() == model.classes_[likeliest].tolist()
        decision = model.decision_function(case.queries)
        chosen = decision[np.arange(len(likeliest)), likeliest]
        assert_allclose(chosen, decision.max(axis=1), rtol=1e-12)

    def test_far_out_songs_get_finite_answers(self, case: Case) -> None:
        model = fitted(case)
        far = [np.full((3, 3), value) for value in (-1e4, 1e4, -np.inf, np.inf)]
        far.append(np.array([[-1e4, 1e4, 0.0]]))
        assert np.isfinite(answers(model, far)).all()
        if not case.multilabel:
            assert_allclose(model.predict_proba(far).sum(axis=1), 1, rtol=1e-12)

    def test_no_song_no_answer(self, case: Case) -> None:
        model = fitted(case)
        assert model.predict_proba(case.queries[:0]).shape == (0, 3)
        assert model.predict(case.queries[:0]).shape == ((0, 3) if case.multilabel else (0,))
        with pytest.raises(SongError, match="no songs"):
            model.predict([])

    def test_before_fit_there_is_no_answer(self, case: Case) -> None:
        methods = ("predict", "predict_proba", "predict_log_proba", "decision_function", "score")
        for method in methods:
            with pytest.raises(NotFittedError, match="not fitted yet"):
                getattr(make(case), method)(case.queries)
        with pytest.raises(NotFittedError, match="not fitted yet"):
            make(case).save("never.safetensors")


class TestLaw2EachSongForItself:
    def test_alone_or_in_company(self, case: Case) -> None:
        model = fitted(case)
        alone = np.vstack([answers(model, case.queries[[i]]) for i in range(len(case.queries))])
        assert_same_answers(answers(model, case.queries), alone, model)

    def test_in_any_order_and_company(self, case: Case) -> None:
        model = fitted(case)
        together = answers(model, case.queries)
        for seed in range(3):
            some = np.random.default_rng(seed).permutation(len(case.queries))[: 20 - 6 * seed]
            assert_same_answers(answers(model, case.queries[some]), together[some], model)

    def test_next_to_a_long_and_strange_song(self, case: Case) -> None:
        model = fitted(case)
        strange = np.random.default_rng(0).normal(0, 50, (300, 3))
        beside = answers(model, [*case.queries, strange])[:-1]
        assert_same_answers(beside, answers(model, case.queries), model)

    def test_with_any_number_of_threads(self, case: Case) -> None:
        model = fitted(case)
        before, by_threads = torch.get_num_threads(), []
        try:
            for n in (1, 2):
                torch.set_num_threads(n)
                with threadpool_limits(n):
                    by_threads.append(answers(model, case.queries))
        finally:
            torch.set_num_threads(before)
        assert_same_answers(*by_threads, model)

    def test_asked_by_many_threads_at_once(self, case: Case) -> None:
        model = fitted(case)
        parts = [case.queries[i : i + 5] for i in range(4)]
        alone = [answers(model, part) for part in parts]
        with ThreadPoolExecutor(4) as pool:
            for _ in range(5):
                together = list(pool.map(functools.partial(answers, model), parts))
                assert all(map(np.array_equal, together, alone))

    def test_songs_or_plain_arrays(self, case: Case) -> None:
        model = fitted(case)
        assert_array_equal(answers(model, frames_of(case.queries)), answers(model, case.queries))


class TestLaw3Fit:
    def test_parameters_are_kept_as_given(self, case: Case) -> None:
        model = make(case, on_empty="prior")
        parameters = model.get_params()
        assert parameters["on_empty"] == "prior"
        assert clone(model).get_params() == parameters
        assert type(model)(**parameters).get_params() == parameters
        assert type(model)().set_params(**parameters).get_params() == parameters

    def test_fit_forgets_an_earlier_fit(self, case: Case) -> None:
        model = clone(fitted(case))
        other = replace(case, multilabel=not case.multilabel).order_free_songs(
            24, seed=5, columns=("jig", "reel")
        )
        model.fit(other)
        assert model.fit(case.training) is model
        assert_array_equal(answers(model, case.queries), answers(fitted(case), case.queries))
        assert model.classes_.tolist() == fitted(case).classes_.tolist()

    def test_the_same_seed_gives_the_same_bits_whatever_was_drawn_before(self, case: Case) -> None:
        np.random.seed(99)  # noqa: NPY002 (the global generator is what this is about)
        torch.manual_seed(99)
        numpy_state, torch_state = np.random.get_state()[1], torch.get_rng_state()  # noqa: NPY002
        model = make(case).fit(case.training)
        assert_array_equal(answers(model, case.queries), answers(fitted(case), case.queries))
        assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
        assert_array_equal(torch.get_rng_state(), torch_state)

    def test_neither_parameters_nor_songs_are_changed(self, case: Case) -> None:
        songs = mixed_songs(62, multilabel=case.multilabel)
        y, groups = integer_labels(songs), np.arange(62) // 3
        model = make(case)
        parameters = model.get_params()
        model.fit(songs.replace(columns=None), y, groups=groups)
        answers(model, songs)
        assert model.get_params() == parameters
        assert_same_songs(songs, case.training)
        assert y.tobytes() == integer_labels(case.training).tobytes()
        assert groups.tobytes() == (np.arange(62) // 3).tobytes()

    def test_read_only_songs_will_do(self, case: Case) -> None:
        """A memory-mapped cache gives such."""
        songs = mixed_songs(62, multilabel=case.multilabel)
        songs.values.flags.writeable = False
        model = make(case).fit(songs)
        assert_array_equal(answers(model, songs), answers(fitted(case), case.training))


class TestLaw4Permutation:
    ORDER = (2, 0, 1)  # not its own inverse

    def test_named_columns_in_another_order(self, case: Case) -> None:
        def reordered(songs: Songs) -> Songs:
            columns = [COLUMNS[k] for k in self.ORDER]
            return songs.replace(values=songs.values[:, self.ORDER], columns=columns)

        model = make(case).fit(reordered(case.training))
        assert model.classes_.tolist() == fitted(case).classes_.tolist()
        assert_array_equal(
            answers(model, reordered(case.queries)), answers(fitted(case), case.queries)
        )
        # The names say which is which, so the songs may keep the old order.
        assert_array_equal(answers(model, case.queries), answers(fitted(case), case.queries))

    def test_integers_for_columns_without_names(self, case: Case) -> None:
        order = list(self.ORDER)
        arrays, queries = frames_of(case.training), frames_of(case.queries)
        y = integer_labels(case.training)
        plain = make(case).fit(arrays, y)
        # Column order[j] becomes column j, and so does the class.
        reordered = y[:, order] if case.multilabel else np.argsort(order)[y]
        model = make(case).fit([a[:, order] for a in arrays], reordered)
        permuted = [a[:, order] for a in queries]
        assert_array_equal(
            model.decision_function(permuted), plain.decision_function(queries)[:, order]
        )
        # The sum of a softmax depends on the order of its terms by a rounding.
        assert_allclose(
            model.predict_log_proba(permuted),
            plain.predict_log_proba(queries)[:, order],
            rtol=1e-12,
            atol=1e-12,
        )
        assert_array_equal(order, np.array(order)[model.classes_])
        before, after = plain.predict(queries), model.predict(permuted)
        assert_array_equal(
            after if case.multilabel else np.array(order)[after],
            before[:, order] if case.multilabel else before,
        )
        assert_array_equal(model.class_prior_, plain.class_prior_[order])

    @pytest.mark.parametrize("n_silent", [0, 2])
    def test_columns_of_one_mean_and_spread(self, case: Case, n_silent: int) -> None:
        """Certain frames, each class as often as any other; and columns that say nothing."""
        rng = np.random.default_rng(0)
        labels = [COLUMNS[i % 3] for i in range(36)]
        turns = [rng.permutation((np.array([0, 0, 0, 0, 1, 1, 2]) + i) % 3) for i in range(36)]
        values = np.eye(3)[np.concatenate(turns)]
        values[:, 3 - n_silent :] = 0
        offsets, task = np.arange(0, 7 * 36 + 1, 7), case.queries.task
        given = [case.label(label) for label in labels]

        def fit_and_ask(order: list[int]) -> npt.NDArray[np.float64]:
            columns = [COLUMNS[k] for k in order]
            songs = Songs(
                values[:, order],
                offsets,
                columns=columns,
                labels=given,
                task=task,
                kind="probability",
            )
            return answers(make(case).fit(songs), songs)

        assert_array_equal(fit_and_ask(list(self.ORDER)), fit_and_ask([0, 1, 2]))

    def test_columns_that_are_no_classes(self, case: Case) -> None:
        if make(case).needs_class_columns:
            pytest.skip("the method needs columns that are classes")
        order = list(self.ORDER)
        tags = np.array(["guitar", "piano", "voice"])
        songs, queries = case.training.replace(columns=tags), case.queries.replace(columns=tags)
        model = make(case).fit(songs)
        assert model.classes_.tolist() == sorted(COLUMNS)

        def reordered(songs: Songs) -> Songs:
            return songs.replace(values=songs.values[:, order], columns=tags[order])

        other = make(case).fit(reordered(songs))
        assert_array_equal(answers(other, reordered(queries)), answers(model, queries))


class TestLaw5Frames:
    def test_one_frame_suffices(self, case: Case) -> None:
        first = [array[:1] for array in frames_of(case.queries)]
        assert np.isfinite(answers(fitted(case), first)).all()

    def test_songs_of_one_frame_can_be_learnt_from(self, case: Case) -> None:
        songs = case.order_free_songs(45, gap=4 * case.gap)
        firsts = Songs.from_arrays(
            [array[:1] for array in songs],
            columns=songs.columns,
            labels=songs.labels,
            task=songs.task,
        )
        model = make(case).fit(firsts)
        assert np.isfinite(answers(model, songs)).all()
        assert model.score(firsts) > 0.8

    @pytest.mark.parametrize("share", [0.0, 0.2])
    def test_certain_probabilities_are_fine(self, case: Case, share: float) -> None:
        """Every probability is 0 or 1; a share of the frames says another class."""
        rng = np.random.default_rng(0)
        given = case.order_free_songs(45)
        arrays = []
        for truth in integer_labels(given):
            if case.multilabel:
                arrays.append(np.where(rng.random((6, 3)) < share / 2, 1 - truth, truth))
            else:
                said = np.where(rng.random(6) < share, rng.integers(0, 3, 6), truth)
                arrays.append(np.eye(3)[said])
        songs = Songs.from_arrays(
            arrays,
            columns=COLUMNS,
            labels=given.labels,
            task=given.task,
            kind="probability",
        )
        model = make(case).fit(songs)
        assert np.isfinite(answers(model, songs)).all()
        assert model.score(songs) > 0.9

    def test_missing_frames_are_skipped(self, case: Case) -> None:
        model = fitted(case)
        assert_array_equal(
            answers(model, with_missing_frames(case.queries)), answers(model, case.queries)
        )

    def test_missing_frames_are_skipped_in_training(self, case: Case) -> None:
        model = make(case).fit(with_missing_frames(case.training))
        assert_array_equal(answers(model, case.queries), answers(fitted(case), case.queries))

    @pytest.mark.parametrize("empty", [np.empty((0, 3)), np.full((4, 3), np.nan)])
    def test_a_song_without_a_frame_is_named(self, case: Case, empty: Any) -> None:
        songs = Songs.from_arrays(
            [*case.queries, empty],
            columns=COLUMNS,
            ids=[*case.queries.ids, "So What"],
            labels=[*case.queries.labels, case.label("jazz")],
            task=case.queries.task,
        )
        for method in (fitted(case).predict, fitted(case).decision_function, make(case).fit):
            with pytest.raises(SongError, match=r"^song 'So What': no frame is left") as info:
                method(songs)
            assert info.value.song == "So What"
        with pytest.raises(SongError, match=r"^song '1': no frame is left"):
            fitted(case).predict([np.zeros((1, 3)), empty])

    def test_a_song_without_a_frame_can_get_the_prior(self, case: Case) -> None:
        labels = [*case.training.labels, case.label("jazz"), case.label("jazz")]
        empty, lost = np.empty((0, 3)), np.full((2, 3), np.nan)
        arrays = [*case.training, empty, lost]
        songs = Songs.from_arrays(arrays, columns=COLUMNS, labels=labels, task=case.training.task)
        model = make(case, on_empty="prior").fit(songs)
        proba = model.predict_proba([empty, *case.queries, lost])
        assert_allclose(proba[[0, -1]], [model.class_prior_] * 2, rtol=1e-12)
        # They have nothing else to say, in training or beside other songs.
        assert_array_equal(proba[1:-1], fitted(case).predict_proba(case.queries))
        assert np.isfinite(model.decision_function([empty, lost])).all()

    def test_training_songs_without_any_frame(self, case: Case) -> None:
        nothing = Songs.from_arrays(
            [np.empty((0, 3))] * 4,
            columns=COLUMNS,
            labels=[case.label(name) for name in ("blues", "blues", "jazz", "metal")],
            task=case.training.task,
        )
        model = make(case, on_empty="prior")
        if learns(model):
            with pytest.raises(SongError, match="frame"):
                model.fit(nothing)
        else:
            model.fit(nothing)
            assert_allclose(model.predict_proba(nothing), [model.class_prior_] * 4, rtol=1e-12)


class TestLaw6Labels:
    def test_a_class_absent_from_training_gets_a_finite_probability(self, case: Case) -> None:
        y = integer_labels(case.training)
        seen = case.training[(y[:, 2] == 0) if case.multilabel else (y != 2)]
        models = [make(case).fit(seen)]
        if not learns(models[0]):  # without names, only these know that the third column is one
            models.append(make(case).fit(frames_of(seen), integer_labels(seen)))
        for model in models:
            assert len(model.classes_) == 3
            assert np.isfinite(answers(model, case.queries)).all()
            assert (model.predict_proba(case.queries) > 0).all()

    def test_a_label_never_seen_is_named(self, case: Case) -> None:
        y = [*case.queries.labels[:-1], case.label("polka")]
        with pytest.raises(SongError, match=r"^song 'song 19': label polka was never seen"):
            fitted(case).score(case.queries, y)

    def test_a_missing_label_is_named(self, case: Case) -> None:
        y = [*case.queries.labels[:-1], None]
        for method in (fitted(case).score, make(case).fit):
            with pytest.raises(SongError, match=r"^song 'song 19': the label is missing"):
                method(case.queries, y)


class TestLaw7Order:
    def test_methods_that_ignore_order_do_not_react_to_it(self, case: Case) -> None:
        model = fitted(case)
        if not model.ignores_order:
            pytest.skip("the method listens to order")
        rng = np.random.default_rng(0)
        shuffled = [rng.permutation(array) for array in frames_of(case.queries)]
        tolerance = 1e-5 if learns(model) else 1e-12  # a sum depends on the order of its terms
        assert_allclose(
            answers(model, shuffled), answers(model, case.queries), rtol=tolerance, atol=tolerance
        )

    def test_methods_that_listen_to_order_use_it(self, case: Case) -> None:
        """Chance is 1/3; averaging is there, give or take two and a half standard deviations.

        Of songs with several labels all must be right, and chance is no better.
        """
        model = fitted_to_order(case)
        if model.ignores_order:
            pytest.skip("the method ignores order")
        unseen = case.order_songs(60, seed=2)
        for rule in ("mean", "logodds"):
            assert fitted_to_order(replace(case, name=rule)).score(unseen) < 0.49
        assert model.score(unseen) > 0.7


class TestLaw8Unanimity:
    @pytest.mark.parametrize("n_frames", [1, 5, 30])
    def test_unanimous_frames_win(self, case: Case, n_frames: int) -> None:
        model = fitted_to_frames(case)
        songs = [np.tile(6 * row - 3, (n_frames, 1)) for row in np.eye(3)]
        wanted = np.eye(3, dtype=int).tolist() if case.multilabel else list(COLUMNS)
        assert model.predict(songs).tolist() == wanted

    def test_plain_songs_are_not_lost(self, case: Case) -> None:
        """A method may correct averaging, but not at the price of songs without order."""
        songs = case.order_free_songs(60, seed=3, gap=case.gap)
        averaging = fitted_to_frames(replace(case, name="mean")).score(songs)
        assert averaging > 0.8
        assert fitted_to_frames(case).score(songs) > averaging - 0.1


FRESH_PROCESS = """
import sys
import traceback
import numpy as np
import seqagg
folder, *names = sys.argv[1:]
for name in names:
    songs = seqagg.read_cache(f"{folder}/queries{'-multilabel' * ('-' in name)}.arrow")
    try:
        model = seqagg.load(f"{folder}/{name}.safetensors")
        np.savez(
            f"{folder}/{name}.npz",
            answers=np.hstack([model.predict_log_proba(songs), model.decision_function(songs)]),
            predictions=model.predict(songs),
            classes=model.classes_,
            parameters=str(model.get_params()),
        )
    except Exception:
        traceback.print_exc()
"""


@pytest.fixture(scope="module")
def fresh_process(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder where another process, one for all methods, left its answers, and its complaints."""
    folder = tmp_path_factory.mktemp("models")
    write_cache(QUERIES, folder / "queries.arrow")
    write_cache(MULTILABEL_QUERIES, folder / "queries-multilabel.arrow")
    for case in CASES:
        fitted(case).save(folder / f"{case}.safetensors")
    command = [sys.executable, "-c", FRESH_PROCESS, folder, *map(str, CASES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return folder, done.stderr


class TestLaw9Files:
    def test_saved_and_loaded_in_a_fresh_process(
        self, case: Case, fresh_process: tuple[Path, str]
    ) -> None:
        folder, complaints = fresh_process
        model = fitted(case)
        assert (folder / f"{case}.npz").exists(), complaints
        with np.load(folder / f"{case}.npz") as loaded:
            assert_same_answers(loaded["answers"], answers(model, case.queries), model)
            assert loaded["predictions"].tolist() == model.predict(case.queries).tolist()
            assert loaded["classes"].tolist() == model.classes_.tolist()
            assert str(loaded["parameters"]) == str(model.get_params())


class TestLaw10Streams:
    def test_the_answer_after_every_frame_is_that_of_a_batch(self, case: Case) -> None:
        model = fitted_to_stream(case)
        queries = frames_of(case.queries)[:: 4 if case.name == "auto" else 1]
        stream = model.stream()
        for array in queries:
            stream.reset()
            prefixes = [array[: n + 1] for n in range(len(array))]
            heard = np.stack([stream.update(frame) for frame in array])
            self.assert_same(heard, model.predict_proba(prefixes), model)

    def test_side_by_side_in_pieces_of_any_size(self, case: Case) -> None:
        """Some songs pause; the frames of a few are told apart from those of the others."""
        model = fitted_to_stream(case)
        rng = np.random.default_rng(0)
        queries = frames_of(with_missing_frames(case.queries))
        streams = model.stream(len(queries))
        heard = np.zeros(len(queries), dtype=int)
        while (heard < [len(array) for array in queries]).any():
            which = rng.permutation(len(queries))[: rng.integers(1, len(queries) + 1)]
            pieces = rng.integers(0, 4, len(which))
            frames = [
                queries[i][heard[i] : heard[i] + n] for i, n in zip(which, pieces, strict=True)
            ]
            heard[which] += [len(piece) for piece in frames]
            found = streams.update(frames, which)
            begun = [i for i in which if not np.isnan(queries[i][: heard[i]]).any(axis=1).all()]
            expected = np.tile(model.class_prior_, (len(queries), 1))
            if begun:
                expected[begun] = model.predict_proba([queries[i][: heard[i]] for i in begun])
            self.assert_same(found, expected[which], model)
        self.assert_same(streams.predict_proba(), model.predict_proba(queries), model)

    @pytest.mark.parametrize("kind", ["probability", "logit"])
    def test_scores_of_any_kind(self, case: Case, kind: Any) -> None:
        model = fitted_to_stream(case)
        values = case.queries.values
        if kind == "probability":
            values = to_probability(values)
        songs = case.queries.replace(values=values, kind=kind)
        frames = Songs(values, np.arange(len(values) + 1), kind=kind, columns=songs.columns)
        frames = frames.replace(task=songs.task)
        stream = model.stream()
        for first, end in zip(songs.offsets[:3], songs.offsets[1:], strict=False):
            stream.reset()
            for i in range(first, end):
                found = stream.update(frames[[i]])
        self.assert_same(found, model.predict_proba(songs[[2]])[0], model)

    def test_saved_midway_and_taken_up_in_a_fresh_process(
        self, case: Case, fresh_streams: tuple[Path, str]
    ) -> None:
        folder, complaints = fresh_streams
        assert (folder / f"{case}.npz").exists(), complaints
        streams = fitted_to_stream(case).stream(len(case.queries))
        streams.update(first_frames(case.queries))
        expected = streams.update(other_frames(case.queries))
        with np.load(folder / f"{case}.npz") as found:
            assert found["proba"].tobytes() == expected.tobytes()

    def test_what_is_remembered_does_not_grow(self, case: Case) -> None:
        stream = fitted_to_stream(case).stream()
        sizes = []
        for n in (1, 10, 500):
            stream.update(np.random.default_rng(0).normal(size=(n, 3)))
            sizes.append({name: array.nbytes for name, array in stream.state().items()})
        assert stream.n_frames == [511]
        assert sizes[0] == sizes[1] == sizes[2]
        assert sum(sizes[0].values()) < 10_000

    @pytest.mark.parametrize("name", STREAMING)
    def test_what_cannot_stream_says_which_option_can(self, name: str) -> None:
        option = {"gru": "bidirectional=False"}.get(name, "n_parts=1")
        with pytest.raises(ParameterError, match=f"{option} can$"):
            fitted(Case(name, multilabel=False)).stream()

    @staticmethod
    def assert_same(one: Any, other: Any, model: Aggregator) -> None:
        """But for the rounding of sums in another order, or of float32."""
        tolerance = 1e-5 if learns(model) else 1e-12
        assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def first_frames(songs: Songs) -> list[npt.NDArray[np.float32]]:
    return [array[:3] for array in songs]


def other_frames(songs: Songs) -> list[npt.NDArray[np.float32]]:
    return [array[3:] for array in songs]


FRESH_STREAMS = """
import sys
import traceback
import numpy as np
import seqagg
folder, *names = sys.argv[1:]
for name in names:
    songs = seqagg.read_cache(f"{folder}/queries{'-multilabel' * ('-' in name)}.arrow")
    try:
        streams = seqagg.load(f"{folder}/{name}.safetensors").stream(len(songs))
        with np.load(f"{folder}/{name}.state.npz") as state:
            streams.restore(state)
        np.savez(f"{folder}/{name}.npz", proba=streams.update([a[3:] for a in songs]))
    except Exception:
        traceback.print_exc()
"""


@pytest.fixture(scope="module")
def fresh_streams(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder where another process went on with the streams of all methods, and complaints."""
    folder = tmp_path_factory.mktemp("streams")
    write_cache(QUERIES, folder / "queries.arrow")
    write_cache(MULTILABEL_QUERIES, folder / "queries-multilabel.arrow")
    for case in CASES:
        model = fitted_to_stream(case)
        model.save(folder / f"{case}.safetensors")
        streams = model.stream(len(case.queries))
        streams.update(first_frames(case.queries))
        np.savez(folder / f"{case}.state.npz", **streams.state())
    command = [sys.executable, "-c", FRESH_STREAMS, folder, *map(str, CASES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return folder, done.stderr


class TestLaw11Attributes:
    def test_documented_attributes_exist_after_fit_and_only_those(self, case: Case) -> None:
        documented = documented_attributes(type(fitted(case)))
        assert {"classes_", "class_prior_"} <= documented
        unfitted = make(case)
        assert [a for a in documented if hasattr(unfitted, a)] == []
        known = {a for a in dir(BaseEstimator) if is_fitted_attribute(a)}
        found = {a for a in dir(fitted(case)) if is_fitted_attribute(a)} - known
        assert found == documented

    def test_documented_parameters_are_those_of_the_constructor(self, case: Case) -> None:
        cls = type(fitted(case))
        assert section(cls, "Parameters") == set(inspect.signature(cls).parameters)


def is_fitted_attribute(attribute: str) -> bool:
    return attribute.endswith("_") and not attribute.startswith("_")


def documented_attributes(cls: type) -> set[str]:
    return set().union(*(section(base, "Attributes") for base in cls.__mro__))


def section(cls: type, title: str) -> set[str]:
    """Names in one section of a class's own numpydoc docstring."""
    text = inspect.cleandoc(cls.__doc__ or "")
    found = re.search(rf"^{title}\n-+\n(.*?)(?=^\w[^\n]*\n-+\n|\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        return set()
    entries = re.findall(r"^(\w[\w, ]*?) :", found.group(1), re.MULTILINE)
    # An entry of two parameters may stand as "hidden_size, n_layers : int".
    return {entry.strip() for line in entries for entry in line.split(",")}


def test_columns_with_infinities_have_an_order_of_their_own() -> None:
    """Log-odds may be infinite, and a mean and a spread are then no numbers."""
    values = np.array([[np.inf, -np.inf, 1.0, np.inf], [-np.inf, np.inf, 2.0, np.inf]], np.float32)
    found = values[:, order_of_columns(values)]
    for order in itertools.permutations(range(4)):
        other = values[:, order]
        assert_array_equal(other[:, order_of_columns(other)], found)
