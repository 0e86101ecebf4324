"""How many threads numerical libraries use, decided in one place.

The matrices of a song are too small to share. On two busy cores PyTorch on two threads took four
times as long as on one, a logistic regression thirty times; and with one thread the answer does not
depend on the number of cores. What can run side by side (the networks of several folds) does so in
threads of its own.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

from threadpoolctl import threadpool_limits

_lock = threading.Lock()
_inside = 0
_before = 1


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Keep BLAS, OpenMP and PyTorch to one thread per caller within the block.

    Callers in several threads share the limit: the first sets it, the last takes it back.
    """
    global _inside, _before
    torch = sys.modules.get("torch")  # whoever has not imported it does not use it
    with threadpool_limits(1):
        with _lock:
            if torch and _inside == 0:
                _before = torch.get_num_threads()
                torch.set_num_threads(1)
            _inside += bool(torch)
        try:
            yield
        finally:
            with _lock:
                _inside -= bool(torch)
                if torch and _inside == 0:
                    torch.set_num_threads(_before)
