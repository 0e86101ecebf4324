"""The files are the flow: a module imports only what stands before it."""

import ast
from pathlib import Path

import pytest

import seqagg

PACKAGE = Path(seqagg.__file__).parent

FLOW = [
    "errors",
    "parsing",
    "files",
    "formulas",
    "fingerprints",
    "palette",
    "markup",
    "progress",
    "threads",
    "engines",
    "places",
    "manifest",
    "logodds",
    "kernels",
    "kernels.elementary",
    "kernels.prefetch",
    "kernels.odds",
    "kernels.scores",
    "songs",
    "streaming",
    "cache_table",
    "cache_pieces",
    "cache",
    "shards",
    "sources.base",
    "sources.text",
    "sources.lines",
    "sources.columnar",
    "sources.rows",
    "sources.table",
    "sources.nested",
    "sources.cached",
    "sources.arrays",
    "sources.npy",
    "sources.npz",
    "sources.hdf5",
    "sources.opensoundscape",
    "sources.sed_scores",
    "sources.sparse",
    "sources.birdnet",
    "sources.raven",
    "sources.metadata",
    "sources.detection",
    "sources.export",
    "sources.audacity",
    "sources",
    "inspection",
    "overview",
    "kernels.segments",
    "averages",
    "kernels.packing",
    "kernels.hmm_loops",
    "kernels.hmm",
    "kernels.hmm_filter",
    "kernels.gru",
    "kernels.gru_training",
    "folds",
    "nested",
    "frozen.models",
    "frozen.named",
    "frozen.checks",
    "frozen.store",
    "frozen.scoring",
    "frozen.training",
    "frozen",
    "frozen.tables",
    "frozen.classifiers",
    "calibration",
    "certainty",
    "decision",
    "model_file",
    "classifier_file",
    "checkpoints",
    "aggregators.canonical",
    "aggregators.checks",
    "aggregators.state",
    "aggregators.parameters",
    "aggregators.votes",
    "aggregators.base",
    "aggregators",
    "aggregators.saving",
    "aggregators.start",
    "aggregators.averaging",
    "aggregators.hmm_start",
    "aggregators.hmm_reference",
    "aggregators.hmm_state",
    "aggregators.hmm",
    "aggregators.batches",
    "aggregators.team",
    "aggregators.lessons",
    "aggregators.training",
    "aggregators.gain",
    "aggregators.network",
    "aggregators.exact",
    "aggregators.recurrent",
    "aggregators.gru",
    "aggregators.summaries",
    "aggregators.stacking",
    "aggregators.pooling",
    "aggregators.mil",
    "aggregators.auto",
    "prediction",
    "scale",
    "large_fit",
    "data_parallel",
    "live",
    "onnx_graph",
    "onnx_networks",
    "onnx_export",
    "evaluation",
    "evaluation_multilabel",
    "problem",
    "timelines",
    "wording",
    "result_files",
    "results",
    "benchmark",
    "report.facts",
    "report.figures",
    "report.payload",
    "report.story",
    "report.page",
    "report",
    "plots",
    "terminal",
    "commands",
    "commands.options",
    "commands.frames",
    "commands.inspect",
    "commands.convert",
    "commands.benchmark",
    "commands.fit",
    "commands.predict",
    "commands.methods",
    "commands.stream",
    "commands.export",
    "commands.report",
    "commands.completion",
    "cli",
    "__main__",
]
"""songs -> cache -> log-odds -> aggregator -> evaluation -> commands; a new file goes in here."""

ACCEPTED = {
    ("aggregators.base", "aggregators.saving"): "a method's `save` is that of all",
}


def modules() -> list[str]:
    names = [
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        for path in PACKAGE.rglob("*.py")
    ]
    return sorted(set(names) - {"__init__"})


def source_of(module: str) -> ast.Module:
    path = PACKAGE.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def imports_of(module: str) -> set[str]:
    """Modules of the package that a module imports, inside functions too."""
    found = set()
    for node in ast.walk(source_of(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = {n for n in names if n.removeprefix("seqagg.") in FLOW}
            found |= submodules or {node.module}
    return {name.removeprefix("seqagg.") for name in found if name.split(".")[0] == "seqagg"}


def test_every_module_has_its_place_in_the_flow():
    assert modules() == sorted(FLOW)


@pytest.mark.parametrize("module", FLOW)
def test_a_module_imports_only_what_stands_before_it(module):
    before = set(FLOW[: FLOW.index(module)])
    accepted = {imported for importer, imported in ACCEPTED if importer == module}
    assert imports_of(module) - before - accepted == set()


@pytest.mark.parametrize(("importer", "imported"), ACCEPTED)
def test_accepted_exceptions_are_still_needed(importer, imported):
    assert imported in imports_of(importer)


def test_nothing_imports_the_commands():
    assert [m for m in FLOW if "cli" in imports_of(m)] == ["__main__"]


@pytest.mark.parametrize("module", FLOW)
def test_no_function_is_too_long_to_hold_in_view(module):
    def code_lines(node: ast.AST) -> int:
        body = node.body[1:] if ast.get_docstring(node) else node.body
        return body[-1].end_lineno - body[0].lineno + 1 if body else 0

    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [n for n in ast.walk(source_of(module)) if isinstance(n, functions)]
    assert [n.name for n in nodes if code_lines(n) > 60] == []
