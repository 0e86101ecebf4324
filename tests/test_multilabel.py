"""Songs with several labels each: what `fit` takes for labels, and what every method makes of them.

The laws hold for them too, and are tested with all others in `test_laws`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array
from scipy.special import expit, logit
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_predict, cross_val_score

from seqagg import (
    AutoAggregator,
    GRUAggregator,
    HMMAggregator,
    MajorityVote,
    MeanLogOdds,
    MeanProbability,
    MILAggregator,
    ModelFileError,
    SongError,
    StackingAggregator,
    load,
)
from seqagg.aggregators.hmm_start import whiten_within
from seqagg.aggregators.network import as_target, song_loss
from seqagg.aggregators.start import calibrate, fit_logistic, make_start
from seqagg.aggregators.summaries import summarize
from seqagg.averages import WholeSongs
from seqagg.calibration import fit_calibration, song_losses
from seqagg.model_file import read_model, write_model
from tests.conftest import COLUMNS, frames_of, integer_labels, order_free_songs, order_songs

SONGS = order_free_songs(48, multilabel=True)
QUERIES = order_free_songs(12, seed=1, multilabel=True)
Y = integer_labels(SONGS)
ARRAYS = frames_of(SONGS)
QUICK_HMM = {"n_states": 2, "covariance_type": "diag", "topology": "ergodic"}


class TestWhatLabelsMayBe:
    @pytest.mark.parametrize(
        "y",
        [
            Y.astype(bool),
            Y.astype(np.float32),
            Y[:, ::-1][:, ::-1],
            pd.DataFrame(Y, columns=["x", "y", "z"]),
            csr_array(Y),
            [set(np.flatnonzero(row).tolist()) for row in Y],
        ],
        ids=["bool", "float", "view", "data frame", "sparse", "sets of numbers"],
    )
    def test_an_indicator_in_any_dress(self, y: Any) -> None:
        expected = MeanLogOdds().fit(ARRAYS, Y)
        found = MeanLogOdds().fit(ARRAYS, y)
        assert found.classes_.tolist() == [0, 1, 2]
        assert_array_equal(found.predict_proba(ARRAYS), expected.predict_proba(ARRAYS))

    @pytest.mark.parametrize("kind", [list, tuple, set, frozenset])
    def test_lists_of_text(self, kind: Any) -> None:
        expected = MeanLogOdds().fit(SONGS)
        y = [kind(labels) for labels in SONGS.labels]
        for songs in (SONGS.replace(labels=None, task="multiclass"), SONGS.replace(labels=None)):
            found = MeanLogOdds().fit(songs, y)
            assert found.classes_.tolist() == list(COLUMNS)
            assert_array_equal(found.predict_proba(songs), expected.predict_proba(songs))

    def test_a_label_that_is_named_twice_counts_once(self) -> None:
        twice = MeanLogOdds().fit(SONGS, [labels * 2 for labels in SONGS.labels])
        assert_array_equal(
            twice.predict_proba(SONGS), MeanLogOdds().fit(SONGS).predict_proba(SONGS)
        )

    def test_an_indicator_speaks_of_columns_by_their_place(self) -> None:
        """Whatever they are called: these names are not in the order of the alphabet."""
        names = ("metal", "blues", "jazz")
        named = SONGS.replace(columns=names, labels=None)
        model = MeanLogOdds().fit(named, Y)
        assert model.classes_.tolist() == [0, 1, 2]
        plain = MeanLogOdds().fit(ARRAYS, Y)
        assert_array_equal(model.predict_proba(named), plain.predict_proba(ARRAYS))
        turned = named.replace(values=named.values[:, ::-1], columns=names[::-1])
        assert_array_equal(model.predict_proba(turned), plain.predict_proba(ARRAYS))

    def test_one_class_is_enough(self) -> None:
        one = [array[:, :1] for array in ARRAYS]
        model = MeanLogOdds().fit(one, Y[:, :1])
        assert model.predict(one).shape == model.decision_function(one).shape == (48, 1)
        assert model.score(one, Y[:, :1]) > 0.8

    def test_two_classes_keep_a_decision_each(self) -> None:
        two = [array[:, :2] for array in ARRAYS]
        assert MeanLogOdds().fit(two, Y[:, :2]).decision_function(two).shape == (48, 2)

    def test_averaging_goes_without_labels(self) -> None:
        model = MeanLogOdds().fit(SONGS.replace(labels=None))
        assert model.multilabel_
        expected = expit([array.mean(axis=0) for array in ARRAYS])
        assert_allclose(model.predict_proba(SONGS), expected, rtol=1e-6)
        assert model.predict(SONGS).tolist() == (expected >= 0.5).astype(int).tolist()
        assert model.class_prior_.tolist() == [0.5] * 3

    def test_the_prior_is_the_smoothed_share_of_songs(self) -> None:
        assert_allclose(MeanLogOdds().fit(SONGS).class_prior_, (Y.sum(axis=0) + 1) / 50)

    @pytest.mark.parametrize(
        ("y", "message"),
        [
            (np.where(Y == 1, 2, 0), r"^song '\d+': column \d of the indicator holds 2, neither 0"),
            (np.where(Y == 1, np.nan, 0), r"^song '\d+': column \d of the indicator holds nan"),
            (np.where(Y == 1, "yes", "no"), r"^song '0': column 0 of the indicator holds"),
            (Y[:-1], "47 rows of the indicator for 48 songs"),
            (Y[:, :0], "the indicator has no column"),
            (Y[:, :2], "2 labels for 3 columns without names"),
            ([("a",)] * 47, "labels of 47 songs for 48 songs"),
            ([("a",)] * 47 + [None], r"^song '47': the label is missing"),
            ([("a",)] * 47 + [math.nan], r"^song '47': the label is missing"),
            ([("a",)] * 47 + ["a"], r"^song '47': a is no list of labels, as others are"),
            (Y.tolist(), r"^song '0': labels in a list must be text; give numbers as sets"),
            ([("a", None)] * 48, r"^song '0': labels in a list must be text"),
            ([{"a", 1}] * 48, "labels mix types"),
            ([()] * 48, "no song has a label, and columns have no names"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_says_nothing_is_refused(self, y: Any, message: str) -> None:
        with pytest.raises(SongError, match=message):
            MeanLogOdds().fit(ARRAYS, y)

    def test_a_label_that_is_no_column_is_named_with_its_song(self) -> None:
        y = [*SONGS.labels[:-1], ("jazz", "polka")]
        message = r"^song 'song 47': label polka is the name of no column"
        with pytest.raises(SongError, match=message):
            MeanLogOdds().fit(SONGS, y)

    def test_songs_of_which_one_is_not_labelled(self) -> None:
        songs = SONGS.replace(labels=[*SONGS.labels[:-1], None])
        with pytest.raises(SongError, match=r"^song 'song 47': the label is missing"):
            MeanLogOdds().fit(songs)
        with pytest.raises(SongError, match="labels are needed"):
            StackingAggregator().fit(SONGS.replace(labels=None))

    @pytest.mark.parametrize("y", [np.zeros_like(Y), [()] * 48], ids=["indicator", "lists"])
    def test_nothing_is_learnt_where_no_song_has_a_label(self, y: Any) -> None:
        with pytest.raises(SongError, match="no training song has a label and a frame"):
            StackingAggregator().fit(SONGS, y)


class TestScore:
    def test_all_labels_must_be_right(self) -> None:
        model = MeanLogOdds().fit(ARRAYS, Y)
        queries, truth = frames_of(QUERIES), integer_labels(QUERIES)
        weight = np.arange(12)
        said = model.predict(queries)
        assert model.score(queries, truth) == accuracy_score(truth, said)
        assert model.score(queries, truth, weight) == pytest.approx(
            accuracy_score(truth, said, sample_weight=weight)
        )

    def test_by_names_and_by_an_indicator(self) -> None:
        model = MeanLogOdds().fit(SONGS)
        assert model.score(QUERIES) == model.score(QUERIES, integer_labels(QUERIES))
        assert 0.5 < model.score(QUERIES) < 1

    @pytest.mark.parametrize(
        ("y", "message"),
        [
            ([("jazz",)] * 11 + [("jazz", "polka")], r"^song 'song 11': label polka was never"),
            (np.zeros((12, 4)), "the indicator has 4 columns for 3 classes"),
            (["jazz"] * 12, "fitted to several labels per song; y has one"),
        ],
    )
    def test_labels_that_cannot_be_compared_are_refused(self, y: Any, message: str) -> None:
        with pytest.raises(SongError, match=message):
            MeanLogOdds().fit(SONGS).score(QUERIES, y)

    def test_a_model_of_one_label_takes_no_list_of_them(self) -> None:
        with pytest.raises(SongError, match="a song takes one label, not several"):
            MeanLogOdds().fit(order_free_songs(9)).score(QUERIES)


class TestScikitLearn:
    def test_cross_validation_with_groups(self) -> None:
        groups = np.arange(48) // 4
        model, folds = MeanLogOdds(), GroupKFold(3)
        found = cross_val_score(model, ARRAYS, Y, cv=folds, groups=groups)
        expected = [
            clone(model)
            .fit([ARRAYS[i] for i in learn], Y[learn])
            .score([ARRAYS[i] for i in held], Y[held])
            for learn, held in folds.split(ARRAYS, groups=groups)
        ]
        assert_allclose(found, expected)
        proba = cross_val_predict(model, SONGS, Y, cv=3, method="predict_proba")
        assert proba.shape == (48, 3)

    def test_a_search(self) -> None:
        search = GridSearchCV(StackingAggregator(), {"n_parts": [1, 2]}, cv=3).fit(SONGS, Y)
        assert search.best_score_ > 0.7
        assert search.predict(SONGS).shape == (48, 3)

    def test_tags(self) -> None:
        assert MeanLogOdds().__sklearn_tags__().classifier_tags.multi_label


class TestAveraging:
    """By the numbers before calibration, which is fitted to them as they are."""

    def uncalibrated(self, rule: Any) -> npt.NDArray[np.float64]:
        model = rule().fit(ARRAYS, Y)
        found = logit(model.predict_proba(ARRAYS)) - model.biases_
        return np.asarray(found / model.inverse_temperature_)

    def test_mean_probability(self) -> None:
        mean = np.array([expit(array.astype(float)).mean(axis=0) for array in ARRAYS])
        assert_allclose(self.uncalibrated(MeanProbability), logit(mean), rtol=1e-5, atol=1e-6)
        found = MeanProbability().fit(ARRAYS, Y).decision_function(ARRAYS)
        assert_allclose(found, mean, rtol=1e-6)

    def test_mean_log_odds(self) -> None:
        mean = np.array([array.astype(float).mean(axis=0) for array in ARRAYS])
        assert_allclose(self.uncalibrated(MeanLogOdds), mean, rtol=1e-6, atol=1e-6)
        found = MeanLogOdds().fit(ARRAYS, Y).decision_function(ARRAYS)
        assert_allclose(found, expit(mean), rtol=1e-6)

    def test_votes_are_for_every_column_of_at_least_a_half(self) -> None:
        songs = [np.array([[0.0, -1.0], [2.0, -1.0], [-0.1, 3.0]])]
        model = MajorityVote().fit([*songs, *songs], np.eye(2))
        assert_allclose(model.decision_function(songs), [[2 / 3, 1 / 3]])
        expected = []
        for array in ARRAYS:
            votes, p = (array >= 0).sum(axis=0), expit(array.astype(float)).mean(axis=0)
            expected.append((votes + p) / (len(array) + 1))  # one more vote, shared out
        assert_allclose(self.uncalibrated(MajorityVote), logit(expected), rtol=1e-5, atol=1e-6)

    def test_calibration_is_fitted_to_all_songs(self) -> None:
        model = MeanLogOdds().fit(ARRAYS, Y)
        mean = np.array([array.astype(float).mean(axis=0) for array in ARRAYS])
        beta, bias = fit_calibration(mean, Y)
        assert model.inverse_temperature_ == pytest.approx(beta, rel=1e-3)
        assert_allclose(model.biases_, bias, rtol=0, atol=1e-2)


class TestHMM:
    MODEL = HMMAggregator(**QUICK_HMM, decision="likelihood")

    def test_a_class_is_judged_by_its_lead_on_the_background(self) -> None:
        """By hmmlearn's own scores of the models that the user gets."""
        model = clone(self.MODEL).fit(SONGS)
        found = model.decision_function(QUERIES)
        assert list(model.hmms_) == model.classes_.tolist()
        for i, array in enumerate(frames_of(QUERIES)):
            background = model.background_.score(array)
            for k, label in enumerate(model.classes_):
                lead = model.hmms_[label].score(array) - background
                prior = logit(model.class_prior_[k])
                assert found[i, k] == pytest.approx(lead + prior, rel=1e-4, abs=1e-4)

    def test_each_model_has_heard_the_songs_of_its_class_and_the_background_all(self) -> None:
        report = clone(self.MODEL).fit(SONGS).fit_report_
        for k, label in enumerate(COLUMNS):
            assert f"{label}: {Y[:, k].sum()} songs" in report
        assert "background: 48 songs" in report

    def test_the_hybrid_mixes_three_numbers(self) -> None:
        songs = order_songs(60, multilabel=True)
        model = HMMAggregator(**QUICK_HMM).fit(songs)
        a, b, c = model.weights_
        assert a > 0
        lead = np.array(
            [
                [(model.hmms_[k].score(x) - model.background_.score(x)) / len(x) for k in COLUMNS]
                for x in frames_of(songs)
            ]
        )
        mean = np.array([x.mean(axis=0) for x in frames_of(songs)])
        expected = a * lead + b * mean + c * logit(model.class_prior_)
        assert_allclose(model.decision_function(songs), expected, rtol=1e-4, atol=1e-4)

    def test_one_label_per_song_has_no_background(self) -> None:
        assert clone(self.MODEL).fit(order_free_songs(24)).background_ is None

    def test_a_file_brings_the_background_back(self, tmp_path: Any) -> None:
        model = clone(self.MODEL).fit(SONGS)
        path = tmp_path / "m.safetensors"
        model.save(path)
        array = frames_of(QUERIES)[0]
        expected = model.background_.score(array)
        assert load(path).background_.score(array) == pytest.approx(expected, rel=1e-9)
        header, arrays = read_model(path)
        without = {n: a for n, a in arrays.items() if not n.startswith("state.3.")}
        write_model(path, header, without)
        with pytest.raises(ModelFileError, match="the background has no model"):
            load(path)

    def test_whitening_of_one_label_each_is_that_of_classes(self) -> None:
        songs = order_free_songs(30)
        y = integer_labels(songs)
        one, several = whiten_within(songs, y), whiten_within(songs, np.eye(3, dtype=int)[y])
        assert_allclose(several.center, one.center, rtol=1e-12)
        assert_allclose(np.abs(several.basis), np.abs(one.basis), rtol=1e-5, atol=1e-8)


