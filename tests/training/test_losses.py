"""Dice + cross-entropy of a case that one can do by hand."""

import math

import pytest
import torch

from pfedsam.data.labels import IGNORED, IGNORED_BIT
from pfedsam.training.losses import (
    LabelForm,
    LossName,
    bits_of,
    merge_missing,
    renumber,
    segmentation_loss,
    with_background,
)


def test_background_has_logit_zero_in_front() -> None:
    assert with_background(torch.full((1, 2, 1, 1), 3.0))[0, :, 0, 0].tolist() == [0.0, 3.0, 3.0]


def test_two_by_two_by_hand() -> None:
    labels = torch.tensor([[[1, 0], [0, 0]]], dtype=torch.uint8)
    logits = torch.zeros(1, 1, 2, 2)  # every pixel has probability 1/2
    dice = 1 - (2 * 0.5 + 1) / (1 + 2 + 1)
    assert segmentation_loss(logits, labels).item() == pytest.approx(dice + math.log(2), rel=1e-5)


def test_the_right_answer_costs_almost_nothing() -> None:
    labels = torch.tensor([[[1, 0], [0, 2]]], dtype=torch.uint8)
    logits = torch.stack([20.0 * (labels[0] == 1) - 10, 20.0 * (labels[0] == 2) - 10])[None]
    assert segmentation_loss(logits, labels).item() < 1e-3


def random_case(classes: int = 3, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, 8, 8, generator=drawn)
    return logits, torch.randint(0, classes + 1, (2, 8, 8), generator=drawn).to(torch.uint8)


def test_the_probability_of_a_missing_class_joins_the_backgrounds() -> None:
    logits, _ = random_case()
    before, merged = with_background(logits).softmax(dim=1), merge_missing(with_background(logits), (2,)).softmax(dim=1)
    assert torch.allclose(merged[:, 0], before[:, 0] + before[:, 2])
    assert torch.allclose(merged[:, 1:], before[:, [1, 3]])


def test_labels_are_renumbered_with_the_channels() -> None:
    labels = torch.tensor([[[0, 1, 2, 3, IGNORED]]], dtype=torch.uint8)
    assert renumber(labels, (2,), 3).tolist() == [[[0, 1, 0, 2, IGNORED]]]


def test_a_missing_class_by_hand() -> None:
    logits = torch.zeros(
        1, 2, 2, 2
    )  # background and both classes have 1/3 each; without class 2 the background has 2/3
    labels = torch.tensor([[[1, 0], [0, 0]]], dtype=torch.uint8)
    dice = 1 - (2 / 3 + 1) / (4 / 3 + 1 + 1)
    entropy = -(math.log(1 / 3) + 3 * math.log(2 / 3)) / 4
    form = LabelForm(annotated=(True, False))
    assert segmentation_loss(logits, labels, form).item() == pytest.approx(dice + entropy, rel=1e-5)


def test_how_mass_is_divided_between_background_and_a_missing_class_changes_nothing() -> None:
    form, labels = LabelForm(annotated=(True, False)), torch.tensor([[[1, 0], [0, 0]]], dtype=torch.uint8)
    losses = []
    for missing in (-3.0, 0.0, 2.0):
        # The mass of background and class 2 stays e^2 + 1; the logit of class 1 keeps its distance to it.
        rest = math.log(1 + math.exp(missing))
        logits = torch.tensor([0.7 + rest, missing]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
        losses.append(segmentation_loss(logits, labels, form).item())
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_a_site_learns_the_right_answer_for_a_class_that_it_does_not_annotate() -> None:
    """The same pixel, called background by this site: predicting the missing class there costs as little as background."""
    labels = torch.zeros(1, 2, 2, dtype=torch.uint8)
    organ = torch.tensor([-9.0, 9.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    assert segmentation_loss(organ, labels, LabelForm(annotated=(True, False))).item() < 1e-3
    assert segmentation_loss(organ, labels).item() > 8


def test_pixels_to_ignore_count_nowhere() -> None:
    logits, labels = random_case()
    form = LabelForm(ignores=True)
    labels[:, :, 5:] = IGNORED
    changed = logits.clone()
    changed[:, :, :, 5:] += 7
    assert segmentation_loss(changed, labels, form).item() == pytest.approx(
        segmentation_loss(logits, labels, form).item()
    )
    only = torch.full_like(labels, IGNORED)
    assert math.isfinite(segmentation_loss(logits, only, form).item())


def test_without_ignored_pixels_both_ways_agree() -> None:
    logits, labels = random_case()
    form = LabelForm(annotated=(True, False, True))
    ignoring = LabelForm(annotated=(True, False, True), ignores=True)
    labels[labels == 2] = 0
    assert segmentation_loss(logits, labels, ignoring).item() == pytest.approx(
        segmentation_loss(logits, labels, form).item()
    )


def test_bits_by_hand() -> None:
    labels = torch.tensor([[[0b00, 0b01], [0b11, 0b10]]], dtype=torch.uint8)
    assert bits_of(labels, 2)[0].tolist() == [[[0, 1], [1, 0]], [[0, 0], [1, 1]]]


def test_overlapping_classes_by_hand() -> None:
    labels = torch.tensor([[[0b01, 0], [0, 0]]], dtype=torch.uint8)
    logits = torch.zeros(1, 2, 2, 2)
    one, none = 1 - (2 * 0.5 + 1) / (2 + 1 + 1), 1 - (0 + 1) / (2 + 0 + 1)
    expected = (one + none) / 2 + math.log(2)
    assert segmentation_loss(logits, labels, LabelForm(overlap=True)).item() == pytest.approx(expected, rel=1e-5)
    alone = LabelForm(annotated=(True, False), overlap=True)
    assert segmentation_loss(logits, labels, alone).item() == pytest.approx(one + math.log(2), rel=1e-5)


def test_overlapping_pixels_to_ignore_count_nowhere() -> None:
    form, logits = LabelForm(overlap=True, ignores=True), random_case(2)[0]
    labels = torch.zeros(2, 8, 8, dtype=torch.uint8)
    labels[:, 2:4, 2:4], labels[:, :, 5:] = 0b11, IGNORED_BIT
    changed = logits.clone()
    changed[:, :, :, 5:] += 7
    assert segmentation_loss(changed, labels, form).item() == pytest.approx(
        segmentation_loss(logits, labels, form).item()
    )


def test_focal_tversky_by_hand() -> None:
    labels = torch.tensor([[[1, 0], [0, 0]]], dtype=torch.uint8)
    index = (0.5 + 1) / (0.5 + 0.3 * 1.5 + 0.7 * 0.5 + 1)  # true, false and missed mass: 1/2, 3/2, 1/2
    expected = (1 - index) ** 0.75 + math.log(2)
    found = segmentation_loss(torch.zeros(1, 1, 2, 2), labels, loss="focal_tversky")
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", ["dice_ce", "focal_tversky"])
@pytest.mark.parametrize("ignores", [False, True])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("classes", [1, 3])
def test_a_site_that_annotates_no_class_has_no_influence(
    classes: int, overlap: bool, ignores: bool, loss: LossName
) -> None:
    logits = random_case(classes)[0].requires_grad_()
    form = LabelForm((False,) * classes, overlap, ignores)
    found = segmentation_loss(logits, torch.zeros(2, 16, 16, dtype=torch.uint8), form, loss)
    found.backward()
    assert found.item() == 0
    assert logits.grad is not None
    assert logits.grad.eq(0).all()
