"""Bars: silent unless switched on in front of a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import time
from collections.abc import Iterator
from typing import TextIO

import pytest

from seqagg import HMMAggregator, progress
from seqagg.progress import counted, shown, steps, waiting
from tests.conftest import order_songs

PATIENCE = 10.0
"""Seconds that a busy machine may take to draw."""


class Terminal:
    """The other end of a pseudo-terminal that stands in for standard error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._reader, writer = pty.openpty()
        self._stream = os.fdopen(writer, "w")
        # What a continuous-integration machine sets would turn colours and movement off or on.
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", "100")

    def plugged_in(self) -> contextlib.redirect_stderr[TextIO]:
        """Within the block, standard error is this terminal.

        For a test's own body: pytest puts its capture in place after fixtures are set up.
        """
        return contextlib.redirect_stderr(self._stream)

    def _read_some(self) -> str:
        """What is there now, without colours and movements."""
        self._stream.flush()
        drawn = b""
        while select.select([self._reader], [], [], 0)[0] and len(drawn) < 10_000:
            drawn += os.read(self._reader, 4096)
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn.decode(errors="replace"))

    def until(self, text: str) -> str:
        """What is drawn until `text` is; bars are drawn ten times a second."""
        drawn, end = "", time.monotonic() + PATIENCE
        while text not in drawn:
            assert time.monotonic() < end, f"{text!r} was not drawn, but {drawn!r}"
            drawn += self._read_some()
            time.sleep(0.02)
        return drawn

    def rest(self) -> str:
        """What was drawn since, once nothing is being drawn any more."""
        return self._read_some()

    def close(self) -> None:
        self._stream.close()
        os.close(self._reader)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    found = Terminal(monkeypatch)
    yield found
    found.close()


def work(n: int = 3) -> None:
    with steps("work", n) as step:
        for i in range(n):
            step(f"part {i}")


class TestSilence:
    def test_without_shown(self, terminal: Terminal) -> None:
        with terminal.plugged_in():
            work()
        assert terminal.rest() == ""

    def test_after_shown(self, terminal: Terminal) -> None:
        with terminal.plugged_in(), shown(), steps("work", 2) as step:
            step("part 0")
            terminal.until("work part 0")
        terminal.rest()
        with terminal.plugged_in():
            work()
        assert terminal.rest() == ""

    def test_where_standard_error_is_no_terminal(self, capfd: pytest.CaptureFixture[str]) -> None:
        with shown():
            work()
        assert capfd.readouterr() == ("", "")

    def test_fitting_in_a_library(self, terminal: Terminal) -> None:
        with terminal.plugged_in():
            HMMAggregator(n_states=2, n_iter=2).fit(order_songs(12))
        assert terminal.rest() == ""

    def test_after_a_failure(self, terminal: Terminal) -> None:
        def fail() -> None:
            with terminal.plugged_in(), shown(), steps("hmm", 3) as step:
                step("")
                raise KeyError("jazz")

        with pytest.raises(KeyError, match="jazz"):
            fail()
        assert progress._display.get() is None
        terminal.rest()
        with terminal.plugged_in():
            work()
        assert terminal.rest() == ""


