from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pfedsam.core.errors import StoreError
from pfedsam.report.overlays import OverlayItem, draw_overlay, read_overlays, write_overlays


def ranks(folder) -> list[tuple[str, str]]:
    return [(rank, dice) for rank, dice, _ in read_overlays(folder)]


def test_worst_median_and_best_are_chosen_by_dice(tmp_path, fake):
    write_overlays(tmp_path, [fake.make_overlay(1, dice) for dice in (0.9, 0.2, None, 0.6, 0.4)])
    assert ranks(tmp_path) == [("worst", "0.200"), ("median", "0.400"), ("best", "0.900")]


@pytest.mark.parametrize(
    ("dices", "expected"),
    [([0.5], [("worst", "0.500")]), ([0.5, 0.7], [("worst", "0.500"), ("best", "0.700")]), ([], []), ([None], [])],
)
def test_no_case_is_shown_twice(tmp_path, dices, expected, fake):
    write_overlays(tmp_path, [fake.make_overlay(1, dice) for dice in dices])
    assert ranks(tmp_path) == expected


def test_pictures_of_an_earlier_evaluation_do_not_stay(tmp_path, fake):
    write_overlays(tmp_path, [fake.make_overlay(1, dice) for dice in (0.2, 0.5, 0.9)])
    write_overlays(tmp_path, [fake.make_overlay(1, 0.4)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["worst.png"]


def test_a_picture_keeps_its_aspect_and_tells_no_name(tmp_path, fake):
    (path,) = write_overlays(tmp_path, [fake.make_overlay(1, 0.5)])
    with Image.open(path) as picture:
        assert picture.size == (384, round(384 * 96 / 120))
        assert picture.info["Dice"] == "0.500"
        assert set(picture.info) <= {"Dice", "dpi"}


def test_outlines_lie_where_the_masks_are():
    # Grey picture; truth is the left half, prediction nothing: cyan near the middle column, none in the right quarter.
    truth = np.zeros((40, 40), dtype=np.uint8)
    truth[:, :20] = 1
    item = OverlayItem(np.full((40, 40, 3), 0.5, dtype=np.float32), truth, np.zeros_like(truth), 0.0)
    pixels = np.asarray(Image.open(BytesIO(draw_overlay(item))).convert("RGB")).astype(int)
    cyan = (pixels[..., 2] - pixels[..., 0]) > 100
    assert cyan[100:280, 186:198].any(axis=1).all()
    assert not cyan[:, 280:].any()
    assert cyan[:, :4].any()  # closed at the picture's edge


@pytest.mark.parametrize("shape", [(1, 50), (700, 30)])
def test_odd_shapes_can_be_drawn(shape):
    mask = np.ones(shape, dtype=np.uint8)
    assert draw_overlay(OverlayItem(np.zeros((*shape, 3), dtype=np.float32), mask, mask, 1.0)).startswith(b"\x89PNG")


def test_a_folder_that_is_not_there_has_no_pictures(tmp_path):
    assert read_overlays(tmp_path / "none") == []


def test_what_is_not_a_picture_is_an_error(tmp_path):
    (tmp_path / "best.png").write_bytes(b"no")
    with pytest.raises(StoreError, match=r"best\.png is not a picture"):
        read_overlays(tmp_path)
