"""Slow oracles: loops so plain that they need no test.

Conventions
-----------
A song is a list of frames, a frame a list of numbers, one per column. Nothing here imports seqagg.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from decimal import Decimal, localcontext

Frames = Sequence[Sequence[float]]
Matrix = Sequence[Sequence[float]]


# Averaging.


def mean_over_frames(frames: Frames) -> list[float]:
    n_columns = len(frames[0])
    return [math.fsum(frame[k] for frame in frames) / len(frames) for k in range(n_columns)]


def log_mean_probability(frames: Frames) -> list[float]:
    """Logarithm of the mean over frames of the logistic function of each column."""
    return [
        math.log(math.fsum(1 / (1 + math.exp(-frame[k])) for frame in frames) / len(frames))
        for k in range(len(frames[0]))
    ]


def mixed_average(frames: Frames, share: float, certainty: Sequence[float]) -> list[float]:
    """Mean log-odds and log mean probability, the latter with this share; see `as_certain`."""
    parts = zip(mean_over_frames(frames), log_mean_probability(frames), strict=True)
    mix = [(1 - share) * log_odds + share * probability for log_odds, probability in parts]
    return as_certain(mix, certainty)


def as_certain(scores: Sequence[float], certainty: Sequence[float]) -> list[float]:
    """``before * scores + own * softmax(sure * scores)``."""
    before, own, sure = certainty
    beside = softmax([sure * score for score in scores])
    return [before * score + own * p for score, p in zip(scores, beside, strict=True)]


def vote_shares(frames: Frames) -> list[float]:
    """Share of the frames whose highest column it is; equal highest columns share the vote."""
    votes = [0.0] * len(frames[0])
    for frame in frames:
        winners = [k for k, score in enumerate(frame) if score == max(frame)]
        for k in winners:
            votes[k] += 1 / len(winners)
    return [v / len(frames) for v in votes]


def logistic(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


def softmax(scores: Sequence[float]) -> list[float]:
    weights = [math.exp(s - max(scores)) for s in scores]
    return [w / math.fsum(weights) for w in weights]


# Log-odds, with 60 digits.


def log_odds_of_probability(p: float) -> float:
    with localcontext() as context:
        context.prec = 60
        exact = Decimal(p)
        return float(exact.ln() - (1 - exact).ln())


def log_odds_of_softmax(logits: Sequence[float]) -> list[float]:
    """``log(p_k / (1 - p_k))`` of ``p = softmax(logits)``, from weights that are never rounded."""
    with localcontext() as context:
        context.prec = 60
        weights = [Decimal(z).exp() for z in logits]
        return [
            float(weight.ln() - sum(weights[:k] + weights[k + 1 :], Decimal(0)).ln())
            for k, weight in enumerate(weights)
        ]


# Hidden Markov models. `log_b[t][j]` is the log density of frame t under state j.


def gaussian_log_density(x: Sequence[float], mean: Sequence[float], var: Sequence[float]) -> float:
    """Of independent normal variables."""
    return math.fsum(
        -0.5 * (math.log(2 * math.pi * v) + (a - m) ** 2 / v)
        for a, m, v in zip(x, mean, var, strict=True)
    )


def hmm_paths(
    start: Sequence[float], trans: Matrix, log_b: Matrix
) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every path of states, with its joint probability with the frames."""
    for path in itertools.product(range(len(start)), repeat=len(log_b)):
        probability = start[path[0]] * math.exp(log_b[0][path[0]])
        for t in range(1, len(path)):
            probability *= trans[path[t - 1]][path[t]] * math.exp(log_b[t][path[t]])
        yield path, probability


def hmm_log_likelihood_by_enumeration(
    start: Sequence[float], trans: Matrix, log_b: Matrix
) -> float:
    return math.log(math.fsum(p for _, p in hmm_paths(start, trans, log_b)))


def hmm_posteriors_by_enumeration(
    start: Sequence[float], trans: Matrix, log_b: Matrix
) -> list[list[float]]:
    """P(state at t | all frames), shape (n_frames, n_states)."""
    total = math.fsum(p for _, p in hmm_paths(start, trans, log_b))
    posteriors = [[0.0] * len(start) for _ in log_b]
    for path, p in hmm_paths(start, trans, log_b):
        for t, state in enumerate(path):
            posteriors[t][state] += p / total
    return posteriors


def hmm_transitions_by_enumeration(
    start: Sequence[float], trans: Matrix, log_b: Matrix
) -> list[list[float]]:
    """Expected number of steps from state i to state j, shape (n_states, n_states)."""
    total = math.fsum(p for _, p in hmm_paths(start, trans, log_b))
    counts = [[0.0] * len(start) for _ in start]
    for path, p in hmm_paths(start, trans, log_b):
        for before, after in itertools.pairwise(path):
            counts[before][after] += p / total
    return counts


def log_sum_exp(values: Sequence[float]) -> float:
    top = max(values)
    return top if top == -math.inf else top + math.log(math.fsum(math.exp(v - top) for v in values))


def safe_log(p: float) -> float:
    return math.log(p) if p > 0 else -math.inf


def hmm_log_likelihood_by_loop(start: Sequence[float], trans: Matrix, log_b: Matrix) -> float:
    """Forward recursion in log space, for songs too long to enumerate."""
    states = range(len(start))
    alpha = [safe_log(start[j]) + log_b[0][j] for j in states]
    for frame in log_b[1:]:
        alpha = [
            log_sum_exp([alpha[i] + safe_log(trans[i][j]) for i in states]) + frame[j]
            for j in states
        ]
    return log_sum_exp(alpha)
