"""Answers while songs are still playing.

Conventions
-----------
A *stream* is a song of which some frames have been heard. What a method remembers of n streams are
arrays whose first axis is the stream, of a size that does not depend on how much was heard. Private
methods get songs as those of the aggregators do, with a frame at least, and ``which``, the stream
that each of them goes on with; no stream is among them twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from seqagg.errors import ParameterError
from seqagg.songs import Songs, as_frames

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_MODEL = "model"
"""Name in a saved state of what tells one fitted model from another."""


class Memory(ABC):
    """What a method remembers of songs that are still playing.

    Parameters
    ----------
    n : int
        Number of streams.
    start : mapping of str to array-like
        What is remembered of a stream of which nothing was heard, by name.
    """

    def __init__(self, n: int, start: Mapping[str, npt.ArrayLike]) -> None:
        self._start = {"n_frames": np.array(0), **{k: np.asarray(v) for k, v in start.items()}}
        try:
            self.arrays: dict[str, Array] = {
                name: np.repeat(value[None], n, axis=0) for name, value in self._start.items()
            }
        except (MemoryError, OverflowError, ValueError):  # by how much it is too many
            raise ParameterError(f"n={n} streams need more memory than there is") from None

    def hear(self, songs: Songs, which: Ints) -> None:
        """Take in the next frames of some streams."""
        self._hear(songs, which)
        self.arrays["n_frames"][which] += songs.lengths

    def forget(self, which: Ints) -> None:
        """Make streams as they were at the start."""
        for name, value in self._start.items():
            self.arrays[name][which] = value

    @abstractmethod
    def _hear(self, songs: Songs, which: Ints) -> None:
        """Bring all arrays but the number of frames up to date, in place."""

    @abstractmethod
    def log_scores(self, which: Ints) -> Floats:
        """What the method's `_log_scores` gives for all that these streams have heard."""


class Stream:
    """One song, or n of them side by side, heard frame by frame; from `Aggregator.stream`.

    Memory, and time per frame, do not grow with what was heard. The answer is that of a batch
    prediction on all frames so far, to rounding, however they were cut into pieces.

    Examples
    --------
    >>> import numpy as np
    >>> from seqagg import MeanLogOdds
    >>> songs = [[[2.0, -2.0], [-1.0, 1.0]], [[-0.5, 0.5]]]
    >>> model = MeanLogOdds().fit(songs, ["jig", "reel"])
    >>> stream = model.stream()
    >>> for frame in songs[0]:
    ...     probability = stream.update(frame)
    >>> np.allclose(probability, model.predict_proba(songs)[0])
    True
    """

    def __init__(
        self,
        memory: Memory,
        *,
        alone: bool,
        prepare: Callable[[Any], Songs],
        answer: Callable[[Floats], Floats],
        prior: Floats,
        model: Array,
    ) -> None:
        self._memory = memory
        self._alone = alone
        self._prepare = prepare
        self._answer = answer
        self._prior = prior
        self._model = model

    def __len__(self) -> int:
        return len(self._memory.arrays["n_frames"])

    @property
    def n_frames(self) -> Ints:
        """Frames that each stream has heard, missing ones left out, shape (n_streams,)."""
        return self._memory.arrays["n_frames"].copy()

    def update(self, frames: Any, which: npt.ArrayLike | None = None) -> Floats:
        """Take in more frames; give P(class | all frames so far).

        Parameters
        ----------
        frames : array-like, Songs
            Of one stream, a frame of shape (n_columns,), or an array (n_frames, n_columns) of
            any number of frames. Of n streams, what `predict` takes, a song for each: `Songs`, a
            list of arrays, or an array (n_streams, n_columns) with one frame for each. Plain
            arrays are log-odds. Missing frames are skipped, so NaN is for a stream that pauses.
        which : array-like of int or bool, optional
            The streams that these frames are of, if not of all in turn.

        Returns
        -------
        ndarray of shape (n_classes,) or (n_streams, n_classes)
            Calibrated, in the order of `classes_`; only of the streams that were asked for,
            which may be none. A stream that has heard nothing has the class prior.

        Raises
        ------
        SongError
            Names the stream whose frames cannot be used, by its place among those given.
        ParameterError
            When there are not as many songs as streams, or a stream is not there.
        """
        chosen = self._chosen(which)
        if isinstance(frames, list | tuple) and not frames and (self._alone or not len(chosen)):
            return self._believed(chosen)  # of no song, nor frame, the columns cannot be told
        if self._alone and not isinstance(frames, Songs):
            array = as_frames(frames)
            frames = [array[None] if array.ndim == 1 else array]
        songs = self._prepare(frames)
        if len(songs) != len(chosen):
            raise ParameterError(f"frames of {len(songs)} songs for {len(chosen)} streams")
        filled = songs.lengths > 0
        if filled.any():
            self._memory.hear(songs if filled.all() else songs[filled], chosen[filled])
        return self._believed(chosen)

    def predict_proba(self, which: npt.ArrayLike | None = None) -> Floats:
        """P(class | all frames so far), as `update` gives it."""
        return self._believed(self._chosen(which))

    def reset(self, which: npt.ArrayLike | None = None) -> None:
        """Forget what was heard, so that other songs can begin in these streams."""
        self._memory.forget(self._chosen(which))

    def state(self) -> dict[str, Array]:
        """Copy of all that is remembered, arrays by name: for `numpy.savez`, or safetensors."""
        arrays = {name: array.copy() for name, array in self._memory.arrays.items()}
        return {_MODEL: self._model.copy(), **arrays}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Go on from what `state` gave, in this process or another.

        Raises
        ------
        ParameterError
            When it is the state of another model, of another number of streams, or of none.
        """
        arrays = self._memory.arrays
        if not isinstance(state, Mapping) or set(state) != {_MODEL, *arrays}:
            raise ParameterError("the state has not the arrays of this model's streams")
        if not np.array_equal(state[_MODEL], self._model):
            raise ParameterError("the state is that of another fitted model")
        for name, array in arrays.items():
            given = np.asarray(state[name])
            if given.dtype != array.dtype or given.shape != array.shape:
                raise ParameterError(
                    f"{name} of the state has dtype {given.dtype} and shape {given.shape}, not "
                    f"{array.dtype} and {array.shape}"
                )
            if np.isnan(given).any():
                raise ParameterError(f"{name} of the state holds NaN")
            if given.dtype.kind == "i" and (given < 0).any():
                raise ParameterError(f"{name} of the state holds a number below 0")
        begun = np.asarray(state["n_frames"]) > 0  # the lowest of nothing is infinite
        for name in arrays:
            if np.isposinf(np.asarray(state[name])[begun]).any():
                raise ParameterError(f"{name} of the state holds an infinity")
        for name, array in arrays.items():
            array[...] = state[name]

    def _chosen(self, which: npt.ArrayLike | None) -> Ints:
        everyone = np.arange(len(self))
        if which is None:
            return everyone
        places = np.asarray(which)
        if places.size == 0 and places.dtype.kind == "f":  # an empty list
            places = places.astype(np.int64)
        try:
            chosen: Ints = everyone[places].reshape(-1)
        except IndexError as error:
            raise ParameterError(f"no such stream: {error}") from None
        if len(np.unique(chosen)) < len(chosen):
            raise ParameterError("a stream is there twice")
        return chosen

    def _believed(self, which: Ints) -> Floats:
        out = np.tile(self._prior, (len(which), 1))
        heard = self._memory.arrays["n_frames"][which] > 0
        if heard.any():
            out[heard] = self._answer(self._memory.log_scores(which[heard]))
        return out[0] if self._alone and len(which) else out
