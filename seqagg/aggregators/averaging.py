"""Averaging: the rules that people write by hand, and what every other method must beat.

Conventions
-----------
Averages run over the frames of a song (axis 0 of its array), never over columns. All classes keep
their column, whether or not a frame voted for them. Where songs have several labels each, a column
is averaged by itself and compared with no other.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from scipy.special import expit

from seqagg.aggregators.base import Aggregator, Array, Floats, Ints, OnEmpty
from seqagg.aggregators.state import check_floats
from seqagg.averages import Averages, RunningAverages, WholeSongs
from seqagg.certainty import AS_IT_IS, LEAST_WEIGHT, Certainty, fit_certainty_of_votes
from seqagg.errors import ModelFileError
from seqagg.kernels.scores import log_expit
from seqagg.songs import Songs
from seqagg.streaming import Memory
from seqagg.threads import check_n_jobs


class _Average(Aggregator):
    """Rules without a parameter to learn: a column's frames are averaged, the highest wins.

    A subclass has `_number`, its own number, and `_rule`, its log scores, both of averages with
    columns in the canonical order; the averages that these ask for stand in `_needed`.
    """

    ignores_order: ClassVar[bool] = True
    needs_class_columns: ClassVar[bool] = True

    _needed: ClassVar[tuple[str, ...]]

    def __init__(self, *, n_jobs: int | None = None, on_empty: OnEmpty = "error") -> None:
        self.n_jobs = n_jobs
        self.on_empty = on_empty

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_n_jobs(self.n_jobs)

    @abstractmethod
    def _number(self, averages: Averages) -> Floats:
        """The rule's own number, shape (n_songs, n_classes)."""

    @abstractmethod
    def _rule(self, averages: Averages) -> Floats:
        """Log scores, shape (n_songs, n_classes)."""

    def _converted(self, songs: Songs) -> Songs:
        # Probabilities stay: their sums need no log, and one log does for the odds of many frames.
        return songs if songs.kind == "probability" else songs.log_odds()

    def _canonical(self, songs: Songs) -> Songs:
        # It is the averages that are put in order.
        return songs

    def _decision(self, songs: Songs) -> Floats:
        return self._number(WholeSongs(songs, self._column_order, self.n_jobs))

    def _log_scores(self, songs: Songs) -> Floats:
        return self._rule(WholeSongs(songs, self._column_order, self.n_jobs))

    def _memory(self, n: int) -> Memory:
        return _Listening(self, n)


class _Listening(RunningAverages):
    """What a rule remembers."""

    def __init__(self, rule: _Average, n: int) -> None:
        super().__init__(n, rule.n_features_in_, rule._needed, rule._column_order)
        self._rule = rule

    def log_scores(self, which: Ints) -> Floats:
        return self._rule._rule(self.averages(which))


