"""The commands: what they write, what they say when they cannot, and how fast they start."""

import csv
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from importlib.metadata import entry_points

import click
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import seqagg
from seqagg import __main__ as command_line
from seqagg import cli
from seqagg.aggregators import AGGREGATORS
from seqagg.cache import write_cache
from seqagg.commands.benchmark import _COMPARED
from seqagg.commands.fit import _parse
from seqagg.commands.methods import _summary
from seqagg.model_file import read_model
from seqagg.songs import Songs
from seqagg.wording import verdict

COLUMNS = ["blues", "jazz", "rock"]
QUICK_HMM = [
    *("--set", "n_states=1", "--set", "covariance_type=diag"),
    *("--set", "topology=ergodic", "--set", "n_folds=2"),
]


def make_songs(n=48, seed=0, strength=2.0, columns=COLUMNS, **fields):
    """Songs of log-odds, two of three for training; strength 0 makes them noise."""
    rng = np.random.default_rng(seed)
    which = np.arange(n) % len(columns)
    arrays = [
        rng.normal(strength * np.eye(len(columns))[k], 1.0, (rng.integers(3, 7), len(columns)))
        for k in which
    ]
    defaults = {
        "columns": columns,
        "ids": [f"song {i}" for i in range(n)],
        "labels": [columns[k] for k in which],
        "split": ["test" if i % 9 < 3 else "train" for i in range(n)],
        "groups": [f"artist {i // 3}" for i in range(n)],
    }
    return Songs.from_arrays(arrays, **(defaults | fields))


@pytest.fixture
def cache(tmp_path):
    return save(make_songs(), tmp_path / "songs.parquet")


def save(songs, path):
    write_cache(songs, path)
    return path


def run(*args):
    """Run a command that must do its work; give standard output."""
    done = CliRunner().invoke(cli.main, [str(a) for a in args])
    assert done.exit_code == 0, done.output
    return done.stdout


def run_json(*args):
    return json.loads(run(*args, "--json"), parse_constant=pytest.fail)


def refuse(*args):
    """Run a command that must fail as commands fail; give what it said."""
    done = CliRunner().invoke(cli.main, [str(a) for a in args])
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert done.stderr.startswith("seqagg: ")
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("\n")
    return done.stderr


def fit(cache, *extra, method="logodds"):
    model = cache.parent / f"{method}.safetensors"
    run("fit", cache, "--method", method, "--out", model, *extra)
    return model


# Starting.


