"""Values that stand in the place of others: exact, and gone afterwards."""

import pytest
import torch
from torch import nn

from pfedsam.model.local_values import LocalCopy, LocalDelta, norm_names, swapped_parameters


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 1)))


def test_values_are_used_within_and_gone_after() -> None:
    net, x = model(), torch.randn(3, 2)
    plain, weight = net(x), net[0].weight
    with swapped_parameters(net, {"0.weight": torch.zeros(2, 2), "1.1.bias": torch.ones(1)}):
        assert net[0].weight.count_nonzero() == 0
        assert not torch.equal(net(x), plain)
    assert net[0].weight is weight
    assert torch.equal(net(x), plain)


def test_they_are_gone_after_an_error() -> None:
    net = model()
    weight = net[0].weight
    with pytest.raises(ZeroDivisionError), swapped_parameters(net, {"0.weight": torch.zeros(2, 2)}):
        raise ZeroDivisionError
    assert net[0].weight is weight


def test_a_copy_starts_as_what_it_copies_and_goes_its_own_way() -> None:
    net = model()
    copies = LocalCopy(net, ["0.weight", "1.1.bias"])
    assert torch.equal(copies.values(net.get_parameter)["0.weight"], net[0].weight)
    with torch.no_grad():
        net[0].weight.zero_()
    assert copies.values(net.get_parameter)["0.weight"].count_nonzero() > 0
    assert sorted(name for name, _ in copies.named_parameters()) == ["0-weight", "1-1-bias"]


def test_a_difference_starts_at_zero_and_goes_along_with_what_it_is_added_to() -> None:
    net = model()
    added = LocalDelta(net, ["0.weight"])
    assert torch.equal(added.values(net.get_parameter)["0.weight"], net[0].weight)
    with torch.no_grad():
        added.get_parameter("0-weight").fill_(2)
        net[0].weight.fill_(1)
    assert torch.equal(added.values(net.get_parameter)["0.weight"], torch.full((2, 2), 3.0))


def test_norms_are_found_by_what_they_are() -> None:
    assert norm_names({"net": model()}) == ["net.1.0.weight", "net.1.0.bias"]
