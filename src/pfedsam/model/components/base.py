"""The interface of a component, one part of the personal model that declares its parameters and what it computes.

A component is made from its own options (`pfedsam.model.build`) and then attached to a model: it adds its parameters to the model and
returns their names. It can affect the computation in three ways: it replaces other parameters while the personal model computes
(`swapped`), it changes the output of an encoder block's attention (`after_attention`), or it adds to a block's output (`beside_mlp`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn

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
    """One part of the personal model."""

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
