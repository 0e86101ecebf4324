"""How far log scores may be believed: temperatures, biases, and weights of a mix.

Conventions
-----------
Log scores have shape (n_songs, n_classes). What they mean depends on ``y``, and it is this module
alone that knows how:

- ``y`` of shape (n_songs,) holds class indices, one label per song. Log scores are defined up to a
  constant per song; *normalized*, by their softmax, they are log probabilities. They are
  calibrated by an inverse temperature, which multiplies them before the softmax and so never
  changes which class is highest, and for methods that learn by a small bias of each class. Where
  no temperature is right, averages and votes have a `seqagg.certainty` too.
- ``y`` of shape (n_songs, n_classes) is an indicator, any number of labels per song. Log scores are
  the log-odds of each class by itself, normalized as they stand. They are calibrated by Platt's
  sigmoid: an inverse temperature for all classes, and a bias for each.

Losses are in nats per song; with several labels per song they are summed over classes.

References
----------
A. Alexandari, A. Kundaje and A. Shrikumar, "Maximum likelihood with bias-corrected calibration is
hard-to-beat at label shift adaptation", ICML 2020.

C. Guo, G. Pleiss, Y. Sun and K. Weinberger, "On calibration of modern neural networks", ICML 2017.

J. Platt, "Probabilistic outputs for support vector machines and comparisons to regularized
likelihood methods", in "Advances in large margin classifiers", MIT Press 1999.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.optimize  # as a module, so that `seqagg.__main__` may import it later
from scipy.special import expit, logit

from seqagg.folds import grouped_folds
from seqagg.kernels.scores import log_expit, log_softmax

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

AVERAGING_ERRORS = 2.0
"""Standard errors by which a mix must beat averaging: who switches should not regret it."""

_LEANING = 0.1
"""Deviation of the normal prior of biases, in nats, where songs have one label each."""

_FOLDS = 5
"""In which weights are held out that shall not be judged by the songs they were fitted to."""

_RANGE = 10.0
"""The log of the inverse temperature is sought within plus and minus this."""


def normalize(log_scores: Floats, multilabel: bool) -> Floats:
    """Log probabilities, or with several labels per song log-odds."""
    return np.asarray(log_scores if multilabel else log_softmax(log_scores))


def log_probabilities(log_scores: Floats, multilabel: bool) -> Floats:
    """Log P(class | song), of classes that exclude each other or of each by itself."""
    return log_expit(log_scores) if multilabel else log_softmax(log_scores)


def prior_scores(prior: Floats, multilabel: bool) -> Floats:
    """Log scores that say what the class prior says."""
    return np.asarray(logit(prior) if multilabel else np.log(prior))


def smoothed_prior(y: Ints, n_classes: int) -> Floats:
    """Share of songs with each class, shape (n_classes,), never 0.

    Each class is counted once more than it occurs; with several labels per song, so is each
    class's absence.
    """
    if y.ndim == 2:
        return np.asarray((y.sum(axis=0) + 1.0) / (len(y) + 2.0))
    counts = np.bincount(y, minlength=n_classes) + 1.0
    return np.asarray(counts / counts.sum())


def song_losses(normalized: Floats, y: Ints) -> Floats:
    """-log P(labels of the song) from normalized log scores, in nats, shape (n_songs,)."""
    if y.ndim == 2:
        return np.asarray((np.logaddexp(0, normalized) - y * normalized).sum(axis=1))
    return np.asarray(-normalized[np.arange(len(y)), y])


def _surplus(normalized: Floats, y: Ints) -> Floats:
    """Probability less truth: the slope of a song's loss, shape (n_songs, n_classes)."""
    if y.ndim == 2:
        return np.asarray(expit(normalized) - y)
    surplus = np.exp(normalized)
    surplus[np.arange(len(y)), y] -= 1
    return surplus


def negative_log_likelihood(log_scores: Floats, y: Ints) -> float:
    """Mean of -log P(labels of the song), in nats per song."""
    return float(song_losses(normalize(log_scores, y.ndim == 2), y).mean())


def calibrated_losses(log_scores: Floats, y: Ints) -> Floats:
    """Losses of songs, in nats, after the calibration that suits them best, shape (n_songs,)."""
    beta, bias = fit_calibration(log_scores, y)
    return song_losses(normalize(beta * log_scores + bias, y.ndim == 2), y)


def paired_gain(before: Floats, after: Floats, groups: Ints) -> tuple[float, float]:
    """Mean of the losses `before` less those `after`, and its standard error over groups."""
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        return -np.inf, 0.0
    gain = before - after
    surplus = np.bincount(groups, gain - gain.mean())
    return float(gain.mean()), float(np.sqrt((surplus**2).sum()) / len(gain))


