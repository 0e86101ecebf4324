"""`Songs` as tables of other libraries: Arrow, pandas, polars, and with Arrow, DuckDB.

Conventions
-----------
``"frames"``: a row per frame, with ``song_id`` and, where known, ``start`` (seconds), ``label``,
``group``, ``split``, ``fold``, then one column per score column. ``"songs"``: a row per song, as a
cache has it. `from_dataframe` makes the same songs of either; what pandas and polars cannot keep,
the kind of the scores, must be said again.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa

from seqagg.cache_table import HEADER_KEY, table_of_songs
from seqagg.errors import ParameterError, SongError
from seqagg.songs import Songs
from seqagg.sources.columnar import FRAMES_KEY

Layout = Literal["frames", "songs"]


def to_arrow(songs: Songs, layout: Layout = "frames") -> pa.Table:
    """Make a table of Arrow, which DuckDB and others read as it is.

    Parameters
    ----------
    songs : Songs
        Columns must be named.
    layout : {"frames", "songs"}
        A row per frame, or a row per song with its frames as a list.

    Returns
    -------
    pyarrow.Table
        Its schema metadata declare columns, kind and task.

    Raises
    ------
    SongError
        When a song without a frame would be lost, or a score column is called as another.
    """
    if layout not in ("frames", "songs"):
        raise ParameterError(f"layout={layout!r} is neither 'frames' nor 'songs'")
    of_songs = table_of_songs(songs)
    if layout == "songs":
        return of_songs
    lengths = songs.lengths
    if len(songs) and lengths.min() == 0:
        what = "has no frame, so it would have no row; layout='songs' keeps it"
        raise SongError(what, song=str(songs.ids[int(np.argmin(lengths))]))
    row = pa.array(np.repeat(np.arange(len(songs)), lengths))
    said = {n: of_songs[n].take(row) for n in of_songs.column_names if n not in ("start", "scores")}
    data: dict[str, Any] = {"song_id": said.pop("song_id")}
    if songs.start is not None:
        data["start"] = pa.array(songs.start)
    data |= said
    assert songs.columns is not None  # or it would be no table of songs
    for i, name in enumerate(songs.columns):
        if name in data or name in ("", "end"):
            raise SongError("a score column cannot be called so in a table of frames", column=name)
        data[name] = pa.array(np.ascontiguousarray(songs.values[:, i]))
    header = of_songs.schema.metadata[HEADER_KEY]
    return pa.table(data).replace_schema_metadata({FRAMES_KEY: header})


def to_pandas(songs: Songs, layout: Layout = "frames") -> Any:
    """Make a DataFrame of pandas; see `to_arrow`."""
    return to_arrow(songs, layout).to_pandas()


def to_polars(songs: Songs, layout: Layout = "frames") -> Any:
    """Make a DataFrame of polars; see `to_arrow`."""
    import polars

    return polars.from_arrow(to_arrow(songs, layout))
