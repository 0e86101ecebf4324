"""hmmlearn: the reference engine of the HMMs, and fitted models as its objects."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from seqagg.aggregators.base import Floats, Ints
from seqagg.aggregators.hmm_start import Whitening
from seqagg.kernels.hmm import GaussianParameters, with_jacobian

if TYPE_CHECKING:
    from hmmlearn.hmm import GaussianHMM


def to_hmmlearn(model: GaussianParameters, whitening: Whitening, order: Ints) -> GaussianHMM:
    """Model of whitened log-odds as hmmlearn's, of plain log-odds.

    Parameters
    ----------
    model : GaussianParameters
    whitening : Whitening
        What its frames went through.
    order : ndarray of int, shape (n_columns,)
        Columns as they go into the whitening.
    """
    # Row j of the basis belongs to the user's column order[j].
    back = np.argsort(order)
    basis, center = whitening.basis[back], whitening.center[back]
    alone = basis.ndim == 1
    if alone:
        means = model.means[:, back] / basis + center
        plain = dataclasses.replace(model, means=means, covars=model.covars[:, back] / basis**2)
    else:
        plain = with_jacobian(model, basis, center)
    return _hmm(plain)


def fit_with_hmmlearn(
    frames: Floats,
    offsets: Ints,
    model: GaussianParameters,
    *,
    shrinkage: float,
    n_iter: int,
    tol: float,
) -> tuple[GaussianParameters, list[float]]:
    """Do what `fit_em` does, with hmmlearn's own EM from the same start."""
    n_features = frames.shape[1]
    full = model.covars.ndim == 3
    hmm = _hmm(
        model,
        # A scalar would be added to every element of a full covariance.
        covars_prior=shrinkage * np.eye(n_features) if full else shrinkage,
        covars_weight=shrinkage + (n_features if full else 1),
        n_iter=n_iter,
        tol=tol,
        init_params="",
    )
    with _quiet_hmmlearn():
        hmm.fit(frames, np.diff(offsets))
    # hmmlearn leaves a state without frames as NaN, and one that is never left without a row.
    left = hmm.transmat_.sum(axis=1, keepdims=True) > 0
    alive = np.isfinite(hmm.means_).all(axis=1)
    fitted = GaussianParameters(
        hmm.startprob_,
        np.where(left, hmm.transmat_, model.transmat),
        np.where(alive[:, None], hmm.means_, model.means),
        np.where(alive.reshape(-1, *[1] * (1 + full)), hmm._covars_, model.covars),
    )
    return fitted, [float(value) for value in hmm.monitor_.history]


def _hmm(model: GaussianParameters, **settings: Any) -> GaussianHMM:
    """Model as hmmlearn has it, of the frames that it is of."""
    from hmmlearn.hmm import GaussianHMM

    kind = "full" if model.covars.ndim == 3 else "diag"
    # "scaling" overflows on songs that are far from a state.
    hmm = GaussianHMM(model.n_states, kind, implementation="log", **settings)
    hmm.n_features = model.means.shape[1]
    hmm.startprob_, hmm.transmat_ = model.startprob, model.transmat
    hmm.means_, hmm.covars_ = model.means, model.covars
    return hmm


@contextmanager
def _quiet_hmmlearn() -> Iterator[None]:
    """Keep hmmlearn's remarks on convergence off the screen; `fit_report_` has them."""
    logger = logging.getLogger("hmmlearn.base")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
