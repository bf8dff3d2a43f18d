from pathlib import Path

import numpy as np
import pydicom
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
    assert mask.notes[0].startswith("1 of 3 contours are outside the image")


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


CT_AFFINE = np.array([[0, 1.0, 0, 0], [1, 0, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])


def _changed(path: Path, change) -> Path:
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)
    return path


def _refused(path: Path, image: DicomReader, match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        open_mask(path, image, VolumeOptions())
    assert "Canary" not in str(caught.value)


@pytest.mark.parametrize("turn", [1, -1])
def test_a_hole_that_is_joined_to_its_border_by_a_channel_costs_no_pixels(tmp_path, turn):
    """The channel (keyhole) runs through the centres of three pixels."""
    image = DicomReader(write_series(tmp_path / "ct", VALUES, CT_AFFINE))
    outer = [(2.5, 2.5), (2.5, 12.5), (12.5, 12.5), (12.5, 2.5), (2.5, 2.5)]
    hole = [(5.5, 5.5), (8.5, 5.5), (8.5, 8.5), (5.5, 8.5), (5.5, 5.5)]
    path = _write(tmp_path / "s.dcm", image, ("organ", [("CLOSED_PLANAR", 1, (outer + hole)[::turn])]))
    expected = np.zeros(VALUES.shape, np.int64)
    expected[3:13, 3:13, 1], expected[6:9, 6:9, 1] = 1, 0
    np.testing.assert_array_equal(all_planes(open_mask(path, image, VolumeOptions()), mask=True), expected)


def test_the_border_does_not_depend_on_the_direction_of_a_contour(tmp_path):
    image = DicomReader(write_series(tmp_path / "ct", VALUES, CT_AFFINE))
    paths = [
        _write(tmp_path / f"{turn}.dcm", image, ("organ", [("CLOSED_PLANAR", 1, _square(2, 9)[::turn])]))
        for turn in (1, -1)
    ]
    one, other = (all_planes(open_mask(path, image, VolumeOptions()), mask=True) for path in paths)
    np.testing.assert_array_equal(one, other)
    assert one.sum() == 49  # of the 64 centres on and inside the line, those of one row and one column are outside


def test_structures_of_other_coordinates_are_refused(tmp_path):
    image = DicomReader(write_series(tmp_path / "ct", VALUES, CT_AFFINE))
    path = _write(tmp_path / "s.dcm", image, *((name, [("CLOSED_PLANAR", 1, _square(2.5, 5.5))]) for name in "ab"))

    def elsewhere(*numbers: int):
        def change(dataset: Dataset) -> None:
            for number in numbers:
                dataset.StructureSetROISequence[number].ReferencedFrameOfReferenceUID = "1.2.3"

        return change

    found = all_planes(open_mask(_changed(path, elsewhere(0)), image, VolumeOptions()), mask=True)
    assert set(np.unique(found)) == {0, 2}
    _refused(_changed(path, elsewhere(0, 1)), image, "belongs to other coordinates than the image")


def test_contours_of_another_time_of_the_series_are_left_out(tmp_path):
    series, frame = generate_uid(), generate_uid()

    def time(number: int):
        def change(dataset: Dataset, _: int) -> None:
            dataset.TemporalPositionIdentifier = number
            dataset.SOPInstanceUID = f"1.2.77.{number}"

        return change

    for number in (1, 2):
        write_series(tmp_path / "ct" / str(number), VALUES[..., :1], series=series, frame=frame, change=time(number))
    early, late = (DicomReader(tmp_path / "ct", frame=number) for number in (0, 1))
    squares = [("CLOSED_PLANAR", 0, _square(1.5, 9.5)), ("CLOSED_PLANAR", 0, _square(3.5, 6.5))]
    path = _write(tmp_path / "s.dcm", early, ("organ", squares))

    def drawn_on(*numbers: int):
        def change(dataset: Dataset) -> None:
            for contour, number in zip(dataset.ROIContourSequence[0].ContourSequence, numbers, strict=True):
                contour.ContourImageSequence = [Dataset()]
                contour.ContourImageSequence[0].ReferencedSOPInstanceUID = f"1.2.77.{number}"

        return change

    _changed(path, drawn_on(1, 2))
    for image, area in ((early, 64), (late, 9)):
        assert all_planes(open_mask(path, image, VolumeOptions()), mask=True).sum() == area
    _refused(_changed(path, drawn_on(1, 1)), late, "other pictures of the series")


def test_what_encloses_nothing_or_has_no_number_is_told(tmp_path):
    image = DicomReader(write_series(tmp_path / "ct", VALUES, CT_AFFINE))
    inside = ("CLOSED_PLANAR", 1, _square(2, 5))

    def wrong(dataset: Dataset, number: int) -> None:
        dataset.StructureSetROISequence[0].ROINumber = number
        dataset.ROIContourSequence[0].ReferencedROINumber = number

    def broken(dataset: Dataset) -> None:
        dataset.ROIContourSequence[0].ContourSequence[0]["ContourData"]._value = ["nan"] * 12

    nothing = "RTSTRUCT holds no segment or closed contour"
    _refused(_write(tmp_path / "a.dcm", image), image, nothing)
    _refused(_write(tmp_path / "b.dcm", image, ("organ", [])), image, nothing)
    _refused(_write(tmp_path / "c.dcm", image, ("organ", [("POINT", 1, [(3, 3)])])), image, nothing)
    beside = _write(tmp_path / "d.dcm", image, ("organ", [("CLOSED_PLANAR", 1, _square(50, 60))]))
    _refused(beside, image, "none of the 1 contours of its RTSTRUCT is on a slice of the image, inside its borders")
    for number in (0, 70000):
        path = _changed(
            _write(tmp_path / "e.dcm", image, ("organ", [inside])), lambda one, number=number: wrong(one, number)
        )
        _refused(path, image, f"numbers a part {number}, where an id is 1 to 65535")
    _refused(_changed(_write(tmp_path / "f.dcm", image, ("organ", [inside])), broken), image, "damaged or cut off")