def about_equal(losses: Floats, lower: Floats, groups: Ints, n_errors: float = 1.0) -> bool:
    """Whether the lower losses are lower by no more than so many standard errors.

    With one it is the rule of [1]_ for staying with what is simpler.

    References
    ----------
    .. [1] L. Breiman, J. Friedman, R. Olshen and C. Stone, "Classification and regression trees",
       Wadsworth 1984, section 3.4.3.
    """
    gain, error = paired_gain(losses, lower, groups)
    return gain <= n_errors * error


def fit_calibration(log_scores: Floats, y: Ints, *, biased: bool = False) -> tuple[float, Floats]:
    """Inverse temperature, and bias of each class, that make the labels likeliest.

    Parameters
    ----------
    log_scores : ndarray of shape (n_songs, n_classes)
        Of songs on which the scores were not fitted.
    y : ndarray of int, shape (n_songs,) or (n_songs, n_classes)
        Class indices, or an indicator.
    biased : bool
        Whether classes of songs with one label each are given biases too, small ones. Then the
        class that is highest may be another.

    Returns
    -------
    inverse_temperature : float
        Above 0.
    bias : ndarray of shape (n_classes,)
        Added after the temperature.
    """
    bias = np.zeros(log_scores.shape[1])
    if len(y) == 0:
        return 1.0, bias
    if y.ndim == 2:
        return _fit_platt(log_scores, y)
    beta = fit_inverse_temperature(log_scores, y)
    return _fit_biases(log_scores, y, beta) if biased else (beta, bias)


def fit_inverse_temperature(log_scores: Floats, y: Ints) -> float:
    """Inverse temperature that makes the labels likeliest, of songs with one label each.

    A standard normal prior on its logarithm, worth one song, keeps it finite where the scores
    are right on every song.

    Parameters
    ----------
    log_scores : ndarray of shape (n_songs, n_classes)
        Of songs on which the scores were not fitted.
    y : ndarray of int, shape (n_songs,)
        Class indices.

    Returns
    -------
    float
        Above 0; 1 if there is no song or only one class.
    """
    if len(y) == 0 or log_scores.shape[1] < 2:
        return 1.0

    def cost(log_beta: float) -> float:
        nll = negative_log_likelihood(np.exp(log_beta) * log_scores, y)
        return len(y) * nll + 0.5 * log_beta**2

    found = scipy.optimize.minimize_scalar(cost, bounds=(-_RANGE, _RANGE), method="bounded")
    return float(np.exp(found.x))


