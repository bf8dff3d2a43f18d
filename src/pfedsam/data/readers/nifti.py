"""NIfTI-1 and NIfTI-2 in one file, plain or gzipped, by nibabel.

Values are those after the header's slope and intercept. The header is checked before anything is decompressed. The affine is the sform if
it has a code, else the qform, else (both codes 0) the voxel sizes alone. The spacing is unknown if the header contains only 1 mm and no
orientation, or no size of the voxels along an axis. Lengths in metres or micrometres are converted to mm.
"""

import gzip
import logging
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import array_from_file
from nibabel.wrapstruct import WrapStructError

from pfedsam.core import atomic
from pfedsam.core.errors import DataError
from pfedsam.core.files import open_regular
from pfedsam.data.readers.base import (
    SPACING_TOLERANCE,
    Affine,
    Header,
    Shape,
    check_affine,
    check_size,
    grey_values,
    spacing_of,
)

# What nibabel remarks about a header comes without the name of the file; what matters is in our own messages.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)

NIFTI_ERRORS: Final = (OSError, EOFError, ValueError, zlib.error, HeaderDataError, ImageFileError, WrapStructError)
"""The errors that nibabel raises for damaged files."""
_GZIP: Final = b"\x1f\x8b"
_HEADER_BYTES: Final = 544
_FURTHEST_VOXEL: Final = 2**28
"""Largest number of bytes before the voxels; header extensions have kilobytes to a few megabytes."""
_REST_BYTES, _BLOCK_BYTES = 2**28, 2**20
"""Largest number of bytes that are read after the voxels (other frames, for example), and the number read at once."""
_UNITS: Final = {1: 1000.0, 3: 0.001}
"""NIfTI's code of the unit of length (without that of time) to its length in mm; other codes mean mm."""
_HIGHEST_ID: Final = 2**53
"""Above it, float64 cannot represent every whole number."""
_ID_ERROR: Final = 1e-5
"""Largest difference of an id from a whole number, caused by rounding of the slope."""
_ROUGHEST_STEP: Final = 0.1
"""Largest slope whose multiples a program may have rounded ids to, when it wrote real numbers in the integers of an image's header."""

_OTHER_AXIS: Final = 0.5
"""Cosine of the angle (60 degrees) between two directions from which they belong to different axes."""


def looks_like_nifti(path: Path) -> bool:
    """Whether the content of a file is NIfTI; its name does not matter."""
    start = _start(path)
    return start[344:348] in (b"n+1\0", b"ni1\0") or start[4:8] in (b"n+2\0", b"ni2\0")


@contextmanager
def _content(path: Path) -> Iterator[BufferedIOBase]:
    """The content of a file, decompressed if it is gzipped.

    Raises:
        OSError: the file cannot be opened, or is a pipe or a device.
    """
    with open_regular(path) as file:
        zipped = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        if zipped:
            with gzip.open(file) as content:
                yield content
        else:
            yield file


def _start(path: Path) -> bytes:
    """The first bytes, decompressed if the file is gzipped; fewer bytes, or none, if it is damaged."""
    try:
        with _content(path) as file:
            return file.read(_HEADER_BYTES)
    except (OSError, EOFError, zlib.error):
        return b""


