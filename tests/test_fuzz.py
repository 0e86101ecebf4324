"""Damaged and forged files are refused, and nothing else happens: the short mode of the fuzzing."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from experiments.reliability import fuzz
from experiments.reliability.targets import FINDINGS, Target, findings, make_targets
from seqagg import SeqaggError

N_INPUTS = 10_000


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return make_targets(tmp_path_factory.mktemp("beside"))


def test_ten_thousand_inputs(tmp_path: Path) -> None:
    """In a process of its own, which a crash would end, and with time and memory watched."""
    command = [sys.executable, "-m", "experiments.reliability.fuzz", "--json"]
    command += ["--inputs", str(N_INPUTS), "--jobs", "2", "--keep", str(tmp_path / "findings")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert found["findings"] == []
    assert found["inputs"] == N_INPUTS
    # Changed as they are, files of every kind are refused for reasons beyond their first bytes.
    for name, n in found["targets"].items():
        assert n["refused"] > 50, name
        assert n["read"] > 0 or name == "model bytes", name


@pytest.mark.parametrize("file", sorted(FINDINGS.iterdir()), ids=lambda file: file.name)
def test_what_was_once_found(file: Path, targets: dict[str, Target], tmp_path: Path) -> None:
    target = targets[file.name.partition(".")[0].replace("-", " ")]
    assert file in findings(file.name.partition(".")[0])
    path = tmp_path / f"x{target.suffix}"
    path.write_bytes(file.read_bytes())
    with contextlib.suppress(SeqaggError):
        target.read(path)


def test_the_same_chance_makes_the_same_input(targets: dict[str, Target], tmp_path: Path) -> None:
    """So that a finding can be found again by its number."""
    for name, target in targets.items():
        if name.startswith("model"):  # whose valid files take seconds to make
            continue
        (tmp_path / name).mkdir()
        seeds = list(target.seeds(tmp_path / name))
        for number in range(20):
            one, other = (fuzz._input(target, seeds, Random(number)) for _ in range(2))
            assert one == other, name


FORBIDDEN = """
import os, pickle, socket, sys
from pathlib import Path
from experiments.reliability import fuzz
folder = Path(sys.argv[1])
fuzz._guard(folder)
actions = {
    "start": lambda: os.system("true"),
    "unpickle": lambda: pickle.loads(pickle.dumps(os.system)),
    "write": lambda: open(folder.parent / "elsewhere", "w"),
    "connect": lambda: socket.socket(),
    "memory": lambda: bytes(2**34),
    "write inside": lambda: open(folder / "here", "w"),
}
for name, act in actions.items():
    try:
        act()
        print(name, "done")
    except BaseException as error:
        print(name, type(error).__name__)
"""


def test_the_guard_sees_what_a_file_could_do(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    command: list[Any] = [sys.executable, "-c", FORBIDDEN, tmp_path / "inside"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        *(f"{action} _Forbidden" for action in ("start", "unpickle", "write", "connect")),
        "memory MemoryError",
        "write inside done",
    ]
