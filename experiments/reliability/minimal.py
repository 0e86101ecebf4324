"""Do the oldest versions that pyproject.toml allows work together?

    python -m experiments.reliability.minimal

Makes an environment in ``build/minimal`` of the lower bounds of all that seqagg and its extras
depend on (tools that run the tests are those of constraints.txt), and runs the tests there that are
about seqagg, not about experiments or pages. Then ``experiments.speed --quick`` measures it beside
the libraries of the extra ``speed``, which counts as a test, and come those of the extra ``skops``,
which has another bound for scikit-learn. The extra ``ray`` has no older version than the one that
is always tested. It takes minutes, and pip needs an index of packages.
"""  # noqa: D400

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from experiments.runs import first_line

ROOT = Path(__file__).parents[2]

EXTRAS = ("hdf5", "onnx", "plots", "tunes")
"""Extras that are installed."""

BOUNDED = (*EXTRAS, "speed")
"""Extras whose lower bounds count: what is in the last is needed by the tests too, or later."""

LEFT_OUT = (
    *("classifier_file", "endurance", "experiments", "faults", "fuzz", "hostile", "layout"),
    *("packages", "page", "ray", "scale", "speed", "team"),
)
"""Tests that are not run: of experiments, pages, extras, and what needs another environment."""

NEWER = "tests/test_golden.py::test_an_old_model_answers_as_it_did[1-stack-own]"
"""Needs the scikit-learn that it was made with."""

OF_SKOPS = ("classifier_file", "stacking")
"""Tests of the extra ``skops``."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the environment, run the tests; exit 1 if one fails."""
    parser = argparse.ArgumentParser(
        "python -m experiments.reliability.minimal", description=first_line(__doc__)
    )
    parser.add_argument("--folder", type=Path, default=Path("build/minimal"), metavar="DIR")
    found = run(parser.parse_args(arguments).folder)
    print(json.dumps(found, indent=1))
    sys.exit(bool(found["failed"]))


def run(folder: Path) -> dict[str, Any]:
    """Versions that were installed, and numbers of tests: passed, failed, skipped."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = str(folder.absolute() / "bin" / "python")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    bounds = lower_bounds(project, *BOUNDED)
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    (folder / "constraints.txt").write_text("\n".join(constraints(bounds, lines)))
    install = [python, "-m", "pip", "install", "--quiet"]
    whole = f"{ROOT}[{','.join(('test', *EXTRAS))}]"
    limits = ["--constraint", str(folder / "constraints.txt")]
    subprocess.run([*install, "--editable", whole, *limits], check=True)
    found = tests(python, folder, ["tests", *(f"--ignore={_file(name)}" for name in LEFT_OUT)])
    subprocess.run([*install, f"{ROOT}[speed]", *limits], check=True)
    versions = _versions(python, bounds)
    found["passed" if measures(python, folder) else "failed"] += 1
    skops = lower_bounds({"project": {"dependencies": _extra(project, "skops")}})
    oldest = [f"{name}=={version}" for name, version in skops.items()]
    subprocess.run([*install, *oldest], check=True)
    other = tests(python, folder, map(_file, OF_SKOPS))
    return {"versions": versions | skops, **{name: n + other[name] for name, n in found.items()}}


def tests(python: str, folder: Path, which: Iterable[str]) -> dict[str, int]:
    """Numbers of tests in an environment."""
    report = folder.absolute() / "tests.xml"
    command = [python, "-m", "pytest", f"--junitxml={report}", *which, "--deselect", NEWER]
    command += ["--numprocesses", "2", "--dist", "worksteal"]
    subprocess.run(command, cwd=ROOT, check=False, stdout=sys.stderr)
    return counts(report)


def measures(python: str, folder: Path) -> bool:
    """Whether seqagg can be measured beside all the others."""
    command = [python, "-m", "experiments.speed", "--quick", "--out", str(folder / "speed")]
    done = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True)
    sys.stderr.write(done.stdout)
    return done.returncode == 0 and "left out" not in done.stdout


def _file(name: str) -> str:
    return f"tests/test_{name}.py"


def _versions(python: str, names: Iterable[str]) -> dict[str, str]:
    """What is installed, by name."""
    say = "import importlib.metadata as m, json, sys; there = {d.name.lower() for d in "
    say += "m.distributions()}; names = [n for n in sys.argv[1:] if n in there]; "
    say += "print(json.dumps({n: m.version(n) for n in names}))"
    told = subprocess.run([python, "-c", say, *names], check=True, capture_output=True)
    found: dict[str, str] = json.loads(told.stdout)
    return found


def _extra(project: Mapping[str, Any], name: str) -> list[str]:
    lines: list[str] = project["project"]["optional-dependencies"][name]
    return lines


def lower_bounds(project: Mapping[str, Any], *extras: str) -> dict[str, str]:
    """The oldest version of every dependency, and of those of extras, by name."""
    found = {}
    lines = [line for extra in extras for line in _extra(project, extra)]
    for line in (*project["project"]["dependencies"], *lines):
        name, _, version = line.partition(">=")
        if not re.fullmatch(r"[\d.]+", version):
            raise ValueError(f"{line} has no lower bound alone")
        found[name] = version
    return found


def constraints(bounds: Mapping[str, str], lines: Iterable[str]) -> list[str]:
    """Lines of constraints.txt with the lower bounds in place of what they are about."""
    decided = {_plain(name) for name in bounds} | {"llvmlite"}  # which numba decides
    kept = [line for line in lines if _plain(line.partition("==")[0]) not in decided]
    return [*kept, *(f"{name}=={version}" for name, version in bounds.items())]


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def counts(path: Path) -> dict[str, int]:
    """Tests of a JUnit file."""
    (suite,) = ElementTree.parse(path).getroot().iter("testsuite")
    n = {key: int(suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped")}
    failed = n["failures"] + n["errors"]
    return {
        "passed": n["tests"] - failed - n["skipped"],
        "failed": failed,
        "skipped": n["skipped"],
    }


if __name__ == "__main__":
    main()
