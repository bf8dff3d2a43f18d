"""Which counts of cases may leave a site: none that stands for too few, and none from which such a count follows."""

from collections.abc import Mapping
from typing import Final, TypeVar

DEFAULT: Final = 10
"""The least number of cases that counts and scores stand for between hospitals, where a study says nothing else."""
OFF: Final = 1
K = TypeVar("K")


def rounded_up(cases: int, least: int) -> int:
    """The weight of a site in the average: its training cases, at least so many as counts that may leave it."""
    return max(cases, least)


def told(count: int | None, of: int | None, least: int) -> int | None:
    """A count of so many cases, as it may leave a site; None where it is withheld or not known.

    A count below `least` is withheld, zero included, and so is one whose rest is: whoever knows that 12 of 14 cases hold a class knows
    that 2 do not.
    """
    if count is None or least <= OFF:
        return count
    rest = 0 if of is None else of - count
    return count if count >= least and (rest == 0 or rest >= least) else None


def told_parts(counts: Mapping[K, int], least: int) -> dict[K, int | None]:
    """Counts that add up to a number that is known, as they may leave a site.

    Where the counts that are withheld add up to fewer than `least`, the smallest of the others is withheld as well.

    >>> told_parts({"a": 20, "b": 12, "c": 5}, 10)
    {'a': 20, 'b': None, 'c': None}
    """
    if least <= OFF:
        return dict(counts)
    shown = sorted((key for key in counts if counts[key] >= least), key=lambda key: counts[key])
    hidden = sum(count for count in counts.values() if count < least)
    while shown and 0 < hidden < least:
        hidden += counts[shown.pop(0)]
    return {key: count if key in shown else None for key, count in counts.items()}
