"""Make the page of a benchmark."""

from __future__ import annotations

from pathlib import Path

import click

from seqagg.commands.options import json_option, quiet_option
from seqagg.terminal import make_console, print_json, say, written


@click.command(
    epilog="""\b
Examples:
  seqagg report results --out report.html
  seqagg report results             writes results/report.html
"""
)
@click.argument("results", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Page to write, .html.  [default: report.html in RESULTS]",
)
@json_option
@quiet_option
def report(results: Path, out: Path | None, as_json: bool) -> None:
    """Make one page of what 'seqagg benchmark --out RESULTS' found.

    The page opens from the disk, without a network and without other files: the verdict, every
    method beside averaging, and what happened in each song, frame by frame.
    """
    from seqagg.errors import ParameterError
    from seqagg.progress import shown, waiting

    page = results / "report.html" if out is None else out
    if page.suffix != ".html":
        raise ParameterError(f"{page}: a page ends in .html")
    with shown(), waiting("report"):
        from seqagg.report import write_report
        from seqagg.results import read_results

        found = read_results(results)
        write_report(found, page)
    if as_json:
        print_json({"out": str(page), "bytes": page.stat().st_size, "verdicts": found.verdicts()})
        return
    console = make_console()
    for sentence in found.verdicts():
        say(console, sentence)
    written(console, f"Written: {page}")
