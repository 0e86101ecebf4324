"""How much code is a scoring service? Twenty lines, which is why seqagg brings none.

    pip install seqagg fastapi uvicorn
    SEQAGG_MODEL=hmm.safetensors uvicorn experiments.serve:app

``POST /predict`` takes a list of songs, each a list of frames of log-odds (null where a score is
missing), and gives the probability of every class for each. ``POST /streams/NAME`` takes the next
frames of a song that is still playing, and gives what is to be believed so far; ``DELETE`` says
that it is over. ``/docs`` describes it all. Endpoints take turns, so no stream hears two things at
once; for more than one process, keep `Stream.state` where all of them can reach it.
"""

import os

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

import seqagg
from seqagg.streaming import Stream

Frames = list[list[float | None]]

app = FastAPI(title="seqagg")
model = seqagg.load(os.environ["SEQAGG_MODEL"])
classes = [str(label) for label in model.classes_]
streams: dict[str, Stream] = {}


@app.post("/predict")
async def predict(songs: list[Frames]) -> list[dict[str, float]]:  # noqa: D103
    return [dict(zip(classes, row, strict=True)) for row in model.predict_proba(songs).tolist()]


@app.post("/streams/{name}")
async def hear(name: str, frames: Frames) -> dict[str, float]:  # noqa: D103
    stream = streams.get(name) or model.stream()
    answer = stream.update(frames).tolist()
    streams[name] = stream  # not of frames that were refused
    return dict(zip(classes, answer, strict=True))


@app.delete("/streams/{name}")
async def end(name: str) -> None:  # noqa: D103
    streams.pop(name, None)


@app.exception_handler(seqagg.SeqaggError)
async def refuse(request: Request, error: seqagg.SeqaggError) -> JSONResponse:  # noqa: D103
    return JSONResponse({"detail": str(error)}, status_code=422)
