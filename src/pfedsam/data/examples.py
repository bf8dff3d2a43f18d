"""A site's examples, which are loaded on access: pictures and slices of volumes, in bounded memory.

The prepared examples that were used last are kept, up to a limit. An open volume keeps its voxels in the type of the file, and only the
last two volumes are open. Therefore memory does not grow with the size of the site, except with tiles (`tiling.py`), which are all kept.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, overload

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pfedsam.data.about import about
from pfedsam.data.images import ImageOptions
from pfedsam.data.labels import IGNORED, IGNORED_BIT, MAX_OVERLAPPING, LabelMap
from pfedsam.data.manifest import Case
from pfedsam.data.readers import MaskReader
from pfedsam.data.transforms import Frame, labels_to_frame, to_frame
from pfedsam.data.volume import Scale, Volume
from pfedsam.data.volume_case import open_case, open_case_mask
from pfedsam.data.volume_options import VolumeOptions

_OPEN_VOLUMES: Final = 2


@dataclass(frozen=True)
class Example:
    """A picture, or a slice of a volume, in the model's frame."""

    case: Case
    pixels: Tensor
    """[3, S, S], float32, 0..1, zeros in the padding."""
    labels: Tensor | None
    """[S, S], uint8, classes 0..C; None for a case without a mask."""
    frame: Frame
    tile: int | None = None
    """Number of the tile in its picture; None for a whole picture."""
    slice: int | None = None
    """Number of the slice in its volume; None for a picture."""
    depth: int = 1
    """Number of slices of the case."""


@dataclass(frozen=True)
class _Part:
    """The slice of a volume that an example is prepared from."""

    case: Case
    slice: int
    depth: int
    """Number of slices of the volume."""


class LazyExamples(Sequence[Example]):
    """Examples that are prepared on access; those used last are kept, up to a limit."""

    def __init__(self, most: int) -> None:
        """Keep at most `most` prepared examples, and always the last one."""
        self._kept: OrderedDict[int, Example] = OrderedDict()
        self._most = max(1, most)

    def _prepare(self, index: int) -> Example:
        """The example at an index of 0 or more.

        Raises:
            DataError: a file cannot be read.
        """
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        """The example at an index, or a list of them.

        Raises:
            DataError: a file cannot be read.
        """
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        if index not in self._kept:
            self._kept[index] = self._prepare(index)
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
        self._kept.move_to_end(index)
        return self._kept[index]


class PictureExamples(LazyExamples):
    """One example for each case, made by a function of the case."""

    def __init__(self, cases: Sequence[Case], make: Callable[[Case], Example], most: int) -> None:
        """Take the cases in their order; nothing is read yet."""
        super().__init__(most)
        self._cases, self._make = tuple(cases), make

    def __len__(self) -> int:
        return len(self._cases)

    def _prepare(self, index: int) -> Example:
        return self._make(self._cases[index])


def fitting(side: int, megabytes: int) -> int:
    """The number of examples of side S that fit into memory: three channels of float32 and a label for each pixel."""
    return megabytes * 2**20 // (13 * side * side)


class VolumeExamples(LazyExamples):
    """The slices of the volumes of a site, one after the other."""

    def __init__(
        self,
        cases: Sequence[Case],
        *,
        labels: LabelMap | None,
        image: ImageOptions,
        side: int,
        options: VolumeOptions,
    ) -> None:
        """Read the headers and, if `labels` are given, the masks; no image is decoded.

        Args:
            cases: cases whose images are volumes.
            labels: the meaning of the ids in the masks; None: examples have no labels, and no mask is read.
            image: percentiles of the intensities.
            side: S, the side of the model's frame.
            options: how volumes are read.

        Raises:
            DataError: a header or a mask cannot be read, a mask does not fit its image, or has an unknown label.
        """
        super().__init__(fitting(side, options.cache_megabytes))
        self._labels, self._image, self._side, self._options = labels, image, side, options
        self._scales: dict[tuple[str, str], tuple[Scale, ...]] = {}
        self._open: OrderedDict[tuple[str, str], tuple[Volume, MaskReader | None]] = OrderedDict()
        self._parts: list[_Part] = []
        self.foreground: list[tuple[int, ...]] = []
        """The classes in each slice; empty without labels."""
        for case in cases:
            self._add(case)

    def _add(self, case: Case) -> None:
        volume, mask = self._volume(case)
        self._parts += [_Part(case, number, volume.shape[0]) for number in range(volume.shape[0])]
        self._frame(case, volume)
        if self._labels is not None and mask is not None:
            with about(case):
                self.foreground += [
                    classes_in(self._labels.to_classes(ids), overlap=self._labels.overlap)
                    for ids in volume.all_ids(mask)
                ]

    def __len__(self) -> int:
        return len(self._parts)

    def _prepare(self, index: int) -> Example:
        part = self._parts[index]
        volume, mask = self._volume(part.case)
        with about(part.case):
            frame = self._frame(part.case, volume)
            pixels, _ = to_frame(volume.pixels(part.slice), self._side, frame)
            self._scales[part.case.site, part.case.id] = volume.scales
            labels: Tensor | None = None
            if self._labels is not None and mask is not None:
                labels = labels_to_frame(self._labels.to_classes(volume.ids(mask, part.slice)), self._side, frame)
        return Example(part.case, pixels, labels, frame, slice=part.slice, depth=part.depth)

    def _frame(self, case: Case, volume: Volume) -> Frame:
        """The frame of the slices in the model's square.

        Raises:
            DataError: they do not fit at the spacing of the options.
        """
        with about(case):
            return volume.frame(self._side)

    def _volume(self, case: Case) -> tuple[Volume, MaskReader | None]:
        """The volume and, if there are labels, its mask; opened again if other volumes have been used in between."""
        key = case.site, case.id
        if key not in self._open:
            volume = open_case(case, self._image, self._options, self._scales.get(key))
            mask = None
            if self._labels is not None and case.mask is not None:
                mask = open_case_mask(case, volume, self._options)
            self._open[key] = volume, mask
            if len(self._open) > _OPEN_VOLUMES:
                self._open.popitem(last=False)
        self._open.move_to_end(key)
        return self._open[key]


def classes_in(found: npt.NDArray[np.uint8], *, overlap: bool) -> tuple[int, ...]:
    """The numbers of the classes in labels of any shape, ascending; ignored pixels are not counted."""
    values = np.flatnonzero(np.bincount(found.ravel(), minlength=1)).tolist()
    if not overlap:
        return tuple(value for value in values if value not in (0, IGNORED))
    # With an explicit type, because an empty list (all pixels are ignored) would become an array of floats.
    known = np.array([value for value in values if not value & IGNORED_BIT], dtype=np.uint8)
    bits = int(np.bitwise_or.reduce(known, initial=0))
    return tuple(number for number in range(1, MAX_OVERLAPPING + 1) if bits >> (number - 1) & 1)
