"""The interface of a component, one part of the personal model that declares its parameters and what it computes.

A component is made from its own options (`pfedsam.model.build`) and then attached to a model: it adds its parameters to the model and
returns their names. It can affect the computation in three ways: it replaces other parameters while the personal model computes
(`swapped`), it changes the output of an encoder block's attention (`after_attention`), or it adds to a block's output (`beside_mlp`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from pfedsam.core.errors import PartitionError
from pfedsam.model.backbones.base import Backbone
from pfedsam.model.components.routing import Routing
from pfedsam.model.segmenter import Declared

NETWORK = "sam"
"""The name of the backbone's network within the personal model."""
Read: TypeAlias = Callable[[str], Tensor]
"""A function from a parameter's name to its value in the computation: the parameter, or the value that replaces it so far."""
BesideMlp: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""A function from a block's output and its MLP's input, `[B, h, w, d]` each, to the new output of the block."""
AfterAttention: TypeAlias = Callable[[Tensor], Tensor]
"""A function from the output of a block's attention, `[B, h, w, d]`, to the values that are added to the tokens."""


@dataclass
class Assembly:
    """A model to which components are being attached, one after the other."""

    model: nn.Module
    """The personal model; the backbone's network is its submodule `sam`."""
    backbone: Backbone
    first_adapted: int
    """The first encoder block that is adapted."""
    classes: int
    generator: torch.Generator
    """Source of the random initial values; components draw from it in the order in which they are attached."""
    declared: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Group -> names of its parameters in the model, for the components attached so far."""

    @property
    def adapted(self) -> range:
        """The encoder blocks that are adapted."""
        return range(self.first_adapted, len(self.backbone.blocks))

    def add(self, name: str, part: nn.Module | nn.Parameter) -> list[str]:
        """Add `part` to the model under `name`, and return the names of its parameters."""
        if isinstance(part, nn.Parameter):
            self.model.register_parameter(name, part)
            return [name]
        self.model.add_module(name, part)
        return [f"{name}.{own}" for own, _ in part.named_parameters()]

    def names(self, *groups: str) -> list[str]:
        """The parameters of these groups; groups that the model does not have are ignored."""
        return [name for group in groups for name in self.declared.get(group, ())]

    def withhold(self, names: Iterable[str]) -> None:
        """Remove parameters from the groups declared so far: another component replaces them, so they stay frozen."""
        withheld = set(names)
        for group, own in self.declared.items():
            self.declared[group] = tuple(name for name in own if name not in withheld)


class Component(Declared, ABC):
    """One part of the personal model.

    A site stores and sends parameters only, and a model is always in evaluation mode. Therefore a component must not learn anything in
    buffers, such as the running statistics of BatchNorm, and Dropout has no effect; `attach_component` refuses both.
    """

    from_pixels: ClassVar[bool] = False
    """Whether it changes the encoder from its first layer on, so that no frozen features can be cached."""

    @abstractmethod
    def attach(self, assembly: Assembly) -> Mapping[str, Iterable[str]]:
        """Add its parameters to a model, and return group -> names of the parameters in the model."""

    def swapped(self, read: Read) -> dict[str, Tensor]:
        """The values that replace other parameters, by the names of those parameters and in their shapes."""
        return {}

    def after_attention(self, block: int) -> AfterAttention | None:
        """The function that it applies to the output of the attention of an encoder block, or None."""
        return None

    def beside_mlp(self, block: int, routings: dict[str, Routing] | None) -> BesideMlp | None:
        """The function that adds to the output of an encoder block, or None.

        Args:
            block: index of the block.
            routings: if given, the routing of each block with a router is added to it.
        """
        return None


def attach_component(part: Component, assembly: Assembly) -> None:
    """Attach a component to a model, and declare its groups of parameters.

    Raises:
        PartitionError: the component attaches other groups than it declares, or one that another component has; it adds a parameter that is
            in no group, which would never be trained; or it adds a layer that computes otherwise in training.
    """
    kind, before = type(part).__name__, [*assembly.model.parameters(), *assembly.model.modules()]
    groups = {group: tuple(names) for group, names in part.attach(assembly).items()}
    if set(groups) != set(part.groups):
        raise PartitionError(
            f"The component {kind} declares the groups {_listed(part.groups)}, and its `attach` returns {_listed(groups)}: give the same "
            "groups in both."
        )
    if taken := set(groups) & set(assembly.declared):
        raise PartitionError(
            f"The component {kind} has the group {_listed(taken)}, as another component has: give it a group of its own."
        )
    known, named = set(map(id, before)), set(chain.from_iterable(groups.values()))
    loose = [name for name, one in assembly.model.named_parameters() if id(one) not in known and name not in named]
    if loose:
        raise PartitionError(
            f"The component {kind} adds {loose[0]!r}, which is in none of its groups and would never be trained: return it in a group."
        )
    odd = [type(one).__name__ for one in assembly.model.modules() if id(one) not in known and _differs_in_training(one)]
    if odd:
        raise PartitionError(
            f"The component {kind} adds the layer {odd[0]}. Models are always in evaluation mode, so that Dropout has no effect, and "
            "BatchNorm would neither compute nor store its statistics: use InstanceNorm, GroupNorm or LayerNorm, and no Dropout."
        )
    assembly.declared.update(groups)


def _differs_in_training(layer: nn.Module) -> bool:
    """Whether a layer computes otherwise in training than in evaluation."""
    if isinstance(layer, _DropoutNd):
        return layer.p > 0
    return isinstance(layer, _NormBase) and layer.track_running_stats


def _listed(groups: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(groups))) or "none"
