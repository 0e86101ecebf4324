"""The command line: what `seqagg/commands/` holds, and what users see when something is wrong.

Conventions
-----------
Whatever is slow to import is imported inside the command that needs it. Results go to standard
output, as tables for people or with ``--json`` as one JSON value; progress and warnings go to
standard error. Exit status 0: done; 2: the input cannot be used, or memory does not suffice for it,
with one line on standard error that says why; 130: interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from seqagg.commands.benchmark import benchmark
from seqagg.commands.completion import completion
from seqagg.commands.convert import convert
from seqagg.commands.export import export
from seqagg.commands.fit import fit
from seqagg.commands.frames import frames
from seqagg.commands.inspect import inspect
from seqagg.commands.methods import methods
from seqagg.commands.predict import predict
from seqagg.commands.report import report
from seqagg.commands.stream import stream
from seqagg.errors import SeqaggError
from seqagg.terminal import printable


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
        except MemoryError as error:  # NumPy's and Arrow's too, which say what they asked for
            asked = str(error)
            _fail("not enough memory" + (f": {asked}" if asked else ""))
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


_EXAMPLES = """\b
Examples:
  seqagg benchmark                  on the songs that come with seqagg
  seqagg inspect songs.parquet
  seqagg benchmark songs.parquet --methods mean,logodds,gru
  seqagg benchmark songs.parquet --out results      and results/report.html to look at
  seqagg fit songs.parquet --method gru --out gru.safetensors
  seqagg predict gru.safetensors new.parquet --out labels.csv
  frames | seqagg stream hmm.safetensors
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


for _command in (
    convert,
    frames,
    inspect,
    benchmark,
    report,
    fit,
    predict,
    stream,
    export,
    methods,
    completion,
):
    main.add_command(_command)
