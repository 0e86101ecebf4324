"""No NaN in, none out: every method on numbers that break sums, logarithms and matrices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone

import seqagg
from seqagg import HMMAggregator, Songs
from seqagg.aggregators import AGGREGATORS, make_aggregator
from seqagg.aggregators import hmm as hmm_module
from seqagg.aggregators.base import Aggregator
from seqagg.aggregators.hmm_start import MOST_ROTATED, Shape, starting_model
from seqagg.kernels.hmm import GaussianParameters, fit_em, log_likelihoods

Floats = npt.NDArray[np.float64]

QUICK: dict[str, dict[str, Any]] = {
    "hmm": {"n_states": 2, "n_iter": 3, "n_folds": 2, "min_frames": 2},
    "gru": {"hidden_size": 4, "epochs": 2, "n_folds": 2, "n_repeats": 1},
    "mil": {"hidden_size": 4, "epochs": 2, "n_folds": 2, "n_repeats": 1},
    "stack": {"n_folds": 2},
    "auto": {
        "methods": ("hmm", "stack", "gru"),
        "parameters": {
            "hmm": {"n_states": 2, "n_iter": 2, "n_folds": 2, "covariance_type": "diag"},
            "gru": {"hidden_size": 4, "epochs": 1, "n_folds": 2},
        },
        "n_errors": -100.0,
    },
}


def frames(n: int = 12, n_columns: int = 3, n_frames: int = 6, seed: int = 0) -> list[Floats]:
    """Songs of log-odds; song i has more of column i, counted round."""
    rng = np.random.default_rng(seed)
    own = 3.0 * np.eye(n_columns)
    return [own[i % n_columns] + rng.normal(size=(n_frames, n_columns)) for i in range(n)]


def songs(arrays: list[Any], labels: Any = None, **fields: Any) -> Songs:
    columns = [f"c{j:04}" for j in range(np.asarray(arrays[0]).shape[1])]
    named = [columns[i % len(columns)] for i in range(len(arrays))] if labels is None else labels
    return Songs.from_arrays(arrays, columns=columns, labels=named, **fields)


def scaled(factor: float, **fields: Any) -> Songs:
    return songs([a * factor for a in frames()], **fields)


def certain() -> list[Floats]:
    return [(a > 1).astype(float) for a in frames()]


def with_column(change: Callable[[Floats], Floats]) -> Songs:
    arrays = frames()
    for array in arrays:
        array[:, 1] = change(array)
    return songs(arrays)


def one_long() -> Songs:
    return songs([*frames(11), frames(1, n_frames=100_000)[0]])


CASES: dict[str, Callable[[], Songs]] = {
    "logits of 1e4": lambda: scaled(1e4, kind="logit"),
    "log-odds of 1e4": lambda: scaled(1e4),
    "logits at the end of float32": lambda: scaled(3e37, kind="logit"),
    "log-odds at the end of float32": lambda: scaled(3e37),
    "infinite log-odds": lambda: songs([np.where(a > 1, np.inf, -np.inf) for a in frames()]),
    "p exactly 0 and 1": lambda: songs(certain(), kind="probability"),
    "p all 0": lambda: songs([0 * a for a in certain()], kind="probability"),
    "p all 1": lambda: songs([0 * a + 1 for a in certain()], kind="probability"),
    "denormal p": lambda: songs([np.full((3, 3), 1e-42)] * 12, kind="probability"),
    "denormal log-odds": lambda: scaled(1e-42),
    "denormal logits": lambda: scaled(1e-42, kind="logit"),
    "one frame": lambda: songs(frames(n_frames=1)),
    "two columns": lambda: songs(frames(n_columns=2)),
    "one song per class": lambda: songs(frames(3)),
    "one class": lambda: songs(frames(), ["c0001"] * 12),
    "one song": lambda: songs(frames(1)),
    "identical songs": lambda: songs(frames(1) * 12),
    "identical frames": lambda: songs([np.full((5, 3), 0.3)] * 12),
    "a constant column": lambda: with_column(lambda a: np.full(len(a), 7.0)),
    "two equal columns": lambda: with_column(lambda a: a[:, 0]),
    "columns that add up to nothing": lambda: with_column(lambda a: -a[:, 0]),
    "one song of 100,000 frames": one_long,
    "5,000 columns": lambda: songs(frames(8, n_columns=5000, n_frames=2)),
    "5,000 tags": lambda: songs(frames(8, n_columns=5000, n_frames=2), ["reel", "jig"] * 4),
}

AVERAGES = ("majority", "mean", "logodds")

LEFT_OUT = {
    ("5,000 columns", "stack"): "fits for twelve seconds: 200 million weights of 40,001 summaries",
    ("5,000 columns", "auto"): "fits for half a minute, with the stack",
    **{
        ("5,000 tags", m): "needs columns that are classes" for m in ("majority", "mean", "logodds")
    },
}


def assert_finite(model: Aggregator, queries: Any) -> None:
    log_p, decision = model.predict_log_proba(queries), model.decision_function(queries)
    assert np.isfinite(log_p).all()
    assert np.isfinite(decision).all()
    assert_allclose(np.exp(log_p).sum(axis=1), 1, rtol=1e-9)
    assert set(model.predict(queries)) <= set(model.classes_)
    assert np.isfinite(model.doubts_).all()
    for name, array in model._state().items():
        assert np.isfinite(array).all(), name


def assert_kept(model: Aggregator, queries: Any, path: Path) -> None:
    model.save(path)
    assert_array_equal(
        seqagg.load(path).predict_log_proba(queries), model.predict_log_proba(queries)
    )


@pytest.mark.parametrize("method", AGGREGATORS)
@pytest.mark.parametrize("case", CASES)
def test_a_fit_to_it_has_finite_numbers_and_answers(case: str, method: str, tmp_path: Path) -> None:
    if (case, method) in LEFT_OUT:
        pytest.skip(LEFT_OUT[case, method])
    given = CASES[case]()
    model = make_aggregator(method, **QUICK.get(method, {})).fit(given)
    assert_finite(model, given)
    if case not in ("one song of 100,000 frames", "5,000 columns", "5,000 tags"):
        plain = songs(frames(6, given.n_columns, seed=1)).values.reshape(6, -1, given.n_columns)
        assert_finite(model, list(plain))
    if case != "5,000 columns":  # whose networks are 400 MB
        assert_kept(model, given, tmp_path / "m.safetensors")


@pytest.mark.parametrize("method", AGGREGATORS)
@pytest.mark.parametrize("factor", [1e6, 1e12, 3e37])
def test_several_labels_of_huge_log_odds(method: str, factor: float, tmp_path: Path) -> None:
    arrays = [a * factor for a in frames(30)]
    indicator = np.array([a.mean(axis=0) > factor / 2 for a in arrays]).astype(int)
    indicator[::4, 0] ^= 1
    model = make_aggregator(method, **QUICK.get(method, {})).fit(arrays, indicator)
    assert np.isfinite(model.predict_log_proba(arrays)).all()
    assert_kept(model, arrays, tmp_path / "m.safetensors")


@pytest.fixture(scope="module")
def fitted() -> dict[str, Aggregator]:
    settings = QUICK | {"gru": {"hidden_size": 2, "epochs": 2, "n_folds": 1}}
    settings["auto"] = {"methods": ("hmm", "stack"), "n_errors": -100.0}
    return {
        m: make_aggregator(m, **settings.get(m, {})).fit(songs(frames(24))) for m in AGGREGATORS
    }


@pytest.mark.parametrize("method", AGGREGATORS)
def test_the_answer_to_extremes_is_finite(method: str, fitted: dict[str, Aggregator]) -> None:
    model = fitted[method]
    biggest = float(np.finfo(np.float32).max)
    extremes = [0.0, 1e-45, -1e-45, 1e4, -1e4, biggest, -biggest, np.inf, -np.inf]
    assert_finite(model, [np.full((n, 3), value) for value in extremes for n in (1, 4)])
    rng = np.random.default_rng(0)
    assert_finite(model, [rng.choice(extremes, (5, 3)) for _ in range(30)])


@pytest.mark.parametrize("method", AGGREGATORS)
def test_one_and_100_000_frames_side_by_side(method: str, fitted: dict[str, Aggregator]) -> None:
    model = fitted[method]
    long, (short,) = frames(1, n_frames=100_000, seed=3), frames(1, n_frames=1, seed=4)
    log_p = model.predict_log_proba([short, *long])
    assert np.isfinite(log_p).all()
    assert_allclose(log_p[:1], model.predict_log_proba([short]), rtol=1e-5, atol=1e-6)
    assert log_p[1].argmax() == 0


@pytest.mark.parametrize("method", AGGREGATORS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_any_float_will_do(method: str, dtype: Any, fitted: dict[str, Aggregator]) -> None:
    """Halves are exact in all of them, and so is the answer."""
    arrays = [np.round(2 * a) / 2 for a in frames(seed=2)]
    expected = fitted[method].predict_log_proba(arrays)
    assert_array_equal(
        fitted[method].predict_log_proba([a.astype(dtype) for a in arrays]), expected
    )
    model = make_aggregator(method, **QUICK.get(method, {}))
    one = model.fit(songs([a.astype(dtype) for a in arrays])).predict_log_proba(arrays)
    other = model.fit(songs(arrays)).predict_log_proba(arrays)
    assert_array_equal(one, other)


@pytest.mark.parametrize("method", AGGREGATORS)
def test_missing_frames_beside_extremes(method: str, fitted: dict[str, Aggregator]) -> None:
    array = np.array([[np.nan, 1e38, -np.inf], [1e4, -1e4, 0.0], [np.inf, np.nan, 1.0]])
    model = fitted[method]
    assert_array_equal(model.predict_log_proba([array]), model.predict_log_proba([array[1:2]]))


# Many columns in the HMM.


def test_hmms_of_many_columns_speak_of_plain_log_odds() -> None:
    """Their log likelihoods are the method's own, but for what whitening adds to all of them."""
    rng = np.random.default_rng(0)
    n = MOST_ROTATED + 4
    labels = ["a", "b", "c"]
    arrays = [rng.normal(i % 3, 1 + np.arange(n) / n, (9, n)) for i in range(18)]
    given = Songs.from_arrays(
        arrays, columns=[f"t{j}" for j in range(n)], labels=[labels[i % 3] for i in range(18)]
    )
    model = HMMAggregator(n_states=2, min_frames=3, n_folds=2, decision="likelihood").fit(given)
    assert model.shape_.covariance_type == "diag"
    assert {h.covariance_type for h in model.hmms_.values()} == {"diag"}
    scores = np.array([[model.hmms_[k].score(a) for k in labels] for a in given])
    own = model.decision_function(given) - np.log(model.class_prior_)
    assert_allclose(scores - scores[:, :1], own - own[:, :1], rtol=1e-6, atol=1e-4)
    assert np.ptp(scores[0]) > 1


