"""The forward recursion of hidden Markov models, to be taken up again where it stopped.

Conventions
-----------
Those of `seqagg.kernels.hmm`; the states of all models stand behind each other, those of model m in
``first[m]:first[m + 1]``. What is carried from frame to frame is, of every stream, the log of each
state's probability *before* its next frame is heard, given all before it. In log space no share is
lost: who has heard a stream's frames cannot ask for them again, as `log_likelihoods` does where
scaling underflows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from seqagg.kernels.elementary import jit
from seqagg.kernels.hmm import GaussianParameters, density_weights, log_density
from seqagg.kernels.hmm_loops import log_sum

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_FAR = 1e8
"""Squared deviations between a mean and the center beyond which monomials cancel."""


class ForwardFilter:
    """Log likelihoods of streams under several models, frame by frame.

    Parameters
    ----------
    models : sequence of GaussianParameters
        All with diagonal or all with full covariances; numbers of states may differ.

    Attributes
    ----------
    start : ndarray of shape (n_rows,)
        Log probability of each state before the first frame.
    """

    def __init__(self, models: Sequence[GaussianParameters]) -> None:
        self._models = models
        n_states = [model.n_states for model in models]
        self._first = np.concatenate([[0], np.cumsum(n_states)])
        self._transmat = np.zeros((self._first[-1], max(n_states)))
        for begin, model in zip(self._first, models, strict=False):
            self._transmat[begin : begin + model.n_states, : model.n_states] = model.transmat
        with np.errstate(divide="ignore"):
            self.start = np.log(np.concatenate([model.startprob for model in models]))
            self._log_transmat = np.log(self._transmat)
        means, covars = (
            np.concatenate([getattr(model, name) for model in models])
            for name in ("means", "covars")
        )
        self._center = means.mean(axis=0)
        self._weights, farthest = density_weights(means, covars, self._center)
        self._cancel = farthest > _FAR

    def hear(
        self, frames: Floats, offsets: Ints, which: Ints, ahead: Floats, likelihood: Floats
    ) -> None:
        """Go on with some streams, in place.

        Parameters
        ----------
        frames : ndarray of shape (n_frames, n_features)
        offsets : ndarray of int, shape (n_songs + 1,)
        which : ndarray of int, shape (n_songs,)
            Stream that each song goes on with.
        ahead : ndarray of shape (n_streams, n_rows)
            Log probability of each state before the next frame.
        likelihood : ndarray of shape (n_streams, n_models)
            Log likelihood of all frames heard.
        """
        log_b = self._log_density(frames)
        _hear(
            log_b,
            offsets,
            which,
            self._first,
            self._transmat,
            self._log_transmat,
            ahead,
            likelihood,
        )

    def _log_density(self, frames: Floats) -> Floats:
        """Log density of each frame under each row, shape (n_frames, n_rows)."""
        if self._cancel:
            found = [log_density(frames, model.means, model.covars) for model in self._models]
            return np.hstack(found)
        x = frames - self._center
        if self._models[0].covars.ndim == 3:
            first, second = np.triu_indices(x.shape[1])
            squares = x[:, first] * x[:, second]
        else:
            squares = x**2
        return np.asarray(np.hstack([np.ones((len(x), 1)), x, squares]) @ self._weights.T)


_LEAST = 1e-280
"""Probability of a state below which sums of products have lost too much."""


@jit
def _hear(log_b, offsets, which, first, transmat, log_transmat, ahead, likelihood):  # type: ignore[no-untyped-def]
    share = np.empty(transmat.shape[1])
    for song in range(len(which)):
        stream = which[song]
        for t in range(offsets[song], offsets[song + 1]):
            for m in range(len(first) - 1):
                low, high = first[m], first[m + 1]
                likelihood[stream, m] += _step(
                    log_b[t, low:high],
                    transmat[low:high],
                    log_transmat[low:high],
                    share,
                    ahead[stream, low:high],
                )


@jit
def _step(log_b, transmat, log_transmat, share, ahead):  # type: ignore[no-untyped-def]
    """Hear a frame: bring `ahead` to the next, and give the frame's log likelihood."""
    n = len(ahead)
    for j in range(n):
        ahead[j] += log_b[j]
    gain = log_sum(ahead)
    for i in range(n):
        ahead[i] -= gain
        share[i] = np.exp(ahead[i])
    log_share = ahead.copy()
    for j in range(n):
        total = 0.0
        for i in range(n):
            total += share[i] * transmat[i, j]
        if total > _LEAST:
            ahead[j] = np.log(total)
        else:
            ahead[j] = log_sum(log_share + log_transmat[:n, j])
    return gain
