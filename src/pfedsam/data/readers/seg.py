"""DICOM-SEG, read on the grid of its image.

Frames are placed by their positions, never by their order. Binary, fractional (a share, which a threshold turns into a mask) and label-map
segmentations are read; overlapping segments need `data.volume.segments`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pixel_array

from pfedsam.core.errors import DataError
from pfedsam.data.readers.base import DIRECTION_TOLERANCE, ORIGIN_TOLERANCE, SPACING_TOLERANCE, Affine, Header
from pfedsam.data.readers.dicom import open_dataset
from pfedsam.data.readers.dicom_files import damaged, quiet
from pfedsam.data.readers.masks import GridMask, Overlaps, choose_ids, empty_ids, paint, refuse_overlap
from pfedsam.data.readers.regrid import nearest_voxels

_LPS_TO_RAS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class _Frame:
    index: int
    segment: int
    """Number of the segment; 0 in a label map, whose values say it."""
    affine: Affine
    """[row, column, 0] to mm, as NIfTI has them."""


def read_seg(
    path: Path,
    image: Header,
    *,
    segments: dict[str, int],
    overlaps: Overlaps,
    threshold: float = 0.5,
    resample: bool = False,
) -> GridMask:
    """The segmentation on the grid of its image.

    Args:
        path: Of the DICOM-SEG.
        image: Its image.
        segments: Name of a segment to its id; empty: ids are the segments' numbers.
        overlaps: What happens where segments share voxels.
        threshold: Least share of a voxel that counts as the segment, for fractional ones.
        resample: Allow another grid in the same coordinate system.

    Raises:
        DataError: The file is damaged, belongs to other coordinates or another grid, or its segments overlap.
    """
    dataset = open_dataset(path)
    try:
        with quiet():
            names = {int(one.SegmentNumber): str(one.get("SegmentLabel", "")) for one in dataset.SegmentSequence}
            names.pop(0, None)  # the background of a label map
            frames = list(_frames(dataset, image))
            size = int(dataset.Rows), int(dataset.Columns)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise DataError(damaged(path)) from None
    _check_coordinates(dataset, image)
    chosen = choose_ids(names, segments, "DICOM-SEG")
    target = empty_ids(image.shape, chosen, overlaps)
    places = [_place(frame.affine, size, image) for frame in frames]
    difference = next((place for place in places if isinstance(place, str)), None)
    if difference is not None and not resample:
        raise DataError(
            f"{difference}; export the segmentation of this image, or set data.volume.resample: true to resample it"
        )
    overlap = 0
    for number, value in chosen:
        own = [k for k, frame in enumerate(frames) if frame.segment in (0, number)]
        planes = [(frames[k].affine, _segment(path, dataset, frames[k], number, threshold)) for k in own]
        if difference is not None and planes:
            overlap += paint(target, _resampled(planes, image), value, overlaps)
            continue
        for k, (_, plane) in zip(own, planes, strict=True):
            place = places[k]
            if isinstance(place, _Place):
                part = plane.T if place.turned else plane
                overlap += paint(target[place.where], part, value, overlaps)
    refuse_overlap(overlap, "DICOM-SEG")
    notes = () if difference is None else (f"the segmentation was resampled to the grid of its image ({difference})",)
    return GridMask(target, image, notes)


def _frames(dataset: Dataset, image: Header) -> Iterator[_Frame]:
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    label_map = str(dataset.get("SegmentationType", "")) == "LABELMAP"
    for index, own in enumerate(dataset.PerFrameFunctionalGroupsSequence):

        def get(sequence: str, own: Dataset = own) -> Dataset:
            found = own.get(sequence) or shared.get(sequence)
            return found[0] if found else Dataset()

        segment = 0 if label_map else int(get("SegmentIdentificationSequence").ReferencedSegmentNumber)
        position = get("PlanePositionSequence").get("ImagePositionPatient")
        orientation = get("PlaneOrientationSequence").get("ImageOrientationPatient")
        spacing = get("PixelMeasuresSequence").get("PixelSpacing")
        affine = np.eye(4)
        if position and orientation and spacing:
            affine[:3, 0] = np.array(orientation[3:], dtype=float) * float(spacing[0])
            affine[:3, 1] = np.array(orientation[:3], dtype=float) * float(spacing[1])
            affine[:3, 2] = np.cross(np.array(orientation[:3], dtype=float), np.array(orientation[3:], dtype=float))
            affine[:3, 3] = position
            affine = _LPS_TO_RAS @ affine
        elif image.affine is not None and image.shape[2] == 1:
            affine = image.affine
        yield _Frame(index, segment, affine)


def _check_coordinates(dataset: Dataset, image: Header) -> None:
    """Refuse a segmentation of another coordinate system.

    Raises:
        DataError: It is.
    """
    theirs = str(dataset.get("FrameOfReferenceUID", "")) or None
    if theirs and image.frame_of_reference and theirs != image.frame_of_reference:
        raise DataError(
            "its DICOM-SEG belongs to other coordinates than the image (another frame of reference), so it cannot be placed; give the "
            "segmentation of this series"
        )


@dataclass(frozen=True)
class _Place:
    """Where a frame lies in the image's array."""

    where: tuple[int | slice, ...]
    turned: bool
    """Whether the frame's columns run along an earlier axis than its rows."""


