"""Every expected value is worked out by hand on masks of a few pixels."""

import numpy as np
import pytest

from pfedsam.core.errors import DataError
from pfedsam.evaluation.scores import ClassScores, score_case

UNDEFINED = ClassScores(dice=None, iou=None, hd95=None, assd=None)


def square(rows: slice, columns: slice, *, size: int = 24, value: int = 1) -> np.ndarray:
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[rows, columns] = value
    return mask


def score(prediction, truth, spacing_mm=None, names=("organ",)):
    return score_case("case", prediction, truth, class_names=names, spacing_mm=spacing_mm)


def test_two_squares_shifted_by_two_columns():
    # 8 x 8 each, 48 pixels in common: Dice 96/128, IoU 48/80. Of the 28 border pixels of either, 12 are 2 away from the
    # other border (8 of the outer column, 4 of the inner one), 4 are 1 away, 12 lie on it: mean 28/28, percentile 2.
    result = score(square(slice(4, 12), slice(4, 12)), square(slice(4, 12), slice(6, 14)))
    scores = result.classes["organ"]
    assert result.unit == "px"
    assert (scores.dice, scores.iou) == (pytest.approx(0.75), pytest.approx(0.6))
    assert (scores.hd95, scores.assd) == (pytest.approx(2.0), pytest.approx(1.0))


def test_distances_are_in_millimetres_along_rows_and_columns():
    # As above with rows 2 mm and columns 0.5 mm apart: 14 border pixels are 1 mm away, 2 are 0.5 mm away, 12 lie on it.
    result = score(square(slice(4, 12), slice(4, 12)), square(slice(4, 12), slice(6, 14)), (2.0, 0.5))
    scores = result.classes["organ"]
    assert result.unit == "mm"
    assert scores.dice == pytest.approx(0.75)
    assert (scores.hd95, scores.assd) == (pytest.approx(1.0), pytest.approx(15 / 28))


def test_anisotropic_spacing_is_not_transposed():
    # One pixel each, three rows apart.
    result = score(square(slice(2, 3), slice(5, 6)), square(slice(5, 6), slice(5, 6)), (2.0, 0.5))
    assert result.classes["organ"].hd95 == pytest.approx(6.0)


def test_assd_weighs_each_border_pixel_and_hd95_takes_the_worse_direction():
    # Prediction: pixel 0; truth: pixels 0, 1, 2 of a line. To the truth: 0. To the prediction: 0, 1, 2.
    # ASSD = 3/4 (the mean of the two directions' means would be 1/2); HD95 = the 95th percentile of 0, 1, 2 = 1.9
    # (of all four distances it would be 1.85).
    scores = score(square(slice(3, 4), slice(0, 1)), square(slice(3, 4), slice(0, 3))).classes["organ"]
    assert scores.assd == pytest.approx(0.75)
    assert scores.hd95 == pytest.approx(1.9)


def test_one_pixel_masks():
    scores = score(square(slice(0, 1), slice(0, 1)), square(slice(3, 4), slice(4, 5))).classes["organ"]
    assert (scores.dice, scores.iou) == (0.0, 0.0)
    assert (scores.hd95, scores.assd) == (pytest.approx(5.0), pytest.approx(5.0))


def test_a_mask_that_fills_the_image_has_a_border():
    everything, all_but_a_column = square(slice(None), slice(None)), square(slice(None), slice(1, None))
    scores = score(everything, all_but_a_column).classes["organ"]
    assert scores.dice == pytest.approx(2 * 23 * 24 / (24 * 24 + 23 * 24))
    assert scores.hd95 == pytest.approx(1.0)
    assert score(everything, everything).classes["organ"] == ClassScores(1.0, 1.0, 0.0, 0.0)


def test_both_empty_is_undefined():
    nothing = np.zeros((24, 24), dtype=np.uint8)
    assert score(nothing, nothing).classes["organ"] == UNDEFINED


@pytest.mark.parametrize("swap", [False, True])
def test_one_empty_scores_zero_and_has_no_distance(swap):
    pair = (np.zeros((24, 24), dtype=np.uint8), square(slice(1, 5), slice(1, 5)))
    scores = score(*(reversed(pair) if swap else pair)).classes["organ"]
    assert scores == ClassScores(dice=0.0, iou=0.0, hd95=None, assd=None)


def test_each_class_is_scored_on_its_own():
    # The lesion (2) lies inside the organ (1), which therefore has a hole; the prediction misses it.
    truth = square(slice(4, 12), slice(4, 12))
    truth[6:8, 6:8] = 2
    prediction = square(slice(4, 12), slice(4, 12))
    result = score(prediction, truth, names=("organ", "lesion", "vessel"))
    assert list(result.classes) == ["organ", "lesion", "vessel"]
    assert result.classes["organ"].dice == pytest.approx(2 * 60 / (60 + 64))
    assert result.classes["lesion"] == ClassScores(dice=0.0, iou=0.0, hd95=None, assd=None)
    assert result.classes["vessel"] == UNDEFINED


def test_no_warning_reaches_the_user(recwarn):
    score(square(slice(4, 12), slice(4, 12)), np.zeros((24, 24), dtype=np.uint8))
    score(square(slice(4, 12), slice(4, 12)), square(slice(4, 12), slice(6, 14)))
    assert [str(warning.message) for warning in recwarn] == []


def test_distances_can_be_left_out():
    truth = square(slice(4, 12), slice(4, 12))
    result = score_case("case", truth, truth, class_names=("organ",), spacing_mm=None, distances=False)
    assert result.classes["organ"] == ClassScores(dice=1.0, iou=1.0, hd95=None, assd=None)


def test_another_size_is_refused_by_name():
    with pytest.raises(DataError, match=r"case 'case'.*\(24, 24\).*\(12, 12\)"):
        score(square(slice(0, 2), slice(0, 2)), square(slice(0, 2), slice(0, 2), size=12))
