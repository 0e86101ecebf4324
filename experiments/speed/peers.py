"""Which other libraries are there to be measured?"""  # noqa: D400

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from threadpoolctl import threadpool_info

from experiments.runs import one_thread

PEERS = ("hmmlearn", "pandas", "polars", "duckdb", "sequentia", "pomegranate", "skorch")
"""Libraries that do a part of what seqagg does; the extra ``speed`` brings those not needed."""

BELOW = ("numpy", "numba", "scipy", "scikit-learn", "pyarrow", "torch")
"""Libraries that ways are made of."""


def installed(name: str) -> bool:
    """Whether a library can be imported."""
    return find_spec(name) is not None


def versions() -> dict[str, str]:
    """Version of every library that takes part."""
    return {name: version(name) for name in (*PEERS, *BELOW) if name in BELOW or installed(name)}


def remark() -> str:
    """What is left out, in a line; empty if nothing is."""
    missing = [name for name in PEERS if not installed(name)]
    if not missing:
        return ""
    return f"left out, not installed: {', '.join(missing)} (pip install 'seqagg[speed]')"


@contextlib.contextmanager
def held_to_one_thread() -> Iterator[None]:
    """Keep every library to one thread, and make sure that they kept to it.

    Raises
    ------
    RuntimeError
        If one has more in the end. A library that is imported within the block can set PyTorch's
        back to all cores; an operation on ten numbers then took five thousand times as long.
    """
    import torch

    with one_thread():
        yield
        _check_threads(torch.get_num_threads())


def _check_threads(n_torch: int) -> None:
    pools = {Path(pool["filepath"]).name: pool["num_threads"] for pool in threadpool_info()}
    many = [name for name, n in {**pools, "torch": n_torch}.items() if n > 1]
    if many:
        raise RuntimeError(f"not held to one thread: {', '.join(many)}")


@contextlib.contextmanager
def guests() -> Iterator[None]:
    """Let other libraries in, silent, and without a lasting change of settings."""
    import sklearn

    # Read when polars is first imported.
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    logger = logging.getLogger("hmmlearn.base")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        # sequentia turns scikit-learn's metadata routing on when it is imported.
        with sklearn.config_context(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
