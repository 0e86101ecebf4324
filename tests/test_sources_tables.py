"""Tables with a row per frame or per song: what other libraries write is what is read."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import json
import re
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from seqagg import CacheError, ParameterError, SongError, Songs, SourceError
from seqagg.sources import (
    columnar,
    from_arrays,
    from_dataframe,
    from_padded,
    from_stacked,
    read,
    to_arrow,
    to_pandas,
    to_polars,
)
from tests.conftest import assert_same_songs

COLUMNS = ["jig", "reel, slow", "Ä|ö"]


def some_songs(n: int = 6, seed: int = 0, **fields: Any) -> Songs:
    """Songs with everything that is said of them, a missing frame among them."""
    rng = np.random.default_rng(seed)
    arrays = [rng.random((n_frames, 3), dtype=np.float32) for n_frames in rng.integers(1, 9, n)]
    arrays[1][0] = np.nan
    given = {
        "columns": COLUMNS,
        "kind": "probability",
        "ids": [f"0{i}" for i in range(n)],
        "labels": ["NA", "=1+1", 'a "quoted", one', "null"] + [None] * (n - 4),
        "groups": [f"artist {i // 2}" if i else None for i in range(n)],
        "split": ["train" if i % 2 else "test" for i in range(n)],
        "fold": [i % 3 - 1 for i in range(n)],
        "start": [np.arange(len(a)) * 0.1 + 1e5 for a in arrays],
    }
    return Songs.from_arrays(arrays, **(given | fields))


def written(text: str | bytes, path: Path) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# Round trips.


@pytest.mark.parametrize("library", ["pandas", "polars", "arrow", "duckdb"])
def test_there_and_back(library: str) -> None:
    songs = some_songs()
    if library == "duckdb":
        frames = to_arrow(songs)  # noqa: F841  # by its name, in the query
        table: Any = duckdb.sql("SELECT * FROM frames")
    else:
        table = {"pandas": to_pandas, "polars": to_polars, "arrow": to_arrow}[library](songs)
    assert_same_songs(from_dataframe(table, kind="probability"), songs)


def test_arrow_says_itself_what_it_holds() -> None:
    songs = some_songs(kind="log_odds", note="some")
    assert_same_songs(from_dataframe(to_arrow(songs)), songs)
    assert_same_songs(from_dataframe(to_arrow(songs, "songs")), songs)
    with pytest.raises(SourceError, match="is of kind log_odds, not logit"):
        from_dataframe(to_arrow(songs), kind="logit")


def test_duckdb_asks_songs() -> None:
    songs = some_songs()
    frames = to_arrow(songs)  # noqa: F841  # by its name, in the query
    found = duckdb.sql(
        "SELECT song_id, avg(jig)::FLOAT FROM frames WHERE NOT isnan(jig) GROUP BY ALL ORDER BY 1"
    ).fetchall()
    expected = [(name, np.nanmean(frame[:, 0])) for name, frame in zip(songs.ids, songs)]  # noqa: B905
    assert [name for name, _ in found] == [name for name, _ in expected]
    np.testing.assert_allclose([x for _, x in found], [x for _, x in expected], rtol=1e-6)


@pytest.mark.parametrize("library", [to_arrow, to_polars, to_pandas])
def test_a_row_per_song_keeps_empty_songs_and_several_labels(library: Any) -> None:
    songs = Songs(
        [[0.5, 1.0]] * 3,
        [0, 0, 3],
        columns=["a", "b"],
        kind="probability",
        task="multilabel",
        ids=["none", "three"],
        labels=[("a", "b"), ()],
        start=[0.0, 1.0, 2.0],
    )
    table = library(songs, layout="songs")
    options: dict[str, Any] = {"kind": "probability", "task": "multilabel", "columns": ["a", "b"]}
    assert_same_songs(from_dataframe(table, scores="scores", **options), songs)
    with pytest.raises(SongError, match=r"'none': has no frame.*layout='songs'"):
        library(songs)


@pytest.mark.parametrize("name", ["time", "Start_Time", "frame", "offset"])
def test_a_time_does_not_pass_for_a_score(name: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"song,{name},jig,reel\na,0.0,1.5,-2.5\na,2.5,0.5,1.5\n")
    given: dict[str, Any] = {"kind": "logit", "song": "song"}
    with pytest.raises(SourceError, match=f"column '{name}': is named as a time is.*--time"):
        read(path, **given)
    np.testing.assert_array_equal(read(path, time=name, **given).start, [0, 2.5])
    assert read(path, ignore=[name], **given).columns == ("jig", "reel")
    assert read(path, columns=[name, "jig"], **given).columns == (name, "jig")


def test_names_that_would_be_mistaken_are_refused() -> None:
    songs = Songs([[0.5]], [0, 1], columns=["label"], labels=["label"])
    with pytest.raises(SongError, match="column 'label'"):
        to_arrow(songs)
    with pytest.raises(ParameterError, match="neither 'frames' nor 'songs'"):
        to_arrow(some_songs(), "long")  # type: ignore[arg-type]


@settings(max_examples=25)
@given(
    values=hnp.arrays(
        np.float32, st.tuples(st.integers(1, 20), st.integers(1, 4)),
        elements=st.floats(width=32, allow_nan=True),
    ),
    data=st.data(),
)  # fmt: skip
def test_any_numbers_and_any_text_survive_csv(values: Any, data: st.DataObject) -> None:
    text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1)
    ids = data.draw(st.lists(text, min_size=1, max_size=len(values), unique=True))
    where = np.sort(data.draw(hnp.arrays(np.int64, len(values), elements=st.integers(0, 9))))
    where = np.unique(where % len(ids), return_inverse=True)[1]
    where.sort()
    names = [f"class {i}" for i in range(values.shape[1])]
    frame = pd.DataFrame(values, columns=names)
    frame.insert(0, "song_id", [ids[i] for i in where])
    frame.insert(1, "label", [f"{ids[i]}, {ids[-1]}" for i in where])
    buffer = io.BytesIO()
    frame.to_csv(buffer, index=False)
    with tempfile.TemporaryDirectory() as folder:
        songs = read(written(buffer.getvalue(), Path(folder, "x.csv")), kind="log_odds")
    np.testing.assert_array_equal(songs.values, values)
    assert songs.ids.tolist() == [ids[i] for i in np.unique(where)]
    assert songs.labels is not None
    assert songs.labels.tolist() == [f"{ids[i]}, {ids[-1]}" for i in np.unique(where)]


# Files of tables.


@pytest.mark.parametrize("writer", ["pandas", "polars"])
@pytest.mark.parametrize(
    "suffix", [".csv", ".tsv", ".csv.gz", ".csv.bz2", ".parquet", ".feather", ".arrows", ".jsonl"]
)
def test_files_that_libraries_write(tmp_path: Path, writer: str, suffix: str) -> None:
    songs = some_songs()
    path = tmp_path / f"frames{suffix}"
    table: Any = to_pandas(songs) if writer == "pandas" else to_polars(songs)
    separator = "\t" if suffix == ".tsv" else ","
    if suffix == ".parquet":
        table.to_parquet(path) if writer == "pandas" else table.write_parquet(path)
    elif suffix == ".feather":
        if writer == "pandas":
            table.to_feather(path)
        else:
            table.write_ipc(path, compression="zstd")
    elif suffix == ".arrows":
        with pa.ipc.new_stream(str(path), to_arrow(songs).schema) as stream:
            stream.write_table(to_arrow(songs), max_chunksize=7)
    elif suffix == ".jsonl":
        if writer == "pandas":
            table.to_json(path, orient="records", lines=True, double_precision=15)
        else:
            table.write_ndjson(path)
    elif writer == "pandas":
        table.to_csv(path, sep=separator, index=False)
    else:
        text = table.write_csv(separator=separator).encode()
        pack = {".csv.gz": gzip.compress, ".csv.bz2": bz2.compress}.get(suffix, bytes)
        path.write_bytes(pack(text))
    assert_same_songs(read(path, kind="probability"), songs)


def test_pieces_of_any_size_make_the_same_songs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    songs = some_songs(60)
    pq.write_table(to_arrow(songs), tmp_path / "f.parquet", row_group_size=17)
    feather.write_feather(to_arrow(songs), str(tmp_path / "f.arrow"), chunksize=23)
    with pa.ipc.new_stream(str(tmp_path / "f.arrows"), to_arrow(songs).schema) as stream:
        stream.write_table(to_arrow(songs), max_chunksize=29)
    to_pandas(songs).to_csv(tmp_path / "f.csv", index=False)
    to_polars(songs).write_ndjson(tmp_path / "f.jsonl")
    for n_bytes in (1, 50, 300, 10**6):
        monkeypatch.setattr("seqagg.sources.base.BATCH_BYTES", n_bytes)
        monkeypatch.setattr("seqagg.sources.metadata.BATCH_BYTES", n_bytes)
        monkeypatch.setattr("seqagg.sources.text._BLOCK", max(n_bytes, 300))
        monkeypatch.setattr("seqagg.sources.columnar._JSON_BLOCK", max(n_bytes, 4000))
        for name in ("f.parquet", "f.arrow", "f.arrows", "f.csv", "f.jsonl"):
            assert_same_songs(read(tmp_path / name, kind="probability"), songs)


@pytest.mark.parametrize("name", ["T.PARQUET", "T.ARROW", "T.CSV", "T.CSV.GZ", "T.JSONL.GZ"])
def test_names_may_be_in_capitals(tmp_path: Path, name: str) -> None:
    songs, path = some_songs(), tmp_path / name
    if name == "T.PARQUET":
        pq.write_table(to_arrow(songs), path)
    elif name == "T.ARROW":
        feather.write_feather(to_arrow(songs), str(path))
    else:
        table = to_polars(songs)
        text = table.write_ndjson() if "JSON" in name else table.write_csv()
        path.write_bytes(gzip.compress(text.encode()) if name.endswith("GZ") else text.encode())
    assert_same_songs(read(path, kind="probability"), songs)


def test_songs_of_json_lines_hold_lists_of_frames(tmp_path: Path) -> None:
    rows = [{"song_id": "b", "scores": [[0.5, 0.5], [0.25, 0.75]], "label": "x"}]
    rows += [{"song_id": "a", "scores": [[1.0, 0.0]], "label": None}]
    text = "\n".join(map(json.dumps, rows))
    songs = read(written(text, tmp_path / "t.ndjson"), kind="probability", columns=["x", "y"])
    assert songs.ids.tolist() == ["b", "a"]
    assert songs.lengths.tolist() == [2, 1]
    np.testing.assert_array_equal(songs.values, np.float32([[0.5, 0.5], [0.25, 0.75], [1, 0]]))
    assert songs.labels is not None
    assert songs.labels.tolist() == ["x", None]


@pytest.mark.parametrize("text", ['{"a": 1}\n{"a"', "[1, 2]", "", '{"a": 1}\n{"a": "x"}'])
def test_json_that_is_no_table_is_one_error(tmp_path: Path, text: str) -> None:
    path = written(text, tmp_path / "t.jsonl")
    with pytest.raises(SourceError, match=r"t\.jsonl: is not JSON Lines, an object a line"):
        read(path, kind="probability", song="a")


ROW = '{"a": "x", "p": 0.5}\n'


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("null\n" + ROW, 1),
        ("null", 1),
        (" \t\n" + ROW + "\n null", 4),
        (ROW + "null {}", 2),
        (ROW + '{"a":\n{"a":\n', 2),
        (ROW.replace("\n", "\r") * 2 + "null\r" + ROW, 3),
        (ROW + '{"a": ' + "[" * 10**5 + "]" * 10**5 + "}", 2),
        (ROW * 3 + '{"a": ' * 10**5 + "1" + "}" * 10**5 + "\n" + ROW, 4),
        (ROW + '{"a": "]]]]]", "b": ' + "[" * 300 + "]" * 300 + "}", 2),
    ],
)
def test_lines_of_json_that_would_bring_the_reader_down(
    tmp_path: Path, text: str, line: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow's falls over a block that begins with null, and over lists some thousand deep."""
    path = written(text, tmp_path / "t.jsonl")
    for block in (columnar._JSON_BLOCK, 30):
        monkeypatch.setattr(columnar, "_JSON_BLOCK", block)
        said = rf"an object a line: line {line} (is none|holds)|straddles two block boundaries"
        with pytest.raises(SourceError, match=said):
            read(path, kind="probability", song="a")


