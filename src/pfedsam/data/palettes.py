"""Colours of the ids in masks that are pictures with a palette, to notice palettes that number the classes differently in each file.

The indices of a palette are read as ids. Some programs make a palette for each file, with the colours that occur in it (Pillow's `quantize`
does). One index then means different classes in two files, and nothing but its colours shows it.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

from pfedsam.data.images import Colour

UsedColours: TypeAlias = Mapping[int, Colour]
"""The colour of each id that a mask contains; empty for a mask without a palette."""


def used_colours(palette: Sequence[Colour], ids: Iterable[int]) -> dict[int, Colour]:
    """The colours of the ids of a mask; ids beyond the end of the palette have none."""
    return {value: palette[value] for value in ids if 0 <= value < len(palette)}


@dataclass(frozen=True)
class OtherColours:
    """Masks in which an id has another colour than in most masks."""

    masks: tuple[int, ...]
    """Their places in the sequence of all masks."""
    value: int
    """The first such id."""
    usual: Colour
    """Its colour in most masks."""
    here: Colour
    """Its colour in the first of these masks."""
    renumbered: bool
    """Whether one colour has different ids in two masks, so that a class probably has."""

    def __str__(self) -> str:
        """The difference, with what to do."""
        return (
            f"id {self.value} has the colour (R, G, B) {self.here} in the palette of the mask and {self.usual} in most others. The indices "
            "of a palette are read as ids, and a program that makes a palette for each file may number the classes differently in each; "
            "save all masks with one palette, or as grey with one id per class"
        )


def other_colours(masks: Sequence[UsedColours]) -> OtherColours | None:
    """The masks in which an id has another colour than in most masks; None if every id has one colour."""
    counts = defaultdict[int, Counter[Colour]](Counter)
    for colours in masks:
        for value, colour in colours.items():
            counts[value][colour] += 1
    usual = {value: colours.most_common(1)[0][0] for value, colours in counts.items()}
    different = [
        (place, value)
        for place, colours in enumerate(masks)
        for value, colour in sorted(colours.items())
        if colour != usual[value]
    ]
    if not different:
        return None
    first, value = different[0]
    places = tuple(dict.fromkeys(place for place, _ in different))
    return OtherColours(places, value, usual[value], masks[first][value], _are_renumbered(masks))


def _are_renumbered(masks: Sequence[UsedColours]) -> bool:
    """Whether a colour has other ids in one mask than in another, without a common one."""
    found = defaultdict[Colour, set[frozenset[int]]](set)
    for colours in masks:
        for colour in set(colours.values()):
            found[colour].add(frozenset(value for value, own in colours.items() if own == colour))
    return any(first.isdisjoint(second) for every in found.values() for first, second in combinations(every, 2))
