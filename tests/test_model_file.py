"""Model files: what is written is read back to the bit, and nothing else is read at all."""

import ast
import hashlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save as to_safetensors
from sklearn.exceptions import NotFittedError

import seqagg
from seqagg import ModelFileError
from seqagg.aggregators import AGGREGATORS, make_aggregator
from seqagg.aggregators.averaging import MeanLogOdds
from seqagg.aggregators.saving import load
from seqagg.aggregators.state import from_text_array, text_array
from seqagg.model_file import read_model, write_model
from seqagg.songs import Songs
from tests.make_golden import FOLDER

DTYPES = [np.dtype(bool), *map(np.dtype, "bhilBHILefd")]

QUICK = {
    "hmm": {"n_states": 1, "covariance_type": "diag", "topology": "ergodic", "n_folds": 2},
    "gru": {"hidden_size": 4, "epochs": 2, "n_folds": 2},
    "mil": {"epochs": 2, "n_folds": 2},
    "stack": {"n_folds": 2, "n_parts": 2},
    "auto": {"methods": ("stack",), "n_errors": -100.0, "parameters": {"stack": {"n_parts": 2}}},
}
"""Settings that make a learnt method quick to fit."""

LEARNT = [method for method in AGGREGATORS if method in QUICK]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def assert_same(a, b):
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert a.tobytes() == b.tobytes()


def sign(content, arrays):
    """Bytes of a file with the right checksum, whatever it says."""
    text = json.dumps({"sha256": "0" * 64} | content)
    data = to_safetensors(arrays, metadata={"seqagg": text})
    return resign(data)


def resign(data):
    digest = hashlib.sha256(data).hexdigest()
    return data.replace(b"0" * 64, digest.encode(), 1)


