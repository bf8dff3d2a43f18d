"""Scores of one case, per class, at native size: an image [H, W] or a volume [D, H, W] (docs/evidence.md).

The measures are defined for the voxels P of the prediction and T of the truth ("voxel" also means a pixel of an image) and for their
borders (the voxels that an erosion by the face neighbours removes; everything outside the image counts as background):

* Dice = 2 |P and T| / (|P| + |T|), and IoU = |P and T| / |P or T|.
* HD95: for each direction, the 95th percentile (linear interpolation) of the distances from the voxels of one border to the other
  border; the result is the larger of the two. Pooling both directions before taking the percentile would give smaller numbers.
* ASSD: the mean distance to the other border over *all* border voxels of both masks, so that the longer border has more weight
  (MONAI's `symmetric=True`). It is not the mean of the means of the two directions.
* NSD (surface Dice; Nikolov et al., 2018): the share of both surfaces that lies within a tolerance of the other surface. Surfaces run
  between the voxels and are weighted by their area, in an image by their length.
* Volume difference: | |P| - |T| | times the size of a voxel; it is in ml for a volume, in mm2 for an image, and a number of voxels
  where the spacing is not known.
* Lesion recall, for classes that are lesions: the share of the truth's connected components (voxels that share a face, an edge or a
  corner are connected) of which the prediction contains at least one voxel.

Distances are computed by MONAI. A measure that is undefined is None, not 0 or 1. Where both masks are empty, every measure is undefined.
Where one is empty, the overlaps (Dice, IoU, NSD) are 0, the distances are undefined, and the volume difference is the volume of the other
mask. (MONAI would return 1 or NaN for the overlaps and infinity for the distances.) The case's `Presence` records which of these applies.
A class that the site does not annotate has no measure at all, which is recorded separately from an undefined one.
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
from pfedsam.data.labels import class_pixels, ignored_pixels

Unit: TypeAlias = Literal["mm", "px"]
"""The unit of a distance: millimetres where the case's spacing is known, pixels (of a volume, voxels) otherwise."""

VolumeUnit: TypeAlias = Literal["ml", "mm2", "px"]
"""The unit of a volume difference: ml of a volume and mm2 of an image where the spacing is known, pixels or voxels otherwise."""

Presence: TypeAlias = Literal["both", "missed", "extra", "absent", "not_annotated"]
"""Where a class occurs in a case: in truth and prediction, in the truth only, in the prediction only, or in neither; or that the site does
not annotate the class, so that it is not known."""

Spacing: TypeAlias = tuple[float, float] | tuple[float, float, float]
"""Size of a voxel in mm along (H, W) or (D, H, W)."""

MEASURES: Final = ("dice", "iou", "hd95", "assd", "nsd", "volume_difference", "lesion_recall")
"""The names of the measures, in the order in which they are shown."""

SURFACE_TOLERANCE: Final = 2.0
"""Default tolerance of NSD, in the unit of the distances."""


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
    """The scores of one case by class name, the presence of each class, the units, and the patient."""

    case: str
    patient: str
    classes: dict[str, ClassScores]
    presence: dict[str, Presence]
    unit: Unit
    volume_unit: VolumeUnit

    @property
    def dice_by_class(self) -> dict[str, float | None]:
        """Dice by class."""
        return {name: scores.dice for name, scores in self.classes.items()}

    @property
    def dice(self) -> float | None:
        """Mean Dice over the classes for which it is defined; None if it is defined for no class."""
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
    not_annotated: Collection[str] = (),
    overlap: bool = False,
) -> CaseScores:
    """The scores of a predicted class map against the true one.

    Args:
        case: name of the case.
        prediction: labels [H, W] or [D, H, W]: 0 for background, 1..C in the order of `class_names`, or bits where classes overlap.
        truth: labels of the same shape; a pixel that is to be ignored counts in no measure.
        class_names: the C names of the classes.
        spacing_mm: size of a voxel along the axes of the masks in mm; without it distances are in voxels.
        patient: the patient of the case; without it the case counts as a patient of its own.
        lesions: names of the classes that are lesions.
        surface_tolerance: tolerance of NSD, in the unit of the distances.
        distances: if False, only Dice and IoU are computed and the other measures are None. Validation needs Dice only, and the other
            measures take most of the time.
        not_annotated: names of the classes that the site does not annotate; they are not scored.
        overlap: whether labels are sets of bits, one for each class.

    Raises:
        DataError: the two maps differ in size, are neither an image nor a volume, or do not fit the spacing.
    """
    _check_shapes(case, prediction.shape, truth.shape, spacing_mm)
    classes: dict[str, ClassScores] = {}
    presence: dict[str, Presence] = {}
    counted = ~ignored_pixels(truth, overlap=overlap)
    for index, name in enumerate(class_names, start=1):
        if name in not_annotated:
            classes[name], presence[name] = ClassScores(dice=None, iou=None), "not_annotated"
            continue
        predicted, true = (class_pixels(one, index, overlap=overlap) & counted for one in (prediction, truth))
        masks = _cropped(predicted, true)
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
        volume_unit=_volume_unit(truth.ndim, spacing_mm),
    )


def _volume_unit(dimensions: int, spacing_mm: Spacing | None) -> VolumeUnit:
    """The unit of the size of a structure in an image (2 dimensions) or in a volume (3)."""
    if spacing_mm is None:
        return "px"
    return "mm2" if dimensions == 2 else "ml"


def _check_shapes(
    case: str, prediction: tuple[int, ...], truth: tuple[int, ...], spacing_mm: Sequence[float] | None
) -> None:
    """Refuse masks that cannot be scored.

    Raises:
        DataError: they differ in size, are neither an image nor a volume, or do not fit the spacing.
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
    """Both masks [H, W] or [D, H, W], cropped to the bounding box of their union; voxels outside it do not affect any measure."""
    box = ndimage.find_objects((prediction | truth).view(np.uint8), max_label=1)[0]
    box = tuple(slice(0, 0) for _ in truth.shape) if box is None else box
    return prediction[box], truth[box]


def _presence(prediction: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> Presence:
    """The presence of a class with the masks `prediction` and `truth` of shape [H, W] or [D, H, W]."""
    if truth.any():
        return "both" if prediction.any() else "missed"
    return "extra" if prediction.any() else "absent"


def _overlaps(
    prediction: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]
) -> tuple[float, float] | tuple[None, None]:
    """Dice and IoU of two masks of shape [H, W] or [D, H, W]; None if both are empty."""
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
    """HD95, ASSD and NSD of two masks of shape [H, W] or [D, H, W], neither of which is empty."""
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
    # torch.quantile refuses more than 2^24 values, which the surface of a large volume can have.
    hd95 = max(float(np.percentile(one.numpy(), 95)) for one in distances)
    return hd95, torch.cat(tuple(distances)).mean().item(), nsd


def _voxel_size(spacing_mm: Spacing | None) -> float:
    """Size of a voxel in ml or of a pixel in mm2; 1 if the spacing is not known."""
    if spacing_mm is None:
        return 1.0
    return math.prod(spacing_mm) / (1000 if len(spacing_mm) == 3 else 1)


def _lesion_recall(prediction: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float | None:
    """Share of the truth's connected components that the prediction overlaps; both masks have shape [H, W] or [D, H, W].

    None if the truth has no component.
    """
    components, number = ndimage.label(truth, structure=np.ones((3,) * truth.ndim))
    found = np.unique(components[prediction & truth])
    return len(found) / number if number else None
