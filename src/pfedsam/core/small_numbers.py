"""Withholds counts of few cases before they leave a site, and counts from which such a count could be computed."""

from collections.abc import Mapping
from typing import Final, TypeVar

DEFAULT: Final = 10
"""Default of the least number of cases from which a count or score that leaves a hospital is computed."""
OFF: Final = 1
K = TypeVar("K")


def rounded_up(cases: int, least: int) -> int:
    """The weight of a site in the average: its number of training cases, but at least the smallest count that may leave the site."""
    return max(cases, least)


def publishable_count(count: int | None, of: int | None, least: int) -> int | None:
    """A count of cases as it may leave a site; None if it is withheld or not known.

    A count below `least` is withheld, also zero. It is withheld as well if the rest of the `of` cases is below `least`, because 12 of 14
    cases with a class means 2 cases without it.
    """
    if count is None or least <= OFF:
        return count
    rest = 0 if of is None else of - count
    return count if count >= least and (rest == 0 or rest >= least) else None


def publishable_counts(counts: Mapping[K, int], least: int) -> dict[K, int | None]:
    """Counts with a known sum, as they may leave a site.

    If the withheld counts add up to less than `least`, the smallest of the others is withheld as well.

    >>> publishable_counts({"a": 20, "b": 12, "c": 5}, 10)
    {'a': 20, 'b': None, 'c': None}
    """
    if least <= OFF:
        return dict(counts)
    shown = {key: count for key, count in counts.items() if count >= least}
    hidden = sum(counts.values()) - sum(shown.values())
    while shown and 0 < hidden < least:
        smallest = min(shown, key=lambda key: shown[key])
        hidden += shown.pop(smallest)
    return {key: shown.get(key) for key in counts}
