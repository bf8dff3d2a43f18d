"""A volume as slices [H, W] for the model: always in the same anatomical orientation, with intensities in 0..1.

Slices of one plane have the same order and orientation for every file (radiological convention). Axial slices go from the feet to the head,
with rows to the back and columns to the left. Coronal slices go from the back to the front and sagittal ones from the right to the left,
both with rows to the feet. Predicted masks are converted back to the grid of the file before they are written.
"""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from nibabel import orientations

from pfedsam.core.errors import DataError
from pfedsam.data.images import ImageOptions
from pfedsam.data.readers import MaskReader
from pfedsam.data.readers.base import Header, Reader
from pfedsam.data.transforms import Frame
from pfedsam.data.volume_options import Plane, VolumeOptions

_PLANES: Final[dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]]] = {
    "axial": ((2, 1, 0), (1, -1, -1)),
    "coronal": ((1, 2, 0), (-1, -1, -1)),
    "sagittal": ((0, 2, 1), (-1, -1, -1)),
}
"""Plane to the world axes (x right, y front, z head) of depth, rows and columns, and the direction along each."""
_ROUNDING: Final = 1e-3
"""Distance from 0..1 that is left to rounding."""
_MOST_SLICES: Final = 10_000
"""Largest number of slices of a volume: a CT of a whole body has some 4,000, a damaged header may give millions."""
_NEARLY_EQUAL: Final = 1.25
"""Ratio of two spacings up to which `axis: auto` takes them for equal, so that small differences between scanners decide nothing."""
_CLEAR: Final = 0.866
"""Cosine of the angle (30 degrees) between the normal of slices and an axis of the body, up to which they have its plane."""


