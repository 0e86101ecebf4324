"""An ONNX graph in the making, and the batch of songs that enters it.

Conventions
-----------
A value is the name of a node's output. Numbers are doubles where nothing else is said: runtimes
have most of ONNX for these too, and log likelihoods of long songs need them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from seqagg.aggregators.base import Aggregator
from seqagg.aggregators.start import LEAST_PROBABILITY, AverageStart
from seqagg.certainty import Certainty
from seqagg.logodds import LIMIT

Array = npt.NDArray[Any]

TINY = float(np.finfo(np.float64).tiny)
"""Smallest number whose log is taken."""

IMPOSSIBLE = -1e300
"""Log of a probability of 0, finite so that no difference of two of them is NaN."""


class Graph:
    """Nodes and constants that grow; calling it adds a node.

    Parameters
    ----------
    outer : Graph, optional
        The graph in which this one is a body; its values can be used here.
    """

    def __init__(self, outer: Graph | None = None) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = outer.constants if outer else []
        self._count: list[int] = outer._count if outer else [0]

    def __call__(
        self,
        kind: str,
        *inputs: str | float | np.generic | Array,
        n_outputs: int = 1,
        **attributes: Any,
    ) -> Any:
        """Add a node; numbers and arrays among its inputs become constants.

        Returns the name of its output, or a list of them if there are several.
        """
        from onnx import helper

        names = [x if isinstance(x, str) else self._constant(x) for x in inputs]
        outputs = [self._name(kind) for _ in range(n_outputs)]
        self.nodes.append(helper.make_node(kind, names, outputs, **attributes))
        return outputs[0] if n_outputs == 1 else outputs

    def _constant(self, value: float | np.generic | Array) -> str:
        from onnx import numpy_helper

        array = np.asarray(value)
        name = self._name("constant")
        # Contiguous, but without the dimension that np.ascontiguousarray gives to a number.
        self.constants.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def _name(self, kind: str) -> str:
        self._count[0] += 1
        return f"{kind.lower()}_{self._count[0]}"

    # What ONNX takes several nodes for.

    def reduce(self, kind: str, x: str, axis: int, *, keep: bool = False) -> str:
        """Reduce along one axis."""
        return str(self(f"Reduce{kind}", x, np.array([axis]), keepdims=int(keep)))

    def cast(self, x: str, dtype: npt.DTypeLike) -> str:
        """Convert to another type."""
        from onnx.helper import np_dtype_to_tensor_dtype

        return str(self("Cast", x, to=np_dtype_to_tensor_dtype(np.dtype(dtype))))

    def unsqueeze(self, x: str, axis: int) -> str:
        """Put in an axis of length 1."""
        return str(self("Unsqueeze", x, np.array([axis])))

    def logistic(self, x: str) -> str:
        """Logistic function; runtimes' own is coarse, and flat far out."""
        return str(self("Div", 1.0, self("Add", 1.0, self("Exp", self("Neg", x)))))

    def log_logistic(self, x: str) -> str:
        """Log of the logistic function."""
        away = self("Exp", self("Neg", self("Abs", x)))
        return str(self("Sub", self("Min", x, 0.0), self("Log", self("Add", 1.0, away))))

    def log(self, x: str, least: float = TINY) -> str:
        """Log of what is at least so large."""
        return str(self("Log", self("Max", x, least)))

    def log1p(self, x: str) -> str:
        """log(1 + x) with all digits of a small x (Kahan's way)."""
        one_more = self("Add", x, 1.0)
        rounded = self("Sub", one_more, 1.0)
        gone = self("Equal", rounded, 0.0)
        safe = self("Where", gone, 1.0, rounded)
        found = self("Div", self("Mul", x, self("Log", one_more)), safe)
        return str(self("Where", gone, x, found))

    def log_sum_exp(self, x: str, axis: int) -> str:
        """Log of the sum of exponentials along an axis."""
        top = self.reduce("Max", x, axis, keep=True)
        total = self.reduce("Sum", self("Exp", self("Sub", x, top)), axis)
        return str(self("Add", self("Log", total), self("Squeeze", top, np.array([axis]))))


