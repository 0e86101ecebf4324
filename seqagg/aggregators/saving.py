"""Fitted aggregators as files, and back, checked from the header to the last number.

Conventions
-----------
A file has a header of JSON, see `_HEADER`, and arrays by name: those that every method has, and
under ``state.`` what the method's own `_state` gives.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, NoReturn, get_args

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import check_is_fitted

from seqagg.aggregators import AGGREGATORS, make_aggregator
from seqagg.aggregators.base import Aggregator
from seqagg.errors import ModelFileError, SeqaggError
from seqagg.logodds import Kind
from seqagg.model_file import read_model, versions, write_model
from seqagg.songs import Songs

_SHARED = {"class_prior", "inverse_temperature", "doubts", "column_order", "class_order"}
"""Arrays that every method has."""

_MULTILABEL = {"biases", "thresholds"}
"""Arrays that come with several labels per song."""

_STATE = "state."
_TUPLE = "tuple"
_OPTIONAL: dict[str, Any] = {"trained_on": str, "trained_kind": str, "biased": bool}
"""Keys that a header may have -> what JSON holds there. The first files have no biases where songs
have one label each."""
_HEADER: dict[str, Any] = {
    "method": str,
    "parameters": dict,
    "columns": list | None,
    "classes": dict,
    "n_features_in": int,
    "columns_are_classes": bool,
    "multilabel": bool,
    "versions": dict,
}
"""Keys of the header -> what JSON holds there."""
_CLASS_TYPES: dict[str, type] = {
    "str": str,
    "bool": bool,
    "int64": int,
    "uint64": int,
    "float64": float,
}
"""dtypes of `classes_` that a file keeps -> what JSON holds of them."""
_ODD = (
    *(LookupError, TypeError, ValueError, RuntimeError),
    *(ArithmeticError, AttributeError, MemoryError),
)
"""What a state may raise that has the right names and says what cannot be."""


def save(
    aggregator: Aggregator, path: str | os.PathLike[str], *, trained_on: str | None = None
) -> None:
    """Write a fitted aggregator to a ``.safetensors`` file, whole or not at all.

    Parameters
    ----------
    aggregator : Aggregator
        Fitted, of a class in the table.
    path : path-like
        Ends in ``.safetensors``.
    trained_on : str, optional
        Checksum of the cache it was fitted to, from `seqagg.cache.checksum`; by default, that of
        the file it was loaded from, if it was.

    Raises
    ------
    ModelFileError
        When the class is not in the table, a parameter is no JSON, or the file cannot be written.
    sklearn.exceptions.NotFittedError
        When it is not fitted.
    """
    check_is_fitted(aggregator, "inverse_temperature_")
    try:
        header, arrays = pack(aggregator)
        if trained_on is not None:
            header["trained_on"] = trained_on
        _check_answers(aggregator, unpack(header, arrays))
    except ModelFileError as error:
        raise ModelFileError(error.message, file=path) from None
    write_model(path, header, arrays)


def load(path: str | os.PathLike[str]) -> Aggregator:
    """Read a fitted aggregator that `save` wrote; nothing in the file is run.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    Aggregator
        Answers as the one that was saved.

    Raises
    ------
    ModelFileError
        When the file is no model, damaged, or says what cannot be.
    """
    header, arrays = read_model(path)
    try:
        with np.errstate(all="ignore"):  # numbers that overflow are refused, not warned of
            loaded = unpack(header, arrays)
            _check_finite(loaded)
        return loaded
    except SeqaggError as error:
        raise ModelFileError(error.message, file=path) from None


def pack(aggregator: Aggregator) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Take a fitted aggregator apart: what JSON can hold, and arrays by name.

    Raises
    ------
    ModelFileError
        When the class is not in the table, or something fitted or set cannot be kept.
    """
    header = {
        "method": _name_of(type(aggregator)),
        "parameters": {
            name: _to_json(name, value) for name, value in aggregator._plain_parameters().items()
        },
        "columns": None if aggregator.columns_ is None else list(aggregator.columns_),
        "classes": _plain_classes(aggregator.classes_),
        "n_features_in": int(aggregator.n_features_in_),
        "columns_are_classes": bool(aggregator._columns_are_classes),
        "multilabel": bool(aggregator.multilabel_),
        "versions": aggregator._fitted_with or versions(),
    }
    if aggregator._trained_kind is not None:
        header["trained_kind"] = aggregator._trained_kind
    if aggregator._trained_on is not None:
        header["trained_on"] = aggregator._trained_on
    if aggregator.biases_ is not None and not aggregator.multilabel_:
        header["biased"] = True
    arrays: dict[str, Any] = {
        "class_prior": aggregator.class_prior_,
        "inverse_temperature": np.asarray(aggregator.inverse_temperature_, dtype=np.float64),
        "doubts": aggregator.doubts_,
        "column_order": np.asarray(aggregator._column_order, dtype=np.int64),
        "class_order": np.asarray(aggregator._class_order, dtype=np.int64),
    }
    if aggregator.biases_ is not None:
        arrays["biases"] = aggregator.biases_
    if aggregator.thresholds_ is not None:
        arrays["thresholds"] = aggregator.thresholds_
    return header, arrays | {_STATE + name: a for name, a in aggregator._state().items()}