def test_full_covariances_of_many_columns_are_refused() -> None:
    given = songs(frames(6, n_columns=MOST_ROTATED + 1))
    with pytest.raises(
        ValueError, match="covariance_type='full' is for up to 256 columns, not 257"
    ):
        HMMAggregator(covariance_type="full").fit(given)


# EM.


def penalty(model: GaussianParameters, shrinkage: float) -> float:
    """Logarithm of the prior that draws covariances to the identity, up to a constant."""
    total = 0.0
    for covar in model.covars:
        full = np.diag(covar) if covar.ndim == 1 else covar
        total += np.linalg.slogdet(full)[1] + np.trace(np.linalg.inv(full))
    return -0.5 * shrinkage * float(total)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    covariance_type=st.sampled_from(["diag", "full"]),
    topology=st.sampled_from(["ergodic", "left-right"]),
    shrinkage=st.sampled_from([0.1, 1.0, 30.0, 1000.0]),
    size=st.sampled_from([0.1, 1.0, 10.0]),
)
def test_what_em_maximizes_never_falls(
    seed: int, covariance_type: str, topology: str, shrinkage: float, size: float
) -> None:
    """Likelihood times prior, which is the likelihood where the prior is weak."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 9, rng.integers(2, 20)))])
    frames = size * rng.normal(size=(offsets[-1], 2)) + rng.integers(0, 2, (offsets[-1], 1))
    model = starting_model(frames, offsets, 3, Shape(3, covariance_type, topology), rng)
    before = -np.inf
    for _ in range(8):
        step = {"shrinkage": shrinkage, "n_iter": 1, "tol": -np.inf}
        after, (likelihood,) = fit_em(frames, offsets, model, **step)
        objective = likelihood + penalty(model, shrinkage)
        assert objective >= before - 1e-9 * abs(objective)
        model, before = after, objective


def test_where_the_likelihood_falls_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prior on covariances may win over it."""
    histories = []
    fit = hmm_module.fit_em

    def watched(*args: Any, **kwargs: Any) -> Any:
        model, history = fit(*args, **kwargs)
        histories.append([*history, log_likelihoods(*args[:2], [model]).sum()])
        return model, history

    monkeypatch.setattr(hmm_module, "fit_em", watched)
    defaults = HMMAggregator(
        n_states=3,
        covariance_type="diag",
        topology="ergodic",
        min_frames=2,
        n_folds=1,
        n_restarts=1,
    )
    said = []
    for seed, shrinkage in ((0, 1.0), (1, 30.0), (2, 300.0), (9, None), (13, None)):
        # With its defaults, it falls in the last of few iterations if anywhere.
        given = {"shrinkage": shrinkage, "tol": -1.0} if shrinkage else {"n_iter": 3}
        model = clone(defaults).set_params(**given)
        rng = np.random.default_rng(seed)
        arrays = [rng.normal(0, rng.choice([0.1, 1, 5]), (rng.integers(1, 8), 2)) for _ in "a" * 24]
        model.fit(arrays, np.arange(24) % 2)
        lines = [line for line in model.fit_report_.splitlines() if "iterations" in line]
        said += ["likelihood fell" in line for line in lines]
    falls = [np.diff(h) < -1e-9 * np.abs(h[:-1]) for h in histories]
    fell = [bool(own.any()) for own in falls]
    assert any(own[-1] and not own[:-1].any() for own in falls), "of one not before the end"
    # Class 1 may come first in the canonical order; what is said of the two is the same.
    assert sorted(said) == sorted(fell)
    assert set(said) == {True, False}
