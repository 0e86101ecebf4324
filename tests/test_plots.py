"""Plots and what notebooks show: what is drawn are the numbers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from sklearn import config_context, metrics
from sklearn.model_selection import GroupKFold, learning_curve

from seqagg import (
    HMMAggregator,
    MeanLogOdds,
    ParameterError,
    SongError,
    Songs,
    benchmark,
    plot_comparison,
    plot_confusion,
    plot_learning_curve,
    plot_reliability,
    plot_song,
)
from seqagg.palette import METHODS
from tests.conftest import mixed_songs, order_songs
from tests.made_results import made_result


@pytest.fixture(autouse=True)
def no_window() -> Iterator[None]:
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def drawn(axes: Any) -> None:
    """Let matplotlib do all its work; a warning would be an error."""
    axes.figure.canvas.draw()


# A song.


def test_a_song_and_what_methods_believe_of_it() -> None:
    songs = order_songs(12)
    songs = songs.replace(start=np.concatenate([2.5 * np.arange(n) for n in songs.lengths]))
    model = MeanLogOdds().fit(songs)
    heat, belief = plot_song(songs, "song 4", {"logodds": model})
    drawn(heat)
    np.testing.assert_array_equal(heat.collections[0].get_array(), songs[4].T)
    assert [t.get_text() for t in heat.get_yticklabels()] == list(songs.columns)
    assert heat.get_title() == f"song 4, labelled {songs.labels[4]}"
    assert belief.get_xlabel() == "seconds"
    by_class = {line.get_label(): line for line in belief.lines}
    for k, name in enumerate(model.classes_):
        expected = [model.predict_proba([songs[4][:m]])[0, k] for m in range(1, len(songs[4]) + 1)]
        np.testing.assert_allclose(by_class[name].get_ydata(), 100 * np.array(expected), atol=1e-4)
        np.testing.assert_allclose(
            by_class[name].get_xdata(), 2.5 * np.arange(1, len(songs[4]) + 1)
        )


def test_songs_are_told_apart_by_place_or_name_and_missing_frames_left_out() -> None:
    songs = Songs.from_arrays(
        [[[0.5, 0.5]], [[0.1, 0.9], [np.nan, 0.2], [0.3, 0.7]]], kind="probability"
    )
    (axes,) = plot_song(songs, -1)
    drawn(axes)
    assert axes.collections[0].get_array().shape == (2, 2)
    assert axes.get_xlabel() == "frames"
    for wrong in ("2", 2, -3):
        with pytest.raises(SongError):
            plot_song(songs, wrong)
    empty = Songs.from_arrays([np.empty((0, 2)), [[1.0, 2.0]]])
    with pytest.raises(SongError, match="song '0': no frame is left"):
        plot_song(empty, 0)


def test_given_axes_are_drawn_into() -> None:
    songs = order_songs(12)
    _, given = plt.subplots(2)
    found = plot_song(songs, 0, {"mine": MeanLogOdds().fit(songs)}, axes=given)
    assert found == list(given)
    with pytest.raises(ParameterError, match="2 axes for a heat map and 0 aggregators"):
        plot_song(songs, 0, axes=given)


# Results.


def test_differences_from_averaging() -> None:
    result = made_result(200)
    axes = plot_comparison(result)
    drawn(axes)
    rows = [row for row in result.comparisons if row.baseline == "logodds"]
    assert [t.get_text() for t in axes.get_yticklabels()] == [row.method for row in rows]
    for row, whisker, dot in zip(rows, axes.lines[0::2], axes.lines[1::2], strict=False):
        c = row.comparison
        assert list(whisker.get_xdata()) == [100 * c.low, 100 * c.high]
        assert list(dot.get_xdata()) == [100 * c.difference]
        assert to_hex(dot.get_color()) == METHODS[row.method][0].lower()
    assert axes.get_xlabel() == "accuracy, points more than logodds (95 % interval)"
    with pytest.raises(ParameterError, match="nothing was compared with 'hmm'"):
        plot_comparison(result, "hmm")


def test_reliability() -> None:
    axes = plot_reliability(made_result(200), ["gru"])
    drawn(axes)
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["gru"]
    assert axes.get_xlim() == axes.get_ylim() == (0, 100)
    with pytest.raises(ParameterError, match="'auto' was not compared; there are mean, logodds"):
        plot_reliability(made_result(200), ["auto"])


def test_confusion_and_its_difference() -> None:
    result = made_result(200)
    rows = result.predictions.to_pylist()
    matrix = {}
    for method in ("gru", "logodds"):
        pairs = [(r["label"], r["prediction"]) for r in rows if r["method"] == method]
        matrix[method] = metrics.confusion_matrix(*zip(*pairs, strict=True), labels=result.classes)
    axes = plot_confusion(result, "gru")
    drawn(axes)
    numbers = [[int(t.get_text()) for t in axes.texts]]
    assert np.array(numbers).reshape(3, 3).tolist() == matrix["gru"].tolist()
    axes = plot_confusion(result, "gru", minus="logodds", ax=plt.figure().add_subplot())
    drawn(axes)
    change = matrix["gru"] - matrix["logodds"]
    assert {t.get_position(): int(t.get_text()) for t in axes.texts} == {
        (k, i): n for (i, k), n in np.ndenumerate(change) if n
    }


def test_learning_curve_of_scikit_learn() -> None:
    songs = mixed_songs(60)
    sizes, _, scores = learning_curve(
        MeanLogOdds(),
        songs,
        songs.labels,
        cv=GroupKFold(3),
        groups=np.arange(60),
        train_sizes=[6, 20],
    )
    axes = plot_learning_curve(sizes, {"logodds": scores, "mine": scores.mean(axis=1)})
    drawn(axes)
    for line in axes.lines:
        np.testing.assert_allclose(line.get_ydata(), 100 * scores.mean(axis=1))
    assert len(axes.collections) == 1, "a band where there are repeats"
    with pytest.raises(ParameterError, match="3 scores of gru for 2 sizes"):
        plot_learning_curve(sizes, {"gru": [0.1, 0.2, 0.3]})


def test_several_labels_are_no_confusion() -> None:
    rng = np.random.default_rng(0)
    has = rng.random((30, 3)) < 0.5
    songs = Songs.from_arrays(
        [rng.normal(row, 1.0, (4, 3)) for row in has],
        columns=["a", "b", "c"],
        labels=[tuple(np.array(["a", "b", "c"])[row]) for row in has],
        task="multilabel",
    )
    result = benchmark(songs, ["mean", "logodds"], cv=2, n_resamples=50)
    with pytest.raises(ParameterError, match="several labels"):
        plot_confusion(result, "mean")
    assert plot_comparison(result).get_xlabel().startswith("LRAP")
    drawn(plot_reliability(result))


def test_importing_seqagg_imports_no_matplotlib() -> None:
    code = "import sys, seqagg; seqagg.plot_song; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# Notebooks.


class Text(HTMLParser):
    """Text and tags of markup."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text: list[str] = []
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_songs_in_a_notebook() -> None:
    songs = order_songs(12).replace(ids=["<b>bold</b>", *map(str, range(1, 12))])
    found = Text(songs._repr_html_())
    assert {"table", "caption", "th"} <= found.tags
    assert "b" not in found.tags
    for text in ("<b>bold</b>", "12 songs, multiclass", "the first 6 of 12 songs", songs.labels[5]):
        assert text in found.text
    assert "0 songs" in songs[:0]._repr_html_()


