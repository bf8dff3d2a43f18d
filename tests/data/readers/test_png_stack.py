from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from mask_files import AFFINE, IDS, UNEVEN, VALUES, assert_refused, read_ids, write_ct, write_uneven
from PIL import Image
from volume_files import all_planes, write_nifti, write_series

from pfedsam.core.errors import DataError
from pfedsam.data.readers import open_mask, open_volume
from pfedsam.data.readers.dicom import DicomReader
from pfedsam.data.volume_options import VolumeOptions

CANNOT = (
    "the pictures of its mask cannot be assigned to the slices .* name each picture like the DICOM file of its slice"
)
BY_NUMBER = (
    "the pictures of the mask are named unlike the DICOM files, and were assigned to the slices by their numbers",
)


def _series(folder: Path, names: Sequence[str], instances: Sequence[int | None]) -> DicomReader:
    """The CT with a file name and an InstanceNumber for each slice, from the lowest position to the highest."""
    for plane, name, instance in zip(write_ct(folder).stack.planes, names, instances, strict=True):
        dataset = pydicom.dcmread(plane.path)
        dataset.InstanceNumber = instance
        plane.path.unlink()
        dataset.save_as(folder / name)
    return DicomReader(folder)


def _pictures(folder: Path, names: Sequence[str]) -> Path:
    """A picture of each slice of `IDS`, from the lowest position to the highest."""
    folder.mkdir()
    for k, name in enumerate(names):
        Image.fromarray(IDS[..., k]).save(folder / name, format="PNG")
    return folder


def test_pictures_belong_to_the_files_of_the_same_names(tmp_path):
    image = write_ct(tmp_path / "ct")
    path = _pictures(tmp_path / "names", [f"{plane.path.name}.png" for plane in image.stack.planes])
    mask = open_mask(path, image, VolumeOptions())
    np.testing.assert_array_equal(all_planes(mask, mask=True), IDS)
    assert mask.notes == ()
    nifti = open_volume(write_nifti(tmp_path / "a.nii", VALUES, AFFINE), VolumeOptions())
    assert_refused(path, nifti, "folder of pictures, whose order is only known")
    next(path.iterdir()).unlink()
    assert_refused(path, image, "the image has 5 slices, the folder of its mask 4 pictures")


def test_pictures_whose_palettes_number_the_ids_anew_are_refused(tmp_path):
    image = write_ct(tmp_path / "ct")
    names = [f"{plane.path.name}.png" for plane in image.stack.planes]
    path, colours = _pictures(tmp_path / "names", names), [(0, 0, 0), (255, 0, 0), (0, 255, 0)]
    for k, name in enumerate(names):
        own, present = [0, 1, 2] if k % 2 else [2, 0, 1], IDS[..., k] % 3  # the id of each class in the file
        picture = Image.fromarray(np.array(own, np.uint8)[present], "P")
        picture.putpalette([value for index in range(3) for value in colours[own.index(index)]])
        picture.save(path / name)
    assert_refused(
        path, image, r"id [0-2] has the colour .* in the palette of the mask .* save all masks with one palette"
    )


@pytest.mark.parametrize("endings", [("", ".png"), (".dcm", ".PNG"), (".IMA", ".dcm.png")])
def test_the_last_part_of_an_identifier_is_no_ending(tmp_path, endings):
    """The numbers of the names are in another order than the slices, so that only the names tell the order."""
    uids = [f"1.2.840.113619.2.{part}.1" for part in (77, 11, 55, 9, 60)]
    image = _series(tmp_path / "ct", [uid + endings[0] for uid in uids], [1, 2, 3, 4, 5])
    mask = open_mask(_pictures(tmp_path / "m", [uid + endings[1] for uid in uids]), image, VolumeOptions())
    np.testing.assert_array_equal(all_planes(mask, mask=True), IDS)
    assert mask.notes == ()


@pytest.mark.parametrize(
    ("files", "instances", "numbers"),
    [
        ("abcde", [5, 4, 3, 2, 1], [5, 4, 3, 2, 1]),  # instance 1 is the highest slice
        (["im5", "im4", "im3", "im2", "im1"], [5, 4, 3, 2, 1], [5, 4, 3, 2, 1]),
        (["im30", "im10", "im20", "im50", "im40"], [None] * 5, [30, 10, 20, 50, 40]),  # the numbers of the files
        ("abcde", [1, 2, 3, 4, 5], [0, 1, 2, 3, 4]),  # counted from 0, and all orders agree
        ("abcde", [8, 9, 10, 11, 12], [8, 9, 10, 11, 12]),  # slice10 is after slice9
    ],
)
def test_pictures_of_other_names_belong_to_the_instance_or_file_of_their_number(tmp_path, files, instances, numbers):
    image = _series(tmp_path / "ct", files, instances)
    mask = open_mask(_pictures(tmp_path / "m", [f"p2_slice{n}.png" for n in numbers]), image, VolumeOptions())
    np.testing.assert_array_equal(all_planes(mask, mask=True), IDS)
    assert mask.notes == BY_NUMBER


