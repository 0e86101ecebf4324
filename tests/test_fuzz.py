"""Damaged and forged files are refused, and nothing else happens: the short mode of the fuzzing."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from experiments.reliability.attempts import changed
from experiments.reliability.counts import Counts, left, union
from experiments.reliability.targets import FINDINGS, FORGED, Target, findings, make_targets
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


@pytest.mark.parametrize(
    "file", sorted([*FINDINGS.iterdir(), *FORGED.iterdir()]), ids=lambda file: file.name
)
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
            one, other = (changed(target, seeds, Random(number)) for _ in range(2))
            assert one == other, name


def test_a_run_goes_on_where_another_was_stopped(tmp_path: Path) -> None:
    """Told to stop, killed, and left alone: every input is counted once."""
    state, about = tmp_path / "state.json", {"seed": 0, "only": "npy,stream csv"}
    command = [sys.executable, "-m", "experiments.reliability.fuzz", "--json", "--inputs", "3000"]
    command += ["--only", about["only"], "--state", str(state)]
    before = Counts(n_read=Counter(npy=500), done=[[1000, 1500]])
    before.write(state, about)
    for act in ("stop", "kill", "nothing"):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
            if act != "nothing":
                time.sleep(3)
                running.send_signal(signal.SIGTERM if act == "stop" else signal.SIGKILL)
            said = running.communicate()[0]
        now = Counts.read(state, about)
        assert now.n_inputs == sum(end - first for first, end in now.done) >= before.n_inputs
        before = now
    assert before.done == [[0, 3000]]
    assert json.loads(said)["inputs"] == 3000
    assert before.n_read["npy"] + before.n_refused["npy"] == 500 + 2500 // 2
    with pytest.raises(SystemExit, match="is of another seed"):
        Counts.read(state, about | {"seed": 1})


def test_what_is_left_of_a_range() -> None:
    """Against sets of numbers, for pieces in any order."""
    chance = Random(0)
    for _ in range(200):
        pieces = [sorted((chance.randrange(40), chance.randrange(40))) for _ in range(5)]
        done = union(pieces)
        numbers = {n for piece in pieces for n in range(*piece)}
        assert sorted(numbers) == [n for piece in done for n in range(*piece)]
        assert all(end < first for (_, end), (first, _) in itertools.pairwise(done))
        first, end = chance.randrange(20), chance.randrange(60)
        found = list(left(done, first, end, 4))
        assert [n for piece in found for n in piece] == sorted(set(range(first, end)) - numbers)
        assert all(0 < len(piece) <= 4 for piece in found)


def test_findings_are_tried_again() -> None:
    counts = Counts(done=[[0, 10], [20, 30]], findings=[{"input": n} for n in (0, 5, 29)])
    assert counts.forget_findings() == [0, 5, 29]
    assert counts.done == [[1, 5], [6, 10], [20, 29]]
    assert counts.findings == []


FORBIDDEN = """
import os, pickle, socket, sys
from pathlib import Path
from experiments.reliability.attempts import guard
folder = Path(sys.argv[1])
guard(folder)
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


class TestGuided:
    """Files that libFuzzer breeds."""

    PLANTED = """
import sys
from pathlib import Path
from experiments.reliability import guided
from experiments.reliability.targets import Target
from seqagg import SeqaggError

def read(path):
    data = path.read_bytes()
    if data[:1] == b"j":
        if data[1:2] == b"i":
            if data[2:3] == b"g":
                raise KeyError("planted")
    raise SeqaggError("refused")

def change(data, chance):
    place = chance.randrange(3)
    letter = chance.choice(b"abcdefghijklmnopqrstuvwxyz")
    return data[:place] + bytes([letter]) + data[place + 1 :]

read.__module__ = "seqagg.planted"
target = Target(".txt", read, lambda folder: [], change)
guided.make_targets = lambda folder: {"planted": target}
guided.seeds_of = lambda *about: [b"waltz"]
guided.main(sys.argv[1:])
"""

    @pytest.fixture(autouse=True)
    def needs_atheris(self) -> None:
        pytest.importorskip("atheris")

    def test_what_chance_alone_would_not_find(self, tmp_path: Path) -> None:
        """Three letters in a row, of which each is a step to the next; two change at most."""
        (tmp_path / "findings").mkdir()
        command = [sys.executable, "-c", self.PLANTED, "--worker", tmp_path, "--seconds", "5"]
        command += ["--only", "planted", "--keep", tmp_path / "kept"]
        subprocess.run(command, capture_output=True, check=True)
        found = json.loads((tmp_path / "counts").read_text())["findings"]
        assert {"KeyError: 'planted'"} == {row["what"].partition(" (")[0] for row in found}
        kept = [path.read_bytes() for path in (tmp_path / "findings").iterdir()]
        assert kept
        assert all(data.startswith(b"jig") for data in kept)

    def test_readers_hold_until_they_are_told_to_stop(self, tmp_path: Path) -> None:
        """And where one of them is killed, it is a finding, and the others go on."""
        command = [sys.executable, "-m", "experiments.reliability.guided", "--json", "--jobs", "2"]
        command += ["--only", "labels,npy", "--seconds", "600", "--keep", str(tmp_path / "kept")]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
            bred = tmp_path / "kept" / "bred"
            until(lambda: all(_count(bred / name) > 20 for name in ("labels", "npy")))
            first, *_ = _children(running.pid)
            name = Path(f"/proc/{first}/cmdline").read_bytes().split(b"\0--only\0")[1]
            os.kill(int(first), signal.SIGKILL)
            # The next process begins when what became of the last is counted.
            until(lambda: first not in _children(running.pid) and len(_children(running.pid)) == 2)
            running.send_signal(signal.SIGINT)
            found = json.loads(running.communicate()[0])
        assert running.returncode == 1
        (finding,) = found["findings"]
        assert finding["target"] == name.partition(b"\0")[0].decode()
        assert finding["what"].startswith("ends the process with status -9")
        for n in found["targets"].values():
            assert n["refused"] > 50
            assert n["read"] > 0


def _children(pid: int) -> list[str]:
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [child for file in files for child in file.read_text().split()]


def _count(folder: Path) -> int:
    return len(list(folder.iterdir())) if folder.exists() else 0


def until(holds: Callable[[], bool]) -> None:
    """Wait for something, a minute at most."""
    for _ in range(600):
        if holds():
            return
        time.sleep(0.1)
    raise TimeoutError
