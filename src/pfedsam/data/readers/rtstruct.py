"""RTSTRUCT: closed contours in patient coordinates, filled on the slices of their image.

A voxel belongs to a structure if its centre is inside an odd number of contours of one plane, so that a contour inside another one is a
hole. Each slice has the nearest plane of contours. The conversion is lossy: a mask that was converted to contours and back differs at the
border. Points, open lines and structures of other coordinates are skipped; contours outside the image, or not parallel to its slices, are
left out and counted.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib.path import Path as Outline
from pydicom.dataset import Dataset

from pfedsam.core.errors import DataError
from pfedsam.data.readers.base import SPACING_TOLERANCE, Affine, Header, Pictures, spacing_of
from pfedsam.data.readers.dicom_files import reading_fields
from pfedsam.data.readers.dicom_pixels import open_dataset
from pfedsam.data.readers.masks import (
    GridMask,
    PartNames,
    choose_ids,
    empty_ids,
    is_of_other_pictures,
    note_other_series,
    paint,
    pictures_of,
    refuse_other_pictures,
    refuse_overlap,
    spread_slices,
)
from pfedsam.data.readers.regrid import slice_numbers, usual_gap
from pfedsam.data.volume_options import VolumeOptions

_Contour: TypeAlias = npt.NDArray[np.float64]
"""Corners [n, 3] in mm, in NIfTI's directions."""
_Corners: TypeAlias = npt.NDArray[np.float64]
"""Corners [n, 2] in a plane, in voxels."""
_EXCLUSIVE: Final = "CLOSEDPLANAR_XOR"
_CLOSED: Final = ("CLOSED_PLANAR", _EXCLUSIVE)
_TWO_POINTS: Final = 6
"""Number of coordinates of two points, which enclose nothing."""
_HALF: Final = 0.5
_OFF_CENTRE: Final = 1e-6 * np.array([1.0, np.sqrt(2)])
_OFF_SLICE: Final = 0.25
"""Largest distance of a contour from its slice, and of its corners from its plane, as a share of the distance of slices."""
_SAME_PLANE: Final = 0.05
"""Largest distance of contours of one plane, whose coordinates are rounded, as a share of the distance of slices."""


@dataclass(frozen=True)
class _Lost:
    """What was lost of a structure when it was filled."""

    outside: int
    """Contours that are not inside the image, or are not those of a slice."""
    tilted: int
    """Contours that are not parallel to the slices."""
    crossed: int
    """Slices on which contours cross."""
    apart: tuple[float, float] | None
    """Distance of the planes of contours and of the slices in mm, if they differ."""


def read_rtstruct(path: Path, image: Header, options: VolumeOptions) -> GridMask:
    """The structures on the grid of their image.

    Args:
        path: the RTSTRUCT file.
        image: header of the image.
        options: the ids of the structures (ROIs) by name, or none if the ROI numbers are the ids, and what happens where they overlap.

    Raises:
        DataError: the file is damaged, the image has no position, structures overlap, or none has a contour on a slice of the image.
    """
    if image.affine is None:
        raise DataError(
            "its image has no position, so the contours of an RTSTRUCT cannot be placed; give the mask as pictures or NIfTI"
        )
    every, contours, references = _read_structures(path, image)
    names = {number: name for number, name in every.items() if contours[number]}
    segments, overlaps = options.segments, options.segment_overlaps
    chosen = choose_ids(names, segments, "RTSTRUCT")
    target = empty_ids(image.drawn_shape, chosen, overlaps)
    overlap, lost = 0, list[_Lost]()
    for number, value in chosen:
        filled, loss = _fill(contours[number], image, image.affine)
        overlap += paint(target, filled, value, overlaps)
        lost.append(loss)
    refuse_overlap(overlap, "RTSTRUCT")
    count = sum(len(contours[number]) for number, _ in chosen)
    if sum(one.outside + one.tilted for one in lost) == count:
        raise DataError(
            f"none of the {count} contours of its RTSTRUCT is on a slice of the image, inside its borders; give the contours of this series"
        )
    part_names = PartNames.of(every.values(), names.values(), segments)
    ids, notes = spread_slices(target, image)
    other = note_other_series("RTSTRUCT", references, image)
    return GridMask(ids, image, (*_notes(lost, count), *notes, *other), part_names)


