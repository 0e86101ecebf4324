"""What does the page of the embedded songs look like?

    python -m experiments.screenshots

Benchmarks the songs that come with seqagg (or takes a folder of results with ``--results``), makes
the page and photographs it in Chromium: wide on light paper, and on a phone in the dark. They are
``.png`` files, of which the README shows some.
"""  # noqa: D400

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
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

SHOTS: dict[str, dict[str, Any]] = {
    "report_top": {
        "viewport": {"width": 1240, "height": 1290},
        "color_scheme": "light",
        "at": "body",
    },
    "report_song": {
        "viewport": {"width": 1240, "height": 1230},
        "color_scheme": "light",
        "at": "#songs",
    },
    "report_phone": {
        "viewport": {"width": 400, "height": 1130},
        "color_scheme": "dark",
        "at": "#song",
    },
}
"""Name of a picture -> the window it is taken in, and what is at its top."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the page, take the pictures."""
    options = _parser().parse_args(arguments)
    print(first_line(__doc__))
    with TemporaryDirectory() as temporary:
        page = Path(temporary) / "report.html"
        result = read_results(options.results) if options.results else _run(options.quick)
        write_report(result, page)
        for name, shot in SHOTS.items():
            path = folder(options) / f"{name}.png"
            take(page, path, **shot)
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


def take(page: Path, path: Path, at: str, **window: Any) -> None:
    """Photograph a page in a window, with the song opened that the favourite wins most surely.

    Parameters
    ----------
    page, path : Path
        The page, and the ``.png`` file to write.
    at : str
        Selector of what is scrolled to the top.
    **window
        As `playwright` has it: viewport, color_scheme, device_scale_factor.
    """
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("no chromium on this machine: apt-get install chromium")
    with sync_playwright() as driver, atomic_write(path) as temporary:
        browser = driver.chromium.launch(executable_path=chromium, args=[*FLAGS])
        view = browser.new_context(**window).new_page()
        view.goto(page.as_uri())
        view.wait_for_selector("#song svg")
        view.evaluate("at => document.querySelector(at).scrollIntoView()", at)
        view.wait_for_timeout(600)  # scrolling is smooth
        view.screenshot(path=temporary, type="png")
        browser.close()


if __name__ == "__main__":
    main()
