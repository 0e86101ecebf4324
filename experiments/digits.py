"""From sound to label on spoken digits: does order pay, for speakers known and for new ones?

    python -m experiments.digits --data FOLDER --jobs 2

FOLDER holds the recordings of the Free Spoken Digit Dataset, ``digit_speaker_index.wav``
(github.com/Jakobovski/free-spoken-digit-dataset, its folder ``recordings``). Log-mel frames go
through a small network in PyTorch, which `seqagg.frozen` trains and asks. *Seen speakers*: the
data set's own test, index 0 to 4 of each digit and speaker, the training recordings out of fold.
*New speakers*: each speaker in turn is the test, and the networks that score the training
recordings of the others have seen neither their speaker nor the one that is the test.
``digits.parquet`` has the columns speakers, method, seed, metric, value; seed null is the mean over
seeds, with the paired difference from the mean of log-odds.
"""  # noqa: D400

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.model_selection import LeaveOneGroupOut

from experiments import speech
from experiments.runs import (
    Run,
    add_runs,
    first_line,
    folder,
    one_thread,
    parser,
    run_all,
    score,
    source_of,
)
from experiments.tables import (
    Cell,
    Outcome,
    Results,
    compare_runs,
    difference,
    interval,
    mean_and_spread,
    points,
)
from seqagg import Songs
from seqagg.frozen import nested_out_of_fold, out_of_fold

NAME = "digits"
KEYS = {"speakers": pa.string(), "method": pa.string(), "seed": pa.int64()}
SEEN, NEW = "seen speakers", "new speakers"
SPEAKERS = (SEEN, NEW)
BASELINE = "logodds"
COMPARED = ("majority", "mean", BASELINE, "stack", "mil", "hmm", "gru", "auto")
N_TEST = 5
"""Recordings of each digit and speaker that are the data set's own test: index 0 to 4."""

QUICK_INDICES = range(3, 8)
"""Index of the recordings that ``--quick`` keeps, some on either side."""

NETWORK: Mapping[str, Any] = {"epochs": 8, "seed": 0}
QUICK_NETWORK: Mapping[str, Any] = {"epochs": 1, "seed": 0}


def main(arguments: Sequence[str] | None = None) -> None:
    """Compute what is missing, then table and answer."""
    made = parser(__doc__, NAME)
    add_runs(made, COMPARED)
    made.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="the recordings")
    made.add_argument("--work", type=Path, default=Path("build/digits"), metavar="DIR")
    made.add_argument("--seeds", type=int, default=1, help="of the methods; default: 1")
    options = made.parse_args(arguments)
    print(first_line(__doc__))
    recordings = speech.Recordings(options.data, QUICK_INDICES if options.quick else None)
    network = QUICK_NETWORK if options.quick else NETWORK
    results = Results(folder(options) / f"{NAME}.parquet", KEYS)
    turns = score_frames(recordings, network, options.work)
    runs = plan(turns, options.methods, options.seeds, options.quick, recordings.checksum())
    run_all(runs, results, options)
    results.sum_up(summaries(results))
    results.about = {"question": first_line(__doc__), "answer": answer(results)}
    results.write()
    print(results.about["answer"])


def score_frames(
    recordings: speech.Recordings, network: Mapping[str, Any], work: Path
) -> dict[str, list[Songs]]:
    """Scored recordings by who speaks in the test; a collection for each turn, with its split."""
    known = recordings.known
    digits = sorted({own.digit for own in known.values()})
    asked: dict[str, Any] = {
        "make_model": partial(speech.train, n_digits=len(digits), **network),
        "frames": {name: recordings[name] for name in recordings},
        "labels": {name: own.digit for name, own in known.items()},
        "kind": "logit",
    }
    own_test = {name: "test" if own.index < N_TEST else "train" for name, own in known.items()}
    speakers = {name: own.speaker for name, own in known.items()}
    leave_one_out = {"cv": LeaveOneGroupOut(), "inner": LeaveOneGroupOut(), "groups": speakers}
    with one_thread():
        seen = out_of_fold(**asked, split=own_test, work=work / "seen")
        new = nested_out_of_fold(**asked, **leave_one_out, work=work / "new")
        return {SEEN: [seen], NEW: list(new)}


def plan(
    turns: Mapping[str, Sequence[Songs]],
    methods: Sequence[str],
    n_seeds: int,
    quick: bool,
    checksum: str,
) -> Iterator[Run]:
    """Runs, one seed of everything before the next."""
    network = QUICK_NETWORK if quick else NETWORK
    for seed in range(n_seeds):
        for method in methods:
            for speakers, songs in turns.items():
                yield Run(
                    (speakers, method, seed),
                    source_of(method, quick, checksum=checksum, network=dict(network)),
                    partial(score_turns, songs, method, seed, quick),
                )


def score_turns(turns: Sequence[Songs], method: str, seed: int, quick: bool) -> Outcome:
    """A method on the test songs of all turns; the speaker is the group where each has a turn."""
    outcomes = [score(songs, method, seed, quick) for songs in turns]
    if len(outcomes) == 1:
        return outcomes[0]
    sizes = [len(outcome.right) for outcome in outcomes]
    names = outcomes[0].metrics.keys()
    return Outcome(
        {
            name: float(np.average([outcome.metrics[name] for outcome in outcomes], weights=sizes))
            for name in names
        }
        | {"n_songs": float(sum(sizes))},
        np.concatenate([outcome.right for outcome in outcomes]),
        np.repeat(np.arange(len(sizes)), sizes),
    )


def summaries(results: Results) -> dict[Cell, dict[str, float]]:
    """Means over seeds, and paired differences from the mean of log-odds."""
    found: dict[Cell, dict[str, float]] = {}
    for speakers, method in sorted({(str(cell[0]), str(cell[1])) for cell in results.outcomes}):
        own = _runs(results, speakers, method)
        row = mean_and_spread("accuracy", [run.metrics["accuracy"] for run in own])
        for name in ("log_loss", "calibration_error", "fit_seconds", "n_songs"):
            row[name] = float(np.mean([run.metrics[name] for run in own]))
        row["n_seeds"] = len(own)
        baseline = _runs(results, speakers, BASELINE)
        if baseline and method != BASELINE:
            row |= difference("accuracy_minus_logodds", compare_runs(own, baseline))
        found[speakers, method, None] = row
    return found


def answer(results: Results) -> str:
    """What was found, in a sentence."""
    parts = []
    for speakers in SPEAKERS:
        rows = {m: results.metrics.get((speakers, m, None), {}) for m in results.summed("method")}
        known = {method: row for method, row in rows.items() if row}
        best = max(known, key=lambda method: known[method]["accuracy"])
        text = f"{speakers}: {best} is right on {points(known[best]['accuracy'])} %"
        if "accuracy_minus_logodds" in known[best]:
            text += f", {interval(known[best], 'accuracy_minus_logodds')} points on averaging"
        parts.append(text)
    return "; ".join(parts) + "."


def _runs(results: Results, speakers: str, method: str) -> list[Outcome]:
    return [results.outcomes[cell] for cell in results.matching(speakers=speakers, method=method)]


if __name__ == "__main__":
    main()
