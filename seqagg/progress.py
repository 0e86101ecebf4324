"""Progress of long work, shown only where a command has switched it on.

The library reports; whether anybody sees it is decided at the top. A command that draws to a
terminal enters `shown`, everything else stays silent.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

_PATIENCE = 2.0
"""Seconds of counted work before it is drawn."""

_display: ContextVar[Progress | None] = ContextVar("seqagg_progress", default=None)
_quiet: ContextVar[bool] = ContextVar("seqagg_quiet", default=False)


def keep_quiet() -> Callable[[], None]:
    """Show nothing from here on; call what this gives to speak again."""
    token = _quiet.set(True)
    return lambda: _quiet.reset(token)


def is_quiet() -> bool:
    """Whether a command was asked to say no more than its result."""
    return _quiet.get()


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Draw bars on standard error within the block, if that is a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal or is_quiet():
        yield
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as display:
        token = _display.set(display)
        try:
            yield
        finally:
            _display.reset(token)


@contextlib.contextmanager
def steps(text: str, total: int) -> Iterator[Callable[[str], None]]:
    """Report work of `total` steps: call what this gives after each, with what was done.

    Bars of work inside work stand below each other.
    """
    display = _display.get()
    if display is None:
        yield lambda done: None
        return
    start, n_done = monotonic(), 0
    bar = display.add_task(text, total=total, rate="")

    def report(done: str) -> None:
        nonlocal n_done
        n_done += 1
        rate = _rate(n_done / max(monotonic() - start, 1e-9))
        display.update(bar, advance=1, description=f"{text} {done}".rstrip(), rate=rate)

    try:
        yield report
    finally:
        display.remove_task(bar)


def _rate(per_second: float) -> str:
    return f"{per_second:.1f} a second" if per_second >= 1 else f"{1 / per_second:.1f} s each"


@contextlib.contextmanager
def counted(text: str, unit: str) -> Iterator[Callable[[int, int | None], None]]:
    """Report work of many small things: call what this gives with how many are done, and of all.

    Drawn, with how many are done in a second, once it has taken two. None = nobody knows of how
    many.
    """
    display = _display.get()
    if display is None:
        yield lambda done, total: None
        return
    start = monotonic()
    bar = display.add_task(text, total=None, visible=False, rate="")

    def report(done: int, total: int | None) -> None:
        seconds = monotonic() - start
        if seconds >= _PATIENCE:
            rate = f"{text}, {done / seconds:,.0f} {unit} a second"
            display.update(bar, completed=done, total=total, description=rate, visible=True)

    try:
        yield report
    finally:
        display.remove_task(bar)


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """Report work that cannot be counted, once it has taken two seconds."""
    display = _display.get()
    if display is None:
        yield
        return
    bar = display.add_task(text, total=None, visible=False, rate="")
    timer = threading.Timer(_PATIENCE, lambda: display.update(bar, visible=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        display.remove_task(bar)
