"""Arrays in files: what NumPy and h5py write is what is read, and nothing in them is run."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from seqagg import ParameterError, Songs, SourceError
from seqagg.sources import read
from tests.conftest import assert_same_songs

KIND: dict[str, Any] = {"kind": "probability"}


def some_songs(n: int = 7, seed: int = 0) -> Songs:
    rng = np.random.default_rng(seed)
    arrays = [rng.random((n_frames, 4), dtype=np.float32) for n_frames in rng.integers(1, 9, n)]
    arrays[2][:] = np.nan
    return Songs.from_arrays(
        arrays,
        columns=[f"column_{i}" for i in range(4)],
        kind="probability",
        ids=[f"blues/blues.{i}.au" for i in range(n)],
        labels=[str(i % 3) for i in range(n)],
    )


def framewise(songs: Songs, values: Any) -> Any:
    return np.repeat(np.asarray(values), songs.lengths, axis=0)


def padded(songs: Songs, value: float = 0) -> tuple[Any, Any]:
    most = songs.lengths.max()
    array = np.full((len(songs), most, songs.n_columns), value, np.float32)
    for i, frames in enumerate(songs):
        array[i, : len(frames)] = frames
    return array, np.arange(most) < songs.lengths[:, None]


def save(store: str, path: Path, **arrays: Any) -> Path:
    """Write arrays with the library of the format."""
    if store == "npz":
        np.savez(path.with_suffix(".npz"), **arrays)
    elif store == "npz packed":
        np.savez_compressed(path.with_suffix(".npz"), **arrays)
    else:
        with h5py.File(path.with_suffix(".h5"), "w") as file:
            for name, array in arrays.items():
                text = np.asarray(array).dtype.kind == "U"
                file[name] = np.asarray(array, dtype=h5py.string_dtype() if text else None)
    return path.with_suffix(".h5" if store == "hdf5" else ".npz")


stores = pytest.mark.parametrize("store", ["npz", "npz packed", "hdf5"])


@stores
@pytest.mark.parametrize("n_bytes", [1, 100, 2**24])
def test_x_y_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str, n_bytes: int) -> None:
    monkeypatch.setattr("seqagg.sources.base.BATCH_BYTES", n_bytes)
    songs = some_songs()
    labels = np.array([int(label) for label in songs.labels])  # type: ignore[union-attr]
    path = save(
        store, tmp_path / "x", X=songs.values, Y=framewise(songs, labels),
        IDS=framewise(songs, songs.ids.astype(str)),
    )  # fmt: skip
    assert_same_songs(read(path, **KIND), songs)


@stores
def test_names_that_are_given(tmp_path: Path, store: str) -> None:
    songs = some_songs().replace(columns=list("abcd"))
    arrays = {
        "probs": songs.values.astype(np.float64),
        "files": framewise(songs, songs.ids.astype("S")),
        "genre": framewise(songs, songs.labels),
        "sec": np.concatenate([np.arange(n) * 3 for n in songs.lengths]),
        "cv": framewise(songs, np.arange(7)),
        "other": np.zeros(3),
    }
    arrays["genre"] = arrays["genre"].astype(str)
    notes: list[str] = []
    options: dict[str, Any] = {"scores": "probs", "song": "files", "label": "genre", "time": "sec"}
    found = read(
        save(store, tmp_path / "x", **arrays), fold="cv", columns=list("abcd"), notes=notes,
        **options, **KIND,
    )  # fmt: skip
    expected = songs.replace(fold=np.arange(7), start=arrays["sec"])
    assert_same_songs(found, expected)
    assert "arrays that were not asked for are left out: other" in notes


@stores
def test_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    monkeypatch.setattr("seqagg.sources.base.BATCH_BYTES", 100)
    songs = some_songs()
    ids, labels = songs.ids.astype(str), np.array([int(x) for x in songs.labels])  # type: ignore[union-attr]
    path = save(
        store, tmp_path / "x", scores=songs.values, lengths=songs.lengths, ids=ids, labels=labels
    )
    assert_same_songs(read(path, **KIND), songs)
    path = save(
        store, tmp_path / "y", scores=songs.values.T, lengths=songs.lengths, ids=ids,
        labels=framewise(songs, labels),
    )  # fmt: skip
    assert_same_songs(read(path, transpose=True, **KIND), songs)
    path = save(store, tmp_path / "z", scores=songs.values, lengths=songs.lengths)
    assert read(path, **KIND).ids.tolist() == [f"z/{i}" for i in range(7)]


@stores
@pytest.mark.parametrize("how", ["mask", "lengths"])
def test_padded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str, how: str) -> None:
    monkeypatch.setattr("seqagg.sources.base.BATCH_BYTES", 200)
    songs = some_songs()
    array, mask = padded(songs)
    say = {"mask": mask} if how == "mask" else {"lengths": songs.lengths.astype(np.int16)}
    arrays = say | {"ids": songs.ids.astype(str), "Y": np.array([float(x) for x in songs.labels])}  # type: ignore[union-attr]
    assert_same_songs(read(save(store, tmp_path / "x", X=array, **arrays), **KIND), songs)
    turned = save(store, tmp_path / "y", X=array.swapaxes(1, 2), **arrays)
    assert_same_songs(read(turned, transpose=True, **KIND), songs)


def test_padding_is_not_taken_for_frames(tmp_path: Path) -> None:
    array, _ = padded(some_songs())
    with pytest.raises(SourceError, match=r"ends in zeros as if padded: --lengths or --mask"):
        read(save("npz", tmp_path / "x", X=array), **KIND)
    equal = np.full((2, 3, 1), 0.5)
    assert read(save("npz", tmp_path / "x", X=equal), **KIND).lengths.tolist() == [3, 3]


@stores
def test_an_array_a_song(tmp_path: Path, store: str) -> None:
    songs = some_songs().replace(labels=None, ids=[f"song {i}" for i in range(7)])
    arrays = dict(zip(songs.ids, songs, strict=True))
    assert_same_songs(read(save(store, tmp_path / "x", **arrays), **KIND), songs)
    turned = {name: array.T for name, array in arrays.items()}
    assert_same_songs(read(save(store, tmp_path / "y", **turned), transpose=True, **KIND), songs)


def test_groups_of_hdf5_are_part_of_the_name(tmp_path: Path) -> None:
    songs = some_songs()
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name, frames in zip(songs.ids, songs, strict=True):
            file.create_dataset(name, data=frames, compression="gzip", chunks=True)
    found = read(tmp_path / "x.h5", folder_is="label", **KIND)
    assert_same_songs(found, songs.replace(labels=["blues"] * 7))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_folder_with_a_file_a_song(tmp_path: Path, suffix: str, order: Any) -> None:
    songs = some_songs().replace(ids=[f"blues/b.{i}" for i in range(7)], labels=["blues"] * 7)
    for name, frames in zip(songs.ids, songs, strict=True):
        path = tmp_path / f"{name}{suffix}"
        path.parent.mkdir(exist_ok=True)
        array = np.asarray(frames, order=order, dtype=">f4")
        np.save(path, array) if suffix == ".npy" else np.savez(path, array)
    (tmp_path / "README.md").write_text("not a song")
    (tmp_path / "blues" / "._b.0.npy").write_bytes(b"hidden")
    assert_same_songs(read(tmp_path, folder_is="label", **KIND), songs)
    short = read(tmp_path, folder_is="group", ids="stem", **KIND)
    assert short.ids.tolist() == [f"b.{i}" for i in range(7)]
    assert short.groups is not None
    assert short.groups.tolist() == ["blues"] * 7


def test_one_npy_file_of_all_songs(tmp_path: Path) -> None:
    songs = some_songs()
    np.save(tmp_path / "x.npy", songs.values)
    np.save(tmp_path / "n.npy", songs.lengths)
    np.save(tmp_path / "y.npy", np.array([int(x) for x in songs.labels]))  # type: ignore[union-attr]
    (tmp_path / "ids.txt").write_text("\n".join(songs.ids) + "\n")
    companions = {"lengths": "n.npy", "label": "y.npy", "song": "ids.txt"}
    options = {role: str(tmp_path / name) for role, name in companions.items()}
    assert_same_songs(read(tmp_path / "x.npy", **options, **KIND), songs)
    array, mask = padded(songs)
    np.save(tmp_path / "x.npy", np.asfortranarray(array))
    np.save(tmp_path / "m.npy", mask)
    options = options | {"mask": str(tmp_path / "m.npy")}
    del options["lengths"]
    assert_same_songs(read(tmp_path / "x.npy", **options, **KIND), songs)
    with pytest.raises(SourceError, match="--mask goes with a single file, and these are 2"):
        read([tmp_path / "x.npy", tmp_path / "n.npy"], mask=str(tmp_path / "m.npy"), **KIND)


def test_indicators(tmp_path: Path) -> None:
    x, ids = np.full((5, 3), 0.5), np.array(["a", "a", "b", "c", "c"])
    several = np.array([[1, 0, 1]] * 2 + [[0, 0, 0]] + [[0, 1, 0]] * 2)
    path = save("npz", tmp_path / "x", X=x, Y=several, IDS=ids)
    found = read(path, task="multilabel", classes="columns", columns=["p", "q", "r"], **KIND)
    assert found.labels is not None
    assert found.labels.tolist() == [("p", "r"), (), ("q",)]
    with pytest.raises(SourceError, match=r"'Y': row 0: 2 classes; .*--task multilabel"):
        read(path, **KIND)
    one = save("npz", tmp_path / "y", X=x, Y=np.eye(3)[[0, 0, 2, 1, 1]], IDS=ids)
    named = read(one, classes=["jig", "reel", "polka"], **KIND)
    assert named.labels is not None
    assert named.labels.tolist() == ["jig", "polka", "reel"]


# What is wrong.


@stores
@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"X": np.zeros((3, 2)), "Y": np.zeros(3)}, "'Y': has 3 entries, and there is no array of"),
        ({"X": np.zeros((3, 2)), "IDS": np.zeros(2)}, r"'IDS': has shape \(2,\) for 3 frames"),
        ({"X": np.zeros(3), "IDS": np.zeros(3)}, r"'X': has shape \(3,\), not"),
        ({"X": np.zeros((3, 2)), "scores": np.zeros((3, 2))}, "which of scores, X is it."),
        ({"a": np.zeros((3, 2)), "b": np.zeros(3)}, r"song 'b': has shape \(3,\)"),
        ({"a": np.zeros((3, 2)), "b": np.zeros((3, 2)), "ids": np.arange(3)}, "which array holds"),
        ({"X": np.zeros((3, 2)), "lengths": np.array([1, 1])}, "'lengths': sum to 2, for 3 frames"),
        ({"X": np.zeros((3, 2)), "lengths": np.array([4, -1])}, "says what cannot be"),
        ({"X": np.zeros((3, 2)), "lengths": np.array([1.0, 2.0])}, "'lengths': holds float64"),
        ({"X": np.ones((2, 3, 1)), "lengths": np.array([1, 4])}, "says 4 frames where there are 3"),
        ({"X": np.ones((2, 3, 1)), "mask": np.ones((3, 2))}, r"'mask': has shape \(3, 2\), not"),
        ({"X": np.ones((2, 3, 1)), "mask": np.full((2, 3), 2)}, "'mask': holds other than"),
        ({"X": np.array([["a"]]), "IDS": np.arange(1)}, "'X': holds <U1, not numbers"),
        (
            {"X": np.ones((2, 1)), "IDS": np.array([0, 0]), "Y": np.array([0, 1])},
            "row 1: '1' after '0' in the same",
        ),
        ({"X": np.ones((2, 1)), "IDS": np.array([0.5, 0.5])}, "'IDS': cannot be read as text"),
        ({"X": np.ones((3, 1)), "IDS": np.array([0, 1, 0])}, "song '0': row 2: this song stands"),
        ({"X": np.full((1, 1), 1.5), "IDS": np.array([0])}, "column 'column_0': row 0: 1.5 is no"),
        ({}, "holds no array"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, store: str, arrays: Any, words: str) -> None:
    with pytest.raises(SourceError, match=words) as caught:
        read(save(store, tmp_path / "x", **arrays), **KIND)
    assert "x." in str(caught.value)


@stores
def test_times_that_run_backwards(tmp_path: Path, store: str) -> None:
    start = np.array([0, 1, 2, 0, 2, 1.0])
    arrays = {"X": np.full((6, 2), 0.5), "lengths": np.array([3, 0, 3]), "start": start}
    words = "song 'x/2': frame 2 starts at 1 s, the one before it at 2 s"
    with pytest.raises(SourceError, match=words):
        read(save(store, tmp_path / "x", **arrays), **KIND)
    start[-1] = 3
    found = read(save(store, tmp_path / "x", **arrays), **KIND)
    assert found.start is not None
    assert found.start.tolist() == [0, 1, 2, 0, 2, 3]


class Runs:
    def __reduce__(self) -> Any:
        return os.mkdir, ("it-ran",)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.chdir(tmp_path)
    array = np.array([Runs(), np.zeros((2, 2))], dtype=object)
    if suffix == ".npy":
        np.save("x.npy", array, allow_pickle=True)
    else:
        np.savez("x.npz", X=array, IDS=np.array(["a", "b"]))
    with pytest.raises(SourceError, match="holds Python objects, which only pickle could read"):
        read(f"x{suffix}", **KIND)
    Path("y.npy").write_bytes(pickle.dumps(Runs()))
    with pytest.raises(SourceError, match=r"is no \.npy file, whatever its name says"):
        read("y.npy", **KIND)
    with pytest.raises(SourceError, match=r"y\.npy: is no NumPy array"):
        read("y.npy", format="npy", **KIND)
    assert not Path("it-ran").exists()


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npy_of_shape(shape: tuple[int, ...], data: bytes, dtype: str = "<f4") -> bytes:
    file = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + data


def archive(path: Path, packed: int = zipfile.ZIP_DEFLATED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", packed) as file:
        for name, content in members.items():
            file.writestr(name.replace("__", "."), content)
    return path


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (npy(np.ones((9, 3)))[:-1], "cut short or damaged"),
        (npy(np.ones((9, 3))) + b"x", "cut short or damaged"),
        (npy(np.ones((9, 3)))[:60], "is no NumPy array"),
        (npy_of_shape((2**40, 50), b""), "cut short or damaged"),
        (npy_of_shape((-1, 50), b""), "cut short or damaged"),
        (npy_of_shape((2**40,), b"", "<U0"), "holds <U0"),
        (npy(np.zeros(3, [("a", "f4")])), "holds"),
        (npy(np.zeros((3, 2), complex)), "holds complex128"),
        (b"\x93NUMPY\x09\x00", "version of the format that is not known"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_arrays(tmp_path: Path, content: bytes, words: str, packed: bool) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    if packed:
        path = archive(tmp_path / "x.npz", X__npy=content)
    with pytest.raises(SourceError, match=words):
        read(path, **KIND)


def test_every_truncated_archive(tmp_path: Path) -> None:
    whole = save("npz packed", tmp_path / "x", X=np.ones((9, 3)), IDS=np.arange(9)).read_bytes()
    for n in range(4, len(whole), 17):
        (tmp_path / "x.npz").write_bytes(whole[:n])
        with pytest.raises(SourceError, match=r"x\.npz: "):
            read(tmp_path / "x.npz", **KIND)


def test_flipped_bits_of_the_data_are_found(tmp_path: Path) -> None:
    songs = some_songs()
    whole = save("npz", tmp_path / "x", one=songs[3], two=songs[4]).read_bytes()
    at = whole.index(songs[4].tobytes())
    for bit in range(0, 8 * songs[4].nbytes, 37):
        flipped = bytearray(whole)
        flipped[at + bit // 8] ^= 1 << bit % 8
        (tmp_path / "x.npz").write_bytes(flipped)
        with pytest.raises(SourceError, match=r"x\.npz: is no whole \.npz file"):
            read(tmp_path / "x.npz", kind="log_odds")


def test_foreign_and_encrypted_members(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"holds 'a\.txt', which is no \.npy file"):
        read(archive(tmp_path / "x.npz", a__txt=b"text"), **KIND)
    content = bytearray(archive(tmp_path / "x.npz", a__npy=npy(np.ones((2, 2)))).read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(SourceError, match=r"cannot be unpacked: .*encrypted"):
        read(tmp_path / "x.npz", **KIND)


def test_a_file_that_would_unpack_to_very_much_is_refused_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seqagg.files._SMALL", 2**16)
    zeros = np.zeros((2**16, 8), np.float32)
    bomb = save("npz packed", tmp_path / "x", zeros=zeros)
    with pytest.raises(SourceError, match=r"would unpack from [\d,]+ bytes to 2,097,\d+"):
        read(bomb, **KIND)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("never written", shape=(2**40, 50), dtype="f4", chunks=(2**10, 50))
    with pytest.raises(SourceError, match="would unpack from"):
        read(tmp_path / "x.h5", **KIND)


def test_links_of_hdf5_lead_nowhere(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["scores"] = np.ones((2, 2))
    (tmp_path / "raw").write_bytes(bytes(16))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["scores"] = h5py.ExternalLink("secret.h5", "scores")
        file["again"] = h5py.SoftLink("/scores")
        file["loop"] = file["/"]
    with pytest.raises(SourceError, match="holds no array"):
        read(tmp_path / "a.h5", **KIND)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        place = [(str(tmp_path / "raw"), 0, 16)]
        file.create_dataset("scores", (2, 2), "f4", external=place)
    with pytest.raises(SourceError, match="column 'scores': lies in another file"):
        read(tmp_path / "b.h5", **KIND)
    with h5py.File(tmp_path / "c.h5", "w") as file:
        layout = h5py.VirtualLayout((2, 2), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "scores", (2, 2))
        file.create_virtual_dataset("scores", layout)
    with pytest.raises(SourceError, match="column 'scores': lies in another file"):
        read(tmp_path / "c.h5", **KIND)


def test_hdf5_that_is_cut_short(tmp_path: Path) -> None:
    path = save("hdf5", tmp_path / "x", X=np.ones((900, 3)), IDS=np.arange(900))
    whole = path.read_bytes()
    for n in (len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(SourceError, match=r"x\.h5: "):
            read(path, **KIND)


TEXTS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "in chunks": {"chunks": (2,), "maxshape": (None,)},
    "compressed": {"chunks": (2,), "compression": "gzip"},
    "shuffled": {"chunks": (2,), "compression": "gzip", "shuffle": True},
}


@pytest.mark.parametrize("how", TEXTS)
def test_text_of_hdf5_wherever_it_lies(tmp_path: Path, how: str) -> None:
    names = ["one", "", "three" * 3000]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["scores"] = np.ones((3, 2, 2), np.float32)
        text = np.array(names, dtype=h5py.string_dtype())
        file.create_dataset("label", data=text, **TEXTS[how])
    songs = read(tmp_path / "x.h5", kind="probability", label="label")
    assert songs.labels is not None
    assert songs.labels.tolist() == [name or None for name in names]


@pytest.mark.parametrize("how", TEXTS)
@pytest.mark.parametrize(
    ("field", "at", "value"),
    [
        ("heap", 8, 2**40),
        ("free", 8, 0),
        ("free", 8, 15),
        ("reference", 0, 2**31),
        ("reference", 4, 2**40),
        ("reference", 4, 8),
    ],
)
def test_text_of_hdf5_that_does_not_add_up(
    tmp_path: Path, how: str, field: str, at: int, value: int
) -> None:
    """Over the second and third the HDF5 library stays for ever."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["scores"] = np.ones((2, 2, 2), np.float32)
        text = np.array(["jig", "reel"], dtype=h5py.string_dtype())
        file.create_dataset("label", data=text, **TEXTS[how])
    data = bytearray(path.read_bytes())
    heap = data.index(b"GCOL")
    if field == "reference":
        change_reference(path, at, value)
    else:
        start = heap + at + (16 + 2 * 24 if field == "free" else 0)
        data[start : start + 8] = value.to_bytes(8, "little")
        path.write_bytes(data)
    with pytest.raises(SourceError, match=r"x.h5: column 'label': its text is damaged"):
        read(path, kind="probability", label="label")