def in_subprocess(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.split()


SLOW = {"ray", "torch", "sklearn", "scipy", "pyarrow", "hmmlearn", "numba", "pandas"}
SHOW_SLOW = f"; import sys; print(*({SLOW | {'numpy', 'rich'}} & set(sys.modules)))"


def test_import_seqagg_imports_nothing_slow():
    assert in_subprocess("import seqagg" + SHOW_SLOW) == []


def test_the_commands_import_nothing_slow_until_they_run():
    assert in_subprocess("import seqagg.cli" + SHOW_SLOW) == []


def test_a_command_has_scipy_stats_once_it_is_used():
    code = (
        "from seqagg.__main__ import import_later; import_later('scipy.stats'); import sys, sklearn"
        ".utils; held = 'scipy.stats._stats_py' in sys.modules; from scipy.stats import norm;"
        "import scipy.stats; print(held, scipy.stats.norm is norm, norm.cdf(0),"
        "'scipy.stats._stats_py' in sys.modules)"
    )
    assert in_subprocess(code) == ["False", "True", "0.5", "True"]


def test_predicting_imports_no_pandas(cache, tmp_path):
    model, out = tmp_path / "model.safetensors", tmp_path / "labels.csv"
    seqagg.MeanLogOdds().fit(seqagg.read_cache(cache)).save(model)
    code = (
        "import sys; from seqagg.__main__ import run\n"
        f"sys.argv = ['seqagg', 'predict', {str(model)!r}, {str(cache)!r}, '--out', {str(out)!r}]\n"
        "try: run()\n"
        "except SystemExit as end: print(end.code, 'pandas' in sys.modules)\n"
        "import pandas; print(pandas.Series([1]).sum())"
    )
    assert in_subprocess(code)[-3:] == ["0", "False", "1"]


@pytest.mark.parametrize("method", AGGREGATORS)
def test_a_process_that_starts_fast_can_fit_every_method(method, cache, tmp_path):
    quick = {"gru": "epochs=1", "mil": "epochs=1", "hmm": "n_iter=2", "auto": 'methods=["stack"]'}
    given = ["--set", quick[method]] if method in quick else []
    out = tmp_path / "model.safetensors"
    command = ["fit", str(cache), "--method", method, "--out", str(out), *given]
    done = subprocess.run(
        [sys.executable, "-m", "seqagg", *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert seqagg.load(out).predict(seqagg.read_cache(cache)).size == 48


def test_reading_a_cache_needs_neither_torch_nor_scikit_learn(cache):
    code = f"import seqagg; seqagg.read_cache({str(cache)!r})" + SHOW_SLOW
    assert not {"torch", "sklearn", "hmmlearn", "numba"} & set(in_subprocess(code))


def test_inspecting_a_cache_needs_neither_torch_nor_scikit_learn(cache):
    code = f"""
from click.testing import CliRunner
from seqagg.cli import main
assert CliRunner().invoke(main, ["inspect", {str(cache)!r}]).exit_code == 0"""
    code += "\n" + SHOW_SLOW.lstrip("; ")
    assert not {"torch", "sklearn", "hmmlearn", "numba"} & set(in_subprocess(code))


def test_averaging_needs_no_torch(cache):
    code = f"""
import seqagg
songs = seqagg.read_cache({str(cache)!r})
seqagg.MeanLogOdds().fit(songs).predict(songs)"""
    code += "\n" + SHOW_SLOW.lstrip("; ")
    assert "torch" not in in_subprocess(code)


def test_help_answers_at_once():
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(
        [sys.executable, "-m", "seqagg", "--help"], capture_output=True, text=True, check=True
    )
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert done.stdout.startswith("Usage: seqagg ")
    assert used < 0.5, f"{used:.2f} s of processor time"


def test_names_at_the_top_are_what_they_say():
    assert sorted(seqagg.__all__) == sorted({*seqagg._HOME, "__version__"})
    for name in seqagg.__all__:
        assert getattr(seqagg, name) is not None
    assert set(dir(seqagg)) == set(seqagg.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        seqagg.nothing  # noqa: B018


def test_benchmark_is_the_function_though_its_module_is_imported():
    code = """
import seqagg
from seqagg.benchmark import METHODS
print(type(seqagg.benchmark).__name__)
import seqagg.evaluation
print(type(seqagg.evaluation).__name__)"""
    assert in_subprocess(code) == ["function", "module"]


# Help and what all commands share.


COMMANDS = [
    "benchmark",
    "completion",
    "convert",
    "export",
    "fit",
    "frames",
    "inspect",
    "methods",
    "predict",
    "report",
    "stream",
]


def test_every_command_has_help_with_examples_and_json():
    assert sorted(cli.main.commands) == COMMANDS
    for command in COMMANDS:
        text = run(command, "--help")
        assert "Examples:" in text
        assert f"  seqagg {command}" in text
        assert "--json" in text
        assert "-q, --quiet" in text
        assert max(map(len, text.splitlines())) <= 100


def test_no_command_shows_the_help():
    assert run() == run("--help") == run("-h")


def test_version():
    assert run("--version") == f"seqagg {seqagg.__version__}\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nothing"], "No such command 'nothing'"),
        (["--nothing"], "No such option"),
        (["fit"], "Missing argument 'CACHE'. (see seqagg fit --help)"),
        (["fit", "x.parquet", "--method", "mean"], "Missing option '--out'"),
        (["predict", "x.safetensors"], "Missing argument 'CACHE'"),
        (["inspect", "nowhere.parquet"], "nowhere.parquet: no such file"),
        (["inspect", "songs.txt"], "songs.txt: not a cache"),
        (["benchmark", "nowhere.parquet"], "nowhere.parquet: no such file"),
        (["benchmark", "nowhere.parquet", "--cv", "1"], "--cv"),
        (["benchmark", "nowhere.parquet", "--seed", "-1"], "--seed"),
        (["benchmark", "nowhere.parquet", "--seed", "x"], "'x' is not a valid integer"),
        (["methods", "best"], "no method 'best'"),
        (["predict", "m.safetensors", "nowhere.parquet", "--out", "x.txt"], ".csv or .parquet"),
        (["predict", "m.safetensors", "nowhere.parquet", "--out", "x.csv"], "no such file"),
        (["report", "nowhere"], "nowhere/results.parquet: no such file; 'seqagg benchmark --out'"),
        (["report", "nowhere", "--out", "x.pdf"], "x.pdf: a page ends in .html"),
        (["benchmark", "--timelines", "-1"], "--timelines"),
        (["completion", "tcsh"], "'tcsh' is not one of 'bash', 'zsh', 'fish'"),
    ],
)
def test_bad_input_is_refused_in_one_line(args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refuse(*args)
    assert list(tmp_path.iterdir()) == []


def test_a_real_process_refuses_without_a_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "seqagg", "inspect", "a\nb\x1b[2J.parquet"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "\x1b" not in done.stderr


def test_the_console_script_is_installed():
    (entry,) = entry_points(group="console_scripts", name="seqagg")
    assert entry.load() is command_line.run


# inspect


def test_inspect(cache):
    text = run("inspect", cache)
    assert "48 songs" in text
    assert any(line.split()[:2] == ["train", "30"] for line in text.splitlines())
    assert any(line.split() == ["blues", "10", "6"] for line in text.splitlines())
    assert "Nothing wrong was found." in text
    assert "\x1b" not in text


def test_inspect_json(cache):
    found = run_json("inspect", cache)
    assert found["cache"] == str(cache)
    assert found["n_songs"] == 48
    assert found["classes"] == {"blues": [10, 6], "jazz": [10, 6], "rock": [10, 6]}
    assert found["warnings"] == []


def test_inspect_lists_warnings_and_cuts_long_lists(tmp_path):
    names = [f"class {i:03}" for i in range(40)]
    songs = make_songs(80, columns=names, split=None, groups=None)
    cache = save(songs, tmp_path / "many.arrow")
    text = run("inspect", cache)
    assert "warning: 40 classes with fewer than 10 songs" in text
    assert "class 029" in text
    assert "class 030" not in text
    assert "and 10 classes more" in text
    assert len(run_json("inspect", cache)["classes"]) == 40


def test_names_cannot_steer_the_terminal(tmp_path):
    columns = ["[bold]x[/bold]", "\x1b[2Jy", "z\r\n"]
    cache = save(make_songs(columns=columns), tmp_path / "songs.parquet")
    text = run("inspect", cache)
    assert "[bold]x[/bold]" in text
    assert "\x1b" not in text
    assert "\r" not in text
    assert set(run_json("inspect", cache)["columns"]) == set(columns)


@pytest.mark.parametrize("width", [60, 80])
def test_tables_fit_a_narrow_window(cache, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    for args in (["inspect", cache], ["benchmark", cache, "--methods", "majority,mean,logodds"]):
        lines = run(*args).splitlines()
        rule = next(i for i, line in enumerate(lines) if line.startswith("──"))
        rows = lines[rule - 2 : rule + 3]
        assert max(map(len, rows)) <= width
        assert len({len(line.rstrip()) for line in rows[2:]}) == 1, "numbers should be aligned"


# benchmark


def test_benchmark_of_methods_that_are_not_there(cache):
    said = refuse("benchmark", cache, "--methods", "mean,best")
    assert "no method 'best'; there are majority, mean, logodds" in said
    assert "no method ''" in refuse("benchmark", cache, "--methods", "mean,")


def test_the_help_says_which_methods_are_compared():
    from seqagg.benchmark import METHODS

    assert ",".join(METHODS) == _COMPARED
    assert _COMPARED in run("benchmark", "--help")


def test_benchmark_with_a_split(cache, tmp_path):
    out = tmp_path / "new" / "results"
    text = run("benchmark", cache, "--methods", "majority,mean,logodds", "--out", out)
    assert "learn from the 30 train songs and are scored on the 18 test songs" in text
    assert [line.split()[0] for line in text.splitlines() if line.startswith("m")] == [
        "method",
        "majority",
        "mean",
    ]
    results = pd.read_parquet(out / "results.parquet")
    assert list(results.columns) == ["cache", "method", "fold", "seed", "metric", "value"]
    assert set(results["cache"]) == {"songs"}
    assert pq.read_table(out / "predictions.parquet").num_rows == 3 * 18
    assert sorted(p.name for p in out.iterdir()) == [
        "predictions.parquet",
        "report.html",
        "results.parquet",
        "timelines.parquet",
    ]
    assert f"Written: {out / 'report.html'}" in text


def test_benchmark_json(cache):
    found = run_json("benchmark", cache, "--methods", "mean,logodds", "--seed", "7")
    assert [row["method"] for row in found["methods"]] == ["mean", "logodds"]
    assert 0 <= found["methods"][0]["accuracy"] <= 1
    assert found["provenance"]["seed"] == 7
    assert found["provenance"]["cache"] == "songs"
    assert (
        found["provenance"]["checksum"]
        == __import__("hashlib").sha256(cache.read_bytes()).hexdigest()
    )
    (pair,) = (c for c in found["comparisons"] if c["method"] == "mean")
    assert pair["baseline"] == "logodds"
    assert found["out"] is None


def test_benchmark_in_folds_says_what_it_left_out(tmp_path):
    songs = make_songs(split=None)
    labels = songs.labels.copy()
    labels[[3, 5]] = None
    cache = save(songs.replace(labels=labels), tmp_path / "songs.parquet")
    text = run("benchmark", cache, "--methods", "mean,logodds", "--cv", "3")
    assert "46 songs in 3 folds" in text
    assert "no group on both sides of a fold" in text
    assert "Left out, no label: 2 (song 3, song 5)." in text


def test_benchmark_gives_a_verdict_on_each_learnt_method(cache):
    text = run("benchmark", cache, "--methods", "logodds,hmm")
    (sentence,) = (
        line for line in text.splitlines() if line.startswith("hmm ") and "averaging" in line
    )
    assert sentence.endswith((": it pays here.", ": average here.", "say otherwise."))


def test_benchmark_warns_on_standard_error_of_songs_that_spoil_it(tmp_path):
    groups = [f"artist {i % 4}" for i in range(48)]
    cache = save(make_songs(groups=groups), tmp_path / "songs.parquet")
    args = ["benchmark", str(cache), "--methods", "mean"]
    done = CliRunner().invoke(cli.main, args)
    assert done.exit_code == 0
    assert "seqagg: warning: 4 groups on both sides of the split" in done.stderr
    done = CliRunner().invoke(cli.main, [*args, "--json"])
    assert done.stderr == ""
    assert json.loads(done.stdout)["warnings"]


def test_benchmark_where_labels_are_no_columns(tmp_path):
    labels = ["ab"[i % 2] for i in range(48)]
    cache = save(make_songs(labels=labels, split=None), tmp_path / "songs.parquet")
    assert "nothing to average" in refuse("benchmark", cache, "--methods", "mean,logodds")
    text = run("benchmark", cache, "--methods", "mean,hmm", "--cv", "2")
    assert "points against" not in text
    assert "nothing to average" in text


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (
            {"difference": 0.041, "low": 0.012, "high": 0.07, "wins_a": 9, "wins_b": 1},
            "gru is right on 4.1 points more songs than averaging log-odds "
            "(95 % interval 1.2 to 7.0): it pays here.",
        ),
        (
            {"difference": -0.041, "low": -0.07, "high": -0.012, "wins_a": 1, "wins_b": 9},
            "gru is right on 4.1 points fewer songs than averaging log-odds "
            "(95 % interval 1.2 to 7.0): average here.",
        ),
        (
            {"difference": 0.01, "low": -0.02, "high": 0.04, "wins_a": 5, "wins_b": 4},
            "gru cannot be told from averaging log-odds on 290 songs (+1.0 points, 95 % interval "
            "-2.0 to +4.0): average until more songs say otherwise.",
        ),
        (
            {"difference": 0.0, "low": 0.0, "high": 0.0, "wins_a": 0, "wins_b": 0},
            "gru is right on the very same songs as averaging log-odds: average here.",
        ),
    ],
)
def test_the_verdict_in_words(pair, words):
    from seqagg.evaluation import Comparison

    comparison = Comparison(**pair, p_value=0.5, n_songs=290, n_groups=124)
    assert verdict("gru", comparison, "accuracy") == words


