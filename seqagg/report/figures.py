"""Figures of the page, as SVG.

Conventions
-----------
Coordinates are pixels of a figure shown at its natural size; a narrow window scales it down. What
has a colour says so by a class of `style.css`: ``m0``, ``m1``, ... are the methods, ``for`` and
``against`` the ends of a scale around zero, so that dark paper is the style's affair alone. Every
figure has a sentence for those who do not see it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from seqagg.report.facts import Shares

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_LEVELS = 8
"""Shades of a scale on either side of nothing."""

_NUMBERED = 12
"""Classes up to which a confusion matrix has numbers in its cells."""


def _figure(width: float, height: float, sentence: str, parts: Iterable[str]) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
        f'role="img" aria-label="{escape(sentence)}">{"".join(parts)}</svg>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} class="{style}"/>'


def _dot(x: float, y: float, r: float, style: str, title: str = "") -> str:
    inside = f"<title>{escape(title)}</title>" if title else ""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" class="{style}">{inside}</circle>'


def _text(x: float, y: float, text: str, style: str = "", anchor: str = "start") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} class="{style}">{escape(text)}</text>'


def _name(place: str, name: str, most: int, style: str) -> str:
    """Name of a class, cut short where it is too long; the whole is under the pointer."""
    short = name if len(name) <= most else name[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return f'<text {place} class="{style}">{escape(short)}<title>{escape(name)}</title></text>'


def percent(share: float, digits: int = 0) -> str:
    """Share in percent, without its sign."""
    return f"{100 * share:.{digits}f}"


def ticks(low: float, high: float, n: int = 4) -> list[float]:
    """Round numbers from low to high, about `n` of them."""
    rough = (high - low) / max(n, 1)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = unit * next(m for m in (1, 2, 5, 10) if m * unit >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [step * k for k in range(first, math.floor(high / step + 1e-9) + 1)]


class _Axes:
    """A plotting area within a figure, and where values lie in it."""

    def __init__(
        self,
        box: tuple[float, float, float, float],
        x: tuple[float, float],
        y: tuple[float, float],
        log: bool = False,
    ) -> None:
        self.left, self.top, self.right, self.bottom = box
        self.log = log
        self.x_low, self.x_high = (math.log(v) for v in x) if log else x
        self.y_low, self.y_high = y

    def x(self, value: float) -> float:
        value = math.log(value) if self.log else value
        share = (value - self.x_low) / ((self.x_high - self.x_low) or 1.0)
        return self.left + share * (self.right - self.left)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / ((self.y_high - self.y_low) or 1.0)
        return self.bottom - share * (self.bottom - self.top)

    def frame(
        self, x_ticks: Mapping[float, str], y_ticks: Mapping[float, str], x_name: str, y_name: str
    ) -> list[str]:
        """Grid, numbers and names of the axes."""
        parts = []
        for value, text in y_ticks.items():
            y = self.y(value)
            parts.append(_line(self.left, y, self.right, y, "grid"))
            parts.append(_text(self.left - 6, y + 4, text, "tick", "end"))
        parts.append(_line(self.left, self.bottom, self.right, self.bottom, "axis"))
        for value, text in x_ticks.items():
            x = self.x(value)
            parts.append(_line(x, self.bottom, x, self.bottom + 4, "axis"))
            parts.append(_text(x, self.bottom + 17, text, "tick", "middle"))
        middle = (self.left + self.right) / 2
        parts.append(_text(middle, self.bottom + 33, x_name, "name", "middle"))
        parts.append(_text(self.left - 34, self.top - 9, y_name, "name"))
        return parts


# Differences from averaging, one row of the table each.

_STRIP = (264.0, 30.0)


def difference_span(ends: Iterable[float]) -> float:
    """Half the width of the axis on which all differences are drawn."""
    widest = max((abs(end) for end in ends), default=0.0)
    return max(1.15 * widest, 0.01)


def difference_scale(span: float) -> Markup:
    """Axis over the column of differences, in points."""
    width, height = _STRIP
    axes = _Axes((8, 0, width - 8, height), (-span, span), (0, 1))
    parts = [_text(8, 9, "worse", "tick against-ink"), _text(width - 8, 9, "better", "tick", "end")]
    marks = ticks(-span, span)
    for value in marks:
        parts.append(_line(axes.x(value), height - 4, axes.x(value), height, "axis"))
        parts.append(
            _text(
                axes.x(value), height - 8, f"{100 * value:+g}" if value else "0", "tick", "middle"
            )
        )
    return _figure(width, height, "Axis of differences in points", parts)


def difference(low: float, middle: float, high: float, span: float, style: str) -> Markup:
    """Interval of one method around zero."""
    width, height = _STRIP
    axes = _Axes((8, 0, width - 8, height), (-span, span), (0, 1))
    y = height / 2
    parts = [
        _line(axes.x(v), 0, axes.x(v), height, "zero" if v == 0 else "grid")
        for v in ticks(-span, span)
    ]
    parts += [
        _line(axes.x(low), y, axes.x(high), y, f"whisker {style}"),
        _dot(axes.x(middle), y, 5, f"mark {style}"),
    ]
    text = f"{100 * middle:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}"
    return _figure(width, height, text, parts)


# Reliability.


def reliability(found: Shares, name: str, style: str, decisions: str) -> Markup:
    """Share right against confidence, with intervals; below it how many songs there are."""
    width, height = 212.0, 250.0
    axes = _Axes((40, 22, width - 8, 178), (0, 1), (0, 1))
    marks = {v: percent(v) for v in (0.0, 0.25, 0.5, 0.75, 1.0)}
    parts = axes.frame(marks, {v: percent(v) for v in (0.0, 0.5, 1.0)}, "sure of, %", "right, %")
    parts.append(_line(axes.x(0), axes.y(0), axes.x(1), axes.y(1), "ideal"))
    rows = zip(found.at, found.share, found.low, found.high, found.count, strict=True)
    most = max(int(found.count.max()), 1)
    for at, share, low, high, count in rows:
        parts.append(_line(axes.x(at), axes.y(low), axes.x(at), axes.y(high), f"whisker {style}"))
        said = f"{count} {decisions}: sure of {percent(at)} %, right {percent(share)} %"
        parts.append(_dot(axes.x(at), axes.y(share), 4, f"mark {style}", said))
        bar = 24 * count / most
        parts.append(
            f'<rect x="{axes.x(at) - 5:.1f}" y="{height - 8 - bar:.1f}" width="10" '
            f'height="{max(bar, 0.8):.1f}" class="bar {style}"/>'
        )
    parts.append(_line(axes.left, height - 8, axes.right, height - 8, "axis"))
    gap = found.share - found.at
    worst = int(np.abs(gap * found.count).argmax())
    sentence = (
        f"{name}: of the {found.count[worst]} {decisions} it is about "
        f"{percent(found.at[worst])} % sure of, {percent(found.share[worst])} % are right"
    )
    return _figure(width, height, sentence, parts)


# Confusion.


def _cells(levels: Ints, size: float, left: float, top: float, style: str) -> list[str]:
    """One path per shade, which keeps a matrix of many classes small."""
    parts = []
    for level in np.unique(levels[levels > 0]):
        squares = "".join(
            f"M{left + size * k:.4g} {top + size * i:.4g}h{size:.4g}v{size:.4g}h-{size:.4g}z"
            for i, k in zip(*np.nonzero(levels == level), strict=True)
        )
        parts.append(f'<path d="{squares}" class="{style}" opacity="{level / _LEVELS:.3g}"/>')
    return parts


def confusion(counts: Ints, names: Sequence[str], title: str) -> Markup:
    """Songs of each class (rows) by answer (columns); shades are shares of the row."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    levels = np.ceil(_LEVELS * shares - 1e-9).astype(np.int64)
    right, total = int(np.trace(counts)), int(counts.sum())
    sentence = f"{title}: {right} of {total} songs right; the table below has the numbers"
    texts = [[str(n) if n else "" for n in row] for row in counts]
    return _matrix([(levels, "shade")], texts, names, sentence, shares > 0.55)