def test_many_keys_of_which_each_line_has_one(tmp_path: Path) -> None:
    """All lines have all of them to Arrow: some hundred kilobytes become gigabytes."""
    rows = [f'{{"a": "x", "k{i}": 0.5}}' for i in range(20_000)]
    path = written("\n".join(rows), tmp_path / "t.jsonl")
    with pytest.raises(SourceError, match="line 19999 and those before have few of the keys"):
        read(path, kind="probability", song="a")
    wide = {"a": "x"} | {f"k{i}": 0.5 for i in range(3000)}
    path = written("\n".join([json.dumps(wide), *["{}"] * 5000]), tmp_path / "u.jsonl")
    with pytest.raises(SourceError, match="line 5000 and those before have few of the keys"):
        read(path, kind="probability", song="a")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n \n", "\r"])
def test_brackets_in_text_are_no_lists(tmp_path: Path, end: str) -> None:
    ids = ["[" * 70, "]" * 200, '\\"[{', "}\n{"]
    rows = [json.dumps({"a": name, "p": 0.5}) for name in ids for _ in range(200)]
    songs = read(written(end.join(rows), tmp_path / "t.jsonl"), kind="probability", song="a")
    assert songs.ids.tolist() == ids


def test_cells_that_stand_apart_by_something_else(tmp_path: Path) -> None:
    rows = ("song_id", "a", "b"), ("x", "0.1", "0.9")
    for suffix, cell in itertools.product((".csv", ".tsv", ".txt"), ",;\t|"):
        path = written("\n".join(map(cell.join, rows)), tmp_path / f"t{suffix}")
        songs = read(path, kind="probability")  # the header shows it
        np.testing.assert_array_equal(songs.values, np.float32([[0.1, 0.9]]))
        other = "," if cell == ";" else ";"
        with pytest.raises(SourceError, match=re.escape(f"{cell!r} in its name; --delimiter")):
            read(path, kind="probability", delimiter=other)
    songs = read(written("song_id,a;b,c\nx,0.1,0.9\n", tmp_path / "t.csv"), kind="probability")
    assert songs.columns == ("a;b", "c")


