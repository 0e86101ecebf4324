"""Classifiers of scikit-learn in model files: the list comes back, all else is refused."""

from __future__ import annotations

import io
import json
import os
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from numpy.testing import assert_array_equal
from sklearn.discriminant_analysis import (
    LinearDiscriminantAnalysis,
    QuadraticDiscriminantAnalysis,
)
from sklearn.ensemble import (
    ExtraTreesClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.tree import DecisionTreeClassifier, ExtraTreeClassifier

import seqagg
from seqagg import ModelFileError, StackingAggregator
from seqagg.classifier_file import CLASSIFIERS, PARAMETER, dump_classifiers, load_classifiers
from seqagg.model_file import read_model, write_model
from tests.conftest import order_songs

OWN = [
    LinearDiscriminantAnalysis(),
    QuadraticDiscriminantAnalysis(solver="eigen", shrinkage=0.5),
    ExtraTreesClassifier(3, random_state=0),
    RandomForestClassifier(3, random_state=0),
    HistGradientBoostingClassifier(max_iter=3, random_state=0, min_samples_leaf=3),
    LogisticRegression(C=0.5),
    LogisticRegressionCV(Cs=2, cv=2),
    GaussianNB(),
    MLPClassifier((3,), max_iter=400, tol=1e-2, random_state=0),
    make_pipeline(StandardScaler(), LogisticRegression()),
    DecisionTreeClassifier(random_state=0),
    ExtraTreeClassifier(random_state=0),
]


def name_of(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


@pytest.fixture(autouse=True)
def _fits_of_few_songs_may_complain() -> Any:
    with warnings.catch_warnings():
        for words in ("Variables are collinear", "The covariance matrix of class", "l1_ratios"):
            warnings.filterwarnings("ignore", words)
        warnings.simplefilter("ignore", FutureWarning)
        yield


def test_the_list_is_the_list() -> None:
    assert {name_of(classifier) for classifier in OWN} == set(CLASSIFIERS)


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("classifier", OWN, ids=lambda c: type(c).__name__)
def test_a_stack_of_it_comes_back(tmp_path: Path, classifier: Any, multilabel: bool) -> None:
    path = tmp_path / "stack.safetensors"
    songs = order_songs(24, multilabel=multilabel)
    model = StackingAggregator(classifier=classifier, n_parts=2, n_folds=2).fit(songs)
    model.weights_ = np.array([1.0, 0.5])  # whether or not the fit listens to it
    model.save(path)
    loaded = seqagg.load(path)
    assert_array_equal(loaded.predict_log_proba(songs), model.predict_log_proba(songs))
    assert str(loaded.classifier) == str(classifier)
    first = path.read_bytes()
    loaded.save(path)
    assert path.read_bytes() == first
    refitted = loaded.fit(songs)
    assert refitted.predict_proba(songs).shape == (24, 3)


def test_one_class_needs_no_classifier_and_keeps_the_parameter(tmp_path: Path) -> None:
    songs = order_songs(12)
    songs = songs[songs.labels == "jazz"]
    model = StackingAggregator(classifier=GaussianNB()).fit(songs)
    model.save(tmp_path / "m.safetensors")
    loaded = seqagg.load(tmp_path / "m.safetensors")
    assert isinstance(loaded.classifier, GaussianNB)
    assert_array_equal(loaded.predict_proba(songs), model.predict_proba(songs))


@pytest.mark.parametrize(
    "classifier",
    [
        KNeighborsClassifier(1),
        make_pipeline(FunctionTransformer(np.abs), GaussianNB()),
        RandomForestClassifier(2, random_state=np.random.RandomState(0)),
    ],
    ids=lambda c: type(c).__name__,
)
def test_another_is_refused_when_it_would_be_written(tmp_path: Path, classifier: Any) -> None:
    model = StackingAggregator(classifier=classifier, n_folds=2).fit(order_songs(12))
    with pytest.raises(ModelFileError, match="which a model file does not keep; it keeps Linear"):
        model.save(tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_without_skops_it_says_what_to_install(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "skops.io", None)
    for act in (lambda: dump_classifiers({}), lambda: load_classifiers(np.zeros(0, np.uint8), 1)):
        with pytest.raises(ModelFileError, match=r"pip install 'seqagg\[skops\]'"):
            act()


# Bytes that somebody made on purpose.

N_FEATURES = 4


def fitted(classifier: Any) -> Any:
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    return classifier.fit(rng.normal(size=(40, N_FEATURES)) + y[:, None], y)


def packed(
    entries: dict[str, bytes | str], compression: int = zipfile.ZIP_STORED
) -> np.ndarray[Any, Any]:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def entries_of(data: np.ndarray[Any, Any]) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data.tobytes())) as file:
        return {name: file.read(name) for name in file.namelist()}


def dumped(found: Any) -> np.ndarray[Any, Any]:
    """Bytes of anything, as skops writes it."""
    return np.frombuffer(skops.io.dumps(found), np.uint8)


def refuse(data: np.ndarray[Any, Any], match: str) -> None:
    with pytest.raises(ModelFileError, match=match) as info:
        load_classifiers(data, N_FEATURES)
    assert len(str(info.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("found", "match"),
    [
        (["x"], "no classifiers by name"),
        ({"all": "x"}, "str is no classifier"),
        ({"all": StandardScaler()}, "StandardScaler is no classifier"),
        ({"all": GaussianNB()}, "cannot be read: NotFittedError"),
        ({"all": os.system}, "holds a posix.system, which a model file does not keep"),
        ({"all": FunctionTransformer(os.system)}, "FunctionTransformer, which"),
        ({"all": np.random.default_rng(0)}, "Generator, which"),
        ({"all": {1}}, "builtins.set, which"),
        ({"all": b"x"}, "builtins.bytes, which"),
        ({"all": np.array(["x", {}], dtype=object)}, "ndarray is no classifier"),
    ],
)
def test_what_is_no_classifier_is_refused(found: Any, match: str) -> None:
    refuse(dumped(found), match)


def test_what_is_no_zip_is_refused() -> None:
    refuse(np.zeros(0, np.uint8), "cannot be read: BadZipFile")
    refuse(np.frombuffer(b"\x80\x04cos\nsystem\n", np.uint8), "cannot be read: BadZipFile")
    refuse(packed({"x": "y"}), "cannot be read: KeyError")
    refuse(packed({"schema.json": "["}), "cannot be read: JSONDecodeError")
    refuse(packed({"schema.json": "[" * 100_000}), "cannot be read: RecursionError")
    refuse(packed({"schema.json": "{}"}), "cannot be read: KeyError")
    refuse(packed({"schema.json": '{"protocol": 0}'}), "protocol 0 of skops")
    refuse(packed({"schema.json": '{"protocol": true}'}), "protocol True of skops")
    refuse(np.zeros(9, np.float64), "is no bytes")


def test_a_bomb_is_refused_before_it_unpacks() -> None:
    entries = entries_of(dumped({"all": fitted(GaussianNB())}))
    bomb = packed({**entries, "0.npy": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000
    refuse(bomb, "would unpack to more than it is")


def test_entries_that_lie_on_each_other_are_refused() -> None:
    """An uncompressed bomb: many entries of the directory share the same bytes."""
    data = packed({"schema.json": "{}", "a": bytes(1000), "b": bytes(1000)}).tobytes()
    first, second = (data.index(b"PK\x03\x04", data.index(b"PK\x03\x04") + 1 + k) for k in (0, 60))
    place = data.rindex(b"PK\x01\x02") + 42  # where the directory says that b begins
    lie = data[:place] + first.to_bytes(4, "little") + data[place + 4 :]
    lie = lie[:second] + lie[second + 1000 :]
    refuse(np.frombuffer(lie, np.uint8), "cannot be read|more than it is")


def test_an_array_that_lies_about_its_size_is_refused() -> None:
    entries = entries_of(dumped({"all": fitted(GaussianNB())}))
    name = next(n for n in entries if n.endswith(".npy") and b"(2, 4)" in entries[n])
    for shape in (b"(10**12,)", b"(999999999999, 9)"):
        old = b"(2, 4), }" + b" " * len(shape)
        lie = entries[name].replace(old, shape + b", }" + b" " * (len(old) - len(shape) - 3))
        assert lie != entries[name]
        refuse(packed({**entries, name: lie}), "cannot be read: ")


def schema_of(entries: dict[str, bytes]) -> Any:
    return json.loads(entries["schema.json"])


def test_many_references_to_few_parts_are_refused() -> None:
    """Each list holds the next one twice: unfolded they are without end."""
    entries = entries_of(dumped({"all": []}))
    schema = schema_of(entries)
    shape = {"__class__": "list", "__module__": "builtins", "__loader__": "ListNode"}
    node: Any = {**shape, "content": [], "__id__": 1000}
    for k in range(60):
        node = {**shape, "content": [node, {**node, "content": []}], "__id__": 1001 + k}
    schema["content"]["all"] = node
    refuse(packed({**entries, "schema.json": json.dumps(schema)}), "too many parts")


def test_a_loader_for_another_type_is_refused() -> None:
    entries = entries_of(dumped({"all": [1]}))
    schema = schema_of(entries)
    schema["content"]["all"]["__class__"] = "ndarray"
    schema["content"]["all"]["__module__"] = "numpy"
    refuse(packed({**entries, "schema.json": json.dumps(schema)}), "numpy.ndarray, which")


TREES: list[tuple[Any, Callable[[Any], list[Any]], tuple[str, str, str]]] = [
    (
        DecisionTreeClassifier(random_state=0),
        lambda m: [m.tree_.__getstate__()["nodes"]],
        ("left_child", "right_child", "feature"),
    ),
    (
        RandomForestClassifier(2, random_state=0),
        lambda m: [t.tree_.__getstate__()["nodes"] for t in m.estimators_],
        ("left_child", "right_child", "feature"),
    ),
    (
        HistGradientBoostingClassifier(max_iter=2, min_samples_leaf=3),
        lambda m: [p.nodes for one in m._predictors for p in one],
        ("left", "right", "feature_idx"),
    ),
]


@pytest.mark.parametrize(("classifier", "nodes_of", "names"), TREES, ids=["tree", "forest", "hist"])
@pytest.mark.parametrize("value", [0, 10_000, 2**31 - 1])
def test_trees_that_lead_astray_are_refused(
    classifier: Any, nodes_of: Callable[[Any], list[Any]], names: tuple[str, ...], value: int
) -> None:
    """Child 0 would be a circle, and anything else is memory of somebody else's."""
    data = dump_classifiers({"all": fitted(classifier)})
    assert load_classifiers(data, N_FEATURES)["all"].predict_proba(np.ones((1, 4))).shape == (1, 2)
    entries = entries_of(data)
    fields = set(nodes_of(fitted(classifier))[-1].dtype.names)
    lied = 0
    for name, content in entries.items():
        array = np.load(io.BytesIO(content)) if name.endswith(".npy") else np.empty(0)
        if set(array.dtype.names or ()) != fields:
            continue
        for field in names[: 2 if value == 0 else 3]:
            wrong = array.copy()
            wrong[field][0] = value
            buffer = io.BytesIO()
            np.save(buffer, wrong)
            refuse(packed({**entries, name: buffer.getvalue()}), "a tree of the classifier")
            lied += 1
    assert lied >= 2


def test_trees_of_other_songs_are_refused() -> None:
    data = dumped({"all": fitted(RandomForestClassifier(2, random_state=0))})
    with pytest.raises(ModelFileError, match="has 3 features, but RandomForestClassifier"):
        load_classifiers(data, 3)


@pytest.mark.parametrize("member", ["estimators_", "n_features_in_", "classes_"])
def test_a_forest_that_lacks_something_is_refused(member: str) -> None:
    model = fitted(RandomForestClassifier(2, random_state=0))
    delattr(model, member)
    refuse(dumped({"all": model}), "cannot be read: ")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"0": GaussianNB()}, "not those of the classes"),
        ({"all classes": "labels"}, "not those of the classes"),
        ({PARAMETER: StandardScaler()}, "StandardScaler is no classifier"),
        ({PARAMETER: None}, "NoneType is no classifier"),
    ],
)
def test_classifiers_that_are_not_those_of_the_stack_are_refused(
    tmp_path: Path, change: dict[str, Any], match: str
) -> None:
    path = tmp_path / "m.safetensors"
    songs = order_songs(18)
    model = StackingAggregator(classifier=GaussianNB(), n_folds=2).fit(songs)
    model.save(path)
    header, arrays = read_model(path)
    inside = model._model.model
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(10, inside.n_features_in_))
    other = GaussianNB().fit(rows, np.arange(10) % 2 + 7)
    told = {PARAMETER: GaussianNB(), "all classes": inside}
    told |= {name: other if isinstance(v, str | GaussianNB) else v for name, v in change.items()}
    write_model(path, header, arrays | {"state.classifier": dumped(told)})
    with pytest.raises(ModelFileError, match=match):
        seqagg.load(path)