def confusion_difference(counts: Ints, base: Ints, names: Sequence[str], title: str) -> Markup:
    """Songs that a method answers so more (or less) often than averaging does."""
    change = counts - base
    most = max(int(np.abs(change).max()), 1)
    levels = np.ceil(_LEVELS * np.abs(change) / most).astype(np.int64)
    # More on the diagonal is for the better, elsewhere for the worse.
    better = np.where(np.eye(len(change), dtype=bool), change > 0, change < 0)
    moved = int(np.abs(change).sum()) // 2
    sentence = f"{title}: {moved} songs are answered otherwise than by averaging"
    texts = [[f"{n:+d}".replace("-", "\N{MINUS SIGN}") if n else "" for n in row] for row in change]
    layers = [
        (np.where(better, levels, 0), "for"),
        (np.where(better, 0, levels), "against"),
    ]
    return _matrix(layers, texts, names, sentence, levels > 0.55 * _LEVELS)


def _matrix(
    layers: Sequence[tuple[Ints, str]],
    texts: Sequence[Sequence[str]],
    names: Sequence[str],
    sentence: str,
    dark: npt.NDArray[np.bool_],
) -> Markup:
    n = len(names)
    size = max(min(224 / n, 32.0), 7.0)
    longest = max(map(len, names))
    left, top = min(6.2 * longest + 8, 92.0), min(4.6 * longest + 16, 74.0)
    width, height = left + n * size + 30, top + n * size + 4
    parts = [
        f'<rect x="{left}" y="{top}" width="{n * size:g}" height="{n * size:g}" class="paper"/>'
    ]
    for levels, style in layers:
        parts += _cells(levels, size, left, top, style)
    for i, name in enumerate(names):
        at = top + size * (i + 0.5) + 4
        across = left + size * (i + 0.5)
        beside = f'x="{left - 5:.1f}" y="{at:.1f}" text-anchor="end"'
        turned = f'transform="translate({across:.1f} {top - 6:.1f}) rotate(-45)"'
        parts += [_name(place, name, 13, "tick") for place in (beside, turned)]
    if n <= _NUMBERED:
        for i, k in itertools.product(range(n), range(n)):
            if texts[i][k]:
                style = "cell on" if dark[i, k] else "cell"
                x, y = left + size * (k + 0.5), top + size * (i + 0.5) + 4
                parts.append(_text(x, y, texts[i][k], style, "middle"))
    return _figure(width, height, sentence, parts)


