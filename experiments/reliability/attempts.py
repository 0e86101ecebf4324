"""One input is handed to one reader, in a process that may do nothing else."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sys
import traceback
import warnings
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from experiments.reliability.counts import Counts
from experiments.reliability.mutations import scramble
from experiments.reliability.targets import Target, findings
from seqagg import SeqaggError

LONGEST = 20.0
"""Seconds of a processor that an input may take; by the clock, on a busy machine, 15 times that."""

MOST_MEMORY = 300 * 2**20
"""Bytes that an input may take."""

_MOST_ADDRESSES = 6 * 2**30
"""Addresses that the process may take: what asks for more gets a MemoryError."""

ENVIRONMENT = {
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


def in_memory() -> str | None:
    """Folder for files that need not outlive a run."""
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


def seeds_of(name: str, target: Target, folder: Path) -> list[bytes]:
    """Valid files, made once for all processes, and findings of old."""
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


def changed(target: Target, seeds: list[bytes], chance: Random) -> bytes:
    """One of the seeds, changed by chance."""
    seed = chance.choice(seeds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return target.mutate(seed, chance)
    except Exception:  # a finding of old is nothing that a mutation of meaning understands
        return scramble(seed, chance)


def guard(folder: Path) -> None:
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


def attempt(
    target: Target,
    name: str,
    number: int,
    data: bytes,
    folder: Path,
    counts: Counts,
) -> None:
    """Read and count an input."""
    path = folder / f"x{target.suffix}"
    path.write_bytes(data)
    what, outcome = None, counts.n_read
    most = _most_memory()  # whoever made the input may have needed more
    try:
        target.read(path)
    except SeqaggError as error:
        outcome = counts.n_refused
        if len(str(error).splitlines()) != 1:
            what = f"is refused in no single line: {error!r}"
    except (Exception, _Forbidden) as error:
        what = f"{type(error).__name__}: {str(error)[:150]} ({_where(error)})"
    grown = _most_memory() - most
    if grown > MOST_MEMORY:
        what = f"takes {grown / 2**20:.0f} MiB"
    if what is None:
        outcome[name] += 1
    else:
        counts.findings.append({"target": name, "input": number, "what": what})
        keep(path, name, number, folder.parent)
    path.unlink()


def _most_memory() -> int:
    """Bytes that this process has held at most, so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def keep(path: Path, target: str, number: int, folder: Path) -> None:
    """Put a finding into the folder ``findings``."""
    name = file_name(target, number, path.name.removeprefix("x"))
    (folder / "findings" / name).write_bytes(path.read_bytes())


def file_name(target: str, number: int, suffix: str) -> str:
    """What a finding is called."""
    return f"{target.replace(' ', '-')}-{number}{suffix}"


def _where(error: BaseException) -> str:
    """The last place in seqagg, and the last of all."""
    frames = traceback.extract_tb(error.__traceback__)
    mine = [f for f in frames if "/seqagg/" in f.filename and "site-packages" not in f.filename]
    return " ... ".join(f"{Path(f.filename).name}:{f.lineno}" for f in [*mine[-1:], frames[-1]])
