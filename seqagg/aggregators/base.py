"""What all aggregators share: checks, the order of classes, calibrated probabilities, files.

Conventions
-----------
Private methods get checked songs of log-odds (nats) without missing frames or empty songs, and
for labels class indices, or where songs have several labels each an indicator of shape
(n_songs, n_classes). Log scores are then log-odds of each class by itself; `seqagg.calibration`
knows what that changes. They see columns and classes in the *canonical order*, which depends on
the training values alone: whoever permutes columns and classes gets the same numbers, permuted,
from every method, be it ever so random. Public methods speak in the user's order.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from seqagg.aggregators.canonical import order_of_columns
from seqagg.aggregators.checks import (
    check_groups,
    check_indicator,
    check_label_lists,
    check_labels,
    find_targets,
    has_several_labels,
    indicator_of,
    is_indicator,
    not_columns,
    reorder_columns,
    unseen_label,
)
from seqagg.aggregators.parameters import check_choice, plain_numbers
from seqagg.aggregators.votes import Votes
from seqagg.calibration import (
    fit_calibration,
    log_probabilities,
    normalize,
    prior_scores,
    smoothed_prior,
)
from seqagg.checkpoints import stage_of
from seqagg.decision import abstain, best_thresholds, doubt_limit, doubts_of, label_sets
from seqagg.errors import ParameterError, SongError
from seqagg.fingerprints import fingerprint
from seqagg.markup import card
from seqagg.songs import Songs, all_finite, as_songs
from seqagg.streaming import Memory, Stream
from seqagg.threads import one_thread_each

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
OnEmpty = Literal["error", "prior"]

_SHOWN_CLASSES = 20
"""Classes that a notebook shows."""


class Aggregator(ClassifierMixin, BaseEstimator, ABC):  # type: ignore[misc]
    """Label whole songs from the log-odds of their frames.

    A method is a subclass with `_fit` if it learns, `_log_scores`, and `_state` / `_set_state` if
    it has something to save.

    Parameters
    ----------
    on_empty : {"error", "prior"}
        What a song without a single frame gets: an error that names it, or the class prior.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted. Where every label is the name of a column, all columns are classes. Of an
        indicator, the numbers of its columns.
    columns_ : tuple of str or None
        Names of the columns, where the training songs had some.
    n_features_in_ : int
        Number of columns.
    multilabel_ : bool
        Whether songs have any number of labels, each class by itself.
    class_prior_ : ndarray of shape (n_classes,)
        Share of each class among the training songs, each counted once more than it occurs; with
        several labels per song, and once more than it is absent.
    doubts_ : ndarray of shape (n_training_songs,)
        1 less the probability of each training song's label, by a model that had not seen it;
        of several labels, of the least probable, and 0 where there is none.
    inverse_temperature_ : float
        What log scores are multiplied by before the biases and the softmax, or with several labels
        per song the logistic function, fitted on songs held out.
    biases_ : ndarray of shape (n_classes,), or None
        What is added to each class's log score after the inverse temperature. Where songs have one
        label each, rules have none, nor have HMMs that decide by likelihoods alone.
    thresholds_ : ndarray of shape (n_classes,), or None
        With several labels per song, the probability from which on each class is predicted: that
        of the highest F1 on songs held out, drawn towards 0.5 where a class has few songs.
    """

    ignores_order: ClassVar[bool] = False
    """Whether the method declares that the order of a song's frames says nothing."""

    needs_class_columns: ClassVar[bool] = False
    """Whether every label must be the name of a column."""

    on_empty: OnEmpty
    biases_: Floats | None
    thresholds_: Floats | None
    _votes: Votes | None = None
    """Where several models judge a new song: what those say of held-out songs, one by one."""
    _trained_on: str | None = None
    """Checksum of the cache that a loaded aggregator was fitted to."""
    _trained_kind: str | None = None
    """Kind of the scores of the training songs."""
    _fitted_with: dict[str, str] | None = None
    """Versions of what a loaded aggregator was fitted with."""

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> Aggregator:
        """Learn from labelled songs, forgetting any earlier fit.

        Parameters
        ----------
        X : Songs, or list of n_songs arrays of shape (n_frames_i, n_columns)
            Frame scores; plain arrays are log-odds, in nats.
        y : array-like of shape (n_songs,) or (n_songs, n_classes), optional
            Labels of any type; those of `X` if it carries them. Methods that learn nothing go
            without, where the columns have names. For songs with several labels each a matrix of
            0 and 1, whose columns are then the classes 0, 1, ... and, where there are as many, the
            columns of `X` in their order; or a list of labels for each song.
        groups : array-like of shape (n_songs,), optional
            What must stay together when the method splits the songs for itself; those of `X` if
            it carries them.

        Returns
        -------
        Aggregator
            Itself.

        Raises
        ------
        SongError
            Names the song whose frames, label or group cannot be used.
        """
        self._check_parameters()
        # Set last, so that a fit that fails leaves nothing that looks fitted.
        self.__dict__.pop("inverse_temperature_", None)
        self._trained_on = self._fitted_with = None
        self._trained_kind = X.kind if isinstance(X, Songs) else "log_odds"
        songs = self._usable(X)
        targets = find_targets(
            songs,
            y,
            required=not self.needs_class_columns,
            positions=self.needs_class_columns,
        )
        group_of = check_groups(songs, groups)
        self.columns_ = songs.columns
        self.n_features_in_ = songs.n_columns
        self.classes_, self.multilabel_ = targets.classes, targets.multilabel
        class_of_column = targets.class_of_column if self._takes_log_odds() else None
        self._columns_are_classes = class_of_column is not None
        if self.needs_class_columns and class_of_column is None:
            raise not_columns(songs, targets)
        filled = self._refuse_empty(songs)
        if not filled.any() and not self.needs_class_columns:
            raise SongError("no training song has a frame")
        songs, group_of = songs[filled], group_of[filled]
        y_filled = None if targets.y is None else targets.y[filled]
        self._set_canonical_order(songs, class_of_column, y_filled)
        songs = self._canonical(songs)
        known = self._canonical_labels(y_filled)
        if self.multilabel_ and not self.needs_class_columns and not known.any():
            raise SongError("no training song has a label and a frame: nothing can be learnt")
        prior = smoothed_prior(known, len(self.classes_))
        self.class_prior_ = prior[self._rank_of_class()]
        with one_thread_each(), plain_numbers(self), stage_of(self, songs, known, group_of):
            held_out = self._fit(songs, known, group_of)
        if targets.y is not None and held_out is None:
            held_out = self._log_scores(songs)
        self._calibrate(np.empty((0, len(prior))) if held_out is None else held_out, known)
        return self

    def _calibrate(self, log_scores: Floats, y: Ints) -> None:
        """Fit what log scores pass through, and what is decided on, to songs held out."""
        biased = self.multilabel_ or self._has_biases()
        beta, bias = fit_calibration(log_scores, y, biased=biased)
        self.biases_ = bias[self._rank_of_class()] if biased else None
        self._held_out = normalize(beta * log_scores + bias, self.multilabel_)
        if self.multilabel_:
            self.doubts_ = doubts_of(self._held_out, y)
            self.thresholds_ = best_thresholds(self._held_out, y)[self._rank_of_class()]
        else:
            self.doubts_ = 1 - np.exp(self._held_out[np.arange(len(y)), y])
            self.thresholds_ = None
        self.inverse_temperature_ = beta

    def predict(self, X: Any, *, abstain_below: float | None = None) -> Array:
        """Likeliest label of each song, shape (n_songs,), or every label that is likely enough.

        With several labels per song, an indicator of 0 and 1, shape (n_songs, n_classes): the
        classes whose probability reaches their one of `thresholds_`.

        Parameters
        ----------
        X : Songs, or list of arrays
        abstain_below : float, optional
            Where the likeliest class is less probable than this, the answer is None.

        Raises
        ------
        ParameterError
            For `abstain_below` where songs have several labels each.
        """
        scores = self._scores(X)
        if self.thresholds_ is not None:
            if abstain_below is not None:
                raise ParameterError(
                    "abstain_below is for songs with one label each; predict_set says which of "
                    "several labels cannot be ruled out"
                )
            return self._chosen(scores)
        labels = np.asarray(self.classes_[self._chosen(scores)])
        if abstain_below is None:
            return labels
        return abstain(labels, softmax(scores, axis=1), abstain_below)

    def predict_set(self, X: Any, *, error_rate: float = 0.1) -> npt.NDArray[np.bool_]:
        """Set of labels for each song that misses a true one at most so often.

        Split-conformal on the training songs, each judged by a model that had not seen it: the
        promise holds for songs that are exchangeable with those, and for a method that averages
        the models of several folds as well as these stand for it.

        Parameters
        ----------
        X : Songs, or list of arrays
        error_rate : float
            Share of songs one of whose labels may be missing from their set, in (0, 1).

        Returns
        -------
        ndarray of bool, shape (n_songs, n_classes)
            Never an empty row, unless songs may go without a label.
        """
        limit = doubt_limit(self.doubts_, error_rate)
        return label_sets(self.predict_proba(X), limit, never_empty=not self.multilabel_)

    def predict_proba(self, X: Any) -> Floats:
        """P(class | song), calibrated, shape (n_songs, n_classes).

        Rows sum to 1, unless songs have several labels each: then every class is by itself.
        """
        return np.asarray(np.exp(self.predict_log_proba(X)))

    def predict_log_proba(self, X: Any) -> Floats:
        """Log P(class | song), in nats, shape (n_songs, n_classes).

        A row depends on its own song alone.
        """
        return log_probabilities(self._scores(X), self.multilabel_)

    def decision_function(self, X: Any) -> Floats:
        """The rule's own number for each class, shape (n_songs, n_classes).

        With two classes that exclude each other, as scikit-learn has it, that of the second less
        that of the first, shape (n_songs,).
        """
        songs = self._check_songs(X)
        decision = self._over_empty(songs, self._decision, self.class_prior_)
        if len(self.classes_) == 2 and not self.multilabel_:
            return decision[:, 1] - decision[:, 0]
        return decision

    def stream(self, n: int | None = None) -> Stream:
        """Listen to songs that are still playing, in constant memory and time per frame.

        Parameters
        ----------
        n : int, optional
            Number of songs that play side by side, answered as one batch; without it, one.

        Returns
        -------
        Stream
            Its ``update(frames)`` gives the probabilities so far, equal to a batch prediction on
            all frames that were heard.

        Raises
        ------
        ParameterError
            When the method, with the options it has, must know the end of a song; it says which.
            When `n` is no whole number above 0, or more than memory has room for.
        """
        check_is_fitted(self)
        if n is not None and (not isinstance(n, int | np.integer) or n < 1):
            raise ParameterError(f"n={n!r} is no whole number above 0")
        prior = prior_scores(self.class_prior_, self.multilabel_)
        rank = self._rank_of_class()

        def answer(log_scores: Floats) -> Floats:
            scores = self._calibrated(log_scores)[:, rank]
            return np.asarray(np.exp(log_probabilities(scores, self.multilabel_)))

        return Stream(
            self._memory(1 if n is None else int(n)),
            alone=n is None,
            prepare=lambda X: self._canonical(self._check_songs(X)),
            answer=answer,
            prior=np.exp(log_probabilities(prior[None], self.multilabel_))[0],
            model=self._fingerprint(),
        )

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Share of songs whose label is predicted; of several labels, all and no others.

        Parameters
        ----------
        X : Songs, or list of arrays
        y : array-like of shape (n_songs,) or (n_songs, n_classes), optional
            Labels, as `fit` takes them; those of `X` if it carries them.
        sample_weight : array-like of shape (n_songs,), optional

        Raises
        ------
        SongError
            Names a song without a label, or with one never seen in training.
        """
        check_is_fitted(self)
        songs = self._as_songs(X)
        if self.multilabel_:
            right = (self.predict(songs) == self._indicator(songs, y)).all(axis=1)
            return float(np.average(right, weights=sample_weight))
        labels = check_labels(songs, y, required=True)
        assert labels is not None
        unseen = ~np.isin(labels, self.classes_)
        if unseen.any():
            first = int(np.argmax(unseen))
            raise unseen_label(songs, first, labels[first])
        return float(np.average(self.predict(songs) == labels, weights=sample_weight))

    def _indicator(self, songs: Songs, y: Any) -> Ints:
        """Indicator of songs with several labels, in the order of `classes_`."""
        if not is_indicator(y):
            if y is not None and not has_several_labels(songs, y):
                raise SongError("the model was fitted to several labels per song; y has one")
            lists = check_label_lists(songs, y, required=True)
            assert lists is not None
            return indicator_of(songs, lists, self.classes_)
        indicator = check_indicator(songs, y)
        if indicator.shape[1] != len(self.classes_):
            raise SongError(
                f"the indicator has {indicator.shape[1]} columns for {len(self.classes_)} classes"
            )
        return indicator

    def save(self, path: str | os.PathLike[str], *, trained_on: str | None = None) -> None:
        """Write the fitted aggregator to a ``.safetensors`` file, whole or not at all.

        Holds numbers and JSON, nothing that could run. `seqagg.load` reads it.

        Parameters
        ----------
        path : path-like
            Ends in ``.safetensors``.
        trained_on : str, optional
            Checksum of the cache it was fitted to, from `seqagg.cache.checksum`, to be kept in
            the file.
        """
        from seqagg.aggregators.saving import save

        save(self, path, trained_on=trained_on)

    def __sklearn_is_fitted__(self) -> bool:
        """Say to scikit-learn whether the last fit came to its end."""
        return hasattr(self, "inverse_temperature_")

    def __sklearn_tags__(self) -> Tags:
        """Say to scikit-learn that arrays will do, and may have missing frames."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.allow_nan = True
        tags.classifier_tags.multi_label = True
        return tags

    def _html_repr(self) -> str:
        """What was learnt, and scikit-learn's diagram, as notebooks show them."""
        diagram = str(super()._html_repr())
        if not self.__sklearn_is_fitted__():
            return diagram
        names = ", ".join(map(str, self.classes_[:_SHOWN_CLASSES]))
        more = ", ..." if len(self.classes_) > _SHOWN_CLASSES else ""
        facts = [
            f"{len(self.classes_)} classes: {names}{more}",
            f"{self.n_features_in_} columns; probabilities from {len(self.doubts_)} songs held out",
            *(getattr(self, "fit_report_", None) or "").splitlines(),
        ]
        return card(f"{type(self).__name__}, fitted", facts) + diagram

    # What a method writes.

    def _check_parameters(self) -> None:
        """Refuse parameters outside their range, with `ParameterError`."""
        check_choice("on_empty", self.on_empty, ("error", "prior"))

    def _fit(self, songs: Songs, y: Ints, groups: Ints) -> Floats | None:
        """Learn; return log scores of the training songs by models that had not seen them.

        None says that nothing was learnt from the labels, so that the songs' own scores serve.
        """
        return None

    @abstractmethod
    def _log_scores(self, songs: Songs) -> Floats:
        """Score every class, shape (n_songs, n_classes), up to a constant per song."""

    def _decision(self, songs: Songs) -> Floats:
        """The rule's own number, shape (n_songs, n_classes); the log scores by default.

        Of songs with one label each the biases are in it: the highest class is the one predicted.
        """
        scores = self._log_scores(songs)
        if self.biases_ is None or self.multilabel_:
            return scores
        return np.asarray(scores + self.biases_[self._class_order] / self.inverse_temperature_)

    def _has_biases(self) -> bool:
        """Whether classes of songs with one label each are given biases.

        A rule says which class is highest without having learnt anything.
        """
        return not self.needs_class_columns

    def _memory(self, n: int) -> Memory:
        """What n streams are remembered by, raising `ParameterError` where nothing constant is."""
        raise ParameterError(f"{type(self).__name__} cannot stream")

    def _plain_parameters(self) -> dict[str, Any]:
        """Parameters as JSON can hold them; what it cannot is in `_state`."""
        return dict(self.get_params(deep=False))

    def _state(self) -> dict[str, Array]:
        """Arrays to save beyond what all methods have, by name."""
        return {}

    def _set_state(self, arrays: Mapping[str, Array]) -> None:
        """Take back what `_state` gave, raising `ModelFileError` where it does not fit."""

    def _learnt(self) -> dict[str, Array]:
        """Arrays that answers come from, of which there are some even where none can be saved."""
        return self._state()

    def _takes_log_odds(self) -> bool:
        """Whether columns are log-odds; otherwise they are features whose order matters."""
        return True

    def _converted(self, songs: Songs) -> Songs:
        """Songs of the kind of scores that the method works on."""
        return songs.log_odds() if self._takes_log_odds() else songs

    def _as_songs(self, X: Any) -> Songs:
        """`Songs` from what the method accepts."""
        return as_songs(X)

    # What all share.

    def _usable(self, X: Any) -> Songs:
        """Songs of log-odds without their missing frames."""
        songs = self._as_songs(X)
        if songs.kind == "log_odds" and all_finite(songs.values):
            return songs
        return self._converted(songs).present()

    def _scores(self, X: Any) -> Floats:
        """Calibrated log scores, classes in the user's order."""
        songs = self._check_songs(X)
        prior = prior_scores(self.class_prior_, self.multilabel_)
        return self._over_empty(songs, lambda s: self._calibrated(self._log_scores(s)), prior)

    def _calibrated(self, log_scores: Floats) -> Floats:
        """Log scores as they may be believed, classes in the canonical order as before."""
        calibrated = self.inverse_temperature_ * log_scores
        if self.biases_ is None:
            return calibrated
        return np.asarray(calibrated + self.biases_[self._class_order])

    def _fingerprint(self) -> npt.NDArray[np.uint8]:
        """Tell this fitted model from any other, by all that its answers come from."""
        learnt = {name: np.asarray(array) for name, array in sorted(self._learnt().items())}
        shared = (self.class_prior_, self.doubts_, self.biases_, float(self.inverse_temperature_))
        orders = [part.tolist() for part in (self._column_order, self._class_order)]
        names = (type(self).__name__, self.classes_.tolist(), self.columns_)
        told = fingerprint(names, orders, shared, learnt)
        return np.frombuffer(bytes.fromhex(told), dtype=np.uint8)

    def _chosen(self, scores: Floats) -> Ints:
        """What scores decide: a position in `classes_`, or an indicator of several labels."""
        if self.thresholds_ is not None:
            # As `predict_proba` has it: another way to the same number may round otherwise.
            probability = np.exp(log_probabilities(scores, True))
            return np.asarray(probability >= self.thresholds_, dtype=np.int64)
        return np.asarray(scores.argmax(axis=1))

    def _answers(self, X: Any) -> tuple[Ints, Floats]:
        """What is chosen, and the probabilities, for the price of one."""
        scores = self._scores(X)
        return self._chosen(scores), np.exp(log_probabilities(scores, self.multilabel_))

    def _check_songs(self, X: Any) -> Songs:
        check_is_fitted(self)
        return self._of_known_columns(X)

    def _of_known_columns(self, X: Any) -> Songs:
        """Usable songs with the columns of the training songs."""
        songs = self._usable(X)
        if songs.columns is not None and self.columns_ is not None:
            return reorder_columns(songs, self.columns_)
        if songs.n_columns != self.n_features_in_:
            raise SongError(f"songs have {songs.n_columns} columns, not {self.n_features_in_}")
        return songs

    def _over_empty(self, songs: Songs, hook: Any, prior: Floats) -> Floats:
        """Apply a hook to songs that have frames; the others get the prior."""
        filled = self._refuse_empty(songs)
        if filled.all() and len(songs):
            return np.take(hook(self._canonical(songs)), self._rank_of_class(), axis=1)
        out = np.tile(prior, (len(songs), 1))
        if filled.any():
            out[filled] = hook(self._canonical(songs[filled]))[:, self._rank_of_class()]
        return out

    def _refuse_empty(self, songs: Songs) -> npt.NDArray[np.bool_]:
        filled = songs.lengths > 0
        if self.on_empty == "error" and not filled.all():
            empty = int(np.argmin(filled))
            raise SongError(
                "no frame is left (on_empty='prior', or --on-empty, answers with the class prior)",
                song=str(songs.ids[empty]),
            )
        return filled

    def _set_canonical_order(
        self, songs: Songs, class_of_column: Ints | None, y: Ints | None
    ) -> None:
        """Order columns, and with them classes, by their values; of equal ones, by their songs."""
        if not self._takes_log_odds():
            self._column_order = np.arange(songs.n_columns)
            self._class_order = np.arange(len(self.classes_))
            return
        if class_of_column is None:
            self._column_order = order_of_columns(songs.values)
            self._class_order = np.arange(len(self.classes_))
            return
        has = None
        if y is not None:
            has = y[:, class_of_column] if self.multilabel_ else y[:, None] == class_of_column
        self._column_order = order_of_columns(songs.values, has)
        self._class_order = class_of_column[self._column_order]

    def _rank_of_class(self) -> Ints:
        """Position of each of `classes_` in the canonical order."""
        return np.argsort(self._class_order)

    def _canonical_labels(self, y: Ints | None) -> Ints:
        """Labels as private methods get them; without any, those of no song."""
        if self.multilabel_:
            empty = np.empty((0, len(self.classes_)), dtype=np.int64)
            return empty if y is None else y[:, self._class_order]
        return np.empty(0, dtype=np.int64) if y is None else self._rank_of_class()[y]

    def _canonical(self, songs: Songs) -> Songs:
        return songs._with(values=songs.values[:, self._column_order], columns=None)