def frame(header, body=b""):
    """A safetensors file with that header, however wrong."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + body


# The low level.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_memory_order_comes_back_to_the_bit(path, dtype):
    block = np.random.default_rng(0).integers(0, 2, (6, 4, 3)).astype(dtype)
    arrays = {
        "plain": block,
        "transposed": block.T,
        "strided": block[::2, 1::2],
        "reversed": block[::-1, :, ::-1],
        "fortran": np.asfortranarray(block),
        "broadcast": np.broadcast_to(block[0, 0], (5, 3)),
        "scalar": block[0, 0, 0],
        "zero_dimensional": np.array(1, dtype),
        "empty": block[:0],
        "flat_empty": np.empty(0, dtype),
        "big_endian": block.astype(dtype.newbyteorder(">")),
    }
    write_model(path, {}, arrays)
    _, found = read_model(path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        native = np.array(array, dtype=dtype, order="C")
        assert_same(found[name], native)


def test_extreme_numbers_come_back_to_the_bit(path):
    numbers = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 5e-324, np.pi])
    write_model(path, {}, {"numbers": numbers})
    assert_same(read_model(path)[1]["numbers"], numbers)


def test_the_header_comes_back_as_it_was(path):
    header = {
        "text": 'quotes " and \\ and ümläut and \ud800 and \n',
        "numbers": [1, 1.0, -0.5, 1e300, 2**70, True, None],
        "deep": {"": [[], {}]},
        "zeros": "0" * 64,
    }
    write_model(path, header, {})
    found = read_model(path)[0]
    assert found == header
    assert list(map(type, found["numbers"])) == list(map(type, header["numbers"]))


def test_the_same_model_is_the_same_bytes(path, tmp_path):
    arrays = {name: np.arange(3.0) for name in "cab"}
    write_model(path, {"x": 1}, arrays)
    other = tmp_path / "other.safetensors"
    write_model(other, {"x": 1}, dict(sorted(arrays.items())))
    assert path.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    "header",
    [{"x": (1, 2)}, {"x": np.nan}, {"x": {1}}, {1: "x"}, {"x": np.float32(1)}],
    ids=["tuple", "nan", "set", "key", "numpy"],
)
def test_a_header_that_json_would_change_is_refused(path, header):
    with pytest.raises(ModelFileError, match="header"):
        write_model(path, header, {})
    assert not path.exists()


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a"]),
        np.array([None]),
        np.array([1j]),
        np.array(["2020"], "M8[Y]"),
        np.longdouble(1),
    ],
    ids=str,
)
def test_arrays_of_other_types_are_refused(path, array):
    with pytest.raises(ModelFileError, match=r"array 'x' holds .* keeps bool, int and float"):
        write_model(path, {}, {"x": array})
    assert not path.exists()


def test_another_suffix_is_refused(tmp_path):
    for act in (read_model, lambda p: write_model(p, {}, {})):
        with pytest.raises(ModelFileError, match=r"model\.pkl: a model file ends in .safetensors"):
            act(tmp_path / "model.pkl")


def test_what_is_not_there_is_named(path, tmp_path):
    with pytest.raises(ModelFileError, match=r"model.safetensors: no such file"):
        read_model(path)
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(ModelFileError, match="is no regular file"):
        read_model(tmp_path / "folder.safetensors")
    (tmp_path / "file").touch()
    with pytest.raises(ModelFileError, match="cannot be written: "):
        write_model(tmp_path / "file" / "model.safetensors", {}, {})


# Damage.


@pytest.fixture
def small(path):
    write_model(path, {"m": "x"}, {"a": np.array([1.5, -2.0], np.float32), "b": np.int8(3)})
    return path


def assert_refused(path, data):
    path.write_bytes(data)
    with pytest.raises(ModelFileError) as caught:
        read_model(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_every_flipped_bit_is_refused(small):
    data = small.read_bytes()
    assert b"  " in data.partition(b"}}")[2], "the test file should have padding to flip"
    for position in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            assert_refused(small, bytes(flipped))


def test_every_truncation_is_refused(small):
    data = small.read_bytes()
    for length in range(len(data)):
        assert_refused(small, data[:length])


def test_anything_added_is_refused(small):
    data = small.read_bytes()
    for added in (b"\0", b" ", b"\n", data):
        assert_refused(small, data + added)
        assert_refused(small, added + data)


def test_swapped_bytes_are_refused(small):
    data = small.read_bytes()
    for position in range(len(data) - 1):
        swapped = bytearray(data)
        swapped[position : position + 2] = data[position : position + 2][::-1]
        if swapped != data:
            assert_refused(small, bytes(swapped))


def test_a_file_that_was_made_longer_is_not_read(small):
    os.truncate(small, 2**30)
    tracemalloc.start()
    with pytest.raises(ModelFileError, match="take 9 bytes, and there are 1,073,741,"):
        read_model(small)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**20


# Files of others.


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "no safetensors file"),
        (b"PAR1" + bytes(100), "no safetensors file"),
        (b"\x80\x04\x95" + bytes(100), "no safetensors file"),
        (b"\xff" * 200, "no safetensors file"),
        (struct.pack("<Q", 2**40) + b"{}", "no safetensors file"),
        (struct.pack("<Q", 0) + b"{}", "no safetensors file"),
        (frame(b"\xff\xfe{}"), "no safetensors file, or damaged"),
        (frame(b"[" * 100_000), "no safetensors file, or damaged"),
        (frame(b"[]"), "no JSON object"),
        (frame({"__metadata__": {"seqagg": "[]"}}), "no JSON object"),
        (frame({"__metadata__": {"seqagg": "nonsense"}}), "damaged"),
        (frame({"__metadata__": {"seqagg": 1}}), "no seqagg model"),
        (frame({"__metadata__": []}), "no seqagg model"),
        (to_safetensors({"w": np.ones(3)}), "no seqagg model"),
        (to_safetensors({"w": np.ones(3)}, {"format": "pt"}), "no seqagg model"),
        (frame(b'{"__metadata__":{"seqagg":"{}","seqagg":"{}"}}'), "'seqagg' stands there twice"),
        (frame({"__metadata__": {"seqagg": '{"version": NaN}'}}), "NaN is no JSON"),
        (sign({"version": 2, "header": {}}, {}), "format version 2; this seqagg reads 1"),
        (sign({"header": {}}, {}), "format version None"),
        (frame({"__metadata__": {"seqagg": '{"version": 1}'}}), "has no checksum"),
        (frame({"__metadata__": {"seqagg": '{"version": 1, "sha256": 5}'}}), "has no checksum"),
        (sign({"version": 1, "header": []}, {}), "has no header"),
        (sign({"version": 1}, {}), "has no header"),
        (sign({"version": 1, "header": {}}, {"c": np.ones(2, np.complex64)}), "holds complex64"),
    ],
)
def test_files_of_others_are_refused_with_a_reason(path, data, match):
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=match):
        read_model(path)


def hand_made(tensors, body):
    content = json.dumps({"sha256": "0" * 64, "version": 1, "header": {}})
    start = json.dumps({"__metadata__": {"seqagg": content}})[:-1]
    return resign(frame(f"{start}, {tensors}}}".encode(), body))


TENSOR = '"{}": {{"dtype": "{}", "shape": {}, "data_offsets": {}}}'


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        (
            f"{TENSOR.format('a', 'F32', [2], [0, 8])}, {TENSOR.format('a', 'F32', [2], [0, 8])}",
            "twice",
        ),
        (TENSOR.format("a", "F32", [3], [0, 8]), "cannot be read"),
        (TENSOR.format("a", "F32", [2], [0, 80]), "arrays take 80 bytes, and there are 8"),
        (TENSOR.format("a", "F32", [1], [0, 4]), "arrays take 4 bytes, and there are 8"),
        (TENSOR.format("a", "F32", [-2], [0, 8]), "cannot be read"),
        (TENSOR.format("a", "F32", [2], '"8"'), "no safetensors file, or damaged"),
        (TENSOR.format("a", "F32", [2], "[0, Infinity]"), "Infinity is no JSON"),
        ('"a": [0, 8]', "no safetensors file, or damaged"),
        (TENSOR.format("a", "F33", [2], [0, 8]), "cannot be read"),
        (TENSOR.format("a", "BF16", [4], [0, 8]), "cannot be read"),
        (TENSOR.format("a", "F32", [2**62, 2**62], [0, 8]), "cannot be read"),
    ],
    ids=[
        *("duplicate", "shape", "offsets", "hole", "negative", "text", "infinity", "list"),
        *("dtype", "bfloat", "overflow"),
    ],
)
def test_lying_tables_of_arrays_are_refused_under_the_right_checksum(path, tensors, match):
    path.write_bytes(hand_made(tensors, bytes(8)))
    with pytest.raises(ModelFileError, match=match):
        read_model(path)


def test_a_hand_made_file_is_read_if_it_tells_the_truth(path):
    path.write_bytes(hand_made(TENSOR.format("a", "F32", [2], [0, 8]), bytes(8)))
    assert_same(read_model(path)[1]["a"], np.zeros(2, np.float32))


# Writers that do not finish.


def test_a_killed_writer_leaves_the_old_file(small, tmp_path):
    old = small.read_bytes()
    code = f"""
