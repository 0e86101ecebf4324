"""A classifier on fixed-length summaries of songs that keep their order.

Conventions
-----------
Features are those of `seqagg.aggregators.summaries`, shape (n_songs, n_features).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import logit, softmax
from sklearn.base import ClassifierMixin, clone

from seqagg.aggregators.base import Aggregator, Array, Floats, Ints, OnEmpty
from seqagg.aggregators.parameters import check_count, check_seed
from seqagg.aggregators.start import AverageStart, fit_logistic, make_start, mixed_classes
from seqagg.aggregators.state import are_floats, check_floats, from_text_array, text_array
from seqagg.aggregators.summaries import (
    clipped,
    counts_pairs,
    n_summaries,
    put_together,
    summarize,
    transitions,
)
from seqagg.averages import Averages, HeldAverages, RunningAverages
from seqagg.calibration import (
    AVERAGING_ERRORS,
    about_equal,
    calibrated_losses,
    fit_mixture_weights,
    normalize,
    prior_scores,
    smoothed_prior,
)
from seqagg.checkpoints import current_stage
from seqagg.classifier_file import PARAMETER, dump_classifiers, load_classifiers
from seqagg.errors import ModelFileError, ParameterError
from seqagg.folds import Fold, grouped_folds
from seqagg.kernels.segments import segment_max, segment_sum
from seqagg.progress import steps
from seqagg.songs import Songs
from seqagg.streaming import Memory

_LEAST_SPREAD = 1e-6
"""Of a feature that is the same in all songs, and what a bound may be at least too."""


@dataclass(frozen=True)
class _Scale:
    """Standardized features z, each bounded as ``bound * tanh(z / bound)``.

    An extreme of a song is far out more often than a normal number would be, and a song with one
    must not be sure of itself for that alone.
    """

    center: Floats  # (n_features,)
    spread: Floats  # (n_features,)
    bound: Floats  # ()

    @classmethod
    def of(cls, features: Floats, bound: float) -> _Scale:
        spread = np.maximum(features.std(axis=0), _LEAST_SPREAD)
        return cls(features.mean(axis=0), spread, np.array(bound))

    def __call__(self, features: Floats) -> Floats:
        z = (features - self.center) / self.spread
        return np.asarray(self.bound * np.tanh(z / self.bound))


class _Linear:
    """Logistic regression as plain arrays, on features as they are or scaled."""

    def __init__(self, weight: Floats, bias: Floats, scale: _Scale | None = None) -> None:
        self.weight = weight  # (n_features, n_classes)
        self.bias = bias  # (n_classes,)
        self.scale = scale

    def scores(self, features: Floats) -> Floats:
        scaled = features if self.scale is None else self.scale(features)
        return np.asarray(scaled @ self.weight + self.bias)

    def state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        scale = {} if self.scale is None else vars(self.scale)
        return {"weight": self.weight, "bias": self.bias, **scale}, {}


@dataclass(frozen=True)
class _Setting:
    """What is chosen on held-out songs of the default classifier; nothing of the user's own."""

    ridge: float = 1.0
    bound: float = math.inf

    def __str__(self) -> str:
        bounded = "" if self.bound == math.inf else f", features within {self.bound:g} deviations"
        return f"ridge {self.ridge:g}{bounded}"


def _probabilities(model: Any, features: Floats) -> Floats:
    """What a classifier says; it may take the logarithm of 0, or square what is far out."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        return np.asarray(model.predict_proba(features))


class _Own:
    """A fitted classifier of the user's, whose scores are log probabilities as they stand."""

    def __init__(self, model: Any, n_classes: int) -> None:
        self.model = model
        self.n_classes = n_classes

    def scores(self, features: Floats) -> Floats:
        """Log probability of each class, shape (n_songs, n_classes)."""
        p = np.zeros((len(features), self.n_classes))
        p[:, self.model.classes_] = _probabilities(self.model, features)
        return np.asarray(np.log(np.fmax(p, 1e-6)))  # also where it does not know

    def state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        return {}, {_ALL: self.model}