class TestStart:
    FEATURES = np.random.default_rng(0).normal(size=(48, 5))

    def test_one_logistic_regression_per_class(self) -> None:
        found = fit_logistic(self.FEATURES, Y, 3, ridge=0.1)
        for k in range(3):
            model = LogisticRegression(C=0.1, max_iter=5000).fit(self.FEATURES, Y[:, k])
            assert_allclose(found.weight[:, k], model.coef_[0], rtol=1e-3, atol=1e-4)
            assert found.bias[k] == pytest.approx(model.intercept_[0], abs=1e-4)

    def test_a_class_on_all_songs_or_on_none_has_its_smoothed_share(self) -> None:
        y = np.column_stack([np.ones(48, int), np.zeros(48, int), Y[:, 0]])
        found = fit_logistic(self.FEATURES, y, 3, ridge=0.1)
        assert not found.weight[:, :2].any()
        assert_allclose(expit(found.bias[:2]), [49 / 50, 1 / 50])

    @pytest.mark.parametrize("columns_are_classes", [True, False])
    def test_a_calibrated_start_needs_no_calibration(self, columns_are_classes: bool) -> None:
        songs = order_free_songs(600, multilabel=True)
        y = integer_labels(songs)
        start, beta = calibrate(make_start(WholeSongs(songs), y, 3, columns_are_classes), songs, y)
        slope, bias = fit_calibration(beta * start.scores(songs), y)
        assert slope == pytest.approx(1, abs=0.05)
        assert_allclose(bias, 0, rtol=0, atol=0.1)