def unpack(header: dict[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Aggregator:
    """Put a fitted aggregator together again from what `pack` gave, trusting nothing.

    Raises
    ------
    ModelFileError
        When header or arrays say what cannot be.
    """
    _check_header(header)
    aggregator = _unfitted(header["method"], header["parameters"])
    columns, n_columns = header["columns"], header["n_features_in"]
    classes = _read_classes(header["classes"])
    if n_columns < 1 or (columns is not None and len(columns) != n_columns):
        _refuse(f"{n_columns} columns do not go with the names of columns")
    if header["columns_are_classes"] and len(classes) != n_columns:
        _refuse(f"{len(classes)} classes cannot be {n_columns} columns")
    if aggregator.needs_class_columns and not header["columns_are_classes"]:
        _refuse(f"method {header['method']!r} needs columns that are classes")
    own = {name: array for name, array in arrays.items() if not name.startswith(_STATE)}
    multilabel = header["multilabel"]
    biased = header.get("biased", False)
    if biased and (multilabel or not aggregator._has_biases()):
        _refuse("biased is said of what has no biases, or always has them")
    more = _MULTILABEL if multilabel else {"biases"} if biased else set()
    if own.keys() != _SHARED | more:
        _refuse(f"holds the arrays {', '.join(sorted(own)) or 'of no method'}")
    aggregator._trained_on = header.get("trained_on")
    aggregator._trained_kind = header.get("trained_kind")
    aggregator._fitted_with = header["versions"]
    aggregator.columns_ = None if columns is None else tuple(columns)
    aggregator.n_features_in_ = n_columns
    aggregator.classes_ = classes
    aggregator._columns_are_classes = header["columns_are_classes"]
    aggregator.multilabel_ = multilabel
    aggregator.class_prior_ = _read_prior(own["class_prior"], len(classes), multilabel)
    aggregator.biases_ = aggregator.thresholds_ = None
    if "biases" in own:
        aggregator.biases_ = _read_biases(own["biases"], len(classes))
    if multilabel:
        aggregator.thresholds_ = _read_shares(own["thresholds"], "thresholds", len(classes))
    aggregator.doubts_ = _read_doubts(own["doubts"])
    aggregator._column_order = _read_order(own["column_order"], n_columns, "column_order")
    aggregator._class_order = _read_order(own["class_order"], len(classes), "class_order")
    state = {n.removeprefix(_STATE): a for n, a in arrays.items() if n.startswith(_STATE)}
    _set_state(aggregator, state)
    # Last, as in `fit`: its presence says that all the rest is there.
    aggregator.inverse_temperature_ = _read_inverse_temperature(own["inverse_temperature"])
    return aggregator


def _check_answers(aggregator: Aggregator, loaded: Aggregator) -> None:
    """Refuse to write what could not answer once it is loaded: a `_state` that forgets."""
    rng = np.random.default_rng(0)
    probe = Songs(rng.normal(0, 3, (12, aggregator.n_features_in_)), [0, 1, 4, 12])
    expected = aggregator.predict_log_proba(probe)
    try:
        found = loaded.predict_log_proba(probe)
    except AttributeError as error:
        _refuse(f"what was fitted would be lost in a file: {error}")
    if not np.allclose(found, expected, rtol=1e-6, atol=1e-9):
        _refuse("what was fitted would be lost in a file: loaded again it answers otherwise")


def _check_finite(loaded: Aggregator) -> None:
    """Refuse numbers that are finite each by itself, and drive an answer to infinity."""
    frames = [[-3.0], [3.0], [30.0], [-1e4], [1e4], [-3e38], [3e38]]
    probe = Songs(np.tile(frames, loaded.n_features_in_), [0, 2, 3, 4, 5, 6, 7])
    try:
        finite = np.isfinite(loaded.predict_log_proba(probe)).all()
    except _ODD as error:
        _refuse(f"cannot answer: {error}")
    if not finite:
        _refuse("its answers are not finite")


def _name_of(cls: type[Aggregator]) -> str:
    place = f"{cls.__module__}:{cls.__qualname__}"
    for name, known in AGGREGATORS.items():
        if known == place:
            return name
    raise ModelFileError(
        f"{cls.__name__} is not in the table of methods, so no file of it could be loaded; "
        f"seqagg.aggregators.AGGREGATORS['name'] = {place!r} puts it there"
    )


def _to_json(name: str, value: Any) -> Any:
    """Value of a parameter as JSON gives it back; a tuple is marked, to stay one."""
    if isinstance(value, np.generic):
        return _to_json(name, value.item())
    if isinstance(value, tuple):
        return {_TUPLE: [_to_json(name, item) for item in value]}
    if isinstance(value, list):
        return [_to_json(name, item) for item in value]
    if isinstance(value, Mapping) and _TUPLE not in value:
        return {str(key): _to_json(name, item) for key, item in value.items()}
    if isinstance(value, str | bool | int | float | None):
        return value
    raise ModelFileError(
        f"parameter {name} is a {type(value).__name__}, which a model file cannot keep: it holds "
        "numbers and text"
    )


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {_TUPLE}:
            return tuple(_from_json(value[_TUPLE]))
        return {key: _from_json(item) for key, item in value.items()}
    return value


def _plain_classes(classes: npt.NDArray[Any]) -> dict[str, Any]:
    dtype = "str" if classes.dtype.kind == "U" else classes.dtype.name
    if dtype not in _CLASS_TYPES:
        raise ModelFileError(f"labels of type {dtype} cannot be kept in a model file")
    return {"dtype": dtype, "values": classes.tolist()}


def _check_header(header: dict[str, Any]) -> None:
    if not _HEADER.keys() <= header.keys() <= (_HEADER | _OPTIONAL).keys():
        _refuse(f"the header has the keys {', '.join(sorted(header))}")
    for name, value in header.items():
        wanted = (_HEADER | _OPTIONAL)[name]
        # JSON's true is Python's True, which passes for an int.
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            _refuse(f"{name} is {value!r}")
    if not re.fullmatch("[0-9a-f]{64}", header.get("trained_on", "0" * 64)):
        _refuse("trained_on is no sha256")
    if header.get("trained_kind", "log_odds") not in get_args(Kind):
        _refuse(f"trained_kind is {header['trained_kind']!r}")
    columns = header["columns"]
    if columns is not None and not (
        all(isinstance(c, str) for c in columns) and len(set(columns)) == len(columns)
    ):
        _refuse("the names of the columns are not text, or not all different")


def _unfitted(method: str, parameters: dict[str, Any]) -> Aggregator:
    try:
        aggregator = make_aggregator(method, **_from_json(parameters))
        aggregator._check_parameters()
    except _ODD as error:
        _refuse(str(error))
    return aggregator


def _read_classes(plain: dict[str, Any]) -> npt.NDArray[Any]:
    dtype, values = plain.get("dtype"), plain.get("values")
    if not isinstance(dtype, str) or dtype not in _CLASS_TYPES:
        _refuse("the classes cannot be read")
    if not isinstance(values, list) or not values:
        _refuse("the classes cannot be read")
    if not all(type(value) is _CLASS_TYPES[dtype] for value in values):
        _refuse(f"not every class is of type {dtype}")
    try:
        classes = np.array(values, dtype=dtype)
    except OverflowError as error:
        _refuse(f"the classes cannot be read: {error}")
    if not np.array_equal(np.unique(classes), classes):
        _refuse("the classes are not sorted, or not all different")
    return classes


def _read_array(
    array: npt.NDArray[Any], name: str, dtype: type, shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    if array.dtype != dtype or array.shape != shape:
        _refuse(f"{name} has dtype {array.dtype} and shape {array.shape}, not {shape}")
    return array


def _read_shares(array: npt.NDArray[Any], name: str, n: int) -> npt.NDArray[np.float64]:
    shares = _read_array(array, name, np.float64, (n,))
    if not ((shares > 0) & (shares < 1)).all():
        _refuse(f"{name} are not between 0 and 1")
    return shares


def _read_biases(array: npt.NDArray[Any], n_classes: int) -> npt.NDArray[np.float64]:
    biases = _read_array(array, "biases", np.float64, (n_classes,))
    if not np.isfinite(biases).all():
        _refuse("biases are not finite")
    return biases


def _read_prior(
    array: npt.NDArray[Any], n_classes: int, multilabel: bool
) -> npt.NDArray[np.float64]:
    if multilabel:
        return _read_shares(array, "class_prior", n_classes)
    prior = _read_array(array, "class_prior", np.float64, (n_classes,))
    if not ((prior > 0).all() and abs(prior.sum() - 1) < 1e-9):
        _refuse("class_prior holds no probabilities that sum to 1")
    return prior


def _read_doubts(array: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    doubts = _read_array(array, "doubts", np.float64, (array.size,))
    if not ((doubts >= 0) & (doubts <= 1)).all():
        _refuse("doubts are not between 0 and 1")
    return doubts


def _read_order(array: npt.NDArray[Any], n: int, name: str) -> npt.NDArray[np.int64]:
    order = _read_array(array, name, np.int64, (n,))
    if not np.array_equal(np.sort(order), np.arange(n)):
        _refuse(f"{name} is no order of 0 .. {n - 1}")
    return order


def _read_inverse_temperature(array: npt.NDArray[Any]) -> float:
    value = float(_read_array(array, "inverse_temperature", np.float64, ()))
    if not (np.isfinite(value) and value > 0):
        _refuse(f"inverse_temperature is {value}")
    return value


def _set_state(aggregator: Aggregator, state: dict[str, npt.NDArray[Any]]) -> None:
    for name, array in state.items():
        if not np.isfinite(array).all():
            _refuse(f"the state is not finite in {name}")
    try:
        aggregator._set_state(state)
        used = aggregator._state()
    except _ODD as error:
        message = error.message if isinstance(error, SeqaggError) else str(error)
        _refuse(f"the state does not fit: {message}")
    if used.keys() != state.keys():
        _refuse(f"the state holds {', '.join(sorted(state)) or 'no array'}")
    for name, array in state.items():
        kept = np.asarray(used[name])
        if (kept.dtype, kept.shape, kept.tobytes()) != (array.dtype, array.shape, array.tobytes()):
            _refuse(f"the state is read as something else in {name}")


def _refuse(message: str) -> NoReturn:
    raise ModelFileError(message)