# report


def test_report(cache, tmp_path):
    run("benchmark", cache, "--methods", "mean,logodds,hmm", "--out", tmp_path, "--timelines", "5")
    first = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = tmp_path / "again.html"
    text = run("report", tmp_path, "--out", page)
    assert page.read_text(encoding="utf-8") == first
    assert "5 of 18 have a timeline" in first
    assert f"Written: {page}" in text
    assert any(line.startswith("hmm ") for line in text.splitlines())
    found = run_json("report", tmp_path)
    assert found["out"] == str(tmp_path / "report.html")
    assert found["bytes"] == len(first.encode())
    assert found["verdicts"] == [line for line in text.splitlines() if line.startswith("hmm ")]


def test_benchmark_without_timelines(cache, tmp_path):
    run("benchmark", cache, "--methods", "mean", "--out", tmp_path, "--timelines", "0")
    assert not (tmp_path / "timelines.parquet").exists()
    assert "run without timelines" in (tmp_path / "report.html").read_text(encoding="utf-8")


# Quiet, and completion.


def test_quiet_says_no_more_than_the_result(tmp_path):
    groups = [f"artist {i % 4}" for i in range(48)]
    cache = save(make_songs(groups=groups), tmp_path / "songs.parquet")
    model, out = tmp_path / "m.safetensors", tmp_path / "out"
    for args in (
        ["fit", cache, "--method", "mean", "--out", model],
        ["predict", model, cache, "--out", tmp_path / "l.csv"],
    ):
        done = CliRunner().invoke(cli.main, [str(a) for a in [*args, "-q"]])
        assert (done.exit_code, done.output) == (0, ""), args
    args = ["benchmark", cache, "--methods", "mean,logodds", "--out", out]
    loud, quiet = (
        CliRunner().invoke(cli.main, [str(a) for a in [*args, *more]]) for more in ([], ["--quiet"])
    )
    assert "warning" in loud.stderr
    assert quiet.stderr == ""
    assert "accuracy" in quiet.stdout
    assert "Written" in loud.stdout
    assert "Written" not in quiet.stdout
    assert "Written" in run("report", out), "and a command that is not asked speaks again"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("seqagg re", {"report"}),
        ("seqagg fit songs.parquet --method h", {"hmm"}),
        ("seqagg benchmark --methods mean,l", {"mean,logodds"}),
        ("seqagg methods m", {"majority", "mean", "mil"}),
        ("seqagg predict --sp", {"--split"}),
    ],
)
def test_a_shell_completes(words, expected):
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", "from seqagg.cli import main; main(prog_name='seqagg')"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | asked | {"_SEQAGG_COMPLETE": "bash_complete"},
    )
    assert {line.partition(",")[2] for line in done.stdout.split()} == expected


