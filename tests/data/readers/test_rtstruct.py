from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid
from volume_files import CANARY, all_planes, write_series

from pfedsam.core.errors import DataError
from pfedsam.data.readers import open_mask
from pfedsam.data.readers.dicom import DicomReader
from pfedsam.data.volume_options import VolumeOptions

VALUES = np.zeros((20, 24, 4), np.int16)


def _square(low: float, high: float) -> list[tuple[float, float]]:
    """(row, column) corners."""
    return [(low, low), (low, high), (high, high), (high, low)]


def _write(
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


def test_contours_are_filled_in_patient_coordinates_with_holes_and_points_left_out(tmp_path):
    image = DicomReader(
        write_series(tmp_path / "ct", VALUES, np.array([[0, 0.5, 0, 3], [-2.0, 0, 0, 1], [0, 0, 3, 7], [0, 0, 0, 1]]))
    )
    shut = "CLOSED_PLANAR"
    path = _write(
        tmp_path / "s.dcm",
        image,
        ("organ", [(shut, 1, _square(2.5, 12.5)), (shut, 1, _square(5.5, 8.5)), (shut, 9, _square(1, 5))]),
        ("isocentre", [("POINT", 1, [(15, 15)])]),
    )
    mask = open_mask(path, image, VolumeOptions())
    expected = np.zeros(VALUES.shape, np.int64)
    expected[3:13, 3:13, 1], expected[6:9, 6:9, 1] = 1, 0
    np.testing.assert_array_equal(all_planes(mask, mask=True), expected)
    assert mask.notes[0] == "1 of 3 contours are on slices that the image does not have and are left out"


def test_overlap_names_and_structures_of_another_series(tmp_path):
    image = DicomReader(write_series(tmp_path / "ct", VALUES))
    body, organ = ("BODY", [("CLOSED_PLANAR", 0, _square(1, 15))]), ("Organ", [("CLOSED_PLANAR", 0, _square(3, 6))])
    path = _write(tmp_path / "s.dcm", image, body, organ)
    with pytest.raises(DataError, match=r"RTSTRUCT has parts that overlap in \d+ voxels"):
        open_mask(path, image, VolumeOptions())
    assert set(np.unique(all_planes(open_mask(path, image, VolumeOptions(segments={"organ": 4})), mask=True))) == {0, 4}
    away = _write(tmp_path / "t.dcm", image, ("Organ", [("CLOSED_PLANAR", 30, _square(3, 6))]))
    with pytest.raises(DataError, match="none of the 1 contours of its RTSTRUCT is on a slice"):
        open_mask(away, image, VolumeOptions())
