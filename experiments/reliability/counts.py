"""What became of the inputs of the fuzzing, in a file from which a stopped run goes on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seqagg.files import atomic_write


@dataclass
class Counts:
    """What became of the inputs.

    Attributes
    ----------
    seconds : float
        By the clock, of all runs.
    n_read, n_refused : Counter of str
        By target.
    findings : list of dict
        ``target``, ``input`` (its number), ``what``.
    done : list of [int, int]
        Numbers of the inputs, from the first up to but without the second.
    """

    seconds: float = 0.0
    n_read: Counter[str] = field(default_factory=Counter)
    n_refused: Counter[str] = field(default_factory=Counter)
    findings: list[dict[str, Any]] = field(default_factory=list)
    done: list[list[int]] = field(default_factory=list)

    @staticmethod
    def read(path: Path | None, about: Mapping[str, Any]) -> Counts:
        """What runs like this one have counted so far."""
        if path is None or not path.exists():
            return Counts()
        found = json.loads(path.read_text())
        if found.pop("about") != dict(about):
            raise SystemExit(f"{path} is of another seed, or of other targets")
        read, refused = Counter(found.pop("read")), Counter(found.pop("refused"))
        return Counts(n_read=read, n_refused=refused, **found)

    def write(self, path: Path | None, about: Mapping[str, Any]) -> None:
        """Keep it in a file, if there is one to keep it in."""
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "about": about,
            "seconds": self.seconds,
            "read": self.n_read,
            "refused": self.n_refused,
            "findings": self.findings,
            "done": self.done,
        }
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")

    @property
    def n_inputs(self) -> int:
        """All of them."""
        return self.n_read.total() + self.n_refused.total() + len(self.findings)

    def add(self, found: Mapping[str, Any]) -> None:
        """Add what was counted of a piece: ``piece``, ``read``, ``refused``, ``findings``."""
        self.n_read.update(found["read"])
        self.n_refused.update(found["refused"])
        self.findings += found["findings"]
        self.done = union([*self.done, found["piece"]])

    def piece(self, first: int, end: int) -> dict[str, Any]:
        """All of this as what was counted of a piece."""
        found: dict[str, Any] = {"piece": [first, end], "read": self.n_read}
        return found | {"refused": self.n_refused, "findings": self.findings}

    def forget_findings(self) -> list[int]:
        """Make them inputs that are to be tried, and give their numbers."""
        numbers = sorted({finding["input"] for finding in self.findings})
        self.findings = []
        pieces = []
        for first, end in self.done:
            for number in [n for n in numbers if first <= n < end]:
                pieces.append([first, number])
                first = number + 1
            pieces.append([first, end])
        self.done = union(pieces)
        return numbers

    def told(self) -> dict[str, Any]:
        """What a user should know."""
        return {
            "inputs": self.n_inputs,
            "seconds": round(self.seconds, 1),
            "targets": {
                name: {"read": self.n_read[name], "refused": self.n_refused[name]}
                for name in sorted(self.n_read | self.n_refused)
            },
            "findings": self.findings,
        }

    def words(self) -> str:
        """The same in lines."""
        lines = [
            f"{name:16} {n['read']:9,} read {n['refused']:9,} refused"
            for name, n in self.told()["targets"].items()
        ]
        lines += [f"{f['target']}, input {f['input']}: {f['what']}" for f in self.findings]
        rate = self.n_inputs / max(self.seconds, 1e-9)
        lines.append(
            f"{self.n_inputs:,} inputs, {rate:,.0f} a second, {len(self.findings)} findings"
        )
        return "\n".join(lines)


def union(pieces: Iterable[list[int]]) -> list[list[int]]:
    """Pieces in order, those that touch made one, those that are empty left out."""
    found: list[list[int]] = []
    for first, end in sorted(pieces):
        if found and first <= found[-1][1]:
            found[-1][1] = max(end, found[-1][1])
        elif first < end:
            found.append([first, end])
    return found


def left(done: Iterable[list[int]], first: int, end: int, size: int) -> Iterator[range]:
    """What of a range is not done, in pieces of that size at most."""
    for begin, until in [*done, [end, end]]:
        while first < min(begin, end):
            yield range(first, min(first + size, begin, end))
            first = min(first + size, begin)
        first = max(first, until)