def test_aggregators_in_a_notebook() -> None:
    songs = order_songs(24)
    model = HMMAggregator(n_states=2, n_iter=2, covariance_type="diag", topology="ergodic")
    unfitted = model._repr_mimebundle_()["text/html"]
    assert "fitted" not in unfitted.split("<style")[0]
    shown = model.fit(songs)._repr_mimebundle_()["text/html"]
    text = "".join(Text(shown).text)
    assert "HMMAggregator, fitted" in text
    assert model.fit_report_.splitlines()[0] in text
    assert "3 classes: blues, jazz, metal" in text
    assert shown.count("HMMAggregator") > 1, "and scikit-learn's own diagram"
    with config_context(display="text"):
        assert "text/html" not in model._repr_mimebundle_()


def test_results_in_a_notebook() -> None:
    result = made_result(200)
    found = Text(result._repr_html_())
    assert "table" in found.tags
    for row in result.summary():
        assert row["method"] in found.text
        assert f"{100 * row['accuracy']:.1f}" in found.text
    for verdict in result.verdicts():
        assert verdict in found.text


def test_results_in_print() -> None:
    result = made_result(200)
    lines = str(result).splitlines()
    rows = result.summary()
    assert lines[0].startswith("method  ")
    assert len({len(line) for line in lines[: len(rows) + 1]}) == 1
    for line, row in zip(lines[1:], rows, strict=False):
        assert line.split()[:2] == [row["method"], f"{100 * row['accuracy']:.1f}"]
    assert lines[-len(result.verdicts()) :] == result.verdicts()
