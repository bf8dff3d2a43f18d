"""Expected values are worked out by hand on small masks, or come from MONAI's and DeepMind's (`surface-distance`) measures."""

import numpy as np
import pytest
import surface_distance
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.surface_distance import compute_average_surface_distance

from pfedsam.core.errors import DataError
from pfedsam.evaluation.scores import MEASURES, ClassScores, score_case

UNDEFINED = ClassScores(dice=None, iou=None)


def square(rows: slice, columns: slice, *, size: int = 24, value: int = 1) -> np.ndarray:
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[rows, columns] = value
    return mask


def score(prediction, truth, spacing_mm=None, names=("organ",), **more):
    return score_case("case", prediction, truth, class_names=names, spacing_mm=spacing_mm, **more)


def boxes(*corners: tuple[int, int, int], shape=(12, 20, 24), side=4) -> np.ndarray:
    """A volume [D, H, W] with cubes at these corners."""
    mask = np.zeros(shape, dtype=np.uint8)
    for z, y, x in corners:
        mask[z : z + side, y : y + side, x : x + side] = 1
    return mask


def blobs(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Smooth random shapes that also touch the border of the array."""
    generator = np.random.default_rng(seed)
    waves = [np.cos(generator.uniform(0.2, 0.7) * axis + generator.uniform(0, 6)) for axis in np.indices(shape)]
    return (sum(waves) > 0.4).astype(np.uint8)


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
    assert score(everything, everything).classes["organ"] == ClassScores(1.0, 1.0, 0.0, 0.0, 1.0, 0.0)


def test_both_empty_is_undefined():
    nothing = np.zeros((24, 24), dtype=np.uint8)
    result = score(nothing, nothing)
    assert result.classes["organ"] == UNDEFINED
    assert result.presence == {"organ": "absent"}


@pytest.mark.parametrize(("swap", "presence"), [(False, "missed"), (True, "extra")])
def test_one_empty_scores_zero_has_no_distance_and_says_which_one_is(swap, presence):
    pair = (np.zeros((24, 24), dtype=np.uint8), square(slice(1, 5), slice(1, 5)))
    result = score(*(reversed(pair) if swap else pair))
    assert result.classes["organ"] == ClassScores(0.0, 0.0, None, None, nsd=0.0, volume_difference=16.0)
    assert result.presence == {"organ": presence}


def test_each_class_is_scored_on_its_own():
    # The lesion (2) lies inside the organ (1), which therefore has a hole; the prediction misses it.
    truth = square(slice(4, 12), slice(4, 12))
    truth[6:8, 6:8] = 2
    prediction = square(slice(4, 12), slice(4, 12))
    result = score(prediction, truth, names=("organ", "lesion", "vessel"))
    assert list(result.classes) == ["organ", "lesion", "vessel"]
    assert result.classes["organ"].dice == pytest.approx(2 * 60 / (60 + 64))
    assert result.classes["lesion"] == ClassScores(0.0, 0.0, None, None, nsd=0.0, volume_difference=4.0)
    assert result.classes["vessel"] == UNDEFINED
    assert result.presence == {"organ": "both", "lesion": "missed", "vessel": "absent"}
    assert result.dice == pytest.approx((2 * 60 / (60 + 64) + 0) / 2)  # the vessel's Dice is undefined


def test_no_warning_reaches_the_user(recwarn):
    score(square(slice(4, 12), slice(4, 12)), np.zeros((24, 24), dtype=np.uint8))
    score(square(slice(4, 12), slice(4, 12)), square(slice(4, 12), slice(6, 14)))
    assert [str(warning.message) for warning in recwarn] == []


def test_two_shifted_cubes_in_a_volume():
    # Cubes of 4 x 4 x 4 voxels, one voxel apart along the slowest axis of 3 mm: 48 voxels in common. Of the 56 border voxels of each,
    # the 16 of its outer face are 3 mm away. Of the 16 of the opposite face, the 4 inner ones are 1 mm or more from the other border's
    # sides and 3 mm from its face, so 1 mm; the 12 others and the 24 of the sides in common lie on it.
    result = score(boxes((4, 8, 8)), boxes((5, 8, 8)), (3.0, 1.0, 1.0))
    scores = result.classes["organ"]
    assert (result.unit, result.volume_unit) == ("mm", "ml")
    assert (scores.dice, scores.iou) == (pytest.approx(0.75), pytest.approx(48 / 80))
    assert scores.assd == pytest.approx((16 * 3 + 4 * 1) / 56)
    assert scores.hd95 == pytest.approx(3.0)
    assert scores.volume_difference == 0.0


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((24, 31), (0.7, 1.3)), ((24, 31), None), ((9, 22, 26), (2.5, 0.8, 1.1)), ((9, 22, 26), None)],
)
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning", "ignore:.*always_return_as_numpy:FutureWarning")
def test_surface_measures_agree_with_other_implementations(shape, spacing, seed):
    prediction, truth = blobs(seed, shape), blobs(seed + 100, shape)
    unit = (1.0,) * len(shape) if spacing is None else spacing
    scores = score(prediction, truth, spacing, surface_tolerance=1.5).classes["organ"]
    surfaces = surface_distance.compute_surface_distances(truth == 1, prediction == 1, unit)
    assert scores.nsd == pytest.approx(surface_distance.compute_surface_dice_at_tolerance(surfaces, 1.5), rel=1e-5)
    p, t = (torch.from_numpy(mask)[None, None] for mask in (prediction, truth))
    hd95 = compute_hausdorff_distance(p, t, include_background=True, percentile=95, spacing=unit)
    assd = compute_average_surface_distance(p, t, include_background=True, symmetric=True, spacing=unit)
    assert (scores.hd95, scores.assd) == (pytest.approx(hd95.item()), pytest.approx(assd.item()))
    # DeepMind's surfaces run between the voxels, so that its distances may differ from those of border voxels by about one voxel.
    assert abs(scores.hd95 - surface_distance.compute_robust_hausdorff(surfaces, 95)) <= 1.5 * max(unit)
    assert abs(scores.assd - np.mean(surface_distance.compute_average_surface_distance(surfaces))) <= max(unit)


def test_a_volume_of_one_slice_scores_like_the_image():
    prediction, truth = blobs(5, (24, 31)), blobs(6, (24, 31))
    image, volume = score(prediction, truth, (0.7, 1.3)), score(prediction[None], truth[None], (4.0, 0.7, 1.3))
    assert volume.classes["organ"].dice == image.classes["organ"].dice
    # 4 mm times mm2, in ml.
    expected = 4.0 * image.classes["organ"].volume_difference / 1000
    assert volume.classes["organ"].volume_difference == pytest.approx(expected)


def test_the_axes_of_a_volume_may_be_permuted_together_with_the_spacing():
    prediction, truth, spacing = blobs(7, (9, 14, 17)), blobs(8, (9, 14, 17)), (2.5, 0.8, 1.1)
    turned = score(prediction.transpose(2, 0, 1), truth.transpose(2, 0, 1), (1.1, 2.5, 0.8)).classes["organ"]
    straight = score(prediction, truth, spacing).classes["organ"]
    for name in MEASURES[:-1]:
        assert getattr(turned, name) == pytest.approx(getattr(straight, name), rel=1e-5)


@pytest.mark.parametrize(
    ("spacing", "expected", "unit"), [((5.0, 0.5, 0.5), 64 * 1.25 / 1000, "ml"), (None, 64.0, "px")]
)
def test_the_volume_difference_is_in_ml_or_voxels(spacing, expected, unit):
    # Two cubes of 64 voxels against one; a voxel of 5 x 0.5 x 0.5 mm has 1.25 mm3.
    result = score(boxes((0, 0, 0)), boxes((0, 0, 0), (6, 10, 10)), spacing)
    assert result.classes["organ"].volume_difference == pytest.approx(expected)
    assert result.volume_unit == unit


def test_the_area_difference_of_an_image_is_in_square_millimetres():
    result = score(square(slice(0, 2), slice(0, 2)), square(slice(0, 4), slice(0, 2)), (2.0, 0.5))
    assert result.classes["organ"].volume_difference == pytest.approx(4.0)
    assert result.volume_unit == "mm2"


def test_a_lesion_is_found_if_the_prediction_holds_one_of_its_voxels():
    truth = boxes((0, 0, 0), (6, 10, 10), (0, 12, 18))
    prediction = np.zeros_like(truth)
    prediction[3, 3, 3] = 1  # the corner of the first lesion
    prediction[6:10, 10:14, 14:18] = 1  # beside the second one
    scores = score(prediction, truth, lesions=("organ",)).classes["organ"]
    assert scores.lesion_recall == pytest.approx(1 / 3)
    assert score(prediction, truth).classes["organ"].lesion_recall is None


def test_voxels_that_touch_at_a_corner_are_one_lesion():
    touching, apart = boxes((0, 0, 0), (4, 4, 4)), boxes((0, 0, 0), (5, 4, 4))
    assert score(boxes((0, 0, 0)), touching, lesions=("organ",)).classes["organ"].lesion_recall == 1.0
    assert score(boxes((0, 0, 0)), apart, lesions=("organ",)).classes["organ"].lesion_recall == 0.5


def test_a_missed_lesion_has_recall_zero_and_a_case_without_lesions_none():
    nothing = np.zeros_like(boxes())
    assert score(nothing, boxes((0, 0, 0)), lesions=("organ",)).classes["organ"].lesion_recall == 0.0
    assert score(boxes((0, 0, 0)), nothing, lesions=("organ",)).classes["organ"].lesion_recall is None


def test_empty_space_around_both_masks_changes_nothing():
    prediction, truth = blobs(9, (9, 14, 17)), blobs(10, (9, 14, 17))
    wide = [np.pad(mask, ((20, 3), (4, 60), (9, 2))) for mask in (prediction, truth)]
    small, large = score(prediction, truth).classes["organ"], score(*wide).classes["organ"]
    assert large == small


def test_distances_can_be_left_out():
    truth = square(slice(4, 12), slice(4, 12))
    result = score_case("case", truth, truth, class_names=("organ",), spacing_mm=None, distances=False)
    assert result.classes["organ"] == ClassScores(dice=1.0, iou=1.0)


def test_another_size_is_refused_by_name():
    with pytest.raises(DataError, match=r"case 'case'.*\(24, 24\).*\(12, 12\)"):
        score(square(slice(0, 2), slice(0, 2)), square(slice(0, 2), slice(0, 2), size=12))


@pytest.mark.parametrize(
    ("shape", "spacing", "message"),
    [
        ((4,), None, r"case 'case': the masks have 1 axes; an image has 2"),
        ((2, 4, 4, 4), None, r"case 'case': the masks have 4 axes; .* a volume 3"),
        ((4, 4, 4), (1.0, 1.0), r"case 'case': the spacing has 2 values and the mask 3 axes"),
    ],
)
def test_masks_that_are_neither_image_nor_volume_or_do_not_fit_the_spacing_are_refused(shape, spacing, message):
    mask = np.ones(shape, dtype=np.uint8)
    with pytest.raises(DataError, match=message):
        score(mask, mask, spacing)


def test_the_case_keeps_its_patient_and_is_one_by_itself_without():
    mask = square(slice(0, 2), slice(0, 2))
    assert score(mask, mask, patient="p7").patient == "p7"
    assert score(mask, mask).patient == "case"
