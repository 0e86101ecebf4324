"""Is anything lost, or half written, when a command is killed, the disk is full, the clock wrong?

    python -m experiments.reliability.faults --kills 200

Every command runs in a process forked from one that has imported everything. Killed with SIGKILL at
a random moment, every other time one at which it writes, the folder must be read as it was, or as
the new one, whole; and the same command, run again, must give what it gives undisturbed and
leave nothing beside it.

On a disk that is full or read-only, with files that may not grow, folders that they may not write
to and files that they may not read, commands must say so in one line, with status 2, and leave
everything as it was. With a clock that runs backwards, among files of tomorrow, they must give what
they always give. A fault that this machine does not let be made (only root may mount a small disk)
counts as not tried.
"""  # noqa: D400

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.naive_bayes import GaussianNB

import seqagg
from experiments.reliability.seeds import small_songs
from experiments.runs import first_line
from seqagg.cli import main as seqagg_command
from seqagg.frozen import out_of_fold, score_to_cache, store
from seqagg.results import read_results

OLD = b"what was there before"


@dataclass(frozen=True)
class Work:
    """A command and what it writes.

    Attributes
    ----------
    arguments : tuple of str
        ``{in}`` and ``{out}`` stand for folders. The first names the command, or one of `CALLS`.
    outputs : tuple of str
        Files that it writes into the folder.
    same : callable
        Whether a file says the same as another.
    read : callable, optional
        What a folder says, read as a whole; the bytes of the files, if it is not given.
    before : tuple of str, optional
        Arguments that make what was there before; without them, every file is `OLD`.
    """

    arguments: tuple[str, ...]
    outputs: tuple[str, ...]
    same: Callable[[Path, Path], bool]
    read: Callable[[Path], object] | None = None
    before: tuple[str, ...] = ()

    def state(self, folder: Path) -> object:
        """What a folder says; an error, where nobody could read it."""
        try:
            if self.read is not None:
                return self.read(folder)
            return [(folder / file).read_bytes() for file in self.outputs]
        except (OSError, seqagg.SeqaggError) as error:
            return error


def same_bytes(one: Path, other: Path) -> bool:
    """Whether files are the same."""
    return one.read_bytes() == other.read_bytes()


def same_results(one: Path, other: Path) -> bool:
    """Whether tables of a benchmark say the same, but for how long it took."""
    return _timeless(pq.read_table(one)) == _timeless(pq.read_table(other))


def read_all(folder: Path) -> list[str]:
    """What the tables of a benchmark say, but for how long it took."""
    found = read_results(folder)
    tables = (found.results, found.predictions, found.timelines)
    return [_timeless(table) for table in tables if table is not None]


def _timeless(table: pa.Table) -> str:
    rows = table.to_pylist()
    return str([r for r in rows if not str(r.get("metric", "")).endswith("_seconds")])


@contextlib.contextmanager
def _as_commands() -> Iterator[None]:
    """Tell errors as commands tell theirs."""
    try:
        yield
    except (OSError, seqagg.SeqaggError) as error:
        print(f"seqagg: {error}", file=sys.stderr)
        sys.exit(2)


def score(given: str, out: str) -> None:
    """Call `score_to_cache`."""
    with _as_commands():
        songs = seqagg.read_cache(f"{given}/songs.parquet")
        pieces = ((str(name), songs[i]) for i, name in enumerate(songs.ids))
        score_to_cache(
            np.tanh, pieces, f"{out}/s.parquet", columns=songs.columns, kind="log_odds", check=False
        )


def train(given: str, out: str) -> None:
    """Call `out_of_fold`, with a folder for what each fold has given, which goes in the end."""
    work = Path(out, "o.parquet.partial")
    with _as_commands():
        songs = seqagg.read_cache(f"{given}/songs.parquet")
        fields: list[Any] = [songs, songs.labels, songs.groups]
        frames, labels, groups = (dict(zip(map(str, songs.ids), of, strict=True)) for of in fields)
        model = GaussianNB()
        found = out_of_fold(model, frames, labels, groups=groups, cv=4, check=False, work=work)
        seqagg.write_cache(found, f"{out}/o.parquet")
        shutil.rmtree(work)


CALLS: Mapping[str, Callable[..., None]] = {"score": score, "train": train}
"""What is no command, and is called with the arguments."""

_GRU = ("epochs=25", "hidden_size=8", "n_folds=2", "n_jobs=1")
_BENCHMARK = ("benchmark", "{in}/songs.parquet", "--methods", "mean,logodds", "--out", "{out}")

