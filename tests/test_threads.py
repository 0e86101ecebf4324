"""Thread counts are limited in a block and as before after it; work ahead ends with its block."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from joblib import parallel_config
from threadpoolctl import threadpool_info, threadpool_limits

from seqagg import GRUAggregator, MILAggregator
from seqagg.threads import ahead, behind, count_threads, one_thread_each, side_by_side
from tests.conftest import order_songs


def pools() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info()}


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with threadpool_limits(2):
        yield
    torch.set_num_threads(before)


def test_threads_are_counted_as_joblib_does():
    assert count_threads(None) == 1
    assert count_threads(-1) == os.cpu_count()
    with parallel_config(n_jobs=3):
        assert count_threads(None) == 3
        assert count_threads(2) == 2
    with parallel_config(backend="sequential"):  # which has but one place for processes
        assert count_threads(2) == 2


def test_inside_and_after():
    with one_thread_each():
        assert torch.get_num_threads() == 1
        assert pools() == {1}
        with one_thread_each():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    assert 2 in pools()


def test_after_an_error():
    with pytest.raises(KeyError), one_thread_each():
        raise KeyError("x")
    assert torch.get_num_threads() == 2


def test_two_callers_that_overlap():
    first_in, second_in, first_out = (threading.Event() for _ in range(3))

    def first() -> None:
        with one_thread_each():
            first_in.set()
            second_in.wait(10)
        first_out.set()

    caller = threading.Thread(target=first)
    caller.start()
    first_in.wait(10)
    with one_thread_each():
        second_in.set()
        first_out.wait(10)
        assert torch.get_num_threads() == 1
    caller.join()
    assert torch.get_num_threads() == 2


OVERLAP = """
import threading
import numpy as np
from threadpoolctl import threadpool_info
from seqagg.threads import one_thread_each

def blas():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

second_in, first_out = threading.Event(), threading.Event()

def first():
    with one_thread_each():
        second.start()
        second_in.wait(10)
    first_out.set()

def then():
    with one_thread_each():
        second_in.set()
        first_out.wait(10)
        print(*blas())

second = threading.Thread(target=then)
print(*blas())
first()
second.join()
print(*blas())
"""


def test_what_the_whole_process_has_is_given_back_by_the_last_caller():
    """In a process in which nobody has set the threads of BLAS before."""
    found = subprocess.run(
        [sys.executable, "-c", OVERLAP],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    before, inside, after = found.stdout.split("\n")[:3]
    assert inside == "1"
    assert after == before


@pytest.mark.parametrize("n_jobs", [1, 2, -1, None])
def test_side_by_side_gives_results_in_order(n_jobs):
    def task(i, go_on):
        go_on()
        time.sleep(0.01 * (5 - i))
        return i

    assert side_by_side([partial(task, i) for i in range(5)], n_jobs) == list(range(5))
    assert side_by_side([], n_jobs) == []


def test_side_by_side_stops_the_others_when_one_fails():
    ended = []

    def endless(go_on):
        try:
            while True:
                time.sleep(0.001)
                go_on()
        finally:
            ended.append(1)

    def failing(go_on):
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        side_by_side([endless, failing, endless], 2)
    assert len(ended) == 1, "the third never began"


def test_side_by_side_stops_on_an_interrupt():
    def endless(go_on):
        while True:
            time.sleep(0.001)
            go_on()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            side_by_side([endless, endless], 2)
    finally:
        signal.signal(signal.SIGINT, before)


def test_ahead_gives_all_items_in_turn():
    with ahead(range(10), 3) as items:
        assert list(items) == list(range(10))
    with ahead([], 3) as items:
        assert list(items) == []


def test_ahead_is_so_far_ahead_and_no_farther():
    made = []
    enough = threading.Event()

    def make() -> Iterator[int]:
        for i in range(100):
            made.append((i, threading.current_thread()))
            if i >= 3:
                enough.set()
            yield i

    with ahead(make(), 3) as items:
        assert next(items) == 0
        assert enough.wait(10), "the fourth is made while the first is used"
        assert len(made) == 4
    assert len(made) == 4
    assert threading.current_thread() not in {thread for _, thread in made}
    assert not any(thread.is_alive() for _, thread in made)


def test_ahead_raises_an_error_where_the_item_would_have_been():
    def make() -> Iterator[int]:
        yield 1
        raise KeyError("two")

    with ahead(make(), 5) as items:
        assert next(items) == 1
        with pytest.raises(KeyError, match="two"):
            next(items)


def test_ahead_lets_an_error_of_the_block_through():
    def interrupted() -> None:
        with ahead(iter(int, 1), 2) as items:
            next(items)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()


def test_behind_does_all_items_in_turn_in_another_thread():
    done = []
    with behind(lambda i: done.append((i, threading.current_thread()))) as hand_over:
        for i in range(10):
            hand_over(i)
            assert len(done) >= i, "one waits at most"
    items, threads = zip(*done, strict=True)
    assert list(items) == list(range(10))
    assert threading.current_thread() not in threads
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("n", [1, 2])
def test_behind_raises_an_error_at_the_next_item_or_the_end(n):
    def refuse(item: int) -> None:
        raise KeyError(item)

    handed = []

    def all_items() -> None:
        with behind(refuse) as hand_over:
            for i in range(n):
                hand_over(i)
                handed.append(i)

    with pytest.raises(KeyError, match="0"):
        all_items()
    assert handed == [0]


def test_behind_lets_an_error_of_the_block_through():
    done = []

    def interrupted() -> None:
        with behind(done.append) as hand_over:
            hand_over(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done in ([], [1]), "what has not begun is left"


@pytest.mark.parametrize("method", [GRUAggregator, MILAggregator])
def test_fits_in_several_threads_are_those_of_one(method):
    """PyTorch has one global generator, which first weights come from."""
    songs = order_songs(30)

    def weights(_: int) -> list[torch.Tensor]:
        model = method(epochs=1, hidden_size=16, n_folds=2, n_jobs=1).fit(songs)
        return [weight for network in model.networks_ for weight in network.parameters()]

    before = torch.get_rng_state()
    alone = weights(0)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(weights, range(8)):
            assert all(map(torch.equal, found, alone))
    assert torch.equal(torch.get_rng_state(), before)
