"""One DICOM series, or one multi-frame file, as a volume [row, column, slice].

Slices are ordered by their position along the normal of the first one, whatever the names and numbers of the files. What is no right-angled
and even stack is refused with the numbers, or put on such a grid (`Stack.even`). Grey values are those after the modality LUT or slope and
intercept, slice by slice, with MONOCHROME1 inverted; colour comes as RGB in 0..1.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pfedsam.core.errors import DataError
from pfedsam.data.readers.base import Affine, Header, Shape, check_size, spacing_of
from pfedsam.data.readers.dicom_files import Plane, Series, choose_series, damaged, find_images, quiet
from pfedsam.data.readers.nifti import write_nifti
from pfedsam.data.readers.regrid import even_stack, resample_stack

_LPS_TO_RAS: Final = np.diag([-1.0, -1.0, 1.0])
_SAME_PLACE: Final = 1e-3
"""mm between two positions that count as one."""
_UNEVEN: Final = 0.01
"""Relative difference of two gaps that count as uneven."""
_TILT: Final = 0.01
"""Sideways movement of slices by the distance along their normal."""


@dataclass(frozen=True)
class Stack:
    """The planes of a series in their order, and where they lie."""

    planes: tuple[Plane, ...]
    positions: npt.NDArray[np.float64] | None
    """[D, 3] mm, in DICOM's directions; None where the files have no position."""
    problem: str | None
    """Why they are no right-angled, even grid; None where they are."""
    step: float | None
    """Distance of two slices in mm."""

    def affine(self) -> Affine | None:
        """[row, column, slice] to mm, as NIfTI has them; None where the files have no position."""
        first = self.planes[0]
        if self.positions is None or first.orientation is None:
            return None
        along_row, along_column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
        rows, columns = first.spacing or (1.0, 1.0)
        affine = np.eye(4)
        affine[:3, 0] = _LPS_TO_RAS @ along_column * rows
        affine[:3, 1] = _LPS_TO_RAS @ along_row * columns
        normal = np.cross(along_row, along_column)
        between = self.positions[-1] - self.positions[0]
        step = between / (len(self.planes) - 1) if len(self.planes) > 1 else normal * (self.step or 1.0)
        affine[:3, 2] = _LPS_TO_RAS @ step
        affine[:3, 3] = _LPS_TO_RAS @ self.positions[0]
        return affine


def order_planes(series: Series, frame: int | None) -> Stack:
    """The planes sorted along their normal.

    Args:
        series: As found.
        frame: Which of several pictures at each position.

    Raises:
        DataError: They are a mosaic, doubled, without positions, or several at each position and none was chosen.
    """
    if series.mosaic:
        raise DataError(
            "its DICOM pictures are mosaics (a sheet of small slices in each picture); convert them with dcm2niix, or export them as an "
            "enhanced series"
        )
    planes = series.planes
    if any(plane.position is None or plane.orientation is None for plane in planes):
        return _without_positions(series, frame)
    orientation = np.array(planes[0].orientation)
    normal = np.cross(orientation[:3], orientation[3:])
    if not 0.99 < np.linalg.norm(normal) < 1.01:
        raise DataError("its DICOM orientation is not two right-angled directions of length 1; export the series again")
    along = np.array([np.dot(normal, plane.position or ()) for plane in planes])
    places: list[list[int]] = []
    for index in np.argsort(along, kind="stable"):
        if places and along[index] - along[places[-1][0]] < _SAME_PLACE:
            places[-1].append(int(index))
        else:
            places.append([int(index)])
    chosen = _one_each(places, planes, frame)
    positions = np.array([plane.position for plane in chosen], dtype=np.float64)
    problem, step = _unevenness(positions, normal, chosen)
    return Stack(chosen, positions, problem, step)


def _without_positions(series: Series, frame: int | None) -> Stack:
    """Planes in the order of the file: one, or frames that are known to be slices.

    Raises:
        DataError: Several files, or frames that may be times.
    """
    planes = series.planes
    if len(planes) == 1:
        return Stack(planes, None, None, planes[0].thickness)
    files = {plane.path for plane in planes}
    if len(files) == 1 and frame is not None:
        if frame >= len(planes):
            raise DataError(f"its DICOM file holds {len(planes)} frames; data.volume.frame {frame} is none of them")
        return Stack((planes[frame],), None, None, planes[0].thickness)
    if len(files) == 1 and series.depth_frames:
        return Stack(planes, None, None, planes[0].thickness)
    if len(files) == 1:
        raise DataError(
            f"its DICOM file holds {len(planes)} frames without positions: they may be times and not slices; choose one by "
            "data.volume.frame, or export a series with positions"
        )
    raise DataError(
        f"its {len(files)} DICOM files have no positions, so their order is not known; put each into a folder of its own, or export "
        "them with positions"
    )


