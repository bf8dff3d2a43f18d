import highdicom as hd
import numpy as np
import pytest
from mask_files import IDS, read_ids, write_ct

from pfedsam.data.readers.seg_write import write_seg


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