def change_reference(path: Path, at: int, value: int) -> None:
    """A reference is the length of the text, the address of its heap and its number there."""
    new = value.to_bytes(8 if at else 4, "little")
    with h5py.File(path, "r+") as file:
        text = file["label"]
        if text.chunks is None:
            first = text.id.get_offset()
        elif text.compression is None:
            first = text.id.get_chunk_info(0).byte_offset
        else:
            columns = np.frombuffer(zlib.decompress(text.id.read_direct_chunk((0,))[1]), "u1")
            rows = columns.reshape(16, -1).T if text.shuffle else columns
            rows = rows.reshape(-1, 16).copy()
            rows[0, at : at + len(new)] = np.frombuffer(new, "u1")
            packed = zlib.compress((rows.T if text.shuffle else rows).tobytes())
            text.id.write_direct_chunk((0,), packed)
            return
    data = bytearray(path.read_bytes())
    data[first + at : first + at + len(new)] = new
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("packed", "said"),
    [
        (b"no zlib", "its text is damaged: Error -3"),
        (zlib.compress(b"\xff" * 10**6), "its text is damaged"),
    ],
    ids=["damaged", "too long"],
)
def test_packed_references_of_hdf5_that_are_none(tmp_path: Path, packed: bytes, said: str) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["scores"] = np.ones((2, 2, 2), np.float32)
        text = np.array(["jig", "reel"], dtype=h5py.string_dtype())
        file.create_dataset("label", data=text, **TEXTS["compressed"])
        file["label"].id.write_direct_chunk((0,), packed)
    with pytest.raises(SourceError, match=rf"x.h5: column 'label': {said}"):
        read(path, kind="probability", label="label")


