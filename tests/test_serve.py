"""The service of `experiments.serve`, asked as a web server would ask it."""

from __future__ import annotations

import asyncio
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

import seqagg
from tests.conftest import COLUMNS, frames_of, mixed_songs

SONGS = mixed_songs(30)


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    seqagg.MeanLogOdds().fit(SONGS).save(tmp_path / "m.safetensors")
    monkeypatch.setenv("SEQAGG_MODEL", str(tmp_path / "m.safetensors"))
    from experiments import serve

    return importlib.reload(serve)


def ask(service: Any, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Status and JSON of an answer."""
    said: list[dict[str, Any]] = []
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [(b"content-type", b"application/json")],
        "client": ("test", 1),
        "server": ("test", 80),
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    asyncio.run(service.app(scope, receive, send))
    return said[0]["status"], json.loads(b"".join(m.get("body", b"") for m in said[1:]))


def test_songs_are_answered_as_by_the_model(service: Any) -> None:
    songs = [array.tolist() for array in frames_of(SONGS)[:4]]
    songs[0].append([None, 1.0, 2.0])
    status, found = ask(service, "POST", "/predict", songs)
    assert status == 200
    assert [list(row) for row in found] == [list(COLUMNS)] * 4
    expected = seqagg.MeanLogOdds().fit(SONGS).predict_proba(SONGS[:4])
    assert_allclose([list(row.values()) for row in found], expected, rtol=1e-12)


def test_songs_that_play(service: Any) -> None:
    frames = frames_of(SONGS)[0]
    for piece in (frames[:2], frames[2:]):
        status, found = ask(service, "POST", "/streams/a", piece.tolist())
        assert status == 200
        ask(service, "POST", "/streams/b", np.zeros((2, 3)).tolist())
    expected = seqagg.MeanLogOdds().fit(SONGS).predict_proba([frames])[0]
    assert_allclose(list(found.values()), expected, rtol=1e-12)
    assert ask(service, "DELETE", "/streams/a") == (200, None)
    assert list(service.streams) == ["b"]


def test_what_cannot_be_used_is_refused(service: Any) -> None:
    for path, body, words in (
        ("/predict", [[[1.0, 2.0]]], "songs have 2 columns, not 3"),
        ("/predict", [[]], "expected arrays of shape"),
        ("/predict", "x", ""),
        ("/predict", [[[1.0, 2.0, 3.0], [1.0]]], "song '0': frames are no table of numbers"),
        ("/streams/a", [[1.0, 2.0]], "songs have 2 columns, not 3"),
        ("/streams/a", [[1.0, 2.0, 3.0], [1.0]], "frames are no table of numbers"),
    ):
        status, found = ask(service, "POST", path, body)
        assert status == 422
        assert words in str(found["detail"])
    assert not service.streams  # a stream begins with frames that could be used
