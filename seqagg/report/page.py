"""The page: facts, figures and packed songs put into one file that asks for nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from seqagg import palette
from seqagg.report import figures
from seqagg.report.facts import (
    Answers,
    Shares,
    by_class,
    by_length,
    confusion,
    early,
    find_answers,
    reliability,
)
from seqagg.report.payload import pack_songs, pack_timelines
from seqagg.report.story import favourite_pair, headline, how_sure, tell_songs
from seqagg.results import BenchmarkResult
from seqagg.wording import how_scored, points

_MOST_CLASSES = 40
"""Classes that figures show, those of most songs; the list of songs has all."""

_BINS = 10


def build_page(result: BenchmarkResult) -> str:
    """Make the page of a benchmark.

    Parameters
    ----------
    result : BenchmarkResult
        With timelines, the page shows what happened in songs; without, it says how to get them.

    Returns
    -------
    str
        HTML that needs neither network nor other files.
    """
    answers = find_answers(result)
    head, lines = pack_timelines(result, answers)
    style, script = _file("style.css"), _file("page.js")
    style = _colours(answers.methods) + style
    gain, loss = tell_songs(result, answers)
    first = gain.row if gain else head["songs"][0] if head["songs"] else -1
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["unbroken"] = _unbroken
    return environment.from_string(_file("template.html")).render(
        about=result.provenance,
        answers=answers,
        headline=headline(result, answers),
        how_sure=how_sure(result, answers),
        how_scored=how_scored(result.provenance, len(answers.ids)),
        verdicts=[v for v in result.verdicts() if v != headline(result, answers)],
        gain=gain,
        loss=loss,
        notes=result.notes,
        left_out=result.left_out,
        table=_methods_table(result, answers),
        matrices=_matrices(answers),
        classes_hidden=max(0, len(answers.classes) - _MOST_CLASSES),
        reliabilities=_reliabilities(answers),
        when=_when(result, answers),
        n_told=len(head["songs"]),
        data=_script_json(pack_songs(answers) | {"timelines": head, "first": first}),
        timelines=Markup("\n".join(lines)),  # numbers and base64
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _unbroken(text: str) -> str:
    """Text whose numbers stay with their percent sign."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def _file(name: str) -> str:
    return files("seqagg.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What the page's own policy knows its style and script by."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _script_json(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def _colours(methods: Sequence[str]) -> str:
    """Colours as properties of the style, for light and dark paper."""
    named = {"for": palette.FOR, "against": palette.AGAINST, "neutral": palette.NEUTRAL}
    named |= {f"state{i}": colour for i, colour in enumerate(palette.STATES)}
    named |= {f"m{i}": palette.method_colour(m, list(methods)) for i, m in enumerate(methods)}
    sides = ["".join(f"--{name}:{c[side]};" for name, c in named.items()) for side in (0, 1)]
    styles = "".join(f".m{i}{{--c:var(--m{i})}}" for i in range(len(methods)))
    return f":root{{{sides[0]}}}@media (prefers-color-scheme:dark){{:root{{{sides[1]}}}}}{styles}\n"


def _methods_table(result: BenchmarkResult, answers: Answers) -> dict[str, Any]:
    """Rows of the table of methods, the difference from averaging drawn in each."""
    multilabel = answers.multilabel
    pairs = {r.method: r for r in result.comparisons if r.baseline == answers.averaging}
    span = figures.difference_span(
        end for r in pairs.values() for end in (r.comparison.low, r.comparison.high)
    )
    score = "lrap" if multilabel else "accuracy"
    rows = []
    summary = {row["method"]: row for row in result.summary()}
    best = max(row[score] for row in summary.values())
    for number, method in enumerate(answers.methods):
        row, pair = summary[method], pairs.get(method)
        found: dict[str, Any] = {
            "method": method,
            "style": f"m{number}",
            "score": f"{100 * row[score]:.1f}",
            "best": row[score] == best,
            "log_loss": f"{row['log_loss']:.3f}",
            "calibration_error": f"{100 * row['calibration_error']:.1f}",
            "seconds": f"{row['fit_seconds'] + row['predict_seconds']:.1f}",
            "pair": None,
        }
        if pair is not None:
            c = pair.comparison
            found["pair"] = {
                "figure": figures.difference(c.low, c.difference, c.high, span, f"m{number}"),
                "text": f"{points(c.difference)} ({points(c.low)} to {points(c.high)})",
                "wins": c.wins_a,
                "losses": c.wins_b,
                "p": f"{pair.holm_p:.3f}" if pair.holm_p >= 0.001 else "< 0.001",
            }
        rows.append(found)
    scale = figures.difference_scale(span) if pairs else None
    return {"rows": rows, "scale": scale, "score": "LRAP, %" if multilabel else "accuracy, %"}


def _shown_classes(answers: Answers) -> list[int]:
    """Classes that figures show, in their own order."""
    count = answers.has.sum(axis=0)
    return sorted(np.argsort(-count, kind="stable")[:_MOST_CLASSES].tolist())


def _matrices(answers: Answers) -> list[dict[str, Any]]:
    """Confusions of each method, and what differs from averaging's."""
    if answers.multilabel:
        return []
    kept = _shown_classes(answers)
    names = [answers.classes[k] for k in kept]
    counts = {m: confusion(answers, m)[np.ix_(kept, kept)] for m in answers.methods}
    base = answers.averaging
    order = sorted(answers.methods, key=lambda m: (m != base, m != answers.favourite))
    found = []
    for method in order:
        change = None
        if base is not None and method != base:
            title = f"{method} against {base}"
            change = figures.confusion_difference(counts[method], counts[base], names, title)
        found.append(
            {
                "method": method,
                "figure": figures.confusion(counts[method], names, method),
                "change": change,
                "names": names,
                "rows": list(zip(names, counts[method].tolist(), strict=True)),
                "first": method in (base, answers.favourite),
            }
        )
    return found


def _reliabilities(answers: Answers) -> list[dict[str, Any]]:
    unit = "decisions" if answers.multilabel else "songs"
    found = []
    for number, method in enumerate(answers.methods):
        shares = reliability(answers, method, _BINS)
        figure = figures.reliability(shares, method, f"m{number}", unit)
        found.append({"method": method, "figure": figure, "shares": _rows(shares)})
    return found


def _rows(shares: Shares) -> list[dict[str, str]]:
    """Shares as text, for those who do not see the figure."""
    columns = (shares.at, shares.share, shares.low, shares.high, shares.count)
    return [
        {
            "at": f"{100 * at:.0f}",
            "share": f"{100 * share:.0f}",
            "interval": f"{100 * low:.0f} to {100 * high:.0f}",
            "count": str(count),
        }
        for at, share, low, high, count in zip(*columns, strict=True)
    ]


def _when(result: BenchmarkResult, answers: Answers) -> dict[str, Any]:
    """Figures of how right methods are: by frames heard, by length, by class."""
    methods, score = answers.methods, "LRAP, %" if answers.multilabel else "accuracy, %"
    styles = {m: f"m{i}" for i, m in enumerate(methods)}
    kept = _shown_classes(answers)
    shares = {m: by_class(answers, m) for m in methods}
    drawn = [k for k in kept if answers.has[:, k].any()]
    names = [answers.classes[k] for k in drawn]
    taken = {m: s.take(drawn) for m, s in shares.items()}
    pair = favourite_pair(result, answers)
    ends = None if pair is None else (pair.baseline, pair.method)
    found: dict[str, Any] = {
        "score": score,
        "classes": figures.by_class(taken, names, styles, ends, score),
        "class_rows": [
            (name, taken[methods[0]].count[i], [f"{100 * taken[m].share[i]:.1f}" for m in methods])
            for i, name in enumerate(names)
        ],
        "early": None,
        "length": None,
    }
    curve = early(result)
    if curve is not None:
        found["early"] = _curves(
            {m: (curve[0], curve[1][m]) for m in methods}, styles, "frames heard", score, log=True
        )
    by_size = {m: by_length(answers, m) for m in methods}
    if answers.n_frames is not None and np.ptp(answers.n_frames) > 0:
        lengths = {m: (s.at, s.share) for m, s in by_size.items() if s is not None}
        found["length"] = _curves(lengths, styles, "frames in the song", score, log=False)
    return found


def _curves(
    lines: Mapping[str, tuple[Any, Any]],
    styles: Mapping[str, str],
    x_name: str,
    y_name: str,
    *,
    log: bool,
) -> dict[str, Any]:
    """Figure of a line per method, and its numbers."""
    at = next(iter(lines.values()))[0]
    shares = {m: values for m, (_, values) in lines.items()}
    chosen = [styles[m] for m in lines]
    figure = figures.curves(
        [np.asarray(a, dtype=np.float64) for a, _ in lines.values()],
        list(shares.values()),
        list(lines),
        chosen,
        x_name,
        y_name,
        log,
    )
    rows = [
        (f"{x:.0f}", [f"{100 * values[i]:.1f}" for values in shares.values()])
        for i, x in enumerate(at)
    ]
    return {"figure": figure, "rows": rows, "methods": list(lines), "x": x_name}
