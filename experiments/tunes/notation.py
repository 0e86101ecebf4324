"""ABC text of one tune -> notes as they are played.

Conventions
-----------
Times are in quarter notes from the start of the tune, pitches are MIDI numbers (`C` in ABC is
middle C, 60). Repeats are played out, with their first and second endings; `D.C.` and `segno`
are not followed, and grace notes are left out. A chord is several notes with one onset.

The standard followed is abc 2.1 [1]_, read leniently: these transcriptions are older than it.

References
----------
.. [1] Chris Walshaw, "The abc music standard 2.1", 2011, https://abcnotation.com/wiki/abc:standard:v2.1
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction

PITCHES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
ORDER_OF_SHARPS = "FCGDAEB"
SHARPS_OF_MAJOR = {"C": 0, "G": 1, "D": 2, "A": 3, "E": 4, "B": 5, "F": -1}
SHARPS_OF_MODE = {"maj": 0, "ion": 0, "mix": -1, "dor": -2, "m": -3, "min": -3, "aeo": -3} | {
    "phr": -4,
    "loc": -5,
    "lyd": 1,
}
LONGEST_TUNE = Fraction(1000)  # quarter notes; stops a misread repeat from playing for ever

NOTE = r"(?:[_^=]*[A-Ga-g][,']*|[zx])\d*/*\d*"
FIELD = re.compile(r"([A-Za-z]):(?![|:])(.*)")
TOKEN = re.compile(
    rf"""
    "[^"]*" | ![^!\s]{{1,8}}! | \{{[^}}]*\}}                  # words, ornaments, grace notes
    | \[(?P<inline>[A-Za-z]:[^\]]*)\]
    | \[(?P<chord>(?:{NOTE})+)\](?P<chord_length>\d*/*\d*)
    | (?P<bar>\[\|[|\]:]* | :*\|[|\]:]* | ::+ | :\])(?P<bar_ending>\d*)
    | \[(?P<ending>\d)
    | \((?P<tuplet>\d)(?::(?P<in_time_of>\d*))?(?::(?P<over>\d*))?
    | (?P<note>{NOTE})
    | (?P<broken>[<>]+)
    | (?P<tie>-)
    """,
    re.VERBOSE,
)
SINGLE = re.compile(r"(?P<accidental>[_^=]*)(?P<letter>[A-Ga-gzx])(?P<octave>[,']*)(?P<length>.*)")
LENGTH = re.compile(r"(\d*)(/*)(\d*)")


@dataclass(frozen=True)
class Event:
    """What sounds from one onset on; a rest has no pitches."""

    duration: Fraction
    pitches: tuple[int, ...]
    tied: bool = False


@dataclass
class Bar:
    """Events up to a bar line, and how the repeats pass through it."""

    events: list[Event] = field(default_factory=list)
    ending: int = 0  # 1 or 2 under such a bracket, else 0
    opens: bool = False  # stands after `|:`
    follows_double: bool = False  # stands after `||`, where a repeat without `|:` goes back to
    closes: bool = False  # stands before `:|`


def read_header(text: str) -> dict[str, list[str]]:
    """Collect the header fields of a tune, up to and with `K:`, each with all its values."""
    fields: dict[str, list[str]] = {}
    for line in text.splitlines():
        match = FIELD.match(_without_comment(line))
        if match:
            fields.setdefault(match[1], []).append(match[2].strip())
            if match[1] == "K":
                break
    return fields


def read_notes(text: str) -> list[tuple[float, float, int]]:
    """Play a tune.

    Parameters
    ----------
    text : str
        The tune's ABC, from its `X:` on.

    Returns
    -------
    list of (onset, duration, pitch)
        In order of onset, in quarter notes and MIDI numbers.
    """
    parser = _Parser(read_header(text))
    in_body = False
    for raw in text.splitlines():
        line = _without_comment(raw)
        match = FIELD.match(line)
        if not in_body:
            in_body = bool(match) and line.startswith("K:")
        elif match:
            parser.change(match[1], match[2])
        else:
            parser.read(line)
    return _sound(play_order(parser.bars))


def play_order(bars: list[Bar]) -> list[Bar]:
    """Unfold the repeats: the bars in the order in which they are played."""
    played: list[Bar] = []
    here, back_to, second_time, in_repeat = 0, 0, False, False
    while here < len(bars):
        bar = bars[here]
        after_ending = here > 0 and bars[here - 1].ending > 1 and bar.ending == 0
        starts_section = bar.opens or after_ending or (bar.follows_double and not in_repeat)
        if starts_section and here != back_to:
            back_to, second_time = here, False
        in_repeat = bar.opens or (in_repeat and not after_ending)
        if bar.ending and bar.ending != 1 + second_time:
            here += 1
            continue
        played.append(bar)
        here += 1
        if bar.closes:
            if second_time:
                back_to, second_time, in_repeat = here, False, False
            else:
                here, second_time = back_to, True
    return played


def _without_comment(line: str) -> str:
    return line.split("%", 1)[0].strip()


def _sound(bars: list[Bar]) -> list[tuple[float, float, int]]:
    notes: list[tuple[float, float, int]] = []
    now = Fraction(0)
    held: dict[int, int] = {}  # pitch -> index of the note that a tie prolongs
    for event in (event for bar in bars for event in bar.events):
        still_held: dict[int, int] = {}
        for pitch in event.pitches:
            if pitch in held:
                index = held[pitch]
                onset, duration, _ = notes[index]
                notes[index] = (onset, round(duration + float(event.duration), 6), pitch)
            else:
                index = len(notes)
                notes.append((round(float(now), 6), round(float(event.duration), 6), pitch))
            if event.tied:
                still_held[pitch] = index
        held = still_held
        now += event.duration
        if now > LONGEST_TUNE:
            break
    return notes


class _Parser:
    """Reads the lines of a tune's body into bars, keeping what one note hands to the next."""

    def __init__(self, header: dict[str, list[str]]) -> None:
        self.bars = [Bar()]
        self.unit = Fraction(1, 2)  # length of a plain `A`, in quarter notes
        self.compound = False
        self.key: dict[str, int] = {}
        self.accidentals: dict[str, int] = {}  # letter -> semitones, until the bar ends
        self.stretch = Fraction(1)  # what a broken rhythm leaves for the note after it
        self.tuplet = (Fraction(1), 0)  # factor, notes left
        for name in "MLK":
            for value in header.get(name, [])[:1]:
                self.change(name, value)

    def change(self, name: str, value: str) -> None:
        """Take over a meter, unit length or key given in the header, on a line or in brackets."""
        if name == "M":
            self._set_meter(value)
        elif name == "L":
            match = re.match(r"\s*(\d+)\s*/\s*(\d+)", value)
            if match:
                self.unit = 4 * Fraction(int(match[1]), int(match[2]))
        elif name == "K":
            self.key = _key_signature(value)

    def read(self, line: str) -> None:
        """Add the notes and bar lines of one line of music."""
        for token in TOKEN.finditer(line):
            kind = token.lastgroup
            if token["inline"]:
                self.change(token["inline"][0], token["inline"][2:])
            elif token["chord"]:
                self._add_chord(token["chord"], token["chord_length"])
            elif token["note"]:
                self._add_chord(token["note"], "")
            elif token["bar"]:
                self._end_bar(token["bar"], int(token["bar_ending"][:1] or 0))
            elif token["ending"]:
                self._open_ending(int(token["ending"]))
            elif token["tuplet"]:
                self._begin_tuplet(int(token["tuplet"]), token["in_time_of"], token["over"])
            elif token["broken"]:
                self._break_rhythm(token["broken"])
            elif kind == "tie":
                self._tie()

    def _set_meter(self, value: str) -> None:
        match = re.match(r"\s*(\d+)\s*/\s*(\d+)", value)
        if match:
            beats, unit = int(match[1]), int(match[2])
            self.compound = unit == 8 and beats % 3 == 0
            self.unit = Fraction(1, 4) if Fraction(beats, unit) < Fraction(3, 4) else Fraction(1, 2)

    def _add_chord(self, text: str, length: str) -> None:
        singles = [SINGLE.match(single) for single in re.findall(NOTE, text)]
        notes = [single for single in singles if single is not None]
        factor, left = self.tuplet
        duration = self.unit * _length(notes[0]["length"]) * _length(length) * self.stretch
        if left:
            duration *= factor
            self.tuplet = (factor, left - 1)
        self.stretch = Fraction(1)
        pitches = [self._pitch(note) for note in notes if note["letter"] not in "zx"]
        self.bars[-1].events.append(Event(duration, tuple(sorted(set(pitches)))))

    def _pitch(self, note: re.Match[str]) -> int:
        letter = note["letter"].upper()
        if note["accidental"]:
            self.accidentals[letter] = note["accidental"].count("^") - note["accidental"].count("_")
        shift = self.accidentals.get(letter, self.key.get(letter, 0))
        octave = note["octave"].count("'") - note["octave"].count(",") + note["letter"].islower()
        return 60 + PITCHES[letter] + shift + 12 * octave

    def _end_bar(self, line: str, ending: int) -> None:
        last = self.bars[-1]
        last.closes = line.startswith(":") or line == "|:|"
        double = "||" in line or "|]" in line or line.startswith("[|")
        opens = line.endswith(":") and line != ":"
        self.accidentals = {}
        if not last.events and not last.closes:  # two lines in a row, or one at the start
            last.opens |= opens
            last.follows_double |= double
            last.ending = ending or last.ending
            return
        ends_ending = last.closes or double or opens
        following = Bar(opens=opens, follows_double=double)
        following.ending = ending or (0 if ends_ending else last.ending)
        self.bars.append(following)

    def _open_ending(self, ending: int) -> None:
        if self.bars[-1].events:
            self.bars.append(Bar())
        self.bars[-1].ending = ending

    def _begin_tuplet(self, count: int, in_time_of: str | None, over: str | None) -> None:
        usual = {2: 3, 3: 2, 4: 3, 6: 2, 8: 3}.get(count, 3 if self.compound else 2)
        factor = Fraction(int(in_time_of) if in_time_of else usual, max(count, 1))
        self.tuplet = (factor, int(over) if over else count)

    def _break_rhythm(self, signs: str) -> None:
        events = self.bars[-1].events
        if not events:
            return
        short = Fraction(1, 2 ** len(signs))
        before, after = (2 - short, short) if signs[0] == ">" else (short, 2 - short)
        events[-1] = Event(events[-1].duration * before, events[-1].pitches)
        self.stretch = after

    def _tie(self) -> None:
        events = self.bars[-1].events
        if events:
            events[-1] = Event(events[-1].duration, events[-1].pitches, tied=True)


def _length(text: str) -> Fraction:
    match = LENGTH.match(text)
    if match is None or not match[0]:
        return Fraction(1)
    number, slashes, divisor = match.groups()
    below = int(divisor) if divisor and slashes else 2 ** len(slashes)
    return Fraction(int(number or 1), max(below, 1))


def _key_signature(value: str) -> dict[str, int]:
    match = re.match(r"\s*([A-G])([#b]?)\s*([A-Za-z]*)", value)
    if not match:
        return {}
    mode = match[3].lower()[:3]
    if mode not in SHARPS_OF_MODE:  # `Dmixm` is cut to `mix` above; `M` means major, `m` minor
        mode = "m" if match[3] == "m" else "maj"
    if match[3] == "M":
        mode = "maj"
    accidental = {"#": 7, "b": -7, "": 0}[match[2]]
    sharps = SHARPS_OF_MAJOR[match[1]] + accidental + SHARPS_OF_MODE[mode]
    if sharps >= 0:
        return dict.fromkeys(ORDER_OF_SHARPS[:sharps], 1)
    return dict.fromkeys(ORDER_OF_SHARPS[sharps:], -1)