def _place(frame: Affine, size: tuple[int, int], image: Header) -> _Place | str:
    """Where a frame lies in the image's array, or in which way it does not fit."""
    if image.affine is None:
        if image.shape == (*size, 1):
            return _Place((slice(None), slice(None), 0), turned=False)
        return f"the image has {image.shape} voxels and no position, the segmentation {size} pixels"
    change = np.linalg.inv(image.affine) @ frame
    steps = change[:3, :2]
    axes = [int(np.abs(steps[:, k]).argmax()) for k in (0, 1)]
    exact = np.zeros((3, 2))
    for k, axis in enumerate(axes):
        exact[axis, k] = np.sign(steps[axis, k])
    if axes[0] == axes[1] or np.abs(steps - exact).max() > max(DIRECTION_TOLERANCE, SPACING_TOLERANCE):
        theirs = [float(np.linalg.norm(frame[:3, k])) for k in (0, 1)]
        ours = [float(np.linalg.norm(image.affine[:3, axis])) for axis in axes]
        return (
            f"the pixels of the segmentation ({theirs[0]:.4g} x {theirs[1]:.4g} mm) are not those of the image ({ours[0]:.4g} x "
            f"{ours[1]:.4g} mm), or its axes point elsewhere"
        )
    return _index(change[:3, 3], exact, axes, size, image, image.affine)


def _index(
    start: npt.NDArray[np.float64],
    exact: npt.NDArray[np.float64],
    axes: Sequence[int],
    size: tuple[int, int],
    image: Header,
    affine: Affine,
) -> _Place | str:
    """The position of a frame whose axes run along `axes` of the image and whose first pixel is at the voxel `start`, shape [3]."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    voxel = np.rint(start)
    other = 3 - axes[0] - axes[1]
    off = float(np.linalg.norm((start - voxel) * spacing))
    fits = 0 <= voxel[other] < image.shape[other] and off <= min(ORIGIN_TOLERANCE, float(spacing[other]) / 2)
    for k, axis in enumerate(axes):
        expected = 0 if exact[axis, k] > 0 else image.shape[axis] - 1
        fits = fits and voxel[axis] == expected and size[k] == image.shape[axis]
    if not fits:
        found = " x ".join(map(str, size))
        return (
            f"a frame of the segmentation ({found} pixels) begins at voxel ({', '.join(f'{value:.3g}' for value in start)}) of the image "
            f"of {' x '.join(map(str, image.shape))}, which is no slice of it"
        )
    where: list[int | slice] = [int(value) for value in voxel]
    for k, axis in enumerate(axes):
        where[axis] = slice(None) if exact[axis, k] > 0 else slice(None, None, -1)
    return _Place(tuple(where), turned=axes[0] > axes[1])


def _segment(path: Path, dataset: Dataset, frame: _Frame, number: int, threshold: float) -> npt.NDArray[np.bool_]:
    """The mask of a segment in a frame, shape [rows, columns].

    Raises:
        DataError: The pixels are damaged.
    """
    try:
        with quiet():
            values: npt.NDArray[Any] = pixel_array(dataset, index=frame.index)
            values = values.reshape(int(dataset.Rows), int(dataset.Columns))
            kind, highest = str(dataset.SegmentationType), float(dataset.get("MaximumFractionalValue") or 255)
    except Exception:  # noqa: BLE001 - decoders raise almost anything on damaged files, and their text may quote headers
        raise DataError(damaged(path)) from None
    if kind == "LABELMAP":
        return np.asarray(values == number)
    if kind == "FRACTIONAL":
        return np.asarray(values / highest >= threshold)
    return np.asarray(values > 0)


def _resampled(planes: Sequence[tuple[Affine, npt.NDArray[np.bool_]]], image: Header) -> npt.NDArray[np.bool_]:
    """The frames of one segment, resampled to the image's grid by the nearest voxel, shape [rows, columns, slices].

    Raises:
        DataError: The image has no position.
    """
    if image.affine is None:
        raise DataError(
            "its image has no position, so a segmentation of another grid cannot be placed; export one of this image"
        )
    first = planes[0][0]
    normal = first[:3, 2] / np.linalg.norm(first[:3, 2])
    along = np.array([np.dot(affine[:3, 3] - first[:3, 3], normal) for affine, _ in planes])
    gaps = np.diff(np.unique(np.round(along, 3)))
    step = float(gaps.min()) if len(gaps) else float(np.linalg.norm(image.affine[:3, 2]))
    places = np.rint((along - along.min()) / step).astype(int)
    volume = np.zeros((*planes[0][1].shape, int(places.max()) + 1), dtype=np.int64)
    for place, (_, plane) in zip(places, planes, strict=True):
        volume[..., place] |= plane
    affine = first.copy()
    affine[:3, 2] = normal * step
    affine[:3, 3] = first[:3, 3] + normal * along.min()
    return nearest_voxels(volume, affine, image.affine, image.shape) > 0
