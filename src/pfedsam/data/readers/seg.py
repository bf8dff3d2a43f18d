"""DICOM-SEG files, read on the grid of their image.

Frames are placed by their positions, never by their order. Binary, fractional and label-map segmentations are read; a threshold turns
fractions into a mask. Overlapping segments need `data.volume.segments`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from pfedsam.core.errors import DataError
from pfedsam.data.readers.base import (
    DIRECTION_TOLERANCE,
    ORIGIN_TOLERANCE,
    SPACING_TOLERANCE,
    Affine,
    Header,
    frame_affine,
)
from pfedsam.data.readers.dicom_files import damaged, quiet, reading_fields
from pfedsam.data.readers.dicom_pixels import open_dataset
from pfedsam.data.readers.dicom_planes import functional_group, number_of, number_of_frames, shared_groups
from pfedsam.data.readers.dicom_streams import decode_frame
from pfedsam.data.readers.masks import (
    GridMask,
    PartNames,
    choose_ids,
    empty_ids,
    is_of_other_pictures,
    note_other_series,
    note_outside,
    paint,
    pictures_of,
    refuse_other_pictures,
    refuse_overlap,
    spread_slices,
)
from pfedsam.data.readers.regrid import slice_numbers, usual_gap
from pfedsam.data.readers.seg_frames import Frame, SegmentPlane, along_normal, refuse_doubled, resample_segment
from pfedsam.data.volume_options import VolumeOptions

_FORWARD: Final = slice(None)
_BACKWARD: Final = slice(None, None, -1)
_SAME_PLACE: Final = 0.01
"""Largest distance of two frames at one place, in mm."""
_OFF_STEP: Final = 0.1
"""Largest distance of a frame from a multiple of the distance of slices, as a share of that distance."""


@dataclass(frozen=True)
class _Place:
    """The position of a frame in the array of the image."""

    where: tuple[int | slice, ...]
    turned: bool
    """Whether the columns of the frame run along an earlier axis than its rows."""


@dataclass(frozen=True)
class _Contents:
    """A segmentation whose headers were read; its pixels are decoded later."""

    dataset: Dataset
    names: dict[int, str]
    """Number of a segment to its name."""
    frames: list[Frame]
    size: tuple[int, int]
    """Rows and columns of each frame."""
    measures: tuple[float, ...]
    """What the file gives as distance of its slices and as their thickness, in mm; the thickness may be another one than the distance."""


class _OtherGridError(Exception):
    """A frame is not a slice of the image; the text gives the reason."""


def read_seg(path: Path, image: Header, options: VolumeOptions) -> GridMask:
    """The segmentation on the grid of its image.

    Args:
        path: the DICOM-SEG file.
        image: header of the image.
        options: the ids of the segments by name, or none if their numbers are the ids; what happens where they overlap; the threshold of
            fractions; and whether a segmentation on another grid of the same coordinate system is resampled instead of refused.

    Raises:
        DataError: the file is damaged, has other coordinates or another grid, or its segments overlap.
    """
    segments, overlaps = options.segments, options.segment_overlaps
    contents = _read_contents(path, image)
    _check_coordinates(contents.dataset, image)
    chosen = choose_ids(contents.names, segments, "DICOM-SEG")
    places, difference = _places(contents, image)
    if difference and not options.resample:
        raise DataError(
            f"{difference}; export the segmentation of this image, or set data.volume.resample: true to resample it"
        )
    target, overlap = empty_ids(image.shape if difference else image.drawn_shape, chosen, overlaps), 0
    outside, total = 0, 0
    for number, value in chosen:
        planes = list(_segment_planes(path, contents, number, options.fractional_threshold))
        if not difference:
            for frame, mask in planes:
                place = places[frame.index]
                overlap += paint(target[place.where], mask.T if place.turned else mask, value, overlaps)
        elif planes:
            resampled = resample_segment(planes, _distance(contents), image, options.max_gigabytes)
            overlap += paint(target, resampled.mask, value, overlaps)
            outside, total = outside + resampled.outside, total + resampled.total
    refuse_overlap(overlap, "DICOM-SEG")
    notes: tuple[str, ...]
    if difference:
        left_out = note_outside("DICOM-SEG", outside, total)
        notes = (f"the segmentation was resampled to the grid of its image ({difference})", *left_out)
    else:
        target, notes = spread_slices(target, image)
    references = frozenset[tuple[str, int]]().union(*(frame.pictures for frame in contents.frames))
    notes += note_other_series("segmentation", references, image)
    every = contents.names.values()
    return GridMask(target, image, notes, PartNames.of(every, every, segments))


def _read_contents(path: Path, image: Header) -> _Contents:
    """Names, frames and size of a segmentation.

    Raises:
        DataError: the file is damaged, or of other pictures of the series.
    """
    dataset = open_dataset(path)
    with reading_fields(path):
        number_of_frames(path, dataset)
        names = {int(one.SegmentNumber): str(one.get("SegmentLabel", "")) for one in dataset.SegmentSequence}
        names.pop(0, None)  # the background of a label map
        every = list(_frames(dataset, image))
        size = int(dataset.Rows), int(dataset.Columns)
        measures = _measures(dataset)
    if any(frame.segment and frame.segment not in names for frame in every):
        raise DataError(damaged(path))
    frames = [frame for frame in every if not is_of_other_pictures(frame.pictures, image)]
    if every and not frames:
        refuse_other_pictures("DICOM-SEG")
    return _Contents(dataset, names, frames, size, measures)


def _measures(dataset: Dataset) -> tuple[float, ...]:
    """The distance and the thickness of slices in mm that a file gives; without those that are absent or not positive."""
    own = next(iter(dataset.get("PerFrameFunctionalGroupsSequence") or ()), Dataset())
    group = functional_group(own, shared_groups(dataset), "PixelMeasuresSequence") or Dataset()
    values = [number_of(group.get(keyword)) for keyword in ("SpacingBetweenSlices", "SliceThickness")]
    return tuple(value for value in values if 0 < value < np.inf)


def _frames(dataset: Dataset, image: Header) -> Iterator[Frame]:
    shared = shared_groups(dataset)
    label_map = str(dataset.get("SegmentationType", "")) == "LABELMAP"
    for index, own in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        identification = functional_group(own, shared, "SegmentIdentificationSequence") or Dataset()
        segment = 0 if label_map else int(identification.ReferencedSegmentNumber)
        derivations = own.get("DerivationImageSequence") or shared.get("DerivationImageSequence") or ()
        sources = chain.from_iterable(one.get("SourceImageSequence") or () for one in derivations)
        yield Frame(index, segment, _frame_affine(own, shared, image), pictures_of(sources))


def _frame_affine(own: Dataset, shared: Dataset, image: Header) -> Affine:
    """The affine of a frame; without a position that of an image of one slice, else the unit matrix."""

    def get(sequence: str, keyword: str) -> Any:  # noqa: ANN401 - a DICOM value
        return (functional_group(own, shared, sequence) or Dataset()).get(keyword)

    position = get("PlanePositionSequence", "ImagePositionPatient")
    orientation = get("PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = get("PixelMeasuresSequence", "PixelSpacing")
    if position and orientation and spacing:
        vectors = np.array(orientation, dtype=float)
        return frame_affine(vectors, spacing, np.cross(vectors[:3], vectors[3:]), position)
    if image.affine is not None and image.shape[2] == 1:
        return image.affine
    return np.eye(4)


def _check_coordinates(dataset: Dataset, image: Header) -> None:
    """Refuse a segmentation in another coordinate system than the image.

    Raises:
        DataError: the frames of reference differ.
    """
    theirs = str(dataset.get("FrameOfReferenceUID", "")) or None
    if theirs and image.frame_of_reference and theirs != image.frame_of_reference:
        raise DataError(
            "its DICOM-SEG belongs to other coordinates than the image (another frame of reference), so it cannot be placed; give the "
            "segmentation of this series"
        )


def _places(contents: _Contents, image: Header) -> tuple[Mapping[int, _Place], str | None]:
    """The position of each frame in the image, by index; or an empty mapping, and why a frame is not a slice of the image.

    Raises:
        DataError: a segment has several frames at one place.
    """
    try:
        places = {frame.index: _place(frame.affine, contents.size, image) for frame in contents.frames}
        _check_distance(contents, image)
    except _OtherGridError as error:
        return {}, str(error)
    refuse_doubled([(frame.segment, str(places[frame.index].where)) for frame in contents.frames])
    return places, None


def _check_distance(contents: _Contents, image: Header) -> None:
    """Refuse a segmentation, each frame of which is at a slice of the image, whose slices have another distance than those of the image.

    Slices between its frames would stay empty. Frames that refer to slices of the image are of these slices.

    Raises:
        _OtherGridError: the distances differ.
    """
    drawn_here = any(not frame.pictures.isdisjoint(image.pictures) for frame in contents.frames)
    if image.affine is None or not contents.frames or drawn_here or _at_neighbours(contents.frames, image):
        return
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    across = int(np.abs((image.affine[:3, :3] / spacing).T @ contents.frames[0].affine[:3, 2]).argmax())
    positions = usual_gap(along_normal(contents.frames), _SAME_PLACE)
    ours, theirs = float(spacing[across]), _distance(contents) or positions
    agree = [one is not None and abs(one - ours) <= SPACING_TOLERANCE * ours for one in (positions, theirs)]
    if theirs is not None and image.shape[across] > 1 and not any(agree):
        raise _OtherGridError(
            f"the slices of the segmentation are {theirs:.4g} mm apart, those of the image {ours:.4g} mm"
        )


def _at_neighbours(frames: Sequence[Frame], image: Header) -> bool:
    """Whether most frames are at neighbouring slices of a series that was resampled, whose slices have several distances."""
    if image.acquired is None or image.affine is None:
        return False
    inverse = np.linalg.inv(image.affine)
    numbers = slice_numbers(np.array([(inverse @ frame.affine[:, 3])[2] for frame in frames]), image.acquired)
    steps = np.diff(np.unique(np.rint(numbers)))
    return len(steps) > 0 and float(np.median(steps)) == 1


def _distance(contents: _Contents) -> float | None:
    """The distance of the slices of a segmentation in mm; None if it is not known, or not the same everywhere.

    It is what the file gives, if all frames are at multiples of it, else the gap of neighbouring frames, which is too large if the slices
    between them are left out because they are empty.
    """
    places = along_normal(contents.frames)
    for measure in contents.measures:
        steps = (places - places.min()) / measure
        if np.abs(steps - np.rint(steps)).max() <= _OFF_STEP:
            return measure
    gap = usual_gap(places, _SAME_PLACE)
    steps = np.diff(np.sort(places)) / (gap or 1.0)
    even = np.abs(steps - np.rint(steps)) <= np.maximum(_OFF_STEP, SPACING_TOLERANCE * steps)
    return gap if even.all() else None


def _place(frame: Affine, size: tuple[int, int], image: Header) -> _Place:
    """The position of a frame of `size` (rows, columns) in the array of the image.

    Raises:
        _OtherGridError: it is not a slice of the image.
    """
    if image.affine is None:
        if image.shape == (*size, 1):
            return _Place((_FORWARD, _FORWARD, 0), turned=False)
        raise _OtherGridError(f"the image has {image.shape} voxels and no position, the segmentation {size} pixels")
    change = np.linalg.inv(image.affine) @ frame
    steps = change[:3, :2]  # of one row and of one column, in voxels of the image
    axes = np.abs(steps).argmax(axis=0)
    signs = np.sign(steps[axes, [0, 1]])
    exact = np.zeros((3, 2))
    exact[axes, [0, 1]] = signs
    if axes[0] == axes[1] or np.abs(steps - exact).max() > max(DIRECTION_TOLERANCE, SPACING_TOLERANCE):
        theirs = np.linalg.norm(frame[:3, :2], axis=0)
        ours = np.linalg.norm(image.affine[:3, axes], axis=0)
        raise _OtherGridError(
            f"the pixels of the segmentation ({theirs[0]:.4g} x {theirs[1]:.4g} mm) are not those of the image ({ours[0]:.4g} x "
            f"{ours[1]:.4g} mm), or its axes point elsewhere"
        )
    return _slice_at(change[:3, 3], axes, signs, size, image, image.affine)


def _slice_at(
    start: npt.NDArray[np.float64],
    axes: npt.NDArray[np.intp],
    signs: npt.NDArray[np.float64],
    size: tuple[int, int],
    image: Header,
    affine: Affine,
) -> _Place:
    """The slice of the image that a frame covers; of an image that was resampled, the slice of its series.

    Args:
        start: indices in the image of the first pixel of the frame, shape [3].
        axes: axes of the image along which the row and the column number increase, shape [2].
        signs: 1, or -1 where the numbers increase against the axis, shape [2].
        size: rows and columns of the frame.
        image: header of the image.
        affine: affine of the image.

    Raises:
        _OtherGridError: the frame does not cover a slice.
    """
    spacing, shape = np.linalg.norm(affine[:3, :3], axis=0), np.array(image.drawn_shape)
    place = np.rint(start)
    voxel = place.astype(int)
    if image.acquired is not None:
        voxel[2] = np.abs(np.array(image.acquired) - start[2]).argmin()
        place[2] = image.acquired[voxel[2]]
    across = 3 - axes.sum()
    distance = float(np.linalg.norm((start - place) * spacing))
    inside = 0 <= voxel[across] < shape[across] and distance <= min(ORIGIN_TOLERANCE, float(spacing[across]) / 2)
    corner = np.where(signs > 0, 0, shape[axes] - 1)
    if not inside or (voxel[axes] != corner).any() or (shape[axes] != size).any():
        found = " x ".join(map(str, size))
        raise _OtherGridError(
            f"a frame of the segmentation ({found} pixels) begins at voxel ({', '.join(f'{value:.3g}' for value in start)}) of the image "
            f"of {' x '.join(map(str, image.shape))}, which is not a slice of it"
        )
    where: list[int | slice] = voxel.tolist()
    for axis, sign in zip(axes, signs, strict=True):
        where[axis] = _FORWARD if sign > 0 else _BACKWARD
    return _Place(tuple(where), turned=bool(axes[0] > axes[1]))


def _segment_planes(path: Path, contents: _Contents, number: int, threshold: float) -> Iterator[SegmentPlane]:
    """The frames of a segment, each with the mask of the segment.

    Raises:
        DataError: the pixels are damaged.
    """
    for frame in contents.frames:
        if frame.segment in (0, number):
            yield frame, _segment(path, contents.dataset, frame, number, threshold)


def _segment(path: Path, dataset: Dataset, frame: Frame, number: int, threshold: float) -> npt.NDArray[np.bool_]:
    """The mask of a segment in a frame, shape [rows, columns].

    Raises:
        DataError: the pixels are damaged.
    """
    try:
        with quiet():
            values: npt.NDArray[Any] = decode_frame(dataset, frame.index)
            values = values.reshape(int(dataset.Rows), int(dataset.Columns))
            kind, highest = str(dataset.SegmentationType), float(dataset.get("MaximumFractionalValue") or 255)
    except Exception:  # noqa: BLE001 - decoders raise almost anything on damaged files, and their text may quote headers
        raise DataError(damaged(path)) from None
    if kind == "LABELMAP":
        return np.asarray(values == number)
    if kind == "FRACTIONAL":
        return np.asarray(values / highest >= threshold)
    return np.asarray(values > 0)
