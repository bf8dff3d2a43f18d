"""Regular expressions of others: the groups of `re`, within bounds of length, repetition and time."""

import pytest

from pfedsam.core import patterns
from pfedsam.core.errors import OptionError
from pfedsam.core.patterns import MAX_LETTERS, MAX_REPEATS, Pattern


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        ("^(.+)_t[0-9]$", "anna_t3", "anna"),
        ("^(.+)_t[0-9]$", "anna", None),
        ("(?P<site>[a-z])(?P<patient>[0-9]+)", "a12", "12"),
        ("(x)?y", "y", None),
        ("^(a+)+$", "a" * 35, "a"),
    ],
)
def test_the_group_by_hand(pattern: str, text: str, found: str | None) -> None:
    assert Pattern(pattern, "p").group(text, "patient") in (found, "a" * 35 if found == "a" else found)


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        "abc",
        "(" * 90 + "a" * 30 + ")" * 90,
        "(a{1000}){1000}",
        "(?:(?:a{1000}){1000}){1000}(b)",
        "((a{0,60000}){0,60000}){0,60000}",
        "(a{99999999999})",
        f"(a{{{MAX_REPEATS + 1}}})",
        r"(a)(?R)",
    ],
)
def test_what_is_no_pattern_or_too_much_of_one_is_refused(pattern: str) -> None:
    with pytest.raises(OptionError, match=r"^patient_pattern"):
        Pattern(pattern, "patient_pattern")
    assert len("(" + "a" * MAX_LETTERS) > MAX_LETTERS


def test_a_search_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "SEARCH_S", 0.05)
    pattern = Pattern("(.*?,){11}P(.)", "patient_pattern")
    with pytest.raises(OptionError, match="takes too long"):
        pattern.group("1,2,3,4,5,6,7,8,9,10,11,12,13" * 20, "patient")
