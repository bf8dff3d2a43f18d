"""Masks on the grid of their image: exact if the grids agree; otherwise refused with both numbers, or resampled if the option is set."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NoReturn

import numpy as np
import numpy.typing as npt
from nibabel import orientations
from pydicom.dataset import Dataset

from pfedsam.core.errors import DataError
from pfedsam.data.readers.base import SPACING_TOLERANCE, Affine, Header, Pictures, both_placed, grid_difference
from pfedsam.data.readers.dicom_planes import values_of_field
from pfedsam.data.readers.nifti import NiftiReader
from pfedsam.data.readers.regrid import foreground_outside, nearest_voxels
from pfedsam.data.volume_options import Overlaps

LISTED_BY: Final = "`pfedsam data check` lists the names in the masks"
"""How the user finds the names of parts; no message contains them, because they are free text of the site's files."""
_HIGHEST_ID: Final = 65535
_ON_SLICE: Final = 0.1
"""Largest distance of a slice of an even grid from a slice of its series that is the same, as a share of the distance of slices."""
_UNPLACED: Final = "the image or its mask has no orientation, so that the mask was placed voxel by voxel"
_REMEDY: Final = "export the mask on the grid of its image, or set data.volume.resample: true to resample it"


@dataclass(frozen=True)
class PartNames:
    """How the names of the parts of a file (segments, structures) fit those in `data.volume.segments`."""

    absent: tuple[str, ...] = ()
    """Names there that no part of the file has, if it has none either under another name with the same id."""
    others: frozenset[str] = field(default=frozenset(), repr=False)
    """Names of parts of the file that are not named there, as `plain_name` returns them; compared with those of other files, never
    shown."""

    @classmethod
    def of(cls, names: Collection[str], drawn: Collection[str], segments: Mapping[str, int]) -> "PartNames":
        """The comparison of all names of a file, and of those of its parts that contain anything, with the names of the options."""
        here, wanted = set(map(plain_name, names)), set(map(plain_name, segments))
        ids = {value for name, value in segments.items() if plain_name(name) in here}
        absent = tuple(name for name, value in segments.items() if value not in ids)
        return cls(absent, frozenset(map(plain_name, drawn)) - wanted if segments else frozenset())

    def notes(self) -> Iterator[str]:
        """A sentence if a name of the options is absent and another part is not named: one of them may be misspelt."""
        if self.absent and self.others:
            yield (
                f"no part of the mask has the name {', '.join(map(repr, self.absent))}, and {len(self.others)} part(s) have a name that is "
                f"not in data.volume.segments and are left out: if one of them is the wanted part, give its name there ({LISTED_BY})"
            )


class GridMask:
    """A mask in memory, with the indices of the voxels of its image."""

    def __init__(
        self, ids: npt.NDArray[Any], like: Header, notes: tuple[str, ...] = (), part_names: PartNames | None = None
    ) -> None:
        """Take ids [I, J, K] of any integer type; `notes` are sentences about what was lost when they were made."""
        self.ids, self._like, self.part_names = ids, like, part_names or PartNames()
        self.notes = (*notes, *self.part_names.notes())

    def header(self) -> Header:
        """That of the image."""
        return self._like

    def mask_slice(self, index: int, axis: int = 2) -> npt.NDArray[np.int64]:
        """The ids [A, B] of a plane."""
        return np.asarray(np.take(self.ids, index, axis=axis), dtype=np.int64)


