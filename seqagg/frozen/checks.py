"""What can be told of frame scores while they come: their number, their kind, their honesty.

Conventions
-----------
Scores have shape (n_frames, n_columns). A frame whose values are all NaN is missing: it never
reaches the model, and its scores are NaN. A row of scores with a NaN is a missing frame as well.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from seqagg.errors import ParameterError, SongError
from seqagg.frozen.models import FrameModel, to_numpy
from seqagg.frozen.named import Block
from seqagg.logodds import Kind, Task

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

_ROUNDING = 1e-6
"""How far beyond 0 and 1 a probability is still one."""

_SUM_TOLERANCE = 1e-2
_FEW = 8
"""Frames below which scores between 0 and 1 may be anything."""

_PROBED = 64
"""Frames that are scored again, alone and in another order."""

_RELATIVE, _ABSOLUTE = 1e-2, 1e-3
"""Differences that half precision and other sums make: beyond them, scores are not the same."""


class Scorer:
    """A frame classifier whose scores are checked as they come.

    Parameters
    ----------
    model : FrameModel
    kind, task : str
        What its scores are declared to be.
    check : bool
        Score some frames of the first batch twice, to see that a frame's scores are its own; and
        see whether the scores may be what they are declared to be.

    Attributes
    ----------
    columns : tuple of str
    header : dict of str to Any
        ``columns``, ``kind`` and ``task`` of `Songs`.
    """

    def __init__(self, model: FrameModel, kind: Kind, task: Task, check: bool) -> None:
        self.columns = model.columns
        self.header: dict[str, Any] = {"columns": model.columns, "kind": kind, "task": task}
        self._model = model
        self._kind = kind
        self._sums_matter = kind == "probability" and task == "multiclass"
        self._check = check
        self._n = self._n_asked = self._n_summing = self._n_within = 0
        self._odd_one: str | None = None

    def __call__(self, block: Block) -> Floats:
        """Scores of a batch, shape (n_frames, n_columns), NaN where a frame is missing."""
        there = ~missing_frames(block.frames)
        asked = block if there.all() else block[there]
        scores = np.full((len(block), len(self.columns)), np.nan, np.float32)
        if not len(asked):
            return scores
        found = self._ask(asked)
        first = self._n_asked == 0
        self._n_asked += len(asked)
        scores[there] = found
        self._count(found, asked)
        if self._check and first:
            self._probe(asked, found)
            self._refuse_another_kind()
        return scores

    def finish(self) -> None:
        """Say what only all scores together can tell."""
        if self._n_asked and not self._n:
            raise SongError("the model gives NaN for every frame")
        if not self._check:
            return
        self._refuse_another_kind()
        if self._sums_matter and 0 < self._n_summing < self._n:
            odd = self._n - self._n_summing
            warnings.warn(
                f"probabilities of {odd} frames do not sum to one, those of the other "
                f"{self._n_summing} do; the first is of song {self._odd_one!r}",
                stacklevel=4,
            )

    def agrees(self, block: Block, scores: Floats) -> bool:
        """Whether these frames still get these scores."""
        return _alike(self(block), scores)

    def _ask(self, block: Block) -> Floats:
        """Scores of frames that are there, checked one by one."""
        n, columns = len(block), self.columns
        try:
            raw = self._model.score(block.frames)
        except Exception as error:
            error.add_note(f"while scoring {n} frames, the first of song {block.song(0)!r}")
            raise
        try:
            found = to_numpy(raw)
            found = found.reshape(-1, 1) if found.ndim == 1 else found
        except (TypeError, ValueError):  # ragged, or no array at all
            found = np.empty((), object)
        if found.dtype.kind not in "fiu" or found.ndim != 2:
            shape = f" of shape {found.shape}" if found.ndim else ""
            raise ParameterError(
                f"the model gives {type(raw).__name__}{shape}, not an array of shape (n_frames, "
                f"{len(columns)}); a function can take out of it what is wanted"
            )
        if len(found) != n:
            raise ParameterError(
                f"the model gives {len(found)} rows of scores for {n} frames "
                f"(the first of song {block.song(0)!r})"
            )
        if found.shape[1] != len(columns):
            raise ParameterError(
                f"the model gives {found.shape[1]} columns of scores for {len(columns)} names "
                f"({', '.join(columns)})"
            )
        with np.errstate(over="ignore"):
            scores = found.astype(np.float32)
        return self._of_kind(scores, block)

    def _of_kind(self, scores: Floats, block: Block) -> Floats:
        if self._kind == "probability":
            wrong = (scores < -_ROUNDING) | (scores > 1 + _ROUNDING)
            what = "no probability"
        else:
            wrong = np.isinf(scores) if self._kind == "logit" else np.zeros((), bool)
            what = "no finite logit"
        if wrong.any():
            row, column = divmod(int(np.argmax(wrong)), len(self.columns))
            raise SongError(
                f"frame {block.ranks[row]} has a score of {scores[row, column]:.6g}: {what}",
                song=block.song(row),
                column=self.columns[column],
            )
        return np.clip(scores, 0, 1) if self._kind == "probability" else scores

    def _count(self, scores: Floats, block: Block) -> None:
        there = ~np.isnan(scores).any(axis=1)
        sums = scores.sum(axis=1)
        within = there & (scores >= 0).all(axis=1) & (scores <= 1).all(axis=1)
        summing = within & (np.abs(sums - 1) <= _SUM_TOLERANCE)
        odd = there & ~summing
        if odd.any() and self._odd_one is None:
            self._odd_one = block.song(int(np.argmax(odd)))
        self._n += int(there.sum())
        self._n_within += int(within.sum())
        self._n_summing += int(summing.sum())

    def _refuse_another_kind(self) -> None:
        if self._kind == "probability" or self._n < _FEW:
            return
        what = None
        if self._n_summing == self._n and len(self.columns) > 1:
            what = "lie between 0 and 1 and sum to one"
        elif self._n_within == self._n:
            what = "lie between 0 and 1"
        if what:
            raise ParameterError(
                f"declared as {self._kind}, but the scores of all {self._n} frames {what}: is "
                "the kind not probability? (check=False if it is not)"
            )

    def _probe(self, block: Block, scores: Floats) -> None:
        """Ask for some frames alone: twice, and the other way round."""
        few = block[: min(_PROBED, (len(block) + 1) // 2)]
        if not _alike(self._ask(few), self._ask(few)):
            raise ParameterError(
                "the same frames get other scores when they are scored again: is dropout on, or "
                "are the frames shuffled? (check=False if it must be so)"
            )
        if not _alike(self._ask(few[::-1])[::-1], scores[: len(few)]):
            raise ParameterError(
                "a frame gets other scores in other company: does the model normalise over the "
                "batch, or does it take the frames in an order of its own? (check=False if it "
                "must be so)"
            )


def missing_frames(frames: Array) -> npt.NDArray[np.bool_]:
    """Which frames have not a single value, shape (n_frames,)."""
    flat = frames.reshape(len(frames), -1)
    if flat.dtype.kind != "f" or not flat.size:
        return np.zeros(len(flat), bool)
    missing: npt.NDArray[np.bool_] = np.isnan(flat[:, 0])
    missing[missing] = np.isnan(flat[missing]).all(axis=1)
    return missing


def _alike(one: Floats, other: Floats) -> bool:
    return np.allclose(one, other, rtol=_RELATIVE, atol=_ABSOLUTE, equal_nan=True)
