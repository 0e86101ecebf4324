"""Frame classifiers of every make as one thing: a function from frames to scores.

Conventions
-----------
Frames have shape (n_frames, ...), scores (n_frames, n_columns). What a model needs (device, number
format, a fixed batch) is seen to here; whether its scores make sense is for `checks` to say.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from seqagg.errors import ParameterError
from seqagg.files import check_regular
from seqagg.logodds import LIMIT, Kind

Array = npt.NDArray[Any]
Score = Callable[[Array], Any]

_ONNX_TYPES = {
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
}

_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
"""Where an ONNX file runs, the first that is there; who wants another gives a session."""

_FATAL = 4
"""onnxruntime's level of what it must write to standard error itself."""

_ACCEPTED = (
    "a Keras model, a torch.nn.Module, a fitted scikit-learn estimator, the path of an .onnx file "
    "or a function from frames to scores"
)


@dataclass(frozen=True)
class FrameModel:
    """A frame classifier, ready to be asked.

    Attributes
    ----------
    score : callable
        Frames of shape (n_frames, ...) -> scores of shape (n_frames, n_columns).
    columns : tuple of str
        Names of the columns.
    features : tuple of str, optional
        Names of the columns of the table that the model was fitted to.
    """

    score: Score
    columns: tuple[str, ...]
    features: tuple[str, ...] | None = None

    def by_name(self) -> FrameModel:
        """The same model, whose features have been put in order by their names.

        scikit-learn cannot know that, and would warn of an array without names.
        """

        def score(frames: Array) -> Any:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "X does not have valid feature names")
                return self.score(frames)

        return replace(self, score=score)


def frame_model(
    model: Any, kind: Kind, columns: Sequence[str] | None = None, *, coded: bool = False
) -> FrameModel:
    """Find out how to ask a frame classifier.

    Parameters
    ----------
    model : Keras model, torch.nn.Module, scikit-learn estimator, path of an ONNX file, callable
        As users have it. It is not trained, and left in the mode in which it was given.
    kind : {"probability", "logit", "log_odds"}
        Of an estimator, ``probability`` asks for `predict_proba`, others for `decision_function`.
    columns : sequence of str, optional
        Names of the columns; an estimator's own classes by default. Its classes are put where the
        columns of their names are, whatever the order; a column that it has not learnt is as
        unlikely as can be.
    coded : bool
        The classes of an estimator are positions of columns, not their names.

    Raises
    ------
    ParameterError
        For what is no model, or does not have these columns.
    """
    names = None if columns is None else tuple(str(column) for column in columns)
    if isinstance(model, str | os.PathLike):
        return FrameModel(_of_onnx(_session(model), os.fspath(model)), _needed(names))
    if _is_a(model, "onnxruntime", "InferenceSession"):
        return FrameModel(_of_onnx(model), _needed(names))
    # On the PyTorch backend a Keras model is a torch.nn.Module too.
    if _is_a(model, "keras", "Model") or _is_a(model, "tf_keras", "Model"):
        return FrameModel(_of_keras(model), _needed(names))
    if _is_a(model, "torch", "nn.Module"):
        return FrameModel(_of_torch(model), _needed(names))
    if hasattr(model, "predict_proba") or hasattr(model, "decision_function"):
        return _of_estimator(model, kind, names, coded)
    if callable(model) and not isinstance(model, type):
        return FrameModel(model, _needed(names))
    raise ParameterError(f"{type(model).__name__} is no frame classifier; that is {_ACCEPTED}")


def to_numpy(scores: Any) -> Array:
    """Array from an array, or from a tensor on any device."""
    if hasattr(scores, "detach"):
        scores = scores.detach().cpu()
        if not hasattr(np, str(scores.dtype).removeprefix("torch.")):  # bfloat16
            scores = scores.float()
        return np.asarray(scores.numpy())
    return np.asarray(scores)


def _needed(names: tuple[str, ...] | None) -> tuple[str, ...]:
    if names is None:
        raise ParameterError("columns are missing: the names of what the model's outputs stand for")
    return names