class TurnedMask:
    """A mask whose file stores the same grid with its axes in another order or direction."""

    def __init__(
        self,
        reader: NiftiReader,
        axes: tuple[int, int, int],
        flipped: tuple[bool, bool, bool],
        like: Header,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Axis a of the image is axis `axes[a]` of the file, counted from its end if `flipped[a]`."""
        self._reader, self._axes, self._flipped, self._like, self.notes = reader, axes, flipped, like, notes
        self.part_names = PartNames()

    def header(self) -> Header:
        """That of the image."""
        return self._like

    def mask_slice(self, index: int, axis: int = 2) -> npt.NDArray[np.int64]:
        """The ids [A, B] of a plane.

        Raises:
            DataError: the file is damaged, or its values are no ids.
        """
        at = self._like.shape[axis] - 1 - index if self._flipped[axis] else index
        plane = self._reader.mask_slice(at, self._axes[axis])
        first, second = (other for other in range(3) if other != axis)
        if self._axes[first] > self._axes[second]:
            plane = plane.T
        flipped = tuple(k for k, other in enumerate((first, second)) if self._flipped[other])
        return np.flip(plane, flipped)


def fit_mask(mask: NiftiReader, image: Header, *, resample: bool) -> GridMask | TurnedMask:
    """A mask file on the grid of its image.

    If one of two NIfTI files has no orientation, the voxels of both are taken to be in the same order, as programs that drop it keep them.

    Raises:
        DataError: it has another grid and is not to be resampled, or no orientation beside a DICOM series.
    """
    theirs = mask.header()
    if image.kind == "DICOM" and image.affine is not None and not theirs.placed:
        raise DataError(f"its mask has no orientation (both codes of its {theirs.kind} header are 0); {_REMEDY}")
    axes, flips = _orientation(theirs, image)
    difference = grid_difference(image, _turned(theirs, axes, flips))
    if difference is None:
        notes = (_UNPLACED,) if image.placed != theirs.placed else ()
        return TurnedMask(mask, axes, flips, image, notes)
    if not resample or not both_placed(image, theirs) or image.affine is None or theirs.affine is None:
        raise DataError(f"{difference}; {_REMEDY}")
    _refuse_uneven(_turned(theirs, axes, flips), image)
    # The slices are made small one by one: all of them as int64 would need eight times the memory of the file.
    volume = np.stack([small_ids(mask.mask_slice(k)) for k in range(theirs.shape[2])], axis=2)
    left_out = note_outside("mask", *foreground_outside(volume, theirs.affine, image.affine, image.shape))
    moved = nearest_voxels(volume, theirs.affine, image.affine, image.shape)
    return GridMask(moved, image, (f"the mask was resampled to the grid of its image ({difference})", *left_out))


def note_outside(what: str, outside: int, total: int) -> tuple[str, ...]:
    """The note about the foreground of a mask outside its image, if there is any.

    Args:
        what: the format, for the messages.
        outside: number of voxels of the foreground outside the image.
        total: number of all voxels of the foreground.

    Raises:
        DataError: the whole foreground is outside: the mask has a wrong position, or is of another image.
    """
    if outside and outside == total:
        raise DataError(
            f"its {what} lies outside its image with all of its {total} voxels, so that its position is wrong or it is of another image; "
            "export the mask on the grid of its image, with its position"
        )
    if not outside:
        return ()
    return (f"{outside} of {total} voxels of the {what} lie outside its image and are left out",)


def note_other_series(what: str, references: Pictures, image: Header) -> tuple[str, ...]:
    """The note about a mask that refers to pictures, and to none of its image: it was drawn on another series of the same coordinates.

    Args:
        what: the kind of the mask, for the message.
        references: the pictures that the mask refers to; there are none in some files.
        image: header of the image, which has no pictures if it is not DICOM.
    """
    if not image.pictures or not references or not references.isdisjoint(image.pictures):
        return ()
    return (f"the {what} refers to another series of the same coordinates, and was placed by position",)


def _refuse_uneven(mask: Header, image: Header) -> None:
    """Refuse an evenly spaced mask that has the pixels and the number of slices of an uneven series: it was drawn on these slices.

    Raises:
        DataError: it is such a mask, whose slices have other places than those on which they were drawn.
    """
    if mask.shape == image.drawn_shape != image.shape:
        raise DataError(
            f"its mask has the {mask.shape[2]} slices of the DICOM series, but at even distances, where the series has a gap, so that its "
            "slices cannot be placed; save it as DICOM-SEG or RTSTRUCT, or on the even grid of the resampled series"
        )


def small_ids(ids: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Ids of any shape in the smallest type that can hold them."""
    lowest, highest = int(ids.min(initial=0)), int(ids.max(initial=0))
    if lowest < 0 or highest > np.iinfo(np.uint16).max:
        return ids.astype(np.int64)  # ids that no class can have keep their values, so that they are reported
    return ids.astype(np.uint8 if highest < 256 else np.uint16)


def empty_ids(shape: tuple[int, int, int], chosen: Sequence[tuple[int, int]], overlaps: Overlaps) -> npt.NDArray[Any]:
    """A mask of zeros, of a type for the ids that `choose_ids` returned, or for their sum."""
    ids = [value for _, value in chosen]
    largest = sum(ids) if overlaps == "sum" else max(ids)
    return np.zeros(shape, dtype=np.uint8 if largest < 256 else np.uint16)


def spread_slices(ids: npt.NDArray[Any], image: Header) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """A mask on the slices of a series, shape `image.drawn_shape`, on the grid of the image, and a note if slices were added.

    A slice of the grid has the mask of the nearest slice of the series, as the values of its image are interpolated between slices.

    Raises:
        DataError: a slice of the grid is farther from all slices of the series than these usually are from each other, and a structure
            reaches into that gap, so that the mask is not known there.
    """
    if image.acquired is None or image.affine is None:
        return ids, ()
    depths, grid = np.array(image.acquired), np.arange(image.shape[2])
    distances = np.abs(grid[:, None] - depths).round(6)  # of two slices at one distance the lower one is taken
    nearest, least = distances.argmin(axis=1), distances.min(axis=1)
    usual = float(np.median(np.diff(depths)))
    for index in np.flatnonzero(least > usual * (1 + SPACING_TOLERANCE)):
        after = int(np.clip(np.searchsorted(depths, index), 1, len(depths) - 1))
        if ids[..., after - 1].any() or ids[..., after].any():
            step = float(np.linalg.norm(image.affine[:3, 2]))
            gap = float(depths[after] - depths[after - 1]) * step
            raise DataError(
                f"its DICOM series has a gap of {gap:.4g} mm beside a structure of its mask, where its slices are usually "
                f"{usual * step:.4g} mm apart, so that the mask is not known there; complete the series, or take the case out"
            )
    added = int((least > _ON_SLICE).sum())
    note = f"{added} of {len(grid)} slices are not in the DICOM series and were interpolated; their mask is that of the nearest slice"
    return ids[..., nearest], (note,) if added else ()


def choose_ids(names: Mapping[int, str], segments: Mapping[str, int], what: str) -> list[tuple[int, int]]:
    """The parts of a file that are read, each as (number in the file, id); later ones are painted over earlier ones.

    Args:
        names: number of a part to its name, from the file.
        segments: name of a part to its id, from the options; if empty, the numbers are the ids.
        what: the format, for messages.

    Raises:
        DataError: the file contains nothing, none of the names, or numbers that are no ids.
    """
    if not names:
        raise DataError(f"its {what} holds no segment or closed contour of this image; export it again")
    if not segments:
        wrong = [number for number in names if not 0 < number <= _HIGHEST_ID]
        if wrong:
            raise DataError(
                f"its {what} numbers a part {wrong[0]}, where an id is 1 to {_HIGHEST_ID}; name the parts and their ids by "
                f"data.volume.segments ({LISTED_BY})"
            )
        return [(number, number) for number in sorted(names)]
    by_name: dict[str, list[int]] = defaultdict(list)
    for number in sorted(names):
        by_name[plain_name(names[number])].append(number)
    chosen = [(number, value) for name, value in segments.items() for number in by_name[plain_name(name)]]
    if not chosen:
        raise DataError(
            f"its {what} has {len(names)} named parts, none of which data.volume.segments names; correct the names there ({LISTED_BY})"
        )
    return chosen


def pictures_of(items: Iterable[Dataset]) -> Pictures:
    """The pictures that the items of a DICOM sequence refer to."""
    return frozenset(
        (str(item.get("ReferencedSOPInstanceUID", "")), int(number))
        for item in items
        for number in values_of_field(item.get("ReferencedFrameNumber")) or [0]
    )


def is_of_other_pictures(references: Pictures, image: Header) -> bool:
    """Whether a part was drawn on pictures that `data.volume.frame` left out, and on none of the image's."""
    return not references.isdisjoint(image.left_out) and references.isdisjoint(image.pictures)


def refuse_other_pictures(what: str) -> NoReturn:
    """Refuse a mask of other pictures of the series than those of the image.

    Raises:
        DataError: always.
    """
    raise DataError(
        f"its {what} was made of other pictures of the series (another time or echo) than data.volume.frame chooses; choose those"
    )


def plain_name(name: str) -> str:
    """The name of a part as it is compared: without spaces around it, in lower case."""
    return name.strip().lower()


def paint(target: npt.NDArray[Any], where: npt.NDArray[np.bool_], value: int, overlaps: Overlaps) -> int:
    """Write `value` where a mask of the same shape is true, and return the number of overlapping voxels if overlaps are refused.

    Overlapping voxels then keep their id.
    """
    if overlaps == "sum":
        target[where] |= value  # of powers of two, so that a part that is painted twice counts once
        return 0
    if overlaps == "last":
        target[where] = value
        return 0
    taken = where & (target != 0) & (target != value)
    target[where & ~taken] = value
    return int(taken.sum())


def refuse_overlap(voxels: int, what: str) -> None:
    """Refuse parts that share voxels, because a voxel of a mask has one id only.

    Raises:
        DataError: `voxels` is not 0.
    """
    if voxels:
        raise DataError(
            f"its {what} has parts that overlap in {voxels} voxels, where a mask holds one id; name those to use by data.volume.segments, "
            f"the one that wins last, or keep all by data.volume.sum_segments ({LISTED_BY})"
        )


def _orientation(mask: Header, image: Header) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """For each axis of the image the axis of the mask along it, and whether it is flipped; by the formats if a position is missing."""
    if both_placed(image, mask) and image.affine is not None and mask.affine is not None:
        return _turn(mask.affine, image.affine)
    columns_first = image.kind == "DICOM" and mask.kind == "NIfTI"
    return (1, 0, 2) if columns_first else (0, 1, 2), (False, False, False)


def _turned(header: Header, axes: tuple[int, int, int], flips: tuple[bool, bool, bool]) -> Header:
    """The header of the same voxels with their axes in another order and direction."""
    first, second, third = (header.shape[axis] for axis in axes)
    return replace(header, shape=(first, second, third), affine=_turned_affine(header, axes, flips))


def _turn(source: Affine, target: Affine) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """For each axis of the target the axis of the source along it, and whether it has the opposite direction."""
    library: Any = orientations  # has no types
    # Row: axis of the source; values: axis of the target, direction. The axes are compared with each other, not with those of the body: of
    # a grid that is turned by 45 degrees, rounding would decide which axis of the body is the nearest one.
    change = library.io_orientation(np.linalg.inv(target) @ source)
    axes, flips = [0, 0, 0], [False, False, False]
    for axis, (goes_to, direction) in enumerate(change):
        axes[int(goes_to)], flips[int(goes_to)] = axis, bool(direction < 0)
    return (axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2])


def _turned_affine(header: Header, axes: tuple[int, int, int], flips: tuple[bool, bool, bool]) -> Affine | None:
    """The affine of the same voxels with their axes in another order and direction."""
    if header.affine is None:
        return None
    turned = header.affine[:, [*axes, 3]].copy()
    for axis, flipped in enumerate(flips):
        if flipped:
            turned[:, 3] += turned[:, axis] * (header.shape[axes[axis]] - 1)
            turned[:, axis] *= -1
    return turned
