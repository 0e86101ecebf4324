"""Networks as parts of an ONNX graph.

Conventions
-----------
Those of `seqagg.onnx_export`: b, t, c and k are songs, frames, columns and classes, the latter two
in the canonical order. The GRU is in float32, as runtimes have it, all else in doubles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from seqagg.aggregators.start import CLIP, AverageStart
from seqagg.certainty import Certainty
from seqagg.errors import ParameterError
from seqagg.onnx_graph import (
    IMPOSSIBLE,
    TINY,
    Batch,
    Graph,
    add_log_mean_probability,
    certain,
    start_scores,
)

Array = npt.NDArray[Any]


def _average_of_networks(
    g: Graph, model: Any, songs: Batch, scores: Callable[[Graph, Any, Batch], str]
) -> str:
    found = [scores(g, network, songs) for network in model.networks_]
    total = found[0]
    for other in found[1:]:
        total = g("Add", total, other)
    return str(g("Div", total, float(len(found))))


def gru(g: Graph, model: Any, songs: Batch) -> str:
    """Log scores of `GRUAggregator`, (b, k)."""
    # The GRU must not stop at a missing frame, so those that are there move together.
    place = g("Sub", g("CumSum", g.cast(songs.inside, np.int64), np.array(1)), np.array(1))
    index = g("Where", songs.inside, place, songs.time)  # (b, t, 1); the last place is for none
    shape = g("Shape", songs.single)
    # A song more, of a single frame: onnxruntime dies of a GRU over none.
    room = g("Expand", np.float32(0), g("Add", shape, np.array([1, 1, 0])))
    together = g("ScatterElements", room, g("Expand", index, shape), songs.single, axis=1)
    lengths = g.cast(g("Squeeze", songs.count, np.array([1])), np.int32)
    lengths = g("Concat", lengths, np.array([1], np.int32), axis=0)
    steps = g("Range", np.array(0), g("Add", songs.time, np.array(1)), np.array(1))
    inside = g("Less", g.unsqueeze(steps, 0), g.cast(songs.count, np.int64))
    heard = _Heard(together, lengths, g.unsqueeze(inside, 2))
    return _average_of_networks(g, model, songs, lambda g, n, s: _song_network(g, n, s, heard))


class _Heard:
    """Frames without gaps, for the GRUs."""

    def __init__(self, frames: str, lengths: str, inside: str) -> None:
        self.frames = frames  # (b + 1, t + 1, c), float32
        self.lengths = lengths  # (b + 1,), int32
        self.inside = inside  # (b, t + 1, 1)


def _song_network(g: Graph, network: Any, songs: Batch, heard: _Heard) -> str:
    p = _arrays(network)
    x = g("Div", g("Sub", heard.frames, p["center"]), p["spread"])
    x = g("Clip", x, np.float32(-CLIP), np.float32(CLIP))
    x = g("Transpose", x, perm=[1, 0, 2])  # (t + 1, b + 1, c)
    ways = [("forwards", "forward")]
    if network.backwards is not None:
        ways.append(("backwards", "reverse"))
    means, highest = [], []
    for stack, direction in ways:
        h = g("Transpose", _gru_layers(g, p, stack, direction, x, heard.lengths), perm=[1, 0, 2])
        h = g("Slice", h, np.array([0]), np.array([-1]), np.array([0]))  # (b, t + 1, hidden)
        total = g.reduce("Sum", g.cast(g("Where", heard.inside, h, np.float32(0)), np.float64), 1)
        means.append(g("Div", total, songs.count))
        high = g.reduce("Max", g("Where", heard.inside, h, np.float32(-1)), 1)
        highest.append(g.cast(high, np.float64))
    pooled = g("Concat", *means, *highest, axis=1)
    correction = _linear(g, p, "output", pooled)
    certainty = Certainty(*p["certainty"].tolist())
    start = AverageStart(_double(p["weight"]), _double(p["bias"]), float(p["share"]), certainty)
    return str(g("Add", g("Mul", start_scores(g, start, songs), float(p["scale"])), correction))


def _gru_layers(
    g: Graph, p: Mapping[str, Array], stack: str, direction: str, x: str, lengths: str
) -> str:
    """States of the last layer (t, b, hidden); padding is neither heard nor does it matter."""
    layer = 0
    while f"{stack}.weight_ih_l{layer}" in p:
        w, r, wb, rb = (
            _gates(p[f"{stack}.{name}_l{layer}"])
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        x, _ = g(
            "GRU",
            x,
            w[None],
            r[None],
            np.concatenate([wb, rb])[None],
            lengths,
            hidden_size=r.shape[1],
            direction=direction,
            linear_before_reset=1,
            n_outputs=2,
        )
        x = g("Squeeze", x, np.array([1]))
        layer += 1
    return x


def _gates(array: Array) -> Array:
    """PyTorch's gates r, z, n in the order of ONNX: z, r, h."""
    r, z, n = np.split(array, 3)
    return np.concatenate([z, r, n])


