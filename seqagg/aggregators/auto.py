"""Averaging, unless something else is better by more than noise.

Conventions
-----------
Every candidate judges the training songs by models that had not seen them; the candidates are
compared, and blended, on those held-out log probabilities, or with several labels per song
log-odds, shape (n_songs, n_classes). A method that averages many models has fewer of them that had
not seen a song; what the rest will add is told from how much two say more than one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from seqagg.aggregators import aggregator_class, make_aggregator
from seqagg.aggregators.base import Aggregator, Array, Floats, Ints, OnEmpty
from seqagg.aggregators.parameters import check_range, check_seed
from seqagg.aggregators.saving import pack, unpack
from seqagg.aggregators.state import from_text_array, text_array
from seqagg.calibration import (
    about_equal,
    fit_mixture_weights,
    normalize,
    paired_gain,
    song_losses,
)
from seqagg.certainty import AS_IT_IS, Certainty, fit_certainty, read_certainty
from seqagg.engines import engine_in_use
from seqagg.errors import ModelFileError, ParameterError
from seqagg.folds import grouped_folds
from seqagg.progress import steps
from seqagg.songs import Songs
from seqagg.streaming import Memory

_BASELINES = ("mean", "logodds")

_WEIGHT_FOLDS = 5

_LEAST_WEIGHT = 0.01
"""A method that weighs less in the blend is left out of it."""

_UNKNOWN = -25.0
"""Log probability of a class none of whose songs has a frame."""


class AutoAggregator(Aggregator):
    """Choose between averaging and a blend of the learnt methods.

    All candidates are fitted to the training songs, and each gives log probabilities (or, with
    several labels per song, log-odds) of those songs by models that had not seen them. The blend
    is their weighted sum, the weights fitted on these. It is used only where it beats averaging,
    the blend of the two averages alone, by more than `n_errors` standard errors of the difference
    per group of songs; otherwise averaging is kept, beside which the probabilities that it makes
    may stand, if that is better by more than one.

    Parameters
    ----------
    methods : tuple of str
        Learnt methods to try, by their names in the table.
    parameters : dict of str to dict, optional
        Parameters of a method, where others than its defaults are wanted.
    n_errors : float
        Standard errors by which averaging must be beaten.
    random_state : int
        Seed handed to every method.
    on_empty : {"error", "prior"}
        What a song without a single frame gets: an error that names it, or the class prior.

    Attributes
    ----------
    candidates_ : dict of str to Aggregator
        The fitted methods that the answer comes from. They know columns and classes by their
        numbers in the canonical order alone.
    weights_ : dict of str to float
        Weight of each of them in the blend.
    fit_report_ : str
        What was tried, what was chosen and why.
    """

    def __init__(
        self,
        *,
        methods: tuple[str, ...] = ("hmm", "gru", "stack"),
        parameters: Mapping[str, Mapping[str, Any]] | None = None,
        n_errors: float = 1.0,
        random_state: int = 0,
        on_empty: OnEmpty = "error",
    ) -> None:
        self.methods = methods
        self.parameters = parameters
        self.n_errors = n_errors
        self.random_state = random_state
        self.on_empty = on_empty

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if not isinstance(self.methods, list | tuple) or not self.methods:
            raise ParameterError("methods must be a list of names")
        given = {} if self.parameters is None else self.parameters
        if not (isinstance(given, Mapping) and all(isinstance(g, Mapping) for g in given.values())):
            raise ParameterError("parameters must be a mapping from methods to mappings of theirs")
        check_seed("random_state", self.random_state)
        check_range("n_errors", self.n_errors, -math.inf, math.inf)
        if "auto" in self.methods:
            raise ParameterError("auto cannot choose itself")
        for name in self.methods:
            self._new(name)
        for name in self.parameters or {}:
            if name not in self.methods:
                raise ParameterError(f"parameters for {name!r}, which is not among the methods")

    def _new(self, name: str) -> Aggregator:
        chosen = dict((self.parameters or {}).get(name, {}))
        if "random_state" in aggregator_class(name)._get_param_names():
            chosen.setdefault("random_state", self.random_state)
        return make_aggregator(name, **chosen)

    def _names(self) -> list[str]:
        baselines = _BASELINES if self._columns_are_classes else ()
        return [*baselines, *(name for name in self.methods if name not in baselines)]

    def _fit(self, songs: Songs, y: Ints, groups: Ints) -> Floats | None:
        known = self._named(songs)
        self._headers: dict[str, Array] = {}
        # Labels by the names of the columns, so that the methods know which columns are classes.
        labels = y if y.ndim == 1 else [set(np.flatnonzero(row).tolist()) for row in y]
        fitted: dict[str, Aggregator] = {}
        names = self._names()
        with steps("auto", len(names)) as step:
            candidates = [self._new(name) for name in names]
            for i, candidate in engine_in_use().run(_fit_one, (known, labels, groups), candidates):
                fitted[names[i]] = candidate
                step(names[i])
        panels, counts = self._panels({name: fitted[name] for name in names})
        self.weights_ = self._choose(panels, counts, y, groups)
        self.candidates_ = {name: fitted[name] for name in self.weights_}
        return self._blend({name: panels[name][0] for name in self.weights_})

    def _panels(self, fitted: Mapping[str, Aggregator]) -> tuple[dict[str, Floats], Floats]:
        """What candidates say of held-out songs, and how much each panel of their models counts.

        The first panel is everyone's mean vote; in the others, methods that average models have a
        single vote each. Panels have shape (n_panels, n_songs, n_classes). Their counts, which sum
        to 1, make of their losses that of all the models which judge a new song.
        """
        votes = {name: f._votes for name, f in fitted.items() if f._votes and f._votes.share > 0}
        n_votes = max((len(v.scores) for v in votes.values()), default=0)
        share = min((v.share for v in votes.values()), default=0.0)
        counts = np.array([1 + share] + [-share / max(n_votes, 1)] * n_votes)
        panels = {}
        for name, candidate in fitted.items():
            panels[name] = np.stack([self._spread(candidate, candidate._held_out)] * len(counts))
            for i in range(n_votes if name in votes else 0):
                scores = votes[name].scores
                panels[name][1 + i] = self._normalized(candidate, scores[i % len(scores)])
        return panels, counts

    def _named(self, songs: Songs) -> Songs:
        """Name the columns so that the methods know as much about them as this one."""
        prefix = "" if self._columns_are_classes else "column "
        return songs._with(columns=tuple(f"{prefix}{j}" for j in range(songs.n_columns)))

    def _spread(self, fitted: Aggregator, normalized: Floats) -> Floats:
        """Columns for all classes, from those that the method knows, in canonical order."""
        out = np.full((len(normalized), len(self.classes_)), _UNKNOWN)
        out[:, fitted.classes_[fitted._class_order]] = normalized
        return out

    def _choose(
        self, panels: Mapping[str, Floats], counts: Floats, y: Ints, groups: Ints
    ) -> dict[str, float]:
        """Weights of the averages alone, or of the blend of all if that is clearly better."""
        names = list(panels)
        losses = {name: self._losses(panels[name], counts, y).mean() for name in names}
        lines = [f"{name}: held-out loss {losses[name]:.4f} nats per song" for name in names]
        baselines = [name for name in _BASELINES if name in names]
        better = min(baselines, key=lambda name: losses[name], default=None)
        weights, loss = self._try_blend(panels, counts, better, y, groups)
        lines.append(_describe("blend", weights, loss))
        self._certainty = AS_IT_IS
        if baselines:
            means = {name: panels[name][:1] for name in baselines}
            averages, averaged, certainty = self._average(means, better, y, groups)
            lines.append(_describe("averaging", averages, averaged, certainty))
            gain, error = paired_gain(averaged, loss, groups)
            # A blend of averages alone differs from averaging by rounding.
            kept = set(weights) <= set(baselines) or not gain > self.n_errors * error
            lines.append(
                f"the blend gains {gain:.4f} nats on averaging, with a standard error of "
                f"{error:.4f}: " + ("averaging is kept" if kept else "it is used")
            )
            if kept:
                weights, self._certainty = averages, certainty
        self.fit_report_ = "\n".join(lines)
        return weights

    def _average(
        self, means: Mapping[str, Floats], better: str | None, y: Ints, groups: Ints
    ) -> tuple[dict[str, float], Floats, Certainty]:
        """Weights of the averages, their loss on each song, and their certainty."""
        about = means, np.ones(1), better, y, groups
        weights, losses = self._try_blend(*about)
        if self.multilabel_:
            return weights, losses, AS_IT_IS
        # What suits these songs is not quite what suits others, as `start` has it; but an average
        # that is clearly of no use gets no share.
        shares, shared = self._try_blend(*about, halfway=True)
        halfway = about_equal(shared, losses, groups)
        if halfway:
            weights, losses = shares, shared
        _, beside = self._try_blend(*about, halfway=halfway, certain=True)
        if about_equal(losses, beside, groups):
            return weights, losses, AS_IT_IS
        blend = np.asarray(sum(weight * means[name][0] for name, weight in weights.items()))
        certainty = fit_certainty(blend, y)
        return weights, losses if certainty == AS_IT_IS else beside, certainty

    def _try_blend(
        self,
        panels: Mapping[str, Floats],
        counts: Floats,
        better: str | None,
        y: Ints,
        groups: Ints,
        *,
        halfway: bool = False,
        certain: bool = False,
    ) -> tuple[dict[str, float], Floats]:
        """Weights of some candidates, and the loss of their blend on each song.

        With `halfway` they lie halfway from the likeliest to equal ones. With `certain`, for a
        single panel, the probabilities that the blend makes stand beside it.
        """
        names = list(panels)
        parts = np.stack([panels[name] for name in names])
        around = np.array([float(name == better) for name in names])

        def fit(parts: Floats, y: Ints) -> Floats:
            found = _fit_weights(parts, counts, y, around)
            return (found + 1 / len(names)) / 2 if halfway else found

        found = fit(parts, y)
        weights = dict(zip(names, found.tolist(), strict=True))
        weights = {n: w for n, w in weights.items() if w >= _LEAST_WEIGHT}
        # Each song is judged by weights that were fitted to others.
        losses = np.full(len(y), np.inf)  # with nothing to hold out, the blend is not trusted
        for learn, held in grouped_folds(y, groups, _WEIGHT_FOLDS, self.random_state):
            found = fit(parts[:, :, learn], y[learn])
            blend = np.tensordot(found, parts[:, :, held], axes=1)
            if certain:
                said = np.tensordot(found, parts[:, 0, learn], axes=1)
                certainty = fit_certainty(said, y[learn])
                blend = certainty.of(blend[0])[None]
            losses[held] = self._losses(blend, counts, y[held])
        return weights or {better or names[-1]: 1.0}, losses

    def _losses(self, panels: Floats, counts: Floats, y: Ints) -> Floats:
        """Loss of each song, in nats, as if all models of all methods had judged it."""
        losses = [song_losses(normalize(panel, self.multilabel_), y) for panel in panels]
        return np.asarray(counts @ losses)

    def _blend(self, log_probas: Mapping[str, Floats]) -> Floats:
        blend = sum(w * log_probas[name] for name, w in self.weights_.items())
        return self._certainty.of(np.asarray(blend))

    def _log_scores(self, songs: Songs) -> Floats:
        known = self._named(songs)
        return self._blend(
            {
                name: self._normalized(fitted, fitted._log_scores(fitted._canonical(known)))
                for name, fitted in self.candidates_.items()
            }
        )

    def _normalized(self, fitted: Aggregator, log_scores: Floats) -> Floats:
        return self._spread(fitted, normalize(fitted._calibrated(log_scores), self.multilabel_))

    def _memory(self, n: int) -> Memory:
        return _Listening(self, n)

    def _learnt(self) -> dict[str, Array]:
        found = self.candidates_.items()
        weights = {f"{name}/weight": np.array(self.weights_[name]) for name, _ in found}
        fingerprints = {name: fitted._fingerprint() for name, fitted in found}
        return weights | self._kept_certainty() | fingerprints

    def _kept_certainty(self) -> dict[str, Array]:
        """Nothing of one that changes nothing, as in the first files."""
        return {} if self._certainty == AS_IT_IS else {"certainty": np.array(self._certainty)}

    def _state(self) -> dict[str, Array]:
        state: dict[str, Array] = {"report": text_array(self.fit_report_)}
        state |= self._kept_certainty()
        for name, fitted in self.candidates_.items():
            header, arrays = pack(fitted)
            state[f"{name}/header"] = self._headers.get(name, text_array(header))
            state[f"{name}/weight"] = np.array(self.weights_[name])
            state |= {f"{name}/array/{part}": array for part, array in arrays.items()}
        return state

    def _set_state(self, arrays: Mapping[str, Array]) -> None:
        found = {name.partition("/")[0] for name in arrays if "/" in name}
        # In the order of the fit: the blend is a sum of floats.
        names = [name for name in self._names() if name in found]
        if not names or found - set(names):
            raise ModelFileError(f"candidates {', '.join(found)} are not those of the parameters")
        # Other versions of libraries, and of seqagg, say other things of the same candidates.
        self._headers = {name: arrays[f"{name}/header"] for name in names}
        self.candidates_, self.weights_ = {}, {}
        for name in names:
            start = f"{name}/array/"
            parts = {n.removeprefix(start): a for n, a in arrays.items() if n.startswith(start)}
            header = from_text_array(arrays[f"{name}/header"])
            if not isinstance(header, dict) or header.get("method") != name:
                raise ModelFileError(f"candidate {name} is something else")
            self.candidates_[name] = unpack(header, parts)
            if self.candidates_[name].multilabel_ != self.multilabel_:
                raise ModelFileError(f"candidate {name} has another number of labels per song")
            self.weights_[name] = float(arrays[f"{name}/weight"])
        self._certainty = AS_IT_IS
        if "certainty" in arrays and not self.multilabel_:
            self._certainty = read_certainty(arrays["certainty"])
        self.fit_report_ = str(from_text_array(arrays["report"]))


def _fit_weights(parts: Floats, counts: Floats, y: Ints, around: Floats) -> Floats:
    """Weights of parts of shape (n_parts, n_panels, n_songs, n_classes)."""
    n_panels = len(counts)
    weights, _ = fit_mixture_weights(
        np.concatenate([parts[:, panel] for panel in range(n_panels)], axis=1),
        np.concatenate([y] * n_panels),
        around,
        calibrated=True,
        counts=np.repeat(counts, len(y)),
    )
    return weights


def _fit_one(data: tuple[Songs, Any, Ints], candidate: Aggregator) -> Aggregator:
    songs, labels, groups = data
    return candidate.fit(songs, labels, groups)


def _describe(
    what: str, weights: Mapping[str, float], losses: Floats, certainty: Certainty = AS_IT_IS
) -> str:
    mix = " + ".join(f"{weight:.2f} {name}" for name, weight in weights.items())
    mix += certainty.in_words()
    return f"{what}: held-out loss {losses.mean():.4f} nats per song, {mix}"


class _Listening(Memory):
    """What the candidates remember."""

    def __init__(self, method: AutoAggregator, n: int) -> None:
        super().__init__(n, {})
        self._method = method
        self._inner: dict[str, Memory] = {}
        for name, fitted in method.candidates_.items():
            try:
                self._inner[name] = fitted._memory(n)
            except ParameterError as error:
                raise ParameterError(f"{name}, which is in the blend: {error.message}") from None
            # The same arrays under longer names, not copies.
            self.arrays |= {f"{name}/{k}": a for k, a in self._inner[name].arrays.items()}

    def forget(self, which: Ints) -> None:
        super().forget(which)
        for memory in self._inner.values():
            memory.forget(which)

    def _hear(self, songs: Songs, which: Ints) -> None:
        known = self._method._named(songs)
        for name, memory in self._inner.items():
            memory.hear(self._method.candidates_[name]._canonical(known), which)

    def log_scores(self, which: Ints) -> Floats:
        method = self._method
        return method._blend(
            {
                name: method._normalized(method.candidates_[name], memory.log_scores(which))
                for name, memory in self._inner.items()
            }
        )
