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
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from seqagg.errors import ParameterError, SeqaggError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from seqagg.aggregators.base import Aggregator
    from seqagg.benchmark import BenchmarkResult
    from seqagg.inspection import Inspection
    from seqagg.songs import Songs

_MOST_CLASSES = 30
"""Classes that `inspect` lists for people; JSON has them all."""

_COMPARED = "majority,mean,logodds,hmm,gru"
"""What `seqagg.benchmark.METHODS` holds, for the help, which must not wait for its import."""

_PIPE_WIDTH = 160
_NAMED = 5


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
    click.echo("seqagg: " + _printable(" ".join(message.split())), err=True)
    sys.exit(2)


def _interrupted() -> int:
    click.echo("seqagg: interrupted", err=True)
    return 130


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
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
        _print_json({"cache": str(cache)} | dataclasses.asdict(found))
    else:
        _show_inspection(cache.name, found)


def _show_inspection(name: str, found: Inspection) -> None:
    fewest, median, most = found.frames_per_song
    facts = [
        f"{name}: {found.n_songs} songs, {found.n_frames} frames",
        f"Frames per song: {fewest} to {most}, median {median:g}.",
        f"{len(found.columns)} columns of {found.kind}, {found.task}: "
        + _some(found.columns, _MOST_CLASSES)
        + ".",
    ]
    if found.n_groups is not None:
        facts.append(f"{found.n_groups} groups.")
    if found.n_folds:
        facts.append(f"The frame classifier declares {found.n_folds} folds.")
    if found.sum_to_one is not None:
        facts.append(f"Frames whose probabilities sum to one: {found.sum_to_one:.1%}.")
    if found.saturated is not None:
        facts.append(f"Scores that are probabilities of exactly 0 or 1: {found.saturated:.1%}.")
    if found.note:
        facts.append(f"Note: {found.note}")
    console = _console()
    for fact in facts:
        _say(console, fact)
    _say(console, "")
    console.print(_parts_table(found), "")
    if found.classes:
        console.print(_classes_table(found), "")
    hidden = len(found.classes) - _MOST_CLASSES
    if hidden > 0:
        _say(console, f"and {hidden} classes more (--json has all)")
    for warning in found.warnings:
        _say(console, f"warning: {warning}", style="yellow")
    if not found.warnings:
        _say(console, "Nothing wrong was found.", style="green")


def _parts_table(found: Inspection) -> Table:
    table = _table(
        "split", "songs", "no\nlabel", "groups", "frames", "missing\nframes", "right\nframes %"
    )
    for part in found.parts:
        right = "" if part.frame_accuracy is None else f"{100 * part.frame_accuracy:.1f}"
        if part.frame_accuracy_error is not None:
            right += f" ± {100 * part.frame_accuracy_error:.1f}"
        numbers = [
            part.n_songs,
            part.n_songs - part.n_labelled,
            part.n_groups,
            part.n_frames,
            part.n_missing,
        ]
        table.add_row(_printable(_part_name(part.name, found)), *map(str, numbers), right)
    return table


def _classes_table(found: Inspection) -> Table:
    table = _table("class", *(_part_name(part.name, found) for part in found.parts))
    for label, counts in list(found.classes.items())[:_MOST_CLASSES]:
        table.add_row(_printable(label), *map(str, counts))
    return table


def _part_name(name: str | None, found: Inspection) -> str:
    if name is None:
        return "all" if len(found.parts) == 1 else "(none)"
    return _printable(name)


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
        _print_json(_benchmark_json(result, warnings, out))
    else:
        _warn(warnings)
        _show_benchmark(songs, result, out)


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


def _provenance(result: BenchmarkResult) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.results.schema.metadata[b"seqagg"])
    return found


def _benchmark_json(
    result: BenchmarkResult, warnings: Sequence[str], out: Path | None
) -> dict[str, Any]:
    return {
        "provenance": _provenance(result),
        "methods": result.summary(),
        "comparisons": [dataclasses.asdict(row) for row in result.comparisons],
        "classes": result.classes,
        "left_out": dict(result.left_out),
        "notes": result.notes,
        "warnings": warnings,
        "out": None if out is None else str(out),
    }


def _show_benchmark(songs: Songs, result: BenchmarkResult, out: Path | None) -> None:
    console = _console()
    rows = result.summary()
    _say(console, _how_scored(_provenance(result), int(rows[0]["n_songs"]), songs, result))
    for reason, ids in result.left_out.items():
        _say(console, f"Left out, {reason}: {len(ids)} ({_some(ids, _NAMED)}).")
    _say(console, "")
    console.print(_benchmark_table(result, rows), "")
    for sentence in _verdicts(result, rows):
        _say(console, sentence)
    for note in result.notes:
        _say(console, f"Note: {note}.")
    if out is not None:
        _say(console, f"Written: {out / 'results.parquet'}, {out / 'predictions.parquet'}")


