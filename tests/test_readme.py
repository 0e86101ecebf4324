"""The README's example runs as printed, and what it names is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from seqagg.aggregators import AGGREGATORS
from seqagg.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_runs_as_printed(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "'method': 'stack'" in run.stdout
    assert (tmp_path / "songs.parquet").exists()


def test_every_method_has_its_row() -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \|$", README, flags=re.MULTILINE)
    assert rows == list(AGGREGATORS)


@pytest.mark.parametrize("line", re.findall(r"^seqagg .*", README, flags=re.MULTILINE))
def test_commands_are_there(line: str) -> None:
    command = main.commands[line.split()[1]]
    options = {option for parameter in command.params for option in parameter.opts}
    assert set(re.findall(r"--[\w-]+", line)) <= options | {"--help"}


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_make_has_the_two_commands() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
