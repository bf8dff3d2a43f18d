"""The partition of a model's parameters into frozen, shared and local ones.

Modules declare their parameters as named *components*. A method places each component; all other parameters are frozen. An update
contains exactly the `shared` parameters and can contain nothing else.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pfedsam.core.errors import PartitionError
from pfedsam.core.tensors import NamedTensors

Kind = Literal["frozen", "shared", "local"]
Placement = Mapping[str, Kind]
"""Component -> kind; components that are not named are frozen."""


@dataclass(frozen=True)
class Partition:
    """The kind of every parameter of a model; each parameter has exactly one kind."""

    frozen: tuple[str, ...]
    shared: tuple[str, ...]
    local: tuple[str, ...]
    components: Mapping[str, tuple[str, ...]]
    """Trained component -> its parameters, used to count what is sent."""

    @classmethod
    def of(cls, model: nn.Module, components: Mapping[str, tuple[str, ...]], placement: Placement) -> "Partition":
        """The partition of `model` under a placement.

        Args:
            model: the model.
            components: named groups of its parameters, as its modules declare them.
            placement: kind of each component.

        Raises:
            PartitionError: a component or its kind is unknown, or a component contains a parameter that the model lacks, or overlaps
                another.
        """
        unknown = set(placement) - set(components)
        if unknown:
            raise PartitionError(
                f"The model has no component {', '.join(sorted(unknown))}; it has {', '.join(sorted(components))}."
            )
        for component, kind in placement.items():
            if kind not in _KINDS:
                raise PartitionError(f"Component {component!r} is placed as {kind!r}; allowed: {', '.join(_KINDS)}.")
        names = {name for name, _ in model.named_parameters()}
        owners = _owners(names, components)
        kinds = {name: placement.get(owners.get(name, ""), "frozen") for name in sorted(names)}
        frozen, shared, local = (tuple(name for name in kinds if kinds[name] == kind) for kind in _KINDS)
        trained = {c: tuple(m) for c, m in components.items() if placement.get(c, "frozen") != "frozen"}
        return cls(frozen, shared, local, trained)

    def names(self, *kinds: Kind) -> tuple[str, ...]:
        """The parameters of these kinds, sorted."""
        chosen = {"frozen": self.frozen, "shared": self.shared, "local": self.local}
        return tuple(sorted(name for kind in kinds for name in chosen[kind]))

    def select(self, model: nn.Module, *kinds: Kind) -> dict[str, Tensor]:
        """Copies of the parameters of these kinds by name, in their shapes, on the CPU."""
        return {name: model.get_parameter(name).detach().to("cpu", copy=True) for name in self.names(*kinds)}


_KINDS: tuple[Kind, Kind, Kind] = ("frozen", "shared", "local")


def _owners(names: Collection[str], components: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Parameter -> the component that declares it; parameters of no component are left out.

    Raises:
        PartitionError: a component declares a parameter that is not one of the `names`, or that another one declares.
    """
    owners: dict[str, str] = {}
    for component, members in components.items():
        for name in members:
            if name not in names:
                raise PartitionError(f"Component {component!r} contains {name!r}, but the model has no such parameter.")
            if name in owners:
                raise PartitionError(f"Parameter {name!r} belongs to {component!r} and to another component.")
            owners[name] = component
    return owners


def assign(model: nn.Module, values: NamedTensors, names: tuple[str, ...]) -> None:
    """Write `values` into the parameters `names`; both must have the same names.

    Raises:
        PartitionError: a value is missing, is not expected, or has another shape.
    """
    if set(values) != set(names):
        missing, extra = sorted(set(names) - set(values)), sorted(set(values) - set(names))
        raise PartitionError(f"Expected exactly {len(names)} tensors; missing {missing[:3]}, unexpected {extra[:3]}.")
    with torch.no_grad():
        for name in names:
            parameter = model.get_parameter(name)
            if parameter.shape != values[name].shape:
                shapes = f"{tuple(values[name].shape)}, expected {tuple(parameter.shape)}"
                raise PartitionError(f"Tensor {name!r} has the shape {shapes}.")
            parameter.copy_(values[name])
