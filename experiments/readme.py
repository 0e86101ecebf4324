"""Do the tables of the README say what the results say?

    python -m experiments.readme            writes them
    python -m experiments.readme --check    exits 1 where they differ

A table stands between the lines ``<!-- table: NAME -->`` and ``<!-- end -->``; what is there is
replaced by what `TABLES` makes of the files in ``experiments/results``. Without results a table is
empty.
"""  # noqa: D400

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from experiments import (
    big_table,
    digits,
    embedded,
    end_to_end,
    gpu,
    known_limit,
    leak,
    learning_curve,
)
from experiments.runs import AVERAGING, METHODS, RESULTS, first_line
from experiments.scale import __main__ as scale
from experiments.tables import Results, interval, points
from seqagg.files import atomic_write

README = RESULTS.parent.parent / "README.md"

_BEGIN = re.compile(r"^<!-- table: (\S+) -->$", re.MULTILINE)
_END = "<!-- end -->"

Metrics = Mapping[str, float]


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill the tables, or check them."""
    parser = argparse.ArgumentParser(
        "python -m experiments.readme", description=first_line(__doc__)
    )
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if they differ")
    parser.add_argument("--readme", type=Path, default=README, metavar="FILE")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    options = parser.parse_args(arguments)
    text = options.readme.read_text(encoding="utf-8")
    try:
        filled, changed = fill(text, options.results)
    except ValueError as error:
        sys.exit(f"{options.readme.name}: {error}")
    if options.check and changed:
        sys.exit(f"{options.readme.name} differs from the results in: {', '.join(changed)}")
    if changed:
        with atomic_write(options.readme) as temporary:
            temporary.write_text(filled, encoding="utf-8")
    print(f"changed: {', '.join(changed)}" if changed else "README and results agree")


def fill(text: str, results: Path) -> tuple[str, list[str]]:
    """README with its tables made anew, and the names of those that changed.

    Parameters
    ----------
    text : str
        The README.
    results : Path
        Folder of results.

    Raises
    ------
    ValueError
        For a table that nobody makes, or that does not end.
    """
    parts, changed, place = [], [], 0
    while begin := _BEGIN.search(text, place):
        name = begin[1]
        following = _BEGIN.search(text, begin.end())
        end = text.find(f"\n{_END}", begin.end(), following.start() if following else len(text))
        if name not in TABLES:
            raise ValueError(f"no table {name}; there are {', '.join(TABLES)}")
        if end < 0:
            raise ValueError(f"table {name} has no line {_END}")
        table = "".join(f"\n{line}" for line in TABLES[name](results))
        if text[begin.end() : end] != table:
            changed.append(name)
        parts += [text[place : begin.end()], table]
        place = end
    return "".join([*parts, text[place:]]), changed


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose first column is left-aligned, the others right."""
    cells = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return ["| " + " | ".join(row) + " |" for row in cells]


def embedded_table(folder: Path) -> list[str]:
    """Methods by rows: accuracy, differences from averaging, probabilities, time."""
    path = folder / f"{embedded.NAME}.parquet"
    if not path.exists():
        return []
    rows: dict[str, dict[str, float]] = {}
    for row in pq.read_table(path).to_pylist():
        if row["fold"] is None:
            rows.setdefault(row["method"], {})[row["metric"]] = row["value"]
    best = max(row["accuracy"] for row in rows.values())
    header = [
        "",
        "accuracy, %",
        "minus `mean`",
        "minus `logodds`",
        "log loss",
        "calibration error",
        "fit, s",
    ]
    lines = [
        [
            f"`{method}`",
            _bold(points(row["accuracy"]), row["accuracy"] == best),
            *(_difference(row, f"accuracy_minus_{name}") for name in ("mean", "logodds")),
            f"{row['log_loss']:.3f}",
            f"{row['calibration_error']:.3f}",
            f"{row['fit_seconds']:.1f}",
        ]
        for method, row in rows.items()
    ]
    n_songs = next(iter(rows.values()))["n_songs"]
    note = (
        f"{n_songs:,.0f} songs scored, seed 0. Differences are paired, in points, with 95 % "
        "intervals."
    )
    return [*markdown(header, lines), "", note]


