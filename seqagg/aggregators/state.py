"""Arrays of a model file: text among them, and whether they are what they must be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from seqagg.errors import ModelFileError
from seqagg.parsing import parse_json

Array = npt.NDArray[Any]


_LARGEST = np.float64(1e100)
"""Farther than any score goes, and its square is a double still."""


def check_floats(
    arrays: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], about: str = ""
) -> None:
    """Refuse arrays of a model file that are not float64 of the shapes they must have, or huge.

    Raises
    ------
    ModelFileError
        Names the first that is not, or that must not be there at all.
    """
    for name, array in arrays.items():
        if array.shape != shapes.get(name) or array.dtype != np.float64:
            raise ModelFileError(
                f"array {name}{about} is {array.dtype} of shape {array.shape}, "
                f"not float64 of shape {shapes.get(name)}"
            )
        if not (np.abs(array) <= _LARGEST).all():
            raise ModelFileError(f"array {name}{about} holds a number beyond {_LARGEST:g}")


def are_floats(arrays: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether arrays are floats of these names and shapes, none without a finite square."""
    found = {name: array.shape for name, array in arrays.items()}
    floats = all(a.dtype.kind == "f" and (np.abs(a) <= _LARGEST).all() for a in arrays.values())
    return found == shapes and floats


def text_array(value: Any) -> Array:
    """JSON as an array of bytes, for a `_state` that has more to say than numbers."""
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)


def from_text_array(array: Array) -> Any:
    """Take back what `text_array` gave; ValueError where it is none."""
    return parse_json(array.astype(np.uint8).tobytes())
