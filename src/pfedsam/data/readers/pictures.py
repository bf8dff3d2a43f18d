"""PNG and TIFF as the mask of a single DICOM picture."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pfedsam.core import atomic
from pfedsam.core.errors import DataError
from pfedsam.data.images import MAX_MEGAPIXELS, read_mask
from pfedsam.data.readers.base import Header
from pfedsam.data.readers.masks import GridMask, small_ids


def read_picture_mask(path: Path, image: Header, *, max_megapixels: float = MAX_MEGAPIXELS) -> GridMask:
    """A picture as the mask of a DICOM picture of the same size.

    Args:
        path: the mask.
        image: header of the image.
        max_megapixels: larger masks are refused before decoding.

    Raises:
        DataError: the image has several slices or is not DICOM, or the mask cannot be read, is too large or has another size.
    """
    if image.kind != "DICOM" or image.shape[2] != 1:
        raise DataError(f"its mask {path.name!r} is a picture, its image a volume; save the mask as NIfTI or DICOM-SEG")
    return GridMask(small_ids(read_slice(path, image, max_megapixels))[..., None], image)


def read_slice(path: Path, image: Header, max_megapixels: float) -> npt.NDArray[np.int64]:
    """The ids [rows, columns] of one slice of an image from a picture.

    Args:
        path: the picture.
        image: header of the image.
        max_megapixels: larger pictures are refused before decoding.

    Raises:
        DataError: the picture cannot be read, is too large or has another size than the slices of the image.
    """
    ids = read_mask(path, max_megapixels=max_megapixels)
    if ids.shape != image.shape[:2]:
        raise DataError(
            f"the image has {image.shape[1]} x {image.shape[0]} pixels, its mask {path.name!r} {ids.shape[1]} x {ids.shape[0]}; export the "
            "mask at the size of the image"
        )
    return ids


def write_png(path: Path, mask: npt.NDArray[Any]) -> None:
    """Write ids [H, W], uint8 or uint16, as a grey PNG.

    Raises:
        StoreError: the file cannot be written.
    """
    png = BytesIO()
    Image.fromarray(mask).save(png, format="PNG")
    atomic.write_bytes(path, png.getvalue(), mode=atomic.usual_mode())
