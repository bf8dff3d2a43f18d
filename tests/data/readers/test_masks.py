from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydantic import ValidationError
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid
from volume_files import all_planes, write_nifti, write_series

from pfedsam.core.errors import DataError
from pfedsam.data.labels import LabelMap
from pfedsam.data.readers import open_mask, open_volume
from pfedsam.data.readers.dicom import DicomReader
from pfedsam.data.readers.seg_write import write_seg
from pfedsam.data.volume_options import VolumeOptions

VALUES = np.random.default_rng(0).integers(-500, 500, (6, 8, 5)).astype(np.int16)
IDS = np.random.default_rng(1).integers(0, 3, (6, 8, 5)).astype(np.uint8)
AFFINE = np.array([[-2.0, 0, 0, 1], [0, 1.5, 0, 2], [0, 0, 4, 3], [0, 0, 0, 1]])
ORIENTATIONS = [
    (order, signs) for order in ((0, 1, 2), (2, 0, 1), (1, 0, 2)) for signs in ((1, 1, 1), (-1, 1, -1), (1, -1, 1))
]


def _mask(path: Path, image, **options) -> np.ndarray:
    return all_planes(open_mask(path, image, VolumeOptions(**options)), mask=True)


def _refused(path: Path, image, match: str, **options) -> None:
    with pytest.raises(DataError, match=match) as caught:
        _mask(path, image, **options)
    assert "Canary" not in str(caught.value)


def _turned(values: np.ndarray, affine: np.ndarray, order, signs) -> tuple[np.ndarray, np.ndarray]:
    moved = nib.as_closest_canonical(nib.Nifti1Image(values, affine))
    image = moved.as_reoriented(np.array(list(zip(order, signs, strict=True))))
    return np.asarray(image.dataobj), image.affine


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_a_nifti_mask_that_stores_the_same_grid_in_another_order_is_placed_exactly(tmp_path, order, signs):
    image = open_volume(write_nifti(tmp_path / "a.nii", VALUES, AFFINE), VolumeOptions())
    ids, affine = _turned(IDS, AFFINE, order, signs)
    mask = open_mask(write_nifti(tmp_path / "m.nii.gz", ids, affine), image, VolumeOptions())
    np.testing.assert_array_equal(all_planes(mask, mask=True), IDS)
    for axis in range(3):
        np.testing.assert_array_equal(mask.mask_slice(2, axis), np.take(IDS, 2, axis=axis))


def _shifted(**change: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] += change.get("origin", 0)
    affine[:3, 1] *= change.get("scale", 1)
    turn = change.get("turn", 0)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine[:3, :3] = rotation @ affine[:3, :3]
    return affine


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"origin": 1.1}, r"the image begins at \(1, 2, 3\) mm, its mask at \(2.1, 2, 3\) mm"),
        ({"scale": 1.02}, r"the image's spacing is 2 x 1.5 x 4 mm, its mask's 2 x 1.53 x 4 mm"),
        ({"turn": 0.02}, r"point elsewhere \(largest difference 0.02, allowed 0.01\)"),
    ],
)
def test_a_mask_of_another_grid_is_refused_with_both_numbers(tmp_path, change, message):
    image = open_volume(write_nifti(tmp_path / "a.nii", VALUES, AFFINE), VolumeOptions())
    _refused(write_nifti(tmp_path / "m.nii", IDS, _shifted(**change)), image, message)
    within = {name: 1 + (value - 1) / 3 if name == "scale" else value / 3 for name, value in change.items()}
    np.testing.assert_array_equal(_mask(write_nifti(tmp_path / "n.nii", IDS, _shifted(**within)), image), IDS)


def test_another_shape_is_refused_and_resampled_when_asked(tmp_path):
    image = open_volume(write_nifti(tmp_path / "a.nii", VALUES, AFFINE), VolumeOptions())
    fine = AFFINE.copy()
    fine[:3, 2] /= 2
    path = write_nifti(tmp_path / "m.nii", np.repeat(IDS, 2, axis=2)[..., :-1], fine)
    _refused(
        path,
        image,
        "the image has 6 x 8 x 5 voxels, its mask 6 x 8 x 9; export the mask on the grid .* data.volume.resample: true",
    )
    np.testing.assert_array_equal(_mask(path, image, resample=True), IDS)


