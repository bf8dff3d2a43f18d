"""PNG, JPEG and TIFF with the protocol of readers: a picture is a volume of one slice without a position."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pfedsam.core import atomic
from pfedsam.core.errors import DataError
from pfedsam.core.files import open_regular
from pfedsam.data.images import MAX_MEGAPIXELS, read_image, read_mask
from pfedsam.data.readers.base import Header


class PictureReader:
    """One picture, or the mask of one."""

    def __init__(self, path: Path, *, max_megapixels: float = MAX_MEGAPIXELS) -> None:
        """Take the path of the file; nothing is read yet."""
        self.path, self.max_megapixels = path, max_megapixels

    def header(self) -> Header:
        """Size and channels.

        Raises:
            DataError: the file cannot be opened.
        """
        try:
            with open_regular(self.path) as file, Image.open(file) as image:
                turned = image.getexif().get(274, 1) in (5, 6, 7, 8)
                width, height = image.size[::-1] if turned else image.size
                deep, colour = "16" in image.mode, image.mode in ("P", "PA", "RGB", "RGBA", "RGBX")
        except (OSError, SyntaxError, ValueError) as exc:
            raise DataError(f"{self.path.name!r} is no picture, or damaged; restore it or take the case out") from exc
        dtype = np.dtype(np.uint16 if deep else np.uint8)
        return Header("picture", (height, width, 1), None, None, dtype, channels=3 if colour else 1)

    def slice(self, index: int, axis: int = 2) -> npt.NDArray[np.float32]:
        """The picture [H, W, 3] in 0..1, which is the only plane.

        Raises:
            DataError: the file cannot be read.
        """
        return read_image(self.path, max_megapixels=self.max_megapixels)

    def planes(self) -> Iterator[npt.NDArray[np.float32]]:
        """The picture [H, W, 3], which is the only plane.

        Raises:
            DataError: the file cannot be read.
        """
        yield self.slice(0)

    def mask_slice(self, index: int, axis: int = 2) -> npt.NDArray[np.int64]:
        """The ids [H, W].

        Raises:
            DataError: the file cannot be read.
        """
        return read_mask(self.path, max_megapixels=self.max_megapixels)

    def write_mask(self, path: Path, mask: npt.NDArray[Any]) -> None:
        """Write ids [H, W] or [H, W, 1] as a grey PNG.

        Raises:
            StoreError: the file cannot be written.
        """
        write_png(path, mask[..., 0] if mask.ndim == 3 else mask)


def write_png(path: Path, mask: npt.NDArray[Any]) -> None:
    """Write ids [H, W], uint8 or uint16, as a grey PNG.

    Raises:
        StoreError: the file cannot be written.
    """
    png = BytesIO()
    Image.fromarray(mask).save(png, format="PNG")
    atomic.write_bytes(path, png.getvalue(), mode=atomic.usual_mode())
