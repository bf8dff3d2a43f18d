"""A packed optimiser goes on to the bit."""

import pytest
import torch
from torch import nn

from pfedsam.core.errors import StoreError
from pfedsam.training.optimizer import pack, unpack


def steps(parameter: nn.Parameter, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        (parameter**2).sum().backward()
        optimizer.step()


def test_it_goes_on_as_if_it_had_never_stopped() -> None:
    straight = nn.Parameter(torch.tensor([1.0, -2.0]))
    steps(straight, torch.optim.AdamW([straight], lr=0.1), 5)
    first = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = torch.optim.AdamW([first], lr=0.1)
    steps(first, optimizer, 3)
    second = nn.Parameter(first.detach().clone())
    resumed = torch.optim.AdamW([second], lr=0.1)
    unpack(resumed, {"w": second}, pack(optimizer, {"w": first}))
    steps(second, resumed, 2)
    assert torch.equal(second, straight)


def test_a_foreign_state_is_refused() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    with pytest.raises(StoreError, match="other"):
        unpack(torch.optim.AdamW([parameter]), {"w": parameter}, {"other:step": torch.zeros(1)})
