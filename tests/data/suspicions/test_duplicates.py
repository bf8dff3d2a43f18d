import faulty_sites as faulty
import numpy as np
from PIL import Image


def test_blank_pictures_are_not_equal_pictures(tmp_path):
    faulty.clean_study(tmp_path)
    for name in ("c00", "c01", "c02"):
        Image.fromarray(np.full((48, 56), 200, np.uint8)).save(tmp_path / "b" / "images" / f"{name}.png")
    assert faulty.read_and_check(tmp_path).warnings == ()
