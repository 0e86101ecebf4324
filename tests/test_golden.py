"""Files of the past are read as when they were made; `tests.make_golden` made them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from numpy.testing import assert_allclose

import seqagg
from seqagg.aggregators import AGGREGATORS
from tests.conftest import assert_same_songs
from tests.make_golden import FOLDER, NEWEST, answers, songs

EXPECTED = json.loads((FOLDER / "answers.json").read_text())


# What skops keeps is scikit-learn's own, whose other versions say that they are not that one.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.InconsistentVersionWarning")
@pytest.mark.parametrize("name", EXPECTED)
def test_an_old_model_answers_as_it_did(name: str) -> None:
    model = seqagg.load(FOLDER / f"{name}.safetensors")
    # Other processors round float32 otherwise.
    assert_allclose(answers(model), EXPECTED[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("multilabel", [False, True])
def test_an_old_cache_holds_what_it_held(suffix: str, multilabel: bool) -> None:
    name = f"1-songs{'-multilabel' if multilabel else ''}{suffix}"
    assert_same_songs(seqagg.read_cache(FOLDER / name), songs(multilabel=multilabel))


def test_every_method_and_no_other_file_is_there() -> None:
    names = {
        f"{number}-{method}{task}"
        for method in AGGREGATORS
        for number in range(1, NEWEST.get(method, 1) + 1)
        for task in ("", "-multilabel")
    }
    assert names <= set(EXPECTED), "python -m tests.make_golden writes what is missing"
    models = {Path(path).stem for path in FOLDER.glob("*.safetensors")}
    assert models == set(EXPECTED)
    assert max(path.stat().st_size for path in FOLDER.glob("[0-9]*")) < 20_000
