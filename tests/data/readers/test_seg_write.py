import highdicom as hd
import numpy as np
import pytest
from mask_files import AFFINE, IDS, VALUES, read_ids, write_ct
from volume_files import write_series

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
        del dataset.PatientSex
        if k == 0:
            del dataset.StudyID

    image = DicomReader(write_series(tmp_path / "ct", VALUES, change=change))
    with pytest.raises(DataError, match=r"needs \(StudyInstanceUID, PatientSex, StudyID\); write NIfTI") as caught:
        refuse_without_seg(image, ["liver"])
    assert "Canary" not in str(caught.value)


def test_a_damaged_value_is_no_error_of_another_package(tmp_path):
    def change(dataset, _):
        dataset.Modality = "ct scan"

    with quiet():
        image = DicomReader(write_series(tmp_path / "ct", VALUES, change=change))
    with pytest.raises(DataError, match="damaged values or texts"):
        refuse_without_seg(image, ["liver"])
