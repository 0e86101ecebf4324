"""Fits to a folder of files: the EM of one process over all songs, to rounding."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.testing import assert_allclose, assert_array_equal

import seqagg
from seqagg import GRUAggregator, MILAggregator, Songs, cli, large_fit
from seqagg.aggregators import make_aggregator
from seqagg.aggregators.hmm import HMMAggregator
from seqagg.aggregators.lessons import Without, hearing
from seqagg.engines import Engine
from seqagg.errors import SongError
from seqagg.kernels.hmm import fit_em
from seqagg.large_fit import fit_hmm_to_all, fit_to_all, other_samples, sample_songs
from seqagg.manifest import Manifest
from seqagg.places import place_of, remove
from seqagg.shards import find_shards, write_shards
from tests.conftest import COLUMNS, order_free_songs, order_songs

QUICK = {"n_states": 2, "covariance_type": "diag", "topology": "ergodic", "n_folds": 2}


def make_songs(task: str = "multiclass") -> Songs:
    songs = order_free_songs(160, gap=1.0, multilabel=task == "multilabel")
    values = songs.values.copy()
    values[songs.offsets[10] : songs.offsets[11]] = np.nan
    labels = [None if i % 9 == 4 else label for i, label in enumerate(songs.labels)]
    return songs.replace(values=values, labels=labels)


def in_shards(songs: Songs, folder: Path, n: int = 50) -> tuple[Path, Manifest]:
    return folder, write_shards([songs], folder, n)


def learnable(songs: Songs) -> Songs:
    known = np.array([label is not None for label in songs.labels])
    chosen: Songs = songs[known & (songs.present().lengths > 0)]
    return chosen


def test_the_sample_is_the_same_however_songs_lie(tmp_path: Path) -> None:
    songs = make_songs()
    few = sample_songs(*in_shards(songs, tmp_path / "few", 100), n_songs=60)
    many = sample_songs(*in_shards(songs[::-1], tmp_path / "many", 20), n_songs=60)
    assert sorted(few.ids) == sorted(many.ids)
    assert 30 < len(few) < 90
    at = [songs.ids.tolist().index(i) for i in few.ids]
    assert_array_equal(few.labels, songs.labels[at])
    assert_array_equal(few.values, songs[at].values)
    more = sample_songs(*in_shards(songs, tmp_path / "more"), n_songs=100)
    assert set(few.ids) < set(more.ids)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("covariance_type", ["diag", "full"])
def test_em_over_files_is_em_over_all_songs(
    tmp_path: Path, task: str, covariance_type: str
) -> None:
    songs = make_songs(task)
    folder, manifest = in_shards(songs, tmp_path / "songs")
    settings: dict[str, Any] = {**QUICK, "covariance_type": covariance_type, "n_iter": 6}
    sample = learnable(sample_songs(folder, manifest, n_songs=90))
    sampled = HMMAggregator(**settings).fit(sample)
    fitted = copy.deepcopy(sampled)
    history = fit_hmm_to_all(fitted, folder, manifest)

    usable = learnable(songs)
    frames = sampled._whitening(sampled._canonical(usable.present()))
    offsets = usable.present().offsets
    names = np.array(COLUMNS)[sampled._class_order]
    total = 0.0
    for k, start in sampled._models.items():
        mine = [
            i
            for i, label in enumerate(usable.labels)
            if k == len(names) or names[k] in (label if task == "multilabel" else [label])
        ]
        own = np.concatenate([frames[offsets[i] : offsets[i + 1]] for i in mine])
        ends = np.concatenate([[0], np.cumsum(np.diff(offsets)[mine])])
        limit = sampled.tol * len(own)
        expected, course = fit_em(
            own, ends, start, shrinkage=sampled.shrinkage, n_iter=6, tol=limit
        )
        total += course[-1]
        for part in ("startprob", "transmat", "means", "covars"):
            found = getattr(fitted._models[k], part)
            assert_allclose(found, getattr(expected, part), rtol=1e-8, atol=1e-10)
    assert_allclose(history[-1], total, rtol=1e-12)
    prior = HMMAggregator(**settings).fit(usable).class_prior_
    assert_allclose(fitted.class_prior_, prior, rtol=1e-12)
    assert fitted.predict_proba(usable).shape == (len(usable), 3)


@pytest.mark.parametrize(("shrinkage", "falls"), [(1.0, False), (1000.0, True)])
def test_where_the_likelihood_falls_the_report_says_so(
    tmp_path: Path, shrinkage: float, falls: bool
) -> None:
    """The prior on covariances may win over it."""
    songs = make_songs("multiclass")
    folder, manifest = in_shards(songs, tmp_path / "songs")
    fitted = HMMAggregator(**QUICK).fit(learnable(songs))
    fitted.set_params(shrinkage=shrinkage, tol=-1.0, n_iter=4)
    fit_hmm_to_all(fitted, folder, manifest)
    said = fitted.fit_report_.splitlines()[-1]
    assert said.startswith("4 iterations of EM over all")
    assert said.endswith("likelihood fell at some iteration") == falls


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("method", ["majority", "mean", "logodds", "stack"])
def test_methods_fitted_to_files_are_fitted_to_all_songs(
    tmp_path: Path, method: str, task: str
) -> None:
    songs = make_songs(task).replace(groups=[f"artist {i // 3}" for i in range(160)])
    folder, manifest = in_shards(songs, tmp_path / "songs")
    fitted = make_aggregator(method).fit(learnable(sample_songs(folder, manifest, n_songs=90)))
    usable = learnable(songs)
    assert fit_to_all(fitted, folder, manifest, engine=Engine()) == len(usable)
    expected = make_aggregator(method).fit(usable)
    assert_allclose(fitted.class_prior_, expected.class_prior_, rtol=1e-12)
    assert_allclose(fitted.doubts_, expected.doubts_, rtol=1e-3, atol=1e-4)
    assert fitted.inverse_temperature_ == pytest.approx(expected.inverse_temperature_, rel=1e-3)
    if task == "multilabel":
        assert_allclose(fitted.thresholds_, expected.thresholds_, rtol=1e-3)
    proba = expected.predict_proba(usable)
    assert_allclose(fitted.predict_proba(usable), proba, rtol=0, atol=1e-3)


def test_a_bucket_is_learnt_from(tmp_path: Path) -> None:
    songs, out = make_songs(), tmp_path / "m.safetensors"
    bucket = f"memory://{tmp_path}/songs"
    write_shards([songs], bucket, 50)
    done = CliRunner().invoke(
        cli.main, ["fit", bucket, "--method=mean", "--sample=60", f"--out={out}", "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["n_songs"] == len(learnable(songs))
    assert remove(place_of(bucket)) is None
    assert not place_of(bucket).exists()


def test_no_more_is_held_than_the_bound_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    songs = make_songs()
    folder, manifest = in_shards(songs, tmp_path / "songs")
    fitted = make_aggregator("logodds").fit(learnable(songs)[:40])
    monkeypatch.setattr(large_fit, "HELD_BYTES", 80 * 3 * 8)
    n_songs = fit_to_all(fitted, folder, manifest)
    held = learnable(sample_songs(folder, manifest, n_songs=80))
    assert n_songs == len(held) < 100
    expected = make_aggregator("logodds").fit(held)
    assert fitted.inverse_temperature_ == pytest.approx(expected.inverse_temperature_, rel=1e-9)
    monkeypatch.setattr(large_fit, "HELD_BYTES", 40 * 3 * 8)
    assert fit_to_all(fitted, folder, manifest) is None  # it has learnt from more


class TestLessons:
    """What networks hear of a cache that no machine holds."""

    def test_every_song_is_heard_once_in_turn(self, tmp_path: Path) -> None:
        songs = make_songs()
        folder, manifest = in_shards(songs, tmp_path / "songs")
        lessons = other_samples(folder, manifest, n_songs=45)
        model, heard = MILAggregator(epochs=1, hidden_size=2), []
        model.fit(learnable(songs))
        nobody = Without(frozenset(), frozenset())
        for epoch in range(lessons.n_samples):
            found, y = lessons(model, nobody, epoch)
            assert 0.5 < len(found) / (lessons.share * 45) < 1.5
            names = model.classes_[model._class_order][y]
            at = {str(i): label for i, label in zip(songs.ids, songs.labels, strict=True)}
            assert [at[str(i)] for i in found.ids] == names.tolist()
            heard += found.ids.tolist()
        assert lessons.n_samples == 4
        assert sorted(heard) == sorted(learnable(songs).ids.tolist())
        again = lessons(model, nobody, lessons.n_samples)[0]
        assert again.ids.tolist() == heard[: len(again)]

    def test_songs_and_groups_held_out_are_not_heard(self, tmp_path: Path) -> None:
        songs = make_songs().replace(groups=[f"artist {i // 4}" for i in range(160)])
        folder, manifest = in_shards(songs, tmp_path / "songs")
        lessons, told = other_samples(folder, manifest, n_songs=80), []

        def spy(aggregator: Any, without: Without, epoch: int) -> Any:
            found = lessons(aggregator, without, epoch)
            told.append((without, found[0]))
            return found

        spy.share = lessons.share  # type: ignore[attr-defined]
        sample = learnable(sample_songs(folder, manifest, n_songs=80))
        with hearing(spy):  # type: ignore[arg-type]
            model = GRUAggregator(
                epochs=2, patience=2, hidden_size=2, n_folds=2, n_repeats=1, n_jobs=1
            ).fit(sample)
        assert len(told) == 4 == sum(len(history) - 1 for history in model.history_)
        for without, found in told:
            assert len(found) > 20
            assert without.groups
            assert not without.groups & set(found.groups)
            assert not without.ids & set(found.ids)
        held = set.union(*(set(without.ids) for without, _ in told))
        assert held == set(map(str, sample.ids))

    def test_where_all_songs_are_held_out_the_sample_is_heard(self, tmp_path: Path) -> None:
        """All but two artists' songs are: each network may hear none of its own artist's."""
        songs = learnable(make_songs()).replace(fold=None)
        songs = songs.replace(groups=["one" if i % 2 else "two" for i in range(len(songs))])
        folder, manifest = in_shards(songs[songs.groups == "one"], tmp_path / "songs")
        lessons = other_samples(folder, manifest, n_songs=40)
        with hearing(lessons):
            model = GRUAggregator(epochs=2, patience=2, hidden_size=2, n_folds=2, n_repeats=1).fit(
                songs
            )
        assert [len(history) for history in model.history_] == [3, 3]
        assert np.isfinite([row["crops"] for rows in model.history_ for row in rows[1:]]).all()

    def test_other_songs_are_learnt_from(self, tmp_path: Path) -> None:
        """The order of frames, which the few songs of the sample hardly tell."""
        songs = order_songs(900)
        folder, manifest = in_shards(songs, tmp_path / "songs", 300)
        sample, unseen = sample_songs(folder, manifest, n_songs=30), order_songs(200, seed=1)
        quick: dict[str, Any] = {"epochs": 12, "hidden_size": 8, "n_folds": 2, "batch_size": 8}
        alone = GRUAggregator(**quick).fit(sample)
        with hearing(other_samples(folder, manifest, n_songs=30)):
            taught = GRUAggregator(**quick).fit(sample)
        assert taught.score(unseen) > alone.score(unseen) + 0.1


def test_a_label_that_the_sample_lacks_is_named(tmp_path: Path) -> None:
    songs = make_songs()
    two = learnable(songs[[label != "jazz" for label in songs.labels]])
    fitted = HMMAggregator(**QUICK).fit(two)
    with pytest.raises(SongError, match="'jazz' is not in the sample"):
        fit_hmm_to_all(fitted, *in_shards(songs, tmp_path / "songs"))


def test_no_song_in_the_sample(tmp_path: Path) -> None:
    songs = make_songs().replace(labels=None)
    with pytest.raises(SongError, match="no song"):
        sample_songs(*in_shards(songs, tmp_path / "songs"), engine=Engine())


METHODS: dict[str, dict[str, Any]] = {
    "hmm": QUICK,
    "logodds": {},
    "stack": {},
    "gru": {"epochs": 2, "hidden_size": 2, "n_folds": 2},
    "auto": {"methods": '["stack"]'},
}


@pytest.mark.parametrize("method", METHODS)
def test_the_command_fits_to_all_songs_of_the_split(tmp_path: Path, method: str) -> None:
    songs = make_songs()
    split = ["test" if i % 4 == 0 else "train" for i in range(len(songs))]
    folder, manifest = in_shards(songs.replace(split=split), tmp_path / "songs")
    out = tmp_path / "m.safetensors"
    settings = [f"--set={key}={value}" for key, value in METHODS[method].items()]
    command = ["fit", folder, "--method", method, "--sample", 90, "--out", out, "--json", *settings]
    done = CliRunner().invoke(cli.main, [*map(str, command)])
    assert done.exit_code == 0, done.output
    report, model = json.loads(done.stdout), seqagg.load(out)
    n_train = sum(s == "train" for s in split) - sum(
        s == "train" and (label is None or i == 10)
        for i, (s, label) in enumerate(zip(split, songs.labels, strict=True))
    )
    if method in ("hmm", "logodds", "stack"):
        assert report["n_songs"] == n_train
    else:
        assert 30 < report["n_songs"] < n_train
    if method == "hmm":
        assert f"over all {n_train} songs" in model.fit_report_  # type: ignore[attr-defined]
    assert any("sample" in warning for warning in report["warnings"]) == (method == "auto")
    assert find_shards(folder) == manifest
    assert not (tmp_path / "m.safetensors.partial").exists()


def test_options_of_workers_are_refused_without_them(tmp_path: Path) -> None:
    out, songs = tmp_path / "m.safetensors", tmp_path / "songs.parquet"
    for options, told in {
        ("--method=mil", "--engine=ray", "--workers=2"): "--workers is for --method gru",
        ("--method=gru", "--workers=2"): "--workers is for --method gru --engine ray",
        ("--method=gru", "--checkpoints=kept"): "--checkpoints is for --workers",
    }.items():
        done = CliRunner().invoke(cli.main, ["fit", str(songs), "--out", str(out), *options])
        assert done.exit_code == 2
        assert told in done.stderr
