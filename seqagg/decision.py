"""From probabilities to decisions that may be withheld, plural or early.

Conventions
-----------
Probabilities have shape (n_songs, n_classes); rows sum to 1 where songs have one label each. A
song's *doubt* is 1 less the probability of its true class, by a model that had not seen it; with
several labels per song, 1 less the lowest probability among them, and 0 if it has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from seqagg.errors import ParameterError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_LEVELS = expit(np.arange(6.0, -1, -1))
"""Beliefs at which early decisions are considered, 0.9975 to 0.5: every nat of log-odds."""

_LEAST_FRAMES = (243, 81, 27, 9, 3, 1)
"""Frames before which there is none. Few, as every rule that is considered costs songs."""

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
        Between 0 and 1; 0.5 for a class that is on every song or on none.
    """
    n_with = y.sum(axis=0)
    n_least = np.minimum(n_with, len(y) - n_with)
    cuts = [_best_cut(log_odds[:, k], y[:, k]) if n_least[k] else 0.0 for k in range(y.shape[1])]
    thresholds = expit(np.array(cuts) * n_least / (n_least + _SHRINKAGE))
    # A cut far out would be rounded to a certainty.
    least, most = np.finfo(np.float64).tiny, 1 - np.finfo(np.float64).epsneg
    return np.asarray(np.clip(thresholds, least, most))


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


class EarlyRule(NamedTuple):
    """When a song is decided while it plays.

    It is at the first frame, from `min_frames` on, after which the likeliest class is at least as
    probable as `threshold`; if that is infinite, never.
    """

    threshold: float = math.inf
    min_frames: int = 1


NEVER = EarlyRule()


def early_rule(
    beliefs: Sequence[npt.ArrayLike],
    right: Sequence[npt.ArrayLike],
    error_rate: float,
    *,
    confidence: float = 0.9,
) -> EarlyRule:
    """Soonest rule to decide songs while they play that keeps to an error rate.

    Of songs that are decided by it, the share that are decided wrongly is at most `error_rate`; the
    promise holds with probability `confidence` over the draw of the songs given here, if new
    songs are drawn as they were, and none of them was used in fitting. (Songs that go together,
    such as those of one artist, are no independent draws: give one of each.)

    Rules are tested from the latest and surest down, each by an exact binomial test [1]_. A rule
    that passes hands its part of ``1 - confidence`` on to the next one, one that fails loses it
    [2]_, so that all that pass are safe together. Of these it is the one by which songs are
    decided soonest on average. Beliefs alone would not do: that after a single frame is often as
    firm as that after a hundred, and less often right.

    Parameters
    ----------
    beliefs : sequence of n_songs array-likes of shape (n_frames_i,)
        Probability of the likeliest class after each frame of each song.
    right : sequence of n_songs array-likes of bool, shape (n_frames_i,)
        Whether that class is the song's label.
    error_rate : float
        In (0, 1).
    confidence : float
        In (0, 1).

    Returns
    -------
    EarlyRule
        One that never decides, if there are too few songs to promise so little error.

    References
    ----------
    .. [1] A. Angelopoulos, S. Bates, E. Candes, M. Jordan and L. Lei, "Learn then test:
       calibrating predictive algorithms to achieve risk control", Annals of Applied Statistics
       19(2), 2025.
    .. [2] B. Wiens, "A fixed sequence Bonferroni procedure for testing multiple endpoints",
       Pharmaceutical Statistics 2(3), 2003.
    """
    from scipy.stats import binom

    for name, value in (("error_rate", error_rate), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ParameterError(f"{name}={value!r} is not between 0 and 1")
    rules = [EarlyRule(float(level), n) for n in _LEAST_FRAMES for level in _LEVELS]
    prefixes, is_right = _Prefixes(beliefs), _flat(right)
    at_stake, best, soonest = 0.0, NEVER, math.inf
    for rule in rules:
        at_stake += (1 - confidence) / len(rules)
        decided = prefixes.first(rule)
        n_wrong = np.count_nonzero(is_right[decided] == 0)
        if binom.cdf(n_wrong, len(decided), error_rate) > at_stake:
            at_stake = 0.0
            continue
        heard = prefixes.share[decided].sum() + len(beliefs) - len(decided)
        if heard < soonest:
            best, soonest = rule, heard
    return best


def early_decisions(beliefs: Sequence[npt.ArrayLike], rule: EarlyRule) -> dict[int, int]:
    """Songs that are decided while they play -> the frame after which they are, from 0."""
    prefixes = _Prefixes(beliefs)
    decided = prefixes.first(rule)
    songs, frames = prefixes.song[decided], prefixes.n_frames[decided] - 1
    return dict(zip(songs.tolist(), frames.tolist(), strict=True))


class _Prefixes:
    """All prefixes of some songs behind each other: belief, song, frames, share of the song."""

    def __init__(self, beliefs: Sequence[npt.ArrayLike]) -> None:
        lengths = np.array([np.size(belief) for belief in beliefs], dtype=np.int64)
        starts = np.cumsum(lengths) - lengths
        self.belief = _flat(beliefs)
        self.song = np.repeat(np.arange(len(lengths)), lengths)
        self.n_frames = np.arange(len(self.song)) - starts[self.song] + 1
        self.share = self.n_frames / lengths[self.song]

    def first(self, rule: EarlyRule) -> Ints:
        """Places of the prefixes at which songs are decided."""
        passed = np.flatnonzero(
            (self.belief >= rule.threshold) & (self.n_frames >= rule.min_frames)
        )
        return passed[np.unique(self.song[passed], return_index=True)[1]]


def _flat(parts: Sequence[npt.ArrayLike]) -> Floats:
    return np.concatenate([np.empty(0), *(np.ravel(part) for part in parts)])