import os, signal
from seqagg import model_file
def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)
model_file._decode = die  # the new file is on the disk, but not yet in its place
model_file.write_model({str(small)!r}, {{}}, {{}})
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert small.read_bytes() == old
    assert len(list(tmp_path.iterdir())) == 2, "the killed writer leaves its temporary file"
    write_model(small, {"new": 1}, {})
    assert read_model(small)[0] == {"new": 1}
    assert list(tmp_path.iterdir()) == [small], "the next writer sweeps it away"


def test_a_disk_that_changes_what_is_written_is_noticed(small, tmp_path, monkeypatch):
    old = small.read_bytes()
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda self, data: write(self, data[:-1] + b"\1"))
    with pytest.raises(ModelFileError, match="checksum"):
        write_model(small, {}, {"x": np.zeros(3)})
    assert small.read_bytes() == old
    assert list(tmp_path.iterdir()) == [small]


# Fitted aggregators.


def make_songs(labels=("jig", "reel", "waltz"), n=18, columns=None):
    rng = np.random.default_rng(1)
    which = np.arange(n) % len(labels)
    arrays = [rng.normal(2.0 * np.eye(3)[k], 1.0, (rng.integers(3, 8), 3)) for k in which]
    return Songs.from_arrays(arrays, columns=columns, labels=[labels[k] for k in which])


def assert_same_answers(a, b, songs):
    assert_same(a.predict_log_proba(songs), b.predict_log_proba(songs))
    assert_same(a.decision_function(songs), b.decision_function(songs))
    assert_same(a.predict(songs), b.predict(songs))


@pytest.fixture(scope="module")
def fitted():
    songs = make_songs(columns=["reel", "waltz", "jig"])
    return {m: make_aggregator(m, **QUICK.get(m, {})).fit(songs) for m in AGGREGATORS}


