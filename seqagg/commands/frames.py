"""Make a cache of a table of frame features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from seqagg.commands.options import json_option, quiet_option, seed_option
from seqagg.errors import ParameterError
from seqagg.terminal import make_console, print_json, say, shorten, show_inspection, warn

if TYPE_CHECKING:
    from seqagg.frozen.tables import FeatureTable
    from seqagg.songs import Songs

_MODELS = ("logistic", "svm", "mlp", "forest")
"""Names in `frozen.classifiers`, which would take a second to import for a line of help."""

_TEST_SIZE = 0.3
_NAMED = 8


@click.command(
    epilog="""\b
Examples:
  seqagg frames features_3_sec.csv --song-from filename --label label --out songs.parquet
  seqagg frames calls.csv --song recording --label species --group site --model svm
      --out calls.parquet
  seqagg frames words.csv --song-from file --pattern '(?P<song>.+)-f(?P<frame>\\d+)[.]npy'
      --label word --split side --out words.parquet

\b
and then:
  seqagg benchmark songs.parquet
"""
)
@click.argument("features", type=click.Path(path_type=Path))
@click.option("--song", metavar="COLUMN", help="Column with the song of a frame.")
@click.option(
    "--song-from",
    metavar="COLUMN",
    help="Column with file names that end in the frame's number: blues.00000.3.wav is frame 3 of "
    "the song blues.00000.",
)
@click.option(
    "--pattern",
    metavar="REGEX",
    help="How the names of --song-from are made instead: groups (?P<song>...) and, if they are "
    "there, (?P<frame>...) and (?P<group>...).",
)
@click.option("--label", required=True, metavar="COLUMN", help="Column with the song's label.")
@click.option(
    "--group",
    metavar="COLUMN",
    help="Column with what must not be on both sides of a split: artist, speaker, site.",
)
@click.option("--split", metavar="COLUMN", help="Column that says train or test.")
@click.option(
    "--test-size",
    type=click.FloatRange(0, 1, max_open=True),
    metavar="SHARE",
    help=f"Songs set aside for the test, where no column says it.  [default: {_TEST_SIZE}]",
)
@click.option("--time", metavar="COLUMN", help="Column with the frame's start in seconds.")
@click.option("--drop", multiple=True, metavar="COLUMN", help="No feature; may be repeated.")
@click.option(
    "--model",
    type=click.Choice(_MODELS),
    default="logistic",
    show_default=True,
    help="Frame classifier.",
)
@click.option("--cv", type=click.IntRange(min=2), default=5, show_default=True, help="Folds.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, help="Folds at work side by side.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Cache, .parquet or .arrow."
)
@seed_option
@json_option
@quiet_option
def frames(features: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Train a frame classifier on a table of features, and make a cache of its scores.

    FEATURES (.csv, .tsv, .parquet) has a row per frame. All columns of numbers that are not named
    are features. Songs of the test are scored by a classifier of all training songs; each training
    song by one that has not seen its group, so that an aggregator may learn from the scores.
    """
    import dataclasses

    from seqagg.cache import write_cache
    from seqagg.cache_pieces import SUFFIXES
    from seqagg.files import try_to_write
    from seqagg.inspection import inspect as look
    from seqagg.manifest import refuse_replacing
    from seqagg.progress import is_quiet, shown

    if out.suffix not in SUFFIXES:
        raise ParameterError(f"a cache ends in {' or '.join(SUFFIXES)}", file=out)
    refuse_replacing(out, features)
    try_to_write(out)
    table = _table(features, options)
    with shown():
        songs = _scored(table, features.name, options)
    write_cache(songs, out)
    found = look(songs)
    if as_json:
        names = {"features": table.features, "left_out": table.left_out}
        print_json(
            {"cache": str(out), "model": options["model"]} | names | dataclasses.asdict(found)
        )
        return
    if is_quiet():
        return
    warn([f"left out: {column}" for column in table.left_out])
    show_inspection(out.name, found)
    n = len(table.features)
    say(make_console(), f"{n} features: {shorten(table.features, _NAMED)}. Written: {out}")


def _table(path: Path, options: dict[str, Any]) -> FeatureTable:
    """The table, with a split unless there shall be none."""
    from seqagg.frozen.tables import FILE_NAME, Roles, read_features, with_test_songs

    song, song_from, pattern = (options[name] for name in ("song", "song_from", "pattern"))
    if (song is None) == (song_from is None):
        raise ParameterError("one of --song and --song-from must name the column with the songs")
    if pattern is not None and song_from is None:
        raise ParameterError("--pattern needs --song-from, the column whose names it takes apart")
    if options["split"] and options["test_size"] is not None:
        raise ParameterError("--split and --test-size are two ways to say the same")
    roles = {name: options[name] for name in ("label", "group", "split", "time", "drop")}
    own = None if song_from is None else pattern or FILE_NAME
    table = read_features(path, Roles(song=song or song_from, pattern=own, **roles))
    size = _TEST_SIZE if options["test_size"] is None else options["test_size"]
    if options["split"] or size == 0:
        return table
    return with_test_songs(table, size, options["seed"])


def _scored(table: FeatureTable, name: str, options: dict[str, Any]) -> Songs:
    from seqagg.frozen import out_of_fold
    from seqagg.frozen.classifiers import frame_classifier
    from seqagg.threads import one_thread_each

    make_model, kind = frame_classifier(options["model"], options["seed"])
    with one_thread_each():
        songs = out_of_fold(
            make_model,
            table.frames,
            table.labels,
            table.song_ids,
            table.groups,
            options["cv"],
            kind=kind,
            split=table.split,
            seed=options["seed"],
            n_jobs=options["jobs"],
            note=f"{options['model']} on {len(table.features)} features of {name}, out of fold",
        )
    return songs if table.start is None else songs.replace(start=table.start)
