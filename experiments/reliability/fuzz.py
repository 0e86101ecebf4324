"""Does any file, however damaged or forged, do more than be refused?

    python -m experiments.reliability.fuzz --inputs 10000
    python -m experiments.reliability.fuzz --seconds 3600 --jobs 2 --keep findings

Input number i is made of a valid file by chance that depends on i and the seed alone; readers are
those of `targets`, in turn. An input may be read, or refused with a `SeqaggError` of one line.
Anything else is a finding: another error, a warning, a crash, more than 20 seconds at work, more
than 300 MiB of memory, and whatever a file could have made the process do (start another, write
elsewhere, unpickle, connect). Readers run in a process of their own, which is started again where
it fell.
"""  # noqa: D400

from __future__ import annotations

import argparse
import json
import math
import mmap
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import TYPE_CHECKING, Any

from experiments.reliability.mutations import scramble
from experiments.runs import first_line

if TYPE_CHECKING:
    from experiments.reliability.targets import Target

LONGEST = 20.0
"""Seconds of a processor that an input may take; by the clock, on a busy machine, 15 times that."""

MOST_MEMORY = 300 * 2**20
"""Bytes that an input may take."""

_MOST_ADDRESSES = 6 * 2**30
"""Addresses that the process may take: what asks for more gets a MemoryError."""

_COUNTED = 50
"""Inputs that are counted together; of a process that falls so many may go uncounted."""

_STATE = struct.Struct("<Qd")  # number of the input at hand, and processor's seconds before it
_FORBIDDEN = (
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket."),
    *("pickle.find_class", "ctypes.", "os.remove", "os.rmdir", "shutil.", "os.symlink"),
)
"""Beginnings of events that Python tells of, and that no reader has a reason to cause."""


