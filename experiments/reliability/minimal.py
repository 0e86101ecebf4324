"""Do the oldest versions that pyproject.toml allows work together?

    python -m experiments.reliability.minimal

Makes an environment in ``build/minimal`` of the lower bounds of all that seqagg depends on (what
it does not depend on, to run the tests, is that of constraints.txt), and runs the tests there that
are about seqagg, not about experiments, pages or extras of other bounds. It takes minutes, and pip
needs an index of packages.
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

EXTRAS = "test,hdf5,onnx,tunes"

LEFT_OUT = (
    *("classifier_file", "endurance", "experiments", "faults", "fuzz", "hostile", "layout"),
    *("packages", "page", "plots", "ray", "scale", "speed", "team"),
)
"""Tests that are not run: of experiments, pages, extras, and what needs another environment."""


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
    bounds = lower_bounds(tomllib.loads((ROOT / "pyproject.toml").read_text()))
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    (folder / "constraints.txt").write_text("\n".join(constraints(bounds, lines)))
    install = [str(python), "-m", "pip", "install", "--quiet", "--editable", f"{ROOT}[{EXTRAS}]"]
    subprocess.run([*install, "--constraint", str(folder / "constraints.txt")], check=True)
    say = "import importlib.metadata as m, json, sys; "
    say += "print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    told = subprocess.run([str(python), "-c", say, *bounds], check=True, capture_output=True)
    tests = [str(python), "-m", "pytest", "tests", f"--junitxml={folder.absolute() / 'tests.xml'}"]
    tests += [f"--ignore=tests/test_{name}.py" for name in LEFT_OUT]
    tests += [
        "--deselect",
        "tests/test_golden.py::test_an_old_model_answers_as_it_did[1-stack-own]",
    ]
    subprocess.run(tests, cwd=ROOT, check=False, stdout=sys.stderr)
    return {"versions": json.loads(told.stdout), **counts(folder / "tests.xml")}


def lower_bounds(project: Mapping[str, Any]) -> dict[str, str]:
    """The oldest version of every dependency, by name."""
    found = {}
    for line in project["project"]["dependencies"]:
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