@pytest.mark.parametrize("method", AGGREGATORS)
def test_a_loaded_aggregator_is_the_one_saved(path, fitted, method):
    aggregator = fitted[method]
    aggregator.save(path)
    loaded = seqagg.load(path)
    assert type(loaded) is type(aggregator)
    assert loaded.get_params() == aggregator.get_params()
    assert loaded.columns_ == aggregator.columns_
    assert loaded.n_features_in_ == aggregator.n_features_in_
    assert loaded.inverse_temperature_ == aggregator.inverse_temperature_
    assert_same(loaded.classes_, aggregator.classes_)
    assert_same(loaded.class_prior_, aggregator.class_prior_)
    assert_same_answers(loaded, aggregator, make_songs(columns=["jig", "waltz", "reel"]))
    first = path.read_bytes()
    loaded.save(path)
    assert path.read_bytes() == first


@pytest.mark.parametrize("method", AGGREGATORS)
def test_fitted_attributes_are_there_after_loading(path, fitted, method):
    fitted[method].save(path)
    there = {name for name in vars(fitted[method]) if name.endswith("_")}
    assert there <= vars(load(path)).keys()


def test_a_fresh_process_gives_the_same_answers(fitted, tmp_path):
    songs = make_songs(columns=["reel", "waltz", "jig"])
    for method, aggregator in fitted.items():
        aggregator.save(tmp_path / f"{method}.safetensors")
    np.savez(tmp_path / "songs.npz", values=songs.values, offsets=songs.offsets)
    code = """
import sys, numpy as np
from pathlib import Path
import seqagg
folder = Path(sys.argv[1])
held = np.load(folder / "songs.npz")
songs = seqagg.Songs(**held, columns=["reel", "waltz", "jig"])
models = {p.stem: seqagg.load(p) for p in folder.glob("*.safetensors")}
np.savez(folder / "out.npz", **{m: a.predict_log_proba(songs) for m, a in models.items()})
"""
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    found = np.load(tmp_path / "out.npz")
    for method, aggregator in fitted.items():
        assert_same(found[method], aggregator.predict_log_proba(songs))


@pytest.mark.parametrize(
    "labels",
    [
        ("a", "ü\n", "long label with, commas"),
        (0, 200, -(2**62)),
        (2**64 - 1, 2**63, 0),
        (False, True),
        (0.1, -1e300, 5e-324),
        ("0", "1", "2"),
    ],
    ids=str,
)
def test_labels_keep_their_type(path, labels):
    songs = make_songs(labels)
    aggregator = make_aggregator("hmm", **QUICK["hmm"]).fit(songs)
    aggregator.save(path)
    loaded = load(path)
    assert_same(loaded.classes_, aggregator.classes_)
    assert_same_answers(loaded, aggregator, songs)


@pytest.mark.parametrize("columns", [None, ["jig", "reel", "waltz"]])
def test_parameters_and_columns_are_kept(path, columns):
    aggregator = MeanLogOdds(on_empty="prior").fit(make_songs(columns=columns))
    aggregator.save(path)
    loaded = load(path)
    assert loaded.on_empty == "prior"
    assert loaded.columns_ == aggregator.columns_
    empty = Songs.from_arrays([np.empty((0, 3)), np.eye(3)], columns=columns)
    assert_same_answers(loaded, aggregator, empty)


def test_the_file_says_what_made_it(path):
    MeanLogOdds().fit(make_songs()).save(path)
    header, _ = read_model(path)
    assert header["method"] == "logodds"
    assert {"python", "seqagg", "numpy"} <= header["versions"].keys()


def test_versions_are_those_of_the_fit_even_where_other_ones_load_it(path, monkeypatch):
    """A model in a model says so, too, and is read as it was written."""
    songs = make_songs(n=40)
    fitted = make_aggregator("auto", methods=("stack",), n_errors=-100.0).fit(songs)
    fitted.save(path)
    header, _ = read_model(path)
    monkeypatch.setattr("seqagg.aggregators.saving.versions", lambda: {"numpy": "99"})
    loaded = load(path)
    assert_same_answers(loaded, fitted, songs)
    loaded.save(path)
    assert read_model(path)[0] == header
    loaded.fit(songs).save(path)
    assert read_model(path)[0]["versions"] == {"numpy": "99"}


