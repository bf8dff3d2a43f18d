"""Both parts number their patients from 0, so a patient is the part and the number."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pfedsam.data.layouts import write_sites
from pfedsam.data.layouts.prostate_slices import LAYOUT

PATIENTS = {
    "RUNMC": {"train_00_00": "train_00", "train_00_01": "train_00", "train_01_00": "train_01", "test_00_00": "test_00"}
}
CLASSES = {"prostate": [0], "background": [255]}


@pytest.fixture
def source(tmp_path: Path, picture: Callable[..., None]) -> Path:
    root = tmp_path / "source"
    root.mkdir()
    for name in ("train/{}/00_00", "train/{}/00_01", "train/{}/01_00", "test/{}/00_00"):
        for kind in ("image", "mask"):
            picture(root / "RUNMC" / f"{name.format(kind)}.png")
    return root


def test_sites_patients_and_classes_are_right(source: Path, imported: Callable[..., Path]) -> None:
    imported(LAYOUT, source, PATIENTS, CLASSES)


def test_masks_without_an_image_are_told(source: Path, tmp_path: Path) -> None:
    assert list(write_sites(LAYOUT, source, tmp_path / "before").notes) == []
    (source / "RUNMC/test/image/00_00.png").unlink()
    assert list(write_sites(LAYOUT, source, tmp_path / "after").notes) == [
        "1 mask(s) without an image, or without a line in the table of the data set, are left out: RUNMC/test/mask/00_00.png"
    ]