def test_the_methods_completed_are_those_of_the_table():
    from seqagg.commands.options import METHODS

    assert list(METHODS) == list(AGGREGATORS)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_what_the_shell_reads(shell):
    script = run("completion", shell)
    assert f"_SEQAGG_COMPLETE={shell}_complete" in script
    assert run_json("completion", shell) == {"shell": shell, "script": script}
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


# fit


@pytest.mark.parametrize("method", ["logodds", "hmm"])
def test_fit_and_predict(cache, method):
    model = fit(cache, *(QUICK_HMM if method == "hmm" else []), method=method)
    out = cache.parent / "labels.parquet"
    text = run("predict", model, cache, "--out", out)
    songs = seqagg.read_cache(cache)
    aggregator = seqagg.load(model)
    found = pd.read_parquet(out)
    assert list(found.columns) == ["song_id", "prediction", *COLUMNS]
    assert list(found["song_id"]) == list(songs.ids)
    assert list(found["prediction"]) == list(aggregator.predict(songs))
    assert np.array_equal(found[COLUMNS].to_numpy(), aggregator.predict_proba(songs))
    assert f"Accuracy: {aggregator.score(songs):.1%} of 48 songs" in text


def test_fit_learns_from_the_train_songs_and_says_so(cache):
    out = cache.parent / "m.safetensors"
    text = run("fit", cache, "--method", "mean", "--out", out)
    assert "mean fitted on 30 of 48 songs (split train), 3 classes." in text
    found = run_json("fit", cache, "--method", "mean", "--out", out, "--split", "all")
    assert (found["n_songs"], found["split"]) == (48, None)
    found = run_json("fit", cache, "--method", "mean", "--out", out, "--split", "test")
    assert (found["n_songs"], found["split"]) == (18, "test")
    said = refuse("fit", cache, "--method", "mean", "--out", out, "--split", "valid")
    assert "no song of split 'valid'; there are test, train; --split all takes all songs" in said


def test_the_model_says_which_cache_it_was_fitted_to(cache, tmp_path):
    digest = hashlib.sha256(cache.read_bytes()).hexdigest()
    assert read_model(fit(cache))[0]["trained_on"] == digest
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a.parquet", "b.arrow"):
        save(make_songs(ids=[f"{name} {i}" for i in range(48)]), folder / name)
    listed = subprocess.run(
        ["sha256sum", "a.parquet", "b.arrow"], cwd=folder, capture_output=True, check=True
    )
    digest = hashlib.sha256(listed.stdout).hexdigest()
    assert read_model(fit(folder))[0]["trained_on"] == digest


def test_fit_without_a_split_takes_all(tmp_path):
    cache = save(make_songs(split=None), tmp_path / "songs.parquet")
    found = run_json("fit", cache, "--method", "mean", "--out", tmp_path / "m.safetensors")
    assert found["n_songs"] == 48
    args = ["--method", "mean", "--out", tmp_path / "m.safetensors", "--split", "train"]
    assert "the cache has no split" in refuse("fit", cache, *args)


def test_fit_leaves_out_songs_it_cannot_use_and_says_so(tmp_path):
    songs = make_songs(split=None)
    labels = songs.labels.copy()
    labels[[0, 7]] = None
    arrays = list(songs)
    arrays[2] = arrays[2] * np.nan
    names = ("columns", "ids", "groups")
    songs = Songs.from_arrays(arrays, labels=labels, **{n: getattr(songs, n) for n in names})
    cache = save(songs, tmp_path / "songs.parquet")
    args = ["fit", cache, "--method", "mean", "--out", tmp_path / "m.safetensors"]
    text = run(*args)
    assert "mean fitted on 45 of 48 songs" in text
    assert "Left out, no label: 2 (song 0, song 7)." in text
    assert "Left out, no frame left: 1 (song 2)." in text
    assert run_json(*args)["left_out"] == {
        "no label": ["song 0", "song 7"],
        "no frame left": ["song 2"],
    }
    unlabelled = save(songs.replace(labels=[None] * 48), tmp_path / "unlabelled.parquet")
    assert "nothing can be learnt" in refuse("fit", unlabelled, *args[2:])


