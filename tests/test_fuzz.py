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
        (tmp_path / name).mkdir()
        seeds = list(target.seeds(tmp_path / name))
        for number in range(20):
            one, other = (_mutated(target, seeds, number) for _ in range(2))
            assert one == other, name


def _mutated(target: Target, seeds: list[bytes], number: int) -> bytes:
    chance = Random(number)
    return target.mutate(chance.choice(seeds), chance)


FORBIDDEN = """
import pickle, sys
from pathlib import Path
from experiments.reliability import fuzz
folder = Path(sys.argv[1])
fuzz._guard(folder)
actions = {
    "start": lambda: __import__("os").system("true"),
    "unpickle": lambda: pickle.loads(b"\\x80\\x04\\x8c\\x02os\\x8c\\x06system\\x93."),
    "write": lambda: open(folder.parent / "elsewhere", "w"),
    "connect": lambda: __import__("socket").socket(),
    "memory": lambda: bytes(2**34),
}
try:
    actions[sys.argv[2]]()
except BaseException as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize("action", ["start", "unpickle", "write", "connect", "memory"])
def test_the_guard_sees_what_a_file_could_do(action: str, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    command: list[Any] = [sys.executable, "-c", FORBIDDEN, tmp_path / "inside", action]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ("MemoryError" if action == "memory" else "_Forbidden")
