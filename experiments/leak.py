"""How many points does a learnt method lose if its training scores are not out of fold?

    python -m experiments.leak

A frame classifier (logistic regression) is trained on the frames of synthetic songs whose law is
known. It then scores its own training songs twice: *in fold*, by the classifier that was trained
on them, and *out of fold*, by classifiers that were not. Each learnt method is fitted to both and
scored on the same new songs, which the classifier of all training songs has scored.
``leak.parquet`` has the columns inputs, method, draw, metric, value; draw null is the mean over
draws. Method ``frames`` is the frame classifier: its accuracy on the training frames and on new
ones.

Conventions
-----------
A song goes through one part per class, in turn; its own class's part comes first and is as long as
all others together. A frame's feature is the direction of its part, an offset that all frames
of the song share (the player, the room), and noise. The offset says nothing of the class, but a
classifier with as many features as songs can learn by heart which song has which.
"""  # noqa: D400

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from experiments.runs import (
    Run,
    add_runs,
    first_line,
    folder,
    one_thread,
    parser,
    run_all,
    score,
    source_of,
)
from experiments.tables import (
    Cell,
    Outcome,
    Results,
    compare_runs,
    difference,
    interval,
    mean_and_spread,
    points,
)
from seqagg import Songs
from seqagg.folds import grouped_folds

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

NAME = "leak"
KEYS = {"inputs": pa.string(), "method": pa.string(), "draw": pa.int64()}
IN_FOLD, OUT_OF_FOLD = "in fold", "out of fold"
INPUTS = (IN_FOLD, OUT_OF_FOLD)
FRAMES = "frames"
BASELINE = "logodds"
LEARNT = ("stack", "mil", "hmm", "gru")
CLASSES = ("jazz", "metal", "polka", "reggae")


@dataclass(frozen=True)
class Setting:
    """What decides the songs, apart from the seed.

    Attributes
    ----------
    n_train, n_test : int
        Songs.
    n_features : int
        Of a frame.
    n_frames : int
        Of a song.
    signal, offset : float
        Lengths of the part's direction and, per feature, of the song's offset; the noise has 1.
    n_folds : int
        Of the classifiers that score out of fold.
    """

    n_train: int = 200
    n_test: int = 1000
    n_features: int = 80
    n_frames: int = 20
    signal: float = 2.0
    offset: float = 0.7
    n_folds: int = 5


