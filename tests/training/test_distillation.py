"""T^2 KL(teacher || student), by hand for one pixel."""

import math

import pytest
import torch

from pfedsam.training.distillation import DistillationOptions, distillation_loss

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
