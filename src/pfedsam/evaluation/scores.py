"""Scores of one case, per class, at native size: an image [H, W] or a volume [D, H, W] (docs/evidence.md).

What the measures mean here, for the voxels P of the prediction and T of the truth ("voxel" also means a pixel of an image), and their
borders (the voxels that an erosion by the face neighbours removes; outside the image counts as background):

* Dice = 2 |P and T| / (|P| + |T|), and IoU = |P and T| / |P or T|.
* HD95: for each direction the 95th percentile (linear interpolation) of the distances from the voxels of one border to
  the other border; then the larger of the two. Pooling the directions first, as some do, gives smaller numbers.
* ASSD: the mean distance to the other border over *all* border voxels of both masks, so that the longer border weighs
  more (MONAI's `symmetric=True`); not the mean of the two directions' means.
* NSD (surface Dice; Nikolov et al., 2018): the share of both surfaces that lies within a tolerance of the other one. Surfaces run between
  the voxels and are weighed by their area, in an image by their length.
* Volume difference: | |P| - |T| | times the size of a voxel: ml of a volume, mm2 of an image, a number of voxels without spacing.
* Lesion recall, for classes that are lesions: the share of the truth's connected components (voxels that touch by a face, an edge or a
  corner) of which the prediction holds at least one voxel.

Distances come from MONAI. A measure can be undefined, and is then None, never 0 or 1 by accident. With both masks empty there is nothing
to score. With one empty the overlaps (Dice, IoU, NSD) are 0 and there is no distance; the volume difference is the other mask's volume.
(MONAI would say 1 or nan, and inf.) Which of these happened is the case's `Presence`.
"""

import math
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from monai.metrics.surface_dice import compute_surface_dice
from monai.metrics.utils import get_edge_surface_distance
from scipy import ndimage

from pfedsam.core.errors import DataError

Unit: TypeAlias = Literal["mm", "px"]
"""The unit of a distance: millimetres where the case's spacing is known, pixels (of a volume, voxels) otherwise."""

VolumeUnit: TypeAlias = Literal["ml", "mm2", "px"]
"""The unit of a volume difference: ml of a volume and mm2 of an image where the spacing is known, pixels or voxels otherwise."""

Presence: TypeAlias = Literal["both", "missed", "extra", "absent"]
"""Where a case holds a class: in truth and prediction, in the truth only, in the prediction only, in neither."""

Spacing: TypeAlias = tuple[float, float] | tuple[float, float, float]
"""Size of a voxel in mm along (H, W) or (D, H, W)."""

MEASURES: Final = ("dice", "iou", "hd95", "assd", "nsd", "volume_difference", "lesion_recall")
"""The names of the measures, in the order in which they are shown."""

SURFACE_TOLERANCE: Final = 2.0
"""Tolerance of NSD, in the unit of the distances, where none is given."""


@dataclass(frozen=True)
class ClassScores:
    """The measures of one class in one case, or their mean over cases, classes or sites; None where undefined."""

    dice: float | None
    iou: float | None
    hd95: float | None = None
    assd: float | None = None
    nsd: float | None = None
    volume_difference: float | None = None
    lesion_recall: float | None = None


@dataclass(frozen=True)
class CaseScores:
    """The scores of one case by class name, where each class is, the units, and the patient whose case it is."""

    case: str
    patient: str
    classes: dict[str, ClassScores]
    presence: dict[str, Presence]
    unit: Unit
    volume_unit: VolumeUnit

    @property
    def dice(self) -> float | None:
        """Mean Dice over the classes where it is defined; None where it is nowhere."""
        defined = [scores.dice for scores in self.classes.values() if scores.dice is not None]
        return math.fsum(defined) / len(defined) if defined else None


def score_case(
    case: str,
    prediction: npt.NDArray[np.integer],
    truth: npt.NDArray[np.integer],
    *,
    class_names: Sequence[str],
    spacing_mm: Spacing | None,
    patient: str | None = None,
    lesions: Collection[str] = (),
    surface_tolerance: float = SURFACE_TOLERANCE,
    distances: bool = True,
) -> CaseScores:
    """The scores of a predicted class map against the true one.

    Args:
        case: The name the scores carry.
        prediction: Class ids [H, W] or [D, H, W], 0 for background, 1..C in the order of `class_names`.
        truth: Class ids of the same shape.
        class_names: The C names.
        spacing_mm: Size of a voxel along the axes of the masks in mm; without it distances are in voxels.
        patient: Whose case it is; without it the case is a patient by itself.
        lesions: Names of the classes that are lesions.
        surface_tolerance: Of NSD, in the unit of the distances.
        distances: False leaves out (None) all but Dice and IoU: validation needs Dice only, and the others take most of the time.

    Raises:
        DataError: The two maps differ in size, are neither an image nor a volume, or do not fit the spacing.
    """
    _check_shapes(case, prediction.shape, truth.shape, spacing_mm)
    classes, presence = {}, {}
    for index, name in enumerate(class_names, start=1):
        masks = _cropped(prediction == index, truth == index)
        presence[name] = _presence(*masks)
        if distances:
            classes[name] = _all_measures(*masks, spacing_mm, surface_tolerance, is_lesion=name in lesions)
        else:
            classes[name] = ClassScores(*_overlaps(*masks))
    return CaseScores(
        case=case,
        patient=case if patient is None else patient,
        classes=classes,
        presence=presence,
        unit="px" if spacing_mm is None else "mm",
        volume_unit="px" if spacing_mm is None else "mm2" if truth.ndim == 2 else "ml",
    )


