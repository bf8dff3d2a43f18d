"""Data Science Bowl 2018, stage 1 (Caicedo et al., 2019): nuclei; one folder per picture, with one mask file per nucleus.

The data set does not name its sources. Sites are the groups of its authors: fluorescence (dark, grey) by picture size, stained
tissue (coloured) and bright field (light, grey).
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pfedsam.core.errors import DataError
from pfedsam.data.layouts.base import UNREADABLE, Classes, FoundCase, Layout, as_png, pictures, subfolders


def find(source: Path) -> Iterator[FoundCase]:
    """Every folder with `images/<id>.png`; the masks of its nuclei become one. The layout does not name patients."""
    for folder in subfolders(source):
        image, nuclei = folder / "images" / f"{folder.name}.png", pictures(folder / "masks")
        if not image.is_file():
            continue
        mask = as_png(partial(_union, nuclei), nuclei) if nuclei else None
        yield FoundCase(_site(image), folder.name, None, (as_png(partial(_colours, image)),), mask)


def _colours(path: Path) -> npt.NDArray[np.uint8]:
    """The picture [H, W, 3] without its alpha channel.

    Raises:
        DataError: the file is damaged.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except UNREADABLE as error:
        raise DataError(f"the picture {path.name!r} cannot be read; restore it from the data set") from error


def _site(path: Path) -> str:
    pixels = _colours(path).astype(float)
    height, width = pixels.shape[:2]
    if np.abs(pixels - pixels.mean(axis=2, keepdims=True)).mean() > 2:
        return "histology"
    return f"fluorescence_{height}x{width}" if pixels.mean() < 110 else "brightfield"


def _union(masks: Sequence[Path]) -> npt.NDArray[np.uint8]:
    """1 where any of the masks [H, W], of which there is at least one, is not 0.

    Raises:
        DataError: they are not of one size.
    """
    union = _nucleus(masks[0])
    for path in masks[1:]:
        mask = _nucleus(path)
        if union.shape != mask.shape:
            raise DataError(
                f"the masks beside {path.name!r} are not of one size; restore the folder {path.parents[1].name!r}"
            )
        union |= mask
    return union.astype(np.uint8)


def _nucleus(path: Path) -> npt.NDArray[np.bool_]:
    """Whether each pixel [H, W] of a mask is not 0."""
    with Image.open(path) as image:
        return np.asarray(image.convert("L")) > 0


def masks(source: Path) -> list[Path]:
    """The masks of all nuclei."""
    return [mask for folder in subfolders(source) for mask in pictures(folder / "masks")]


def classes(_: Path) -> Classes:
    """The id in the masks that the import writes."""
    return {"nucleus": [1]}


LAYOUT = Layout(
    "dsb2018",
    "Data Science Bowl 2018: nuclei, sites by kind and size of picture (Caicedo et al., 2019)",
    "<id>/images/<id>.png and <id>/masks/*.png, as in stage1_train",
    find,
    classes,
    masks=masks,
)