class TestNetworks:
    def test_the_loss_is_that_of_the_calibration(self) -> None:
        scores = np.random.default_rng(0).normal(size=(48, 3))
        found = song_loss(torch.as_tensor(scores), as_target(Y))
        assert float(found) == pytest.approx(song_losses(scores, Y).mean(), rel=1e-6)

    @pytest.mark.parametrize("cls", [GRUAggregator, MILAggregator])
    def test_the_untrained_network_is_calibrated_averaging(self, cls: Any) -> None:
        model = cls(epochs=1, learning_rate=1e-8, n_folds=1).fit(ARRAYS, Y)
        start, beta = calibrate(make_start(WholeSongs(SONGS), Y, 3, True), SONGS, Y)
        # One fold of five is not learnt from, so that the calibration is nearly that of all.
        expected = beta * start.scores(QUERIES)
        assert_allclose(model.decision_function(frames_of(QUERIES)), expected, rtol=0.2, atol=0.4)

    def test_a_network_of_the_users(self) -> None:
        torch.manual_seed(0)
        network = torch.nn.Linear(3, 3)
        settings = {"epochs": 80, "patience": 80, "learning_rate": 0.1, "n_folds": 2}
        model = MILAggregator(network=network, pooling="average", **settings).fit(ARRAYS, Y)
        unseen = order_free_songs(100, seed=9, multilabel=True)
        assert model.score(frames_of(unseen), integer_labels(unseen)) > 0.8


