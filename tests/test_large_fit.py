"""Fits to a folder of files: the EM of one process over all songs, to rounding."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.testing import assert_allclose, assert_array_equal

import seqagg
from seqagg import Songs, cli
from seqagg.aggregators.hmm import HMMAggregator
from seqagg.engines import Engine
from seqagg.errors import SongError
from seqagg.kernels.hmm import fit_em
from seqagg.large_fit import fit_hmm_to_all, sample_songs
from seqagg.manifest import Manifest
from seqagg.shards import find_shards, write_shards
from tests.conftest import COLUMNS, order_free_songs

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


def test_the_command_fits_to_all_songs_of_the_split(tmp_path: Path) -> None:
    songs = make_songs()
    split = ["test" if i % 4 == 0 else "train" for i in range(len(songs))]
    folder, manifest = in_shards(songs.replace(split=split), tmp_path / "songs")
    settings = [f"--set={key}={value}" for key, value in QUICK.items()]
    command = [
        "fit",
        folder,
        "--method",
        "hmm",
        "--sample",
        90,
        "--out",
        tmp_path / "m.safetensors",
    ]
    done = CliRunner().invoke(cli.main, [*map(str, command), *settings])
    assert done.exit_code == 0, done.output
    model = seqagg.load(tmp_path / "m.safetensors")
    n_train = sum(s == "train" for s in split) - sum(
        s == "train" and (label is None or i == 10)
        for i, (s, label) in enumerate(zip(split, songs.labels, strict=True))
    )
    assert f"over all {n_train} songs" in model.fit_report_
    assert find_shards(folder) == manifest
