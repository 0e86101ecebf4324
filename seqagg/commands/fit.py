"""Fit one method and write it to a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from seqagg.commands.options import (
    cache_argument,
    complete_methods,
    engine_options,
    json_option,
    quiet_option,
    seed_option,
)
from seqagg.errors import ParameterError
from seqagg.terminal import print_json, show_fit, warn

if TYPE_CHECKING:
    from seqagg.aggregators.base import Aggregator
    from seqagg.checkpoints import Checkpoints
    from seqagg.engines import Engine
    from seqagg.manifest import Manifest
    from seqagg.places import Place
    from seqagg.songs import Songs


@click.command(
    epilog="""\b
Examples:
  seqagg fit songs.parquet --method logodds --out average.safetensors
  seqagg fit songs.parquet --method gru --set hidden_size=32 --out gru.safetensors
  seqagg fit songs/ --method auto --engine ray --address auto --out auto.safetensors
  seqagg methods gru                what can be set
"""
)
@cache_argument
@click.option(
    "--method",
    required=True,
    metavar="NAME",
    shell_complete=complete_methods,
    help="One of those of 'seqagg methods'.",
)
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="A parameter; may be repeated."
)
@click.option(
    "--split", help="Songs to learn from: a split of the cache, or all.  [default: train]"
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Model file, .safetensors."
)
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    default=200_000,
    show_default=True,
    metavar="N",
    help="Of a larger cache, about so many songs are held; hmm then learns from all of them.",
)
@seed_option
@engine_options
@json_option
@quiet_option
def fit(
    cache: Place,
    method: str,
    settings: tuple[str, ...],
    split: str | None,
    out: Path,
    sample: int,
    seed: int,
    engine: Engine,
    as_json: bool,
) -> None:
    """Fit one method to labelled songs and write it to a file.

    Learns from the train songs where the cache has a split. Songs without a label or without a
    frame are left out. A fit that was killed or interrupted goes on where it stopped: what it has
    found out is kept in MODEL.partial until the model is written.

    With --jobs or --engine, the methods that auto tries are fitted side by side, and so are the
    files of a cache that hmm learns from part by part.
    """
    from seqagg.cache import checksum
    from seqagg.engines import using
    from seqagg.inspection import inspect as look
    from seqagg.model_file import check_suffix
    from seqagg.progress import is_quiet, shown, waiting
    from seqagg.shards import find_shards

    check_suffix(out)
    aggregator = _configured(method, settings, seed)
    with shown(), waiting(f"read {cache.name}"):
        manifest = find_shards(cache)
        trained_on = checksum(cache)
        songs = _read(cache, manifest, sample, engine)
    chosen, name = _of_split(songs, split, "train")
    used, left_out = _learnable(chosen)
    with _resumable(out) as kept:
        with shown(), using(engine):
            aggregator.fit(used)
            if method == "hmm" and manifest.n_songs > sample:
                _fit_to_all(aggregator, cache, manifest, name, engine)
        aggregator.save(out, trained_on=trained_on)
    warnings = look(songs).warnings
    if kept.problem is not None:
        warnings = (*warnings, f"nothing was kept for the case of a failure: {kept.problem}")
    report: dict[str, Any] = {
        "method": method,
        "model": str(out),
        "n_songs": len(used),
        "n_songs_in_cache": manifest.n_songs,
        "split": name,
        "cache_sha256": trained_on,
        "resumed": kept.resumed,
        "left_out": left_out,
        "parameters": aggregator.get_params(),
        "classes": [str(c) for c in aggregator.classes_],
        "report": getattr(aggregator, "fit_report_", None),
        "warnings": warnings,
    }
    if as_json:
        print_json(report)
        return
    if is_quiet():
        return
    warn(warnings)
    show_fit(report, len(songs))


def _read(cache: Place, manifest: Manifest, sample: int, engine: Engine) -> Songs:
    """All songs, or so many of them."""
    from seqagg.cache import read_cache

    if manifest.n_songs <= sample:
        return read_cache(cache)
    from seqagg.large_fit import sample_songs

    return sample_songs(cache, manifest, n_songs=sample, engine=engine)


def _fit_to_all(
    aggregator: Aggregator, cache: Place, manifest: Manifest, split: str | None, engine: Engine
) -> None:
    from seqagg.aggregators.hmm import HMMAggregator
    from seqagg.large_fit import fit_hmm_to_all

    assert isinstance(aggregator, HMMAggregator)
    fit_hmm_to_all(aggregator, cache, manifest, split=split, engine=engine)


@contextmanager
def _resumable(out: Path) -> Iterator[Checkpoints]:
    """Keep what a fit has found out beside its model, until that is written."""
    from seqagg.checkpoints import checkpoints

    folder = out.with_name(out.name + ".partial")
    with checkpoints(folder) as kept:
        try:
            yield kept
        except KeyboardInterrupt:
            if folder.exists():
                click.echo(f"seqagg: the same command goes on from {folder}", err=True)
            raise


def _configured(method: str, settings: Iterable[str], seed: int) -> Aggregator:
    """Unfitted aggregator with the settings of the command line."""
    from seqagg.aggregators import aggregator_class, make_aggregator

    known = set(aggregator_class(method)._get_param_names())
    parameters: dict[str, Any] = {"random_state": seed} if "random_state" in known else {}
    types = _simple_types(aggregator_class(method))
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ParameterError(f"--set {setting} is not KEY=VALUE")
        parameters[key] = _parse(key, text, types.get(key))
    aggregator = make_aggregator(method, **parameters)
    aggregator._check_parameters()  # before the songs are read
    return aggregator


def _simple_types(cls: type[Aggregator]) -> dict[str, type]:
    """Parameters that are declared as plain bool, int, float or str."""
    plain: dict[str, type] = {"bool": bool, "int": int, "float": float, "str": str}
    declared = {k: str(v) for k, v in cls.__init__.__annotations__.items()}
    return {name: plain[kind] for name, kind in declared.items() if kind in plain}


def _parse(key: str, text: str, wanted: type | None) -> Any:
    """Value of a setting: JSON where it is JSON, else text."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if wanted is str and not isinstance(value, str):
        return text
    if wanted is float and type(value) is int:
        return float(value)
    if wanted is not None and type(value) is not wanted:
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        raise ParameterError(f"{key}={text} is not {words[wanted]}")
    return value


def _of_split(songs: Songs, split: str | None, default: str | None) -> tuple[Songs, str | None]:
    """Songs of a split, and its name; None = the default where the songs have splits at all."""
    from seqagg.prediction import find_split

    known = set() if songs.split is None else {s for s in songs.split if s is not None}
    wanted = find_split(known, split, default)
    if wanted is None:
        return songs, None
    assert songs.split is not None
    chosen: Songs = songs[songs.split == wanted]
    return chosen, wanted


def _learnable(songs: Songs) -> tuple[Songs, dict[str, list[str]]]:
    """Songs with a label and a frame, and the ids of the others by reason."""
    import numpy as np

    labelled = np.array([label is not None for label in _labels(songs)], dtype=bool)
    filled = songs.present().lengths > 0
    if not (labelled & filled).any():
        raise ParameterError("no song has both a label and a frame: nothing can be learnt")
    reasons = {"no label": ~labelled, "no frame left": labelled & ~filled}
    left_out = {why: [str(i) for i in songs.ids[mask]] for why, mask in reasons.items()}
    used: Songs = songs[labelled & filled]
    return used, {why: ids for why, ids in left_out.items() if ids}


def _labels(songs: Songs) -> Sequence[Any]:
    return [None] * len(songs) if songs.labels is None else list(songs.labels)
