"""Both eyes of a person are one patient."""

from collections.abc import Callable
from pathlib import Path

import pytest

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
