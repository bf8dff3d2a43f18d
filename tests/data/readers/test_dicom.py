import shutil
from pathlib import Path

import gdcm
import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.fileset import FileSet
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)
from volume_files import CANARY, all_planes, set_pixels, write_nifti, write_series

from pfedsam.core.errors import DataError
from pfedsam.data.images import ImageOptions
from pfedsam.data.readers import kind_of, open_mask, open_volume
from pfedsam.data.readers.dicom import DicomReader
from pfedsam.data.volume import Volume
from pfedsam.data.volume_options import VolumeOptions

VALUES = np.random.default_rng(0).integers(-500, 500, (6, 8, 5)).astype(np.int16)


def _refused(path: Path, match: str, **options) -> None:
    with pytest.raises(DataError, match=match) as caught:
        DicomReader(path, **options).slice(0)
    assert "Canary" not in str(caught.value)


def test_a_series_is_ordered_by_position_and_its_values_are_in_hu(tmp_path):
    def change(dataset: Dataset, k: int) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = k + 1, -1000 - k

    affine = np.array([[0, -0.7, 0, 5], [1.1, 0, 0, -6], [0, 0, 4, 7], [0, 0, 0, 1]], dtype=float)
    reader = DicomReader(write_series(tmp_path / "s", VALUES, affine, change=change))
    header = reader.header()
    assert header.shape == (6, 8, 5)
    np.testing.assert_allclose(header.affine, _ordered(affine, 5), atol=1e-6)
    np.testing.assert_allclose(header.spacing_mm, (1.1, 0.7, 4))
    expected = VALUES * (np.arange(5) + 1.0) - 1000 - np.arange(5)
    np.testing.assert_array_equal(all_planes(reader), _as_ordered(expected, affine))
    streamed = np.stack([plane[..., 0] for plane in reader.planes()], axis=2)
    np.testing.assert_array_equal(streamed, _as_ordered(expected, affine))
    for axis in (0, 1):
        np.testing.assert_array_equal(reader.slice(3, axis=axis)[..., 0], np.take(all_planes(reader), 3, axis=axis))


def _normal_is_upward(affine: np.ndarray) -> bool:
    return float(np.dot(np.cross(affine[:3, 1], affine[:3, 0]), affine[:3, 2])) > 0


def _as_ordered(values: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return values if _normal_is_upward(affine) else values[..., ::-1]


def _ordered(affine: np.ndarray, depth: int) -> np.ndarray:
    if _normal_is_upward(affine):
        return affine
    turned = affine.copy()
    turned[:, 3] += turned[:, 2] * (depth - 1)
    turned[:, 2] *= -1
    return turned


def _jpeg_lossless(source: Path, target: Path) -> None:
    """Written by another library: GDCM."""
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(source))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(target))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


@pytest.mark.parametrize(
    "syntax",
    [
        JPEG2000Lossless,
        JPEGLSLossless,
        JPEGLosslessSV1,
        RLELossless,
        DeflatedExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
    ],
    ids=lambda syntax: syntax.keyword,
)
def test_one_series_in_every_transfer_syntax_has_the_same_voxels(tmp_path, syntax):
    values = np.random.default_rng(1).integers(0, 4000, (64, 64, 3)).astype(np.uint16)

    def pack(dataset: Dataset, k: int) -> None:
        if syntax in (JPEG2000Lossless, JPEGLSLossless, RLELossless):
            dataset.compress(syntax)
        elif syntax == ExplicitVRBigEndian:
            dataset.PixelData = values[..., k].astype(">u2").tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax

    plain, packed = write_series(tmp_path / "plain", values), tmp_path / "packed"
    if syntax == JPEGLosslessSV1:
        packed.mkdir()
        for path in plain.iterdir():
            _jpeg_lossless(path, packed / path.name)
    else:
        write_series(packed, values, change=pack)
    assert {pydicom.dcmread(path).file_meta.TransferSyntaxUID for path in packed.iterdir()} == {syntax}
    expected, found = DicomReader(plain), DicomReader(packed)
    np.testing.assert_array_equal(all_planes(found), all_planes(expected))
    np.testing.assert_array_equal(found.header().affine, expected.header().affine)


def test_monochrome1_is_inverted_and_unused_upper_bits_are_left_out(tmp_path):
    def change(dataset: Dataset, k: int) -> None:
        set_pixels(dataset, np.full((2, 3), 0xF000 + 100, np.uint16))
        dataset.BitsStored, dataset.HighBit = 12, 11
        dataset.PhotometricInterpretation = "MONOCHROME1"

    assert set(DicomReader(write_series(tmp_path / "s", VALUES[:2, :3, :1], change=change)).slice(0).flat) == {
        4095 - 100
    }


