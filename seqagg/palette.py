"""The colours of every page and picture, each as (on light paper, on dark).

Conventions
-----------
Methods have the colours of Okabe and Ito [1]_, which colour-blind readers can tell apart, and the
same ones everywhere. What speaks for a class is blue, what speaks against it orange, in heat maps
as in curves. Colour never says anything alone: a mark, a sign or a name stands beside it.

References
----------
.. [1] M. Okabe and K. Ito, "Color universal design", 2008, https://jfly.uni-koeln.de/color/.
"""

from __future__ import annotations

METHODS: dict[str, tuple[str, str]] = {
    "majority": ("#999999", "#9a9a9a"),
    "mean": ("#56b4e9", "#56b4e9"),
    "logodds": ("#000000", "#f2f2f2"),
    "stack": ("#009e73", "#1fbf92"),
    "mil": ("#cc79a7", "#dd94bd"),
    "hmm": ("#e69f00", "#e8a91f"),
    "gru": ("#d55e00", "#ef7d2c"),
    "auto": ("#0072b2", "#4d9de0"),
}

_OTHERS = (("#6a3d9a", "#b294d6"), ("#8b5e3c", "#c49a78"), ("#117733", "#55b06d"))
"""For methods of the user's own, in turn."""

FOR = ("#1f5fa8", "#6cb2ff")
AGAINST = ("#c2570c", "#f59a4c")
NEUTRAL = ("#f4f2ec", "#23272e")
"""Ends and middle of the scale of log-odds, and what speaks for and against a class."""

STATES = (
    ("#4477aa", "#7aa6d6"),
    ("#ccbb44", "#d9cb66"),
    ("#228833", "#58b368"),
    ("#aa3377", "#cf6ba3"),
    ("#66ccee", "#8fdcf5"),
    ("#ee6677", "#f28b98"),
    ("#bbbbbb", "#c9c9c9"),
    ("#775533", "#ad8862"),
)
"""Hidden states, in turn: Paul Tol's bright scheme and a brown."""


def method_colour(name: str, methods: list[str]) -> tuple[str, str]:
    """Colour of a method among those of a benchmark."""
    if name in METHODS:
        return METHODS[name]
    own = [m for m in methods if m not in METHODS]
    return _OTHERS[own.index(name) % len(_OTHERS)]
