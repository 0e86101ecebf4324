"""A few facts and a table: HTML for notebooks, plain text for ``print``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def card(title: str, facts: Iterable[str], tables: Iterable[str] = ()) -> str:
    """HTML of a title, a paragraph for each fact, and tables as `table` makes them."""
    lines = "".join(f"<div>{escape(fact)}</div>" for fact in facts)
    return f"<div><strong>{escape(title)}</strong>{lines}{''.join(tables)}</div>"


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    """HTML of a table whose first column holds text and the others numbers."""
    head = "".join(f'<th scope="col">{escape(header)}</th>' for header in headers)
    body = "".join(
        f'<tr><th scope="row" style="text-align:left">{_with_direction(row[0])}</th>'
        + "".join(f'<td style="text-align:right">{escape(cell)}</td>' for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f"<table><caption>{escape(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def plain_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table whose first column holds text and the others numbers."""
    lines = [headers, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    ]


def _with_direction(text: str) -> str:
    """A name in any script, which must not turn round what stands beside it."""
    return f'<bdi dir="auto">{escape(text)}</bdi>'
