"""Who does many independent tasks: this process, several processes, or a Ray cluster.

Conventions
-----------
A task is ``function(shared, item)``; ``function`` stands in a module, so that every process finds
it, ``shared`` travels to a process (with Ray: to a machine) once, and results come back in the
order in which they are done. No more than a few tasks per worker are handed out at a time. A task
whose worker dies, or which meets an error of the operating system, is done again, a few times;
tasks are therefore such that doing one twice does no harm. All other errors end the work.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextvars import ContextVar
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait as wait_for_exit
from typing import Any, Literal, TypeVar, get_args

from seqagg.errors import ParameterError, SeqaggError
from seqagg.threads import one_thread_each

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

EngineName = Literal["local", "ray"]

_AHEAD = 2
"""Tasks handed out per worker: one at work, one at hand."""

_OFTEN = 2.0
"""Seconds after which a cluster is asked anew how large it is; it grows and shrinks."""

_PAUSE = 0.5
"""Seconds before a task that failed is done again; twice as long each time."""


class TaskError(SeqaggError):
    """A task that failed as often as it was tried."""


@dataclass(frozen=True)
class Engine:
    """Where tasks are done.

    Parameters
    ----------
    name : {"local", "ray"}
    jobs : int, optional
        Processes of this machine, 1 being this process itself; with Ray and no address, the cores
        of the cluster that is started. All cores by default with Ray, else 1.
    address : str, optional
        Of a running Ray cluster: ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``. Without it, one is
        started on this machine for as long as the tasks take.
    retries : int
        How often a task is done again.
    """

    name: EngineName = "local"
    jobs: int | None = None
    address: str | None = None
    retries: int = 3

    def __post_init__(self) -> None:
        if self.name not in get_args(EngineName):
            raise ParameterError(f"engine {self.name!r} is neither local nor ray")
        if self.jobs is not None and self.jobs < 1:
            raise ParameterError(f"jobs={self.jobs} is below 1")
        if self.address is not None and self.name != "ray":
            raise ParameterError("an address is that of a Ray cluster; choose the engine ray")
        if self.retries < 0:
            raise ParameterError(f"retries={self.retries} is below 0")

    @property
    def alone(self) -> bool:
        """Whether tasks are done in this very process."""
        return self.name == "local" and (self.jobs or 1) == 1

    def run(
        self, function: Callable[[S, T], R], shared: S, items: Sequence[T]
    ) -> Iterator[tuple[int, R]]:
        """Do a task for every item.

        Yields
        ------
        int
            Position of the item.
        result
            What the function returned for it.

        Raises
        ------
        TaskError
            When a task failed for good: its workers died, or met an error of the system.
        """
        if self.alone:
            yield from self._in_this_process(function, shared, items)
        elif self.name == "local":
            yield from self._in_processes(function, shared, items)
        else:
            yield from self._on_ray(function, shared, items)

    def _in_this_process(
        self, function: Callable[[S, T], R], shared: S, items: Sequence[T]
    ) -> Iterator[tuple[int, R]]:
        tries = _Tries(self.retries)
        for i, item in enumerate(items):
            while True:
                try:
                    result = function(shared, item)
                except OSError as error:
                    tries.again(i, error)
                else:
                    yield i, result
                    break

    def _in_processes(
        self, function: Callable[[S, T], R], shared: S, items: Sequence[T]
    ) -> Iterator[tuple[int, R]]:
        tries, missing, n = _Tries(self.retries), list(range(len(items)))[::-1], self.jobs or 1
        while missing:
            # A process that dies takes the pool with it; what it had in hand is done by the next.
            with ProcessPoolExecutor(n, get_context("spawn"), _begin, (function, shared)) as pool:
                handed: dict[Future[R], int] = {}
                try:
                    while missing or handed:
                        while missing and len(handed) < _AHEAD * n:
                            handed[pool.submit(_do, items[missing[-1]])] = missing[-1]
                            missing.pop()
                        for done in wait(handed, return_when=FIRST_COMPLETED).done:
                            i = handed[done]
                            try:
                                result = done.result()
                            except OSError as error:
                                tries.again(i, error)
                                missing.append(i)
                            else:
                                yield i, result
                            del handed[done]
                except BrokenProcessPool as error:
                    for i in sorted(handed.values(), reverse=True):
                        tries.again(i, error, pause=False)
                        missing.append(i)
                finally:
                    pool.shutdown(wait=False, cancel_futures=True)

    def _on_ray(
        self, function: Callable[[S, T], R], shared: S, items: Sequence[T]
    ) -> Iterator[tuple[int, R]]:
        with ray_cluster(self.jobs, self.address) as ray:
            task = ray.remote(num_cpus=1, max_retries=self.retries, retry_exceptions=[OSError])(
                _do_with
            )
            there = ray.put(shared)
            waiting = iter(range(len(items)))
            handed: dict[Any, int] = {}
            room, asked = 0, -_OFTEN
            try:
                while True:
                    if time.monotonic() - asked > _OFTEN:
                        room = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
                        asked = time.monotonic()
                    while len(handed) < room and (i := next(waiting, None)) is not None:
                        handed[task.remote(function, there, items[i])] = i
                    if not handed:
                        return
                    for done in ray.wait(list(handed), num_returns=1)[0]:
                        i = handed.pop(done)
                        yield i, _got(ray, done)
            finally:
                for left in handed:
                    ray.cancel(left, force=True)


_in_use: ContextVar[Engine | None] = ContextVar("seqagg_engine", default=None)


@contextlib.contextmanager
def using(engine: Engine) -> Iterator[None]:
    """Let methods that consist of independent fits have them done by an engine in the block.

    With Ray, what scikit-learn would do in processes of this machine by joblib is done there too.
    """
    token = _in_use.set(engine)
    try:
        if engine.name == "local":
            yield
            return
        with ray_cluster(engine.jobs, engine.address):
            from joblib import parallel_config
            from ray.util.joblib import register_ray

            register_ray()  # type: ignore[no-untyped-call]
            with parallel_config(backend="ray"):
                yield
    finally:
        _in_use.reset(token)


def engine_in_use() -> Engine:
    """The engine of the innermost `using`; this process by default."""
    return _in_use.get() or Engine()


class _Tries:
    """How often each task has failed."""

    def __init__(self, retries: int) -> None:
        self._retries = retries
        self._failed: Counter[int] = Counter()

    def again(self, i: int, error: BaseException, pause: bool = True) -> None:
        """Count a failure; raise if it was one too many."""
        self._failed[i] += 1
        if self._failed[i] > self._retries:
            raise _task_error(error) from error
        if pause:
            time.sleep(_PAUSE * 2 ** (self._failed[i] - 1))


def _task_error(error: BaseException) -> TaskError:
    if isinstance(error, OSError):
        return TaskError(error.strerror or str(error), file=error.filename)
    return TaskError("a worker died again and again; out of memory? Finished work is kept")


# What a process of the pool does.

_task: tuple[Callable[[Any, Any], Any], Any]


def _begin(function: Callable[[S, T], R], shared: S) -> None:
    global _task
    _task = (function, shared)
    # Interrupted with the parent, which lets the tasks at hand come to their end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _do(item: Any) -> Any:
    function, shared = _task
    return _do_with(function, shared, item)


def _end_with_parent() -> None:
    """End when the parent does, however it ends: nobody else would tell."""
    parent = parent_process()
    assert parent is not None
    wait_for_exit([parent.sentinel])
    os._exit(1)


def _do_with(function: Callable[[S, T], R], shared: S, item: T) -> R:
    """Do a task on one core, in a process that does nothing else."""
    os.environ["LOKY_MAX_CPU_COUNT"] = "1"  # what joblib takes for the number of cores
    with one_thread_each():
        return function(shared, item)


# Ray.


def _got(ray: Any, done: Any) -> Any:
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, SeqaggError):
            raise cause from None
        if isinstance(cause, OSError):
            raise _task_error(cause) from None
        raise
    except ray.exceptions.RayError as error:  # a worker or a node that died too often
        raise _task_error(error) from None


@contextlib.contextmanager
def ray_cluster(jobs: int | None = None, address: str | None = None) -> Iterator[Any]:
    """Be connected to a Ray cluster within the block; gives the module `ray`.

    One that the caller is connected to already is used as it is.

    Raises
    ------
    ParameterError
        When Ray is not installed, or there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ParameterError(
            "the Ray engine needs Ray, which is not installed: pip install 'seqagg[ray]'"
        ) from None
    if ray.is_initialized():
        yield ray
        return
    own: dict[str, Any] = {} if address else {"num_cpus": jobs, "include_dashboard": False}
    try:
        # Without an address Ray would join whatever cluster it finds on this machine.
        ray.init(address or "local", log_to_driver=False, logging_level=logging.WARNING, **own)
    except (ConnectionError, ValueError) as error:
        raise ParameterError(f"no Ray cluster at {address}: {error}") from None
    try:
        yield ray
    finally:
        ray.shutdown()
