"""Metrics and paired comparison, against scikit-learn, SciPy, enumeration, published examples."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
import sklearn.metrics
from scipy import stats

from seqagg import ParameterError, SongError, evaluation
from seqagg.evaluation import Comparison, compare, holm

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

CLASSES = np.array(["blues", "jazz", "metal", "rock"])


def answers(seed: int = 0, n: int = 200) -> tuple[npt.NDArray[np.str_], Floats]:
    """Labels of the first three classes alone, and probabilities that know something."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    scores = rng.normal(size=(n, 4))
    scores[np.arange(n), y] += 1.0
    p = np.exp(scores)
    return CLASSES[y], p / p.sum(axis=1, keepdims=True)


def predictions(gains: list[list[int]]) -> tuple[Ints, Ints, Ints, Ints]:
    """Labels, two predictions and groups: 1 = only a is right, -1 = only b, 0 = both are."""
    gain = np.concatenate([np.array(g, dtype=np.int64) for g in gains])
    groups = np.repeat(np.arange(len(gains)), [len(g) for g in gains])
    y = np.zeros(len(gain), dtype=np.int64)
    return y, (gain == -1).astype(np.int64), (gain == 1).astype(np.int64), groups


# Metrics.


def test_accuracy_is_the_share_of_equal_labels() -> None:
    assert evaluation.accuracy(["jig", "reel", "jig"], ["jig", "jig", "jig"]) == pytest.approx(
        2 / 3
    )


def test_balanced_accuracy_counts_the_classes_of_y_alone() -> None:
    # jig 1 of 2, reel 1 of 1; the predicted polka has no song and no say.
    found = evaluation.balanced_accuracy(["jig", "jig", "reel"], ["jig", "polka", "reel"])
    assert found == pytest.approx(0.75)


def test_macro_f1_is_the_mean_of_f1_over_classes_that_occur() -> None:
    y, p = answers()
    said = CLASSES[p.argmax(axis=1)]
    f1 = []
    for name in set(y) | set(said):
        hits = sum(a == b == name for a, b in zip(y, said, strict=True))
        f1.append(2 * hits / (sum(y == name) + sum(said == name)))
    assert evaluation.macro_f1(y, said) == pytest.approx(sum(f1) / len(f1))


def test_log_loss_is_the_mean_surprise() -> None:
    y, p = answers()
    surprise = [-math.log(row[list(CLASSES).index(label)]) for label, row in zip(y, p, strict=True)]
    assert evaluation.log_loss(y, p, CLASSES) == pytest.approx(math.fsum(surprise) / len(y))


def test_log_loss_of_an_impossible_label_is_large_and_finite() -> None:
    found = evaluation.log_loss(["jig"], [[0.0, 1.0]], ["jig", "reel"])
    assert found == pytest.approx(-math.log(np.finfo(float).eps))


def test_brier_sums_over_classes_also_for_two() -> None:
    # Rain was forecast with 0.7 and came: (0.7 - 1)**2 + (0.3 - 0)**2.
    assert evaluation.brier(["rain"], [[0.3, 0.7]], ["dry", "rain"]) == pytest.approx(0.18)
    y, p = answers()
    truth = (y[:, None] == CLASSES).astype(float)
    assert evaluation.brier(y, p, CLASSES) == pytest.approx(((p - truth) ** 2).sum(axis=1).mean())


def test_calibration_error_equals_a_plain_loop() -> None:
    y, p = answers(seed=3)
    p[:3] = [[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.2, 0.2, 0.4, 0.2]]
    error = 0.0
    for b in range(15):
        inside = [i for i in range(len(y)) if b / 15 < max(p[i]) <= (b + 1) / 15]
        if inside:
            sure = sum(max(p[i]) for i in inside) / len(inside)
            right = sum(CLASSES[p[i].argmax()] == y[i] for i in inside) / len(inside)
            error += len(inside) / len(y) * abs(sure - right)
    assert error > 0.05
    assert evaluation.calibration_error(y, p, CLASSES) == pytest.approx(error)


def test_calibration_error_by_hand() -> None:
    # Bins of a half: 0.6 and 0.8 lie in one (mean 0.7, half of them right), 0.5 in the other.
    p = [[0.6, 0.4], [0.2, 0.8], [0.5, 0.5]]
    found = evaluation.calibration_error([0, 0, 0], p, [0, 1], n_bins=2)
    assert found == pytest.approx(2 / 3 * 0.2 + 1 / 3 * 0.5)


