"""Does any file, however damaged or forged, do more than be refused?

    python -m experiments.reliability.fuzz --inputs 10000
    python -m experiments.reliability.fuzz --inputs 10000000 --jobs 2 --state build/fuzz/state.json

Input number i is made of a valid file by chance that depends on i and the seed alone; readers are
those of `targets`, in turn. An input may be read, or refused with a `SeqaggError` of one line.
Anything else is a finding: another error, a warning, a crash, more than 20 seconds at work, more
than 300 MiB of memory, and whatever a file could have made the process do (start another, write
elsewhere, unpickle, connect). Readers run in a process of their own, which is started again where
it fell. With a state, a run goes on where one before it was stopped, and tries its findings again.
"""  # noqa: D400

from __future__ import annotations

import argparse
import fcntl
import gc
import json
import math
import mmap
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random

from experiments.reliability.attempts import (
    ENVIRONMENT,
    LONGEST,
    attempt,
    changed,
    file_name,
    guard,
    in_memory,
    keep,
    seeds_of,
)
from experiments.reliability.counts import Counts, left
from experiments.reliability.targets import make_targets
from experiments.runs import first_line

_PIECE = 50
"""Inputs that a process takes, and counts, at a time."""

_KEPT_EVERY = 60.0
"""Seconds after which counts are written."""

_STATE = struct.Struct("<QQQqd")
"""First and end of the piece, input at hand, its target, and processor's seconds before it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the readers on inputs; exit 1 if there is a finding."""
    parser = argparse.ArgumentParser(
        "python -m experiments.reliability.fuzz", description=first_line(__doc__)
    )
    parser.add_argument("--inputs", type=int, default=2**62, help="how many; default: no limit")
    parser.add_argument("--seconds", type=float, default=math.inf, help="how long")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", metavar="A,B,...", default="", help="targets")
    parser.add_argument("--state", type=Path, metavar="FILE", help="where counts are kept")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where findings are kept")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker is not None:
        work(options, options.worker)
        return
    if options.state is not None and options.keep is None:
        options.keep = options.state.parent / "findings"
    counts = run(options)
    print(json.dumps(counts.told(), indent=1) if options.json else counts.words())
    sys.exit(bool(counts.findings))


def run(options: argparse.Namespace) -> Counts:
    """Hand inputs to processes, and start one again where it fell."""
    about = {"seed": options.seed, "only": options.only}
    counts = Counts.read(options.state, about)
    again = counts.forget_findings()
    started = kept = time.monotonic() - counts.seconds
    latest = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory(dir=in_memory(), prefix="fuzz") as common:
        plan, stop = Path(common, "plan"), Path(common, "stop")
        plan.write_text(json.dumps({"done": counts.done, "again": again}))
        workers = [_Worker(options, Path(common, str(k)), counts) for k in range(options.jobs)]
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.touch())
        while sum(worker.is_alive() for worker in workers):
            time.sleep(0.05)
            if time.monotonic() > latest:
                stop.touch()
            counts.seconds = time.monotonic() - started
            if time.monotonic() - kept > _KEPT_EVERY:
                counts.write(options.state, about)
                kept = time.monotonic()
    counts.write(options.state, about)
    return counts


