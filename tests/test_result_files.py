"""A folder of results is the old or the new one, whole, whenever its writer is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from seqagg import result_files, write_cache
from seqagg.cli import main
from seqagg.errors import ResultsError
from seqagg.results import BenchmarkResult, read_results
from tests.conftest import order_free_songs
from tests.made_results import made_result

needs_kills = pytest.mark.skipif(sys.platform == "win32", reason="no fork, no locks")

MADE: dict[str, Callable[[], BenchmarkResult]] = {
    "with timelines": lambda: made_result(20, seed=1),
    "without": lambda: made_result(20, seed=2, timelines=False),
    "of the same provenance": lambda: made_result(20, seed=3),
}


def tables(result: BenchmarkResult) -> list[Any]:
    found = (result.results, result.predictions, result.timelines)
    return [None if table is None else table.to_pylist() for table in found]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.test_result_files import MADE, check_after_a_kill

before, after, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
old, new = MADE[before]() if before else None, MADE[after]()

def write_and_die(moment):
    left = [moment]

    def hook(event, arguments):
        inside = any(isinstance(a, str | os.PathLike) and str(a).startswith(str(folder))
                     for a in arguments)
        if inside and event in ("open", "os.rename", "os.remove"):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    new.write(folder, "new page")
    os._exit(0)

found = []
for moment in range(1, 1000):
    if old is not None:
        old.write(folder, "old page")
    pid = os.fork()
    if pid == 0:
        write_and_die(moment)
    _, status = os.waitpid(pid, 0)
    if status == 0:
        break
    found.append(check_after_a_kill(folder, old, new))
print(" ".join(found))
"""


def check_after_a_kill(folder: Path, old: BenchmarkResult | None, new: BenchmarkResult) -> str:
    """Which of them is there, whole; and reading writes nothing, and the next writer cleans up."""
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    try:
        found = tables(read_results(folder))
    except ResultsError:
        assert old is None
        which = "nothing"
    else:
        which = "new" if found == tables(new) else "old"
        expected = new if which == "new" else old
        assert expected is not None
        assert found == tables(expected)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    result = new if old is None else old
    result.write(folder, "a page")
    assert tables(read_results(folder)) == tables(result)
    assert names(folder) == {
        *("results.parquet", "predictions.parquet", "report.html"),
        *(["timelines.parquet"] if result.timelines is not None else []),
    }
    if old is None:
        for path in folder.iterdir():
            path.unlink()
    return which


@needs_kills
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("with timelines", "without"),
        ("without", "with timelines"),
        ("with timelines", "of the same provenance"),
        ("", "with timelines"),
    ],
)
def test_killed_at_whatever_file_it_touches(before: str, after: str, tmp_path: Path) -> None:
    """In a process of its own, which may be forked."""
    command = [sys.executable, "-c", KILLED, before, after, str(tmp_path / "results")]
    (tmp_path / "results").mkdir()
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = done.stdout.split()
    first = "old" if before else "nothing"
    n = found.index("new")
    assert n > 5
    assert len(found) - n > 5
    assert found == [first] * n + ["new"] * (len(found) - n), "there is one point of no return"


@needs_kills
def test_writers_and_readers_at_the_same_time(tmp_path: Path) -> None:
    made = [make() for make in MADE.values()]
    made[0].write(tmp_path, "page 0")
    whole = [tables(result) for result in made]
    errors: list[BaseException] = []
    writing = [True]

    def write(number: int) -> None:
        for _ in range(10):
            made[number].write(tmp_path, f"page {number}")

    def read() -> None:
        while writing[0]:
            assert tables(read_results(tmp_path)) in whole

    def watched(act: Callable[..., None], *arguments: int) -> threading.Thread:
        def run() -> None:
            try:
                act(*arguments)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    reader, writers = watched(read), [watched(write, number) for number in range(3)]
    for thread in writers:
        thread.join()
    writing[0] = False
    reader.join()
    assert errors == []
    number = whole.index(tables(read_results(tmp_path)))
    assert (tmp_path / "report.html").read_text() == f"page {number}", "the page is of these tables"
    assert names(tmp_path) == {
        *("results.parquet", "predictions.parquet", "report.html"),
        *(["timelines.parquet"] if made[number].timelines is not None else []),
    }


def test_a_write_that_fails_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = MADE["with timelines"](), MADE["without"]()
    old.write(tmp_path, "old page")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write = result_files._write_table

    def full(table: Any, path: Path) -> None:
        write(table, path)
        if "results" in path.name:
            raise OSError(28, "No space left on device", os.fspath(path))

    monkeypatch.setattr(result_files, "_write_table", full)
    with pytest.raises(OSError, match="No space left"):
        new.write(tmp_path, "new page")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_tables_without_checksums_are_read_by_their_provenance(tmp_path: Path) -> None:
    """Whoever has written them."""
    result = MADE["with timelines"]()
    result.write(tmp_path)
    pq.write_table(result.results, tmp_path / "results.parquet")
    assert tables(read_results(tmp_path)) == tables(result)
    (tmp_path / "timelines.parquet").unlink()
    assert read_results(tmp_path).timelines is None


@pytest.mark.parametrize("said", [b"[]", b"{", b'{"predictions.parquet": 7}', b"\xff", b"[" * 9999])
def test_checksums_that_are_none(said: bytes, tmp_path: Path) -> None:
    result = MADE["with timelines"]()
    result.write(tmp_path)
    metadata = result.results.schema.metadata | {result_files.OWN_KEY: said}
    table = result.results.replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "results.parquet")
    with pytest.raises(ResultsError, match=r"results.parquet: is no table of a benchmark"):
        read_results(tmp_path)
    result.write(tmp_path)
    assert tables(read_results(tmp_path)) == tables(result)


def test_predictions_of_another_run_of_the_same_command(tmp_path: Path) -> None:
    MADE["with timelines"]().write(tmp_path)
    MADE["of the same provenance"]().write(tmp_path / "other")
    (tmp_path / "other" / "predictions.parquet").replace(tmp_path / "predictions.parquet")
    with pytest.raises(ResultsError, match=r"predictions.parquet: is of another benchmark"):
        read_results(tmp_path)


def test_the_command_writes_the_tables_whatever_becomes_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(result: BenchmarkResult) -> str:
        raise ResultsError("no page can be made of this")

    write_cache(order_free_songs(30), tmp_path / "songs.parquet")
    monkeypatch.setattr("seqagg.report.build_page", fail)
    command = ["benchmark", str(tmp_path / "songs.parquet"), "--methods", "mean,logodds"]
    done = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "results")])
    assert done.exit_code == 2
    assert "no page can be made" in done.stderr
    assert read_results(tmp_path / "results").classes
