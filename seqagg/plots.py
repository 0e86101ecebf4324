"""Plots for notebooks and papers, one function each, with matplotlib.

Conventions
-----------
A function draws into the axes it is given, or into a new figure, and returns the axes; nothing is
shown or saved. Shares are drawn in percent, log-odds in nats. Colours are those of the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from seqagg import palette
from seqagg.aggregators.base import Aggregator
from seqagg.calibration import log_probabilities
from seqagg.errors import ParameterError, SongError
from seqagg.report.facts import confusion, find_answers, reliability
from seqagg.results import BenchmarkResult
from seqagg.songs import Songs
from seqagg.timelines import even_marks, scores_of_frames
from seqagg.wording import points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]

_MOST_CLASSES = 5
"""Classes whose beliefs are drawn: those that an aggregator ever holds likeliest."""


def plot_song(
    songs: Songs,
    song: int | str,
    aggregators: Mapping[str, Aggregator] | None = None,
    *,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Draw a song: frame log-odds as a heat map, and below it what methods believe as it plays.

    Parameters
    ----------
    songs : Songs
    song : int or str
        Position or id of the song.
    aggregators : mapping of str to Aggregator, optional
        Name -> fitted aggregator; each gets axes of its own for its probabilities of the classes
        after the frames heard, at most 40 times a song.
    axes : sequence of Axes, optional
        One more than there are aggregators.

    Returns
    -------
    list of Axes
        The heat map, then one per aggregator.

    Raises
    ------
    SongError
        When there is no such song, or it has no frame.
    """
    models = dict(aggregators or {})
    whole = _one(songs, song).log_odds().present()
    frames = whole.values
    if len(frames) == 0:
        raise SongError("no frame is left to draw", song=str(whole.ids[0]))
    edges, unit = _edges(whole)
    if axes is None:
        import matplotlib.pyplot as plt

        made = _figure(len(models) + 1, [max(1.4, 0.16 * whole.n_columns), *[1.0] * len(models)])
        axes = made
        plt.setp([a.get_xticklabels() for a in made[:-1]], visible=False)
    if len(axes) != len(models) + 1:
        raise ParameterError(f"{len(axes)} axes for a heat map and {len(models)} aggregators")
    heat = axes[0]
    mesh = heat.pcolormesh(edges, np.arange(whole.n_columns + 1) - 0.5, frames.T, cmap="Blues")
    columns = whole.columns or [str(k) for k in range(whole.n_columns)]
    heat.set_yticks(range(whole.n_columns), columns, fontsize=8)
    heat.invert_yaxis()
    heat.figure.colorbar(mesh, ax=heat, label="log-odds, nats", pad=0.01)
    label = "" if whole.labels is None or whole.labels[0] is None else f", labelled {_text(whole)}"
    heat.set_title(f"{whole.ids[0]}{label}", fontsize=10)
    for place, (name, model) in zip(axes[1:], models.items(), strict=True):
        _plot_belief(place, name, model, whole, edges)
    axes[-1].set_xlabel(unit)
    return list(axes)


def _one(songs: Songs, song: int | str) -> Songs:
    names = [str(i) for i in songs.ids]
    if isinstance(song, str):
        if song not in names:
            raise SongError("there is no such song", song=song)
        song = names.index(song)
    if not -len(names) <= song < len(names):
        raise SongError(f"there are {len(names)} songs, and none at {song}")
    found: Songs = songs[np.array([song])]
    return found


def _text(songs: Songs) -> str:
    assert songs.labels is not None
    label = songs.labels[0]
    return ", ".join(label) if isinstance(label, tuple) else str(label)


def _edges(song: Songs) -> tuple[Floats, str]:
    """Where frames start and the last one ends, and in what unit."""
    n = len(song.values)
    if song.start is None:
        return np.arange(n + 1, dtype=np.float64), "frames"
    start = song.start.astype(np.float64)
    last = float(np.median(np.diff(start))) if n > 1 else 1.0
    return np.append(start, start[-1] + last), "seconds"


def _plot_belief(axes: Axes, name: str, model: Aggregator, song: Songs, edges: Floats) -> None:
    marks = even_marks(len(song.values))
    known = model._check_songs(song)
    scores = scores_of_frames(model, known, [np.arange(m) for m in marks])
    p = 100 * np.exp(log_probabilities(scores, model.multilabel_))  # (n_marks, n_classes)
    kept = np.argsort(-p.max(axis=0), kind="stable")[:_MOST_CLASSES]
    dashes = ("-", "--", "-.", ":", (0, (1, 3)))
    shades = (*[c[0] for c in (palette.FOR, palette.AGAINST)], "#63625d", "#63625d", "#63625d")
    for k, dash, shade in zip(kept, dashes, shades, strict=False):
        line = axes.plot(edges[marks], p[:, k], linestyle=dash, color=shade, marker=".", ms=3)
        line[0].set_label(str(model.classes_[k]))
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, 100)
    axes.set_ylabel(f"{name}, %")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)


def plot_comparison(
    result: BenchmarkResult, baseline: str = "logodds", *, ax: Axes | None = None
) -> Axes:
    """Draw the paired difference of every method from averaging, with its 95 % interval.

    Parameters
    ----------
    result : BenchmarkResult
    baseline : {"logodds", "mean"}
    ax : Axes, optional

    Raises
    ------
    ParameterError
        When nothing was compared with that baseline.
    """
    rows = [row for row in result.comparisons if row.baseline == baseline]
    if not rows:
        raise ParameterError(f"nothing was compared with {baseline!r}")
    axes = ax or _figure(1, [0.35 * len(rows) + 0.5])[0]
    names = [row.method for row in rows]
    for place, row in enumerate(rows):
        c, colour = row.comparison, palette.method_colour(row.method, names)[0]
        axes.plot([100 * c.low, 100 * c.high], [place, place], color=colour, lw=2)
        axes.plot(100 * c.difference, place, "o", color=colour)
        axes.annotate(
            points(c.difference), (100 * c.difference, place), xytext=(0, 6),
            textcoords="offset points", ha="center", fontsize=8,
        )  # fmt: skip
    axes.axvline(0, color="#1d1d1b", lw=0.8)
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.5, -0.7)
    what = "LRAP" if rows[0].metric == "lrap" else "accuracy"
    axes.set_xlabel(f"{what}, points more than {baseline} (95 % interval)")
    return axes