def _how_scored(
    provenance: Mapping[str, Any], n_scored: int, songs: Songs, result: BenchmarkResult
) -> str:
    n_used = len(songs) - sum(map(len, result.left_out.values()))
    start, end = f"{provenance['cache']}:", f"{len(result.classes)} classes."
    if provenance["folds"] is None:
        learnt = f"methods learn from the {n_used - n_scored} train songs"
        return f"{start} {learnt} and are scored on the {n_scored} test songs; {end}"
    apart = "" if songs.groups is None else ", no group on both sides of a fold"
    return (
        f"{start} {n_scored} songs in {provenance['folds']} folds, each scored by what was learnt "
        f"from the other folds{apart}; {end}"
    )


def _benchmark_table(result: BenchmarkResult, rows: Sequence[Mapping[str, Any]]) -> Table:
    pairs = {row.method: row.comparison for row in result.comparisons if row.baseline == "logodds"}
    against = ["points against\nlogodds (95 %)"] if pairs else []
    table = _table("method", "accuracy\n%", *against, "log\nloss", "calib.\nerr. %", "time\ns")
    for row in rows:
        pair = pairs.get(row["method"])
        difference = (
            "-"
            if pair is None
            else (f"{_points(pair.difference)} ({_points(pair.low)}, {_points(pair.high)})")
        )
        table.add_row(
            _printable(row["method"]),
            f"{100 * row['accuracy']:.1f}",
            *([difference] if pairs else []),
            f"{row['log_loss']:.3f}",
            f"{100 * row['calibration_error']:.1f}",
            f"{row['fit_seconds'] + row['predict_seconds']:.1f}",
        )
    return table


def _verdicts(result: BenchmarkResult, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Say of each learnt method whether it pays, or averaging is as good."""
    from seqagg.aggregators import aggregator_class

    n_songs = {row["method"]: row["n_songs"] for row in rows}
    for row in result.comparisons:
        if row.baseline == "logodds" and not aggregator_class(row.method).needs_class_columns:
            yield _verdict(row.method, row.comparison, n_songs[row.method])


def _verdict(method: str, pair: Any, n_songs: float) -> str:
    low, high = sorted((abs(pair.low), abs(pair.high)))
    size = f"{100 * abs(pair.difference):.1f} points"
    interval = f"95 % interval {100 * low:.1f} to {100 * high:.1f}"
    if pair.verdict == "better":
        return (
            f"{method} is right on {size} more songs than averaging log-odds ({interval}): "
            "it pays here."
        )
    if pair.verdict == "worse":
        return (
            f"{method} is right on {size} fewer songs than averaging log-odds ({interval}): "
            "average here."
        )
    if pair.wins_a + pair.wins_b == 0:
        return f"{method} is right on the very same songs as averaging log-odds: average here."
    return (
        f"{method} cannot be told from averaging log-odds on {n_songs:.0f} songs "
        f"({_points(pair.difference)} points, 95 % interval {_points(pair.low)} to "
        f"{_points(pair.high)}): average until more songs say otherwise."
    )


def _points(share: float) -> str:
    """Percentage points with their sign; a rounded zero has none."""
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


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
        _print_json(report)
        return
    _warn(warnings)
    _show_fit(report, len(songs))


def _show_fit(report: Mapping[str, Any], n_all: int) -> None:
    console = _console()
    where = "" if report["split"] is None else f" (split {report['split']})"
    _say(
        console,
        f"{report['method']} fitted on {report['n_songs']} of {n_all} songs{where}, "
        f"{len(report['classes'])} classes.",
    )
    for reason, ids in report["left_out"].items():
        _say(console, f"Left out, {reason}: {len(ids)} ({_some(ids, _NAMED)}).")
    for line in (report["report"] or "").splitlines():
        _say(console, line)
    _say(console, f"Written: {report['model']}")


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
    known = set() if songs.split is None else {s for s in songs.split if s is not None}
    wanted = split if split is not None else (default if known else None)
    if wanted is None or (wanted == "all" and "all" not in known):
        return songs, None
    if wanted not in known:
        there = f"there are {', '.join(sorted(known))}" if known else "the cache has no split"
        raise ParameterError(f"no song of split {wanted!r}; {there}; --split all takes all songs")
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

    Writes song_id, prediction and one probability column per class, named by the class. Says how
    many are right where the cache has labels.
    """
    from seqagg.aggregators import load
    from seqagg.cache import read_cache

    if out.suffix not in (".csv", ".parquet"):
        raise ParameterError(f"{out}: the table of predictions ends in .csv or .parquet")
    aggregator = load(model)
    songs, _ = _of_split(read_cache(cache), split, None)
    columns = _prediction_columns(aggregator, songs)
    _write_table(out, columns)
    scores = _score(songs, columns["prediction"], aggregator)
    if as_json:
        _print_json({"out": str(out), "n_songs": len(songs)} | scores)
        return
    console = _console()
    _say(console, f"{len(songs)} songs labelled. Written: {out}")
    if scores["n_labelled"]:
        _say(
            console,
            f"Accuracy: {scores['accuracy']:.1%} of {scores['n_labelled']} songs with a label.",
        )
    if scores["unseen_labels"]:
        _say(
            console,
            f"Labels that the model does not know, which count as wrong: "
            f"{_some(scores['unseen_labels'], _NAMED)}.",
        )


def _prediction_columns(aggregator: Aggregator, songs: Songs) -> dict[str, list[Any]]:
    columns = {
        "song_id": [str(i) for i in songs.ids],
        "prediction": aggregator.predict(songs).tolist() if len(songs) else [],
    }
    names = [str(c) for c in aggregator.classes_]
    for reserved in columns:
        if reserved in names:
            raise ParameterError(
                f"a class is called {reserved!r}, as a column of the table is; rename the class"
            )
    proba = aggregator.predict_proba(songs).T.tolist() if len(songs) else [[] for _ in names]
    return columns | dict(zip(names, proba, strict=True))


def _write_table(out: Path, columns: Mapping[str, list[Any]]) -> None:
    from seqagg.files import atomic_write

    with atomic_write(out) as temporary:
        if out.suffix == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            table = pa.table(dict(columns))
            pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
            return
        import csv

        with temporary.open("w", encoding="utf-8", newline="") as file:
            # All text is quoted: the csv module would leave a lone carriage return bare.
            writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))


