"""Label songs with a fitted model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from seqagg.commands.options import (
    PlaceType,
    cache_argument,
    engine_options,
    json_option,
    quiet_option,
)
from seqagg.errors import CacheError, ParameterError
from seqagg.places import Place
from seqagg.terminal import NAMED, make_console, print_json, say, shorten, warn

if TYPE_CHECKING:
    from rich.console import Console

    from seqagg.aggregators.base import OnEmpty
    from seqagg.engines import Engine
    from seqagg.prediction import PredictionReport
    from seqagg.scale import Account


@click.command(
    epilog="""\b
Examples:
  seqagg predict gru.safetensors new.parquet --out labels.csv
  seqagg predict gru.safetensors songs.parquet --split test --out labels.parquet
  seqagg predict gru.safetensors songs/ --out labels/ --jobs 4
  seqagg predict gru.safetensors s3://b/songs --out s3://b/labels --engine ray --address auto
"""
)
@click.argument("model", type=click.Path(path_type=Path))
@cache_argument
@click.option(
    "--out",
    required=True,
    type=PlaceType(),
    help="Table to write, .csv or .parquet; or a folder, for a table per file of the cache.",
)
@click.option("--split", help="Only the songs of this split.  [default: all songs]")
@click.option(
    "--escape-formulas/--keep-formulas",
    default=None,
    help="In .csv, put ' before ids and labels that a spreadsheet would run as formulas, or leave "
    "them as they are.  [default: escape]",
)
@click.option(
    "--on-empty",
    type=click.Choice(["error", "prior"]),
    help="What a song without a single frame gets in a table: an error that names it, or the "
    "class prior.  [default: as the model was fitted]",
)
@engine_options
@json_option
@quiet_option
def predict(
    model: Path,
    cache: Place,
    out: Place,
    split: str | None,
    escape_formulas: bool | None,
    on_empty: OnEmpty | None,
    engine: Engine,
    as_json: bool,
) -> None:
    """Label songs with a fitted model.

    Writes song_id, prediction and one probability column per class, named by the class. Several
    labels of a song are a list, in .csv joined by |. Says how many are right where the cache has
    labels.

    Into a folder, files of the cache are done side by side, by --jobs processes or on a Ray
    cluster. Songs that cannot be used are refused with the reason instead of ending the work, and
    a second call with the same folder does what is missing.
    """
    from seqagg.prediction import predict_cache
    from seqagg.progress import is_quiet, shown

    if escape_formulas is not None and out.suffix != ".csv":
        given = "--escape-formulas" if escape_formulas else "--keep-formulas"
        raise ParameterError(f"{given} is for a .csv table")
    escape = escape_formulas is not False
    if not out.suffix:
        if on_empty is not None:
            raise ParameterError("--on-empty is for a table; for a folder, such songs are refused")
        _predict_folder(model, cache, out, split, engine, as_json)
        return
    if not engine.alone:
        raise ParameterError(f"{out} is one table; with --jobs or --engine, --out is a folder")
    with shown():
        found = predict_cache(
            model, cache, out, split=split, escape_formulas=escape, on_empty=on_empty
        )
    n_escaped = found.n_formulas if escape else 0
    if n_escaped:
        what = "cells that a spreadsheet would run as formulas, now text with ' before it"
        warn([f"{what}: {n_escaped}; --keep-formulas leaves them as they are"])
    if as_json:
        scores = {"n_labelled": found.n_labelled, "accuracy": found.accuracy}
        names = {"unseen_labels": sorted(found.unseen_labels), "n_escaped": n_escaped}
        print_json({"out": str(out), "n_songs": found.n_songs} | scores | names)
        return
    if is_quiet():
        return
    console = make_console()
    say(console, f"{found.n_songs} songs labelled. Written: {out}")
    _show_right(console, found)


def _show_right(console: Console, found: PredictionReport) -> None:
    if found.accuracy is not None:
        say(
            console,
            f"{'All labels right' if found.multilabel else 'Accuracy'}: "
            f"{found.accuracy:.1%} of {found.n_labelled} songs with a label.",
        )
    unseen = sorted(found.unseen_labels)
    if unseen:
        say(
            console,
            f"Labels that the model does not know, which count as wrong: {shorten(unseen, NAMED)}.",
        )


def _predict_folder(
    model: Path, cache: Place, out: Place, split: str | None, engine: Engine, as_json: bool
) -> None:
    from seqagg.progress import shown
    from seqagg.scale import predict_folder

    with shown():
        account = predict_folder(model, cache, out, split=split, engine=engine)
    if as_json:
        print_json({"out": str(out)} | account.as_json())
    else:
        _show_account(account, out)
    if account.n_failed:
        first, why = next(iter(account.failed.items()))
        raise CacheError(f"{account.n_failed} of {account.n_parts} parts failed; {first}: {why}")


def _show_account(account: Account, out: Place) -> None:
    console = make_console()
    before = f", {account.n_before} of them before" if account.n_before else ""
    say(
        console,
        f"{account.n_songs} songs in = {account.n_out} labelled + {account.n_refused} refused; "
        f"{account.n_parts} parts{before}. Written: {out}",
    )
    _show_right(console, account.report)
    warn([f"refused: song {song!r}: {why}" for song, why in account.refused.items()])