def _notes(lost: Sequence[_Lost], every: int) -> Iterator[str]:
    """Sentences about what was lost of the structures, which have `every` contours together."""
    outside, tilted = sum(one.outside for one in lost), sum(one.tilted for one in lost)
    apart = [one.apart for one in lost if one.apart]
    if outside:
        yield f"{outside} of {every} contours are outside the image, on slices that it does not have or beside it, and are left out"
    if tilted:
        yield f"{tilted} of {every} contours are not parallel to the slices, and are left out"
    if apart:
        theirs, ours = apart[0]
        yield (
            f"the contours of {len(apart)} structure(s) are {theirs:.4g} mm apart, the slices {ours:.4g} mm: a slice has the nearest "
            "contours within a quarter of their distance, and slices without any are empty"
        )
    if crossed := sum(one.crossed for one in lost):
        yield (
            f"contours of one structure cross on {crossed} slice(s): the pixels in two of them count as outside, like those of a hole"
        )
    yield "a mask from contours is exact to about half a voxel at its border"


def _read_structures(path: Path, image: Header) -> tuple[dict[int, str], dict[int, list[_Contour]], Pictures]:
    """Names and closed contours, by number, of the structures in the image's coordinates, and the pictures that the contours refer to.

    A structure may have no contours of the pictures of the image.

    Raises:
        DataError: the file is damaged, or of another coordinate system or other pictures of the series than the image.
    """
    dataset = open_dataset(path)
    with reading_fields(path):
        every = {int(one.ROINumber): one for one in dataset.StructureSetROISequence}
        names = {number: str(one.get("ROIName", "")) for number, one in every.items() if _same_coordinates(one, image)}
        if every and not names:
            raise DataError(
                "its RTSTRUCT belongs to other coordinates than the image (another frame of reference), so it cannot be placed; give the "
                "structures of this series"
            )
        drawn: list[tuple[int, Dataset]] = []
        for structure in dataset.get("ROIContourSequence") or ():
            drawn += [(int(structure.ReferencedROINumber), one) for one in structure.get("ContourSequence") or ()]
        closed = [(number, one) for number, one in drawn if number in names and _is_closed(one)]
        here = [(number, one) for number, one in closed if not is_of_other_pictures(_pictures(one), image)]
        contours: dict[int, list[_Contour]] = defaultdict(list)
        for number, points in _distinct(here):
            contours[number].append(points)
    if closed and not here:
        refuse_other_pictures("RTSTRUCT")
    return names, contours, frozenset[tuple[str, int]]().union(*(_pictures(one) for _, one in here))


def _distinct(drawn: Sequence[tuple[int, Dataset]]) -> Iterator[tuple[int, _Contour]]:
    """Structure and corners of each contour; one that is stored twice comes once, except those that are defined to exclude each other.

    Raises:
        ValueError: corners are not points of three finite coordinates.
    """
    seen = set()
    for number, contour in drawn:
        points = _points(contour)
        key = number, frozenset(map(tuple, np.round(points, 2).tolist()))
        if key not in seen or contour.ContourGeometricType == _EXCLUSIVE:
            yield number, points
        seen.add(key)


def _same_coordinates(structure: Dataset, image: Header) -> bool:
    """Whether a structure has the image's coordinate system; True if one of them does not name its own."""
    theirs = str(structure.get("ReferencedFrameOfReferenceUID") or "")
    return not theirs or not image.frame_of_reference or theirs == image.frame_of_reference


def _is_closed(contour: Dataset) -> bool:
    return (
        str(contour.get("ContourGeometricType", "")) in _CLOSED and len(contour.get("ContourData") or ()) > _TWO_POINTS
    )


def _pictures(contour: Dataset) -> Pictures:
    return pictures_of(contour.get("ContourImageSequence") or ())


def _points(contour: Dataset) -> _Contour:
    """The corners of a contour, [n, 3] mm in NIfTI's directions.

    Raises:
        ValueError: they are not points of three finite coordinates.
    """
    points: _Contour = np.asarray(contour.ContourData, dtype=np.float64).reshape(-1, 3)
    if not np.isfinite(points).all():
        raise ValueError("a coordinate is not finite")
    return np.asarray(points * np.array([-1.0, -1.0, 1.0]), dtype=np.float64)


