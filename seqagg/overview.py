"""What is in a folder of many cache files, told without reading the scores.

Conventions
-----------
As in `seqagg.inspection`, whose `Inspection` this fills as far as ids, labels, groups, splits and
folds go; what only the scores tell is None. One file is read at a time, and of it these columns.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from seqagg.cache_pieces import cache_files, read_columns
from seqagg.cache_table import flattened
from seqagg.inspection import Inspection, Part, order_of_splits, warn_of_labels, warn_of_shared
from seqagg.manifest import Manifest
from seqagg.places import Place, place_of, size_of
from seqagg.progress import counted

_TEXT = ["split", "label", "group", "fold"]


def overview(folder: str | os.PathLike[str], manifest: Manifest) -> Inspection:
    """Count songs, labels and groups of a cache by split, and look for what spoils results.

    Parameters
    ----------
    folder : path-like
        Folder of cache files, or one file; a path or a URL.
    manifest : Manifest
        Its files.

    Returns
    -------
    Inspection
    """
    source = place_of(folder)
    counts = _Counts()
    wrong, note = [], ""
    with counted("inspect", "songs") as advance:
        for file, shard in zip(cache_files(source), manifest.shards, strict=True):
            if size_of(file) != shard.n_bytes:
                wrong.append(f"{file.name} has {size_of(file)} bytes, not {shard.n_bytes}: damaged")
                continue
            note = counts.add(file) or note
            advance(sum(counts.songs.values()), manifest.n_songs)
    columns = tuple(manifest.header["columns"])
    parts, classes = counts.parts(), counts.classes()
    without = tuple(label for label in classes if label not in columns)
    shared = warn_of_shared(counts.groups_of_splits())
    several = shared if len(parts) > 1 else []
    return Inspection(
        n_songs=manifest.n_songs,
        n_frames=manifest.n_frames,
        n_missing=None,
        n_unlabelled=sum(part.n_songs - part.n_labelled for part in parts),
        columns=columns,
        kind=manifest.header["kind"],
        task=manifest.header["task"],
        note=note,
        frames_per_song=None,
        parts=parts,
        classes=classes,
        labels_without_column=without,
        n_groups=counts.n_groups() if counts.has_groups else None,
        n_folds=len(counts.folds) if counts.has_folds else None,
        empty_songs=(),
        sum_to_one=None,
        saturated=None,
        warnings=(*wrong, *several, *warn_of_labels(classes, parts, without)),
    )


class _Counts:
    """Sums over files; a song without a split is of split None."""

    def __init__(self) -> None:
        self.songs: Counter[str | None] = Counter()
        self.labelled: Counter[str | None] = Counter()
        self.ungrouped: Counter[str | None] = Counter()
        self.labels: Counter[tuple[str | None, str]] = Counter()
        self.groups: dict[str | None, Any] = {}  # of each split, Arrow text
        self.folds: set[int] = set()
        self.has_groups = self.has_folds = False

    def add(self, file: Place) -> str:
        """Count a file, and return its note."""
        table, header = read_columns(file, ["song_id", *_TEXT])
        table = table.select([n for n in _TEXT if n in table.column_names] + ["song_id"])
        there = table["split"] if "split" in table.column_names else pa.nulls(len(table))
        for split in there.cast(pa.string()).unique().to_pylist():
            chosen = (
                pc.is_null(there) if split is None else pc.equal(there.cast(pa.string()), split)
            )
            self._add(split, table.filter(pc.fill_null(chosen, False)))
        return str(header["note"])

    def _add(self, split: str | None, table: pa.Table) -> None:
        self.songs[split] += len(table)
        if "label" in table.column_names:
            labels = table["label"]
            self.labelled[split] += len(labels) - labels.null_count
            flat = labels
            if pa.types.is_list(labels.type):
                parts = [flattened(chunk) for chunk in labels.chunks]
                flat = pa.chunked_array(parts, labels.type.value_type)
            for found in flat.drop_null().value_counts():
                self.labels[split, found["values"].as_py()] += found["counts"].as_py()
        if "group" in table.column_names:
            self.has_groups = True
            groups = table["group"].cast(pa.large_string())
            self.ungrouped[split] += groups.null_count
            known = self.groups.get(split, pa.chunked_array([], pa.large_string()))
            both = pa.chunked_array([*known.chunks, *groups.drop_null().chunks], pa.large_string())
            self.groups[split] = pa.chunked_array([both.unique()])
        else:
            self.ungrouped[split] += len(table)
        if "fold" in table.column_names:
            self.has_folds = True
            self.folds |= {fold for fold in table["fold"].unique().to_pylist() if fold is not None}

    def parts(self) -> tuple[Part, ...]:
        return tuple(
            Part(
                name=name,
                n_songs=self.songs[name],
                n_labelled=self.labelled[name],
                n_groups=self.ungrouped[name] + len(self.groups.get(name, [])),
                n_frames=None,
                n_missing=None,
                frame_accuracy=None,
                frame_accuracy_error=None,
            )
            for name in order_of_splits(self.songs)
        )

    def classes(self) -> dict[str, tuple[int, ...]]:
        splits = order_of_splits(self.songs)
        names = sorted({label for _, label in self.labels})
        return {label: tuple(self.labels[s, label] for s in splits) for label in names}

    def groups_of_splits(self) -> dict[str, set[str]]:
        splits = [name for name in order_of_splits(self.groups) if name is not None]
        return {name: set(self.groups[name].to_pylist()) for name in splits}

    def n_groups(self) -> int:
        chunks = [chunk for found in self.groups.values() for chunk in found.chunks]
        known = pa.chunked_array(chunks, pa.large_string())
        return len(known.unique()) + sum(self.ungrouped.values())