def big_table_table(folder: Path) -> list[str]:
    """Methods by rows, caches by columns: accuracy, spread over seeds, gain on averaging."""
    results = _results(big_table, folder)
    caches = results.summed("cache")
    if not caches:
        return []
    cells = {
        (method, cache): results.metrics.get((cache, method, None), {})
        for method in METHODS
        for cache in caches
    }
    n_songs = {
        c: max(row.get("n_songs", 0) for (_, k), row in cells.items() if k == c) for c in caches
    }
    header = ["", *(f"{cache}<br>{n_songs[cache]:,.0f} songs" for cache in caches)]
    methods = [m for m in METHODS if any(cells[m, cache] for cache in caches)]
    lines = [
        [f"`{m}`", *(_big_table_cell(m, cells[m, cache]) for cache in caches)] for m in methods
    ]
    seeds = {row["n_seeds"] for (m, _), row in cells.items() if row and m not in AVERAGING}
    n_seeds = " to ".join(f"{n:.0f}" for n in sorted({min(seeds), max(seeds)})) if seeds else "1"
    note = (
        f"Accuracy in %, the mean over seeds ({n_seeds}) and the lowest and highest of them; below "
        "it the paired difference from `logodds` in points with its 95 % interval. Bold: the best "
        "of the column, and what is not clearly worse (interval of the paired difference)."
    )
    return [*markdown(header, lines), "", note, "", _picture(big_table, "Mean ranks")]


def _big_table_cell(method: str, row: Metrics) -> str:
    if not row:
        return ""
    accuracy = _bold(points(row["accuracy"]), row["accuracy_minus_best_high"] >= 0)
    low, high = points(row["accuracy_low"]), points(row["accuracy_high"])
    spread = f" ({low}..{high})" if low != high else ""
    gain = "" if method == big_table.BASELINE else _difference(row, "accuracy_minus_logodds")
    return accuracy + spread + (f"<br>{gain}" if gain else "")


def learning_curve_table(folder: Path) -> list[str]:
    """Methods by rows, caches by columns: from how many songs on it beats averaging."""
    results = _results(learning_curve, folder)
    caches = results.summed("cache")
    if not caches:
        return []
    lines = [
        [
            f"`{m}`",
            *(learning_curve.verdict(results, cache, m) for cache in caches),
            learning_curve.at_worst(results, m),
        ]
        for m in learning_curve.LEARNT
    ]
    note = (
        "From how many training songs on the method beats mean log-odds (95 % interval of the "
        "paired difference above 0), and the difference in points with all of them; at worst, with "
        "any number of them."
    )
    picture = _picture(learning_curve, "Accuracy against training songs")
    return [*markdown(["", *caches, "at worst"], lines), "", note, "", picture]


def known_limit_table(folder: Path) -> list[str]:
    """Methods by rows, laws by columns: points below the best possible decision."""
    results = _results(known_limit, folder)
    laws = [law for law in known_limit.LAWS if law in results.summed("law")]
    if not laws:
        return []
    size = known_limit.largest_size(results)
    limits = [results.metrics[law, known_limit.LIMIT, 0, None] for law in laws]
    best = [f"{points(row['accuracy'])} ± {points(row['error'])} %" for row in limits]
    lines = [["*best possible*", *best]]
    for method in METHODS:
        rows = [results.metrics.get((law, method, size, None), {}) for law in laws]
        if any(rows):
            lines.append([f"`{method}`", *(_below(row) for row in rows)])
    n_test = int(results.metrics[laws[0], known_limit.LIMIT, 0, 0]["n_songs"])
    note = (
        f"Accuracy of the best possible decision, and how many points below it each method stays "
        f"after {size:,} training songs, on the same {n_test:,} new songs; 95 % intervals."
    )
    picture = _picture(known_limit, "Distance from the limit")
    return [*markdown(["", *laws], lines), "", note, "", picture]


def _below(row: Metrics) -> str:
    if not row:
        return ""
    numbers = [points(row[name]) for name in ("below_limit", "below_limit_low", "below_limit_high")]
    return "{} [{}, {}]".format(*numbers)


def leak_table(folder: Path) -> list[str]:
    """Methods by rows: accuracy after learning from in-fold and from out-of-fold scores."""
    results = _results(leak, folder)
    methods = [m for m in (leak.BASELINE, *leak.LEARNT) if m in results.summed("method")]
    if not methods:
        return []
    lines = []
    for method in methods:
        inside, outside = (results.metrics.get((i, method, None), {}) for i in leak.INPUTS)
        accuracies = [points(row["accuracy"]) if row else "" for row in (outside, inside)]
        lines.append(
            [f"`{method}`", *accuracies, _difference(inside, "accuracy_minus_out_of_fold")]
        )
    header = ["accuracy, %", "learnt out of fold", "learnt in fold", "in fold costs"]
    return [*markdown(header, lines), "", results.about.get("answer", "")]


