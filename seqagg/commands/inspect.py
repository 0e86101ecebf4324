"""Say what is in a cache."""

from __future__ import annotations

import dataclasses

import click

from seqagg.commands.options import cache_argument, json_option, quiet_option
from seqagg.places import Place
from seqagg.terminal import print_json, show_inspection

_MOST_SCORES = 10**8
"""Scores that are read unasked: 400 MB."""


@click.command(
    epilog="""\b
Examples:
  seqagg inspect songs.parquet
  seqagg inspect songs.parquet --json
  seqagg inspect s3://bucket/songs        a folder of files, at any URL
"""
)
@cache_argument
@click.option(
    "--scores/--no-scores",
    default=None,
    help="Read the scores too.  [default: up to a hundred million of them]",
)
@json_option
@quiet_option
def inspect(cache: Place, scores: bool | None, as_json: bool) -> None:
    """Say what is in a cache, and what is wrong with it.

    Labels, groups and splits are always looked at; scores that are right, missing, saturated or
    there twice only if the scores are read.
    """
    from seqagg.cache import read_cache
    from seqagg.inspection import inspect as look
    from seqagg.overview import overview
    from seqagg.progress import shown, waiting
    from seqagg.shards import find_shards

    with shown(), waiting(f"inspect {cache.name}"):
        manifest = find_shards(cache)
        if scores is None:
            scores = manifest.n_frames * len(manifest.header["columns"]) <= _MOST_SCORES
        found = look(read_cache(cache)) if scores else overview(cache, manifest)
    if as_json:
        print_json({"cache": str(cache)} | dataclasses.asdict(found))
    else:
        show_inspection(cache.name, found)
