import json
import re
from io import BytesIO

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pfedsam.core.errors import StoreError
from pfedsam.report.class_styles import CLASS_COLORS
from pfedsam.report.overlays import OverlayItem, draw_overlay, read_overlays, volume_overlay, write_overlays
from pfedsam.report.page import write_page
from pfedsam.report.summary_file import write_summary


def ranks(folder) -> list[tuple[str, str]]:
    return [(one.rank, one.dice) for one in read_overlays(folder)]


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


def colored(picture: bytes, color: str) -> np.ndarray:
    """Where a picture has about this colour, shape [H, W]."""
    pixels = np.asarray(Image.open(BytesIO(picture)).convert("RGB")).astype(int)
    wanted = [int(color[place : place + 2], 16) for place in (1, 3, 5)]
    return np.abs(pixels - wanted).max(axis=-1) < 40


def test_of_several_classes_each_has_its_colour_and_the_prediction_is_below_the_truth():
    truth = np.zeros((40, 40), dtype=np.uint8)
    truth[10:30, 5:20], truth[10:30, 20:35] = 1, 2
    exchanged = np.array([0, 2, 1], dtype=np.uint8)[truth]
    item = OverlayItem(np.full((40, 40, 3), 0.5, dtype=np.float32), truth, exchanged, 0.0)
    picture = draw_overlay(item, ("left", "right"))
    first, second = (colored(picture, color) for color in CLASS_COLORS[:2])
    above, below = slice(0, 384), slice(390, 774)
    assert first.shape == (2 * 384 + 6, 384)
    # Neighbours do not cover each other at their common border, which is at column 192.
    assert first[above][150:250, 188:192].any(axis=1).all()
    assert second[above][150:250, 192:196].any(axis=1).all()
    assert not first[above][:, 200:].any()
    assert first[below][150:250, 192:196].any(axis=1).all()
    assert not first[below][:, :184].any()
    with Image.open(BytesIO(picture)) as read:
        assert json.loads(read.info["Classes"]) == ["left", "right"]


def test_overlapping_classes_of_equal_extent_are_both_seen():
    truth = np.zeros((40, 40), dtype=np.uint8)
    truth[10:30, 10:30] = 0b11
    image = np.full((40, 40, 3), 0.5, dtype=np.float32)
    picture = draw_overlay(OverlayItem(image, truth, None, None, overlap=True))
    assert all(colored(picture, color).sum() > 400 for color in CLASS_COLORS[:2])


def test_without_a_prediction_only_the_truth_is_drawn_by_class():
    truth = np.zeros((40, 40), dtype=np.uint8)
    truth[10:30, 10:30] = 9  # the second class with dashes
    picture = draw_overlay(OverlayItem(np.full((40, 40, 3), 0.5, dtype=np.float32), truth, None, None))
    line = colored(picture, CLASS_COLORS[1])[97, 110:270]
    assert line.shape == (160,)
    assert 0.3 < line.mean() < 0.9


def test_pictures_of_several_classes_name_them_and_those_of_one_or_of_earlier_versions_do_not(tmp_path, fake):
    for folder, names in (("several", ("organ", "lesion")), ("one", ("organ",)), ("earlier", ())):
        write_overlays(tmp_path / folder, [fake.make_overlay(1, 0.5)], names)
    found = {folder.name: read_overlays(folder)[0].classes for folder in tmp_path.iterdir()}
    assert found == {"several": ("organ", "lesion"), "one": (), "earlier": ()}


def test_the_page_has_the_legend_of_its_pictures(tmp_path, fake):
    write_summary(tmp_path / "summary.json", fake.make_summary(sites=("a", "b")))
    write_overlays(tmp_path / "sites" / "a" / "overlays", [fake.make_overlay(1, 0.5)], ("organ", "<b>lesion"))
    html = write_page(tmp_path).read_text("utf-8")
    legend = html[html.index("those of the truth above and those of the prediction below") :]
    assert re.findall(r"</svg>([^<]*)</span>", legend) == ["organ", "&lt;b&gt;lesion"]
    assert re.findall(r'stroke="([^"]*)"', legend)[:2] == list(CLASS_COLORS[:2])
    write_overlays(tmp_path / "sites" / "b" / "overlays", [fake.make_overlay(1, 0.5)])
    assert re.findall(r"</svg>(truth|prediction)</span>", write_page(tmp_path).read_text("utf-8")) == [
        "truth",
        "prediction",
    ]


@pytest.mark.parametrize("shape", [(1, 50), (700, 30)])
def test_odd_shapes_can_be_drawn(shape):
    mask = np.ones(shape, dtype=np.uint8)
    assert draw_overlay(OverlayItem(np.zeros((*shape, 3), dtype=np.float32), mask, mask, 1.0)).startswith(b"\x89PNG")


def test_a_folder_that_is_not_there_has_no_pictures(tmp_path):
    assert read_overlays(tmp_path / "none") == []


@pytest.mark.parametrize("text", ["{", '"organ"'])
def test_a_picture_without_a_list_of_classes_is_an_error(tmp_path, text):
    about = PngInfo()
    about.add_text("Classes", text)
    Image.new("RGB", (4, 4)).save(tmp_path / "best.png", pnginfo=about)
    with pytest.raises(StoreError, match=r"best\.png has no list of its classes"):
        read_overlays(tmp_path)


