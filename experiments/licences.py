"""Under which licences do the libraries stand that seqagg needs or can use?

    python -m experiments.licences

Prints the table of CONTRIBUTING.md, from pyproject.toml and the metadata of what is installed.
"""  # noqa: D400

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]


def dependencies() -> dict[str, str]:
    """Name of every library -> the extra that it is for, empty for what seqagg always needs.

    Not those that experiments.speed measures beside seqagg.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    del groups["speed"]
    found: dict[str, str] = {}
    for extra, lines in groups.items():
        for line in lines:
            found.setdefault(re.split(r"[\[>=<;]", line)[0], extra)
    return found


def licence_of(name: str) -> str:
    """What a library's metadata say: an expression, a short name, a classifier, or a text."""
    about = metadata.metadata(name)
    marks = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier", []) if "License" in c]
    marks = [mark for mark in marks if mark != "OSI Approved"]  # by itself it names no licence
    plain = (about["License"] or "").strip()
    said = about["License-Expression"] or (plain if 0 < len(plain) < 40 else "") or ", ".join(marks)
    return str(said or _title_of_text(name) or "not said in its metadata")


def _title_of_text(name: str) -> str:
    """The first lines, two at most, of the licence that comes with a library."""
    for file in metadata.files(name) or []:
        if file.name.upper().startswith("LICEN") and ".dist-info" in str(file):
            title = file.read_text().strip().partition("\n\n")[0]
            return " ".join(line.strip() for line in title.splitlines()[:2])
    return ""


def lines() -> list[str]:
    """Lines of the table."""
    rows = [f"| {n} | {extra} | {licence_of(n)} |" for n, extra in sorted(dependencies().items())]
    return ["| library | extra | licence |", "| --- | --- | --- |", *rows]


if __name__ == "__main__":
    print("\n".join(lines()))
