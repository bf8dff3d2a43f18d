"""The values that stored pixels mean."""

import numpy as np
import pytest
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID
from volume_files import all_planes, set_pixels, write_series

from pfedsam.core.errors import DataError
from pfedsam.data.readers.dicom import DicomReader

VALUES = np.random.default_rng(0).integers(-500, 500, (6, 8, 5)).astype(np.int16)
UPWARD = np.array([[0, -1.0, 0, 0], [-2.0, 0, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
"""Slices are read in the order in which they are written."""


def _read(folder, values, change):
    return all_planes(DicomReader(write_series(folder, values, UPWARD, change=change)))


def test_slices_with_and_without_a_sign_are_read_together(tmp_path):
    def every_other(dataset: Dataset, k: int) -> None:
        if k % 2 == 0:
            set_pixels(dataset, (VALUES[..., k] + 1024).astype(np.uint16))
            dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024

    np.testing.assert_array_equal(_read(tmp_path / "s", VALUES, every_other), VALUES)


def test_slices_of_8_and_16_bits_are_read_together(tmp_path):
    values = np.abs(VALUES).astype(np.uint16)
    values[..., 0] //= 4

    def first(dataset: Dataset, k: int) -> None:
        if k == 0:
            set_pixels(dataset, values[..., 0].astype(np.uint8))

    np.testing.assert_array_equal(_read(tmp_path / "s", values, first), values)


def test_12_signed_bits_keep_their_sign(tmp_path):
    def pack(dataset: Dataset, k: int) -> None:
        set_pixels(dataset, (VALUES[..., k] & 0x0FFF).astype(np.uint16))
        dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = 1, 12, 11

    np.testing.assert_array_equal(_read(tmp_path / "s", VALUES, pack), VALUES)


@pytest.mark.parametrize(
    ("kind", "slope", "dark"),
    [
        ("MONOCHROME2", 1, 40),
        ("MONOCHROME1", 1, 65535 - 90),
        ("MONOCHROME2", -1, -90),
        ("MONOCHROME1", -1, -65535 + 40),
    ],
)
def test_what_pads_a_picture_is_as_dark_as_its_darkest_pixel(tmp_path, kind, slope, dark):
    stored = np.full((6, 8, 1), 40, np.uint16)
    stored[3:], stored[0] = 90, 7  # the first row pads

    def pad(dataset: Dataset, _: int) -> None:
        dataset.PhotometricInterpretation, dataset.PixelPaddingValue = kind, 0
        dataset.PixelPaddingRangeLimit = 7
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, 0

    found = _read(tmp_path / "s", stored, pad)
    assert set(found[0].flat) == {dark} == {found.min()}


@pytest.mark.parametrize(
    ("representation", "kind", "padding"), [(np.int16, "US", 63536), (np.int16, "SS", -2000), (np.uint16, "SS", -2000)]
)
def test_padding_is_found_whichever_sign_its_field_has(tmp_path, representation, kind, padding):
    """The CTs of LIDC-IDRI have signed pixels and a PixelPaddingValue of 63536, which has the 16 bits of -2000."""
    stored = np.full((6, 8, 1), 40, np.int16)
    stored[0] = -2000

    def pad(dataset: Dataset, _: int) -> None:
        dataset.add_new("PixelPaddingValue", kind, padding)

    found = _read(tmp_path / "s", stored.astype(representation), pad)
    assert set(found.flat) == {40}


def test_a_limit_of_0_ends_the_range_of_padding(tmp_path):
    stored = np.full((6, 8, 1), 40, np.int16)
    stored[0, :, 0] = np.arange(-7, 1)

    def pad(dataset: Dataset, _: int) -> None:
        dataset.PixelPaddingValue, dataset.PixelPaddingRangeLimit = -7, 0

    assert set(_read(tmp_path / "s", stored, pad).flat) == {40}


@pytest.mark.parametrize("slope", ["0", "1\\2"])
def test_a_slope_that_means_nothing_is_told(tmp_path, slope):
    def change(dataset: Dataset, _: int) -> None:
        dataset.add_new("RescaleSlope", "DS", slope)
        dataset.RescaleIntercept = 0

    with pytest.raises(DataError, match=r"rescale slope of 0|is a damaged or cut off DICOM file"):
        _read(tmp_path / "s", VALUES, change)


@pytest.mark.parametrize(("slope", "intercept", "value"), [("2.5", None, 7.5), (None, "-1000", -997), (None, None, 3)])
def test_a_slope_or_an_intercept_alone_is_applied(tmp_path, slope, intercept, value):
    def change(dataset: Dataset, _: int) -> None:
        for keyword, number in (("RescaleSlope", slope), ("RescaleIntercept", intercept)):
            if number:
                dataset.add_new(keyword, "DS", number)

    assert set(_read(tmp_path / "s", np.full((6, 8, 1), 3, np.int16), change).flat) == {value}


@pytest.mark.parametrize(("bits", "highest"), [(12, 15), (16, 11)])
def test_values_that_are_not_in_the_lowest_bits_are_refused(tmp_path, bits, highest):
    def change(dataset: Dataset, _: int) -> None:
        dataset.BitsStored, dataset.HighBit = bits, highest

    with pytest.raises(DataError, match=f"gives BitsStored {bits} and HighBit {highest}, which must be {bits - 1},"):
        _read(tmp_path / "s", VALUES, change)


@pytest.mark.parametrize(
    ("syntax", "said"),
    [
        ("1.2.840.113619.5.2", r"1\.2\.840\.113619\.5\.2,"),  # of General Electric alone
        ("1.2.840.10008.1.2.4.102", r"1\.2\.840\.10008\.1\.2\.4\.102 \(MPEG-4 AVC"),
        ("1.2.840.10008.1.2.4.94", r"1\.2\.840\.10008\.1\.2\.4\.94 \(JPIP Referenced\),"),
        ("1.2.840.10008.1.2.4.110", r"1\.2\.840\.10008\.1\.2\.4\.110,"),  # JPEG XL
    ],
)
def test_a_transfer_syntax_that_is_not_read_is_no_damage(tmp_path, syntax, said):
    folder = write_series(tmp_path / "s", VALUES, UPWARD)
    for path in folder.iterdir():
        dataset = dcmread(path)
        dataset.file_meta.TransferSyntaxUID = UID(syntax)
        if syntax.endswith(".94"):
            del dataset.PixelData  # they are at an address that the file names
        elif "10008" in syntax:
            dataset.PixelData = encapsulate([bytes(200)])
            dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
        dcmwrite(path, dataset, implicit_vr="10008" not in syntax, little_endian=True, force_encoding=True)
    with pytest.raises(DataError, match=f"is stored in the transfer syntax {said}.* not read; export it") as refused:
        all_planes(DicomReader(folder))
    assert "damaged" not in str(refused.value)


def test_colour_of_12_bits_reaches_full_brightness(tmp_path):
    def colour(dataset: Dataset, _: int) -> None:
        set_pixels(dataset, np.full((6, 8, 3), 4095, np.uint16))
        dataset.BitsStored, dataset.HighBit = 12, 11

    reader = DicomReader(write_series(tmp_path / "s", VALUES[..., :1], change=colour))
    assert set(reader.slice(0).flat) == {1.0}


@pytest.mark.parametrize(
    ("bits", "table", "brightest"),
    [
        (8, np.arange(256, dtype="u1"), 255),
        (16, np.arange(256, dtype="<u2") * 257, 65535),
        (16, np.arange(256, dtype="u1"), 255),
        (16, np.arange(256, dtype="<u2"), 255),
    ],
)
def test_colours_of_a_palette_that_are_called_wider_than_they_are_reach_full_brightness(
    tmp_path, bits, table, brightest
):
    """The last two tables have colours of 8 bits, and a header that gives 16."""
    indices = np.arange(48, dtype=np.uint8).reshape(6, 8, 1) + 200

    def colour(dataset: Dataset, _: int) -> None:
        dataset.PhotometricInterpretation = "PALETTE COLOR"
        for name in ("Red", "Green", "Blue"):
            setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [256, 0, bits])
            setattr(dataset, f"{name}PaletteColorLookupTableData", table.tobytes())

    (plane,) = DicomReader(write_series(tmp_path / "s", indices, UPWARD, change=colour)).planes()
    expected = table[indices[..., 0]].astype(float) / brightest
    np.testing.assert_allclose(plane, np.repeat(expected[..., None], 3, axis=2), atol=1e-6)


def test_floating_point_pixels_are_of_a_floating_point_type(tmp_path):
    def floats(dataset: Dataset, k: int) -> None:
        del dataset.PixelData, dataset.PixelRepresentation
        dataset.BitsAllocated = dataset.BitsStored = 32
        dataset.FloatPixelData = (VALUES[..., k] / 8).astype("<f4").tobytes()

    folder = write_series(tmp_path / "s", VALUES, UPWARD, change=floats)
    np.testing.assert_array_equal(all_planes(DicomReader(folder)), VALUES / 8)
    assert DicomReader(folder).header().dtype == np.float32


def test_the_type_of_rescaled_values_is_not_that_of_the_stored_ones(tmp_path):
    def change(dataset: Dataset, _: int) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024

    values = np.abs(VALUES).astype(np.uint16)
    assert DicomReader(write_series(tmp_path / "s", values, change=change)).header().dtype == np.float32
    assert DicomReader(write_series(tmp_path / "t", values)).header().dtype == np.uint16
