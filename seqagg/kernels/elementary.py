"""What compiled loops share: how they are compiled and given arrays, and their exp and log.

Conventions
-----------
exp, log and expit have no call and no branch, so that the loop around them can be wide. The last
digit or two of a number may be wrong. NaN stays NaN. They are for other loops to call, not for
Python.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba.extending import overload

Array = npt.NDArray[Any]

LOG_2, LOG_2_REST = 0.693147180369123816490, 1.90821492927058770002e-10
"""log(2) in two parts, so that a multiple of the first is exact."""


def jit(function: Any) -> Any:
    """Compile once, for the disk too, and let go of Python's lock.

    Without fastmath each number is computed alike in the wide and the narrow part of a loop.
    """
    return numba.njit(cache=True, nogil=True, error_model="numpy")(function)


def jit_fused(function: Any) -> Any:
    """Compile likewise; a product and a sum may become one instruction, which rounds less."""
    return numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})(function)


def jit_summed(function: Any) -> Any:
    """Compile likewise; sums may be taken in any order, without which they cannot be wide."""
    options = {"contract", "reassoc"}
    return numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=options)(function)


def readable(array: Array, dtype: type | None = None) -> Array:
    """Contiguous and read-only: numba would compile the loops anew for each other combination."""
    view = np.require(array, dtype, ["C", "A"]).view()
    view.flags.writeable = False
    return view


@jit
def exp(x):  # type: ignore[no-untyped-def]
    """Exponential of a number that is not above 0; it is 0 below -708, or of float32 below -87.

    It is 2 ** n * exp(r): n stands in the last bits of a float so large that its step is 1, and
    |r| <= log(2) / 2 leaves less than the last digit to a polynomial. In float64 that is the one
    which meets exp at Chebyshev's nodes, off by 2e-17 of it: two steps fewer than Taylor's.
    """
    return _exp(x)  # type: ignore[no-untyped-call]


def _exp(x):  # type: ignore[no-untyped-def]
    """Stand for one of the two below, as the type of x has it."""
    raise NotImplementedError


@overload(_exp, jit_options={"error_model": "numpy", "fastmath": {"contract"}})
def _exp_of(x):  # type: ignore[no-untyped-def]
    return _exp_of_float32 if x == numba.float32 else _exp_of_float64


def _exp_of_float64(x):  # type: ignore[no-untyped-def]
    shifted = x * 1.4426950408889634 + 6755399441055744.0  # 1 / log(2); 1.5 * 2 ** 52
    n = shifted - 6755399441055744.0
    r = (x - n * LOG_2) - n * LOG_2_REST
    power = 2.5100375832561234e-08
    power = power * r + 2.7620075879983367e-07
    power = power * r + 2.7557268480310024e-06
    power = power * r + 2.4801521322368692e-05
    power = power * r + 0.00019841269863040545
    power = power * r + 0.0013888888917196719
    power = power * r + 0.008333333333330065
    power = power * r + 0.041666666666624164
    power = power * r + 0.16666666666666669
    power = power * r + 0.5000000000000001
    power = power * r + 1.0
    power = power * r + 1.0
    bits = (np.float64(shifted).view(np.int64) + 1023) << 52
    found = power * np.int64(bits).view(np.float64)
    return 0.0 if x < -708.0 else found


def _exp_of_float32(x):  # type: ignore[no-untyped-def]
    shifted = x * np.float32(1.442695041) + np.float32(12582912)  # 1 / log(2); 1.5 * 2 ** 23
    n = shifted - np.float32(12582912)
    r = (x - n * np.float32(0.693359375)) + n * np.float32(2.12194440e-4)  # log(2) in two parts
    power = np.float32(1 / 5040)
    power = power * r + np.float32(1 / 720)
    power = power * r + np.float32(1 / 120)
    power = power * r + np.float32(1 / 24)
    power = power * r + np.float32(1 / 6)
    power = power * r + np.float32(0.5)
    power = power * r + np.float32(1)
    power = power * r + np.float32(1)
    bits = np.int32((np.float32(shifted).view(np.int32) + np.int32(127)) << np.int32(23))
    found = power * bits.view(np.float32)
    return np.float32(0) if x < np.float32(-87) else found


@jit
def expit(x):  # type: ignore[no-untyped-def]
    """Logistic function."""
    e = exp(-abs(x))
    return (1.0 if x > 0 else e) / (1.0 + e)


@jit
def log(x):  # type: ignore[no-untyped-def]
    """Logarithm of a positive normal number.

    x is 2 ** n * m with m between the roots of 1/2 and 2; log(m) = 2 artanh((m - 1) / (m + 1)).
    """
    bits = np.float64(x).view(np.int64)
    n = (bits - 4604544271217802189) >> 52  # the bits of sqrt(1/2)
    m = np.int64(bits - (n << 52)).view(np.float64)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    series = 1 / 21
    series = series * z + 1 / 19
    series = series * z + 1 / 17
    series = series * z + 1 / 15
    series = series * z + 1 / 13
    series = series * z + 1 / 11
    series = series * z + 1 / 9
    series = series * z + 1 / 7
    series = series * z + 1 / 5
    series = series * z + 1 / 3
    found = n * LOG_2 + (2.0 * s + (2.0 * s * (z * series) + n * LOG_2_REST))
    return x if x != x else found