def test_decimal_commas(tmp_path: Path) -> None:
    path = written("song_id;start;a;b\nx;0,5;0,1;-9e-1\nx;1;1;0,25\n", tmp_path / "t.csv")
    with pytest.raises(SourceError, match="column 'a': holds numbers with a decimal comma: --dec"):
        read(path, kind="logit")
    with pytest.raises(SourceError, match="row 2: '0,5' is no number; --decimal ','"):
        read(path, kind="logit", columns=["a", "b"], ignore=["start"], song="song_id")
    with pytest.raises(ParameterError, match=r"decimal='x' is none of \., ,"):
        read(path, kind="logit", decimal="x")
    songs = read(path, kind="logit", time="start", decimal=",")
    np.testing.assert_array_equal(songs.values, np.float32([[0.1, -0.9], [1, 0.25]]))
    assert songs.start is not None
    assert songs.start.tolist() == [0.5, 1]
    path = written("song_id;a;b\nx;0,1;0.5\n", tmp_path / "t.csv")
    with pytest.raises(SourceError, match="column 'b': holds text"):
        read(path, kind="logit", decimal=",")


def test_labels_in_a_table_of_another_manner(tmp_path: Path) -> None:
    path = written("song_id,a,b\nx,0.1,0.9\n", tmp_path / "t.csv")
    labels = written("song_id;label\nx;a,b\n", tmp_path / "labels.csv")
    assert read(path, kind="logit", labels=labels).labels == ["a,b"]


