"""Post-processing of a predicted class map: removal of small connected components, and measurement of sizes."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pfedsam.data.labels import class_pixels


def clean_regions(
    classes: npt.NDArray[np.uint8], *, smallest: int = 0, single: Collection[int] = (), overlap: bool = False
) -> npt.NDArray[np.uint8]:
    """The class map without small connected components; neighbours share a face, an edge or a corner.

    Args:
        classes: labels, shape [H, W] or [D, H, W]: class numbers 0..C, or sets of bits if classes overlap.
        smallest: components with fewer pixels or voxels become background.
        single: numbers of the classes of which only the largest component is kept; of several equal ones, the first.
        overlap: whether the labels are sets of bits, one for each class.
    """
    if smallest <= 1 and not single:
        return classes
    kept = classes.copy()
    around = np.ones((3,) * classes.ndim, dtype=bool)
    numbers = range(1, 9) if overlap else np.unique(classes[classes > 0])
    for number in numbers:
        parts, count = ndimage.label(class_pixels(classes, number, overlap=overlap), structure=around)
        sizes = np.bincount(parts.ravel(), minlength=count + 1)
        sizes[0] = 0
        lost = sizes < smallest
        if number in single and count:
            lost |= np.arange(count + 1) != sizes.argmax()
        lost[0] = False
        kept[lost[parts]] &= np.uint8(255 - (1 << (number - 1))) if overlap else np.uint8(0)
    return kept


@dataclass(frozen=True)
class Size:
    """The size of a structure in one volume."""

    name: str
    voxels: int
    millilitres: float | None
    """None if the spacing or the thickness of a single slice is not known."""
    areas: tuple[tuple[int, int, float | None], ...]
    """Index of the slice, number of pixels, and square millimetres (None if not known), for each slice that contains the structure."""


def measure(
    classes: npt.NDArray[np.uint8],
    names: Sequence[str],
    spacing_mm: tuple[float, float, float] | tuple[float, float] | None,
    *,
    overlap: bool = False,
) -> list[Size]:
    """The size of every class in a volume.

    Args:
        classes: labels, shape [D, H, W]: class numbers 0..C, or sets of bits if classes overlap.
        names: of the classes 1..C.
        spacing_mm: the voxel size along D, H, W, or along H, W if the thickness is not known; None if neither is.
        overlap: whether the labels are sets of bits, one for each class.
    """
    masks = (class_pixels(classes, number, overlap=overlap) for number in range(1, len(names) + 1))
    return [_size(name, mask.sum(axis=(1, 2)).tolist(), spacing_mm) for name, mask in zip(names, masks, strict=True)]


def _size(
    name: str, pixels: Sequence[int], spacing_mm: tuple[float, float, float] | tuple[float, float] | None
) -> Size:
    """The size of a structure from its number of pixels in each slice."""
    total = sum(pixels)
    found = [(k, count) for k, count in enumerate(pixels) if count]
    if spacing_mm is None:
        return Size(name, total, None, tuple((k, count, None) for k, count in found))
    area = spacing_mm[-2] * spacing_mm[-1]
    millilitres = total * area * spacing_mm[0] / 1000 if len(spacing_mm) == 3 else None
    return Size(name, total, millilitres, tuple((k, count, count * area) for k, count in found))
