"""The page in a real browser: what a reader sees, can press, and is never asked to download."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from seqagg import Songs, benchmark
from seqagg.report import write_report
from seqagg.results import BenchmarkResult
from tests.made_results import made_result

pytest.importorskip("playwright", reason="the extra 'test' brings a driver of browsers")

from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
WIDE: ViewportSize = {"width": 1280, "height": 900}
NARROW: ViewportSize = {"width": 400, "height": 860}
ODD = ["<script>alert(1)</script>", 'say "it\'s" & go', "🎻 jig 🪕", "ריל אירי", "</script><b>"]


def find_browser() -> str:
    """Chromium of this machine; where everything is to be tested, it must be there."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        why = "no chromium on this machine: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_browser()
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield started
        started.close()


class Visit:
    """A page that is open, and everything it asked for or complained about."""

    def __init__(self, browser: Browser, path: Path, hash_: str = "", **context: Any) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.context = browser.new_context(**{"viewport": WIDE} | context)
        self.page: Page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        started = perf_counter()
        self.url = path.as_uri()
        self.page.goto(self.url + hash_)
        self.page.wait_for_selector("#list tbody tr")
        self.seconds = perf_counter() - started

    def names(self) -> list[str]:
        return self.page.locator("#list tbody .name").all_inner_texts()

    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        script = "document.documentElement.scrollWidth - window.innerWidth"
        return int(self.page.evaluate(script))

    def focused(self) -> str:
        return str(self.page.evaluate("document.activeElement.textContent"))


@pytest.fixture
def visit(browser: Browser) -> Iterator[Any]:
    open_: list[Visit] = []

    def go(path: Path, hash_: str = "", **context: Any) -> Visit:
        open_.append(Visit(browser, path, hash_, **context))
        return open_[-1]

    yield go
    for one in open_:
        one.context.close()
        assert [url for url in one.requests if not url.startswith(one.url)] == []
        assert one.complaints == []


