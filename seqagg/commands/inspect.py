"""Say what is in a cache."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from seqagg.commands.options import cache_argument, json_option, quiet_option
from seqagg.terminal import print_json, show_inspection


@click.command(
    epilog="""\b
Examples:
  seqagg inspect songs.parquet
  seqagg inspect songs.parquet --json
"""
)
@cache_argument
@json_option
@quiet_option
def inspect(cache: Path, as_json: bool) -> None:
    """Say what is in a cache, and what is wrong with it."""
    from seqagg.cache import read_cache
    from seqagg.inspection import inspect as look
    from seqagg.progress import shown, waiting

    with shown(), waiting(f"inspect {cache.name}"):
        found = look(read_cache(cache))
    if as_json:
        print_json({"cache": str(cache)} | dataclasses.asdict(found))
    else:
        show_inspection(cache.name, found)
