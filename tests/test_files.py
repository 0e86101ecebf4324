from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from seqagg import CacheError, files
from seqagg.files import (
    atomic_write,
    growing_folder,
    same_file,
    taking_turns,
    try_to_write,
)

needs_locks = pytest.mark.skipif(sys.platform == "win32", reason="no advisory locks")


KILLED_WRITER = """
import os, signal, sys
from seqagg.files import atomic_write

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

target, moment = sys.argv[1:]
if moment != "write":
    setattr(os, moment, die)
with atomic_write(target) as temporary:
    temporary.write_text("half")
    if moment == "write":
        die()
"""


def test_a_new_file_with_its_folders(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "c.txt"
    with atomic_write(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_the_target_is_the_old_file_until_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "c.txt"
    target.write_text("old")
    with atomic_write(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


def test_the_temporary_has_the_suffix_and_the_folder_of_the_target(tmp_path: Path) -> None:
    """Libraries choose a format by the suffix; a rename works within one file system."""
    with atomic_write(tmp_path / "c.parquet") as temporary:
        assert temporary.suffix == ".parquet"
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_no_other(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "c.txt"
    target.write_text("old")

    def write() -> None:
        with atomic_write(target) as temporary:
            temporary.write_text("half")
            raise error("stop")

    with pytest.raises(error, match="stop"):
        write()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_no_descriptor_leaks(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with atomic_write(tmp_path / "c.txt") as temporary:
            temporary.write_text("new")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_folder_that_is_a_file_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(OSError, match="a"), atomic_write(tmp_path / "a" / "c.txt"):
        pass


@needs_locks
@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_killed_writer_leaves_the_old_file_and_the_next_one_sweeps(
    tmp_path: Path, moment: str
) -> None:
    target = tmp_path / "c.txt"
    target.write_text("old")
    command = [sys.executable, "-c", KILLED_WRITER, target, moment]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    with atomic_write(target) as temporary:
        temporary.write_text("newer")
    assert target.read_text() == "newer"
    assert list(tmp_path.iterdir()) == [target]


@needs_locks
def test_a_living_writer_is_not_swept(tmp_path: Path) -> None:
    target = tmp_path / "c.txt"
    with atomic_write(target) as slow:
        slow.write_text("slow")
        with atomic_write(target) as fast:
            fast.write_text("fast")
        assert target.read_text() == "fast"
        assert slow.read_text() == "slow"
    assert target.read_text() == "slow"
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "there" / "target.txt")
    for content in ("first", "second"):
        with atomic_write(tmp_path / "link.txt") as temporary:
            temporary.write_text(content)
        assert (tmp_path / "link.txt").is_symlink()
        assert (tmp_path / "there" / "target.txt").read_text() == content


def test_what_cannot_be_written_is_found_out_and_nothing_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder.txt").mkdir()
    for path in (tmp_path / "file" / "x.txt", tmp_path / "file" / "new" / "x.txt"):
        with pytest.raises(NotADirectoryError) as error:
            try_to_write(path)
        assert error.value.filename == str(path)
    with pytest.raises(IsADirectoryError):
        try_to_write(tmp_path / "folder.txt")
    try_to_write(tmp_path / "new" / "newer" / "x.txt")
    try_to_write(tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.txt"]


def test_one_file_by_two_names(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert same_file(tmp_path / "a", str(tmp_path / "b"))
    assert not same_file(tmp_path / "a", tmp_path / "c")
    assert not same_file(tmp_path / "a", object())


@needs_locks
def test_only_temporaries_of_the_same_target_are_swept(tmp_path: Path) -> None:
    chance = "0123456789ab"
    others = [f".c.{chance}.tmp.csv", f".d.{chance}.tmp.txt", f"c.{chance}.tmp.txt", ".c.txt"]
    others += [".c.mine.tmp.txt", f".c.{chance}0.tmp.txt", f".c.x.{chance}.tmp.txt"]
    for name in [*others, f".c.{chance}.tmp.txt"]:
        (tmp_path / name).write_text("")
    with atomic_write(tmp_path / "c.txt"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, "c.txt"])


def test_writers_at_the_same_time_leave_one_whole_file(tmp_path: Path) -> None:
    target = tmp_path / "c.txt"
    contents = [letter * 50_000 for letter in "abcd"]
    errors: list[BaseException] = []

    def write(content: str) -> None:
        try:
            for _ in range(10):
                with atomic_write(target) as temporary:
                    temporary.write_text(content)
                assert target.read_text() in contents
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=[content]) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert target.read_text() in contents
    assert list(tmp_path.iterdir()) == [target]


KILLED_HOLDER = """
import os, signal, sys
from seqagg.files import taking_turns

with taking_turns(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@needs_locks
def test_one_after_the_other_and_no_lock_is_left(tmp_path: Path) -> None:
    at_work: list[int] = []
    crowds: list[int] = []

    def work(number: int) -> None:
        for _ in range(50):
            with taking_turns(tmp_path / "lock"):
                at_work.append(number)
                crowds.append(len(at_work))
                at_work.remove(number)

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert crowds == [1] * 200
    assert list(tmp_path.iterdir()) == []


@needs_locks
def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_HOLDER, tmp_path / "lock"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / "lock").exists()
    with taking_turns(tmp_path / "lock"):
        pass
    assert list(tmp_path.iterdir()) == []


# Folders.


KILLED_FOLDER = """
import os, signal, sys
from seqagg.files import growing_folder

with growing_folder(sys.argv[1]) as growing:
    (growing / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("locks", [True, False])
def test_a_folder_is_there_when_all_its_files_are(
    tmp_path: Path, locks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not locks:
        monkeypatch.setattr(files, "fcntl", None)
    target = tmp_path / "a" / "labels"
    with growing_folder(target) as growing:
        for number in range(40):
            (growing / f"{number}.txt").write_text(str(number))
        assert not target.exists()
    assert {path.name: path.read_text() for path in target.iterdir()} == {
        f"{number}.txt": str(number) for number in range(40)
    }
    assert list(target.parent.iterdir()) == [target]


def test_all_files_of_a_folder_reach_the_disk_before_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    sync, replace = os.fsync, os.replace

    def noted(descriptor: int) -> None:
        sync(descriptor)
        flushed.append(os.fstat(descriptor).st_ino)

    def checked(source: Path, target: Path) -> None:
        assert {os.stat(path).st_ino for path in (source, *source.iterdir())} <= set(flushed)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", checked)
    with growing_folder(tmp_path / "labels") as growing:
        for number in range(3):
            (growing / f"{number}.txt").touch()
    assert os.stat(tmp_path).st_ino == flushed[-1]


@needs_locks
def test_what_a_killed_writer_left_of_a_folder_is_swept(tmp_path: Path) -> None:
    target = tmp_path / "labels"
    command = [sys.executable, "-c", KILLED_FOLDER, target]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not target.exists()
    assert len(list(tmp_path.iterdir())) == 1
    with growing_folder(target) as growing:
        (growing / "whole").write_text("whole")
    assert [path.name for path in target.iterdir()] == ["whole"]
    assert list(tmp_path.iterdir()) == [target]


@needs_locks
def test_a_folder_that_another_process_writes_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "labels"
    with growing_folder(target) as slow:
        (slow / "a.txt").touch()
        with pytest.raises(CacheError, match="another process"), growing_folder(target):
            pass
    assert [path.name for path in target.iterdir()] == ["a.txt"]


def test_of_a_folder_that_fails_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="growing"), growing_folder(tmp_path / "labels") as growing:
        (growing / "a.txt").mkdir()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file/labels"), growing_folder(tmp_path / "file" / "labels"):
        pass
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").touch()
    with pytest.raises(OSError, match=r"there'$"), growing_folder(tmp_path / "there"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there"]
