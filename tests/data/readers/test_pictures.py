import os

import numpy as np
import pytest
from PIL import Image

from pfedsam.core.errors import DataError
from pfedsam.data.readers.pictures import PictureReader, write_png

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4)


def test_a_picture_is_a_volume_of_one_slice_without_a_position(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    header = PictureReader(tmp_path / "a.png").header()
    assert (header.kind, header.shape, header.affine, header.spacing_mm) == ("picture", (3, 4, 1), None, None)
    assert (header.dtype, header.channels) == (np.uint8, 1)


@pytest.mark.parametrize(
    ("picture", "dtype", "channels"),
    [
        (Image.fromarray(GREY.astype(np.uint16) * 5000), np.uint16, 1),
        (Image.fromarray(np.zeros((3, 4, 3), np.uint8)), np.uint8, 3),
        (Image.fromarray(GREY).convert("P"), np.uint8, 3),
    ],
)
def test_type_and_channels_are_known_from_the_header(tmp_path, picture, dtype, channels):
    picture.save(tmp_path / "a.png")
    header = PictureReader(tmp_path / "a.png").header()
    assert (header.dtype, header.channels) == (dtype, channels)


def test_the_size_is_that_of_the_picture_as_it_is_shown(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    Image.fromarray(GREY).save(tmp_path / "a.jpg", exif=exif)
    reader = PictureReader(tmp_path / "a.jpg")
    assert reader.header().shape == (4, 3, 1)
    assert reader.slice(0).shape == (4, 3, 3)


def test_values_are_parts_of_the_range_and_ids_are_as_written(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    reader = PictureReader(tmp_path / "a.png")
    np.testing.assert_allclose(reader.slice(0)[..., 1], GREY / 255, atol=1e-7)
    np.testing.assert_array_equal(reader.mask_slice(0), GREY)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_written_mask_is_read_by_pillow_as_it_was(tmp_path, dtype):
    ids = GREY.astype(dtype) * (300 if dtype == np.uint16 else 20)
    Image.fromarray(GREY).save(tmp_path / "a.png")
    PictureReader(tmp_path / "a.png").write_mask(tmp_path / "m.png", ids[..., None])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "m.png")), ids)
    write_png(tmp_path / "n.png", ids)
    assert (tmp_path / "n.png").read_bytes() == (tmp_path / "m.png").read_bytes()


def test_a_damaged_picture_is_told(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"'a.png' is no picture, or damaged"):
        PictureReader(tmp_path / "a.png").header()


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"'a.png' is no picture, or damaged"):
        PictureReader(tmp_path / "a.png").header()
