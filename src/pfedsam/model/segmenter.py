"""The interface of a model that is trained in a federation: named components, frozen features, and class logits.

Two families implement it: the personal SAM (`pfedsam.model.personal`) and the U-Net (`pfedsam.model.unet`). Training, evaluation and the
federation use only this interface.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from pfedsam.model.components.routing import Routing


class Declared:
    """What a component declares about its groups of parameters."""

    groups: ClassVar[tuple[str, ...]]
    """The names of its groups of parameters, used for placement and reports; most components have one group."""
    local_only: ClassVar[bool] = False
    """Whether only the personal model uses it; the shared model is the model with such components switched off."""
    addition: ClassVar[bool] = False
    """Whether an option adds it, so that it has no purpose with a method that does not train it."""
    pretrained: ClassVar[bool] = False
    """Whether its parameters are the backbone's own weights, which are trained at a lower learning rate."""

    def origins(self) -> dict[str, str]:
        """Parameter that began as a copy of a shared one -> the name of the shared one."""
        return {}

    def class_numbers(self) -> dict[str, tuple[int, ...]]:
        """Parameter that belongs to single classes -> the class number 1..C of each row, or one number for the whole parameter.

        It is used for averaging, so that parameters that are always local are left out.
        """
        return {}

    def routers(self) -> dict[str, int]:
        """Encoder block -> number of experts beside it."""
        return {}


class Segmenter(nn.Module):
    """A model that predicts one mask per class without a prompt.

    The background has logit 0, and classes exclude one another: the probabilities are the softmax over `[0, z_1 .. z_C]`.
    """

    classes: int
    """Number of classes C, without the background."""
    image_size: int
    """Side S in pixels of the square input."""
    from_pixels: bool
    """Whether no part is frozen, so that `prefix` returns the pixels and nothing can be cached."""
    frozen_dtype: torch.dtype
    """Precision of the frozen weights."""
    first_adapted: int
    """Number of the frozen blocks whose output `prefix` computes."""
    _components: Mapping[str, tuple[str, ...]]

    @property
    @abstractmethod
    def declarations(self) -> Sequence[Declared]:
        """The components of the model."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the model, to which `prefix` and `from_prefix` move their inputs."""

    @property
    @abstractmethod
    def prefix_shape(self) -> tuple[int, int, int]:
        """Shape of the frozen features of one image: (h, w, channels), or (3, S, S) if nothing is frozen."""

    @abstractmethod
    def prefix(self, pixels: Tensor) -> Tensor:
        """The frozen features `[B, *prefix_shape]` of pixels `[B, 3, S, S]` in 0..1."""

    @abstractmethod
    def from_prefix(
        self, tokens: Tensor, *, personal: bool = True, routings: dict[str, Routing] | None = None
    ) -> Tensor:
        """Class logits `[B, C, h, w]` from the frozen features `[B, *prefix_shape]`.

        Args:
            tokens: the result of `prefix`.
            personal: whether to use the local part; without it this is the shared model.
            routings: if given, the routing of each block with a router is added to it.
        """

    def forward(self, pixels: Tensor, *, personal: bool = True) -> Tensor:
        """Class logits `[B, C, h, w]` of pixels `[B, 3, S, S]` in 0..1."""
        return self.from_prefix(self.prefix(pixels), personal=personal)

    def components(self) -> dict[str, tuple[str, ...]]:
        """Named groups of the parameters that can be trained; `Partition` places them."""
        return dict(self._components)

    def groups(self, kind: Callable[[Declared], bool]) -> frozenset[str]:
        """The groups of the components for which `kind` holds, such as `lambda part: part.local_only`."""
        found = frozenset(group for part in self.declarations if kind(part) for group in part.groups)
        return found & self._components.keys()

    def pretrained(self) -> frozenset[str]:
        """The parameters that can be trained and are the backbone's own weights."""
        groups = self.groups(lambda part: part.pretrained)
        return frozenset(name for group in groups for name in self._components[group])

    def origins(self) -> dict[str, str]:
        """Local parameter that began as a copy of a shared one -> the name of the shared one."""
        return {own: shared for part in self.declarations for own, shared in part.origins().items()}

    def class_numbers(self) -> dict[str, tuple[int, ...]]:
        """Parameter that belongs to single classes -> the class number 1..C of each row, or one number for the whole parameter.

        It is used for averaging, so that parameters that are always local are left out.
        """
        return {name: numbers for part in self.declarations for name, numbers in part.class_numbers().items()}

    def routers(self) -> dict[str, int]:
        """The number of experts of each encoder block that has a router, by block."""
        return {block: count for part in self.declarations for block, count in part.routers().items()}