def test_columns_may_be_called_anything_and_chosen(tmp_path: Path) -> None:
    text = "id,clip,sec,b,a,who\nx,0,0.5,0.1,0.9,me\nx,1,1.5,0.2,0.8,me\ny,0,0,0.3,0.7,you\n"
    path = written(text, tmp_path / "t.csv")
    songs = read(path, kind="logit", song="id", time="sec", group="who", columns=["a", "b"])
    assert songs.columns == ("a", "b")
    np.testing.assert_array_equal(songs.values, np.float32([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]))
    assert songs.groups is not None
    assert songs.groups.tolist() == ["me", "you"]
    assert songs.start is not None
    assert songs.start.tolist() == [0.5, 1.5, 0]
    ignored = read(path, kind="logit", song="id", ignore=["clip", "sec", "who"])
    assert ignored.columns == ("b", "a")


def test_what_could_be_no_score_is_asked_for(tmp_path: Path) -> None:
    path = written("song_id,clip,a\nx,0,0.5\n", tmp_path / "t.csv")
    with pytest.raises(SourceError, match="column 'clip': holds whole numbers: is it a score"):
        read(path, kind="probability")
    path = written("song_id,who,a\nx,me,0.5\n", tmp_path / "t.csv")
    with pytest.raises(SourceError, match="column 'who': holds text: is it a score"):
        read(path, kind="probability")


