"""Stock scikit-learn, with Songs and with plain lists of arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, get_scorer
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    RandomizedSearchCV,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
    cross_validate,
    learning_curve,
    permutation_test_score,
    train_test_split,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.validation import check_is_fitted

from seqagg import HMMAggregator, MajorityVote, MeanLogOdds, MeanProbability, Songs
from seqagg.errors import SongError
from tests.conftest import frames_of, integer_labels, order_free_songs, order_songs

N = 36
SONGS = order_free_songs(N, gap=1.0)
GROUPS = np.arange(N) // 4  # albums of four songs, each of all three classes

INPUTS = {
    "Songs": (SONGS, SONGS.labels),
    "Songs with integer labels": (SONGS.replace(columns=None, labels=None), integer_labels(SONGS)),
    "list of arrays": (frames_of(SONGS), integer_labels(SONGS)),
}

inputs = pytest.mark.parametrize(("X", "y"), INPUTS.values(), ids=list(INPUTS))


def by_hand(model: Any, X: Any, y: Any, splits: Any) -> list[float]:
    """Accuracy of each fold by a loop of our own."""
    scores = []
    for train, test in splits:
        known = [SONGS.values[SONGS.offsets[i] : SONGS.offsets[i + 1]] for i in train]
        asked = [SONGS.values[SONGS.offsets[i] : SONGS.offsets[i + 1]] for i in test]
        labels = integer_labels(SONGS)
        predicted = clone(model).fit(known, labels[train]).predict(asked)
        scores.append(float(np.mean(predicted == labels[test])))
    return scores


class TestCrossValidation:
    @inputs
    def test_by_groups_it_is_the_loop_by_hand(self, X: Any, y: Any) -> None:
        folds = GroupKFold(3)
        scores = cross_val_score(MeanLogOdds(), X, y, groups=GROUPS, cv=folds)
        splits = list(folds.split(np.zeros(N), groups=GROUPS))
        assert_allclose(scores, by_hand(MeanLogOdds(), X, y, splits))
        assert scores.mean() > 0.5

    def test_songs_stay_songs(self) -> None:
        """Names of songs and columns are still there when a fold is fitted."""
        seen: list[Any] = []

        class Watching(MeanLogOdds):
            def fit(self, X: Any, y: Any = None, groups: Any = None) -> Any:
                seen.append(X)
                return super().fit(X, y, groups)

        cross_val_score(Watching(), SONGS, SONGS.labels, cv=3)
        assert len(seen) == 3
        for part in seen:
            assert isinstance(part, Songs)
            assert part.columns == SONGS.columns
            assert set(part.ids) < set(SONGS.ids)

    def test_labels_of_the_songs_need_not_be_passed(self) -> None:
        folds = StratifiedKFold(3).split(np.zeros(N), integer_labels(SONGS))
        splits = list(folds)
        own = cross_val_score(MeanLogOdds(), SONGS, cv=splits)
        assert_array_equal(own, cross_val_score(MeanLogOdds(), SONGS, SONGS.labels, cv=splits))

    @inputs
    def test_predictions_out_of_fold(self, X: Any, y: Any) -> None:
        predicted = cross_val_predict(MeanProbability(), X, y, cv=GroupKFold(3), groups=GROUPS)
        assert predicted.shape == (N,)
        # Averaging learns nothing that moves the winner, so out of fold is in fold.
        assert_array_equal(predicted, MeanProbability().fit(X, y).predict(X))

    @inputs
    def test_probabilities_out_of_fold(self, X: Any, y: Any) -> None:
        if isinstance(X, Songs) and X.columns is not None:
            # scikit-learn hands integers to the estimator then, and says so nowhere.
            with pytest.raises(ValueError, match="is the name of no column"):
                cross_val_predict(MeanLogOdds(), X, y, method="predict_proba", cv=3)
            return
        proba = cross_val_predict(MeanLogOdds(), X, y, method="predict_proba", cv=3)
        assert proba.shape == (N, 3)
        assert_allclose(proba.sum(axis=1), 1)
        assert_array_equal(proba.argmax(axis=1), MeanLogOdds().fit(X, y).predict(X))

    def test_in_processes(self) -> None:
        X, y = INPUTS["Songs"]
        together = cross_val_score(MeanLogOdds(), X, y, cv=3, n_jobs=2)
        assert_array_equal(together, cross_val_score(MeanLogOdds(), X, y, cv=3))

    @pytest.mark.parametrize(
        "metric", ["accuracy", "balanced_accuracy", "f1_macro", "neg_log_loss", "roc_auc_ovr"]
    )
    @inputs
    def test_metrics(self, X: Any, y: Any, metric: str) -> None:
        found = cross_validate(MeanLogOdds(), X, y, cv=3, scoring=metric, error_score="raise")
        assert np.isfinite(found["test_score"]).all()

    def test_learning_curve_and_permutation_test(self) -> None:
        X, y = INPUTS["list of arrays"]
        sizes, _, scores = learning_curve(MeanLogOdds(), X, y, cv=3, train_sizes=[0.5, 1.0])
        assert scores.shape == (2, 3)
        assert sizes.tolist() == [12, 24]
        score, permuted, _ = permutation_test_score(MeanLogOdds(), X, y, cv=3, n_permutations=5)
        assert score > permuted.max()

    @inputs
    def test_train_test_split(self, X: Any, y: Any) -> None:
        X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)
        assert (len(X_train), len(X_test)) == (27, 9)
        model = MeanLogOdds().fit(X_train, y_train)
        assert model.score(X_test, y_test) == accuracy_score(y_test, model.predict(X_test))


class TestSearch:
    @inputs
    def test_grid_search_by_groups(self, X: Any, y: Any) -> None:
        steps = Pipeline([("rule", MeanLogOdds())])
        grid = {"rule": [MajorityVote(), MeanProbability(), MeanLogOdds()]}
        search = GridSearchCV(steps, grid, cv=GroupKFold(3), error_score="raise")
        search.fit(X, y, groups=GROUPS)
        splits = list(GroupKFold(3).split(np.zeros(N), groups=GROUPS))
        expected = [np.mean(by_hand(rule, X, y, splits)) for rule in grid["rule"]]
        assert_allclose(search.cv_results_["mean_test_score"], expected)
        assert search.best_score_ == pytest.approx(max(expected))
        assert search.predict(X).shape == (N,)

    def test_grid_search_over_a_parameter(self) -> None:
        empty = [*frames_of(SONGS), *[np.empty((0, 3))] * 3]
        y = [*integer_labels(SONGS), 0, 1, 2]
        search = GridSearchCV(
            MeanLogOdds(), {"on_empty": ["error", "prior"]}, cv=3, error_score=0.0
        )
        with pytest.warns(match="no frame is left"):
            search.fit(empty, y)
        assert search.best_params_ == {"on_empty": "prior"}

    def test_a_learnt_method_over_its_parameters_with_groups(self) -> None:
        songs = order_songs(36)
        search = RandomizedSearchCV(
            HMMAggregator(covariance_type="diag", n_folds=2, n_iter=5),
            {"n_states": [1, 3], "decision": ["hybrid", "likelihood"]},
            n_iter=3,
            random_state=0,
            cv=GroupKFold(2),
            error_score="raise",
        )
        search.fit(songs, songs.labels, groups=np.arange(36) // 3)
        assert len(search.cv_results_["params"]) == 3
        assert search.best_score_ > 0.6
        assert search.best_estimator_.get_params()["n_iter"] == 5


class Demean(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Subtract the training mean of each column: a step that learns and keeps Songs."""

    def fit(self, X: Songs, y: Any = None) -> Demean:
        self.mean_ = X.values.mean(axis=0)
        return self

    def transform(self, X: Songs) -> Songs:
        return X.replace(values=X.values - self.mean_)