def test_calibration_error_is_zero_for_honest_probabilities() -> None:
    y = [0] * 8 + [1] * 2
    assert evaluation.calibration_error(y, [[0.8, 0.2]] * 10, [0, 1]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 0, 3, 1]])
def test_evaluate_agrees_with_scikit_learn(order: list[int]) -> None:
    y, p = answers()
    said = CLASSES[p.argmax(axis=1)]
    said[y != "rock"] = np.where(said[y != "rock"] == "rock", "jazz", said[y != "rock"])
    found = evaluation.evaluate(y, said, p[:, order], CLASSES[order])
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(y, said),
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(y, said),
        "macro_f1": sklearn.metrics.f1_score(y, said, average="macro"),
        "log_loss": sklearn.metrics.log_loss(y, p, labels=CLASSES),
        "brier": sklearn.metrics.brier_score_loss(y, p, labels=CLASSES),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert set(found) - set(expected) == {"calibration_error"}


def test_metrics_do_not_depend_on_the_type_of_labels() -> None:
    y, p = answers()
    said = CLASSES[p.argmax(axis=1)]
    number = {name: 10 * (4 - i) for i, name in enumerate(CLASSES)}  # sorts the other way round
    as_numbers = evaluation.evaluate(
        [number[label] for label in y],
        np.array([number[label] for label in said], dtype=object),
        p,
        list(number.values()),
    )
    assert as_numbers == pytest.approx(evaluation.evaluate(list(y), said, p, CLASSES))


def test_float32_probabilities_are_taken_for_what_they_are() -> None:
    y, p = answers()
    found = evaluation.log_loss(y, p.astype(np.float32), CLASSES)
    assert found == pytest.approx(evaluation.log_loss(y, p, CLASSES), rel=1e-6)


@pytest.mark.parametrize(
    ("probability", "classes", "message"),
    [
        ([[0.5, 0.4]], ["jig", "reel"], "row 0 .* sum to 1"),
        ([[1.5, -0.5]], ["jig", "reel"], "row 0 .* 0 or more"),
        ([[np.nan, 1.0]], ["jig", "reel"], "row 0 of the probabilities"),
        ([[0.5, 0.5, 0.0]], ["jig", "reel"], r"shape \(1, 3\)"),
        ([[0.5, 0.5]], ["reel", "polka"], "label jig of row 0 is none of the classes"),
        ([[0.5, 0.5]], ["jig", "jig"], "each named once"),
        ([[1.0]], ["jig"], "two or more"),
        ([[0.5, 0.5]], [0, 1], "mix text and numbers"),
    ],
)
def test_probabilities_that_are_none_are_refused(
    probability: list[list[float]], classes: list[str], message: str
) -> None:
    with pytest.raises((ParameterError, SongError), match=message):
        evaluation.log_loss(["jig"], probability, classes)


@pytest.mark.parametrize(
    ("y", "prediction", "message"),
    [
        (["1"], [1], "mix text and numbers"),
        (["a", 1], ["a", "b"], "mix text and numbers"),
        (["a", None], ["a", "b"], "row 1 is missing"),
        ([0.0, math.nan], [0.0, 1.0], "row 1 is missing"),
        ([["a"], ["b"]], ["a", "b"], "several labels"),
        (["a"], ["a", "b"], "lengths 1, 2"),
        ([], [], "no songs"),
    ],
)
def test_labels_that_cannot_be_compared_are_refused(
    y: object, prediction: object, message: str
) -> None:
    with pytest.raises((ParameterError, SongError), match=message):
        evaluation.accuracy(y, prediction)


# McNemar and Holm.


def test_mcnemar_gives_the_published_p_value() -> None:
    # Airway hyper-responsiveness before and after stem cell transplantation, 21 children, 1 and 7
    # discordant pairs: exact conditional P = 0.0703. M. Fagerland, S. Lydersen and P. Laake, "The
    # McNemar test for binary matched-pairs data", BMC Medical Research Methodology 13:91, 2013.
    found = compare(*predictions([[1]] + [[-1]] * 7 + [[0]] * 13)[:3])
    assert (found.wins_a, found.wins_b, found.n_songs) == (1, 7, 21)
    assert found.p_value == pytest.approx(2 * (1 + 8) / 2**8)
    assert round(found.p_value, 4) == 0.0703


def test_mcnemar_of_agreeing_methods_is_one() -> None:
    assert compare(*predictions([[0, 0, 0]])[:3]).p_value == 1.0
    assert compare(*predictions([[1, -1, 0]])[:3]).p_value == 1.0