def test_an_index_without_a_name_is_no_score(tmp_path: Path) -> None:
    songs = some_songs()
    to_pandas(songs).to_csv(tmp_path / "t.csv")
    notes: list[str] = []
    assert_same_songs(read(tmp_path / "t.csv", kind="probability", notes=notes), songs)
    assert notes == ["columns without a name of their own are left out: ['']"]
    indexed = to_pandas(songs)
    indexed.index = indexed.index + 5
    indexed.to_parquet(tmp_path / "t.parquet")
    assert_same_songs(read(tmp_path / "t.parquet", kind="probability"), songs)


def test_numbers_name_songs_and_labels(tmp_path: Path) -> None:
    frame = pd.DataFrame({"song_id": [7, 7, 8], "label": [1.0, 1.0, np.nan], "a": [0.1, 0.2, 0.3]})
    frame.to_parquet(tmp_path / "t.parquet")
    songs = read(tmp_path / "t.parquet", kind="probability")
    assert songs.ids.tolist() == ["7", "8"]
    assert songs.labels is not None
    assert songs.labels.tolist() == ["1", None]


def test_categories_and_gaps() -> None:
    pandas = pd.DataFrame(
        {
            "song_id": pd.Categorical(["x", "x", "y"]),
            "label": pd.Categorical(["l", "l", None]),
            "a": pd.array([0.1, None, 0.3], dtype="Float64"),
        }
    )
    expected = Songs(
        np.float32([[0.1], [np.nan], [0.3]]), [0, 2, 3], columns=["a"], kind="probability",
        ids=["x", "y"], labels=["l", None],
    )  # fmt: skip
    assert_same_songs(from_dataframe(pandas, kind="probability"), expected)
    assert_same_songs(from_dataframe(pl.from_pandas(pandas), kind="probability"), expected)


def test_scattered_rows_are_gathered_by_time_if_asked(tmp_path: Path) -> None:
    songs = some_songs(8)
    shuffled = to_pandas(songs).sample(frac=1, random_state=0)
    shuffled.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(SourceError, match=r"row \d+: "):
        read(tmp_path / "t.csv", kind="probability")
    found = read(tmp_path / "t.csv", kind="probability", sort=True)
    order = [found.ids.tolist().index(name) for name in songs.ids]
    assert_same_songs(found[order], songs)
    interleaved = written("song_id,a\nx,1.0\ny,0.5\nx,0.25\n", tmp_path / "i.csv")
    with pytest.raises(SourceError, match=r"i\.csv: song 'x': row 4: .* already.*--sort gathers"):
        read(interleaved, kind="probability")
    assert read(interleaved, kind="probability", sort=True).values.ravel().tolist() == [
        1,
        0.25,
        0.5,
    ]


# A row per song.