class _OneVsRest:
    """A fitted classifier of the user's for each class that some songs have and others do not."""

    def __init__(self, models: dict[int, Any], bias: Floats) -> None:
        self.models = models
        self.bias = bias  # (n_classes,) log-odds of the other classes

    @classmethod
    def fit(cls, classifier: Any, features: Floats, y: Ints) -> _OneVsRest:
        models = {int(k): clone(classifier).fit(features, y[:, k]) for k in mixed_classes(y)}
        return cls(models, prior_scores(smoothed_prior(y, y.shape[1]), multilabel=True))

    def scores(self, features: Floats) -> Floats:
        """Log-odds of each class, shape (n_songs, n_classes)."""
        out = np.tile(self.bias, (len(features), 1))
        for k, model in self.models.items():
            out[:, k] = logit(_probabilities(model, features)[:, 1].clip(1e-6, 1 - 1e-6))
        return out

    def state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        return {"bias": self.bias}, {str(k): model for k, model in self.models.items()}


_ALL = "all classes"
"""Name in a model file of a classifier that tells all classes apart."""


@dataclass(frozen=True)
class Summaries:
    """What a stack learns from."""

    features: Floats  # (n_songs, n_features)
    averages: HeldAverages


class StackingAggregator(Aggregator):
    """Give a scikit-learn classifier a summary of each song, and listen to averaging too.

    The summary keeps order: moments and extremes of each column, the parts of the song, which
    column follows which. The score is ``a * log P(class | summary) + b * average``, the
    weights fitted on songs held out. For songs with several labels each there is a classifier per
    class, and its log-odds take the place of the log probability.

    Parameters
    ----------
    classifier : scikit-learn classifier with `predict_proba`, optional
        Cloned and fitted on the summaries. By default a logistic regression, multinomial or one
        per class, whose ridge is chosen on held-out songs, and how far out a feature may be. Model
        files keep logistic regressions, discriminants, `GaussianNB`, `MLPClassifier`, trees,
        forests, `HistGradientBoostingClassifier`, and pipelines of them; `save` refuses others.
    n_parts : int
        Equal parts that each song is cut into.
    n_folds : int
        Grouped folds on which all of that and the weights are chosen.
    random_state : int
        Seed of the folds.
    on_empty : {"error", "prior"}
        What a song without a single frame gets: an error that names it, or the class prior.

    Attributes
    ----------
    weights_ : ndarray of shape (2,)
        a and b.
    fit_report_ : str
        What was chosen, in words.
    """

    _bytes: Array | None = None

    ridges = (0.003, 0.03, 0.3)
    """Inverse strengths of the ridge that the default classifier tries."""

    bounds = (1.0, 3.0)
    """Deviations within which it keeps features, to try with each ridge."""

    def __init__(
        self,
        *,
        classifier: ClassifierMixin | None = None,
        n_parts: int = 4,
        n_folds: int = 5,
        random_state: int = 0,
        on_empty: OnEmpty = "error",
    ) -> None:
        self.classifier = classifier
        self.n_parts = n_parts
        self.n_folds = n_folds
        self.random_state = random_state
        self.on_empty = on_empty

    def _check_parameters(self) -> None:
        super()._check_parameters()
        for name in ("n_parts", "n_folds"):
            check_count(name, getattr(self, name))
        check_seed("random_state", self.random_state)
        if self.classifier is not None and not hasattr(self.classifier, "predict_proba"):
            raise ParameterError("the classifier of a stack needs predict_proba")

    def _fit(self, songs: Songs, y: Ints, groups: Ints) -> Floats | None:
        return self._learn(self._summaries(songs), y, groups)

    def _summaries(self, songs: Songs) -> Summaries:
        mixed = self._columns_are_classes and not self.multilabel_
        names = ("log_odds", "probability") if mixed else ("log_odds",)
        return Summaries(summarize(songs, self.n_parts), HeldAverages.of(songs, names))

    def _learn(self, songs: Summaries, y: Ints, groups: Ints) -> Floats | None:
        """Fit to songs whose frames are not asked for again; gives what `_fit` does."""
        n_classes, features = len(self.classes_), songs.features
        folds = grouped_folds(y, groups, self.n_folds, self.random_state)
        settings = [_Setting()]
        if self.classifier is None:
            settings = [_Setting(*both) for both in itertools.product(self.ridges, self.bounds)]
        averages = np.empty((len(y), n_classes))
        stacked = np.empty((len(settings), len(y), n_classes))
        tries = {
            f"fold {number}, {setting}": (i, fold, setting)
            for number, fold in enumerate(folds)
            for i, setting in enumerate(settings)
        }
        with steps("stack", len(tries) + 1) as step:
            for learn, held in folds:
                start = self._make_start(songs.averages.take(learn), y[learn])
                averages[held] = start.scores_of(songs.averages.take(held))

            def fits(item: tuple[int, Fold, _Setting], arrays: Mapping[str, Array]) -> bool:
                return are_floats(arrays, {"scores": (len(item[1][1]), n_classes)})

            for name, found in current_stage().each(_judge, (self, features, y), tries, fits):
                i, (_, held), _ = tries[name]
                stacked[i, held] = found["scores"]
                step("")
            # With nothing to hold out there is nothing to say for the classifier.
            self.weights_ = np.array([0.0, 1.0])
            best = 0
            if folds:
                best = self._choose(stacked, averages, y, groups)
            self._start = self._make_start(songs.averages, y)
            self._model = self._fit_classifier(features, y, settings[best])
            self._bytes = None
            step("")
        a, b = self.weights_
        self.fit_report_ = (
            f"{features.shape[1]} features, {settings[best]}; score = {a:.3g} "
            f"{'log-odds' if self.multilabel_ else 'log P'} + {b:.3g} average"
        )
        return a * stacked[best] + b * averages if folds else None

    def _choose(self, stacked: Floats, averages: Floats, y: Ints, groups: Ints) -> int:
        """Setting with the lowest loss on held-out songs; sets the weights of its mix.

        Averaging is kept unless the mix is better by more than `AVERAGING_ERRORS`.
        """
        averaging = np.array([0.0, 1.0])
        mixes = [np.stack([s, averages]) for s in stacked]
        fits = [fit_mixture_weights(mix, y, around=averaging) for mix in mixes]
        best = int(np.argmin([loss for _, loss in fits]))
        mixed = calibrated_losses(np.tensordot(fits[best][0], mixes[best], axes=1), y)
        kept = about_equal(calibrated_losses(averages, y), mixed, groups, AVERAGING_ERRORS)
        self.weights_ = averaging if kept else fits[best][0]
        return best

    def _make_start(self, averages: Averages, y: Ints) -> AverageStart:
        return make_start(averages, y, len(self.classes_), self._columns_are_classes)

    def _fit_classifier(self, features: Floats, y: Ints, setting: _Setting) -> Any:
        if y.ndim == 2 and self.classifier is not None:
            return _OneVsRest.fit(self.classifier, features, y)
        if y.ndim == 1 and len(np.unique(y)) == 1:  # a classifier would refuse
            bias = np.full(len(self.classes_), -np.log(len(y) + 1.0))
            bias[y[0]] = 0.0
            return _Linear(np.zeros((features.shape[1], len(bias))), bias)
        if self.classifier is not None:
            return _Own(clone(self.classifier).fit(features, y), len(self.classes_))
        scale = _Scale.of(features, setting.bound)
        map_ = fit_logistic(scale(features), y, len(self.classes_), setting.ridge)
        return _Linear(map_.weight, map_.bias, scale)

    def _log_proba(self, model: Any, features: Floats) -> Floats:
        scores: Floats = model.scores(features)
        return scores if isinstance(model, _Own) else normalize(scores, self.multilabel_)

    def _log_scores(self, songs: Songs) -> Floats:
        return self._mix(summarize(songs, self.n_parts), self._start.scores(songs))

    def _mix(self, features: Floats, averages: Floats) -> Floats:
        a, b = self.weights_
        return np.asarray(a * self._log_proba(self._model, features) + b * averages)

    def _memory(self, n: int) -> Memory:
        if self.n_parts > 1:
            raise ParameterError(
                f"a stack that cuts songs into n_parts={self.n_parts} parts must know where they "
                "end, and cannot stream; n_parts=1 can"
            )
        return _Listening(self, n)

    def _plain_parameters(self) -> dict[str, Any]:
        return super()._plain_parameters() | {"classifier": None}  # `_state` has it

    def _learnt(self) -> dict[str, Array]:
        arrays, _ = self._model.state()
        return {"weights": self.weights_, **arrays, **self._start.state()}

    def _state(self) -> dict[str, Array]:
        state = self._learnt() | {"report": text_array(self.fit_report_)}
        if self.classifier is not None:
            _, fitted = self._model.state()
            # Kept, so that what is loaded and saved again is the same bytes.
            if self._bytes is None:
                self._bytes = dump_classifiers({PARAMETER: self.classifier, **fitted})
            state["classifier"] = self._bytes
        return state

    def _set_state(self, arrays: Mapping[str, Array]) -> None:
        n_columns, n_classes = self.n_features_in_, len(self.classes_)
        n_features = n_summaries(n_columns, self.n_parts)
        shapes: dict[str, tuple[int, ...]] = {
            "weights": (2,),
            "weight": (n_features, n_classes),
            "bias": (n_classes,),
            **AverageStart.shapes(n_columns, n_classes, arrays),
        }
        if "bound" in arrays:  # which the first files do not have
            shapes |= {"center": (n_features,), "spread": (n_features,), "bound": ()}
        others = ("report", "classifier")
        check_floats({n: a for n, a in arrays.items() if n not in others}, shapes)
        self.weights_ = arrays["weights"]
        self._start = AverageStart.of_state(arrays)
        self.fit_report_ = str(from_text_array(arrays["report"]))
        self._bytes = arrays.get("classifier")
        self._model = self._read_model(arrays)

    def _read_model(self, arrays: Mapping[str, Array]) -> Any:
        """Fitted model from its arrays, or out of the bytes of classifiers; sets the parameter."""
        fitted: dict[str, Any] = {}
        n_features, n_classes = n_summaries(self.n_features_in_, self.n_parts), len(self.classes_)
        if self._bytes is not None:
            fitted = load_classifiers(self._bytes, n_features)
            self.classifier = fitted.pop(PARAMETER)
        if "weight" in arrays:
            return _Linear(arrays["weight"], arrays["bias"], _read_scale(arrays))
        names = [str(k) for k in range(n_classes)] if self.multilabel_ else [_ALL]
        known = [0, 1] if self.multilabel_ else range(n_classes)
        for name, model in fitted.items():
            if name not in names or not set(model.classes_.tolist()) <= set(known):
                raise ModelFileError("the classifiers are not those of the classes")
        if self.multilabel_:
            return _OneVsRest({int(k): model for k, model in fitted.items()}, arrays["bias"])
        return _Own(fitted[_ALL], n_classes)


