"""Formatting of numbers for the terminal and the page."""

from typing import Final

MISSING: Final = "\N{EN DASH}"
"""Shown for a value that is undefined or that a method does not have."""


def format_value(value: float | None, digits: int = 3) -> str:
    """A measure with a fixed number of digits, or a dash."""
    return MISSING if value is None else f"{value:.{digits}f}"


def format_gain(value: float | None) -> str:
    """A difference with its sign (a true minus), or a dash."""
    return MISSING if value is None else f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def format_interval(interval: tuple[float, float] | None) -> str:
    """An interval as `0.71 to 0.83`; an empty text for None."""
    return "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}".replace("-", "\N{MINUS SIGN}")


def format_cases(cases: int | None, patients: int | None = None, min_cases: int = 1) -> str:
    """Numbers of cases and patients as `12 (6)`, or `fewer than 10`; the patients are left out if they are not known.

    Args:
        cases: None for a number that is not known, or that was withheld because it is below `min_cases`, and for no other reason.
        patients: None if not known.
        min_cases: smallest number that is not withheld; 1 where none is.
    """
    if cases is None:
        return MISSING if min_cases == 1 else f"fewer than {min_cases}"
    return str(cases) if patients is None else f"{cases} ({patients})"


def format_bytes(value: float) -> str:
    """Bytes in decimal units, as network costs are counted."""
    if value < 1000:
        return f"{value:.0f} B"
    return f"{value / 1e3:.0f} kB" if value < 999_500 else f"{value / 1e6:.2f} MB"


def format_count(number: int, noun: str) -> str:
    """A number with its noun, as `1 round` or `2 rounds`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def format_seconds(value: float | None) -> str:
    """A duration in seconds, minutes or hours; a dash where it was not measured."""
    if value is None:
        return MISSING
    if value < 90:
        return f"{value:.0f} s"
    return f"{value / 60:.1f} min" if value < 5400 else f"{value / 3600:.1f} h"
