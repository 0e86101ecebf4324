"""What is done to songs once they are read: names, labels, groups and splits.

In this order: what folders say, names, splits of files, the second table, several labels, names of
labels that are numbers; and no song may stand there twice.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from seqagg.cache_table import Names, how_headers_differ
from seqagg.errors import ParameterError, SeqaggError, SourceError
from seqagg.formulas import unescape_formulas
from seqagg.songs import Songs, labels_of
from seqagg.sources.base import BATCH_BYTES, Batch, Options, numbered, unchanged
from seqagg.sources.columnar import open_table
from seqagg.sources.rows import AGAIN, PER_SONG, as_field
from seqagg.sources.table import NAMES, find_roles, said_of_songs
from seqagg.sources.text import TextTable

_FIELDS = {"label": "labels", "group": "groups", "split": "split", "fold": "fold"}

_PREDICTIONS = ["song_id", "prediction"]
"""How the header of a table of `seqagg predict` begins, whose formulas have been made text."""


def finished(batches: Iterable[Batch], options: Options, notes: list[str]) -> Iterator[Batch]:
    """Batches of about the same size, with everything that is to be said of their songs.

    Raises
    ------
    SourceError
        Names the file, the song and, where there are some, the row.
    """
    joined = None if options.labels is None else SongTable(Path(options.labels), options)
    seen = Names()
    first = None
    for batch in merged(batches):
        _refuse_backwards(batch)
        fields = dict(_said(batch, options, joined))
        ids = fields.get("ids", batch.songs.ids)
        twice = seen.add(ids)
        if twice is not None:
            raise _again(batch, ids, twice)
        try:
            songs = batch.songs.replace(**fields) if fields else batch.songs
        except SeqaggError as error:
            raise _located(batch, error) from None
        first = first or songs
        yield batch._replace(songs=songs)
    if first is not None:
        notes.extend(_unnamed(first, options))
    if joined is not None:
        joined.report(notes)


def _refuse_backwards(batch: Batch) -> None:
    """Refuse times that fall within a song; those of tables are known by their rows already."""
    songs = batch.songs
    if songs.start is None or len(songs.start) < 2:
        return
    falls = songs.start[1:] < songs.start[:-1]  # a difference would warn of NaNs that signal
    within = songs.offsets[1:-1]
    falls[within[(within > 0) & (within < len(songs.start))] - 1] = False
    if falls.any():
        frame = int(np.argmax(falls)) + 1
        song = int(np.searchsorted(songs.offsets, frame, side="right")) - 1
        what = f"frame {frame - songs.offsets[song]} starts at {songs.start[frame]:g} s, the one "
        what += f"before it at {songs.start[frame - 1]:g} s"
        file = batch.files[song].path if batch.files else None
        raise SourceError(what, file=file, song=str(songs.ids[song]))


def _unnamed(songs: Songs, options: Options) -> Iterator[str]:
    """Say what has a number for a name."""
    if songs.columns == tuple(numbered(songs.n_columns)):
        yield "the columns have no names; --columns gives them some"
    labels = [] if songs.labels is None else [label for label in songs.labels if label is not None]
    text = [one for label in labels for one in ([label] if isinstance(label, str) else label)]
    if text and all(one.isdecimal() for one in text) and not set(text) <= set(songs.columns or ()):
        yield (
            "the labels are numbers; --classes names them, --classes columns if they count the "
            "score columns"
        )


def _located(batch: Batch, error: SeqaggError) -> SourceError:
    files = {file.path for file in batch.files}
    file = files.pop() if len(files) == 1 else None
    return SourceError(error.message, file=file, song=error.song, column=error.column)


def _again(batch: Batch, ids: Any, song: int, before: Sequence[Batch] = ()) -> SourceError:
    """Say where a song stands that is there already."""
    file = batch.files[song].path if batch.files else None
    places = [(ids, batch.files), *((part.songs.ids, part.files) for part in before)]
    others = {
        other.path
        for names, files in places
        for name, other in zip(names, files, strict=False)
        if name == ids[song]
    } - {file}
    if others:
        return SourceError(f"this song stands in {min(others)} too", file=file, song=ids[song])
    what = "this song stands there already"
    if batch.row is not None:
        what = f"row {batch.row(song)}: {AGAIN}"
    return SourceError(what, file=file, song=ids[song])


def merged(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Put small batches together: a file may hold one song, and there may be many files."""
    waiting: list[Batch] = []
    seen, size = Names(), 0
    for batch in batches:
        if waiting:
            _refuse_differences(waiting[0], batch)
        twice = seen.add(batch.songs.ids)
        if twice is not None:
            raise _again(batch, batch.songs.ids, twice, waiting)
        waiting.append(batch)
        size += batch.songs.values.nbytes + 64 * len(batch.songs)
        if size >= BATCH_BYTES // 2:
            yield _join(waiting)
            waiting, size = [], 0
    if waiting:
        yield _join(waiting)


