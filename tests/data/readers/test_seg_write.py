import highdicom as hd
import numpy as np
import pydicom
import pytest
from mask_files import AFFINE, IDS, VALUES, read_ids, write_ct
from pydicom.dataset import Dataset
from volume_files import write_enhanced, write_series

from pfedsam.core.errors import DataError
from pfedsam.data.readers.dicom import DicomReader
from pfedsam.data.readers.dicom_files import quiet
from pfedsam.data.readers.seg_write import refuse_without_seg, write_seg


def test_a_written_seg_is_read_back_by_highdicom_and_by_us(tmp_path):
    image = write_ct(tmp_path / "ct")
    write_seg(tmp_path / "m.dcm", image, IDS, ("liver", "odd one"))
    np.testing.assert_array_equal(read_ids(tmp_path / "m.dcm", image), IDS)
    read = hd.seg.segread(tmp_path / "m.dcm")
    pixels = read.get_volume(combine_segments=True).array
    sources = [plane.instance for plane in image.stack.planes]
    by_source = read.get_pixels_by_source_instance(sources, combine_segments=True)
    np.testing.assert_array_equal(np.moveaxis(by_source, 0, 2), IDS)
    assert pixels.sum() == IDS.sum()
    assert read.FrameOfReferenceUID == image.header().frame_of_reference
    assert read.get_segment_description(1).segmented_property_type.value == "10200004"
    assert read.get_segment_description(2).segment_label == "odd one"


def _written(folder, change, names=("liver", "odd one")):
    """The CT with changed headers, and a DICOM-SEG of it as highdicom reads it."""
    image = DicomReader(write_series(folder, VALUES, AFFINE[:, [1, 0, 2, 3]] * [[1], [1], [-1], [1]], change=change))
    write_seg(folder.parent / "m.dcm", image, IDS, names)
    np.testing.assert_array_equal(read_ids(folder.parent / "m.dcm", image), IDS)
    return hd.seg.segread(folder.parent / "m.dcm")


@pytest.mark.parametrize(
    ("charset", "patient"),
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        ("ISO_IR 144", "Люксембург"),
        ("ISO_IR 100", "Buc^Jérôme"),
        ("ISO_IR 192", "Wang^XiaoDong=王^小东"),
        (None, "Doe^Jane"),
        ("", "Doe^Jane"),
        ("ISO_IR 6", "Doe^Jane"),
    ],
)
@pytest.mark.parametrize("names", [("liver", "odd one"), ("опухоль", "腫瘍")])
def test_names_in_any_script_are_kept(tmp_path, charset, patient, names):
    def change(dataset, _):
        dataset.PatientName = patient
        if charset is not None:
            dataset.SpecificCharacterSet = charset

    read = _written(tmp_path / "ct", change, names)
    assert str(read.PatientName) == patient
    assert tuple(read.get_segment_description(number).segment_label for number in (1, 2)) == names
    if charset in ("ISO_IR 144", "ISO_IR 100", "ISO_IR 192") and names[0].isascii():
        assert read.SpecificCharacterSet == charset


@pytest.mark.parametrize("thickness", ["absent", None, 0])
def test_slices_without_a_thickness_have_that_of_their_distance(tmp_path, thickness):
    def change(dataset, _):
        del dataset.SliceThickness
        if thickness != "absent":
            dataset.SliceThickness = thickness

    read = _written(tmp_path / "ct", change)
    measures = read.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SliceThickness == 4


@pytest.mark.parametrize("overlap", [False, True])
def test_a_written_seg_may_be_empty(tmp_path, overlap):
    image = write_ct(tmp_path / "ct")
    write_seg(tmp_path / "e.dcm", image, 0 * IDS, ("liver", "odd one"), overlap=overlap)
    read = hd.seg.segread(tmp_path / "e.dcm")
    assert list(read.segment_numbers) == [1, 2]
    assert read.get_volume(combine_segments=True).array.sum() == 0
    assert not read_ids(tmp_path / "e.dcm", image).any()


def test_overlapping_classes_are_read_back_as_sums_of_segments(tmp_path):
    image = write_ct(tmp_path / "ct")
    bits = np.zeros_like(IDS)
    bits[:4], bits[2:] = bits[:4] | 1, bits[2:] | 2
    write_seg(tmp_path / "o.dcm", image, bits, ("liver", "odd one"), overlap=True)
    segments = {"liver": 1, "odd one": 2}
    np.testing.assert_array_equal(read_ids(tmp_path / "o.dcm", image, segments=segments, sum_segments=True), bits)