def _read_scale(arrays: Mapping[str, Array]) -> _Scale | None:
    if "bound" not in arrays:
        return None
    scale = _Scale(arrays["center"], arrays["spread"], arrays["bound"])
    if min(scale.spread.min(), scale.bound) < _LEAST_SPREAD:
        raise ModelFileError("a spread or the bound is not positive, or next to nothing")
    return scale


def _judge(
    shared: tuple[StackingAggregator, Floats, Ints], item: tuple[int, Fold, _Setting]
) -> dict[str, Floats]:
    """Scores of the songs held out, by a classifier of the others."""
    (stack, features, y), (_, (learn, held), setting) = shared, item
    model = stack._fit_classifier(features[learn], y[learn], setting)
    return {"scores": stack._log_proba(model, features[held])}


class _Listening(RunningAverages):
    """What goes into the summaries of songs that are not cut into parts, and into the average."""

    def __init__(self, method: StackingAggregator, n: int) -> None:
        self._method = method
        zeros = np.zeros(method.n_features_in_)
        start = {
            "sum": zeros,
            "squares": zeros,
            "lowest": zeros + np.inf,
            "highest": zeros - np.inf,
        }
        if counts_pairs(len(zeros)):
            # Of the last frame, its shares: the next one makes pairs with them.
            start |= {"pairs": np.zeros(len(zeros) ** 2), "last": zeros}
        super().__init__(n, len(zeros), method._start.averages, start=start)

    def _hear(self, songs: Songs, which: Ints) -> None:
        super()._hear(songs, which)
        x, offsets, arrays = clipped(songs), songs.offsets, self.arrays
        arrays["sum"][which] += segment_sum(x, offsets)
        arrays["squares"][which] += segment_sum(x**2, offsets)
        lowest, highest = -segment_max(-x, offsets), segment_max(x, offsets)
        arrays["lowest"][which] = np.minimum(arrays["lowest"][which], lowest)
        arrays["highest"][which] = np.maximum(arrays["highest"][which], highest)
        if "pairs" in arrays:
            p, lengths = softmax(x, axis=1), songs.lengths[:, None]
            joint = arrays["last"][which][:, :, None] * p[offsets[:-1]][:, None, :]
            within = transitions(p, offsets) * lengths
            arrays["pairs"][which] += within + joint.reshape(within.shape)
            arrays["last"][which] = p[offsets[1:] - 1]

    def log_scores(self, which: Ints) -> Floats:
        averages = self.averages(which)
        n, mine = averages.lengths[:, None], {k: a[which] for k, a in self.arrays.items()}
        features = put_together(
            mine["sum"] / n,
            mine["squares"] / n,
            (mine["lowest"], mine["highest"]),
            [np.zeros_like(mine["sum"])],
            mine["pairs"] / n if "pairs" in mine else None,
            averages.lengths,
        )
        return self._method._mix(features, self._method._start.scores_of(averages))
