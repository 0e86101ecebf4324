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
import contextlib
import fcntl
import gc
import json
import math
import mmap
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random
from types import FrameType
from typing import TYPE_CHECKING, Any

from experiments.reliability.counts import Counts, left
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

_PIECE = 50
"""Inputs that a process takes, and counts, at a time."""

_KEPT_EVERY = 60.0
"""Seconds after which counts are written."""

_STATE = struct.Struct("<QQQqd")
"""First and end of the piece, input at hand, its target, and processor's seconds before it."""

_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Arrow's own memory reserves addresses by the gigabyte, which the limit would count; so does
    # the heap, where large pieces leave holes.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "1048576",
}

_FORBIDDEN = (
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket."),
    *("pickle.find_class", "ctypes.", "os.remove", "os.rmdir", "shutil.", "os.symlink"),
)
"""Beginnings of events that Python tells of, and that no reader has a reason to cause."""


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
    print(json.dumps(counts.told(), indent=1) if options.json else _words(counts))
    sys.exit(bool(counts.findings))


def _words(counts: Counts) -> str:
    lines = [
        f"{name:16} {n['read']:9,} read {n['refused']:9,} refused"
        for name, n in counts.told()["targets"].items()
    ]
    lines += [f"{f['target']}, input {f['input']}: {f['what']}" for f in counts.findings]
    rate = counts.n_inputs / max(counts.seconds, 1e-9)
    lines.append(
        f"{counts.n_inputs:,} inputs, {rate:,.0f} a second, {len(counts.findings)} findings"
    )
    return "\n".join(lines)


def run(options: argparse.Namespace) -> Counts:
    """Hand inputs to processes, and start one again where it fell."""
    about = {"seed": options.seed, "only": options.only}
    counts = Counts.read(options.state, about)
    again = counts.forget_findings()
    started = kept = time.monotonic() - counts.seconds
    latest = time.monotonic() + options.seconds
    base = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=base, prefix="fuzz") as common:
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
            environment = os.environ | _ENVIRONMENT
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
            _keep(path, name, number, self._folder)
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
    from experiments.reliability.targets import make_targets

    warnings.simplefilter("error")
    inside = folder / "in"
    inside.mkdir(exist_ok=True)
    targets = make_targets(folder / "beside")
    if options.only:
        targets = {name: targets[name] for name in options.only.split(",")}
    (folder / "targets").write_text(json.dumps(list(targets)))
    turns = [i for i, target in enumerate(targets.values()) for _ in range(target.weight)]
    seeds = {name: _seeds(name, target, folder) for name, target in targets.items()}
    again = _again(options, folder, targets)
    pieces = _pieces(options, folder)
    _guard(folder)
    gc.collect()
    gc.freeze()  # what is here to stay need not be looked through again and again
    names = list(targets)
    with (folder / "state").open("r+b") as file, (folder / "counts").open("a") as lines:
        state = mmap.mmap(file.fileno(), 0)
        for piece in pieces:
            counts, memory = Counts(), _most_memory()
            for number in piece:
                name, data = again.get(number, (names[turns[number % len(turns)]], None))
                turn = names.index(name)
                state[:] = _STATE.pack(piece.start, piece.stop, number, turn, time.process_time())
                if data is None:
                    data = _input(targets[name], seeds[name], Random(options.seed << 48 | number))
                memory = _try(targets[name], name, number, data, inside, counts, memory)
            line = {"piece": [piece.start, piece.stop], "read": counts.n_read}
            line |= {"refused": counts.n_refused, "findings": counts.findings}
            lines.write(json.dumps(line) + "\n")
            lines.flush()


def _seeds(name: str, target: Target, folder: Path) -> list[bytes]:
    """Valid files, made once for all processes, and findings of old."""
    from experiments.reliability.targets import findings
    from seqagg import SeqaggError

    place = folder.parent / "seeds" / name
    if not place.exists():
        (folder / "made").mkdir()
        (folder / "new").mkdir()
        for i, seed in enumerate(target.seeds(folder / "made")):
            (folder / "new" / f"{i:03}").write_bytes(seed)
        shutil.rmtree(folder / "made")
        place.parent.mkdir(exist_ok=True)
        with contextlib.suppress(OSError):  # another process was faster
            (folder / "new").rename(place)
        shutil.rmtree(folder / "new", ignore_errors=True)
    seeds = [path.read_bytes() for path in sorted(place.iterdir())]
    path = folder / "in" / f"x{target.suffix}"
    for seed in seeds:  # what is imported at first is imported now
        path.write_bytes(seed)
        if target.suffix not in (".npz", ".parquet"):  # some of these suit one reader only
            target.read(path)
        else:
            with contextlib.suppress(SeqaggError):
                target.read(path)
    path.unlink()
    found = [path.read_bytes() for path in findings(name)]
    return seeds * (1 + len(found) // len(seeds)) + found  # most of what is found is refused


def _again(
    options: argparse.Namespace, folder: Path, targets: Iterable[str]
) -> dict[int, tuple[str, bytes]]:
    """Target and input of findings, by number: made anew, they might be others by now."""
    if options.keep is None:
        return {}
    numbers = json.loads((folder.parent / "plan").read_text())["again"]
    found = [
        (n, name, options.keep.glob(_name(name, n, ".*"))) for n in numbers for name in targets
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


def _input(target: Target, seeds: list[bytes], chance: Random) -> bytes:
    seed = chance.choice(seeds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return target.mutate(seed, chance)
    except Exception:  # a finding of old is nothing that a mutation of meaning understands
        return scramble(seed, chance)


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


def _try(
    target: Target,
    name: str,
    number: int,
    data: bytes,
    folder: Path,
    counts: Counts,
    memory: int,
) -> int:
    """Read an input, and give the most memory that was used so far, of which `memory` before."""
    from seqagg import SeqaggError

    path = folder / f"x{target.suffix}"
    path.write_bytes(data)
    what, outcome = None, counts.n_read
    try:
        target.read(path)
    except SeqaggError as error:
        outcome = counts.n_refused
        if len(str(error).splitlines()) != 1:
            what = f"is refused in no single line: {error!r}"
    except (Exception, _Forbidden) as error:
        what = f"{type(error).__name__}: {str(error)[:150]} ({_where(error)})"
    most = _most_memory()
    if most - memory > MOST_MEMORY:
        what = f"takes {(most - memory) / 2**20:.0f} MiB"
    if what is None:
        outcome[name] += 1
    else:
        counts.findings.append({"target": name, "input": number, "what": what})
        _keep(path, name, number, folder.parent)
    path.unlink()
    return most


def _most_memory() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _keep(path: Path, target: str, number: int, folder: Path) -> None:
    name = _name(target, number, path.name.removeprefix("x"))
    (folder / "findings" / name).write_bytes(path.read_bytes())


def _name(target: str, number: int, suffix: str) -> str:
    return f"{target.replace(' ', '-')}-{number}{suffix}"


def _where(error: BaseException) -> str:
    """The last place in seqagg, and the last of all."""
    frames = traceback.extract_tb(error.__traceback__)
    mine = [f for f in frames if "/seqagg/" in f.filename and "site-packages" not in f.filename]
    return " ... ".join(f"{Path(f.filename).name}:{f.lineno}" for f in [*mine[-1:], frames[-1]])


if __name__ == "__main__":
    main()
