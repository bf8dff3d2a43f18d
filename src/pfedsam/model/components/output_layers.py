"""The output layers: from the decoder's transformer to one mask per class.

With one class, the untrained model gives the backbone's own mask without a prompt: the class token starts as the backbone's mask token,
and the hyper-network as that token's hyper-network.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from pfedsam.model import image_skip
from pfedsam.model.backbones.base import Backbone
from pfedsam.model.components.base import Assembly, Component

_HIDDEN = 16


class MaskHead(nn.Module):
    """The trainable output layers of the decoder: up-scaling, and for each class the MLP from its token to the weights of its mask.

    With a generator there are also two convolutions over the image itself (`pfedsam.model.image_skip`), whose output is added to the
    up-scaled features; the second starts at zero, so that the masks start as those of the backbone.
    """

    def __init__(self, backbone: Backbone, classes: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        found = backbone.mask_layers()
        for name, layer in found.layers.items():
            self.add_module(name, layer)
        self._upscale: Callable[[Any, Tensor, Sequence[Tensor]], Tensor] = backbone.upscale
        self.mlps = nn.ModuleList(deepcopy(found.hypernetwork) for _ in range(classes))
        self.image_skip = None if generator is None else _image_skip_layers(found.channels, generator)

    def forward(
        self, tokens: Tensor, image: Tensor, features: Sequence[Tensor] = (), seen: Tensor | None = None
    ) -> Tensor:
        """Class logits `[B, C, 4h, 4w]`.

        Args:
            tokens: the transformer's output for the class tokens, `[B, C, e]`.
            image: the transformer's output for the image, `[B, e, h, w]`.
            features: the backbone's high-resolution features, if it has any.
            seen: the image itself, `[B, image_skip.CHANNELS, 4h, 4w]`, if there are layers for it.
        """
        image = self._upscale(self, image, features)
        if self.image_skip is not None:
            image = image + self.image_skip(seen)
        weights = torch.stack([mlp(tokens[:, i]) for i, mlp in enumerate(self.mlps)], dim=1)
        return torch.einsum("bcd,bdhw->bchw", weights, image)


def _image_skip_layers(channels: int, generator: torch.Generator) -> nn.Sequential:
    first = nn.Conv2d(image_skip.CHANNELS, _HIDDEN, 3, padding=1)
    last = nn.Conv2d(_HIDDEN, channels, 3, padding=1)
    with torch.no_grad():
        first.weight.normal_(0, (9 * image_skip.CHANNELS) ** -0.5, generator=generator)
        for parameter in (first.bias, last.weight, last.bias):
            nn.init.zeros_(parameter)  # type: ignore[arg-type]
    return nn.Sequential(first, nn.GELU(), last)


class OutputLayers(Component):
    """The output layers with which the shared and the personal model start."""

    groups = ("output_layers",)

    def __init__(self, *, image_skip: bool) -> None:
        """With `image_skip` the image itself is a second input."""
        self.image_skip = image_skip

    def attach(self, assembly: Assembly) -> dict[str, list[str]]:
        """New copies of the backbone's layers."""
        generator = assembly.generator if self.image_skip else None
        head = MaskHead(assembly.backbone, assembly.classes, generator)
        self._mlps = {
            f"output_layers.mlps.{index}.{name}": (index + 1,)
            for index, mlp in enumerate(head.mlps)
            for name, _ in mlp.named_parameters()
        }
        return {"output_layers": assembly.add("output_layers", head)}

    def class_numbers(self) -> dict[str, tuple[int, ...]]:
        """The class number of each class's MLP; up-scaling and the layers for the image are used by all classes."""
        return dict(self._mlps)
