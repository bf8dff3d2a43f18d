"""One DICOM series, or one multi-frame file, as a volume [row, column, slice].

Slices are ordered by their position along the normal of the first one, not by the names and numbers of the files. A stack that is not
right-angled and even is refused with the numbers, or resampled to such a grid (see `DicomReader.even`). Grey values are those after the
modality LUT or the rescale slope and intercept of each slice, with MONOCHROME1 inverted; colour is RGB in 0..1.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from pfedsam.core.errors import DataError
from pfedsam.data.readers.base import Affine, Header, Pictures, Shape, Spacing, check_size, frame_affine, spacing_of
from pfedsam.data.readers.dicom_files import Series, choose_series, find_images
from pfedsam.data.readers.dicom_pixels import decode, open_dataset, values_of
from pfedsam.data.readers.dicom_planes import Plane
from pfedsam.data.readers.nifti import write_nifti
from pfedsam.data.readers.regrid import depths_of, even_stack, resample_stack

_SAME_PLACE: Final = 1e-3
"""Distance in mm below which two positions count as one."""
_UNEVEN: Final = 0.01
"""Relative difference of two gaps from which a stack is uneven."""
_TILT: Final = 0.01
"""Sideways shift of the slices, divided by their distance along the normal, from which a stack is tilted."""


@dataclass(frozen=True)
class Stack:
    """The planes of a series in their order, and their positions."""

    planes: tuple[Plane, ...]
    positions: npt.NDArray[np.float64] | None
    """[D, 3] mm, in DICOM's directions; None if the files have no position."""
    problem: str | None
    """Why the planes are not a right-angled, even grid; None if they are."""
    step: float | None
    """Distance of two slices in mm."""

    @classmethod
    def without_positions(cls, planes: tuple[Plane, ...]) -> "Stack":
        """Planes whose order is that of the file."""
        return cls(planes, None, None, planes[0].thickness)

    def affine(self) -> Affine | None:
        """Indices [row, column, slice] to mm in NIfTI's directions; None if the files have no position.

        The third column is 1 mm long for a single slice whose thickness is not known.
        """
        first = self.planes[0]
        if self.positions is None or first.orientation is None:
            return None
        normal = np.cross(first.orientation[:3], first.orientation[3:])
        between = self.positions[-1] - self.positions[0]
        step = between / (len(self.planes) - 1) if len(self.planes) > 1 else normal * (self.step or 1.0)
        return frame_affine(first.orientation, first.spacing or (1.0, 1.0), step, self.positions[0])


def order_planes(series: Series, frame: int | None) -> Stack:
    """The planes of a series, sorted along their normal.

    Args:
        series: the series, as found.
        frame: which of several pictures at each position is taken.

    Raises:
        DataError: the planes are mosaics, tiles, doubled or without positions, or there are several at each position and `frame` is None.
    """
    if series.mosaic:
        raise DataError(
            "its DICOM pictures are mosaics (a sheet of small slices in each picture); convert them with dcm2niix, or export them as an "
            "enhanced series"
        )
    if series.tiled:
        raise DataError(
            "its DICOM pictures are the tiles of a slide (whole-slide microscopy), which is not a volume; export the slide, or the parts "
            "to segment, as pictures (PNG or TIFF)"
        )
    if any(plane.position is None or plane.orientation is None for plane in series.planes):
        return _without_positions(series, frame)
    orientation = np.array(series.planes[0].orientation)
    normal = np.cross(orientation[:3], orientation[3:])
    if not 0.99 < np.linalg.norm(normal) < 1.01:
        raise DataError("its DICOM orientation is not two right-angled directions of length 1; export the series again")
    chosen = _one_each(_group_by_position(series.planes, normal), frame)
    positions = np.array([plane.position for plane in chosen], dtype=np.float64)
    problem, step = _unevenness(positions, normal, chosen)
    return Stack(chosen, positions, problem, step)


