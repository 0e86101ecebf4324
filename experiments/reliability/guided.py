"""Does a file that is bred, and not only shaken, do more than be refused?

    python -m experiments.reliability.guided --seconds 3600 --jobs 2

What `fuzz` does, led by libFuzzer (through atheris, the extra ``fuzz``): an input that reaches code
of seqagg which none before it has reached is kept, and changed further. Every reader has its turn,
all of them together ``--seconds`` of each process; what was bred is kept in ``build/guided``, and
the next run begins with it.
"""  # noqa: D400

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from types import FunctionType
from typing import Any

from experiments.reliability.attempts import (
    ENVIRONMENT,
    LONGEST,
    attempt,
    file_name,
    guard,
    in_memory,
    keep,
    seeds_of,
)
from experiments.reliability.counts import Counts
from experiments.reliability.targets import Target, make_targets
from experiments.runs import first_line

_MEANT = 0.6
"""Share of the changes that know what a file means; libFuzzer makes the others, on bytes."""

_ANEW = 0.3
"""Share of the changes that begin with a valid file: most that is bred is refused."""

_TOLD_EVERY = 1.0
"""Seconds after which a process tells what it has counted."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the readers on what is bred; exit 1 if there is a finding."""
    parser = argparse.ArgumentParser(
        "python -m experiments.reliability.guided", description=first_line(__doc__)
    )
    parser.add_argument("--seconds", type=float, default=3600.0, help="of each process")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="A,B,...", default="", help="targets")
    parser.add_argument("--keep", type=Path, metavar="DIR", default=Path("build/guided"))
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("atheris") is None:
        sys.exit("guided fuzzing needs atheris: pip install 'seqagg[fuzz]'")
    if options.worker is not None:
        breed(options, options.worker)
        return
    counts = run(options)
    print(json.dumps(counts.told(), indent=1) if options.json else counts.words())
    sys.exit(bool(counts.findings))


def run(options: argparse.Namespace) -> Counts:
    """Give every target its turn, in processes side by side."""
    counts, started = Counts(), time.monotonic()
    with tempfile.TemporaryDirectory(dir=in_memory(), prefix="guided") as common:
        known = list(make_targets(Path(common, "known")))
        names = options.only.split(",") if options.only else known
        if not set(names) <= set(known):
            sys.exit(f"no such target: {', '.join(sorted(set(names) - set(known)))}")
        seconds = options.seconds * options.jobs / len(names)
        turns = [_Turn(options, name, Path(common)) for name in names]

        def end(*_: Any) -> None:
            for turn in turns:
                turn.end()

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, end)
        with ThreadPoolExecutor(options.jobs) as pool:
            for found in pool.map(lambda turn: turn.take(seconds), turns):
                counts.add(found)
    counts.seconds = time.monotonic() - started
    return counts


class _Turn:
    """Processes for one target, one after another where one falls."""

    def __init__(self, options: argparse.Namespace, name: str, common: Path) -> None:
        self._options = options
        self._name = name
        self._folder = common / name
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False

    def take(self, seconds: float) -> dict[str, Any]:
        """What was counted, as `Counts.add` takes it."""
        counts, until = Counts(), time.monotonic() + seconds
        while not self._ended and (left := until - time.monotonic()) > 0:
            status, said = self._run(max(int(left), 1))
            told = self._folder / "counts"
            if told.exists():
                counts.add(json.loads(told.read_text()))
            elif not self._ended:
                raise RuntimeError(f"the reader of {self._name} did not start: {said[-300:]}")
            if status and not self._ended:
                counts.findings.append(self._fallen(status, said))
            self._keep()
        return counts.piece(0, 0)

    def end(self) -> None:
        """Take no more of it."""
        self._ended = True
        if self._process is not None:
            self._process.kill()

    def _run(self, seconds: int) -> tuple[int, str]:
        shutil.rmtree(self._folder, ignore_errors=True)
        (self._folder / "findings").mkdir(parents=True)
        given = self._options
        command = [sys.executable, "-m", __spec__.name if __name__ == "__main__" else __name__]
        command += ["--worker", str(self._folder), "--seed", str(given.seed)]
        command += ["--keep", str(given.keep), "--only", self._name, "--seconds", str(seconds)]
        with (self._folder / "said").open("wb") as said:
            # Interrupted with its parent, it would count the interrupt as an error of a reader.
            self._process = subprocess.Popen(
                command,
                stdout=said,
                stderr=subprocess.STDOUT,
                env=os.environ | ENVIRONMENT,
                start_new_session=True,
            )
            if self._ended:  # meanwhile
                self._process.kill()
            status = self._process.wait()
        return status, (self._folder / "said").read_text(errors="replace")

    def _fallen(self, status: int, said: str) -> dict[str, Any]:
        _, uncaught, rest = said.partition("=== Uncaught Python exception: ===")
        lines = rest.split("INFO:")[0].splitlines() if uncaught else said.splitlines()
        lines, number = [line.strip() for line in lines if line.strip()], 0
        for path in (self._folder / "in").glob("x.*"):
            number = zlib.crc32(path.read_bytes())
            keep(path, self._name, number, self._folder)
        what = f"ends the process with status {status}: {' '.join(lines[-3:])[:300]}"
        return {"target": self._name, "input": number, "what": what}

    def _keep(self) -> None:
        for path in (self._folder / "findings").iterdir():
            place = self._options.keep / "findings"
            place.mkdir(parents=True, exist_ok=True)
            shutil.move(path, place / path.name)


