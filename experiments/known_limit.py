"""How far is each method from the best decision that the frames allow?

    python -m experiments.known_limit

Songs are drawn from three laws that are known, so that P(class | frame log-odds of the song) can
be computed exactly and its highest class is the best possible decision. ``known_limit.parquet``
has the columns law, method, n_train, draw, metric, value; method ``limit`` is that decision
(n_train 0), draw null the mean over draws of the training songs. The test songs of a law are the
same for all.

Conventions
-----------
A class is a hidden Markov model over states. A frame of state s has the feature z, normal around
the state's mean with unit variance; the frame classifier answers with the log-odds
``x = GAIN z + OFFSET + NOISE e``, e standard normal. So x is normal given the state, its log-odds
being the known noisy function of the frame that the limit is computed from. Arrays of all classes
have shape (n_classes, n_states, ...).
"""  # noqa: D400

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.special import log_softmax, logsumexp

from experiments.runs import (
    METHODS,
    Run,
    add_runs,
    first_line,
    folder,
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
    mean_and_spread,
    points,
)
from seqagg import Songs

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

NAME = "known_limit"
KEYS = {"law": pa.string(), "method": pa.string(), "n_train": pa.int64(), "draw": pa.int64()}
LIMIT = "limit"
CLASSES = ("jazz", "metal", "polka", "reggae")
SIZES = (100, 500, 2000)
N_TEST = 5000

FRAMES = (10, 40)
"""Fewest and most frames of a song, all equally likely."""
GAIN, OFFSET, NOISE = 1.5, -2.0, 1.0
VARIANCE = GAIN**2 + NOISE**2
"""Of each column's log-odds given the state."""


@dataclass(frozen=True)
class Law:
    """What songs are like: a hidden Markov model per class.

    Attributes
    ----------
    start : ndarray of shape (n_classes, n_states)
        Probabilities of the first frame's state.
    trans : ndarray of shape (n_classes, n_states, n_states)
        Probabilities of the next frame's state.
    mean : ndarray of shape (n_classes, n_states, n_columns)
        Mean feature of the state's frames.
    """

    start: Floats
    trans: Floats
    mean: Floats

    @property
    def log_odds_mean(self) -> Floats:
        """Mean log-odds of each state, shape (n_classes, n_states, n_columns)."""
        return GAIN * self.mean + OFFSET


def order_says_nothing() -> Law:
    """Frames are independent draws, each a little higher in its own class's column."""
    n = len(CLASSES)
    return Law(np.ones((n, 1)), np.ones((n, 1, 1)), 0.5 * np.eye(n)[:, None, :])


def order_says_much() -> Law:
    """Four parts from left to right; class k begins with column k, stays there, and goes on."""
    n = len(CLASSES)
    stay = np.array([0.92, 0.85, 0.85, 1.0])
    trans = np.diag(stay) + np.diag(1 - stay[:-1], k=1)
    parts = [np.roll(np.eye(n), -k, axis=0) for k in range(n)]  # part p has column k + p
    return Law(np.tile(np.eye(n)[0], (n, 1)), np.tile(trans, (n, 1, 1)), np.stack(parts))


def order_says_everything() -> Law:
    """Every frame is any column's with equal chance, whatever the class; the moves differ.

    From one frame to the next class k goes k columns on, or else anywhere. No row or column of
    the moves is favoured, so that from an even start the states stay even: the frames of all
    classes have the same law, and averaging knows nothing.
    """
    n = len(CLASSES)
    moves = [0.5 * np.roll(np.eye(n), k, axis=1) + 0.5 / n for k in range(n)]
    mean = np.tile(2.0 * np.eye(n), (n, 1, 1))
    return Law(np.full((n, n), 1 / n), np.stack(moves), mean)


