import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from mask_files import VALUES, assert_refused, read_ids, write_ct
from PIL import Image
from volume_files import write_nifti, write_series

from pfedsam.core.errors import DataError
from pfedsam.data.readers import open_mask, open_volume
from pfedsam.data.readers.dicom import DicomReader
from pfedsam.data.readers.pictures import write_png
from pfedsam.data.volume_options import VolumeOptions

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4)


@pytest.fixture
def image(tmp_path) -> DicomReader:
    """A DICOM picture of 3 rows and 4 columns."""
    return DicomReader(write_series(tmp_path / "ct", VALUES[:3, :4, :1]))


@pytest.mark.parametrize("ids", [GREY, GREY.astype(np.uint16) * 300])
def test_a_picture_is_the_mask_of_a_single_dicom_picture(tmp_path, image, ids):
    Image.fromarray(ids).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_ids(tmp_path / "m.png", image)[..., 0], ids)


def test_a_mask_of_another_size_and_a_volume_are_refused(tmp_path, image):
    Image.fromarray(GREY.T).save(tmp_path / "m.png")
    assert_refused(
        tmp_path / "m.png", image, r"the image has 4 x 3 pixels, its mask 'm\.png' 3 x 4; export the mask at"
    )
    assert_refused(tmp_path / "m.png", write_ct(tmp_path / "volume"), r"'m\.png' is a picture, its image a volume")
    nifti = open_volume(write_nifti(tmp_path / "a.nii", VALUES[:3, :4, :1]), VolumeOptions())
    assert_refused(tmp_path / "m.png", nifti, r"'m\.png' is a picture, its image a volume")


def test_size_and_damage_are_told_as_those_of_other_pictures(tmp_path, image):
    Image.fromarray(GREY).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"'m\.png' has 4 x 3 pixels, more than 1e-05 megapixels"):
        open_mask(tmp_path / "m.png", image, VolumeOptions(), max_megapixels=1e-5)
    _write_empty_png(tmp_path / "m.png", 20000)
    assert_refused(tmp_path / "m.png", image, r"'m\.png' is too large")
    (tmp_path / "m.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert_refused(tmp_path / "m.png", image, r"'m\.png' is not a PNG, JPEG or TIFF file, or is damaged")


def _write_empty_png(path: Path, side: int) -> None:
    """A PNG of a few bytes whose header claims side x side grey pixels."""
    parts = {b"IHDR": struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0), b"IDAT": zlib.compress(b""), b"IEND": b""}
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts.items()
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_written_mask_is_read_by_pillow_as_it_was(tmp_path, dtype):
    ids = GREY.astype(dtype) * (300 if dtype == np.uint16 else 20)
    write_png(tmp_path / "m.png", ids)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "m.png")), ids)