def made_of() -> BenchmarkResult:
    """60 songs, some of whose names and classes would break a careless page."""
    names = [*ODD, *(f"song {i}" for i in range(len(ODD), 60))]
    return made_result(60, ids=names, classes=(ODD[0], ODD[2], ODD[3], "plain"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "report.html"
    write_report(made_of(), path)
    return path


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "report.html"
    write_report(made_result(10_000, classes=[f"class {i}" for i in range(10)]), path)
    return path


# Opening.


def test_it_opens_from_the_disk_and_asks_for_nothing(made: Path, visit: Any) -> None:
    """Requests and complaints are looked at when the visit ends."""
    found = visit(made)
    assert found.page.title().startswith("made: gru")
    assert found.requests == [found.url]


def test_its_policy_keeps_strangers_out(made: Path, browser: Browser) -> None:
    """Were a label to get in as markup after all, it could neither run nor load anything."""
    found = Visit(browser, made)
    found.page.evaluate(
        """() => {
        const script = document.createElement('script');
        script.textContent = 'window.stranger = 1';
        const image = new Image();
        image.src = 'http://127.0.0.1:9/x.png';
        document.body.append(script, image);
    }"""
    )
    found.page.wait_for_timeout(100)
    assert found.page.evaluate("window.stranger") is None
    assert len([text for text in found.complaints if "Content Security Policy" in text]) == 2
    found.context.close()


def test_ten_thousand_songs_open_in_three_seconds(large: Path, visit: Any) -> None:
    assert large.stat().st_size < 15e6
    best = min(visit(large).seconds for _ in range(2))
    assert best < 3.0
    found = visit(large, "#song=9999")
    assert found.page.locator("#song h3").inner_text() == "song 9999"
    assert found.page.locator("#song svg").count() == 1
    assert "of 10000 songs" in found.page.locator("#range").inner_text()


def test_a_thousand_songs_stay_below_three_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    classes = [f"class {i}" for i in range(10)]
    write_report(made_result(1000, classes=classes, frames=(30, 90)), path)
    assert path.stat().st_size < 3e6


# The list.


def test_sort(made: Path, visit: Any) -> None:
    page = (found := visit(made)).page
    head = page.locator("#list thead th").filter(has_text="frames")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    shown = [int(text) for text in page.locator("#list tbody td:nth-child(3)").all_inner_texts()]
    assert shown == sorted(shown, reverse=True)
    assert len(set(shown)) > 5
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    shown = [int(text) for text in page.locator("#list tbody td:nth-child(3)").all_inner_texts()]
    assert shown == sorted(shown)
    page.locator("#list thead th button").first.click()
    names = [name for name in found.names() if name.startswith("song")]
    assert names == sorted(names, key=lambda name: int(name.split()[1])), "as people count"


def test_search(made: Path, visit: Any) -> None:
    found = visit(made)
    found.page.fill("#search", "SONG 1")
    assert found.names() == [f"song {i}" for i in range(10, 20)]
    found.page.fill("#search", "🎻")
    assert set(found.page.locator("#list tbody td:nth-child(2)").all_inner_texts()) >= {ODD[2]}
    found.page.fill("#search", "nothing at all")
    assert found.names() == []
    assert found.page.locator("#range").inner_text() == "no song"


@pytest.mark.parametrize(("choice", "sign"), [("gain", 1), ("loss", -1)])
def test_filter_to_the_songs_that_one_of_two_has_right(
    made: Path, visit: Any, choice: str, sign: int
) -> None:
    result = made_of()
    rows = result.predictions.to_pylist()
    right = {(r["method"], r["song_id"]): r["label"] == r["prediction"] for r in rows}
    ids = result.predictions["song_id"].to_pylist()[:60]
    wanted = [i for i in ids if right["gru", i] - right["logodds", i] == sign]
    found = visit(made)
    found.page.select_option("#filter", choice)
    assert found.names() == wanted[:24]
    assert f"of {len(wanted)} songs" in found.page.locator("#range").inner_text()
    option = found.page.locator(f"#filter option[value={choice}]").inner_text()
    assert option.endswith(f"({len(wanted)})")


def test_another_method_can_be_looked_at(made: Path, visit: Any) -> None:
    page = visit(made).page
    page.select_option("#method", label="hmm")
    assert page.locator("#list thead th").all_inner_texts()[-2:] == ["logodds", "hmm"]
    assert page.locator("#filter option").nth(1).inner_text().startswith("hmm right, averaging")


def test_pages_of_the_list(made: Path, visit: Any) -> None:
    found = visit(made)
    assert found.page.locator("#before").is_disabled()
    found.page.click("#after")
    found.page.click("#after")
    assert found.names() == [f"song {i}" for i in range(48, 60)]
    assert found.page.locator("#after").is_disabled()


# A song.


def test_a_click_opens_a_song(made: Path, visit: Any) -> None:
    page = visit(made).page
    page.locator("#list tbody tr", has_text="song 7").first.click()
    page.wait_for_selector("#song h3 :text-is('song 7')")
    assert page.locator("tr[aria-current]").inner_text().startswith("song 7")
    assert "Timeline of song 7" in page.locator("#song svg").get_attribute("aria-label")
    words = page.locator("#song svg").text_content()
    for text in ("Belief so far", "hmm state", "logodds", "gru", "min:s"):
        assert text in words
    assert "\u2605" in words, "the label is marked"


def test_the_timeline_holds_the_numbers_of_the_table(made: Path, visit: Any) -> None:
    """To the eighth bit, the beliefs that were written."""
    result = made_of()
    assert result.timelines is not None
    song = result.timelines.to_pylist()[9]
    k = result.classes.index(song["toward"])
    page = visit(made, "#song=9").page
    page.locator("#song details summary").click()
    cells = page.locator("#song details tbody tr").evaluate_all(
        "rows => rows.map((row) => Array.from(row.cells, (cell) => cell.textContent))"
    )
    assert len(cells) == len(song["marks"])
    for i, row in enumerate(cells):
        for j, method in enumerate(("logodds", "hmm", "gru")):
            assert abs(int(row[1 + j]) - 100 * song["belief"][method][i][k]) < 0.75
            number = float(row[4 + j].replace("\u2212", "-"))
            most = max(map(abs, song["contribution"][method]))
            assert abs(number - song["contribution"][method][i]) < 0.006 + most / 250


def test_the_place_in_a_song_is_told_in_words(made: Path, visit: Any) -> None:
    page = visit(made, "#song=9").page
    slider = page.locator("#song input[type=range]")
    slider.focus()
    page.keyboard.press("ArrowRight")
    said = slider.get_attribute("aria-valuetext")
    assert said.startswith("Frame 2 (from 0:02): log-odds ")
    assert said == page.locator("#song .readout").inner_text()
    page.locator("#song svg").scroll_into_view_if_needed()
    box = page.locator("#song svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 60)
    assert page.locator("#song .readout").inner_text() != said


def test_by_keyboard_alone(made: Path, visit: Any) -> None:
    found = visit(made)
    page = found.page
    page.locator("#search").focus()
    for _ in range(30):
        page.keyboard.press("Tab")
        if found.focused() == ODD[0]:
            break
    assert found.focused() == ODD[0]
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid", "the focus is seen"
    for _ in range(6):
        page.keyboard.press("ArrowDown")
    assert found.focused() == "song 6"
    page.keyboard.press("Enter")
    page.wait_for_selector("#song h3:has-text('song 6')")
    assert found.focused() == "song 6", "and goes on from there"
    page.keyboard.press("PageDown")
    assert found.focused() == "song 30"
    page.keyboard.press("ArrowUp")
    assert found.focused() == "song 29"
    assert "25 to 48" in page.locator("#range").inner_text()


def test_from_one_song_to_the_next(made: Path, visit: Any) -> None:
    page = visit(made, "#song=10").page
    page.get_by_role("button", name="Next song").click()
    page.wait_for_selector("#song h3:has-text('song 11')")
    page.get_by_role("button", name="Song before").click()
    page.wait_for_selector("#song h3:has-text('song 10')")
    page.go_back()
    page.wait_for_selector("#song h3:has-text('song 11')")


def test_songs_without_a_timeline_say_so(tmp_path: Path, visit: Any) -> None:
    path = tmp_path / "report.html"
    write_report(made_result(30, timelines=False), path)
    page = visit(path, "#song=3").page
    assert "no timeline" in page.locator("#song").inner_text()
    assert "seqagg benchmark --out" in page.locator("#browser .about").inner_text()


# Text, paper, width.


def test_whatever_a_song_or_a_class_is_called_is_text(made: Path, visit: Any) -> None:
    found = visit(made)
    assert found.names()[:5] == ODD
    for i, name in enumerate(ODD):
        found.page.goto(f"{found.url}#song={i}")
        found.page.wait_for_function(
            "name => document.querySelector('#song h3').textContent === name", arg=name
        )
    direction = found.page.locator("#list .name bdi").nth(3)
    assert direction.evaluate("e => getComputedStyle(e).direction") == "rtl"
    text = found.page.locator("main").text_content()
    for name in (ODD[0], ODD[2], ODD[3]):
        assert name in text
    assert found.page.locator("script").count() == 3
    assert found.page.locator("b").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dark_paper_where_it_is_wanted(made: Path, visit: Any, scheme: str) -> None:
    page = visit(made, color_scheme=scheme).page
    shades = page.evaluate(
        """() => ['background-color', 'color'].map((name) =>
        getComputedStyle(document.body).getPropertyValue(name).match(/\\d+/g).map(Number))"""
    )
    paper, ink = (np.mean(shade[:3]) for shade in shades)
    assert (paper > 200 and ink < 60) if scheme == "light" else (paper < 60 and ink > 200)


@pytest.mark.parametrize("width", [400, 768, 1280])
def test_no_sideways_scrolling(made: Path, visit: Any, width: int) -> None:
    found = visit(made, "#song=0", viewport={"width": width, "height": 860})
    assert found.overflow() <= 0
    for details in found.page.locator("details").all():
        details.evaluate("e => { e.open = true; }")
    assert found.overflow() <= 0


def test_a_window_that_changes_its_width_draws_anew(made: Path, visit: Any) -> None:
    found = visit(made, "#song=8")
    before = found.page.locator("#song svg").first.bounding_box()["width"]
    found.page.set_viewport_size(NARROW)
    found.page.wait_for_function(
        f"document.querySelector('#song svg').getBoundingClientRect().width < {before - 50}"
    )
    assert found.overflow() <= 0


@pytest.mark.parametrize(("scheme", "viewport"), [("light", WIDE), ("dark", NARROW)])
def test_axe_finds_no_barrier(made: Path, visit: Any, scheme: str, viewport: ViewportSize) -> None:
    page = visit(made, "#song=7", color_scheme=scheme, viewport=viewport).page
    page.evaluate("for (const e of document.querySelectorAll('details')) e.open = true")
    page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run().then((all) => all.violations)")
    told = [(v["id"], [node["html"][:120] for node in v["nodes"][:3]]) for v in found]
    assert told == []


# What a new user learns from it.


def test_the_verdict_is_on_the_page(made: Path, visit: Any) -> None:
    """Whether the last method beats averaging, how sure that is, and a song where it does."""
    result = made_of()
    page = visit(made).page
    pair = next(
        r.comparison for r in result.comparisons if (r.method, r.baseline) == ("gru", "logodds")
    )
    title = page.locator("h1").inner_text().replace("\u00a0", " ")
    assert title in result.verdicts()
    lead = page.locator(".lead").inner_text().replace("\u00a0", " ")
    assert f"{pair.wins_a} songs are right only with gru, {pair.wins_b} only with" in lead
    assert "exact McNemar test" in lead
    card = page.locator(".card.gain")
    song = card.locator("a").inner_text()
    rows = [r for r in result.predictions.to_pylist() if r["song_id"] == song]
    said = {r["method"]: r["prediction"] == r["label"] for r in rows}
    assert said["gru"]
    assert not said["logodds"]
    card.locator("a").click()
    page.wait_for_function("n => document.querySelector('#song h3').textContent === n", arg=song)


def test_screenshots_are_made_by_one_command(tmp_path: Path) -> None:
    find_browser()
    made_result(40, classes=("jig", "reel")).write(tmp_path / "results")
    arguments = ["--results", str(tmp_path / "results"), "--out", str(tmp_path)]
    command = [sys.executable, "-m", "experiments.screenshots", *arguments]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[1])
    pictures = {path.stem: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert set(pictures) == {"report_top", "report_song", "report_phone"}
    for name, picture in pictures.items():
        assert picture.startswith(b"\x89PNG")
        width = int.from_bytes(picture[16:20], "big")
        assert width == (400 if name == "report_phone" else 1240)
        assert len(picture) < 300_000


def test_several_labels_per_song(tmp_path: Path, visit: Any) -> None:
    rng = np.random.default_rng(0)
    has = rng.random((60, 4)) < 0.4
    columns = ["a", "b", "c", "<d>"]
    songs = Songs.from_arrays(
        [rng.normal(2.0 * row - 1, 2.0, (rng.integers(3, 9), 4)) for row in has],
        columns=columns,
        labels=[tuple(c for c, h in zip(columns, row, strict=True) if h) for row in has],
        task="multilabel",
    )
    result = benchmark(songs, ["logodds", "stack"], cv=3, timelines=60, n_resamples=200)
    path = tmp_path / "report.html"
    write_report(result, path)
    page = visit(path, "#song=2", viewport=NARROW).page
    assert page.locator(".methods thead th").nth(1).inner_text() == "LRAP, %"
    assert page.locator("#song svg").count() == 1
    assert page.locator("#errors").count() == 0, "nothing is taken for one other thing"
    page.select_option("#filter", "gain")
    data = json.loads(page.locator("#data").text_content())
    assert data["multilabel"]