class NiftiReader:
    """One NIfTI file."""

    def __init__(self, path: Path, *, frame: int | None = None, max_gigabytes: float = 2.0, mask: bool = False) -> None:
        """Read the header.

        Args:
            path: the file.
            frame: number of the 3-D part of a file with more dimensions.
            max_gigabytes: largest size in the type of the file.
            mask: whether the file is a mask, for messages.

        Raises:
            DataError: the file is damaged, too large, or of a kind that is not read.
        """
        self.path, self._mask = path, mask
        self._values: npt.NDArray[Any] | None = None
        start = _start(path)
        self._class = _class_of(path, start)
        try:
            kind = (
                self._class.header_class
            )  # without the extensions that may follow: they are not needed, and may be long
            self._raw_header = kind(start[: kind.template_dtype.itemsize])
            self._dtype = np.dtype(self._raw_header.get_data_dtype())
            slope, inter = self._raw_header.get_slope_inter()
            self._unsized = _without_size(kind(start[: kind.template_dtype.itemsize], check=False))
        except NIFTI_ERRORS as exc:
            raise DataError(_damaged(path, "its header cannot be read")) from exc
        self._slope, self._inter = 1.0 if slope is None else float(slope), float(inter or 0.0)
        step = abs(self._slope)
        self._id_error = _ID_ERROR + (step / 2 if step <= _ROUGHEST_STEP else 0.0)
        self._check_type()
        self._frame, shape = self._choose(frame)
        self._offset = self._check_offset()
        check_size(shape, self._dtype.itemsize, max_gigabytes, "its mask's" if mask else "its")
        self._header = self._read_header(shape)

    def header(self) -> Header:
        """Shape, spacing and affine."""
        return self._header

    def slice(self, index: int, axis: int = 2) -> npt.NDArray[np.float32]:
        """The plane with this index along `axis`, [A, B, 1].

        Raises:
            DataError: the file is damaged or cut off, or a value is not a number.
        """
        return self._grey(self._plane(index, axis), index)

    def planes(self) -> Iterator[npt.NDArray[np.float32]]:
        """The planes [I, J, 1] along the last axis, in order, from one pass through the file that keeps none of them.

        Raises:
            DataError: the file is damaged or cut off, or a value is not a number.
        """
        shape = self._header.shape
        step = self._dtype.itemsize * math.prod(shape[:2])
        with self._open() as (file, offset):
            for index in range(shape[2]):
                stored = array_from_file(shape[:2], self._dtype, file, offset + index * step, order="F", mmap=False)
                yield self._grey(self._scaled(stored), index)

    def mask_slice(self, index: int, axis: int = 2) -> npt.NDArray[np.int64]:
        """The ids [A, B] of the plane with this index along `axis`.

        Raises:
            DataError: the file is cut off, or a value is not a whole number of 0 or more.
        """
        values = self._plane(index, axis)
        ids = np.rint(values)
        wrong = ~np.isfinite(values) | (np.abs(values - ids) > self._id_error) | (ids < 0) | (ids > _HIGHEST_ID)
        if wrong.any():
            raise DataError(
                f"its mask {self.path.name!r} holds {values[wrong].flat[0]:g} where ids (whole numbers from 0) are needed; save "
                "it without interpolation, one id per class"
            )
        return ids.astype(np.int64)

    def write_mask(self, path: Path, mask: npt.NDArray[Any]) -> None:
        """Write ids [I, J, K] with the position, orientation codes and unit of this file, but nothing else of its header.

        Raises:
            StoreError: the file cannot be written.
        """
        source = self._raw_header
        image = self._class(mask, None, type(source)())
        header = image.header
        header.set_data_dtype(mask.dtype)
        for field in ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "srow_x", "srow_y", "srow_z"):
            header[field] = source[field]
        for field in ("qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units"):
            header[field] = source[field]
        header["pixdim"][:4] = source["pixdim"][:4]
        header["pixdim"][1:4][self._unsized] = 0  # nibabel has put 1 there
        write_nifti(path, image)

    def _plane(self, index: int, axis: int) -> npt.NDArray[np.float64]:
        """The values of the slice with this index along an axis, shape [n, m]."""
        where: list[Any] = [slice(None)] * 3
        where[axis] = index
        if self._values is None:
            self._values = self._read()
        return self._scaled(self._values[tuple(where)])

    def _scaled(self, stored: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Stored values of any shape after slope and intercept; values that become too large are infinite."""
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(stored, dtype=np.float64) * self._slope + self._inter

    def _grey(self, values: npt.NDArray[np.float64], index: int) -> npt.NDArray[np.float32]:
        """The values [n, m] of the plane with this index as float32, shape [n, m, 1].

        Raises:
            DataError: a value is not a number.
        """
        return grey_values(values, f"plane {index} of {self.path.name!r}")[..., None]

    def _read(self) -> npt.NDArray[Any]:
        """The stored values [I, J, K] in their own type; memory-mapped if the file is not compressed.

        Raises:
            DataError: the file is damaged or cut off.
        """
        with self._open() as (file, offset):
            mapped: Any = False if isinstance(file, gzip.GzipFile) else "c"
            return np.asanyarray(array_from_file(self._header.shape, self._dtype, file, offset, order="F", mmap=mapped))

    @contextmanager
    def _open(self) -> Iterator[tuple[BufferedIOBase, int]]:
        """The content of the file and the position of the first voxel in it; the end of a gzipped file is checked after the reading.

        Raises:
            DataError: the file is damaged or cut off.
        """
        offset = self._offset + self._frame * self._dtype.itemsize * math.prod(self._header.shape)
        try:
            with _content(self.path) as file:
                yield file, offset
                if isinstance(file, gzip.GzipFile):
                    _check_end(file)
        except (*NIFTI_ERRORS, MemoryError) as exc:
            raise DataError(_damaged(self.path, "its voxels cannot be read")) from exc

    def _check_offset(self) -> int:
        """Position in bytes of the first voxel.

        Raises:
            DataError: the position is inside the header, or so far after it that the field must be damaged.
        """
        least = int(self._raw_header.single_vox_offset)
        offset = float(self._raw_header["vox_offset"]) or least  # some programs leave it 0
        if not least <= offset <= _FURTHEST_VOXEL:
            raise DataError(_damaged(self.path, f"by its header the voxels begin at byte {offset:g}"))
        return int(offset)

    def _check_type(self) -> None:
        """Refuse complex numbers, colours and other values that are not grey values.

        Raises:
            DataError: the file has such values.
        """
        dtype = self._dtype
        if dtype.kind == "c" or dtype.fields or dtype.kind not in "iufb" or dtype.itemsize > 8:
            what = "complex" if dtype.kind == "c" else "colour (RGB)" if dtype.fields else str(dtype)
            raise DataError(
                f"{self.path.name!r} holds {what} values, which are not read; save it with one real value a voxel"
            )

    def _choose(self, frame: int | None) -> tuple[int, Shape]:
        """The number of the 3-D part that is read, and its shape.

        Raises:
            DataError: there are several parts and `frame` is None, or there is no such part.
        """
        lengths = [int(n) for n in self._raw_header.get_data_shape()]
        first, second, third = (*lengths[:3], 1, 1, 1)[:3]
        if any(n < 1 for n in lengths):
            raise DataError(f"{self.path.name!r} has an empty axis; restore it or take the case out")
        frames = math.prod(lengths[3:])
        if frames == 1:
            return 0, (first, second, third)
        if frame is None:
            remedy = (
                "save a mask as one volume" if self._mask else f"choose one by data.volume.frame, 0 to {frames - 1}"
            )
            raise DataError(
                f"{self.path.name!r} holds {frames} volumes (times or sequences) of {first} x {second} x {third}; {remedy}"
            )
        if frame >= frames:
            raise DataError(
                f"{self.path.name!r} holds {frames} volumes, so that there is no data.volume.frame {frame}; choose 0 to {frames - 1}"
            )
        return frame, (first, second, third)

    def _read_header(self, shape: Shape) -> Header:
        header = self._raw_header
        try:
            affine: Affine = np.array(header.get_best_affine(), dtype=np.float64)
        except NIFTI_ERRORS as exc:
            raise DataError(_damaged(self.path, "its orientation cannot be read")) from exc
        scale = _UNITS.get(int(header["xyzt_units"]) % 8, 1.0)
        affine[:3] *= scale
        whose = "its mask's NIfTI" if self._mask else "its NIfTI"
        check_affine(affine, whose)
        placed = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
        lengths = np.array(shape)
        # Of a single slice the size across it is not needed.
        lost = self._unsized & ((lengths > 1) | ((lengths == 1).sum() > 1))
        if placed and lost.any():
            raise DataError(
                f"{whose} header gives voxels the size 0 along axis {int(lost.argmax()) + 1} of 3, and a position that needs the size "
                "(qform); write the file again with the size of its voxels"
            )
        if lost.any():
            affine[:3, :3] /= spacing_of(affine)  # as if no size were given
        known = placed or not (np.array_equal(header["pixdim"][1:4], [1, 1, 1]) or lost.any())
        flat = not placed and int(header["dim"][0]) < len(shape)  # a picture of two axes has no thickness
        return Header(
            "NIfTI",
            shape,
            affine,
            spacing_of(affine) if known else None,
            np.dtype(np.float32) if (self._slope, self._inter) != (1.0, 0.0) else self._dtype,
            placed=placed,
            thickness_known=not (flat or self._unsized.any()),
            of_several=math.prod(header.get_data_shape()[3:]) > 1,
            contradicted=_is_contradicted(header, affine, scale),
        )


def _without_size(header: Any) -> npt.NDArray[np.bool_]:  # noqa: ANN401 - nibabel's classes have no types
    """The axes, shape [3], along which a header that nibabel has not repaired gives voxels the size 0; it makes 1 of it.

    There are no such axes if the header has an sform, which gives sizes of its own.
    """
    return np.asarray((header["pixdim"][1:4] == 0) & (header["sform_code"] <= 0))


def _is_contradicted(header: Any, affine: Affine, scale: float) -> bool:  # noqa: ANN401 - nibabel's classes have no types
    """Whether a header has an sform, which is the affine, and other sizes of voxels (not only 1) or a qform with other axes.

    Other positions and small turns are no contradiction: a registration to another image writes them into the sform alone. A qform that is
    damaged contradicts nothing.

    Args:
        header: the header.
        affine: its sform in mm.
        scale: length of its unit in mm.
    """
    if header["sform_code"] <= 0:
        return False
    sizes, ours = np.array(header["pixdim"][1:4], dtype=np.float64), np.array(spacing_of(affine))
    several = np.array((*header.get_data_shape(), 1, 1)[:3]) > 1
    other = np.abs(sizes * scale - ours) > SPACING_TOLERANCE * ours
    if (other & several).any() and not np.isin(sizes, (0, 1)).all():
        return True
    try:
        qform, _ = header.get_qform(coded=True)
    except NIFTI_ERRORS:
        return False
    if qform is None:
        return False
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = (affine[:3, :3] / ours * qform[:3, :3] / np.linalg.norm(qform[:3, :3], axis=0)).sum(axis=0)
    return bool((cosines < _OTHER_AXIS).any())


def _check_end(file: Any) -> None:  # noqa: ANN401 - a binary file
    """Read to the end of a gzipped file, where its check sum is compared; a file with very much content after the voxels is left.

    Raises:
        OSError: the checksum does not fit the content.
    """
    for _ in range(_REST_BYTES // _BLOCK_BYTES):
        if not file.read(_BLOCK_BYTES):
            return


def write_nifti(path: Path, image: Any) -> None:  # noqa: ANN401 - nibabel's classes have no types
    """Write an image, gzipped if the name ends with .gz, without a time stamp, so that equal masks give equal files.

    Raises:
        StoreError: the file cannot be written.
    """
    content = image.to_bytes()
    if path.name.lower().endswith(".gz"):
        content = gzip.compress(content, compresslevel=6, mtime=0)
    atomic.write_bytes(path, content, mode=atomic.usual_mode())


def _class_of(path: Path, start: bytes) -> Any:  # noqa: ANN401 - nibabel's classes have no types
    """The class of nibabel for NIfTI-1 or NIfTI-2.

    Raises:
        DataError: the file is neither.
    """
    if start[344:348] == b"n+1\0":
        return nib.nifti1.Nifti1Image
    if start[4:8] == b"n+2\0":
        return nib.nifti2.Nifti2Image
    if start[344:348] == b"ni1\0" or start[4:8] == b"ni2\0":
        raise DataError(f"{path.name!r} is NIfTI in two files (.hdr and .img); save it as one .nii or .nii.gz file")
    raise DataError(_damaged(path, "its header is not that of a NIfTI file"))


def _damaged(path: Path, what: str) -> str:
    return f"{path.name!r} is damaged or cut off ({what}); restore it or take the case out"
