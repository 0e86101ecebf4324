"""Labels for a whole cache, batch by batch: read, label, append to a table.

Conventions
-----------
The table has a row per song, in the order of the cache: ``song_id``, ``prediction`` and one
probability column per class, named by the class. Several labels of a song are a list of text, in
``.csv`` joined by a bar, and text that a spreadsheet would run begins with an apostrophe there. A
batch is read while the one before is labelled, and nothing is held for
longer than that, so that the memory does not grow with the cache.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.csv import CSVWriter

from seqagg.cache import CacheBatches
from seqagg.errors import ParameterError, SongError, about
from seqagg.formulas import are_formulas
from seqagg.formulas import escape_formulas as escaped
from seqagg.manifest import refuse_replacing
from seqagg.places import Place, place_of, writing
from seqagg.progress import counted
from seqagg.songs import Songs
from seqagg.threads import ahead, behind

if TYPE_CHECKING:
    from seqagg.aggregators.base import Aggregator, OnEmpty

Ints = npt.NDArray[np.int64]

SUFFIXES = (".csv", ".parquet")

_AHEAD = 6
"""Batches that may be read before they are labelled."""

_ROWS = 2**17
"""Songs that are written at a time."""


@dataclass
class PredictionReport:
    """What was labelled, and how well where the labels are known.

    Attributes
    ----------
    n_songs : int
    n_labelled : int
        Songs of known label.
    n_right : int
        Of these, the songs whose label was predicted; of several labels, all and no others.
    unseen_labels : set of str
        Labels in the cache that the model does not know, and which count as wrong.
    multilabel : bool
        Whether songs have several labels each.
    n_formulas : int
        Cells of a ``.csv`` table that a spreadsheet would take for formulas: ids, labels and
        names of columns, see `seqagg.formulas`.
    """

    n_songs: int = 0
    n_labelled: int = 0
    n_right: int = 0
    unseen_labels: set[str] = field(default_factory=set)
    multilabel: bool = False
    n_formulas: int = 0

    @property
    def accuracy(self) -> float | None:
        """Share of the songs of known label that are right; None if there is none."""
        return self.n_right / self.n_labelled if self.n_labelled else None

    def add(self, other: PredictionReport) -> None:
        """Count other songs too."""
        self.n_songs += other.n_songs
        self.n_labelled += other.n_labelled
        self.n_right += other.n_right
        self.unseen_labels |= other.unseen_labels
        self.multilabel |= other.multilabel
        self.n_formulas += other.n_formulas


def predict_cache(
    model: str | os.PathLike[str],
    cache: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    split: str | None = None,
    escape_formulas: bool = True,
    on_empty: OnEmpty | None = None,
) -> PredictionReport:
    """Label the songs of a cache with a fitted model and write them to a table.

    Parameters
    ----------
    model, cache : path-like
        Model file; cache file or folder of such files, a path or a URL.
    out : path-like
        Table, ``.csv`` or ``.parquet``, a path or a URL: written whole or not at all.
    split : str, optional
        Only the songs of this split; ``"all"`` is as if it were not given.
    escape_formulas : bool
        Put an apostrophe before what a spreadsheet would take for a formula in a ``.csv`` table,
        ids, labels and names of columns; otherwise they stay as they are. Numbers always do.
    on_empty : {"error", "prior"}, optional
        What a song without a single frame gets; by default what the model was fitted with.

    Raises
    ------
    SeqaggError
        Names the file, song, column or parameter that cannot be used.
    """
    target = place_of(out)
    if target.suffix not in SUFFIXES:
        raise ParameterError(f"{out}: the table of predictions ends in .csv or .parquet")
    refuse_replacing(target, cache, model)
    report = PredictionReport()
    # Reading starts before the model is there: to import what models are made of takes a second.
    with about(cache), ahead(_read(place_of(cache), split), _AHEAD) as batches:
        from seqagg.aggregators.saving import load

        aggregator = load(model)
        if on_empty is not None:
            aggregator.set_params(on_empty=on_empty)
        with writing(target) as temporary, counted("predict", "songs") as advance:

            def in_turn() -> Iterator[tuple[Songs, pa.Array | None]]:
                for batch in batches:
                    yield batch.songs, batch.labels
                    advance(report.n_songs, batch.n_all)

            write_labels(aggregator, in_turn(), temporary, report, escape_formulas=escape_formulas)
    return report


def write_labels(
    aggregator: Aggregator,
    batches: Iterable[tuple[Songs, pa.Array | None]],
    path: Path,
    report: PredictionReport,
    refuse: Callable[[str, str], object] | None = None,
    escape_formulas: bool = True,
) -> None:
    """Label songs with a fitted aggregator, and write the table.

    Parameters
    ----------
    aggregator : Aggregator
    batches : iterable of (Songs, pyarrow.Array or None)
        As `CacheBatches.read` gives them.
    path : Path
        Table, ``.csv`` or ``.parquet``.
    report : PredictionReport
        Counts what is done.
    refuse : callable, optional
        Called with the id of a song that cannot be labelled and the reason, instead of raising.
    escape_formulas : bool
        As `predict_cache` takes it.
    """
    report.multilabel = aggregator.multilabel_
    table = _Table(path, aggregator, escape_formulas)
    # Closed last: the thread that writes has ended then.
    with table.writer, behind(table.writer.write_table) as table.write:
        for songs, labels in batches:
            _label(aggregator, songs, labels, table, report, refuse)
        table.flush()
    report.n_formulas += table.n_formulas


def predictions(aggregator: Aggregator, songs: Songs) -> pa.Table:
    """Label songs with a fitted aggregator, as a table of Arrow.

    Parameters
    ----------
    aggregator : Aggregator
        Fitted.
    songs : Songs
        Scores in the columns that it was fitted on.

    Returns
    -------
    pyarrow.Table
        A row per song, in their order: ``song_id``, ``prediction`` (a list of labels, if songs may
        have several) and one probability column per class. ``to_pandas()`` and
        ``polars.from_arrow`` take it from there.
    """
    rows = _Rows(aggregator)
    chosen, proba = aggregator._answers(songs)
    batch, _ = rows.make(songs, chosen, proba)
    return pa.Table.from_batches([batch])


def find_split(known: set[str], split: str | None, default: str | None) -> str | None:
    """Name of the split that is meant, None for all songs.

    Parameters
    ----------
    known : set of str
        Splits of the songs.
    split : str or None
        What was asked for.
    default : str or None
        What is meant if nothing was asked for, and the songs have splits at all.
    """
    wanted = split if split is not None else (default if known else None)
    if wanted is None or (wanted == "all" and "all" not in known):
        return None
    if wanted not in known:
        there = f"there are {', '.join(sorted(known))}" if known else "the cache has no split"
        raise ParameterError(f"no song of split {wanted!r}; {there}; --split all takes all songs")
    return wanted


class _Batch(NamedTuple):
    songs: Songs
    labels: pa.Array | None
    n_all: int  # songs to label


def _read(cache: Place, split: str | None) -> Iterator[_Batch]:
    source = CacheBatches(cache)
    chosen = find_split(set(source.splits), split, None)
    n_all = source.n_songs if chosen is None else source.splits[chosen]
    for songs, labels in source.read(chosen):
        yield _Batch(songs, labels, n_all)


def _label(
    aggregator: Aggregator,
    songs: Songs,
    labels: pa.Array | None,
    table: _Table,
    report: PredictionReport,
    refuse: Callable[[str, str], object] | None,
) -> None:
    if len(songs) == 0:
        return
    try:
        chosen, proba = aggregator._answers(songs)
    except SongError as error:
        if refuse is None or error.song is None:
            raise
        if len(songs) == 1:
            refuse(error.song, error.message)
            return
        half = len(songs) // 2
        for part in (slice(half), slice(half, None)):
            known = None if labels is None else labels[part]
            _label(aggregator, songs[part], known, table, report, refuse)
        return
    said = table.append(songs, chosen, proba)
    report.n_songs += len(songs)
    if labels is not None:
        _count_right(labels, said, table.rows.names, report)


def _count_right(
    labels: pa.Array, said: pa.Array, names: list[str], report: PredictionReport
) -> None:
    """Add a batch to the report; both labels are text, or lists of text."""
    report.n_labelled += len(labels) - labels.null_count
    if not (pa.types.is_nested(labels.type) or pa.types.is_nested(said.type)):
        report.n_right += pc.sum(pc.equal(labels, said), min_count=0).as_py()
        report.unseen_labels |= set(labels.unique().drop_null().to_pylist()) - set(names)
        return
    for label, one in zip(labels.to_pylist(), said.to_pylist(), strict=True):
        if label is not None:
            known, found = (set(x) if isinstance(x, list) else {x} for x in (label, one))
            report.n_right += known == found
            report.unseen_labels |= known - set(names)


class _Rows:
    """Makes rows of the table; `joined` labels are one text."""

    def __init__(self, aggregator: Aggregator, joined: bool = False) -> None:
        self.names = [str(c) for c in aggregator.classes_]
        for reserved in ("song_id", "prediction"):
            if reserved in self.names:
                raise ParameterError(
                    f"a class is called {reserved!r}, as a column of the table is; rename the class"
                )
        self.multilabel = aggregator.multilabel_
        self._joined = joined
        if joined and self.multilabel:
            for name in self.names:
                if "|" in name:
                    raise ParameterError(
                        f"a class is called {name!r}, and | joins labels: write .parquet"
                    )
        self._classes = pa.array(aggregator.classes_.tolist())
        kind = self._classes.type
        if self.multilabel:
            kind = pa.string() if joined else pa.list_(pa.string())
        fields = [("song_id", pa.string()), ("prediction", kind)]
        self.schema = pa.schema(fields + [(name, pa.float64()) for name in self.names])

    def make(
        self, songs: Songs, chosen: Ints, proba: npt.NDArray[np.float64]
    ) -> tuple[pa.RecordBatch, pa.Array]:
        """Rows of songs, and what is predicted for them, as text or lists of text."""
        text = self._said(chosen)
        prediction = text
        if self.multilabel and self._joined:
            prediction = pc.binary_join(text, "|")
        elif not self.multilabel:
            prediction = self._classes.take(pa.array(chosen))
        ids = songs.arrow_ids().cast(pa.string())
        columns = [pa.array(column) for column in np.ascontiguousarray(proba.T)]
        rows = pa.RecordBatch.from_arrays([ids, prediction, *columns], schema=self.schema)
        return rows, text

    def _said(self, chosen: Ints) -> pa.Array:
        names = pa.array(self.names)
        if not self.multilabel:
            return names.take(pa.array(chosen))
        offsets = np.concatenate([[0], np.cumsum(chosen.sum(axis=1))]).astype(np.int32)
        return pa.ListArray.from_arrays(offsets, names.take(pa.array(np.nonzero(chosen)[1])))


class _Table:
    """The table that grows."""

    def __init__(self, path: Path, aggregator: Aggregator, escape_formulas: bool) -> None:
        self._csv = path.suffix == ".csv"
        self._escape = escape_formulas
        self.n_formulas = 0
        self.rows = _Rows(aggregator, joined=self._csv)
        self.writer = self._open(path)
        self.write: Callable[[pa.Table], object] = self.writer.write_table
        self._waiting: list[pa.RecordBatch] = []

    def _open(self, path: Path) -> Any:
        if self._csv:
            names = self._as_text(pa.array(self.rows.schema.names)).to_pylist()
            self._names = names
            kinds = zip(names, self.rows.schema.types, strict=True)
            return CSVWriter(os.fspath(path), pa.schema(kinds))
        # Settings go by path, and a class may be called like the path of the labels in a list.
        label = "prediction.list.element" if self.rows.multilabel else "prediction"
        return pq.ParquetWriter(
            path,
            self.rows.schema,
            compression="zstd",
            use_dictionary=[label],
            column_encoding={n: "BYTE_STREAM_SPLIT" for n in self.rows.names if n != label},
            write_page_checksum=True,
        )

    def append(self, songs: Songs, chosen: Ints, proba: npt.NDArray[np.float64]) -> pa.Array:
        """Add songs, and return what is predicted for them, as text or lists of text."""
        rows, text = self.rows.make(songs, chosen, proba)
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= _ROWS:
            self.flush()
        return text

    def flush(self) -> None:
        """Write what was added."""
        if not self._waiting:
            return
        table = pa.Table.from_batches(self._waiting)
        if self._csv:
            columns = [self._as_text(c) if pa.types.is_string(c.type) else c for c in table.columns]
            table = pa.table(columns, names=self._names)
        self.write(table)
        self._waiting = []

    def _as_text(self, cells: pa.Array) -> pa.Array:
        """Count formulas, and see to it that a spreadsheet takes them for text, if asked to."""
        n = pc.sum(are_formulas(cells), min_count=0).as_py()
        self.n_formulas += n
        return escaped(cells) if n and self._escape else cells
