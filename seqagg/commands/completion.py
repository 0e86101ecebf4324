"""Let a shell complete commands, options and methods."""

from __future__ import annotations

import click

from seqagg.commands.options import json_option, quiet_option
from seqagg.terminal import print_json

SHELLS = ("bash", "zsh", "fish")


@click.command(
    epilog="""\b
Examples:
  seqagg completion bash >> ~/.bashrc
  seqagg completion zsh >> ~/.zshrc
  seqagg completion fish > ~/.config/fish/completions/seqagg.fish
"""
)
@click.argument("shell", type=click.Choice(SHELLS))
@json_option
@quiet_option
@click.pass_context
def completion(ctx: click.Context, shell: str, as_json: bool) -> None:
    """Print what lets SHELL complete commands, options and methods."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    root = ctx.find_root()
    text = found(root.command, {}, "seqagg", "_SEQAGG_COMPLETE").source_vars()
    script = found.source_template % text
    if as_json:
        print_json({"shell": shell, "script": script})
    else:
        click.echo(script, nl=False)
