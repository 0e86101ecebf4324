"""What people see: tables and sentences on a terminal, JSON for programs.

Conventions
-----------
Results go to standard output, warnings to standard error. Text that comes from songs passes
`printable` first: an id may hold anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from seqagg.progress import is_quiet
from seqagg.wording import how_scored, points

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from seqagg.inspection import Inspection
    from seqagg.results import BenchmarkResult

_MOST_CLASSES = 30
"""Classes that `inspect` lists for people; JSON has them all."""


_PIPE_WIDTH = 160

_LEAST, _GAP = 4, 2
"""Letters that a column needs at least, and those between two columns."""

NAMED = 5
"""Items that a line names before it says how many more there are."""


def show_inspection(name: str, found: Inspection) -> None:
    """Print what is in a cache, and what is wrong with it."""
    facts = [f"{name}: {found.n_songs} songs, {found.n_frames} frames"]
    if found.frames_per_song is not None:
        fewest, median, most = found.frames_per_song
        facts.append(f"Frames per song: {fewest} to {most}, median {median:g}.")
    else:
        facts.append("Scores were not read; --scores reads them, and looks for more.")
    facts.append(
        f"{len(found.columns)} columns of {found.kind}, {found.task}: "
        + shorten(found.columns, _MOST_CLASSES)
        + "."
    )
    if found.n_groups is not None:
        facts.append(f"{found.n_groups} groups.")
    if found.n_folds:
        facts.append(f"The frame classifier declares {found.n_folds} folds.")
    if found.sum_to_one is not None:
        facts.append(f"Frames whose probabilities sum to one: {found.sum_to_one:.1%}.")
    if found.saturated is not None:
        facts.append(f"Scores that are probabilities of exactly 0 or 1: {found.saturated:.1%}.")
    if found.note:
        facts.append(f"Note: {found.note}")
    console = make_console()
    for fact in facts:
        say(console, fact)
    say(console, "")
    show_table(console, _parts_table(found))
    if found.classes:
        show_table(console, _classes_table(found))
    hidden = len(found.classes) - _MOST_CLASSES
    if hidden > 0:
        say(console, f"and {hidden} classes more (--json has all)")
    for warning in found.warnings:
        say(console, f"warning: {warning}", style="yellow")
    if not found.warnings:
        say(console, "Nothing wrong was found.", style="green")


def _parts_table(found: Inspection) -> Table:
    table = make_table(
        "split", "songs", "no\nlabel", "groups", "frames", "missing\nframes", "right\nframes %"
    )
    for part in found.parts:
        right = "" if part.frame_accuracy is None else f"{100 * part.frame_accuracy:.1f}"
        if part.frame_accuracy_error is not None:
            right += f" ± {100 * part.frame_accuracy_error:.1f}"
        numbers = [
            part.n_songs,
            part.n_songs - part.n_labelled,
            part.n_groups,
            part.n_frames,
            part.n_missing,
        ]
        shown = ["" if number is None else str(number) for number in numbers]
        table.add_row(printable(_part_name(part.name, found)), *shown, right)
    return table


def _classes_table(found: Inspection) -> Table:
    table = make_table("class", *(_part_name(part.name, found) for part in found.parts))
    for label, counts in list(found.classes.items())[:_MOST_CLASSES]:
        table.add_row(printable(label), *map(str, counts))
    return table


def _part_name(name: str | None, found: Inspection) -> str:
    if name is None:
        return "all" if len(found.parts) == 1 else "(none)"
    return printable(name)


def show_benchmark(result: BenchmarkResult, out: Path | None) -> None:
    """Print the table of a benchmark, and in words whether anything beats averaging."""
    console = make_console()
    rows = result.summary()
    about = result.provenance
    say(console, f"{about['cache']}: {how_scored(about, int(rows[0]['n_songs']))}")
    for reason, ids in result.left_out.items():
        say(console, f"Left out, {reason}: {len(ids)} ({shorten(ids, NAMED)}).")
    say(console, "")
    show_table(console, _benchmark_table(result, rows))
    for sentence in result.verdicts():
        say(console, sentence)
    for note in result.notes:
        say(console, f"Note: {note}.")
    if out is not None:
        written(console, f"Written: {out / 'report.html'} to look at, and its tables beside it")


def _benchmark_table(result: BenchmarkResult, rows: Sequence[Mapping[str, Any]]) -> Table:
    pairs = {row.method: row.comparison for row in result.comparisons if row.baseline == "logodds"}
    against = ["points against\nlogodds (95 %)"] if pairs else []
    multilabel = result.provenance["task"] == "multilabel"
    scores = {"lrap": "LRAP\n%", "mean_average_precision": "mAP\n%"}
    shown = scores if multilabel else {"accuracy": "accuracy\n%"}
    first, *more = shown.values()
    headers = [first, *against, *more, "log\nloss", "calib.\nerr. %", "time\ns"]
    table = make_table("method", *headers)
    for row in rows:
        pair = pairs.get(row["method"])
        difference = (
            "-"
            if pair is None
            else (f"{points(pair.difference)} ({points(pair.low)}, {points(pair.high)})")
        )
        score, *further = [f"{100 * row[metric]:.1f}" for metric in shown]
        of_seeds = row.get(f"{next(iter(shown))}_of_seeds", [])
        if len(of_seeds) > 1:
            score += f" ({100 * min(of_seeds):.1f}..{100 * max(of_seeds):.1f})"
        table.add_row(
            printable(row["method"]),
            score,
            *([difference] if pairs else []),
            *further,
            f"{row['log_loss']:.3f}",
            f"{100 * row['calibration_error']:.1f}",
            f"{row['fit_seconds'] + row['predict_seconds']:.1f}",
        )
    return table


def show_fit(report: Mapping[str, Any], n_all: int) -> None:
    """Print what was fitted."""
    console = make_console()
    where = "" if report["split"] is None else f" (split {report['split']})"
    say(
        console,
        f"{report['method']} fitted on {report['n_songs']} of {n_all} songs{where}, "
        f"{len(report['classes'])} classes.",
    )
    for reason, ids in report["left_out"].items():
        say(console, f"Left out, {reason}: {len(ids)} ({shorten(ids, NAMED)}).")
    if report["resumed"]:
        say(console, "Went on where an earlier fit of the same stopped.")
    for line in (report["report"] or "").splitlines():
        say(console, line)
    written(console, f"Written: {report['model']}")


def make_console() -> Console:
    """Standard output for tables: colour on a terminal alone, and no markup in users' names."""
    import os

    from rich.console import Console

    plain = Console(markup=False, highlight=False, emoji=False)
    if plain.is_terminal or "COLUMNS" in os.environ:
        return plain
    return Console(markup=False, highlight=False, emoji=False, width=_PIPE_WIDTH)