def _check_shapes(
    case: str, prediction: tuple[int, ...], truth: tuple[int, ...], spacing_mm: Sequence[float] | None
) -> None:
    """Refuse masks that cannot be scored.

    Raises:
        DataError: They differ in size, are neither an image nor a volume, or do not fit the spacing.
    """
    if prediction != truth:
        raise DataError(
            f"case {case!r}: the prediction has size {prediction} and the truth {truth}; both must be at "
            "native size. Bring the logits to the image's size with `logits_to_classes` before scoring."
        )
    if len(truth) not in (2, 3):
        raise DataError(
            f"case {case!r}: the masks have {len(truth)} axes; an image has 2 (H, W) and a volume 3 (D, H, W). "
            "Choose one channel or one time point before scoring."
        )
    if spacing_mm is not None and len(spacing_mm) != len(truth):
        raise DataError(
            f"case {case!r}: the spacing has {len(spacing_mm)} values and the mask {len(truth)} axes; give one value "
            "in mm for each axis of the mask, in the same order."
        )


def _cropped(
    prediction: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Both masks cut to the box around everything that either holds; what lies outside changes no measure."""
    box = ndimage.find_objects((prediction | truth).view(np.uint8), max_label=1)[0]
    box = tuple(slice(0, 0) for _ in truth.shape) if box is None else box
    return prediction[box], truth[box]


def _presence(prediction: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> Presence:
    if truth.any():
        return "both" if prediction.any() else "missed"
    return "extra" if prediction.any() else "absent"


def _overlaps(
    prediction: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]
) -> tuple[float, float] | tuple[None, None]:
    """Dice and IoU of two masks; None of two empty ones."""
    common, total = np.count_nonzero(prediction & truth), np.count_nonzero(prediction) + np.count_nonzero(truth)
    return (2 * common / total, common / (total - common)) if total else (None, None)


def _all_measures(
    prediction: npt.NDArray[np.bool_],
    truth: npt.NDArray[np.bool_],
    spacing_mm: Spacing | None,
    tolerance: float,
    *,
    is_lesion: bool,
) -> ClassScores:
    """Every measure of two masks [H, W] or [D, H, W]."""
    presence = _presence(prediction, truth)
    if presence == "absent":
        return ClassScores(dice=None, iou=None)
    dice, iou = _overlaps(prediction, truth)
    hd95, assd, nsd = (
        _surface_measures(prediction, truth, spacing_mm, tolerance) if presence == "both" else (None, None, 0.0)
    )
    voxels = abs(np.count_nonzero(prediction) - np.count_nonzero(truth))
    return ClassScores(
        dice=dice,
        iou=iou,
        hd95=hd95,
        assd=assd,
        nsd=nsd,
        volume_difference=voxels * _voxel_size(spacing_mm),
        lesion_recall=_lesion_recall(prediction, truth) if is_lesion else None,
    )


def _surface_measures(
    prediction: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_], spacing_mm: Spacing | None, tolerance: float
) -> tuple[float, float, float]:
    """HD95, ASSD and NSD of two masks, neither of which is empty."""
    p, t = torch.from_numpy(prediction), torch.from_numpy(truth)
    with warnings.catch_warnings():
        # MONAI 1.6 warns about an argument that it passes to itself.
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        _, distances, _ = get_edge_surface_distance(p, t, spacing=spacing_mm, symmetric=True)
        nsd = compute_surface_dice(
            p[None, None],
            t[None, None],
            class_thresholds=[tolerance],
            include_background=True,
            spacing=spacing_mm,
            use_subvoxels=True,
        ).item()
    hd95 = max(torch.quantile(one, 0.95).item() for one in distances)
    return hd95, torch.cat(tuple(distances)).mean().item(), nsd


def _voxel_size(spacing_mm: Spacing | None) -> float:
    """Size of a voxel in ml, of a pixel in mm2; 1 without spacing."""
    if spacing_mm is None:
        return 1.0
    return math.prod(spacing_mm) / (1000 if len(spacing_mm) == 3 else 1)


def _lesion_recall(prediction: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float | None:
    """Share of the truth's connected components of which the prediction holds a voxel; None without any component."""
    components, number = ndimage.label(truth, structure=np.ones((3,) * truth.ndim))
    found = np.unique(components[prediction & truth])
    return len(found) / number if number else None
