from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pfedsam.data.manifest import Case, Site


@pytest.fixture
def site_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a site folder with one 6 x 4 picture and mask (ids 0 and 1) for each case name."""

    def write(*cases: str) -> Path:
        folder = tmp_path / "north"
        for kind in ("images", "masks"):
            (folder / kind).mkdir(parents=True)
        for number, case in enumerate(cases):
            Image.fromarray(np.full((4, 6), (10 * number + 5) % 256, np.uint8)).save(folder / "images" / f"{case}.png")
            Image.fromarray(np.eye(4, 6, dtype=np.uint8)).save(folder / "masks" / f"{case}.png")
        return folder

    return write


@pytest.fixture
def site_of() -> Callable[..., Site]:
    """A site without files whose patients have the given numbers of cases: p0 has p0_0, p0_1, ..."""

    def make(*sizes: int, name: str = "north") -> Site:
        cases = [
            Case(name, f"p{patient}_{n}", Path(f"p{patient}_{n}.png"), None, f"p{patient}")
            for patient, size in enumerate(sizes)
            for n in range(size)
        ]
        return Site(name, Path(), tuple(cases))

    return make