def _without_positions(series: Series, frame: int | None) -> Stack:
    """Planes in the order of their file: one plane, or frames that are known to be slices.

    Raises:
        DataError: there are several files, or frames that may be times.
    """
    planes = series.planes
    files = {plane.path for plane in planes}
    if len(files) > 1:
        raise DataError(
            f"its {len(files)} DICOM files have no positions, so their order is not known; if they are pictures and not slices, give each "
            "file as an image of its own, otherwise export them with positions"
        )
    if len(planes) == 1 or (frame is None and series.depth_frames):
        return Stack.without_positions(planes)
    if frame is None:
        raise DataError(
            f"its DICOM file holds {len(planes)} frames without positions: they may be times and not slices; choose one by "
            "data.volume.frame, or export a series with positions"
        )
    if frame >= len(planes):
        raise DataError(
            f"its DICOM file holds {len(planes)} frames, so that there is no data.volume.frame {frame}; choose 0 to {len(planes) - 1}"
        )
    return Stack.without_positions((planes[frame],))


def _group_by_position(planes: tuple[Plane, ...], normal: npt.NDArray[np.float64]) -> list[list[Plane]]:
    """The planes at each position, positions ascending along the normal, shape [3]."""
    along = np.array([np.dot(normal, plane.position or ()) for plane in planes])
    groups: list[list[Plane]] = []
    begin = -np.inf
    for index in np.argsort(along, kind="stable"):
        if along[index] - begin >= _SAME_PLACE:
            groups.append([])
            begin = along[index]
        groups[-1].append(planes[index])
    return groups


def _one_each(groups: list[list[Plane]], frame: int | None) -> tuple[Plane, ...]:
    """One plane of each position.

    Raises:
        DataError: some positions are doubled, or there are several planes at each and `frame` is None.
    """
    most = max(map(len, groups))
    if most == 1:
        return tuple(plane for (plane,) in groups)
    _refuse_doubled(groups)
    if frame is None or frame >= most:
        raise DataError(
            f"its DICOM series has {most} pictures at each of {len(groups)} position(s): times, echoes or b-values, not slices; choose "
            f"one by data.volume.frame, 0 to {most - 1}"
        )
    return tuple(sorted(group, key=lambda plane: plane.order)[frame] for group in groups)


def _refuse_doubled(groups: list[list[Plane]]) -> None:
    """Refuse several planes at a position that are not times, echoes or b-values.

    Raises:
        DataError: the numbers of planes differ between positions, or a picture is there twice.
    """
    instances = Counter((plane.instance, plane.frame) for group in groups for plane in group)
    if len(set(map(len, groups))) > 1 or max(instances.values()) > 1:
        doubled = sum(len(group) > 1 for group in groups)
        raise DataError(
            f"its DICOM series has {doubled} of {len(groups)} positions more than once (doubled slices, or copies of files); leave one "
            "file for each position"
        )


def _unevenness(
    positions: npt.NDArray[np.float64], normal: npt.NDArray[np.float64], planes: tuple[Plane, ...]
) -> tuple[str | None, float | None]:
    """Why positions [D, 3] are not a right-angled, even stack along the normal (or None), and the usual distance of two slices in mm."""
    if len(positions) == 1:
        return None, planes[0].thickness
    along = (positions - positions[0]) @ normal
    gaps = np.diff(along)
    usual = float(np.median(gaps))
    sideways = float(np.linalg.norm((positions - positions[0]) - along[:, None] * normal, axis=1).max())
    problems = []
    if sideways > max(_TILT * along[-1], 0.01):
        angle = np.degrees(np.arctan2(sideways, along[-1]))
        problems.append(f"the slices are tilted against their stack by {angle:.1f} degrees (gantry tilt)")
    low, high = float(gaps.min()), float(gaps.max())
    if high - low > max(_UNEVEN * usual, 0.01):
        missing = round((along[-1] / low) - len(gaps)) if np.allclose(gaps / low, np.rint(gaps / low), atol=0.02) else 0
        what = f"{missing} slice(s) are missing" if missing > 0 else "the slices are unevenly spaced"
        problems.append(f"{what} (gaps from {low:.4g} to {high:.4g} mm)")
    return " and ".join(problems) or None, usual


