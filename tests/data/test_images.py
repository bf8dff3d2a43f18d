import os
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image
from pydantic import ValidationError

from pfedsam.core.errors import DataError
from pfedsam.data import images
from pfedsam.data.images import ImageOptions, normalise_contrast, read_image, read_mask

GREY = np.array([[0, 51, 255], [102, 153, 204]], np.uint8)
COLOUR = np.stack([GREY, 255 - GREY, GREY // 3], axis=-1)
EXIF_ORIENTATION = 274


def _saved(tmp_path, image, name="x.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def _png(tmp_path, width, height, depth, colour, rows):
    """A PNG written by hand, for kinds that Pillow does not write; `rows` are packed bytes without filter bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    path = tmp_path / "hand.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_eight_bits(tmp_path, name):
    grey = read_image(_saved(tmp_path, Image.fromarray(GREY), name))
    assert grey.dtype == np.float32
    np.testing.assert_allclose(grey, np.stack([GREY] * 3, -1) / 255, rtol=1e-6)
    colour = read_image(_saved(tmp_path, Image.fromarray(COLOUR), name))
    np.testing.assert_allclose(colour, COLOUR / 255, rtol=1e-6)


def test_jpeg(tmp_path):
    image = read_image(_saved(tmp_path, Image.new("RGB", (16, 8), (255, 128, 0)), "x.JPG"))
    assert image.shape == (8, 16, 3)
    np.testing.assert_allclose(image[4, 8], (1, 128 / 255, 0), atol=0.02)


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_sixteen_bit_grey_is_scaled_by_its_range(tmp_path, byteorder):
    values = np.array([[0, 1], [13107, 65535]], np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", values, byteorder=byteorder)
    np.testing.assert_allclose(read_image(tmp_path / "x.tif")[..., 1], [[0, 1 / 65535], [0.2, 1]], rtol=1e-6)
    np.testing.assert_allclose(
        read_image(_saved(tmp_path, Image.fromarray(values)))[..., 1], [[0, 1 / 65535], [0.2, 1]], rtol=1e-6
    )
    np.testing.assert_array_equal(read_mask(tmp_path / "x.tif"), values)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_sixteen_bit_colour_tiff_keeps_its_low_bits(tmp_path, planar):
    values = np.arange(2 * 4 * 3, dtype=np.uint16).reshape(2, 4, 3)
    stored = values if planar == "contig" else np.moveaxis(values, -1, 0)
    tifffile.imwrite(tmp_path / "x.tif", stored, photometric="rgb", planarconfig=planar)
    np.testing.assert_allclose(read_image(tmp_path / "x.tif"), values / 65535, rtol=1e-6)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_tiff_whose_zero_is_white_is_inverted_with_any_number_of_bits(tmp_path, kind):
    largest = np.iinfo(kind).max
    stored = np.array([[0, largest // 5, largest]], kind)
    tifffile.imwrite(tmp_path / "x.tif", stored, photometric="miniswhite")
    np.testing.assert_allclose(read_image(tmp_path / "x.tif")[..., 0], [[1, 0.8, 0]], atol=1e-6)


def test_sixteen_bit_colour_tiff_that_is_turned(tmp_path):
    values = np.zeros((2, 4, 3), np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="rgb", extratags=[(EXIF_ORIENTATION, "H", 1, 6, True)])
    with pytest.raises(DataError, match=r"'x\.tif' is a 16-bit RGB TIFF with an orientation tag"):
        read_image(tmp_path / "x.tif")


def test_sixteen_bit_colour_png_keeps_its_upper_bits(tmp_path):
    path = _png(tmp_path, 1, 1, 16, 2, [struct.pack(">HHH", 0xFFFF, 0x8000, 0x00FF)])
    np.testing.assert_allclose(read_image(path)[0, 0], (1, 128 / 255, 0), rtol=1e-6)


def test_palette_is_colours_in_an_image_and_ids_in_a_mask(tmp_path):
    image = Image.fromarray(np.array([[0, 2], [1, 2]], np.uint8), mode="P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    path = _saved(tmp_path, image)
    assert read_image(path)[0, 1].tolist() == [0, 1, 0]
    assert read_mask(path).tolist() == [[0, 2], [1, 2]]


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_dropped(tmp_path, mode):
    image = Image.fromarray(GREY).convert(mode)
    image.putalpha(0)
    path = _saved(tmp_path, image)
    np.testing.assert_allclose(read_image(path), np.stack([GREY] * 3, -1) / 255, rtol=1e-6)
    np.testing.assert_array_equal(read_mask(path), GREY)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_mask_that_is_drawn_in_its_alpha_channel_is_refused(tmp_path, mode):
    """White everywhere, and transparent where nothing is drawn."""
    drawn = Image.fromarray(np.array([[0, 255, 0], [0, 0, 0]], np.uint8))
    image = Image.new("L", drawn.size, 255).convert(mode)
    image.putalpha(drawn)
    with pytest.raises(DataError, match=r"'x\.png' is transparent in some places .* save it as grey or palette PNG"):
        read_mask(_saved(tmp_path, image))


def test_one_bit(tmp_path):
    path = _saved(tmp_path, Image.fromarray(np.array([[0, 1, 1]], bool)))
    assert read_image(path)[0, :, 0].tolist() == [0, 1, 1]
    assert read_mask(path).tolist() == [[0, 1, 1]]


@pytest.mark.parametrize(("depth", "row", "ids"), [(2, 0b00_01_10_11, [0, 1, 2, 3]), (4, 0x0F, [0, 15])])
def test_masks_of_few_bits_keep_their_ids(tmp_path, depth, row, ids):
    path = _png(tmp_path, len(ids), 1, depth, 0, [bytes([row])])
    assert read_mask(path).tolist() == [ids]


def _tiff(tmp_path, width, depth, photometric, row, deflate):
    """A grey TIFF of one row, written by hand (TIFF 6.0, section 2), for kinds that Pillow does not write."""
    data = zlib.compress(row) if deflate else row
    fields = {256: width, 257: 1, 258: depth, 259: 8 if deflate else 1, 262: photometric, 273: 8, 277: 1, 278: 1}
    fields[279] = len(data)
    start = 8 + len(data) + len(data) % 2
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    path = tmp_path / "hand.tif"
    path.write_bytes(
        struct.pack("<2sHI", b"II", 42, start)
        + data.ljust(start - 8, b"\0")
        + struct.pack("<H", len(fields))
        + entries
        + bytes(4)
    )
    return path


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize(
    ("depth", "row", "ids"),
    [(1, [0b01_000000], [0, 1]), (2, [0b00_01_10_11], [0, 1, 2, 3]), (4, [0x01, 0x2F], [0, 1, 2, 15])],
)
def test_tiff_masks_of_few_bits_keep_their_ids(tmp_path, depth, row, ids, deflate):
    assert read_mask(_tiff(tmp_path, len(ids), depth, 1, bytes(row), deflate)).tolist() == [ids]


@pytest.mark.parametrize(
    ("depth", "row"), [(1, [0b01_000000]), (2, [0b00_01_0000]), (4, [0x01]), (8, [0, 1]), (16, [0, 0, 1, 0])]
)
def test_tiff_masks_whose_0_is_white_are_refused(tmp_path, depth, row):
    with pytest.raises(
        DataError, match=r"its mask 'hand\.tif' is a TIFF whose 0 is white .*; save it as PNG, or as TIFF"
    ):
        read_mask(_tiff(tmp_path, 2, depth, 0, bytes(row), deflate=False))


# One pixel each, whose upper eight bits are all 0: read as id 0, where 1 is meant.
@pytest.mark.parametrize(("colour", "values"), [(2, [1, 1, 1]), (4, [1, 65535]), (6, [1, 1, 1, 65535])])
def test_masks_of_sixteen_bits_with_colour_or_alpha_are_refused(tmp_path, colour, values):
    path = _png(tmp_path, 1, 1, 16, colour, [struct.pack(f">{len(values)}H", *values)])
    with pytest.raises(
        DataError, match=r"its mask 'hand\.png' has 16 bits with colour or alpha.*; save it as plain grey"
    ):
        read_mask(path)
    assert read_mask(_png(tmp_path, 2, 1, 16, 0, [struct.pack(">HH", 1, 300)])).tolist() == [[1, 300]]


def test_a_tiff_mask_of_sixteen_bit_colour_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", np.ones((2, 4, 3), np.uint16), photometric="rgb")
    with pytest.raises(DataError, match=r"its mask 'x\.tif' has 16 bits with colour or alpha"):
        read_mask(tmp_path / "x.tif")


def test_mask_of_three_equal_channels(tmp_path):
    path = _saved(tmp_path, Image.fromarray(np.stack([GREY] * 3, -1)))
    np.testing.assert_array_equal(read_mask(path), GREY)
    with pytest.raises(
        DataError, match=r"its mask 'c\.png' is coloured \(RGB\), where ids are needed; save it as grey"
    ):
        read_mask(_saved(tmp_path, Image.fromarray(COLOUR), "c.png"))


def test_integer_tiff_mask(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", np.array([[0, 70000]], np.int32))
    assert read_mask(tmp_path / "x.tif").tolist() == [[0, 70000]]


@pytest.mark.parametrize("kind", [np.int8, np.int16])
def test_a_signed_tiff_is_refused_as_an_image_and_keeps_its_values_as_a_mask(tmp_path, kind):
    values = np.array([[-1, 0], [1, 127]], kind)
    tifffile.imwrite(tmp_path / "x.tif", values)
    with pytest.raises(
        DataError, match=r"its image 'x\.tif' is of the kind .*, which is not read; save it as 8- or 16-"
    ):
        read_image(tmp_path / "x.tif")
    np.testing.assert_array_equal(read_mask(tmp_path / "x.tif"), values)


@pytest.mark.parametrize(
    "compression", ["raw", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits", "zstd", "lzma"]
)
def test_tiff_masks_of_lossless_compressions_keep_their_ids(tmp_path, compression):
    ids = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(ids).save(tmp_path / "m.tif", compression=compression)
    assert np.array_equal(read_mask(tmp_path / "m.tif"), ids)


def test_a_tiff_mask_with_jpeg_compression_is_refused(tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "m.tif", compression="jpeg")
    with pytest.raises(DataError, match=r"compression 'jpeg', which may not keep ids exactly; save it as PNG"):
        read_mask(tmp_path / "m.tif")
    assert read_image(tmp_path / "m.tif").shape == (8, 8, 3)


def test_a_deep_tiff_of_a_compression_that_needs_another_package_is_not_called_damaged(tmp_path, monkeypatch):
    def needs_a_package(*_: object, **__: object) -> None:
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    tifffile.imwrite(tmp_path / "i.tif", np.zeros((4, 4, 3), np.uint16), photometric="rgb")
    monkeypatch.setattr(tifffile.TiffPage, "asarray", needs_a_package)
    with pytest.raises(DataError, match=r"16-bit RGB TIFF with the compression NONE, which is not read; save it"):
        read_image(tmp_path / "i.tif")


def test_the_tiles_of_a_tiff_count_for_its_memory(tmp_path):
    """A picture of 4096 pixels in a tile of 268 million; the file contains only the header and one short tile."""
    with tifffile.TiffWriter(tmp_path / "i.tif") as file:
        file.write(np.zeros((64, 64), np.uint8), tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(tmp_path / "i.tif", mode="r+") as file:
        for tag in ("TileWidth", "TileLength"):
            file.pages.first.tags[tag].overwrite(16384)
    with pytest.raises(DataError, match="GB of memory"):
        read_image(tmp_path / "i.tif")


def test_jpeg_mask(tmp_path):
    with pytest.raises(DataError, match=r"'x\.jpg' is a JPEG, which does not keep ids exactly; save it as PNG"):
        read_mask(_saved(tmp_path, Image.fromarray(GREY), "x.jpg"))


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "YCbCr", "I", "F"])
def test_kinds_that_are_refused(tmp_path, mode):
    path = _saved(tmp_path, Image.new(mode, (3, 2)), "x.tif")
    with pytest.raises(DataError, match=rf"its image 'x\.tif' is of the kind '{mode}'.*; save it as 8- or 16-bit"):
        read_image(path)
    if mode != "I":
        with pytest.raises(DataError, match=r"its mask 'x\.tif' is of the kind"):
            read_mask(path)


@pytest.mark.parametrize("name", ["x.tif", "x.png"])
def test_several_pictures_in_one_file(tmp_path, name):
    path = _saved(tmp_path, Image.fromarray(GREY), name, save_all=True, append_images=[Image.fromarray(255 - GREY)])
    with pytest.raises(
        DataError, match=r"holds several pictures; save each .* or the slices of a volume as one NIfTI file"
    ):
        read_image(path)


# What a viewer shows for each EXIF orientation of the stored rows [[1, 2, 3], [4, 5, 6]] (EXIF 2.32, 4.6.4.A).
SHOWN = {
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[4, 1], [5, 2], [6, 3]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[3, 6], [2, 5], [1, 4]],
}


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("name", ["x.png", "x.tif", "x16.png", "x16.tif"])
def test_pictures_are_turned_as_their_orientation_says(tmp_path, orientation, name):
    stored = np.array([[1, 2, 3], [4, 5, 6]], np.uint16 if "16" in name else np.uint8)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    path = _saved(tmp_path, Image.fromarray(stored), name, exif=exif)
    assert read_mask(path).tolist() == SHOWN[orientation]
    image = read_image(path)[..., 0] * (65535 if "16" in name else 255)
    assert np.rint(image).tolist() == SHOWN[orientation]


def test_a_rotated_jpeg_agrees_with_the_mask_drawn_on_what_is_shown(tmp_path):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    stored = np.zeros((16, 32), np.uint8)
    stored[:8, :8] = 255  # the upper left corner is shown at the upper right
    image = read_image(_saved(tmp_path, Image.fromarray(stored), "x.jpg", exif=exif, quality=95))
    shown = np.zeros((32, 16), bool)
    shown[:8, 8:] = True
    np.testing.assert_array_equal(image[..., 0] > 0.5, shown)


def test_size_is_checked_before_decoding(tmp_path):
    # The header claims 20000 x 6000 pixels; there is nothing behind it that could be decoded.
    path = _png(tmp_path, 20000, 6000, 8, 0, [])
    with pytest.raises(DataError, match=r"'hand\.png' has 20000 x 6000 pixels, more than 100 megapixels; cut"):
        read_image(path)
    with pytest.raises(DataError, match="GB of memory"):
        read_image(path, max_megapixels=120)
    with pytest.raises(DataError, match="damaged or cut off"):
        read_image(_png(tmp_path, 20000, 4000, 8, 0, []))
    with pytest.raises(DataError, match="more than 1e-06 megapixels"):
        read_mask(_saved(tmp_path, Image.fromarray(GREY)), max_megapixels=1e-6)


def test_sizes_that_pillow_refuses(tmp_path):
    with pytest.raises(DataError, match=r"'hand\.png' is too large"):
        read_image(_png(tmp_path, 100_000, 100_000, 8, 0, []))


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tif"])
def test_truncated_files_name_the_file_but_no_folder(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8)
    path = _saved(tmp_path, Image.fromarray(noise), name)
    whole = path.read_bytes()
    for length in (len(whole) // 2, 20, 0):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=rf"'{name}' .*; restore it or take the case out") as caught:
            read_image(path)
        assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [("x.png", "'x.png' is not a PNG, JPEG or TIFF file"), ("missing.png", "'missing.png' cannot be opened")],
)
def test_no_picture_and_no_file(tmp_path, name, message):
    (tmp_path / "x.png").write_text("not a picture")
    with pytest.raises(DataError, match=message) as caught:
        read_image(tmp_path / name)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("kind", ["int64", "float64"])
def test_a_tiff_of_a_type_that_is_not_read_is_no_damage(tmp_path, kind):
    tifffile.imwrite(tmp_path / "x.tif", GREY.astype(kind))
    for read in (read_image, read_mask):
        with pytest.raises(
            DataError,
            match=rf"'x\.tif' is a TIFF with values of the type {kind} and the shape 2 x 3 .*save it as 8- or",
        ):
            read(tmp_path / "x.tif")


def test_a_tiff_without_a_picture_is_damaged(tmp_path, capfd):
    (tmp_path / "x.tif").write_bytes(b"II*\0" + b"\x08\0\0\0")
    with pytest.raises(DataError, match=r"'x\.tif' is not a PNG, JPEG or TIFF file, or is damaged"):
        read_image(tmp_path / "x.tif")
    assert capfd.readouterr() == ("", "")


def test_contrast_by_hand():
    # 0, .01, ..., 1: the 10th percentile is .1, the 60th .6.
    image = np.tile(np.linspace(0, 1, 101, dtype=np.float32)[:, None, None], (1, 1, 3))
    stretched = normalise_contrast(image, ImageOptions(contrast="percentile", low=10, high=60))
    assert stretched.dtype == np.float32
    np.testing.assert_allclose(stretched[[0, 10, 35, 60, 100], 0, 0], [0, 0, 0.5, 1, 1], atol=1e-6)
    assert normalise_contrast(image, ImageOptions()) is image


def test_contrast_keeps_colours_and_flat_images():
    options = ImageOptions(contrast="percentile", low=0, high=100)
    pair = np.array([[[0.2, 0.2, 0.2], [0.6, 0.4, 0.2]]], np.float32)
    np.testing.assert_allclose(normalise_contrast(pair, options), [[[0, 0, 0], [1, 0.5, 0]]], atol=1e-6)
    flat = np.full((2, 2, 3), 0.3, np.float32)
    np.testing.assert_array_equal(normalise_contrast(flat, options), flat)


def test_an_image_of_nearly_one_value_is_stretched_between_its_lowest_and_highest_value():
    """Both percentiles are 0.02, the value of 9999 of 10,000 pixels."""
    image = np.full((100, 100, 3), 0.02, np.float32)
    image[40, 50] = 0.04, 0.06, 0.02
    stretched = normalise_contrast(image, ImageOptions(contrast="percentile"))
    np.testing.assert_allclose(stretched[40, 50], [0.5, 1, 0], atol=1e-6)
    assert stretched.sum() == pytest.approx(1.5)


def test_percentiles_in_order():
    with pytest.raises(ValidationError, match="must be below"):
        ImageOptions(low=99, high=99)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    for read in (read_image, read_mask):
        with pytest.raises(DataError, match=r"'x\.png' cannot be opened .*not a file"):
            read(tmp_path / "x.png")


def test_pictures_that_would_take_too_much_memory_are_refused_from_the_header(tmp_path):
    """100 megapixels of 16-bit RGBA: 0.8 GB in the file and 1.2 GB as they are used. The files here are almost empty."""
    wide = tmp_path / "wide.tif"
    with tifffile.TiffWriter(wide, bigtiff=True) as file:
        file.write(shape=(10_000, 10_000, 4), dtype=np.uint16, photometric="rgb", extrasamples=["unassalpha"])
    with pytest.raises(DataError, match=r"'wide\.tif' has 100 megapixels .* GB of memory"):
        read_image(wide)
    with pytest.raises(DataError, match=r"'hand\.png' has 100 megapixels .* GB of memory"):
        read_image(_png(tmp_path, 10_000, 10_000, 16, 6, []))
    wide.unlink()


def test_bands_of_rows_change_no_value(tmp_path, monkeypatch):
    colours = np.random.default_rng(0).integers(0, 255, (37, 23, 3), np.uint8)
    path = _saved(tmp_path, Image.fromarray(colours))
    monkeypatch.setattr(images, "_BAND_PIXELS", 100)
    np.testing.assert_array_equal(read_image(path), colours.astype(np.float32) / np.float32(255))