def _one_each(places: list[list[int]], planes: tuple[Plane, ...], frame: int | None) -> tuple[Plane, ...]:
    """One plane at each position.

    Raises:
        DataError: Some positions are doubled, or all and no frame was chosen.
    """
    counts = {len(place) for place in places}
    most = max(counts)
    if most == 1:
        return tuple(planes[place[0]] for place in places)
    instances = [planes[index].instance + str(planes[index].frame) for place in places for index in place]
    if len(counts) > 1 or len(set(instances)) < len(instances):
        doubled = sum(len(place) > 1 for place in places)
        raise DataError(
            f"its DICOM series has {doubled} of {len(places)} positions more than once (doubled slices, or copies of files); leave one "
            "file for each position"
        )
    if frame is None or frame >= most:
        raise DataError(
            f"its DICOM series has {most} pictures at each of {len(places)} position(s): times, echoes or b-values, not slices; choose "
            f"one by data.volume.frame, 0 to {most - 1}"
        )
    return tuple(planes[sorted(place, key=lambda index: planes[index].order)[frame]] for place in places)


def _unevenness(
    positions: npt.NDArray[np.float64], normal: npt.NDArray[np.float64], planes: tuple[Plane, ...]
) -> tuple[str | None, float | None]:
    """Why positions [D, 3] are no right-angled, even stack along the normal, and the usual distance of two slices."""
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
            path: Of the folder or file.
            series: Which series of a folder that holds several.
            frame: Which of several pictures at each position.
            resample: Put a tilted or uneven stack on a right-angled, even grid.
            max_gigabytes: More is refused, in the files' own type.

        Raises:
            DataError: A file is damaged, no series or several fit, or it is no even stack.
        """
        found = find_images(path)
        self.series = choose_series(found, series, path.name)
        self.found = tuple(found.series)
        """Every series of the folder."""
        self.stack = order_planes(self.series, frame)
        self._resampled: npt.NDArray[np.float32] | None = None
        self._frames: npt.NDArray[Any] | None = None
        self._done = np.zeros(len(self.stack.planes), dtype=bool)
        self._file: tuple[Path, Dataset] | None = None
        first = self.stack.planes[0]
        shape: Shape = (first.rows, first.columns, len(self.stack.planes))
        self._type = np.dtype(f"{'i' if self.series.signed else 'u'}{max(1, self.series.bits // 8)}")
        check_size(shape, self.series.samples * self._type.itemsize, max_gigabytes)
        self.even = self.stack.problem is None
        if not self.even and not resample:
            raise DataError(
                f"its DICOM series is no even, right-angled grid: {self.stack.problem}; complete the series, resample it, or set "
                "data.volume.resample: true"
            )
        self._header = self._make_header(shape, max_gigabytes)

    def header(self) -> Header:
        """Shape, spacing and affine."""
        return self._header

    def slice(self, index: int, axis: int = 2) -> npt.NDArray[np.float32]:
        """The plane `index` across `axis`, [A, B, C]: grey values with C = 1, RGB in 0..1 with C = 3.

        Raises:
            DataError: A file is damaged.
        """
        if not self.even:
            if self._resampled is None:
                self._resampled = self._even()
            return np.asarray(np.take(self._resampled, index, axis=axis)[..., None], dtype=np.float32)
        if axis == 2:
            return self._values(index, self._stored(index))
        where = (index,) if axis == 0 else (slice(None), index)
        return np.stack([self._values(k, self._stored(k)[where]) for k in range(len(self.stack.planes))], axis=1)

    def mask_slice(self, index: int, axis: int = 2) -> npt.NDArray[np.int64]:
        """Refuse to read a mask [rows, columns]: a mask is a DICOM-SEG, not a series of pictures.

        Raises:
            DataError: Always.
        """
        raise DataError("its mask is a series of DICOM pictures; save it as DICOM-SEG, RTSTRUCT or NIfTI")

    def write_mask(self, path: Path, mask: npt.NDArray[Any]) -> None:
        """Write ids [row, column, slice] as NIfTI: its first index is the column, the affine takes it to the same places.

        Raises:
            StoreError: It cannot be written.
        """
        affine = self._header.affine
        library: Any = nib.nifti1  # has no types
        image = library.Nifti1Image(mask.transpose(1, 0, 2), None)
        if affine is not None:
            turned = affine[:, [1, 0, 2, 3]]
            image.set_sform(turned, code=1)
            image.set_qform(turned, code=1)
        image.header.set_xyzt_units("mm" if self._header.spacing_mm else 0)
        write_nifti(path, image)

    def _make_header(self, shape: Shape, max_gigabytes: float) -> Header:
        affine = self.stack.affine()
        dtype = self._type
        if not self.even and affine is not None:
            shape, affine = even_stack(self.stack.positions, affine, shape)
            dtype = np.dtype(np.float32)
            check_size(shape, dtype.itemsize, max_gigabytes)
        known = affine is not None and self.stack.planes[0].spacing is not None
        flat = self.stack.planes[0].spacing
        spacing = spacing_of(affine) if known and affine is not None else None
        if spacing is None and flat is not None and shape[2] == 1:
            spacing = (*flat, self.stack.step or 1.0)
        channels = 3 if self._colour() else 1
        return Header("DICOM", shape, affine, spacing, dtype, channels, self.series.frame_of_reference)

    def _colour(self) -> bool:
        if self.series.samples > 1:
            return True
        with quiet():
            head = pydicom.dcmread(
                self.stack.planes[0].path,
                force=True,
                stop_before_pixels=True,
                specific_tags=["PhotometricInterpretation"],
            )
        return str(head.get("PhotometricInterpretation", "")) == "PALETTE COLOR"

    def _stored(self, index: int) -> npt.NDArray[Any]:
        """Stored values of a plane, shape [rows, columns] or [rows, columns, 3]; each plane is decoded once.

        Raises:
            DataError: The file is damaged or cannot be decoded.
        """
        plane = self.stack.planes[index]
        if not self._done[index]:
            try:
                with quiet():
                    pixels = _decode(self._open(plane.path), plane.frame)
            except Exception:  # noqa: BLE001 - decoders raise almost anything on damaged files, and their text may quote headers
                raise DataError(damaged(plane.path)) from None
            if pixels.shape[:2] != (plane.rows, plane.columns):
                raise DataError(damaged(plane.path))
            if self._frames is None:
                self._frames = np.empty((len(self.stack.planes), *pixels.shape), dtype=pixels.dtype)
            self._frames[index] = pixels
            self._done[index] = True
        frames = self._frames
        return frames[index] if frames is not None else np.empty(0)

    def _values(self, index: int, stored: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Stored values of a plane, or part of it, as they mean: [..., C].

        Raises:
            DataError: One is not finite.
        """
        plane = self.stack.planes[index]
        head = self._open(plane.path)
        if self._header.channels == 3:
            return np.asarray(stored, dtype=np.float32) / np.float32(np.iinfo(stored.dtype).max)
        values = _modality(stored, plane, head)
        if head.get("PhotometricInterpretation") == "MONOCHROME1":
            bits, signed = int(head.BitsStored), bool(head.get("PixelRepresentation", 0))
            ends = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1]).astype(
                stored.dtype
            )
            values = _modality(ends, plane, head).sum() - values
        if not np.isfinite(values).all():
            raise DataError(f"{plane.path.name!r} holds values that are not finite numbers; take the case out")
        return values.astype(np.float32)[..., None]

    def _even(self) -> npt.NDArray[np.float32]:
        """All slices on the even grid of the header, [rows, columns, slices].

        Raises:
            DataError: A file is damaged, or the pictures are in colour.
        """
        if self._header.channels == 3:
            raise DataError(
                "its DICOM series is in colour and unevenly spaced, which is not resampled; take the case out"
            )
        planes = (self.slice_as_read(index) for index in range(len(self.stack.planes)))
        affine = self.stack.affine()
        target = self._header
        if affine is None or target.affine is None or self.stack.positions is None:
            raise DataError("its DICOM series has no positions, so it cannot be resampled; export it with positions")
        return resample_stack(planes, self.stack.positions, affine, target.affine, target.shape)

    def slice_as_read(self, index: int) -> npt.NDArray[np.float32]:
        """The values of one picture of the series before resampling, shape [rows, columns].

        Raises:
            DataError: The file is damaged.
        """
        return self._values(index, self._stored(index))[..., 0]

    def _open(self, path: Path) -> Dataset:
        """The file's data set; the last one is kept, so that a multi-frame file is read once."""
        if self._file is None or self._file[0] != path:
            self._file = path, open_dataset(path)
        return self._file[1]