def test_the_checksum_of_the_training_cache_is_kept(path, tmp_path):
    fitted = MeanLogOdds().fit(make_songs())
    fitted.save(path)
    assert "trained_on" not in read_model(path)[0]
    digest = hashlib.sha256(b"cache").hexdigest()
    fitted.save(path, trained_on=digest)
    assert read_model(path)[0]["trained_on"] == digest
    loaded = load(path)
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    loaded.fit(make_songs()).save(path)
    assert "trained_on" not in read_model(path)[0]
    with pytest.raises(ModelFileError, match="trained_on is no sha256"):
        fitted.save(path, trained_on="songs.parquet")


def test_numbers_from_a_grid_search_are_kept(path):
    aggregator = make_aggregator("hmm", **QUICK["hmm"]).set_params(
        n_iter=np.int64(5), tol=np.float64(0.01)
    )
    aggregator.fit(make_songs()).save(path)
    assert load(path).n_iter == 5
    assert load(path).tol == 0.01


class Mine(MeanLogOdds):
    def __init__(self, *, extra=None, on_empty="error"):
        super().__init__(on_empty=on_empty)
        self.extra = extra


def test_a_class_outside_the_table_is_refused_with_the_way_in(path, monkeypatch):
    mine = Mine().fit(make_songs())
    with pytest.raises(ModelFileError, match="Mine is not in the table of methods"):
        mine.save(path)
    assert not path.exists()
    # pytest's importlib mode gives this module a name that cannot be imported.
    monkeypatch.setitem(sys.modules, "module_of_mine", sys.modules[__name__])
    monkeypatch.setattr(Mine, "__module__", "module_of_mine")
    monkeypatch.setitem(AGGREGATORS, "mine", "module_of_mine:Mine")
    for extra in (None, (1, ("a", [2.5, ()])), {"gru": {"sizes": (1, 2)}}, [True, None]):
        mine.extra = extra
        mine.save(path)
        assert type(load(path)) is Mine
        assert load(path).extra == extra


class Forgetful(MeanLogOdds):
    """Keeps nothing of what it has learnt."""

    lost = True

    def _fit(self, songs, y, groups):
        self.shift_ = np.ones(3)

    def _log_scores(self, songs):
        shift = self.shift_ if self.lost else getattr(self, "shift_", 0.0)
        return super()._log_scores(songs) * shift


@pytest.mark.parametrize(("lost", "match"), [(True, "no attribute 'shift_'"), (False, "otherwise")])
def test_a_method_that_forgets_what_it_fitted_is_not_written(path, monkeypatch, lost, match):
    monkeypatch.setitem(sys.modules, "module_of_mine", sys.modules[__name__])
    monkeypatch.setattr(Forgetful, "__module__", "module_of_mine")
    monkeypatch.setattr(Forgetful, "lost", lost)
    monkeypatch.setitem(AGGREGATORS, "forgetful", "module_of_mine:Forgetful")
    fitted = Forgetful().fit(make_songs())
    fitted.shift_ = np.full(3, 2.0)
    with pytest.raises(ModelFileError, match=f"would be lost in a file: .*{match}"):
        fitted.save(path)
    assert not path.exists()


def test_an_unfitted_aggregator_cannot_be_saved(path):
    with pytest.raises(NotFittedError):
        MeanLogOdds().save(path)
    assert not path.exists()


def test_a_parameter_that_is_no_number_or_text_is_refused_by_name(path):
    aggregator = MeanLogOdds().fit(make_songs())
    aggregator.on_empty = np.random.RandomState(0)
    with pytest.raises(
        ModelFileError,
        match=r"parameter on_empty is a RandomState, which a model",
    ):
        aggregator.save(path)


# Headers and arrays that are undamaged and wrong.

