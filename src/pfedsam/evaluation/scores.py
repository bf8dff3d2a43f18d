"""Scores of one case: Dice, IoU, HD95 and ASSD per class, by MONAI, at native size (docs/evidence.md).

What the measures mean here, for the pixels P of the prediction and T of the truth, and their borders (the pixels that
an erosion by the four neighbours removes; outside the image counts as background):

* Dice = 2 |P and T| / (|P| + |T|), and IoU = |P and T| / |P or T|.
* HD95: for each direction the 95th percentile (linear interpolation) of the distances from the pixels of one border to
  the other border; then the larger of the two. Pooling the directions first, as some do, gives smaller numbers.
* ASSD: the mean distance to the other border over *all* border pixels of both masks, so that the longer border weighs
  more (MONAI's `symmetric=True`); not the mean of the two directions' means.

A measure can be undefined, and is then None, never 0 or 1 by accident. With both masks empty there is nothing to score;
with one empty the overlap is 0 and there is no distance. (MONAI would say 1 or nan, and inf.)
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from monai.metrics.meaniou import compute_iou
from monai.metrics.surface_distance import compute_average_surface_distance

from pfedsam.core.errors import DataError

Unit: TypeAlias = Literal["mm", "px"]
"""The unit of a distance: millimetres where the case's spacing is known, pixels otherwise."""

MEASURES: Final = ("dice", "iou", "hd95", "assd")
"""The names of the measures, in the order in which they are shown."""


@dataclass(frozen=True)
class ClassScores:
    """The measures of one class in one case, or their mean over cases, classes or sites; None where undefined."""

    dice: float | None
    iou: float | None
    hd95: float | None
    assd: float | None


@dataclass(frozen=True)
class CaseScores:
    """The scores of one case by class name, and the unit of its distances."""

    case: str
    classes: dict[str, ClassScores]
    unit: Unit


def score_case(
    case: str,
    prediction: npt.NDArray[np.integer],
    truth: npt.NDArray[np.integer],
    *,
    class_names: Sequence[str],
    spacing_mm: tuple[float, ...] | None,
    distances: bool = True,
) -> CaseScores:
    """The scores of a predicted class map against the true one.

    Args:
        case: The name the scores carry.
        prediction: Class ids [H, W], or [D, H, W] of a volume, 0 for background, 1..C in the order of `class_names`.
        truth: Class ids [H, W], as above.
        class_names: The C names.
        spacing_mm: Size of a pixel along (H, W), or of a voxel along (D, H, W), in mm; without it distances are in pixels.
        distances: False leaves HD95 and ASSD out (None): validation needs Dice only, and they take most of the time.

    Raises:
        DataError: The two maps differ in size.
    """
    if prediction.shape != truth.shape:
        raise DataError(
            f"case {case!r}: the prediction has size {prediction.shape} and the truth {truth.shape}; both must be at "
            "native size. Bring the logits to the image's size with `logits_to_classes` before scoring."
        )
    classes = {
        name: _score_class(prediction == index, truth == index, spacing_mm, distances)
        for index, name in enumerate(class_names, start=1)
    }
    return CaseScores(case=case, classes=classes, unit="px" if spacing_mm is None else "mm")


def _score_class(
    prediction: npt.NDArray[np.bool_],
    truth: npt.NDArray[np.bool_],
    spacing_mm: tuple[float, ...] | None,
    distances: bool,
) -> ClassScores:
    """The measures of two boolean masks [H, W]."""
    filled = int(prediction.any()) + int(truth.any())
    if filled == 0:
        return ClassScores(dice=None, iou=None, hd95=None, assd=None)
    if filled == 1:
        return ClassScores(dice=0.0, iou=0.0, hd95=None, assd=None)
    # MONAI wants [B, C, H, W]; in single precision, counts above 2**24 pixels would be rounded.
    p, t = (torch.from_numpy(mask.astype(np.float64))[None, None] for mask in (prediction, truth))
    dice = compute_dice(p, t, include_background=True).item()
    iou = compute_iou(p, t, include_background=True).item()
    if not distances:
        return ClassScores(dice=dice, iou=iou, hd95=None, assd=None)
    with warnings.catch_warnings():
        # MONAI 1.6 warns about an argument that it passes to itself.
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        hd95 = compute_hausdorff_distance(p, t, include_background=True, percentile=95, spacing=spacing_mm).item()
        assd = compute_average_surface_distance(
            p, t, include_background=True, symmetric=True, spacing=spacing_mm
        ).item()
    return ClassScores(dice=dice, iou=iou, hd95=hd95, assd=assd)