def test_settings_and_seed(cache):
    out = cache.parent / "m.safetensors"
    args = ["fit", cache, "--method", "hmm", "--out", out, *QUICK_HMM]
    found = run_json(*args, "--set", "tol=1", "--set", 'on_empty="prior"', "--seed", "5")
    assert found["parameters"]["n_states"] == 1
    assert found["parameters"]["tol"] == 1.0
    assert found["parameters"]["on_empty"] == "prior"
    assert found["parameters"]["random_state"] == 5
    found = run_json(*args, "--set", "random_state=6", "--seed", "5")
    assert found["parameters"]["random_state"] == 6


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("depth=3", "method 'hmm' has no parameter depth; it has covariance_type, "),
        ("n_iter=" + "[" * 1500, "is not a whole number"),
        ("n_iter=many", "n_iter=many is not a whole number"),
        ("n_iter=1.5", "n_iter=1.5 is not a whole number"),
        ("n_iter=true", "n_iter=true is not a whole number"),
        ("tol=null", "tol=null is not a number"),
        ("n_iter", "--set n_iter is not KEY=VALUE"),
        ("n_iter=0", "n_iter"),
        ("on_empty=guess", "on_empty='guess'"),
    ],
)
def test_settings_that_cannot_be(cache, setting, words):
    out = cache.parent / "m.safetensors"
    assert words in refuse("fit", cache, "--method", "hmm", "--set", setting, "--out", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "wanted", "value"),
    [
        ("3", None, 3),
        ("3.5", None, 3.5),
        ("true", None, True),
        ("null", None, None),
        ("auto", None, "auto"),
        ('"3"', None, "3"),
        ("", None, ""),
        ("a=b", None, "a=b"),
        ("3", float, 3.0),
        ("3", str, "3"),
        ("true", bool, True),
    ],
)
def test_values_are_json_where_they_can_be_and_text_elsewhere(text, wanted, value):
    found = _parse("key", text, wanted)
    assert found == value
    assert type(found) is type(value)


def test_a_failing_fit_leaves_nothing(tmp_path):
    cache = save(make_songs(labels=["other"] * 48), tmp_path / "songs.parquet")
    said = refuse("fit", cache, "--method", "mean", "--out", tmp_path / "new" / "m.safetensors")
    assert "is the name of no column" in said
    assert list(tmp_path.iterdir()) == [cache]
    assert "ends in .safetensors" in refuse("fit", cache, "--method", "mean", "--out", "m.pkl")


# predict


NASTY = ['comma, "quote"', "line\nbreak", "return\rhere", "=1+1", "ünïcode", " space ", "NA", "1"]


def nasty_cache(path):
    songs = make_songs(len(NASTY), ids=NASTY, columns=["a,b", 'c"d', "e\nf"], split=None)
    return save(songs, path)


def test_csv_comes_back_as_it_was(tmp_path):
    cache = nasty_cache(tmp_path / "songs.parquet")
    model = fit(cache)
    out = tmp_path / "labels.csv"
    run("predict", model, cache, "--out", out, "--keep-formulas")
    songs, aggregator = seqagg.read_cache(cache), seqagg.load(model)
    found = pd.read_csv(out, keep_default_na=False, dtype={"song_id": str})
    assert list(found.columns) == ["song_id", "prediction", *aggregator.classes_]
    assert list(found["song_id"]) == NASTY
    assert list(found["prediction"]) == list(aggregator.predict(songs))
    with out.open(newline="") as file:
        rows = list(csv.reader(file))
    numbers = np.array([row[2:] for row in rows[1:]], dtype=float)
    assert np.array_equal(numbers, aggregator.predict_proba(songs)), "to the bit"
    assert [row[0] for row in rows[1:]] == NASTY


def test_formulas_in_csv_are_text_and_counted(tmp_path):
    cache = nasty_cache(tmp_path / "songs.parquet")
    model, out = fit(cache), tmp_path / "labels.csv"
    arguments = ["predict", str(model), str(cache), "--out", str(out)]
    said = CliRunner().invoke(cli.main, arguments)
    assert said.exit_code == 0
    assert (
        "cells that a spreadsheet would run as formulas, now text with ' before it: 1"
        in said.stderr
    )
    with out.open(newline="") as file:
        assert [row[0] for row in csv.reader(file)][1:] == [i.replace("=", "'=") for i in NASTY]
    assert json.loads(CliRunner().invoke(cli.main, [*arguments, "--json"]).stdout)["n_escaped"] == 1
    kept = CliRunner().invoke(cli.main, [*arguments, "--json", "--keep-formulas"])
    assert (json.loads(kept.stdout)["n_escaped"], kept.stderr) == (0, "")
    for option in ("--keep-formulas", "--escape-formulas"):
        words = CliRunner().invoke(cli.main, [*arguments[:-1], str(tmp_path / "l.parquet"), option])
        assert (words.exit_code, f"{option} is for a .csv table" in words.stderr) == (2, True)


def test_parquet_comes_back_as_it_was(tmp_path):
    cache = nasty_cache(tmp_path / "songs.parquet")
    out = tmp_path / "labels.parquet"
    run("predict", fit(cache), cache, "--out", out)
    assert pq.read_table(out)["song_id"].to_pylist() == NASTY


def test_labels_that_are_numbers_stay_numbers(cache, tmp_path):
    songs = make_songs()
    which = [COLUMNS.index(label) for label in songs.labels]
    model = tmp_path / "m.safetensors"
    seqagg.MeanLogOdds().fit(songs.replace(columns=None, labels=None), which).save(model)
    out = tmp_path / "labels.parquet"
    run("predict", model, cache, "--out", out)
    assert pd.read_parquet(out)["prediction"].dtype == np.int64
    assert list(pd.read_parquet(out).columns) == ["song_id", "prediction", "0", "1", "2"]