def make_table(*headers: str, left: int = 1) -> Table:
    """Table whose first `left` columns hold text and the others numbers."""
    from rich import box
    from rich.table import Table

    style: dict[str, Any] = {"box": box.SIMPLE_HEAD, "show_edge": False, "pad_edge": False}
    table = Table(**style, padding=(0, 1, 0, 0), header_style="bold")
    for i, header in enumerate(headers):
        table.add_column(header, justify="left" if i < left else "right", overflow="fold")
    return table


def show_table(console: Console, table: Table) -> None:
    """Print a table whose numbers stay whole; where there is no room, a value below the other."""
    from rich.cells import cell_len

    headers = [" ".join(str(column.header).split()) for column in table.columns]
    rows = list(zip(*(map(str, column.cells) for column in table.columns), strict=True))
    for i, column in enumerate(table.columns):
        numbers = [row[i] for row in rows] if column.justify == "right" else []
        column.min_width = max(map(cell_len, [*headers[i].split(), *numbers, " " * _LEAST]))
    if sum((column.min_width or 0) + _GAP for column in table.columns) <= console.width + _GAP:
        console.print(table, "")
        return
    for row in rows:
        console.print(f"{headers[0]} {row[0]}", style="bold")
        for header, cell in zip(headers[1:], row[1:], strict=True):
            console.print(f"  {header}: {cell}")
        console.print("")


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print a paragraph, wrapped on a terminal and in one line elsewhere."""
    console.print(printable(text), style=style, soft_wrap=not console.is_terminal)


def written(console: Console, text: str) -> None:
    """Say what was written, unless a command was asked to be quiet."""
    if not is_quiet():
        say(console, text)


def warn(warnings: Iterable[str]) -> None:
    """Print warnings to standard error, unless a command was asked to be quiet."""
    if is_quiet():
        return
    for warning in warnings:
        click.echo(f"seqagg: warning: {printable(warning)}", err=True)


def printable(text: str) -> str:
    """Text without what would steer a terminal, since labels and ids may hold anything."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def shorten(items: Sequence[Any], n: int) -> str:
    """Join the first `n` items and say how many more there are."""
    more = len(items) - n
    return ", ".join(map(str, items[:n])) + (f" and {more} more" if more > 0 else "")


def print_json(value: Any) -> None:
    """Print one JSON value."""
    click.echo(json.dumps(to_json(value), ensure_ascii=False, indent=2, allow_nan=False))


def to_json(value: Any) -> Any:
    """Value as strict JSON has it: NaN and infinity are null."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)
