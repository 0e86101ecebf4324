"""The laws of every aggregator, over the whole table: a new line there is tested by itself.

The numbers are those of section 6 of the design.
"""

from __future__ import annotations

import functools
import inspect
import re
import subprocess
import sys
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
from seqagg.errors import SongError
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
    "hmm": {"n_iter": 10},
    "gru": {"epochs": 40, "hidden_size": 16, "min_crop": 0.8, "n_folds": 2},
    "mil": {"epochs": 20, "hidden_size": 16, "n_folds": 2},
    "auto": {"methods": ("hmm", "stack"), "parameters": {"hmm": {"n_states": 3}}},
}
"""What makes a slow method fast enough here, and still better than chance where order matters."""

ACCEPTED_FAILURES: dict[tuple[str, str], str] = {}
"""(test, method) -> why the method need not obey."""

TRAINING = mixed_songs(62)  # one more of the first class in each half
QUERIES = mixed_songs(20, seed=1)


@pytest.fixture(params=AGGREGATORS)
def name(request: pytest.FixtureRequest) -> str:
    reason = ACCEPTED_FAILURES.get((request.function.__name__, request.param))
    if reason is not None:
        pytest.skip(reason)
    return str(request.param)


def make(name: str, **parameters: Any) -> Aggregator:
    return make_aggregator(name, **(PARAMETERS.get(name, {}) | parameters))


@functools.cache
def fitted(name: str) -> Aggregator:
    """Fitted where there is something to learn from the order of frames and from frames alone.

    A learnt method that stayed with averaging would obey many laws for no reason of its own.
    """
    return make(name).fit(TRAINING)


@functools.cache
def fitted_to_order(name: str) -> Aggregator:
    return make(name).fit(order_songs(45))


@functools.cache
def fitted_to_frames(name: str) -> Aggregator:
    return make(name).fit(order_free_songs(45, gap=1.0))


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
    return Songs.from_arrays(arrays, columns=songs.columns, labels=songs.labels, ids=songs.ids)


class TestLaw1Probabilities:
    def test_shapes_sums_and_logs(self, name: str) -> None:
        model = fitted(name)
        proba, log_proba = model.predict_proba(QUERIES), model.predict_log_proba(QUERIES)
        shape = (len(QUERIES), len(COLUMNS))
        assert proba.shape == log_proba.shape == model.decision_function(QUERIES).shape == shape
        assert np.isfinite(answers(model, QUERIES)).all()
        assert_allclose(proba.sum(axis=1), 1, rtol=1e-12)
        assert_allclose(np.log(proba), log_proba, rtol=1e-9, atol=1e-9)

    def test_the_likeliest_class_is_predicted(self, name: str) -> None:
        model = fitted(name)
        assert model.classes_.tolist() == sorted(COLUMNS)
        predicted = model.predict(QUERIES)
        assert predicted.dtype == model.classes_.dtype
        likeliest = model.classes_[model.predict_proba(QUERIES).argmax(axis=1)]
        assert predicted.tolist() == likeliest.tolist()

    def test_far_out_songs_get_finite_answers(self, name: str) -> None:
        model = fitted(name)
        far = [np.full((3, 3), value) for value in (-1e4, 1e4, -np.inf, np.inf)]
        far.append(np.array([[-1e4, 1e4, 0.0]]))
        assert np.isfinite(answers(model, far)).all()
        assert_allclose(model.predict_proba(far).sum(axis=1), 1, rtol=1e-12)

    def test_no_song_no_answer(self, name: str) -> None:
        model = fitted(name)
        assert model.predict_proba(QUERIES[:0]).shape == (0, 3)
        assert model.predict(QUERIES[:0]).shape == (0,)
        with pytest.raises(SongError, match="no songs"):
            model.predict([])

    def test_before_fit_there_is_no_answer(self, name: str) -> None:
        methods = ("predict", "predict_proba", "predict_log_proba", "decision_function", "score")
        for method in methods:
            with pytest.raises(NotFittedError, match="not fitted yet"):
                getattr(make(name), method)(QUERIES)
        with pytest.raises(NotFittedError, match="not fitted yet"):
            make(name).save("never.safetensors")