class TestComposition:
    def test_clone_has_the_parameters_and_no_fit(self) -> None:
        model = HMMAggregator(n_states=5, on_empty="prior")
        copy = clone(model)
        assert copy.get_params() == model.get_params()
        assert copy is not model
        assert repr(copy) == "HMMAggregator(n_states=5, on_empty='prior')"
        with pytest.raises(Exception, match="not fitted"):
            check_is_fitted(copy)
        check_is_fitted(MeanLogOdds().fit(SONGS))

    def test_an_unknown_parameter_is_refused(self) -> None:
        with pytest.raises(TypeError, match="unexpected keyword"):
            MeanLogOdds(on_emty="prior")
        with pytest.raises(ValueError, match="Invalid parameter 'on_emty'"):
            MeanLogOdds().set_params(on_emty="prior")

    def test_pipeline_with_a_transformer_of_songs(self) -> None:
        model = make_pipeline(Demean(), MeanLogOdds()).fit(SONGS, SONGS.labels)
        moved = SONGS.replace(values=SONGS.values - SONGS.values.mean(axis=0))
        expected = MeanLogOdds().fit(moved).predict_proba(moved)
        assert_array_equal(model.predict_proba(SONGS), expected)
        assert model.classes_.tolist() == sorted(set(SONGS.labels))

    def test_pipeline_with_a_transformer_of_lists(self) -> None:
        def double(arrays: Any) -> Any:
            return [2 * a for a in arrays]

        X, y = INPUTS["list of arrays"]
        model = make_pipeline(FunctionTransformer(double), MeanLogOdds()).fit(X, y)
        expected = MeanLogOdds().fit(double(X), y).decision_function(double(X))
        assert_array_equal(model.decision_function(X), expected)

    @pytest.mark.parametrize("voting", ["hard", "soft"])
    def test_voting(self, voting: str) -> None:
        X, y = INPUTS["list of arrays"]
        rules = {"majority": MajorityVote(), "mean": MeanProbability(), "logodds": MeanLogOdds()}
        model = VotingClassifier(list(rules.items()), voting=voting).fit(X, y)
        if voting == "soft":
            expected = np.mean([rule.fit(X, y).predict_proba(X) for rule in rules.values()], axis=0)
            assert_allclose(model.predict_proba(X), expected)
        else:
            votes = np.stack([rule.fit(X, y).predict(X) for rule in rules.values()])
            expected = [np.bincount(column, minlength=3).argmax() for column in votes.T]
            assert_array_equal(model.predict(X), expected)

    def test_voting_with_names_for_labels(self) -> None:
        """scikit-learn numbers the labels first; without names of columns that is no matter."""
        X, y = frames_of(SONGS), np.array(SONGS.labels.tolist())
        model = VotingClassifier([("mean", MeanProbability()), ("odds", MeanLogOdds())])
        assert set(model.fit(X, y).predict(X)) == {"blues", "jazz", "metal"}

    def test_stacking(self) -> None:
        X, y = INPUTS["list of arrays"]
        model = StackingClassifier(
            [("mean", MeanProbability()), ("odds", MeanLogOdds())],
            LogisticRegression(),
            cv=list(GroupKFold(3).split(np.zeros(N), groups=GROUPS)),
        )
        assert model.fit(X, y).score(X, y) > 0.5

    @pytest.mark.parametrize("method", ["sigmoid", "isotonic", "temperature"])
    def test_calibration(self, method: str) -> None:
        X, y = INPUTS["list of arrays"]
        model = CalibratedClassifierCV(MeanLogOdds(), method=method, cv=3).fit(X, y)
        proba = model.predict_proba(X)
        assert_allclose(proba.sum(axis=1), 1)
        assert model.score(X, y) > 0.5

    def test_calibration_by_groups_of_songs_with_names(self) -> None:
        folds = list(GroupKFold(3).split(np.zeros(N), groups=GROUPS))
        model = CalibratedClassifierCV(MeanLogOdds(), cv=folds).fit(SONGS, SONGS.labels)
        assert model.classes_.tolist() == ["blues", "jazz", "metal"]
        assert model.predict_proba(SONGS).shape == (N, 3)