def end_to_end_table(folder: Path) -> list[str]:
    """Ways from spectrograms to a label by rows: accuracy, gain on frozen and averaged."""
    results = _results(end_to_end, folder)
    rows = [
        (way, method, results.metrics[way, method, None])
        for way, methods in end_to_end.WAYS.items()
        for method in methods
        if (way, method, None) in results.metrics
    ]
    lines = [
        [
            f"{way}, `{method}`",
            points(row["accuracy"]),
            _difference(row, "accuracy_minus_two_stages"),
            f"{row['log_loss']:.3f}",
        ]
        for way, method, row in rows
    ]
    if not lines:
        return []
    header = ["", "accuracy, %", "minus frozen and averaged", "log loss"]
    seeds = max(row["n_seeds"] for _, _, row in rows)
    return [*markdown(header, lines), "", f"Means over seeds ({seeds:.0f}); 95 % intervals."]


def digits_table(folder: Path) -> list[str]:
    """Methods by rows, who speaks in the test by columns: accuracy, gain on averaging."""
    results = _results(digits, folder)
    shown = [own for own in digits.SPEAKERS if own in results.summed("speakers")]
    if not shown:
        return []
    lines, n_songs = [], dict.fromkeys(shown, 0.0)
    for method in METHODS:
        rows = {own: results.metrics.get((own, method, None), {}) for own in shown}
        if any(rows.values()):
            lines.append([f"`{method}`", *(_digits_cell(row) for row in rows.values())])
            n_songs |= {own: row["n_songs"] for own, row in rows.items() if row}
    header = ["accuracy, %", *(f"{own}<br>{n_songs[own]:,.0f} recordings" for own in shown)]
    note = (
        "Below the accuracy the paired difference from `logodds` in points, with its 95 % "
        "interval; for new speakers all recordings of a speaker are drawn together, and there are "
        "but six."
    )
    return [*markdown(header, lines), "", note]


def _digits_cell(row: Metrics) -> str:
    if not row:
        return ""
    gain = _difference(row, "accuracy_minus_logodds")
    return points(row["accuracy"]) + (f"<br>{gain}" if gain else "")


SPEED_ROWS = (
    ("mean", "", 10_000, None, "mean over frames"),
    ("mean", "", 60_000, None, "mean over frames"),
    ("log-odds", "", 10_000, None, "mean log-odds of probabilities"),
    ("votes", "", 10_000, None, "majority vote"),
    ("hmm scoring", "diag", 1_000, 3, "HMM scores, 3 states, diagonal covariances"),
    ("hmm scoring", "diag", 10_000, 8, "HMM scores, 8 states, diagonal covariances"),
    ("hmm scoring", "full", 10_000, 8, "HMM scores, 8 states, full covariances"),
    ("hmm EM", "diag", 1_000, 3, "HMM fit, EM alone, 3 states, diagonal"),
    ("hmm EM", "diag", 1_000, 8, "HMM fit, EM alone, 8 states, diagonal"),
    ("hmm EM", "full", 1_000, 8, "HMM fit, EM alone, 8 states, full"),
    ("hmm fit", "diag", 300, 3, "HMM fit with its start, 3 states, diagonal"),
    ("hmm fit", "full", 300, 8, "HMM fit with its start, 8 states, full"),
    ("gru training", "one direction", 640, None, "GRU training, one direction"),
    ("gru training", "both directions", 640, None, "GRU training, both directions"),
    ("gru inference", "both directions", 640, None, "GRU inference, both directions"),
    ("gru precision", "", 640, None, "the same, in other precisions"),
    ("files", "parquet", 1_000_000, None, "`seqagg predict`, `.parquet`"),
    ("files", "arrow", 1_000_000, None, "`seqagg predict`, `.arrow`"),
    ("start", "import", None, None, "`import seqagg`"),
    ("start", "help", None, None, "`seqagg --help`"),
)
"""Contest, setting, songs, states and words of the rows that the README shows."""


