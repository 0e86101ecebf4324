"""The verdict and one song each way, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqagg.report.facts import Answers
from seqagg.results import BenchmarkResult, ComparisonRow
from seqagg.wording import points, verdict


@dataclass(frozen=True)
class Story:
    """One song, and why methods answer it as they do.

    Attributes
    ----------
    row : int
        Its place among the songs scored.
    song, text : str
        Its id; what follows the id in a sentence.
    """

    row: int
    song: str
    text: str


def favourite_pair(result: BenchmarkResult, answers: Answers) -> ComparisonRow | None:
    """Comparison of the favourite with averaging, if both are there and not the same."""
    for row in result.comparisons:
        if row.method == answers.favourite and row.baseline == answers.averaging:
            return row
    return None


def headline(result: BenchmarkResult, answers: Answers) -> str:
    """Say in a sentence which method won, by how much, and whether it is noise."""
    pair = favourite_pair(result, answers)
    best = answers.favourite
    if pair is not None and pair.baseline == "logodds":
        return verdict(best, pair.comparison, pair.metric)
    score = f"{100 * answers.score[best].mean():.1f} %"
    what = f"an LRAP of {score}" if answers.multilabel else f"right on {score} of the songs"
    if pair is None:
        return f"{best} is first with {what}; there is no averaging to compare it with."
    found = pair.comparison
    return (
        f"{best} is first with {what}, {points(found.difference)} points on {pair.baseline} "
        f"(95 % interval {points(found.low)} to {points(found.high)})."
    )


def how_sure(result: BenchmarkResult, answers: Answers) -> str:
    """Say how often chance alone would divide the songs so, and whose songs they are."""
    row = favourite_pair(result, answers)
    if row is None:
        return ""
    pair, method, other = row.comparison, row.method, f"averaging ({row.baseline})"
    if row.metric == "lrap":
        test = "sign test"
        said = f"{method} ranks {pair.wins_a} songs better, {other} {pair.wins_b}."
    else:
        test = "exact McNemar test"
        said = f"{pair.wins_a} songs are right only with {method}, {pair.wins_b} only with {other}."
    n_rivals = sum(r.baseline == row.baseline for r in result.comparisons)
    corrected = f", {_chance(row.holm_p)} after Holm's correction for {n_rivals} comparisons"
    units = "songs" if pair.n_groups == pair.n_songs else f"{pair.n_groups} groups of songs"
    return (
        f"{said} Were both equally good, so uneven a division would come up in "
        f"{_chance(pair.p_value)} of cases ({test}{corrected if n_rivals > 1 else ''}). The "
        f"interval is a bootstrap over {units}."
    )


def _chance(p: float) -> str:
    if p < 0.001:
        return "less than 0.1 %"
    return f"{100 * p:.{1 if p < 0.1 else 0}f} %"


def tell_songs(result: BenchmarkResult, answers: Answers) -> tuple[Story | None, Story | None]:
    """Song that the favourite gains most surely on averaging, and the song it so loses."""
    table, base = result.timelines, answers.averaging
    if table is None or base is None or base == answers.favourite:
        return None, None
    told = table["log_odds"].is_valid().to_numpy()
    gain = answers.score[answers.favourite] - answers.score[base]
    p = {m: (answers.proba[m] * answers.has).sum(axis=1) for m in (answers.favourite, base)}
    gap = p[answers.favourite] - p[base]
    found = []
    for sign in (1, -1):
        rows = np.flatnonzero(told & (sign * gain > 0))
        best = None if len(rows) == 0 else int(rows[(sign * gap[rows]).argmax()])
        found.append(None if best is None else tell(result, answers, best))
    return found[0], found[1]


def tell(result: BenchmarkResult, answers: Answers, row: int) -> Story:
    """Say what averaging and the favourite make of a song that has a timeline, and why."""
    assert result.timelines is not None
    assert answers.averaging is not None
    song = {n: result.timelines[n][row].as_py() for n in result.timelines.column_names}
    text = " ".join(_sentences(result, answers, row, song))
    return Story(row, answers.ids[row], text)


def _sentences(
    result: BenchmarkResult, answers: Answers, row: int, song: dict[str, Any]
) -> Iterator[str]:
    names = np.array(answers.classes)
    base, best, toward = answers.averaging, answers.favourite, song["toward"]
    assert base is not None
    k = answers.classes.index(toward)
    yield f"is labelled {', '.join(names[answers.has[row]]) or 'nothing'}."
    said = []
    for method, called in ((base, f"averaging ({base})"), (best, best)):
        p = answers.proba[method][row]
        of = toward if answers.multilabel else names[p.argmax()]
        said.append(
            f"{called} says {of} with {100 * (p[k] if answers.multilabel else p.max()):.0f} %"
        )
    yield f"{said[0][0].upper()}{said[0][1:]}, {said[1]}."
    if best in song["belief"]:
        yield from _frame_by_frame(result, song)
        yield from _as_it_plays(answers, song, k)
        yield from _why(song, best, k)


def _frame_by_frame(result: BenchmarkResult, song: dict[str, Any]) -> Iterator[str]:
    """What the frames say one by one."""
    columns, n = result.provenance["columns"] or [], song["n_frames"]
    toward, against = song["toward"], song["against"]
    if against in columns and toward in columns:
        x = np.array(song["log_odds"])
        above = int((x[:, columns.index(toward)] > x[:, columns.index(against)]).sum())
        some = "none" if above == 0 else "all" if above == n else str(above)
        yield f"One by one, {some} of its {n} frames are for {toward} rather than {against}."


def _as_it_plays(answers: Answers, song: dict[str, Any], k: int) -> Iterator[str]:
    """From when on the favourite prefers what it answers in the end."""
    best, against = answers.favourite, song["against"]
    if against is None:
        return
    belief = np.array(song["belief"][best])
    ahead = belief[:, k] > belief[:, answers.classes.index(against)]
    if ahead[-1]:
        behind = np.flatnonzero(~ahead)
        since = song["marks"][0 if len(behind) == 0 else behind[-1] + 1]
        yield f"{best} is for {song['toward']} from frame {since} on."


def _why(song: dict[str, Any], best: str, k: int) -> Iterator[str]:
    """Which frames did it, and whether their order did."""
    shares, marks = np.array(song["contribution"][best]), song["marks"]
    top = int(shares.argmax())
    if len(marks) > 1 and shares[top] > 0:
        first = 1 + (marks[top - 1] if top else 0)
        where = f"frame {first}" if first == marks[top] else f"frames {first} to {marks[top]}"
        yield f"Most comes from {where}: without it the lead would be {shares[top]:.2f} nats less."
    elif len(marks) > 1:
        yield "No frame by itself made it so: leave any one out, and the lead is no smaller."
    shuffled = song["shuffled"].get(best)
    if shuffled is None:
        return
    played = song["belief"][best][-1][k]
    change = f"{100 * shuffled:.0f} % instead of {100 * played:.0f} %"
    told = f"shuffled, they give {song['toward']} {change}"
    if abs(shuffled - played) > 0.25 * played:
        yield f"The order of its frames is why: {told}."
    else:
        yield f"Their order is not why: {told}. It has learnt what such frames stand for."
