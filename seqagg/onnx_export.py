"""A fitted aggregator as an ONNX graph: log-odds in, song probabilities out.

Conventions
-----------
Inputs of the graph are ``log_odds``, float32 of shape (batch, time, columns), columns in the order
of training, and ``lengths``, int64 of shape (batch,); its output is ``probabilities``, float32 of
shape (batch, classes). Frames from the length on are padding, whatever they hold; a NaN in a frame
makes it a missing one. A song without a frame has the class prior.

Inside, columns and classes are in the canonical order, and numbers are doubles but for the GRU,
which runtimes have in float32 alone. In the comments b, t, c, k and s are songs, frames, columns,
classes and states.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from seqagg.aggregators import AGGREGATORS
from seqagg.aggregators.base import Aggregator
from seqagg.calibration import prior_scores
from seqagg.errors import ParameterError
from seqagg.files import atomic_write
from seqagg.onnx_graph import IMPOSSIBLE, TINY, Batch, Graph, certain, start_scores
from seqagg.onnx_networks import gru, mil

if TYPE_CHECKING:
    from onnx import ModelProto

Array = npt.NDArray[Any]

OPSET = 18
SUFFIX = ".onnx"


def export_onnx(model: Aggregator, path: str | os.PathLike[str]) -> None:
    """Write a fitted aggregator as an ONNX file, whole or not at all.

    Parameters
    ----------
    model : Aggregator
        Fitted: `majority`, `mean`, `logodds`, `hmm`, `gru`, or `mil` over log-odds.
    path : path-like
        Ends in ``.onnx``.

    Raises
    ------
    ParameterError
        For other methods, and where the package onnx is not installed.
    """
    if Path(path).suffix != SUFFIX:
        raise ParameterError(f"{path}: an ONNX file ends in {SUFFIX}")
    data = to_onnx(model).SerializeToString()
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def to_onnx(model: Aggregator) -> ModelProto:
    """Graph of a fitted aggregator; see `export_onnx`."""
    method = _method(model)
    if method not in _METHODS:
        raise ParameterError(
            f"method {method!r} has no ONNX graph; there are {', '.join(_METHODS)}"
        )
    try:
        import onnx
    except ImportError:
        raise ParameterError("export needs the package onnx: pip install 'seqagg[onnx]'") from None
    graph = Graph()
    songs = Batch(graph, model)
    _answer(graph, model, songs, _METHODS[method](graph, model, songs))
    helper, floats, ints = onnx.helper, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    n_columns, n_classes = model.n_features_in_, len(model.classes_)
    made = helper.make_model(
        helper.make_graph(
            graph.nodes,
            f"seqagg {method}",
            [
                helper.make_tensor_value_info("log_odds", floats, ["batch", "time", n_columns]),
                helper.make_tensor_value_info("lengths", ints, ["batch"]),
            ],
            [helper.make_tensor_value_info("probabilities", floats, ["batch", n_classes])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=8,  # that of the opset: runtimes refuse what is newer than themselves
        producer_name="seqagg",
    )
    helper.set_model_props(made, model_card(model))
    onnx.checker.check_model(made, full_check=True)
    return made


def model_card(model: Aggregator) -> dict[str, str]:
    """What an exported model says about itself; lists and numbers as JSON."""
    from importlib.metadata import version

    calibration: dict[str, Any] = {"inverse_temperature": model.inverse_temperature_}
    if model.biases_ is not None:
        calibration["biases"] = model.biases_.tolist()
    if len(model.doubts_) and not model.multilabel_:
        likely = np.maximum(1 - model.doubts_, TINY)
        calibration["held_out_log_loss"] = float(-np.log(likely).mean())
        calibration["held_out_songs"] = len(likely)
    return {
        "method": _method(model),
        "seqagg_version": version("seqagg"),
        "columns": json.dumps(None if model.columns_ is None else list(model.columns_)),
        "classes": json.dumps(model.classes_.tolist()),
        "task": "multilabel" if model.multilabel_ else "multiclass",
        "input": "log-odds of frames, nats; lengths in frames; a NaN marks a missing frame",
        "output": "P(class | song), classes in the order given here",
        "calibration": json.dumps(calibration),
        "thresholds": json.dumps(None if model.thresholds_ is None else model.thresholds_.tolist()),
    }


def _method(model: Aggregator) -> str:
    """Name of its method, or of its class if it is not in the table."""
    place = f"{type(model).__module__}:{type(model).__qualname__}"
    return next((name for name, known in AGGREGATORS.items() if known == place), place)


def _answer(g: Graph, model: Aggregator, songs: Batch, log_scores: str) -> None:
    """From log scores (b, k) in the canonical order to the output."""
    scores = g("Mul", log_scores, model.inverse_temperature_)
    if model.biases_ is not None:
        scores = g("Add", scores, model.biases_[model._class_order])
    scores = g("Gather", scores, model._rank_of_class(), axis=1)
    p = g.logistic(scores) if model.multilabel_ else g("Softmax", scores, axis=1)
    p = g("Where", songs.empty, model.class_prior_[None], p)
    from onnx import TensorProto, helper

    g.nodes.append(helper.make_node("Cast", [p], ["probabilities"], to=TensorProto.FLOAT))


# The methods: log scores (b, k) in the canonical order.


def _majority(g: Graph, model: Any, songs: Batch) -> str:
    if model.multilabel_:
        approved = g.cast(g("GreaterOrEqual", songs.frames, 0.0), np.float64)
        votes = g.reduce("Sum", g("Mul", approved, songs.mask), 1)
        no = g("Add", g("Sub", songs.count, votes), songs.mean_improbability())
        return str(g("Sub", g.log(g("Add", votes, songs.mean_probability())), g.log(no)))
    top = g.reduce("Max", songs.frames, 2, keep=True)
    best = g.cast(g("Equal", songs.frames, top), np.float64)
    share = g("Div", best, g.reduce("Sum", best, 2, keep=True))
    votes = g.reduce("Sum", g("Mul", share, songs.mask), 1)  # (b, k)
    n = len(model.classes_)
    falling, _ = g("TopK", votes, np.array([n]), axis=1, n_outputs=2)
    first, last = (g("Slice", falling, *map(_ints, ends)) for ends in ((0, n - 1, 1), (1, n, 1)))
    gaps = g("Sub", first, last)  # (b, k - 1)
    gaps = g("Where", g("Greater", gaps, 1e-9), gaps, 1.0)
    one = g("Add", g("Mul", songs.count, 0.0), 1.0)
    gap = g.reduce("Min", g("Concat", gaps, one, axis=1), 1, keep=True)
    log_votes = g.log(g("Add", votes, g("Mul", gap, songs.mean_probability())))
    log_share = g("Sub", log_votes, g("Log", g("Add", songs.count, 1.0)))
    return certain(g, str(log_share), model._certainty)


def _ints(value: int) -> Array:
    return np.array([value])


def _mean(g: Graph, model: Any, songs: Batch) -> str:
    log_mean = g.log(songs.mean_probability())
    if not model.multilabel_:
        return log_mean
    return str(g("Sub", log_mean, g.log(songs.mean_improbability())))


def _logodds(g: Graph, model: Any, songs: Batch) -> str:
    mean = songs.mean(songs.frames)
    return mean if model.multilabel_ else g.log_logistic(mean)


def _hmm(g: Graph, model: Any, songs: Batch) -> str:
    likelihood = _of_classes(g, model, g("Div", _log_likelihoods(g, model, songs), songs.count))
    prior = prior_scores(model.class_prior_[model._class_order], model.multilabel_)
    if model.decision == "likelihood":
        return str(g("Add", g("Mul", likelihood, songs.count), prior))
    a, b, c = model.weights_
    average = g("Mul", start_scores(g, model._start, songs), float(b))
    return str(g("Add", g("Add", g("Mul", likelihood, float(a)), average), float(c) * prior))


def _of_classes(g: Graph, model: Any, per_frame: str) -> str:
    """Log likelihoods of the models (b, m) as those of the classes; see `HMMAggregator`."""
    models, n_classes = list(model._models), len(model.classes_)
    least = g.reduce("Min", per_frame, 1, keep=True)
    index = [models.index(k) if k in models else len(models) for k in range(n_classes)]
    found = g("Gather", g("Concat", per_frame, least, axis=1), np.array(index), axis=1)
    if not model.multilabel_:
        return str(found)
    background = g("Gather", per_frame, np.array([models.index(n_classes)]), axis=1)
    return str(g("Sub", found, background))


def _log_likelihoods(g: Graph, model: Any, songs: Batch) -> str:
    """Log likelihood of each song under each HMM (b, m), by the forward recursion as a Scan.

    Carried from frame to frame is the log probability of each state before the frame is heard,
    given those before it (b, m, s), and the log likelihood so far. Models of fewer states than
    the largest have states that are never entered.
    """
    from onnx import TensorProto, helper

    models = list(model._models.values())
    n, s = len(models), max(m.n_states for m in models)
    log_start = np.full((1, n, s), IMPOSSIBLE)
    log_trans = np.full((1, n, s, s), IMPOSSIBLE)
    for i, m in enumerate(models):
        log_start[0, i, : m.n_states] = _log(m.startprob)
        log_trans[0, i, : m.n_states, : m.n_states] = _log(m.transmat)
    batch = g("Shape", songs.count, end=1)
    ahead = g("Expand", log_start, g("Concat", batch, np.array([n, s]), axis=0))
    total = g("Expand", np.zeros((1, n)), g("Concat", batch, np.array([n]), axis=0))

    # One frame more, that is not there: onnxruntime dies of a Scan over none.
    pause = g("Concat", batch, np.array([1, model.n_features_in_]), axis=0)
    frames = g("Concat", songs.frames, g("Expand", 0.0, pause), axis=1)
    silence = g("Expand", np.array(False), g("Concat", batch, np.array([1, 1]), axis=0))
    inside = g("Concat", songs.inside, silence, axis=1)

    body = Graph(g)
    density = _log_density(body, model, models, s, "frame")  # (b, m, s)
    after = body("Add", "ahead", density)
    gain = body.log_sum_exp(after, 2)  # (b, m)
    share = body("Sub", after, body.unsqueeze(gain, 2))
    ways = body("Add", body.unsqueeze(share, 3), log_trans)  # (b, m, from s, to s)
    there = body.unsqueeze("there", 1)  # (b, 1, 1)
    states = {
        "next_ahead": body("Where", there, body.log_sum_exp(ways, 2), "ahead"),
        "next_total": body("Where", "there", body("Add", "total", gain), "total"),
    }
    for name, state in states.items():
        body.nodes.append(helper.make_node("Identity", [state], [name]))

    def value(name: str, shape: list[Any], kind: int = TensorProto.DOUBLE) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    scanned = helper.make_graph(
        body.nodes,
        "forward",
        [
            value("ahead", [None, n, s]),
            value("total", [None, n]),
            value("frame", [None, model.n_features_in_]),
            value("there", [None, 1], TensorProto.BOOL),
        ],
        [value("next_ahead", [None, n, s]), value("next_total", [None, n])],
    )
    _, found = g(
        "Scan",
        ahead,
        total,
        frames,
        inside,
        body=scanned,
        num_scan_inputs=2,
        scan_input_axes=[1, 1],
        n_outputs=2,
    )
    return str(found)


def _log_density(g: Graph, model: Any, models: list[Any], s: int, frame: str) -> str:
    """Log density of a frame (b, c) under all states (b, m, s)."""
    n, c = len(models), model.n_features_in_
    whitening = model._whitening
    how = "MatMul" if whitening.basis.ndim == 2 else "Mul"  # of many columns, each by itself
    white = g(how, g("Sub", frame, whitening.center), whitening.basis)
    means, roots = np.zeros((n, s, c)), np.zeros((n, s, *models[0].covars.shape[1:]))
    constant = np.zeros((1, n, s))
    for i, m in enumerate(models):
        rows = slice(0, m.n_states)
        means[i, rows], roots[i, rows], log_determinant = m.means, *_inverse_roots(m.covars)
        constant[0, i, rows] = log_determinant - 0.5 * c * np.log(2 * np.pi)
    if models[0].covars.ndim == 2:
        each = g("Mul", g("Sub", g("Unsqueeze", white, np.array([1, 2])), means), roots)
    else:
        columns = roots.transpose(2, 0, 1, 3).reshape(c, -1)
        shift = np.einsum("nsc,nscd->nsd", means, roots).reshape(1, -1)
        each = g("Sub", g("MatMul", white, columns), shift)
        each = g("Reshape", each, np.array([-1, n, s, c]))
    return str(g("Sub", constant, g("Mul", g.reduce("SumSquare", each, 3), 0.5)))


def _inverse_roots(covars: Array) -> tuple[Array, Array]:
    """What makes frames less the mean independent and of unit variance, and its log determinant."""
    if covars.ndim == 2:
        roots = 1 / np.sqrt(covars)
        return roots, np.log(roots).sum(axis=1)
    roots = np.asarray(np.linalg.inv(np.linalg.cholesky(covars)).swapaxes(1, 2))
    return roots, np.linalg.slogdet(roots)[1]


def _log(probability: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(probability), IMPOSSIBLE)


_METHODS: dict[str, Callable[[Graph, Any, Batch], str]] = {
    "majority": _majority,
    "mean": _mean,
    "logodds": _logodds,
    "hmm": _hmm,
    "gru": gru,
    "mil": mil,
}
