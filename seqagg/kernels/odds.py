"""Log-odds of all frames, as `seqagg.logodds` defines them, at a tenth of its price.

Conventions
-----------
Scores and log-odds (nats) are float32 of shape (n_frames, n_columns); in between is float64, so
that they differ from those of the definition by a rounding at most. NaN stays NaN.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from seqagg.kernels.elementary import exp, jit, log, readable
from seqagg.logodds import PROBABILITY_MARGIN

Scores = npt.NDArray[np.float32]

_LEAST = float(np.finfo(np.float32).min)
"""Where differences of logits end that are themselves near there."""


def log_odds_of_probability(probability: Scores) -> Scores:
    """`seqagg.logodds.from_probability` of float32."""
    out = np.empty(probability.shape, dtype=np.float32)
    _of_probability(readable(probability, np.float32).reshape(-1), out.reshape(-1))
    return out


def log_odds_of_logits(logits: Scores) -> Scores:
    """`seqagg.logodds.from_logits` of float32, of two columns at least."""
    out = np.empty(logits.shape, dtype=np.float32)
    _of_logits(readable(logits, np.float32), out)
    return out


@jit
def _of_probability(probability, out):  # type: ignore[no-untyped-def]
    low, high = np.float64(PROBABILITY_MARGIN), np.float64(1 - PROBABILITY_MARGIN)
    for i in range(len(probability)):
        p = np.float64(probability[i])
        p = low if p < low else (high if p > high else p)  # a NaN stays one
        out[i] = log(p / (1.0 - p))


@jit
def _of_logits(logits, out):  # type: ignore[no-untyped-def]
    """Column k has z_k - log(sum of exp(z) without k), each z less the highest one.

    The highest one has weight 1 in it; the others are weighed against the second, lest all of them
    vanish where they are alone.
    """
    n_columns = logits.shape[1]
    z, weight = np.empty(n_columns), np.empty(n_columns)
    for frame in range(len(logits)):
        row, found = logits[frame], out[frame]
        top = 0
        for k in range(1, n_columns):
            top = k if (row[k] > row[top]) | (row[k] != row[k]) else top
        for k in range(n_columns):
            below = np.float64(row[k]) - np.float64(row[top])
            z[k] = _LEAST if below < _LEAST else below  # a NaN stays one
        second = -np.inf
        for k in range(n_columns):
            second = max(second, z[k]) if k != top else second
        for k in range(n_columns):
            weight[k] = exp(min(z[k] - second, 0.0))
        weight[top] = 0.0
        rest = 0.0
        for k in range(n_columns):
            rest += weight[k]
        scale = exp(second)
        for k in range(n_columns):
            found[k] = z[k] - log(1.0 + scale * (rest - weight[k]))
        found[top] = -(second + log(rest))
