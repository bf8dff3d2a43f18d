"""Resampling of tilted or uneven stacks to an even grid, and of masks to the grid of their image."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pfedsam.data.readers.base import Affine, Shape

_ROUNDING: Final = 0.1
"""Sideways shift of slices, as a share of a pixel, that is left to rounding and adds no row or column to a grid."""


def even_stack(positions: npt.NDArray[np.float64] | None, affine: Affine, shape: Shape) -> tuple[Shape, Affine]:
    """The right-angled, even grid that contains all slices of a stack.

    The distance of its slices is the smallest distance of two neighbours in the stack, so that no slice is skipped.

    Args:
        positions: positions of the slices in mm, [D, 3], in DICOM's directions.
        affine: affine of the first slice in NIfTI's directions; its third column is not used.
        shape: rows, columns, slices.

    Returns:
        Shape and affine of the grid.
    """
    places, normal = _places(positions, affine)
    step = float(np.diff(places[:, 2]).min())
    low, high = places.min(axis=0), places.max(axis=0)
    rows, columns = np.linalg.norm(affine[:3, 0]), np.linalg.norm(affine[:3, 1])
    before = np.floor(low[0] / rows + _ROUNDING), np.floor(low[1] / columns + _ROUNDING)
    size = (
        int(shape[0] + np.ceil(high[0] / rows - _ROUNDING) - before[0]),
        int(shape[1] + np.ceil(high[1] / columns - _ROUNDING) - before[1]),
        round((high[2] - low[2]) / step) + 1,
    )
    even = np.array(affine)
    even[:3, 2] = normal * step
    even[:3, 3] = affine[:3, 3] + affine[:3, 0] * before[0] + affine[:3, 1] * before[1] + normal * low[2]
    return size, even


def depths_of(positions: npt.NDArray[np.float64], affine: Affine, target: Affine) -> npt.NDArray[np.float64]:
    """Places of the slices of a stack along the last index of the grid that `even_stack` returned, shape [D]."""
    places, _ = _places(positions, affine)
    return np.asarray(places[:, 2] / np.linalg.norm(target[:3, 2]))


def slice_numbers(places: npt.NDArray[np.float64], depths: Sequence[float]) -> npt.NDArray[np.float64]:
    """Places along an even grid, of any shape, as numbers of the slices at `depths`, with fractions between and beyond them."""
    known = np.asarray(depths)
    after = np.clip(np.searchsorted(known, places), 1, len(known) - 1)
    return np.asarray(after - 1 + (places - known[after - 1]) / (known[after] - known[after - 1]))


def resample_stack(
    planes: Iterable[npt.NDArray[np.float32]],
    positions: npt.NDArray[np.float64],
    affine: Affine,
    target: Affine,
    shape: Shape,
) -> npt.NDArray[np.float32]:
    """The slices of a stack on an even grid, by linear interpolation; values outside a slice are its lowest value.

    Args:
        planes: values [rows, columns] of the slices, in order.
        positions: positions of the slices in mm, [D, 3], in DICOM's directions.
        affine: affine of the first slice.
        target: affine of the grid, as returned by `even_stack`.
        shape: shape of the grid.

    Returns:
        Values with the shape of the grid.
    """
    places, _ = _places(positions, affine)
    depth = depths_of(positions, affine, target)
    origin = np.linalg.inv(target) @ affine[:, 3]
    rows, columns = np.linalg.norm(affine[:3, 0]), np.linalg.norm(affine[:3, 1])
    moved = []
    for plane, place in zip(planes, places, strict=True):
        offset = np.array([place[0] / rows, place[1] / columns]) + origin[:2]
        moved.append(
            ndimage.affine_transform(
                plane,
                np.eye(2),
                -offset,
                output_shape=shape[:2],
                order=1,
                mode="grid-constant",
                cval=float(plane.min()),
            )
        )
    result = np.empty(shape, dtype=np.float32)
    for index in range(shape[2]):
        after = int(np.clip(np.searchsorted(depth, index), 1, len(depth) - 1))
        share = float(np.clip((index - depth[after - 1]) / (depth[after] - depth[after - 1]), 0, 1))
        result[..., index] = (1 - share) * moved[after - 1] + share * moved[after]
    return result


def nearest_voxels(mask: npt.NDArray[Any], source: Affine, target: Affine, shape: Shape) -> npt.NDArray[Any]:
    """Resample a mask [n, m, k] to another grid of the given shape: each voxel gets the id of the nearest one, or 0 outside."""
    change = np.linalg.inv(source) @ target
    moved: npt.NDArray[Any] = ndimage.affine_transform(
        mask, change[:3, :3], change[:3, 3], output_shape=shape, order=0, mode="grid-constant", cval=0
    )
    return moved


def foreground_outside(mask: npt.NDArray[Any], source: Affine, target: Affine, shape: Shape) -> tuple[int, int]:
    """The number of voxels of a mask [n, m, k] that are not 0, outside a grid of the given shape and everywhere.

    A voxel is outside if its centre is in no voxel of the grid.
    """
    change, size, outside, total = np.linalg.inv(target) @ source, np.array(shape), 0, 0
    for number in range(mask.shape[2]):  # plane by plane, because the indices of all voxels would take much memory
        rows, columns = np.nonzero(mask[..., number])
        indices = np.stack([rows, columns, np.full_like(rows, number)], axis=1)
        places = np.rint(indices @ change[:3, :3].T + change[:3, 3])
        outside += int(((places < 0) | (places >= size)).any(axis=1).sum())
        total += len(rows)
    return outside, total


def usual_gap(places: npt.NDArray[np.float64], same: float = 0.0) -> float | None:
    """The distance of neighbouring planes at places [n], in the unit of the places; None if all are of one plane.

    It is the mean of the gaps below 1.5 times the smallest one, because places are rounded and planes may be missing. Places that differ by
    no more than `same` are of one plane.
    """
    gaps = np.diff(np.sort(places))
    gaps = gaps[gaps > same]
    return float(gaps[gaps < 1.5 * gaps.min()].mean()) if len(gaps) else None


def _places(
    positions: npt.NDArray[np.float64] | None, affine: Affine
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Offsets of the slices from the first in mm, [D, 3] along (rows, columns, normal), and the normal, [3], in NIfTI's directions."""
    there = (np.zeros((1, 3)) if positions is None else positions) * np.array([-1.0, -1.0, 1.0])
    first, second = (affine[:3, axis] / np.linalg.norm(affine[:3, axis]) for axis in (0, 1))
    normal = np.cross(second, first)  # a row runs along the second index
    return (there - there[0]) @ np.stack([first, second, normal], axis=1), normal
