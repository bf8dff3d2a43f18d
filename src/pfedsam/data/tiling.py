"""Large pictures and thin structures: train on square tiles at native scale, predict tile by tile.

A picture that is scaled down to the model's square loses structures that are thinner than a pixel of the square. With tiling the square
contains a part of the picture instead: `side` native pixels become the model's side S. Tiles are examples of their case, so that all tiles
of a patient are in the same part of the split. A picture that is smaller than a tile is padded with zeros at the right and at the bottom.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from pfedsam.core import rng
from pfedsam.core.options import Options
from pfedsam.data.examples import Example, PictureExamples
from pfedsam.data.images import ImageOptions
from pfedsam.data.labels import LabelMap
from pfedsam.data.loader import check_sizes, load_image, load_truth
from pfedsam.data.manifest import Case
from pfedsam.data.transforms import Frame, labels_to_frame, to_frame


class TilingOptions(Options):
    """How pictures are cut."""

    side: int = Field(ge=16, le=8192, description="Side of a tile in native pixels; it is scaled to the model's side.")
    overlap: float = Field(
        default=0.25, ge=0, le=0.9, description="Part of a tile's side that neighbours share when predicting."
    )
    train_overlap: float = Field(default=0.0, ge=0, le=0.9, description="The same for the tiles to train on.")
    max_tiles: int = Field(
        default=64, ge=1, le=10_000, description="Training tiles kept of one picture; of more, a fixed random choice."
    )


def tile_starts(length: int, side: int, overlap: float) -> list[int]:
    """First pixels of the tiles along one axis of `length` pixels: every pixel is covered, and the last tile ends with the picture.

    Neighbours share at least the part `overlap` of a side. A picture that is not longer than a tile has one tile, which begins at 0.
    """
    if length <= side:
        return [0]
    stride = max(1, int(side * (1 - overlap)))
    count = -(-(length - side) // stride) + 1
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


def load_tiles(
    cases: Sequence[Case], *, labels: Mapping[str, LabelMap], image: ImageOptions, side: int, tiling: TilingOptions
) -> list[Example]:
    """The training tiles of the cases, pixels [3, S, S] and labels [S, S], case by case and row by row.

    Args:
        cases: cases with masks.
        labels: site to what the ids in its masks mean.
        image: how pictures are read; contrast is computed from the whole picture.
        side: S, the side of the model's square.
        tiling: size and overlap of the tiles.

    Raises:
        DataError: a picture or a mask cannot be read, or they differ in size.
    """
    examples = []
    for case in cases:
        picture = load_image(case, image)
        truth = load_truth(case, labels[case.site], max_megapixels=image.max_megapixels)
        check_sizes(case, picture.shape[:2], truth.shape)
        native = truth.shape
        picture, truth = _padded(picture, tiling.side), _padded(truth, tiling.side)
        for number, (top, left) in enumerate(_chosen(case, picture.shape[:2], tiling)):
            window = np.s_[top : top + tiling.side, left : left + tiling.side]
            pixels, whole = to_frame(picture[window], side)
            frame = replace(whole, resized=_picture_part(native, (top, left), tiling.side, side))
            examples.append(Example(case, pixels, labels_to_frame(truth[window], side), frame, tile=number))
    return examples


def _picture_part(native: tuple[int, ...], start: tuple[int, int], tile: int, side: int) -> tuple[int, int]:
    """Height and width in the model's square of the part of a tile that is picture; the rest is padding, which views leave as it is.

    Args:
        native: H, W of the picture.
        start: first row and column of the tile.
        tile: side of the tile in native pixels.
        side: S, to which the tile is scaled.
    """
    shown = (min(tile, length - first) for length, first in zip(native, start, strict=True))
    height, width = (max(1, int(length * side / tile + 0.5)) for length in shown)
    return height, width


def load_pictures(cases: Sequence[Case], *, image: ImageOptions, side: int) -> Sequence[Example]:
    """The cases with their pixels [3, H, W] at native size and without labels, for prediction tile by tile.

    Each is read on access, which raises `DataError` if the file cannot be read; only the last one is kept.
    """

    def make(case: Case) -> Example:
        picture = load_image(case, image)
        pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)
        return Example(case, pixels, None, Frame.of(picture.shape[:2], side))

    return PictureExamples(cases, make, most=1)


def _chosen(case: Case, size: tuple[int, ...], tiling: TilingOptions) -> list[tuple[int, int]]:
    """(top, left) of the training tiles of a case."""
    rows, columns = (tile_starts(length, tiling.side, tiling.train_overlap) for length in size)
    places = [(top, left) for top in rows for left in columns]
    if len(places) <= tiling.max_tiles:
        return places
    drawn = rng.numpy_generator(0, case.site, case.id, "tiles").permutation(len(places))[: tiling.max_tiles]
    return [places[i] for i in sorted(drawn)]


_Kind = TypeVar("_Kind", bound=np.generic)


def _padded(picture: npt.NDArray[_Kind], side: int) -> npt.NDArray[_Kind]:
    """A picture [H, W, ...], padded with zeros at the bottom and at the right to the size of a tile."""
    below, right = (max(0, side - length) for length in picture.shape[:2])
    return np.pad(picture, [(0, below), (0, right), *[(0, 0)] * (picture.ndim - 2)])
