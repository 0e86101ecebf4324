"""How do costs grow with songs, frames, columns and states?"""  # noqa: D400

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from experiments.pictures import figure
from experiments.speed.contest import Measured, Sizes

Lines = dict[str, list[tuple[int, float]]]

COLOURS = (
    "#000000",
    "#999999",
    "#56B4E9",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#D55E00",
    "#0072B2",
    "#8B5A2B",
)
"""Okabe and Ito's palette, but for the last; ways get them in their order, seqagg's is black."""


@dataclass(frozen=True)
class Panel:
    """Cost of a contest against one of its sizes; `kept` are the others, that must not change."""

    size: str
    contest: str
    setting: str
    kept: tuple[str, ...]


PANELS = (
    Panel("songs", "mean", "", ("frames", "columns")),
    Panel("frames", "mean", "", ("n_frames", "columns")),
    Panel("columns", "mean", "", ("frames", "n_scores")),
    Panel("states", "hmm scoring", "full", ("songs", "columns")),
)


def draw_costs(path: Path, found: Sequence[Measured]) -> None:
    """Nanoseconds per score of a frame, one panel for each size."""
    with figure(path, 10.0, 6.5) as made:
        for axes, panel in zip(made.subplots(2, 2).ravel(), PANELS, strict=True):
            lines = lines_of(found, panel)
            for colour, (name, points) in zip(COLOURS, lines.items(), strict=False):
                xs, ys = zip(*points, strict=True)
                axes.plot(xs, ys, color=colour, label=name, marker="o", markersize=3)
            _finish(axes, panel, lines)


def lines_of(found: Sequence[Measured], panel: Panel) -> Lines:
    """For each way its sizes and nanoseconds per score, from as many contests as are comparable."""
    groups: dict[Hashable, list[Measured]] = {}
    for own in found:
        if (own.contest.name, own.contest.setting) == (panel.contest, panel.setting):
            amounts = _amounts(own.contest.sizes)
            groups.setdefault(tuple(amounts[name] for name in panel.kept), []).append(own)
    lines: Lines = {}
    for own in max(groups.values(), key=len, default=[]):
        amounts = _amounts(own.contest.sizes)
        for name, metrics in own.metrics.items():
            cost = metrics["seconds"] / amounts["n_scores"] * 1e9
            lines.setdefault(name, []).append((amounts[panel.size], cost))
    return {name: sorted(points) for name, points in lines.items()}


def _amounts(sizes: Sizes) -> Mapping[str, int]:
    songs, frames, columns = sizes.songs or 1, sizes.frames or 1, sizes.columns or 1
    return {
        "songs": songs,
        "frames": frames,
        "columns": columns,
        "states": sizes.states or 1,
        "n_frames": songs * frames,
        "n_scores": songs * frames * columns,
    }


def _finish(axes: Axes, panel: Panel, lines: Lines) -> None:
    names = {"frames": "frames per song", "states": "states per class"}
    axes.set_title(f"{panel.contest}, {panel.setting}" if panel.setting else panel.contest)
    axes.set_xlabel(names.get(panel.size, panel.size))
    axes.set_ylabel("nanoseconds per score")
    if not lines:
        return
    ticks = sorted({x for points in lines.values() for x, _ in points})
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(ticks, [f"{x:,}" for x in ticks], fontsize=7)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks([], minor=True)
    axes.grid(axis="y", linewidth=0.3)
    axes.legend(fontsize=6.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