@dataclass
class Report:
    """What became of the inputs.

    Attributes
    ----------
    seconds : float
    n_read, n_refused : Counter of str
        By target.
    findings : list of dict
        ``target``, ``input`` (its number), ``what``.
    """

    seconds: float = 0.0
    n_read: Counter[str] = field(default_factory=Counter)
    n_refused: Counter[str] = field(default_factory=Counter)
    findings: list[dict[str, Any]] = field(default_factory=list)

    @property
    def n_inputs(self) -> int:
        """All of them."""
        return self.n_read.total() + self.n_refused.total() + len(self.findings)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the readers on inputs; exit 1 if there is a finding."""
    parser = argparse.ArgumentParser(
        "python -m experiments.reliability.fuzz", description=first_line(__doc__)
    )
    parser.add_argument("--inputs", type=int, default=None, help="how many; default: no limit")
    parser.add_argument("--seconds", type=float, default=None, help="how long; default: no limit")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", metavar="A,B,...", help="targets")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where findings are kept")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker is not None:
        work(options, options.worker)
        return
    report = run(options)
    shown = {
        "inputs": report.n_inputs,
        "seconds": round(report.seconds, 1),
        "targets": {
            name: {"read": report.n_read[name], "refused": report.n_refused[name]}
            for name in sorted(report.n_read | report.n_refused)
        },
        "findings": report.findings,
    }
    print(json.dumps(shown, indent=1) if options.json else _words(report))
    sys.exit(bool(report.findings))


def _words(report: Report) -> str:
    lines = [
        f"{name:16} {report.n_read[name]:9,} read {report.n_refused[name]:9,} refused"
        for name in sorted(report.n_read | report.n_refused)
    ]
    lines += [f"{f['target']}, input {f['input']}: {f['what']}" for f in report.findings]
    rate = report.n_inputs / max(report.seconds, 1e-9)
    lines.append(
        f"{report.n_inputs:,} inputs, {rate:,.0f} a second, {len(report.findings)} findings"
    )
    return "\n".join(lines)


def run(options: argparse.Namespace) -> Report:
    """Hand inputs to processes, and start one again where it fell."""
    started = time.monotonic()
    report = Report()
    base = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=base, prefix="fuzz") as folder:
        workers = [_Worker(options, Path(folder, str(k)), k) for k in range(options.jobs)]
        while any(worker.is_alive(report) for worker in workers):
            late = options.seconds is not None and time.monotonic() - started > options.seconds
            if late:
                for worker in workers:
                    worker.stop()
            time.sleep(0.05)
        for worker in workers:
            worker.add_to(report)
    report.seconds = time.monotonic() - started
    return report


class _Worker:
    """A process that reads every so many-th input."""

    def __init__(self, options: argparse.Namespace, folder: Path, number: int) -> None:
        self._options = options
        self._folder = folder
        self._stopped = False
        folder.mkdir()
        (folder / "counts").touch()
        (folder / "findings").mkdir()
        self._start(options.first + number)

    def _start(self, first: int) -> None:
        given, limit = self._options, self._options.inputs
        command = [sys.executable, "-m", __spec__.name if __name__ == "__main__" else __name__]
        command += ["--worker", str(self._folder), "--first", str(first), "--seed", str(given.seed)]
        command += ["--jobs", str(given.jobs)]
        command += ["--only", given.only] if given.only else []
        if limit is not None:
            command += ["--inputs", str(given.first + limit)]
        (self._folder / "state").write_bytes(_STATE.pack(first, math.inf))
        self._seen, self._since = (first, math.inf), time.monotonic()
        with (self._folder / "stderr").open("w") as said:
            environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            self._process = subprocess.Popen(command, stderr=said, env=environment)

    def stop(self) -> None:
        """Let the process come to an end after the input at hand."""
        self._stopped = True
        (self._folder / "stop").touch()

    def is_alive(self, report: Report) -> bool:
        """Whether there is more to come; what fell is put into the report, and started again."""
        number, before = _STATE.unpack((self._folder / "state").read_bytes())
        if (number, before) != self._seen:
            self._seen, self._since = (number, before), time.monotonic()
        status = self._process.poll()
        if status is None and self._is_late(before):
            self._process.kill()
            self._process.wait()
            what = f"takes more than {LONGEST:.0f} s"
        elif status is None:
            return True
        elif status == 0:
            return False
        else:
            said = (self._folder / "stderr").read_text(errors="replace").strip().splitlines()
            what = f"ends the process with status {status}: {' '.join(said[:1] + said[-2:])[:300]}"
        if not math.isfinite(before):
            raise RuntimeError(f"the readers did not start: {what}")
        target = _of_turn(json.loads((self._folder / "turns").read_text()), number, self._options)
        report.findings.append({"target": target, "input": number, "what": what})
        for path in (self._folder / "in").glob("x.*"):
            _keep(path, target, number, self._folder)
        self._start(number + self._options.jobs)
        return True

    def _is_late(self, before: float) -> bool:
        parts = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        taken = sum(map(int, parts[11:13])) / os.sysconf("SC_CLK_TCK") - before
        return taken > LONGEST or time.monotonic() - self._since > 15 * LONGEST

    def add_to(self, report: Report) -> None:
        """Add what the processes counted, and keep the inputs of findings."""
        if self._options.keep is not None:
            self._options.keep.mkdir(parents=True, exist_ok=True)
            for path in (self._folder / "findings").iterdir():
                shutil.copy(path, self._options.keep)
        for line in (self._folder / "counts").read_text().splitlines():
            found = json.loads(line)
            report.n_read.update(found["read"])
            report.n_refused.update(found["refused"])
            report.findings += found["findings"]


# In the process of the readers.


def work(options: argparse.Namespace, folder: Path) -> None:
    """Read inputs from `first` on, until the last, or until the file ``stop`` is there."""
    from experiments.reliability.targets import findings, make_targets
    from seqagg import SeqaggError

    warnings.simplefilter("error")
    inside = folder / "in"
    inside.mkdir(exist_ok=True)
    targets = make_targets(folder / "beside")
    if options.only:
        targets = {name: targets[name] for name in options.only.split(",")}
    turns = [name for name, target in targets.items() for _ in range(target.weight)]
    seeds: dict[str, list[bytes]] = {}
    for name, target in targets.items():
        place = folder / "seeds"
        place.mkdir(exist_ok=True)
        seeds[name] = list(target.seeds(place))
        for seed in seeds[name]:  # valid, and what is imported at first is imported now
            path = inside / f"x{target.suffix}"
            path.write_bytes(seed)
            if target.suffix not in (".npz", ".parquet"):  # some of these suit one reader only
                target.read(path)
            else:
                try:
                    target.read(path)
                except SeqaggError:
                    continue
        (inside / f"x{target.suffix}").unlink()
        seeds[name] += [path.read_bytes() for path in findings(name)]
    (folder / "turns").write_text(json.dumps(turns))
    _guard(folder)
    counts = Report()
    with (folder / "state").open("r+b") as file:
        state = mmap.mmap(file.fileno(), 0)
        for number in _numbers(options, folder):
            name = _of_turn(turns, number, options)
            state[:] = _STATE.pack(number, time.process_time())
            target = targets[name]
            data = _input(target, seeds[name], Random(options.seed << 48 | number))
            _try(target, name, number, data, inside, counts)
            if counts.n_inputs >= _COUNTED:
                _add(counts, folder)
                counts = Report()
    _add(counts, folder)


def _of_turn(turns: Sequence[str], number: int, options: argparse.Namespace) -> str:
    """Name of the target that gets an input."""
    return turns[number // int(options.jobs) % len(turns)]


def _input(target: Target, seeds: list[bytes], chance: Random) -> bytes:
    seed = chance.choice(seeds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return target.mutate(seed, chance)
    except Exception:  # a finding of old is nothing that a mutation of meaning understands
        return scramble(seed, chance)


def _add(counts: Report, folder: Path) -> None:
    line = {"read": counts.n_read, "refused": counts.n_refused, "findings": counts.findings}
    with (folder / "counts").open("a") as file:
        file.write(json.dumps(line) + "\n")


def _numbers(options: argparse.Namespace, folder: Path) -> Iterator[int]:
    number = options.first
    while options.inputs is None or number < options.inputs:
        if number % 64 == options.first % 64 and (folder / "stop").exists():
            return
        yield number
        number += options.jobs


def _guard(folder: Path) -> None:
    """Limit memory, and turn whatever a file has no business to do into an error."""
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_ADDRESSES, _MOST_ADDRESSES))
    inside = os.fspath(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes):
            path, mode = os.fsdecode(arguments[0]), arguments[1] or "r"
            writes = isinstance(mode, str) and any(c in mode for c in "wax+")
            if writes and not os.path.abspath(path).startswith(inside) and not _is_numba():
                raise _Forbidden(f"opens {path} to write")
        elif event.startswith(_FORBIDDEN):
            about = os.fspath(arguments[0]) if arguments and _is_path(arguments[0]) else ""
            is_own = event in ("os.remove", "os.rmdir") and about.startswith(inside)
            if not is_own and not _is_numba():
                raise _Forbidden(f"{event} {arguments[:1]}")

    sys.addaudithook(hook)


def _is_numba() -> bool:
    """Whether numba is at work, which keeps what it has compiled as pickles of its own."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith("numba."):
            return True
        frame = frame.f_back
    return False


