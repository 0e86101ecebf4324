"""Parameters that cannot be are refused in one line that names them, before anything is learnt."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.base import clone

import seqagg
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


OF_NETWORKS: dict[str, float] = {
    "hidden_size": 4,
    "dropout": 0.25,
    "epochs": 2,
    "patience": 2,
    "batch_size": 6,
    "learning_rate": 0.125,
    "weight_decay": 0.5,
    "max_gradient": 2.0,
    "min_crop": 0.5,
    "n_folds": 2,
    "n_repeats": 1,
    "n_jobs": 1,
    "random_state": 5,
}

NUMBERS: dict[str, dict[str, float]] = {
    "majority": {"n_jobs": 1},
    "mean": {"n_jobs": 1},
    "logodds": {"n_jobs": 1},
    "hmm": {
        "n_states": 2,
        "shrinkage": 30.0,
        "min_frames": 3,
        "n_restarts": 1,
        "n_iter": 3,
        "tol": 0.25,
        "n_folds": 2,
        "n_jobs": 1,
        "random_state": 5,
    },
    "gru": OF_NETWORKS | {"n_layers": 1, "shift": 0.5, "noise": 0.5, "bidirectional": False},
    "mil": OF_NETWORKS,
    "stack": {"n_parts": 2, "n_folds": 2, "random_state": 5},
    "auto": {"n_errors": 0.5, "random_state": 5},
}
"""Every parameter of a method that is a number."""


@pytest.mark.parametrize("method", AGGREGATORS)
def test_numbers_of_numpy_are_numbers(method: str, tmp_path: Path) -> None:
    """As a grid gives them; halves and quarters are the same in float32."""
    plain = NUMBERS[method]
    made = {bool: np.bool_, int: np.int32, float: np.float32}
    given = {name: made[type(value)](value) for name, value in plain.items()}
    fixed = {"methods": ("mean", "stack")} if method == "auto" else {}
    own = [n for n, v in vars(make_aggregator(method)).items() if isinstance(v, int | float)]
    assert set(own) <= plain.keys()
    model = make_aggregator(method, **given, **fixed)
    expected = make_aggregator(method, **plain, **fixed).fit(SONGS)
    for fitted in (model.fit(SONGS), clone(model).fit(SONGS)):
        assert_array_equal(fitted.predict_proba(SONGS), expected.predict_proba(SONGS))
    assert all(model.get_params()[name] is value for name, value in given.items())
    model.save(tmp_path / "m.safetensors")
    kept = seqagg.load(tmp_path / "m.safetensors").get_params()
    assert {name: kept[name] for name in plain} == plain


@pytest.mark.parametrize("n_jobs", [0, np.int64(0), 2.0, "2"])
def test_jobs_that_cannot_be(n_jobs: Any) -> None:
    with pytest.raises(ParameterError, match=r"n_jobs=.* is neither None nor a number but 0"):
        make_aggregator("mean", n_jobs=n_jobs).fit(SONGS)
