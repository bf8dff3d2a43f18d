"""Shares of the experts and the balance loss of Fedus et al. (2021), by hand."""

import pytest
import torch

from pfedsam.model.components.routing import Routing


def test_usage_and_loss_by_hand() -> None:
    probabilities = torch.tensor([[0.6, 0.4], [0.8, 0.2], [0.7, 0.3], [0.1, 0.9]])
    selected = torch.tensor([[True, False], [True, False], [True, False], [False, True]])
    routing = Routing(probabilities, selected)
    assert routing.usage().tolist() == [0.75, 0.25]
    # 2 experts: 2 * (0.75 * mean(0.6, 0.8, 0.7, 0.1) + 0.25 * mean(0.4, 0.2, 0.3, 0.9)) = 2 * (0.75 * 0.55 + 0.25 * 0.45)
    assert routing.balance_loss().item() == pytest.approx(1.05)


def test_a_balanced_router_has_loss_one_and_one_that_uses_a_single_expert_has_as_many_as_there_are() -> None:
    even = Routing(torch.full((4, 4), 0.25), torch.eye(4, dtype=torch.bool))
    assert even.balance_loss().item() == pytest.approx(1)
    one = torch.zeros(2, 3, 4)
    one[..., 2] = 1
    assert Routing(one, one.bool()).balance_loss().item() == pytest.approx(4)


def test_gradients_go_to_the_probabilities() -> None:
    probabilities = torch.full((3, 2), 0.5, requires_grad=True)
    Routing(probabilities, torch.tensor([[True, False]] * 3)).balance_loss().backward()
    # E * f_e / tokens = 2 * (1, 0) / 3
    torch.testing.assert_close(probabilities.grad, torch.tensor([[2 / 3, 0.0]] * 3))
