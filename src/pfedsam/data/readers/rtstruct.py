"""RTSTRUCT: closed contours in patient coordinates, filled on the slices of their image.

A voxel belongs to a structure if its centre is inside a contour. The conversion is lossy: a mask that was converted to contours and back
differs at the border. Points and open lines are skipped; contours on slices that the image does not have are left out and counted.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from matplotlib.path import Path as Outline
from pydicom.dataset import Dataset

from pfedsam.core.errors import DataError
from pfedsam.data.readers.base import Affine, Header
from pfedsam.data.readers.dicom_files import reading_fields
from pfedsam.data.readers.dicom_pixels import open_dataset
from pfedsam.data.readers.masks import GridMask, Overlaps, choose_ids, empty_ids, paint, refuse_overlap

_CLOSED: Final = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_OFF_SLICE: Final = 0.25
"""Largest distance of a contour from its slice, as a share of the distance of slices."""


def read_rtstruct(path: Path, image: Header, *, segments: dict[str, int], overlaps: Overlaps) -> GridMask:
    """The structures on the grid of their image.

    Args:
        path: The RTSTRUCT file.
        image: Header of the image.
        segments: Name of a structure (ROI) to its id; if empty, the ROI numbers are the ids.
        overlaps: What happens where structures share voxels.

    Raises:
        DataError: The file is damaged, the image has no position, structures overlap, or none has a contour on a slice of the image.
    """
    if image.affine is None:
        raise DataError(
            "its image has no position, so the contours of an RTSTRUCT cannot be placed; give the mask as pictures or NIfTI"
        )
    names, contours = _read_structures(path)
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
            f"none of the {every} contours of its RTSTRUCT is on a slice of the image; give the contours of this series"
        )
    lossy = "a mask from contours is exact to about half a voxel at its border"
    notes = (f"{absent} of {every} contours are on slices that the image does not have and are left out", lossy)
    return GridMask(target, image, notes if absent else (lossy,))


def _read_structures(path: Path) -> tuple[dict[int, str], dict[int, list[npt.NDArray[np.float64]]]]:
    """Names and closed contours, by number, of the structures that have closed contours.

    Raises:
        DataError: The file is damaged.
    """
    dataset = open_dataset(path)
    with reading_fields(path):
        names = {int(one.ROINumber): str(one.get("ROIName", "")) for one in dataset.StructureSetROISequence}
        contours: dict[int, list[npt.NDArray[np.float64]]] = defaultdict(list)
        for structure in dataset.get("ROIContourSequence") or ():
            number = int(structure.ReferencedROINumber)
            if number in names:
                contours[number] += _closed_contours(structure)
    return {number: name for number, name in names.items() if contours[number]}, contours


def _closed_contours(structure: Dataset) -> Iterator[npt.NDArray[np.float64]]:
    """The closed contours of a structure, [n, 3] mm in NIfTI's directions."""
    for contour in structure.get("ContourSequence") or ():
        points = np.asarray(contour.get("ContourData") or (), dtype=np.float64).reshape(-1, 3)
        if str(contour.get("ContourGeometricType", "")) in _CLOSED and len(points) > 2:
            yield points * np.array([-1.0, -1.0, 1.0])


def _fill(
    contours: list[npt.NDArray[np.float64]], shape: tuple[int, int, int], affine: Affine
) -> tuple[npt.NDArray[np.bool_], int]:
    """The voxels of a structure, [I, J, K], and the number of contours on no slice; a contour inside another one is a hole."""
    filled = np.zeros(shape, dtype=np.bool_)
    inverse, absent = np.linalg.inv(affine), 0
    for points in contours:
        voxels = points @ inverse[:3, :3].T + inverse[:3, 3]
        axis = int(np.ptp(voxels, axis=0).argmin())
        place = float(voxels[:, axis].mean())
        index = round(place)
        if not 0 <= index < shape[axis] or abs(place - index) > _OFF_SLICE:
            absent += 1
            continue
        where: list[int | slice] = [slice(None)] * 3
        where[axis] = index
        plane = filled[tuple(where)]
        plane ^= _inside(np.delete(voxels, axis, axis=1), (plane.shape[0], plane.shape[1]))
    return filled, absent


def _inside(corners: npt.NDArray[np.float64], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The pixels [A, B] whose centre is inside a polygon with corners [n, 2]."""
    inside = np.zeros(size, dtype=np.bool_)
    low = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, np.array(size))
    high = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 1, 0, np.array(size))
    if (high <= low).any():
        return inside
    grid = np.stack(np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1]), indexing="ij"), axis=-1)
    found = Outline(corners, closed=False).contains_points(grid.reshape(-1, 2))
    inside[low[0] : high[0], low[1] : high[1]] = found.reshape(grid.shape[:2])
    return inside
