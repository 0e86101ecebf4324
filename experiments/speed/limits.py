"""How fast can this machine read memory and multiply matrices, on one thread?

No way can be faster than reading its scores once, or, where it multiplies matrices, than those
products. Both are measured in the same run as what they are compared with.
"""  # noqa: D400

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from experiments.speed.contest import Contest, Sizes, Way, measure, no_comparison


def read_rate(n_values: int) -> float:
    """Bytes per second at which float32 values are read from memory, by the fastest of three."""
    values = np.ones(n_values, np.float32)
    ways = [
        Way("sum", values.sum),
        Way("minimum", values.min),
        Way("dot product with itself", lambda: values @ values),
    ]
    return _best(ways, values.nbytes)


def product_rate(n: int, dtype: type[np.floating]) -> float:
    """Floating point operations per second of the product of two n x n matrices."""
    a = np.ones((n, n), dtype)
    return _best([Way("product", lambda: a @ a)], 2.0 * n**3)


def side_by_side(n: int) -> float:
    """How many times as fast products are on all cores as on one, a thread for each.

    With other programs on the machine it may be little more than 1, and then nothing that runs on
    all cores can gain more.
    """
    a, n_cores = np.ones((n, n)), os.cpu_count() or 1
    with ThreadPoolExecutor(n_cores) as pool:
        ways = [
            Way("all cores", lambda: [*pool.map(lambda _: a @ a, range(4 * n_cores))]),
            Way("one", lambda: [a @ a for _ in range(4 * n_cores)]),
        ]
        contest = Contest("limits", "", Sizes(), ways, compare=no_comparison)
        return measure(contest, rounds=7, budget=5.0).metrics["one"]["ratio"]


def limits(quick: bool) -> dict[str, float]:
    """Rates of this machine: of reading in GB/s, of products in GFLOP/s; gain of all cores."""
    n = 128 if quick else 1024
    return {
        "read_gb_per_second": read_rate(10**5 if quick else 5 * 10**7) / 1e9,
        "product_gflops_float32": product_rate(n, np.float32) / 1e9,
        "product_gflops_float64": product_rate(n, np.float64) / 1e9,
        "gain_of_all_cores": side_by_side(n // 2),
    }


def machine() -> dict[str, str | int]:
    """Processor, and how many of it."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {"processor": model, "cores": os.cpu_count() or 1, "python": platform.python_version()}


def _best(ways: Sequence[Way], work: float) -> float:
    contest = Contest("limits", "", Sizes(), ways, compare=no_comparison)
    found = measure(contest, rounds=7, budget=5.0).metrics
    return max(work / row["seconds"] for row in found.values())
