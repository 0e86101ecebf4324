"""Averaging as a start: the scores that learnt methods correct.

Conventions
-----------
Arrays over columns are in the canonical order. Where columns are classes, the start is a mix of
the two averages that people use, mean log-odds and log mean probability: which of them is right
more often differs from one frame classifier to the next, and the mix is hardly ever worse than
either. It lies halfway between the mix that suits the training songs and equal shares, because
what suits those is not quite what suits songs of another speaker or band. Where the training songs
are likelier by more than a standard error, the probabilities that the mix makes stand beside it,
which leaves the order of classes as it is. Where columns are not classes (a tagger's 50 tags for 10
genres) the start is a multinomial logistic regression on the mean log-odds, or, for songs with
several labels each, a binary one for every class.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from seqagg.averages import Averages, WholeSongs
from seqagg.calibration import (
    about_equal,
    calibrated_losses,
    fit_calibration,
    fit_inverse_temperature,
    fit_mixture_weights,
    prior_scores,
    smoothed_prior,
)
from seqagg.certainty import AS_IT_IS, Certainty, fit_certainty, read_certainty
from seqagg.errors import ModelFileError
from seqagg.songs import Songs

_RIDGE = 0.1
"""scikit-learn's C for columns of unit variance."""

LEAST_PROBABILITY = 1e-30
"""Mean probabilities below count as this, so that float32 holds them."""

CLIP = 8.0
"""Standardized log-odds beyond this say no more than this to networks."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class AverageStart:
    """Class scores ``mean log-odds @ weight + bias + share * log mean probability``.

    What they are in the end says the certainty.
    """

    weight: Floats  # (n_columns, n_classes)
    bias: Floats  # (n_classes,)
    share: float = 0.0  # above 0 only where columns are classes
    certainty: Certainty = AS_IT_IS  # another only where the share is above 0

    def __str__(self) -> str:
        if self.share == 0:
            return "the average is of log-odds"
        return (
            f"the average is {1 - self.share:.3g} mean log-odds + {self.share:.3g} log mean "
            f"probability{self.certainty.in_words()}"
        )

    def state(self) -> dict[str, Floats]:
        """Arrays that a model file keeps of it."""
        certain = self.certainty != AS_IT_IS
        return {
            "start_weight": self.weight,
            "start_bias": self.bias,
            "start_share": np.array(self.share),
        } | ({"start_certainty": np.array(self.certainty)} if certain else {})

    @staticmethod
    def shapes(
        n_columns: int, n_classes: int, arrays: Mapping[str, Floats]
    ) -> dict[str, tuple[int, ...]]:
        """Shapes that the arrays of `state` must have, by those that are there."""
        return {
            "start_weight": (n_columns, n_classes),
            "start_bias": (n_classes,),
            "start_share": (),
        } | ({"start_certainty": (3,)} if "start_certainty" in arrays else {})

    @classmethod
    def of_state(cls, arrays: Mapping[str, Floats]) -> AverageStart:
        """Take back what `state` gave, its shapes checked."""
        share = float(arrays["start_share"])
        if not 0 <= share <= 1:
            raise ModelFileError(f"start_share is {share}")
        certainty = AS_IT_IS
        if "start_certainty" in arrays:
            certainty = read_certainty(arrays["start_certainty"])
            if share == 0:
                raise ModelFileError("a certainty goes with a share of the mean probability")
        return cls(arrays["start_weight"], arrays["start_bias"], share, certainty)

    def scores(self, songs: Songs) -> Floats:
        """Scores of each song and class, shape (n_songs, n_classes)."""
        return self.scores_of(WholeSongs(songs))

    @property
    def averages(self) -> tuple[str, ...]:
        """Names of the averages that the scores are made of."""
        return ("log_odds",) if self.share == 0 else ("log_odds", "probability")

    def scores_of(self, averages: Averages) -> Floats:
        """Scores from the averages of songs, whole or still playing."""
        scores = np.asarray(averages["log_odds"] @ self.weight + self.bias)
        if self.share != 0:
            scores = scores + self.share * log_mean_probability(averages)
        return self.certainty.of(scores)


def identity_start(n_classes: int) -> AverageStart:
    """Mean log-odds of the columns, which are the classes."""
    return AverageStart(np.eye(n_classes), np.zeros(n_classes))


def log_mean_probability(averages: Averages) -> Floats:
    """Logarithm of each column's mean probability, shape (n_songs, n_columns)."""
    return np.asarray(np.log(np.maximum(averages["probability"], LEAST_PROBABILITY)))


