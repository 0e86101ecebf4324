"""From probabilities to decisions that may be withheld or plural.

Conventions
-----------
Probabilities have shape (n_songs, n_classes); rows sum to 1 where songs have one label each. A
song's *doubt* is 1 less the probability of its true class, by a model that had not seen it; with
several labels per song, 1 less the lowest probability among them, and 0 if it has none.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from seqagg.errors import ParameterError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_SHRINKAGE = 10.0
"""Songs with and without a class that it takes for its threshold to go half the way from 0.5."""


def abstain(labels: Array, probability: Floats, below: float) -> Array:
    """Replace labels by None where even the likeliest class is less probable than `below`.

    Returns
    -------
    ndarray of object, shape (n_songs,)
    """
    if not 0 <= below <= 1:
        raise ParameterError(f"abstain_below={below!r} is not in [0, 1]")
    decided = labels.astype(object)
    decided[probability.max(axis=1) < below] = None
    return np.asarray(decided)


def best_thresholds(log_odds: Floats, y: Ints) -> Floats:
    """Probability from which on each class is predicted, for the highest F1 of the class.

    The threshold that would have given the highest F1 stands half-way between two songs, in
    log-odds. A class with few songs may owe it to one of them: it is drawn towards 0.5, as if ten
    songs had asked for that.

    Parameters
    ----------
    log_odds : ndarray of shape (n_songs, n_classes)
        Calibrated, of songs held out.
    y : ndarray of int, shape (n_songs, n_classes)
        Indicator.

    Returns
    -------
    ndarray of shape (n_classes,)
        0.5 for a class that is on every song or on none.
    """
    n_with = y.sum(axis=0)
    n_least = np.minimum(n_with, len(y) - n_with)
    cuts = [_best_cut(log_odds[:, k], y[:, k]) if n_least[k] else 0.0 for k in range(y.shape[1])]
    return np.asarray(expit(np.array(cuts) * n_least / (n_least + _SHRINKAGE)))


def _best_cut(log_odds: Floats, y: Ints) -> float:
    """Log-odds from which on a class is predicted for the highest F1; of equals, nearest to 0."""
    order = np.argsort(-log_odds, kind="stable")
    falling = log_odds[order]
    f1 = 2 * np.cumsum(y[order]) / (np.arange(1, len(y) + 1) + y.sum())
    cuts = np.append((falling[:-1] + falling[1:]) / 2, falling[-1])
    possible = np.append(falling[:-1] > falling[1:], True)  # equal songs are answered alike
    best = cuts[possible & (f1 >= f1[possible].max())]
    return float(best[np.abs(best).argmin()])


def doubts_of(log_odds: Floats, y: Ints) -> Floats:
    """Doubt of songs with several labels, from the log-odds of all classes, shape (n_songs,)."""
    return np.asarray(1 - np.where(y == 1, expit(log_odds), 1.0).min(axis=1))


def doubt_limit(doubts: Floats, error_rate: float) -> float:
    """Doubt that at most a share `error_rate` of new songs exceeds.

    Split-conformal [1]_: of n held-out songs and the new one, exchangeable, the new one's doubt
    is among the ``ceil((n + 1) (1 - error_rate))`` smallest with at least that probability.

    Parameters
    ----------
    doubts : ndarray of shape (n_songs,)
        Of songs held out.
    error_rate : float
        In (0, 1).

    Returns
    -------
    float
        Infinite if there are too few songs to promise so little error.

    References
    ----------
    .. [1] J. Lei, M. G'Sell, A. Rinaldo, R. Tibshirani and L. Wasserman, "Distribution-free
       predictive inference for regression", JASA 113(523), 2018, theorem 2.2.
    """
    if not 0 < error_rate < 1:
        raise ParameterError(f"error_rate={error_rate!r} is not between 0 and 1")
    rank = math.ceil((len(doubts) + 1) * (1 - error_rate))
    return math.inf if rank > len(doubts) else float(np.sort(doubts)[rank - 1])


def label_sets(
    probability: Floats, limit: float, *, never_empty: bool = True
) -> npt.NDArray[np.bool_]:
    """Classes of each song whose doubt is within the limit.

    Parameters
    ----------
    probability : ndarray of shape (n_songs, n_classes)
    limit : float
        Largest doubt.
    never_empty : bool
        Whether the likeliest class always is in the set.

    Returns
    -------
    ndarray of bool, shape (n_songs, n_classes)
    """
    sets = 1 - probability <= limit
    if never_empty:
        sets[np.arange(len(sets)), probability.argmax(axis=1)] = True
    return sets