class _Worker:
    """A process that takes inputs, a few at a time, until none is left."""

    def __init__(self, options: argparse.Namespace, folder: Path, counts: Counts) -> None:
        self._options = options
        self._folder = folder
        self._counts = counts
        (folder / "findings").mkdir(parents=True)
        (folder / "counts").touch()
        self._lines, self._rest = (folder / "counts").open(), ""
        self._start([])

    def _start(self, pieces: list[tuple[int, int]]) -> None:
        given = self._options
        command = [sys.executable, "-m", __spec__.name if __name__ == "__main__" else __name__]
        command += ["--worker", str(self._folder), "--seed", str(given.seed), "--only", given.only]
        command += ["--first", str(given.first), "--inputs", str(given.inputs)]
        command += ["--keep", str(given.keep)] if given.keep is not None else []
        (self._folder / "pieces").write_text(json.dumps(pieces))
        (self._folder / "state").write_bytes(_STATE.pack(0, 0, 0, 0, math.inf))
        self._seen, self._since = (0, math.inf), time.monotonic()
        with (self._folder / "stderr").open("w") as said:
            environment = os.environ | ENVIRONMENT
            # Interrupted with its parent, it would count the interrupt as an error of a reader.
            self._process = subprocess.Popen(
                command, stderr=said, env=environment, start_new_session=True
            )

    def is_alive(self) -> bool:
        """Whether there is more to come; what it counted is added, and what fell starts again."""
        status = self._process.poll()
        first, end, number, target, before = _STATE.unpack((self._folder / "state").read_bytes())
        if (number, before) != self._seen:
            self._seen, self._since = (number, before), time.monotonic()
        what = ""
        if status is None and self._is_late(before):
            self._process.kill()
            self._process.wait()
            what = f"takes more than {LONGEST:.0f} s"
        elif status:
            said = (self._folder / "stderr").read_text(errors="replace").strip().splitlines()
            what = f"ends the process with status {status}: {' '.join(said[:1] + said[-2:])[:300]}"
        *lines, self._rest = (self._rest + self._lines.read()).split("\n")
        for line in lines:
            self._counts.add(json.loads(line))
        if not what:
            self._keep_findings()
            return status is None
        if not math.isfinite(before):
            raise RuntimeError(f"the readers did not start: {what}")
        name = json.loads((self._folder / "targets").read_text())[target]
        inputs = list((self._folder / "in").glob("x.*"))
        if not inputs:
            what += ", and while the input was made"
        finding = {"target": name, "input": number, "what": what}
        piece = {"piece": [number, number + 1], "read": {}, "refused": {}, "findings": [finding]}
        self._counts.add(piece)
        for path in inputs:
            keep(path, name, number, self._folder)
        self._keep_findings()
        self._start([(first, number), (number + 1, end)])
        return True

    def _keep_findings(self) -> None:
        if self._options.keep is not None:
            for path in (self._folder / "findings").iterdir():
                self._options.keep.mkdir(parents=True, exist_ok=True)
                shutil.move(path, self._options.keep / path.name)

    def _is_late(self, before: float) -> bool:
        parts = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        taken = sum(map(int, parts[11:13])) / os.sysconf("SC_CLK_TCK") - before
        return taken > LONGEST or time.monotonic() - self._since > 15 * LONGEST


# In the process of the readers.


def work(options: argparse.Namespace, folder: Path) -> None:
    """Read inputs until none is left, or until the file ``stop`` is there."""
    warnings.simplefilter("error")
    inside = folder / "in"
    inside.mkdir(exist_ok=True)
    targets = make_targets(folder / "beside")
    if options.only:
        targets = {name: targets[name] for name in options.only.split(",")}
    (folder / "targets").write_text(json.dumps(list(targets)))
    turns = [i for i, target in enumerate(targets.values()) for _ in range(target.weight)]
    seeds = {name: seeds_of(name, target, folder) for name, target in targets.items()}
    again = _again(options, folder, targets)
    pieces = _pieces(options, folder)
    guard(folder)
    gc.collect()
    gc.freeze()  # what is here to stay need not be looked through again and again
    names = list(targets)
    with (folder / "state").open("r+b") as file, (folder / "counts").open("a") as lines:
        state = mmap.mmap(file.fileno(), 0)
        for piece in pieces:
            counts = Counts()
            for number in piece:
                name, data = again.get(number, (names[turns[number % len(turns)]], None))
                turn = names.index(name)
                state[:] = _STATE.pack(piece.start, piece.stop, number, turn, time.process_time())
                if data is None:
                    data = changed(targets[name], seeds[name], Random(options.seed << 48 | number))
                attempt(targets[name], name, number, data, inside, counts)
            lines.write(json.dumps(counts.piece(piece.start, piece.stop)) + "\n")
            lines.flush()


def _again(
    options: argparse.Namespace, folder: Path, targets: Iterable[str]
) -> dict[int, tuple[str, bytes]]:
    """Target and input of findings, by number: made anew, they might be others by now."""
    if options.keep is None:
        return {}
    numbers = json.loads((folder.parent / "plan").read_text())["again"]
    found = [
        (n, name, options.keep.glob(file_name(name, n, ".*"))) for n in numbers for name in targets
    ]
    return {n: (name, path.read_bytes()) for n, name, paths in found for path in paths}


def _pieces(options: argparse.Namespace, folder: Path) -> Iterator[range]:
    """What a process before this one left, then what no other has taken."""
    own = json.loads((folder / "pieces").read_text())
    done = json.loads((folder.parent / "plan").read_text())["done"]
    taken = (folder.parent / "taken").open("a+b", buffering=0)
    end, parent = options.first + options.inputs, os.getppid()

    def pieces() -> Iterator[range]:
        yield from (range(*piece) for piece in own)
        while not (folder.parent / "stop").exists() and os.getppid() == parent:
            fcntl.flock(taken, fcntl.LOCK_EX)
            taken.seek(0)
            first = int(taken.read() or options.first)
            piece = next(left(done, first, end, _PIECE), range(0))
            if piece:
                taken.truncate(0)
                taken.write(b"%d" % piece.stop)
            fcntl.flock(taken, fcntl.LOCK_UN)
            if not piece:
                return
            yield piece

    return pieces()


if __name__ == "__main__":
    main()
