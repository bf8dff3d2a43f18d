"""What a component is: one part of the personal model, which declares its parameters and how it takes part.

A component is made of its own few options (`pfedsam.model.build`), and then attached to a model: it puts its parameters there, and names
them. It can take part in three ways: it replaces values of other parameters while the personal model computes (`swapped`), it changes
what an encoder block's attention gives (`after_attention`), or it adds something to a block's output (`beside_mlp`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from pfedsam.model.backbones.base import Backbone
from pfedsam.model.components.routing import Routing

NETWORK = "sam"
"""The name of the backbone's network within the personal model."""
Read: TypeAlias = Callable[[str], Tensor]
"""Gives the value with which the model computes for a parameter's name: the parameter, or what stands in its place so far."""
BesideMlp: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From a block's output and its MLP's input, `[B, h, w, d]` each, to the block's output with something added."""
AfterAttention: TypeAlias = Callable[[Tensor], Tensor]
"""From the output of a block's attention, `[B, h, w, d]`, to what is added to the tokens."""


@dataclass
class Assembly:
    """A model to which components are being attached, one after the other."""

    model: nn.Module
    """The personal model; the backbone's network is its part called `sam`."""
    backbone: Backbone
    first_adapted: int
    """The first encoder block that is adapted."""
    classes: int
    generator: torch.Generator
    """For what starts at random; components draw from it in the order in which they are attached."""
    declared: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The names in the model of the parameters of each group so far."""

    @property
    def adapted(self) -> range:
        """The encoder blocks that are adapted."""
        return range(self.first_adapted, len(self.backbone.blocks))

    def add(self, name: str, part: nn.Module | nn.Parameter) -> list[str]:
        """Put `part` into the model under `name`; gives the names of its parameters."""
        if isinstance(part, nn.Parameter):
            self.model.register_parameter(name, part)
            return [name]
        self.model.add_module(name, part)
        return [f"{name}.{own}" for own, _ in part.named_parameters()]

    def names(self, *groups: str) -> list[str]:
        """The parameters of these groups; none for a group that the model does not have."""
        return [name for group in groups for name in self.declared.get(group, ())]

    def withhold(self, names: Iterable[str]) -> None:
        """Take parameters out of the groups declared so far: no model computes with them as they are, so they stay frozen."""
        withheld = set(names)
        for group, own in self.declared.items():
            self.declared[group] = tuple(name for name in own if name not in withheld)


class Component(ABC):
    """One part of the personal model."""

    groups: ClassVar[tuple[str, ...]]
    """The names under which its parameters are placed and reported; most components have one."""
    local_only: ClassVar[bool] = False
    """Only the personal model computes with it; the shared model is what remains when it is switched off."""
    addition: ClassVar[bool] = False
    """It is there because an option asks for it, and has no purpose under a method that does not train it."""
    pretrained: ClassVar[bool] = False
    """Its parameters are the backbone's own weights, which are trained at a lower learning rate."""
    from_pixels: ClassVar[bool] = False
    """It changes the encoder from its first layer on, so that no frozen features can be kept."""

    @abstractmethod
    def attach(self, assembly: Assembly) -> Mapping[str, Iterable[str]]:
        """Put its parameters into a model; gives their names in the model by group."""

    def swapped(self, read: Read) -> dict[str, Tensor]:
        """The values that replace other parameters, by the names of those parameters and in their shapes."""
        return {}

    def origins(self) -> dict[str, str]:
        """The parameters that began as copies of shared ones, each with that one's name."""
        return {}

    def class_numbers(self) -> dict[str, tuple[int, ...]]:
        """The parameters that belong to single classes, by name: the number 1..C of each row, or a single one for the whole parameter."""
        return {}

    def routers(self) -> dict[str, int]:
        """The number of experts that it has beside each encoder block, by block."""
        return {}

    def after_attention(self, block: int) -> AfterAttention | None:
        """What it makes of the output of the attention of an encoder block."""
        return None

    def beside_mlp(self, block: int, routings: dict[str, Routing] | None) -> BesideMlp | None:
        """What it adds to the output of an encoder block.

        Args:
            block: which one.
            routings: receives, by block, where a router sent the tokens.
        """
        return None
