"""A fit that was stopped goes on, and ends where one that was not stopped ends, to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.testing import assert_array_equal
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from torch import nn

from seqagg import GRUAggregator, HMMAggregator, MILAggregator, StackingAggregator
from seqagg import checkpoints as keeping
from seqagg.aggregators import make_aggregator
from seqagg.aggregators.base import Aggregator
from seqagg.aggregators.state import text_array
from seqagg.cache import write_cache
from seqagg.cli import main
from seqagg.engines import Engine, using
from seqagg.errors import ModelFileError
from seqagg.model_file import read_model, write_model
from tests.conftest import mixed_songs

SONGS = mixed_songs(40)
MODULE = sys.modules["seqagg.checkpoints"]

FITS: dict[str, dict[str, Any]] = {
    "gru": {"epochs": 8, "hidden_size": 8, "n_folds": 2, "batch_size": 8},
    "mil": {"epochs": 8, "hidden_size": 8, "n_folds": 2, "batch_size": 8},
    "hmm": {"n_folds": 2, "n_iter": 5, "n_restarts": 2},
    "stack": {"n_folds": 2},
    "auto": {
        "methods": ("hmm", "gru", "stack"),
        "parameters": {"gru": {"epochs": 4, "hidden_size": 8, "n_folds": 2}, "hmm": {"n_iter": 3}},
    },
}


class OwnNetwork(nn.Module):
    """Dropout of PyTorch's own, whose chance is the global one, and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.3), nn.Linear(4, 3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def own_network() -> MILAggregator:
    torch.manual_seed(0)
    return MILAggregator(network=OwnNetwork(), epochs=6, n_folds=2, batch_size=8)


MADE = {name: (lambda n=name, p=p: make_aggregator(n, **p)) for name, p in FITS.items()} | {
    "own network": own_network,
    "two layers": lambda: GRUAggregator(
        epochs=4, hidden_size=4, n_layers=2, n_folds=2, batch_size=8
    ),
    "no fold": lambda: GRUAggregator(epochs=4, hidden_size=4, batch_size=8, base="none"),
}


@pytest.fixture(autouse=True)
def _everything_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "EVERY", 0.0)


class Stopped(BaseException):
    """Stands for a power cut."""


