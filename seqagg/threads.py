"""How many threads numerical libraries use, decided in one place.

The matrices of a song are too small to share. On two busy cores PyTorch on two threads took four
times as long as on one, a logistic regression thirty times; and with one thread the answer does not
depend on the number of cores. What can run side by side (the networks of several folds) does so in
threads of its own.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from threadpoolctl import threadpool_limits


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Keep BLAS, OpenMP and PyTorch to one thread per caller within the block."""
    torch = sys.modules.get("torch")  # whoever has not imported it does not use it
    before = torch.get_num_threads() if torch else 1
    with threadpool_limits(1):
        if torch:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            if torch:
                torch.set_num_threads(before)
