"""Deal groups of tunes to the sides of a split, each genre in the same proportion."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np

from experiments.tunes.tunes import Tune


def deal(tunes: list[Tune], shares: list[float], seed: int) -> list[int]:
    """Deal tunes to sides, whole groups at a time.

    Groups are dealt in random order, the rarest genre's first, each to the side that has the
    least of that genre for its share, and among equals to the one that has the least altogether.

    Parameters
    ----------
    tunes : list of n_tunes Tune
        A group counts for the commonest genre in it.
    shares : list of float
        What each side should get, summing to 1.
    seed : int
        Of the random order.

    Returns
    -------
    list of n_tunes int
        The side of each tune.
    """
    members: defaultdict[str, list[str]] = defaultdict(list)
    for tune in tunes:
        members[tune.group].append(tune.genre)
    genre_of = {group: Counter(own).most_common(1)[0][0] for group, own in members.items()}
    rng = np.random.default_rng(seed)
    side_of: dict[str, int] = {}
    total = np.zeros(len(shares))
    frequency = Counter(tune.genre for tune in tunes)
    for genre in sorted(frequency, key=lambda name: (frequency[name], name)):
        groups = sorted(group for group, own in genre_of.items() if own == genre)
        filled = np.zeros(len(shares))
        for place in rng.permutation(len(groups)):
            side = int(np.lexsort((total / shares, filled / shares))[0])
            side_of[groups[place]] = side
            filled[side] += len(members[groups[place]])
            total[side] += len(members[groups[place]])
    return [side_of[tune.group] for tune in tunes]
