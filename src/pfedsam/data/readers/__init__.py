"""Readers of image files: one protocol (`base.Reader`) and one module per format; files are recognised by their content."""

from pathlib import Path
from typing import Final, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from pfedsam.core.errors import DataError
from pfedsam.data.images import MAX_MEGAPIXELS
from pfedsam.data.readers.base import Header, Reader
from pfedsam.data.readers.dicom import DicomReader
from pfedsam.data.readers.dicom_files import find_images
from pfedsam.data.readers.dicom_folders import looks_like_dicom, visible_files
from pfedsam.data.readers.dicom_planes import Plane
from pfedsam.data.readers.masks import PartNames, fit_mask
from pfedsam.data.readers.nifti import NiftiReader, looks_like_nifti
from pfedsam.data.readers.pictures import read_picture_mask
from pfedsam.data.readers.png_stack import is_png_stack, read_png_stack
from pfedsam.data.readers.rtstruct import read_rtstruct
from pfedsam.data.readers.seg import read_seg
from pfedsam.data.volume_options import VolumeOptions

Kind: TypeAlias = Literal["picture", "nifti", "dicom"]
PICTURES: Final = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff"})
PICTURES_REMEDY: Final = (
    "put the pictures themselves into images/ (data.patient_pattern finds the patient in their names), or list them in manifest.csv with "
    "the column patient; save the slices of a volume as one NIfTI file"
)
"""What to do with the pictures of a patient that are in a folder of their own."""


class MaskReader(Protocol):
    """The mask of an image, with the indices of the image's voxels."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what was lost or changed when the mask was brought to the grid of its image."""
        ...

    @property
    def part_names(self) -> PartNames:
        """How the names in a DICOM-SEG or RTSTRUCT fit `data.volume.segments`; empty for other files."""
        ...

    def header(self) -> Header:
        """The header of the image."""
        ...

    def mask_slice(self, index: int, axis: int = 2) -> npt.NDArray[np.int64]:
        """The ids [A, B] of the plane with this index along `axis`.

        Raises:
            DataError: the file is damaged, or its values are no ids.
        """
        ...


def kind_of(path: Path) -> Kind | None:
    """The format of a file, or of a folder of DICOM files, by the first bytes; None for formats that are not read."""
    if path.is_dir():
        return "dicom" if any(map(looks_like_dicom, visible_files(path))) else None
    if path.suffix.lower() in PICTURES:
        return "picture"
    if not path.is_file():
        return None
    if looks_like_nifti(path):
        return "nifti"
    return "dicom" if looks_like_dicom(path) else None


def holds_pictures(path: Path) -> bool:
    """Whether a path is a folder with a picture in it or in a folder below."""
    return path.is_dir() and any(file.suffix.lower() in PICTURES for file in visible_files(path))


def open_volume(path: Path, options: VolumeOptions, *, series: str | None = None) -> Reader:
    """The reader of a NIfTI file, a DICOM file or a folder of DICOM files.

    Args:
        path: the file or folder.
        options: limits, frame and series.
        series: the series, if it is not that of the options.

    Raises:
        DataError: the file is of another format, damaged, too large, or ambiguous.
    """
    _refuse_absent(path)
    kind = kind_of(path)
    if kind == "nifti" or path.name.lower().endswith((".nii", ".nii.gz")):
        return NiftiReader(path, frame=options.frame, max_gigabytes=options.max_gigabytes)
    if kind == "dicom":
        return DicomReader(
            path,
            series=series or options.series,
            frame=options.frame,
            resample=options.resample,
            max_gigabytes=options.max_gigabytes,
        )
    if holds_pictures(path):
        raise DataError(f"{path.name!r} is a folder of pictures, and not an image of a case; {PICTURES_REMEDY}")
    raise DataError(f"{path.name!r} is neither NIfTI nor DICOM, or is damaged; restore it or take the case out")


def open_mask(
    path: Path, image: Reader, options: VolumeOptions, *, max_megapixels: float = MAX_MEGAPIXELS
) -> MaskReader:
    """The mask of a volume on the volume's grid: NIfTI, DICOM-SEG, RTSTRUCT, or a folder of one of them or of pictures.

    Args:
        path: the file or folder.
        image: the image, opened.
        options: limits, segments, and whether a mask on another grid is resampled.
        max_megapixels: largest size of a mask that is a picture.

    Raises:
        DataError: the file is of another format, damaged, or on another grid.
    """
    _refuse_absent(path)
    header = image.header()
    if is_png_stack(path):
        return read_png_stack(path, header, _single_files(image), max_megapixels=max_megapixels)
    kind = kind_of(path)
    if kind == "dicom":
        return _dicom_mask(path, header, options)
    if kind == "picture":
        return read_picture_mask(path, header, max_megapixels=max_megapixels)
    reader = NiftiReader(path, max_gigabytes=options.max_gigabytes, mask=True)
    return fit_mask(reader, header, resample=options.resample)


def _refuse_absent(path: Path) -> None:
    """Refuse a path with nothing that can be read; opening a pipe would wait for another program.

    Raises:
        DataError: the path is neither a file nor a folder.
    """
    if not path.is_file() and not path.is_dir():
        raise DataError(
            f"{path.name!r} cannot be opened: it is neither a file nor a folder; restore it or take the case out"
        )


def _dicom_mask(path: Path, image: Header, options: VolumeOptions) -> MaskReader:
    found = find_images(path)
    masks = [*found.segmentations, *found.structures]
    if len(masks) != 1:
        raise DataError(
            f"its mask {path.name!r} holds {len(found.segmentations)} DICOM-SEG and {len(found.structures)} RTSTRUCT; give exactly one of "
            "either"
        )
    if found.structures:
        return read_rtstruct(masks[0], image, options)
    return read_seg(masks[0], image, options)


def _single_files(image: Reader) -> tuple[Plane, ...] | None:
    """The slices of a DICOM series of single files, by position; None if a file contains several slices."""
    if not isinstance(image, DicomReader):
        return None
    planes = image.stack.planes
    return planes if len({plane.path for plane in planes}) == len(planes) else None