def test_lists_of_lists(tmp_path: Path) -> None:
    songs = some_songs()
    frames = [array.tolist() for array in songs]
    table = pa.table({"name": songs.ids.tolist(), "probs": frames, "genre": songs.labels.tolist()})
    pq.write_table(table, tmp_path / "t.parquet")
    found = read(
        tmp_path / "t.parquet", kind="probability", song="name", scores="probs", label="genre",
        columns=COLUMNS,
    )  # fmt: skip
    assert_same_songs(found, songs.replace(groups=None, split=None, fold=None, start=None))
    pl.from_arrow(table).write_ipc(tmp_path / "t.arrow")
    unnamed = read(
        tmp_path / "t.arrow", format="songs", kind="probability", song="name", scores="probs"
    )
    assert unnamed.columns == ("column_0", "column_1", "column_2")
    pd.DataFrame({"song_id": ["x"], "scores": [[[0.5, 2.0]]]}).to_parquet(tmp_path / "p.parquet")
    with pytest.raises(CacheError, match=r"song 'x': column 'column_1': .* outside"):
        read(tmp_path / "p.parquet", kind="probability")
    ragged = pa.table({"song_id": ["x", "y"], "scores": [[[0.5, 0.2]], [[0.1]]]})
    pq.write_table(ragged, tmp_path / "r.parquet")
    with pytest.raises(ValueError, match=r"r\.parquet: song 'y': .*1 scores for 2 columns"):
        read(tmp_path / "r.parquet", kind="probability")


# What is wrong.

NAMED = "song_id,start,end,label,a,b\n"

WRONG = {
    "a cell too few": (
        "x,0,1,l,0.5\n",
        r"row 2: 5 cells for 6 columns",
    ),
    "a cell too many": (
        "x,0,1,l,0.5,0.5,0.5\n",
        r"row 2: 7 cells for 6 columns",
    ),
    "no number": (
        "x,0,1,l,0.5,0.5\nx,1,2,l,0.0,0.5\nx,2,3,l,1.0,high\n",
        r"'b': row 4: 'high' is no",
    ),
    "no probability": (
        "x,0,1,l,0.5,0.5\nx,1,2,l,0.5,1.5\n",
        r"'x': column 'b': row 3: 1.5 is no",
    ),
    "no song": (
        ",0,1,l,0.5,0.5\n",
        r"column 'song_id': row 2: no song id",
    ),
    "two labels": (
        "x,0,1,l,1.0,0.0\nx,1,2,m,1.0,0.0\n",
        r"song 'x': column 'label': row 3: 'm' after 'l' in the",
    ),
    "half a label": (
        "x,0,1,l,1.0,0.0\nx,1,2,,1.0,0.0\n",
        r"song 'x': column 'label': row 3: None after 'l' in the",
    ),
    "back in time": (
        "x,1,2,l,1.0,0.0\nx,0,1,l,1.0,0.0\n",
        r"'start': row 3: a frame at 0 s follows one at",
    ),
    "twice the time": (
        "x,1,2,l,1.0,0.0\nx,1,3,l,1.0,0.0\n",
        r"'start': row 3: a frame at 1 s follows one",
    ),
    "no end": (
        "x,1,1,l,1.0,0.0\n",
        r"column 'end': row 2: a frame ends at 1 s that starts at 1 s",
    ),
    "no time": (
        "x,,1,l,1.0,0.0\n",
        r"column 'start': row 2: nan is no time",
    ),
    "again": (
        "x,0,1,l,1.0,0.0\ny,0,1,l,1.0,0.0\nx,5,6,l,1.0,0.0\n",
        r"song 'x': row 4: .* already",
    ),
    "blank lines": (
        "\n\nx,0,1,l,1.0,0.0\n\nx,0,1,l,1.0,0.0\n",
        r"'start': row 6: ",
    ),
    "a line in a cell": (
        '"x\n",0,1,l,1.0,0.0\nx,0,1,l,1.0,2.0\n',
        r"'b': row 4: 2 is no probability",
    ),
    "an open quote": (
        '"x,0,1,l,1.0,0.0\nx,0,1,l,1.0,2.0\n',
        r"row 2: 1 cells for 6 columns",
    ),
}


@pytest.mark.parametrize(("rows", "words"), WRONG.values(), ids=WRONG.keys())
def test_the_row_and_column_are_named(tmp_path: Path, rows: str, words: str) -> None:
    with pytest.raises(SourceError, match=r"^\S*t\.csv: .*" + words):
        read(written(NAMED + rows, tmp_path / "t.csv"), kind="probability")