class Batch:
    """The songs of the batch, as methods want them.

    Attributes
    ----------
    frames : str
        (b, t, c), doubles, 0 outside the songs.
    inside : str
        (b, t, 1), whether a frame is there.
    mask : str
        The same as doubles.
    count : str
        (b, 1), number of frames, at least 1, doubles.
    empty : str
        (b, 1), whether there is none.
    """

    def __init__(self, graph: Graph, model: Aggregator) -> None:
        g = self._graph = graph
        x = "log_odds"
        if not np.array_equal(model._column_order, np.arange(model.n_features_in_)):
            x = g("Gather", x, model._column_order, axis=2)
        self.time = g("Gather", g("Shape", x), np.array(1), axis=0)
        steps = g("Range", np.array(0), self.time, np.array(1))
        within = g("Less", g.unsqueeze(steps, 0), g.unsqueeze("lengths", 1))  # (b, t)
        missing = g.reduce("Max", g.cast(g("IsNaN", x), np.float32), 2)
        there = g("And", within, g("Less", missing, np.float32(0.5)))
        self.inside = g.unsqueeze(there, 2)
        x = g("Where", self.inside, x, np.float32(0))
        self.single = self._bounded(x)
        self.frames = g.cast(self.single, np.float64)
        self.mask = g.cast(self.inside, np.float64)
        n = g.reduce("Sum", self.mask, 1)
        self.empty = g("Equal", n, 0.0)
        self.count = g("Max", n, 1.0)

    def _bounded(self, x: str) -> str:
        """Finite log-odds, as `seqagg.logodds.to_log_odds` has them."""
        g, infinite = self._graph, self._graph("IsInf", x)
        size = g("Where", infinite, np.float32(0), x)
        ends = []
        for sign in (np.float32(1), np.float32(-1)):
            furthest = g.unsqueeze(g.reduce("Max", g("Mul", size, sign), 2), 2)
            beyond = g("Max", g("Add", furthest, np.float32(1)), np.float32(LIMIT))
            ends.append(g("Mul", beyond, sign))
        end = g("Where", g("Greater", x, np.float32(0)), *ends)
        return str(g("Where", infinite, end, x))

    def mean(self, x: str) -> str:
        """Mean over the frames of a song of (b, t, any): (b, any)."""
        g = self._graph
        return str(g("Div", g.reduce("Sum", g("Mul", x, self.mask), 1), self.count))

    def mean_probability(self) -> str:
        """Mean probability of each column (b, c)."""
        return self.mean(self._graph.logistic(self.frames))

    def mean_improbability(self) -> str:
        """Mean of 1 - p (b, c)."""
        return self.mean(self._graph.logistic(self._graph("Neg", self.frames)))


def start_scores(g: Graph, start: AverageStart, songs: Batch) -> str:
    """What `AverageStart.scores` gives, (b, k)."""
    scores = g("Add", g("MatMul", songs.mean(songs.frames), start.weight), start.bias)
    if start.share != 0:
        scores = add_log_mean_probability(g, scores, start.share, songs)
    return certain(g, scores, start.certainty)


def add_log_mean_probability(g: Graph, scores: str, share: float, songs: Batch) -> str:
    """Scores and a share of the log mean probability, (b, k)."""
    log_mean = g.log(songs.mean_probability(), LEAST_PROBABILITY)
    return str(g("Add", scores, g("Mul", log_mean, share)))


def certain(g: Graph, scores: str, certainty: Certainty) -> str:
    """What `Certainty.of` makes of scores, (b, k)."""
    if certainty.own == 0:
        return scores
    p = g("Softmax", g("Mul", scores, certainty.sure), axis=1)
    return str(g("Add", g("Mul", scores, certainty.before), g("Mul", p, certainty.own)))
