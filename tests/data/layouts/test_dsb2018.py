"""The masks of one picture become one; sites by kind and size of picture."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pfedsam.core.errors import DataError
from pfedsam.data.images import read_mask
from pfedsam.data.layouts.base import write_sites
from pfedsam.data.layouts.dsb2018 import LAYOUT

PATIENTS = {"fluorescence_6x8": {"dark": ""}, "brightfield": {"light": ""}, "histology": {"violet": ""}}
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


@pytest.mark.parametrize("damage", ["cut", "chunk"])
def test_a_damaged_picture_is_an_error_that_names_it(source: Path, tmp_path: Path, damage: str) -> None:
    """A picture that is cut off, and one with an unreadable chunk."""
    file = source / "dark" / "images" / "dark.png"
    content = file.read_bytes()
    file.write_bytes(content[:-30] if damage == "cut" else content.replace(b"IDAT", b"ID\xff\xff"))
    with pytest.raises(DataError, match=r"'dark\.png'.* cannot be read"):
        write_sites(LAYOUT, source, tmp_path / "out")


def test_masks_without_an_image_are_told(source: Path, tmp_path: Path) -> None:
    assert list(write_sites(LAYOUT, source, tmp_path / "before").notes) == []
    (source / "light/images/light.png").unlink()
    assert list(write_sites(LAYOUT, source, tmp_path / "after").notes) == [
        "2 mask(s) without an image, or without a line in the table of the data set, are left out: light/masks/a.png, light/masks/b.png"
    ]