HEADERS = {
    "is empty": b"",
    "column 'a': two columns": b"song_id,a,a\nx,1,1\n",
    "no such column; there are 'song_id', 'a'": b"song_id,a\nx,1\n",
    "column 'song_id': row 3: byte 0xff is no UTF-8": b"song_id,b\nx,1.0\n\xff,1.0\n",
    "is text in UTF-16; save it as UTF-8": "song_id,b\n".encode("utf-16"),
    "UTF-16; save it": b"\xfe\xff" + "song_id,b\n".encode("utf-16-be"),
    "no end of line in its first 32 MiB": b"x" * (33 * 2**20),
    "has 1,000,000 columns": b"song_id," + b",".join(b"c%d" % i for i in range(999_999)) + b"\n",
}


@pytest.mark.parametrize(("words", "content"), HEADERS.items())
def test_what_is_no_table(tmp_path: Path, words: str, content: bytes) -> None:
    with pytest.raises(SourceError, match=words) as caught:
        read(written(content, tmp_path / "t.csv"), kind="logit", song="song_id", columns=["b"])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_bytes_that_are_no_text_are_found_far_below(tmp_path: Path) -> None:
    content = b"song_id,b\n" + b"x,1.0\n" * 50_000 + b"x,\xe9\n"
    with pytest.raises(SourceError, match="column 'b': row 50002: byte 0xe9 is no UTF-8"):
        read(written(content, tmp_path / "t.csv"), kind="logit")


TOO_LONG = {
    "a cell": b"x," + b"0" * (12 * 2**20) + b"\n",
    "many cells of two lines": b"x" + b',"\n"' * (3 * 2**20) + b"\n",
    "a cell with a byte that is no text": b"x,\xe9" + b"0" * (12 * 2**20) + b"\n",
}


