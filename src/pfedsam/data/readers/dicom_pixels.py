"""The pixels of DICOM pictures: stored values, and the grey values or colours that they mean.

Grey values are those after the modality table or the rescale slope and intercept of each picture, with MONOCHROME1 inverted; a slope
without an intercept has the intercept 0, and an intercept without a slope the slope 1. Pixels that only pad a picture (PixelPaddingValue)
get the darkest value of the others. Colour is RGB in 0..1.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pfedsam.core.errors import DataError
from pfedsam.data.readers.base import grey_values
from pfedsam.data.readers.dicom_files import MOST_HEADER, PALETTE, damaged, quiet, reading_fields
from pfedsam.data.readers.dicom_planes import Plane
from pfedsam.data.readers.dicom_streams import decode_frame, open_inflated


def open_dataset(path: Path, *, max_gigabytes: float = 2.0) -> Dataset:
    """A DICOM file with its pixels, inflated if it is deflated; if it has no transfer syntax, that of its encoding is added.

    Raises:
        DataError: the file is damaged, its pixels would be larger than `max_gigabytes` after inflating, or have an encoding that is not
            read.
    """
    try:
        with quiet(), open_inflated(path, int(max_gigabytes * 1e9) + MOST_HEADER) as source:
            if not source.whole:
                raise DataError(
                    f"{path.name!r} is a deflated DICOM file that would take more than {max_gigabytes:g} GB, and no more is read; save it "
                    "without this compression, or raise data.volume.max_gigabytes if the memory is there"
                )
            dataset = pydicom.dcmread(source.file, force=True)
            if not hasattr(dataset, "file_meta"):
                dataset.file_meta = FileMetaDataset()
            if "TransferSyntaxUID" not in dataset.file_meta:
                implicit, little = dataset.original_encoding
                explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
                dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit in (True, None) else explicit
            _refuse_unknown_syntax(path, dataset)
            return dataset
    except DataError:
        raise
    except Exception:  # noqa: BLE001 - pydicom raises almost anything on damaged files, and its text quotes header values
        raise DataError(damaged(path)) from None


def _refuse_unknown_syntax(path: Path, dataset: Dataset) -> None:
    """Refuse pixels in a transfer syntax that no decoder reads, such as videos and encodings of single manufacturers.

    Raises:
        DataError: there is no decoder.
    """
    if "Rows" not in dataset:  # it has no pixels
        return
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    try:
        readable = get_decoder(syntax).is_available
    except NotImplementedError:
        readable = False
    if not readable:
        known = "" if syntax.name == syntax else f" ({syntax.name})"
        raise DataError(
            f"{path.name!r} is stored in the transfer syntax {syntax}{known}, which is not read; export it without compression or as JPEG "
            "2000"
        )


def decode(dataset: Dataset, plane: Plane) -> npt.NDArray[Any]:
    """The stored values of a picture, shape [rows, columns], or [rows, columns, 3] for colour (8 or 16 bits, also from a palette).

    Raises:
        DataError: the file is damaged, cannot be decoded, or does not store its values in the lowest bits.
    """
    _check_bits(dataset, plane)
    try:
        with quiet():
            pixels = decode_frame(dataset, plane.frame)
            if _photometric(dataset) == PALETTE:
                pixels = apply_color_lut(pixels, dataset)
            elif pixels.ndim == 2 and pixels.dtype.kind in "iu":
                pixels = _without_padding(_used_bits(pixels, dataset), dataset, plane)
    except Exception:  # noqa: BLE001 - decoders raise almost anything on damaged files, and their text may quote headers
        raise DataError(damaged(plane.path)) from None
    if pixels.shape[:2] != (plane.rows, plane.columns):
        raise DataError(damaged(plane.path))
    return pixels


def values_of(stored: npt.NDArray[Any], dataset: Dataset, plane: Plane, *, colour: bool) -> npt.NDArray[np.float32]:
    """The grey values or colours [..., C] of stored values of a picture.

    Raises:
        DataError: the file is damaged, or a value is not finite or too large.
    """
    with reading_fields(plane.path), np.errstate(over="ignore", invalid="ignore"):
        if colour:
            return np.asarray(stored, dtype=np.float32)[..., :3] / np.float32(_brightest(dataset))
        values = _modality(stored, plane, dataset)
        if _photometric(dataset) == "MONOCHROME1":
            values = _modality(_ends(stored.dtype, dataset), plane, dataset).sum() - values
    return grey_values(values, repr(plane.path.name))[..., None]


def _photometric(dataset: Dataset) -> str:
    return str(dataset.get("PhotometricInterpretation", ""))


def _check_bits(dataset: Dataset, plane: Plane) -> None:
    """Refuse a file whose values are not in the lowest bits, as DICOM demands today: what its decoder makes of them is not known.

    Raises:
        DataError: the highest bit and the number of bits do not belong together.
    """
    with reading_fields(plane.path):
        highest = dataset.get("HighBit")
        if highest is not None and "PixelData" in dataset and int(highest) != int(dataset.BitsStored) - 1:
            raise DataError(
                f"the header of {plane.path.name!r} gives BitsStored {int(dataset.BitsStored)} and HighBit {int(highest)}, which must be "
                f"{int(dataset.BitsStored) - 1}, so that its values are not certain; export it again, or correct HighBit"
            )


def _used_bits(pixels: npt.NDArray[Any], dataset: Dataset) -> npt.NDArray[Any]:
    """Pixels of any shape without the bits above the stored ones, which may contain overlays, and with their sign."""
    spare = pixels.dtype.itemsize * 8 - int(dataset.BitsStored)
    return np.asarray(np.right_shift(np.left_shift(pixels, spare), spare)) if spare > 0 else pixels


def _without_padding(pixels: npt.NDArray[Any], dataset: Dataset, plane: Plane) -> npt.NDArray[Any]:
    """Pixels [rows, columns] in which those that pad the picture have the stored value of its darkest other pixel."""
    if dataset.get("PixelPaddingValue") is None:
        return pixels
    ends = _padding_ends(dataset, pixels.dtype)
    padding = (pixels >= min(ends)) & (pixels <= max(ends))
    if not padding.any() or padding.all():
        return pixels
    slope = plane.slope if plane.slope is not None else float(dataset.get("RescaleSlope") or 1)
    dark_is_high = (_photometric(dataset) == "MONOCHROME1") != (slope < 0)
    others = pixels[~padding]
    return np.where(padding, others.max() if dark_is_high else others.min(), pixels)


def _padding_ends(dataset: Dataset, dtype: np.dtype[Any]) -> tuple[int, int]:
    """The first and the last stored value that pads a picture, in either order.

    The fields have 16 bits. Some scanners write -2000 of signed pixels as 63536, which is the same bits without a sign.
    """
    limit = dataset.get("PixelPaddingRangeLimit")
    values = [int(dataset.PixelPaddingValue), int(dataset.PixelPaddingValue if limit is None else limit)]
    first, last = np.array(values).astype(dtype).tolist() if dtype.itemsize == 2 else values
    return first, last


def _ends(dtype: np.dtype[Any], dataset: Dataset) -> npt.NDArray[Any]:
    """The lowest and the highest stored value that the bits of a file can hold, shape [2]."""
    bits, signed = int(dataset.BitsStored), bool(dataset.get("PixelRepresentation", 0))
    return np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1]).astype(dtype)


def _brightest(dataset: Dataset) -> int:
    """The stored value of full brightness of a colour."""
    bits = _palette_bits(dataset) if _photometric(dataset) == PALETTE else dataset.BitsStored
    return int(2 ** int(bits) - 1)


def _palette_bits(dataset: Dataset) -> int:
    """The number of bits of the colours of a palette: 8 if they are of 8 bits, also where the header gives 16, as some programs do."""
    entries, _, bits = dataset.RedPaletteColorLookupTableDescriptor
    tables = [bytes(dataset.get(f"{name}PaletteColorLookupTableData") or b"") for name in ("Red", "Green", "Blue")]
    if bits != 16 or not all(tables):  # a table may also be stored in segments
        return int(bits)
    in_bytes = all(len(table) < 2 * (entries or 2**16) for table in tables)
    order = "<u2" if dataset.original_encoding[1] is not False else ">u2"
    return 8 if in_bytes or max(int(np.frombuffer(table, order).max()) for table in tables) < 2**8 else 16


def _modality(stored: npt.NDArray[Any], plane: Plane, dataset: Dataset) -> npt.NDArray[np.float64]:
    """Stored values of any shape after the rescale slope and intercept, or the modality table, of the picture.

    Raises:
        DataError: the slope is 0, so that all values would be equal.
    """
    slope = plane.slope if plane.slope is not None else dataset.get("RescaleSlope")
    if slope is not None and float(slope) == 0:
        raise DataError(
            f"{plane.path.name!r} has a rescale slope of 0, which makes all of its values equal; export it again"
        )
    if plane.slope is None and dataset.get("ModalityLUTSequence"):
        return np.asarray(apply_modality_lut(stored, dataset), dtype=np.float64)
    intercept = plane.intercept if plane.slope is not None else dataset.get("RescaleIntercept")
    return np.asarray(stored, dtype=np.float64) * float(1 if slope is None else slope) + float(intercept or 0)