def test_colour_of_three_kinds_comes_as_rgb(tmp_path):
    red = np.zeros((2, 3, 3), np.uint8)
    red[..., 0] = 255

    def rgb(dataset: Dataset, k: int) -> None:
        set_pixels(dataset, red)

    def ybr(dataset: Dataset, k: int) -> None:
        set_pixels(dataset, pydicom.pixels.convert_color_space(red, "RGB", "YBR_FULL"))
        dataset.PhotometricInterpretation = "YBR_FULL"

    def palette(dataset: Dataset, k: int) -> None:
        set_pixels(dataset, np.ones((2, 3), np.uint8))
        dataset.PhotometricInterpretation = "PALETTE COLOR"
        for colour, table in (("Red", b"\x00\xff"), ("Green", b"\x00\x00"), ("Blue", b"\x00\x00")):
            dataset.__setattr__(f"{colour}PaletteColorLookupTableDescriptor", [2, 0, 8])
            dataset.__setattr__(f"{colour}PaletteColorLookupTableData", table)

    for number, change in enumerate((rgb, ybr, palette)):
        reader = DicomReader(write_series(tmp_path / str(number), VALUES[:2, :3, :1], change=change))
        assert reader.header().channels == 3
        np.testing.assert_allclose(reader.slice(0), red / 255, atol=0.01)


def test_spacing_that_is_missing_or_zero_is_not_known(tmp_path):
    def missing(dataset: Dataset, k: int) -> None:
        del dataset.PixelSpacing

    def zero(dataset: Dataset, k: int) -> None:
        dataset.PixelSpacing = [0, 0]

    for number, change in enumerate((missing, zero)):
        assert DicomReader(write_series(tmp_path / str(number), VALUES, change=change)).header().spacing_mm is None


