"""Other people's files and tables to `Songs` and caches: a new format is one file, one line here.

What is read is checked; what cannot be is one error that names file, row and column. Nothing in a
file is run, and files of any size are read and written in bounded memory.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from seqagg.cache import CacheWriter
from seqagg.cache_table import HEADER_KEY
from seqagg.errors import ParameterError, SongError, SourceError, about
from seqagg.logodds import Kind, Task
from seqagg.progress import counted
from seqagg.shards import write_shards
from seqagg.songs import Songs
from seqagg.sources import nested, table
from seqagg.sources.arrays import cut_padding
from seqagg.sources.audacity import to_audacity, write_labels
from seqagg.sources.base import DECIMALS, IDS, Batch, File, Options
from seqagg.sources.columnar import table_of
from seqagg.sources.detection import check_format, detect, find_files
from seqagg.sources.export import to_arrow, to_pandas, to_polars
from seqagg.sources.metadata import finished
from seqagg.threads import ahead

__all__ = [
    "FORMATS",
    "Conversion",
    "Options",
    "convert",
    "convert_to_audacity",
    "from_arrays",
    "from_dataframe",
    "from_padded",
    "from_stacked",
    "read",
    "to_arrow",
    "to_audacity",
    "to_pandas",
    "to_polars",
]

FORMATS: dict[str, str] = {
    "table": "seqagg.sources.table",
    "songs": "seqagg.sources.nested",
    "cache": "seqagg.sources.cached",
    "npz": "seqagg.sources.npz",
    "npy": "seqagg.sources.npy",
    "hdf5": "seqagg.sources.hdf5",
    "opensoundscape": "seqagg.sources.opensoundscape",
    "sed_scores": "seqagg.sources.sed_scores",
    "birdnet": "seqagg.sources.birdnet",
    "raven": "seqagg.sources.raven",
}
"""Name of a format -> its module, imported on first use."""

_AHEAD = 2
"""Batches that may be read before they are written."""

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass
class Conversion:
    """What was converted.

    Attributes
    ----------
    format : str
    n_songs, n_frames : int
    n_labelled : int
        Songs of known label.
    columns : tuple of str
    kind, task : str
    fields : tuple of str
        What is known of songs beside their scores.
    notes : list of str
        What a user should know.
    """

    format: str
    n_songs: int = 0
    n_frames: int = 0
    n_labelled: int = 0
    columns: tuple[str, ...] = ()
    kind: str = ""
    task: str = ""
    fields: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

    def add(self, songs: Songs) -> None:
        """Count songs that were written."""
        self.n_songs += len(songs)
        self.n_frames += len(songs.values)
        if songs.labels is not None:
            self.n_labelled += sum(label is not None for label in songs.labels)
        assert songs.columns is not None
        self.columns, self.kind, self.task = songs.columns, songs.kind, songs.task
        known = ("labels", "groups", "split", "fold", "start")
        self.fields = tuple(name for name in known if getattr(songs, name) is not None)


def read(
    paths: Paths = (), format: str | None = None, *, notes: list[str] | None = None, **options: Any
) -> Songs:
    r"""Read songs from files of others.

    Parameters
    ----------
    paths : path-like, or sequence of them
        Files, and folders of files.
    format : str, optional
        One of `FORMATS`; what the files say by their own marks, if not given.
    notes : list, optional
        Gets what a user should know but need not act on.
    **options
        ``train`` and ``test``, further paths, whose songs get that split; and see `Options`.

    Returns
    -------
    Songs

    Raises
    ------
    SourceError
        Names the file, row, song and column that cannot be used.
    ParameterError
        When an option is one that the format does not heed.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder, "frames.csv")
    ...     rows = ["song_id,jig,reel", "one,0.9,0.1", "one,0.8,0.2", "two,0.3,0.7"]
    ...     _ = file.write_text("\n".join(rows))
    ...     read(file, kind="probability")
    <Songs: 2 songs, 3 frames, 2 columns of probability, columns=['jig', 'reel']>
    """
    files, format, opened = _open(paths, format, options, ())
    told: list[str] = [] if notes is None else notes
    return _together(_batches(files, format, opened, told), files[0].path)


def convert(
    paths: Paths,
    out: str | os.PathLike[str],
    format: str | None = None,
    *,
    songs_per_shard: int | None = None,
    log_odds: bool = False,
    **options: Any,
) -> Conversion:
    """Write a cache of the songs in files of others, whole or not at all.

    However large the files, some hundred megabytes of memory are enough. The same files give the
    same bytes.

    Parameters
    ----------
    paths, format, **options
        As in `read`.
    out : path-like
        Ends in ``.parquet`` or ``.arrow``; with `songs_per_shard` a new folder, a path or a URL.
    songs_per_shard : int, optional
        Write a folder of files of so many songs each, with a manifest, see
        `seqagg.shards.write_shards`.
    log_odds : bool
        Write log-odds, which methods take as they are, whatever kind the scores are of; see
        `Songs.log_odds`.

    Raises
    ------
    SeqaggError
        As `read`, `CacheWriter` and `write_shards` do.
    """

    def write(batches: Iterator[Songs]) -> None:
        if songs_per_shard is not None:
            write_shards(batches, out, songs_per_shard)
            return
        with CacheWriter(out) as cache:
            for songs in batches:
                cache.write(songs)

    return _convert(paths, out, format, options, write, log_odds=log_odds)


def convert_to_audacity(
    paths: Paths,
    out: str | os.PathLike[str],
    format: str | None = None,
    *,
    threshold: float,
    window: float,
    **options: Any,
) -> Conversion:
    """Write a folder of label files for Audacity, one for each song in files of others.

    Parameters
    ----------
    paths, format, **options
        As in `read`.
    out, threshold, window
        As in `to_audacity`.
    """

    def write(batches: Iterator[Songs]) -> None:
        write_labels(batches, out, threshold=threshold, window=window)

    return _convert(paths, out, format, options, write)


def _convert(
    paths: Paths,
    out: str | os.PathLike[str],
    format: str | None,
    options: dict[str, Any],
    write: Callable[[Iterator[Songs]], None],
    log_odds: bool = False,
) -> Conversion:
    """Read in a thread of its own what is written here."""
    files, format, opened = _open(paths, format, options, [out])
    report = Conversion(format)
    position = {file.path: i for i, file in enumerate(files)}

    def reported(batches: Iterator[Batch], advance: Callable[[int, int], None]) -> Iterator[Songs]:
        for batch in batches:
            songs = batch.songs
            if log_odds:
                with about(batch.files[0].path):
                    songs = songs.log_odds()
            report.add(songs)
            yield songs
            done = position[batch.files[-1].path] + batch.share if batch.files else 0
            advance(report.n_songs, round(report.n_songs * len(files) / max(done, 1e-3)))
        if report.n_songs == 0:
            raise SourceError("there is no song in it", file=files[0].path)

    with (
        counted("convert", "songs") as advance,
        ahead(_batches(files, format, opened, report.notes), _AHEAD) as batches,
    ):
        write(reported(batches, advance))
    return report


def from_dataframe(data: Any, *, notes: list[str] | None = None, **options: Any) -> Songs:
    """Make songs of a table with a row per frame, or with a row per song and lists of frames.

    Parameters
    ----------
    data : DataFrame
        Of pandas (with its index), polars, DuckDB, Arrow, or any library that speaks Arrow's stream
        interface or the dataframe interchange protocol.
    notes, **options
        As in `read`, for the format ``table``; if the option ``scores`` names a column of lists,
        for the format ``songs``.

    Examples
    --------
    >>> import pyarrow as pa
    >>> frames = pa.table({"song_id": ["one", "one", "two"], "jig": [0.9, 0.8, 0.3]})
    >>> from_dataframe(frames, kind="probability").lengths
    array([2, 1])
    """
    opened = _options(options)
    told: list[str] = [] if notes is None else notes
    given = table_of(data)
    if opened.scores is not None or HEADER_KEY in (given.schema.metadata or {}):
        opened.only(nested.TAKES, "songs")
        return _together(finished(nested.read_nested(given, opened), opened, told))
    opened.only(table.TAKES, "table")
    return _together(finished(table.read_table(given, opened, told), opened, told))


def from_arrays(
    arrays: Mapping[str, npt.ArrayLike] | Sequence[npt.ArrayLike],
    *,
    kind: Kind,
    transpose: bool = False,
    **fields: Any,
) -> Songs:
    """Make songs of an array for each.

    Parameters
    ----------
    arrays : mapping from song id to array, or sequence of arrays
        Of shape (n_frames_i, n_columns).
    kind : {"probability", "logit", "log_odds"}
    transpose : bool
        Arrays are (n_columns, n_frames_i).
    **fields
        The other parameters of `Songs`. Where the arrays are a mapping, these may be as well;
        what they say nothing of is unknown.

    Raises
    ------
    SongError
        Where a mapping names a song that is not there.
    """
    if isinstance(arrays, Mapping):
        fields = {"ids": list(arrays)} | {
            name: _by_song(name, given, arrays) if isinstance(given, Mapping) else given
            for name, given in fields.items()
        }
        arrays = list(arrays.values())
    turned = [np.asarray(array).T if transpose else np.asarray(array) for array in arrays]
    return Songs.from_arrays(turned, kind=kind, **fields)


def _by_song(name: str, given: Mapping[str, Any], songs: Mapping[str, Any]) -> list[Any]:
    unknown = next((song for song in given if song not in songs), None)
    if unknown is not None:
        raise SongError(f"{name} has it, but there is no array of that name", song=str(unknown))
    return [given.get(song) for song in songs]


def from_stacked(
    array: npt.ArrayLike,
    lengths: npt.ArrayLike,
    *,
    kind: Kind,
    transpose: bool = False,
    **fields: Any,
) -> Songs:
    """Make songs of frames below each other.

    Parameters
    ----------
    array : array-like of shape (n_frames, n_columns)
    lengths : array-like of int, shape (n_songs,)
        Number of frames of each song.
    kind, transpose, **fields
        As in `from_arrays`.
    """
    given = np.asarray(lengths)
    if given.ndim != 1 or given.dtype.kind not in "iu" or (given < 0).any():
        raise SongError("lengths are not one number of frames for each song")
    values = np.asarray(array).T if transpose else np.asarray(array)
    return Songs(values, np.concatenate([[0], np.cumsum(given)]), kind=kind, **fields)


def from_padded(
    array: npt.ArrayLike,
    mask: npt.ArrayLike | None = None,
    *,
    lengths: npt.ArrayLike | None = None,
    kind: Kind,
    transpose: bool = False,
    start: npt.ArrayLike | None = None,
    **fields: Any,
) -> Songs:
    """Make songs of an array in which they are padded to one length.

    Parameters
    ----------
    array : array-like of shape (n_songs, most_frames, n_columns)
    mask : array-like of bool, shape (n_songs, most_frames), optional
        True where a frame is real. What is false between two real frames is a missing frame.
    lengths : array-like of int, shape (n_songs,), optional
        Number of real frames, if there is no mask.
    kind, **fields
        As in `from_arrays`.
    transpose : bool
        The array is (n_songs, n_columns, most_frames).
    start : array-like of shape (n_songs, most_frames), optional
        Start of each frame, in seconds.
    """
    values = np.asarray(array)
    if values.ndim != 3:
        raise SongError(f"the array has shape {values.shape}, not (n_songs, most_frames, columns)")
    values = values.swapaxes(1, 2) if transpose else values
    shape = values.shape[:2]
    if (mask is None) == (lengths is None):
        raise SongError("give either mask or lengths")
    if mask is not None:
        real = np.asarray(mask)
        if real.shape != shape or not ((real == 0) | (real == 1)).all():
            raise SongError(f"the mask is no array of true and false of shape {shape}")
    else:
        given = np.asarray(lengths)
        if given.shape != shape[:1] or (given < 0).any() or (given > shape[1]).any():
            raise SongError(f"lengths are not {shape[0]} numbers of frames up to {shape[1]}")
        real = np.arange(shape[1]) < given[:, None]
    frames, offsets, kept = cut_padding(values.astype(np.float32), real.astype(bool))
    times = None if start is None else np.asarray(start)[kept]
    return Songs(frames, offsets, kind=kind, start=times, **fields)


def _options(given: dict[str, Any]) -> Options:
    known = {f.name for f in dataclasses.fields(Options)}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ParameterError(
            f"no option {', '.join(unknown)}; there are {', '.join(sorted(known))}"
        )
    options = Options(**given)
    choices = {"kind": get_args(Kind), "task": get_args(Task), "ids": IDS, "decimal": DECIMALS}
    for name, allowed in choices.items():
        value = getattr(options, name)
        if value is not None and value not in allowed:
            raise ParameterError(f"{name}={value!r} is none of {', '.join(allowed)}")
    if options.hop is not None and not options.hop > 0:
        raise ParameterError(f"hop={options.hop} is no number of seconds")
    return options


def _open(
    paths: Paths, format: str | None, options: dict[str, Any], without: Iterable[Any]
) -> tuple[list[File], str, Options]:
    """Files, their format and the options, all checked."""
    given = dict(options)
    of_split: dict[str | None, list[Any]] = {None: _listed(paths)}
    of_split |= {split: _listed(given.pop(split, ())) for split in ("train", "test")}
    sources = [(path, split) for split, listed in of_split.items() for path in listed]
    if not sources:
        raise ParameterError("no file is given")
    opened = _options(given)
    if format is not None:
        check_format(format)
    files = find_files(sources, format, [*without, opened.labels])
    found = format or detect(files, opened)
    opened.only(_module(found).TAKES, found)
    return files, found, opened


def _listed(paths: Paths) -> list[str | os.PathLike[str]]:
    return [paths] if isinstance(paths, str | os.PathLike) else list(paths)


def _module(format: str) -> Any:
    return importlib.import_module(FORMATS[format])


def _batches(files: list[File], format: str, options: Options, notes: list[str]) -> Iterator[Batch]:
    return finished(_module(format).read(files, options, notes), options, notes)


def _together(batches: Iterator[Batch], file: Path | None = None) -> Songs:
    parts = [batch.songs for batch in batches]
    if not parts:
        raise SourceError("there is no song in it", file=file)
    return parts[0] if len(parts) == 1 else Songs.concatenate(parts)