def test_holm_gives_the_textbook_example() -> None:
    # Wikipedia, "Holm-Bonferroni method", example: of 0.01, 0.04, 0.03, 0.005 the first and the
    # last are rejected at 0.05, the others not.
    adjusted = holm([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(adjusted, [0.03, 0.06, 0.06, 0.02], rtol=1e-12)
    assert (adjusted <= 0.05).tolist() == [True, False, False, True]


def test_holm_is_the_closed_bonferroni_test() -> None:
    """A hypothesis falls with every family it belongs to: enumerate the families."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = rng.choice([0.001, 0.01, 0.01, 0.02, 0.3, 0.6, 1.0], size=5) * rng.choice([1, 0.9], 5)
        families = [
            family for size in range(1, 6) for family in itertools.combinations(range(5), size)
        ]
        expected = [
            max(min(1, len(f) * min(p[j] for j in f)) for f in families if i in f) for i in range(5)
        ]
        np.testing.assert_allclose(holm(p), expected, rtol=1e-12)


def test_holm_of_nothing_is_nothing() -> None:
    assert holm([]).tolist() == []


@pytest.mark.parametrize("p", [[0.1, math.nan], [1.1], [-0.1]])
def test_holm_refuses_what_is_no_probability(p: list[float]) -> None:
    with pytest.raises(ParameterError, match="no p-value"):
        holm(p)


# The interval.


def exact_bootstrap(gains: list[list[int]]) -> Floats:
    """Mean gain of every possible resample of the groups, sorted."""
    means = []
    for drawn in itertools.product(gains, repeat=len(gains)):
        songs = [gain for group in drawn for gain in group]
        means.append(sum(songs) / len(songs))
    return np.sort(means)


@pytest.mark.parametrize(
    "gains",
    [
        [[1, 1, 0], [-1], [1, 0], [0, 0, 0, 1], [-1, 1]],
        [[1], [1], [0], [-1], [0], [1]],
        [[-1, -1, -1, 0], [0, 1], [-1], [0, 0, 0]],
    ],
)
def test_interval_is_that_of_all_possible_resamples(gains: list[list[int]]) -> None:
    means = exact_bootstrap(gains)
    found = compare(*predictions(gains), n_resamples=40_000)
    noise = 0.004  # 5 standard errors of a tail of 2.5 % in 40,000 draws
    dust = 1e-9
    for bound, share in ((found.low, 0.025), (found.high, 0.975)):
        assert np.mean(means < bound - dust) <= share + noise
        assert np.mean(means <= bound + dust) >= share - noise


def test_interval_equals_a_loop_over_drawn_groups() -> None:
    rng = np.random.default_rng(5)
    gains = [rng.choice([-1, 0, 0, 1, 1], rng.integers(1, 8)).tolist() for _ in range(30)]
    means = []
    for _ in range(4000):
        drawn = [gains[i] for i in rng.integers(0, len(gains), len(gains))]
        means.append(sum(map(sum, drawn)) / sum(map(len, drawn)))
    found = compare(*predictions(gains))
    expected = np.quantile(means, [0.025, 0.975])
    np.testing.assert_allclose([found.low, found.high], expected, rtol=0, atol=0.012)
    assert found.difference == pytest.approx(sum(map(sum, gains)) / sum(map(len, gains)))
    assert found.low < found.difference < found.high


def test_interval_of_ungrouped_songs_is_scipys() -> None:
    rng = np.random.default_rng(2)
    gain = rng.choice([-1, 0, 1], 300, p=[0.1, 0.7, 0.2])
    expected = stats.bootstrap(
        (gain,), np.mean, method="percentile", n_resamples=10_000, rng=1
    ).confidence_interval
    y, a, b, _ = predictions([gain.tolist()])
    found = compare(y, a, b)
    np.testing.assert_allclose([found.low, found.high], expected, rtol=0, atol=0.004)
    assert found.n_groups == 300


def test_interval_covers_the_truth_where_songs_hang_together() -> None:
    """40 groups of 5 songs, alike in two thirds: 95 % of the intervals hold the true 0."""
    rng = np.random.default_rng(0)
    covered, covered_ungrouped, rounds = 0, 0, 200
    for _ in range(rounds):
        of_group = rng.choice([-1, 0, 1], (40, 1), p=[0.25, 0.5, 0.25])
        own = rng.choice([-1, 0, 1], (40, 5), p=[0.25, 0.5, 0.25])
        gains = np.where(rng.random((40, 5)) < 0.8, of_group, own)
        y, a, b, groups = predictions(gains.tolist())
        grouped = compare(y, a, b, groups, n_resamples=400)
        ungrouped = compare(y, a, b, n_resamples=400)
        covered += grouped.low <= 0 <= grouped.high
        covered_ungrouped += ungrouped.low <= 0 <= ungrouped.high
        assert grouped.high - grouped.low > 1.2 * (ungrouped.high - ungrouped.low)
    assert 0.90 <= covered / rounds <= 0.985
    assert covered_ungrouped / rounds < 0.80


def test_memory_bound_does_not_change_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    gains = [rng.choice([-1, 0, 1], rng.integers(1, 9)).tolist() for _ in range(50)]
    at_once = compare(*predictions(gains))
    monkeypatch.setattr(evaluation, "_DRAWS_AT_ONCE", 700)
    assert compare(*predictions(gains)) == at_once


def test_methods_that_agree_differ_by_exactly_nothing() -> None:
    expected = Comparison(0.0, 0.0, 0.0, 0, 0, 1.0, n_songs=3, n_groups=2)
    assert compare(*predictions([[0, 0], [0]])) == expected
    assert expected.verdict == "no clear difference"


@pytest.mark.parametrize("gains", [[[1]], [[1, 1, -1, 1]]])
def test_one_group_says_nothing_of_others(gains: list[list[int]]) -> None:
    found = compare(*predictions(gains))
    assert (found.low, found.high, found.n_groups) == (-1.0, 1.0, 1)
    assert found.verdict == "no clear difference"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.2, "better"),
        (-0.2, -0.01, "worse"),
        (-0.1, 0.1, "no clear difference"),
        (0.0, 0.1, "no clear difference"),
        (-0.1, 0.0, "no clear difference"),
    ],
)
def test_verdict_is_the_interval_in_words(low: float, high: float, verdict: str) -> None:
    assert Comparison((low + high) / 2, low, high, 5, 5, 0.5, 10, 10).verdict == verdict


# Invariances.


def test_comparison_depends_on_no_order_and_no_name() -> None:
    rng = np.random.default_rng(6)
    y, a, b, groups = predictions([rng.choice([-1, 0, 1], 4).tolist() for _ in range(25)])
    found = compare(y, a, b, groups)
    order = rng.permutation(len(y))
    assert compare(y[order], a[order], b[order], groups[order]) == found
    names = np.array(["reel", "jig"])
    artists = [f"artist {24 - g}" for g in groups]
    assert compare(names[y], list(names[a]), names[b].astype(object), artists) == found


def test_swapping_the_methods_turns_the_comparison_round() -> None:
    rng = np.random.default_rng(7)
    for _ in range(5):
        gains = [rng.choice([-1, 0, 1, 1], rng.integers(1, 9)).tolist() for _ in range(12)]
        y, a, b, groups = predictions(gains)
        forth, back = (compare(y, *pair, groups, n_resamples=99) for pair in ((a, b), (b, a)))
        assert forth.difference > 0
        assert (back.difference, back.low, back.high) == (
            -forth.difference,
            -forth.high,
            -forth.low,
        )
        assert (back.wins_a, back.wins_b) == (forth.wins_b, forth.wins_a)
        assert back.p_value == forth.p_value


def test_songs_without_a_group_stand_alone() -> None:
    y, a, b, _ = predictions([[1, 0, -1, 1, 1, 0]])
    unknown = compare(y, a, b, [None, None, math.nan, None, float("nan"), math.nan])
    assert unknown == compare(y, a, b)
    assert unknown.n_groups == 6
    assert compare(y, a, b, ["x", "x", None, None, "y", "y"]).n_groups == 4


def test_seed_is_all_the_chance_there_is() -> None:
    rng = np.random.default_rng(8)
    data = predictions([rng.choice([-1, 0, 1], 5).tolist() for _ in range(40)])
    found = [compare(*data, seed=seed, n_resamples=99) for seed in (3, 3, 4)]
    assert found[0] == found[1]
    assert found[0] != found[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_resamples": 0}, "n_resamples=0"),
        ({"seed": -1}, "seed=-1"),
        ({"groups": ["x"]}, "1 groups for 2 songs"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        compare([0, 1], [0, 1], [1, 1], **settings)  # type: ignore[arg-type]