class TestLaw2EachSongForItself:
    def test_alone_or_in_company(self, name: str) -> None:
        model = fitted(name)
        alone = np.vstack([answers(model, QUERIES[[i]]) for i in range(len(QUERIES))])
        assert_same_answers(answers(model, QUERIES), alone, model)

    def test_in_any_order_and_company(self, name: str) -> None:
        model = fitted(name)
        together = answers(model, QUERIES)
        for seed in range(3):
            some = np.random.default_rng(seed).permutation(len(QUERIES))[: 20 - 6 * seed]
            assert_same_answers(answers(model, QUERIES[some]), together[some], model)

    def test_next_to_a_long_and_strange_song(self, name: str) -> None:
        model = fitted(name)
        strange = np.random.default_rng(0).normal(0, 50, (300, 3))
        beside = answers(model, [*QUERIES, strange])[:-1]
        assert_same_answers(beside, answers(model, QUERIES), model)

    def test_with_any_number_of_threads(self, name: str) -> None:
        model = fitted(name)
        before, by_threads = torch.get_num_threads(), []
        try:
            for n in (1, 2):
                torch.set_num_threads(n)
                with threadpool_limits(n):
                    by_threads.append(answers(model, QUERIES))
        finally:
            torch.set_num_threads(before)
        assert_same_answers(*by_threads, model)

    def test_songs_or_plain_arrays(self, name: str) -> None:
        model = fitted(name)
        assert_array_equal(answers(model, frames_of(QUERIES)), answers(model, QUERIES))