def speed_table(folder: Path) -> list[str]:
    """Some contests by rows: seqagg's time, and the others' in units of it."""
    path = folder / "speed.parquet"
    if not path.exists():
        return []
    table = pq.read_table(path)
    found: dict[tuple[Any, ...], dict[str, Metrics]] = {}
    for row in table.to_pylist():
        if row["metric"] in ("seconds", "ratio") and row["frames"] != 5 and row["columns"] == 10:
            key = (row["contest"], row["setting"], row["songs"], row["states"])
            numbers: Any = found.setdefault(key, {}).setdefault(row["way"], {})
            numbers[row["metric"]] = row["value"]
    lines = [
        [
            f"{words}, {key[2]:,} songs" if key[2] else words,
            _milliseconds(ways["seqagg"]["seconds"]),
            _ratios(ways),
        ]
        for *key, words in SPEED_ROWS
        if (ways := found.get(tuple(key)))
    ]
    about = json.loads(table.schema.metadata[b"seqagg"])["about"]
    note = (
        f"{about['machine']['processor']}, one thread, {about['date'][:10]}; `seqagg[speed]` "
        "brings the others. 3 is three times as long as seqagg."
    )
    return [*markdown(["", "seqagg, ms", "the others, in units of it"], lines), "", note]


def gpu_table(folder: Path) -> list[str]:
    """What networks take on a GPU by rows, and the processor's and others' times in units of it."""
    path = folder / f"{gpu.NAME}.parquet"
    if not path.exists():
        return []
    table = pq.read_table(path)
    found: dict[tuple[str, str, int], dict[str, Metrics]] = {}
    for row in table.to_pylist():
        key = (row["contest"], row["setting"], row["songs"])
        numbers: Any = found.setdefault(key, {}).setdefault(row["way"], {})
        numbers[row["metric"]] = row["value"]
    lines = [
        [
            f"{contest}, {setting}, {n:,} songs",
            _milliseconds(ways["seqagg, GPU"]["seconds"]),
            ", ".join(
                f"{way.removeprefix('seqagg, ')} {numbers['ratio']:.2g}"
                for way, numbers in ways.items()
                if way != "seqagg, GPU"
            ),
        ]
        for (contest, setting, n), ways in found.items()
    ]
    about = json.loads(table.schema.metadata[b"seqagg"])["about"]
    errors = [row["error"] for ways in found.values() for row in ways.values() if "error" in row]
    note = (
        f"{about['card']}, {about['machine']['processor']}, PyTorch {about['versions']['torch']}, "
        f"{about['date'][:10]}. Probabilities of the two differ by {max(errors):.0e} at most."
    )
    return [*markdown(["", "on the GPU, ms", "in units of it"], lines), "", note]


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f}" if seconds >= 1 else f"{1e3 * seconds:.3g}"


def _ratios(ways: Mapping[str, Metrics]) -> str:
    left_out = ("seqagg", "seqagg all cores", "seqagg float32 all cores", "its matrix products")
    return ", ".join(
        f"{way} {numbers['ratio']:.{0 if numbers['ratio'] >= 9.5 else 1}f}"
        for way, numbers in ways.items()
        if way not in left_out
    )


def scale_table(folder: Path) -> list[str]:
    """Engines by rows, what a song takes, for the largest number of songs of each method."""
    path = folder / f"{scale.NAME}.parquet"
    if not path.exists():
        return []
    table = pq.read_table(path)
    found: dict[tuple[str, str, int], dict[str, float]] = {}
    for row in table.to_pylist():
        if row["engine"] and row["method"]:
            key = row["method"], row["engine"], row["songs"]
            found.setdefault(key, {})[row["metric"]] = row["value"]
    most = {method: max(n for m, _, n in found if m == method) for method, _, _ in found}
    header = ["", "songs", "songs a second", "processor, µs a song", "start, s", "MB held"]
    lines = [
        [
            f"`{method}`, {scale.ENGINES[engine]}",
            f"{n:,}",
            f"{row['songs_per_second']:,.0f}",
            f"{1e6 * row['cpu_seconds'] / n:,.1f}",
            f"{row['start_seconds']:.1f}",
            f"{row['bytes_resident'] / 1e6:,.0f}",
        ]
        for (method, engine, n), row in found.items()
        if n == most[method]
    ]
    about = json.loads(table.schema.metadata[b"seqagg"])["about"]
    machine = about["machine"]
    note = (
        f"{machine['processor']}, {machine['cores']} cores with a load of {about['load']:.0f}, "
        f"{about['date'][:10]}. MB are the most that a worker held, libraries included."
    )
    told = [f"- {line.strip()}" for line in about["answer"].splitlines()]
    return [*markdown(header, lines), "", note, "", *told]


