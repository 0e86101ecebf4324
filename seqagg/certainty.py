"""Probabilities beside the log scores that make them, where no temperature alone is right.

Conventions
-----------
Scores are log scores of songs with one label each, shape (n_songs, n_classes), up to a constant per
song; ``y`` of shape (n_songs,) holds class indices. What is fitted here leaves the order of a
song's classes as it is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from seqagg.calibration import fit_inverse_temperature, fit_mixture_weights
from seqagg.errors import ModelFileError
from seqagg.kernels.scores import log_softmax

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LEAST_WEIGHT = -1.9
"""Two probabilities differ by at most half of what their logarithms do (tanh(d / 2) <= d / 2), so
that from -2 times on, beside these, they leave the order of classes as it is."""

_LEAST_OWN = 1e-3
"""No probability is weighed as if its logarithm said less than this."""

_LARGEST = 1e9
"""No part of a certainty is larger in a file."""


class Certainty(NamedTuple):
    """``before * s + own * softmax(sure * s)`` for scores s.

    Logarithms keep apart what is all but ruled out, probabilities what is nearly certain.
    """

    before: float = 1.0
    own: float = 0.0
    sure: float = 1.0

    def of(self, scores: Floats) -> Floats:
        """Scores, and what stands beside them."""
        if self.own == 0:
            return scores
        return np.asarray(self.before * scores + self.own * np.exp(log_softmax(self.sure * scores)))

    def in_words(self) -> str:
        """What it adds to the words for the scores; nothing if it adds nothing to them."""
        if self.own == 0:
            return ""
        return f", and beside it {self.own / self.before:.3g} of the probability that it makes"


AS_IT_IS = Certainty()


def fit_certainty(scores: Floats, y: Ints) -> Certainty:
    """Certainty that makes the labels likeliest.

    The best temperature of the scores is the same with and without it, so that folds with one and
    folds without can be mixed. The prior is that of `fit_mixture_weights`.

    Parameters
    ----------
    scores : ndarray of shape (n_songs, n_classes)
    y : ndarray of int, shape (n_songs,)

    Returns
    -------
    Certainty
        `AS_IT_IS` where scores or probabilities would have to count against a class.
    """
    sure = fit_inverse_temperature(scores, y)
    parts = np.stack([scores, np.exp(log_softmax(sure * scores))])
    of_scores, of_probability = fit_mixture_weights(parts, y, around=np.array([1.0, 0.0]))[0]
    if min(of_scores, of_probability) <= 0:
        return AS_IT_IS
    return Certainty(float(of_scores / sure), float(of_probability / sure), sure)


def fit_certainty_of_votes(log_shares: Floats, y: Ints) -> Certainty:
    """Certainty of log shares of votes that makes the labels likeliest; `before` is 1.

    The logarithm of a vote or two among many is as far down as chance has it, so the probabilities
    may count against a class too, from `LEAST_WEIGHT` on. The prior is that of
    `fit_mixture_weights`.

    Parameters
    ----------
    log_shares : ndarray of shape (n_songs, n_classes)
    y : ndarray of int, shape (n_songs,)
    """
    if len(y) == 0 or log_shares.shape[1] < 2:
        return AS_IT_IS
    power = fit_inverse_temperature(log_shares, y)
    log_p = log_softmax(power * log_shares)
    p = np.exp(log_p)
    # No mix of these two, each at least 0 times, turns the order of two classes round.
    parts = np.stack([log_p + LEAST_WEIGHT * p, p])
    (own, more), _ = fit_mixture_weights(parts, y, around=np.array([1.0, -LEAST_WEIGHT]))
    return Certainty(1.0, float(more / max(own, _LEAST_OWN) + LEAST_WEIGHT) / power, power)


def read_certainty(array: npt.NDArray[Any]) -> Certainty:
    """Take what `fit_certainty` gave back out of an array of a model file.

    Raises
    ------
    ModelFileError
        Where it turns the order of classes round, or is none.
    """
    if array.shape != (3,) or array.dtype.kind != "f":
        raise ModelFileError(f"a certainty is {array.dtype} of shape {array.shape}, not (3,)")
    found = Certainty(*map(float, array))
    if not all(0 < part <= _LARGEST for part in found):
        raise ModelFileError(f"a certainty is {', '.join(f'{part:g}' for part in found)}")
    return found