class TestBars:
    def test_count_and_text(self, terminal: Terminal) -> None:
        with terminal.plugged_in(), shown(), steps("hmm", 4) as step:
            terminal.until("0/4")
            step("3 states")
            step("")
            drawn = terminal.until("2/4")
        # The last step had nothing to say.
        assert "3 states" not in drawn[drawn.rindex("hmm") :]

    def test_bars_of_work_inside_work_stand_below_each_other(self, terminal: Terminal) -> None:
        with terminal.plugged_in(), shown(), steps("auto", 2) as outer:
            with steps("hmm", 3) as inner:
                inner("3 states")
                drawn = terminal.until("1/3")
                lines = drawn[drawn.rindex("auto") :].splitlines()
                assert "0/2" in lines[0]
                assert "hmm 3 states" in lines[1]
            # The inner bar goes when its work is done.
            outer("hmm")
            terminal.until("auto hmm")
            terminal.rest()
            assert "3 states" not in terminal.until("1/2")

    def test_nothing_is_written_to_standard_output(
        self, terminal: Terminal, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with terminal.plugged_in(), shown(), steps("hmm", 2):
            terminal.until("0/2")
        assert capfd.readouterr().out == ""

    def test_nothing_is_left_on_the_screen(self, terminal: Terminal) -> None:
        with terminal.plugged_in(), shown(), steps("hmm", 2):
            terminal.until("0/2")
        assert "0/2" not in terminal.rest().splitlines()[-1]

    def test_a_method_reports_every_fit(self) -> None:
        """Three folds of two topologies, and the fit to all songs; nothing is too fast to see."""
        done: list[str] = []

        class Bars:
            def add_task(self, text: str, total: int, rate: str) -> str:
                done.append(f"{text} of {total}")
                return text

            def update(self, bar: str, advance: int, description: str, rate: str) -> None:
                done.append(description)

            def remove_task(self, bar: str) -> None:
                done.append("removed")

        token = progress._display.set(Bars())  # type: ignore[arg-type]
        try:
            HMMAggregator(n_states=2, n_iter=2, covariance_type="diag").fit(order_songs(12))
        finally:
            progress._display.reset(token)
        tried = ["hmm 2 diag ergodic states", "hmm 2 diag left-right states"]
        assert done == ["hmm of 7", *tried * 3, "hmm", "removed"]

    def test_answers_are_the_same_with_bars(self, terminal: Terminal) -> None:
        songs = order_songs(12)
        model = HMMAggregator(n_states=2, n_iter=2)
        silent = model.fit(songs).weights_.tolist()
        with terminal.plugged_in(), shown():
            assert model.fit(songs).weights_.tolist() == silent

    def test_text_is_no_markup(self, terminal: Terminal) -> None:
        """Whatever a method or a song is called."""
        with terminal.plugged_in(), shown(), steps("hmm", 2) as step:
            step("[red] and [bold]")
            assert "[red] and [bold]" in terminal.until("1/2")


def test_counted_work_is_drawn_with_its_rate_once_it_takes_long(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(progress, "monotonic", lambda: now)
    with terminal.plugged_in(), shown(), counted("predict", "songs") as report:
        now = 101.9
        report(3_000, 9_000)
        time.sleep(0.3)
        assert "predict" not in terminal.rest()
        now = 104.0
        report(6_000, 9_000)
        drawn = terminal.until("6000/9000")
        assert "predict, 1,500 songs a second" in drawn


def test_steps_are_drawn_with_their_rate(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(progress, "monotonic", lambda: now)
    with terminal.plugged_in(), shown(), steps("gru", 50) as step:
        now = 108.0
        step("")
        terminal.until("8.0 s each")
        now = 108.5
        for _ in range(16):
            step("")
        terminal.until("2.0 a second")


def test_work_that_cannot_be_counted_is_drawn_once_it_takes_long(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    with terminal.plugged_in(), shown(), waiting("read songs.parquet"):
        time.sleep(0.3)
        assert "read" not in terminal.rest()
    monkeypatch.setattr(progress, "_PATIENCE", 0.1)
    with terminal.plugged_in(), shown(), waiting("read songs.parquet"):
        terminal.until("read songs.parquet")


def test_quiet_draws_nothing_until_it_ends(terminal: Terminal) -> None:
    speak = progress.keep_quiet()
    with terminal.plugged_in(), shown():
        work()
    assert terminal.rest() == ""
    speak()
    with terminal.plugged_in(), shown(), steps("work", 2):
        terminal.until("work")


def test_nobody_need_know_how_much_there_is(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(progress, "monotonic", lambda: now)
    with terminal.plugged_in(), shown(), counted("scoring", "frames") as report:
        now = 104.0
        report(6_000, None)
        assert "scoring, 1,500 frames a second" in terminal.until("6000/?")


def test_counted_work_is_silent_unless_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with counted("predict", "songs") as report:
        report(1, 2)
    assert capsys.readouterr() == ("", "")
