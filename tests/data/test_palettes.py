"""Palettes that number the classes differently in each file are distinguished from those that do not."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pfedsam.data.check import check_sites
from pfedsam.data.images import ImageOptions, read_stored
from pfedsam.data.labels import LabelMap
from pfedsam.data.manifest import read_site
from pfedsam.data.palettes import other_colours, used_colours
from pfedsam.data.suspicions import Study

BLACK, RED, GREEN, BLUE = (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)
STUDY = Study(LabelMap({"tumour": [1], "vessel": [2]}), ImageOptions())


def test_one_palette_is_no_difference() -> None:
    assert other_colours([{0: BLACK, 1: RED, 2: GREEN}, {0: BLACK, 2: GREEN}, {0: BLACK}, {}]) is None


def test_the_masks_that_differ_from_most_are_named() -> None:
    masks = [{0: GREEN, 1: RED, 2: BLACK}, {0: GREEN, 1: BLACK}, {0: GREEN, 1: RED, 2: BLACK}]
    found = other_colours(masks)
    assert found is not None
    assert found.masks == (1,)
    assert (found.value, found.here, found.usual) == (1, BLACK, RED)
    assert found.renumbered


@pytest.mark.parametrize("other", [{0: BLACK, 1: BLUE}, {0: BLACK, 1: BLACK, 2: BLACK}], ids=["colour", "no colours"])
def test_another_colour_alone_is_no_other_number(other: dict[int, tuple[int, int, int]]) -> None:
    found = other_colours([{0: BLACK, 1: RED}, {0: BLACK, 1: RED, 2: GREEN}, other])
    assert found is not None
    assert found.masks == (2,)
    assert not found.renumbered


def test_ids_beyond_the_palette_have_no_colour() -> None:
    assert used_colours([BLACK, RED], [1, 7, -1]) == {1: RED}


def _site(folder: Path, *, quantized: bool) -> list[str]:
    """Five two-class masks, of which two lack the class drawn in red; returns the problems that the check finds."""
    draw = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(5):
        ids = np.zeros((40, 48), np.uint8)
        ids[20:34, 10 : 30 + number] = 2
        if number % 2 == 0:
            ids[2:12, 5 : 20 + number] = 1
        mask = Image.fromarray(np.array([BLACK, RED, GREEN], np.uint8)[ids])
        if quantized:
            mask = mask.quantize(colors=8)
        else:
            mask = Image.fromarray(ids, "P")
            mask.putpalette([*BLACK, *RED, *GREEN])
        mask.save(folder / "masks" / f"p{number}.png")
        Image.fromarray(draw.integers(0, 255, ids.shape, np.uint8)).save(folder / "images" / f"p{number}.png")
    report = check_sites([read_site("north", folder, masks_required=False)], STUDY)
    return [problem for problem in report.problems if "palette" in problem]


def test_a_palette_of_each_file_is_refused_with_the_files_that_differ(tmp_path: Path) -> None:
    (problem,) = _site(tmp_path, quantized=True)
    assert problem.startswith(
        "site 'north', 2 cases 'p1', 'p3': id 1 has the colour (R, G, B) (0, 0, 0) in the palette"
    )
    assert "and (255, 0, 0) in most others" in problem


def test_masks_of_one_palette_have_no_problem(tmp_path: Path) -> None:
    assert _site(tmp_path, quantized=False) == []
    assert read_stored(tmp_path / "masks" / "p0.png").palette == (BLACK, RED, GREEN)
