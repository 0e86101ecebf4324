"""The wheel and the source package hold what is needed, and work in an environment of their own."""

from __future__ import annotations

import ast
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
from collections.abc import Iterator
from importlib import metadata
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


def imports(node: ast.AST, in_function: bool = False) -> Iterator[tuple[str, bool]]:
    """Top-level packages of others that code imports, and whether only once a function is called.

    What is imported for the sake of types alone counts as if in a function.
    """
    for child in ast.iter_child_nodes(node):
        inside = in_function or isinstance(
            child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
        )
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            inside = True
        names: list[str] = []
        if isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom) and child.level == 0:
            names = [child.module or ""]
        elif isinstance(child, ast.Call) and ast.unparse(child.func).endswith("import_module"):
            names = [a.value for a in child.args if isinstance(a, ast.Constant)]
        for name in names:
            if name.split(".")[0] not in {"seqagg", *sys.stdlib_module_names}:
                yield name.split(".")[0], inside
        yield from imports(child, inside)


def names_of(requirements: list[str]) -> set[str]:
    return {canonical(re.split(r"[\[>=<;! ]", line)[0]) for line in requirements}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_import_is_a_declared_dependency() -> None:
    """Of seqagg itself, not of something that it happens to come with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = names_of(project["dependencies"])
    extras = {name: names_of(lines) for name, lines in project["optional-dependencies"].items()}
    optional = core.union(*extras.values())
    distributions = metadata.packages_distributions()
    found: dict[bool, set[str]] = {False: set(), True: set()}
    for path in (ROOT / "seqagg").rglob("*.py"):
        for name, inside in imports(ast.parse(path.read_text())):
            allowed = optional if inside else core
            # What is not installed goes by its own name.
            known = {canonical(d) for d in distributions.get(name, [name])}
            assert known & allowed, f"{path.name} imports {name}"
            found[inside] |= known & allowed
    assert {"numpy", "scikit-learn", "torch", "markupsafe"} <= found[False]
    assert {"h5py", "matplotlib", "onnx", "onnxruntime", "ray", "skops"} <= found[True] - core
    assert core == (found[False] | found[True]) & core, "nothing is declared that is not imported"


def test_every_library_stands_in_the_table_of_licences() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = dict(re.findall(r"^\| (\S+) \| \S* ?\| (.+) \|$", text, flags=re.MULTILINE))
    rows = {name: licence for name, licence in rows.items() if name not in ("library", "---")}
    assert rows.keys() == licences.dependencies().keys()
    for name in ("click", "numpy", "pytest"):
        assert rows[name] == licences.licence_of(name)


def test_a_licence_is_what_metadata_name_or_the_title_of_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name, said, expected in (
        ("plain", "License-Expression: ISC\n", "ISC"),
        ("marked", "Classifier: License :: OSI Approved :: MIT License\n", "MIT License"),
        ("bare", "Classifier: License :: OSI Approved\n", "Some Licence 2.0"),
    ):
        folder = tmp_path / f"{name}-1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1\n{said}")
        (folder / "RECORD").write_text(f"{name}-1.dist-info/LICENSE,,\n")
        (folder / "LICENSE").write_text("Some Licence\n 2.0\n\nPermission is granted.\n")
        assert licences.licence_of(name) == expected


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
