"""Thread counts are limited inside the block, and as they were after it, whoever shares it."""

from __future__ import annotations

import threading

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from seqagg.threads import one_thread_each


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
