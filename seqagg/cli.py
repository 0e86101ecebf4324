"""The commands. Whatever is slow to import is imported inside the command that needs it.

Conventions
-----------
Results go to standard output, as tables for people or with ``--json`` as one JSON value; progress
and warnings go to standard error. Exit status 0: done; 2: the input cannot be used, with one line
on standard error that says why; 130: interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from seqagg.errors import ParameterError, SeqaggError
from seqagg.terminal import (
    NAMED,
    make_console,
    make_table,
    print_json,
    printable,
    provenance,
    say,
    shorten,
    show_benchmark,
    show_fit,
    show_inspection,
    warn,
)

if TYPE_CHECKING:
    from seqagg.aggregators.base import Aggregator
    from seqagg.results import BenchmarkResult
    from seqagg.songs import Songs


class _Commands(click.Group):
    """Turns every error that a user can cause into one line and an exit status."""

    def main(  # type: ignore[override]  # one signature instead of click's two overloads
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line; see `click.Command.main`."""
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False, **extra)
        try:
            status = super().main(args, prog_name, standalone_mode=False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            sys.exit(0)
        except click.Abort:  # interrupted while the command line was read
            sys.exit(_interrupted())
        except click.UsageError as error:
            hint = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
            _fail(error.format_message() + hint)
        except click.ClickException as error:
            _fail(error.format_message())
        except SeqaggError as error:
            _fail(str(error))
        except OSError as error:
            about = f"{error.filename}: " if error.filename else ""
            _fail(f"{about}{error.strerror or error}")
        sys.exit(status if isinstance(status, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was parsed; see `click.Command.invoke`."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # here, before click prints an empty line of its own
            raise click.exceptions.Exit(_interrupted()) from None


def _fail(message: str) -> NoReturn:
    click.echo("seqagg: " + printable(" ".join(message.split())), err=True)
    sys.exit(2)


def _interrupted() -> int:
    click.echo("seqagg: interrupted", err=True)
    return 130


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
_COMPARED = "majority,mean,logodds,hmm,gru"
"""`benchmark.METHODS`, which would take a second to import for a line of help."""

_seed_option = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all chance."
)
_cache = click.argument("cache", type=click.Path(path_type=Path))

_EXAMPLES = """\b
Examples:
  seqagg benchmark                  on the songs that come with seqagg
  seqagg inspect songs.parquet
  seqagg benchmark songs.parquet --methods mean,logodds,gru
  seqagg fit songs.parquet --method gru --out gru.safetensors
  seqagg predict gru.safetensors new.parquet --out labels.csv
"""


@click.group(
    "seqagg",
    cls=_Commands,
    epilog=_EXAMPLES,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="seqagg", message="%(package)s %(version)s")
def main() -> None:
    """Frame scores of a frozen classifier in, one label per song out.

    A CACHE is a .parquet or .arrow file of songs, or a folder of such files.
    """


# inspect


@main.command(
    epilog="""\b
Examples:
  seqagg inspect songs.parquet
  seqagg inspect songs.parquet --json
"""
)
@_cache
@_json_option
def inspect(cache: Path, as_json: bool) -> None:
    """Say what is in a cache, and what is wrong with it."""
    from seqagg.cache import read_cache
    from seqagg.inspection import inspect as look

    found = look(read_cache(cache))
    if as_json:
        print_json({"cache": str(cache)} | dataclasses.asdict(found))
    else:
        show_inspection(cache.name, found)


# benchmark


@main.command(
    epilog="""\b
Examples:
  seqagg benchmark
  seqagg benchmark songs.parquet --methods mean,logodds,hmm,gru --out results
  seqagg benchmark songs.parquet --cv 10 --seed 1 --json
"""
)
@click.argument("cache", type=click.Path(path_type=Path), required=False)
@click.option("--methods", metavar="A,B,...", help=f"Methods to compare.  [default: {_COMPARED}]")
@click.option(
    "--cv",
    type=click.IntRange(min=2),
    metavar="K",
    help="Cross-validate in K folds by group, even where the cache has a split.",
)
@_seed_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for results.parquet and predictions.parquet.",
)
@_json_option
def benchmark(
    cache: Path | None,
    methods: str | None,
    cv: int | None,
    seed: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Compare methods on labelled songs, paired with plain averaging.

    Without CACHE, on the songs that come with seqagg. Where the cache has a split, methods learn
    from its train songs and are scored on its test songs; else they are cross-validated by group.
    """
    from seqagg.benchmark import METHODS
    from seqagg.benchmark import benchmark as run
    from seqagg.inspection import inspect as look

    chosen = [m.strip() for m in methods.split(",")] if methods else METHODS
    name, songs, checksum = _songs_to_compare(cache)
    with _fits_shown() as progress:
        result = run(
            songs, chosen, cv=cv, seed=seed, name=name, checksum=checksum, progress=progress
        )
    if out is not None:
        result.write(out)
    warnings = look(songs).warnings
    if as_json:
        print_json(_benchmark_json(result, warnings, out))
    else:
        warn(warnings)
        show_benchmark(songs, result, out)


def _songs_to_compare(cache: Path | None) -> tuple[str, Songs, str | None]:
    """Name, songs and sha256 of the cache; None stands for the embedded one."""
    from hashlib import file_digest
    from importlib.resources import as_file, files

    from seqagg.cache import read_cache

    if cache is None:
        with as_file(files("seqagg") / "data" / "tunes.parquet") as path:
            return _songs_to_compare(path)
    songs = read_cache(cache)
    if not cache.is_file():  # a folder of caches: the benchmark hashes the songs
        return cache.resolve().name, songs, None
    with cache.open("rb") as file:
        return cache.resolve().stem, songs, file_digest(file, "sha256").hexdigest()


@contextmanager
def _fits_shown() -> Iterator[Callable[[int, int, str], None]]:
    """Draw one bar over all fits, on a terminal."""
    from seqagg.progress import shown, steps

    with shown(), ExitStack() as stack:
        advance: list[Callable[[str], None]] = []

        def report(done: int, total: int, text: str) -> None:
            if not advance:
                advance.append(stack.enter_context(steps("benchmark", total)))
            if done:
                advance[0](text)

        yield report


def _benchmark_json(
    result: BenchmarkResult, warnings: Sequence[str], out: Path | None
) -> dict[str, Any]:
    return {
        "provenance": provenance(result),
        "methods": result.summary(),
        "comparisons": [dataclasses.asdict(row) for row in result.comparisons],
        "classes": result.classes,
        "left_out": dict(result.left_out),
        "notes": result.notes,
        "warnings": warnings,
        "out": None if out is None else str(out),
    }


# fit


@main.command(
    epilog="""\b
Examples:
  seqagg fit songs.parquet --method logodds --out average.safetensors
  seqagg fit songs.parquet --method gru --set hidden_size=32 --out gru.safetensors
  seqagg methods gru                what can be set
"""
)
@_cache
@click.option("--method", required=True, metavar="NAME", help="One of those of 'seqagg methods'.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="A parameter; may be repeated."
)
@click.option(
    "--split", help="Songs to learn from: a split of the cache, or all.  [default: train]"
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Model file, .safetensors."
)
@_seed_option
@_json_option
def fit(
    cache: Path,
    method: str,
    settings: tuple[str, ...],
    split: str | None,
    out: Path,
    seed: int,
    as_json: bool,
) -> None:
    """Fit one method to labelled songs and write it to a file.

    Learns from the train songs where the cache has a split. Songs without a label or without a
    frame are left out.
    """
    from seqagg.cache import read_cache
    from seqagg.inspection import inspect as look
    from seqagg.model_file import check_suffix
    from seqagg.progress import shown

    check_suffix(out)
    aggregator = _configured(method, settings, seed)
    songs = read_cache(cache)
    chosen, name = _of_split(songs, split, "train")
    used, left_out = _learnable(chosen)
    with shown():
        aggregator.fit(used)
    aggregator.save(out)
    warnings = look(songs).warnings
    report: dict[str, Any] = {
        "method": method,
        "model": str(out),
        "n_songs": len(used),
        "split": name,
        "left_out": left_out,
        "parameters": aggregator.get_params(),
        "classes": [str(c) for c in aggregator.classes_],
        "report": getattr(aggregator, "fit_report_", None),
        "warnings": warnings,
    }
    if as_json:
        print_json(report)
        return
    warn(warnings)
    show_fit(report, len(songs))


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


# predict


@main.command(
    epilog="""\b
Examples:
  seqagg predict gru.safetensors new.parquet --out labels.csv
  seqagg predict gru.safetensors songs.parquet --split test --out labels.parquet
"""
)
@click.argument("model", type=click.Path(path_type=Path))
@_cache
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Table to write, .csv or .parquet.",
)
@click.option("--split", help="Only the songs of this split.  [default: all songs]")
@_json_option
def predict(model: Path, cache: Path, out: Path, split: str | None, as_json: bool) -> None:
    """Label songs with a fitted model.

    Writes song_id, prediction and one probability column per class, named by the class. Several
    labels of a song are a list, in .csv joined by |. Says how many are right where the cache has
    labels.
    """
    from seqagg.prediction import predict_cache
    from seqagg.progress import shown

    with shown():
        found = predict_cache(model, cache, out, split=split)
    unseen = sorted(found.unseen_labels)
    if as_json:
        scores = {"n_labelled": found.n_labelled, "accuracy": found.accuracy}
        print_json({"out": str(out), "n_songs": found.n_songs} | scores | {"unseen_labels": unseen})
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


# methods


@main.command(
    epilog="""\b
Examples:
  seqagg methods                    what there is
  seqagg methods gru                what it does, and what can be set
"""
)
@click.argument("name", required=False)
@_json_option
def methods(name: str | None, as_json: bool) -> None:
    """List the methods, or describe the one called NAME."""
    from inspect import getdoc

    from seqagg.aggregators import AGGREGATORS, aggregator_class

    if as_json:
        names = [name] if name is not None else list(AGGREGATORS)
        print_json([_described(method, aggregator_class(method)) for method in names])
    elif name is not None:
        click.echo(getdoc(aggregator_class(name)))
    else:
        table = make_table("method", "what it does", left=2)
        for method, place in AGGREGATORS.items():
            table.add_row(method, _summary(place))
        make_console().print(table)


def _described(method: str, cls: type[Aggregator]) -> dict[str, Any]:
    return {
        "method": method,
        "class": cls.__name__,
        "summary": (cls.__doc__ or "").partition("\n")[0],
        "learns": not cls.needs_class_columns,
        "ignores_order": cls.ignores_order,
        "parameters": cls().get_params(deep=False),
    }


def _summary(place: str) -> str:
    """First line of a class's docstring, out of its source: importing torch takes seconds."""
    import ast
    from importlib.util import find_spec

    module, _, name = place.partition(":")
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ParameterError(f"module {module} of the table of methods is not there")
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    raise ParameterError(f"module {module} has no class {name}")


# Printing.
