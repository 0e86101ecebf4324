"""Values that differ have different hashes, and equal ones the same, in another process too."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from seqagg.fingerprints import fingerprint


class Network(torch.nn.Module):
    """Holds a number that is neither a weight nor shown."""

    def __init__(self, scale: float = 1.0, bias: float = 0.0, noise: float = 0.0) -> None:
        super().__init__()
        self.scale = scale
        self.layer = torch.nn.Linear(2, 2)
        torch.nn.init.constant_(self.layer.weight, 1.0)
        torch.nn.init.constant_(self.layer.bias, bias)
        self.register_buffer("noise", torch.tensor(noise), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.scale * x) + self.noise


class Holder:
    def __init__(self, held: Any) -> None:
        self.held = held

    def __repr__(self) -> str:
        return "Holder(...)"


def adds(n: int) -> Any:
    return lambda x: x + n


def around() -> list[Any]:
    """A list that holds itself."""
    found: list[Any] = [1]
    found.append(found)
    return found


DIFFERENT: list[Any] = [
    *(None, True, 1, 1.0, "1", b"1", np.float32(1), np.float64(1)),
    *([], (), {}, set(), [[]], [1, 2], [[1], 2], [1, [2]], (1, 2), {1: 2}, {2: 1}, {1, 2}),
    *([0.5] * 40 + [end] for end in (1.0, 2.0)),  # of which a repr may show the beginning
    *(np.array([1, 2]), np.array([[1, 2]]), np.array([1.0, 2.0]), np.array([1, 3]), np.zeros(0)),
    *(np.arange(2000) + end * (np.arange(2000) == 1000) for end in (1, 2)),
    *(np.array(["a", None], dtype=object), np.array([None, "a"], dtype=object)),
    *(LogisticRegression(C=c) for c in (1.0, 2.0)),
    *(LogisticRegressionCV(Cs=[1.0] * 40 + [end]) for end in (1.0, 2.0)),
    *(make_pipeline(StandardScaler(), LogisticRegression(C=c)) for c in (1.0, 2.0)),
    *(Network(), Network(scale=2.0), Network(bias=1.0), Network(noise=1.0)),
    *(torch.nn.ReLU(), torch.nn.Tanh(), torch.nn.Dropout(0.1), torch.nn.Dropout(0.2)),
    *(adds(1), adds(2), lambda x: x - 1, lambda x: x - 2, lambda x, n=1: x - n, len, Network),
    *(Holder(1), Holder(2), Holder([Holder(1)]), around()),
]


def test_what_differs_has_another_hash() -> None:
    found = [fingerprint(value) for value in DIFFERENT]
    assert len(set(found)) == len(found)
    assert fingerprint(1, 2) != fingerprint((1, 2)) != fingerprint(12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: [0.5] * 40,
        lambda: np.arange(10)[::2],
        lambda: {"a": {3, 1, 2}, "b": np.array(["x", 1], dtype=object)},
        lambda: make_pipeline(StandardScaler(), LogisticRegression()),
        lambda: Network(),
        lambda: Network().eval(),
        lambda: adds(3),
        lambda: Holder([1, Holder("x")]),
        around,
    ],
)
def test_what_is_equal_has_the_same(make: Any) -> None:
    assert fingerprint(make()) == fingerprint(make())


def test_another_process_finds_the_same() -> None:
    code = (
        "import numpy as np; from sklearn.linear_model import LogisticRegression as L;"
        "from seqagg.fingerprints import fingerprint;"
        "print(fingerprint({'a', 'b', 'c'}, L(C=2), np.arange(3), {'x': len}))"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    value = ({"a", "b", "c"}, LogisticRegression(C=2), np.arange(3), {"x": len})
    assert found.strip() == fingerprint(*value)
