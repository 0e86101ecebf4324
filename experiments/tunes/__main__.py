"""Make the embedded songs: tunes of two books, rendered, framed and scored.

    python -m experiments.tunes

Every stage keeps its result in the work directory and is skipped when it finds it there, so an
interrupted run goes on where it stopped. The same command gives the same bytes on one machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from experiments.tunes import stages
from experiments.tunes.stages import Settings
from experiments.tunes.store import load_json, save_json

Result = TypeVar("Result")

QUICK = Settings(tunes_per_genre=6, epochs=1)


def main(arguments: list[str] | None = None) -> None:
    """Run the stages in order."""
    options = parse(arguments)
    settings = QUICK if options.quick else Settings()
    check_settings(options.work, settings)
    songs = timed("tunes", lambda: stages.make_tunes(options.work, settings))
    timed(
        "spectrograms",
        lambda: stages.make_spectrograms(options.work, songs, settings, options.jobs),
    )
    scores = timed(
        "scores", lambda: stages.make_scores(options.work, songs, settings, options.jobs)
    )
    timed("cache", lambda: stages.make_cache(scores, options.out))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("python -m experiments.tunes", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/tunes"), metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("seqagg/data/tunes.parquet"))
    parser.add_argument("--quick", action="store_true", help="a few tunes, to see that it runs")
    parser.add_argument("--jobs", type=int, default=2, help="processes; the result is the same")
    return parser.parse_args(arguments)


def check_settings(work: Path, settings: Settings) -> None:
    """Stop if the work directory holds stages made with other settings or other tunes."""
    wanted = asdict(settings) | {"music21": version("music21")}
    path = work / "settings.json"
    if path.exists() and load_json(path) != wanted:
        raise SystemExit(f"{work} was made with other settings: remove it or give another --work")
    save_json(path, wanted)


def timed(stage: str, work: Callable[[], Result]) -> Result:
    """Run one stage, printing its name and how long it took."""
    print(stage, flush=True)
    began = time.monotonic()
    result = work()
    print(f"{stage}: {time.monotonic() - began:.1f} s", flush=True)
    return result


if __name__ == "__main__":
    main()