def _series(tmp_path: Path, **options) -> DicomReader:
    return DicomReader(
        write_series(tmp_path / "ct", VALUES, AFFINE[:, [1, 0, 2, 3]] * [[1], [1], [-1], [1]]), **options
    )


def _segment(number: int) -> hd.seg.SegmentDescription:
    return hd.seg.SegmentDescription(
        number, f"Organ {number}", codes.SCT.Tissue, codes.SCT.Tissue, hd.seg.SegmentAlgorithmTypeValues.MANUAL
    )


def _write(path: Path, image: DicomReader, pixels: np.ndarray, kind: str, **more) -> Path:
    sources = [pydicom.dcmread(plane.path) for plane in image.stack.planes]
    hd.seg.Segmentation(
        sources,
        pixels,
        kind,
        [_segment(1), _segment(2)],
        generate_uid(),
        9,
        generate_uid(),
        1,
        "m",
        "m",
        "1",
        "1",
        **more,
    ).save_as(path)
    return path


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_dicom_seg_of_ids(tmp_path, kind):
    image = _series(tmp_path)
    path = _write(tmp_path / "m.dcm", image, np.moveaxis(IDS, 2, 0), kind)
    np.testing.assert_array_equal(_mask(path, image), IDS)
    np.testing.assert_array_equal(_mask(path, image, segments={"organ 2": 7}), 7 * (IDS == 2))
    _refused(path, image, "2 named parts, none of which data.volume.segments names", segments={"liver": 1})


def test_frames_of_a_seg_are_placed_by_position_and_empty_ones_may_be_missing(tmp_path):
    image = _series(tmp_path)
    ids = IDS.copy()
    ids[..., [0, 3]] = 0
    path = _write(tmp_path / "m.dcm", image, np.moveaxis(ids, 2, 0), "BINARY")
    np.testing.assert_array_equal(_mask(path, image), ids)
    flipped = write_nifti(tmp_path / "a.nii", np.asarray(VALUES[::-1]), _flipped(image.header().affine))
    np.testing.assert_array_equal(_mask(path, open_volume(flipped, VolumeOptions())), ids[::-1])


def _flipped(affine: np.ndarray) -> np.ndarray:
    turned = affine.copy()
    turned[:, 3] += turned[:, 0] * 5
    turned[:, 0] *= -1
    return turned


def test_a_fractional_seg_is_a_share_and_not_an_id(tmp_path):
    image = _series(tmp_path)
    share = np.zeros((5, 6, 8, 2))
    share[..., 0], share[0, 0, 0, 0] = 0.3, 0.8
    path = _write(tmp_path / "m.dcm", image, share, "FRACTIONAL")
    found = _mask(path, image)
    assert found[0, 0, 0] == 1
    assert found.sum() == 1
    assert _mask(path, image, fractional_threshold=0.2).sum() == found.size


def test_segments_that_overlap_are_named(tmp_path):
    image = _series(tmp_path)
    both = np.zeros((5, 6, 8, 2), np.uint8)
    both[1:3, ..., 0], both[2, :2, :, 1] = 1, 1
    path = _write(tmp_path / "m.dcm", image, both, "BINARY")
    _refused(path, image, "parts that overlap in 16 voxels, .* data.volume.segments, the one that wins last")
    found = _mask(path, image, segments={"Organ 1": 1, "Organ 2": 2})
    assert [(found == value).sum() for value in (1, 2)] == [80, 16]
    assert (_mask(path, image, segments={"Organ 2": 2, "Organ 1": 1}) == 2).sum() == 0


def test_segments_that_cross_keep_both_and_are_regions_of_sums(tmp_path):
    image = _series(tmp_path)
    both = np.zeros((5, 6, 8, 2), np.uint8)
    both[1:3, ..., 0], both[2:4, :2, :, 1] = 1, 1
    path = _write(tmp_path / "m.dcm", image, both, "BINARY")
    found = _mask(path, image, segments={"Organ 1": 1, "Organ 2": 2}, sum_segments=True)
    np.testing.assert_array_equal(found, np.moveaxis(both[..., 0] + 2 * both[..., 1], 0, 2))
    assert {value: int((found == value).sum()) for value in (1, 2, 3)} == {1: 80, 2: 16, 3: 16}
    regions = LabelMap({"one": [1, 3], "two": [2, 3]}, overlap=True)
    np.testing.assert_array_equal(regions.to_classes(found) & 2 > 0, np.moveaxis(both[..., 1] > 0, 0, 2))


