"""From probabilities to decisions that may be withheld or plural.

Conventions
-----------
Probabilities have shape (n_songs, n_classes), rows sum to 1. A song's *doubt* is 1 less the
probability of its true class, by a model that had not seen it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from seqagg.errors import ParameterError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


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


def label_sets(probability: Floats, limit: float) -> npt.NDArray[np.bool_]:
    """Classes of each song whose doubt is within the limit; the likeliest always is.

    Returns
    -------
    ndarray of bool, shape (n_songs, n_classes)
    """
    sets = 1 - probability <= limit
    sets[np.arange(len(sets)), probability.argmax(axis=1)] = True
    return sets
