"""Frame classifiers for tables of features, as `out_of_fold` takes them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from seqagg.errors import ParameterError
from seqagg.folds import grouped_folds
from seqagg.logodds import Kind

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


def frame_classifier(name: str, seed: int = 0) -> tuple[Any, Kind]:
    """Make a frame classifier of the table `FRAME_CLASSIFIERS`.

    Returns
    -------
    make_model : scikit-learn estimator or callable
        As `seqagg.frozen.out_of_fold` takes it. Features are standardized.
    kind : str
        What its scores are.

    Raises
    ------
    ParameterError
        If there is none of that name.
    """
    if name not in FRAME_CLASSIFIERS:
        known = ", ".join(FRAME_CLASSIFIERS)
        raise ParameterError(f"no frame classifier {name!r}; there are {known}")
    make, kind = FRAME_CLASSIFIERS[name]
    return make(seed), kind


def _standardized(model: Any) -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), model)


def _logistic(seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    return _standardized(LogisticRegression(max_iter=1000))


def _svm(seed: int) -> Any:
    """Support vectors, whose margins a temperature makes probabilities of, songs held out."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.svm import SVC

    def fit(frames: Array, labels: Ints, groups: Ints) -> Any:
        folds = grouped_folds(labels, groups, 3, seed)
        if not folds:
            raise ParameterError("svm needs songs of two groups to learn from")
        machine = CalibratedClassifierCV(
            _standardized(SVC()), method="temperature", cv=folds, ensemble=False
        )
        return machine.fit(frames, labels)

    return fit


def _mlp(seed: int) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    def fit(frames: Array, labels: Ints, groups: Ints) -> Any:
        network = MLPClassifier((128,), alpha=0.1, max_iter=30, random_state=seed)
        with warnings.catch_warnings():  # it stops early on purpose
            warnings.simplefilter("ignore", ConvergenceWarning)
            return _standardized(network).fit(frames, labels)

    return fit


def _forest(seed: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(200, min_samples_leaf=3, random_state=seed)


FRAME_CLASSIFIERS: dict[str, tuple[Callable[[int], Any], Kind]] = {
    "logistic": (_logistic, "logit"),
    "svm": (_svm, "probability"),
    "mlp": (_mlp, "probability"),
    "forest": (_forest, "probability"),
}
"""Name -> what makes it of a seed, and the kind of its scores."""
