"""What have readers, commands and methods been through, and was anything lost?

    python -m experiments.reliability --inputs 10000000 --kills 200 --fits 1000
    python -m experiments.reliability --only faults --kills 12

Runs `fuzz`, `guided`, `faults`, `endurance` and `minimal`, each in a process of its own, and keeps
what they count in ``reliability.parquet``: a number per row, with the columns part, case, metric,
value. Each part is kept when it ends, and what is not run again (``--only``) stays. The fuzzing
goes on from its counts in ``fuzz.json`` until all inputs are done, or ``--seconds`` have passed:
then what is done so far is kept. `guided` takes the same seconds, an hour if none are given.
Predictions are a hundred times the fits.
"""  # noqa: D400

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from experiments.runs import first_line, folder, names_among, parser
from seqagg.files import atomic_write

NAME = "reliability"

SCHEMA = pa.schema(
    [("part", pa.string()), ("case", pa.string()), ("metric", pa.string()), ("value", pa.float64())]
)

FINDINGS = Path(__file__).parent / "findings"

Row = tuple[str, str, str, float]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts, keep the table; exit 1 if something was lost."""
    made = parser(__doc__, NAME)
    made.add_argument("--inputs", type=int, default=10_000_000, help="of the fuzzing")
    made.add_argument("--seconds", type=float, help="of the fuzzing, this time; default: no limit")
    made.add_argument("--kills", type=int, default=200, help="of commands")
    made.add_argument("--fits", type=int, default=1000, help="of every method")
    made.add_argument("--jobs", type=int, default=1, help="processes of the fuzzing")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument(
        "--only",
        type=names_among(list(ROWS)),
        default=list(ROWS),
        metavar="A,B,...",
        help=f"default: {','.join(ROWS)}",
    )
    options = made.parse_args(arguments)
    if options.quick:
        options.inputs, options.kills, options.fits, options.seconds = 1000, 4, 10, 60
    path = folder(options) / f"{NAME}.parquet"
    failed = False
    for part in options.only:
        found, wrong = run(part, options)
        failed = failed or wrong
        if found is not None:
            keep(path, part, ROWS[part](found))
        print(f"{part}: {'SOMETHING IS WRONG' if wrong else 'nothing lost'}", flush=True)
    sys.exit(failed)


def run(part: str, options: argparse.Namespace) -> tuple[Any, bool]:
    """What a part says in JSON, None if it fell, and whether something is wrong."""
    fuzz = {"inputs": options.inputs, "jobs": options.jobs, "seed": options.seed}
    fuzz |= {"state": folder(options) / "fuzz.json", "keep": Path("build") / "fuzz"}
    fuzz |= {"seconds": options.seconds or math.inf}
    given = {
        "fuzz": [
            "--json",
            *(word for name, value in fuzz.items() for word in (f"--{name}", value)),
        ],
        "guided": ["--json", "--seconds", options.seconds or 3600, "--jobs", options.jobs],
        "faults": ["--kills", options.kills, "--seed", options.seed],
        "endurance": ["--fits", options.fits, "--predictions", 100 * options.fits],
    }
    command = [sys.executable, "-m", f"experiments.reliability.{part}"]
    command += map(str, given.get(part, []))
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return json.loads(done.stdout or "null"), done.returncode != 0


def rows_of_inputs(part: str, found: Mapping[str, Any]) -> Iterator[Row]:
    """By reader, inputs that it read and refused; and those that brought one down."""
    for target, counts in found["targets"].items():
        for metric, value in counts.items():
            yield part, target, metric, value
    yield part, "", "inputs", found["inputs"]
    yield part, "", "seconds", found["seconds"]
    yield part, "", "findings", len(found["findings"])


def fuzz_rows(found: Mapping[str, Any]) -> Iterator[Row]:
    """Inputs made by chance, and those of old that are mended."""
    yield from rows_of_inputs("fuzz", found)
    yield "fuzz", "", "fixed", len(list(FINDINGS.iterdir()))


def faults_rows(found: Mapping[str, Any]) -> Iterator[Row]:
    """By fault, how often it was tried and survived."""
    for case, counts in found["counts"].items():
        for metric, value in counts.items():
            yield "faults", case, metric, value


def endurance_rows(found: Mapping[str, Any]) -> Iterator[Row]:
    """By method, what calls left behind, and answers that differ."""
    for method, counts in found.items():
        for metric, value in counts.items():
            yield "endurance", method, metric, value


def minimal_rows(found: Mapping[str, Any]) -> Iterator[Row]:
    """Tests in the environment of the oldest versions."""
    for metric in ("passed", "failed", "skipped"):
        yield "minimal", "", metric, found[metric]


ROWS: dict[str, Callable[[Any], Iterator[Row]]] = {
    "fuzz": fuzz_rows,
    "guided": partial(rows_of_inputs, "guided"),
    "faults": faults_rows,
    "endurance": endurance_rows,
    "minimal": minimal_rows,
}
"""Part, a module of this package -> rows of the table, from what it says."""


def keep(path: Path, part: str, rows: Iterator[Row]) -> None:
    """Put a part's rows in place of those of before."""
    old: list[tuple[Any, ...]] = []
    about: dict[str, Any] = {"question": first_line(__doc__), "dates": {}}
    if path.exists():
        table = pq.read_table(path)
        old = [tuple(row.values()) for row in table.to_pylist() if row["part"] != part]
        about = json.loads(table.schema.metadata[b"seqagg"])["about"]
    about["dates"] |= {part: datetime.now(UTC).date().isoformat()}
    columns = [list(column) for column in zip(*old, *rows, strict=True)]
    schema = SCHEMA.with_metadata({b"seqagg": json.dumps({"about": about})})
    with atomic_write(path) as temporary:
        pq.write_table(pa.table(columns, schema=schema), temporary, write_page_checksum=True)


if __name__ == "__main__":
    main()