def _is_a(model: Any, module: str, name: str) -> bool:
    """Whether it is of a class of a library; whoever has not imported that has none."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is not None and isinstance(model, found)


def _of_keras(model: Any) -> Score:
    def score(frames: Array) -> Any:
        return model.predict(frames, batch_size=len(frames), verbose=0)

    return score


def _of_torch(module: Any) -> Score:
    import torch

    def score(frames: Array) -> Any:
        weights = chain(module.parameters(), module.buffers())
        like = next((tensor for tensor in weights if tensor.is_floating_point()), None)
        batch = torch.from_numpy(np.require(frames, requirements=["C", "W"]))
        if like is not None:
            batch = batch.to(like.device, like.dtype if batch.is_floating_point() else None)
        with _at_rest(module), torch.no_grad():
            return module(batch)

    return score


@contextlib.contextmanager
def _at_rest(module: Any) -> Iterator[None]:
    """Switch dropout off and batch normalisation to what it has learnt, and back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _session(path: str | os.PathLike[str]) -> Any:
    name = os.fspath(path)
    if not name.lower().endswith(".onnx"):
        raise ParameterError(f"not an .onnx file; load it, and give {_ACCEPTED}", file=name)
    check_regular(name, ParameterError)
    try:
        import onnxruntime
    except ImportError:
        raise ParameterError(
            "an ONNX file needs onnxruntime: pip install 'seqagg[onnx]'", file=name
        ) from None
    providers = [one for one in _PROVIDERS if one in onnxruntime.get_available_providers()]
    # What goes wrong is told once, by the error, and not by what it would write in between.
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    try:
        return onnxruntime.InferenceSession(name, options, providers, enable_fallback=0)
    except Exception as error:  # of a dozen kinds, all of onnxruntime's own
        raise ParameterError(f"cannot be read as ONNX: {_one_line(error)}", file=name) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _of_onnx(session: Any, name: str | None = None) -> Score:
    inputs, all_outputs = session.get_inputs(), session.get_outputs()
    outputs = [output for output in all_outputs if output.type in _ONNX_TYPES]
    try:
        found = [f"{o.name}: {o.type}{o.shape}" for o in (*inputs, *all_outputs)]
    except UnicodeDecodeError:
        raise ParameterError("the ONNX model has a name that is no UTF-8", file=name) from None
    if len(inputs) != 1 or len(outputs) != 1:
        raise ParameterError(
            f"the ONNX model has {len(inputs)} inputs and {len(outputs)} outputs that are arrays "
            f"of floats ({', '.join(found)}), not one of each; give a function that runs it",
            file=name,
        )
    (given,), (wanted,) = inputs, outputs
    batch = given.shape[0] if given.shape else None
    fixed = batch if isinstance(batch, int) and batch > 0 else None

    def score(frames: Array) -> Any:
        frames = frames.astype(_ONNX_TYPES.get(given.type, frames.dtype), copy=False)
        size = fixed or len(frames)
        parts = []
        for first in range(0, len(frames), size):
            part = frames[first : first + size]
            rows = np.minimum(np.arange(size), len(part) - 1)  # a fixed batch is filled up
            try:
                (found,) = session.run([wanted.name], {given.name: part[rows] if fixed else part})
            except Exception as error:  # as above
                what = f"fails on frames of shape {part.shape[1:]}: {_one_line(error)}"
                raise ParameterError(f"the ONNX model {what}", file=name) from None
            parts.append(found[: len(part)])
        return np.concatenate(parts)

    return score


def _of_estimator(
    model: Any, kind: Kind, columns: tuple[str, ...] | None, coded: bool
) -> FrameModel:
    method = "predict_proba" if kind == "probability" else "decision_function"
    if not hasattr(model, method):
        others = "probability" if method == "decision_function" else "logit or log_odds"
        raise ParameterError(
            f"{type(model).__name__} has no {method}, so it gives no {kind}; it gives {others}"
        )
    ask = getattr(model, method)
    classes = getattr(model, "classes_", None)
    if classes is None:
        raise ParameterError(f"{type(model).__name__} has no classes_: is it fitted?")
    features = getattr(model, "feature_names_in_", None)
    known = None if features is None else tuple(str(name) for name in features)
    if isinstance(classes, list):  # one array of 0 and 1 for each of several labels
        return FrameModel(lambda frames: _positives(ask(frames), classes), _needed(columns), known)
    names = columns or tuple(str(label) for label in classes)
    places = _places(classes, names, coded)
    if len(places) == len(names) and (places == np.arange(len(places))).all():
        return FrameModel(lambda frames: _both(ask(frames), kind, classes), names, known)

    def score(frames: Array) -> Array:
        found = _both(ask(frames), kind, classes)
        if found.shape[1] != len(places):
            raise ParameterError(
                f"{method} gives {found.shape[1]} columns for {len(places)} classes"
            )
        scores = np.empty((len(found), len(names)), found.dtype)
        scores[:] = _unlikely(found, kind)
        scores[:, places] = found
        return scores

    return FrameModel(score, names, known)


def _places(classes: Array, columns: tuple[str, ...], coded: bool) -> npt.NDArray[np.int64]:
    """Column of each class of an estimator."""
    names = [str(label) for label in classes]
    whole = np.issubdtype(np.asarray(classes).dtype, np.integer)
    if not coded and set(names) <= set(columns):
        return np.array([columns.index(name) for name in names])
    if whole and min(classes) >= 0 and max(classes) < len(columns):
        return np.asarray(classes, dtype=np.int64)
    raise ParameterError(
        f"the estimator has the classes {', '.join(names)}, the columns are {', '.join(columns)}"
    )


def _both(scores: Any, kind: Kind, classes: Array) -> Array:
    """Scores of two classes, where a decision function gives that of the second alone."""
    found = to_numpy(scores)
    if found.ndim != 1 or len(classes) != 2:
        return found
    half = found / 2 if kind == "logit" else found
    return np.stack([-half, half], axis=1)


def _positives(scores: Sequence[Array], classes: list[Array]) -> Array:
    """P(label) from one array of P(absent), P(present) for each label."""
    columns = []
    for found, values in zip(scores, classes, strict=True):
        there = [i for i, value in enumerate(values) if value == 1]
        columns.append(found[:, there[0]] if there else np.zeros(len(found)))
    return np.stack(columns, axis=1)


def _unlikely(scores: Array, kind: Kind) -> Any:
    """Score of a class that the model has never seen, for each frame or for all."""
    if kind == "probability":
        return 0.0
    if kind == "log_odds":
        return -LIMIT
    return logsumexp(scores, axis=1, keepdims=True) - LIMIT