# Curves.


def curves(
    at: Sequence[Floats],
    shares: Sequence[Floats],
    names: Sequence[str],
    styles: Sequence[str],
    x_name: str,
    y_name: str,
    log: bool,
) -> Markup:
    """One line per method, its name at the right end."""
    width, height = 344.0, 268.0
    right = width - max(6.6 * max(map(len, names)) + 12, 40)
    every = np.concatenate(shares)
    room = max(float(np.ptp(every)) * 0.12, 0.02)
    y = max(float(every.min()) - room, 0.0), min(float(every.max()) + room, 1.0)
    x = float(np.concatenate(at).min()), float(np.concatenate(at).max())
    axes = _Axes((42, 26, right, height - 42), x, y, log)
    marks = _log_ticks(*x) if log else ticks(*x) if x[1] > x[0] else [x[0]]
    y_ticks = {v: percent(v) for v in ticks(*y)}
    parts = axes.frame({v: f"{v:g}" for v in marks}, y_ticks, x_name, y_name)
    for a, values, name, style in zip(at, shares, names, styles, strict=True):
        points = " ".join(
            f"{axes.x(u):.1f},{axes.y(v):.1f}" for u, v in zip(a, values, strict=True)
        )
        parts.append(f'<polyline points="{points}" class="curve {style}"/>')
        for u, v in zip(a, values, strict=True):
            said = f"{name}: {percent(v, 1)} % at {u:g}"
            parts.append(_dot(axes.x(u), axes.y(v), 2.6, f"mark {style}", said))
    ends = [axes.y(values[-1]) for values in shares]
    for y_end, name, style in zip(_apart(ends, 14), names, styles, strict=True):
        parts.append(_text(right + 8, y_end + 4, name, f"label {style}"))
    sentence = f"{y_name} against {x_name}: " + "; ".join(
        f"{name} {percent(values[0], 1)} at {a[0]:g}, {percent(values[-1], 1)} at {a[-1]:g}"
        for a, values, name in zip(at, shares, names, strict=True)
    )
    return _figure(width, height, sentence, parts)


def _log_ticks(low: float, high: float) -> list[float]:
    powers = [float(2**k) for k in range(20) if low <= 2**k <= high]
    return powers[:: max(1, math.ceil(len(powers) / 6))] or [low]


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """Places moved as little as needed to stand `gap` apart, in their order."""
    order = np.argsort(places, kind="stable")
    moved = np.asarray(places, dtype=np.float64)[order]
    for _ in range(100):
        overlap = np.maximum(gap - np.diff(moved), 0.0)
        if not overlap.any():
            break
        moved[:-1] -= overlap / 2
        moved[1:] += overlap / 2
    back = np.empty_like(moved)
    back[order] = moved
    return [float(v) for v in back]


def by_class(
    found: Mapping[str, Shares],
    names: Sequence[str],
    styles: Mapping[str, str],
    pair: tuple[str, str] | None,
    x_name: str,
) -> Markup:
    """A row for each class with all methods; from averaging to the favourite runs a line."""
    some = next(iter(found.values()))
    width, step = 344.0, 26.0
    left = min(6.4 * max(map(len, names)) + 52, 150.0)
    bottom = 26 + step * len(names)
    axes = _Axes((left, 26, width - 12, bottom), (0, 1), (0, 1))
    parts = []
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(_line(axes.x(value), 22, axes.x(value), bottom, "grid"))
        parts.append(_text(axes.x(value), 14, percent(value), "tick", "middle"))
    for i, name in enumerate(names):
        y = 26 + step * (i + 0.5)
        beside = f'x="{left - 40:.1f}" y="{y + 4:.1f}" text-anchor="end"'
        parts.append(_name(beside, name, 14, "label"))
        parts.append(_text(left - 8, y + 4, str(some.count[i]), "tick", "end"))
        if pair is not None:
            ends = [axes.x(float(found[m].share[i])) for m in pair]
            parts.append(_line(ends[0], y, ends[1], y, f"reach {styles[pair[1]]}"))
        for method in sorted(found, key=lambda m: m in (pair or ())):
            share = float(found[method].share[i])
            said = f"{name}, {method}: {percent(share, 1)} % of {found[method].count[i]} songs"
            big = pair is None or method in pair
            kind = "mark" if big else "mark faint"
            parts.append(_dot(axes.x(share), y, 5 if big else 3, f"{kind} {styles[method]}", said))
    sentence = f"{x_name} by class; the table below has the numbers"
    return _figure(width, bottom + 8, sentence, parts)