@pytest.mark.parametrize("segments", [{}, {"a": 1, "b": 3}, {"a": 2, "b": 2}])
def test_sums_need_ids_that_they_tell_apart(segments):
    with pytest.raises(ValidationError, match="each with an id of its own"):
        VolumeOptions(segments=segments, sum_segments=True)


def test_a_seg_of_another_series_is_refused(tmp_path):
    image = _series(tmp_path)
    path = _write(tmp_path / "m.dcm", image, np.moveaxis(IDS, 2, 0), "BINARY")
    other = DicomReader(write_series(tmp_path / "other", VALUES))
    _refused(path, other, "another frame of reference")
    frame = image.header().frame_of_reference
    away = DicomReader(write_series(tmp_path / "away", VALUES, _shifted(origin=7)[:, [1, 0, 2, 3]], frame=frame))
    _refused(path, away, "which is no slice of it; export the segmentation of this image")


def test_a_written_seg_is_read_back_by_highdicom_and_by_us(tmp_path):
    image = _series(tmp_path)
    write_seg(tmp_path / "m.dcm", image, IDS, ("liver", "odd one"))
    np.testing.assert_array_equal(_mask(tmp_path / "m.dcm", image), IDS)
    read = hd.seg.segread(tmp_path / "m.dcm")
    pixels = read.get_volume(combine_segments=True).array
    sources = [plane.instance for plane in image.stack.planes]
    by_source = read.get_pixels_by_source_instance(sources, combine_segments=True)
    np.testing.assert_array_equal(np.moveaxis(by_source, 0, 2), IDS)
    assert pixels.sum() == IDS.sum()
    assert read.FrameOfReferenceUID == image.header().frame_of_reference
    assert read.get_segment_description(1).segmented_property_type.value == "10200004"
    assert read.get_segment_description(2).segment_label == "odd one"


def test_a_written_seg_may_be_empty(tmp_path):
    image = _series(tmp_path)
    write_seg(tmp_path / "e.dcm", image, 0 * IDS, ("liver", "odd one"))
    read = hd.seg.segread(tmp_path / "e.dcm")
    assert list(read.segment_numbers) == [1, 2]
    assert read.get_volume(combine_segments=True).array.sum() == 0
    assert not _mask(tmp_path / "e.dcm", image).any()


def test_png_stacks(tmp_path):
    image = _series(tmp_path)
    by_name, by_number = tmp_path / "names", tmp_path / "numbers"
    by_name.mkdir()
    by_number.mkdir()
    for k, plane in enumerate(image.stack.planes):
        Image.fromarray(IDS[..., k]).save(by_name / f"{plane.path.stem}.png")
        Image.fromarray(IDS[..., k]).save(by_number / f"slice{8 + k}.png")
    np.testing.assert_array_equal(_mask(by_name, image), IDS)
    np.testing.assert_array_equal(_mask(by_number, image), IDS)
    nifti = open_volume(write_nifti(tmp_path / "a.nii", VALUES, AFFINE), VolumeOptions())
    _refused(by_name, nifti, "folder of pictures, which does not say how they lie")
    (by_name / f"{image.stack.planes[0].path.stem}.png").unlink()
    _refused(by_name, image, "the image has 5 slices, the folder of its mask 4 pictures")


def test_what_is_no_mask(tmp_path):
    image = _series(tmp_path)
    _refused(tmp_path / "ct", image, "holds 0 DICOM-SEG and 0 RTSTRUCT; give exactly one")
    Image.fromarray(IDS[..., 0]).save(tmp_path / "m.png")
    _refused(tmp_path / "m.png", image, "'m.png' is a picture, its image a volume")
    _refused(tmp_path / "none.nii", image, "'none.nii' cannot be opened")
