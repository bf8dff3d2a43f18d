"""Both frames of a heart are one patient; ids are not those of M&Ms."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pfedsam.data.layouts import write_sites
from pfedsam.data.layouts.acdc import LAYOUT

PATIENTS = {"acdc": {"patient001_frame01": "patient001", "patient001_frame12": "patient001"}}
CLASSES = {"left_ventricle": [3], "myocardium": [2], "right_ventricle": [1]}


@pytest.fixture
def source(tmp_path: Path, volume: Callable[..., None], values: np.ndarray) -> Path:
    root = tmp_path / "source"
    root.mkdir()
    for frame in ("01", "12"):
        volume(root / "training" / "patient001" / f"patient001_frame{frame}.nii.gz")
        volume(root / "training" / "patient001" / f"patient001_frame{frame}_gt.nii.gz", (values % 4).astype(np.uint8))
    volume(root / "training" / "patient001" / "patient001_4d.nii.gz")
    return root


def test_sites_patients_and_classes_are_right(source: Path, imported: Callable[..., Path]) -> None:
    imported(LAYOUT, source, PATIENTS, CLASSES)


def test_masks_without_an_image_are_told(source: Path, tmp_path: Path) -> None:
    assert list(write_sites(LAYOUT, source, tmp_path / "before").notes) == []
    (source / "training/patient001/patient001_frame12.nii.gz").unlink()
    assert list(write_sites(LAYOUT, source, tmp_path / "after").notes) == [
        "1 mask(s) without an image, or without a line in the table of the data set, are left out: "
        "training/patient001/patient001_frame12_gt.nii.gz"
    ]
