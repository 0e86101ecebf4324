"""How far log scores may be believed: temperatures, and weights of a mix.

Conventions
-----------
Log scores have shape (n_songs, n_classes) and are defined up to a constant per song; ``y`` holds
class indices. The inverse temperature multiplies them before the softmax, so it never changes
which class is highest.

References
----------
C. Guo, G. Pleiss, Y. Sun and K. Weinberger, "On calibration of modern neural networks", ICML 2017.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_RANGE = 10.0
"""The log of the inverse temperature is sought within plus and minus this."""


def negative_log_likelihood(log_scores: Floats, y: Ints) -> float:
    """Mean of -log P(true class), in nats per song."""
    log_p = log_softmax(log_scores, axis=1)
    return float(-log_p[np.arange(len(y)), y].mean())


def fit_inverse_temperature(log_scores: Floats, y: Ints) -> float:
    """Inverse temperature that makes the labels likeliest.

    A standard normal prior on its logarithm, worth one song, keeps it finite where the scores
    are right on every song.

    Parameters
    ----------
    log_scores : ndarray of shape (n_songs, n_classes)
        Of songs on which the scores were not fitted.
    y : ndarray of int, shape (n_songs,)
        Class indices.

    Returns
    -------
    float
        Above 0; 1 if there is no song or only one class.
    """
    if len(y) == 0 or log_scores.shape[1] < 2:
        return 1.0

    def cost(log_beta: float) -> float:
        nll = negative_log_likelihood(np.exp(log_beta) * log_scores, y)
        return len(y) * nll + 0.5 * log_beta**2

    found = minimize_scalar(cost, bounds=(-_RANGE, _RANGE), method="bounded")
    return float(np.exp(found.x))


def fit_mixture_weights(parts: Floats, y: Ints, around: Floats) -> tuple[Floats, float]:
    """Weights of a log-linear mix that make the labels likeliest.

    The loss is convex in the weights, which are at least 0. A standard normal prior around
    `around`, worth one song, keeps them finite where everything is right.

    Parameters
    ----------
    parts : ndarray of shape (n_parts, n_songs, n_classes)
        Log scores of songs that the parts had not seen.
    y : ndarray of int, shape (n_songs,)
        Class indices.
    around : ndarray of shape (n_parts,)
        Where the weights are without evidence.

    Returns
    -------
    weights : ndarray of shape (n_parts,)
    loss : float
        Negative log likelihood per song, in nats, prior included.
    """
    songs = np.arange(len(y))
    # A constant per song says nothing, and would only blur the sums.
    parts = parts - parts.mean(axis=2, keepdims=True)
    # The search goes in units in which all parts spread alike; the prior stays where it was.
    spread = parts.std(axis=(1, 2))
    unit = 1 / np.where(spread > 0, spread, 1.0)
    scaled = parts * unit[:, None, None]

    def cost(steps: Floats) -> tuple[float, Floats]:
        log_p = log_softmax(np.tensordot(steps, scaled, axes=1), axis=1)
        surplus = np.exp(log_p)
        surplus[songs, y] -= 1
        slope = np.tensordot(scaled, surplus, axes=([1, 2], [0, 1]))
        off = steps * unit - around
        loss = -log_p[songs, y].sum() + 0.5 * off @ off
        return loss / len(y), (slope + unit * off) / len(y)

    bounds = [(0, None)] * len(parts)
    found = minimize(cost, around / unit, jac=True, method="L-BFGS-B", bounds=bounds)
    return np.asarray(found.x * unit), float(found.fun)
