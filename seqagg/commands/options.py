"""Options and arguments that several commands take."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from seqagg.places import Place, place_of
from seqagg.progress import keep_quiet

if TYPE_CHECKING:
    from seqagg.engines import EngineName

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


class PlaceType(click.ParamType):  # type: ignore[type-arg]
    """A path or a URL."""

    name = "path"

    def convert(self, value: Any, param: Any, ctx: Any) -> Place:
        """Make it a place."""
        return place_of(value)


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
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Seed of all chance.",
)
cache_argument = click.argument("cache", type=PlaceType())


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the parameter `engine`, of three options."""

    @click.option(
        "--engine", "name", type=click.Choice(["local", "ray"]), default="local", help="Who works."
    )
    @click.option(
        "--jobs",
        type=click.IntRange(min=1),
        metavar="N",
        help="Processes on this machine.  [default: 1; with ray, one per core]",
    )
    @click.option(
        "--address",
        help="Ray cluster: auto, HOST:PORT or ray://HOST:PORT.  [default: one on this machine]",
    )
    @functools.wraps(command)
    def with_engine(
        *args: Any, name: EngineName, jobs: int | None, address: str | None, **options: Any
    ) -> Any:
        from seqagg.engines import Engine

        return command(*args, engine=Engine(name, jobs, address), **options)

    return with_engine
