"""Averaging: the rules that people write by hand, and what every other method must beat.

Conventions
-----------
Averages run over the frames of a song (axis 0 of its array), never over columns. All classes keep
their column, whether or not a frame voted for them. Where songs have several labels each, a column
is averaged by itself and compared with no other.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from scipy.special import expit, log_expit

from seqagg.aggregators.base import Aggregator, Floats, OnEmpty
from seqagg.kernels.segments import (
    segment_mean,
    segment_mean_log_odds,
    segment_mean_probability,
    segment_sum,
    segment_votes,
)
from seqagg.logodds import PROBABILITY_MARGIN
from seqagg.songs import Songs


class _Average(Aggregator):
    """Rules without a parameter to learn: a column's frames are averaged, the highest wins."""

    ignores_order: ClassVar[bool] = True
    needs_class_columns: ClassVar[bool] = True

    def __init__(self, *, on_empty: OnEmpty = "error") -> None:
        self.on_empty = on_empty

    def _converted(self, songs: Songs) -> Songs:
        # Probabilities stay: their sums need no log, and one log does for the odds of many frames.
        return songs if songs.kind == "probability" else songs.log_odds()

    def _canonical(self, songs: Songs) -> Songs:
        # It is cheaper to put the averages in order than all frames.
        return songs

    def _mean_log_odds(self, songs: Songs) -> Floats:
        """Shape (n_songs, n_columns) as what follows, columns in the canonical order."""
        mean = segment_mean_log_odds if songs.kind == "probability" else segment_mean
        return mean(songs.values, songs.offsets)[:, self._column_order]

    def _mean_probability(self, songs: Songs) -> Floats:
        if songs.kind == "probability":
            clipped = np.clip(songs.values, PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN)
            mean = segment_mean(clipped, songs.offsets)
        else:
            mean = segment_mean_probability(songs.values, songs.offsets)
        return mean[:, self._column_order]

    def _mean_improbability(self, songs: Songs) -> Floats:
        """Mean of 1 - p, with all its digits."""
        if songs.kind == "probability":
            return 1 - self._mean_probability(songs)
        return self._mean_probability(songs._with(values=-songs.values))

    def _votes(self, songs: Songs) -> Floats:
        """Frames whose highest column it is."""
        return segment_votes(songs.values, songs.offsets)[:, self._column_order]

    def _approvals(self, songs: Songs) -> Floats:
        """Frames in which its probability is at least 0.5."""
        even = 0.5 if songs.kind == "probability" else 0.0
        likely = (songs.values >= even).astype(np.float32)
        return segment_sum(likely, songs.offsets)[:, self._column_order]


class MajorityVote(_Average):
    """Let every frame vote for its highest column; the most votes win.

    Where songs have several labels each, a frame votes for all columns whose probability is at
    least 0.5, and a class's share of votes is its own.

    Equal votes are decided by the mean probability. For its probabilities the votes are
    smoothed by one more vote, shared out as the mean probability shares it, so that a class
    without a vote is unlikely but not impossible.

    Parameters
    ----------
    on_empty : {"error", "prior"}
        What a song without a single frame gets: an error that names it, or the class prior.

    Examples
    --------
    >>> songs = [[[2.0, -2.0], [-1.0, 1.0], [-0.5, 0.5]], [[0.5, -0.5]]]
    >>> MajorityVote().fit(songs, ["jig", "reel"]).predict(songs)
    array(['reel', 'jig'], dtype='<U4')
    """

    def _decision(self, songs: Songs) -> Floats:
        if self.multilabel_:
            return np.asarray(self._approvals(songs) / songs.lengths[:, None])
        return np.asarray(self._votes(songs) / songs.lengths[:, None])

    def _log_scores(self, songs: Songs) -> Floats:
        if self.multilabel_:
            votes = self._approvals(songs)
            p, q = self._mean_probability(songs), self._mean_improbability(songs)
            return _log(votes + p) - _log(songs.lengths[:, None] - votes + q)
        votes = self._votes(songs)
        mean = self._mean_probability(songs)
        # The mean is below 1, so with the smallest gap between votes it orders equal votes and
        # never unequal ones. The gap is 1 unless frames were divided.
        gaps = np.diff(np.sort(votes, axis=1), axis=1, append=np.inf)
        gap = np.where(gaps > 1e-9, gaps, 1.0).min(axis=1, keepdims=True).clip(max=1.0)
        return np.asarray(_log(votes + gap * mean) - np.log(songs.lengths + 1.0)[:, None])


class MeanProbability(_Average):
    """Average a song's frames in probability.

    The sum rule of [1]_: robust, since no single frame can weigh more than any other.

    Parameters
    ----------
    on_empty : {"error", "prior"}
        What a song without a single frame gets: an error that names it, or the class prior.

    References
    ----------
    .. [1] J. Kittler, M. Hatef, R. Duin and J. Matas, "On combining classifiers",
       IEEE TPAMI 20(3), 1998, section 3.

    Examples
    --------
    >>> songs = [[[2.0, -2.0], [-1.0, 1.0]], [[-0.5, 0.5]]]
    >>> MeanProbability().fit(songs, ["jig", "reel"]).predict(songs)
    array(['jig', 'reel'], dtype='<U4')
    """

    def _decision(self, songs: Songs) -> Floats:
        return self._mean_probability(songs)

    def _log_scores(self, songs: Songs) -> Floats:
        if self.multilabel_:
            return _log(self._mean_probability(songs)) - _log(self._mean_improbability(songs))
        return _log(self._mean_probability(songs))


class MeanLogOdds(_Average):
    """Average a song's frames in log-odds, then ask which class is likeliest.

    Frames that are sure count for more than under the mean of probabilities. Were frames
    independent given the class, the sum of their log-odds would be the product rule of [1]_. They
    are not, so the mean is taken: it leaves a song as sure as its typical frame.

    Parameters
    ----------
    on_empty : {"error", "prior"}
        What a song without a single frame gets: an error that names it, or the class prior.

    References
    ----------
    .. [1] J. Kittler, M. Hatef, R. Duin and J. Matas, "On combining classifiers",
       IEEE TPAMI 20(3), 1998, section 2.

    Examples
    --------
    >>> songs = [[[2.0, -2.0], [-1.0, 1.0]], [[-0.5, 0.5]]]
    >>> MeanLogOdds().fit(songs, ["jig", "reel"]).predict(songs)
    array(['jig', 'reel'], dtype='<U4')
    """

    def _decision(self, songs: Songs) -> Floats:
        return np.asarray(expit(self._mean_log_odds(songs)))

    def _log_scores(self, songs: Songs) -> Floats:
        if self.multilabel_:
            return self._mean_log_odds(songs)
        # The log keeps apart what the logistic function rounds to 1.
        return np.asarray(log_expit(self._mean_log_odds(songs)))


def _log(share: Floats) -> Floats:
    """Logarithm that stays finite where extreme logits leave a probability of exactly 0."""
    return np.asarray(np.log(np.maximum(share, np.finfo(np.float64).tiny)))
