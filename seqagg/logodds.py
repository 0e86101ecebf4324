"""The one definition of log-odds.

Conventions
-----------
Scores are arrays of shape (..., n_columns). Log-odds are ``log(p / (1 - p))`` of one column in
one frame, in nats; the logistic function takes them back. NaN stays NaN: a missing frame is not
an even bet.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logsumexp

Floats = npt.NDArray[np.floating[Any]]
Kind = Literal["probability", "logit", "log_odds"]
Task = Literal["multiclass", "multilabel"]

PROBABILITY_MARGIN = 2.0**-24
"""Distance from 0 and 1 at which probabilities are clipped: float32's step below 1."""

LIMIT = float(np.log(1 - PROBABILITY_MARGIN) - np.log(PROBABILITY_MARGIN))
"""Log-odds of a clipped probability, 16.64 nats."""


def from_probability(probability: Floats) -> Floats:
    """Log-odds of probabilities, finite at 0 and 1.

    Parameters
    ----------
    probability : ndarray
        Values in [0, 1]; rows need not sum to one.

    Returns
    -------
    ndarray, same shape and dtype
        Between ``-LIMIT`` and ``LIMIT``.
    """
    p = np.asarray(probability, dtype=np.float64)
    p = np.clip(p, PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN)
    return (np.log(p) - np.log1p(-p)).astype(probability.dtype, copy=False)


def from_logits(logits: Floats) -> Floats:
    """Log-odds of the softmax of raw scores, without passing through probabilities.

    Column k has ``z_k - logsumexp(z without k)``. This does not saturate, where a softmax rounds
    to 0 or 1 and loses what it was sure of.

    Parameters
    ----------
    logits : ndarray of shape (..., n_columns), n_columns >= 2
        Raw scores before softmax.

    Returns
    -------
    ndarray, same shape and dtype
        Finite, where logits are.
    """
    z = np.asarray(logits, dtype=np.float64)
    if z.shape[-1] < 2:
        raise ValueError("a softmax over a single column has no log-odds")
    top = np.argmax(z, axis=-1, keepdims=True)
    z = z - np.take_along_axis(z, top, axis=-1)  # else large offsets eat the digits
    log_p = z - logsumexp(z, axis=-1, keepdims=True)
    # log(p / (1 - p)) loses all digits of 1 - p for the largest column alone,
    # so that one is taken against the others directly.
    others = z.copy()
    np.put_along_axis(others, top, -np.inf, axis=-1)
    top_odds = np.take_along_axis(z, top, axis=-1) - logsumexp(others, axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = log_p - np.log1p(-np.exp(log_p))
    np.put_along_axis(odds, top, top_odds, axis=-1)
    finite = np.finfo(logits.dtype)  # a difference may be twice as large
    return np.asarray(np.clip(odds, finite.min, finite.max), dtype=logits.dtype)


def to_log_odds(scores: Floats, kind: Kind, task: Task = "multiclass") -> Floats:
    """Log-odds of frame scores of a declared kind, shape kept.

    Infinite log-odds are what a probability of exactly 0 or 1 gives, and end where those do; but a
    nat beyond whatever else their frame holds.
    """
    if kind == "probability":
        return from_probability(scores)
    if kind == "logit" and task == "multiclass":
        return from_logits(scores)
    return _bounded(scores) if np.isinf(scores).any() else scores


def _bounded(log_odds: Floats) -> Floats:
    """Finite numbers for infinite ones."""
    finite = np.isfinite(log_odds)
    highest = log_odds.max(axis=-1, keepdims=True, where=finite, initial=-np.inf)
    lowest = log_odds.min(axis=-1, keepdims=True, where=finite, initial=np.inf)
    yes, no = np.maximum(highest + 1, LIMIT), np.minimum(lowest - 1, -LIMIT)
    return np.where(finite | np.isnan(log_odds), log_odds, np.where(log_odds > 0, yes, no))


def to_probability(log_odds: Floats) -> Floats:
    """Logistic function, the inverse of the log-odds."""
    return np.asarray(expit(log_odds))
