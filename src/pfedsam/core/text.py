"""Parts of sentences for messages."""

import re
from collections.abc import Sequence
from typing import Final

SHOWN: Final = 3
"""Number of cases or files that a message names."""
_FORMULA: Final = re.compile(r"'*[=+\-@\t\r\n]")
"""The beginnings of cells that spreadsheets take for a formula (OWASP, CSV injection), also those that a quote was put before."""


def some_of(words: Sequence[object], most: int) -> str:
    """The first `most` words with commas, and how many more there are: `a, b and 3 more`."""
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(map(str, words[:most])) + more


def name_cases(cases: Sequence[str]) -> str:
    """`case 'a'`, `2 cases 'a', 'b'`, or `300 cases such as 'a', 'b', 'c'`."""
    if len(cases) == 1:
        return f"case {cases[0]!r}"
    such_as = "such as " if len(cases) > SHOWN else ""
    return f"{len(cases)} cases {such_as}{', '.join(map(repr, cases[:SHOWN]))}"


def percent(share: float) -> str:
    """A share with two digits, such as `3.2 %`."""
    return f"{100 * share:.2g} %"


def as_cell(text: str) -> str:
    """The text for a cell of a CSV file: with a quote before it if a spreadsheet would take it for a formula (see `from_cell`).

    >>> as_cell("=1+1"), as_cell("case 1")
    ("'=1+1", 'case 1')
    """
    return f"'{text}" if _FORMULA.match(text) else text


def from_cell(cell: str) -> str:
    """The text that `as_cell` wrote."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def is_text(name: str) -> bool:
    """Whether a file's name is UTF-8 and can be written to a text file; Python reads other bytes as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def short_repr(value: object, most: int = 60) -> str:
    """The value as Python writes it, cut to `most` characters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."