WORKS: dict[str, Work] = {
    "convert": Work(
        ("convert", "{in}/frames.csv", "--kind", "probability", "--out", "{out}/c.parquet"),
        ("c.parquet",),
        same_bytes,
    ),
    "fit": Work(
        (
            *("fit", "{in}/songs.parquet", "--method", "gru", "--out", "{out}/m.safetensors"),
            *(part for setting in _GRU for part in ("--set", setting)),
        ),
        ("m.safetensors",),
        same_bytes,
    ),
    "predict": Work(
        ("predict", "{in}/model.safetensors", "{in}/songs.parquet", "--out", "{out}/l.csv"),
        ("l.csv",),
        same_bytes,
    ),
    "score": Work(("score", "{in}", "{out}"), ("s.parquet",), same_bytes),
    "train": Work(("train", "{in}", "{out}"), ("o.parquet",), same_bytes),
    "benchmark": Work(
        _BENCHMARK,
        ("results.parquet", "predictions.parquet", "timelines.parquet"),
        same_results,
        read_all,
        (*_BENCHMARK, "--cv", "3", "--timelines", "0"),
    ),
}


@dataclass
class Report:
    """What was tried, and what became of it.

    Attributes
    ----------
    counts : dict of str to Counter of str
        For every command that was killed, and every fault: ``tried`` and ``survived``; for kills
        also after how many of them the folder was still the ``old`` one, already the ``new`` one,
        and how often there was something to go on from (``resumed``).
    problems : list of str
    """

    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    problems: list[str] = field(default_factory=list)

    def add(self, case: str, problems: Sequence[str]) -> None:
        """Count something that was tried, with what it did wrong."""
        self.counts[case]["tried"] += 1
        self.counts[case]["survived"] += not problems
        self.problems += [f"{case}: {problem}" for problem in problems]


def main(arguments: Sequence[str] | None = None) -> None:
    """Make all faults; exit 1 if something is lost."""
    parser = argparse.ArgumentParser(
        "python -m experiments.reliability.faults", description=first_line(__doc__)
    )
    parser.add_argument("--kills", type=int, default=200, help="default: 200")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    report = run(options.kills, options.seed)
    print(json.dumps({"counts": report.counts, "problems": report.problems}, indent=1))
    sys.exit(bool(report.problems))


def run(n_kills: int, seed: int = 0) -> Report:
    """Kill commands so many times, and let them meet each other fault once.

    The process should have started no threads yet, since it is forked.
    """
    report = Report()
    prepare()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # for whoever has no rights
        durations = make_expected(folder)
        kill_often(folder, durations, n_kills, Random(seed), report)
        meet_disks(folder, report)
        turn_the_clock_back(folder, report)
    return report


def make_inputs(folder: Path) -> None:
    """Make what the commands read, in a process of its own: what has threads cannot be forked."""
    pid = os.fork()
    if pid == 0:
        folder.mkdir(parents=True)
        songs = small_songs(n=60)
        seqagg.write_cache(songs, folder / "songs.parquet")
        seqagg.MeanLogOdds().fit(songs).save(folder / "model.safetensors")
        rows = [
            f"song {i // 8},0.{i * 7919 % 10_007},0.{i * 104_729 % 10_007}" for i in range(24_000)
        ]
        (folder / "frames.csv").write_text("\n".join(["song_id,jig,reel", *rows]))
        os._exit(0)
    os.waitpid(pid, 0)


def make_expected(folder: Path) -> dict[str, float]:
    """What was there before each command, what it gives undisturbed, and the seconds it takes."""
    make_inputs(folder / "in")
    durations = {}
    for name, work in WORKS.items():
        old = folder / "old" / name
        old.mkdir(parents=True)
        if work.before:
            forked(replace(work, arguments=work.before), folder / "in", old)
        else:
            for file in work.outputs:
                (old / file).write_bytes(OLD)
        begun = time.perf_counter()
        if (status := forked(work, folder / "in", folder / "expected" / name)) != 0:
            raise RuntimeError(f"{name} exits with {status}, undisturbed")
        durations[name] = time.perf_counter() - begun
    return durations


def kill_often(
    folder: Path, durations: Mapping[str, float], n_kills: int, chance: Random, report: Report
) -> None:
    """Kill each command in turn until so many of them were hit while they ran."""
    n_hit = 0
    for turn in range(20 * n_kills):
        name = list(WORKS)[turn % len(WORKS)]
        written = turn // len(WORKS) % 2 == 1
        part = chance.random()
        seconds = 0.01 * part**3 if written else 1.1 * durations[name] * part
        n_hit += kill_once(name, folder, seconds, written, report)
        if n_hit == n_kills:
            return
    raise RuntimeError("the commands end before they can be killed")


