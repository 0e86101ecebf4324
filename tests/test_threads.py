"""Thread counts are limited in a block and as before after it; work ahead ends with its block."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from seqagg.threads import ahead, one_thread_each


def pools() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info()}


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with threadpool_limits(2):
        yield
    torch.set_num_threads(before)


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
