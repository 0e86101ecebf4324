"""The same on a Ray cluster of small nodes on this machine: same bits, whatever dies."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from joblib import Parallel, delayed
from numpy.testing import assert_array_equal

from seqagg import GRUAggregator, Songs, scale
from seqagg.aggregators import make_aggregator
from seqagg.aggregators.auto import AutoAggregator
from seqagg.aggregators.hmm import HMMAggregator
from seqagg.benchmark import benchmark
from seqagg.data_parallel import fit_together
from seqagg.engines import Engine, TaskError, using
from seqagg.errors import CacheError
from seqagg.large_fit import fit_hmm_to_all
from seqagg.prediction import predict_cache
from seqagg.scale import Job, Part, predict_folder
from seqagg.shards import find_shards
from seqagg.threads import count_threads
from tests.accidents import DieInEpoch, die, fill_disk, label_or_die, refuse, slowly, works_for_ray
from tests.conftest import order_free_songs, order_songs
from tests.test_scale import (
    DONE,
    expected,
    folder,
    model,
    songs,
    tables,
    visible,
    wait_until,
)
from tests.test_team import fit_by_threads, states

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_MODE"] = "disabled"
pytest.importorskip("ray", reason="Ray is not installed: pip install 'seqagg[ray]'")

__all__ = ["expected", "folder", "model", "songs"]  # fixtures

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray warns of its own future

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
QUICK: dict[str, dict[str, Any]] = {
    "gru": {"hidden_size": 4, "epochs": 2},
    "hmm": {"n_states": 2, "covariance_type": "full", "topology": "ergodic", "n_iter": 3},
}
HERE = str(Path(__file__).parents[1])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of a core each, which this process is connected to."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setenv("PYTHONPATH", HERE)  # where nodes find these tests
        import ray
        from ray.cluster_utils import Cluster

        there = Cluster(True, head_node_args={**NODE, "include_dashboard": False})
        there.add_node(**NODE)
        ray.init(there.address, log_to_driver=False)
        yield there
        ray.shutdown()
        there.shutdown()


def test_the_bits_of_one_process(
    cluster: Any, model: Path, folder: Path, expected: pa.Table, tmp_path: Path
) -> None:
    predict_folder(model, folder, tmp_path / "alone")
    account = predict_folder(model, folder, tmp_path / "out", engine=Engine("ray"))
    assert account.n_out == 120
    assert tables(tmp_path / "out").equals(expected)
    for name in DONE[1:]:
        alone = (tmp_path / "alone" / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == alone


@pytest.mark.parametrize("method", ["gru", "hmm"])
def test_the_bits_of_learnt_methods(
    cluster: Any, method: str, songs: Songs, folder: Path, tmp_path: Path
) -> None:
    model, known = tmp_path / "m.safetensors", [label is not None for label in songs.labels]
    make_aggregator(method, n_folds=2, **QUICK.get(method, {})).fit(songs[known]).save(model)
    predict_cache(model, folder, tmp_path / "all.parquet")
    predict_folder(model, folder, tmp_path / "out", engine=Engine("ray"))
    assert tables(tmp_path / "out").equals(pq.read_table(tmp_path / "all.parquet"))


def test_a_worker_that_is_killed_loses_nothing(
    cluster: Any,
    model: Path,
    folder: Path,
    expected: pa.Table,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scale, "label_part", label_or_die)
    account = predict_folder(model, folder, tmp_path / "out", engine=Engine("ray"))
    assert (tmp_path / "accident").exists()
    assert (account.n_out, account.n_refused) == (120, 0)
    assert tables(tmp_path / "out").equals(expected)
    assert visible(tmp_path / "out") == DONE


def test_errors_are_those_of_the_task(cluster: Any) -> None:
    with pytest.raises(CacheError) as caught:
        list(Engine("ray").run(refuse, None, [1]))
    assert (caught.value.file, caught.value.song) == ("file", "song")
    with pytest.raises(TaskError, match="file: No space left"):
        list(Engine("ray", retries=0).run(fill_disk, None, [1]))
    with pytest.raises(TaskError, match="died"):
        list(Engine("ray", retries=0).run(die, None, [1]))


def test_a_benchmark_has_the_same_numbers(cluster: Any) -> None:
    songs = order_free_songs(60, gap=0.7)
    alone = benchmark(songs, ["mean", "logodds", "stack"], cv=3)
    there = benchmark(songs, ["mean", "logodds", "stack"], cv=3, engine=Engine("ray"))
    assert there.predictions.equals(alone.predictions)
    assert there.comparisons == alone.comparisons


def test_what_auto_tries_is_fitted_there_to_the_same_bits(cluster: Any) -> None:
    songs = order_free_songs(60, gap=0.7)
    model = AutoAggregator(methods=("stack",))
    alone = model.fit(songs).predict_proba(songs)
    with using(Engine("ray")):
        there = model.fit(songs).predict_proba(songs)
    assert_array_equal(there, alone)


@pytest.mark.parametrize("method", ["gru", "hmm", "stack"])
def test_folds_and_shapes_are_fitted_there_to_the_same_bits(cluster: Any, method: str) -> None:
    songs = order_free_songs(60, gap=0.7)
    settings = {"gru": {"epochs": 2, "hidden_size": 4}, "hmm": {"n_states": 2, "n_iter": 3}}
    alone, there = (make_aggregator(method, **settings.get(method, {})) for _ in range(2))
    alone.fit(songs)
    with using(Engine("ray")):
        there.fit(songs)
    assert alone._state().keys() == there._state().keys()
    for name, array in alone._state().items():
        assert array.tobytes() == there._state()[name].tobytes(), name


def test_what_scikit_learn_does_in_processes_is_done_there(cluster: Any) -> None:
    with using(Engine("ray")):
        assert Parallel(n_jobs=2)(delayed(works_for_ray)() for _ in range(4)) == [True] * 4
        assert count_threads(-1) == os.cpu_count()


def test_training_by_many_goes_on_when_one_is_killed(cluster: Any, tmp_path: Path) -> None:
    songs, accident = order_songs(30), tmp_path / "accident"
    lessons = DieInEpoch(songs, accident, 2)
    model = GRUAggregator(epochs=4, patience=4, hidden_size=4, n_folds=2, batch_size=7)
    kept = tmp_path / "kept"
    found = fit_together(model, songs, 2, kept, engine=Engine("ray"), lessons=lessons)
    assert accident.exists()
    undisturbed, _ = fit_by_threads(lambda: copy.deepcopy(model), songs, 2, lessons)
    assert len(undisturbed.history_[1]) == 5
    for name, array in states(undisturbed).items():
        assert_array_equal(states(found)[name], array, err_msg=name)
    assert list(kept.iterdir()) == []


def test_em_over_files_is_that_of_one_process(cluster: Any, songs: Songs, folder: Path) -> None:
    known = songs[[label is not None for label in songs.labels]]
    model = HMMAggregator(n_states=2, covariance_type="diag", topology="ergodic", n_iter=3)
    models = [copy.deepcopy(model.fit(known)) for _ in range(2)]
    manifest = find_shards(folder)
    alone = fit_hmm_to_all(models[0], folder, manifest)
    assert fit_hmm_to_all(models[1], folder, manifest, engine=Engine("ray")) == alone
    assert_array_equal(models[0].predict_proba(known), models[1].predict_proba(known))


def test_a_driver_that_is_killed_goes_on(
    cluster: Any, model: Path, folder: Path, expected: pa.Table, tmp_path: Path
) -> None:
    code = (
        "import sys; from seqagg import scale; from seqagg.engines import Engine\n"
        "from tests.accidents import slowly\n"
        "scale.label_part = slowly\n"
        "engine = Engine('ray', address=sys.argv[4])\n"
        "scale.predict_folder(*sys.argv[1:4], engine=engine)"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", code, str(model), str(folder), str(out), cluster.address]
    driver = subprocess.Popen(command, cwd=HERE, env={**os.environ, "PYTHONPATH": HERE})
    wait_until(lambda: any(out.glob("songs-*.parquet")))
    driver.kill()
    driver.wait()
    account = predict_folder(model, folder, out, engine=Engine("ray"))
    assert account.n_before >= 1
    assert tables(out).equals(expected)


def test_a_node_that_is_lost_loses_nothing(
    cluster: Any,
    model: Path,
    folder: Path,
    expected: pa.Table,
    tmp_path: Path,
) -> None:
    lost = cluster.add_node(**NODE)
    parts = iter(Engine("ray").run(slowly, *_job(model, folder, tmp_path / "out")))
    met = [next(parts)]
    cluster.remove_node(lost, allow_graceful=False)
    met += parts
    assert sorted(i for i, _ in met) == [0, 1, 2, 3]
    assert sum(record.n_songs for _, record in met) == 120
    assert tables(tmp_path / "out").equals(expected)


def _job(model: Path, folder: Path, out: Path) -> tuple[Job, list[Part]]:
    job = Job(str(folder), str(out), model.read_bytes(), None)
    return job, scale.make_parts(folder, find_shards(folder))
