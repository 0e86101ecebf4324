"""Write a fitted model in a format of others."""

from __future__ import annotations

from pathlib import Path

import click

from seqagg.commands.options import json_option, quiet_option
from seqagg.errors import ParameterError
from seqagg.terminal import make_console, print_json, say


@click.command(
    epilog="""\b
Examples:
  seqagg export hmm.safetensors --onnx --out hmm.onnx
"""
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--onnx", is_flag=True, help="As an ONNX graph.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File, .onnx.")
@json_option
@quiet_option
def export(model: Path, onnx: bool, out: Path, as_json: bool) -> None:
    """Write a fitted model as a graph that runs without seqagg.

    Log-odds of padded songs and their lengths in, probabilities of songs out, for majority, mean,
    logodds, hmm, gru and mil. The graph says in its metadata what its columns and classes are.
    """
    from seqagg.aggregators.saving import load
    from seqagg.onnx_export import export_onnx, model_card
    from seqagg.progress import is_quiet

    if not onnx:
        raise ParameterError("say in which format: --onnx")
    fitted = load(model)
    export_onnx(fitted, out)
    if as_json:
        print_json({"out": str(out), "card": model_card(fitted)})
    elif not is_quiet():
        say(make_console(), f"Written: {out}, {out.stat().st_size:,} bytes")
