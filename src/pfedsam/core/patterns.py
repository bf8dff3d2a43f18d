"""Regular expressions from an untrusted source: a study's configuration contains one for the file names of a site.

With Python's own `re` the time of a search can double with every character. Here `re` only checks the syntax; the number of repetitions is
limited, so that the compiled expression stays small, and the search is done by `regex`, which stops at a time limit.
"""

import math
import re
from typing import Final

import regex

from pfedsam.core.errors import OptionError

MAX_LETTERS: Final = 200
MAX_REPEATS: Final = 1000
SEARCH_S: Final = 0.5
_REPEAT: Final = re.compile(r"\{(\d+)?,?(\d+)?\}")


class Pattern:
    """A checked regular expression with at least one group."""

    def __init__(self, text: str, option: str) -> None:
        """Check and compile an expression.

        Args:
            text: the expression.
            option: the name of the option that contains it, for error messages.

        Raises:
            OptionError: the text is not a regular expression, is too long, has too many repetitions, or has no group.
        """
        self._text, self._option = text, option
        if len(text) > MAX_LETTERS:
            raise OptionError(f"{option} has {len(text)} characters; at most {MAX_LETTERS} are allowed.")
        repeats = math.prod(max(1, int(high or low or 1)) for low, high in _REPEAT.findall(text))
        if repeats > MAX_REPEATS:
            raise OptionError(
                f"{option} {text!r} repeats its parts up to {repeats} times; at most {MAX_REPEATS} repetitions are allowed."
            )
        try:
            checked = re.compile(text)
            self._compiled = regex.compile(text)
        except (re.error, regex.error, RecursionError, OverflowError) as error:
            raise OptionError(f"{option} {text!r} is not a regular expression: {error}") from error
        if not checked.groups:
            raise OptionError(f"{option} {text!r} has no group; put the patient's part in brackets: '^(.+)_t[0-9]$'")
        self._names = frozenset(checked.groupindex)

    def group(self, text: str, preferred: str) -> str | None:
        """The text matched by the group `preferred`, or by the first group if there is none of that name; None without a match.

        Raises:
            OptionError: the search takes too long.
        """
        try:
            found = self._compiled.search(text, timeout=SEARCH_S)
        except TimeoutError as error:
            raise OptionError(
                f"{self._option} {self._text!r} takes too long on a name of {len(text)} characters: repeated parts within repeated parts, "
                "such as (a+)+, can be matched in too many ways. Write it without them."
            ) from error
        value: str | None = None if found is None else found[preferred if preferred in self._names else 1]
        return value
