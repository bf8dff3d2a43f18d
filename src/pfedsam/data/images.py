"""Pictures from disk as arrays. A file is read as in these tables, or refused with the reason; no value is changed silently.

Images (`read_image`) always have three channels in 0..1, and are turned according to their EXIF or TIFF orientation:

| file | becomes |
|---|---|
| 1-bit; 8-bit grey, RGB | divided by its range (1, 255) |
| 16-bit grey; 16-bit RGB TIFF | divided by 65535 |
| grey TIFF whose 0 is white (WhiteIsZero) | inverted, so that 0 is black |
| 16-bit RGB PNG | its upper eight bits (Pillow keeps no more), divided by 255 |
| palette | its colours |
| with alpha (grey or RGB) | alpha dropped |
| CMYK, Lab, YCbCr TIFF, HSV | refused: their colours depend on a profile |
| 32- and 64-bit, signed, floating point | refused: their range is not known |
| several pages or frames | refused: one case is one picture |
| 16-bit RGB TIFF with an orientation tag | refused |

Masks (`read_mask`) have the ids of the file, and are turned likewise:

| file | becomes |
|---|---|
| grey of 1, 2, 4, 8, 16 bits, 32-bit TIFF | its values, of which negative ones are no ids |
| palette | its indices, not its colours; `data check` compares the colours of the masks of a site |
| RGB with three equal channels | one of them |
| with alpha that is the same everywhere | alpha dropped |
| with other alpha | refused: the drawing may be in the alpha channel alone |
| 16 bits with colour or alpha | refused: Pillow keeps the upper eight |
| TIFF whose 0 is white (WhiteIsZero) | refused: Pillow inverts most of them |
| RGB with colours, all others | refused |
| JPEG; TIFF with JPEG or another compression that may be lossy | refused: lossy compression changes ids at every edge |

The size in a file's header, and the memory needed for reading it, are checked before anything is decoded. The limit is 1.4 GB, which is
87 megapixels with 8 bits a colour, or 70 with 16 bits and alpha. Pipes and devices are refused.
"""

import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image, ImageFile, ImageOps
from pydantic import Field, model_validator

from pfedsam.core.errors import DataError
from pfedsam.core.files import open_regular
from pfedsam.core.options import Options

# What tifffile remarks about a file comes without the name of the file; what matters is in our own messages.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

MAX_MEGAPIXELS: Final = 100.0
Colour: TypeAlias = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

_FORMATS = ("PNG", "JPEG", "TIFF")  # the JPEG of a phone may turn out as "MPO"; its first picture is read
PICTURE_ERRORS: Final = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    EOFError,
    struct.error,
    zlib.error,
)
"""The errors that Pillow and tifffile raise for damaged files."""
_BAND_PIXELS: Final = 2**20
_RESULT_BYTES: Final = 12
_MAX_BYTES: Final = 1.4e9
"""Largest memory for reading one picture; the process itself takes about 0.1 GB."""
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L")
_BITS_OF_MODE: Final = {"1": 1, "I": 32, "F": 32, **dict.fromkeys(_SIXTEEN_BITS, 16)}
"""Bits of one value of Pillow's modes that do not have 8 bits."""
_RESAVE = "save it as 8- or 16-bit grey or RGB (PNG, or TIFF)"
_BITS_PER_SAMPLE, _PHOTOMETRIC, _ORIENTATION = 258, 262, 274
_SAMPLE_FORMAT, _COMPRESSION, _TILE_WIDTH, _TILE_LENGTH = 339, 259, 322, 323
_WHITE_IS_ZERO, _SIGNED, _UNCOMPRESSED = 0, 2, 1
_LOSSLESS: Final = frozenset({_UNCOMPRESSED, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000})
"""TIFF compressions that keep every value: none, three of faxes, LZW, Deflate (two numbers), PackBits, LZMA, Zstandard."""


class ImageOptions(Options):
    """How a site's images are read."""

    contrast: Literal["none", "percentile"] = Field(
        default="none", description="'percentile' stretches each image between two percentiles of its values."
    )
    low: float = Field(default=1.0, ge=0, le=100, description="Percentile that becomes 0.")
    high: float = Field(default=99.0, ge=0, le=100, description="Percentile that becomes 1.")
    max_megapixels: float = Field(
        default=MAX_MEGAPIXELS, gt=0, le=170, description="Larger images are refused before decoding."
    )

    @model_validator(mode="after")
    def _ordered(self) -> "ImageOptions":
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self


