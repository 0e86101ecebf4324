"""What was chosen by measuring, and would another choice be faster today?

Contest "reading parquet": songs as `write_cache` writes them, against the same table with other
encodings; ``megabytes`` is how large each file is. The songs are those that come with seqagg, again
and again: numbers drawn by chance cannot be packed as those of a classifier can.

Contest "gru precision": scores of all songs by the compiled loops of seqagg in float32, against
PyTorch's packed network as it is, compiled by ``torch.compile``, in bfloat16, and with 8-bit
weights; ``error`` is what that costs. A way that this machine does not have (a compiler of C++,
8-bit kernels) is left out.
"""  # noqa: D400

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from experiments.caches import embedded_cache
from experiments.speed import gru
from experiments.speed.contest import Array, Contest, Metrics, Sizes, Way
from seqagg.cache import CacheWriter

TIMES, QUICK_TIMES = 20, 1
"""How often the table has the songs."""

GRU, QUICK_GRU = (640, 64), (12, 4)
"""Songs and units of the network."""

_NAMES = ["label", "group", "split"]

_SPLIT = {"scores.list.element.list.element": "BYTE_STREAM_SPLIT"}

ENCODINGS: dict[str, dict[str, Any]] = {
    "plain": {"compression": "none"},
    "snappy": {"compression": "snappy"},
    "lz4": {"compression": "lz4"},
    "zstd": {"compression": "zstd"},
    "bytes split": {"compression": "none", "column_encoding": _SPLIT},
    "bytes split, lz4": {"compression": "lz4", "column_encoding": _SPLIT},
}
"""Options of pyarrow; seqagg splits the bytes of scores and packs them by zstd."""


def contests(quick: bool) -> Iterator[Contest]:
    """Encodings of a file, then precisions of a network."""
    with tempfile.TemporaryDirectory() as name:
        yield encodings(Path(name), QUICK_TIMES if quick else TIMES)
    yield precisions(*(QUICK_GRU if quick else GRU))


def encodings(folder: Path, times: int) -> Contest:
    """Files of the same songs, read whole."""
    embedded = embedded_cache()
    assert embedded is not None
    cache = embedded.songs
    paths = {"seqagg": folder / "seqagg.parquet"}
    with CacheWriter(paths["seqagg"]) as writer:
        for turn in range(times):
            writer.write(cache.replace(ids=[f"{turn} {name}" for name in cache.ids]))
    table = pq.read_table(paths["seqagg"])
    for name, options in ENCODINGS.items():
        paths[name] = folder / f"{name}.parquet"
        pq.write_table(table, paths[name], use_dictionary=_NAMES, **options)
    ways = [_reading(name, path) for name, path in paths.items()]
    sizes = Sizes(len(table), round(len(cache.values) / len(cache)), cache.n_columns)
    n_bytes = float(times * cache.values.nbytes)
    return Contest("reading parquet", "", sizes, ways, n_bytes=n_bytes, compare=_same)


def _same(ours: Array, theirs: Array) -> Metrics:
    if not np.array_equal(ours, theirs):
        raise RuntimeError("the files hold different scores")
    return {}


def _reading(name: str, path: Path) -> Way:
    size = path.stat().st_size / 1e6
    read = partial(pq.read_table, path, use_threads=False)
    return Way(name, read, answer=_scores, metrics=lambda _: {"megabytes": size})


def _scores(table: pa.Table) -> Array:
    return np.asarray(table["scores"].combine_chunks().flatten().flatten().to_numpy())


def precisions(songs: int, hidden_size: int) -> Contest:
    """Scores by a network whose numbers are kept in other ways."""
    data = gru.make_data(songs)
    network = gru.make_network(data.songs, hidden_size, bidirectional=True)
    packed = gru.PackedNetwork(network).eval()
    ways = [
        Way("seqagg", lambda: gru.answer(network, data)),
        Way("PyTorch", lambda: gru.answer_packed(packed, data)),
    ]
    for name, make in (("compiled", compiled), ("bfloat16", in_bfloat16), ("int8", in_int8)):
        made = make(packed)
        if _answers(made, data):
            ways.append(Way(name, partial(gru.answer_packed, made, data)))
    frames = round(len(data.songs.values) / songs)
    return Contest("gru precision", "", Sizes(songs, frames, gru.N_COLUMNS), ways)


def _answers(network: nn.Module, data: gru.Data) -> bool:
    """Whether it runs here; the first time it is compiled."""
    try:
        gru.answer_packed(network, data)
    except Exception:  # of compilers and of back ends, each its own
        return False
    return True


def compiled(network: gru.PackedNetwork) -> nn.Module:
    """By ``torch.compile``, for songs of any length."""
    made: Any = torch.compile(copy.deepcopy(network), dynamic=True)
    return made  # type: ignore[no-any-return]


class _Half(nn.Module):
    """Half of the bits inside, scores in float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.to(torch.bfloat16)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Score padded songs."""
        return torch.as_tensor(self.network(frames.to(torch.bfloat16), lengths).float())


def in_bfloat16(network: gru.PackedNetwork) -> nn.Module:
    """With weights and states of 16 bits."""
    return _Half(copy.deepcopy(network))


def in_int8(network: gru.PackedNetwork) -> nn.Module:
    """With weights of 8 bits, which PyTorch calls dynamic quantization."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize: Any = torch.ao.quantization.quantize_dynamic
        made: nn.Module = quantize(copy.deepcopy(network), {nn.GRU, nn.Linear}, dtype=torch.qint8)
    return made
