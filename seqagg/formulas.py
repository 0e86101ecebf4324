"""Names that a spreadsheet would run, as text in a CSV file and back.

Conventions
-----------
A cell is a *formula* if it begins with a sign of one (``=``, ``+``, ``-``, ``@``, or those of full
width), be it after blanks or characters that are not seen, or with a tab or an end of line; numbers
with their sign are none. An apostrophe before it makes it text. So that this can be undone to the
letter, a formula that has apostrophes before it gets one more.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

_FORMULA = r"^'*([\t\r\n]|[\s\pZ\pC]*[=+\-@＝＋－＠])"  # noqa: RUF001
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"


def are_formulas(cells: pa.Array) -> pa.Array:
    """Whether a spreadsheet would take them for formulas; null of what is null."""
    return pc.and_not(
        pc.match_substring_regex(cells, _FORMULA), pc.match_substring_regex(cells, _NUMBER)
    )


def escape_formulas(cells: pa.Array) -> pa.Array:
    """Text that no spreadsheet runs."""
    return pc.if_else(are_formulas(cells), pc.binary_join_element_wise("'", cells, ""), cells)


def unescape_formulas(cells: pa.Array) -> pa.Array:
    """What `escape_formulas` was given."""
    rest = pc.utf8_slice_codeunits(cells, start=1)
    escaped = pc.and_(pc.starts_with(cells, "'"), are_formulas(rest))
    return pc.if_else(escaped, rest, cells)