@dataclass(frozen=True)
class Slicing:
    """The axes of the array of a file along which slices, rows and columns are numbered."""

    axes: tuple[int, int, int]
    """The file's axis of depth, rows and columns."""
    flipped: tuple[bool, bool, bool]
    """Whether each axis is counted from its end."""
    directions: str | None = None
    """Anatomical direction of ascending slice, row and column numbers, a letter of RLAPSI each, such as `SPL`; None if not known."""
    plane: Plane | None = None
    """The plane of the body that is nearest to that of the slices; None if the file has no orientation."""
    oblique: bool = False
    """Whether the slices are turned by more than 30 degrees against that plane."""

    @classmethod
    def of(cls, header: Header, plane: Plane) -> "Slicing":
        """The slicing of a volume in a plane; a volume of one slice is never cut across it.

        Raises:
            DataError: a plane is named and the file has no orientation.
        """
        if header.affine is None:
            if plane != "auto" and header.shape[2] != 1:
                raise DataError(f"its file has no orientation, so it has no {plane} plane; set data.volume.axis: auto")
            return cls((2, 0, 1), (False, False, False))
        library: Any = orientations  # has no types
        found = library.io_orientation(header.affine)  # row: the file's axis; values: world axis, direction
        world, direction = found[:, 0].astype(int), found[:, 1]
        name = _plane(header, plane, world)
        axes, signs = _PLANES[name]
        order = np.argsort(world)[list(axes)].tolist()
        flips = (direction[order] != signs).tolist()
        letters = "".join(("RAS" if sign > 0 else "LPI")[axis] for axis, sign in zip(axes, signs, strict=True))
        normal = header.affine[:3, order[0]] / np.linalg.norm(header.affine[:3, order[0]])
        return cls(
            (order[0], order[1], order[2]),
            (flips[0], flips[1], flips[2]),
            letters if header.placed else None,
            name,
            bool(abs(normal[axes[0]]) < _CLEAR),
        )

    def index(self, number: int, depth: int) -> int:
        """The file's index of slice `number` of `depth`."""
        return depth - 1 - number if self.flipped[0] else number

    def turn(self, plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A plane [A, B, ...] of the file, its axes ascending, as a slice [H, W, ...]."""
        turned = plane.swapaxes(0, 1) if self.axes[1] > self.axes[2] else plane
        return np.flip(turned, tuple(axis for axis in (0, 1) if self.flipped[axis + 1]))

    def to_file(self, volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Slices [D, H, W] in the order of the file's array."""
        turned = np.flip(volume, tuple(axis for axis in range(3) if self.flipped[axis]))
        return turned.transpose(*(self.axes.index(axis) for axis in range(3)))


def _plane(header: Header, plane: Plane, world: npt.NDArray[np.intp]) -> Plane:
    """The name of the plane of the slices of a volume; `world`, shape [3], gives the body axis of each axis of the array."""
    names: tuple[Plane, ...] = ("sagittal", "coronal", "axial")
    (single,) = np.nonzero(np.array(header.shape) == 1)
    if len(single) == 1:
        return names[int(world[single[0]])]
    if plane != "auto":
        return plane
    spacing = np.linalg.norm(header.affine[:3, :3], axis=0) if header.affine is not None else np.ones(3)
    widest = world[spacing * _NEARLY_EQUAL >= spacing.max()]
    return names[int(widest.max())]  # axial before coronal before sagittal


@dataclass(frozen=True)
class Scale:
    """The linear map of the values of a volume to 0..1; values outside are clipped."""

    low: float
    high: float

    def apply(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The values, of any shape, mapped to 0..1; all 0 if low and high are equal."""
        if self.high <= self.low:
            return np.zeros_like(values)
        return np.asarray(np.clip((values - np.float32(self.low)) / np.float32(self.high - self.low), 0, 1))


def scale_of(reader: Reader, options: VolumeOptions, image: ImageOptions) -> Scale:
    """The normalisation of the intensities of a volume to 0..1, the same in training, validation, test and prediction.

    Colours are in 0..1 already. If the two percentiles are equal, because nearly all voxels have one value, the lowest and the highest
    value take their place.

    Raises:
        DataError: the volume is damaged, or its values do not fit `normalise: none`.
    """
    header = reader.header()
    if header.channels == 3:
        return Scale(0.0, 1.0)
    if options.normalise == "window":
        return Scale(*options.limits())

    def planes() -> Iterator[npt.NDArray[np.float32]]:
        """The slices [n, m] of the volume in order."""
        return (reader.slice(index) for index in range(header.shape[2]))

    if options.normalise == "none":
        return _whole_range(header, planes())
    if options.normalise == "zscore":
        mean, deviation = _moments(planes())
        return Scale(mean - 3 * deviation, mean + 3 * deviation)
    low, high = percentiles(planes, (image.low, image.high))
    return Scale(low, high) if low < high else Scale(*percentiles(planes, (0, 100)))


def _whole_range(header: Header, planes: Iterable[npt.NDArray[np.float32]]) -> Scale:
    """The range of the type of a volume of 8 or 16 bits, or 0..1 for other values, which are given as slices [n, m].

    Raises:
        DataError: other values are not in 0..1.
    """
    if header.dtype.kind == "u" and header.dtype.itemsize <= 2:
        return Scale(0.0, float(np.iinfo(header.dtype).max))
    ends = [(float(plane.min()), float(plane.max())) for plane in planes]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise DataError(
            f"its values go from {low:.4g} to {high:.4g}, and data.volume.normalise: none needs values in 0..1, or 8 or 16 bits without a "
            "sign, slope or intercept; use percentile, window or zscore"
        )
    return Scale(0.0, 1.0)


def _moments(planes: Iterable[npt.NDArray[np.float32]]) -> tuple[float, float]:
    """Mean and standard deviation of all values of slices [n, m]."""
    count, total, squares = 0, 0.0, 0.0
    for plane in planes:
        values = plane.astype(np.float64)
        count, total, squares = count + values.size, total + float(values.sum()), squares + float((values**2).sum())
    mean = total / count
    return mean, float(np.sqrt(max(0.0, squares / count - mean**2)))


@dataclass(frozen=True)
class VoxelValues:
    """What is kept of the voxels of a case after they were read."""

    digest: str | None
    """Digest of the voxels of all sequences; None if each sequence has a single value."""
    low: float
    """The lowest value of all sequences, in the unit of the files."""
    high: float
    """The highest value, likewise."""
    above: float = 0.0
    """The share of the voxels that are above `data.volume.window`; 0 without a window."""


class _Seen:
    """Collects, plane by plane, the digest and the range of the voxels of a case, and whether a sequence has different values."""

    def __init__(self, top: float) -> None:
        """Begin; values above `top` are counted."""
        self._hash = hashlib.blake2b(digest_size=16)
        self._top, self._above, self._count = top, 0, 0
        self._low, self._high = math.inf, -math.inf
        self._first: float | None = None
        self._varies = False

    def begin(self, header: Header) -> None:
        """Begin a sequence of the shape in `header`."""
        self._hash.update(str((header.shape, header.channels)).encode())
        self._first = None

    def passing(self, planes: Iterable[npt.NDArray[np.float32]]) -> Iterator[npt.NDArray[np.float32]]:
        """Iterates over the planes, of any shape, and includes each in the results before it is passed on unchanged."""
        for plane in planes:
            self._first = float(plane.flat[0]) if self._first is None else self._first
            self._varies = self._varies or bool((plane != self._first).any())
            low, high = float(plane.min()), float(plane.max())
            self._low, self._high = min(self._low, low), max(self._high, high)
            self._count += plane.size
            if high > self._top:
                self._above += int(np.count_nonzero(plane > self._top))
            self._hash.update(np.ascontiguousarray(plane).data)
            yield plane

    def found(self) -> VoxelValues:
        """The results, after all planes were read."""
        digest = self._hash.hexdigest() if self._varies else None
        return VoxelValues(digest, self._low, self._high, self._above / max(1, self._count))


def percentiles(
    planes: Callable[[], Iterator[npt.NDArray[np.float32]]], shares: tuple[float, float]
) -> tuple[float, float]:
    """Two percentiles (nearest rank) of all values, exactly, in the memory of one slice.

    This is a radix selection. The bits of a float are read as an integer with the same order as the values. Values are counted by the upper
    half of these bits, and then by the lower half for the upper halves that contain a percentile. No copy of the volume is needed, and the
    result does not depend on the order of the slices.

    Args:
        planes: returns a new iterator over the slices, float32.
        shares: the two percentiles in percent.
    """
    upper = np.zeros(1 << 16, dtype=np.int64)
    for plane in planes():
        upper += np.bincount(_sortable(plane) >> 16, minlength=1 << 16)
    total, below = int(upper.sum()), np.cumsum(upper)
    ranks = [min(total - 1, max(0, int(np.ceil(share / 100 * total)) - 1)) for share in shares]
    halves = [int(np.searchsorted(below, rank, side="right")) for rank in ranks]
    found = []
    for rank, half, counts in zip(ranks, halves, _lower_counts(planes(), halves), strict=True):
        before = int(below[half] - upper[half])
        rest = int(np.searchsorted(np.cumsum(counts), rank - before, side="right"))
        found.append(_value(half << 16 | rest))
    return found[0], found[1]


def _lower_counts(planes: Iterable[npt.NDArray[np.float32]], halves: Sequence[int]) -> list[npt.NDArray[np.int64]]:
    """For each upper half of a key, the number of values with that half by their lower half, shape [65536]; slices of any shape."""
    lower = [np.zeros(1 << 16, dtype=np.int64) for _ in halves]
    for plane in planes:
        keys = _sortable(plane)
        for half, counts in zip(halves, lower, strict=True):
            counts += np.bincount(keys[keys >> 16 == half] & 0xFFFF, minlength=1 << 16)
    return lower


def _sortable(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """The bits of values of any shape as integers with the order of the values, shape [n]."""
    bits = np.ascontiguousarray(values, dtype=np.float32).ravel().view(np.uint32)
    return np.where(bits >> 31 == 1, ~bits, bits | np.uint32(1 << 31))


def _value(key: int) -> float:
    bits = key & 0x7FFFFFFF if key >> 31 else ~key & 0xFFFFFFFF
    return float(np.array(bits, dtype=np.uint32).view(np.float32))


class Volume:
    """The slices of one case: one volume, or several sequences of one grid as channels."""

    def __init__(
        self,
        readers: Sequence[Reader],
        options: VolumeOptions,
        image: ImageOptions,
        *,
        spacing_mm: tuple[float, ...] | None = None,
        spacing_lost: bool = False,
        spacing_else: tuple[float, ...] | None = None,
        scales: tuple[Scale, ...] | None = None,
    ) -> None:
        """Take opened volumes; nothing is decoded yet.

        Args:
            readers: one volume, or up to three sequences of one grid.
            options: plane, channels, normalisation.
            image: percentiles, and the limit for masks that are pictures.
            spacing_mm: spacing along D, H, W that replaces the one in the file.
            spacing_lost: whether the spacing in the file is wrong and must not be used.
            spacing_else: spacing along D, H, W if the file has none.
            scales: the normalisation of each volume, if it is known already.

        Raises:
            DataError: there is no such plane, there are too many slices, or it is not clear along which axes a given spacing lies.
        """
        self.readers, self._options, self.image = tuple(readers), options, image
        self.header = readers[0].header()
        self.slicing = Slicing.of(self.header, options.axis)
        slices = max(self.shape[0], self.header.shape[2])  # the last axis is that along which a file is read
        if slices > _MOST_SLICES:
            raise DataError(
                f"its header gives {slices} slices, and at most {_MOST_SLICES} are read; cut another plane by data.volume.axis, crop it, "
                "or take the case out"
            )
        self._scales, self._spacing, self._lost, self._else = scales, spacing_mm, spacing_lost, spacing_else
        self._refuse_unclear_spacing()

    def _refuse_unclear_spacing(self) -> None:
        """Refuse a given spacing if `data.volume.axis` cuts other slices than `auto` does and than the file holds along its last axis.

        Raises:
            DataError: the lengths of the spacing would change their meaning with the plane.
        """
        given, depth = self._given_spacing, self.slicing.axes[0]
        if given is None or len(set(given)) == 1 or depth in (2, Slicing.of(self.header, "auto").axes[0]):
            return
        raise DataError(
            f"the spacing that is given for it, {'x'.join(f'{length:g}' for length in given)} mm, is that of slices, rows and columns, and "
            f"data.volume.axis: {self._options.axis} cuts it across the slices of its file, so that it is not clear along which axis each "
            "length lies; write the spacing into the file, or set data.volume.axis: auto"
        )

    @property
    def _given_spacing(self) -> tuple[float, float, float] | None:
        """The spacing along D, H, W that the manifest gives, or the site for a file without one; None if that of the file is used."""
        own = None if self._lost else self.header.spacing_mm
        given = self._else if self._spacing is None and own is None else self._spacing
        return (given[0], given[1], given[2]) if given is not None and len(given) == 3 else None

    @property
    def shape(self) -> tuple[int, int, int]:
        """D, H, W."""
        depth, rows, columns = (self.header.shape[axis] for axis in self.slicing.axes)
        return depth, rows, columns

    @property
    def spacing_mm(self) -> tuple[float, float, float] | None:
        """Spacing along D, H, W; None if it is not known."""
        own = None if self._lost else self.header.spacing_mm
        given = self._given_spacing
        if given is not None or own is None:
            return given
        depth, rows, columns = (own[axis] for axis in self.slicing.axes)
        return depth, rows, columns

    @property
    def known_spacing_mm(self) -> tuple[float, float, float] | tuple[float, float] | None:
        """Spacing along D, H, W; along H, W of a single slice whose thickness is not known, such as an X-ray; None if it is not known."""
        spacing, own = self.spacing_mm, None if self._lost else self.header.spacing_mm
        given = own is None or (self._spacing is not None and len(self._spacing) == 3)
        return spacing if spacing is None or given or self.header.thickness_known else spacing[1:]

    def frame(self, side: int) -> Frame:
        """The frame of the slices in the model's square: filling it, or with the pixel size of `data.volume.spacing`.

        Raises:
            DataError: the spacing is not known, or the slices do not fit.
        """
        native, wanted = self.shape[1:], self._options.spacing
        if wanted is None:
            return Frame.of(native, side)
        if self.spacing_mm is None:
            raise DataError(
                "its spacing is not known, so it cannot be resampled to data.volume.spacing; give it in a manifest"
            )
        height, width = (max(1, round(n * mm / wanted)) for n, mm in zip(native, self.spacing_mm[1:], strict=True))
        if max(height, width) > side:
            least = max(n * mm for n, mm in zip(native, self.spacing_mm[1:], strict=True)) / side
            raise DataError(
                f"at {wanted:g} mm its slices have {width} x {height} pixels, more than the model's {side} x {side}; set "
                f"data.volume.spacing to {least:.3g} or more"
            )
        return Frame(native, (height, width), side)

    @property
    def scales(self) -> tuple[Scale, ...]:
        """The normalisation of each sequence.

        Raises:
            DataError: a volume is damaged.
        """
        if self._scales is None:
            self._scales = tuple(scale_of(reader, self._options, self.image) for reader in self.readers)
        return self._scales

    def check_values(self) -> VoxelValues:
        """Read every voxel once, plane by plane, and keep none.

        Raises:
            DataError: a volume is damaged, or its values do not fit `normalise: none`.
        """
        windowed = self._options.normalise == "window" and self.header.channels == 1
        seen = _Seen(self._options.limits()[1] if windowed else math.inf)
        for reader in self.readers:
            seen.begin(reader.header())
            planes = seen.passing(reader.planes())
            if self._options.normalise == "none" and reader.header().channels == 1:
                _whole_range(reader.header(), planes)
            deque(planes, maxlen=0)  # reads the planes that are left
        return seen.found()

    def pixels(self, number: int) -> npt.NDArray[np.float32]:
        """Slice `number` as the model's input, [H, W, 3] in 0..1.

        Raises:
            DataError: the volume is damaged.
        """
        if self._options.neighbours:
            last = self.shape[0] - 1
            channels = [self._grey(0, min(max(0, number + step), last)) for step in (-1, 0, 1)]
        else:
            channels = [self._grey(sequence, number) for sequence in range(len(self.readers))]
        if len(channels) == 1 and channels[0].shape[2] == 3:
            return channels[0]
        return np.concatenate([channels[min(channel, len(channels) - 1)][..., :1] for channel in range(3)], axis=2)

    def picture(self, number: int) -> npt.NDArray[np.float32]:
        """Slice `number` for display, [H, W, 3] in 0..1: of the first sequence, without its neighbours.

        Raises:
            DataError: the volume is damaged.
        """
        grey = self._grey(0, number)
        return grey if grey.shape[2] == 3 else np.repeat(grey[..., :1], 3, axis=2)

    def ids(self, mask: MaskReader, number: int) -> npt.NDArray[np.int64]:
        """Slice `number` of a mask of this volume, [H, W].

        Raises:
            DataError: the mask is damaged, or its values are no ids.
        """
        index = self.slicing.index(number, self.shape[0])
        return np.asarray(self.slicing.turn(mask.mask_slice(index, self.slicing.axes[0])))

    def all_ids(self, mask: MaskReader) -> Iterator[npt.NDArray[np.int64]]:
        """All slices of a mask in order, each of shape [H, W].

        Raises:
            DataError: the mask is damaged, or its values are no ids.
        """
        return (self.ids(mask, number) for number in range(self.shape[0]))

    def write_mask(self, path: Path, mask: npt.NDArray[Any]) -> None:
        """Write ids [D, H, W], uint8 or uint16, on the grid of the file.

        Raises:
            StoreError: the file cannot be written.
        """
        self.readers[0].write_mask(path, self.slicing.to_file(mask))

    def _grey(self, sequence: int, number: int) -> npt.NDArray[np.float32]:
        """A slice of one sequence in 0..1, shape [H, W, 1], or [H, W, 3] in colour."""
        index = self.slicing.index(number, self.shape[0])
        plane = self.readers[sequence].slice(index, self.slicing.axes[0])
        return self.scales[sequence].apply(np.asarray(self.slicing.turn(plane), dtype=np.float32))
