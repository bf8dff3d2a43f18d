"""Dice + cross-entropy of a case that one can do by hand."""

import math

import pytest
import torch

from pfedsam.training.losses import segmentation_loss, with_background


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
