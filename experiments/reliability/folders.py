"""Files that stand in a folder with others: a reader takes one of them into that folder.

Conventions
-----------
Some that are damaged are as good as none: what they say is found out again. They are counted as
refused, and the outcome must be what it is without them.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np

import seqagg
from experiments.reliability.mutations import change_model, scramble
from experiments.reliability.seeds import QUICK, small_songs
from seqagg import SeqaggError, checkpoints
from seqagg.aggregators import make_aggregator
from seqagg.frozen.store import Store
from seqagg.scale import JOB, predict_folder


class DoneAgainError(SeqaggError):
    """What was read is as good as none."""


class Jobs:
    """A folder of songs that was labelled, two tables, and the files that say so.

    Parameters
    ----------
    folder : Path
        Made anew.
    """

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "songs").mkdir(parents=True)
        self._places = (folder / "model.safetensors", folder / "songs", folder / "out")
        songs = small_songs()
        seqagg.MeanLogOdds().fit(songs).save(self._places[0])
        for i in range(2):
            seqagg.write_cache(songs[slice(i, None, 2)], folder / "songs" / f"shard-{i}.parquet")
        self._n_songs = predict_folder(*self._places).n_out
        self._tables = self._read_tables()

    def file(self, name: str) -> Path:
        """One of the files: ``job``, or a record by the name of its table."""
        return self._places[2] / JOB / f"{name}.json"

    def read(self, path: Path, name: str) -> None:
        """Go on with a job one of whose files is another."""
        self.file(name).write_bytes(path.read_bytes())
        account = predict_folder(*self._places)
        assert account.n_songs == self._n_songs
        assert self._read_tables() == self._tables
        if account.n_before < 2:
            raise DoneAgainError("a part was done again")

    def _read_tables(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted(self._places[2].glob("*.parquet"))]


class Fits:
    """Fits of one method that go on from a checkpoint.

    Parameters
    ----------
    folder : Path
    method : str
    names : str
        Pattern of the names of checkpoints; what is read takes the place of number 0.
    """

    def __init__(self, folder: Path, method: str, names: str) -> None:
        self._folder = folder
        self._names = names
        self._songs = small_songs()
        self._make: Callable[[], Any] = lambda: make_aggregator(method, **_QUICK[method])

    def seeds(self) -> list[bytes]:
        """Checkpoints of such names, as they are written one after another."""
        found: list[bytes] = []

        def keep() -> None:
            found.extend(path.read_bytes() for path in self._folder.rglob(f"{self._names}.*"))

        shutil.rmtree(self._folder, ignore_errors=True)
        with self._kept(every=0.0, written=keep):
            self._make().fit(self._songs)
        shutil.rmtree(self._folder)
        return list(dict.fromkeys(found))

    def read(self, path: Path) -> None:
        """Fit on from a checkpoint."""
        name = self._names.replace("*", "0")
        target = self._folder / _KEY[:16] / f"{name}{path.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        with self._kept(every=1e9) as kept:
            model = self._make().fit(self._songs)
        assert np.isfinite(model.predict_proba(self._songs)).all()
        if not kept.resumed:
            raise DoneAgainError("the fit began anew")

    @contextlib.contextmanager
    def _kept(self, **options: Any) -> Iterator[Any]:
        """Keep checkpoints under one key, whatever the versions, and do not remove them."""
        with (
            mock.patch("seqagg.checkpoints._key", return_value=_KEY),
            contextlib.suppress(_LeftError),
            checkpoints(self._folder, **options) as kept,
        ):
            yield kept
            raise _LeftError


def change_checkpoint(data: bytes, chance: Random) -> bytes:
    """A checkpoint with other bytes, or one that says something else."""
    return (scramble if chance.random() < 0.3 else change_model)(data, chance)


class _LeftError(Exception):
    """A fit that ends in an error leaves its checkpoints."""


_KEY = "0" * 64

_QUICK: dict[str, dict[str, Any]] = {
    "gru": {**QUICK["gru"], "epochs": 3, "n_repeats": 1},
    "hmm": {**QUICK["hmm"], "topology": "ergodic"},
    "stack": QUICK["stack"],
}

_HEADER: dict[str, Any] = {"columns": ["jig", "reel"], "kind": "logit", "task": "multiclass"}


def headers(folder: Path) -> list[bytes]:
    """What stands beside the scores of a frame classifier that has not come to its end."""
    return [json.dumps(_HEADER).encode()]


def read_header(path: Path) -> None:
    """Go on where scoring has stopped."""
    store = Store(path.with_name("x.parquet"), [], _HEADER)
    store.folder.mkdir(exist_ok=True)
    (store.folder / "header.json").write_bytes(path.read_bytes())
    with store:
        assert store.trusted
