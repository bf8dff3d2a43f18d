"""Both eyes of a person are one patient."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pfedsam.data.layouts import write_sites
from pfedsam.data.layouts.fundus import LAYOUT
from pfedsam.data.manifest import read_site

PATIENTS = {"rim_one_r3": {"G-1-L": "G-1", "G-1-R": "G-1", "G-2-L": "G-2"}}
CLASSES = {"rim": [128], "cup": [0], "background": [255]}


@pytest.fixture
def source(tmp_path: Path, picture: Callable[..., None]) -> Path:
    root = tmp_path / "source"
    root.mkdir()
    for name in ("train/ROIs/{}/G-1-L", "test/ROIs/{}/G-1-R", "train/ROIs/{}/G-2-L"):
        for kind in ("image", "mask"):
            picture(root / "Domain2" / f"{name.format(kind)}.png")
    return root


def test_sites_patients_and_classes_are_right(source: Path, imported: Callable[..., Path]) -> None:
    out = imported(LAYOUT, source, PATIENTS, CLASSES)
    assert {case.id: case.patient for case in read_site("rim", out / "rim_one_r3").cases} == PATIENTS["rim_one_r3"]


def test_masks_without_an_image_are_told(source: Path, tmp_path: Path) -> None:
    assert list(write_sites(LAYOUT, source, tmp_path / "before").notes) == []
    (source / "Domain2/train/ROIs/image/G-2-L.png").unlink()
    assert list(write_sites(LAYOUT, source, tmp_path / "after").notes) == [
        "1 mask(s) without an image, or without a line in the table of the data set, are left out: Domain2/train/ROIs/mask/G-2-L.png"
    ]
