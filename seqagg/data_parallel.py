"""One network trained by many processes of a Ray cluster, with Ray Train.

Conventions
-----------
Every process fits the whole aggregator to all songs, as one of a `Team`: they part the songs of
each batch among them, and know all gradients. So the model is that of one process, to rounding, and
of a single one to the bit. After each epoch every process hands what it would go on from to Ray
Train, which keeps it at a place that all machines reach; when a process or a machine is lost, all
of them go on from there, and end in the same bits as if nothing had happened.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqagg.checkpoints import checkpoints
from seqagg.engines import Engine, TaskError, ray_cluster
from seqagg.errors import ParameterError, SeqaggError
from seqagg.places import everywhere, file_system, place_of, remove
from seqagg.progress import waiting

if TYPE_CHECKING:
    from seqagg.aggregators.base import Aggregator
    from seqagg.aggregators.lessons import Lessons
    from seqagg.songs import Songs

_RUN = "ray"
"""Folder in which Ray Train keeps what it needs."""

_MODEL = "model.safetensors"


@dataclass(frozen=True)
class _Work:
    aggregator: Aggregator
    songs: Any  # of Ray's object store
    lessons: Lessons | None
    about: str


def fit_together(
    aggregator: Aggregator,
    songs: Songs,
    n_workers: int,
    folder: str | os.PathLike[str],
    *,
    engine: Engine | None = None,
    lessons: Lessons | None = None,
    about: str = "",
) -> Aggregator:
    """Fit a GRU aggregator by many processes.

    Parameters
    ----------
    aggregator : GRUAggregator
        Is left as it is.
    songs : Songs
        Labelled.
    n_workers : int
        Processes, each with a core, or where `device` is "cuda" with a GPU.
    folder : path-like
        Where checkpoints are kept, a path or a URL that all machines of the cluster reach. What
        another fit left there is not heeded.
    engine : Engine, optional
        Which cluster; by default one on this machine.
    lessons : Lessons, optional
        As for `hearing`.
    about : str
        What else decides the outcome: checkpoints of another outcome are not heeded.

    Returns
    -------
    Aggregator
        The fitted one.

    Raises
    ------
    ParameterError
        When Ray or Ray Train is not installed, or the aggregator trains no GRU.
    TaskError
        When processes were lost more often than the engine's `retries`.
    SeqaggError
        As `fit` does.
    """
    from seqagg.aggregators.gru import GRUAggregator
    from seqagg.aggregators.saving import load

    if not isinstance(aggregator, GRUAggregator):
        raise ParameterError(f"{type(aggregator).__name__} is fitted by one process, not by many")
    if n_workers < 1:
        raise ParameterError(f"n_workers={n_workers} is below 1")
    aggregator._check_parameters()
    engine = engine or Engine("ray")
    most = max(n_workers, engine.jobs or os.cpu_count() or 1)
    with ray_cluster(most, engine.address) as ray, waiting(f"train by {n_workers} processes"):
        work = _Work(aggregator, ray.put(songs), lessons, about)
        there = ray.cluster_resources()
        on_gpus = aggregator.device != "cpu" and there.get("GPU", 0) >= n_workers
        if not on_gpus and there.get("CPU", 0) < n_workers:
            n_cores = int(there.get("CPU", 0))
            raise ParameterError(
                f"{n_workers} workers need as many cores; the cluster has {n_cores}"
            )
        answer = _train(work, n_workers, on_gpus, folder, engine.retries)
    # It may be gone on from until the answer is there.
    remove(place_of(folder) / _RUN)
    if isinstance(answer, SeqaggError):
        raise answer
    with tempfile.TemporaryDirectory(prefix="seqagg-") as scratch:
        path = Path(scratch) / _MODEL
        path.write_bytes(answer)
        return load(path)


def _train(
    work: _Work, n_workers: int, on_gpus: bool, folder: str | os.PathLike[str], retries: int
) -> bytes | SeqaggError:
    """What the first process says in the end."""
    try:
        from ray import train
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as error:
        raise ParameterError(
            f"Ray Train lacks something ({error}): pip install 'seqagg[ray]'"
        ) from None
    # How often Ray Train looks after its processes, which wait for it after each epoch.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    files, path = file_system(place_of(everywhere(place_of(folder))))
    make_trainer: Any = TorchTrainer  # which says of functions that they return nothing
    trainer = make_trainer(
        _be_one_of_many,
        train_loop_config={"work": work},
        torch_config=TorchConfig(backend="nccl" if on_gpus else "gloo"),
        scaling_config=train.ScalingConfig(num_workers=n_workers, use_gpu=on_gpus),
        run_config=train.RunConfig(
            name=_RUN,
            storage_path=path,
            storage_filesystem=files,
            failure_config=train.FailureConfig(max_failures=retries),
            checkpoint_config=train.CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        answer: bytes | SeqaggError = trainer.fit().return_value
    except train.TrainingFailedError as error:
        raise TaskError(f"the training failed: {' '.join(str(error).split())[:500]}") from None
    return answer


# What each process does.


def _be_one_of_many(config: dict[str, Any]) -> bytes | SeqaggError:
    """Fit as one of a team; gives the model file's bytes."""
    import ray
    import torch
    from ray import train

    from seqagg.aggregators.lessons import hearing
    from seqagg.aggregators.team import Team, together

    work: _Work = config["work"]
    context = train.get_context()
    team = Team(context.get_world_rank(), context.get_world_size(), torch.distributed.all_reduce)
    about = f"{work.about}, process {team.rank} of {team.size}"
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="seqagg-")))
        # Ray Train puts what all processes report into one folder.
        all_kept, own = scratch / "kept", f"process {team.rank}"
        all_kept.mkdir()
        last = train.get_checkpoint()
        if last is not None:
            with last.as_directory() as there:
                if Path(there, own).is_dir():
                    shutil.copytree(Path(there, own), all_kept / own)

        def report() -> None:
            train.report({}, checkpoint=train.Checkpoint.from_directory(all_kept))

        stack.enter_context(checkpoints(all_kept / own, about=about, every=0.0, written=report))
        stack.enter_context(together(team))
        if work.lessons is not None:
            stack.enter_context(hearing(work.lessons))
        try:
            work.aggregator.fit(ray.get(work.songs))
        except SeqaggError as error:  # which would be no other if it were tried again
            return error
        work.aggregator.save(scratch / _MODEL)
        return (scratch / _MODEL).read_bytes()
