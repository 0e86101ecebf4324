"""What parameters of methods may be: each check refuses the others with `ParameterError`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from numbers import Real

import numpy as np
from sklearn.base import BaseEstimator

from seqagg.errors import ParameterError

_MOST_SEED = 2**32 - 1
"""Of NumPy, scikit-learn and hmmlearn; PyTorch would take more."""


@contextlib.contextmanager
def plain_numbers(estimator: BaseEstimator) -> Iterator[None]:
    """Make parameters that are numbers of NumPy Python's own within the block.

    PyTorch does not take them everywhere. Afterwards they are the same objects as before, which
    scikit-learn's `clone` counts on.
    """
    given = estimator.get_params(deep=False)
    numbers = {name: value for name, value in given.items() if isinstance(value, np.generic)}
    vars(estimator).update({name: value.item() for name, value in numbers.items()})
    try:
        yield
    finally:
        vars(estimator).update(numbers)


def check_count(name: str, value: object) -> None:
    """Refuse what is no whole number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ParameterError(f"{name}={value!r} is no whole number above 0")


def check_range(name: str, value: object, low: float, high: float) -> None:
    """Refuse what is no number from `low` to `high`."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and low <= value <= high):  # type: ignore[operator]
        raise ParameterError(f"{name}={value!r} is not in [{low}, {high}]")


def check_above_0(name: str, value: object) -> None:
    """Refuse what is no number above 0, or infinite."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and 0 < value < math.inf):  # type: ignore[operator]
        raise ParameterError(f"{name}={value!r} must be above 0")


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Refuse what is none of some names."""
    if not isinstance(value, str) or value not in allowed:
        raise ParameterError(f"{name}={value!r} is none of {', '.join(allowed)}")


def check_flag(name: str, value: object) -> None:
    """Refuse what is neither true nor false."""
    if not isinstance(value, bool | np.bool_):
        raise ParameterError(f"{name}={value!r} is neither True nor False")


def check_seed(name: str, value: object) -> None:
    """Refuse what generators of random numbers cannot start from."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not (whole and 0 <= value <= _MOST_SEED):  # type: ignore[operator]
        raise ParameterError(f"{name}={value!r} is no whole number from 0 to {_MOST_SEED}")
