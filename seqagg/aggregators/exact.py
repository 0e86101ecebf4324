"""Float32 that a GPU computes as a processor does."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

_lock = threading.Lock()
_inside = 0
_before = ""


@contextlib.contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Keep recurrent networks on a GPU from rounding to TF32 within the block.

    PyTorch lets cuDNN do so: answers are then off by 1e-4 where they could be by 1e-6, and a GRU
    is no faster. The setting is that of the whole process: callers in several threads share it,
    the first sets it, the last takes it back.
    """
    global _inside, _before
    if device.type == "cpu":
        yield
        return
    rnn: Any = torch.backends.cudnn.rnn
    with _lock:
        if _inside == 0:
            _before, rnn.fp32_precision = rnn.fp32_precision, "ieee"
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                rnn.fp32_precision = _before
