"""Files made to do harm, and names made to do harm wherever they are printed or written."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import seqagg
from experiments.reliability.targets import make_targets
from seqagg import SeqaggError, Songs, sources, write_cache
from seqagg.cli import main
from seqagg.frozen.models import frame_model
from seqagg.results import read_results
from tests.conftest import order_free_songs
from tests.made_results import made_result

# Pickles in the clothes of other files.

RUN = """
import sys, tempfile
from pathlib import Path
from experiments.reliability.targets import make_targets
from seqagg import SeqaggError
folder = Path(sys.argv[1])
targets = make_targets(folder / "beside")
for path in sorted((folder / "hostile").iterdir()):
    for name, target in targets.items():
        if path.suffix == target.suffix:
            try:
                target.read(path)
                print(name, path.name, "read")
            except SeqaggError as error:
                print(name, path.name, "refused")
"""


class Canary:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_pickles_in_the_clothes_of_other_files(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    objects = np.array([Canary(canary)], dtype=object)
    buffer = io.BytesIO()
    np.save(buffer, objects, allow_pickle=True)
    npy = buffer.getvalue()
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        archive.writestr("scores.npy", npy)
        archive.writestr("data.pkl", pickle.dumps(Canary(canary)))
    plain = pickle.dumps(Canary(canary))
    folder = tmp_path / "hostile"
    folder.mkdir()
    suffixes = {target.suffix for target in make_targets(tmp_path / "beside").values()}
    for suffix in suffixes:
        contents = {"plain": plain, "protocol 0": pickle.dumps(Canary(canary), 0), "npy": npy}
        contents |= {"zip": buffer.getvalue(), "magic": b"PAR1" + plain + b"PAR1"}
        for name, content in contents.items():
            (folder / f"{name}{suffix}").write_bytes(content)
    pickle.loads(plain)  # it would
    canary.rmdir()
    done = subprocess.run(
        [sys.executable, "-c", RUN, tmp_path], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) > 50
    assert [line for line in lines if line.endswith("read")] == []
    assert not canary.exists()


# Files that are larger than they look.


def bomb(path: Path, n_bytes: int, header: bytes) -> None:
    """A zip whose entry unpacks to that many bytes, which never were in memory."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        archive.open("scores.npy", "w", force_zip64=True) as entry,
    ):
        entry.write(header)
        block = bytes(2**22)
        for _ in range(n_bytes // len(block)):
            entry.write(block)


def test_a_bomb_of_zeros_is_refused_at_once(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    n = 300_000_000
    header = {"descr": "<f4", "fortran_order": False, "shape": (n, 1)}
    np.lib.format.write_array_header_1_0(buffer, header)
    bomb(tmp_path / "b.npz", 4 * n, buffer.getvalue())
    assert (tmp_path / "b.npz").stat().st_size < 2_000_000
    with pytest.raises(SeqaggError, match="would unpack from"):
        sources.read(tmp_path / "b.npz", kind="probability")


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_cache_that_lies_about_sizes_takes_no_memory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"c{suffix}"
    write_cache(order_free_songs(9), path)
    data = path.read_bytes()
    code = f"""
import resource, sys
import seqagg
resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30))
data, path = open({str(path)!r}, "rb").read(), {str(path)!r}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for width, number in ((4, 2**31 - 1), (8, 2**62), (8, 2**31), (4, -1)):
    for at in range(len(data) - 1500, len(data) - width, 7):
        lie = bytearray(data)
        lie[at : at + width] = number.to_bytes(width, "little", signed=True)
        open(path, "wb").write(lie)
        try:
            seqagg.read_cache(path)
        except seqagg.SeqaggError:
            pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    assert len(data) > 1500
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200 * 1024, "kibibytes"


# Names.

NAMES = (
    "=HYPERLINK(\"http://x\",\"y\")", "<script>alert(1)</script>", "../../up", "/etc/passwd",
    "\x1b[31mred\x1b]0;title\x07", "a\nb\r\nc", "\u202etxt.exe", "[bold]x[/bold]", "%s%n{0}",
    '"quoted", and a comma', "'; DROP TABLE songs; --", " ", "C:\\x", "CON", "-rf",
)  # fmt: skip


def hostile_songs() -> Songs:
    """Ids, columns, labels, groups, splits and a note of such names."""
    rng = np.random.default_rng(0)
    n = 3 * len(NAMES)
    which = np.arange(n) % len(NAMES)
    eye = 6 * np.eye(len(NAMES))
    return Songs.from_arrays(
        [eye[k] + rng.normal(size=(3, len(NAMES))) for k in which],
        columns=NAMES,
        labels=[NAMES[k] for k in which],
        ids=[f"{name}{'' if i < len(NAMES) else i}" for i, name in enumerate(NAMES * 3)],
        groups=[f"{NAMES[i % len(NAMES)]} {i // 2}" for i in range(n)],
        split=["test" if i < len(NAMES) else "train" for i in range(n)],
        note=NAMES[4],
    )


def test_names_do_no_harm_in_any_output(tmp_path: Path) -> None:
    songs = hostile_songs()
    cache, model, out = tmp_path / "c.parquet", tmp_path / "m.safetensors", tmp_path / "out"
    write_cache(songs, cache)
    commands: list[tuple[Any, ...]] = [
        ("inspect", cache),
        ("fit", cache, "--method", "logodds", "--out", model),
        ("predict", model, cache, "--out", out / "l.csv", "--split", "test"),
        ("predict", model, cache, "--out", out / "l.parquet"),
        ("benchmark", cache, "--methods", "mean,logodds", "--out", out),
        ("report", out),
    ]
    for command in commands:
        arguments = [str(argument) for argument in command]
        plain = CliRunner().invoke(main, arguments)
        assert plain.exit_code == 0, plain.output
        for said in (plain.stdout, plain.stderr):
            controls = {c for c in said if ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u202e"}
            assert controls <= {"\n"}, command
        found = CliRunner().invoke(main, [*arguments, "--json"])
        json.loads(found.stdout, parse_constant=pytest.fail)
    with (out / "l.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    runs = (NAMES[0], "-rf")
    texts = [f"'{name}" if name in runs else name for name in NAMES]
    assert header[2:] == [f"'{name}" if name in runs else name for name in sorted(NAMES)]
    assert [row[0] for row in rows] == texts
    assert [row[1] for row in rows] == texts
    # Nothing was written but what was asked for.
    there = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    tables = ("l.csv", "l.parquet", "results.parquet", "predictions.parquet", "report.html")
    asked = {"c.parquet", "m.safetensors", *(f"out/{name}" for name in tables)}
    assert there - {"out/timelines.parquet"} == asked


def test_names_are_no_paths_where_each_song_gets_a_file(tmp_path: Path) -> None:
    songs = hostile_songs()
    songs = songs.replace(start=np.arange(len(songs.values)) % 3, kind="log_odds")
    sources.to_audacity(songs, tmp_path / "in" / "labels", threshold=0.5, window=1.0)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == len(songs)
    assert {path.parent for path in files} == {tmp_path / "in" / "labels"}


def test_a_folder_is_what_lies_in_it(tmp_path: Path) -> None:
    """No file elsewhere gets into a cache by way of a name in it, and hidden files are left."""
    secret = tmp_path / "secret"
    secret.mkdir()
    write_cache(order_free_songs(3), secret / "s.parquet")
    folder = tmp_path / "cache"
    folder.mkdir()
    write_cache(
        order_free_songs(3).replace(ids=["../secret/s.parquet", "b", "c"]), folder / "a.arrow"
    )
    (folder / ".hidden.parquet").write_bytes((secret / "s.parquet").read_bytes())
    assert seqagg.read_cache(folder).ids.tolist() == ["../secret/s.parquet", "b", "c"]


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null", "/proc/self/mem"])
@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".safetensors", ".csv", ".npz", ".onnx"])
def test_what_never_ends_is_not_read(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.symlink_to(name)
    reads: dict[str, Any] = {
        ".safetensors": seqagg.load,
        ".csv": lambda p: sources.read(p, kind="probability"),
        ".npz": lambda p: sources.read(p, kind="probability"),
        ".onnx": lambda p: frame_model(p, "logit"),
    }
    with pytest.raises(SeqaggError):
        reads.get(suffix, seqagg.read_cache)(path)


PIPES = """
import json, sys
from seqagg.cli import main
from seqagg.frozen.models import frame_model
from seqagg.results import read_results
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as error:
        print(error.code)
"""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name")
def test_pipes_in_the_place_of_files_are_not_waited_for(tmp_path: Path) -> None:
    cache, out = tmp_path / "c.parquet", str(tmp_path / "o.parquet")
    write_cache(order_free_songs(3), cache)
    pipes = ["cache/_manifest.json", "parts/b.parquet", "results/results.parquet", "t.csv"]
    pipes += ["beside/predictions.parquet", "names.txt"]
    made_result(20).write(tmp_path / "beside")
    (tmp_path / "beside" / "predictions.parquet").unlink()
    for pipe in pipes:
        (tmp_path / pipe).parent.mkdir(exist_ok=True)
        os.mkfifo(tmp_path / pipe)
    for folder in ("cache", "parts"):
        shutil.copy(cache, tmp_path / folder / "a.parquet")
    commands = [
        ["inspect", str(tmp_path / "cache")],
        ["inspect", str(tmp_path / "parts")],
        ["report", str(tmp_path / "results")],
        ["frames", str(tmp_path / "t.csv"), "--song", "s", "--label", "l", "--out", out],
        ["report", str(tmp_path / "beside")],
        ["convert", str(cache), "--columns", f"@{tmp_path / 'names.txt'}", "--out", out],
    ]
    done = subprocess.run(
        [sys.executable, "-c", PIPES, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert done.stdout.split() == ["2"] * len(commands)
    said = [f"seqagg: {tmp_path / pipe}: is no regular file" for pipe in pipes]
    assert done.stderr.splitlines() == said


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name")
def test_pipes_beside_files_are_passed_over(tmp_path: Path) -> None:
    made = made_result(20)
    made.write(tmp_path)
    for name in ("predictions", "timelines"):
        os.mkfifo(tmp_path / f".next.{name}.parquet")
    assert read_results(tmp_path).results.equals(made.results)
    os.unlink(tmp_path / "results.parquet")
    os.mkfifo(tmp_path / "results.parquet")
    made.write(tmp_path)
    assert read_results(tmp_path).results.equals(made.results)


def test_lists_that_are_too_long_are_not_read(tmp_path: Path) -> None:
    write_cache(order_free_songs(3), tmp_path / "c.parquet")
    (tmp_path / "_manifest.json").touch()
    os.truncate(tmp_path / "_manifest.json", 2**34)
    with pytest.raises(SeqaggError, match=r"_manifest\.json: is longer than 64 MiB"):
        seqagg.read_cache(tmp_path)


def test_an_error_is_one_line_of_some_length() -> None:
    said = str(SeqaggError("x\n" * 10**6, file="a.npy", column="y" * 10**6))
    assert said.startswith("a.npy: column 'yyy")
    assert "\n" not in said
    assert len(said) < 2100
