"""scikit-learn classifiers as bytes for a model file, through skops, nothing of which is trusted.

Conventions
-----------
The bytes are a zip of skops, uncompressed. What is in it is checked three times: its types against
`TRUSTED` before skops sees them, what was built before it may answer (the compiled loops of trees
follow whatever indices they are given), and what is answered to a song of zeros.
"""

from __future__ import annotations

import copy
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
from sklearn.base import clone

from seqagg.errors import ModelFileError

Array = npt.NDArray[Any]

CLASSIFIERS = (
    "sklearn.discriminant_analysis.LinearDiscriminantAnalysis",
    "sklearn.discriminant_analysis.QuadraticDiscriminantAnalysis",
    "sklearn.ensemble._forest.ExtraTreesClassifier",
    "sklearn.ensemble._forest.RandomForestClassifier",
    "sklearn.ensemble._hist_gradient_boosting.gradient_boosting.HistGradientBoostingClassifier",
    "sklearn.linear_model._logistic.LogisticRegression",
    "sklearn.linear_model._logistic.LogisticRegressionCV",
    "sklearn.naive_bayes.GaussianNB",
    "sklearn.neural_network._multilayer_perceptron.MLPClassifier",
    "sklearn.pipeline.Pipeline",
    "sklearn.tree._classes.DecisionTreeClassifier",
    "sklearn.tree._classes.ExtraTreeClassifier",
)
"""Classifiers that a model file keeps."""

TRUSTED: dict[str, frozenset[str]] = {
    "JsonNode": frozenset({"builtins.str"}),
    "DictNode": frozenset({"builtins.dict"}),
    "ListNode": frozenset({"builtins.list"}),
    "TupleNode": frozenset({"builtins.tuple"}),
    "TypeNode": frozenset(
        {
            *(f"builtins.{name}" for name in ("str", "int", "float", "bool")),
            *(f"numpy.{name}" for name in ("float32", "float64", "int64")),
        }
    ),
    "NdArrayNode": frozenset(
        f"numpy.{n}" for n in ("ndarray", "bool", "float32", "float64", "int64", "uint64")
    ),
    "TreeNode": frozenset({"sklearn.tree._tree.Tree"}),
    "LossNode": frozenset(
        {"sklearn._loss._loss.CyHalfBinomialLoss", "sklearn._loss._loss.CyHalfMultinomialLoss"}
    ),
    "ObjectNode": frozenset(
        {
            *CLASSIFIERS,
            "sklearn._loss.link.Interval",
            "sklearn._loss.link.LogitLink",
            "sklearn._loss.link.MultinomialLogit",
            "sklearn._loss.loss.HalfBinomialLoss",
            "sklearn._loss.loss.HalfMultinomialLoss",
            "sklearn.decomposition._pca.PCA",
            "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
            "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
            "sklearn.preprocessing._data.MinMaxScaler",
            "sklearn.preprocessing._data.PowerTransformer",
            "sklearn.preprocessing._data.QuantileTransformer",
            "sklearn.preprocessing._data.RobustScaler",
            "sklearn.preprocessing._data.StandardScaler",
            "sklearn.preprocessing._label.LabelBinarizer",
            "sklearn.preprocessing._label.LabelEncoder",
        }
    ),
}
"""What of skops may build which types; nothing else may occur in the bytes."""

PARAMETER = "parameter"
"""Name of a classifier that is a parameter, and not fitted."""

_UNNEEDED = ("_optimizer", "_random_state", "_feature_subsample_rng")
"""What classifiers keep for another fit, and would bring further types."""

_MOST_NODES = 10_000_000
"""Objects in the bytes, each counted wherever it is referred to."""


