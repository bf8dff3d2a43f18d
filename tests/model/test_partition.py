"""The partition is total and disjoint, and assignment is strict."""

import pytest
import torch
from torch import nn

from pfedsam.core.errors import PartitionError
from pfedsam.model.partition import Partition, assign

COMPONENTS = {"first": ("0.weight", "0.bias"), "second": ("1.weight",)}


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))


def test_every_parameter_has_one_kind() -> None:
    partition = Partition.of(model(), COMPONENTS, {"first": "shared", "second": "local"})
    assert partition.shared == ("0.bias", "0.weight")
    assert partition.local == ("1.weight",)
    assert partition.frozen == ("1.bias",)
    assert partition.names("local", "shared") == ("0.bias", "0.weight", "1.weight")


@pytest.mark.parametrize(
    ("components", "placement", "words"),
    [
        (COMPONENTS, {"third": "shared"}, "third"),
        (COMPONENTS, {"first": "Shared"}, "Component 'first' is placed as 'Shared'; allowed: frozen, shared, local"),
        ({**COMPONENTS, "third": ("2.weight",)}, {}, "no such parameter"),
        ({**COMPONENTS, "third": ("1.weight",)}, {}, "another component"),
    ],
)
def test_unsound_partitions_are_refused(components: dict, placement: dict, words: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(PartitionError, match=words):
        Partition.of(model(), components, placement)


def test_assign_takes_exactly_the_names_and_shapes() -> None:
    target = model()
    assign(target, {"1.weight": torch.ones(1, 2)}, ("1.weight",))
    assert target[1].weight.tolist() == [[1.0, 1.0]]
    for wrong in ({}, {"1.weight": torch.ones(1, 2), "1.bias": torch.ones(1)}, {"1.weight": torch.ones(2, 2)}):
        with pytest.raises(PartitionError):
            assign(target, wrong, ("1.weight",))