LAWS: Mapping[str, Callable[[], Law]] = {
    "order says nothing": order_says_nothing,
    "order says much": order_says_much,
    "order says everything": order_says_everything,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Compute what is missing, then table, picture and answer."""
    made = parser(__doc__, NAME)
    add_runs(made, METHODS)
    made.add_argument("--draws", type=int, default=None, help="default: 3")
    options = made.parse_args(arguments)
    print(first_line(__doc__))
    sizes, n_test = ((20, 40), 200) if options.quick else (SIZES, N_TEST)
    n_draws = options.draws or (1 if options.quick else 3)
    out = folder(options)
    results = Results(out / f"{NAME}.parquet", KEYS)
    run_all(plan(options.methods, sizes, n_test, n_draws, options.quick), results, options)
    results.sum_up(summaries(results))
    results.about = {"question": first_line(__doc__), "answer": answer(results)}
    results.write()
    draw(out / f"{NAME}.svg", results)
    print(results.about["answer"])


def plan(
    methods: Sequence[str], sizes: Sequence[int], n_test: int, n_draws: int, quick: bool
) -> Iterator[Run]:
    """Runs: the limits, then one draw of all methods and sizes before the next."""
    for name in LAWS:
        source = {"law": described(name), "n_test": n_test}
        yield Run((name, LIMIT, 0, 0), source, partial(score_limit, name, n_test))
    for number in range(n_draws):
        for size in sizes:
            for method in sorted(methods, key=METHODS.index):
                for name in LAWS:
                    yield Run(
                        (name, method, size, number),
                        source_of(method, quick, law=described(name), n_test=n_test),
                        partial(score_method, name, method, size, n_test, number, quick),
                    )


def described(name: str) -> dict[str, Any]:
    """All numbers of a law."""
    law = LAWS[name]()
    return {
        "start": law.start.tolist(),
        "trans": law.trans.tolist(),
        "mean": law.log_odds_mean.tolist(),
        "variance": VARIANCE,
        "frames": list(FRAMES),
    }


# Songs.


def held_out_songs(name: str, n_test: int) -> Songs:
    """The test songs of a law, of which fewer are not the first of more."""
    return sample(LAWS[name](), n_test, np.random.default_rng([0, n_test]), "test")


def sample(law: Law, n: int, rng: np.random.Generator, split: str) -> Songs:
    """Draw songs, every class equally often but for what does not divide."""
    y = rng.permutation(np.arange(n) % len(CLASSES))
    lengths = rng.integers(FRAMES[0], FRAMES[1] + 1, n)
    states = _walk(law, y, int(lengths.max()), rng)
    inside = np.arange(states.shape[1]) < lengths[:, None]  # (n, longest)
    means = law.mean[y[:, None], states][inside]  # (n_frames, n_columns)
    features = means + rng.standard_normal(means.shape)
    log_odds = GAIN * features + OFFSET + NOISE * rng.standard_normal(means.shape)
    return Songs(
        log_odds,
        np.concatenate([[0], np.cumsum(lengths)]),
        columns=CLASSES,
        labels=np.array(CLASSES)[y],
        ids=[f"{split} {i}" for i in range(n)],
        split=[split] * n,
    )


def _walk(law: Law, y: Ints, n_frames: int, rng: np.random.Generator) -> Ints:
    """States of songs of classes y, shape (n_songs, n_frames)."""
    chance = rng.random((len(y), n_frames, 1))
    states = np.empty((len(y), n_frames), dtype=np.int64)
    odds = law.start[y]  # (n_songs, n_states)
    for t in range(n_frames):
        # The last state takes what rounding leaves below 1.
        states[:, t] = (odds.cumsum(axis=1)[:, :-1] < chance[:, t]).sum(axis=1)
        odds = law.trans[y, states[:, t]]
    return states


def joined(train: Songs, test: Songs) -> Songs:
    """Training and test songs in one collection."""
    assert train.labels is not None
    assert test.labels is not None
    assert train.split is not None
    assert test.split is not None
    return Songs(
        np.concatenate([train.values, test.values]),
        np.concatenate([train.offsets, train.offsets[-1] + test.offsets[1:]]),
        columns=train.columns,
        ids=[*train.ids, *test.ids],
        labels=[*train.labels, *test.labels],
        split=[*train.split, *test.split],
    )


# The limit.


def log_posterior(law: Law, songs: Songs) -> Floats:
    """Log P(class | log-odds of all frames), shape (n_songs, n_classes), classes equally likely.

    The forward algorithm of every class's model over every song, in log space [1]_.

    References
    ----------
    .. [1] L. R. Rabiner, "A tutorial on hidden Markov models and selected applications in speech
       recognition", Proceedings of the IEEE 77(2), 1989, section III.A.
    """
    log_b = _log_density(law, songs)  # (n_frames, n_classes, n_states)
    with np.errstate(divide="ignore"):  # what cannot happen has a log probability of -inf
        log_start, log_trans = np.log(law.start), np.log(law.trans)
    alpha = log_start + log_b[songs.offsets[:-1]]  # (n_songs, n_classes, n_states)
    for t in range(1, int(songs.lengths.max())):
        going = songs.lengths > t
        frames = songs.offsets[:-1][going] + t
        step = alpha[going][..., None] + log_trans  # (n_going, n_classes, n_states, n_states)
        alpha[going] = logsumexp(step, axis=2) + log_b[frames]
    return np.asarray(log_softmax(logsumexp(alpha, axis=2), axis=1))


def _log_density(law: Law, songs: Songs) -> Floats:
    """Log density of each frame under each state, up to a constant of the frame."""
    x = songs.values.astype(np.float64)[:, None, None, :]
    return np.asarray(-0.5 * ((x - law.log_odds_mean) ** 2).sum(axis=-1) / VARIANCE)


def score_limit(name: str, n_test: int) -> Outcome:
    """Accuracy of the best possible decision, and what it expects of itself."""
    songs = held_out_songs(name, n_test)
    log_p = log_posterior(LAWS[name](), songs)
    assert songs.labels is not None
    right = np.array(CLASSES)[log_p.argmax(axis=1)] == songs.labels.astype(str)
    truth = np.searchsorted(CLASSES, songs.labels.astype(str))
    metrics = {
        "accuracy": right.mean(),
        "expected_accuracy": np.exp(log_p.max(axis=1)).mean(),
        "log_loss": -log_p[np.arange(n_test), truth].mean(),
        "n_songs": n_test,
    }
    return Outcome({k: float(v) for k, v in metrics.items()}, right, np.arange(n_test))


def score_method(
    name: str, method: str, n_train: int, n_test: int, draw: int, quick: bool
) -> Outcome:
    """A method that learns from songs of the law, scored on its test songs."""
    train = sample(LAWS[name](), n_train, np.random.default_rng([1, n_train, draw]), "train")
    return score(joined(train, held_out_songs(name, n_test)), method, draw, quick)


# What was found.


def summaries(results: Results) -> dict[Cell, dict[str, float]]:
    """Means over draws, and how far below the limit, on the same songs."""
    found: dict[Cell, dict[str, float]] = {}
    for law, method, n_train in sorted({cell[:3] for cell in results.outcomes}):
        own = _runs(results, law=law, method=method, n_train=n_train)
        row = mean_and_spread("accuracy", [run.metrics["accuracy"] for run in own])
        row["error"] = binomial_error(row["accuracy"], len(own[0].right))
        row["log_loss"] = float(np.mean([run.metrics["log_loss"] for run in own]))
        row["n_draws"] = len(own)
        limit = _runs(results, law=law, method=LIMIT)
        row |= difference("below_limit", compare_runs(limit, own))
        found[law, method, n_train, None] = row
    return found


def binomial_error(share: float, n: int) -> float:
    """Standard error of a share of n songs."""
    return float(np.sqrt(share * (1 - share) / n))


def largest_size(results: Results) -> int:
    """Most training songs of any run."""
    return int(max(results.summed("n_train")))


def answer(results: Results) -> str:
    """What was found, in a sentence."""
    size = largest_size(results)
    parts = []
    for law in (law for law in LAWS if law in results.summed("law")):
        limit = results.metrics[law, LIMIT, 0, None]
        rows = {m: results.metrics.get((law, m, size, None)) for m in METHODS}
        distance = {m: row["below_limit"] for m, row in rows.items() if row is not None}
        if not distance:
            continue
        best = min(distance, key=lambda method: distance[method])
        row = results.metrics[law, best, size, None]
        low, high = points(row["below_limit_low"]), points(row["below_limit_high"])
        text = (
            f"{law} (limit {points(limit['accuracy'])} ± {points(limit['error'])} %): {best} is "
            f"{points(distance[best])} [{low}, {high}] points below"
        )
        if "logodds" in distance and best != "logodds":
            text += f", mean log-odds {points(distance['logodds'])}"
        parts.append(text)
    return f"With {size:,} training songs, {'; '.join(parts)}."


def draw(path: Path, results: Results) -> None:
    """Accuracy against training songs for each law, below its limit."""
    from experiments.pictures import Line, Panel, draw_curves

    panels = []
    for law in (law for law in LAWS if law in results.summed("law")):
        lines = {}
        for method in METHODS:
            cells = sorted(
                cell for cell in results.metrics if cell[:2] == (law, method) and cell[3] is None
            )
            rows = [results.metrics[cell] for cell in cells]
            names = ("accuracy", "accuracy_low", "accuracy_high")
            columns = [[row[name] for row in rows] for name in names]
            if cells:
                lines[method] = Line([int(cell[2] or 0) for cell in cells], *columns)
        panels.append(Panel(law, lines, results.metrics[law, LIMIT, 0, None]["accuracy"]))
    draw_curves(path, panels)


def _runs(results: Results, **wanted: Any) -> list[Outcome]:
    return [results.outcomes[cell] for cell in results.matching(**wanted)]


if __name__ == "__main__":
    main()