def dump_classifiers(classifiers: Mapping[str, Any]) -> Array:
    """Bytes of classifiers by name, all but that of `PARAMETER` fitted, shape (n_bytes,).

    Raises
    ------
    ModelFileError
        Where skops is missing, or something is of a type that is not in `TRUSTED`.
    """
    skops = _skops()
    kept = copy.deepcopy(dict(classifiers))
    for part in _parts(kept):
        for name in _UNNEEDED:
            getattr(part, "__dict__", {}).pop(name, None)
    try:
        data = np.frombuffer(skops.dumps(kept), dtype=np.uint8)
    except Exception as error:  # of whatever a type of the user's own may raise
        _refuse(f"the classifier cannot be written: {error}")
    _check_schema(data.tobytes())
    return data


def load_classifiers(data: Array, n_features: int) -> dict[str, Any]:
    """Classifiers by name from what `dump_classifiers` gave, trusting nothing.

    Parameters
    ----------
    data : ndarray of uint8, shape (n_bytes,)
    n_features : int
        What fitted classifiers are given.

    Raises
    ------
    ModelFileError
        Where skops is missing, or the bytes say what cannot be.
    """
    skops = _skops()
    if data.dtype != np.uint8 or data.ndim != 1:
        _refuse("the classifier is no bytes")
    raw = data.tobytes()
    _check_schema(raw)
    try:
        found = skops.loads(raw, trusted=sorted(frozenset().union(*TRUSTED.values())))
        if type(found) is not dict:
            _refuse("the bytes hold no classifiers by name")
        for part in _parts(found):
            _check_part(part)
        for name, model in found.items():
            _check_classifier(model, None if name == PARAMETER else n_features)
    except ModelFileError:
        raise
    except Exception as error:  # skops, NumPy and scikit-learn raise whatever comes to their mind
        _refuse(f"the classifier cannot be read: {type(error).__name__}: {error}")
    return found


def _skops() -> Any:
    try:
        import skops.io
    except ImportError:
        _refuse("a classifier of your own is kept through skops: pip install 'seqagg[skops]'")
    return skops.io


