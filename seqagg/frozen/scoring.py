"""Named frames through a frozen classifier, into memory or into a cache."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from seqagg.errors import CacheError, ParameterError
from seqagg.frozen.checks import Scorer
from seqagg.frozen.models import frame_model
from seqagg.frozen.named import Block, NamedFrames
from seqagg.frozen.store import Memory, Store
from seqagg.logodds import Kind, Task
from seqagg.progress import counted
from seqagg.songs import Songs

_COMPARED = 64
"""Frames that a run which goes on scores again."""


def score_songs(
    model: Any,
    frames: Any,
    song_ids: Any = None,
    *,
    kind: Kind,
    columns: Sequence[str] | None = None,
    task: Task = "multiclass",
    labels: Any = None,
    groups: Any = None,
    split: Any = None,
    note: str = "",
    batch_size: int = 1024,
    check: bool = True,
) -> Songs:
    """Score frames by a frozen classifier, each song under its name.

    Parameters
    ----------
    model : Keras model, torch.nn.Module, scikit-learn estimator, path of an ONNX file, callable
        Gives scores of shape (n_frames, n_columns) for frames of shape (n_frames, ...). It is
        asked, not trained: dropout is off. Of an estimator `predict_proba` is asked for
        probabilities, `decision_function` for other kinds.
    frames : mapping, iterable of pairs, data frame or array
        A mapping from song to frames of shape (n_frames, ...), which may load them as they are
        asked for; pairs (song, frames), a song's frames in one piece or in several among those of
        other songs; a data frame with a row per frame; or an array of shape (n_frames, ...).
        Frames of a song stand in time order. A frame of nothing but NaN is missing.
    song_ids : array-like of shape (n_frames,), or str, optional
        Song of each frame of an array, or the column of a data frame with the songs; all other
        columns of it are features then.
    kind : {"probability", "logit", "log_odds"}
        What the scores are: ``logit`` is what goes into a softmax (multiclass) or a logistic
        function (multilabel).
    columns : sequence of str, optional
        Names of the model's outputs; those of an estimator are its classes.
    task : {"multiclass", "multilabel"}
        Whether a song has one label or several.
    labels, groups, split : mapping, array-like of shape (n_frames,) or str, optional
        As `Songs` has them: by song, or by frame beside an array, or a column of the data frame.
        A mapping must have every song; None stands for what is unknown.
    note : str
        Free text, kept in the cache.
    batch_size : int
        Frames that the model gets at a time, of as many songs as it takes.
    check : bool
        Score some of the first frames twice, alone and in another order, and refuse a model whose
        scores of a frame depend on chance or on other frames; refuse scores of which all may be
        probabilities but are declared to be something else.

    Returns
    -------
    Songs
        In the order in which songs first came.

    Raises
    ------
    SongError
        Names the song whose frames or scores cannot be used.
    ParameterError
        For a model whose scores are not what was declared.

    Warns
    -----
    UserWarning
        If some frames' probabilities sum to one, and others' do not.

    Examples
    --------
    >>> import numpy as np
    >>> frames = {"a": [[0.1], [0.9]], "b": [[0.3]]}
    >>> songs = score_songs(
    ...     lambda x: np.hstack([x, 1 - x]), frames, columns=["jig", "reel"], kind="probability"
    ... )
    >>> songs
    <Songs: 2 songs, 3 frames, 2 columns of probability, columns=['jig', 'reel']>
    """
    fields = {"labels": labels, "groups": groups, "split": split}
    scorer, source = _prepared(model, frames, song_ids, kind, columns, task, fields, check)
    return score_named(scorer, source, batch_size).replace(note=note)


def score_to_cache(
    model: Any,
    frames: Any,
    path: str | os.PathLike[str],
    song_ids: Any = None,
    *,
    kind: Kind,
    columns: Sequence[str] | None = None,
    task: Task = "multiclass",
    labels: Any = None,
    groups: Any = None,
    split: Any = None,
    note: str = "",
    batch_size: int = 1024,
    check: bool = True,
) -> None:
    """Score frames that do not fit into memory, by a frozen classifier, into a cache.

    What is scored is kept beside the cache, in ``PATH.partial``, every half minute. Called again
    after it was killed, with the same frames, it goes on from there: frames that come again are
    not scored again, and of a mapping they are not even loaded. The first song that is there
    already is scored again, to see that model and frames are the same as before.

    Parameters
    ----------
    path : path-like
        The cache, ``.parquet`` or ``.arrow``. It appears when it is complete.
    model, frames, song_ids, kind, columns, task, labels, groups, split, note, batch_size, check
        As in `score_songs`.

    Raises
    ------
    CacheError
        If what an earlier run has left is of another model or of other frames, or another process
        is writing this cache.
    SongError, ParameterError
        As in `score_songs`.
    """
    fields = {"labels": labels, "groups": groups, "split": split}
    scorer, source = _prepared(model, frames, song_ids, kind, columns, task, fields, check)
    with Store(path, source.names, scorer.header) as sink:
        blocks = _unscored(source.blocks(sink.skips), scorer, sink)
        _score(blocks, scorer, sink, batch_size, source.n_frames)
        scorer.finish()
        sink.finish(_fields(source, scorer), note)


def score_named(scorer: Scorer, source: NamedFrames, batch_size: int) -> Songs:
    """Songs of frames that know their song, with all that the source knows of them."""
    sink = Memory(source.names)
    _score(source.blocks(), scorer, sink, batch_size, source.n_frames)
    scorer.finish()
    return sink.songs(whole=True, **scorer.header, **_fields(source, scorer))


def _prepared(
    model: Any,
    frames: Any,
    song_ids: Any,
    kind: Kind,
    columns: Sequence[str] | None,
    task: Task,
    fields: dict[str, Any],
    check: bool,
) -> tuple[Scorer, NamedFrames]:
    asked = frame_model(model, kind, columns)
    source = NamedFrames(frames, song_ids, fields=fields, features=asked.features)
    if asked.features and hasattr(frames, "__arrow_c_stream__"):
        asked = asked.by_name()
    return Scorer(asked, kind, task, check), source


def _fields(source: NamedFrames, scorer: Scorer) -> dict[str, Any]:
    return {
        "labels": source.labels(scorer.header["task"], scorer.columns),
        "groups": source.field("groups"),
        "split": source.field("split"),
    }


def _score(
    blocks: Iterable[Block],
    scorer: Scorer,
    sink: Memory | Store,
    batch_size: int,
    n_frames: int | None,
) -> None:
    """Score all frames, a batch at a time."""
    if batch_size < 1:
        raise ParameterError(f"batch_size={batch_size} must be 1 or more")
    with counted("scoring", "frames") as report:
        done = 0
        for batch in _batches(blocks, batch_size, sink):
            sink.add(batch, scorer(batch))
            done += len(batch)
            report(done, n_frames)


def _batches(blocks: Iterable[Block], size: int, sink: Memory | Store) -> Iterator[Block]:
    """Frames of one block after the other, so many at a time.

    Where the sink wants to write, it is after a block's last frame: what it has of a mapping are
    whole songs.
    """
    waiting: list[Block] = []
    n = 0
    for block in blocks:
        first = 0
        while first < len(block):
            waiting.append(block[first : first + size - n])
            n += len(waiting[-1])
            first += len(waiting[-1])
            if n == size:
                yield Block.join(waiting)
                waiting, n = [], 0
        if sink.due:
            if waiting:
                yield Block.join(waiting)
                waiting, n = [], 0
            sink.flush()
    if waiting:
        yield Block.join(waiting)


def _unscored(blocks: Iterable[Block], scorer: Scorer, store: Store) -> Iterator[Block]:
    """Leave out what an earlier run has scored, once it is seen to be the same."""
    for block in blocks:
        new = store.missing(block)
        if not store.trusted and not new.all():
            old = block[~new]
            song = old.song(0)
            few = old[old.codes == old.codes[0]][:_COMPARED]
            if not scorer.agrees(few, store.stored(song)[few.ranks]):
                raise CacheError(
                    "holds other scores of its frames: model or frames are not those of the run "
                    "that was stopped; remove the folder to start anew",
                    file=store.folder,
                    song=song,
                )
            store.trusted = True
        yield block if new.all() else block[new]
