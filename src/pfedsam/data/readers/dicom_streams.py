"""Compressed data in DICOM files, whose size is limited before they are decompressed: a file of a few kilobytes may hold gigabytes.

Two things may be compressed: the whole data set ("deflated"), or each picture (JPEG, JPEG-LS, JPEG 2000, RLE). The first bytes of a JPEG
picture of any kind contain its size. RLE data do not, but their decoder writes into memory of the size that the header of the file gives.

Pictures of one bit a pixel are packed without a gap, so that a picture may begin inside a byte (DICOM PS3.5, 8.1.1).
"""

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.pixels.utils import pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless

from pfedsam.core.files import open_regular

PictureShape: TypeAlias = tuple[int, int, int]
"""Rows, columns and samples a pixel."""
_JPEG_SIZES: Final = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
"""Markers of the segment that gives the size of a JPEG or JPEG-LS picture (SOF0 to SOF15, SOF55)."""
_JPEG_ALONE: Final = frozenset({0x00, 0x01, *range(0xD0, 0xDA)})
"""Markers without a length, which do not come before the size, except at the very beginning."""
_JP2: Final = b"\0\0\0\x0cjP  "
"""Beginning of a JPEG 2000 picture in a file format of its own, which DICOM does not allow but some programs write."""
_JPEG_2000: Final = b"\xff\x4f\xff\x51"
"""Beginning of a JPEG 2000 picture: the markers SOC and SIZ."""


@dataclass(frozen=True)
class Source:
    """An open DICOM file, of which a deflated data set was inflated."""

    file: BinaryIO
    size: int
    """Number of bytes that can be read."""
    whole: bool
    """Whether a deflated data set was inflated to its end."""


@contextmanager
def open_inflated(path: Path, most: int) -> Iterator[Source]:
    """A DICOM file; of a deflated data set the first `most` bytes are inflated, and its header then says that it is not compressed.

    Raises:
        OSError: the file cannot be read.
        EOFError: a deflated data set is cut off.
        zlib.error: a deflated data set is damaged.
    """
    with open_regular(path) as file:
        read_preamble(file, force=True)
        # `dcmread` reads the syntax in the same way, and would then inflate without a limit.
        syntax = _read_file_meta_info(file).get("TransferSyntaxUID")
        begin = file.tell()
        file.seek(0)
        if syntax != DeflatedExplicitVRLittleEndian:
            yield Source(file, os.fstat(file.fileno()).st_size, whole=True)
            return
        plain = ExplicitVRLittleEndian.encode().ljust(len(DeflatedExplicitVRLittleEndian), b"\0")
        head = file.read(begin).replace(DeflatedExplicitVRLittleEndian.encode(), plain)
        inflated, whole = _inflate(file.read(), most)
    yield Source(BytesIO(head + inflated), len(head) + len(inflated), whole)


def _inflate(deflated: bytes, most: int) -> tuple[bytes, bool]:
    """The first `most` bytes of deflated data, and whether these are all.

    Raises:
        EOFError: the data are cut off.
        zlib.error: the data are damaged.
    """
    inflator = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflator.decompress(deflated, most)
    if not inflator.eof and len(inflated) < most:
        raise EOFError("the deflated data are cut off")
    return inflated, inflator.eof


def decode_frame(dataset: Dataset, frame: int) -> npt.NDArray[Any]:
    """The stored values of a picture, shape [rows, columns] or [rows, columns, samples]; compressed data are checked before.

    Raises:
        ValueError: the compressed data are of a picture of another shape than the header says, or are damaged, or the data are cut off; the
            decoders and `pydicom` raise almost any other error.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated and dataset.BitsAllocated == 1:
        return _unpack_frame(dataset, frame)
    if syntax.is_encapsulated and syntax != RLELossless:
        expected = int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel)
        if codestream_shape(_compressed(dataset, frame)) != expected:
            raise ValueError("the compressed picture has another shape than the header says")
    try:
        return pixel_array(dataset, index=frame)
    except BaseException as exc:
        if isinstance(exc, Exception | KeyboardInterrupt | SystemExit):
            raise
        # A decoder in Rust raises a `PanicException`, which is no `Exception`.
        raise ValueError("the decoder failed") from exc


def _unpack_frame(dataset: Dataset, frame: int) -> npt.NDArray[np.uint8]:
    """The bits [rows, columns] of a picture of one bit a pixel, which `pydicom` cannot read if it ends inside the byte after its last one.

    Raises:
        ValueError: the data are too short for the pictures of the file, or there are several samples a pixel.
    """
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    pixels, frames = rows * columns, int(dataset.get("NumberOfFrames") or 1)
    packed = np.frombuffer(dataset.PixelData, dtype=np.uint8)
    if packed.size * 8 < pixels * frames or not 0 <= frame < frames or dataset.SamplesPerPixel != 1:
        raise ValueError("the data are too short for their pictures, or have several samples a pixel")
    first = frame * pixels
    bits = np.unpackbits(packed[first // 8 : -(-(first + pixels) // 8)], bitorder="little")
    return bits[first % 8 : first % 8 + pixels].reshape(rows, columns)


def _compressed(dataset: Dataset, frame: int) -> bytes:
    """The compressed data of a picture, as they come to its decoder."""
    offsets = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    return get_frame(
        dataset.PixelData,
        frame,
        extended_offsets=offsets if all(offsets) else None,
        number_of_frames=int(dataset.get("NumberOfFrames") or 1),
    )


def codestream_shape(data: bytes) -> PictureShape | None:
    """The shape of a JPEG, JPEG-LS or JPEG 2000 picture from its first bytes; None if they are of another kind or damaged."""
    try:
        return _jpeg_shape(data) if data.startswith(b"\xff\xd8") else _jpeg_2000_shape(data)
    except (IndexError, struct.error):
        return None


def _jpeg_shape(data: bytes) -> PictureShape | None:
    """The shape in the first segment that gives one; the segments before it are passed over."""
    at = 2
    while data[at] == 0xFF and data[at + 1] not in _JPEG_ALONE:
        marker = data[at + 1]
        if marker in _JPEG_SIZES:  # marker, length (2 bytes), bits (1), rows (2), columns (2), samples (1)
            rows, columns, samples = struct.unpack_from(">HHB", data, at + 5)
            return rows, columns, samples
        at += 1 if marker == 0xFF else 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None


def _jpeg_2000_shape(data: bytes) -> PictureShape | None:
    """The shape in the segment SIZ, which is the first one."""
    at = _begin_of_codestream(data) if data.startswith(_JP2) else 0
    if at is None or data[at : at + 4] != _JPEG_2000:
        return None
    # after the markers: length and capabilities (2 bytes each), right, lower, left and upper edge, the same of a tile (4 each), samples (2)
    right, lower, left, upper = struct.unpack_from(">4I", data, at + 8)
    return lower - upper, right - left, struct.unpack_from(">H", data, at + 40)[0]


def _begin_of_codestream(data: bytes) -> int | None:
    """Where the picture begins in a JPEG 2000 file format, a chain of boxes (length, kind, content); None if it is not found."""
    at = 0
    while at < len(data):
        length = struct.unpack_from(">I", data, at)[0]
        kind = data[at + 4 : at + 8]
        if kind == b"jp2c":
            return at + (16 if length == 1 else 8)  # 1: the length follows in 8 bytes
        # With a palette (pclr) one sample becomes up to 255.
        if length < 8 or (kind == b"jp2h" and b"pclr" in data[at : at + length]):
            return None
        at += length
    return None