def kill_once(name: str, folder: Path, seconds: float, written: bool, report: Report) -> bool:
    """Kill a command so long after its start, or after it began to write, and run it again.

    Gives whether it still ran by then.
    """
    work, old, expected = WORKS[name], folder / "old" / name, folder / "expected" / name
    problems = []
    with _copy_of(old) as out:
        status = forked(work, folder / "in", out, until=_moment(seconds, out if written else None))
        if status == 0:
            return False
        if status != -signal.SIGKILL:
            problems.append(f"exits with {status}")
        count = report.counts[f"kill {name}"]
        found = work.state(out)
        if found == work.state(old):
            count["old"] += 1
        elif found == work.state(expected):
            count["new"] += 1
        else:
            what = found if isinstance(found, Exception) else "some of it is another"
            problems.append(f"the folder is neither old nor new: {what}")
        count["resumed"] += any(path.is_dir() for path in out.iterdir())
        if forked(work, folder / "in", out) != 0:
            problems.append("does not run again")
        problems += _differences(work, out, expected)
    when = f"{seconds:.4f} s after it {'begins to write' if written else 'starts'}"
    report.add(f"kill {name}", [f"{when}: {problem}" for problem in problems])
    return True


def _moment(seconds: float, out: Path | None = None) -> Callable[[int], None]:
    """Waits for a process, given its id, so long from its start or from when it first writes."""

    def wait(pid: int) -> None:
        if out is not None:
            before, over = _files(out), os.WEXITED | os.WNOHANG | os.WNOWAIT
            while _files(out) == before:
                if os.waitid(os.P_PID, pid, over) is not None:
                    return
        time.sleep(seconds)

    return wait