def _fit_biases(log_scores: Floats, y: Ints, beta: float) -> tuple[float, Floats]:
    """Bias-corrected temperature scaling (Alexandari et al.), sought from `beta` on, drawn to 0.

    What a frame classifier leans to adds up over the frames of a song. Folds of songs that other
    classifiers have scored lean otherwise, so that no cross-validation tells how far to follow
    them; `_LEANING` was chosen on songs of classifiers that had seen all the training songs.
    """
    centered = log_scores - log_scores.mean(axis=1, keepdims=True)
    precision = _LEANING**-2

    def cost(theta: Floats) -> tuple[float, Floats]:
        scale, bias = np.exp(theta[0]), theta[1:]
        found = log_softmax(scale * centered + bias)
        surplus = _surplus(found, y)
        prior = 0.5 * (theta[0] ** 2 + precision * bias @ bias)
        along = scale * (surplus * centered).sum() + theta[0]
        slope = np.concatenate([[along], surplus.sum(axis=0) + precision * bias])
        return (song_losses(found, y).sum() + prior) / len(y), slope / len(y)

    start = np.zeros(1 + log_scores.shape[1])
    start[0] = np.log(beta)
    bounds = [(-_RANGE, _RANGE), *[(None, None)] * log_scores.shape[1]]
    best = scipy.optimize.minimize(cost, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return float(np.exp(best[0])), best[1:]


def _fit_platt(log_odds: Floats, y: Ints) -> tuple[float, Floats]:
    """Platt's sigmoid with one slope; its logarithm has a standard normal prior, worth one song."""
    center = float(log_odds.mean())
    centered = log_odds - center

    def cost(theta: Floats) -> tuple[float, Floats]:
        beta, (bias, prior, pull) = np.exp(theta[0]), _biases(theta[1:])
        found = beta * centered + bias
        surplus = _surplus(found, y)
        loss = song_losses(found, y).sum() + 0.5 * theta[0] ** 2 + prior
        along = beta * (surplus * centered).sum() + theta[0]
        return loss / len(y), np.concatenate([[along], _slope(surplus) + pull]) / len(y)

    # From scores of size 1, so that the first step is neither lost nor wild.
    size = np.clip(-np.log(max(float(centered.std()), 1e-12)), -_RANGE, _RANGE)
    bounds = [(-_RANGE, _RANGE), *[(None, None)] * (1 + y.shape[1])]
    start = np.concatenate([[size], _first_biases(y)])
    best = scipy.optimize.minimize(cost, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    beta = float(np.exp(best[0]))
    return beta, _biases(best[1:])[0] - beta * center


def _biases(theta: Floats) -> tuple[Floats, float, Floats]:
    """Biases from the one of all classes and what each has of its own; cost and slope of a prior.

    Both have a logistic prior: as if once more a class had been met and once more missed. Classes
    with few songs so share what others have learnt; a class on every song or on none stays finite.
    """
    prior = np.logaddexp(0, theta) + np.logaddexp(0, -theta)
    return theta[0] + theta[1:], float(prior.sum()), np.tanh(theta / 2)


def _slope(surplus: Floats) -> Floats:
    """Slope of the loss along the bias of all classes and along that of each."""
    by_class = surplus.sum(axis=0)
    return np.concatenate([[by_class.sum()], by_class])


def _first_biases(y: Ints) -> Floats:
    """Where the search for biases begins: all classes as frequent as they are together."""
    share = (y.sum() + 1.0) / (y.size + 2.0)
    return np.concatenate([[logit(share)], np.zeros(y.shape[1])])


def fit_mixture_weights(
    parts: Floats,
    y: Ints,
    around: Floats,
    *,
    calibrated: bool = False,
    counts: Floats | None = None,
) -> tuple[Floats, float]:
    """Weights of a log-linear mix that make the labels likeliest.

    The loss is convex in the weights, which are at least 0. A standard normal prior around
    `around`, worth one song, keeps them finite where everything is right. With several labels per
    song each class is given the bias that suits it, as `fit_calibration` will give it one, unless
    the parts are calibrated already.

    Parameters
    ----------
    parts : ndarray of shape (n_parts, n_songs, n_classes)
        Log scores of songs that the parts had not seen.
    y : ndarray of int, shape (n_songs,) or (n_songs, n_classes)
        Class indices, or an indicator.
    around : ndarray of shape (n_parts,)
        Where the weights are without evidence.
    calibrated : bool
        Whether log-odds are to be mixed as they are, without a bias.
    counts : ndarray of shape (n_songs,), optional
        How often each song counts. Where that is less than 0, the loss need not be convex.

    Returns
    -------
    weights : ndarray of shape (n_parts,)
    loss : float
        Negative log likelihood per song, in nats, priors included.
    """
    n_parts, multilabel = len(parts), y.ndim == 2
    size = np.abs(parts).max(axis=(1, 2))
    biased = multilabel and not calibrated
    # A constant per song, or with a bias the same in all, says nothing, and would blur the sums.
    if biased:
        parts = parts - parts.mean(axis=(1, 2), keepdims=True)
    elif not multilabel:
        parts = parts - parts.mean(axis=2, keepdims=True)
    # The search goes in units in which all parts spread alike; the prior stays where it was.
    spread = parts.std(axis=(1, 2))
    says = spread > 1e-12 * size  # else nothing but rounding is left
    unit = 1 / np.where(says, spread, 1.0)
    counts = np.ones(len(y)) if counts is None else counts
    n_songs = counts.sum()
    scaled = parts * np.where(says, unit, 0.0)[:, None, None]

    def cost(theta: Floats) -> tuple[float, Floats]:
        steps, own = theta[:n_parts], theta[n_parts:]
        mix = np.tensordot(steps, scaled, axes=1)
        off = steps * unit - around
        prior = 0.5 * off @ off
        if biased:
            bias, prior_of_biases, pull = _biases(own)
            mix, prior = mix + bias, prior + prior_of_biases
        found = normalize(mix, multilabel)
        surplus = _surplus(found, y) * counts[:, None]
        slope = np.tensordot(scaled, surplus, axes=([1, 2], [0, 1])) + unit * off
        if biased:
            slope = np.concatenate([slope, _slope(surplus) + pull])
        return (song_losses(found, y) @ counts + prior) / n_songs, slope / n_songs

    own = _first_biases(y) if biased else np.empty(0)
    bounds = [*[(0, None)] * n_parts, *[(None, None)] * len(own)]
    start = np.concatenate([around / unit, own])
    best = scipy.optimize.minimize(cost, start, jac=True, method="L-BFGS-B", bounds=bounds)
    return np.asarray(best.x[:n_parts] * unit), float(best.fun)


def unseen_losses(parts: Floats, y: Ints, groups: Ints, around: Floats, seed: int) -> Floats:
    """Losses of songs by a mix whose weights and calibration were fitted to other songs.

    Parameters
    ----------
    parts, y, around
        As `fit_mixture_weights` has them.
    groups : ndarray of int, shape (n_songs,)
        Songs of a group are held out together.
    seed : int
        Of the folds.

    Returns
    -------
    ndarray of shape (n_songs,)
        In nats; infinite where no song can be held out.
    """
    losses = np.full(len(y), np.inf)
    for learn, held in grouped_folds(y, groups, _FOLDS, seed):
        weights, _ = fit_mixture_weights(parts[:, learn], y[learn], around)
        mix = np.tensordot(weights, parts, axes=1)
        beta, bias = fit_calibration(mix[learn], y[learn])
        losses[held] = song_losses(normalize(beta * mix[held] + bias, y.ndim == 2), y[held])
    return losses
