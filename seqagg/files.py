"""Writing files so that a killed writer leaves the old file or none.

A write goes to a temporary neighbour, is flushed to the disk and then renamed over the target.
The neighbours that killed writers leave behind are swept away by the next write of the same
target; a lock on the temporary file tells the dead from the living.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from seqagg.errors import CacheError, SeqaggError

try:
    import fcntl
except ImportError:  # Windows: no advisory locks, so nothing is swept there
    fcntl = None  # type: ignore[assignment]

_FLUSHED_AT_ONCE = 16
"""Files of a folder; many at once are written to a disk in one go."""

_SMALL = 2**30
"""Bytes that anything may unpack to."""

_MOST_UNPACKED = 200
"""How many times its own size a larger file may unpack to; scores of a classifier reach three."""

_N_CHANCE = 12
"""Hexadecimal digits in the name of a temporary file."""


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path to write to; rename it to `path` when the block ends well.

    Parameters
    ----------
    path : path-like
        The target. Its folder is created.

    Yields
    ------
    Path
        An empty file in the target's folder, with the target's suffix.

    Raises
    ------
    OSError
        When the folder cannot be written. The target is then as it was.
    """
    target = Path(os.path.realpath(path))  # a link stays one
    with _named(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        temporary, descriptor = _create_locked(target)
    try:
        yield temporary
        os.fsync(descriptor)
        with _named(path):
            os.replace(temporary, target)
        flush_folder(target.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def growing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a folder to write files to; rename it to `path` when the block ends well.

    What a killed writer of the same folder has left is removed first.

    Parameters
    ----------
    path : path-like
        The target: not there, or an empty folder. What it lies in is created.

    Yields
    ------
    Path
        A folder beside the target, empty but for a hidden file.

    Raises
    ------
    CacheError
        Another process writes this folder.
    OSError
        When it cannot be written. There is then nothing of it.
    """
    target = Path(os.path.abspath(path))
    growing = target.with_name(f".{target.name}.growing")
    with _named(path):
        growing.mkdir(parents=True, exist_ok=True)
    held = growing / ".lock"
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, only_one(held))
        try:
            for left in growing.iterdir():
                if left != held:
                    left.unlink()
            yield growing
            _flush_files(growing)
            if fcntl is None:  # there, what is open can be neither removed nor moved
                stack.close()
            held.unlink()
            flush_folder(growing)
            with _named(path):
                os.replace(growing, target)
            flush_folder(target.parent)
        except BaseException:
            shutil.rmtree(growing, ignore_errors=True)
            raise


def try_to_write(path: str | os.PathLike[str]) -> None:
    """Find out before the work, and not after it, that its result cannot be written.

    Raises
    ------
    OSError
        As `atomic_write` would raise it.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    folder = next(folder for folder in target.parents if os.path.lexists(folder))
    with _named(path):
        temporary, descriptor = _create_locked(folder / target.name)
    os.unlink(temporary)
    os.close(descriptor)


@contextlib.contextmanager
def _named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let errors speak of the path that was asked for, not of a temporary neighbour."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), os.fspath(path)) from None


def check_regular(path: str | os.PathLike[str], error: type[SeqaggError]) -> None:
    """Refuse what is not there, and what would never end, such as a pipe or a device.

    Parameters
    ----------
    path : path-like
    error : type
        Of what is raised.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise error("no such file", file=path) from None
    except (OSError, ValueError) as problem:
        raise error(f"cannot be read: {problem}", file=path) from None
    if not stat.S_ISREG(mode):
        raise error("is no regular file", file=path)


def check_unpacked(n_bytes: int, path: Path, error: type[SeqaggError]) -> None:
    """Refuse a file that would unpack to very much more than it is."""
    packed = path.stat().st_size
    if n_bytes > max(_SMALL, _MOST_UNPACKED * packed):
        raise error(f"would unpack from {packed:,} bytes to {n_bytes:,}", file=path)


def same_file(one: object, other: object) -> bool:
    """Whether both are paths, there, and one file or folder, under whatever names."""
    if not isinstance(one, str | os.PathLike) or not isinstance(other, str | os.PathLike):
        return False
    with contextlib.suppress(OSError, ValueError):  # not there, or a NUL in the name
        return os.path.samefile(one, other)
    return False


def only_one(path: str | os.PathLike[str]) -> int:
    """Be the only process that holds a lock file, or say that another one does.

    Returns
    -------
    int
        Descriptor; to close it is to give the lock back, and so is to die.

    Raises
    ------
    CacheError
        Another process holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise CacheError("another process is at work here", file=Path(path).parent) from None
    return descriptor


@contextlib.contextmanager
def taking_turns(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a lock file while the block runs, after whoever holds it now; then it is gone.

    Parameters
    ----------
    path : path-like
        The lock file, in a folder that is there. Without advisory locks there is none.
    """
    if fcntl is None:
        yield
        return
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _is_still(path, descriptor):  # else who held it has removed it, and it locks nothing
            break
        os.close(descriptor)
    try:
        yield
    finally:
        os.unlink(path)
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Make durable which files are in it, and under which names."""
    with contextlib.suppress(OSError):  # not every file system lets folders be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _flush_files(folder: Path) -> None:
    """Make durable what is in the files of a folder."""
    with ThreadPoolExecutor(_FLUSHED_AT_ONCE) as threads:
        for _ in threads.map(_flush_file, folder.iterdir()):
            pass


def _flush_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_still(path: str | os.PathLike[str], descriptor: int) -> bool:
    """Whether an open file has that name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _create_locked(target: Path) -> tuple[Path, int]:
    while True:
        temporary = target.with_name(_temporary_name(target, secrets.token_hex(_N_CHANCE // 2)))
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if fcntl is None:
            return temporary, descriptor
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if temporary.exists():  # else another writer swept it before the lock was on
            return temporary, descriptor
        os.close(descriptor)


def _temporary_name(target: Path, chance: str) -> str:
    return f".{target.stem}.{chance}.tmp{target.suffix}"


def _sweep(target: Path) -> None:
    if fcntl is None:
        return
    before, after = map(re.escape, _temporary_name(target, "/").split("/"))
    ours = re.compile(f"{before}[0-9a-f]{{{_N_CHANCE}}}{after}")
    for stale in target.parent.iterdir():
        if not ours.fullmatch(stale.name):
            continue
        with contextlib.suppress(OSError):  # another writer may sweep the same file
            descriptor = os.open(stale, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(stale)
            finally:
                os.close(descriptor)
