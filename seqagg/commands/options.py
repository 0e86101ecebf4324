"""Options and arguments that several commands take."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import CompletionItem

from seqagg.progress import keep_quiet

METHODS = ("majority", "mean", "logodds", "hmm", "gru", "stack", "mil", "auto")
"""Names in `aggregators.AGGREGATORS`, which would take a second to import for a press of a key."""


def complete_methods(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Methods that a word, or the last of a list joined by commas, may become."""
    before, comma, last = incomplete.rpartition(",")
    return [CompletionItem(before + comma + m) for m in METHODS if m.startswith(last)]


def _on_quiet(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        ctx.call_on_close(keep_quiet())


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
quiet_option = click.option(
    "--quiet",
    "-q",
    is_flag=True,
    expose_value=False,
    callback=_on_quiet,
    help="No progress, no warnings, no word on what was written.",
)
seed_option = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all chance."
)
cache_argument = click.argument("cache", type=click.Path(path_type=Path))