def mil(g: Graph, model: Any, songs: Batch) -> str:
    """Log scores of `MILAggregator`, (b, k)."""
    if model.network is not None:
        raise ParameterError("a network of your own has no ONNX graph here: export it by itself")
    pool = _POOLINGS[model.pooling]
    return _average_of_networks(
        g, model, songs, lambda g, network, songs: _pooled_network(g, network, songs, pool)
    )


def _pooled_network(g: Graph, network: Any, songs: Batch, pool: Any) -> str:
    p = _arrays(network.frame)
    x = g("Div", g("Sub", songs.frames, _double(p["center"])), _double(p["spread"]))
    x = g("Clip", x, -CLIP, CLIP)
    correction = _linear(g, p, "output", g("Relu", _linear(g, p, "hidden", x)))
    plain = g("Add", g("MatMul", songs.frames, _double(p["weight"])), _double(p["bias"]))
    scores = g("Add", plain, correction)  # (b, t, k)
    pooled = pool(g, _arrays(network.pooling), songs, scores)
    if network.share > 0:
        pooled = add_log_mean_probability(g, pooled, float(network.share.item()), songs)
        pooled = certain(g, pooled, Certainty(*network.certainty.tolist()))
    return str(g("Mul", pooled, float(network.scale.item())))


def _average_pooling(g: Graph, p: Mapping[str, Array], songs: Batch, scores: str) -> str:
    return songs.mean(scores)


def _max_pooling(g: Graph, p: Mapping[str, Array], songs: Batch, scores: str) -> str:
    return g.reduce("Max", g("Where", songs.inside, scores, IMPOSSIBLE), 1)


def _attention_pooling(g: Graph, p: Mapping[str, Array], songs: Batch, scores: str) -> str:
    hidden = g("Tanh", _linear(g, p, "hidden", g("Div", scores, 4.0)))
    return _weighted(g, songs, scores, _linear(g, p, "output", hidden))


def _auto_pooling(g: Graph, p: Mapping[str, Array], songs: Batch, scores: str) -> str:
    return _weighted(g, songs, scores, g("Mul", scores, _double(p["alpha"])))


def _weighted(g: Graph, songs: Batch, scores: str, attention: str) -> str:
    weight = g("Softmax", g("Where", songs.inside, attention, IMPOSSIBLE), axis=1)
    return g.reduce("Sum", g("Mul", g("Mul", weight, songs.mask), scores), 1)


def _linear_softmax_pooling(g: Graph, p: Mapping[str, Array], songs: Batch, scores: str) -> str:
    yes = g("Mul", g.logistic(scores), songs.mask)
    no = g.logistic(g("Neg", scores))
    hit, miss = (g.reduce("Sum", g("Mul", yes, x), 1) for x in (yes, no))
    return str(g("Sub", g.log(hit, TINY), g.log(miss, TINY)))


def _noisy_or_pooling(g: Graph, p: Mapping[str, Array], songs: Batch, scores: str) -> str:
    # softplus(x) = max(x, 0) + log(1 + exp(-|x|)); log(exp(n) - 1) = n + log(1 - exp(-n)), which
    # for a small n is log(n).
    softplus = g("Add", g("Max", scores, 0.0), g.log1p(g("Exp", g("Neg", g("Abs", scores)))))
    total = g.reduce("Sum", g("Mul", softplus, songs.mask), 1)
    total = g("Max", total, TINY)
    small = g("Less", total, 1e-8)
    share = g("Sub", 1.0, g("Exp", g("Neg", total)))
    return str(g("Add", total, g("Log", g("Where", small, total, share))))


_POOLINGS: dict[str, Callable[[Graph, Mapping[str, Array], Batch, str], str]] = {
    "average": _average_pooling,
    "max": _max_pooling,
    "attention": _attention_pooling,
    "auto": _auto_pooling,
    "linear-softmax": _linear_softmax_pooling,
    "noisy-or": _noisy_or_pooling,
}


def _arrays(network: Any) -> dict[str, Array]:
    return {name: value.detach().cpu().numpy() for name, value in network.state_dict().items()}


def _linear(g: Graph, p: Mapping[str, Array], layer: str, x: str) -> str:
    weight, bias = _double(p[f"{layer}.weight"]).T, _double(p[f"{layer}.bias"])
    return str(g("Add", g("MatMul", x, weight), bias))


def _double(array: Array) -> Array:
    return array.astype(np.float64)
