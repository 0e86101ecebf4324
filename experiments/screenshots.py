"""What does the page of the embedded songs look like?

    python -m experiments.screenshots

Benchmarks the songs that come with seqagg (or takes a folder of results with ``--results``), makes
the page and photographs it in Chromium: wide on light paper, and on a phone in the dark. They are
``.png`` files, of which the README shows some.
"""  # noqa: D400

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import seqagg
from experiments.caches import embedded_cache, few_songs
from experiments.runs import QUICK, first_line, folder, parser
from seqagg.benchmark import METHODS
from seqagg.files import atomic_write
from seqagg.report import write_report
from seqagg.results import BenchmarkResult, read_results

NAME = "screenshots"

FLAGS = ("--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-color-profile=srgb")


@dataclass(frozen=True)
class Shot:
    """A picture: the window as playwright has it, and what is scrolled to its top."""

    window: Mapping[str, Any]
    top: str


SHOTS = {
    "report_top": Shot({"viewport": {"width": 1240, "height": 1290}}, "body"),
    "report_song": Shot({"viewport": {"width": 1240, "height": 1230}}, "#songs"),
    "report_phone": Shot(
        {"viewport": {"width": 400, "height": 1130}, "color_scheme": "dark"}, "#song"
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the page, take the pictures."""
    options = _parser().parse_args(arguments)
    print(first_line(__doc__))
    with TemporaryDirectory() as temporary:
        page = Path(temporary) / "report.html"
        result = read_results(options.results) if options.results else _run(options.quick)
        write_report(result, page)
        for path in take(page, folder(options)):
            print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def _parser() -> argparse.ArgumentParser:
    made = parser(__doc__, NAME)
    made.add_argument("--results", type=Path, help="what 'seqagg benchmark --out' wrote")
    return made


def _run(quick: bool) -> BenchmarkResult:
    cache = embedded_cache()
    if cache is None:
        raise SystemExit("the songs are not there yet: python -m experiments.tunes makes them")
    cache = few_songs(cache) if quick else cache
    return seqagg.benchmark(
        cache.songs,
        METHODS,
        name=cache.name,
        checksum=cache.checksum,
        command="seqagg benchmark --out results",
        parameters={m: p for m, p in QUICK.items() if m in METHODS} if quick else None,
        timelines=1000,
    )


def take(page: Path, out: Path) -> Iterator[Path]:
    """Photograph a page, the song open that the favourite wins most surely.

    Parameters
    ----------
    page, out : Path
        The page, and the folder of the pictures, which come as they are taken.
    """
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("no chromium on this machine: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=[*FLAGS])
        for name, shot in SHOTS.items():
            window = browser.new_context(**shot.window, reduced_motion="reduce")
            view = window.new_page()
            view.goto(page.as_uri())
            view.wait_for_selector("#song svg")
            view.evaluate("top => document.querySelector(top).scrollIntoView()", shot.top)
            with atomic_write(out / f"{name}.png") as temporary:
                view.screenshot(path=temporary, type="png")
            window.close()
            yield out / f"{name}.png"
        browser.close()


if __name__ == "__main__":
    main()