@dataclass(frozen=True)
class Stored:
    """How a picture is stored; only one with a palette, and some PNGs, are decoded for it."""

    size: tuple[int, int]
    """H, W of the stored pixels, before they are turned according to the orientation."""
    channels: int
    bits: int
    """Bits of one value; the range of the file's type is 0 to 2 ** bits - 1."""
    orientation: int
    """EXIF or TIFF orientation: 1 = as stored, 2 to 8 = the picture is turned or mirrored when it is read."""
    palette: tuple[Colour, ...] = ()
    """The colours of the indices that the pixels contain; empty without a palette."""


def read_stored(path: Path, *, max_megapixels: float = MAX_MEGAPIXELS) -> Stored:
    """How the picture or mask in a file is stored.

    Raises:
        DataError: the file is missing, damaged or too large.
    """
    with _opened(path, max_megapixels) as image:
        channels = 3 if image.mode in ("P", "PA") else len(set(image.getbands()) - {"A"})
        bits = 16 if _is_deep_colour(image) else _BITS_OF_MODE.get(image.mode, 8)
        turned = image.format != "PNG" or _may_be_turned(path)
        orientation = int(image.getexif().get(_ORIENTATION, 1)) if turned else 1
        return Stored((image.height, image.width), channels, bits, orientation, _palette(image))


def _palette(image: Image.Image) -> tuple[Colour, ...]:
    """The colours of a palette; empty for a picture without one."""
    values = (image.getpalette("RGB") or ()) if image.mode in ("P", "PA") else ()
    return tuple(zip(values[0::3], values[1::3], values[2::3], strict=True))


def _may_be_turned(path: Path) -> bool:
    """Whether a PNG has a chunk that can contain an orientation; if so, Pillow has to decode the whole picture to find it."""
    content = path.read_bytes()
    return any(chunk in content for chunk in (b"eXIf", b"iTXt", b"zTXt", b"tEXt"))


def read_image(path: Path, *, max_megapixels: float = MAX_MEGAPIXELS) -> npt.NDArray[np.float32]:
    """The picture [H, W, 3] in 0..1, read as in the table of this module.

    Raises:
        DataError: the file is missing, damaged, too large or of a kind that is not read.
    """
    with _opened(path, max_megapixels) as image:
        if image.format == "TIFF" and _is_deep_colour(image):
            return _read_deep_colour(path, image)
        if image.mode in _SIXTEEN_BITS:
            found = _in_bands(image, None, 65535)
            return np.float32(1) - found if _white_is_zero(image) else found
        if image.mode in ("1", "L", "LA") and not _is_signed(image):
            return _in_bands(image, "L", 255)
        if image.mode in ("P", "PA", "RGB", "RGBA", "RGBX"):
            return _in_bands(image, "RGB", 255)
        kind = "signed 8-bit grey" if _is_signed(image) else repr(image.mode)
        raise DataError(f"its image {path.name!r} is of the kind {kind}, which is not read; {_RESAVE}")


def read_mask(path: Path, *, max_megapixels: float = MAX_MEGAPIXELS) -> npt.NDArray[np.int64]:
    """The ids [H, W] of a mask, read as in the table of this module.

    Raises:
        DataError: the file is missing, damaged, too large or of a kind that is not read.
    """
    with _opened(path, max_megapixels) as image:
        _check_ids_kept(path, image)
        step, signed = _grey_step(image), _is_signed(image)
        values = np.asarray(ImageOps.exif_transpose(image))
        if "A" in image.getbands() and (values[..., -1] != values.flat[-1]).any():
            raise DataError(
                f"its mask {path.name!r} is transparent in some places and not in others, so that its drawing may be in the alpha channel "
                "alone, which is not read; save it as grey or palette PNG without transparency, with one id per class"
            )
        if image.mode in ("RGB", "RGBA", "RGBX"):
            if (values[..., 1:3] != values[..., :1]).any():
                raise DataError(
                    f"its mask {path.name!r} is coloured (RGB), where ids are needed; save it as grey or palette PNG "
                    "with one id per class"
                )
        elif image.mode not in ("1", "L", "LA", "P", "PA", "I", *_SIXTEEN_BITS):
            raise DataError(f"its mask {path.name!r} is of the kind {image.mode!r}; save it as grey or palette PNG")
    ids = values[..., 0] if values.ndim == 3 else values
    if signed:
        ids = ids.astype(np.int8)
    return ids.astype(np.int64) // step


