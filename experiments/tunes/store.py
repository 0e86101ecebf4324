"""Files of the work directory: each appears whole or not at all, and none can execute code.

Layout, below the directory given with ``--work``:

- ``settings.json``: what the run was asked to do; a directory serves one set of settings;
- ``tunes.json``: a list of songs, each with ``song_id``, ``title``, ``genre``, ``group``,
  ``split`` (``train`` or ``test``), ``fold`` (0 to 4, or -1 for test songs) and ``notes``, a list
  of ``[onset, duration, pitch]`` in quarter notes and MIDI numbers;
- ``spectrograms/<song_id>.npy``: float16, shape (n_steps, 40), the whole song's log-mel
  spectrogram as `spectrogram` describes it; ``spectrogram.cut_frames`` cuts it into the frames
  that were scored;
- ``predictions/fold-<k>.parquet`` and ``predictions/others.parquet``: the frame scores of each
  fold and of the test songs, caches of seqagg.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray


def save_json(path: Path, content: object) -> None:
    """Write JSON that can be compared byte by byte."""
    text = json.dumps(content, indent=None, sort_keys=True, ensure_ascii=False) + "\n"
    _replace(path, lambda file: file.write(text.encode()))


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write one array as ``.npy``."""
    _replace(path, lambda file: np.save(file, array, allow_pickle=False))


def load_json(path: Path) -> Any:
    """Read what `save_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def _replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
