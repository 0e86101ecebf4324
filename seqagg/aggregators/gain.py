"""Whether training helps, told by songs that networks were not trained on.

Conventions
-----------
A *round* is a list of folds that hold out every song once at most; each network belongs to a fold
of a round, in this order. The songs of its fold also choose the epoch that a network is taken from.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from seqagg.aggregators.training import Record
from seqagg.aggregators.votes import Votes
from seqagg.calibration import about_equal, calibrated_losses
from seqagg.folds import Fold

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_MOST_JUDGED = 1000
"""Songs of a fold whose scores are kept of every epoch: more would say no more."""


def judged(held: Ints) -> Ints:
    """Songs held out whose scores are kept, spread over all."""
    n = min(len(held), _MOST_JUDGED)
    return np.asarray(held[np.linspace(0, len(held) - 1, n).astype(np.int64)])


def training_helps(
    before: Votes,
    after: Votes,
    records: Sequence[Record],
    rounds: Sequence[Sequence[Fold]],
    y: Ints,
    groups: Ints,
) -> bool:
    """Whether networks are better than they were, or no song can tell.

    The best of many epochs on few songs is better than the first by chance alone. So the gain
    must be more than a standard error, and there must be one too where each network stops when
    the others are at their best, of which its own songs know nothing.

    Parameters
    ----------
    before, after : Votes
        Of the networks as they start, and from their best epochs.
    records : sequence of Record
        With scores of songs that are `judged`.
    rounds : sequence of sequence of Fold
    y : ndarray of int, shape (n_songs,) or (n_songs, n_classes)
    groups : ndarray of int, shape (n_songs,)
    """
    tried = after.heard
    if not tried.any():
        return True
    if about_equal(*_losses(before, after, y), groups[tried]):
        return False
    if len(rounds[0]) < 2:
        return True
    first, best = _losses(*_votes_without_choice(records, rounds, before.scores.shape), y)
    return bool(best.mean() < first.mean())


def _losses(first: Votes, second: Votes, y: Ints) -> tuple[Floats, Floats]:
    heard = first.heard
    return (
        calibrated_losses(first.mean[heard], y[heard]),
        calibrated_losses(second.mean[heard], y[heard]),
    )


def _votes_without_choice(
    records: Sequence[Record], rounds: Sequence[Sequence[Fold]], shape: tuple[int, ...]
) -> tuple[Votes, Votes]:
    """Votes of networks as they start, and as they are when the others are at their best."""
    first, best = (
        Votes(np.zeros(shape), np.zeros(shape[:2], dtype=bool), len(records)) for _ in range(2)
    )
    rest = iter(records)
    for r, folds in enumerate(rounds):
        own = list(itertools.islice(rest, len(folds)))
        epochs = _best_for_others(own, np.array([len(held) for _, held in folds]))
        for record, epoch, (_, held) in zip(own, epochs, folds, strict=True):
            songs = judged(held)
            for votes, scores in ((first, record.scores[0]), (best, record.scores[epoch])):
                votes.scores[r, songs] = scores
                votes.given[r, songs] = True
    return first, best


def _best_for_others(records: Sequence[Record], n_held: Ints) -> Ints:
    """Epoch of each network at which the others are best together, shape (n_networks,)."""
    n_epochs = min(len(record.history) for record in records)
    losses = np.array([[row["held_out"] for row in r.history[:n_epochs]] for r in records])
    losses = losses * n_held[:, None]
    return np.asarray((losses.sum(axis=0) - losses).argmin(axis=1))