def test_predict_one_split(cache):
    model = fit(cache)
    found = run_json("predict", model, cache, "--split", "test", "--out", cache.parent / "l.csv")
    assert found["n_songs"] == found["n_labelled"] == 18
    songs = seqagg.read_cache(cache)
    test = songs[songs.split == "test"]
    assert found["accuracy"] == seqagg.load(model).score(test)
    out = cache.parent / "other.csv"
    assert "there are test, train" in refuse(
        "predict", model, cache, "--split", "valid", "--out", out
    )
    assert not out.exists()


def test_predict_songs_without_labels_or_with_new_ones(cache, tmp_path):
    model = fit(cache)
    out = tmp_path / "l.csv"
    unlabelled = save(make_songs(labels=None), tmp_path / "unlabelled.parquet")
    assert "Accuracy" not in run("predict", model, unlabelled, "--out", out)
    assert run_json("predict", model, unlabelled, "--out", out)["accuracy"] is None
    new = save(make_songs(labels=["polka", *make_songs().labels[1:]]), tmp_path / "new.parquet")
    text = run("predict", model, new, "--out", out)
    assert "Labels that the model does not know, which count as wrong: polka." in text


def test_a_song_without_a_frame_is_named_or_gets_the_prior(cache, tmp_path):
    songs = make_songs()
    arrays = [*list(songs)[:-1], np.empty((0, 3))]
    empty = save(
        Songs.from_arrays(arrays, columns=COLUMNS, ids=songs.ids), tmp_path / "empty.parquet"
    )
    out = tmp_path / "l.csv"
    assert "song 'song 47': no frame is left" in refuse("predict", fit(cache), empty, "--out", out)
    assert not out.exists()
    run("predict", fit(cache, "--set", "on_empty=prior"), empty, "--out", out)
    assert len(pd.read_csv(out)) == 48


def test_a_cache_of_no_songs_gives_an_empty_table(cache, tmp_path):
    empty = save(Songs(np.empty((0, 3)), [0], columns=COLUMNS, ids=[]), tmp_path / "none.parquet")
    out = tmp_path / "l.csv"
    run("predict", fit(cache), empty, "--out", out)
    assert out.read_text() == '"song_id","prediction","blues","jazz","rock"\n'


def test_songs_of_other_columns_are_refused(cache, tmp_path):
    other = save(make_songs(columns=["a", "b", "c"]), tmp_path / "other.parquet")
    said = refuse("predict", fit(cache), other, "--out", tmp_path / "l.csv")
    assert "column 'blues': the model was fitted with this column" in said


def test_a_class_called_like_a_column_of_the_table_is_refused(tmp_path):
    cache = save(make_songs(columns=["prediction", "b", "c"]), tmp_path / "songs.parquet")
    said = refuse("predict", fit(cache), cache, "--out", tmp_path / "l.csv")
    assert "a class is called 'prediction'" in said


def test_a_damaged_model_is_refused(cache):
    model = fit(cache)
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    said = refuse("predict", model, cache, "--out", cache.parent / "l.csv")
    assert f"{model}: is damaged" in said


# Several labels per song.


@pytest.fixture
def cache_of_several(tmp_path):
    has = np.random.default_rng(0).random((48, 3)) < 0.4
    labels = [tuple(c for c, h in zip(COLUMNS, row, strict=True) if h) for row in has]
    rng = np.random.default_rng(1)
    arrays = [rng.normal(3.0 * row - 1.5, 1.0, (5, 3)) for row in has]
    songs = Songs.from_arrays(
        arrays,
        columns=COLUMNS,
        labels=labels,
        task="multilabel",
        ids=[f"song {i}" for i in range(48)],
    )
    return save(songs, tmp_path / "several.parquet")


def test_inspect_several_labels(cache_of_several):
    found = run_json("inspect", cache_of_several)
    assert (found["task"], found["n_unlabelled"]) == ("multilabel", 0)
    assert "blues" in run("inspect", cache_of_several)


def test_benchmark_several_labels(cache_of_several):
    args = ("benchmark", cache_of_several, "--methods", "logodds,stack", "--cv", "3")
    text = run(*args)
    assert "LRAP" in text
    assert "mAP" in text
    assert "accuracy" not in text
    assert "stack" in text.splitlines()[-1]
    found = run_json(*args)
    assert found["provenance"]["task"] == "multilabel"
    assert 0.9 < found["methods"][0]["lrap"] <= 1


def test_fit_and_predict_several_labels(cache_of_several, tmp_path):
    model = fit(cache_of_several)
    table, text = tmp_path / "labels.parquet", tmp_path / "labels.csv"
    found = run_json("predict", model, cache_of_several, "--out", table)
    songs, aggregator = seqagg.read_cache(cache_of_several), seqagg.load(model)
    assert found["accuracy"] == pytest.approx(aggregator.score(songs))
    assert "All labels right" in run("predict", model, cache_of_several, "--out", text)
    expected = [
        [c for c, has in zip(COLUMNS, row, strict=True) if has] for row in aggregator.predict(songs)
    ]
    assert [] in expected
    assert pq.read_table(table)["prediction"].to_pylist() == expected
    with text.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["prediction"] for row in rows] == ["|".join(labels) for labels in expected]