def _files(folder: Path) -> dict[str, int]:
    """When each file was changed."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        return {e.name: e.stat().st_mtime_ns for e in entries if e.is_file()}
    return {}  # one of them went meanwhile


@contextlib.contextmanager
def _copy_of(old: Path) -> Iterator[Path]:
    """A folder with the outputs of before."""
    with tempfile.TemporaryDirectory(dir=old.parent) as name:
        out = Path(name)
        shutil.copytree(old, out, dirs_exist_ok=True)
        out.chmod(0o755)
        yield out


def _differences(work: Work, out: Path, expected: Path) -> Iterator[str]:
    """What a command that was run again has made otherwise than undisturbed."""
    for file in work.outputs:
        if not work.same(out / file, expected / file):
            yield f"run again, {file} is another"
    left = {path.name for path in out.iterdir()} - {path.name for path in expected.iterdir()}
    if left:
        yield f"run again, it leaves {', '.join(sorted(left))}"


def turn_the_clock_back(folder: Path, report: Report) -> None:
    """Kill commands halfway, date all files to tomorrow, and run them while time runs backwards."""
    tomorrow = time.time() + 86400

    def turn() -> None:
        ticks = itertools.count()
        time.time = lambda: tomorrow - 90000 - 100 * next(ticks)
        time.time_ns = lambda: int(1e9 * time.time())

    for name, work in WORKS.items():
        expected = folder / "expected" / name
        with _copy_of(folder / "old" / name) as out:
            forked(work, folder / "in", out, until=_moment(0.05))
            for path in (*(folder / "in").rglob("*"), *out.rglob("*")):
                os.utime(path, (tomorrow, tomorrow))
            status = forked(work, folder / "in", out, before=turn)
            problems = [f"{name} exits with {status}"] if status else []
            problems += [f"{name}: {what}" for what in _differences(work, out, expected)]
        report.add("clock backwards", problems)


# Disks.


@dataclass(frozen=True)
class Disk:
    """What is wrong with the folder that a command writes to, or the file that it reads.

    Attributes
    ----------
    spoil : callable
        Takes the folders that are read and written; gives what the process must do first, or None
        where this machine does not let the fault be made.
    mend : callable
        Undoes it.
    """

    spoil: Callable[[Path, Path], Callable[[], object] | None]
    mend: Callable[[Path, Path], object] = lambda given, out: None


def _mounted(options: str, fill: bool) -> Callable[[Path, Path], Callable[[], object] | None]:
    def spoil(given: Path, out: Path) -> Callable[[], object] | None:
        kept = _contents(out)
        n_pages = 16 + sum(1 + len(data) // 4096 for data in kept.values())
        size = f"size={4 * n_pages}k,mode=755"
        command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(out)]
        if os.getuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
            return None
        for name, data in kept.items():
            (out / name).write_bytes(data)
        if fill:
            with contextlib.suppress(OSError), (out / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        subprocess.run(["mount", "-o", f"remount,{size},{options}", str(out)], check=True)
        return lambda: None

    return spoil


def _unmount(given: Path, out: Path) -> None:
    subprocess.run(["umount", str(out)], capture_output=True, check=False)


def _without_rights(given: Path, out: Path) -> Callable[[], object]:
    if os.getuid() == 0:
        return lambda: os.setresuid(65534, 65534, 65534)
    out.chmod(0o555)
    return lambda: None


def _unreadable(given: Path, out: Path) -> Callable[[], object]:
    for path in given.iterdir():
        path.chmod(0)
    return _without_rights(given, out)


def _mend_rights(given: Path, out: Path) -> None:
    out.chmod(0o755)
    for path in given.iterdir():
        path.chmod(0o644)


DISKS: dict[str, Disk] = {
    "full": Disk(_mounted("rw", fill=True), _unmount),
    "read-only": Disk(_mounted("ro", fill=False), _unmount),
    "files may not grow": Disk(
        lambda given, out: lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
    ),
    "may not write": Disk(_without_rights, _mend_rights),
    "may not read": Disk(_unreadable, _mend_rights),
}


def meet_disks(folder: Path, report: Report) -> None:
    """Let every command meet every fault of a disk that can be made here."""
    said = folder / "said"
    for (fault, disk), (name, work) in itertools.product(DISKS.items(), WORKS.items()):
        with _copy_of(folder / "old" / name) as out:
            kept = _contents(out)
            before = disk.spoil(folder / "in", out)
            if before is None:
                continue
            try:
                status = forked(work, folder / "in", out, before=before, said=said)
                left = _contents(out)
            finally:
                disk.mend(folder / "in", out)
        problems = []
        words = said.read_text()
        if status != 2 or words.count("\n") != 1 or not words.startswith("seqagg: "):
            problems.append(f"{name} exits with {status} and says {words!r}")
        if left != kept:
            problems.append(f"{name} leaves {', '.join(sorted(left))}")
        report.add(fault, problems)


def _contents(folder: Path) -> dict[str, bytes]:
    """What is in it, but for what a fit has found out by then, which is not lost either."""
    paths = [p for p in folder.iterdir() if p.suffix != ".partial" and p.name != "filler"]
    return {path.name: path.read_bytes() if path.is_file() else b"" for path in paths}


# Processes.


def forked(
    work: Work,
    given: Path,
    out: Path,
    *,
    until: Callable[[int], None] | None = None,
    before: Callable[[], object] = lambda: None,
    said: Path | None = None,
) -> int:
    """Run a command in a forked process, and give its exit status, negative for a signal.

    Parameters
    ----------
    work : Work
    given, out : Path
        Folders.
    until : callable, optional
        Waits for the moment to kill it; takes its id.
    before : callable
        Called in the process first: takes its rights away, say.
    said : Path, optional
        Gets what the command says on standard error.
    """
    arguments = [a.format(**{"in": given, "out": out}) for a in work.arguments]
    pid = os.fork()
    if pid == 0:
        os._exit(_run(arguments, before, said))
    if until is not None:
        until(pid)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _run(arguments: list[str], before: Callable[[], object], said: Path | None) -> int:
    importlib.import_module("seqagg.checkpoints")
    sys.modules["seqagg.checkpoints"].EVERY = 0.02  # type: ignore[attr-defined]
    store._SHARD_SECONDS = 0.0
    heard = io.StringIO()
    status = 1
    file = None if said is None else said.open("w")  # while it may still be opened
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(heard):
            before()
            if arguments[0] in CALLS:
                CALLS[arguments[0]](*arguments[1:])
                status = 0
            else:
                seqagg_command(arguments)
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException as error:
        heard.write(f"{type(error).__name__}: {error}")
    if file is not None:
        file.write(heard.getvalue())
        file.close()
    return status


def prepare() -> None:
    """Import what commands import, so that a fork has it at once; no thread is started."""
    for name in ("aggregators.gru", "benchmark", "inspection", "prediction", "report", "sources"):
        importlib.import_module(f"seqagg.{name}")
    # What Python and PyTorch would import later: who has no rights may not read those either.
    for name in ("encodings.utf_8_sig", "cProfile", "torch._dynamo", "sklearn.model_selection"):
        importlib.import_module(name)
    songs = small_songs()
    seqagg.MeanLogOdds().fit(songs).predict_proba(songs)  # by compiled loops


if __name__ == "__main__":
    main()
