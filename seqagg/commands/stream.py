"""Decide while songs play."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from seqagg.commands.options import json_option, quiet_option
from seqagg.errors import ParameterError
from seqagg.terminal import warn

if TYPE_CHECKING:
    from seqagg.aggregators.base import Aggregator
    from seqagg.decision import EarlyRule
    from seqagg.songs import Songs


@click.command(
    epilog="""\b
Examples:
  frames | seqagg stream average.safetensors
  frames | seqagg stream hmm.safetensors --kind probability --every 10
  seqagg stream hmm.safetensors --format csv < frames.csv
  frames | seqagg stream hmm.safetensors --error-rate 0.05 --calibrate songs.parquet
"""
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["json", "csv"]),
    default="json",
    show_default=True,
    help="JSON lines, or CSV with a header.",
)
@click.option(
    "--kind",
    type=click.Choice(["log_odds", "probability", "logit"]),
    help="What the scores are.  [default: what those of the training songs were]",
)
@click.option(
    "--every", type=click.IntRange(min=1), metavar="N", help="Print every N frames of a song too."
)
@click.option(
    "--error-rate",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    help="Decide songs early, of which at most this share wrongly.",
)
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    metavar="CACHE",
    help="Labelled songs on which to choose when; those of the fit take five fits more.",
)
@click.option(
    "--split", help="Which of these songs.  [default: all but train, where there are splits]"
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="P",
    help="Decide songs at this probability, whatever comes of it.",
)
@click.option(
    "--min-frames", type=click.IntRange(min=1), metavar="N", help="But not before so many frames."
)
@json_option
@quiet_option
def stream(
    model: Path,
    form: str,
    kind: Any,
    every: int | None,
    error_rate: float | None,
    calibrate: Path | None,
    split: str | None,
    threshold: float | None,
    min_frames: int | None,
    as_json: bool,
) -> None:
    """Print decisions about songs that are still playing, as they firm up.

    Reads a frame per line from standard input: {"song": "a", "scores": [...]} with the scores in
    the order of the model's columns (or an object, by name), or the array alone where there is but
    one song; "end": true, with scores or without, says that no more will come of the song. With
    --format csv, rows under a header that names the columns, and the column song; all songs end
    with the input. A missing score is null or empty. Songs that neither end nor are decided are
    remembered: if there is no end of songs, let each have its own.

    Prints a JSON object per line, with --json or without: at a song's first frame, when its
    prediction changes, when it is decided (what comes of it later is not listened to), and when it
    ends.
    """
    from seqagg.aggregators.saving import load
    from seqagg.decision import NEVER, EarlyRule
    from seqagg.live import Listener, read_lines

    if (error_rate is None) != (calibrate is None) or (split is not None and calibrate is None):
        raise ParameterError("--error-rate and --calibrate go together, and --split with them")
    if threshold is not None and error_rate is not None:
        raise ParameterError("--threshold and --error-rate exclude each other")
    if min_frames is not None and threshold is None:
        raise ParameterError("--min-frames goes with --threshold")
    if sys.stdin is None or sys.stdout is None:
        raise ParameterError("standard input or output is closed: nothing can be heard or said")
    fitted, rule = load(model), NEVER
    if threshold is not None:
        rule = EarlyRule(threshold, min_frames or 1)
    elif error_rate is not None and calibrate is not None:
        rule = _chosen(fitted, *_songs(fitted, calibrate, split), error_rate)
    listener = Listener(fitted, kind or _kind_of(fitted), rule=rule, every=every)
    try:
        for lines in read_lines(sys.stdin.buffer, form):
            for record in listener.hear(lines):
                _print(record)
        for record in listener.end():
            _print(record)
    except BrokenPipeError:
        # Whoever read it has seen enough. What Python would flush at its exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _kind_of(fitted: Aggregator) -> Any:
    """Kind of the scores that a model was fitted to; older files do not tell."""
    return fitted._trained_kind or "log_odds"


def _print(record: dict[str, Any]) -> None:
    click.echo(json.dumps(record, allow_nan=False))
    sys.stdout.flush()


def _songs(fitted: Aggregator, calibrate: Path, split: str | None) -> tuple[Songs, bool]:
    """Songs to choose a rule on, and whether the model was fitted to them."""
    from seqagg.cache import read_cache
    from seqagg.cache_pieces import checksum
    from seqagg.prediction import find_split

    songs = read_cache(calibrate)
    known = set() if songs.split is None else {s for s in songs.split if s is not None}
    wanted = find_split(known, split, None)
    if wanted is not None:
        chosen: Songs = songs[songs.split == wanted]
    elif split is None and "train" in known:
        chosen = songs[songs.split != "train"]
    else:
        chosen = songs
    learnt = len(chosen) == len(songs) or wanted == "train"
    return chosen, learnt and fitted._trained_on == checksum(calibrate)


def _chosen(fitted: Aggregator, songs: Songs, fitted_to: bool, error_rate: float) -> EarlyRule:
    """Choose when to decide, and say on standard error what to expect of it."""
    from seqagg.live import calibrate_early

    if fitted_to:
        note = "the model was fitted to these songs: each is listened to by one of other folds"
        warn([note])
    found = calibrate_early(fitted, songs, error_rate, fitted_to=fitted_to)
    if found.share_heard is None:
        why = f"{found.n_songs} songs are too few, or too often wrong, to promise so little error"
        warn([f"{why}: none will be decided while it plays"])
        return found.rule
    threshold, n = found.rule
    click.echo(
        f"Decides at a probability of {threshold:.3f}, from frame {n} on: of {found.n_songs} "
        f"labelled songs {found.n_decided}, of these {found.n_wrong} wrongly, after "
        f"{found.share_heard:.0%} of the song (median).",
        err=True,
    )
    return found.rule