def test_a_bar_in_a_label_needs_parquet(cache_of_several, tmp_path):
    songs = seqagg.read_cache(cache_of_several)
    labels = [tuple(c.replace("rock", "r|k") for c in row) for row in songs.labels]
    odd = save(songs.replace(columns=["blues", "jazz", "r|k"], labels=labels), tmp_path / "o.arrow")
    model = fit(odd)
    assert "write .parquet" in refuse("predict", model, odd, "--out", tmp_path / "l.csv")
    assert not (tmp_path / "l.csv").exists()
    run("predict", model, odd, "--out", tmp_path / "l.parquet")


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (
            {"difference": 0.041, "low": 0.012, "high": 0.07, "wins_a": 9, "wins_b": 1},
            "gru gains 4.1 points of LRAP on averaging log-odds (95 % interval 1.2 to 7.0): it "
            "pays here.",
        ),
        (
            {"difference": -0.041, "low": -0.07, "high": -0.012, "wins_a": 1, "wins_b": 9},
            "gru loses 4.1 points of LRAP to averaging log-odds (95 % interval 1.2 to 7.0): "
            "average here.",
        ),
        (
            {"difference": 0.01, "low": -0.02, "high": 0.04, "wins_a": 5, "wins_b": 4},
            "gru cannot be told from averaging log-odds by LRAP on 290 songs (+1.0 points, 95 % "
            "interval -2.0 to +4.0): average until more songs say otherwise.",
        ),
        (
            {"difference": 0.0, "low": 0.0, "high": 0.0, "wins_a": 0, "wins_b": 0},
            "gru ranks the labels of every song as averaging log-odds does: average here.",
        ),
    ],
)
def test_the_verdict_on_a_ranking_in_words(pair, words):
    from seqagg.evaluation import Comparison

    comparison = Comparison(**pair, p_value=0.5, n_songs=290, n_groups=124)
    assert verdict("gru", comparison, "lrap") == words


# methods


def test_methods_lists_the_table():
    text = run("methods")
    rows = text.splitlines()[2:]
    assert [row.split()[0] for row in rows] == list(AGGREGATORS)
    assert "Average a song's frames in log-odds" in text


def test_methods_describes_one():
    text = run("methods", "hmm")
    assert text.startswith("Ask which class's hidden Markov model")
    assert "n_states : int" in text


def test_methods_json():
    found = run_json("methods")
    assert [row["method"] for row in found] == list(AGGREGATORS)
    by_name = {row["method"]: row for row in found}
    assert by_name["gru"]["learns"]
    assert not by_name["mean"]["learns"]
    assert by_name["mean"]["parameters"] == {"n_jobs": None, "on_empty": "error"}
    assert run_json("methods", "mean") == [by_name["mean"]]


def test_the_summary_out_of_the_source_is_that_of_the_class():
    for row in run_json("methods"):
        assert _summary(AGGREGATORS[row["method"]]) == row["summary"]
        assert row["summary"].endswith(".")


# Interrupted.


