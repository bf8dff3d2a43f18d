import tracemalloc
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from mask_files import AFFINE, IDS, VALUES, assert_refused, moved, read_ids, write_ct, write_uneven
from PIL import Image
from volume_files import all_planes, write_nifti

from pfedsam.data.readers import open_mask, open_volume
from pfedsam.data.readers.base import Header
from pfedsam.data.readers.masks import fit_mask, small_ids
from pfedsam.data.volume_options import VolumeOptions

ORIENTATIONS = [
    (order, signs) for order in ((0, 1, 2), (2, 0, 1), (1, 0, 2)) for signs in ((1, 1, 1), (-1, 1, -1), (1, -1, 1))
]


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


@pytest.mark.parametrize("about", [0, 1, 2])
@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_a_mask_on_a_grid_turned_by_45_degrees_is_placed_whatever_the_rounding(tmp_path, order, signs, about):
    """Two axes of the grid are at 45 degrees to two of the body, so that each of them is as near to the one as to the other."""
    turn, s = np.eye(4), np.sqrt(0.5)
    first, second = (axis for axis in range(3) if axis != about)
    turn[np.ix_((first, second), (first, second))] = [[s, -s], [s, s]]
    image = open_volume(write_nifti(tmp_path / "a.nii", VALUES, turn @ AFFINE), VolumeOptions())
    ids, affine = _turned(IDS, AFFINE, order, signs)
    for seed in range(4):
        rounded = turn @ affine
        rounded[:3, :3] += np.random.default_rng(seed).normal(0, 1e-6, (3, 3))
        path = write_nifti(tmp_path / "m.nii", ids, rounded)
        np.testing.assert_array_equal(read_ids(path, image), IDS)


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
    assert_refused(write_nifti(tmp_path / "m.nii", IDS, moved(**change)), image, message)
    within = {name: 1 + (value - 1) / 3 if name == "scale" else value / 3 for name, value in change.items()}
    np.testing.assert_array_equal(read_ids(write_nifti(tmp_path / "n.nii", IDS, moved(**within)), image), IDS)


def test_another_shape_is_refused_and_resampled_when_asked(tmp_path):
    image = open_volume(write_nifti(tmp_path / "a.nii", VALUES, AFFINE), VolumeOptions())
    fine = AFFINE.copy()
    fine[:3, 2] /= 2
    path = write_nifti(tmp_path / "m.nii", np.repeat(IDS, 2, axis=2)[..., :-1], fine)
    assert_refused(
        path,
        image,
        "the image has 6 x 8 x 5 voxels, its mask 6 x 8 x 9; export the mask on the grid .* data.volume.resample: true",
    )
    np.testing.assert_array_equal(read_ids(path, image, resample=True), IDS)


def test_a_mask_of_small_voxels_is_placed_at_the_nearest_voxel(tmp_path):
    """With voxels of 0.05 mm, 0.55 mm are 11 voxels and 0.8 mm are 16."""
    small, ids = np.diag([0.05, 0.05, 0.05, 1]), np.zeros((30, 30, 30), np.uint8)
    ids[5:10, 5:10, 5:10] = 1
    image = open_volume(write_nifti(tmp_path / "a.nii", ids.astype(np.int16), small), VolumeOptions())
    shifted = small.copy()
    shifted[:3, 3] = 0.55, 0, 0.8
    path = write_nifti(tmp_path / "m.nii", ids, shifted)
    assert_refused(path, image, r"the image begins at \(0, 0, 0\) mm, its mask at \(0.55, 0, 0.8\) mm")
    found = np.argwhere(read_ids(path, image, resample=True))
    assert found.min(axis=0).tolist() == [16, 5, 21]
    assert len(found) == 125
    shifted[:3, 3] = 0.024, -0.024, 0.024  # less than half a voxel
    np.testing.assert_array_equal(read_ids(write_nifti(tmp_path / "n.nii", ids, shifted), image), ids)


@pytest.mark.parametrize("lost", [np.eye(4), np.diag([-1.0, -1, 1, 1]) @ moved(origin=100)], ids=["identity", "LPS"])
def test_a_mask_that_lies_off_its_image_is_refused_where_it_would_be_resampled(tmp_path, lost):
    image = open_volume(write_nifti(tmp_path / "a.nii", VALUES, moved(origin=100)), VolumeOptions())
    path = write_nifti(tmp_path / "m.nii", IDS, lost)
    message = f"its mask lies outside its image with all of its {np.count_nonzero(IDS)} voxels.*export the mask"
    assert_refused(path, image, message, resample=True)
    empty = write_nifti(tmp_path / "n.nii", np.zeros_like(IDS), lost)
    assert not read_ids(empty, image, resample=True).any()  # there is no foreground that could be lost


def test_a_mask_of_a_wider_field_of_view_is_read_with_the_number_of_voxels_beside_the_image(tmp_path):
    image = open_volume(write_nifti(tmp_path / "a.nii", VALUES, AFFINE), VolumeOptions())
    wide, affine = np.pad(IDS, ((2, 2), (0, 0), (0, 0))), AFFINE.copy()
    wide[0, :3, 0] = wide[-1, 0, 0] = 1  # four voxels in the margin
    affine[0, 3] += 4  # two voxels of -2 mm before the first one
    mask = open_mask(write_nifti(tmp_path / "m.nii", wide, affine), image, VolumeOptions(resample=True))
    np.testing.assert_array_equal(all_planes(mask, mask=True), IDS)
    total = np.count_nonzero(IDS) + 4
    assert mask.notes[1:] == (f"4 of {total} voxels of the mask lie outside its image and are left out",)


