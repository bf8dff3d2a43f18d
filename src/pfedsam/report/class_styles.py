"""How the outline of each class is drawn in pictures, and named in their legends.

The colours were chosen so that every two of them also differ for readers with protanopia, deuteranopia or tritanopia (simulated as by
Machado et al., 2009, IEEE TVCG 15(6)). They repeat after seven classes, with dashed and then with dotted lines.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

CLASS_COLORS: Final = ("#00e1ff", "#cc5a00", "#8c5aff", "#ffe600", "#b07366", "#ccff99", "#008ccc")
_DASHES: Final[tuple[tuple[float, ...], ...]] = ((), (4.0, 2.0), (1.0, 1.5))
"""Lengths of strokes and gaps in line widths; empty for a solid line."""


@dataclass(frozen=True)
class ClassStyle:
    """The outline of a class."""

    name: str
    color: str
    dashes: tuple[float, ...]
    """Lengths of strokes and gaps in line widths; empty for a solid line."""


def class_styles(names: Sequence[str]) -> list[ClassStyle]:
    """The outlines of the classes 1..C, given by their names; equal ones only from the 22nd class on."""
    return [ClassStyle(name, *color_and_dashes(number)) for number, name in enumerate(names, start=1)]


def color_and_dashes(number: int) -> tuple[str, tuple[float, ...]]:
    """Colour and dashes of the class of this number, from 1."""
    turn, color = divmod(number - 1, len(CLASS_COLORS))
    return CLASS_COLORS[color], _DASHES[turn % len(_DASHES)]
