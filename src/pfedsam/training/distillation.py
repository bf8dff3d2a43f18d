"""Distillation between the shared and the personal model (Hinton et al., 2015), per pixel, at the decoder's resolution."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pfedsam.core.options import Options
from pfedsam.data.labels import IGNORED, IGNORED_BIT
from pfedsam.training.losses import ALL_ANNOTATED, LabelForm, bits_of, merge_missing, no_loss, renumber, with_background


class DistillationOptions(Options):
    """Direction, weight and weighting by pixel of the distillation."""

    direction: Literal["off", "forward", "reversed", "mutual"] = Field(
        default="forward",
        description="forward: the shared model teaches the personal one (coupled or local phase); reversed: the personal one "
        "teaches the shared one (coupled or global phase); mutual: both.",
    )
    weight: float = Field(
        default=0.1, ge=0, description="Weight lambda of the distillation loss, relative to the segmentation loss."
    )
    temperature: float = Field(default=2.0, gt=0, description="Temperature T, which softens both predictions.")
    confidence_weighting: Literal["everywhere", "label"] = Field(
        default="label",
        description="Weight of a pixel. everywhere: all pixels have the same weight. label: the weight is the teacher's probability of "
        "the label, so that an inaccurate teacher has little influence.",
    )
    missing_classes: bool = Field(
        default=True,
        description="Whether the distillation also teaches the classes that a site does not annotate; the shared model has learnt them at "
        "other sites.",
    )
    steps: Literal["first", "all"] = Field(
        default="first",
        description="Steps of a round in which one model teaches the other if each learns from its own half of a batch "
        "(training.phases coupled-halves or halves). first: only in the first step, in which both learn from the same half, so that the "
        "teacher has predicted its images already. all: in every step, in which the teacher also predicts the other half, so that a step "
        "costs a fifth more (docs/decisions/0022).",
    )
    teacher: Literal["received", "own"] = Field(
        default="received",
        description="Shared parameters in the local phase: those received in this round, or the site's own after its global phase.",
    )


def distillation_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, options: DistillationOptions, form: LabelForm = ALL_ANNOTATED
) -> Tensor:
    """T^2 KL(teacher_T || student_T), mean over pixels.

    T^2 keeps the size of the gradient independent of T (Hinton et al., 2015, sec. 2.1). Where classes overlap, each class has a sigmoid and
    the divergence is the mean of the classes' binary ones. It is 0 if the site annotates no class.

    Args:
        student: class logits `[B, C, h, w]`.
        teacher: class logits `[B, C, h, w]`, without gradient.
        labels: `[B, S, S]`, taken at the nearest pixel; used for `confidence_weighting="label"` and for pixels to ignore.
        options: temperature, confidence weighting, and whether classes that the site does not annotate are taught.
        form: the meaning of the labels, and the classes that they contain.
    """
    if form.annotates_nothing:
        return no_loss(student)
    small = F.interpolate(labels[:, None].float(), size=teacher.shape[-2:], mode="nearest-exact")[:, 0].to(torch.uint8)
    missing = () if options.missing_classes else form.missing
    divergence = _binary if form.overlap else _exclusive
    values = divergence(student, teacher, options.temperature, missing)
    if options.confidence_weighting == "label":
        values = values * _label_probability(teacher, small, form)
    elif form.ignores:
        values = values * _counted(small, form)
    return options.temperature**2 * values.mean()


def _exclusive(student: Tensor, teacher: Tensor, temperature: float, missing: tuple[int, ...]) -> Tensor:
    """The divergence of each pixel, `[B, h, w]`, over background and classes; the missing ones are merged into the background."""
    student_log = F.log_softmax(merge_missing(with_background(student) / temperature, missing), dim=1)
    teacher_log = F.log_softmax(merge_missing(with_background(teacher) / temperature, missing), dim=1)
    return (teacher_log.exp() * (teacher_log - student_log)).sum(dim=1)


def _binary(student: Tensor, teacher: Tensor, temperature: float, missing: tuple[int, ...]) -> Tensor:
    """The mean over the classes, without the missing ones, of the divergence of their sigmoids, `[B, h, w]`."""
    kept = [i - 1 for i in range(1, teacher.shape[1] + 1) if i not in missing]
    ours, theirs = student[:, kept] / temperature, teacher[:, kept] / temperature
    inside = theirs.sigmoid() * (F.logsigmoid(theirs) - F.logsigmoid(ours))
    outside = (-theirs).sigmoid() * (F.logsigmoid(-theirs) - F.logsigmoid(-ours))
    return (inside + outside).mean(dim=1)


def _label_probability(teacher: Tensor, labels: Tensor, form: LabelForm) -> Tensor:
    """The teacher's probability of each pixel's label, `[B, h, w]`; 0 where a pixel is ignored.

    A site labels a class that it does not annotate as background. There the probability is the sum over background and such classes.
    """
    if form.overlap:
        kept = [i - 1 for i in range(1, teacher.shape[1] + 1) if i not in form.missing]
        inside = teacher[:, kept].sigmoid()
        probability = torch.where(bits_of(labels, teacher.shape[1])[:, kept] == 1, inside, 1 - inside).mean(dim=1)
    else:
        target = renumber(labels, form.missing, teacher.shape[1])
        known = torch.where(target == IGNORED, 0, target)[:, None]
        probability = merge_missing(with_background(teacher), form.missing).softmax(dim=1).gather(1, known)[:, 0]
    return probability * _counted(labels, form) if form.ignores else probability


def _counted(labels: Tensor, form: LabelForm) -> Tensor:
    """1 for each pixel of `[B, h, w]` that is used, and 0 for each one that is ignored."""
    return ((labels & IGNORED_BIT) == 0 if form.overlap else labels != IGNORED).float()
