from pathlib import Path

import numpy as np
import pydicom
import pytest
from mask_files import UNEVEN, write_rtstruct, write_uneven
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from volume_files import all_planes, write_series

from pfedsam.core.errors import DataError
from pfedsam.data.readers import open_mask
from pfedsam.data.readers.dicom import DicomReader
from pfedsam.data.volume_options import VolumeOptions

VALUES = np.zeros((20, 24, 4), np.int16)


def _square(low: float, high: float) -> list[tuple[float, float]]:
    """(row, column) corners."""
    return [(low, low), (low, high), (high, high), (high, low)]


def test_contours_are_filled_in_patient_coordinates_with_holes_and_points_left_out(tmp_path):
    image = DicomReader(
        write_series(tmp_path / "ct", VALUES, np.array([[0, 0.5, 0, 3], [-2.0, 0, 0, 1], [0, 0, 3, 7], [0, 0, 0, 1]]))
    )
    shut = "CLOSED_PLANAR"
    path = write_rtstruct(
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
    path = write_rtstruct(tmp_path / "s.dcm", image, body, organ)
    with pytest.raises(DataError, match=r"RTSTRUCT has parts that overlap in \d+ voxels"):
        open_mask(path, image, VolumeOptions())
    assert set(np.unique(all_planes(open_mask(path, image, VolumeOptions(segments={"organ": 4})), mask=True))) == {0, 4}
    away = write_rtstruct(tmp_path / "t.dcm", image, ("Organ", [("CLOSED_PLANAR", 30, _square(3, 6))]))
    with pytest.raises(DataError, match="none of the 1 contours of its RTSTRUCT is on a slice"):
        open_mask(away, image, VolumeOptions())


def test_a_name_that_no_structure_has_is_told_if_another_structure_is_left_out(tmp_path):
    image = DicomReader(write_series(tmp_path / "ct", VALUES))
    organ, gtv = ("Organ", [("CLOSED_PLANAR", 0, _square(3, 6))]), ("GTV1", [("CLOSED_PLANAR", 0, _square(8, 9))])
    path = write_rtstruct(tmp_path / "s.dcm", image, organ, gtv, ("isocentre", [("POINT", 1, [(15, 15)])]))
    notes = [
        open_mask(path, image, VolumeOptions(segments={"organ": 1, name: 2})).notes
        for name in ("GTV", "gtv1", "isocentre")
    ]
    assert notes[0][1].startswith("no part of the mask has the name 'GTV', and 1 part(s) have a name that is not")
    assert notes[1:] == [(LOSSY,), (LOSSY,)]  # a structure without a contour is there


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
    path = write_rtstruct(tmp_path / "s.dcm", image, ("organ", [("CLOSED_PLANAR", 1, (outer + hole)[::turn])]))
    expected = np.zeros(VALUES.shape, np.int64)
    expected[3:13, 3:13, 1], expected[6:9, 6:9, 1] = 1, 0
    np.testing.assert_array_equal(all_planes(open_mask(path, image, VolumeOptions()), mask=True), expected)


def test_the_border_does_not_depend_on_the_direction_of_a_contour(tmp_path):
    image = DicomReader(write_series(tmp_path / "ct", VALUES, CT_AFFINE))
    paths = [
        write_rtstruct(tmp_path / f"{turn}.dcm", image, ("organ", [("CLOSED_PLANAR", 1, _square(2, 9)[::turn])]))
        for turn in (1, -1)
    ]
    one, other = (all_planes(open_mask(path, image, VolumeOptions()), mask=True) for path in paths)
    np.testing.assert_array_equal(one, other)
    assert one.sum() == 49  # of the 64 centres on and inside the line, those of one row and one column are outside


def test_structures_of_other_coordinates_are_refused(tmp_path):
    image = DicomReader(write_series(tmp_path / "ct", VALUES, CT_AFFINE))
    path = write_rtstruct(
        tmp_path / "s.dcm", image, *((name, [("CLOSED_PLANAR", 1, _square(2.5, 5.5))]) for name in "ab")
    )

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
    path = write_rtstruct(tmp_path / "s.dcm", early, ("organ", squares))

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


def test_contours_of_another_series_with_the_same_coordinates_are_placed_and_that_is_said(tmp_path):
    first, second = (
        DicomReader(write_series(tmp_path / name, VALUES, CT_AFFINE, frame="1.2.3")) for name in ("first", "second")
    )
    path = write_rtstruct(tmp_path / "s.dcm", first, ("organ", [("CLOSED_PLANAR", 1, _square(2, 5))]))

    def refer(dataset: Dataset) -> None:
        reference = Dataset()
        reference.ReferencedSOPInstanceUID = first.stack.planes[1].instance
        dataset.ROIContourSequence[0].ContourSequence[0].ContourImageSequence = [reference]

    _changed(path, refer)
    note = "the RTSTRUCT refers to another series of the same coordinates, and was placed by position"
    assert [note in open_mask(path, image, VolumeOptions()).notes for image in (first, second)] == [False, True]


def test_what_encloses_nothing_or_has_no_number_is_told(tmp_path):
    image = DicomReader(write_series(tmp_path / "ct", VALUES, CT_AFFINE))
    inside = ("CLOSED_PLANAR", 1, _square(2, 5))

    def wrong(dataset: Dataset, number: int) -> None:
        dataset.StructureSetROISequence[0].ROINumber = number
        dataset.ROIContourSequence[0].ReferencedROINumber = number

    def broken(dataset: Dataset) -> None:
        dataset.ROIContourSequence[0].ContourSequence[0]["ContourData"]._value = ["nan"] * 12

    nothing = "RTSTRUCT holds no segment or closed contour"
    _refused(write_rtstruct(tmp_path / "a.dcm", image), image, nothing)
    _refused(write_rtstruct(tmp_path / "b.dcm", image, ("organ", [])), image, nothing)
    _refused(write_rtstruct(tmp_path / "c.dcm", image, ("organ", [("POINT", 1, [(3, 3)])])), image, nothing)
    beside = write_rtstruct(tmp_path / "d.dcm", image, ("organ", [("CLOSED_PLANAR", 1, _square(50, 60))]))
    _refused(beside, image, "none of the 1 contours of its RTSTRUCT is on a slice of the image, inside its borders")
    for number in (0, 70000):
        path = _changed(
            write_rtstruct(tmp_path / "e.dcm", image, ("organ", [inside])),
            lambda one, number=number: wrong(one, number),
        )
        _refused(path, image, f"numbers a part {number}, where an id is 1 to 65535")
    _refused(
        _changed(write_rtstruct(tmp_path / "f.dcm", image, ("organ", [inside])), broken), image, "damaged or cut off"
    )


def _drawn(
    tmp_path: Path, contours: list[tuple[float, list[tuple[float, float]]]], slices: int = 5, kind="CLOSED_PLANAR"
):
    """Pixels of one structure on each slice of a series 3 mm apart, and the notes; contours as (place in slices, corners)."""
    image = DicomReader(write_series(tmp_path / "ct", np.zeros((20, 24, slices), np.int16), CT_AFFINE))
    path = write_rtstruct(tmp_path / "s.dcm", image, ("organ", [(kind, place, corners) for place, corners in contours]))
    mask = open_mask(path, image, VolumeOptions())
    return all_planes(mask, mask=True).sum(axis=(0, 1)).tolist(), mask.notes


LOSSY = "a mask from contours is exact to about half a voxel at its border"
TEN = _square(2.5, 12.5)
"""10 x 10 pixels."""


def _apart(contours: float, slices: float = 3) -> str:
    return (
        f"the contours of 1 structure(s) are {contours:g} mm apart, the slices {slices:g} mm: a slice has the nearest contours within a "
        "quarter of their distance, and slices without any are empty"
    )


def _outside(number: int, of: int) -> str:
    return f"{number} of {of} contours are outside the image, on slices that it does not have or beside it, and are left out"


def test_a_slice_has_the_nearest_of_contours_that_are_closer_than_slices(tmp_path):
    """Contours every 0.6 mm: those at 0.2 slices before and after a slice once deleted each other."""
    found, notes = _drawn(tmp_path, [(k / 5, TEN) for k in range(21)])
    assert found == [100] * 5
    assert notes == (_outside(16, 21), _apart(0.6), LOSSY)


def test_of_two_contours_at_equal_distance_one_is_used(tmp_path):
    assert _drawn(tmp_path, [(0.9, TEN), (1.1, _square(2.5, 7.5))])[0] in ([0, 100, 0, 0, 0], [0, 25, 0, 0, 0])


@pytest.mark.parametrize(("places", "nearest", "added"), UNEVEN)
def test_a_slice_that_a_series_lacks_has_the_contours_of_the_nearest_one(tmp_path, places, nearest, added):
    image = write_uneven(tmp_path / "ct", *places)
    step = np.diff(places).min()
    squares = [("CLOSED_PLANAR", place / step, _square(0.5, k + 1.5)) for k, place in enumerate(places)]
    path = write_rtstruct(tmp_path / "s.dcm", image, ("organ", squares))
    mask = open_mask(path, image, VolumeOptions(resample=True))
    expected = np.zeros((6, 8, len(nearest)), np.int64)
    for index, k in enumerate(nearest):
        expected[1 : k + 2, 1 : k + 2, index] = 1
    np.testing.assert_array_equal(all_planes(mask, mask=True), expected)
    note = f"{added} of {len(nearest)} slices are not in the DICOM series and were interpolated; their mask is that of the nearest slice"
    assert mask.notes == (LOSSY, note)


def test_a_gap_that_is_too_wide_is_refused_where_contours_reach_it(tmp_path):
    image = write_uneven(tmp_path / "ct", 0, 3, 6, 18, 21, 24)
    path = write_rtstruct(tmp_path / "s.dcm", image, ("organ", [("CLOSED_PLANAR", 2, _square(1.5, 4.5))]))
    with pytest.raises(DataError, match="has a gap of 12 mm beside a structure of its mask"):
        open_mask(path, image, VolumeOptions(resample=True))


def test_contours_of_another_distance_than_the_slices_are_told(tmp_path):
    found, notes = _drawn(tmp_path, [(place, TEN) for place in (0, 5, 10)], slices=11)
    assert found == [100, 0, 0, 0, 0, 100, 0, 0, 0, 0, 100]
    assert notes == (_apart(15), LOSSY)
    found, notes = _drawn(tmp_path / "2", [(0.8 * k, TEN) for k in range(6)])
    assert found == [100, 100, 0, 100, 100]  # at 0, 0.8, 1.6, 2.4, 3.2 and 4 slices
    assert notes == (_outside(2, 6), _apart(2.4), LOSSY)


def test_slices_that_a_structure_skips_and_rounded_places_are_no_other_distance(tmp_path):
    """A lesion on slices 0 and 1 and one on 4; places in mm with one decimal would be 0.967 and 1.033 slices apart."""
    assert _drawn(tmp_path, [(0, TEN), (1, TEN), (4, TEN)]) == ([100, 100, 0, 0, 100], (LOSSY,))
    assert _drawn(tmp_path / "2", [(0, TEN), (0.967, TEN), (2, TEN)]) == ([100, 100, 100, 0, 0], (LOSSY,))


def test_a_contour_that_is_stored_twice_counts_once(tmp_path):
    turned = [*TEN[2:], *TEN[:2]][::-1]
    assert _drawn(tmp_path, [(1, TEN), (1, TEN), (1, turned)]) == ([0, 100, 0, 0, 0], (LOSSY,))
    assert _drawn(tmp_path / "2", [(1, TEN), (1, _square(5.5, 8.5)), (1, TEN)])[0] == [0, 91, 0, 0, 0]
    xor = [(1, TEN), (1, _square(2.5, 7.5)), (1, TEN)]  # by definition
    assert _drawn(tmp_path / "3", xor, kind="CLOSEDPLANAR_XOR")[0] == [0, 25, 0, 0, 0]


def test_contours_that_cross_are_told_and_nested_ones_are_not(tmp_path):
    crossing = [(1, TEN), (1, _square(7.5, 17.5))]  # 5 x 5 pixels are in both
    note = "contours of one structure cross on 1 slice(s): the pixels in two of them count as outside, like those of a hole"
    assert _drawn(tmp_path, crossing) == ([0, 150, 0, 0, 0], (note, LOSSY))
    nested = [(1, _square(0.5, 15.5)), (1, _square(3.5, 12.5)), (1, _square(5.5, 8.5)), (1, _square(16.5, 18.5))]
    assert _drawn(tmp_path / "2", nested) == ([0, 225 - 81 + 9 + 4, 0, 0, 0], (LOSSY,))


def test_a_contour_that_is_not_parallel_to_the_slices_is_left_out(tmp_path):
    """Corners of the tilted contour are 1.5 mm, half a slice, above and below its slice; those of the second one a fifth of a slice."""
    image = DicomReader(write_series(tmp_path / "ct", np.zeros((20, 24, 5), np.int16), CT_AFFINE))
    path = write_rtstruct(tmp_path / "s.dcm", image, ("organ", [("CLOSED_PLANAR", place, TEN) for place in (1, 2, 3)]))

    def tilt(*heights: float):
        def change(dataset: Dataset) -> None:
            for contour, height in zip(dataset.ROIContourSequence[0].ContourSequence, heights, strict=True):
                points = np.array(contour.ContourData, dtype=float).reshape(4, 3)
                points[:, 2] += [-height, height, height, -height]
                contour.ContourData = points.ravel().tolist()

        return change

    mask = open_mask(_changed(path, tilt(1.5, 0.6, 0)), image, VolumeOptions())
    assert all_planes(mask, mask=True).sum(axis=(0, 1)).tolist() == [0, 0, 100, 100, 0]
    assert mask.notes == ("1 of 3 contours are not parallel to the slices, and are left out", LOSSY)
    _refused(
        _changed(path, tilt(0, 1.5, 1.5)), image, "none of the 3 contours of its RTSTRUCT is on a slice of the image"
    )
