"""How fast are the averages over the frames of each song?

Contests "mean", "log-odds" (mean log-odds from probabilities) and "votes": seqagg's kernels, and
what people write by hand with numpy, pandas, polars and duckdb. Tables are made beforehand, in the
library's own layout, with the number of the song as a column and, in ways "by name" to the mean,
its name instead, as tables of scores mostly have it; the order in which groups come back is left to
the library. The loop gets a tenth of many songs: its time is the same for each.
"""  # noqa: D400

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from experiments.speed.contest import Array, Contest, Sizes, Way
from experiments.speed.peers import installed
from seqagg.kernels.segments import segment_mean, segment_mean_log_odds, segment_votes
from seqagg.logodds import PROBABILITY_MARGIN

LOW, HIGH = np.float32(PROBABILITY_MARGIN), np.float32(1 - PROBABILITY_MARGIN)

QUICK_SHAPES = ((40, 5, 3),)
SHAPES = (
    (600, 30, 10),
    (6_000, 30, 10),
    (60_000, 30, 10),
    (1_000, 110, 10),
    (10_000, 110, 10),
    (360_000, 5, 10),
    (6_000, 300, 10),
    (200_000, 30, 3),
    (12_000, 30, 50),
)
"""Songs, frames and columns: mostly, one of them changes at a time."""

ALL_RULES = ((1_000, 110, 10), (10_000, 110, 10), (60_000, 30, 10), (12_000, 30, 50))
"""Where other rules than the mean are measured too."""

_MANY = 2_000
"""Songs from which on the loop gets a part."""


Key = npt.NDArray[np.int64] | list[str]


@dataclass(frozen=True)
class Data:
    """Probabilities of songs of equal length."""

    values: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.int64]

    @property
    def songs(self) -> int:
        """Number of songs."""
        return len(self.offsets) - 1

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return [f"c{k}" for k in range(self.values.shape[1])]

    @property
    def song(self) -> npt.NDArray[np.int64]:
        """Number of the song of each frame."""
        return np.repeat(np.arange(self.songs), np.diff(self.offsets))

    @property
    def name(self) -> list[str]:
        """Name of the song of each frame."""
        return [f"song-{i:06}" for i in self.song.tolist()]

    def head(self, n: int) -> Data:
        """First songs."""
        return Data(self.values[: self.offsets[n]], self.offsets[: n + 1])


def make_data(songs: int, frames: int, columns: int) -> Data:
    """Probabilities without ties: not all libraries can share a vote."""
    rng = np.random.default_rng(0)
    values = expit(2 * rng.standard_normal((songs * frames, columns), dtype=np.float32))
    highest = values == values.max(axis=1, keepdims=True)
    values[highest.sum(axis=1) > 1] = np.linspace(0.1, 0.9, columns)
    return Data(values, np.arange(songs + 1) * frames)


def contests(quick: bool) -> Iterator[Contest]:
    """The mean with every shape, the other rules with some."""
    for songs, frames, columns in QUICK_SHAPES if quick else SHAPES:
        data = make_data(songs, frames, columns)
        n = songs // 10 if songs >= _MANY else songs
        others: dict[str, Rules] = {}
        for by in (by_pandas, by_polars, by_duckdb):
            others |= by(data, data.song)
        for by in (by_pandas, by_polars, by_duckdb):
            for library, rules in by(data, data.name).items():
                others[f"{library} by name"] = {"mean": rules["mean"]}
        loop = by_loop(data.head(n))
        for rule, (kernel, fast) in by_seqagg_and_numpy(data).items():
            if not (quick or rule == "mean" or (songs, frames, columns) in ALL_RULES):
                continue
            ways = [
                Way("seqagg", kernel),
                Way("reading the scores", data.values.min, limit=True),
                Way("numpy", fast),
                Way("a loop of numpy", loop[rule], n / songs),
                *(
                    Way(name, own[rule][0], answer=own[rule][1])
                    for name, own in others.items()
                    if rule in own
                ),
            ]
            sizes = Sizes(songs, frames, columns)
            yield Contest(rule, "", sizes, ways, n_bytes=data.values.nbytes)


Rules = dict[str, tuple[Callable[[], Any], Callable[[Any], Array]]]
"""For each rule what is timed, and what makes an array of its result."""


