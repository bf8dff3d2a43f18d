"""Frames of a DICOM-SEG as a volume of their own, and its resampling to the grid of an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pfedsam.core.errors import DataError
from pfedsam.data.readers.base import DIRECTION_TOLERANCE, Affine, Header, Pictures, check_size
from pfedsam.data.readers.regrid import foreground_outside, nearest_voxels


@dataclass(frozen=True)
class Frame:
    """One frame of the file."""

    index: int
    segment: int
    """Number of the segment; 0 in a label map, where the pixels contain the numbers."""
    affine: Affine
    """Indices [row, column, 0] to mm in NIfTI's directions."""
    pictures: Pictures
    """The pictures that it was drawn on; empty if the file does not say."""


SegmentPlane: TypeAlias = tuple[Frame, npt.NDArray[np.bool_]]
"""A frame and the mask of one segment in it, shape [rows, columns]."""


@dataclass(frozen=True)
class ResampledSegment:
    """A segment on the grid of the image."""

    mask: npt.NDArray[np.bool_]
    """Shape [rows, columns, slices]."""
    outside: int
    """The number of its voxels in the file that lie outside the image."""
    total: int
    """The number of all its voxels in the file."""


def resample_segment(
    planes: Sequence[SegmentPlane], distance: float | None, image: Header, max_gigabytes: float
) -> ResampledSegment:
    """The mask of one segment on the grid of the image, by the nearest voxel.

    Args:
        planes: frames of the segment and their masks.
        distance: distance of the slices of the file in mm; None if it is not known.
        image: header of the image.
        max_gigabytes: largest size of the segment between its first and its last frame.

    Raises:
        DataError: the image has no position, or the frames make no volume.
    """
    if image.affine is None:
        raise DataError(
            "its image has no position, so a segmentation of another grid cannot be placed; export one of this image"
        )
    if distance is None:
        raise DataError(
            "its DICOM-SEG does not give the distance of its slices, or its frames are unevenly spaced, so that it cannot be resampled; "
            "export one of this image"
        )
    frames = [frame for frame, _ in planes]
    first, shape, along = frames[0].affine, planes[0][1].shape, along_normal(frames)
    _refuse_sideways(frames)
    numbers = np.rint((along - along.min()) / distance).astype(int)
    refuse_doubled([(frame.segment, number) for frame, number in zip(frames, numbers.tolist(), strict=True)])
    size = (shape[0], shape[1], int(numbers.max()) + 1)
    check_size(size, 1, max_gigabytes, "its DICOM-SEG")
    volume = np.zeros(size, dtype=np.uint8)
    for number, (_, mask) in zip(numbers, planes, strict=True):
        volume[..., number] |= mask
    affine = first.copy()
    normal = first[:3, 2] / np.linalg.norm(first[:3, 2])
    affine[:3, 2] = normal * distance
    affine[:3, 3] = first[:3, 3] + normal * along.min()
    outside, total = foreground_outside(volume, affine, image.affine, image.shape)
    return ResampledSegment(nearest_voxels(volume, affine, image.affine, image.shape) > 0, outside, total)


def along_normal(frames: Sequence[Frame]) -> npt.NDArray[np.float64]:
    """Places of frames in mm along the normal of the first of them, at which they are counted from, shape [n]."""
    first = frames[0].affine
    normal = first[:3, 2] / np.linalg.norm(first[:3, 2])
    return np.array([np.dot(frame.affine[:3, 3] - first[:3, 3], normal) for frame in frames])


def refuse_doubled(places: Sequence[tuple[int, Any]]) -> None:
    """Refuse several frames of one segment, given by its number, at one place.

    Raises:
        DataError: there are such frames.
    """
    doubled = len(places) - len(set(places))
    if doubled:
        raise DataError(
            f"its DICOM-SEG has several frames of one segment at the same place ({doubled} too many): it may hold several times, and it is "
            "not known which frame belongs to this image; export the segmentation of this image alone"
        )


def _refuse_sideways(frames: Sequence[Frame]) -> None:
    """Refuse frames that are turned, or shifted by more than half a pixel, against the first of them.

    Raises:
        DataError: there are such frames.
    """
    affines = np.array([frame.affine for frame in frames]) - frames[0].affine
    normal = frames[0].affine[:3, 2] / np.linalg.norm(frames[0].affine[:3, 2])
    sideways = affines[:, :3, 3] - along_normal(frames)[:, None] * normal
    pixel = np.linalg.norm(frames[0].affine[:3, :2], axis=0).min()
    if np.linalg.norm(sideways, axis=1).max() > pixel / 2 or np.abs(affines[:, :3, :3]).max() > DIRECTION_TOLERANCE:
        raise DataError(
            "the frames of its DICOM-SEG are not a right-angled stack (tilted gantry, or several planes), which is not resampled; export "
            "the segmentation on the grid of its image"
        )