@pytest.mark.parametrize("row", TOO_LONG)
def test_of_a_row_that_is_too_long_a_part_is_read(
    tmp_path: Path, row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seqagg.sources.text._LONGEST_LINE", 2**20)
    content = gzip.compress(b"song_id,b\nx,1.0\n" + TOO_LONG[row], compresslevel=1)
    path = written(content, tmp_path / "t.csv.gz")
    tracemalloc.start()
    with pytest.raises(SourceError, match="row 3: is longer than 1 MiB"):
        read(path, kind="logit")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**26


def test_a_truncated_archive(tmp_path: Path) -> None:
    whole = gzip.compress(NAMED.encode() + b"x,0,1,l,1,0\n" * 5000)
    with pytest.raises(SourceError, match=r"t\.csv\.gz: .*runcated"):
        read(written(whole[:-40], tmp_path / "t.csv.gz"), kind="probability")


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_truncated_table(tmp_path: Path, suffix: str) -> None:
    songs = to_arrow(some_songs())
    path = tmp_path / f"t{suffix}"
    if suffix == ".parquet":
        pq.write_table(songs, path)
    else:
        feather.write_feather(songs, str(path))
    content = path.read_bytes()
    for n in (len(content) // 2, len(content) - 1):
        path.write_bytes(content[:n])
        with pytest.raises(SourceError, match=rf"t\{suffix}: "):
            read(path, kind="probability")


def test_types_that_cannot_be(tmp_path: Path) -> None:
    base = {"song_id": ["x"], "a": [0.5]}
    for name, column, words in (
        ("a", pa.array(["high"]), "holds text"),
        ("a", pa.array([True]), "holds no numbers"),
        ("song_id", pa.array([0.5]), "0.5"),
        ("label", pa.array([b"\xff"]), "holds binary, not text"),
        ("fold", pa.array(["first"]), "column 'fold': is no whole number"),
    ):
        pq.write_table(pa.table(base | {name: column}), tmp_path / "t.parquet")
        with pytest.raises(SourceError, match=words):
            read(tmp_path / "t.parquet", kind="probability")


def test_a_table_in_memory_has_no_file_but_rows() -> None:
    frame = pd.DataFrame({"song_id": ["x", "x"], "label": ["a", "b"], "c": [0.1, 0.2]})
    with pytest.raises(SourceError, match=r"^song 'x': column 'label': row 1: 'b' after 'a'"):
        from_dataframe(frame, kind="probability")
    with pytest.raises(SourceError, match="what are these scores"):
        from_dataframe(frame)
    with pytest.raises(SourceError, match="expected a DataFrame"):
        from_dataframe([[1, 2]], kind="logit")
    with pytest.raises(ParameterError, match="takes no fill"):
        from_dataframe(frame, kind="probability", fill=0.0)
    with pytest.raises(ParameterError, match="no option songs"):
        from_dataframe(frame, kind="probability", songs="x")
    with pytest.raises(ParameterError, match="kind='prob' is none of"):
        from_dataframe(frame, kind="prob")


# Arrays in memory.


def test_arrays_in_memory() -> None:
    songs = some_songs()
    plain: dict[str, Any] = {"columns": COLUMNS, "kind": "probability"}
    expected = Songs(songs.values, songs.offsets, ids=songs.ids, **plain)
    by_name = dict(zip(songs.ids, songs, strict=True))
    turned = {name: array.T for name, array in by_name.items()}
    assert_same_songs(from_arrays(by_name, **plain), expected)
    assert_same_songs(from_arrays(turned, transpose=True, **plain), expected)
    ids = list(songs.ids)
    assert_same_songs(from_stacked(songs.values, songs.lengths, ids=ids, **plain), expected)
    assert_same_songs(
        from_stacked(songs.values.T, songs.lengths, ids=ids, transpose=True, **plain), expected
    )
    said = {ids[-1]: "reel", ids[0]: "jig"}
    known = from_arrays(by_name, **plain, labels=said)
    assert known.labels is not None
    assert known.labels.tolist() == [said.get(name) for name in ids]
    with pytest.raises(SongError, match="song 'nobody': labels has it, but"):
        from_arrays(by_name, **plain, labels={"nobody": "jig"})
    padded, mask = np.full((6, 9, 3), 77, np.float32), np.zeros((6, 9), bool)
    for i, array in enumerate(songs):
        padded[i, : len(array)], mask[i, : len(array)] = array, True
    assert_same_songs(from_padded(padded, mask, ids=ids, **plain), expected)
    assert_same_songs(from_padded(padded, lengths=songs.lengths, ids=ids, **plain), expected)
    left = from_padded(padded[:, ::-1], mask[:, ::-1], ids=ids, **plain)
    assert_same_songs(left, from_arrays({n: a[::-1] for n, a in by_name.items()}, **plain))
    across = padded.swapaxes(1, 2)
    assert_same_songs(from_padded(across, mask, ids=ids, transpose=True, **plain), expected)


def test_a_hole_in_the_mask_is_a_missing_frame() -> None:
    songs = from_padded(
        np.arange(8.0).reshape(2, 4, 1),
        [[0, 1, 0, 1], [0, 0, 0, 0]],
        kind="logit",
        start=np.arange(8).reshape(2, 4),
    )
    assert songs.lengths.tolist() == [3, 0]
    np.testing.assert_array_equal(songs.values.ravel(), [1, np.nan, 3])
    assert songs.start is not None
    assert songs.start.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: from_padded(np.zeros((2, 3)), [[1]], kind="logit"), "not .n_songs, most_frames"),
        (lambda: from_padded(np.zeros((2, 3, 1)), kind="logit"), "either mask or lengths"),
        (lambda: from_padded(np.zeros((2, 3, 1)), np.ones((3, 2)), kind="logit"), "the mask"),
        (lambda: from_padded(np.zeros((1, 2, 1)), [[2, 1]], kind="logit"), "the mask"),
        (lambda: from_padded(np.zeros((1, 2, 1)), lengths=[3], kind="logit"), "lengths are not"),
        (lambda: from_stacked(np.zeros((2, 1)), [1.0, 1.0], kind="logit"), "lengths are not"),
        (lambda: from_stacked(np.zeros((2, 1)), [3, -1], kind="logit"), "lengths are not"),
        (lambda: from_stacked(np.zeros((2, 1)), [1], kind="logit"), "offsets end at 1"),
    ],
)
def test_arrays_that_do_not_fit(made: Any, words: str) -> None:
    with pytest.raises(SongError, match=words):
        made()
