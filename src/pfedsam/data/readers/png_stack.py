"""A mask as a folder of grey or palette pictures, one for each slice of a DICOM series.

A picture belongs to the slice whose DICOM file has the same name. If the names differ, it belongs to the slice whose InstanceNumber, or
whose file, has the number of its name. From numbers alone it is not known whether slices were counted from the lowest or from the first
one, so an order that is not clear is refused.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pfedsam.core.errors import DataError
from pfedsam.data.images import read_stored
from pfedsam.data.palettes import other_colours, used_colours
from pfedsam.data.readers.base import Header
from pfedsam.data.readers.dicom_planes import Plane
from pfedsam.data.readers.masks import GridMask, small_ids, spread_slices
from pfedsam.data.readers.pictures import read_slice

ENDINGS: Final = frozenset({".png", ".tif", ".tiff"})
_KNOWN_ENDINGS: Final = re.compile(r"(\.(png|tiff?|dcm|dicom|ima))+$")
"""Endings that are removed before names are compared. The last part of an identifier, such as 1.2.840.1, is not an ending."""
_BY_NUMBER: Final = (
    "the pictures of the mask are named unlike the DICOM files, and were assigned to the slices by their numbers"
)


def is_png_stack(path: Path) -> bool:
    """Whether a path is a folder that contains pictures."""
    return path.is_dir() and any(_pictures(path))


def _pictures(folder: Path) -> Iterator[Path]:
    """The pictures of a folder without hidden files, such as those named `._IM1.png` that a Mac writes beside copied files."""
    return (file for file in folder.iterdir() if file.suffix.lower() in ENDINGS and not file.name.startswith("."))


def read_png_stack(path: Path, image: Header, planes: Sequence[Plane] | None, *, max_megapixels: float) -> GridMask:
    """The pictures of a folder as the mask of a series.

    Args:
        path: the folder.
        image: header of the image.
        planes: the slices of the image by position, each of a file of its own; None if the image is not a series of single files.
        max_megapixels: larger pictures are refused before decoding.

    Raises:
        DataError: the image is not DICOM, the pictures are not its slices, or the mask is not known in a gap of the series.
    """
    if image.kind != "DICOM" or planes is None:
        raise DataError(
            "its mask is a folder of pictures, whose order is only known for a DICOM series of single files; save the mask as NIfTI"
        )
    pictures = list(_pictures(path))
    if len(pictures) != len(planes):
        raise DataError(
            f"the image has {len(planes)} slices, the folder of its mask {len(pictures)} pictures; give one for each slice"
        )
    notes: tuple[str, ...] = ()
    ordered = pictures if len(planes) == 1 else _by_name(pictures, planes)
    if ordered is None:
        ordered, notes = _by_number(pictures, planes), (_BY_NUMBER,)
    slices = [small_ids(read_slice(picture, image, max_megapixels)) for picture in ordered]
    _refuse_renumbered(ordered, slices, max_megapixels)
    ids, added = spread_slices(np.stack(slices, axis=2), image)
    return GridMask(ids, image, (*notes, *added))


def _refuse_renumbered(pictures: Sequence[Path], slices: Sequence[npt.NDArray[Any]], max_megapixels: float) -> None:
    """Refuse pictures, given with their ids [rows, columns], whose palettes number the classes differently.

    Raises:
        DataError: one id has several colours, and one colour several ids.
    """
    palettes = (read_stored(picture, max_megapixels=max_megapixels).palette for picture in pictures)
    other = other_colours(
        [used_colours(one, np.unique(ids).tolist()) for one, ids in zip(palettes, slices, strict=True)]
    )
    if other is not None and other.renumbered:
        raise DataError(f"its mask {pictures[other.masks[0]].name!r}: {other}")


def _by_name(pictures: Sequence[Path], planes: Sequence[Plane]) -> list[Path] | None:
    """The pictures slice by slice; None if their names are not those of the slices' files."""
    by_name = {_fold(picture): picture for picture in pictures}
    names = [_fold(plane.path) for plane in planes]
    return [by_name[name] for name in names] if len(by_name) == len(names) and by_name.keys() == set(names) else None


def _by_number(pictures: Sequence[Path], planes: Sequence[Plane]) -> list[Path]:
    """The pictures slice by slice: those with the numbers of the slices, else in the order of all numbers and positions if these agree.

    Raises:
        DataError: the pictures or the slices have no numbers, or these allow several orders.
    """
    theirs = _numbers(pictures)
    known = [numbers for numbers in (_instances(planes), _numbers([plane.path for plane in planes])) if numbers]
    equal = [numbers for numbers in known if theirs and set(numbers) == set(theirs)]
    if theirs and equal and all(numbers == equal[0] for numbers in equal):
        by_number = dict(zip(theirs, pictures, strict=True))
        return [by_number[number] for number in equal[0]]
    if theirs and known and not equal and all(numbers == sorted(numbers) for numbers in known):
        return [picture for _, picture in sorted(zip(theirs, pictures, strict=True))]
    raise DataError(
        "the pictures of its mask cannot be assigned to the slices of the DICOM series: their names are not those of its files, and their "
        "numbers do not determine the order; name each picture like the DICOM file of its slice (IM7.png for IM7 or IM7.dcm)"
    )


def _instances(planes: Sequence[Plane]) -> list[float] | None:
    """InstanceNumber of each slice; None if they are absent or not different."""
    numbers = [plane.number for plane in planes if plane.number is not None]
    return numbers if len(set(numbers)) == len(planes) else None


def _numbers(files: Sequence[Path]) -> list[float] | None:
    """The number of each file, in which alone the names differ; None if they differ in anything else, or are not different."""
    parts = [re.split(r"([0-9]+)", _fold(file)) for file in files]
    if len({len(one) for one in parts}) > 1:
        return None
    different = [place for place, values in enumerate(zip(*parts, strict=True)) if len(set(values)) > 1]
    if len(different) != 1 or different[0] % 2 == 0:  # numbers are at odd places
        return None
    numbers: list[float] = [int(one[different[0]]) for one in parts]
    return numbers if len(set(numbers)) == len(files) else None


def _fold(path: Path) -> str:
    """The name of a file without its known endings, in lower case."""
    return _KNOWN_ENDINGS.sub("", path.name.lower())