def plot_reliability(
    result: BenchmarkResult, methods: Sequence[str] | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw how often methods are right when they are so sure, in ten bins.

    Parameters
    ----------
    result : BenchmarkResult
    methods : sequence of str, optional
        All by default.
    ax : Axes, optional

    Raises
    ------
    ParameterError
        When a method was not compared.
    """
    answers = find_answers(result)
    axes = ax or _figure(1, [3.2], width=3.6)[0]
    axes.plot([0, 100], [0, 100], ":", color="#63625d", lw=1)
    for method in answers.methods if methods is None else methods:
        _check_method(method, answers.methods)
        found = reliability(answers, method)
        around = [100 * (found.share - found.low), 100 * (found.high - found.share)]
        colour = palette.method_colour(method, list(answers.methods))[0]
        style: dict[str, Any] = {"color": colour, "label": method, "elinewidth": 0.8}
        axes.errorbar(100 * found.at, 100 * found.share, around, fmt="o-", ms=4, **style)
    axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="sure of, %", ylabel="right, %")
    axes.legend(frameon=False, fontsize=8)
    return axes


def plot_confusion(
    result: BenchmarkResult, method: str, *, minus: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draw how many songs of each class a method answers how.

    Parameters
    ----------
    result : BenchmarkResult
        Of songs with one label each.
    method : str
    minus : str, optional
        Another method: then how many more it is than there.
    ax : Axes, optional

    Raises
    ------
    ParameterError
        When a method was not compared, or songs have several labels each.
    """
    answers = find_answers(result)
    if answers.multilabel:
        raise ParameterError("songs with several labels each are not taken for one another")
    _check_method(method, answers.methods)
    counts = confusion(answers, method)
    axes = ax or _figure(1, [0.36 * len(counts) + 1.0], width=0.36 * len(counts) + 1.6)[0]
    if minus is None:
        shades = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(shades, cmap="Blues", vmin=0, vmax=1)
    else:
        _check_method(minus, answers.methods)
        counts = counts - confusion(answers, minus)
        shades = counts / max(int(np.abs(counts).max()), 1)
        axes.imshow(shades, cmap="PuOr", vmin=-1, vmax=1)
    for (i, k), n in np.ndenumerate(counts):
        if n:
            colour = "white" if abs(shades[i, k]) > 0.6 else "black"
            text = str(n) if minus is None else f"{n:+d}"
            axes.text(k, i, text, ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(counts)), answers.classes, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(counts)), answers.classes, fontsize=8)
    title = method if minus is None else f"{method} minus {minus}"
    axes.set(xlabel="answer", ylabel="label", title=title)
    return axes


def plot_learning_curve(
    sizes: npt.ArrayLike, scores: Mapping[str, npt.ArrayLike], *, ax: Axes | None = None
) -> Axes:
    """Draw accuracy against the number of training songs.

    Parameters
    ----------
    sizes : array-like of shape (n_sizes,)
        Training songs.
    scores : mapping of str to array-like of shape (n_sizes,) or (n_sizes, n_repeats)
        Method -> accuracies, as `sklearn.model_selection.learning_curve` has them; a line through
        the means, a band from the lowest to the highest.
    ax : Axes, optional

    Raises
    ------
    ParameterError
        When the scores of a method are not those of the sizes.
    """
    at = np.asarray(sizes, dtype=np.float64)
    axes = ax or _figure(1, [2.8], width=4.0)[0]
    for method, given in scores.items():
        found = 100 * np.asarray(given, dtype=np.float64).reshape(len(np.asarray(given)), -1)
        if len(found) != len(at):
            raise ParameterError(f"{len(found)} scores of {method} for {len(at)} sizes")
        colour = palette.method_colour(method, list(scores))[0]
        axes.plot(at, found.mean(axis=1), "o-", color=colour, ms=4, label=method)
        if found.shape[1] > 1:
            low, high = found.min(axis=1), found.max(axis=1)
            axes.fill_between(at, low, high, color=colour, alpha=0.15, lw=0)
    axes.set_xscale("log")
    axes.set_xticks(at, [f"{n:,.0f}" for n in at])
    axes.minorticks_off()
    axes.set(xlabel="training songs", ylabel="accuracy, %")
    axes.legend(frameon=False, fontsize=8)
    return axes


def _check_method(method: str, methods: Sequence[str]) -> None:
    if method not in methods:
        raise ParameterError(f"{method!r} was not compared; there are {', '.join(methods)}")


def _figure(n: int, heights: Sequence[float], width: float = 6.4) -> list[Axes]:
    """Axes below each other in a new figure, on one axis across."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError("plots need matplotlib: pip install 'seqagg[plots]'") from None
    size = (width, sum(heights) + 0.6)
    shape: dict[str, Any] = {"height_ratios": heights}
    _, axes = plt.subplots(
        n, 1, figsize=size, sharex=True, squeeze=False, layout="constrained", gridspec_kw=shape
    )
    for one in axes[:, 0]:
        one.spines[["top", "right"]].set_visible(False)
    return list(axes[:, 0])
