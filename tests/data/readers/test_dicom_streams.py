import struct
import zlib
from io import BytesIO

import jpeg_ls
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.utils import pack_bits
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, RLELossless
from volume_files import all_planes, set_pixels, write_series

from pfedsam.core.errors import DataError
from pfedsam.data.readers import dicom_files, dicom_pixels
from pfedsam.data.readers.dicom import DicomReader
from pfedsam.data.readers.dicom_files import read_head
from pfedsam.data.readers.dicom_pixels import open_dataset
from pfedsam.data.readers.dicom_streams import codestream_shape, decode_frame, open_inflated

GREY = np.random.default_rng(0).integers(0, 255, (6, 8), np.uint8)


def _encoded(values, kind: str, **options) -> bytes:
    content = BytesIO()
    Image.fromarray(values).save(content, kind, **options)
    return content.getvalue()


def test_every_kind_of_jpeg_says_how_large_it_is():
    colour = np.dstack([GREY] * 3)
    assert codestream_shape(_encoded(GREY, "JPEG")) == (6, 8, 1)
    assert codestream_shape(_encoded(colour, "JPEG", progressive=True)) == (6, 8, 3)
    assert codestream_shape(jpeg_ls.encode(np.zeros((32, 48), np.uint8)).tobytes()) == (32, 48, 1)
    for boxes in (False, True):
        assert codestream_shape(_encoded(GREY, "JPEG2000", no_jp2=not boxes)) == (6, 8, 1)
        assert codestream_shape(_encoded(colour, "JPEG2000", no_jp2=not boxes)) == (6, 8, 3)


SOI, SIZE = b"\xff\xd8", b"\xff\xc3\x00\x0b\x10\x01\x02\x03\x04\x01"  # JPEG lossless: 16 bits, 258 rows, 772 columns
SIZ = b"\xff\x4f\xff\x51" + struct.pack(">HH8IH", 41, 0, 30, 20, 10, 5, 64, 64, 0, 0, 3)


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        (SOI + SIZE, (258, 772, 1)),
        (
            SOI + b"\xff\xe0\x00\x04\xff\xc0" + b"\xff\xff" + SIZE,
            (258, 772, 1),
        ),  # a segment to pass over, bytes that fill
        (SOI + b"\xff\xc4\x00\x02" + SIZE, (258, 772, 1)),  # a table of codes, no size
        (SOI + b"\x00\x00" + SIZE, None),
        (SOI + SOI + SIZE, None),
        (SOI + b"\xff\xe0\xff\xff" + SIZE, None),
        ((SOI + SIZE)[:-1], None),
        (SIZ, (15, 20, 3)),  # 20 - 5 rows, 30 - 10 columns
        (SIZ[:41], None),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + struct.pack(">I", 8 + len(SIZ)) + b"jp2c" + SIZ, (15, 20, 3)),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + struct.pack(">I4sQ", 1, b"jp2c", 0) + SIZ, (15, 20, 3)),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\0free", None),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x0cjp2hpclr" + b"\0\0\0\0jp2c" + SIZ, None),
        (b"", None),
        (b"\x89PNG", None),
    ],
)
def test_the_size_is_found_by_hand_or_not_told(data, shape):
    assert codestream_shape(data) == shape


def _packed(syntax, data: bytes, values=GREY):
    def change(dataset: Dataset, _: int) -> None:
        set_pixels(dataset, values)
        dataset.PixelData = encapsulate([data])
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
        dataset.file_meta.TransferSyntaxUID = syntax

    return change


@pytest.mark.parametrize("shape", [(7, 8), (6, 9), (600, 800), (6, 8, 3)])
def test_a_compressed_picture_of_another_shape_is_refused_before_it_is_decoded(tmp_path, shape):
    data = _encoded(np.zeros(shape, np.uint8), "JPEG2000", no_jp2=True)
    folder = write_series(tmp_path / "s", GREY[..., None], change=_packed(JPEG2000Lossless, data))
    (path,) = folder.iterdir()
    with pytest.raises(ValueError, match="has another shape than the header says"):
        decode_frame(open_dataset(path), 0)
    with pytest.raises(DataError, match="is a damaged or cut off DICOM file"):
        DicomReader(folder).slice(0)


def test_runs_that_are_longer_than_the_picture_are_told_and_end_nothing(tmp_path):
    runs = bytes([129, 7]) * 1000  # 128 times the value 7, a thousand times
    data = struct.pack("<16L", 2, 64, 64 + len(runs), *[0] * 13) + runs + runs
    change = _packed(RLELossless, data, GREY.astype(np.uint16))
    folder = write_series(tmp_path / "s", GREY[..., None], change=change)
    with pytest.raises(DataError, match="is a damaged or cut off DICOM file"):
        DicomReader(folder).slice(0)


def _deflate(dataset: Dataset, _: int) -> None:
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian


@pytest.fixture
def small_headers(monkeypatch):
    """At most 4096 bytes of a header are inflated."""
    for module in (dicom_files, dicom_pixels):
        monkeypatch.setattr(module, "MOST_HEADER", 4096)


def test_a_deflated_data_set_is_inflated_up_to_the_limit(tmp_path):
    (path,) = write_series(tmp_path / "s", np.zeros((64, 64, 1), np.int16), change=_deflate).iterdir()
    with open_inflated(path, 2**20) as source:
        content = source.file.read()
        assert source.whole
        assert source.size == len(content)
    assert content.endswith(bytes(64 * 64 * 2))
    assert pydicom.dcmread(BytesIO(content)).pixel_array.shape == (64, 64)
    assert path.stat().st_size < 2000
    with open_inflated(path, 3000) as source:
        assert not source.whole
        assert source.file.read() == content[: source.size]


@pytest.mark.usefixtures("small_headers")
def test_a_deflated_file_is_listed_by_its_header_and_refused_where_its_pixels_are_too_large(tmp_path):
    values = np.random.default_rng(0).integers(0, 9, (64, 64, 2)).astype(np.int16)  # 8192 bytes a slice
    upward = np.diag([2.0, 1, 3, 1]) @ np.array([[0, -1.0, 0, 0], [-1.0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    folder = write_series(tmp_path / "s", values, upward, change=_deflate)
    np.testing.assert_array_equal(all_planes(DicomReader(folder)), values)
    path = min(folder.iterdir())
    read_head(path)
    with pytest.raises(
        DataError, match=r"is a deflated DICOM file that would take more than 1e-06 GB, and no more is read"
    ):
        open_dataset(path, max_gigabytes=1e-6)


@pytest.mark.usefixtures("small_headers")
def test_a_deflated_header_that_is_too_large_is_refused(tmp_path):
    def change(dataset: Dataset, k: int) -> None:
        _deflate(dataset, k)
        dataset.add_new(0x00091010, "OB", bytes(10_000))

    (path,) = write_series(tmp_path / "s", GREY[..., None], change=change).iterdir()
    with pytest.raises(
        DataError, match=r"is a deflated DICOM file whose header has more than 0 MB, and no more is read"
    ):
        read_head(path)


@pytest.mark.parametrize("cut", [-3, -30])
def test_deflated_files_that_were_cut_off_or_are_no_deflated_data_are_damaged(tmp_path, cut):
    (path,) = write_series(tmp_path / "s", GREY[..., None], change=_deflate).iterdir()
    content = path.read_bytes()
    begin = len(content) - len(_deflated_part(content))
    for wrong in (content[:cut], content[:begin] + b"\xff" * 100):
        path.write_bytes(wrong)
        for read in (read_head, open_dataset):
            with pytest.raises(DataError, match="is a damaged or cut off DICOM file"):
                read(path)


def _deflated_part(content: bytes) -> bytes:
    """What follows the file meta information, whose length is its first element, after the preamble."""
    part = content[144 + int.from_bytes(content[140:144], "little") :]
    assert zlib.decompress(part, -zlib.MAX_WBITS)
    return part


def _bits(rows: int, columns: int, frames: int):
    """Pictures [frame, row, column] of one bit a pixel, and the change that writes them into a file."""
    bits = np.random.default_rng(rows * columns).integers(0, 2, (frames, rows, columns)).astype(np.uint8)

    def change(dataset: Dataset, _: int) -> None:
        dataset.Rows, dataset.Columns, dataset.NumberOfFrames = rows, columns, frames
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 1, 0
        dataset.PixelData = pack_bits(bits.ravel())
        dataset["PixelData"].VR = "OB"

    return bits, change


@pytest.mark.parametrize("columns", range(1, 17))
@pytest.mark.parametrize("rows", [1, 3, 5])
def test_pictures_of_one_bit_a_pixel_are_packed_without_a_gap(tmp_path, rows, columns):
    bits, change = _bits(rows, columns, frames=9)
    (path,) = write_series(tmp_path / "s", GREY[..., None], change=change).iterdir()
    dataset = open_dataset(path)
    np.testing.assert_array_equal([decode_frame(dataset, frame) for frame in range(9)], bits)
    np.testing.assert_array_equal(pydicom.dcmread(path).pixel_array, bits)  # all frames at once


def test_pictures_of_one_bit_a_pixel_that_are_cut_off_are_told(tmp_path):
    bits, change = _bits(5, 7, frames=4)  # 140 bits in 18 bytes
    (path,) = write_series(tmp_path / "s", GREY[..., None], change=change).iterdir()
    dataset = open_dataset(path)
    np.testing.assert_array_equal(decode_frame(dataset, 3), bits[3])
    dataset.PixelData = dataset.PixelData[:17]
    for frame in range(4):
        with pytest.raises(ValueError, match="the data are too short for their pictures"):
            decode_frame(dataset, frame)
