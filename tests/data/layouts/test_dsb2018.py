"""The masks of one picture become one; sites by kind and size of picture."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pfedsam.data.images import read_mask
from pfedsam.data.layouts.dsb2018 import LAYOUT

PATIENTS = {"fluorescence_6x8": {"dark": "dark"}, "brightfield": {"light": "light"}, "histology": {"violet": "violet"}}
CLASSES = {"nucleus": [1]}


@pytest.fixture
def source(tmp_path: Path, picture: Callable[..., None]) -> Path:
    root = tmp_path / "source"
    root.mkdir()
    first, second = np.zeros((6, 8), np.uint8), np.zeros((6, 8), np.uint8)
    first[0, 0], second[5, 7] = 255, 255
    for name, colour in (("dark", (9, 9, 9)), ("light", (200, 200, 200)), ("violet", (150, 60, 170))):
        picture(root / name / "images" / f"{name}.png", np.full((6, 8, 3), colour, np.uint8))
        picture(root / name / "masks" / "a.png", first)
        picture(root / name / "masks" / "b.png", second)
    return root


def test_sites_patients_and_classes_are_right(source: Path, imported: Callable[..., Path]) -> None:
    out = imported(LAYOUT, source, PATIENTS, CLASSES)
    mask = read_mask(out / "histology" / "masks" / "violet.png")
    assert np.argwhere(mask).tolist() == [[0, 0], [5, 7]]
    assert set(np.unique(mask).tolist()) == {0, 1}
