import numpy as np
from mask_files import AFFINE, IDS, VALUES, assert_refused, read_ids, write_ct
from PIL import Image
from volume_files import write_nifti

from pfedsam.data.readers import open_volume
from pfedsam.data.volume_options import VolumeOptions


def test_png_stacks(tmp_path):
    image = write_ct(tmp_path / "ct")
    by_name, by_number = tmp_path / "names", tmp_path / "numbers"
    by_name.mkdir()
    by_number.mkdir()
    for k, plane in enumerate(image.stack.planes):
        Image.fromarray(IDS[..., k]).save(by_name / f"{plane.path.stem}.png")
        Image.fromarray(IDS[..., k]).save(by_number / f"slice{8 + k}.png")
    np.testing.assert_array_equal(read_ids(by_name, image), IDS)
    np.testing.assert_array_equal(read_ids(by_number, image), IDS)
    nifti = open_volume(write_nifti(tmp_path / "a.nii", VALUES, AFFINE), VolumeOptions())
    assert_refused(by_name, nifti, "folder of pictures, whose order is only known")
    (by_name / f"{image.stack.planes[0].path.stem}.png").unlink()
    assert_refused(by_name, image, "the image has 5 slices, the folder of its mask 4 pictures")


def test_a_raised_number_in_a_name_is_no_number(tmp_path):
    image, masks = write_ct(tmp_path / "ct"), tmp_path / "masks"
    masks.mkdir()
    for k in range(5):
        Image.fromarray(IDS[..., k]).save(masks / f"{8 + k}².png")
    np.testing.assert_array_equal(read_ids(masks, image), IDS)
