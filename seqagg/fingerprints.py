"""Hashes that tell values apart, be they numbers, estimators or networks.

Conventions
-----------
Equal values have equal hashes in every process, where that can be told; two that differ have
different ones. What is none of the known kinds goes by its ``repr`` and by what it holds, so that
at worst an equal value seems to be another.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any

import numpy as np

Part = bytes | memoryview


def fingerprint(*values: object) -> str:
    """Hash of values, as 64 hexadecimal digits.

    Parameters
    ----------
    *values
        Plain values and arrays, containers of them, scikit-learn estimators, PyTorch modules with
        their weights and the text of their classes, functions, or objects that hold such.
    """
    digest = hashlib.sha256()
    for part in _parts(values, ()):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _parts(value: Any, within: tuple[int, ...]) -> Iterator[Part]:
    """Bytes that spell a value; `within` are the ids of what it stands in."""
    kind = type(value)
    yield f"{kind.__module__}.{kind.__qualname__}".encode()
    if id(value) in within:
        return
    within = (*within, id(value))
    if isinstance(value, np.ndarray) and value.dtype != object:
        yield f"{value.dtype} {value.shape}".encode()
        yield np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
    elif isinstance(value, Mapping):
        yield from _all(value.items(), within)
    elif isinstance(value, list | tuple | np.ndarray):
        yield from _all(value, within)
    elif isinstance(value, set | frozenset):
        yield from _all(sorted(fingerprint(item) for item in value), within)
    elif isinstance(value, FunctionType):
        yield from _of_function(value, within)
    elif inspect.isclass(value):
        yield _said(value)
        yield _text_of(value)
    elif hasattr(value, "get_params"):
        yield from _parts(value.get_params(deep=False), within)
    elif hasattr(value, "named_modules"):
        yield from _of_module(value, within)
    else:
        yield _said(value)
        yield from _all(getattr(value, "__dict__", {}).items(), within)


def _all(items: Iterable[Any], within: tuple[int, ...]) -> Iterator[Part]:
    for item in items:
        yield from _parts(item, within)
    yield b"end"


def _of_function(function: FunctionType, within: tuple[int, ...]) -> Iterator[Part]:
    """What it does, with which constants, defaults and variables of where it was made."""
    code = function.__code__
    yield code.co_code
    constants = [c for c in code.co_consts if not isinstance(c, CodeType)]
    held = [cell.cell_contents for cell in function.__closure__ or ()]
    names = (function.__module__, function.__qualname__, code.co_names)
    yield from _all(
        [names, constants, function.__defaults__, function.__kwdefaults__, held], within
    )


def _of_module(module: Any, within: tuple[int, ...]) -> Iterator[Part]:
    """Weights of a PyTorch module, and of each module in it the class and what it keeps openly."""
    weights = module.state_dict() | dict(module.named_buffers())
    for name, weight in weights.items():
        yield name.encode()
        yield from _parts(weight.cpu().numpy() if hasattr(weight, "cpu") else weight, within)
    for name, part in module.named_modules():
        cls = type(part)
        yield f"{name} {cls.__module__}.{cls.__qualname__}".encode()
        if not cls.__module__.startswith("torch."):
            yield _text_of(cls)
        kept = {k: v for k, v in vars(part).items() if not k.startswith("_") and k != "training"}
        yield from _parts(kept, within)


def _said(value: object) -> bytes:
    return repr(value).encode("utf-8", "surrogatepass")


def _text_of(cls: type) -> bytes:
    try:
        return inspect.getsource(cls).encode()
    except (OSError, TypeError):  # of a notebook that is gone, say
        return b""
