import faulty_sites as faulty
from PIL import Image

from pfedsam.data.images import ImageOptions


def test_a_small_range_does_not_matter_where_contrast_is_stretched(tmp_path):
    faulty.clean_study(tmp_path)
    faulty.twelve_bits_in_sixteen(tmp_path)
    assert faulty.read_and_check(tmp_path, image=ImageOptions(contrast="percentile")).warnings == ()


def test_masks_that_are_turned_like_their_images_are_no_fault(tmp_path):
    faulty.clean_study(tmp_path)
    faulty.exif_half_turn(tmp_path)
    exif = Image.Exif()
    exif[274] = 3
    for path in (tmp_path / "b" / "masks").iterdir():
        Image.open(path).save(path, exif=exif)
    assert faulty.read_and_check(tmp_path).warnings == ()