def _fill(contours: list[_Contour], image: Header, affine: Affine) -> tuple[npt.NDArray[np.bool_], _Lost]:
    """The voxels of a structure on the slices of the file, shape `image.drawn_shape`, and what was lost of it."""
    shape = image.drawn_shape
    filled = np.zeros(shape, dtype=np.bool_)
    spacing = spacing_of(affine)
    flat, outside, tilted = _flat(contours, image, affine)
    crossed, apart = 0, None
    for axis, found in flat.items():
        planes = _planes(found)
        gap = usual_gap(np.array([place for place, _ in planes]))
        if gap is not None and abs(gap - 1) > SPACING_TOLERANCE:
            apart = gap * spacing[axis], spacing[axis]
        nearest = _nearest(planes, shape[axis])
        outside += len(found) - sum(map(len, nearest.values()))
        for index, corners in nearest.items():
            where: list[int | slice] = [slice(None)] * 3
            where[axis] = index
            plane = filled[tuple(where)]
            inside, cross = _even_odd(corners, (plane.shape[0], plane.shape[1]))
            plane |= inside
            crossed += cross
    return filled, _Lost(outside, tilted, crossed, apart)


def _flat(
    contours: list[_Contour], image: Header, affine: Affine
) -> tuple[dict[int, list[tuple[float, _Corners]]], int, int]:
    """The contours in planes of the image, by the axis across: place in slices, and corners; the numbers of those outside and tilted."""
    inverse, shape = np.linalg.inv(affine), image.drawn_shape
    flat: dict[int, list[tuple[float, _Corners]]] = defaultdict(list)
    outside, tilted = 0, 0
    for points in contours:
        voxels = points @ inverse[:3, :3].T + inverse[:3, 3]
        if image.acquired is not None:
            voxels[:, 2] = slice_numbers(voxels[:, 2], image.acquired)
        axis = int(np.ptp(voxels, axis=0).argmin())
        place = float(voxels[:, axis].mean())
        low, high = voxels.min(axis=0), voxels.max(axis=0)
        if np.abs(voxels[:, axis] - place).max() > _OFF_SLICE:
            tilted += 1
        elif (np.delete(high, axis) < -_HALF).any() or (np.delete(low - shape, axis) > -_HALF).any():
            outside += 1
        else:
            flat[axis].append((place, np.delete(voxels, axis, axis=1)))
    return flat, outside, tilted


def _planes(contours: list[tuple[float, _Corners]]) -> list[tuple[float, list[_Corners]]]:
    """Place of each plane, in slices and ascending, and its contours."""
    planes: list[tuple[float, list[_Corners]]] = []
    for place, corners in sorted(contours, key=lambda one: one[0]):
        if not planes or place - planes[-1][0] > _SAME_PLANE:
            planes.append((place, []))
        planes[-1][1].append(corners)
    return planes


def _nearest(planes: list[tuple[float, list[_Corners]]], length: int) -> dict[int, list[_Corners]]:
    """The contours of each of `length` slices: those of the nearest plane, if it is near enough."""
    found: dict[int, tuple[float, list[_Corners]]] = {}
    for place, corners in planes:
        index = round(place)
        distance = abs(place - index)
        if 0 <= index < length and distance <= _OFF_SLICE and (index not in found or distance < found[index][0]):
            found[index] = distance, corners
    return {index: corners for index, (_, corners) in found.items()}


def _even_odd(contours: list[_Corners], size: tuple[int, int]) -> tuple[npt.NDArray[np.bool_], bool]:
    """The pixels [A, B] inside an odd number of the contours of a plane, and whether two contours cross, so that neither is a hole."""
    insides = [np.flatnonzero(_inside(corners, size)) for corners in contours]
    depth = np.bincount(np.concatenate(insides), minlength=size[0] * size[1])
    deep = np.flatnonzero(depth > 1)
    members = np.array([np.isin(deep, inside) for inside in insides], dtype=np.float64)
    shared, pixels = members @ members.T, [len(inside) for inside in insides]
    np.fill_diagonal(shared, 0)
    cross = bool(((shared > 0) & (shared < np.minimum.outer(pixels, pixels))).any())
    return (depth % 2 == 1).reshape(size), cross


def _inside(corners: npt.NDArray[np.float64], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The pixels [A, B] whose centre is inside a polygon with corners [n, 2].

    The polygon is shifted by a millionth of a pixel, so that no centre is on its line: the two edges of the channel to a hole (keyhole)
    would otherwise leave out the pixels between them, and the border would depend on the direction of the contour.
    """
    inside = np.zeros(size, dtype=np.bool_)
    low = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, np.array(size))
    high = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 1, 0, np.array(size))
    if (high <= low).any():
        return inside
    grid = np.stack(np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1]), indexing="ij"), axis=-1)
    found = Outline(corners - _OFF_CENTRE, closed=False).contains_points(grid.reshape(-1, 2))
    inside[low[0] : high[0], low[1] : high[1]] = found.reshape(grid.shape[:2])
    return inside