CLASSES = {"dtype": "str", "values": ["jig", "reel", "waltz"]}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"method": "pickle"}, "no method 'pickle'"),
        ({"method": None}, "method is None"),
        ({"parameters": {"depth": 3}}, "no parameter depth"),
        ({"parameters": {"on_empty": "guess"}}, "on_empty='guess'"),
        ({"parameters": []}, r"parameters is \[\]"),
        ({"parameters": {"on_empty": {"tuple": 3}}}, "not iterable"),
        ({"n_features_in": True}, "n_features_in is True"),
        ({"n_features_in": 4}, "4 columns do not go"),
        ({"n_features_in": 0, "columns": []}, "0 columns"),
        ({"columns": ["jig", "jig", "reel"]}, "not all different"),
        ({"columns": ["jig", "reel", 3]}, "not text"),
        ({"columns": "abc"}, "columns is 'abc'"),
        ({"columns_are_classes": 1}, "columns_are_classes is 1"),
        ({"columns_are_classes": False}, "needs columns that are classes"),
        ({"classes": CLASSES | {"dtype": "object"}}, "classes cannot be read"),
        ({"classes": CLASSES | {"dtype": "int64"}}, "not every class is of type int64"),
        ({"classes": {"dtype": "int64", "values": [0, 1, True]}}, "not every class"),
        ({"classes": {"dtype": "int64", "values": [0, 1, 2**63]}}, "classes cannot be read"),
        ({"classes": CLASSES | {"values": ["jig", "reel"]}}, "2 classes cannot be 3 columns"),
        ({"classes": CLASSES | {"values": ["reel", "jig", "waltz"]}}, "not sorted"),
        ({"classes": CLASSES | {"values": []}}, "classes cannot be read"),
        ({"classes": CLASSES | {"values": "abc"}}, "classes cannot be read"),
        ({"biased": 1}, "biased is 1"),
        ({"biased": True}, "biased is said of what has no biases"),
        ({"surprise": 1}, "the header has the keys .*surprise"),
    ],
)
def test_a_header_that_cannot_be_is_refused(path, changes, match):
    MeanLogOdds().fit(make_songs(columns=["reel", "waltz", "jig"])).save(path)
    header, arrays = read_model(path)
    write_model(path, header | changes, arrays)
    with pytest.raises(ModelFileError, match=match) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("name", "array", "match"),
    [
        ("class_prior", np.array([0.5, 0.5, 0.5]), "sum to 1"),
        ("class_prior", np.array([1.5, -0.25, -0.25]), "sum to 1"),
        ("class_prior", np.array([np.nan, 0.5, 0.5]), "sum to 1"),
        ("class_prior", np.array([0.5, 0.5]), r"class_prior has .* shape \(2,\), not \(3,\)"),
        ("class_prior", np.array([0.5, 0.25, 0.25], np.float32), "dtype float32"),
        ("inverse_temperature", np.float64(-1), "inverse_temperature is -1"),
        ("inverse_temperature", np.float64(np.inf), "inverse_temperature is inf"),
        ("inverse_temperature", np.ones(1), r"shape \(1,\), not \(\)"),
        ("column_order", np.array([0, 1, 1]), r"column_order is no order of 0 \.\. 2"),
        ("class_order", np.array([1, 2, 3]), r"class_order is no order of 0 \.\. 2"),
        ("class_order", np.array([0.0, 1.0, 2.0]), "dtype float64"),
        ("surprise", np.zeros(1), "holds the arrays .*surprise"),
        ("state.surprise", np.zeros(1), "the state holds surprise"),
        ("class_prior", None, "holds the arrays"),
    ],
)
def test_arrays_that_cannot_be_are_refused(path, name, array, match):
    MeanLogOdds().fit(make_songs()).save(path)
    header, arrays = read_model(path)
    arrays.pop(name, None)
    write_model(path, header, arrays if array is None else arrays | {name: array})
    with pytest.raises(ModelFileError, match=match):
        load(path)


def test_methods_that_learn_have_biases_and_rules_have_none(fitted):
    for method, model in fitted.items():
        assert (model.biases_ is not None) == (method in LEARNT), method


def several():
    songs = make_songs()
    return MeanLogOdds().fit(list(songs), np.eye(3, dtype=int)[np.arange(18) % 3])


@pytest.mark.parametrize(
    ("name", "array", "match"),
    [
        ("biases", np.array([0.0, np.nan, 0.0]), "biases are not finite"),
        ("biases", np.zeros(2), r"biases has .* shape \(2,\), not \(3,\)"),
        ("biases", None, "holds the arrays"),
        ("thresholds", np.array([0.5, 1.0, 0.5]), "thresholds are not between 0 and 1"),
        ("thresholds", np.array([0.5, np.nan, 0.5]), "thresholds are not between 0 and 1"),
        ("thresholds", np.full((3, 1), 0.5), r"thresholds has .* shape \(3, 1\)"),
        ("thresholds", None, "holds the arrays"),
        ("class_prior", np.array([0.5, 0.0, 0.5]), "class_prior are not between 0 and 1"),
    ],
)
def test_arrays_of_several_labels_that_cannot_be_are_refused(path, name, array, match):
    several().save(path)
    header, arrays = read_model(path)
    arrays.pop(name)
    write_model(path, header, arrays if array is None else arrays | {name: array})
    with pytest.raises(ModelFileError, match=match):
        load(path)


