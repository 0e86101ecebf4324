"""Files of every format that was ever written, and what they answered when they were made.

    python -m tests.make_golden

writes what is not there yet; what is there is never written again, for it stands for the files
that users have.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.naive_bayes import GaussianNB

from seqagg import Songs, write_cache
from seqagg.aggregators import AGGREGATORS, make_aggregator
from seqagg.aggregators.base import Aggregator
from tests.conftest import make_certain

FOLDER = Path(__file__).parent / "golden"

QUICK: dict[str, dict[str, Any]] = {
    "logodds": {"on_empty": "prior"},
    "hmm": {"n_states": 2, "covariance_type": "diag", "n_folds": 2, "n_iter": 3},
    "gru": {"hidden_size": 3, "epochs": 6, "n_folds": 2, "batch_size": 4},
    "stack": {"n_folds": 2, "n_parts": 2},
    "mil": {"epochs": 6, "n_folds": 2, "batch_size": 4, "hidden_size": 4},
    "auto": {"methods": ("stack", "hmm"), "n_errors": -100.0, "parameters": {"stack": {}}},
}
"""Method -> parameters that make its file small."""

NEWEST = {"majority": 2, "hmm": 3, "gru": 3, "stack": 4, "mil": 4, "auto": 4}
"""Method -> number of what its files hold today, where that is not the first."""


def songs(*, multilabel: bool = False, n: int = 24) -> Songs:
    """Songs that begin with their column and go on in turn, so that their order says more than it.

    Made by arithmetic alone, which no generator of random numbers can change.
    """
    columns = ("reel", "jig", "waltz")
    arrays, labels = [], []
    for i in range(n):
        n_frames = 6 + i % 4
        frames = np.sin(1.7 * np.arange(3 * n_frames).reshape(n_frames, 3) + i)
        time = np.arange(n_frames)
        frames[time, (i + 3 * time // n_frames) % 3] += 1.5
        frames[:, i % 3] += 0.2
        arrays.append(np.round(frames, 3))
        labels.append((columns[i % 3], "jig") if i % 2 and i % 3 == 2 else (columns[i % 3],))
    return Songs.from_arrays(
        arrays,
        columns=columns,
        ids=[f"song {i}" for i in range(n)],
        labels=labels if multilabel else [row[0] for row in labels],
        task="multilabel" if multilabel else "multiclass",
    )


def models() -> dict[str, Aggregator]:
    """Every golden model by the name of its file, fitted anew."""
    made = {}
    for multilabel in (False, True):
        for method in AGGREGATORS:
            name = f"{NEWEST.get(method, 1)}-{method}{'-multilabel' if multilabel else ''}"
            model = make_aggregator(method, **QUICK.get(method, {}))
            made[name] = make_certain(model.fit(songs(multilabel=multilabel)))
    own = make_aggregator("stack", classifier=GaussianNB(), n_parts=1, n_folds=2)
    made["1-stack-own"] = own.fit(songs())
    return made


def answers(model: Aggregator) -> list[list[float]]:
    """Log probabilities of songs, as JSON has them."""
    found: list[list[float]] = model.predict_log_proba(list(songs(n=6))).tolist()
    return found


def main() -> None:
    """Write what is missing."""
    expected = FOLDER / "answers.json"
    known = json.loads(expected.read_text()) if expected.exists() else {}
    for name, model in models().items():
        if name not in known:
            model.save(FOLDER / f"{name}.safetensors")
            known[name] = answers(model)
    expected.write_text(json.dumps(known, indent=1) + "\n")
    for suffix in (".parquet", ".arrow"):
        for name, multilabel in (("1-songs", False), ("1-songs-multilabel", True)):
            if not (FOLDER / f"{name}{suffix}").exists():
                write_cache(songs(multilabel=multilabel), FOLDER / f"{name}{suffix}")


if __name__ == "__main__":
    main()
