"""Distillation between the shared and the personal model (Hinton et al., 2015), per pixel, at the decoder's resolution."""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pfedsam.core.options import Options
from pfedsam.training.losses import with_background


class DistillationOptions(Options):
    """Who teaches whom, how strongly, and where."""

    direction: Literal["off", "forward", "reversed", "mutual"] = Field(
        default="forward",
        description="forward: the shared model teaches the personal one (coupled or local phase); reversed: the personal one "
        "teaches the shared one (coupled or global phase); mutual: both.",
    )
    weight: float = Field(default=0.1, ge=0, description="Lambda, the weight beside the segmentation loss.")
    temperature: float = Field(default=2.0, gt=0, description="T, which softens both predictions.")
    confidence_weighting: Literal["everywhere", "label"] = Field(
        default="label",
        description="everywhere: each pixel counts the same; label: a pixel counts as much as the teacher believes in its label, so "
        "that a teacher that is still poor teaches little.",
    )
    teacher: Literal["received", "own"] = Field(
        default="received",
        description="Shared parameters in the local phase: those received in this round, or the site's own after its global phase.",
    )


def distillation_loss(student: Tensor, teacher: Tensor, labels: Tensor, options: DistillationOptions) -> Tensor:
    """T^2 KL(teacher_T || student_T), mean over pixels.

    T^2 keeps the size of the gradient independent of T (Hinton et al., 2015, sec. 2.1).

    Args:
        student: class logits `[B, C, h, w]`.
        teacher: class logits `[B, C, h, w]`, without gradient.
        labels: `[B, S, S]`; used only for `confidence_weighting="label"`, at the nearest pixel.
        options: temperature and confidence weighting.
    """
    t = options.temperature
    student_log = F.log_softmax(with_background(student) / t, dim=1)
    teacher_log = F.log_softmax(with_background(teacher) / t, dim=1)
    divergence = (teacher_log.exp() * (teacher_log - student_log)).sum(dim=1)
    if options.confidence_weighting == "label":
        small = F.interpolate(labels[:, None].float(), size=teacher.shape[-2:], mode="nearest-exact").long()
        divergence = divergence * with_background(teacher).softmax(dim=1).gather(1, small)[:, 0]
    return t**2 * divergence.mean()
