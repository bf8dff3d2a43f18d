"""RTSTRUCT: closed contours in patient coordinates, filled on the slices of their image.

A voxel belongs to a structure if its centre is inside a contour. The conversion is lossy: a mask that was converted to contours and back
differs at the border. Points, open lines and structures of other coordinates are skipped; contours outside the image are left out and
counted.
"""

from collections import defaultdict
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib.path import Path as Outline
from pydicom.dataset import Dataset

from pfedsam.core.errors import DataError
from pfedsam.data.readers.base import Affine, Header, Pictures
from pfedsam.data.readers.dicom_files import reading_fields
from pfedsam.data.readers.dicom_pixels import open_dataset
from pfedsam.data.readers.masks import (
    GridMask,
    Overlaps,
    choose_ids,
    empty_ids,
    is_of_other_pictures,
    paint,
    pictures_of,
    refuse_other_pictures,
    refuse_overlap,
)

_Contour: TypeAlias = npt.NDArray[np.float64]
"""Corners [n, 3] in mm, in NIfTI's directions."""
_CLOSED: Final = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_TWO_POINTS: Final = 6
"""Number of coordinates of two points, which enclose nothing."""
_HALF: Final = 0.5
_OFF_CENTRE: Final = 1e-6 * np.array([1.0, np.sqrt(2)])
_OFF_SLICE: Final = 0.25
"""Largest distance of a contour from its slice, as a share of the distance of slices."""


def read_rtstruct(path: Path, image: Header, *, segments: dict[str, int], overlaps: Overlaps) -> GridMask:
    """The structures on the grid of their image.

    Args:
        path: the RTSTRUCT file.
        image: header of the image.
        segments: name of a structure (ROI) to its id; if empty, the ROI numbers are the ids.
        overlaps: what happens where structures share voxels.

    Raises:
        DataError: the file is damaged, the image has no position, structures overlap, or none has a contour on a slice of the image.
    """
    if image.affine is None:
        raise DataError(
            "its image has no position, so the contours of an RTSTRUCT cannot be placed; give the mask as pictures or NIfTI"
        )
    names, contours = _read_structures(path, image)
    chosen = choose_ids(names, segments, "RTSTRUCT")
    target = empty_ids(image.shape, chosen, overlaps)
    overlap, absent, every = 0, 0, 0
    for number, value in chosen:
        filled, left_out = _fill(contours[number], image.shape, image.affine)
        absent, every = absent + left_out, every + len(contours[number])
        overlap += paint(target, filled, value, overlaps)
    refuse_overlap(overlap, "RTSTRUCT")
    if absent == every:
        raise DataError(
            f"none of the {every} contours of its RTSTRUCT is on a slice of the image, inside its borders; give the contours of this series"
        )
    lossy = "a mask from contours is exact to about half a voxel at its border"
    outside = f"{absent} of {every} contours are outside the image, on slices that it does not have or beside it, and are left out"
    notes = (outside, lossy)
    return GridMask(target, image, notes if absent else (lossy,))


def _read_structures(path: Path, image: Header) -> tuple[dict[int, str], dict[int, list[_Contour]]]:
    """Names and closed contours, by number, of the structures in the image's coordinates that have closed contours of its pictures.

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
        for number, one in here:
            contours[number].append(_points(one))
    if closed and not here:
        refuse_other_pictures("RTSTRUCT")
    return {number: name for number, name in names.items() if contours[number]}, contours


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


def _fill(contours: list[_Contour], shape: tuple[int, int, int], affine: Affine) -> tuple[npt.NDArray[np.bool_], int]:
    """The voxels of a structure, [I, J, K], and the number of contours outside; a contour inside another one is a hole."""
    filled = np.zeros(shape, dtype=np.bool_)
    inverse, absent = np.linalg.inv(affine), 0
    for points in contours:
        voxels = points @ inverse[:3, :3].T + inverse[:3, 3]
        axis = int(np.ptp(voxels, axis=0).argmin())
        place = float(voxels[:, axis].mean())
        index = round(place)
        low, high = voxels.min(axis=0), voxels.max(axis=0)
        beside = (np.delete(high, axis) < -_HALF).any() or (np.delete(low - shape, axis) > -_HALF).any()
        if beside or not 0 <= index < shape[axis] or abs(place - index) > _OFF_SLICE:
            absent += 1
            continue
        where: list[int | slice] = [slice(None)] * 3
        where[axis] = index
        plane = filled[tuple(where)]
        plane ^= _inside(np.delete(voxels, axis, axis=1), (plane.shape[0], plane.shape[1]))
    return filled, absent


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