@pytest.mark.parametrize("command", ["fit", "predict", "benchmark"])
def test_an_interrupt_while_writing_leaves_nothing(cache, command):
    folder = cache.parent / "out"
    folder.mkdir()
    args = {
        "fit": ["fit", cache, "--method", "mean", "--out", folder / "m.safetensors"],
        "predict": ["predict", fit(cache), cache, "--out", folder / "l.csv"],
        "benchmark": ["benchmark", cache, "--methods", "mean", "--out", folder],
    }[command]
    code = f"""
import os, signal
# A shell that starts the tests in the background has interrupts ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGINT)
from seqagg.cli import main
main({[str(a) for a in args]!r})
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 130
    assert done.stderr == "seqagg: interrupted\n"
    assert done.stdout == ""
    assert list(folder.iterdir()) == []


def test_an_interrupt_while_fitting_leaves_nothing(cache, monkeypatch):
    from seqagg.aggregators.averaging import MeanLogOdds

    def interrupted(self, X):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(MeanLogOdds, "fit", interrupted)
    out = cache.parent / "m.safetensors"
    args = ["fit", str(cache), "--method", "logodds", "--out", str(out)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        done = CliRunner().invoke(cli.main, args)
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.exit_code == 130
    assert done.stderr == "seqagg: interrupted\n"
    assert list(cache.parent.iterdir()) == [cache]


def test_standalone_mode_off_lets_errors_through(tmp_path):
    with pytest.raises(seqagg.CacheError):
        cli.main(["inspect", str(tmp_path / "x.parquet")], standalone_mode=False)
    with pytest.raises(click.UsageError):
        cli.main(["nothing"], standalone_mode=False)


# Files that must not be overwritten, and places that cannot be written.


def test_predictions_do_not_replace_the_cache(cache, tmp_path):
    model = tmp_path / "model.safetensors"
    seqagg.MeanLogOdds().fit(seqagg.read_cache(cache)).save(model)
    (tmp_path / "link.parquet").symlink_to(cache)
    before = cache.read_bytes()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "part.parquet").write_bytes(before)
    done = CliRunner().invoke(
        cli.main, ["predict", str(model), str(folder), "--out", str(folder / "labels.parquet")]
    )
    assert done.exit_code == 2
    assert [path.name for path in folder.iterdir()] == ["part.parquet"]
    done = CliRunner().invoke(cli.main, ["benchmark", str(folder), "--out", str(folder)])
    assert done.exit_code == 2
    assert f"{folder / 'results.parquet'}: is what is read, or in it" in done.stderr
    for out in (cache, tmp_path / "link.parquet"):
        done = CliRunner().invoke(cli.main, ["predict", str(model), str(cache), "--out", str(out)])
        assert done.exit_code == 2
        assert f"seqagg: {out}: is what is read, or in it" in done.stderr
    assert cache.read_bytes() == before


@pytest.mark.parametrize(
    "command", [["fit", "--method", "hmm"], ["benchmark", "--methods", "mean,hmm"]]
)
def test_a_place_that_cannot_be_written_is_told_before_the_work(
    command, cache, tmp_path, monkeypatch
):
    def never(*_):
        raise AssertionError("it was fitted")

    monkeypatch.setattr(seqagg.HMMAggregator, "fit", never)
    monkeypatch.setattr(seqagg.MeanProbability, "fit", never)
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / "file" / "x.safetensors"
    done = CliRunner().invoke(cli.main, [*command, str(cache), "--out", str(out)])
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith(f"seqagg: {tmp_path / 'file'}")
    assert done.stderr.endswith("Not a directory\n")
    assert len(done.stderr.splitlines()) == 1


def test_a_rule_chosen_on_the_songs_of_the_fit_is_of_models_that_have_not_seen_them(tmp_path):
    songs = make_songs(split=None)
    cache, model = save(songs, tmp_path / "songs.parquet"), tmp_path / "model.safetensors"
    CliRunner().invoke(cli.main, ["fit", str(cache), "--method", "logodds", "--out", str(model)])
    given = ["stream", str(model), "--error-rate", "0.1", "--calibrate"]
    done = CliRunner().invoke(cli.main, [*given, str(cache)], input="")
    assert done.exit_code == 0
    assert "the model was fitted to these songs" in done.stderr
    other = save(make_songs(seed=1, split=None), tmp_path / "other.parquet")
    done = CliRunner().invoke(cli.main, [*given, str(other)], input="")
    assert done.exit_code == 0
    assert "the model was fitted" not in done.stderr


def test_songs_without_frames_are_answered_if_asked(cache, tmp_path):
    model, out = tmp_path / "model.safetensors", tmp_path / "labels.csv"
    songs = seqagg.read_cache(cache)
    seqagg.MeanLogOdds().fit(songs).save(model)
    empty = Songs.from_arrays([songs[0], songs[1][:0]], columns=COLUMNS, ids=["full", "empty"])
    some = save(empty, tmp_path / "some.parquet")
    given = ["predict", str(model), str(some), "--out", str(out)]
    done = CliRunner().invoke(cli.main, given)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"seqagg: {some}: song 'empty': no frame is left")
    assert not out.exists()
    assert CliRunner().invoke(cli.main, [*given, "--on-empty", "prior"]).exit_code == 0
    rows = csv.DictReader(out.read_text().splitlines())
    assert [row["song_id"] for row in rows] == ["full", "empty"]


@pytest.mark.parametrize("width", ["25", "40", "80"])
def test_numbers_stay_whole_on_a_narrow_terminal(width, tmp_path):
    cache = save(make_songs(n=1234), tmp_path / "songs.parquet")
    done = CliRunner().invoke(cli.main, ["inspect", str(cache)], env={"COLUMNS": width})
    assert done.exit_code == 0
    train = sum("train" in str(s) for s in seqagg.read_cache(cache).split)
    assert str(train) in done.stdout.split()
    if width == "25":
        assert f"  songs: {train}\n" in done.stdout


def test_a_terminal_of_few_letters_is_no_error(cache):
    done = subprocess.run(
        [sys.executable, "-m", "seqagg", "inspect", str(cache)],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"\\xb1" in done.stdout


def test_a_conversion_does_not_replace_what_it_reads(tmp_path):
    table = tmp_path / "frames.parquet"
    pd.DataFrame({"song": ["a"], "jig": [0.5], "other": ["kept"]}).to_parquet(table)
    before = table.read_bytes()
    given = ["convert", str(table), "--kind", "probability", "--song", "song"]
    done = CliRunner().invoke(cli.main, [*given, "--ignore", "other", "--out", str(table)])
    assert done.exit_code == 2
    assert f"seqagg: {table}: is what is read, or in it" in done.stderr
    assert table.read_bytes() == before


def no_address_space(_):
    np.ones(2**50)


def no_memory(_):
    raise pa.ArrowMemoryError("malloc of size 9 failed")


def nothing_at_all(_):
    raise MemoryError


@pytest.mark.parametrize(
    ("fail", "why"),
    [
        (no_address_space, ": Unable to allocate 8.00 PiB for an array"),
        (no_memory, ": malloc of size 9 failed\n"),
        (nothing_at_all, "\n"),
    ],
)
def test_too_little_memory_is_told_in_one_line(fail, why, cache, monkeypatch):
    monkeypatch.setattr(cli.main.commands["inspect"], "callback", lambda **given: fail(given))
    done = CliRunner().invoke(cli.main, ["inspect", str(cache)])
    assert done.exit_code == 2
    assert done.stderr.startswith(f"seqagg: not enough memory{why}")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.parametrize("name", ["m.safetensors", "c.parquet", "c.arrow"])
def test_a_pipe_is_not_waited_for(name, cache, tmp_path):
    os.mkfifo(tmp_path / name)
    command = ["inspect", str(tmp_path / name)]
    if name == "m.safetensors":
        command = ["predict", str(tmp_path / name), str(cache), "--out", str(tmp_path / "o.csv")]
    done = CliRunner().invoke(cli.main, command)
    assert done.exit_code == 2
    assert done.stderr == f"seqagg: {tmp_path / name}: is no regular file\n"


def test_a_stream_s_scores_are_what_those_of_the_training_songs_were(tmp_path):
    songs = make_songs()
    p = 1 / (1 + np.exp(-songs.values))
    cache = save(songs.replace(values=p, kind="probability"), tmp_path / "songs.parquet")
    model = tmp_path / "model.safetensors"
    seqagg.MeanLogOdds().fit(seqagg.read_cache(cache)).save(model)
    said = json.dumps({"song": "a", "scores": [0.9, 0.1, 0.2]})
    log_odds = json.dumps({"song": "a", "scores": np.log([9, 1 / 9, 1 / 4]).tolist()})
    found = [
        CliRunner().invoke(cli.main, ["stream", str(model), *kind], input=line)
        for kind, line in (([], said), (["--kind", "log_odds"], log_odds))
    ]
    assert [done.exit_code for done in found] == [0, 0]
    one, other = (json.loads(done.stdout.splitlines()[0]) for done in found)
    assert one["probability"] == pytest.approx(other["probability"], rel=1e-5)
    wrong = CliRunner().invoke(cli.main, ["stream", str(model)], input=log_odds)
    assert wrong.exit_code == 2
    assert "a probability outside [0, 1]" in wrong.stderr