def _check_schema(raw: bytes) -> None:
    """Refuse bytes that would unpack to more than they are, or name what is not in the list."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as packed:
            entries = packed.infolist()
            stored = all(e.compress_type == zipfile.ZIP_STORED for e in entries)
            if not stored or sum(e.file_size for e in entries) > len(raw):
                _refuse("the classifier would unpack to more than it is")
            schema = json.loads(packed.read("schema.json"))
            from skops.io._protocol import PROTOCOL

            if type(schema["protocol"]) is not int or schema["protocol"] != PROTOCOL:
                _refuse(f"the classifier is in protocol {schema['protocol']!r} of skops")
            trees: list[dict[str, Any]] = []
            if _count_nodes(schema, {}, trees) > _MOST_NODES:
                _refuse("the classifier has too many parts")
            for tree in trees:
                _check_arrays(tree, packed)
    except ModelFileError:
        raise
    except Exception as error:  # what zipfile raises depends on the byte that is wrong
        _refuse(f"the classifier cannot be read: {type(error).__name__}: {error}")


class _Known(NamedTuple):
    """An object of the schema, and how many are under it."""

    node: dict[str, Any]
    n_nodes: int


def _check_arrays(tree: dict[str, Any], packed: zipfile.ZipFile) -> None:
    """Refuse a tree whose arrays have other dimensions: scikit-learn reads beyond them."""
    inside = tree["content"]["content"]
    nodes, values, n_classes = (
        np.load(io.BytesIO(packed.read(array["file"])), allow_pickle=False)
        for array in (inside["nodes"], inside["values"], tree["__reduce__"]["args"]["content"][1])
    )
    if (nodes.ndim, values.ndim, n_classes.ndim) != (1, 3, 1) or nodes.dtype.names is None:
        _refuse("a tree of the classifier is none")


def _count_nodes(value: Any, known: dict[Any, _Known], trees: list[dict[str, Any]]) -> int:
    """Objects under a part of the schema, counted as often as they are referred to.

    Those with an id are put into `known`, and trees into `trees`.
    """
    if isinstance(value, list):
        return sum(_count_nodes(item, known, trees) for item in value)
    if not isinstance(value, dict):
        return 0
    if "__class__" in value or "__loader__" in value:
        name = f"{value['__module__']}.{value['__class__']}"
        if name not in TRUSTED.get(value["__loader__"], ()):
            _refuse(
                f"holds a {name}, which a model file does not keep; it keeps "
                + ", ".join(path.rpartition(".")[2] for path in CLASSIFIERS)
            )
        if value.get("__id__") in known:
            before = known[value["__id__"]]
            # skops takes what it has met first, so all of that name must be that.
            if any(value.get(k) != before.node.get(k) for k in ("__loader__", "__class__", "file")):
                _refuse("two parts of the classifier have one id")
            return before.n_nodes
        if value["__loader__"] == "TreeNode":
            trees.append(value)
    count = 1 + sum(_count_nodes(item, known, trees) for item in value.values())
    if "__id__" in value:
        known[value["__id__"]] = _Known(value, count)
    return count


def _parts(root: Any) -> Iterator[Any]:
    """Everything that an object is made of, each once."""
    seen: dict[int, Any] = {}
    waiting = [root]
    while waiting:
        part = waiting.pop()
        if id(part) in seen or isinstance(part, str | bytes | int | float | type | None):
            continue
        seen[id(part)] = part  # kept, so that no other gets its id
        yield part
        if isinstance(part, np.ndarray):
            waiting += part.ravel().tolist() if part.dtype == object else []
        elif isinstance(part, Mapping):
            waiting += part.values()
        elif isinstance(part, list | tuple):
            waiting += part
        else:
            waiting += vars(part).values() if hasattr(part, "__dict__") else []


def _check_part(part: Any) -> None:
    """Refuse trees that would lead a compiled loop out of its arrays, or round in circles."""
    kind = type(part).__name__
    if hasattr(part, "tree_"):
        _check_tree(part.tree_, part.n_features_in_)
    if hasattr(part, "estimators_"):
        for estimator in part.estimators_:
            _check_tree(estimator.tree_, part.n_features_in_)
    if kind == "HistGradientBoostingClassifier" and hasattr(part, "_predictors"):
        for predictor in (p for one in part._predictors for p in one):
            nodes = predictor.nodes
            inner = nodes["is_leaf"] == 0
            _check_children(nodes["left"], nodes["right"], inner)
            _check_columns(nodes["feature_idx"][inner], part.n_features_in_)
            if nodes["is_categorical"].any():
                _refuse("a tree of the classifier asks for categories, which songs do not have")


def _check_tree(tree: Any, n_features: int) -> None:
    inner = tree.children_left != -1
    _check_children(tree.children_left, tree.children_right, inner)
    _check_columns(tree.feature[inner], min(n_features, tree.n_features))
    if tree.n_outputs != 1:
        _refuse("a tree of the classifier has several outputs")


def _check_children(left: Array, right: Array, inner: Array) -> None:
    """Children come after their parents, so that every way down a tree ends."""
    place, n = np.arange(len(left)), len(left)
    if n == 0:
        _refuse("a tree of the classifier has no node")
    for child in (left.astype(np.int64), right.astype(np.int64)):
        if (inner & ((child <= place) | (child >= n))).any():
            _refuse("a tree of the classifier leads nowhere")


def _check_columns(feature: Array, n_features: int) -> None:
    if ((feature < 0) | (feature >= n_features)).any():
        _refuse("a tree of the classifier asks for a feature that is not there")


def _check_classifier(model: Any, n_features: int | None) -> None:
    """Refuse what is no classifier, and if it is fitted, what does not answer with probabilities.

    None stands for one that is not.
    """
    if f"{type(model).__module__}.{type(model).__qualname__}" not in CLASSIFIERS:
        _refuse(f"{type(model).__name__} is no classifier that a model file keeps")
    if n_features is None:
        clone(model)
        return
    answer = model.predict_proba(np.zeros((1, n_features)))
    if answer.shape != (1, len(model.classes_)) or not np.isfinite(answer).all():
        _refuse("the classifier does not answer with probabilities")


def _refuse(message: str) -> NoReturn:
    raise ModelFileError(message)