def open_dataset(path: Path) -> Dataset:
    """A whole DICOM file, with a transfer syntax where it names none.

    Raises:
        DataError: It is damaged.
    """
    try:
        with quiet():
            dataset = pydicom.dcmread(path, force=True)
            if not hasattr(dataset, "file_meta"):
                dataset.file_meta = FileMetaDataset()
            if "TransferSyntaxUID" not in dataset.file_meta:
                implicit, little = dataset.original_encoding
                explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
                dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit in (True, None) else explicit
            return dataset
    except Exception:  # noqa: BLE001 - pydicom raises almost anything on damaged files, and its text quotes header values
        raise DataError(damaged(path)) from None


def _decode(dataset: Dataset, frame: int) -> npt.NDArray[Any]:
    """The stored values of one frame, shape [rows, columns], or [rows, columns, 3] for colour (8 or 16 bits, also from a palette)."""
    pixels: npt.NDArray[Any] = pixel_array(dataset, index=frame)
    if dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
        return np.asarray(apply_color_lut(pixels, dataset))
    bits, allocated = int(dataset.BitsStored), pixels.dtype.itemsize * 8
    if pixels.ndim == 2 and pixels.dtype.kind in "iu" and bits < allocated:  # overlays may lie in the unused upper bits
        spare = allocated - bits
        return np.asarray(np.right_shift(np.left_shift(pixels, spare), spare))
    return pixels


def _modality(stored: npt.NDArray[Any], plane: Plane, head: Dataset) -> npt.NDArray[np.float64]:
    """Stored values of any shape after the rescale slope and intercept, or the modality table, of the plane."""
    if plane.slope is not None:
        return np.asarray(stored, dtype=np.float64) * plane.slope + (plane.intercept or 0.0)
    with quiet():
        return np.asarray(apply_modality_lut(stored, head), dtype=np.float64)
