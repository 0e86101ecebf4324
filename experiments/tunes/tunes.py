"""The dance tunes of two books in music21's corpus -> ids, titles, genres, groups and notes.

Conventions
-----------
Only the ABC files that music21 ships are used, not its parser, which would take minutes for
what `notation` reads in seconds. A tune's genre is its `R:` field, folded to `GENRES`; tunes of
other kinds (marches, flings, waltzes) and tunes without the field are left out. Notes are
`(onset, duration, pitch)` in quarter notes and MIDI numbers.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain, pairwise
from pathlib import Path

from experiments.tunes.notation import read_header, read_notes

Note = tuple[float, float, int]

GENRES = ["air", "clog", "hornpipe", "jig", "reel", "slip jig", "strathspey"]
FOLDED = {genre: genre for genre in GENRES} | {
    "slipjig": "slip jig",
    "double jig": "jig",
    "single jig": "jig",
}
BOOKS = {"oneill": "oneills1850", "ryan": "ryansMammoth"}  # prefix of the id: folder in the corpus
PHRASE = 8  # notes; the length of the melodic fragments that are compared
SHARED_PHRASES = 0.5  # of the shorter tune's fragments: from here on two tunes are one


@dataclass(frozen=True)
class Tune:
    """One printed tune.

    Attributes
    ----------
    song_id : str
        The book and the tune's number in it (`oneill-0732`; a second transcription of the same
        number is `oneill-0732b`); Ryan's are numbered by file name, since few give their number.
    title : str
        As transcribed.
    genre : str
        One of `GENRES`.
    group : str
        The normalised title of the first tune in a set of near-duplicates.
    notes : list of (onset, duration, pitch)
        As played, repeats included.
    """

    song_id: str
    title: str
    genre: str
    group: str
    notes: list[Note]


def find_corpus() -> Path:
    """Where music21 keeps its corpus, found without the seconds that importing it takes."""
    spec = find_spec("music21")
    if spec is None or spec.origin is None:
        raise SystemExit("music21 is not installed; it brings the tunes: pip install music21")
    return Path(spec.origin).parent / "corpus"


def read_tunes(corpus: Path, per_genre: int | None = None) -> list[Tune]:
    """Read the tunes of the seven genres, all or the first few of each, by book and number."""
    found = []
    count: Counter[str] = Counter()
    for song_id, text in _numbered(corpus):
        header = read_header(text)
        genre = FOLDED.get(" ".join(header.get("R", [""])[0].lower().split()))
        if genre is None or count[genre] == per_genre:
            continue
        notes = read_notes(text)
        if notes:
            count[genre] += 1
            found.append((song_id, header.get("T", [song_id]), genre, notes))
    groups = group_duplicates(
        [titles for _, titles, _, _ in found],
        [phrases(notes) for _, _, _, notes in found],
        [song_id.rstrip("abcdef") for song_id, _, _, _ in found],
    )
    return [
        Tune(song_id, titles[0], genre, group, notes)
        for (song_id, titles, genre, notes), group in zip(found, groups, strict=True)
    ]


def normal_titles(title: str) -> list[str]:
    """Reduce a title to what stays the same in another book; `X, or Y` is two titles.

    Examples
    --------
    >>> normal_titles("Flowers of Edinburgh, The -- Reel")
    ['flowers of edinburgh']
    >>> normal_titles("Haste to the Wedding or Carrick Fergus")
    ['haste to the wedding', 'carrick fergus']
    """
    ascii_title = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    plain = re.sub(r"\([^)]*\)|\s--.*|['.\"]", "", ascii_title)
    kinds = "|".join([*GENRES, "fling", "march", "waltz"])
    names = []
    for part in re.split(r",?\s+or,?\s+", plain):
        words = " ".join(re.sub(r"[^a-z0-9]+", " ", part).split())
        words = re.sub(r"^(the|a)\s+|\s+(the|a)$", "", words)
        words = re.sub(rf"(?<=\w)\s+({kinds})$", "", words)
        if words:
            names.append(words)
    return names or [title]


def phrases(notes: list[Note]) -> frozenset[tuple[int, ...]]:
    """Melodic fragments of a tune: runs of `PHRASE` intervals, so that keys do not matter."""
    melody = [pitch for _, _, pitch in notes]
    steps = [after - before for before, after in pairwise(melody)]
    return frozenset(
        tuple(steps[start : start + PHRASE]) for start in range(len(steps) - PHRASE + 1)
    )


def group_duplicates(
    titles: list[list[str]],
    fragments: list[frozenset[tuple[int, ...]]],
    numbers: list[str],
) -> list[str]:
    """Name the set of near-duplicates that each tune belongs to.

    Two tunes are near-duplicates if they share a title or a number, or half of the melodic
    fragments of the shorter one; and so on along chains of such pairs.

    Parameters
    ----------
    titles : list of n_tunes lists of str
        All titles of each tune, as transcribed.
    fragments : list of n_tunes sets
        What `phrases` returns.
    numbers : list of n_tunes str
        The same for transcriptions of the same printed tune.

    Returns
    -------
    list of n_tunes str
        The first normalised title of the first tune in the set.
    """
    names = [list(chain.from_iterable(map(normal_titles, own))) for own in titles]
    parent = list(range(len(titles)))

    def root(tune: int) -> int:
        while parent[tune] != tune:
            tune = parent[tune]
        return tune

    pairs = [*_sharing(names), *_sharing([[number] for number in numbers])]
    for one, other in [*pairs, *_alike(fragments)]:
        first, second = sorted((root(one), root(other)))
        parent[second] = first
    return [names[root(tune)][0] for tune in range(len(titles))]


def _numbered(corpus: Path) -> Iterator[tuple[str, str]]:
    """Yield each tune's id and ABC text."""
    for book, folder in BOOKS.items():
        seen: Counter[str] = Counter()
        tunes = _texts(corpus / folder)
        for place, (number, text) in enumerate(tunes, start=1):
            song_id = f"{book}-{number if book == 'oneill' else place:04d}"
            again = "abcdef"[seen[song_id]] if seen[song_id] else ""
            seen[song_id] += 1
            yield song_id + again, text


def _texts(folder: Path) -> Iterator[tuple[int, str]]:
    for path in sorted(folder.glob("*.abc")):
        for text in re.split(r"(?m)^(?=X:)", path.read_text(encoding="utf-8"))[1:]:
            number = re.match(r"X:\s*(\d+)", text)
            yield int(number[1]) if number else 0, text


def _sharing(keys: list[list[str]]) -> Iterator[tuple[int, int]]:
    first: dict[str, int] = {}
    for tune, own in enumerate(keys):
        for key in own:
            yield first.setdefault(key, tune), tune


def _alike(fragments: list[frozenset[tuple[int, ...]]]) -> Iterator[tuple[int, int]]:
    holders: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for tune, own in enumerate(fragments):
        shared = Counter(chain.from_iterable(holders[fragment] for fragment in own))
        for other, count in sorted(shared.items()):
            if count >= SHARED_PHRASES * min(len(own), len(fragments[other])):
                yield other, tune
        for fragment in own:
            holders[fragment].append(tune)
