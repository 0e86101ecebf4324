"""Fitted HMMs as arrays of a model file, and back, with all that can be wrong with them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from seqagg.aggregators.base import Array
from seqagg.aggregators.hmm_start import Shape
from seqagg.aggregators.state import check_floats, from_text_array
from seqagg.errors import ModelFileError
from seqagg.kernels.hmm import GaussianParameters

PARTS = ("startprob", "transmat", "means", "covars")
"""Arrays of a model."""

_LEAST_COVARIANCE, _FARTHEST_MEAN = 1e-18, 1e9
"""In whitened frames; the square of the one over the other is what float32 still holds."""

_LARGEST_COVARIANCE = 1e9
"""Of whitened frames it is 1 on average over classes: of one at most all frames over its own."""


def read_shape(array: Array) -> Shape:
    """Shape of the models as the file has it: a list of text."""
    n_states, *words = from_text_array(array)
    if type(n_states) is not int or [type(word) for word in words] != [str, str]:
        raise ModelFileError("the shape cannot be read")
    return Shape(n_states, *words)


def read_model(arrays: Mapping[str, Array], k: int, n_columns: int) -> GaussianParameters:
    """Model of class ``k``, checked as far as its numbers go."""
    missing = [part for part in PARTS if f"{k}.{part}" not in arrays]
    if missing:
        raise ModelFileError(f"the model of class {k} lacks {', '.join(missing)}")
    found = GaussianParameters(*(arrays[f"{k}.{part}"] for part in PARTS))
    n = found.startprob.size
    diagonal, full = (n, n_columns), (n, n_columns, n_columns)
    parts = {name: getattr(found, name) for name in PARTS}
    covars = full if found.covars.ndim == 3 else diagonal
    shapes = {"startprob": (n,), "transmat": (n, n), "means": diagonal, "covars": covars}
    check_floats(parts, shapes, f" of class {k}")
    if n == 0:
        raise ModelFileError(f"the model of class {k} has no state")
    for name, p in (("startprob", found.startprob), ("transmat", found.transmat)):
        if (p < 0).any() or not np.allclose(p.sum(axis=-1), 1, rtol=0, atol=1e-6):
            raise ModelFileError(f"{name} of class {k} holds no probabilities")
    if found.covars.ndim == 2:
        variances, positive = found.covars, bool((found.covars > 0).all())
    else:
        variances = np.diagonal(found.covars, axis1=1, axis2=2)
        symmetric = np.allclose(found.covars, found.covars.swapaxes(1, 2))
        positive = symmetric and bool((np.linalg.eigvalsh(found.covars) > 0).all())
    if not positive:
        raise ModelFileError(f"a covariance of class {k} is not positive")
    if variances.min() < _LEAST_COVARIANCE or np.abs(found.means).max() > _FARTHEST_MEAN:
        raise ModelFileError(f"a state of class {k} is too narrow or too far for float32")
    if variances.max() > _LARGEST_COVARIANCE:
        raise ModelFileError(f"a state of class {k} is too wide for whitened frames")
    return found


def is_fitted(arrays: Mapping[str, Array], n_columns: int) -> bool:
    """Whether arrays that were kept are a fitted model and the history of its likelihood."""
    history = arrays.get("history", np.empty(0))
    if history.dtype != np.float64 or history.ndim != 1 or history.size == 0:
        return False
    if not all(np.isfinite(array).all() for array in arrays.values()):
        return False
    try:
        read_model({f"0.{name}": array for name, array in arrays.items()}, 0, n_columns)
    except ModelFileError:
        return False
    return True
