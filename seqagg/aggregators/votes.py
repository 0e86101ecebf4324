"""What several models that have not seen a song say of it, one by one and together.

Conventions
-----------
Votes have shape (n_votes, n_songs, n_classes); each is by another model, none of which was fitted
to the song. A new song is judged by the mean of more models than vote on a song held out.

References
----------
N. Ueda and R. Nakano, "Generalization error of ensemble estimators", ICNN 1996.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Votes:
    """Scores of songs held out, by a method that averages several models.

    Attributes
    ----------
    scores : ndarray of shape (n_votes, n_songs, n_classes)
    given : ndarray of bool, shape (n_votes, n_songs)
        Whether there is a vote; scores are 0 where not.
    n_models : int
        How many judge a new song.
    """

    scores: Floats
    given: npt.NDArray[np.bool_]
    n_models: int

    @property
    def heard(self) -> npt.NDArray[np.bool_]:
        """Whether there is any vote on a song."""
        return np.asarray(self.given.any(axis=0))

    @property
    def mean(self) -> Floats:
        """Mean of the votes on each song."""
        n_given = np.maximum(self.given.sum(axis=0), 1)[:, None]
        return np.asarray(self.scores.sum(axis=0) / n_given)

    @property
    def share(self) -> float:
        """How much of the loss of single votes to take from that of their mean.

        The loss of a mean of m models is about ``a + b / m``. So that of all models is
        ``(1 + share)`` times the loss of the mean of the votes, less `share` times the mean loss
        of single ones. 0 where that cannot be told.
        """
        n_votes = len(self.scores)
        if n_votes < 2 or not self.given.all():
            return 0.0
        return (1 / n_votes - 1 / self.n_models) / (1 - 1 / n_votes)