def _score(songs: Songs, prediction: Sequence[Any], aggregator: Aggregator) -> dict[str, Any]:
    known = {str(c) for c in aggregator.classes_}
    pairs = [
        (str(label), str(said))
        for label, said in zip(_labels(songs), prediction, strict=True)
        if label is not None
    ]
    right = sum(label == said for label, said in pairs)
    return {
        "n_labelled": len(pairs),
        "accuracy": right / len(pairs) if pairs else None,
        "unseen_labels": sorted({label for label, _ in pairs} - known),
    }


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
        _print_json([_described(method, aggregator_class(method)) for method in names])
    elif name is not None:
        click.echo(getdoc(aggregator_class(name)))
    else:
        table = _table("method", "what it does", left=2)
        for method, place in AGGREGATORS.items():
            table.add_row(method, _summary(place))
        _console().print(table)


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


def _console() -> Console:
    """Standard output for tables: colour on a terminal alone, and no markup in users' names."""
    import os

    from rich.console import Console

    plain = Console(markup=False, highlight=False, emoji=False)
    if plain.is_terminal or "COLUMNS" in os.environ:
        return plain
    return Console(markup=False, highlight=False, emoji=False, width=_PIPE_WIDTH)


def _table(*headers: str, left: int = 1) -> Table:
    """Table whose first `left` columns hold text and the others numbers."""
    from rich import box
    from rich.table import Table

    style: dict[str, Any] = {"box": box.SIMPLE_HEAD, "show_edge": False, "pad_edge": False}
    table = Table(**style, padding=(0, 1, 0, 0), header_style="bold")
    for i, header in enumerate(headers):
        table.add_column(header, justify="left" if i < left else "right", overflow="fold")
    return table


def _say(console: Console, text: str, style: str | None = None) -> None:
    """Print a paragraph, wrapped on a terminal and in one line elsewhere."""
    console.print(_printable(text), style=style, soft_wrap=not console.is_terminal)


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        click.echo(f"seqagg: warning: {_printable(warning)}", err=True)


def _printable(text: str) -> str:
    """Text without what would steer a terminal, since labels and ids may hold anything."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _some(items: Sequence[Any], n: int) -> str:
    more = len(items) - n
    return ", ".join(map(str, items[:n])) + (f" and {more} more" if more > 0 else "")


def _print_json(value: Any) -> None:
    click.echo(json.dumps(_plain(value), ensure_ascii=False, indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    """Value as strict JSON has it: NaN and infinity are null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)