def reliability_table(folder: Path) -> list[str]:
    """What was tried by rows: how often, and what came of it."""
    path = folder / "reliability.parquet"
    if not path.exists():
        return []
    table = pq.read_table(path)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in table.to_pylist():
        cases = found.setdefault(row["part"], {})
        cases.setdefault(row["case"], {})[row["metric"]] = row["value"]
    lines = [line for part, tell in _TOLD.items() if part in found for line in tell(found[part])]
    dates = json.loads(table.schema.metadata[b"seqagg"])["about"]["dates"]
    return [*markdown(["", "tried", "outcome"], lines), "", f"Measured {max(dates.values())}."]


def _told_fuzz(cases: Mapping[str, Metrics]) -> list[list[str]]:
    told = f"{_told_inputs(cases)}; {cases['']['fixed']:,.0f} of before are fixed"
    return [["damaged and forged files", f"{cases['']['inputs']:,.0f}", told]]


def _told_guided(cases: Mapping[str, Metrics]) -> list[list[str]]:
    told = f"{_told_inputs(cases)}, in {cases['']['seconds'] / 3600:.1f} hours"
    return [["files bred by libFuzzer to reach new code", f"{cases['']['inputs']:,.0f}", told]]


def _told_inputs(cases: Mapping[str, Metrics]) -> str:
    n_read = sum(row.get("read", 0) for row in cases.values())
    findings = f"{cases['']['findings']:,.0f} findings"
    return f"{n_read:,.0f} read, the others refused in one line, {findings}"


def _told_faults(cases: Mapping[str, Metrics]) -> list[list[str]]:
    kills = [row for case, row in cases.items() if case.startswith("kill ")]
    named = {"`kill -9`, then run again": kills}
    named |= {case: [row] for case, row in cases.items() if not case.startswith("kill ")}
    return [
        [
            words,
            f"{sum(row['tried'] for row in rows):,.0f}",
            f"{sum(row['tried'] - row['survived'] for row in rows):,.0f} lost or half written",
        ]
        for words, rows in named.items()
    ]


def _told_endurance(cases: Mapping[str, Metrics]) -> list[list[str]]:
    lines = []
    for act, many in (("fit", "fits"), ("predict", "predictions")):
        n, left = sum(row[many] for row in cases.values()), f"{act}_objects"
        most = max(row[f"{act}_bytes"] for row in cases.values()) / 1e6
        told = (
            f"{sum(row[left] for row in cases.values()):,.0f} objects stay, {most:.1f} MB at most"
        )
        lines.append([f"{many}, memory before and after", f"{n:,.0f}", told])
    asked, other = (sum(row[name] for row in cases.values()) for name in ("asked", "differences"))
    lines.append(["answers to 8 threads at once", f"{asked:,.0f}", f"{other:,.0f} other ones"])
    return lines


def _told_minimal(cases: Mapping[str, Metrics]) -> list[list[str]]:
    n = cases[""]
    told = f"{n['failed']:,.0f} fail"
    return [["tests on the oldest versions", f"{n['passed'] + n['failed']:,.0f}", told]]


_TOLD: dict[str, Callable[[Mapping[str, Metrics]], list[list[str]]]] = {
    "fuzz": _told_fuzz,
    "guided": _told_guided,
    "faults": _told_faults,
    "endurance": _told_endurance,
    "minimal": _told_minimal,
}


TABLES: dict[str, Callable[[Path], list[str]]] = {
    "embedded": embedded_table,
    "big-table": big_table_table,
    "learning-curve": learning_curve_table,
    "known-limit": known_limit_table,
    "leak": leak_table,
    "end-to-end": end_to_end_table,
    "digits": digits_table,
    "speed": speed_table,
    "gpu": gpu_table,
    "scale": scale_table,
    "reliability": reliability_table,
}
"""Name of a table -> its lines, from the folder of results."""


def _results(experiment: Any, folder: Path) -> Results:
    return Results(folder / f"{experiment.NAME}.parquet", experiment.KEYS)


def _bold(text: str, yes: bool) -> str:
    return f"**{text}**" if yes else text


def _difference(row: Metrics, name: str) -> str:
    return interval(row, name) if name in row else ""


def _picture(experiment: Any, text: str) -> str:
    return f"![{text}](experiments/results/{experiment.NAME}.svg)"


if __name__ == "__main__":
    main()
