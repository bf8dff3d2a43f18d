"""T^2 KL(teacher || student), by hand for one pixel."""

import math

import pytest
import torch

from pfedsam.data.labels import IGNORED
from pfedsam.training.distillation import DistillationOptions, distillation_loss
from pfedsam.training.losses import LabelForm

LABELS = torch.ones(1, 1, 1, dtype=torch.uint8)


def loss(student: float, teacher: float, **options: object) -> float:
    chosen = DistillationOptions.model_validate({"temperature": 1.0, "confidence_weighting": "everywhere", **options})
    return distillation_loss(
        torch.full((1, 1, 1, 1), student), torch.full((1, 1, 1, 1), teacher), LABELS, chosen
    ).item()


def test_equal_predictions_cost_nothing() -> None:
    assert loss(1.7, 1.7) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_one_pixel_by_hand(temperature: float) -> None:
    def sigmoid(z: float) -> float:
        return 1 / (1 + math.exp(-z / temperature))

    p, q = sigmoid(2.0), sigmoid(-1.0)
    expected = temperature**2 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    assert loss(-1.0, 2.0, temperature=temperature) == pytest.approx(expected, rel=1e-5)


def test_a_pixel_counts_as_much_as_the_teacher_believes_in_its_label() -> None:
    belief = 1 / (1 + math.exp(-2.0))
    assert loss(-1.0, 2.0, confidence_weighting="label") == pytest.approx(belief * loss(-1.0, 2.0), rel=1e-5)


def divergence(teacher: list[float], student: list[float]) -> float:
    """KL of two lists of logits by hand, the background's 0 in front."""
    p, q = (torch.tensor([0.0, *logits]).softmax(0).tolist() for logits in (teacher, student))
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def pixel(*logits: float) -> torch.Tensor:
    return torch.tensor(logits).view(1, -1, 1, 1)


def test_a_teacher_that_sees_a_class_which_the_site_does_not_annotate_is_believed() -> None:
    teacher, student, background = [-2.0, 3.0], [0.5, 0.5], torch.zeros(1, 1, 1, dtype=torch.uint8)
    options = DistillationOptions(temperature=1.0, confidence_weighting="label")
    form = LabelForm(annotated=(True, False))
    p = torch.tensor([0.0, *teacher]).softmax(0).tolist()
    found = distillation_loss(pixel(*student), pixel(*teacher), background, options, form).item()
    assert found == pytest.approx((p[0] + p[2]) * divergence(teacher, student), rel=1e-5)
    everything = distillation_loss(pixel(*student), pixel(*teacher), background, options).item()
    assert everything == pytest.approx(p[0] * divergence(teacher, student), rel=1e-5)


def test_missing_classes_may_be_left_untaught() -> None:
    options = DistillationOptions(temperature=1.0, confidence_weighting="everywhere", missing_classes=False)
    form, labels = LabelForm(annotated=(True, False)), torch.zeros(1, 1, 1, dtype=torch.uint8)
    teacher = [0.3, 2.0]
    rest = math.log(1 + math.exp(teacher[1]))
    merged = [teacher[0] - rest]  # against the background with the missing class
    found = distillation_loss(pixel(0.1, -1.0), pixel(*teacher), labels, options, form).item()
    assert found == pytest.approx(divergence(merged, [0.1 - math.log(1 + math.exp(-1.0))]), rel=1e-5)


def test_ignored_pixels_teach_nothing() -> None:
    form, labels = LabelForm(ignores=True), torch.full((1, 1, 1), IGNORED, dtype=torch.uint8)
    for weighting in ("label", "everywhere"):
        options = DistillationOptions.model_validate({"confidence_weighting": weighting})
        assert distillation_loss(pixel(1.0), pixel(-2.0), labels, options, form).item() == 0


def test_overlapping_classes_have_a_divergence_each() -> None:
    options = DistillationOptions(temperature=1.0, confidence_weighting="everywhere")
    form, labels = LabelForm(overlap=True), torch.zeros(1, 1, 1, dtype=torch.uint8)
    found = distillation_loss(pixel(0.2, -1.0), pixel(1.5, 0.0), labels, options, form).item()
    assert found == pytest.approx((divergence([1.5], [0.2]) + divergence([0.0], [-1.0])) / 2, rel=1e-5)


@pytest.mark.parametrize("missing_classes", [False, True])
@pytest.mark.parametrize("weighting", ["label", "everywhere"])
@pytest.mark.parametrize("overlap", [False, True])
def test_at_a_site_that_annotates_no_class_nothing_is_taught(
    overlap: bool, weighting: str, missing_classes: bool
) -> None:
    options = DistillationOptions.model_validate(
        {"confidence_weighting": weighting, "missing_classes": missing_classes}
    )
    student = pixel(0.5, -1.0).requires_grad_()
    form, labels = LabelForm((False, False), overlap), torch.zeros(1, 1, 1, dtype=torch.uint8)
    found = distillation_loss(student, pixel(2.0, 1.0), labels, options, form)
    found.backward()
    assert found.item() == 0
    assert student.grad is not None
    assert student.grad.eq(0).all()
