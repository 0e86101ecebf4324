"""Numbers behind the figures: tables of a benchmark in, arrays out.

Conventions
-----------
Songs stand in the order in which they were scored. A *score* says how right a method is on a song:
1 or 0, or where songs have several labels each the label ranking average precision. Shares are in
[0, 1]; intervals are of 95 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.stats import binomtest

from seqagg.errors import ResultsError
from seqagg.evaluation_multilabel import lrap_of_songs
from seqagg.results import BenchmarkResult
from seqagg.timelines import growing_marks

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

AVERAGES = ("logodds", "mean")
"""Methods that stand for averaging, the first of them that was compared."""


@dataclass(frozen=True)
class Answers:
    """What methods said of the songs that were scored.

    Attributes
    ----------
    classes, methods : tuple of str
    ids : list of str
    multilabel : bool
    has : ndarray of bool, shape (n_songs, n_classes)
        The truth.
    said : dict of str to ndarray of bool, shape (n_songs, n_classes)
        Method -> its answer.
    proba : dict of str to ndarray of shape (n_songs, n_classes)
    score : dict of str to ndarray of shape (n_songs,)
    averaging : str or None
        The method that the others are compared with.
    favourite : str
        Learnt method that is right most often; without one, the method that is.
    n_frames : ndarray of int, shape (n_songs,), or None
    """

    classes: tuple[str, ...]
    methods: tuple[str, ...]
    ids: list[str]
    multilabel: bool
    has: Mask
    said: Mapping[str, Mask]
    proba: Mapping[str, Floats]
    score: Mapping[str, Floats]
    averaging: str | None
    favourite: str
    n_frames: Ints | None


def find_answers(result: BenchmarkResult) -> Answers:
    """Lay out the table of predictions.

    Raises
    ------
    ResultsError
        When the methods were not asked about the same songs, or a class is unknown.
    """
    about, classes = result.provenance, result.classes
    multilabel = about["task"] == "multilabel"
    first = np.asarray(result.predictions["seed"]) == about["seed"]  # by which they are compared
    table = result.predictions.filter(pa.array(first))
    methods = tuple(dict.fromkeys(table["method"].to_pylist()))
    method_of = np.array(table["method"].to_pylist())
    parts = {m: table.filter(pa.array(method_of == m)) for m in methods}
    ids = parts[methods[0]]["song_id"].to_pylist()
    has = _indicator(parts[methods[0]]["label"], classes)
    said, proba, score = {}, {}, {}
    for method, part in parts.items():
        flat = part["proba"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        if part["song_id"].to_pylist() != ids or len(flat) != len(ids) * len(classes):
            raise ResultsError(f"predictions of {method} and {methods[0]} do not fit together")
        said[method] = _indicator(part["prediction"], classes)
        proba[method] = flat.reshape(len(ids), len(classes)).astype(np.float64)
        score[method] = np.asarray((said[method] & has).any(axis=1), dtype=np.float64)
        if multilabel:
            score[method] = lrap_of_songs(has, proba[method])
    learnt = [m for m in methods if m in about["learnt"]]
    return Answers(
        classes=classes,
        methods=methods,
        ids=ids,
        multilabel=multilabel,
        has=has,
        said=said,
        proba=proba,
        score=score,
        averaging=next((m for m in AVERAGES if m in methods), None),
        favourite=max(learnt or methods, key=lambda m: float(score[m].mean())),
        n_frames=_n_frames(result, ids),
    )


def _indicator(labels: pa.ChunkedArray, classes: Sequence[str]) -> Mask:
    """Which song has which class, of texts or of lists of texts."""
    position = {name: k for k, name in enumerate(classes)}
    has = np.zeros((len(labels), len(classes)), dtype=bool)
    for i, label in enumerate(labels.to_pylist()):
        for name in label if isinstance(label, list) else [label]:
            if name not in position:
                raise ResultsError(f"label {name!r} is none of the classes")
            has[i, position[name]] = True
    return has


def _n_frames(result: BenchmarkResult, ids: Sequence[str]) -> Ints | None:
    if result.timelines is None:
        return None
    if result.timelines["song_id"].to_pylist() != ids:
        raise ResultsError("timelines and predictions are not of the same songs")
    return np.asarray(result.timelines["n_frames"].to_numpy(), dtype=np.int64)


@dataclass(frozen=True)
class Shares:
    """Shares of songs, or of decisions, with 95 % intervals; arrays of shape (n,)."""

    at: Floats  # where on the axis: mean confidence, mean length, ...
    share: Floats
    low: Floats
    high: Floats
    count: Ints

    def take(self, kept: Sequence[int]) -> Shares:
        """Some of them."""
        i = list(kept)
        return Shares(self.at[i], self.share[i], self.low[i], self.high[i], self.count[i])


def reliability(answers: Answers, method: str, n_bins: int = 10) -> Shares:
    """How often a method is right when it is so sure, in bins of equal width that are not empty.

    The confidence of an answer is its probability; where songs have several labels each, every
    class of every song is a decision, and its probability is compared with how often songs have
    it. Bins are open below and closed above, as in `seqagg.evaluation.calibration_error`. The
    intervals are exact binomial ones.
    """
    p = answers.proba[method]
    if answers.multilabel:
        confidence, right = p.ravel(), answers.has.ravel()
    else:
        top = p.argmax(axis=1)
        confidence, right = p.max(axis=1), answers.has[np.arange(len(p)), top]
    bin_of = np.digitize(confidence, np.arange(1, n_bins) / n_bins, right=True)
    return _shares(confidence, right.astype(np.float64), bin_of)


def by_length(answers: Answers, method: str, n_bins: int = 5) -> Shares | None:
    """Score of a method by the number of frames of the songs, in bins of about as many songs."""
    if answers.n_frames is None:
        return None
    cuts = np.unique(np.quantile(answers.n_frames, np.arange(1, n_bins) / n_bins))
    bin_of = np.searchsorted(cuts, answers.n_frames)
    return _shares(answers.n_frames.astype(np.float64), answers.score[method], bin_of)


def _shares(at: Floats, right: Floats, bin_of: Ints) -> Shares:
    bins = np.unique(bin_of)
    count = np.array([(bin_of == b).sum() for b in bins])
    share = np.array([right[bin_of == b].mean() for b in bins])
    ends = [interval(s, int(n)) for s, n in zip(share, count, strict=True)]
    low, high = np.array(ends).reshape(-1, 2).T
    return Shares(np.array([at[bin_of == b].mean() for b in bins]), share, low, high, count)


def interval(share: float, n: int) -> tuple[float, float]:
    """Exact binomial interval of a share of n; of a mean score, that of as many hits (rounded)."""
    found = binomtest(round(share * n), n).proportion_ci(0.95, method="exact")
    return float(found.low), float(found.high)


def by_class(answers: Answers, method: str) -> Shares:
    """Score of a method on the songs of each class, NaN where there is none; `at` is its number."""
    n_classes = len(answers.classes)
    count = answers.has.sum(axis=0)
    share = np.full(n_classes, np.nan)
    low, high = np.full(n_classes, np.nan), np.full(n_classes, np.nan)
    for k in np.flatnonzero(count):
        share[k] = answers.score[method][answers.has[:, k]].mean()
        low[k], high[k] = interval(float(share[k]), int(count[k]))
    return Shares(np.arange(n_classes, dtype=np.float64), share, low, high, count)


def confusion(answers: Answers, method: str) -> Ints:
    """Songs by class (rows) and by answer (columns), of songs with one label each."""
    return answers.has.T.astype(np.int64) @ answers.said[method].astype(np.int64)


def early(result: BenchmarkResult) -> tuple[Ints, dict[str, Floats]] | None:
    """Marks, and the mean score of each method by then; a shorter song counts by its end.

    Marks go on for as long as one song in twenty does.
    """
    table = result.timelines
    if table is None:
        return None
    n_frames = table["n_frames"].to_numpy()
    lists = table["early_marks"].combine_chunks()
    marks, offsets = lists.flatten().to_numpy(), lists.offsets.to_numpy()
    shown = growing_marks(int(n_frames.max()))
    shown = shown[shown <= np.quantile(n_frames, 0.95)]
    # The last mark of every song that is not above the one shown.
    song_of = np.repeat(np.arange(len(n_frames)), np.diff(offsets))
    last = [
        offsets[:-1] + np.bincount(song_of[marks <= m], minlength=len(n_frames)) - 1 for m in shown
    ]
    scores = table["early_score"].combine_chunks()
    found = {}
    for field in scores.type:
        flat = scores.field(field.name).flatten().to_numpy(zero_copy_only=False)
        if len(flat) != len(marks):
            raise ResultsError(f"early scores of {field.name} are not those of all marks")
        found[field.name] = np.array([flat[rows].mean() for rows in last], dtype=np.float64)
    return shown, found
