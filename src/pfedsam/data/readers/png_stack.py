"""A mask as a folder of grey or palette pictures, one a slice of a DICOM series.

Pictures are named as the DICOM files of their slices; else, in the order of their numbers, they belong to the slices in the order of
position.
"""

import re
from pathlib import Path
from typing import Final

import numpy as np

from pfedsam.core.errors import DataError
from pfedsam.data.images import read_mask
from pfedsam.data.readers.base import Header
from pfedsam.data.readers.masks import GridMask, fold_name, small_ids

ENDINGS: Final = frozenset({".png", ".tif", ".tiff"})


def is_png_stack(path: Path) -> bool:
    """Whether a folder holds pictures."""
    return path.is_dir() and any(file.suffix.lower() in ENDINGS for file in path.iterdir())


def read_png_stack(path: Path, image: Header, files: list[str] | None) -> GridMask:
    """The pictures of a folder as the mask of a series.

    Args:
        path: Of the folder.
        image: Its image.
        files: Names of the image's files, without endings, slice by slice; None: the image is no series of single files.

    Raises:
        DataError: The image is not DICOM, or the pictures are not its slices.
    """
    if image.kind != "DICOM" or files is None:
        raise DataError(
            "its mask is a folder of pictures, which does not say how they lie in a volume that is not a DICOM series of single files; "
            "save it as NIfTI"
        )
    pictures = sorted((file for file in path.iterdir() if file.suffix.lower() in ENDINGS), key=_natural)
    if len(pictures) != image.shape[2]:
        raise DataError(
            f"the image has {image.shape[2]} slices, the folder of its mask {len(pictures)} pictures; give one for each slice"
        )
    by_name = {fold_name(file): file for file in pictures}
    if set(by_name) == set(files):
        pictures = [by_name[name] for name in files]
    planes = []
    for picture in pictures:
        plane = read_mask(picture)
        if plane.shape != image.shape[:2]:
            raise DataError(
                f"the image's slices have {image.shape[1]} x {image.shape[0]} pixels, {picture.name!r} {plane.shape[1]} x "
                f"{plane.shape[0]}; export the mask at the size of the image"
            )
        planes.append(small_ids(plane))
    return GridMask(np.stack(planes, axis=2), image)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts slice2 before slice10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", fold_name(path))]