class MajorityVote(_Average):
    """Let every frame vote for its highest column; the most votes win.

    Where songs have several labels each, a frame votes for all columns whose probability is at
    least 0.5, and a class's share of votes is its own.

    Equal votes are decided by the mean probability. For its probabilities the votes are
    smoothed by one more vote, shared out as the mean probability shares it, so that a class
    without a vote is unlikely but not impossible. Beside the logarithms of these shares of votes
    stand powers of theirs, with a weight that suits the training songs; this leaves their order.

    Parameters
    ----------
    n_jobs : int or None
        Threads that share many songs, as joblib counts them; -1 is all cores. The answer does not
        depend on it.
    on_empty : {"error", "prior"}
        What a song without a single frame gets: an error that names it, or the class prior.

    Examples
    --------
    >>> songs = [[[2.0, -2.0], [-1.0, 1.0], [-0.5, 0.5]], [[0.5, -0.5]]]
    >>> MajorityVote().fit(songs, ["jig", "reel"]).predict(songs)
    array(['reel', 'jig'], dtype='<U4')
    """

    _needed: ClassVar[tuple[str, ...]] = ("votes", "approvals", "probability", "improbability")
    _certainty: Certainty

    def _number(self, averages: Averages) -> Floats:
        votes = averages["approvals" if self.multilabel_ else "votes"]
        return np.asarray(votes / averages.lengths[:, None])

    def _rule(self, averages: Averages) -> Floats:
        n = averages.lengths[:, None]
        mean = averages["probability"]
        if self.multilabel_:
            votes = averages["approvals"]
            return _log(votes + mean) - _log(n - votes + averages["improbability"])
        votes = averages["votes"]
        # The mean is below 1, so with the smallest gap between votes it orders equal votes and
        # never unequal ones. The gap is 1 unless frames were divided.
        gap = np.ones((len(votes), 1))
        divided = (votes != np.rint(votes)).any(axis=1)
        gaps = np.diff(np.sort(votes[divided], axis=1), axis=1, append=np.inf)
        gap[divided] = np.where(gaps > 1e-9, gaps, 1.0).min(axis=1, keepdims=True).clip(max=1.0)
        return np.asarray(_log(votes + gap * mean) - np.log(n + 1.0))

    def _calibrate(self, log_scores: Floats, y: Ints) -> None:
        self._certainty = AS_IT_IS if self.multilabel_ else fit_certainty_of_votes(log_scores, y)
        super()._calibrate(self._certainty.of(log_scores), y)

    def _calibrated(self, log_scores: Floats) -> Floats:
        return super()._calibrated(self._certainty.of(log_scores))

    def _state(self) -> dict[str, Array]:
        _, weight, power = self._certainty
        # Nothing of no weight, as in the first files.
        return {"share_weight": np.array([weight, power])} if weight != 0 else {}

    def _set_state(self, arrays: Mapping[str, Array]) -> None:
        self._certainty = AS_IT_IS
        if arrays:
            check_floats(arrays, {} if self.multilabel_ else {"share_weight": (2,)})
            weight, power = map(float, arrays["share_weight"])
            if power <= 0 or weight * power < LEAST_WEIGHT - 1e-9:
                raise ModelFileError(f"share_weight {weight}, {power} turns the order round")
            self._certainty = Certainty(1.0, weight, power)


class MeanProbability(_Average):
    """Average a song's frames in probability.

    The sum rule of [1]_: robust, since no single frame can weigh more than any other.

    Parameters
    ----------
    n_jobs : int or None
        Threads that share many songs, as joblib counts them; -1 is all cores. The answer does not
        depend on it.
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

    _needed: ClassVar[tuple[str, ...]] = ("probability", "improbability")

    def _number(self, averages: Averages) -> Floats:
        return averages["probability"]

    def _rule(self, averages: Averages) -> Floats:
        log_mean = _log(averages["probability"])
        return log_mean - _log(averages["improbability"]) if self.multilabel_ else log_mean


class MeanLogOdds(_Average):
    """Average a song's frames in log-odds, then ask which class is likeliest.

    Frames that are sure count for more than under the mean of probabilities. Were frames
    independent given the class, the sum of their log-odds would be the product rule of [1]_. They
    are not, so the mean is taken: it leaves a song as sure as its typical frame.

    Parameters
    ----------
    n_jobs : int or None
        Threads that share many songs, as joblib counts them; -1 is all cores. The answer does not
        depend on it.
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

    _needed: ClassVar[tuple[str, ...]] = ("log_odds",)

    def _number(self, averages: Averages) -> Floats:
        return np.asarray(expit(averages["log_odds"]))

    def _rule(self, averages: Averages) -> Floats:
        mean = averages["log_odds"]
        # The log keeps apart what the logistic function rounds to 1.
        return mean if self.multilabel_ else log_expit(mean)


def _log(share: Floats) -> Floats:
    """Logarithm that stays finite where extreme logits leave a probability of exactly 0."""
    return np.asarray(np.log(np.maximum(share, np.finfo(np.float64).tiny)))
