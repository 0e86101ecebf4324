"""Pictures of results: SVG files whose bytes depend on the numbers alone.

Conventions
-----------
Accuracies come as shares and are shown in percent. Every method has the same colour everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from seqagg.files import atomic_write
from seqagg.palette import METHODS

COLOURS: Mapping[str, str] = {method: light for method, (light, _) in METHODS.items()}
"""Those of the page, on light paper."""

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "seqagg",
    "svg.fonttype": "none",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Line:
    """Accuracy of a method against the number of training songs, with a band around it."""

    songs: Sequence[float]
    accuracy: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """Lines over one collection of songs; `limit` is drawn across."""

    title: str
    lines: Mapping[str, Line] = field(default_factory=dict)
    limit: float | None = None


@contextmanager
def figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Draw into a figure (inches), which is then written to the file."""
    with matplotlib.rc_context(_STYLE):
        made = Figure(figsize=(width, height), layout="constrained")
        yield made
        with atomic_write(path) as temporary:
            # Date and version of the library would change the bytes.
            made.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})


def draw_curves(path: Path, panels: Sequence[Panel]) -> None:
    """Accuracy against training songs, a panel for each collection."""
    n_columns = min(3, len(panels))
    n_rows = -(-len(panels) // n_columns)
    with figure(path, 0.6 + 2.9 * n_columns, 0.5 + 2.4 * n_rows) as made:
        grid = np.atleast_1d(made.subplots(n_rows, n_columns, squeeze=False)).ravel()
        for axes, panel in zip(grid, panels, strict=False):
            _draw_panel(axes, panel)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        entries: dict[str, Artist] = {}
        for axes in grid[: len(panels)]:
            handles, names = axes.get_legend_handles_labels()
            entries |= dict(zip(names, handles, strict=True))
        made.legend(
            list(entries.values()),
            list(entries),
            loc="outside lower center",
            ncols=len(entries),
        )


def _draw_panel(axes: Axes, panel: Panel) -> None:
    for name, line in panel.lines.items():
        colour = COLOURS.get(name, "#000000")
        percent = [100 * share for share in line.accuracy]
        low, high = ([100 * share for share in side] for side in (line.low, line.high))
        axes.fill_between(line.songs, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(line.songs, percent, color=colour, label=name, marker="o", markersize=3)
    if panel.limit is not None:
        axes.axhline(100 * panel.limit, color="#000000", linestyle=":", label="limit")
    sizes = sorted({n for line in panel.lines.values() for n in line.songs})
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{n:,.0f}" for n in sizes], fontsize=7)
    axes.set_xticks([], minor=True)
    axes.set_title(panel.title, fontsize=9)
    axes.set_xlabel("training songs")
    axes.set_ylabel("accuracy, %")
    axes.grid(axis="y", linewidth=0.3)


def draw_pairs(
    path: Path, names: Sequence[str], sides: Mapping[str, Sequence[tuple[float, float, float]]]
) -> None:
    """One row per method, one dot per side, with its lowest and highest."""
    marks = ("o", "D", "s")
    shades = ("#0072B2", "#D55E00", "#999999")
    with figure(path, 5.5, 0.8 + 0.4 * len(names)) as made:
        axes = made.subplots()
        for number, (side, rows) in enumerate(sides.items()):
            mean, low, high = (100 * np.array(column) for column in zip(*rows, strict=True))
            place = np.arange(len(names)) + 0.12 * number
            axes.errorbar(
                mean,
                place,
                xerr=np.stack([mean - low, high - mean]).clip(min=0),
                fmt=marks[number],
                color=shades[number],
                label=side,
                markersize=5,
            )
        axes.set_yticks(np.arange(len(names)), list(names))
        axes.invert_yaxis()
        axes.set_xlabel("accuracy on new songs, %")
        axes.grid(axis="x", linewidth=0.3)
        axes.legend()


def draw_ranks(
    path: Path, ranks: Mapping[str, float], critical: float, remarks: Sequence[str]
) -> None:
    """Critical-difference diagram [1]_: mean ranks, best left; a bar joins what may be equal.

    Parameters
    ----------
    path : Path
    ranks : mapping of str to float
        Mean rank of each method over data sets; 1 is best.
    critical : float
        Mean ranks closer than this may be equal.
    remarks : sequence of str
        Written below.

    References
    ----------
    .. [1] J. Demsar, "Statistical comparisons of classifiers over multiple data sets", JMLR 7,
       2006, figure 1.
    """
    order = sorted(ranks, key=lambda name: (ranks[name], name))
    n_left = -(-len(order) // 2)
    bars = cliques([ranks[name] for name in order], critical)
    top = 0.35 + 0.12 * len(bars)  # where the names begin, below the bars
    bottom = top + 0.28 * n_left + 0.1
    with figure(path, 6.5, 1.1 + 0.75 * bottom + 0.17 * len(remarks)) as made:
        axes = made.subplots()
        axes.set_axis_off()
        # Room on both sides for the names; the rank axis is at height 0, below is positive.
        axes.set_xlim(-0.5, max(len(order), 2) + 1.5)
        axes.set_ylim(bottom + 0.3 * len(remarks), -0.75)
        _draw_rank_axis(axes, len(order), critical)
        for number, name in enumerate(order):
            left = number < n_left
            height = top + 0.28 * (number if left else len(order) - 1 - number)
            edge = 0.6 if left else len(order) + 0.4
            axes.plot([ranks[name]] * 2 + [edge], [0, height, height], color="#000000", lw=0.8)
            axes.text(
                edge,
                height,
                f"{name}  {ranks[name]:.2f} " if left else f" {ranks[name]:.2f}  {name}",
                ha="right" if left else "left",
                va="center",
                color=COLOURS.get(name, "#000000"),
            )
        for number, (first, last) in enumerate(bars):
            ends = [ranks[order[first]] - 0.06, ranks[order[last]] + 0.06]
            axes.plot(ends, [0.18 + 0.12 * number] * 2, color="#000000", lw=3.5)
        for number, remark in enumerate(remarks):
            axes.text(-0.5, bottom + 0.3 * (number + 0.5), remark, fontsize=8, va="center")


def _draw_rank_axis(axes: Axes, n: int, critical: float) -> None:
    axes.plot([1, n], [0, 0], color="#000000", lw=1)
    for rank in range(1, n + 1):
        axes.plot([rank, rank], [0, -0.08], color="#000000", lw=1)
        axes.text(rank, -0.14, str(rank), ha="center", va="bottom")
    axes.plot([1, 1 + min(critical, n - 1)], [-0.5, -0.5], color="#000000", lw=1)
    shown = f"critical difference {critical:.2f}"
    axes.text(1, -0.56, shown + (" (wider than the axis)" if critical > n - 1 else ""), va="bottom")


def cliques(ranks: Sequence[float], critical: float) -> list[tuple[int, int]]:
    """Longest runs of sorted ranks that lie within the critical difference, first and last."""
    found: list[tuple[int, int]] = []
    for first, rank in enumerate(ranks):
        last = max(i for i, other in enumerate(ranks) if other - rank < critical or i == first)
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found
