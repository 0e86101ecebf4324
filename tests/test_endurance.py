"""No method leaves anything in memory, or minds being asked by many threads: the short mode."""

from __future__ import annotations

import json
import subprocess
import sys
from mmap import mmap

import numpy as np
import pytest

from experiments.reliability import endurance
from seqagg import Songs
from seqagg.aggregators import AGGREGATORS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_of_every_method() -> None:
    """In a process of its own, in which nothing else comes and goes."""
    command = [sys.executable, "-m", "experiments.reliability.endurance"]
    command += ["--fits", "10", "--predictions", "100"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert list(found) == list(AGGREGATORS)
    assert endurance.problems(found) == []


class TestTheMeasureItself:
    def test_objects_that_stay(self) -> None:
        kept = []
        stays = endurance.what_stays(lambda: kept.append([]), 200)
        assert 120 <= stays["objects"] <= 160, "from the median of the first to that of the last"

    def test_bytes_that_stay(self) -> None:
        kept: list[mmap] = []

        def keep() -> None:  # not on the heap, of which much may be free already
            kept.append(mmap(-1, 800_000))
            kept[-1].write(bytes(800_000))

        stays = endurance.what_stays(keep, 100)
        assert 50e6 < stays["bytes"] < 70e6

    def test_nothing_that_stays(self) -> None:
        stays = endurance.what_stays(lambda: np.ones(100_000), 100)
        assert abs(stays["objects"]) < 10
        assert stays["bytes"] < endurance.MOST_BYTES

    def test_a_model_that_minds_company(self) -> None:
        """Answers differ where one is kept in the model while it is computed."""

        class Careless:
            def predict_proba(self, songs: Songs) -> np.ndarray:
                self.total = np.zeros(len(songs))
                for _ in range(300):
                    self.total = self.total + 1
                return self.total

        counts = endurance.ask_at_once(Careless())  # type: ignore[arg-type]
        assert counts["differences"] > 0

    def test_what_is_told(self) -> None:
        fine = {"fits": 10, "predictions": 100, "asked": 320, "differences": 0}
        fine |= {f"{act}_{what}": 0 for act in ("fit", "predict") for what in ("objects", "bytes")}
        assert endurance.problems({"m": fine}) == []
        for wrong, words in (
            ({"fit_objects": 2}, "10 x fit leaves 2 objects"),
            ({"predict_bytes": 5e6}, "100 x predict leaves 0 objects, 5000000.0 bytes"),
            ({"differences": 1}, "1 answers differ"),
        ):
            (told,) = endurance.problems({"m": fine | wrong})
            assert words in told