class TestLaw3Fit:
    def test_parameters_are_kept_as_given(self, name: str) -> None:
        model = make(name, on_empty="prior")
        parameters = model.get_params()
        assert parameters["on_empty"] == "prior"
        assert clone(model).get_params() == parameters
        assert type(model)(**parameters).get_params() == parameters
        assert type(model)().set_params(**parameters).get_params() == parameters

    def test_fit_forgets_an_earlier_fit(self, name: str) -> None:
        model = clone(fitted(name))
        other = order_free_songs(24, seed=5, columns=("jig", "reel"))
        model.fit(other)
        assert model.fit(TRAINING) is model
        assert_array_equal(answers(model, QUERIES), answers(fitted(name), QUERIES))
        assert model.classes_.tolist() == fitted(name).classes_.tolist()

    def test_the_same_seed_gives_the_same_bits_whatever_was_drawn_before(self, name: str) -> None:
        np.random.seed(99)  # noqa: NPY002 (the global generator is what this is about)
        torch.manual_seed(99)
        numpy_state, torch_state = np.random.get_state()[1], torch.get_rng_state()  # noqa: NPY002
        model = make(name).fit(TRAINING)
        assert_array_equal(answers(model, QUERIES), answers(fitted(name), QUERIES))
        assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
        assert_array_equal(torch.get_rng_state(), torch_state)

    def test_neither_parameters_nor_songs_are_changed(self, name: str) -> None:
        songs = mixed_songs(62)
        y, groups = integer_labels(songs), np.arange(62) // 3
        model = make(name)
        parameters = model.get_params()
        model.fit(songs.replace(columns=None), y, groups=groups)
        answers(model, songs)
        assert model.get_params() == parameters
        assert_same_songs(songs, mixed_songs(62))
        assert y.tobytes() == integer_labels(mixed_songs(62)).tobytes()
        assert groups.tobytes() == (np.arange(62) // 3).tobytes()

    def test_read_only_songs_will_do(self, name: str) -> None:
        """A memory-mapped cache gives such."""
        songs = mixed_songs(62)
        songs.values.flags.writeable = False
        model = make(name).fit(songs)
        assert_array_equal(answers(model, songs), answers(fitted(name), TRAINING))


class TestLaw4Permutation:
    ORDER = (2, 0, 1)  # not its own inverse

    def test_named_columns_in_another_order(self, name: str) -> None:
        def reordered(songs: Songs) -> Songs:
            columns = [COLUMNS[k] for k in self.ORDER]
            return songs.replace(values=songs.values[:, self.ORDER], columns=columns)

        model = make(name).fit(reordered(TRAINING))
        assert model.classes_.tolist() == fitted(name).classes_.tolist()
        assert_array_equal(answers(model, reordered(QUERIES)), answers(fitted(name), QUERIES))
        # The names say which is which, so the songs may keep the old order.
        assert_array_equal(answers(model, QUERIES), answers(fitted(name), QUERIES))

    def test_integers_for_columns_without_names(self, name: str) -> None:
        order = list(self.ORDER)
        arrays, queries = frames_of(TRAINING), frames_of(QUERIES)
        y = integer_labels(TRAINING)
        plain = make(name).fit(arrays, y)
        # Column order[j] becomes column j, and so does the class.
        model = make(name).fit([a[:, order] for a in arrays], np.argsort(order)[y])
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
        assert_array_equal(np.array(order)[model.predict(permuted)], plain.predict(queries))
        assert_array_equal(model.class_prior_, plain.class_prior_[order])

    def test_columns_that_are_no_classes(self, name: str) -> None:
        if make(name).needs_class_columns:
            pytest.skip("the method needs columns that are classes")
        order = list(self.ORDER)
        tags = np.array(["guitar", "piano", "voice"])
        songs, queries = TRAINING.replace(columns=tags), QUERIES.replace(columns=tags)
        model = make(name).fit(songs)
        assert model.classes_.tolist() == sorted(COLUMNS)

        def reordered(songs: Songs) -> Songs:
            return songs.replace(values=songs.values[:, order], columns=tags[order])

        other = make(name).fit(reordered(songs))
        assert_array_equal(answers(other, reordered(queries)), answers(model, queries))


class TestLaw5Frames:
    def test_one_frame_suffices(self, name: str) -> None:
        first = [array[:1] for array in frames_of(QUERIES)]
        assert np.isfinite(answers(fitted(name), first)).all()

    def test_songs_of_one_frame_can_be_learnt_from(self, name: str) -> None:
        songs = order_free_songs(45, gap=4.0)
        firsts = Songs.from_arrays(
            [array[:1] for array in songs], columns=songs.columns, labels=songs.labels
        )
        model = make(name).fit(firsts)
        assert np.isfinite(answers(model, songs)).all()
        assert model.score(firsts) > 0.8

    @pytest.mark.parametrize("share", [0.0, 0.2])
    def test_certain_probabilities_are_fine(self, name: str, share: float) -> None:
        """Every probability is 0 or 1; a share of the frames says another class."""
        rng = np.random.default_rng(0)
        labels = [COLUMNS[i % 3] for i in range(45)]
        arrays = []
        for i in range(45):
            said = np.where(rng.random(6) < share, rng.integers(0, 3, 6), i % 3)
            arrays.append(np.eye(3)[said])
        songs = Songs.from_arrays(arrays, columns=COLUMNS, labels=labels, kind="probability")
        model = make(name).fit(songs)
        assert np.isfinite(answers(model, songs)).all()
        assert model.score(songs) > 0.9

    def test_missing_frames_are_skipped(self, name: str) -> None:
        model = fitted(name)
        assert_array_equal(answers(model, with_missing_frames(QUERIES)), answers(model, QUERIES))

    def test_missing_frames_are_skipped_in_training(self, name: str) -> None:
        model = make(name).fit(with_missing_frames(TRAINING))
        assert_array_equal(answers(model, QUERIES), answers(fitted(name), QUERIES))

    @pytest.mark.parametrize("empty", [np.empty((0, 3)), np.full((4, 3), np.nan)])
    def test_a_song_without_a_frame_is_named(self, name: str, empty: Any) -> None:
        songs = Songs.from_arrays(
            [*QUERIES, empty],
            columns=COLUMNS,
            ids=[*QUERIES.ids, "So What"],
            labels=[*QUERIES.labels, "jazz"],
        )
        for method in (fitted(name).predict, fitted(name).decision_function, make(name).fit):
            with pytest.raises(SongError, match=r"^song 'So What': no frame is left") as info:
                method(songs)
            assert info.value.song == "So What"
        with pytest.raises(SongError, match=r"^song '1': no frame is left"):
            fitted(name).predict([np.zeros((1, 3)), empty])

    def test_a_song_without_a_frame_can_get_the_prior(self, name: str) -> None:
        labels = [*TRAINING.labels, "jazz", "jazz"]
        empty, lost = np.empty((0, 3)), np.full((2, 3), np.nan)
        arrays = [*TRAINING, empty, lost]
        songs = Songs.from_arrays(arrays, columns=COLUMNS, labels=labels)
        model = make(name, on_empty="prior").fit(songs)
        proba = model.predict_proba([empty, *QUERIES, lost])
        assert_allclose(proba[[0, -1]], [model.class_prior_] * 2, rtol=1e-12)
        # They have nothing else to say, in training or beside other songs.
        assert_array_equal(proba[1:-1], fitted(name).predict_proba(QUERIES))
        assert np.isfinite(model.decision_function([empty, lost])).all()

    def test_training_songs_without_any_frame(self, name: str) -> None:
        nothing = Songs.from_arrays(
            [np.empty((0, 3))] * 4, columns=COLUMNS, labels=["blues", "blues", "jazz", "metal"]
        )
        model = make(name, on_empty="prior")
        if learns(model):
            with pytest.raises(SongError, match="frame"):
                model.fit(nothing)
        else:
            model.fit(nothing)
            assert_allclose(model.predict_proba(nothing), [model.class_prior_] * 4, rtol=1e-12)


class TestLaw6Labels:
    def test_a_class_absent_from_training_gets_a_finite_probability(self, name: str) -> None:
        seen = TRAINING[integer_labels(TRAINING) != 2]
        models = [make(name).fit(seen)]
        if not learns(models[0]):  # without names, only these know that the third column is one
            models.append(make(name).fit(frames_of(seen), integer_labels(seen)))
        for model in models:
            assert len(model.classes_) == 3
            assert np.isfinite(answers(model, QUERIES)).all()
            assert (model.predict_proba(QUERIES) > 0).all()

    def test_a_label_never_seen_is_named(self, name: str) -> None:
        y = [*QUERIES.labels[:-1], "polka"]
        with pytest.raises(SongError, match=r"^song 'song 19': label polka was never seen"):
            fitted(name).score(QUERIES, y)

    def test_a_missing_label_is_named(self, name: str) -> None:
        y = [*QUERIES.labels[:-1], None]
        for method in (fitted(name).score, make(name).fit):
            with pytest.raises(SongError, match=r"^song 'song 19': the label is missing"):
                method(QUERIES, y)


class TestLaw7Order:
    def test_methods_that_ignore_order_do_not_react_to_it(self, name: str) -> None:
        model = fitted(name)
        if not model.ignores_order:
            pytest.skip("the method listens to order")
        rng = np.random.default_rng(0)
        shuffled = [rng.permutation(array) for array in frames_of(QUERIES)]
        tolerance = 1e-5 if learns(model) else 1e-12  # a sum depends on the order of its terms
        assert_allclose(
            answers(model, shuffled), answers(model, QUERIES), rtol=tolerance, atol=tolerance
        )

    def test_methods_that_listen_to_order_use_it(self, name: str) -> None:
        """Chance is 1/3; averaging is there, give or take two and a half standard deviations."""
        model = fitted_to_order(name)
        if model.ignores_order:
            pytest.skip("the method ignores order")
        unseen = order_songs(60, seed=2)
        for rule in ("mean", "logodds"):
            assert fitted_to_order(rule).score(unseen) < 0.49
        assert model.score(unseen) > 0.7


class TestLaw8Unanimity:
    @pytest.mark.parametrize("n_frames", [1, 5, 30])
    def test_unanimous_frames_win(self, name: str, n_frames: int) -> None:
        model = fitted_to_frames(name)
        songs = [np.tile(6 * row - 3, (n_frames, 1)) for row in np.eye(3)]
        assert model.predict(songs).tolist() == list(COLUMNS)

    def test_plain_songs_are_not_lost(self, name: str) -> None:
        """A method may correct averaging, but not at the price of songs without order."""
        songs = order_free_songs(60, seed=3, gap=1.0)
        averaging = fitted_to_frames("mean").score(songs)
        assert averaging > 0.8
        assert fitted_to_frames(name).score(songs) > averaging - 0.1


FRESH_PROCESS = """
import sys
import traceback
import numpy as np
import seqagg
folder, *names = sys.argv[1:]
songs = seqagg.read_cache(f"{folder}/queries.arrow")
for name in names:
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
    for method in AGGREGATORS:
        fitted(method).save(folder / f"{method}.safetensors")
    command = [sys.executable, "-c", FRESH_PROCESS, folder, *AGGREGATORS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return folder, done.stderr


class TestLaw9Files:
    def test_saved_and_loaded_in_a_fresh_process(
        self, name: str, fresh_process: tuple[Path, str]
    ) -> None:
        folder, complaints = fresh_process
        model = fitted(name)
        assert (folder / f"{name}.npz").exists(), complaints
        with np.load(folder / f"{name}.npz") as loaded:
            assert_same_answers(loaded["answers"], answers(model, QUERIES), model)
            assert loaded["predictions"].tolist() == model.predict(QUERIES).tolist()
            assert loaded["classes"].tolist() == model.classes_.tolist()
            assert str(loaded["parameters"]) == str(model.get_params())


class TestLaw11Attributes:
    def test_documented_attributes_exist_after_fit_and_only_those(self, name: str) -> None:
        documented = documented_attributes(type(fitted(name)))
        assert {"classes_", "class_prior_"} <= documented
        unfitted = make(name)
        assert [a for a in documented if hasattr(unfitted, a)] == []
        known = {a for a in dir(BaseEstimator) if is_fitted_attribute(a)}
        found = {a for a in dir(fitted(name)) if is_fitted_attribute(a)} - known
        assert found == documented

    def test_documented_parameters_are_those_of_the_constructor(self, name: str) -> None:
        cls = type(fitted(name))
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