# In the process of the reader.


def breed(options: argparse.Namespace, folder: Path) -> None:
    """Read what libFuzzer makes, until the seconds are over."""
    import atheris

    warnings.simplefilter("error")
    name = options.only
    target = make_targets(folder / "beside")[name]
    (folder / "in").mkdir()
    bred = options.keep / "bred" / name.replace(" ", "-")
    bred.mkdir(parents=True, exist_ok=True)
    seeds = seeds_of(name, target, folder)
    for i, seed in enumerate(seeds):
        (bred / f"{i:03}").write_bytes(seed)
    _watch(atheris)
    trial = _Trial(target, name, folder)
    trial.tell()
    atexit.register(trial.tell)

    def change(data: bytes, most: int, seed: int) -> bytes:
        chance = Random(seed)
        if chance.random() < _ANEW:
            data = chance.choice(seeds)
        if chance.random() < _MEANT:
            # What was bred may be nothing that a change of meaning understands.
            with contextlib.suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = target.mutate(bytes(data), chance)
                if len(made) <= most:
                    return made
        return bytes(atheris.Mutate(data, most))

    flags = {
        "max_total_time": int(options.seconds),
        "seed": options.seed + 1,  # which is one by the clock where it is 0
        "max_len": 2**20,
        "mutate_depth": 2,  # of the changes in a row most make a file that is refused at once
        "timeout": int(15 * LONGEST),
        "rss_limit_mb": 0,  # `attempt` watches it, input by input
        "print_final_stats": 0,
    }
    words = [f"-{flag}={value}" for flag, value in flags.items()]
    words += [f"-artifact_prefix={folder}/libfuzzer-"]
    atheris.Setup([sys.argv[0], str(bred), *words], trial, custom_mutator=change)
    guard(folder)
    atheris.Fuzz()


def _watch(atheris: Any) -> None:
    """Make all functions of seqagg tell of the branches they take; those compiled cannot."""
    for function in gc.get_objects():
        if type(function) is FunctionType:  # nothing is asked of objects that would answer
            module = function.__module__ or ""
            if module.startswith("seqagg") and not module.startswith("seqagg.kernels"):
                atheris.instrument_func(function)


class _Trial:
    """Hands inputs to the reader, and counts."""

    def __init__(self, target: Target, name: str, folder: Path) -> None:
        self._target = target
        self._name = name
        self._folder = folder
        self._counts = Counts()
        self._told = time.monotonic()

    def __call__(self, data: bytes) -> None:
        """Read one input."""
        began = time.process_time()
        number, place = zlib.crc32(data), self._folder / "in"
        attempt(self._target, self._name, number, data, place, self._counts)
        if time.process_time() - began > LONGEST:
            what = f"takes more than {LONGEST:.0f} s"
            finding = {"target": self._name, "input": number, "what": what}
            self._counts.findings.append(finding)
        self._keep_one_of_each()
        if time.monotonic() - self._told > _TOLD_EVERY:
            self.tell()

    def _keep_one_of_each(self) -> None:
        """What falls once is bred again and again."""
        *before, last = self._counts.findings or [{}]
        if any(last["what"] == other["what"] for other in before):
            self._counts.findings.pop()
            if all(last["input"] != other["input"] for other in before):
                name = file_name(self._name, last["input"], self._target.suffix)
                (self._folder / "findings" / name).unlink(missing_ok=True)

    def tell(self) -> None:
        """Write what was counted."""
        self._told = time.monotonic()
        path = self._folder / "counts"
        path.with_suffix(".new").write_text(json.dumps(self._counts.piece(0, 0)))
        path.with_suffix(".new").replace(path)


if __name__ == "__main__":
    main()
