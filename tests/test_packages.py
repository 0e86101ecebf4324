"""The wheel and the source package hold what is needed, and work in an environment of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq
import pytest

from experiments import licences, reliability
from experiments.readme import fill
from experiments.reliability import __main__ as whole
from experiments.reliability import minimal

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the wheel and the source package, built of a copy without what is ignored."""
    folder = tmp_path_factory.mktemp("packages")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "seqagg", source / "seqagg", ignore=shutil.ignore_patterns("*.pyc"))
    build = "import setuptools.build_meta as b; b.build_wheel('..'); b.build_sdist('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    return folder


def test_both_hold_all_files_of_the_package(packages: Path) -> None:
    wanted = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "seqagg").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    (wheel,) = packages.glob("*.whl")
    (sdist,) = packages.glob("*.tar.gz")
    in_wheel = {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith("seqagg/")}
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    assert in_wheel == wanted
    assert wanted | {"LICENSE", "README.md", "pyproject.toml"} <= in_sdist


@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_installed_alone_it_does_its_main_job(packages: Path, tmp_path: Path, kind: str) -> None:
    """Dependencies are those of the environment at hand; seqagg itself is not."""
    (package,) = packages.glob(kind)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    bare = tmp_path / "env"
    (site,) = bare.glob("lib/python*/site-packages")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    install += ["--no-build-isolation", "--target", str(site), str(package)]
    subprocess.run(install, check=True, capture_output=True)
    paths = [str(site), sysconfig.get_path("purelib")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [bare / "bin" / "python", "-m", "seqagg", "benchmark", "--methods", "mean,logodds"]
    done = subprocess.run(
        [*command, "--json"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {row["method"] for row in json.loads(done.stdout)["methods"]} == {"mean", "logodds"}
    where = [bare / "bin" / "python", "-c", "import seqagg; print(seqagg.__file__)"]
    told = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert Path(told.stdout.strip()).is_relative_to(site)


def test_every_library_stands_in_the_table_of_licences() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = dict(re.findall(r"^\| (\S+) \| \S* ?\| (.+) \|$", text, flags=re.MULTILINE))
    rows = {name: licence for name, licence in rows.items() if name not in ("library", "---")}
    assert rows.keys() == licences.dependencies().keys()
    for name in ("click", "numpy", "pytest"):
        assert rows[name] == licences.licence_of(name)


class TestOldestVersions:
    def test_bounds(self) -> None:
        bounds = minimal.lower_bounds(tomllib.loads((ROOT / "pyproject.toml").read_text()))
        assert {"numpy", "pyarrow", "torch"} < bounds.keys()
        with pytest.raises(ValueError, match="numpy has no lower bound alone"):
            minimal.lower_bounds({"project": {"dependencies": ["numpy"]}})

    def test_they_take_the_place_of_the_newest(self) -> None:
        lines = ["# why", "Jinja2==3.1.6", "llvmlite==0.50.0", "pytest==9.2.0"]
        found = minimal.constraints({"jinja2": "3.1"}, lines)
        assert found == ["# why", "pytest==9.2.0", "jinja2==3.1"]


class TestReliability:
    FOUND: ClassVar[dict[str, Any]] = {
        "fuzz": {
            "inputs": 30,
            "seconds": 1.0,
            "targets": {"npz": {"read": 10, "refused": 19}},
            "findings": [{"target": "npz"}],
        },
        "faults": {
            "counts": {
                "kill fit": {"tried": 3, "survived": 3},
                "kill predict": {"tried": 2, "survived": 1},
                "full": {"tried": 4, "survived": 4},
            }
        },
    }

    def test_parts_are_kept_and_told(self, tmp_path: Path) -> None:
        path = tmp_path / "reliability.parquet"
        for part in ("faults", "fuzz", "faults"):
            whole.keep(path, part, whole.ROWS[part](self.FOUND[part]))
        rows = pq.read_table(path).to_pylist()
        assert len(rows) == 2 + 4 + 6, "what is measured again replaces what was"
        text, _ = fill("<!-- table: reliability -->\n<!-- end -->\n", tmp_path)
        n_fixed = len(list((Path(reliability.__file__).parent / "findings").iterdir()))
        told = f"10 read, the others refused in one line, 1 findings; {n_fixed} of before are fixed"
        for line in (
            f"| damaged and forged files | 30 | {told} |",
            "| `kill -9`, then run again | 5 | 1 lost or half written |",
            "| full | 4 | 0 lost or half written |",
        ):
            assert line in text