QUICK_SETTING = Setting(n_train=32, n_test=60, n_features=16, n_frames=10)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compute what is missing, then table, picture and answer."""
    made = parser(__doc__, NAME)
    add_runs(made, (BASELINE, *LEARNT))
    made.add_argument("--draws", type=int, default=None, help="default: 5")
    options = made.parse_args(arguments)
    print(first_line(__doc__))
    setting = QUICK_SETTING if options.quick else Setting()
    n_draws = options.draws or (1 if options.quick else 5)
    out = folder(options)
    results = Results(out / f"{NAME}.parquet", KEYS)
    run_all(plan(options.methods, setting, n_draws, options.quick), results, options)
    results.sum_up(summaries(results))
    results.about = {"question": first_line(__doc__), "answer": answer(results)}
    results.write()
    draw(out / f"{NAME}.svg", results)
    print(results.about["answer"])


def plan(methods: Sequence[str], setting: Setting, n_draws: int, quick: bool) -> Iterator[Run]:
    """Runs, one draw of everything before the next."""
    law = vars(setting)
    for number in range(n_draws):
        for inputs in INPUTS:
            yield Run(
                (inputs, FRAMES, number),
                {"law": law},
                partial(score_frames, setting, inputs, number),
            )
            for method in methods:
                yield Run(
                    (inputs, method, number),
                    source_of(method, quick, law=law),
                    partial(score_method, setting, inputs, method, number, quick),
                )


# Songs and their frame scores.


def sample(
    setting: Setting, n: int, rng: np.random.Generator, directions: Floats
) -> tuple[Any, Ints]:
    """Features of songs, shape (n_songs, n_frames, n_features), and their classes."""
    n_classes = len(CLASSES)
    y = rng.permutation(np.arange(n) % n_classes)
    # Part p of the song is class y + p; the first, the song's own, is as long as all others.
    shares = np.cumsum([n_classes - 1, *[1] * (n_classes - 1)]) / (2 * n_classes - 2)
    part = np.searchsorted(shares * setting.n_frames, np.arange(setting.n_frames), side="right")
    states = (y[:, None] + part) % n_classes  # (n_songs, n_frames)
    offset = setting.offset * rng.standard_normal((n, 1, setting.n_features))
    noise = rng.standard_normal((n, setting.n_frames, setting.n_features))
    return setting.signal * directions[states] + offset + noise, y


def scored_songs(setting: Setting, inputs: str, draw: int) -> Songs:
    """Training songs scored in or out of fold, and new songs scored by the classifier of all."""
    rng = np.random.default_rng([draw, setting.n_train])
    directions = rng.standard_normal((len(CLASSES), setting.n_features))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    features, y = sample(setting, setting.n_train, rng, directions)
    new_features, new_y = sample(setting, setting.n_test, rng, directions)
    with one_thread():
        everything = _Frozen(features, y)
        scores = everything(features)
        if inputs == OUT_OF_FOLD:
            for learn, held in grouped_folds(y, np.arange(len(y)), setting.n_folds, seed=draw):
                scores[held] = _Frozen(features[learn], y[learn])(features[held])
        scores = np.concatenate([scores, everything(new_features)])
    n = len(scores)
    return Songs(
        scores.reshape(-1, len(CLASSES)),
        np.arange(n + 1) * setting.n_frames,
        columns=CLASSES,
        kind="logit",
        labels=np.array(CLASSES)[np.concatenate([y, new_y])],
        ids=[f"song {i}" for i in range(n)],
        split=["train"] * len(y) + ["test"] * len(new_y),
    )


class _Frozen:
    """A frame classifier: logistic regression, every frame labelled as its song."""

    def __init__(self, features: Floats, y: Ints) -> None:
        from sklearn.linear_model import LogisticRegression

        n_frames = features.shape[1]
        self._model = LogisticRegression(C=10.0, max_iter=500)
        self._model.fit(features.reshape(-1, features.shape[2]), np.repeat(y, n_frames))

    def __call__(self, features: Floats) -> Floats:
        """Logits, shape (n_songs, n_frames, n_classes)."""
        flat = self._model.decision_function(features.reshape(-1, features.shape[2]))
        return np.asarray(flat.reshape(*features.shape[:2], -1))


# Scores.


def score_method(setting: Setting, inputs: str, method: str, draw: int, quick: bool) -> Outcome:
    """A method that learns from one kind of inputs."""
    return score(scored_songs(setting, inputs, draw), method, draw, quick)


def score_frames(setting: Setting, inputs: str, draw: int) -> Outcome:
    """The frame classifier on its training frames and, as its accuracy, on new frames."""
    songs = scored_songs(setting, inputs, draw)
    assert songs.labels is not None
    truth = np.repeat(np.searchsorted(CLASSES, songs.labels.astype(str)), setting.n_frames)
    right = songs.values.argmax(axis=1) == truth
    n = setting.n_train * setting.n_frames
    metrics = {"accuracy": float(right[n:].mean()), "training_accuracy": float(right[:n].mean())}
    groups = np.repeat(np.arange(setting.n_test), setting.n_frames)
    return Outcome(metrics, right[n:], groups)


# What was found.


def summaries(results: Results) -> dict[Cell, dict[str, float]]:
    """Means over draws, and what out-of-fold inputs gain on the same new songs."""
    found: dict[Cell, dict[str, float]] = {}
    for inputs, method in sorted({(str(cell[0]), str(cell[1])) for cell in results.outcomes}):
        own = _runs(results, inputs, method)
        row = mean_and_spread("accuracy", [run.metrics["accuracy"] for run in own])
        for name in ("log_loss", "calibration_error", "training_accuracy"):
            if name in own[0].metrics:
                row[name] = float(np.mean([run.metrics[name] for run in own]))
        row["n_draws"] = len(own)
        other = _runs(results, OUT_OF_FOLD, method)
        if inputs == IN_FOLD and len(own) == len(other):
            row |= difference("accuracy_minus_out_of_fold", _compare_draws(own, other))
        found[inputs, method, None] = row
    return found


def _compare_draws(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> Any:
    """Compare draw by draw: each has its own songs."""
    first = np.cumsum([0, *(int(run.groups.max()) + 1 for run in ours)])
    groups = np.concatenate([run.groups + n for run, n in zip(ours, first, strict=False)])
    pooled = [
        Outcome({}, np.concatenate([run.right for run in runs]), groups) for runs in (ours, theirs)
    ]
    return compare_runs(pooled[:1], pooled[1:])


def answer(results: Results) -> str:
    """What was found, in a sentence."""
    frames = results.metrics[IN_FOLD, FRAMES, None]
    parts = []
    for method in LEARNT:
        row = results.metrics.get((IN_FOLD, method, None), {})
        if "accuracy_minus_out_of_fold" in row:
            parts.append(f"{method} {interval(row, 'accuracy_minus_out_of_fold')}")
    return (
        f"Learnt in fold, where frames look {points(frames['training_accuracy'])} % right instead "
        f"of {points(frames['accuracy'])} %, accuracy changes in points by: {', '.join(parts)}."
    )


def draw(path: Path, results: Results) -> None:
    """Accuracy with both inputs, the mean of the draws between lowest and highest."""
    from experiments.pictures import draw_pairs

    cells = {cell for cell in results.metrics if cell[2] is None}
    methods = [m for m in (BASELINE, *LEARNT) if all((i, m, None) in cells for i in INPUTS)]
    names = ("accuracy", "accuracy_low", "accuracy_high")
    draw_pairs(
        path,
        methods,
        {
            inputs: [_triple(results.metrics[inputs, m, None], names) for m in methods]
            for inputs in INPUTS
        },
    )


def _triple(row: Any, names: tuple[str, str, str]) -> tuple[float, float, float]:
    first, second, third = (float(row[name]) for name in names)
    return first, second, third


def _runs(results: Results, inputs: str, method: str) -> list[Outcome]:
    return [results.outcomes[cell] for cell in results.matching(inputs=inputs, method=method)]


if __name__ == "__main__":
    main()