def test_text_of_hdf5_that_cannot_be_looked_at(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["scores"] = np.ones((2, 2, 2), np.float32)
        text = np.array(["jig", "reel"], dtype=h5py.string_dtype())
        file.create_dataset("label", data=text, chunks=(2,), compression="lzf")
    with pytest.raises(SourceError, match="column 'label': its text is packed, and not by gzip"):
        read(tmp_path / "x.h5", kind="probability", label="label")


def test_an_index_of_hdf5_that_runs_in_a_circle(tmp_path: Path) -> None:
    """Two nodes, each of which is followed by the other, and one that is followed by itself."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for i in range(200):
            file[f"song {i}"] = np.ones((2, 2), np.float32)
        file["x/one"] = np.ones(3)
    data = (tmp_path / "x.h5").read_bytes()
    nodes = [i for i in range(len(data)) if data.startswith(b"TREE", i)]
    assert len(nodes) >= 2
    for following in ({nodes[0]: nodes[1], nodes[1]: nodes[0]}, {nodes[1]: nodes[1]}):
        damaged = bytearray(data)
        for node, after in following.items():
            damaged[node + 16 : node + 24] = after.to_bytes(8, "little")
        (tmp_path / "y.h5").write_bytes(damaged)
        with pytest.raises(SourceError, match="its index runs in a circle"):
            read(tmp_path / "y.h5", kind="probability")


def test_hdf5_in_several_files(tmp_path: Path) -> None:
    """Which the library would describe by as many bytes as one of them says."""
    with h5py.File(tmp_path / "part-%d.h5", "w", driver="family", memb_size=2**20) as file:
        file["scores"] = np.ones((2, 2), np.float32)
    with pytest.raises(SourceError, match=r"part-0.h5: is one of the parts of a file"):
        read(tmp_path / "part-0.h5", kind="probability")


def test_hdf5_without_h5py_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save("hdf5", tmp_path / "x", X=np.ones((3, 3)), IDS=np.arange(3))
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ParameterError, match=r"pip install 'seqagg\[hdf5\]'"):
        read(path, **KIND)


def test_an_array_that_claims_columns_without_end(tmp_path):
    """It has no frame, and so no bytes that would be missing."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (0, 2199023255552), }"
    header = header.ljust(117) + b"\n"
    size = len(header).to_bytes(2, "little")
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + size + header)
    with pytest.raises(SourceError, match=r"x\.npy.* has 2,199,023,255,552 columns, more than 1,"):
        read(tmp_path / "x.npy", "npy", kind="probability")