def normalise_contrast(image: npt.NDArray[np.float32], options: ImageOptions) -> npt.NDArray[np.float32]:
    """The image [H, W, 3] with values between its percentiles stretched to 0..1; all channels alike, so colours stay.

    If the percentiles are equal, because nearly all pixels have one value, the lowest and the highest value take their place. An image of
    a single value is returned unchanged.
    """
    if options.contrast == "none":
        return image
    low, high = np.percentile(image, (options.low, options.high))
    if high <= low:
        low, high = image.min(), image.max()
    if high <= low:
        return image
    stretched: npt.NDArray[np.float32] = np.clip((image - np.float32(low)) / np.float32(high - low), 0, 1)
    return stretched


@contextmanager
def _opened(path: Path, max_megapixels: float) -> Iterator[Image.Image]:
    """The file's picture, not yet decoded.

    Raises:
        DataError: it cannot be opened or is too large, or decoding it within the context failed.
    """
    # A file object, not a path: given a path, Pillow 13 maps uncompressed TIFFs into memory and scrambles those that an
    # orientation tag turns by a quarter (it takes the turned size for the stored one).
    with _file(path) as file, _header(path, file) as image:
        width, height = image.size
        if width * height > max_megapixels * 1e6:
            raise DataError(
                f"{path.name!r} has {width} x {height} pixels, more than {max_megapixels:g} megapixels; "
                "cut it into tiles, or raise data.image.max_megapixels"
            )
        _check_memory(path, width * height + _tile_pixels(image), 4)
        try:
            if image.format in ("PNG", "TIFF") and getattr(image, "n_frames", 1) > 1:
                raise DataError(
                    f"{path.name!r} holds several pictures; save each as its own case (data.patient_pattern finds the patient in its "
                    "name), or the slices of a volume as one NIfTI file"
                )
            yield image
        except PICTURE_ERRORS as exc:
            raise DataError(f"{path.name!r} is damaged or cut off ({exc}); restore it or take the case out") from exc


def _in_bands(image: Image.Image, mode: str | None, largest: int) -> npt.NDArray[np.float32]:
    """The picture [H, W, 3] in 0..1, converted in bands of rows, so that no second copy of its size is needed.

    Args:
        image: a picture that is not yet decoded.
        mode: Pillow's mode to convert the picture to; None: no conversion.
        largest: the value that becomes 1.
    """
    ImageOps.exif_transpose(image, in_place=True)
    width, height = image.size
    values = np.empty((height, width, 3), np.float32)
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(top + rows, height)))
        part = np.asarray(band.convert(mode) if mode else band, dtype=np.float32)
        values[top : top + rows] = part if part.ndim == 3 else part[:, :, None]
    values /= np.float32(largest)
    return values


def _tile_pixels(image: Image.Image) -> int:
    """The pixels of a tile of a TIFF, which are decoded as a whole and may be more than the picture has; 0 without tiles."""
    tags = getattr(image, "tag_v2", {})
    return int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_LENGTH, 0))


def _check_memory(path: Path, pixels: int, decoded_bytes: int) -> None:
    """Refuse, before anything is decoded, a picture that would need more memory than is allowed.

    Args:
        path: the file.
        pixels: number of pixels.
        decoded_bytes: bytes of one pixel in the memory of the library that decodes it.

    Raises:
        DataError: the picture needs too much memory.
    """
    needed = pixels * (decoded_bytes + _RESULT_BYTES)
    if needed > _MAX_BYTES:
        raise DataError(
            f"{path.name!r} has {pixels / 1e6:.0f} megapixels of this kind, which take {needed / 1e9:.1f} GB of memory to read; allowed "
            f"are {_MAX_BYTES / 1e9:.1f} GB. Cut it into tiles, or save it with 8 bits a colour and without alpha"
        )


def _file(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except OSError as exc:
        raise DataError(f"{path.name!r} cannot be opened ({exc.strerror}); restore it or take the case out") from exc


def _header(path: Path, file: BinaryIO) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit and messages follow
            return Image.open(file, formats=_FORMATS)
    except Image.DecompressionBombError as exc:
        raise DataError(f"{path.name!r} is too large ({exc}); cut it into tiles") from exc
    except PICTURE_ERRORS as exc:
        kind = _kind_of_tiff(path)
        if kind:
            raise DataError(f"{path.name!r} is a TIFF {kind}, which is not read; {_RESAVE}") from exc
        raise DataError(
            f"{path.name!r} is not a PNG, JPEG or TIFF file, or is damaged; restore it or take the case out"
        ) from exc


def _kind_of_tiff(path: Path) -> str:
    """The type of the values and the axes of a TIFF, in words; empty for a file that is no TIFF, or damaged."""
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            if page.dtype is None:
                return ""
            lengths = " x ".join(map(str, page.shape))
            return f"with values of the type {page.dtype} and the shape {lengths} ({tifffile.PHOTOMETRIC(page.photometric).name})"
    except PICTURE_ERRORS:
        return ""


def _is_deep_colour(image: Image.Image) -> bool:
    """Whether the file is colour (or grey with alpha) of more than 8 bits, of which Pillow would keep 8."""
    bits = max(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,)))
    return image.mode in ("RGB", "RGBA", "RGBX") and (bits > 8 or _raw_mode(image).endswith(";16B"))


