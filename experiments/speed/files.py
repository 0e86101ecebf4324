"""How long does it take to label a file of songs, beside merely reading it?

Contest "files": ``seqagg predict`` with the mean of log-odds, from the command line to the file of
labels, against a process that reads the same file with pyarrow and does nothing else. Whole
processes, as a user starts them, with as many threads as each starts by itself; the file has been
read before, so that it comes from memory. "a single song" is what the command takes by itself.
Contest "start": how long it takes until Python has seqagg, and the command line its help.
"""  # noqa: D400

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from experiments.speed.contest import Array, Contest, Sizes, Way, no_comparison
from seqagg import MeanLogOdds, Songs, write_cache

SHAPE = (1_000_000, 30, 10)
QUICK_SHAPE = (50, 3, 3)
"""Songs, frames and columns."""

READERS = {
    "parquet": "import pyarrow.parquet as pq; pq.read_table({!r})",
    "arrow": "import pyarrow as pa; pa.ipc.open_file(pa.OSFile({!r})).read_all()",
}

STARTS = {"import": ["-c", "import seqagg"], "help": ["-m", "seqagg", "--help"]}


def contests(quick: bool) -> Iterator[Contest]:
    """Starting, then labelling each kind of file."""
    for setting, arguments in STARTS.items():
        ways = [_way("seqagg", arguments), _way("starting Python", ["-c", "pass"], limit=True)]
        yield Contest("start", setting, Sizes(), ways, compare=no_comparison)
    songs, frames, columns = QUICK_SHAPE if quick else SHAPE
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = make_songs(songs, frames, columns)
        model = folder / "model.safetensors"
        MeanLogOdds().fit(cache[: 2 * columns]).save(model)
        for kind, reader in READERS.items():
            path = folder / f"songs.{kind}"
            one = folder / f"one.{kind}"
            write_cache(cache, path)
            write_cache(cache[:1], one)
            ways = [
                _way("seqagg", _predict(model, path)),
                _way("reading with pyarrow", ["-c", reader.format(str(path))], limit=True),
                _way("a single song", _predict(model, one), limit=True),
            ]
            sizes = Sizes(songs, frames, columns)
            n_bytes = cache.values.nbytes
            yield Contest("files", kind, sizes, ways, n_bytes=n_bytes, compare=no_comparison)


def make_songs(songs: int, frames: int, columns: int) -> Songs:
    """Probabilities of songs of equal length."""
    rng = np.random.default_rng(0)
    values = rng.random((songs * frames, columns), dtype=np.float32)
    values /= values.sum(axis=1, keepdims=True)
    names = [f"class {k}" for k in range(columns)]
    return Songs(
        values,
        np.arange(songs + 1) * frames,
        columns=names,
        kind="probability",
        ids=[f"song-{i:08d}" for i in range(songs)],
        labels=[names[i % columns] for i in range(songs)],
    )


def _predict(model: Path, cache: Path) -> list[str]:
    out = cache.with_suffix(f"{cache.suffix}.labels.parquet")
    return ["-m", "seqagg", "predict", str(model), str(cache), "--out", str(out)]


def _way(name: str, arguments: Sequence[str], limit: bool = False) -> Way:
    run = process([sys.executable, *arguments])
    return Way(name, run, limit=limit, answer=_nothing)


def process(command: Sequence[str]) -> Callable[[], None]:
    """Run a command to its end."""

    def run() -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")

    return run


def _nothing(_: None) -> Array:
    return np.empty(0)
