"""Averaging as a start: the linear scores that learnt methods correct.

Conventions
-----------
Scores are linear in a song's mean log-odds, shape (n_songs, n_columns), in the canonical order.
Where columns are classes the map is the identity, and nothing is learnt. Where they are not (a
tagger's 50 tags for 10 genres) it is a multinomial logistic regression on the mean, or, for songs
with several labels each, a binary one for every class.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from seqagg.calibration import fit_calibration, prior_scores, smoothed_prior
from seqagg.kernels.segments import segment_mean
from seqagg.songs import Songs

_RIDGE = 0.1
"""scikit-learn's C for columns of unit variance."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class AverageStart:
    """Class scores ``mean log-odds @ weight + bias``."""

    weight: Floats  # (n_columns, n_classes)
    bias: Floats  # (n_classes,)

    def scores(self, songs: Songs) -> Floats:
        """Scores of each song and class, shape (n_songs, n_classes)."""
        return segment_mean(songs.values, songs.offsets) @ self.weight + self.bias


def identity_start(n_classes: int) -> AverageStart:
    """Start of songs whose columns are the classes."""
    return AverageStart(np.eye(n_classes), np.zeros(n_classes))


def make_start(songs: Songs, y: Ints, n_classes: int, columns_are_classes: bool) -> AverageStart:
    """Start for these training songs, by what their columns are."""
    return identity_start(n_classes) if columns_are_classes else fit_start(songs, y, n_classes)


def make_calibrated_start(
    songs: Songs, y: Ints, n_classes: int, columns_are_classes: bool
) -> tuple[AverageStart, float]:
    """Start, and the inverse temperature that makes its scores probabilities.

    The biases of songs with several labels each go into the start.
    """
    start = make_start(songs, y, n_classes, columns_are_classes)
    beta, bias = fit_calibration(start.scores(songs), y)
    return (start, beta) if y.ndim == 1 else (replace(start, bias=start.bias + bias / beta), beta)


def center_and_spread(songs: Songs) -> tuple[Floats, Floats]:
    """Mean and deviation of each column over all frames, shape (n_columns,) each."""
    values = songs.values.astype(np.float64)
    return values.mean(axis=0), np.maximum(values.std(axis=0), 1e-3)


def fit_start(songs: Songs, y: Ints, n_classes: int) -> AverageStart:
    """Start of songs whose columns are not the classes, learnt from their means."""
    mean = segment_mean(songs.values, songs.offsets)
    center = mean.mean(axis=0)
    spread = np.maximum(mean.std(axis=0), 1e-6)
    found = fit_logistic((mean - center) / spread, y, n_classes, _RIDGE)
    weight = found.weight / spread[:, None]
    return AverageStart(weight, found.bias - center @ weight)


def fit_logistic(features: Floats, y: Ints, n_classes: int, ridge: float) -> AverageStart:
    """Logistic regression as a linear map: multinomial, or for an indicator one per class.

    Parameters
    ----------
    features : ndarray of shape (n_songs, n_features)
        Columns of unit variance.
    y : ndarray of int, shape (n_songs,) or (n_songs, n_classes)
    n_classes : int
        Classes without a song get no weight, and the lowest bias; of an indicator, so do those
        with all songs, and the bias of both is their smoothed share in log-odds.
    ridge : float
        scikit-learn's C, the inverse strength.
    """
    from sklearn.linear_model import LogisticRegression

    if y.ndim == 2:
        return _fit_binary(features, y, ridge)
    present = np.unique(y)
    weight = np.zeros((features.shape[1], n_classes))
    bias = np.full(n_classes, -np.log(len(y) + 1.0))
    if len(present) == 1:
        bias[present] = 0.0
        return AverageStart(weight, bias)
    model = LogisticRegression(C=ridge, max_iter=5000, tol=1e-4).fit(features, y)
    coef, intercept = model.coef_, model.intercept_
    if len(present) == 2:  # scikit-learn keeps the second class alone
        coef = np.vstack([np.zeros_like(coef), coef])
        intercept = np.array([0.0, intercept[0]])
    weight[:, present] = coef.T
    bias += intercept.min()
    bias[present] = intercept
    return AverageStart(weight, bias)


def _fit_binary(features: Floats, y: Ints, ridge: float) -> AverageStart:
    """One binary logistic regression per class."""
    from sklearn.linear_model import LogisticRegression

    weight = np.zeros((features.shape[1], y.shape[1]))
    bias = prior_scores(smoothed_prior(y, y.shape[1]), multilabel=True)
    for k in mixed_classes(y):
        model = LogisticRegression(C=ridge, max_iter=5000, tol=1e-4).fit(features, y[:, k])
        weight[:, k], bias[k] = model.coef_[0], model.intercept_[0]
    return AverageStart(weight, bias)


def mixed_classes(y: Ints) -> Ints:
    """Classes of an indicator that some songs have and others do not."""
    return np.flatnonzero(y.min(axis=0) < y.max(axis=0))
