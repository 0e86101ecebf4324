"""Metrics of songs with several labels each: indicators in, numbers out.

Conventions
-----------
``y`` and predictions are indicators of 0 and 1, probabilities are in [0, 1] and need not sum to
anything; all have shape (n_songs, n_classes). A class need not have a song, nor a song a class.
Shares are in [0, 1], log loss is in nats. Log loss, Brier score and calibration error are better
lower, the others better higher.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata
from sklearn import metrics

from seqagg.errors import ParameterError, SongError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def evaluate(y: Any, prediction: Any, probability: Any) -> dict[str, float]:
    """Every metric of this module, by name.

    Parameters
    ----------
    y, prediction : array-like of shape (n_songs, n_classes)
        Indicators of the labels, and of what the method said.
    probability : array-like of shape (n_songs, n_classes)
        P(class | song), each class by itself.

    Returns
    -------
    dict of str to float
        ``mean_average_precision``, ``lrap``, ``micro_f1``, ``macro_f1``, ``subset_accuracy``,
        ``log_loss``, ``brier``, ``calibration_error``.

    Raises
    ------
    SongError
        Where there is no song, or an indicator holds something else than 0 and 1.
    ParameterError
        When shapes differ, or a probability is none.
    """
    return {
        "mean_average_precision": mean_average_precision(y, probability),
        "lrap": float(lrap_of_songs(y, probability).mean()),
        "micro_f1": micro_f1(y, prediction),
        "macro_f1": macro_f1(y, prediction),
        "subset_accuracy": subset_accuracy(y, prediction),
        "log_loss": log_loss(y, probability),
        "brier": brier(y, probability),
        "calibration_error": calibration_error(y, probability),
    }


def mean_average_precision(y: Any, probability: Any) -> float:
    """Mean over the classes that some song has of their average precision; NaN if none has."""
    truth, p = _with_probability(y, probability)
    occurring = truth.any(axis=0)
    if not occurring.any():
        return float("nan")
    found = metrics.average_precision_score(truth[:, occurring], p[:, occurring], average=None)
    return float(np.mean(found))


def lrap_of_songs(y: Any, probability: Any) -> Floats:
    """Label ranking average precision of each song, shape (n_songs,).

    For each label of the song, the share of labels among the classes ranked as high or higher;
    the mean of these [1]_. A song that has no label, or all, cannot be ranked wrongly and has 1.

    References
    ----------
    .. [1] G. Tsoumakas, I. Katakis and I. Vlahavas, "Mining multi-label data", in "Data mining
       and knowledge discovery handbook", Springer 2010, section 34.7.3.
    """
    truth, p = _with_probability(y, probability)
    rank = rankdata(-p, method="max", axis=1)
    # Classes that are no label of the song go last, so that its labels are ranked by themselves.
    among_labels = rankdata(np.where(truth == 1, -p, np.inf), method="max", axis=1)
    share = (truth * among_labels / rank).sum(axis=1)
    n_labels = truth.sum(axis=1)
    return np.asarray(np.where(n_labels > 0, share / np.maximum(n_labels, 1), 1.0))


def micro_f1(y: Any, prediction: Any) -> float:
    """F1 of all pairs of song and class together; 0 where nothing is, or is predicted."""
    truth, said = _with_prediction(y, prediction)
    return float(metrics.f1_score(truth.ravel(), said.ravel(), zero_division=0.0))


def macro_f1(y: Any, prediction: Any) -> float:
    """Mean of F1 over the classes that a song has or is predicted to have; 0 if there is none."""
    truth, said = _with_prediction(y, prediction)
    occurring = truth.any(axis=0) | said.any(axis=0)
    if not occurring.any():
        return 0.0
    hits = (truth & said).sum(axis=0)[occurring]
    return float(np.mean(2 * hits / (truth + said).sum(axis=0)[occurring]))


def subset_accuracy(y: Any, prediction: Any) -> float:
    """Share of songs that are given all their labels and no others."""
    truth, said = _with_prediction(y, prediction)
    return float((truth == said).all(axis=1).mean())


def log_loss(y: Any, probability: Any) -> float:
    """Mean over songs and classes of -log P(has the class, or has it not), in nats.

    A probability of 0 counts as 2.2e-16.
    """
    truth, p = _with_probability(y, probability)
    right = np.where(truth == 1, p, 1 - p)
    return float(-np.log(np.maximum(right, np.finfo(np.float64).eps)).mean())


def brier(y: Any, probability: Any) -> float:
    """Mean over songs and classes of the squared distance between probability and truth."""
    truth, p = _with_probability(y, probability)
    return float(((p - truth) ** 2).mean())


def calibration_error(y: Any, probability: Any, n_bins: int = 15) -> float:
    """Mean distance between how probable classes are said to be and how often songs have them.

    All pairs of song and class are put into bins of equal width by their probability, each bin
    open below and closed above; a bin's distance counts with its share of pairs.
    """
    if n_bins < 1:
        raise ParameterError(f"n_bins={n_bins} is below 1")
    truth, p = _with_probability(y, probability)
    bin_of = np.digitize(p.ravel(), np.arange(1, n_bins) / n_bins, right=True)
    distance = np.bincount(bin_of, weights=(p - truth).ravel())  # times the pairs in the bin
    return float(np.abs(distance).sum() / truth.size)


def _indicator(y: Any) -> Ints:
    array = np.asarray(y)
    if array.ndim != 2:
        raise ParameterError(f"an indicator has shape (n_songs, n_classes), not {array.shape}")
    if array.size == 0:
        raise SongError("no songs, or no classes")
    bad = ~((array == 0) | (array == 1)).all(axis=1)
    if bad.any():
        raise SongError(f"row {int(np.argmax(bad))} of an indicator holds neither 0 nor 1")
    return array.astype(np.int64)


def _with_prediction(y: Any, prediction: Any) -> tuple[Ints, Ints]:
    truth, said = _indicator(y), _indicator(prediction)
    if truth.shape != said.shape:
        raise ParameterError(f"labels have shape {truth.shape}, predictions {said.shape}")
    return truth, said


def _with_probability(y: Any, probability: Any) -> tuple[Ints, Floats]:
    truth, p = _indicator(y), np.asarray(probability, dtype=np.float64)
    if p.shape != truth.shape:
        raise ParameterError(f"labels have shape {truth.shape}, probabilities {p.shape}")
    wrong = ~((p >= 0) & (p <= 1)).all(axis=1)  # NaN is neither
    if wrong.any():
        raise ParameterError(f"row {int(np.argmax(wrong))} holds something that is no probability")
    return truth, p