def _is_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike)


class _Forbidden(BaseException):
    """No error that a reader would take for its own."""


def _try(target: Any, name: str, number: int, data: bytes, folder: Path, counts: Report) -> None:
    from seqagg import SeqaggError

    path = folder / f"x{target.suffix}"
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    what = None
    try:
        target.read(path)
        counts.n_read[name] += 1
    except SeqaggError as error:
        counts.n_refused[name] += 1
        if len(str(error).splitlines()) != 1:
            what = f"is refused in no single line: {error!r}"
    except (Exception, _Forbidden) as error:
        what = f"{type(error).__name__}: {str(error)[:150]} ({_where(error)})"
    taken = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    if taken > MOST_MEMORY:
        what = f"takes {taken / 2**20:.0f} MiB"
    if what is not None:
        counts.findings.append({"target": name, "input": number, "what": what})
        _keep(path, name, number, folder.parent)
    path.unlink()


def _keep(path: Path, target: str, number: int, folder: Path) -> None:
    name = f"{target.replace(' ', '-')}-{number}{path.suffix}"
    (folder / "findings" / name).write_bytes(path.read_bytes())


def _where(error: BaseException) -> str:
    """The last place in seqagg, and the last of all."""
    frames = traceback.extract_tb(error.__traceback__)
    mine = [f for f in frames if "/seqagg/" in f.filename and "site-packages" not in f.filename]
    return " ... ".join(f"{Path(f.filename).name}:{f.lineno}" for f in [*mine[-1:], frames[-1]])


if __name__ == "__main__":
    main()
