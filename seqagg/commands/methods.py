"""List and describe the methods."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from seqagg.commands.options import complete_methods, json_option, quiet_option
from seqagg.errors import ParameterError
from seqagg.terminal import make_console, make_table, print_json

if TYPE_CHECKING:
    from seqagg.aggregators.base import Aggregator


@click.command(
    epilog="""\b
Examples:
  seqagg methods                    what there is
  seqagg methods gru                what it does, and what can be set
"""
)
@click.argument("name", required=False, shell_complete=complete_methods)
@json_option
@quiet_option
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
