from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from volume_files import write_nifti

from pfedsam.data.facts import gather_facts, value_range
from pfedsam.data.images import ImageOptions
from pfedsam.data.labels import LabelMap
from pfedsam.data.manifest import read_site

LABELS = LabelMap({"organ": [1]})


def _picture(folder: Path, name: str, image: np.ndarray, mask: np.ndarray) -> None:
    for part, values in (("images", image), ("masks", mask)):
        (folder / part).mkdir(exist_ok=True)
        Image.fromarray(values).save(folder / part / f"{name}.png")


def _facts(folder: Path):
    return gather_facts(read_site("a", folder, masks_required=False), LABELS, ImageOptions()).cases


def test_ids_are_counted_in_the_whole_mask_and_at_its_border(tmp_path):
    mask = np.zeros((4, 5), np.uint8)
    mask[1:, 1:3] = 1  # 6 pixels, 2 of them in the last row
    _picture(tmp_path, "p", np.arange(20, dtype=np.uint8).reshape(4, 5), mask)
    (found,) = _facts(tmp_path)
    assert (found.size, found.mask.pixels, found.labelled) == ((4, 5), {0: 14, 1: 6}, True)
    assert found.mask.share(frozenset({1})) == 0.3
    corners_once_a_line = 2 * (4 + 5)
    assert found.mask.share(frozenset({1}), edge=True) == 2 / corners_once_a_line


def test_equal_pictures_have_equal_digests_and_flat_ones_none(tmp_path):
    picture, mask = np.arange(20, dtype=np.uint8).reshape(4, 5), np.zeros((4, 5), np.uint8)
    for name, image in (("a", picture), ("b", picture), ("c", picture + 1), ("d", 0 * picture)):
        _picture(tmp_path, name, image, mask)
    a, b, c, d = (one.content for one in _facts(tmp_path))
    assert a == b != c
    assert d is None


def test_percentiles_are_parts_of_the_range():
    values = np.repeat(np.linspace(0, 1, 1001, dtype=np.float32)[None, :, None], 3, axis=2)
    assert value_range(values) == pytest.approx((0.01, 0.99, 0.999), abs=1e-6)


def test_what_is_wrong_with_one_case_does_not_hide_the_others(tmp_path):
    picture = np.arange(20, dtype=np.uint8).reshape(4, 5)
    _picture(tmp_path, "a", picture, np.full((4, 5), 7, np.uint8))
    _picture(tmp_path, "b", picture, np.zeros((4, 6), np.uint8))
    _picture(tmp_path, "c", picture, np.ones((4, 5), np.uint8))
    (tmp_path / "images/d.png").write_bytes(b"")
    a, b, c, d = _facts(tmp_path)
    assert "site 'a', case 'a'" in a.problems[0]
    assert "7" in a.problems[0]
    assert "its mask 6 x 4" in b.problems[0]
    assert c.problems == ()
    assert len(d.problems) == 2  # image and mask
    assert (d.size, d.labelled) == (None, False)


def test_a_mask_of_a_volume_has_a_digest_where_it_is_large_enough_to_tell_patients_apart(tmp_path):
    values, mask = np.arange(240, dtype=np.int16).reshape(6, 8, 5), np.zeros((6, 8, 5), np.uint8)
    for name, voxels in (("a", 49), ("b", 50), ("c", 50), ("d", 51)):
        ids = mask.copy()
        ids.flat[:voxels] = 1
        write_nifti(tmp_path / f"images/{name}.nii", values, np.diag([1, 2, 5, 1]))
        write_nifti(tmp_path / f"masks/{name}.nii", ids, np.diag([1, 2, 5, 1]))
    a, b, c, d = _facts(tmp_path)
    assert a.mask.content is None
    assert b.mask.content == c.mask.content != d.mask.content
    assert (b.size, b.spacing_mm, b.mask.pixels) == ((5, 8, 6), (5, 2, 1), {0: 190, 1: 50})