@pytest.mark.parametrize(
    ("files", "instances", "names"),
    [
        ("abcde", [5, 4, 3, 2, 1], [f"s{n}" for n in range(5)]),  # counted from 0: from the lowest or the first?
        (["im5", "im4", "im3", "im2", "im1"], [1, 2, 3, 4, 5], [f"s{n}" for n in range(1, 6)]),  # instance or file?
        ("abcde", [None] * 5, [f"s{n}" for n in range(5)]),
        ("abcde", [1, 2, 3, 4, 5], ["v", "w", "x", "y", "z"]),
        ("abcde", [1, 2, 3, 4, 5], ["1_1", "1_2", "2_1", "2_2", "3_1"]),
        ("abcde", [1, 2, 3, 4, 5], ["s1", "s2", "t3", "t4", "t5"]),
        ("abcde", [1, 2, 3, 4, 5], ["s1²", "s2²", "s3²", "s4²", "t5²"]),
    ],
)
def test_pictures_whose_order_is_not_clear_are_refused(tmp_path, files, instances, names):
    image = _series(tmp_path / "ct", files, instances)
    assert_refused(_pictures(tmp_path / "m", [f"{name}.png" for name in names]), image, CANNOT)


@pytest.mark.parametrize(("places", "nearest", "added"), UNEVEN)
def test_a_slice_that_a_series_lacks_has_the_picture_of_the_nearest_one(tmp_path, places, nearest, added):
    image = write_uneven(tmp_path / "ct", *places)
    ids = np.random.default_rng(4).integers(0, 3, (6, 8, len(places))).astype(np.uint8)
    (tmp_path / "m").mkdir()
    for k, plane in enumerate(image.stack.planes):
        Image.fromarray(ids[..., k]).save(tmp_path / "m" / f"{plane.path.name}.png")
    mask = open_mask(tmp_path / "m", image, VolumeOptions(resample=True))
    np.testing.assert_array_equal(all_planes(mask, mask=True), ids[..., list(nearest)])
    (note,) = mask.notes
    assert note.startswith(f"{added} of {len(nearest)} slices are not in the DICOM series and were interpolated")


def test_pictures_of_a_tilted_series_are_refused(tmp_path):
    """Its slices are shifted against each other on the right-angled grid, which has more rows than they have."""

    def tilt(dataset, k):
        dataset.ImagePositionPatient = [0, 2 * k, 4 * k]

    upright = np.array([[0, -1.0, 0, 0], [-2.0, 0, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
    image = DicomReader(write_series(tmp_path / "ct", VALUES, upright, change=tilt), resample=True)
    path = _pictures(tmp_path / "m", [f"{plane.path.name}.png" for plane in image.stack.planes])
    assert_refused(path, image, "the image has 8 x 10 pixels, its mask .* 8 x 6", resample=True)


def test_hidden_files_that_a_mac_writes_beside_pictures_are_no_slices(tmp_path):
    image = write_ct(tmp_path / "ct")
    path = _pictures(tmp_path / "m", [f"{plane.path.name}.png" for plane in image.stack.planes])
    for picture in list(path.iterdir()):
        (path / f"._{picture.name}").write_bytes(b"\0\5\x16\7" + bytes(100))
    np.testing.assert_array_equal(read_ids(path, image), IDS)
    for picture in path.glob("[!.]*"):
        picture.unlink()
    assert_refused(path, image, "'m' is no NIfTI|is damaged")


def test_one_picture_is_that_of_the_only_slice(tmp_path):
    for plane in (image := write_ct(tmp_path / "ct")).stack.planes[1:]:
        plane.path.unlink()
    path = _pictures(tmp_path / "m", ["mask.png"])
    np.testing.assert_array_equal(read_ids(path, DicomReader(image.stack.planes[0].path.parent)), IDS[..., :1])


def test_pictures_have_the_limit_of_other_pictures(tmp_path):
    image = write_ct(tmp_path / "ct")
    path = _pictures(tmp_path / "m", [f"{plane.path.name}.png" for plane in image.stack.planes])
    with pytest.raises(DataError, match="megapixels"):
        open_mask(path, image, VolumeOptions(), max_megapixels=1e-6)
