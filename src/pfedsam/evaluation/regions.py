"""What is done to and read off a predicted class map: small parts removed, sizes measured."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage


def clean_regions(
    classes: npt.NDArray[np.uint8], *, smallest: int = 0, largest_only: bool = False
) -> npt.NDArray[np.uint8]:
    """The class map without small connected parts; neighbours share a face, an edge or a corner.

    Args:
        classes: 0..C, [H, W] or [D, H, W].
        smallest: Parts of fewer pixels or voxels become background.
        largest_only: Of each class only its largest part is kept.
    """
    if smallest <= 1 and not largest_only:
        return classes
    kept = classes.copy()
    around = np.ones((3,) * classes.ndim, dtype=bool)
    for number in np.unique(classes[classes > 0]):
        parts, count = ndimage.label(classes == number, structure=around)
        sizes = np.bincount(parts.ravel(), minlength=count + 1)
        sizes[0] = 0
        lost = sizes < smallest
        if largest_only and count:
            lost |= np.arange(count + 1) != sizes.argmax()
        lost[0] = False
        kept[lost[parts]] = 0
    return kept


@dataclass(frozen=True)
class Size:
    """How large a structure is in one volume."""

    name: str
    voxels: int
    millilitres: float | None
    """None where the spacing is not known."""
    areas: tuple[tuple[int, int, float | None], ...]
    """Slice, pixels and square millimetres, of the slices that have it."""


def measure(
    classes: npt.NDArray[np.uint8], names: Sequence[str], spacing_mm: tuple[float, float, float] | None
) -> list[Size]:
    """The size of every class in a volume [D, H, W] of 0..C with voxels of the given size along D, H, W."""
    sizes = []
    for number, name in enumerate(names, start=1):
        pixels = (classes == number).sum(axis=(1, 2)).tolist()
        total = sum(pixels)
        area = spacing_mm[1] * spacing_mm[2] if spacing_mm else None
        millilitres = total * area * spacing_mm[0] / 1000 if spacing_mm and area is not None else None
        areas = tuple((k, count, None if area is None else count * area) for k, count in enumerate(pixels) if count)
        sizes.append(Size(name, total, millilitres, areas))
    return sizes
