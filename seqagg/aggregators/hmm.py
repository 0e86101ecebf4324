"""One hidden Markov model per class, mixed with averaging.

Conventions
-----------
Models live in whitened log-odds: ``(x - center) @ basis`` has the identity as its covariance
within classes. There a diagonal covariance is a fair choice (softmax columns are dependent, so in
log-odds it is not) and shrinkage towards the identity means the same for every column. The fitted
hmmlearn objects in ``hmms_`` speak of plain log-odds, which costs them full covariances. Of more
than 256 columns each is whitened by itself, and diagonal covariances stay diagonal.

Models are numbered as classes are, in the canonical order. Where songs have several labels each,
the model of all songs, the *background*, has the number after the last class.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np

from seqagg.aggregators.base import Aggregator, Array, Floats, Ints, OnEmpty
from seqagg.aggregators.hmm_reference import fit_with_hmmlearn, to_hmmlearn
from seqagg.aggregators.hmm_start import (
    MOST_ROTATED,
    Shape,
    Whitening,
    starting_model,
    whiten_within,
)
from seqagg.aggregators.hmm_state import PARTS, is_fitted, read_model, read_shape
from seqagg.aggregators.parameters import (
    check_above_0,
    check_choice,
    check_count,
    check_range,
    check_seed,
)
from seqagg.aggregators.start import AverageStart, make_start
from seqagg.aggregators.state import are_floats, check_floats, from_text_array, text_array
from seqagg.averages import RunningAverages, WholeSongs
from seqagg.calibration import (
    AVERAGING_ERRORS,
    about_equal,
    calibrated_losses,
    fit_mixture_weights,
    prior_scores,
    unseen_losses,
)
from seqagg.checkpoints import current_stage
from seqagg.errors import ModelFileError, ParameterError
from seqagg.folds import Fold, grouped_folds
from seqagg.kernels.hmm import GaussianParameters, fit_em, log_likelihoods
from seqagg.kernels.hmm_filter import ForwardFilter
from seqagg.progress import steps
from seqagg.songs import Songs
from seqagg.streaming import Memory
from seqagg.threads import check_n_jobs, one_thread_each

_MOST_FULL = 64
"""Columns up to which full covariances are tried: they have as many numbers as their square."""

ROUNDING = 1e-9
"""Share of a log likelihood by which it may be lower without having fallen."""


@dataclass(frozen=True)
class _ClassModel:
    """Fitted model of one class or of the background, and how the fit went.

    The history is the log likelihood of all songs before each iteration, and in the end.
    """

    parameters: GaussianParameters
    history: list[float]
    n_songs: int
    n_frames: int


class HMMAggregator(Aggregator):
    """Ask which class's hidden Markov model explains the frames best, and listen to averaging too.

    One Gaussian HMM is fitted to the songs of each class. By itself, the class with the highest
    likelihood is a poor decision wherever order says little, so by default the scores are
    ``a * log likelihood per frame + b * average + c * log class prior``, the three weights fitted
    on songs that the HMMs had not seen, and no more than averaging unless they clearly beat it.
    Where songs have several labels each, what counts of a class's log likelihood is its lead on a
    background model of all songs [2]_, and the prior is in log-odds. What is left to "auto" is
    chosen on held-out songs as well.

    Parameters
    ----------
    n_states : int or "auto"
        States per class; fewer where a class has less than `min_frames` frames a state.
    covariance_type : {"diag", "full", "auto"}
        Covariances of the states, in whitened log-odds. "auto" tries full ones for up to 64
        columns. Of more than 256, each is whitened by itself.
    topology : {"ergodic", "left-right", "auto"}
        Whether states follow each other freely, or run one way and skip at most one.
    decision : {"hybrid", "likelihood"}
        The mix above, or the log likelihood of the song plus the log class prior.
    shrinkage : float
        How many frames' worth each covariance is drawn towards that within classes. Above 0,
        so that no covariance collapses.
    min_frames : int
        Fewest frames per state.
    n_restarts : int
        Random starts of an ergodic model; the likeliest is kept.
    n_iter : int
        Most EM iterations.
    tol : float
        EM stops when an iteration gains less than this, in nats per frame.
    n_folds : int
        Grouped folds on which the weights are fitted and the shape is chosen.
    engine : {"seqagg", "hmmlearn"}
        Who runs EM. The answers are the same to rounding; hmmlearn is the reference.
    dtype : {"float64", "float32"}
        What fitted models score songs in. float32 is up to twice as fast, and right to six digits.
    n_jobs : int or None
        Threads that score songs, as joblib counts them; -1 is all cores. The answer does not
        depend on it. (EM is too short to gain from a second one.)
    random_state : int
        Seed.
    on_empty : {"error", "prior"}
        What a song without a single frame gets: an error that names it, or the class prior.

    Attributes
    ----------
    hmms_ : dict of label to hmmlearn.hmm.GaussianHMM
        The fitted models over frames of log-odds, columns in the user's order. A class without
        training songs has none.
    background_ : hmmlearn.hmm.GaussianHMM or None
        With several labels per song, the model of all training songs.
    shape_ : Shape
        Number of states, covariance type and topology that were used.
    weights_ : ndarray of shape (3,)
        a, b and c of the hybrid decision.
    fit_report_ : str
        What was fitted, chosen and mixed, in words.

    References
    ----------
    .. [1] L. R. Rabiner, "A tutorial on hidden Markov models and selected applications in speech
       recognition", Proceedings of the IEEE 77(2), 1989.
    .. [2] D. Reynolds, T. Quatieri and R. Dunn, "Speaker verification using adapted Gaussian
       mixture models", Digital Signal Processing 10, 2000, section 2.
    """

    auto_states: ClassVar[tuple[int, ...]] = (3, 8)
    """Numbers of states that "auto" tries."""

    def __init__(
        self,
        *,
        n_states: int | Literal["auto"] = "auto",
        covariance_type: Literal["diag", "full", "auto"] = "auto",
        topology: Literal["ergodic", "left-right", "auto"] = "auto",
        decision: Literal["hybrid", "likelihood"] = "hybrid",
        shrinkage: float = 30.0,
        min_frames: int = 10,
        n_restarts: int = 2,
        n_iter: int = 20,
        tol: float = 1e-4,
        n_folds: int = 3,
        engine: Literal["seqagg", "hmmlearn"] = "seqagg",
        dtype: Literal["float64", "float32"] = "float64",
        n_jobs: int | None = -1,
        random_state: int = 0,
        on_empty: OnEmpty = "error",
    ) -> None:
        self.n_states = n_states
        self.covariance_type = covariance_type
        self.topology = topology
        self.decision = decision
        self.shrinkage = shrinkage
        self.min_frames = min_frames
        self.n_restarts = n_restarts
        self.n_iter = n_iter
        self.tol = tol
        self.n_folds = n_folds
        self.engine = engine
        self.dtype = dtype
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.on_empty = on_empty

    def _check_parameters(self) -> None:
        super()._check_parameters()
        for name, allowed in (
            ("covariance_type", ("diag", "full", "auto")),
            ("topology", ("ergodic", "left-right", "auto")),
            ("decision", ("hybrid", "likelihood")),
            ("engine", ("seqagg", "hmmlearn")),
            ("dtype", ("float64", "float32")),
        ):
            check_choice(name, getattr(self, name), allowed)
        for name in ("min_frames", "n_restarts", "n_iter", "n_folds", "n_states"):
            if not (name == "n_states" and self.n_states == "auto"):
                check_count(name, getattr(self, name))
        check_seed("random_state", self.random_state)
        check_n_jobs(self.n_jobs)
        check_above_0("shrinkage", self.shrinkage)
        check_range("tol", self.tol, -math.inf, math.inf)

    def _fit(self, songs: Songs, y: Ints, groups: Ints) -> Floats | None:
        if self.covariance_type == "full" and songs.n_columns > MOST_ROTATED:
            raise ParameterError(
                f"covariance_type='full' is for up to {MOST_ROTATED} columns, not {songs.n_columns}"
            )
        shapes = self._shapes()
        folds = grouped_folds(y, groups, self.n_folds, self.random_state)
        with steps("hmm", len(folds) * len(shapes) + 1) as step:
            averages, likelihoods = self._try_folds(songs, y, folds, shapes, step)
            best, losses = self._choose(averages, likelihoods, y, groups)
            self.shape_ = shapes[best]
            whiten = whiten_within(songs, y)
            self._whitening = whiten
            self._start = self._make_start(songs, y)
            frames = whiten(songs)
            models = self._fit_classes(
                frames, songs.offsets, y, self.shape_, self.n_restarts, "all songs"
            )
            self._models = {k: m.parameters for k, m in models.items()}
            step("")
        self._set_hmms()
        self.fit_report_ = self._report(models, shapes, losses)
        if not folds:
            return None
        return self._mix(averages, likelihoods[best], songs.lengths)

    def _has_biases(self) -> bool:
        return self.decision == "hybrid"

    def _shapes(self) -> list[Shape]:
        """Shapes to try, simple ones first."""
        states = self.auto_states if self.n_states == "auto" else (int(self.n_states),)
        covariances = ("diag", "full")
        topologies = ("ergodic", "left-right")
        if self.n_features_in_ > _MOST_FULL:
            covariances = ("diag",)  # type: ignore[assignment]
        if self.covariance_type != "auto":
            covariances = (self.covariance_type,)  # type: ignore[assignment]
        if self.topology != "auto":
            topologies = (self.topology,)  # type: ignore[assignment]
        return [
            Shape(n, covariance, topology)
            for n, covariance, topology in itertools.product(states, covariances, topologies)
        ]

    def _make_start(self, songs: Songs, y: Ints) -> AverageStart:
        return make_start(WholeSongs(songs), y, len(self.classes_), self._columns_are_classes)

    def _try_folds(
        self, songs: Songs, y: Ints, folds: list[Fold], shapes: list[Shape], step: Any
    ) -> tuple[Floats, list[Floats]]:
        """Averages and, for each shape, log likelihoods per frame, of songs held out in turn."""
        n = len(y) if folds else 0
        averages, *likelihoods = np.empty((1 + len(shapes), n, len(self.classes_)))
        for learn, held in folds:
            averages[held] = self._make_start(songs[learn], y[learn]).scores(songs[held])
        tries = {
            f"fold {number}, {shape}, held out": (number, i)
            for number in range(len(folds))
            for i, shape in enumerate(shapes)
        }

        def fits(item: tuple[int, int], arrays: Mapping[str, Array]) -> bool:
            return are_floats(arrays, {"likelihood": (len(folds[item[0]][1]), len(self.classes_))})

        shared = (self, songs, y, folds, shapes)
        for name, found in current_stage().each(_try_one, shared, tries, fits):
            number, i = tries[name]
            likelihoods[i][folds[number][1]] = found["likelihood"]
            step(str(shapes[i]))
        return averages, likelihoods

    def _fit_classes(
        self, frames: Floats, offsets: Ints, y: Ints, shape: Shape, n_restarts: int, about: str
    ) -> dict[int, _ClassModel]:
        models, stage = {}, current_stage()
        for k, mine in _songs_of_models(y).items():
            lengths = np.diff(offsets)[mine]
            own = np.concatenate([frames[offsets[i] : offsets[i + 1]] for i in mine])
            own_offsets = np.concatenate([[0], np.cumsum(lengths)])
            fit = partial(self._fit_class, own, own_offsets, shape, k, n_restarts)
            fits = partial(is_fitted, n_columns=frames.shape[1])
            found = stage.once(f"{about}, model {k}", fit, fits)
            parameters = GaussianParameters(*(found[part] for part in PARTS))
            models[k] = _ClassModel(parameters, found["history"].tolist(), len(mine), len(own))
        return models

    def _fit_class(
        self, frames: Floats, offsets: Ints, shape: Shape, k: int, n_restarts: int
    ) -> dict[str, Floats]:
        """Arrays of the likeliest model of one class, and the history of its likelihood."""
        n_states = max(1, min(shape.n_states, len(frames) // self.min_frames))
        rng = np.random.default_rng([self.random_state, k])
        n_starts = n_restarts if shape.topology == "ergodic" and n_states > 1 else 1
        fit = fit_with_hmmlearn if self.engine == "hmmlearn" else fit_em
        best: tuple[GaussianParameters, list[float]] | None = None
        for _ in range(n_starts):
            start = starting_model(frames, offsets, n_states, shape, rng)
            found = fit(
                frames,
                offsets,
                start,
                shrinkage=self.shrinkage,
                n_iter=self.n_iter,
                tol=self.tol * len(frames),
            )
            if best is None or found[1][-1] > best[1][-1]:
                best = found
        assert best is not None
        parameters, history = best
        end = log_likelihoods(frames, offsets, [parameters]).sum()  # EM does not know its own end
        arrays = {part: getattr(parameters, part) for part in PARTS}
        return arrays | {"history": np.array([*history, end])}

    def _choose(
        self, averages: Floats, likelihoods: list[Floats], y: Ints, groups: Ints
    ) -> tuple[int, list[float]]:
        """Simplest shape about as good as the best on held-out songs; sets the weights of its mix.

        "About" is a standard error of the paired difference. Averaging is simpler still, and must
        be beaten by `AVERAGING_ERRORS`.
        """
        # Without songs to hold out there is nothing to say for the likelihoods.
        averaging = np.array([0.0, 1.0, 0.0])
        self.weights_ = averaging
        if len(averages) == 0:
            return 0, []
        prior = np.broadcast_to(self._log_prior(), averages.shape)
        mixes = [np.stack([ll, averages, prior]) for ll in likelihoods]
        weights = [fit_mixture_weights(mix, y, around=averaging)[0] for mix in mixes]
        losses = [
            calibrated_losses(np.tensordot(w, mix, axes=1), y)
            for w, mix in zip(weights, mixes, strict=True)
        ]
        means = [float(loss.mean()) for loss in losses]
        lowest = losses[int(np.argmin(means))]
        best = next(i for i, loss in enumerate(losses) if about_equal(loss, lowest, groups))
        # A few weights fit a few songs by chance alone, so here they are fitted to others.
        mixed, averaged = (
            unseen_losses(parts, y, groups, around, self.random_state)
            for parts, around in ((mixes[best], averaging), (averages[None], np.ones(1)))
        )
        if not about_equal(averaged, mixed, groups, AVERAGING_ERRORS):
            self.weights_ = weights[best]
        return best, means

    def _log_scores(self, songs: Songs) -> Floats:
        with one_thread_each():
            likelihood = self._likelihood(self._models, self._whitening(songs), songs.offsets)
        return self._mix(self._start.scores(songs), likelihood, songs.lengths)

    def _likelihood(
        self, models: Mapping[int, GaussianParameters], frames: Floats, offsets: Ints
    ) -> Floats:
        """Log likelihood per frame, or its lead on the background, shape (n_songs, n_classes)."""
        found = log_likelihoods(frames, offsets, [*models.values()], self.dtype, self.n_jobs)
        return self._of_classes(list(models), found / np.diff(offsets)[:, None])

    def _of_classes(self, models: list[int], per_frame: Floats) -> Floats:
        """What the models say of songs, as what the classes say."""
        out = np.full((len(per_frame), len(self.classes_) + self.multilabel_), np.inf)
        out[:, models] = per_frame
        # A class without a model is as likely as the unlikeliest of the others.
        out = np.where(np.isinf(out), out.min(axis=1, keepdims=True), out)
        return np.asarray(out[:, :-1] - out[:, -1:] if self.multilabel_ else out)

    def _mix(self, averages: Floats, likelihood: Floats, lengths: Ints) -> Floats:
        prior = self._log_prior()
        if self.decision == "likelihood":
            return np.asarray(likelihood * lengths[:, None] + prior)
        a, b, c = self.weights_
        return np.asarray(a * likelihood + b * averages + c * prior)

    def _memory(self, n: int) -> Memory:
        return _Listening(self, n)

    def _log_prior(self) -> Floats:
        return prior_scores(self.class_prior_[self._class_order], self.multilabel_)

    def _set_hmms(self) -> None:
        """Give the fitted models to the user, as hmmlearn has them."""
        hmms = {
            k: to_hmmlearn(model, self._whitening, self._column_order)
            for k, model in self._models.items()
        }
        self.background_ = hmms.pop(len(self.classes_), None)
        self.hmms_ = {
            self.classes_[self._class_order[k]].item(): hmms[k]
            for k in sorted(hmms, key=lambda k: self._class_order[k])
        }

    def _report(
        self, models: Mapping[int, _ClassModel], shapes: list[Shape], losses: list[float]
    ) -> str:
        lines = [f"asked for {self.shape_} per class"]
        if losses:
            lines.append("loss on held-out songs, nats: ")
            lines[-1] += ", ".join(
                f"{shape} {loss:.3f}" for shape, loss in zip(shapes, losses, strict=True)
            )
        a, b, c = self.weights_
        if self.decision == "hybrid":
            lines.append(
                f"score = {a:.3g} log likelihood per frame + {b:.3g} average "
                f"+ {c:.3g} log prior; {self._start}"
            )
        names = [str(label) for label in self.classes_[self._class_order]]
        for k, label in enumerate([*names, "background"] if self.multilabel_ else names):
            if k not in models:
                lines.append(f"{label}: no training song")
                continue
            m = models[k]
            fell = any(b < a - ROUNDING * abs(a) for a, b in itertools.pairwise(m.history))
            lines.append(
                f"{label}: {m.n_songs} songs, {m.n_frames} frames, {m.parameters.n_states} states, "
                f"{len(m.history) - 1} iterations, {m.history[-1] / m.n_frames:.3f} nats per frame"
                + (", likelihood fell at some iteration" if fell else "")
            )
        return "\n".join(lines)

    def _state(self) -> dict[str, Array]:
        state = {
            "weights": self.weights_,
            "center": self._whitening.center,
            "basis": self._whitening.basis,
            **self._start.state(),
            "shape": text_array(dataclasses.astuple(self.shape_)),
            "report": text_array(self.fit_report_),
        }
        for k, m in self._models.items():
            state |= {
                f"{k}.startprob": m.startprob,
                f"{k}.transmat": m.transmat,
                f"{k}.means": m.means,
                f"{k}.covars": m.covars,
            }
        return state

    def _set_state(self, arrays: Mapping[str, Array]) -> None:
        n_columns, n_classes = self.n_features_in_, len(self.classes_)
        shapes = {
            "weights": (3,),
            "center": (n_columns,),
            "basis": (n_columns,) * (1 if n_columns > MOST_ROTATED else 2),
            **AverageStart.shapes(n_columns, n_classes, arrays),
        }
        check_floats({name: arrays[name] for name in shapes}, shapes)
        self.weights_ = arrays["weights"]
        self._whitening = Whitening(arrays["center"], arrays["basis"])
        self._start = AverageStart.of_state(arrays)
        self._models = {
            k: read_model(arrays, k, n_columns)
            for k in range(n_classes + self.multilabel_)
            if f"{k}.startprob" in arrays
        }
        if self.multilabel_ and n_classes not in self._models:
            raise ModelFileError("the background has no model")
        if not self._models:
            raise ModelFileError("no class has a model")
        self.shape_ = read_shape(arrays["shape"])
        self.fit_report_ = str(from_text_array(arrays["report"]))
        known = {
            "shape",
            "report",
            *shapes,
            *(f"{k}.{part}" for k in self._models for part in PARTS),
        }
        if set(arrays) != known:
            raise ModelFileError(f"unknown arrays: {', '.join(sorted(set(arrays) - known))}")
        self._set_hmms()


class _Listening(RunningAverages):
    """What the HMMs and the average remember."""

    def __init__(self, method: HMMAggregator, n: int) -> None:
        self._method = method
        self._filter = ForwardFilter([*method._models.values()])
        start = {"ahead": self._filter.start, "log_likelihood": np.zeros(len(method._models))}
        super().__init__(n, method.n_features_in_, method._start.averages, start=start)

    def _hear(self, songs: Songs, which: Ints) -> None:
        super()._hear(songs, which)
        ahead, total = self.arrays["ahead"], self.arrays["log_likelihood"]
        with one_thread_each():
            frames = self._method._whitening(songs)
            self._filter.hear(frames, songs.offsets, which, ahead, total)

    def log_scores(self, which: Ints) -> Floats:
        method, averages = self._method, self.averages(which)
        per_frame = self.arrays["log_likelihood"][which] / averages.lengths[:, None]
        likelihood = method._of_classes(list(method._models), per_frame)
        return method._mix(method._start.scores_of(averages), likelihood, averages.lengths)


def _songs_of_models(y: Ints) -> dict[int, Ints]:
    """Songs that each model is fitted to."""
    if y.ndim == 1:
        return {int(k): np.flatnonzero(y == k) for k in np.unique(y)}
    classes = {int(k): np.flatnonzero(y[:, k]) for k in np.flatnonzero(y.any(axis=0))}
    return {**classes, y.shape[1]: np.arange(len(y))}


def _try_one(
    shared: tuple[HMMAggregator, Songs, Ints, list[Fold], list[Shape]], item: tuple[int, int]
) -> dict[str, Floats]:
    """Log likelihoods per frame of the songs held out, by models of a shape of the others."""
    (method, songs, y, folds, shapes), (number, i) = shared, item
    (learn, held), about = folds[number], f"fold {number}, {shapes[i]}"
    known, unknown = songs[learn], songs[held]
    whiten = whiten_within(known, y[learn])
    fitted = method._fit_classes(whiten(known), known.offsets, y[learn], shapes[i], 1, about)
    models = {k: m.parameters for k, m in fitted.items()}
    return {"likelihood": method._likelihood(models, whiten(unknown), unknown.offsets)}