def stop_after(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the n-th checkpoint be the last that is written."""
    write = MODULE.Stage.write
    left = [n]

    def counted(self: Any, *args: Any) -> bool:
        if left[0] == 0:
            raise Stopped
        left[0] -= 1
        return bool(write(self, *args))

    monkeypatch.setattr(MODULE.Stage, "write", counted)


def leave(fit: Callable[[], Any], folder: Path) -> None:
    """Fit, and lose everything but what was kept."""
    try:
        with keeping(folder):
            fit()
            raise Stopped
    except Stopped:
        pass


def same(one: Aggregator, other: Aggregator) -> None:
    """Every number of two fits, to the bit."""
    assert one.inverse_temperature_ == other.inverse_temperature_
    assert_array_equal(one.doubts_, other.doubts_)
    assert_array_equal(one.predict_log_proba(SONGS), other.predict_log_proba(SONGS))
    if getattr(one, "network", None) is None:
        states = one._state(), other._state()
        assert states[0].keys() == states[1].keys()
        for name, array in states[0].items():
            assert array.tobytes() == states[1][name].tobytes(), name


@pytest.mark.parametrize("name", MADE)
def test_stopped_anywhere_it_ends_in_the_same_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, folder = MADE[name], tmp_path / "kept"
    songs = SONGS if name != "no fold" else SONGS.replace(groups=["one"] * len(SONGS))
    expected = make().fit(songs)
    for n in (1, 1, 3):
        with monkeypatch.context() as patch:
            stop_after(n, patch)
            leave(partial(make().fit, songs), folder)
        assert any(folder.rglob("*.safetensors"))
    random_state = torch.get_rng_state()
    with keeping(folder) as kept:
        found = make().fit(songs)
    assert kept.resumed
    assert not folder.exists()
    same(found, expected)
    assert_array_equal(torch.get_rng_state(), random_state)


def rewrite(folder: Path, end: str, change: Callable[[Any], Any]) -> None:
    """Change the arrays whose names end so in all checkpoints, with checksums that are right."""
    n_changed = 0
    for file in folder.rglob("*.safetensors"):
        header, arrays = read_model(file)
        changed = {n: change(a) for n, a in arrays.items() if n.endswith(end)}
        n_changed += len(changed)
        write_model(file, header, arrays | changed)
    assert n_changed > 0


class Elsewhere(Engine):
    """An engine of other processes, but that there are none."""

    @property
    def alone(self) -> bool:
        return False

    def run(self, function: Any, shared: Any, items: Any) -> Any:
        return self._in_this_process(function, shared, items)


@pytest.mark.parametrize("name", ["gru", "two layers", "mil"])
def test_networks_that_others_trained_are_kept(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("this was done before")

    make = MADE[name]
    expected = make().fit(SONGS)
    with using(Elsewhere()):
        leave(lambda: make().fit(SONGS), tmp_path / "kept")
        monkeypatch.setattr("seqagg.aggregators.network._train_one", never)
        with keeping(tmp_path / "kept") as kept:
            found = make().fit(SONGS)
    assert kept.resumed
    same(found, expected)


@pytest.mark.parametrize(
    ("end", "change"),
    [
        ("weight_hh_l0", lambda a: np.full_like(a, np.nan)),
        ("weight_hh_l0", lambda a: a[:1]),
        ("scores", lambda a: np.full_like(a, np.inf)),
        ("scores", lambda a: a[:1]),
        ("history", lambda a: a[:-1]),
        ("history", lambda a: text_array([])),
    ],
)
def test_networks_that_no_training_gives_are_trained_again(
    end: str, change: Callable[[Any], Any], tmp_path: Path
) -> None:
    with using(Elsewhere()):
        leave(lambda: MADE["gru"]().fit(SONGS), tmp_path / "kept")
        rewrite(tmp_path / "kept", end, change)
        with keeping(tmp_path / "kept"):
            found = MADE["gru"]().fit(SONGS)
    same(found, MADE["gru"]().fit(SONGS))


@pytest.mark.parametrize("name", FITS)
def test_work_that_was_kept_is_not_done_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("this was done before")

    leave(lambda: make_aggregator(name, **FITS[name]).fit(SONGS), tmp_path / "kept")
    monkeypatch.setattr(HMMAggregator, "_fit_class", never)
    monkeypatch.setattr(GRUAggregator, "_train_epoch", never)
    monkeypatch.setattr(MILAggregator, "_train_epoch", never)
    monkeypatch.setattr("seqagg.aggregators.stacking._judge", never)
    with keeping(tmp_path / "kept"):
        make_aggregator(name, **FITS[name]).fit(SONGS)


def other_songs() -> Any:
    values = SONGS.values.copy()
    values[0, 0] += 1e-3
    return SONGS.replace(values=values)


@pytest.mark.parametrize(
    "fit",
    [
        lambda: GRUAggregator(**(FITS["gru"] | {"dropout": 0.3})).fit(SONGS),
        lambda: GRUAggregator(**FITS["gru"], random_state=1).fit(SONGS),
        lambda: GRUAggregator(**FITS["gru"]).fit(other_songs()),
        lambda: GRUAggregator(**FITS["gru"]).fit(SONGS, SONGS.labels[::-1]),
        lambda: GRUAggregator(**FITS["gru"]).fit(SONGS, groups=np.arange(40) // 2),
        lambda: MILAggregator(**FITS["mil"]).fit(SONGS),
    ],
)
def test_what_another_fit_has_kept_is_not_used(fit: Any, tmp_path: Path) -> None:
    leave(lambda: GRUAggregator(**FITS["gru"]).fit(SONGS), tmp_path / "kept")
    with keeping(tmp_path / "kept") as kept:
        found = fit()
    assert not kept.resumed
    same(found, fit())


def test_a_number_that_no_repr_shows_makes_another_fit(tmp_path: Path) -> None:
    def stack(last: float) -> Any:
        classifier = GridSearchCV(GaussianNB(), {"var_smoothing": [1e-6] * 40 + [last]}, cv=2)
        return StackingAggregator(classifier=classifier, n_folds=2)

    assert repr(stack(1.0)) == repr(stack(2.0))
    leave(lambda: stack(1.0).fit(SONGS), tmp_path / "kept")
    with keeping(tmp_path / "kept") as kept:
        stack(2.0).fit(SONGS)
    assert not kept.resumed


def test_a_network_of_other_weights_is_another_fit(tmp_path: Path) -> None:
    leave(lambda: own_network().fit(SONGS), tmp_path / "kept")
    other = own_network()
    with torch.no_grad():
        other.network.layers[0].bias += 1
    with keeping(tmp_path / "kept") as kept:
        other.fit(SONGS)
    assert not kept.resumed


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: b"", lambda d: d[:50] + b"x"])
def test_damaged_files_are_as_good_as_none(damage: Any, tmp_path: Path) -> None:
    leave(lambda: GRUAggregator(**FITS["gru"]).fit(SONGS), tmp_path / "kept")
    for file in (tmp_path / "kept").rglob("*.safetensors"):
        file.write_bytes(damage(file.read_bytes()))
    with keeping(tmp_path / "kept") as kept:
        found = GRUAggregator(**FITS["gru"]).fit(SONGS)
    assert not kept.resumed
    same(found, GRUAggregator(**FITS["gru"]).fit(SONGS))


def cut(array: Any) -> Any:
    return array[:1] if array.ndim else array


def spoil(array: Any) -> Any:
    return np.full_like(array, np.nan)


@pytest.mark.parametrize(
    ("name", "end", "change"),
    [
        ("gru", "exp_avg", cut),
        ("gru", "weight_hh_l0", cut),
        ("hmm", "means", cut),
        ("hmm", "means", spoil),
        ("hmm", "likelihood", cut),
        ("hmm", "likelihood", spoil),
        ("stack", "scores", cut),
        ("stack", "scores", spoil),
    ],
)
def test_files_that_another_state_of_the_code_has_written_are_as_good_as_none(
    name: str, end: str, change: Callable[[Any], Any], tmp_path: Path
) -> None:
    """Their checksums are right. An optimizer that took up arrays too short wrote beyond them."""
    leave(lambda: MADE[name]().fit(SONGS), tmp_path / "kept")
    rewrite(tmp_path / "kept", end, change)
    with keeping(tmp_path / "kept"):
        found = MADE[name]().fit(SONGS)
    same(found, MADE[name]().fit(SONGS))


def test_a_file_that_a_fit_cannot_go_on_from_is_said(tmp_path: Path) -> None:
    leave(lambda: MADE["gru"]().fit(SONGS), tmp_path / "kept")
    for file in (tmp_path / "kept").rglob("*.safetensors"):
        header, arrays = read_model(file)
        del header["header"]["rng"]
        write_model(file, header, arrays)
    with pytest.raises(ModelFileError, match=r"kept: a fit cannot go on from it: KeyError.*remove"):
        leave(lambda: MADE["gru"]().fit(SONGS), tmp_path / "kept")


def test_an_error_of_a_fit_that_went_on_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is told to remove good checkpoints because of it."""
    leave(lambda: MADE["gru"]().fit(SONGS), tmp_path / "kept")

    def failing(*_: Any) -> float:
        raise KeyError("own")

    monkeypatch.setattr("seqagg.aggregators.network.training_helps", failing)
    with pytest.raises(KeyError, match="own"), keeping(tmp_path / "kept") as kept:
        MADE["gru"]().fit(SONGS)
    assert kept.resumed


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file is in the way")
    with keeping(tmp_path / "kept") as kept:
        found = GRUAggregator(**FITS["gru"]).fit(SONGS)
    assert kept.problem is not None
    assert "cannot be written" in kept.problem
    same(found, GRUAggregator(**FITS["gru"]).fit(SONGS))
    assert (tmp_path / "kept").read_text() == "a file is in the way"


def test_quick_fits_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "EVERY", 1000.0)
    leave(lambda: make_aggregator("auto", **FITS["auto"]).fit(SONGS), tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_an_interrupted_aggregator_is_not_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    model = GRUAggregator(**FITS["gru"]).fit(SONGS)
    epoch = GRUAggregator._train_epoch

    def interrupted(self: Any, training: Any, *rest: Any) -> float:
        if len(training.record.history) == 3:
            raise KeyboardInterrupt
        return epoch(self, training, *rest)

    monkeypatch.setattr(GRUAggregator, "_train_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.fit(SONGS)
    with pytest.raises(Exception, match="not fitted"):
        model.predict(SONGS)


# Processes.

FIT = """
import signal, sys
import seqagg.checkpoints
from seqagg.cli import main
sys.modules["seqagg.checkpoints"].EVERY = 0.0
signal.signal(signal.SIGINT, signal.default_int_handler)
main(sys.argv[1:])
"""

needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="no such signals")


def fit(cache: Path, out: Path, *more: str) -> list[str]:
    settings = ["--set", "epochs=10", "--set", "hidden_size=8", "--set", "n_folds=2"]
    return ["fit", str(cache), "--method", "gru", *settings, "--out", str(out), *more]


def here(arguments: list[str]) -> str:
    """Run a command in this process."""
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cache") / "songs.parquet"
    write_cache(mixed_songs(60), path)
    return path


@contextmanager
def elsewhere(arguments: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a command in a process of its own; it has kept something when the block begins."""
    command = [sys.executable, "-c", FIT, *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        end = time.monotonic() + 60
        while not any(folder.rglob("[!.]*.safetensors")):  # hidden are halves
            assert process.poll() is None, "it ended before it was stopped"
            assert time.monotonic() < end
            time.sleep(0.005)
        yield process


@needs_signals
def test_killed_the_command_goes_on_to_the_same_bytes(cache: Path, tmp_path: Path) -> None:
    straight, out = tmp_path / "a" / "m.safetensors", tmp_path / "b" / "m.safetensors"
    assert "Went on" not in here(fit(cache, straight))
    assert os.listdir(straight.parent) == ["m.safetensors"]
    with elsewhere(fit(cache, out), out.parent) as process:
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert os.listdir(out.parent) == ["m.safetensors.partial"]
    assert "Went on" in here(fit(cache, out))
    assert out.read_bytes() == straight.read_bytes()
    assert os.listdir(out.parent) == ["m.safetensors"]


@needs_signals
def test_interrupted_the_command_says_how_to_go_on(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    with elsewhere(fit(cache, out), tmp_path) as process:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == f"seqagg: the same command goes on from {out}.partial\nseqagg: interrupted\n"
    assert os.listdir(tmp_path) == ["m.safetensors.partial"]


@needs_signals
def test_two_commands_of_the_same_target_do_not_mix(cache: Path, tmp_path: Path) -> None:
    """Other seeds, the same file: whoever ends last has it, whole."""
    out = tmp_path / "m.safetensors"
    with elsewhere(fit(cache, out, "--seed", "1"), tmp_path) as process:
        here(fit(cache, out))
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    found, apart = out.read_bytes(), []
    for seed in "01":
        here(fit(cache, tmp_path / seed / "m.safetensors", "--seed", seed))
        apart.append((tmp_path / seed / "m.safetensors").read_bytes())
    assert apart[0] != apart[1]
    assert found in apart
