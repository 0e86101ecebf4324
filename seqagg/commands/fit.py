"""Fit one method and write it to a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from seqagg.commands.options import (
    PlaceType,
    cache_argument,
    complete_methods,
    engine_options,
    json_option,
    quiet_option,
    seed_option,
)
from seqagg.errors import ParameterError, about
from seqagg.parsing import parse_json
from seqagg.places import place_of
from seqagg.terminal import print_json, show_fit, warn

if TYPE_CHECKING:
    from seqagg.aggregators.base import Aggregator
    from seqagg.checkpoints import Checkpoints
    from seqagg.engines import Engine
    from seqagg.large_fit import OtherSamples
    from seqagg.manifest import Manifest
    from seqagg.places import Place
    from seqagg.songs import Songs


@click.command(
    epilog="""\b
Examples:
  seqagg fit songs.parquet --method logodds --out average.safetensors
  seqagg fit songs.parquet --method gru --set hidden_size=32 --out gru.safetensors
  seqagg fit songs/ --method auto --engine ray --address auto --out auto.safetensors
  seqagg fit songs/ --method gru --engine ray --workers 8 --out gru.safetensors
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
    help="Of a larger cache, about so many songs are held at a time; see above.",
)
@seed_option
@engine_options
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes that train each network of gru together, with Ray Train.",
)
@click.option(
    "--checkpoints",
    type=PlaceType(),
    metavar="PLACE",
    help="Folder or URL that all of them reach.  [default: MODEL.partial]",
)
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
    workers: int | None,
    checkpoints: Place | None,
    as_json: bool,
) -> None:
    """Fit one method to labelled songs and write it to a file.

    Learns from the train songs where the cache has a split. Songs without a label or without a
    frame are left out. A fit that was killed or interrupted goes on where it stopped: what it has
    found out is kept in MODEL.partial until the model is written.

    Of a cache with more songs than --sample, a sample is learnt from first. Then hmm, stack and the
    averages go through all songs, file by file; gru and mil hear another sample in every epoch;
    auto has the first sample alone.

    With --jobs or --engine, the methods that auto tries are fitted side by side, and so are the
    networks of gru and mil, what hmm and stack try, and the files of a large cache. With --engine
    ray --workers N, N processes train each network of gru together; a checkpoint is kept after
    every epoch, and when a process or machine is lost they go on from there.
    """
    from seqagg.aggregators.lessons import hearing
    from seqagg.cache_pieces import checksum
    from seqagg.engines import using
    from seqagg.files import try_to_write
    from seqagg.inspection import inspect as look
    from seqagg.model_file import check_suffix
    from seqagg.progress import is_quiet, shown, waiting
    from seqagg.shards import find_shards

    check_suffix(out)
    try_to_write(out)
    aggregator = _configured(method, settings, seed)
    _check_workers(method, engine, workers, checkpoints)
    with shown(), waiting(f"read {cache.name}"):
        manifest = find_shards(cache)
        trained_on = checksum(cache)
        songs = _read(cache, manifest, sample, engine)
    with about(cache):
        chosen, name = _of_split(songs, split, "train")
        used, left_out = _learnable(chosen)
    large = _Large(cache, manifest, sample, name, trained_on) if manifest.n_songs > sample else None
    with _resumable(out, large) as kept:
        with shown(), using(engine), about(cache):
            if workers is None:
                with hearing(None if large is None else large.lessons(method)):
                    aggregator.fit(used)
            else:
                place = checkpoints or place_of(kept.folder)
                aggregator = _fit_together(aggregator, used, workers, place, engine, large)
            n_songs = len(used) if large is None else large.teach(aggregator, engine) or len(used)
        aggregator.save(out, trained_on=trained_on)
    warnings = look(songs).warnings
    if large and method == "auto":
        warnings = (*warnings, f"auto learns from a sample of {n_songs} songs")
    if kept.problem is not None:
        warnings = (*warnings, f"nothing was kept for the case of a failure: {kept.problem}")
    report: dict[str, Any] = {
        "method": method,
        "model": str(out),
        "n_songs": n_songs,
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
    show_fit(report, manifest.n_songs)


def _read(cache: Place, manifest: Manifest, sample: int, engine: Engine) -> Songs:
    """All songs, or so many of them."""
    from seqagg.cache import read_cache

    if manifest.n_songs <= sample:
        return read_cache(cache)
    from seqagg.large_fit import sample_songs

    return sample_songs(cache, manifest, n_songs=sample, engine=engine)


@dataclass(frozen=True)
class _Large:
    """A cache with more songs than are held."""

    cache: Place
    manifest: Manifest
    sample: int
    split: str | None
    checksum: str

    def lessons(self, method: str) -> OtherSamples | None:
        """What networks learn from."""
        from seqagg.large_fit import other_samples

        if method not in ("gru", "mil"):
            return None
        return other_samples(self.cache, self.manifest, n_songs=self.sample, split=self.split)

    def teach(self, aggregator: Aggregator, engine: Engine) -> int | None:
        """Let what was fitted to the sample learn from all songs; gives their number."""
        from seqagg.large_fit import fit_to_all

        return fit_to_all(aggregator, self.cache, self.manifest, split=self.split, engine=engine)


def _check_workers(
    method: str, engine: Engine, workers: int | None, checkpoints: Place | None
) -> None:
    """Refuse options that go with others."""
    if workers is not None and (engine.name != "ray" or method != "gru"):
        raise ParameterError("--workers is for --method gru --engine ray")
    if checkpoints is not None and workers is None:
        raise ParameterError("--checkpoints is for --workers")


def _fit_together(
    aggregator: Aggregator,
    songs: Songs,
    workers: int,
    place: Place,
    engine: Engine,
    large: _Large | None,
) -> Aggregator:
    """Fitted by many processes."""
    from seqagg.data_parallel import fit_together

    about = "" if large is None else large.checksum
    lessons = None if large is None else large.lessons("gru")
    return fit_together(
        aggregator, songs, workers, place, engine=engine, lessons=lessons, about=about
    )


@contextmanager
def _resumable(out: Path, large: _Large | None) -> Iterator[Checkpoints]:
    """Keep what a fit has found out beside its model, until that is written."""
    from seqagg.checkpoints import checkpoints

    folder = out.with_name(out.name + ".partial")
    with checkpoints(folder, about="" if large is None else large.checksum) as kept:
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
        value = parse_json(text)
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