def test_a_nifti_mask_of_an_uneven_series_is_read_on_its_even_grid_alone(tmp_path):
    """NIfTI has one distance of slices: with those of the series, a slice after the gap would be 3 mm too low."""
    image = write_uneven(tmp_path / "ct", 0, 3, 6, 12, 15)
    affine = image.header().affine[:, [1, 0, 2, 3]]
    ids = np.random.default_rng(3).integers(0, 3, (8, 6, 6)).astype(np.uint8)
    even = write_nifti(tmp_path / "even.nii", ids, affine)
    np.testing.assert_array_equal(read_ids(even, image, resample=True), ids.swapaxes(0, 1))
    for distance in (3, 3.75):  # that of neighbours, or the mean
        path = write_nifti(tmp_path / "m.nii", ids[..., :5], affine @ np.diag([1, 1, distance / 3, 1]))
        assert_refused(
            path, image, "its mask has the 5 slices of the DICOM series, but at even distances", resample=True
        )


def test_a_mask_is_resampled_in_the_memory_of_a_few_copies_of_its_file(tmp_path):
    ids = np.zeros((128, 128, 64), np.uint8)
    ids[10:50, 20:60, 5:40], ids[0, 0, 0] = 1, 255
    fine = AFFINE @ np.diag([1, 1, 0.5, 1])
    image = open_volume(write_nifti(tmp_path / "a.nii", np.zeros((128, 128, 32), np.uint8), AFFINE), VolumeOptions())
    path = write_nifti(tmp_path / "m.nii", ids, fine)
    tracemalloc.start()
    mask = open_mask(path, image, VolumeOptions(resample=True))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * ids.nbytes
    np.testing.assert_array_equal(all_planes(mask, mask=True), ids[..., ::2])


@pytest.mark.parametrize("values", [(3, 300), (3, 70000), (-1, 3)])
def test_ids_of_any_size_keep_their_value_where_a_mask_is_resampled(values):
    """Each slice has a type of its own before they are put together."""
    slices = [np.full((2, 2), value) for value in values]
    reader = SimpleNamespace(
        header=lambda: Header("NIfTI", (2, 2, 2), np.eye(4), (1, 1, 1), np.dtype(np.int64)),
        mask_slice=slices.__getitem__,
    )
    image = Header("NIfTI", (2, 2, 4), np.diag([1, 1, 0.5, 1]), (1, 1, 0.5), np.dtype(np.int16))
    mask = fit_mask(reader, image, resample=True)
    assert set(all_planes(mask, mask=True).ravel().tolist()) - {0} == set(values)


def _without_orientation(header) -> None:
    header["sform_code"] = header["qform_code"] = 0


@pytest.mark.parametrize("which", ["image", "mask", "both"])
def test_without_an_orientation_of_one_file_voxels_keep_their_order(tmp_path, which):
    """nibabel centres such a file and lets x grow to the left, which on this grid would be the mask's mirror image."""
    centred = np.array([[2.0, 0, 0, -5], [0, 1.5, 0, -5.25], [0, 0, 4, -8], [0, 0, 0, 1]])
    changes = {name: _without_orientation if which in (name, "both") else None for name in ("image", "mask")}
    image = open_volume(write_nifti(tmp_path / "a.nii", VALUES, centred, changes["image"]), VolumeOptions())
    path = write_nifti(tmp_path / "m.nii", IDS, centred, changes["mask"])
    np.testing.assert_array_equal(read_ids(path, image), IDS)
    notes = open_mask(path, image, VolumeOptions()).notes
    assert (notes == ()) == (which == "both")
    assert_refused(
        write_nifti(tmp_path / "n.nii", IDS[:5], centred, changes["mask"]), image, "has 6 x 8 x 5 voxels", resample=True
    ) if which != "both" else None


def test_a_mask_without_orientation_is_refused_for_a_series(tmp_path):
    path = write_nifti(tmp_path / "m.nii", np.swapaxes(IDS, 0, 1), AFFINE, _without_orientation)
    assert_refused(path, write_ct(tmp_path / "ct"), "its mask has no orientation")


def test_what_is_no_mask_is_told(tmp_path):
    image = write_ct(tmp_path / "ct")
    assert_refused(tmp_path / "ct", image, "holds 0 DICOM-SEG and 0 RTSTRUCT; give exactly one")
    Image.fromarray(IDS[..., 0]).save(tmp_path / "m.png")
    assert_refused(tmp_path / "m.png", image, "'m.png' is a picture, its image a volume")
    assert_refused(tmp_path / "none.nii", image, "'none.nii' cannot be opened")


@pytest.mark.parametrize(
    ("ids", "kind"),
    [([0, 255], "uint8"), ([0, 256], "uint16"), ([0, 65535], "uint16"), ([0, 65536], "int64"), ([-1, 2], "int64")],
)
def test_the_smallest_type_keeps_every_id(ids, kind):
    found = small_ids(np.array(ids, np.int64))
    assert (found.tolist(), found.dtype) == (ids, kind)
