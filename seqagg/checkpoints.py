"""Fits that go on where a killed one stopped.

Conventions
-----------
Within `checkpoints` every fit keeps what it has found out so far in files of the model-file
format, written whole or not at all. It knows them again by the hash of all that decides its
outcome: class, parameters, songs, labels, groups, versions of the libraries. Files of another fit,
or damaged ones, are as good as none. What took less than `EVERY` seconds is not worth a file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from seqagg.engines import engine_in_use
from seqagg.errors import ModelFileError
from seqagg.fingerprints import fingerprint
from seqagg.model_file import SUFFIX, read_model, versions, write_model
from seqagg.songs import Songs

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
Written = Callable[[], object]

S = TypeVar("S")
T = TypeVar("T")

EVERY = 2.0
"""Seconds of work that may be lost."""


class Checkpoints:
    """A folder of what unfinished fits have found out.

    Attributes
    ----------
    folder : Path
        Made when there is something to keep.
    resumed : bool
        Whether a fit went on from what it found there.
    problem : str or None
        Why something could not be written. The fit goes on without.
    """

    def __init__(self, folder: Path, about: str, every: float | None, written: Written) -> None:
        self.folder = folder
        self.about = about
        self.every = every
        self.written = written
        self.resumed = False
        self.problem: str | None = None


@contextlib.contextmanager
def checkpoints(
    folder: str | os.PathLike[str],
    *,
    about: str = "",
    every: float | None = None,
    written: Written = lambda: None,
) -> Iterator[Checkpoints]:
    """Let the fits within the block go on where a killed one stopped, with the same outcome.

    On a CPU it is the same to the bit. The folder is removed when the block ends well, and kept
    when it ends in an error or an interrupt.

    Parameters
    ----------
    folder : path-like
        Of its own: nothing else should be in it.
    about : str
        What decides the outcome beside the fit itself.
    every : float, optional
        Seconds of work that may be lost, `EVERY` by default.
    written : callable
        Called after each time that something was to be written.

    Yields
    ------
    Checkpoints

    Examples
    --------
    >>> from seqagg import GRUAggregator
    >>> songs, labels = [[[1.0, -1.0]], [[-2.0, 2.0]]] * 3, ["jig", "reel"] * 3
    >>> with checkpoints("gru.partial"):
    ...     model = GRUAggregator(epochs=2).fit(songs, labels)
    >>> Path("gru.partial").exists()
    False
    """
    store = Checkpoints(Path(folder), about, every, written)
    token = _store.set(store)
    try:
        yield store
    finally:
        _store.reset(token)
    shutil.rmtree(store.folder, ignore_errors=True)


class Stage:
    """What one fit keeps, or without a folder nothing."""

    def __init__(self, store: Checkpoints | None = None, key: str = "") -> None:
        self._store = store
        self._key = key
        self._begun = time.monotonic()
        self._written: dict[str, float] = {}
        self._known: dict[str, Arrays] = {}
        self._new: dict[str, Arrays] = {}
        self._n_parts = 0
        while (part := self.read(f"part {self._n_parts}")) is not None:
            for place, array in part[1].items():
                name, _, own = place.partition("/")
                self._known.setdefault(name, {})[own] = array
            self._n_parts += 1

    def once(
        self, name: str, compute: Callable[[], Arrays], fits: Callable[[Arrays], bool]
    ) -> Arrays:
        """Arrays that `compute` gives, unless they were kept under that name; asked for but once.

        What was computed is written a few seconds' worth at a time.

        Parameters
        ----------
        name : str
        compute : callable
        fits : callable
            Whether arrays that were kept can be those that it gives.
        """
        known = self._known.pop(name, None)
        if known is not None and fits(known):
            return known
        arrays = compute()
        self._add(name, arrays)
        return arrays

    def each(
        self,
        function: Callable[[S, T], Arrays],
        shared: S,
        items: Mapping[str, T],
        fits: Callable[[T, Arrays], bool],
    ) -> Iterator[tuple[str, Arrays]]:
        """Arrays that tasks of the engine in use give, as `once`; in the order in which they come.

        Parameters
        ----------
        function, shared
            As `Engine.run` takes them.
        items : mapping
            Name of what is kept -> item.
        fits : callable
            Whether arrays that were kept can be those of an item.
        """
        kept = {name: self._known.pop(name) for name in items if name in self._known}
        known = {name: arrays for name, arrays in kept.items() if fits(items[name], arrays)}
        yield from known.items()
        missing = [name for name in items if name not in known]
        for i, arrays in engine_in_use().run(function, shared, [items[name] for name in missing]):
            self._add(missing[i], arrays)
            yield missing[i], arrays

    def _add(self, name: str, arrays: Arrays) -> None:
        """Keep it, sooner or later."""
        if self._store is None:
            return
        self._new[name] = arrays
        if self.is_due("part"):
            flat = {f"{n}/{own}": a for n, part in self._new.items() for own, a in part.items()}
            self._n_parts += self.write(f"part {self._n_parts}", {}, flat)
            self._new, self._written["part"] = {}, time.monotonic()

    def is_due(self, name: str) -> bool:
        """Whether it is worth writing again what has that name."""
        if self._store is None:
            return False
        every = EVERY if self._store.every is None else self._store.every
        return time.monotonic() - self._written.get(name, self._begun) >= every

    def write(self, name: str, header: Mapping[str, Any], arrays: Arrays) -> bool:
        """Keep something under a name, in place of what was there; whether that went well."""
        if self._store is None:
            return False
        self._written[name] = time.monotonic()
        try:
            content = {"key": self._key, "header": dict(header)}
            write_model(self._path(self._store, name), content, arrays)
        except ModelFileError as error:  # a full disk must not cost the fit itself
            self._store.problem = str(error)
            return False
        finally:
            self._store.written()
        return True

    def read(self, name: str) -> tuple[dict[str, Any], Arrays] | None:
        """Header and arrays that were kept under a name, if they were."""
        if self._store is None:
            return None
        try:
            content, arrays = read_model(self._path(self._store, name))
        except ModelFileError:
            return None
        if content.get("key") != self._key or not isinstance(content.get("header"), dict):
            return None
        self._store.resumed = True
        return content["header"], arrays

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """Say in one line that what was read is of no use, whatever it brings down.

        The checksum tells damage, not who wrote it: an earlier state of this code, say.
        """
        try:
            yield
        except Exception as error:  # of PyTorch, NumPy or Python, as what stands there has it
            what = f"a fit cannot go on from it: {type(error).__name__}: {error}; remove it"
            place = None if self._store is None else self._store.folder
            raise ModelFileError(what, file=place) from error

    def _path(self, store: Checkpoints, name: str) -> Path:
        return store.folder / self._key[:16] / f"{name}{SUFFIX}"


_store: ContextVar[Checkpoints | None] = ContextVar("seqagg_checkpoints", default=None)
_stage: ContextVar[Stage] = ContextVar("seqagg_stage")


@contextlib.contextmanager
def stage_of(
    aggregator: Any, songs: Songs, y: npt.NDArray[np.int64], groups: npt.NDArray[np.int64]
) -> Iterator[None]:
    """Make the stage of a fit to songs, as private methods see them, the current one."""
    store = _store.get()
    stage = (
        Stage() if store is None else Stage(store, _key(store.about, aggregator, songs, y, groups))
    )
    token = _stage.set(stage)
    try:
        yield
    finally:
        _stage.reset(token)


def current_stage() -> Stage:
    """Stage of the fit that is going on in this thread."""
    return _stage.get(Stage())


def _key(about: str, aggregator: Any, songs: Songs, *targets: npt.NDArray[np.int64]) -> str:
    """Hash of all that decides the outcome of a fit."""
    cls = type(aggregator)
    learnt = ("n_features_in_", "_columns_are_classes", "multilabel_", "_feature_shape")
    return fingerprint(
        f"{cls.__module__}:{cls.__qualname__} {versions()} {about}",
        [getattr(aggregator, name, None) for name in learnt],
        len(aggregator.classes_),
        aggregator.get_params(deep=False),
        [songs.values, songs.offsets, *targets],
    )
