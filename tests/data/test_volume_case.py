from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from volume_files import write_nifti, write_series

from pfedsam.core.errors import DataError
from pfedsam.data.images import ImageOptions
from pfedsam.data.labels import LabelMap
from pfedsam.data.manifest import Case
from pfedsam.data.volume_case import load_volume_truth, open_case, open_case_mask
from pfedsam.data.volume_options import VolumeOptions

VALUES = np.random.default_rng(0).integers(0, 900, (6, 8, 5)).astype(np.int16)
AFFINE = np.diag([-1.0, -2, 5, 1])  # axes to the left, the back and the head, as slices are shown


def _case(folder: Path, mask: np.ndarray | None, affine: np.ndarray = AFFINE) -> Case:
    image = write_nifti(folder / "a.nii", VALUES, AFFINE)
    path = None if mask is None else write_nifti(folder / "m.nii", mask, affine)
    return Case("north", "p1", image, path, "p1", volume=True)


def test_the_truth_is_slice_by_slice_in_the_order_of_the_slices(tmp_path):
    ids = np.zeros((6, 8, 5), np.uint8)
    ids[1, 2, 3] = 4
    case = _case(tmp_path, ids)
    volume = open_case(case, ImageOptions(), VolumeOptions())
    truth = load_volume_truth(case, volume, LabelMap({"other": [1], "organ": [4]}), VolumeOptions())
    assert truth.shape == (5, 8, 6)
    assert np.argwhere(truth).tolist() == [[3, 2, 1]]
    assert truth[3, 2, 1] == 2


def test_errors_name_site_and_case(tmp_path):
    options = VolumeOptions()
    without = _case(tmp_path, None)
    with pytest.raises(DataError, match="site 'north', case 'p1': the image has no mask"):
        open_case_mask(without, open_case(without, ImageOptions(), options), options)
    moved = _case(tmp_path, np.zeros((6, 8, 5), np.uint8), AFFINE + np.eye(4, k=3) * 9)
    with pytest.raises(
        DataError, match=r"site 'north', case 'p1': the image begins at \(0, 0, 0\) mm, its mask at \(9"
    ):
        open_case_mask(moved, open_case(moved, ImageOptions(), options), options)
    unknown = _case(tmp_path, np.full((6, 8, 5), 3, np.uint8))
    with pytest.raises(DataError, match=r"site 'north', case 'p1': .*3"):
        load_volume_truth(unknown, open_case(unknown, ImageOptions(), options), LabelMap({"organ": [1]}), options)
    (tmp_path / "a.nii").unlink()
    with pytest.raises(DataError, match=r"site 'north', case 'p1': 'a.nii' cannot be opened"):
        open_case(unknown, ImageOptions(), options)


def test_a_mask_that_was_resampled_is_said_in_the_log(tmp_path, caplog):
    caplog.set_level("INFO")
    case, options = _case(tmp_path, np.zeros((6, 8, 4), np.uint8)), VolumeOptions(resample=True)
    mask = open_case_mask(case, open_case(case, ImageOptions(), options), options)
    assert mask.header().shape == (6, 8, 5)
    assert "site 'north', case 'p1': the mask was resampled to the grid of its image" in caplog.text


def test_sequences_are_channels_of_one_grid(tmp_path):
    first = _case(tmp_path, None)
    second = write_nifti(tmp_path / "b.nii", VALUES[::-1].copy(), AFFINE)
    case = Case("north", "p1", first.image, None, "p1", volume=True, sequences=(second,))
    pixels = open_case(case, ImageOptions(), VolumeOptions()).pixels(0)
    np.testing.assert_array_equal(pixels[..., 1], pixels[..., 0][:, ::-1])
    np.testing.assert_array_equal(pixels[..., 2], pixels[..., 1])


@pytest.mark.parametrize(
    ("values", "affine", "difference"),
    [
        (VALUES.transpose(1, 0, 2), AFFINE, "the image has 6 x 8 x 5 voxels, its sequence 8 x 6 x 5"),
        (VALUES, np.diag([-1.0, -2, 4, 1]), "the image's spacing is 1 x 2 x 5 mm, its sequence's 1 x 2 x 4 mm"),
        (
            VALUES,
            np.diag([1.0, -2, 5, 1]),
            "the axes of the image and of its sequence point elsewhere (largest difference 2,",
        ),
        (VALUES, AFFINE + np.eye(4, k=3) * 9, "the image begins at (0, 0, 0) mm, its sequence at (9, 0, 0) mm"),
    ],
)
def test_a_sequence_of_another_grid_is_not_called_a_mask(tmp_path, values, affine, difference):
    first, second = _case(tmp_path, None), write_nifti(tmp_path / "b.nii", values, affine)
    case = Case("north", "p1", first.image, None, "p1", volume=True, sequences=(second,))
    with pytest.raises(DataError) as caught:
        open_case(case, ImageOptions(), VolumeOptions())
    assert f"its sequence 'b.nii' has another grid than its first one ({difference}" in str(caught.value)
    assert "mask" not in str(caught.value)


def test_a_mask_that_is_a_picture_has_the_limit_of_pictures(tmp_path):
    image, mask = write_series(tmp_path / "ct", VALUES[..., :1]), tmp_path / "m.png"
    Image.fromarray(np.eye(6, 8, dtype=np.uint8)).save(mask)
    case, options = Case("north", "p1", image, mask, "p1", volume=True), VolumeOptions()
    whole = open_case_mask(case, open_case(case, ImageOptions(max_megapixels=48e-6), options), options)
    assert whole.mask_slice(0).sum() == 6
    with pytest.raises(DataError, match=r"case 'p1': .*'m\.png' has 8 x 6 pixels, more than 4.7e-05 megapixels"):
        open_case_mask(case, open_case(case, ImageOptions(max_megapixels=47e-6), options), options)
