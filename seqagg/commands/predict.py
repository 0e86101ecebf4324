"""Label songs with a fitted model."""

from __future__ import annotations

from pathlib import Path

import click

from seqagg.commands.options import cache_argument, json_option, quiet_option
from seqagg.terminal import NAMED, make_console, print_json, say, shorten


@click.command(
    epilog="""\b
Examples:
  seqagg predict gru.safetensors new.parquet --out labels.csv
  seqagg predict gru.safetensors songs.parquet --split test --out labels.parquet
"""
)
@click.argument("model", type=click.Path(path_type=Path))
@cache_argument
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Table to write, .csv or .parquet.",
)
@click.option("--split", help="Only the songs of this split.  [default: all songs]")
@json_option
@quiet_option
def predict(model: Path, cache: Path, out: Path, split: str | None, as_json: bool) -> None:
    """Label songs with a fitted model.

    Writes song_id, prediction and one probability column per class, named by the class. Several
    labels of a song are a list, in .csv joined by |. Says how many are right where the cache has
    labels.
    """
    from seqagg.prediction import predict_cache
    from seqagg.progress import is_quiet, shown

    with shown():
        found = predict_cache(model, cache, out, split=split)
    unseen = sorted(found.unseen_labels)
    if as_json:
        scores = {"n_labelled": found.n_labelled, "accuracy": found.accuracy}
        print_json({"out": str(out), "n_songs": found.n_songs} | scores | {"unseen_labels": unseen})
        return
    if is_quiet():
        return
    console = make_console()
    say(console, f"{found.n_songs} songs labelled. Written: {out}")
    if found.accuracy is not None:
        say(
            console,
            f"{'All labels right' if found.multilabel else 'Accuracy'}: "
            f"{found.accuracy:.1%} of {found.n_labelled} songs with a label.",
        )
    if unseen:
        say(
            console,
            f"Labels that the model does not know, which count as wrong: {shorten(unseen, NAMED)}.",
        )