def _join(batches: list[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    firsts = np.cumsum([0, *(len(batch.songs) for batch in batches)]).tolist()

    def row(song: int) -> int:
        i = bisect_right(firsts, song) - 1
        of_batch = batches[i].row
        assert of_batch is not None
        return of_batch(song - firsts[i])

    return Batch(
        Songs.concatenate([batch.songs for batch in batches]),
        [file for batch in batches for file in batch.files],
        batches[-1].share,
        row if all(batch.row is not None for batch in batches) else None,
    )


def _refuse_differences(first: Batch, other: Batch) -> None:
    def place(batch: Batch) -> Any:
        return batch.files[0].path if batch.files else None

    def header(batch: Batch) -> dict[str, Any]:
        return {name: getattr(batch.songs, name) for name in ("columns", "kind", "task")}

    if difference := how_headers_differ(header(first), header(other), place(first)):
        raise SourceError(difference, file=place(other))
    for name in (*_FIELDS.values(), "start"):
        here, there = (getattr(batch.songs, name) is not None for batch in (first, other))
        if here != there:
            what = f"{'no ' if here else ''}{name}, unlike {place(first)}"
            raise SourceError(what, file=place(other))


def _said(batch: Batch, options: Options, joined: SongTable | None) -> Iterator[tuple[str, Any]]:
    """Fields of the songs that are new."""
    songs, fields = batch.songs, dict[str, Any]()
    if options.folder_is is not None:
        fields[_FIELDS[options.folder_is]] = [
            _folder(name, batch, i) for i, name in enumerate(songs.ids)
        ]
    if options.ids != "path":
        fields["ids"] = np.array([short_id(name, options.ids) for name in songs.ids], object)
    if any(file.split is not None for file in batch.files):
        if songs.split is not None or "split" in fields:
            what = "the split of its songs is said twice: by --train and --test, and here"
            raise SourceError(what, file=batch.files[0].path)
        fields["split"] = [file.split for file in batch.files]
    if joined is not None:
        fields |= joined.look_up(fields.get("ids", songs.ids))
    labels = fields.get("labels", songs.labels)
    if labels is not None and options.classes is not None:
        fields["labels"] = _named(labels, options, batch)
    yield from fields.items()


def _folder(name: str, batch: Batch, song: int) -> str:
    parts = re.split(r"[\\/]", name)
    if len(parts) < 2 or not parts[-2]:
        file = batch.files[song].path if batch.files else None
        raise SourceError("its name has no folder", file=file, song=name)
    return parts[-2]


def short_id(name: str, ids: str) -> str:
    """Last part of a path, without its suffix if that is asked for.

    Of ``blues/blues.00012.au`` it is ``blues.00012``, and of that no less: a suffix begins with a
    letter.
    """
    last = re.split(r"[\\/]", name)[-1]
    stem = re.sub(r"(?<=.)\.[A-Za-z][A-Za-z0-9]{0,4}$", "", last) if ids == "stem" else last
    return stem or name


def _named(labels: Iterable[Any], options: Options, batch: Batch) -> list[Any]:
    """Labels by name instead of number."""
    songs = batch.songs
    names = songs.columns if options.classes == "columns" else options.classes
    assert names is not None
    if not isinstance(names, list | tuple):
        raise ParameterError(f"classes={names!r} is neither a list of names nor 'columns'")

    def name_of(label: Any, song: int) -> Any:
        if label is None:
            return None
        if isinstance(label, tuple | list):
            return tuple(name_of(one, song) for one in label)
        if not str(label).isdecimal() or int(label) >= len(names):
            what = f"the label {label!r} is no number from 0 to {len(names) - 1}"
            file = batch.files[song].path if batch.files else None
            raise SourceError(what, file=file, song=str(songs.ids[song]))
        return names[int(label)]

    return [name_of(label, song) for song, label in enumerate(labels)]


class SongTable:
    """A second table, with a row for each song, or several rows where songs have several labels.

    Parameters
    ----------
    path : Path
    options : Options

    Raises
    ------
    SourceError
        When a song has rows that contradict each other, or the table says nothing of songs.
    """

    def __init__(self, path: Path, options: Options) -> None:
        table = open_table(path, options)
        self._path, self._multilabel = path, options.task == "multilabel"
        song = next(
            (n for n in (options.labels_song, options.song, "song_id") if n in table.names), None
        )
        if options.labels_song is not None:
            song = options.labels_song
        asked = Options(
            song=song, label=options.label, group=options.group, split=options.split,
            fold=options.fold,
        )  # fmt: skip
        if song is None:
            raise SourceError(
                "--labels-song names the column of song ids; there are "
                + ", ".join(table.names[:8]),
                file=path,
            )
        self._names = find_roles(table, asked, {n: NAMES[n] for n in ("song", *PER_SONG)})
        if len(self._names) == 1:
            what = f"says nothing of songs; --label and so on name one of {table.names[:8]}"
            raise SourceError(what, file=path)
        types = dict.fromkeys(self._names.values(), pa.string())
        with unchanged(path):
            batches = [batch for batch, _ in table.batches(types)]
        rows = (
            pa.Table.from_batches(batches, pa.schema(list(types.items())))
            if not batches
            else (pa.Table.from_batches(batches))
        )
        rows = rows.combine_chunks()
        if isinstance(table, TextTable) and table.names[:2] == _PREDICTIONS:
            rows = pa.table([unescape_formulas(c) for c in rows.columns], names=rows.column_names)
        self._read(rows, options, table.place)

    def _read(self, rows: pa.Table, options: Options, place: Callable[[int], int]) -> None:
        if not len(rows):
            raise SourceError("has no row", file=self._path)
        ids = rows[self._names["song"]].chunk(0)
        unnamed = np.asarray(pc.fill_null(pc.equal(ids, ""), True))
        if unnamed.any():
            what = f"row {place(int(np.argmax(unnamed)))}: no song id"
            raise SourceError(what, file=self._path, column=self._names["song"])
        if options.ids != "path":
            ids = pa.array([short_id(name, options.ids) for name in ids.to_pylist()])
        said = {
            role: said_of_songs(rows[name].chunk(0), role, name, self._path)
            for role, name in self._names.items()
            if role != "song"
        }
        codes = ids.dictionary_encode()
        self._ids = codes.dictionary
        if len(self._ids) < len(ids):
            said = self._one_row_each(np.asarray(codes.indices), said, place)
        self._said = said
        self._used = np.zeros(len(self._ids), dtype=bool)
        self._n_unknown, self._an_unknown = 0, ""

    def _one_row_each(
        self, song: npt.NDArray[Any], said: dict[str, pa.Array], place: Callable[[int], int]
    ) -> dict[str, pa.Array]:
        """Join the rows of songs that have several."""
        first = np.unique(song, return_index=True)[1]
        joined = {}
        for role, column in said.items():
            values = column.to_pylist()
            if role == "label" and self._multilabel:
                labels: list[dict[str, None] | None] = [None] * len(first)
                for i, value in zip(song, values, strict=True):
                    if (some := labels_of(value)) is not None:
                        labels[i] = (labels[i] or {}) | dict.fromkeys(some)
                listed = [None if label is None else list(label) for label in labels]
                joined[role] = pa.array(listed, pa.list_(pa.string()))
                continue
            for row, i in enumerate(song):
                if values[row] != values[first[i]]:
                    what = f"row {place(row)}: {values[row]!r}, in row {place(int(first[i]))} "
                    what += repr(values[first[i]])
                    raise SourceError(
                        what,
                        file=self._path,
                        song=self._ids[int(i)].as_py(),
                        column=self._names[role],
                    )
            joined[role] = column.take(pa.array(first))
        return joined

    def look_up(self, ids: Sequence[Any]) -> dict[str, Any]:
        """What the table says of songs; nothing of those that it does not have."""
        index = pc.index_in(pa.array(ids, pa.string()), value_set=self._ids)
        known = np.asarray(index.is_valid())
        self._used[np.asarray(index.drop_null())] = True
        if not known.all():
            self._an_unknown = self._an_unknown or str(ids[int(np.argmin(known))])
            self._n_unknown += int((~known).sum())
        fields: dict[str, Any] = {}
        for role, column in self._said.items():
            fields |= as_field(role, column.take(index))
        return fields

    def report(self, notes: list[str]) -> None:
        """Say which songs were not there, once all were looked up."""
        if not self._used.any():
            what = f"has none of the songs: it has {self._ids[0].as_py()!r}, they are like "
            what += f"{self._an_unknown!r}; --ids name or --ids stem shortens both"
            raise SourceError(what, file=self._path)
        if self._n_unknown:
            notes.append(f"{self._n_unknown} songs are not in {self._path} ({self._an_unknown})")
        if not self._used.all():
            n, name = int((~self._used).sum()), self._ids[int(np.argmin(self._used))].as_py()
            notes.append(f"{n} songs of {self._path} are not among the songs ({name})")
