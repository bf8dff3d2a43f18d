"""GIF, PPM and TIFF become PNG, and no pixel moves."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pfedsam.data.images import read_mask
from pfedsam.data.layouts import write_sites
from pfedsam.data.layouts.retina import LAYOUT

PATIENTS = {
    "drive": {"21": "21"},
    "stare": {"im0001": "im0001"},
    "chase": {"Image_01L": "Image_01", "Image_01R": "Image_01"},
    "hrf": {"01_h": "01_h"},
}
CLASSES = {"vessel": [255]}


@pytest.fixture
def source(tmp_path: Path, picture: Callable[..., None], ids: np.ndarray) -> Path:
    root = tmp_path / "source"
    root.mkdir()
    picture(root / "DRIVE" / "training" / "images" / "21_training.tif", np.full((6, 8, 3), 80, np.uint8))
    picture(root / "DRIVE" / "training" / "1st_manual" / "21_manual1.gif")
    picture(root / "STARE" / "all" / "im0001.ppm", np.full((6, 8, 3), 80, np.uint8))
    picture(root / "STARE" / "labels" / "im0001.ah.ppm", np.stack([ids] * 3, axis=2))
    for side in "LR":
        picture(root / "CHASE_DB1" / f"Image_01{side}.jpg", np.full((6, 8, 3), 80, np.uint8))
        picture(root / "CHASE_DB1" / f"Image_01{side}_1stHO.png")
    picture(root / "HRF" / "images" / "01_h.jpg", np.full((6, 8, 3), 80, np.uint8))
    picture(root / "HRF" / "manual1" / "01_h.tif")
    return root


def test_sites_patients_and_classes_are_right(source: Path, imported: Callable[..., Path], ids: np.ndarray) -> None:
    out = imported(LAYOUT, source, PATIENTS, CLASSES)
    for site in ("drive", "stare", "hrf"):
        [mask] = (out / site / "masks").iterdir()
        assert np.array_equal(read_mask(mask), ids)


def test_masks_without_an_image_are_told(source: Path, tmp_path: Path) -> None:
    assert list(write_sites(LAYOUT, source, tmp_path / "before").notes) == []
    (source / "DRIVE/training/images/21_training.tif").unlink()
    (source / "STARE/all/im0001.ppm").unlink()
    (source / "CHASE_DB1/Image_01L.jpg").unlink()
    assert list(write_sites(LAYOUT, source, tmp_path / "after").notes) == [
        "3 mask(s) without an image, or without a line in the table of the data set, are left out: "
        "CHASE_DB1/Image_01L_1stHO.png, DRIVE/training/1st_manual/21_manual1.gif, STARE/labels/im0001.ah.ppm"
    ]
