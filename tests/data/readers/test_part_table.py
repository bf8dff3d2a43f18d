"""The names of segments and structures, for the terminal of their site only."""

from pathlib import Path

import numpy as np
import pytest
from mask_files import IDS, write_ct, write_rtstruct, write_seg_of
from PIL import Image

from pfedsam.data.readers.part_table import PartRow, absent_names, count_parts, list_parts

SQUARE = [(1.0, 1.0), (1.0, 4.0), (4.0, 4.0), (4.0, 1.0)]


@pytest.fixture
def masks(tmp_path: Path) -> list[Path]:
    """A DICOM-SEG with Organ 1 (drawn) and Organ 2 (empty), and an RTSTRUCT with an organ 2, a Canary and a point."""
    image = write_ct(tmp_path / "ct")
    seg = write_seg_of(tmp_path / "a.dcm", image, np.moveaxis(np.minimum(IDS, 1), 2, 0))
    structures = write_rtstruct(
        tmp_path / "b.dcm",
        image,
        ("Canary ", [("CLOSED_PLANAR", 1, SQUARE)]),
        (" ORGAN 2", [("CLOSED_PLANAR", 2, SQUARE)]),
        ("Isocentre", [("POINT", 1, SQUARE[:1])]),
    )
    return [seg, structures]


def test_names_are_listed_with_numbers_cases_and_ids(masks: list[Path]) -> None:
    rows = count_parts(masks, {"organ 1": 1, "Canary": 2, "Liver": 3})
    assert rows == [
        PartRow("Organ 1", (1,), cases=1, empty=0, id=1),
        PartRow("Canary", (1,), cases=1, empty=0, id=2),
        PartRow("Organ 2", (2,), cases=2, empty=1, id=None),
        PartRow("Isocentre", (3,), cases=1, empty=1, id=None),
        PartRow("Liver", (), cases=0, empty=0, id=3),
    ]
    assert "Canary" not in repr((rows, [list_parts(mask) for mask in masks]))


def test_a_name_of_the_options_that_no_site_has_is_a_warning(masks: list[Path]) -> None:
    segments = {"Organ 1": 1, "Canary": 1, "Liver": 1}
    (warning,) = absent_names([count_parts([mask], segments) for mask in masks])
    assert "'Liver'" in warning
    assert absent_names([]) == []


def test_other_masks_and_damaged_ones_have_no_names(masks: list[Path], tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    masks[0].write_bytes(masks[0].read_bytes()[:600])
    assert count_parts([tmp_path / "a.png", masks[0], tmp_path / "absent", tmp_path], {"Liver": 1}) == []
