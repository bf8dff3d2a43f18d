"""A mask as a folder of grey or palette pictures, one for each slice of a DICOM series.

A picture belongs to the slice whose DICOM file has the same name. If the names differ, the pictures in the order of their numbers belong to
the slices in the order of their positions.
"""

import re
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pfedsam.core.errors import DataError
from pfedsam.data.images import read_mask
from pfedsam.data.readers.base import Header
from pfedsam.data.readers.masks import GridMask, fold_name, small_ids

ENDINGS: Final = frozenset({".png", ".tif", ".tiff"})


def is_png_stack(path: Path) -> bool:
    """Whether a path is a folder that contains pictures."""
    return path.is_dir() and any(file.suffix.lower() in ENDINGS for file in path.iterdir())


def read_png_stack(path: Path, image: Header, files: list[str] | None) -> GridMask:
    """The pictures of a folder as the mask of a series.

    Args:
        path: the folder.
        image: header of the image.
        files: names of the image's files without endings, slice by slice; None if the image is no series of single files.

    Raises:
        DataError: the image is not DICOM, or the pictures are not its slices.
    """
    if image.kind != "DICOM" or files is None:
        raise DataError(
            "its mask is a folder of pictures, whose order is only known for a DICOM series of single files; save the mask as NIfTI"
        )
    pictures = _in_order(path, files)
    if len(pictures) != image.shape[2]:
        raise DataError(
            f"the image has {image.shape[2]} slices, the folder of its mask {len(pictures)} pictures; give one for each slice"
        )
    return GridMask(np.stack([_read_slice(picture, image) for picture in pictures], axis=2), image)


def _in_order(path: Path, files: list[str]) -> list[Path]:
    """The pictures of a folder slice by slice: by the names of the image's files if they agree, else by their numbers."""
    pictures = sorted((file for file in path.iterdir() if file.suffix.lower() in ENDINGS), key=_natural)
    by_name = {fold_name(picture): picture for picture in pictures}
    if len(by_name) == len(pictures) and by_name.keys() == set(files):
        return [by_name[name] for name in files]
    return pictures


def _read_slice(picture: Path, image: Header) -> npt.NDArray[Any]:
    """The ids [rows, columns] of one picture.

    Raises:
        DataError: the picture cannot be read, or has another size than the slices of the image.
    """
    plane = read_mask(picture)
    if plane.shape != image.shape[:2]:
        raise DataError(
            f"the image's slices have {image.shape[1]} x {image.shape[0]} pixels, {picture.name!r} {plane.shape[1]} x "
            f"{plane.shape[0]}; export the mask at the size of the image"
        )
    return small_ids(plane)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key that puts slice2 before slice10."""
    # `isdecimal` fits `\d`; `isdigit` is also true of "²", which is no number to `int`.
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", fold_name(path))]