class TestTwoClasses:
    SONGS = order_free_songs(30, columns=("jig", "reel"), gap=0.5)

    @pytest.mark.parametrize("rule", [MajorityVote, MeanProbability, MeanLogOdds])
    @pytest.mark.parametrize("metric", ["roc_auc", "average_precision", "neg_brier_score", "f1"])
    def test_binary_metrics(self, rule: Any, metric: str) -> None:
        X, y = frames_of(self.SONGS), integer_labels(self.SONGS)
        model = rule().fit(X, y)
        score = get_scorer(metric)(model, X, y)
        assert np.isfinite(score)
        if metric != "neg_brier_score":
            assert score > 0.6  # a decision with the sign turned round would fall below 1/2

    def test_area_under_the_curve_by_counting_pairs(self) -> None:
        X, y = self.SONGS, self.SONGS.labels
        model = MeanLogOdds().fit(X)
        decision = model.decision_function(X)
        pairs = [
            (reel > jig) + (reel == jig) / 2
            for reel in decision[y == "reel"]
            for jig in decision[y == "jig"]
        ]
        assert get_scorer("roc_auc")(model, X, y) == pytest.approx(np.mean(pairs))
        assert np.mean(pairs) > 0.6

    def test_the_sign_of_the_decision_is_the_prediction(self) -> None:
        for rule in (MeanProbability, MeanLogOdds):
            model = rule().fit(self.SONGS)
            second = model.decision_function(self.SONGS) > 0
            assert_array_equal(model.predict(self.SONGS), model.classes_[second.astype(int)])

    def test_one_against_the_rest(self) -> None:
        X, y = INPUTS["list of arrays"]
        model = OneVsRestClassifier(HMMAggregator(n_states=1, n_folds=2, n_iter=3)).fit(X, y)
        assert model.predict_proba(X).shape == (N, 3)
        assert model.score(X, y) > 0.5


class TestWeightsAndScores:
    def test_score_counts_songs(self) -> None:
        model = MeanLogOdds().fit(SONGS)
        right = model.predict(SONGS) == SONGS.labels
        assert model.score(SONGS) == pytest.approx(right.mean())
        assert model.score(SONGS, SONGS.labels) == pytest.approx(right.mean())

    def test_score_weighs_songs(self) -> None:
        model = MeanLogOdds().fit(SONGS)
        right = model.predict(SONGS) == SONGS.labels
        weight = np.arange(N, dtype=float)
        expected = (right * weight).sum() / weight.sum()
        assert model.score(SONGS, sample_weight=weight) == pytest.approx(expected)

    def test_as_many_groups_as_songs(self) -> None:
        with pytest.raises(SongError, match="35 groups for 36 songs"):
            MeanLogOdds().fit(SONGS, groups=GROUPS[1:])

    def test_tags(self) -> None:
        tags = MeanLogOdds().__sklearn_tags__()
        assert tags.estimator_type == "classifier"
        assert tags.input_tags.allow_nan
        assert tags.input_tags.two_d_array
        assert tags.input_tags.three_d_array