@pytest.mark.parametrize(
    ("model", "claim", "match"),
    [
        (several, {"multilabel": False}, "holds the arrays"),
        (lambda: MeanLogOdds().fit(make_songs()), {"multilabel": True}, "holds the arrays"),
        (several, {"multilabel": 1}, "multilabel is 1"),
    ],
)
def test_a_file_that_lies_about_the_number_of_labels_is_refused(path, model, claim, match):
    model().save(path)
    header, arrays = read_model(path)
    write_model(path, header | claim, arrays)
    with pytest.raises(ModelFileError, match=match):
        load(path)


@pytest.mark.parametrize("method", LEARNT)
def test_a_state_with_an_array_missing_added_or_reshaped_is_refused(path, fitted, method):
    fitted[method].save(path)
    header, arrays = read_model(path)
    states = [name for name in arrays if name.startswith("state.")]
    assert states
    for name in states:
        for other in (
            {n: a for n, a in arrays.items() if n != name},
            arrays | {name: np.zeros((2, 3, 5, 7))},
            arrays | {name + "x": arrays[name]},
        ):
            write_model(path, header, other)
            with pytest.raises(ModelFileError, match=r"model\.safetensors: "):
                load(path)


CERTAIN = ["3-hmm", "3-gru", "4-stack", "4-mil", "4-auto"]


@pytest.mark.parametrize("name", CERTAIN)
@pytest.mark.parametrize(
    "wrong",
    [
        *([0.6, -1.7, 1.3], [0.0, 1.7, 1.3], [0.6, 1.7, np.nan], [0.6, 1e10, 1.3]),
        *([0.6], [[0.6, 1.7, 1.3]], 0.6, [1, 1, 1], [True, True, True]),
    ],
)
def test_a_certainty_that_cannot_be_is_refused(path, name, wrong):
    header, arrays = read_model(FOLDER / f"{name}.safetensors")
    names = [n for n in arrays if n.endswith("certainty") and "stack/" not in n]
    assert names
    for n in names:
        wrongly = np.array(wrong)
        if wrongly.dtype == np.float64:
            wrongly = wrongly.astype(arrays[n].dtype)
        write_model(path, header, arrays | {n: wrongly})
        with pytest.raises(ModelFileError, match=r"certainty|finite"):
            load(path)


@pytest.mark.parametrize("name", CERTAIN)
def test_with_several_labels_there_is_no_certainty(path, name):
    header, arrays = read_model(FOLDER / f"{name}-multilabel.safetensors")
    _, certain = read_model(FOLDER / f"{name}.safetensors")
    found = {n: a for n, a in certain.items() if n.endswith("certainty")}
    assert found
    assert not found.keys() & arrays.keys()
    write_model(path, header, arrays | found)
    with pytest.raises(ModelFileError):
        load(path)


@pytest.mark.parametrize("method", LEARNT)
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_refused(path, fitted, method, number):
    fitted[method].save(path)
    header, arrays = read_model(path)
    for name, array in arrays.items():
        if name.startswith("state.") and array.dtype.kind == "f" and array.size:
            wrong = array.copy()
            wrong.flat[-1] = number
            write_model(path, header, arrays | {name: wrong})
            with pytest.raises(ModelFileError, match=r"model\.safetensors: the state "):
                load(path)


def test_a_state_of_another_type_is_refused(path, fitted):
    """As numbers it is what it was, and would be rounded otherwise."""
    for method in LEARNT:
        fitted[method].save(path)
        header, arrays = read_model(path)
        for name, array in arrays.items():
            if name.startswith("state.") and array.dtype.kind == "f":
                other = array.astype(np.float16 if array.dtype == np.float64 else np.float64)
                write_model(path, header, arrays | {name: other})
                with pytest.raises(ModelFileError, match=r"model\.safetensors: "):
                    load(path)