class TestStacking:
    def test_a_classifier_of_the_users_is_fitted_to_each_class(self) -> None:
        forest = RandomForestClassifier(20, random_state=0)
        model = StackingAggregator(classifier=forest).fit(ARRAYS, Y)
        model.weights_ = np.array([1.0, 0.0])  # nothing is mixed in
        order = model._column_order
        known, asked = (s.replace(values=s.values[:, order]) for s in (SONGS, QUERIES))
        found = model.decision_function(frames_of(QUERIES))
        for k in range(3):
            own = clone(forest).fit(summarize(known, 4), Y[:, k])
            p = own.predict_proba(summarize(asked, 4))[:, 1].clip(1e-6, 1 - 1e-6)
            assert_allclose(found[:, k], logit(p), rtol=1e-9)

    def test_classes_that_cannot_be_told_apart_need_no_classifier(self) -> None:
        y = np.column_stack([np.ones(48, int), np.zeros(48, int), Y[:, 2]])
        for classifier in (None, LogisticRegression()):
            p = StackingAggregator(classifier=classifier).fit(ARRAYS, y).predict_proba(ARRAYS)
            assert (p[:, 0] > 0.9).all()
            assert (p[:, 1] < 0.1).all()

    def test_tags_that_are_no_classes(self) -> None:
        songs = SONGS.replace(columns=("guitar", "piano", "voice"))
        queries = QUERIES.replace(columns=songs.columns)
        model = StackingAggregator().fit(songs)
        assert model.classes_.tolist() == list(COLUMNS)
        assert model.score(queries) > 0.5