def test_what_the_headers_lack_is_named_and_no_value_of_them(tmp_path):
    def change(dataset, k):
        dataset.StudyInstanceUID = ""
        if k == 0:
            del dataset.PixelSpacing

    image = DicomReader(write_series(tmp_path / "ct", VALUES[..., :1], change=change))
    with pytest.raises(DataError, match=r"needs \(StudyInstanceUID, PixelSpacing\); write NIfTI") as caught:
        refuse_without_seg(image, ["liver"])
    assert "Canary" not in str(caught.value)


def test_what_an_anonymisation_removed_is_empty(tmp_path):
    keywords = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "AccessionNumber")

    def change(dataset, k):
        for keyword in keywords[k:]:
            delattr(dataset, keyword)

    read = _written(tmp_path / "ct", change)
    assert [read[keyword].is_empty for keyword in keywords] == [True] * len(keywords)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientSex", "W"),
        ("PatientBirthDate", "19700000"),
        ("StudyDate", "2020-01-02"),
        ("StudyTime", "10:11:12"),
        ("Modality", "ct scan"),
        ("SOPClassUID", "1.3.46.670589.11.0.0.12.1"),
    ],
)
def test_an_attribute_with_a_wrong_value_is_named_and_its_value_is_not(tmp_path, keyword, value):
    def change(dataset, _):
        setattr(dataset, keyword, value)

    with quiet():
        image = DicomReader(write_series(tmp_path / "ct", VALUES, change=change))
    with pytest.raises(DataError, match=rf"values that DICOM does not allow .* \({keyword}\)") as caught:
        refuse_without_seg(image, ["liver"])
    assert value not in str(caught.value)


def test_a_damaged_value_is_no_error_of_another_package(tmp_path):
    def change(dataset, _):
        dataset.StudyInstanceUID = ["1.2", "1.3"]

    image = DicomReader(write_series(tmp_path / "ct", VALUES, change=change))
    with pytest.raises(DataError, match="damaged values or texts"):
        refuse_without_seg(image, ["liver"])


def _assert_is_volume(read, ids):
    """highdicom puts the frames together as a volume with these ids [row, column, slice], in one of the two orders of slices."""
    found = np.moveaxis(read.get_volume(combine_segments=True).array, 0, 2)
    assert found.shape == ids.shape
    assert np.array_equal(found, ids) or np.array_equal(found[..., ::-1], ids)


def test_an_orientation_that_is_rounded_differently_from_slice_to_slice_is_one_orientation(tmp_path):
    def change(dataset, k):
        dataset.ImageOrientationPatient = ["0.999999" if k % 2 else "1", "0.0001", "0", "-0.0001", "1", "0"]

    read = _written(tmp_path / "ct", change)
    _assert_is_volume(read, IDS)


def test_a_gap_that_is_given_as_the_distance_of_slices_is_not_repeated(tmp_path):
    def change(dataset, _):
        dataset.SpacingBetweenSlices = 0.5

    read = _written(tmp_path / "ct", change)
    assert read.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices == 4
    _assert_is_volume(read, IDS)


def test_a_multi_frame_file_may_give_size_and_orientation_for_each_frame(tmp_path):
    places = (3.0, 9.0, 0.0, 6.0)
    path = write_enhanced(tmp_path / "mr", [(VALUES[..., k], place, Dataset()) for k, place in enumerate(places)])
    source = pydicom.dcmread(path)
    for frame in source.PerFrameFunctionalGroupsSequence:
        frame.update(source.SharedFunctionalGroupsSequence[0])
    source.SharedFunctionalGroupsSequence = [Dataset()]
    source.save_as(path)
    image = DicomReader(path)
    write_seg(tmp_path / "m.dcm", image, IDS[..., :4], ("liver", "odd one"))
    np.testing.assert_array_equal(read_ids(tmp_path / "m.dcm", image), IDS[..., :4])
    _assert_is_volume(hd.seg.segread(tmp_path / "m.dcm"), IDS[..., :4])


def test_several_multi_frame_files_are_no_source_of_a_seg(tmp_path):
    folder, series = tmp_path / "mr", pydicom.uid.generate_uid()
    for place in (0.0, 3.0):
        path = write_enhanced(folder / str(place), [(VALUES[..., 0], place, Dataset())])
        source = pydicom.dcmread(path)
        source.SeriesInstanceUID = source.StudyInstanceUID = source.FrameOfReferenceUID = series
        source.save_as(path)
    with pytest.raises(DataError, match="several multi-frame DICOM files"):
        refuse_without_seg(DicomReader(folder), ["liver"])
