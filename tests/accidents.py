"""Tasks that meet with an accident, in a module of their own, so that workers find them soon."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqagg.errors import CacheError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from seqagg import Songs
    from seqagg.aggregators.base import Aggregator
    from seqagg.aggregators.lessons import Without
    from seqagg.scale import Job, Part, Record


def label_or_die(job: Job, part: Part) -> Record:
    """Killed once, when the second part's table is written, but not yet under its name."""
    from seqagg import scale

    accident = Path(job.out).parent / "accident"
    if part.name == "songs-00001" and not accident.exists():
        accident.touch()
        scale.write_labels = _write_labels_and_die
    return scale.label_part(job, part)


def _write_labels_and_die(*args: Any) -> None:
    from seqagg import prediction

    prediction.write_labels(*args)
    die(None, 0)


def slowly(job: Job, part: Part) -> Record:
    """Long enough for something to happen meanwhile."""
    from seqagg.scale import label_part

    time.sleep(1.0)
    return label_part(job, part)


def die(shared: None, item: int) -> None:
    """Kill the worker."""
    os.kill(os.getpid(), signal.SIGKILL)


def say_and_sleep(folder: Path, item: int) -> None:
    """Leave a file called by the number of the process."""
    (folder / str(os.getpid())).touch()
    time.sleep(100)


def refuse(shared: None, item: int) -> None:
    """Raise an error that is about something."""
    raise CacheError("is bad", file="file", song="song", column="column")


def fill_disk(shared: None, item: int) -> None:
    """Raise what the system does when a disk is full."""
    raise OSError(28, "No space left on device", "file")


def works_for_ray() -> bool:
    """Whether this process is one of a Ray cluster's."""
    import ray

    return bool(ray.is_initialized())


@dataclass(frozen=True)
class DieInEpoch:
    """Lessons in which the second process of a team is killed once; the songs are always these."""

    songs: Songs
    accident: Path
    epoch: int
    share: float = 1.0

    def __call__(
        self, aggregator: Aggregator, without: Without, epoch: int
    ) -> tuple[Songs, npt.NDArray[np.int64]]:
        from seqagg.aggregators.team import current_team
        from seqagg.large_fit import _canonical

        if current_team().rank == 1 and epoch == self.epoch and not self.accident.exists():
            self.accident.touch()
            die(None, 0)
        mine = self.songs[[str(song) not in without.ids for song in self.songs.ids]]
        usable, y, _ = _canonical(aggregator, mine)
        return usable, y
