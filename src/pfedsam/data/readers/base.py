"""The protocol of all readers of file formats, and the comparison of two grids of voxels.

Arrays have the indices of the format: NIfTI [i, j, k]; DICOM and pictures [row, column, slice]. The affine maps these indices to patient
coordinates in mm, in NIfTI's directions (x to the right, y to the front, z to the head).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from pfedsam.core.errors import DataError

Affine: TypeAlias = npt.NDArray[np.float64]
Shape: TypeAlias = tuple[int, int, int]
Spacing: TypeAlias = tuple[float, float, float]

_LPS_TO_RAS: Final = np.diag([-1.0, -1.0, 1.0])
"""From DICOM's directions (x to the left, y to the back, z to the head) to NIfTI's."""
SPACING_TOLERANCE: Final = 0.01
"""Relative difference of two spacings that count as equal."""
ORIGIN_TOLERANCE: Final = 1.0
"""Distance in mm of two origins that count as equal, if they are not farther than half a voxel from each other along any axis."""
_HALF_VOXEL: Final = 0.501
"""Distance of two origins along an axis, in voxels, that count as equal; above a half by what is left to rounding."""
Pictures: TypeAlias = frozenset[tuple[str, int]]
"""DICOM pictures: SOP instance, and number of the frame from 1, or 0 for all of a file. They are compared, never shown."""
DIRECTION_TOLERANCE: Final = 0.01
"""Difference of each component of two unit vectors that count as equal."""
_MOST_PIXELS: Final = 80_000_000
"""Largest number of voxels of a plane, for which about 1.4 GB are needed."""
_LARGEST_VALUE: Final = float(np.finfo(np.float32).max) / 8
"""Largest size of a grey value, so that the normalisation, at most six standard deviations of the values, is finite in float32."""


@dataclass(frozen=True)
class Header:
    """Properties of the voxels of a file that are known without decoding them."""

    kind: str
    """The format, for messages: picture, NIfTI, DICOM, ..."""
    shape: Shape
    affine: Affine | None
    """Indices to mm; None if the file has no position."""
    spacing_mm: Spacing | None
    """Along the three indices; None if it is not known. If `thickness_known` is False, that of an axis of one voxel is 1 and means
    nothing."""
    dtype: np.dtype[Any]
    """Type of the values: that of the file, or float32 where a slope or intercept changes them."""
    channels: int = 1
    """3 for colour."""
    frame_of_reference: str | None = None
    """Identifier of a DICOM coordinate system; compared, never shown."""
    placed: bool = True
    """Whether the affine is that of the file, and not only made of the voxel sizes of a file without orientation."""
    pictures: Pictures = field(default=frozenset(), repr=False)
    """The DICOM pictures that the volume consists of."""
    patient: str | None = field(default=None, repr=False)
    """Digest of the DICOM PatientID; None if the file has none. It is compared, never shown."""
    left_out: Pictures = field(default=frozenset(), repr=False)
    """Pictures of the series at the same positions that were not chosen: other times or echoes."""
    thickness_known: bool = True
    """Whether the size of the voxels along an axis of one voxel is known: of an X-ray it is not."""
    acquired: tuple[float, ...] | None = None
    """Places of the slices of the series along the last index, ascending, if they were resampled to an even grid; else None."""
    of_several: bool = False
    """Whether the file or series holds several volumes (times, echoes), of which this is one."""
    contradicted: bool = False
    """Whether the file also gives other voxel sizes or axes than the affine (the sform and the qform of a NIfTI file differ in them)."""

    @property
    def drawn_shape(self) -> Shape:
        """The shape of a mask that was drawn on the slices of the file, which may be fewer than those of an even grid."""
        rows, columns, slices = self.shape
        return rows, columns, slices if self.acquired is None else len(self.acquired)


class Reader(Protocol):
    """An open file, or an open folder of DICOM files."""

    def header(self) -> Header:
        """Shape, spacing and position; nothing is decoded.

        Raises:
            DataError: the file is damaged, or of a kind that is not read.
        """
        ...

    def slice(self, index: int, axis: int = 2) -> npt.NDArray[np.float32]:
        """The values of the plane with this index along `axis`: [A, B, C], the two other axes in their order and C channels.

        Raises:
            DataError: the plane cannot be decoded.
        """
        ...

    def planes(self) -> Iterator[npt.NDArray[np.float32]]:
        """What `slice` returns for every index along the last axis, in order; each is read and forgotten, so that little memory is needed.

        Raises:
            DataError: a plane cannot be decoded.
        """
        ...

    def write_mask(self, path: Path, mask: npt.NDArray[Any]) -> None:
        """Write a mask with the shape and the grid of this file.

        Args:
            path: the file to write.
            mask: ids, uint8 or uint16, with the indices of this file's voxels.

        Raises:
            StoreError: the file cannot be written.
        """
        ...


def grey_values(values: npt.NDArray[np.float64], what: str) -> npt.NDArray[np.float32]:
    """Values of any shape, after slope and intercept, as float32; `what` names the file in the message.

    Raises:
        DataError: a value is not finite, or so large that the normalisation of the values would not be finite.
    """
    with np.errstate(invalid="ignore"):
        wrong = ~(np.abs(values) <= _LARGEST_VALUE)
    if wrong.any():
        raise DataError(
            f"{what} holds {values[wrong].flat[0]:g}, where finite numbers between -{_LARGEST_VALUE:.2g} and {_LARGEST_VALUE:.2g} are "
            "needed; replace such values, or take the case out"
        )
    return values.astype(np.float32)


def frame_affine(
    orientation: npt.ArrayLike, spacing: Sequence[float], step: npt.ArrayLike, origin: npt.ArrayLike
) -> Affine:
    """The affine from the indices [row, column, slice] of DICOM pictures to mm in NIfTI's directions.

    Args:
        orientation: unit vectors along a row and along a column, six numbers.
        spacing: distance of rows and of columns in mm.
        step: vector from one slice to the next in mm, shape [3].
        origin: position of the first pixel in mm, shape [3]; all vectors are in DICOM's directions.
    """
    along_row, along_column = np.asarray(orientation, dtype=float).reshape(2, 3)
    affine = np.eye(4)
    affine[:3, 0] = _LPS_TO_RAS @ along_column * float(spacing[0])
    affine[:3, 1] = _LPS_TO_RAS @ along_row * float(spacing[1])
    affine[:3, 2] = _LPS_TO_RAS @ np.asarray(step, dtype=float)
    affine[:3, 3] = _LPS_TO_RAS @ np.asarray(origin, dtype=float)
    return affine


def spacing_of(affine: Affine) -> Spacing:
    """Distance of neighbouring voxels along each index, in mm."""
    first, second, third = np.linalg.norm(affine[:3, :3], axis=0)
    return float(first), float(second), float(third)


def check_affine(affine: Affine, whose: str) -> None:
    """Refuse a grid that has no volume, or whose axes are not at right angles; `whose` begins the message, such as `its NIfTI`.

    Raises:
        DataError: the grid is refused.
    """
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or (lengths < 1e-6).any():
        raise DataError(
            f"{whose} header has an affine that is zero, or not finite, along an axis, so the voxels have no place in space; "
            "write the file again with its orientation"
        )
    unit = affine[:3, :3] / lengths
    skew = np.abs(unit.T @ unit - np.eye(3)).max()
    if skew > DIRECTION_TOLERANCE:
        raise DataError(
            f"{whose} grid is not right-angled (cosine {skew:.3f} between two axes, as from a tilted gantry); "
            "resample it to a right-angled grid before use"
        )


def check_size(shape: Shape, itemsize: int, max_gigabytes: float, whose: str = "its") -> None:
    """Refuse a volume, not yet decoded, that is larger than the limit; `whose` begins the message.

    A plane is processed as a whole, with several numbers of eight bytes a pixel, so that the size of a plane has a limit of its own.

    Raises:
        DataError: the volume or a plane of it is too large, or it has an empty axis.
    """
    if min(shape) < 1:
        raise DataError(
            f"{whose} header gives {_by(shape)} voxels: an axis is empty; restore the file or take the case out"
        )
    voxels = math.prod(map(int, shape))
    if voxels * itemsize > max_gigabytes * 1e9:
        raise DataError(
            f"{whose} header gives {_by(shape)} voxels, which is {voxels * itemsize / 1e9:.3g} GB, more than {max_gigabytes:g} GB; crop "
            "it, or raise data.volume.max_gigabytes if the memory is there"
        )
    largest = sorted(map(int, shape))[-2:]
    if largest[0] * largest[1] > _MOST_PIXELS:
        raise DataError(
            f"{whose} header gives {_by(shape)} voxels, so that a plane has {largest[0] * largest[1] / 1e6:.0f} million, more than "
            f"{_MOST_PIXELS / 1e6:.0f} million; crop it, or save it with larger voxels"
        )


def grid_difference(image: Header, mask: Header, *, word: str = "mask") -> str | None:
    """The difference between the grids of an image and its mask, with both numbers; None if they agree.

    Spacings and positions are only compared if both have them. `word` says what the second file is, such as "sequence".
    """
    if image.shape != mask.shape:
        return f"the image has {_by(image.shape)} voxels, its {word} {_by(mask.shape)}"
    if image.affine is None or mask.affine is None:
        return None
    ours, theirs = np.array(spacing_of(image.affine)), np.array(spacing_of(mask.affine))
    known = both_placed(image, mask) or (image.spacing_mm is not None and mask.spacing_mm is not None)
    compared = [(image.thickness_known and mask.thickness_known) or length > 1 for length in image.shape]
    if known and (np.abs(theirs - ours) > SPACING_TOLERANCE * ours)[compared].any():
        return f"the image's spacing is {_mm(ours)} mm, its {word}'s {_mm(theirs)} mm"
    if not both_placed(image, mask):
        return None
    directions = np.abs(image.affine[:3, :3] / ours - mask.affine[:3, :3] / theirs).max()
    if directions > DIRECTION_TOLERANCE:
        return (
            f"the axes of the image and of its {word} point elsewhere (largest difference {directions:.3g}, "
            f"allowed {DIRECTION_TOLERANCE})"
        )
    origins = image.affine[:3, 3], mask.affine[:3, 3]
    apart = origins[1] - origins[0]
    voxels = np.abs(np.linalg.solve(image.affine[:3, :3], apart))
    if np.linalg.norm(apart) > ORIGIN_TOLERANCE or (voxels > _HALF_VOXEL)[compared].any():
        return f"the image begins at ({_mm(origins[0], ', ')}) mm, its {word} at ({_mm(origins[1], ', ')}) mm"
    return None


def both_placed(image: Header, mask: Header) -> bool:
    """Whether the positions of two files can be compared, because both have one of their own."""
    return all(header.affine is not None and header.placed for header in (image, mask))


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _mm(values: npt.NDArray[np.float64], joined: str = " x ") -> str:
    """Values in mm of shape [n] as text, such as `0.5 x 0.5 x 3`."""
    return joined.join(f"{value:.4g}" for value in values)
