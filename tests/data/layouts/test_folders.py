"""What has our form already; patients are not named."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pfedsam.data.layouts.folders import LAYOUT

PATIENTS = {"north": {"a": "", "b": ""}, "south_side": {"c": ""}}
CLASSES = {"class_1": [1], "class_2": [2], "class_255": [255]}


@pytest.fixture
def source(tmp_path: Path, volume: Callable[..., None], picture: Callable[..., None], values: np.ndarray) -> Path:
    root = tmp_path / "source"
    root.mkdir()
    for name in ("a", "b"):
        picture(root / "north" / "images" / f"{name}.png")
        picture(root / "north" / "masks" / f"{name}.png")
    volume(root / "south side" / "images" / "c.nii.gz")
    volume(root / "south side" / "masks" / "c.nii.gz", (values % 3).astype(np.uint8))
    return root


def test_sites_patients_and_classes_are_right(source: Path, imported: Callable[..., Path]) -> None:
    imported(LAYOUT, source, PATIENTS, CLASSES)