class DicomReader:
    """One series of a folder, or one file."""

    def __init__(
        self,
        path: Path,
        *,
        series: str | None = None,
        frame: int | None = None,
        resample: bool = False,
        max_gigabytes: float = 2.0,
    ) -> None:
        """Read the headers.

        Args:
            path: the folder or file.
            series: number of the series, its SeriesInstanceUID, or words of its description, if the folder contains several.
            frame: which of several pictures at each position is taken.
            resample: whether a tilted or uneven stack is resampled to a right-angled, even grid instead of refused.
            max_gigabytes: largest size in the type of the files, also of a deflated file.

        Raises:
            DataError: a file is damaged, no series or several fit, or the stack is refused.
        """
        found = find_images(path)
        self.series = choose_series(found, series, path.name)
        self.found = tuple(found.series)
        """Every series of the folder."""
        self.stack = order_planes(self.series, frame)
        self.max_gigabytes = max_gigabytes
        self._resampled: npt.NDArray[np.float32] | None = None
        self._frames: npt.NDArray[Any] | None = None
        self._done = np.zeros(len(self.stack.planes), dtype=bool)
        self._file: tuple[Path, Dataset] | None = None
        first = self.stack.planes[0]
        shape: Shape = (first.rows, first.columns, len(self.stack.planes))
        check_size(shape, self.series.samples * self.series.stored.itemsize, max_gigabytes)
        self.even = self.stack.problem is None
        """Whether the stack is read as it is, without resampling."""
        if not self.even and not resample:
            raise DataError(
                f"its DICOM series is not an even, right-angled grid: {self.stack.problem}; complete the series, resample it, or set "
                "data.volume.resample: true"
            )
        self._header = self._make_header(shape)

    def header(self) -> Header:
        """Shape, spacing and affine."""
        return self._header

    def slice(self, index: int, axis: int = 2) -> npt.NDArray[np.float32]:
        """The plane with this index along `axis`, [A, B, C]: grey values with C = 1, RGB in 0..1 with C = 3.

        Raises:
            DataError: a file is damaged.
        """
        if not self.even:
            if self._resampled is None:
                self._resampled = self._even()
            return np.asarray(np.take(self._resampled, index, axis=axis)[..., None], dtype=np.float32)
        if axis == 2:
            return self._values(index, self._stored(index))
        where = (index,) if axis == 0 else (slice(None), index)
        return np.stack([self._values(k, self._stored(k)[where]) for k in range(len(self.stack.planes))], axis=1)

    def planes(self) -> Iterator[npt.NDArray[np.float32]]:
        """The planes [rows, columns, C] in order; none is kept, except those of a series that has to be resampled.

        Raises:
            DataError: a file is damaged.
        """
        if not self.even:
            yield from map(self.slice, range(self._header.shape[2]))
            return
        for index in range(len(self.stack.planes)):
            yield self._values(index, self._decoded(index))

    def write_mask(self, path: Path, mask: npt.NDArray[Any]) -> None:
        """Write ids [row, column, slice], or maps [..., class], as NIfTI, whose first index is the column; the affine keeps the positions.

        Raises:
            StoreError: the file cannot be written.
        """
        affine = self._header.affine
        library: Any = nib.nifti1  # has no types
        image = library.Nifti1Image(mask.swapaxes(0, 1), None)
        if affine is not None:
            turned = affine[:, [1, 0, 2, 3]]
            image.set_sform(turned, code=1)
            image.set_qform(turned, code=1)
        image.header.set_xyzt_units("mm" if self._header.spacing_mm else 0)
        write_nifti(path, image)

    def _make_header(self, shape: Shape) -> Header:
        affine = self.stack.affine()
        dtype = np.dtype(np.float32) if self.series.rescaled else self.series.stored
        acquired = None
        if not self.even and affine is not None and self.stack.positions is not None:
            first = affine
            shape, affine = even_stack(self.stack.positions, affine, shape)
            acquired = tuple(depths_of(self.stack.positions, first, affine).tolist())
            dtype = np.dtype(np.float32)
            check_size(shape, dtype.itemsize, self.max_gigabytes)
        channels = 3 if self.series.colour else 1
        spacing = self._spacing(affine, shape)
        pictures, of_series = _pictures(self.stack.planes), _pictures(self.series.planes)
        return Header(
            "DICOM",
            shape,
            affine,
            spacing,
            dtype,
            channels,
            self.series.frame_of_reference,
            pictures=pictures,
            patient=self.series.patient,
            left_out=of_series - pictures,
            thickness_known=shape[2] > 1 or self.stack.step is not None,
            acquired=acquired,
            of_several=bool(of_series - pictures),
        )

    def _spacing(self, affine: Affine | None, shape: Shape) -> Spacing | None:
        """The spacing in mm; without an affine it is only known for a single slice, whose thickness need not be known."""
        pixel = self.stack.planes[0].spacing
        if pixel is None:
            return None
        if affine is not None:
            return spacing_of(affine)
        return (*pixel, self.stack.step or 1.0) if shape[2] == 1 else None

    def _stored(self, index: int) -> npt.NDArray[Any]:
        """Stored values of a plane, shape [rows, columns] or [rows, columns, 3]; each plane is decoded once.

        Raises:
            DataError: the file is damaged or cannot be decoded.
        """
        if not self._done[index]:
            pixels = self._decoded(index)
            if self._frames is None:
                self._frames = np.empty((len(self.stack.planes), *pixels.shape), dtype=pixels.dtype)
            self._frames[index] = pixels
            self._done[index] = True
        frames = self._frames
        return frames[index] if frames is not None else np.empty(0)

    def _decoded(self, index: int) -> npt.NDArray[Any]:
        """Stored values of a plane from its file, [rows, columns] or [rows, columns, 3], in a type for those of the series.

        Raises:
            DataError: the file is damaged or cannot be decoded.
        """
        plane = self.stack.planes[index]
        pixels = decode(self._open(plane.path), plane)
        return pixels.astype(np.result_type(self.series.stored, pixels.dtype), copy=False)

    def _values(self, index: int, stored: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The grey values or colours [..., C] of the stored values of a plane, or of a part of it.

        Raises:
            DataError: the file is damaged, or a value is not finite.
        """
        plane = self.stack.planes[index]
        return values_of(stored, self._open(plane.path), plane, colour=self._header.channels == 3)

    def _even(self) -> npt.NDArray[np.float32]:
        """All slices on the even grid of the header, [rows, columns, slices].

        Raises:
            DataError: a file is damaged, or the pictures are in colour.
        """
        if self._header.channels == 3:
            raise DataError(
                "its DICOM series is in colour and unevenly spaced, which is not resampled; take the case out"
            )
        planes = (self._values(index, self._stored(index))[..., 0] for index in range(len(self.stack.planes)))
        affine = self.stack.affine()
        target = self._header
        if affine is None or target.affine is None or self.stack.positions is None:
            raise DataError("its DICOM series has no positions, so it cannot be resampled; export it with positions")
        return resample_stack(planes, self.stack.positions, affine, target.affine, target.shape)

    def _open(self, path: Path) -> Dataset:
        """The data set of a file; the last one is kept in memory, so that a multi-frame file is read once."""
        if self._file is None or self._file[0] != path:
            self._file = path, open_dataset(path, max_gigabytes=self.max_gigabytes)
        return self._file[1]


def _pictures(planes: Sequence[Plane]) -> Pictures:
    """The pictures as masks refer to them: with the number of the frame, or without for all frames of a file."""
    return frozenset(chain.from_iterable((plane.picture, (plane.instance, 0)) for plane in planes))