@pytest.mark.parametrize(
    ("method", "parameter", "value"),
    [
        ("gru", "hidden_size", 2**20),
        ("gru", "hidden_size", 10**30),
        ("gru", "n_layers", 10**9),
        ("mil", "hidden_size", 2**40),
        ("stack", "n_parts", 10**9),
        ("stack", "n_parts", 10**400),
        ("hmm", "n_states", 10**9),
    ],
)
def test_a_header_that_asks_for_more_than_the_file_holds_costs_nothing(
    path, fitted, method, parameter, value
):
    fitted[method].save(path)
    header, arrays = read_model(path)
    write_model(path, header | {"parameters": header["parameters"] | {parameter: value}}, arrays)
    before, started = peak_memory(), time.monotonic()
    if method == "hmm":  # what was fitted says how many states there are
        load(path)
    else:
        with pytest.raises(ModelFileError, match=r"model\.safetensors: "):
            load(path)
    assert time.monotonic() - started < 5
    assert peak_memory() - before < 50 * 2**20


def peak_memory():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("method", LEARNT)
def test_numbers_that_drive_the_answer_to_infinity_are_refused(path, fitted, method):
    fitted[method].save(path)
    header, arrays = read_model(path)
    huge = {
        name: np.full_like(array, np.finfo(array.dtype).max)
        for name, array in arrays.items()
        if name.startswith("state.") and array.dtype.kind == "f"
    }
    write_model(path, header, arrays | huge)
    with pytest.raises(ModelFileError, match=r"model\.safetensors: "):
        load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda history: {"0": history},
        lambda history: [{"0": rows} for rows in history],
        lambda history: [[] for _ in history],
        lambda history: [[row | {"held_out": "low"} for row in rows] for rows in history],
        lambda history: [[row | {"held_out": 1e300} for row in rows] for rows in history],
        lambda history: [[row | {"more": 0.0} for row in rows] for rows in history],
    ],
)
def test_a_history_that_is_none_is_refused(path, fitted, change):
    fitted["gru"].save(path)
    header, arrays = read_model(path)
    history = from_text_array(arrays["state.history"])
    write_model(path, header, arrays | {"state.history": text_array(history)})
    load(path)
    write_model(path, header, arrays | {"state.history": text_array(change(history))})
    with pytest.raises(ModelFileError, match="the history of the training cannot be read"):
        load(path)


def test_a_network_whose_columns_do_not_spread_is_refused(path, fitted):
    for method in ("gru", "mil"):
        fitted[method].save(path)
        header, arrays = read_model(path)
        (name,) = (n for n in arrays if n.startswith("state.0.") and n.endswith("spread"))
        write_model(path, header, arrays | {name: np.zeros_like(arrays[name])})
        with pytest.raises(ModelFileError, match="spread is not positive"):
            load(path)


@pytest.mark.parametrize("name", ["spread", "bound"])
def test_features_that_are_not_scaled_are_refused(path, fitted, name):
    fitted["stack"].save(path)
    header, arrays = read_model(path)
    write_model(path, header, arrays | {f"state.{name}": np.zeros_like(arrays[f"state.{name}"])})
    with pytest.raises(ModelFileError, match="spread or the bound is not positive"):
        load(path)


def test_features_about_a_point_beyond_all_scores_are_refused(path, fitted):
    fitted["stack"].save(path)
    header, arrays = read_model(path)
    write_model(path, header, arrays | {"state.center": arrays["state.center"] + 1e300})
    with pytest.raises(ModelFileError, match="array center holds a number beyond 1e"):
        load(path)


def test_nothing_in_the_package_can_run_what_is_in_a_file():
    modules = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
    names = {"eval", "exec", "compile", "__import__"}
    attributes = {("torch", "load"), ("joblib", "load"), ("yaml", "load"), ("pd", "read_pickle")}
    for file in Path(seqagg.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            where = f"{file.name}, line {getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                assert not {alias.name.partition(".")[0] for alias in node.names} & modules, where
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] not in modules, where
            elif isinstance(node, ast.Call):
                assert getattr(node.func, "id", None) not in names, where
            elif isinstance(node, ast.Attribute):
                assert (getattr(node.value, "id", None), node.attr) not in attributes, where
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert ast.literal_eval(node.value) is False, where
