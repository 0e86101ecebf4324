"""Make a cache of other people's files."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from seqagg.commands.options import PlaceType, json_option, quiet_option
from seqagg.errors import ParameterError
from seqagg.manifest import refuse_replacing
from seqagg.places import Place, read_bytes
from seqagg.terminal import NAMED, make_console, print_json, say, shorten, warn

if TYPE_CHECKING:
    from seqagg.sources import Conversion

_FORMATS = [
    *("table", "songs", "cache", "npz", "npy", "hdf5"),
    *("opensoundscape", "sed_scores", "birdnet", "raven"),
]
"""`sources.FORMATS`, which would take a while to import for a line of help."""

_path = click.Path(path_type=Path)


def _names(_: click.Context, parameter: click.Parameter, value: str | None) -> list[str] | None:
    """List of names: as a line of CSV, or after @ a file with one a line."""
    if value is None:
        return None
    if not value.startswith("@"):
        return [name.strip() for name in next(csv.reader([value]), [])]
    try:
        return read_bytes(Path(value[1:])).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ParameterError("is no UTF-8", file=value[1:]) from None


def _named(*options: tuple[str, str]) -> Callable[[Any], Any]:
    """Several options that take a name."""

    def decorate(command: Any) -> Any:
        for option, text in reversed(options):
            command = click.option(option, metavar="NAME", help=text)(command)
        return command

    return decorate


@click.command(
    epilog="""\b
