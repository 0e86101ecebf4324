"""What numbers mean, in words: the sentences of the terminal, the notebook and the page.

Conventions
-----------
Differences of shares are said in percentage points.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seqagg.evaluation import Comparison


def points(share: float) -> str:
    """Percentage points with their sign; a rounded zero has none."""
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def verdict(method: str, pair: Comparison, metric: str) -> str:
    """Say whether a method pays, or averaging log-odds is as good.

    Parameters
    ----------
    method : str
        What was compared with averaging log-odds.
    pair : Comparison
    metric : {"accuracy", "lrap"}
        By what; the second where songs have several labels each.
    """
    low, high = sorted((abs(pair.low), abs(pair.high)))
    size = f"{100 * abs(pair.difference):.1f} points"
    interval = f"95 % interval {100 * low:.1f} to {100 * high:.1f}"
    ranking = metric == "lrap"
    if pair.verdict == "better":
        if ranking:
            gain = f"gains {size} of LRAP on averaging log-odds"
        else:
            gain = f"is right on {size} more songs than averaging log-odds"
        return f"{method} {gain} ({interval}): it pays here."
    if pair.verdict == "worse":
        if ranking:
            loss = f"loses {size} of LRAP to averaging log-odds"
        else:
            loss = f"is right on {size} fewer songs than averaging log-odds"
        return f"{method} {loss} ({interval}): average here."
    if pair.wins_a + pair.wins_b == 0:
        if ranking:
            same = "ranks the labels of every song as averaging log-odds does"
        else:
            same = "is right on the very same songs as averaging log-odds"
        return f"{method} {same}: average here."
    by = " by LRAP" if ranking else ""
    return (
        f"{method} cannot be told from averaging log-odds{by} on {pair.n_songs} songs "
        f"({points(pair.difference)} points, 95 % interval {points(pair.low)} to "
        f"{points(pair.high)}): average until more songs say otherwise."
    )


def how_scored(provenance: Mapping[str, Any], n_songs: int) -> str:
    """Say what was learnt from and what was scored.

    Parameters
    ----------
    provenance : mapping
        Of a benchmark.
    n_songs : int
        Songs scored.
    """
    end = f"{len(provenance['classes'])} classes."
    if provenance["folds"] is None:
        learnt = f"methods learn from the {provenance['n_train']} train songs"
        return f"{learnt} and are scored on the {n_songs} test songs; {end}"
    apart = "" if provenance["n_groups"] is None else ", no group on both sides of a fold"
    return (
        f"{n_songs} songs in {provenance['folds']} folds, each scored by what was learnt "
        f"from the other folds{apart}; {end}"
    )
