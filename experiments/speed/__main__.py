"""How fast is seqagg, beside what people use instead?

    python -m experiments.speed --only segments,files

Everything in one run, in one process, on one thread but where a way's name says otherwise; the ways
of a contest take turns. Other libraries come with ``pip install 'seqagg[speed]'``; those that are
not there are left out. These are measurements of kernels as well as of public names. In
``speed.parquet`` stands one number per row, with the columns contest, setting, way, songs, frames,
columns, states, metric, value, and in its schema metadata under ``seqagg`` what was measured with:
versions, processor, date, and the rates of `limits`. ``speed.svg`` shows how costs grow.
"""  # noqa: D400

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.runs import first_line, folder, names_among, parser
from experiments.speed import peers
from experiments.speed.contest import Measured, measure
from experiments.speed.limits import limits, machine
from experiments.speed.table import answer, lines_of, write

NAME = "speed"

CONTESTS = ("segments", "hmm", "hmm_fit", "gru", "files", "choices")
"""Modules of this package, each with a function `contests`."""

ROUNDS, QUICK_ROUNDS = 7, 1
"""Most rounds of a contest."""

BUDGETS = {"segments": 4.0, "hmm": 9.0, "hmm_fit": 9.0, "gru": 10.0, "files": 25.0, "choices": 6.0}
"""Seconds after which no round of a contest begins."""

QUICK_BUDGET = 1.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, keep the table and the picture, answer."""
    options = _options(arguments)
    print(first_line(__doc__))
    if remark := peers.remark():
        print(remark)
    modules = {name: import_module(f"experiments.speed.{name}") for name in options.only}
    with peers.guests():
        with peers.held_to_one_thread():
            rates = limits(options.quick)
        about = {
            "question": first_line(__doc__),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "quick": options.quick,
            "versions": peers.versions(),
            "machine": machine(),
            "limits": rates,
        }
        print(_machine_line(about))
        found = []
        for measured in run(modules, options.quick):
            found.append(measured)
            print("\n".join(lines_of(measured)), flush=True)
    about["answer"] = answer(found)
    write(folder(options) / f"{NAME}.parquet", found, about)
    draw(folder(options) / f"{NAME}.svg", found)
    print(about["answer"])


def run(modules: Mapping[str, ModuleType], quick: bool) -> Iterator[Measured]:
    """Measure the contests of these modules."""
    for name, module in modules.items():
        rounds, budget = (QUICK_ROUNDS, QUICK_BUDGET) if quick else (ROUNDS, BUDGETS[name])
        if not quick:
            for contest in module.contests(quick=True):
                with peers.held_to_one_thread():
                    contest.ways[0].run()  # compiles
        for contest in module.contests(quick):
            with peers.held_to_one_thread():
                measured = measure(contest, rounds, budget)
            yield measured


def draw(path: Path, found: Sequence[Measured]) -> None:
    """Write the picture, where there is anything to draw."""
    from experiments.speed.picture import draw_costs

    draw_costs(path, found)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__, NAME)
    made.add_argument(
        "--only",
        type=names_among(CONTESTS),
        default=list(CONTESTS),
        metavar="NAME,...",
        help=f"default: {','.join(CONTESTS)}",
    )
    return made.parse_args(arguments)


def _machine_line(about: dict[str, Any]) -> str:
    own, rates = about["machine"], about["limits"]
    return (
        f"{own['processor']}, {own['cores']} cores; one reads {rates['read_gb_per_second']:.1f} GB "
        f"and multiplies {rates['product_gflops_float32']:.0f} (float32) or "
        f"{rates['product_gflops_float64']:.0f} (float64) GFLOP a second; all are "
        f"{rates['gain_of_all_cores']:.1f} times as fast as one"
    )


if __name__ == "__main__":
    main()
