"""scikit-learn's own checks of an estimator, over the whole table of aggregators.

They give 2-D arrays, which are songs of one frame each. Most hold as they are; what does not apply
is listed with what is said instead, and must fail with just that, so that the list cannot go stale.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
from sklearn.utils.estimator_checks import check_classifiers_train, estimator_checks_generator

from seqagg.aggregators import AGGREGATORS, aggregator_class, base, make_aggregator
from seqagg.songs import as_songs

QUICK: dict[str, dict[str, Any]] = {
    "hmm": {"n_states": 2, "n_iter": 2, "n_folds": 2, "covariance_type": "diag"},
    "gru": {"hidden_size": 2, "epochs": 10, "n_folds": 2, "n_repeats": 1},
    "mil": {"hidden_size": 2, "epochs": 10, "n_folds": 2, "n_repeats": 1},
    "stack": {"n_folds": 2, "n_parts": 2},
    "auto": {"methods": ("stack",), "parameters": {"stack": {"n_folds": 2, "n_parts": 2}}},
}
"""What makes a learnt method fast, and still able to tell three clouds of points apart."""

EVERY = tuple(AGGREGATORS)
AVERAGES = tuple(name for name in EVERY if aggregator_class(name).needs_class_columns)
LEARNT = tuple(name for name in EVERY if name not in AVERAGES)


class Exemption(NamedTuple):
    """A check that does not apply to some methods, what its failure says, and why that is right."""

    check: str
    methods: tuple[str, ...]
    says: str
    reason: str


_NOT_CLASSES = "An average answers with its columns; here these are not the classes."
_OWN_WORDS = "The error is there, in the words of songs and columns instead of scikit-learn's."
_LISTS = "A list is one of songs, so a list of flat lists is refused rather than guessed at."

EXEMPTIONS = [
    *(
        Exemption(check, AVERAGES, r"3 labels for 2 columns without names", _NOT_CLASSES)
        for check in (
            "check_estimators_overwrite_params",
            "check_estimators_fit_returns_self",
            "check_readonly_memmap_input",
            "check_classifiers_classes",
        )
    ),
    *(
        Exemption(check, AVERAGES, r"5 labels for 2 columns without names", _NOT_CLASSES)
        for check in (
            "check_classifiers_multilabel_representation_invariance",
            "check_classifiers_multilabel_output_format_predict",
            "check_classifiers_multilabel_output_format_predict_proba",
            "check_classifiers_multilabel_output_format_decision_function",
        )
    ),
    Exemption(
        "check_fit2d_1feature", AVERAGES, r"2 labels for 1 columns without names", _NOT_CLASSES
    ),
    Exemption(
        "check_classifiers_multilabel_representation_invariance",
        LEARNT,
        r"labels in a list must be text; give numbers as sets, or an indicator as an array",
        "A list of 0 and 1 could be a row of an indicator, or two labels.",
    ),
    Exemption("check_classifiers_train", EVERY, r"songs have frames of shape \(2,\)", _LISTS),
    Exemption(
        "check_classifier_data_not_an_array",
        EVERY,
        r"expected Songs or a list of frame arrays, got _NotAnArray",
        "Of what is neither Songs, list nor array nobody knows what a song is: a table of frames "
        "comes by from_dataframe.",
    ),
    Exemption(
        "check_supervised_y_2d",
        EVERY,
        r"column 0 of the indicator holds 2, neither 0 nor 1",
        "A matrix of labels is an indicator of several labels per song, of one column too.",
    ),
    Exemption(
        "check_classifiers_regression_target",
        AVERAGES,
        r"200 labels for 10 columns without names",
        _NOT_CLASSES,
    ),
    Exemption(
        "check_classifiers_regression_target",
        LEARNT,
        r"a classifier is passed a continuous target",
        "Labels may be of any type, and so numbers like 0.25 too.",
    ),
    Exemption(
        "check_decision_proba_consistency",
        ("mean", "logodds"),
        r"not equal",
        "The decision is the difference of the rule's two numbers, the probability depends on "
        "their ratio; the columns of a classifier need not sum to 1.",
    ),
    Exemption(
        "check_dtype_object",
        EVERY,
        r"frames are no table of numbers: float\(\) argument must be",
        "What is no number is refused as a ValueError that names its song, not as a TypeError.",
    ),
    Exemption(
        "check_n_features_in_after_fitting", EVERY, r"songs have 1 columns, not 4", _OWN_WORDS
    ),
    Exemption(
        "check_estimators_empty_data_messages",
        EVERY,
        r"values have shape \(12, 0\), not \(n_frames, n_columns\)",
        _OWN_WORDS,
    ),
    Exemption(
        "check_fit2d_predict1d",
        EVERY,
        r"songs have frames of shape \(\); expected arrays of shape \(n_frames, n_columns\)",
        _OWN_WORDS,
    ),
    Exemption(
        "check_requires_y_none",
        EVERY,
        r"labels are needed: pass y, or songs that carry labels",
        _OWN_WORDS,
    ),
]

EXEMPT = {(row.check, method): row for row in EXEMPTIONS for method in row.methods}


class Check(NamedTuple):
    """A check of scikit-learn on a method."""

    method: str
    name: str
    options: dict[str, Any]
    run: Callable[[], None]

    def __str__(self) -> str:
        return "-".join([self.method, self.name, *(f"{k}={v}" for k, v in self.options.items())])


def make(method: str) -> base.Aggregator:
    # Some checks make numbers missing, and with them the only frame of a song.
    return make_aggregator(method, **QUICK.get(method, {}), on_empty="prior")


def all_checks() -> Iterator[Check]:
    for method in AGGREGATORS:
        for estimator, check in estimator_checks_generator(make(method)):
            name = check.func.__name__
            yield Check(method, name, check.keywords, partial(check, estimator))


CHECKS = list(all_checks())
APPLYING = [check for check in CHECKS if (check.name, check.method) not in EXEMPT]
OTHERS = [check for check in CHECKS if (check.name, check.method) in EXEMPT]


@pytest.mark.parametrize("check", APPLYING, ids=str)
def test_checks_that_apply_hold(check: Check) -> None:
    check.run()


@pytest.mark.parametrize("check", OTHERS, ids=str)
def test_checks_that_do_not_apply_fail_as_said(check: Check) -> None:
    with pytest.raises((AssertionError, ValueError)) as failure:
        check.run()
    said, error = "", failure.value
    while error is not None:  # the checks hide our error behind their own
        said += f"{error}\n"
        error = error.__cause__ or error.__context__
    assert re.search(EXEMPT[check.name, check.method].says, said)


def test_every_exemption_is_of_a_check_that_there_is() -> None:
    assert set(EXEMPT) == {(check.name, check.method) for check in OTHERS}


@pytest.mark.parametrize("options", [{}, {"readonly_memmap": True, "X_dtype": "float32"}])
@pytest.mark.parametrize("method", LEARNT)
def test_but_for_lists_they_pass_the_check_of_training(
    method: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks for much more than lists, and its two columns are not the classes."""

    def of_lists(X: Any) -> Any:
        return as_songs(np.array(X) if isinstance(X, list) else X)

    monkeypatch.setattr(base, "as_songs", of_lists)
    check_classifiers_train(type(make(method)).__name__, make(method), **options)
