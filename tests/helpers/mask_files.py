"""A CT series with masks on its grid, DICOM-SEG files written by highdicom, and RTSTRUCT files, for the tests of readers of masks."""

from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid
from volume_files import CANARY, all_planes, write_series

from pfedsam.core.errors import DataError
from pfedsam.data.readers import open_mask
from pfedsam.data.readers.dicom import DicomReader
from pfedsam.data.volume_options import VolumeOptions

VALUES = np.random.default_rng(0).integers(-500, 500, (6, 8, 5)).astype(np.int16)
IDS = np.random.default_rng(1).integers(0, 3, (6, 8, 5)).astype(np.uint8)
AFFINE = np.array([[-2.0, 0, 0, 1], [0, 1.5, 0, 2], [0, 0, 4, 3], [0, 0, 0, 1]])
"""Of `VALUES` as a NIfTI file."""


def write_ct(folder: Path, **options: Any) -> DicomReader:
    """`VALUES` [row, column, slice] as a CT series, opened."""
    return DicomReader(write_series(folder, VALUES, AFFINE[:, [1, 0, 2, 3]] * [[1], [1], [-1], [1]]), **options)


def write_uneven(folder: Path, *places: float) -> DicomReader:
    """Slices of 6 x 8 pixels of 2 x 1 mm at these places in mm along the body, opened on an even grid."""

    def place(dataset: Any, k: int) -> None:
        dataset.ImagePositionPatient = [0, 0, places[k]]

    upright = np.array([[0, -1.0, 0, 0], [-2.0, 0, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
    values = np.zeros((6, 8, len(places)), np.int16) + np.int16(10) * np.arange(len(places), dtype=np.int16)
    return DicomReader(write_series(folder, values, upright, change=place), resample=True)


UNEVEN = [
    # places of the slices in mm; the slice of the series for each of those of the even grid; how many of these are no slices of the series
    ((0, 3, 6, 12, 15), (0, 1, 2, 2, 3, 4), 1),  # one is missing
    ((0, 3, 6, 15, 18, 21), (0, 1, 2, 2, 3, 3, 4, 5), 2),  # two are missing
    ((0, 3, 6, 12, 18, 24), (0, 1, 2, 2, 3, 3, 4, 4, 5), 3),  # the distance changes
    ((0, 3, 6, 10), (0, 1, 2, 3), 1),  # the last one is 1 mm off the grid
    ((0, 2, 4, 9, 14, 19), (0, 1, 2, 2, 3, 3, 4, 4, 4, 5, 5), 7),  # one of the last three is on it
]
"""Series that are resampled, by hand."""


def read_ids(path: Path, image: Any, **options: Any) -> npt.NDArray[np.int64]:
    """The ids of a mask on the grid of its image, indexed as the image."""
    return all_planes(open_mask(path, image, VolumeOptions(**options)), mask=True)


def assert_refused(path: Path, image: Any, match: str, **options: Any) -> None:
    """The mask is refused with these words, and with no name of a patient."""
    with pytest.raises(DataError, match=match) as caught:
        read_ids(path, image, **options)
    assert "Canary" not in str(caught.value)


def moved(**change: float) -> npt.NDArray[np.float64]:
    """`AFFINE` with another `origin` (mm), `scale` of the second axis, or `turn` (radians) about the third."""
    affine = AFFINE.copy()
    affine[0, 3] += change.get("origin", 0)
    affine[:3, 1] *= change.get("scale", 1)
    turn = change.get("turn", 0)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine[:3, :3] = rotation @ affine[:3, :3]
    return affine


def write_seg_file(
    path: Path,
    sources: list[Any],
    pixels: npt.NDArray[Any],
    kind: str = "BINARY",
    names: tuple[str, ...] = ("Organ 1", "Organ 2"),
) -> Path:
    """A DICOM-SEG by highdicom of the data sets `sources`: ids [slice, row, column], or a mask or share of each segment [..., segment]."""
    organ, manual = codes.SCT.Organ, hd.seg.SegmentAlgorithmTypeValues.MANUAL
    segments = [
        hd.seg.SegmentDescription(number, name, organ, organ, manual) for number, name in enumerate(names, start=1)
    ]
    maker = {"manufacturer": "m", "manufacturer_model_name": "m", "software_versions": "1", "device_serial_number": "1"}
    segmentation = hd.seg.Segmentation(sources, pixels, kind, segments, generate_uid(), 9, generate_uid(), 1, **maker)
    segmentation.save_as(path)
    return path


def write_seg_of(path: Path, image: DicomReader, pixels: npt.NDArray[Any], kind: str = "BINARY") -> Path:
    """The same for an opened series."""
    return write_seg_file(path, [pydicom.dcmread(plane.path) for plane in image.stack.planes], pixels, kind)


def write_rtstruct(
    path: Path, image: DicomReader, *structures: tuple[str, list[tuple[str, float, list[tuple[float, float]]]]]
) -> Path:
    """An RTSTRUCT of named structures, each with contours (type, slice, corners in pixels)."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = RTStructureSetStorage, generate_uid()
    dataset.Modality, dataset.PatientName = "RTSTRUCT", CANARY
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(structures, start=1):
        structure, drawn = Dataset(), Dataset()
        structure.ROINumber, structure.ROIName = number, name
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        for kind, index, corners in contours:
            contour = Dataset()
            points = np.array([image.header().affine @ [row, column, index, 1] for row, column in corners])[:, :3]
            contour.ContourGeometricType = kind
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = [f"{value:.6f}" for value in (points * [-1, -1, 1]).ravel()]
            drawn.ContourSequence.append(contour)
        dataset.StructureSetROISequence.append(structure)
        dataset.ROIContourSequence.append(drawn)
    dataset.save_as(path, enforce_file_format=True)
    return path