@pytest.mark.parametrize("placed", [True, False])
@pytest.mark.parametrize(("thickness", "known"), [(5, (5, 2, 1)), (0, (2, 1)), (None, (2, 1))])
def test_a_single_picture_without_a_thickness_has_none(tmp_path, placed, thickness, known):
    def change(dataset: Dataset, k: int) -> None:
        dataset.SliceThickness = thickness
        if not placed:
            del dataset.ImagePositionPatient, dataset.ImageOrientationPatient

    axial = np.array([[0, 1.0, 0, 0], [-2, 0, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
    reader = DicomReader(write_series(tmp_path / "s", VALUES[..., :1], axial, change=change))
    volume = Volume([reader], VolumeOptions(), ImageOptions())
    assert volume.known_spacing_mm == known
    assert volume.spacing_mm[1:] == (2, 1)
    mask = np.ones((8, 6, 1), np.uint8)  # of a program that gives the slice a thickness of 3 mm
    if placed and len(known) == 2:
        affine = reader.header().affine[:, [1, 0, 2, 3]] @ np.diag([1, 1, 3, 1])
        assert all_planes(
            open_mask(write_nifti(tmp_path / "m.nii", mask, affine), reader, VolumeOptions()), mask=True
        ).all()


def test_a_folder_of_two_series_and_other_files(tmp_path):
    folder = write_series(tmp_path / "s", VALUES, series="1.2.1")
    (folder / "notes.txt").write_text("not DICOM")

    def second(dataset: Dataset, k: int) -> None:
        dataset.SeriesNumber, dataset.SeriesDescription = 2, "t2 tse"

    write_series(folder, VALUES[:4] + 1, series="1.2.2", change=second)

    def report(dataset: Dataset, k: int) -> None:
        dataset.Modality = "SR"
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
        del dataset.Rows, dataset.Columns, dataset.PixelData

    write_series(folder, VALUES[..., :1], series="1.2.3", change=report)
    _refused(
        folder, r"holds 2 series .* \(1: CT, 5 picture\(s\) of 8 x 6; 2: CT, 5 picture\(s\) of 8 x 4\); choose one"
    )
    for wanted in ("2", "T2", "tse t2"):
        assert all_planes(DicomReader(folder, series=wanted)).shape == (4, 8, 5)
    _refused(folder, "none of which fits", series="t1")
    assert kind_of(folder) == "dicom"


@pytest.mark.parametrize("what", ["orientation", "spacing", "kind"])
def test_one_series_of_two_orientations_spacings_or_kinds_is_not_stacked(tmp_path, what):
    def change(dataset: Dataset, k: int) -> None:
        if k < 2 and what == "orientation":
            dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
        elif k < 2 and what == "spacing":
            dataset.PixelSpacing = [3, 3]
        elif k < 2:
            dataset.ImageType = ["DERIVED", "SECONDARY", "MPR"]

    _refused(
        write_series(tmp_path / "s", VALUES, change=change), "holds 2 series or stacks of different orientation, kind"
    )


def _moved(**where: float):
    def change(dataset: Dataset, k: int) -> None:
        position = [float(value) for value in dataset.ImagePositionPatient]
        if "tilt" in where:
            position[1] += k * where["tilt"]
        if k == 4 and "far" in where:
            position[2] += where["far"]
        dataset.ImagePositionPatient = position

    return change


def test_tilt_is_seen_in_the_positions_and_missing_slices_in_the_gaps(tmp_path):
    tilted = write_series(tmp_path / "tilt", VALUES, change=_moved(tilt=1))
    _refused(tilted, r"tilted against their stack by 18.4 degrees")  # atan(1 / 3)
    _refused(
        write_series(tmp_path / "gap", VALUES, change=_moved(far=6)),
        r"2 slice\(s\) are missing \(gaps from 3 to 9 mm\)",
    )
    _refused(write_series(tmp_path / "odd", VALUES, change=_moved(far=1)), r"unevenly spaced \(gaps from 3 to 4 mm\)")

    def tag_only(dataset: Dataset, k: int) -> None:
        dataset.GantryDetectorTilt = 20

    assert DicomReader(write_series(tmp_path / "tag", VALUES, change=tag_only)).even


def test_a_tilted_uneven_series_is_resampled_when_asked(tmp_path):
    """A linear field of patient coordinates comes back exactly from linear interpolation."""
    _, columns, depth = np.meshgrid(np.arange(6), np.arange(8), np.arange(5), indexing="ij")
    above = 3.0 * depth + np.where(depth == 4, 3, 0)
    field = np.rint(100 * columns + 10 * above).astype(np.int16)  # nothing changes along the tilt

    def change(dataset: Dataset, k: int) -> None:
        _moved(tilt=0.5, far=3)(dataset, k)

    reader = DicomReader(
        write_series(tmp_path / "s", field, np.diag([-2.0, -1, 3, 1])[:, [1, 0, 2, 3]], change=change), resample=True
    )
    shape, affine = reader.header().shape, reader.header().affine
    assert shape[2] == 6
    np.testing.assert_allclose(np.linalg.norm(affine[:3, 2]), 3)
    middle = all_planes(reader)[shape[0] // 2]
    np.testing.assert_allclose(middle, field[0, :, :1] + 30.0 * np.arange(6), atol=0.5)


def test_doubled_slices_and_times(tmp_path):
    folder = write_series(tmp_path / "s", VALUES)
    first = sorted(folder.iterdir())[0]
    shutil.copy(first, folder / "copy")
    _refused(folder, "1 of 5 positions more than once")

    series, frame = generate_uid(), generate_uid()

    def time(number: int):
        def change(dataset: Dataset, k: int) -> None:
            dataset.TemporalPositionIdentifier = number

        return change

    moving = tmp_path / "m"
    write_series(moving, VALUES + 100, series=series, frame=frame, change=time(2))
    for file in list(moving.iterdir()):
        file.rename(moving / f"late{file.name}")
    write_series(moving, VALUES, series=series, frame=frame, change=time(1))
    _refused(moving, r"2 pictures at each of 5 position\(s\): times, echoes or b-values, not slices")
    np.testing.assert_array_equal(
        all_planes(DicomReader(moving, frame=1)) - all_planes(DicomReader(moving, frame=0)), 100
    )
    assert DicomReader(moving, frame=1).header().of_several


def test_mosaics_and_frames_without_positions(tmp_path):
    def mosaic(dataset: Dataset, k: int) -> None:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]

    _refused(write_series(tmp_path / "mosaic", VALUES, change=mosaic), "mosaics")

    def cine(dataset: Dataset, k: int) -> None:
        del dataset.ImagePositionPatient, dataset.ImageOrientationPatient
        dataset.NumberOfFrames = 3
        dataset.PixelData = np.ascontiguousarray(np.moveaxis(VALUES[..., :3], 2, 0)).tobytes()

    folder = write_series(tmp_path / "cine", VALUES[..., :1], change=cine)
    _refused(folder, "3 frames without positions: they may be times")
    np.testing.assert_array_equal(all_planes(DicomReader(folder, frame=2))[..., 0], VALUES[..., 2])

    def lost(dataset: Dataset, k: int) -> None:
        del dataset.ImagePositionPatient

    _refused(write_series(tmp_path / "lost", VALUES, change=lost), "5 DICOM files have no positions")


@pytest.mark.parametrize("field", ["TotalPixelMatrixColumns", "DimensionOrganizationType"])
def test_the_tiles_of_a_slide_are_no_volume(tmp_path, field):
    """A slide of 16 x 6 pixels in two tiles, whose header says that it is a volume."""

    def slide(dataset: Dataset, k: int) -> None:
        del dataset.ImagePositionPatient, dataset.ImageOrientationPatient
        dataset.Modality, dataset.VolumetricProperties, dataset.NumberOfFrames = "SM", "VOLUME", 2
        setattr(dataset, field, 16 if field.startswith("Total") else "TILED_FULL")
        dataset.PixelData = np.ascontiguousarray(np.moveaxis(VALUES[..., :2], 2, 0)).tobytes()

    _refused(write_series(tmp_path / "slide", VALUES[..., :1], change=slide), "tiles of a slide.*export the slide, or")


def test_frames_of_an_enhanced_file_are_ordered_by_their_positions(tmp_path):
    order = [2, 0, 1]

    def enhance(dataset: Dataset, k: int) -> None:
        dataset.NumberOfFrames = 3
        dataset.PixelData = np.ascontiguousarray(np.moveaxis(VALUES[..., order], 2, 0)).tobytes()
        shared, frames = Dataset(), []
        measures, plane = Dataset(), Dataset()
        measures.PixelSpacing, measures.SliceThickness = dataset.PixelSpacing, 3
        plane.ImageOrientationPatient = dataset.ImageOrientationPatient
        shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([plane])
        for number in order:
            frame, position, scale = Dataset(), Dataset(), Dataset()
            base = [float(value) for value in dataset.ImagePositionPatient]
            position.ImagePositionPatient = [base[0], base[1], base[2] - 3 * number]
            scale.RescaleSlope, scale.RescaleIntercept = number + 1, 0
            frame.PlanePositionSequence, frame.PixelValueTransformationSequence = (
                Sequence([position]),
                Sequence([scale]),
            )
            frames.append(frame)
        dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = (
            Sequence([shared]),
            Sequence(frames),
        )
        del dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.PixelSpacing

    affine = np.diag([2.0, 1, -3, 1])  # the normal of rows to the front, columns to the right points to the feet
    (file,) = write_series(tmp_path / "s", VALUES[..., :1], affine, change=enhance).iterdir()
    reader = DicomReader(file)
    assert reader.header().spacing_mm == (2, 1, 3)
    np.testing.assert_array_equal(
        np.abs(all_planes(reader)), np.abs(_by_position(VALUES[..., :3] * np.array([1, 2, 3]), reader))
    )


def _by_position(values: np.ndarray, reader: DicomReader) -> np.ndarray:
    return values if reader.header().affine[2, 2] < 0 else values[..., ::-1]


def test_files_that_were_cut_off(tmp_path):
    folder = write_series(tmp_path / "s", VALUES)
    file = sorted(folder.iterdir())[2]
    content = file.read_bytes()
    for length in (len(content) - 20, 500, 200, 140):
        file.write_bytes(content[:length])
        _refused(folder, rf"'{file.name}' is a damaged or cut off DICOM file")


def test_a_dicomdir_and_a_folder_without_pictures(tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    FileSet().write(folder)
    _refused(folder / "DICOMDIR", "is a DICOMDIR, an index without pictures; give the folder")
    _refused(folder, r"holds no DICOM picture \(it holds 1 DICOMDIR\)")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="'empty' is neither NIfTI nor DICOM"):
        open_volume(tmp_path / "empty", VolumeOptions())


def test_a_series_without_a_transfer_syntax_or_preamble_is_read(tmp_path):
    def implicit(dataset: Dataset, k: int) -> None:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian

    folder = write_series(tmp_path / "s", VALUES, change=implicit)
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        start = file.read_bytes()
        file.write_bytes(start[132 + 12 + dataset.file_meta.FileMetaInformationGroupLength :])
    np.testing.assert_array_equal(np.abs(all_planes(DicomReader(folder))).sum(), np.abs(VALUES.astype(float)).sum())


def test_a_mask_is_written_as_nifti_where_the_series_lies_and_without_its_names(tmp_path):
    affine = np.array([[0, -0.7, 0, 5], [1.1, 0, 0, -6], [0, 0, 4, 7], [0, 0, 0, 1]], dtype=float)
    reader = DicomReader(write_series(tmp_path / "s", VALUES, affine))
    mask = (VALUES > 0).astype(np.uint8)
    reader.write_mask(tmp_path / "m.nii", mask)
    written = nib.load(tmp_path / "m.nii")
    for voxel in ((0, 0, 0), (5, 2, 3)):
        there = reader.header().affine @ [*voxel, 1]
        np.testing.assert_allclose(written.affine @ [voxel[1], voxel[0], voxel[2], 1], there, atol=1e-5)
        assert np.asarray(written.dataobj)[voxel[1], voxel[0], voxel[2]] == mask[voxel]
    assert int(written.header["sform_code"]) == int(written.header["qform_code"]) == 1
    assert CANARY.encode() not in (tmp_path / "m.nii").read_bytes()