class TestAuto:
    def test_a_blend_where_order_tells(self) -> None:
        model = AutoAggregator(
            methods=("hmm", "stack"), parameters={"hmm": {**QUICK_HMM, "n_states": 3}}
        )
        model.fit(order_songs(60, multilabel=True))
        assert "it is used" in model.fit_report_
        assert model.score(order_songs(30, seed=1, multilabel=True)) > 0.7

    def test_averaging_where_it_does_not(self) -> None:
        model = AutoAggregator(
            methods=("hmm",), parameters={"hmm": {**QUICK_HMM, "n_states": 3}}
        ).fit(SONGS)
        assert set(model.weights_) <= {"mean", "logodds"}

    def test_as_many_tags_as_classes_are_not_taken_for_them(self) -> None:
        songs = SONGS.replace(columns=("guitar", "piano", "voice"))
        model = AutoAggregator(methods=("stack",)).fit(songs)
        assert list(model.candidates_) == ["stack"]
        assert not model.candidates_["stack"]._columns_are_classes

    def test_a_class_on_no_song(self) -> None:
        y = np.where(np.arange(3) == 1, 0, Y)
        model = AutoAggregator(methods=("stack",)).fit(ARRAYS, y)
        assert model.predict_proba(ARRAYS)[:, 1].mean() < 0.1
        assert np.isfinite(model.predict_log_proba(ARRAYS)).all()
