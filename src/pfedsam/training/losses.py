"""The segmentation loss, by MONAI, and its marginal form for sites that do not annotate every class.

If a site does not annotate a class, its labels mark that organ as background. The marginal loss (Shi et al., "Marginal loss and exclusion
loss for partially supervised multi-organ segmentation", Medical Image Analysis 2021, eq. 3) therefore adds the probability of every class
that is not annotated to the background's before the cross-entropy and the Dice loss are computed, so that the site has no influence on the
distinction between these classes and the background. If no class is annotated, nothing is left to distinguish: the loss is 0.

There are two forms of labels. If classes exclude one another, a label is the number of its class. If they overlap, a label is a set of
bits, one for each class, and each class has its own sigmoid.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from monai.losses.dice import DiceCELoss, DiceLoss
from monai.losses.tversky import TverskyLoss
from torch import Tensor

from pfedsam.data.labels import IGNORED, IGNORED_BIT

LossName: TypeAlias = Literal["dice_ce", "focal_tversky"]

_DICE_CE = DiceCELoss(
    include_background=False, softmax=True, to_onehot_y=True, batch=True, smooth_nr=1.0, smooth_dr=1.0
)
_DICE = DiceLoss(batch=True, smooth_nr=1.0, smooth_dr=1.0)
# Abraham and Khan, "A novel focal Tversky loss function" (2019): missed pixels weigh more than false ones, exponent 3/4.
_TVERSKY = TverskyLoss(alpha=0.3, beta=0.7, batch=True, smooth_nr=1.0, smooth_dr=1.0, reduction="none")
_FOCAL_EXPONENT = 0.75


@dataclass(frozen=True)
class LabelForm:
    """The meaning of a site's labels, which is the same for all its images."""

    annotated: tuple[bool, ...] | None = None
    """For each class whether the site annotates it; None: all classes are annotated."""
    overlap: bool = False
    """Labels are sets of bits, one per class, instead of class numbers."""
    ignores: bool = False
    """Some pixels have the label `IGNORED` (or `IGNORED_BIT`) and are left out of every loss."""

    @property
    def missing(self) -> tuple[int, ...]:
        """The numbers 1..C of the classes that the site does not annotate."""
        return tuple(i for i, there in enumerate(self.annotated or (), start=1) if not there)

    @property
    def annotates_nothing(self) -> bool:
        """Whether the site annotates no class, so that its labels contain no information."""
        return self.annotated is not None and not any(self.annotated)


ALL_ANNOTATED = LabelForm()


def no_loss(logits: Tensor) -> Tensor:
    """The loss 0, whose gradient with respect to the logits is 0."""
    return (0 * logits).sum()


def with_background(logits: Tensor) -> Tensor:
    """Class logits `[B, C, h, w]` with the background's logit 0 in front: `[B, C + 1, h, w]`."""
    return torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1)


def merge_missing(logits: Tensor, missing: tuple[int, ...]) -> Tensor:
    """Merge missing classes into the background: logits of shape `[B, C + 1, h, w]`, background first, to `[B, C + 1 - m, h, w]`.

    In the softmax of the result, the first probability is that of the background plus those of the missing classes; the others are
    unchanged.
    """
    if not missing:
        return logits
    background = torch.logsumexp(logits[:, [0, *missing]], dim=1, keepdim=True)
    kept = [i for i in range(1, logits.shape[1]) if i not in missing]
    return torch.cat([background, logits[:, kept]], dim=1)


def renumber(labels: Tensor, missing: tuple[int, ...], classes: int) -> Tensor:
    """Labels `[B, S, S]` of class numbers 0..C in the numbers of `merge_missing`'s channels, int64; `IGNORED` stays."""
    if not missing:
        return labels.long()
    table = torch.zeros(IGNORED + 1, dtype=torch.int64, device=labels.device)
    kept = [i for i in range(1, classes + 1) if i not in missing]
    table[kept] = torch.arange(1, len(kept) + 1, device=labels.device)
    table[IGNORED] = IGNORED
    return table[labels.long()]


def segmentation_loss(
    logits: Tensor, labels: Tensor, form: LabelForm = ALL_ANNOTATED, loss: LossName = "dice_ce"
) -> Tensor:
    """Dice (or focal Tversky) over the annotated classes and the whole batch, plus cross-entropy, at the labels' resolution.

    Args:
        logits: logits of the classes, `[B, C, h, w]`; they are scaled up bilinearly.
        labels: `[B, S, S]` uint8: class numbers, or bits if classes overlap.
        form: the meaning of the labels, and the classes that they contain.
        loss: dice_ce, or focal_tversky for structures that fill a small part of the image.
    """
    if form.annotates_nothing:
        return no_loss(logits)
    logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    if form.overlap:
        return _overlapping(logits, labels, form, loss)
    merged = merge_missing(with_background(logits), form.missing)
    if loss == "dice_ce" and not form.ignores:
        return _DICE_CE(merged, renumber(labels, form.missing, logits.shape[1])[:, None])  # type: ignore[no-any-return]
    target = renumber(labels, form.missing, logits.shape[1])
    valid = target != IGNORED
    known = torch.where(valid, target, 0)
    entropy = _mean_over(F.cross_entropy(merged, known, reduction="none"), valid)
    truth = F.one_hot(known, merged.shape[1]).movedim(-1, 1) * valid[:, None]
    return _region(merged.softmax(dim=1)[:, 1:] * valid[:, None], truth[:, 1:].float(), loss) + entropy


def bits_of(labels: Tensor, classes: int) -> Tensor:
    """Bit labels `[B, S, S]` as one mask per class, `[B, C, S, S]` of 0 and 1, uint8."""
    shifts = torch.arange(classes, device=labels.device, dtype=torch.uint8).view(1, -1, 1, 1)
    return (labels[:, None] >> shifts) & 1


def _overlapping(logits: Tensor, labels: Tensor, form: LabelForm, loss: LossName) -> Tensor:
    """Dice (or focal Tversky) plus binary cross-entropy of each annotated class; shapes as in `segmentation_loss`."""
    kept = [i - 1 for i in range(1, logits.shape[1] + 1) if i not in form.missing]
    valid = (labels & IGNORED_BIT) == 0
    truth = bits_of(labels, logits.shape[1])[:, kept].float() * valid[:, None]
    answers = logits[:, kept]
    entropy = F.binary_cross_entropy_with_logits(answers, truth, reduction="none").mean(dim=1)
    return _region(answers.sigmoid() * valid[:, None], truth, loss) + _mean_over(entropy, valid)


def _region(probabilities: Tensor, truth: Tensor, loss: LossName) -> Tensor:
    """The Dice or Tversky part of the loss; both inputs `[B, C, S, S]`, 0 at ignored pixels."""
    if loss == "dice_ce":
        return _DICE(probabilities, truth)  # type: ignore[no-any-return]
    return _TVERSKY(probabilities, truth).clamp_min(1e-6).pow(_FOCAL_EXPONENT).mean()  # type: ignore[no-any-return]


def _mean_over(values: Tensor, valid: Tensor) -> Tensor:
    """The mean of values `[B, S, S]` over the valid pixels; 0 if there is none."""
    return (values * valid).sum() / valid.sum().clamp_min(1)
