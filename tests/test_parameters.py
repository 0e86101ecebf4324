"""Parameters that cannot be are refused in one line that names them, before anything is learnt."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from seqagg import ParameterError
from seqagg.aggregators import AGGREGATORS, aggregator_class, make_aggregator
from tests.conftest import mixed_songs

SONGS = mixed_songs(12)

SEEDS = [-1, 2**32, 0.5, None, "0", True, math.nan]
WRONG: dict[str, dict[str, list[Any]]] = {
    "hmm": {
        "n_states": [0, 1.5, "two", None, True],
        "covariance_type": ["tied", None, ["diag"]],
        "shrinkage": ["x", None, math.inf, math.nan, 0],
        "tol": [None, "x", [1], math.nan],
        "n_iter": [0, "5"],
    },
    "gru": {
        "base": ["median", None],
        "shift": ["x", None, -1.0, math.nan],
        "dropout": [None, 1.0, "0.1", True],
        "bidirectional": ["x", math.nan, 1, None],
        "device": [None, "gpu", "cudax", 0],
        "epochs": [0, "many"],
        "learning_rate": [None, 0.0, math.nan],
    },
    "mil": {"pooling": ["mean", None, ["max"]], "hidden_size": [0, None], "dropout": ["x"]},
    "stack": {"n_parts": [0, None, 2.0], "classifier": [3]},
    "auto": {
        "methods": ["hmm", 3, None, []],
        "parameters": [3, {"stack": 3}, [1]],
        "n_errors": [None, "x", math.nan],
    },
}
CASES = [(m, name, value) for m, own in WRONG.items() for name in own for value in own[name]]
CASES += [(m, "on_empty", value) for m in AGGREGATORS for value in ("skip", None, 1)]
CASES += [
    (m, "random_state", value)
    for m in AGGREGATORS
    if "random_state" in aggregator_class(m)._get_param_names()
    for value in SEEDS
]


@pytest.mark.parametrize(("method", "name", "value"), CASES, ids=str)
def test_what_cannot_be_is_refused(method: str, name: str, value: Any) -> None:
    with pytest.raises(
        ParameterError, match=name if name != "classifier" else "predict_proba"
    ) as e:
        make_aggregator(method, **{name: value}).fit(SONGS)
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize("seed", [0, np.int64(7), 2**32 - 1])
def test_seeds_that_can_be(seed: Any) -> None:
    for method in ("hmm", "stack"):
        made = make_aggregator(method, random_state=seed, n_folds=2).fit(SONGS)
        assert len(made.predict(SONGS)) == 12