def test_what_is_not_a_picture_is_an_error(tmp_path):
    (tmp_path / "best.png").write_bytes(b"no")
    with pytest.raises(StoreError, match=r"best\.png is not a picture"):
        read_overlays(tmp_path)


def make_volume(shape=(6, 40, 40), wrong=3, **more):
    """A volume whose prediction lacks the left half of the square in slice `wrong`; grey, and the slices that are read are noted."""
    truth = np.zeros(shape, dtype=np.uint8)
    truth[1:5, 10:30, 10:30] = 1
    prediction = truth.copy()
    prediction[wrong, :, :20] = 0
    read: list[int] = []

    def image_slice(index: int) -> np.ndarray:
        read.append(index)
        return np.full((*shape[1:], 3), 0.1 * index, dtype=np.float32)

    about = {"spacing_mm": (5.0, 1.0, 0.5), "axes": "SPL", **more}
    return volume_overlay(image_slice, truth, prediction, 0.9, **about), read


def test_of_a_volume_the_slice_of_the_largest_error_is_drawn_between_its_neighbours_and_no_other_is_read():
    item, read = make_volume()
    assert (item.shown, item.first, item.total, read) == (3, 2, 6, [2, 3, 4])
    assert item.place == "axial slice 4 of 6 between its neighbours, pixels of 1 x 0.5 mm, slices 5 mm apart"


@pytest.mark.parametrize(("wrong", "slices"), [(0, [0, 1]), (5, [4, 5])])
def test_a_slice_at_the_end_of_a_volume_has_one_neighbour(wrong, slices):
    truth = np.zeros((6, 8, 8), dtype=np.uint8)
    prediction = truth.copy()
    prediction[wrong] = 1
    read: list[int] = []

    def image_slice(index: int) -> np.ndarray:
        read.append(index)
        return np.zeros((8, 8, 3), dtype=np.float32)

    item = volume_overlay(image_slice, truth, prediction, 0.0, spacing_mm=None, axes=None)
    assert (read, item.shown) == (slices, wrong)
    assert item.place == f"slice {wrong + 1} of 6 between its neighbours, spacing not known"
    assert draw_overlay(item).startswith(b"\x89PNG")


@pytest.mark.parametrize(("overlap", "ignored"), [(False, 255), (True, 128)])
def test_pixels_that_are_ignored_are_no_errors(overlap: bool, ignored: int) -> None:
    truth = np.zeros((5, 8, 8), dtype=np.uint8)
    truth[4] = ignored
    prediction = np.zeros_like(truth)
    prediction[2, :2] = 1
    image, about = np.zeros((8, 8, 3), dtype=np.float32), {"spacing_mm": None, "axes": None, "overlap": overlap}
    assert volume_overlay(lambda _: image, truth, prediction, 0.5, **about).shown == 2
    truth[1, 0] = prediction[1, 0] = 1
    prediction[2] = 0
    assert volume_overlay(lambda _: image, truth, prediction, 0.5, **about).shown == 1


def test_without_an_error_the_slice_with_most_of_the_structure_is_drawn():
    truth = np.zeros((5, 8, 8), dtype=np.uint8)
    truth[2:4, :2] = 1
    truth[3] = 1
    image = np.zeros((8, 8, 3), dtype=np.float32)
    assert volume_overlay(lambda _: image, truth, truth, 1.0, spacing_mm=None, axes="LSA").shown == 3


@pytest.mark.parametrize(
    ("axes", "plane"), [("SPL", "axial"), ("IAR", "axial"), ("ASL", "coronal"), ("LSA", "sagittal")]
)
def test_the_plane_is_named_by_the_direction_of_the_slices(axes, plane):
    assert make_volume(axes=axes)[0].place.startswith(f"{plane} slice")


def test_pixels_of_a_volume_have_the_shape_that_their_spacing_says(tmp_path):
    (path,) = write_overlays(tmp_path, [make_volume()[0]])
    with Image.open(
        path
    ) as picture:  # 40 rows of 1 mm and 40 columns of 0.5 mm: twice as high as wide, three side by side
        assert picture.size == (3 * 192 + 2 * 6, 384)
    (stored,) = read_overlays(tmp_path)
    assert stored.place.startswith("axial slice 4 of 6")
    assert stored.dice == "0.900"


def test_orientation_letters_stand_at_the_edges(monkeypatch):
    written: dict[str, tuple[float, float]] = {}
    monkeypatch.setattr(Axes, "text", lambda _, x, y, text, **more: written.setdefault(text, (x, y)))
    draw_overlay(make_volume()[0])
    # Rows grow to the back and columns to the left: the front is up, and the patient's right is on the left of the picture.
    assert written["A"][1] < 10
    assert written["P"][1] > 374
    assert written["R"][0] < 10
    assert written["L"][0] > 180
    assert {"slice 3", "slice 4", "slice 5"} <= set(written)


def test_the_page_shows_where_the_slices_of_a_volume_lie(tmp_path, fake):
    write_summary(tmp_path / "summary.json", fake.make_summary(sites=("a",)))
    write_overlays(tmp_path / "sites" / "a" / "overlays", [make_volume()[0]])
    html = write_page(tmp_path).read_text("utf-8")
    assert "Dice 0.900: axial slice 4 of 6 between its neighbours, pixels of 1 x 0.5 mm, slices 5 mm apart" in html