def by_seqagg_and_numpy(data: Data) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Kernel of each rule, and the whole array at once with numpy."""
    values, offsets, first = data.values, data.offsets, data.offsets[:-1]
    lengths, song, k = np.diff(offsets)[:, None], data.song, data.values.shape[1]

    def log_odds() -> Array:
        p = np.clip(values, LOW, HIGH)
        return np.add.reduceat(np.log(p / (1 - p)), first, axis=0) / lengths

    def votes() -> Array:
        index = song * k + values.argmax(axis=1)
        return np.bincount(index, minlength=data.songs * k).reshape(-1, k)

    return {
        "mean": (
            lambda: segment_mean(values, offsets),
            lambda: np.add.reduceat(values, first, axis=0) / lengths,
        ),
        "log-odds": (lambda: segment_mean_log_odds(values, offsets), log_odds),
        "votes": (lambda: segment_votes(values, offsets), votes),
    }


def by_loop(data: Data) -> dict[str, Callable[[], list[Array]]]:
    """Song by song."""
    k, ends = data.values.shape[1], data.offsets.tolist()

    def each(reduce: Callable[[Array], Array]) -> Callable[[], list[Array]]:
        return lambda: [reduce(data.values[a:b]) for a, b in pairwise(ends)]

    return {
        "mean": each(lambda song: song.mean(axis=0)),
        "log-odds": each(lambda song: logit(song.clip(LOW, HIGH)).mean(axis=0)),
        "votes": each(lambda song: np.bincount(song.argmax(axis=1), minlength=k)),
    }


def by_pandas(data: Data, key: Key) -> dict[str, Rules]:
    """Group by song."""
    if not installed("pandas"):
        return {}
    import pandas as pd

    song = pd.Series(key)
    frame = pd.DataFrame(data.values, columns=data.columns)

    def log_odds() -> Any:
        p = frame.clip(LOW, HIGH)
        return np.log(p / (1 - p)).groupby(song, sort=False).mean()

    def votes() -> Any:
        highest = frame.eq(frame.max(axis=1), axis=0)
        return highest.groupby(song, sort=False).sum()

    rules: Rules = {
        "mean": (lambda: frame.groupby(song, sort=False).mean(), np.asarray),
        "log-odds": (log_odds, np.asarray),
        "votes": (votes, np.asarray),
    }
    return {"pandas": rules}


def by_polars(data: Data, key: Key) -> dict[str, Rules]:
    """Group by song."""
    if not installed("polars"):
        return {}
    import polars as pl

    columns = {name: data.values[:, k] for k, name in enumerate(data.columns)}
    table = pl.DataFrame({"song": key, **columns})
    scores = pl.col(data.columns)
    p = scores.clip(float(LOW), float(HIGH))
    highest = scores == pl.max_horizontal(data.columns)

    def grouped(expression: Any) -> Callable[[], Any]:
        return lambda: table.lazy().group_by("song").agg(expression).collect()

    def counted() -> Any:
        return table.lazy().select("song", highest).group_by("song").agg(scores.sum()).collect()

    def answer(found: Any) -> Array:
        return np.asarray(found.sort("song").drop("song").to_numpy())

    rules: Rules = {
        "mean": (grouped(scores.mean()), answer),
        "log-odds": (grouped((p / (1 - p)).log().mean()), answer),
        "votes": (counted, answer),
    }
    return {"polars": rules}


def by_duckdb(data: Data, key: Key) -> dict[str, Rules]:
    """Group by song."""
    if not installed("duckdb"):
        return {}
    import duckdb
    import pyarrow as pa

    columns = {name: data.values[:, k] for k, name in enumerate(data.columns)}
    scores = pa.table({"song": key, **columns})
    database = duckdb.connect(config={"threads": 1})
    database.register("arrow_scores", scores)
    database.execute("CREATE TABLE scores AS SELECT * FROM arrow_scores")
    top = f"greatest({', '.join(data.columns)})" if len(columns) > 1 else "c0"

    def grouped(expression: str) -> Callable[[], Any]:
        parts = ", ".join(f"{expression.format(c)} AS {c}" for c in data.columns)
        query = f"SELECT song, {parts} FROM scores GROUP BY song"
        return lambda: database.execute(query).fetchnumpy()

    def answer(found: Any) -> Array:
        return np.stack([found[c] for c in data.columns], axis=1)[np.argsort(found["song"])]

    p = f"greatest(least({{0}}, {HIGH:.9f}::FLOAT), {LOW:.9e}::FLOAT)"
    rules: Rules = {
        "mean": (grouped("avg({0})"), answer),
        "log-odds": (grouped(f"avg(ln({p} / (1 - {p})))"), answer),
        "votes": (grouped(f"count(*) FILTER ({{0}} = {top})"), answer),
    }
    return {"duckdb": rules}