Examples:
  seqagg convert frames.csv --song filename --label genre --kind probability --out songs.parquet
  seqagg convert scores.csv --kind logit --labels songs.csv --out songs.parquet
  seqagg convert --train train.npz --test test.npz --kind probability --out songs.parquet
  seqagg convert folder_of_npy --kind logit --folder-is label --out songs.parquet
  seqagg convert results --format birdnet --fill 0.01 --hop 3 --out songs.parquet
  seqagg convert songs.parquet --labels new.csv --out relabelled.arrow
  seqagg convert songs.parquet --log-odds --out songs.arrow
  seqagg convert many/*.npz --kind logit --shards 50000 --out s3://bucket/songs
  seqagg convert songs.parquet --to audacity --threshold 0.5 --window 3 --out labels
"""
)
@click.argument("src", nargs=-1, type=_path)
@click.option(
    "--out",
    required=True,
    type=PlaceType(),
    help="Cache to write, .parquet or .arrow; with --shards or --to audacity a new folder.",
)
@click.option(
    "--shards",
    type=click.IntRange(min=1),
    metavar="N",
    help="A folder of files of N songs each, with a manifest; --out may then be a URL.",
)
@click.option(
    "--train", multiple=True, type=_path, help="A source of train songs; may be repeated."
)
@click.option("--test", multiple=True, type=_path, help="A source of test songs; may be repeated.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(_FORMATS),
    help="What the sources are, if they do not say so by themselves.",
)
@click.option(
    "--kind",
    type=click.Choice(["probability", "logit", "log_odds"]),
    help="What the scores are; logit is before softmax, or the logistic function if multilabel.",
)
@click.option(
    "--log-odds",
    is_flag=True,
    help="Write log-odds, which methods take as they are, whatever the kind of the scores.",
)
@click.option(
    "--task",
    type=click.Choice(["multiclass", "multilabel"]),
    help="One label per song, or several.  [default: multiclass]",
)
@click.option(
    "--columns",
    callback=_names,
    metavar="A,B,...",
    help="Names of the score columns, or @FILE with one a line. In a table they choose them.",
)
@click.option("--ignore", callback=_names, metavar="A,B,...", help="Columns that are no scores.")
@_named(
    ("--song", "Column or array of song ids."),
    ("--time", "Column or array of frame starts, in seconds."),
    ("--end", "Column of frame ends, in seconds."),
    ("--label", "Column or array of labels; several of a song are joined by |."),
    ("--group", "Column or array of groups: artists, speakers, sites."),
    ("--split", "Column or array of splits: train, test."),
    ("--fold", "Column or array of folds."),
    ("--scores", "Array, or column of a sparse table, with the scores."),
    ("--lengths", "Array of the number of frames of each song."),
    ("--mask", "Array that is true where a frame of padded songs is real."),
)
@click.option("--transpose", is_flag=True, help="Arrays are (columns, frames).")
@click.option("--labels", type=_path, help="Second table, with labels, groups, splits of songs.")
@click.option("--labels-song", metavar="NAME", help="Its column of song ids.")
@click.option(
    "--classes",
    callback=_names,
    metavar="A,B,...",
    help="Names of labels that are numbers, from 0, or @FILE, or columns: as the score columns.",
)
@click.option(
    "--ids",
    type=click.Choice(["path", "name", "stem"]),
    default="path",
    show_default=True,
    help="What of a path is the id of a song; stem is the name without suffix.",
)
@click.option(
    "--folder-is",
    type=click.Choice(["label", "group", "split"]),
    help="What the folder says that a song lies in.",
)
@click.option("--fill", type=float, help="Score of what a sparse table leaves out.")
@click.option("--hop", type=float, help="Seconds from window to window in a sparse table.")
@click.option("--class", "class_column", metavar="NAME", help="Its column of class names.")
@click.option("--sort", is_flag=True, help="Gather scattered rows of a song, by time; in memory.")
@click.option("--delimiter", help="What stands between cells, if the header does not show it.")
@click.option(
    "--decimal",
    type=click.Choice([".", ","]),
    default=".",
    show_default=True,
    help="What stands before decimals.",
)
@click.option(
    "--to",
    type=click.Choice(["cache", "audacity"]),
    default="cache",
    show_default=True,
    help="A cache, or a file of labels for each song.",
)
@click.option("--threshold", type=float, help="Least score that is a label for Audacity.")
@click.option("--window", type=float, help="Seconds that a frame lasts, for Audacity.")
@click.option("--note", default="", help="Text to keep in the cache.")
@json_option
@quiet_option
def convert(
    src: tuple[Path, ...],
    out: Place,
    shards: int | None,
    format_: str | None,
    to: str,
    threshold: float | None,
    window: float | None,
    log_odds: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make a cache of files that others wrote.

    SRC are files, or folders of files: tables with a row per frame or per song (CSV, TSV, JSON
    Lines, Parquet, Arrow), arrays (.npy, .npz, HDF5), scores of opensoundscape and sed_scores_eval,
    detections of BirdNET and Raven, caches. Songs keep their names.
    """
    from seqagg.progress import is_quiet, shown
    from seqagg.sources import convert as run
    from seqagg.sources import convert_to_audacity

    if options["classes"] == ["columns"]:
        options["classes"] = "columns"
    options["ignore"] = options["ignore"] or ()
    if shards is None and not isinstance(out, Path):
        raise ParameterError(f"{out}: at a URL a cache is a folder; give --shards")
    if shards is None and to != "audacity":
        read = (*src, options["labels"], *(options["train"] or ()), *(options["test"] or ()))
        refuse_replacing(out, *(path for path in read if path is not None and not path.is_dir()))
    with shown():
        if to == "audacity":
            if shards is not None:
                raise ParameterError("--shards is for a cache, not for --to audacity")
            if log_odds:
                raise ParameterError("--log-odds is for a cache, not for --to audacity")
            if threshold is None or window is None:
                raise ParameterError("--to audacity needs --threshold and --window")
            spans = {"threshold": threshold, "window": window}
            found = convert_to_audacity(src, out, format_, **spans, **options)
        elif threshold is not None or window is not None:
            raise ParameterError("--threshold and --window go with --to audacity")
        else:
            found = run(src, out, format_, songs_per_shard=shards, log_odds=log_odds, **options)
    if as_json:
        print_json({"out": str(out)} | dataclasses.asdict(found))
    elif not is_quiet():
        warn(found.notes)
        _show(found, out)


def _show(found: Conversion, out: Place) -> None:
    console = make_console()
    say(console, f"{found.format}: {found.n_songs} songs, {found.n_frames} frames.")
    say(
        console,
        f"{len(found.columns)} columns of {found.kind}, {found.task}: "
        f"{shorten(found.columns, NAMED)}.",
    )
    beside = [name for name in found.fields if name != "labels"]
    labelled = f"{found.n_labelled} songs with a label"
    say(console, labelled + (f"; known too: {', '.join(beside)}." if beside else "."))
    say(console, f"Written: {out}")
