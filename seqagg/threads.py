"""How many threads numerical libraries use, decided in one place.

The matrices of a song are too small to share. On two busy cores PyTorch on two threads took four
times as long as on one, a logistic regression thirty times; and with one thread the answer does not
depend on the number of cores. What can run side by side (the networks of several folds) does so in
threads of its own.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Future, ThreadPoolExecutor, wait
from functools import partial
from numbers import Integral
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

from seqagg.errors import ParameterError

T = TypeVar("T")

_lock = threading.Lock()
_inside = 0
_before: dict[str, Callable[[], object]] = {}
"""What is limited in the whole process -> what takes that back."""


def check_n_jobs(n_jobs: int | None) -> None:
    """Refuse what joblib would not count as a number of threads."""
    if n_jobs is not None and (not isinstance(n_jobs, Integral) or n_jobs == 0):
        raise ParameterError(f"n_jobs={n_jobs!r} is neither None nor a number but 0")


@contextlib.contextmanager
def ahead(items: Iterable[T], n: int) -> Iterator[Iterator[T]]:
    """Make items in a thread of their own, up to `n` of them before they are asked for.

    It starts at once. What goes wrong in it is raised where the item would have been used, and
    leaving the block waits for no more than the item at hand.
    """
    source, end = iter(items), object()
    pool = ThreadPoolExecutor(1)
    waiting = deque(pool.submit(_next, source, end) for _ in range(n))

    def in_turn() -> Iterator[T]:
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(_next, source, end))
            yield item

    try:
        yield in_turn()
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def behind(do: Callable[[T], object]) -> Iterator[Callable[[T], None]]:
    """Do something with items in a thread of its own, while the next is made.

    One item waits at most. What goes wrong is raised where the next is handed over, or at the end
    of the block.
    """
    pool = ThreadPoolExecutor(1)
    last: Future[object] | None = None

    def hand_over(item: T) -> None:
        nonlocal last
        if last is not None:
            last.result()
        last = pool.submit(do, item)

    try:
        yield hand_over
        if last is not None:
            last.result()
    finally:
        pool.shutdown(cancel_futures=True)


def count_threads(n_jobs: int | None) -> int:
    """Threads that joblib would count, whatever processes it may be told to use elsewhere."""
    from joblib import effective_n_jobs, parallel_config
    from joblib.parallel import get_active_backend

    with parallel_config(backend="threading", n_jobs=get_active_backend()[1]):
        return int(effective_n_jobs(n_jobs))


def side_by_side(tasks: Sequence[Callable[[Callable[[], None]], T]], n_jobs: int | None) -> list[T]:
    """Run tasks in threads, as many at a time as joblib counts jobs, and give their results.

    Each task is handed a function to call now and then, which ends it once another has failed, or
    Ctrl-C was pressed: Python waits for its threads, and threads of PyTorch that it does not wait
    for bring it down.
    """
    stopped = threading.Event()

    def go_on() -> None:
        if stopped.is_set():
            raise CancelledError

    n_threads = min(count_threads(n_jobs), len(tasks))
    if n_threads <= 1:
        return [task(go_on) for task in tasks]
    with ThreadPoolExecutor(n_threads) as pool:
        running = [pool.submit(task, go_on) for task in tasks]
        try:
            for future in wait(running, return_when=FIRST_EXCEPTION).done:
                future.result()  # raises what went wrong
            return [future.result() for future in running]
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _next(source: Iterator[Any], end: object) -> Any:
    return next(source, end)


@functools.lru_cache(maxsize=1)
def _pools(n_modules: int) -> ThreadpoolController:
    """Libraries with threads of their own: to look for them takes 10 ms, to limit them 0.04.

    They come with modules, so they are looked for again when there are more of these.
    """
    return ThreadpoolController()


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Keep BLAS, OpenMP and PyTorch to one thread per caller within the block.

    OpenMP counts for each thread of Python by itself. The other limits are those of the process,
    and callers in several threads share them: the first sets them, the last takes them back.
    """
    pools = _pools(len(sys.modules))
    _limit_process(pools)
    try:
        with pools.select(user_api="openmp").limit(limits=1):
            yield
    finally:
        _free_process()


def _limit_process(pools: ThreadpoolController) -> None:
    global _inside
    torch = sys.modules.get("torch")  # whoever has not imported it does not use it
    with _lock:
        for library in pools.select(user_api="blas").lib_controllers:
            if library.filepath not in _before:
                _before[library.filepath] = partial(_set_blas, library, library.num_threads)
                _set_blas(library, 1)
        if torch and "torch" not in _before:
            _before["torch"] = partial(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
        _inside += 1


def _free_process() -> None:
    global _inside
    with _lock:
        _inside -= 1
        if _inside == 0:
            for restore in _before.values():
                restore()
            _before.clear()


def _set_blas(library: Any, n: int) -> None:
    """Set it from whatever thread: threadpoolctl heeds the one alone that first set OpenBLAS."""
    getattr(library, "_real_set_num_threads", library.set_num_threads)(n)
