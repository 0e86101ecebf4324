"""What all aggregators share: checks, the order of classes, calibrated probabilities, files.

Conventions
-----------
Private methods get checked songs of log-odds (nats) without missing frames or empty songs, and
class indices for labels. They see columns and classes in the *canonical order*, which depends on
the training values alone: whoever permutes columns and classes gets the same numbers, permuted,
from every method, be it ever so random. Public methods speak in the user's order.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from seqagg.aggregators.checks import (
    check_groups,
    check_labels,
    class_of_column,
    find_classes,
    not_columns,
    reorder_columns,
)
from seqagg.calibration import fit_inverse_temperature
from seqagg.decision import abstain, doubt_limit, label_sets
from seqagg.errors import ParameterError, SongError
from seqagg.songs import Songs, as_songs
from seqagg.threads import one_thread_each

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
OnEmpty = Literal["error", "prior"]


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
        Labels, sorted. Where every label is the name of a column, all columns are classes.
    columns_ : tuple of str or None
        Names of the columns, where the training songs had some.
    n_features_in_ : int
        Number of columns.
    class_prior_ : ndarray of shape (n_classes,)
        Share of each class among the training songs, each counted once more than it occurs.
    doubts_ : ndarray of shape (n_training_songs,)
        1 less the probability of each training song's label, by a model that had not seen it.
    inverse_temperature_ : float
        What log scores are multiplied by before the softmax, fitted on songs held out.
    """

    ignores_order: ClassVar[bool] = False
    """Whether the method declares that the order of a song's frames says nothing."""

    needs_class_columns: ClassVar[bool] = False
    """Whether every label must be the name of a column."""

    on_empty: OnEmpty

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> Aggregator:
        """Learn from labelled songs, forgetting any earlier fit.

        Parameters
        ----------
        X : Songs, or list of n_songs arrays of shape (n_frames_i, n_columns)
            Frame scores; plain arrays are log-odds, in nats.
        y : array-like of shape (n_songs,), optional
            Labels of any type; those of `X` if it carries them. Methods that learn nothing go
            without, where the columns have names.
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
        songs = self._usable(X)
        labels = check_labels(songs, y, required=not self.needs_class_columns)
        group_of = check_groups(songs, groups)
        self.columns_ = songs.columns
        self.n_features_in_ = songs.n_columns
        self.classes_, self._columns_are_classes = find_classes(
            songs, labels, positions=self.needs_class_columns
        )
        self._columns_are_classes &= self._takes_log_odds()
        if self.needs_class_columns and not self._columns_are_classes:
            raise not_columns(songs, labels, self.classes_)
        filled = self._refuse_empty(songs)
        if not filled.any() and not self.needs_class_columns:
            raise SongError("no training song has a frame")
        songs, group_of = songs[filled], group_of[filled]
        self._set_canonical_order(songs)
        songs = self._canonical(songs)
        if labels is None:
            y_index = np.empty(0, dtype=np.int64)
        else:
            y_index = self._rank_of_class()[np.searchsorted(self.classes_, labels[filled])]
        counts = np.bincount(y_index, minlength=len(self.classes_)) + 1.0
        self.class_prior_ = (counts / counts.sum())[self._rank_of_class()]
        with one_thread_each():
            held_out = self._fit(songs, y_index, group_of)
        if labels is None:
            self.doubts_ = np.empty(0)
            self.inverse_temperature_ = 1.0
            return self
        scores = self._log_scores(songs) if held_out is None else held_out
        beta = fit_inverse_temperature(scores, y_index)
        self._held_out = log_softmax(beta * scores, axis=1)
        self.doubts_ = 1 - np.exp(self._held_out[np.arange(len(y_index)), y_index])
        self.inverse_temperature_ = beta
        return self

    def predict(self, X: Any, *, abstain_below: float | None = None) -> Array:
        """Likeliest label of each song, shape (n_songs,).

        Parameters
        ----------
        X : Songs, or list of arrays
        abstain_below : float, optional
            Where the likeliest class is less probable than this, the answer is None.
        """
        scores = self._scores(X)
        labels = np.asarray(self.classes_[scores.argmax(axis=1)])
        if abstain_below is None:
            return labels
        return abstain(labels, softmax(scores, axis=1), abstain_below)

    def predict_set(self, X: Any, *, error_rate: float = 0.1) -> npt.NDArray[np.bool_]:
        """Set of labels for each song that misses the true one at most so often.

        Split-conformal on the training songs, each judged by a model that had not seen it: the
        promise holds for songs that are exchangeable with those, and for a method that averages
        the models of several folds as well as these stand for it.

        Parameters
        ----------
        X : Songs, or list of arrays
        error_rate : float
            Share of songs whose label may be missing from their set, in (0, 1).

        Returns
        -------
        ndarray of bool, shape (n_songs, n_classes)
            Never an empty row.
        """
        return label_sets(self.predict_proba(X), doubt_limit(self.doubts_, error_rate))

    def predict_proba(self, X: Any) -> Floats:
        """P(class | song), calibrated, shape (n_songs, n_classes); rows sum to 1."""
        return np.asarray(np.exp(self.predict_log_proba(X)))

    def predict_log_proba(self, X: Any) -> Floats:
        """Log P(class | song), in nats, shape (n_songs, n_classes).

        A row depends on its own song alone.
        """
        return np.asarray(log_softmax(self._scores(X), axis=1))

    def decision_function(self, X: Any) -> Floats:
        """The rule's own number for each class, shape (n_songs, n_classes).

        With two classes, as scikit-learn has it, that of the second less that of the first,
        shape (n_songs,).
        """
        songs = self._check_songs(X)
        decision = self._over_empty(songs, self._decision, self.class_prior_)
        return decision[:, 1] - decision[:, 0] if len(self.classes_) == 2 else decision

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Share of songs whose label is predicted.

        Parameters
        ----------
        X : Songs, or list of arrays
        y : array-like of shape (n_songs,), optional
            Labels; those of `X` if it carries them.
        sample_weight : array-like of shape (n_songs,), optional

        Raises
        ------
        SongError
            Names a song without a label, or with one never seen in training.
        """
        check_is_fitted(self)
        songs = self._as_songs(X)
        labels = check_labels(songs, y, required=True)
        assert labels is not None
        unseen = ~np.isin(labels, self.classes_)
        if unseen.any():
            first = int(np.argmax(unseen))
            raise SongError(
                f"label {labels[first]!s} was never seen in training", song=str(songs.ids[first])
            )
        return float(np.average(self.predict(songs) == labels, weights=sample_weight))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted aggregator to a ``.safetensors`` file, whole or not at all.

        Holds numbers and JSON, nothing that could run. `seqagg.load` reads it.
        """
        from seqagg.aggregators import save

        save(self, path)

    def __sklearn_is_fitted__(self) -> bool:
        """Say to scikit-learn whether the last fit came to its end."""
        return hasattr(self, "inverse_temperature_")

    def __sklearn_tags__(self) -> Tags:
        """Say to scikit-learn that songs are ragged and may have missing frames."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.allow_nan = True
        return tags

    # What a method writes.

    def _check_parameters(self) -> None:
        """Refuse parameters outside their range, with `ParameterError`."""
        if self.on_empty not in ("error", "prior"):
            raise ParameterError(f"on_empty={self.on_empty!r} is neither 'error' nor 'prior'")

    def _fit(self, songs: Songs, y: Ints, groups: Ints) -> Floats | None:
        """Learn; return log scores of the training songs by models that had not seen them.

        None says that nothing was learnt from the labels, so that the songs' own scores serve.
        """
        return None

    @abstractmethod
    def _log_scores(self, songs: Songs) -> Floats:
        """Score every class, shape (n_songs, n_classes), up to a constant per song."""

    def _decision(self, songs: Songs) -> Floats:
        """The rule's own number, shape (n_songs, n_classes); the log scores by default."""
        return self._log_scores(songs)

    def _state(self) -> dict[str, Array]:
        """Arrays to save beyond what all methods have, by name."""
        return {}

    def _set_state(self, arrays: Mapping[str, Array]) -> None:
        """Take back what `_state` gave, raising `ModelFileError` where it does not fit."""

    def _takes_log_odds(self) -> bool:
        """Whether columns are log-odds; otherwise they are features whose order matters."""
        return True

    def _as_songs(self, X: Any) -> Songs:
        """`Songs` from what the method accepts."""
        return as_songs(X)

    # What all share.

    def _usable(self, X: Any) -> Songs:
        """Songs of log-odds without their missing frames."""
        songs = self._as_songs(X)
        if songs.task != "multiclass":
            raise SongError("songs with several labels each are not supported")
        return (songs.log_odds() if self._takes_log_odds() else songs).present()

    def _scores(self, X: Any) -> Floats:
        """Log scores times the inverse temperature, classes in the user's order."""
        return self._over_empty(
            self._check_songs(X),
            lambda songs: self.inverse_temperature_ * self._log_scores(songs),
            np.log(self.class_prior_),
        )

    def _check_songs(self, X: Any) -> Songs:
        check_is_fitted(self)
        songs = self._usable(X)
        if songs.columns is not None and self.columns_ is not None:
            return reorder_columns(songs, self.columns_)
        if songs.n_columns != self.n_features_in_:
            raise SongError(f"songs have {songs.n_columns} columns, not {self.n_features_in_}")
        return songs

    def _over_empty(self, songs: Songs, hook: Any, prior: Floats) -> Floats:
        """Apply a hook to songs that have frames; the others get the prior."""
        filled = self._refuse_empty(songs)
        out = np.tile(prior, (len(songs), 1))
        if filled.any():
            kept = songs if filled.all() else songs[filled]
            out[filled] = hook(self._canonical(kept))[:, self._rank_of_class()]
        return out

    def _refuse_empty(self, songs: Songs) -> npt.NDArray[np.bool_]:
        filled = songs.lengths > 0
        if self.on_empty == "error" and not filled.all():
            empty = int(np.argmin(filled))
            raise SongError(
                "no frame is left (on_empty='prior' answers with the class prior)",
                song=str(songs.ids[empty]),
            )
        return filled

    def _set_canonical_order(self, songs: Songs) -> None:
        """Order columns, and with them classes, by the mean and spread of their values."""
        if not self._takes_log_odds():
            self._column_order = np.arange(songs.n_columns)
            self._class_order = np.arange(len(self.classes_))
            return
        values = songs.values.astype(np.float64)
        keys = (values.std(axis=0), values.mean(axis=0)) if len(values) else (values.sum(axis=0),)
        self._column_order = np.lexsort(keys)
        if self._columns_are_classes:
            self._class_order = class_of_column(self.columns_, self.classes_)[self._column_order]
        else:
            self._class_order = np.arange(len(self.classes_))

    def _rank_of_class(self) -> Ints:
        """Position of each of `classes_` in the canonical order."""
        return np.argsort(self._class_order)

    def _canonical(self, songs: Songs) -> Songs:
        return songs._with(values=songs.values[:, self._column_order], columns=None)


def text_array(value: Any) -> Array:
    """JSON as an array of bytes, for a `_state` that has more to say than numbers."""
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)


def from_text_array(array: Array) -> Any:
    """Take back what `text_array` gave; ValueError where it is none."""
    return json.loads(array.astype(np.uint8).tobytes())