def make_start(
    averages: Averages, y: Ints, n_classes: int, columns_are_classes: bool
) -> AverageStart:
    """Start for training songs of these averages, by what their columns are."""
    return mix_averages(averages, y) if columns_are_classes else fit_start(averages, y, n_classes)


def mix_averages(averages: Averages, y: Ints) -> AverageStart:
    """Mix of the two averages, halfway from the likeliest to equal shares; its weights sum to 1.

    Shares are equal where each average is to be believed as much as it would be alone. With several
    labels per song it is the mean log-odds alone.
    """
    plain = identity_start(averages["log_odds"].shape[1])
    if y.ndim == 2:
        return plain
    parts = np.stack([plain.scores_of(averages), log_mean_probability(averages)])
    likeliest = fit_mixture_weights(parts, y, around=np.array([1.0, 0.0]))[0]
    # Averages that mislead altogether get no weight, and are then as good as each other.
    if likeliest.sum() <= 0:
        return plain
    alone = np.array([fit_inverse_temperature(part, y) for part in parts])
    log_odds, probability = likeliest + alone / 2
    total = log_odds + probability
    mix = replace(plain, weight=plain.weight * log_odds / total, share=float(probability / total))
    scores = mix.scores_of(averages)
    certainty = fit_certainty(scores, y)
    losses = calibrated_losses(scores, y), calibrated_losses(certainty.of(scores), y)
    # Told by the songs it was fitted to, each by itself: what comes of it, temperatures and weights
    # of a mix, is told by songs held out, so that one too many costs little.
    kept = about_equal(*losses, groups=np.arange(len(y)))
    return mix if kept else replace(mix, certainty=certainty)


def make_linear_start(
    songs: Songs, y: Ints, n_classes: int, columns_are_classes: bool
) -> AverageStart:
    """Start that is linear in the mean log-odds: these alone, where columns are classes."""
    if columns_are_classes:
        return identity_start(n_classes)
    return fit_start(WholeSongs(songs), y, n_classes)


def calibrate(start: AverageStart, songs: Songs, y: Ints) -> tuple[AverageStart, float]:
    """Start, and the inverse temperature that makes its scores probabilities.

    The biases of songs with several labels each go into the start.
    """
    beta, bias = fit_calibration(start.scores(songs), y)
    return (start, beta) if y.ndim == 1 else (replace(start, bias=start.bias + bias / beta), beta)


def center_and_spread(songs: Songs) -> tuple[Floats, Floats]:
    """Mean and deviation of each column over all frames, shape (n_columns,) each."""
    values = songs.values.astype(np.float64)
    return values.mean(axis=0), np.maximum(values.std(axis=0), 1e-3)


def fit_start(averages: Averages, y: Ints, n_classes: int) -> AverageStart:
    """Start of songs whose columns are not the classes, learnt from their means."""
    mean = averages["log_odds"]
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

    if features.shape[1] > len(features):
        # The weights are sums of songs, so they are sought among those: there are fewer.
        u, size, basis = np.linalg.svd(features, full_matrices=False)
        found = fit_logistic(u * size, y, n_classes, ridge)
        return replace(found, weight=basis.T @ found.weight)
    if y.ndim == 2:
        return _fit_binary(features, y, ridge)
    present = np.unique(y)
    weight = np.zeros((features.shape[1], n_classes))
    bias = np.full(n_classes, -np.log(len(y) + 1.0))
    if len(present) == 1:
        bias[present] = 0.0
        return AverageStart(weight, bias)
    with warnings.catch_warnings():
        # Half as many classes as songs are many, but classes they are.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
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