def _is_signed(image: Image.Image) -> bool:
    """Whether a picture is an 8-bit grey TIFF of signed values, which Pillow takes for unsigned ones."""
    return image.mode == "L" and _SIGNED in getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT, ())


def _white_is_zero(image: Image.Image) -> bool:
    """Whether the largest value of a picture is black; Pillow inverts such TIFFs of 8 bits, but not those of 16 bits."""
    return image.format == "TIFF" and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def _read_deep_colour(path: Path, image: Image.Image) -> npt.NDArray[np.float32]:
    """The values of a 16-bit colour TIFF in 0..1, [H, W, 3].

    Raises:
        DataError: the file has an orientation tag, is too large, or is not such a TIFF.
    """
    if image.getexif().get(_ORIENTATION, 1) != 1:
        raise DataError(
            f"{path.name!r} is a 16-bit RGB TIFF with an orientation tag; turn it and save it without the tag"
        )
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        _check_memory(
            path, page.imagewidth * page.imagelength, page.nbytes // max(1, page.imagewidth * page.imagelength)
        )
        values = _decoded(path, page)
        planes_first = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE
    values = np.moveaxis(values, 0, -1) if planes_first else values
    if values.dtype != np.uint16 or values.ndim != 3:
        raise DataError(f"its image {path.name!r} has values of the type {values.dtype}; {_RESAVE}")
    found = values[:, :, :3].astype(np.float32)
    found /= np.float32(65535)
    return found


def _decoded(path: Path, page: tifffile.TiffPage) -> npt.NDArray[Any]:
    """The values of a page of a TIFF, of any shape and type.

    Raises:
        DataError: the compression needs a further package.
        ValueError: the file is damaged.
    """
    try:
        return page.asarray()
    except ValueError as exc:
        if "imagecodecs" not in str(exc):
            raise
        compression = tifffile.COMPRESSION(page.compression).name
        raise DataError(
            f"its image {path.name!r} is a 16-bit RGB TIFF with the compression {compression}, which is not read; save it without "
            "compression or with Deflate"
        ) from exc


def _check_ids_kept(path: Path, image: Image.Image) -> None:
    """Refuse a mask, not yet decoded, whose ids would be changed by reading it.

    Raises:
        DataError: the ids would be changed.
    """
    if image.format in ("JPEG", "MPO"):
        raise DataError(f"its mask {path.name!r} is a JPEG, which does not keep ids exactly; save it as PNG")
    if image.format == "TIFF" and getattr(image, "tag_v2", {}).get(_COMPRESSION, _UNCOMPRESSED) not in _LOSSLESS:
        raise DataError(
            f"its mask {path.name!r} is a TIFF with the compression {image.info.get('compression', 'of an unknown kind')!r}, which may not "
            "keep ids exactly; save it as PNG, or as TIFF with LZW, Deflate or no compression"
        )
    if image.format == "TIFF" and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC, _WHITE_IS_ZERO) == _WHITE_IS_ZERO:
        raise DataError(
            f"its mask {path.name!r} is a TIFF whose 0 is white (WhiteIsZero), so that its ids may be inverted; "
            "save it as PNG, or as TIFF whose 0 is black"
        )
    if _is_deep_colour(image):
        raise DataError(
            f"its mask {path.name!r} has 16 bits with colour or alpha, of which only the upper eight would be read; "
            "save it as plain grey of 8 or 16 bits, one id per class"
        )


def _grey_step(image: Image.Image) -> int:
    """The factor by which Pillow multiplies grey values of 2 and 4 bits (0..3 becomes 0..255)."""
    return {"L;2": 85, "L;4": 17}.get(_raw_mode(image)[:3], 1)


def _raw_mode(image: Image.Image) -> str:
    """Pillow's name for the type of the values in the file, such as "L;2"; only available until the picture is decoded."""
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    args = tiles[0].args if tiles else ""
    return str(args[0] if isinstance(args, tuple) else args)
