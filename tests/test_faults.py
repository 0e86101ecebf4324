"""Killed, on broken disks and with a wrong clock, commands lose nothing: the short mode of that."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no fork, no SIGKILL")

COMMANDS = ("convert", "fit", "predict", "score", "train", "benchmark")


def test_nothing_is_lost() -> None:
    """In a process of its own, which has no threads and may be forked."""
    command = [sys.executable, "-m", "experiments.reliability.faults", "--kills", "12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert found["problems"] == []
    counts = found["counts"]
    assert sum(counts[f"kill {name}"]["tried"] for name in COMMANDS) == 12
    for case, n in counts.items():
        assert n["tried"] == n["survived"] > 0, case
    for fault in ("files may not grow", "may not write", "may not read", "clock backwards"):
        assert counts[fault]["tried"] == len(COMMANDS)


CARELESS = """
import contextlib, json, time
from pathlib import Path
import seqagg.files

@contextlib.contextmanager
def atomic_write(path):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(b"half")
    time.sleep(0.3)  # long enough to be killed in
    yield Path(path)

seqagg.files.atomic_write = atomic_write
from experiments.reliability import faults
faults.WORKS = {"convert": faults.WORKS["convert"]}
report = faults.run(6)
print(json.dumps(report.problems))
"""


def test_what_is_lost_is_seen() -> None:
    """A writer that writes in place is found out by kills and by disks."""
    done = subprocess.run(
        [sys.executable, "-c", CARELESS], capture_output=True, text=True, check=True
    )
    problems: list[str] = json.loads(done.stdout)
    assert any("the folder is neither old nor new" in problem for problem in problems)
    assert any(problem.startswith("files may not grow") for problem in problems)
    assert not any(problem.startswith("may not write") for problem in problems), "in this it cannot"
