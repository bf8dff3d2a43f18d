"""The output layers: from the decoder's transformer to one mask per class.

With one class, the untrained model gives the backbone's own mask without a prompt: the class token starts as the backbone's mask token,
and the hyper-network as that token's hyper-network.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pfedsam.core.options import Options
from pfedsam.model import image_skip
from pfedsam.model.backbones.base import Backbone
from pfedsam.model.components.base import Assembly, Component
from pfedsam.model.unet import check_side, random_unet

_HIDDEN = 16


class ImageSkipOptions(Options):
    """The layers through which the output layers get the image itself."""

    channels: tuple[Annotated[int, Field(ge=1, le=256)], ...] | None = Field(
        default=(16, 32, 64, 128),
        min_length=2,
        max_length=5,
        description="Channels of the levels of a small U-Net that gets the image and the decoder's features at "
        "half the image's resolution, which is then also the resolution of the masks; each level halves it. Empty: two convolutions over "
        "the image at a quarter of its resolution.",
    )


class MaskHead(nn.Module):
    """The trainable output layers of the decoder: up-scaling, and for each class the MLP from its token to the weights of its mask.

    If the image itself is a second input (`pfedsam.model.image_skip`), what layers for it compute is added to the up-scaled features: two
    convolutions over the image, or a small U-Net over the image and these features, at twice their resolution. The last of these layers
    starts at zero, so that the masks start as those of the backbone.
    """

    def __init__(
        self, backbone: Backbone, classes: int, skip: ImageSkipOptions | None, generator: torch.Generator
    ) -> None:
        """Copy the backbone's layers.

        Args:
            backbone: the loaded backbone.
            classes: number of classes C, without the background.
            skip: the layers for the image; None for none.
            generator: source of their random initial values.

        Raises:
            OptionError: the U-Net has too many levels for the size of the images.
        """
        super().__init__()
        found = backbone.mask_layers()
        for name, layer in found.layers.items():
            self.add_module(name, layer)
        self._upscale: Callable[[Any, Tensor, Sequence[Tensor]], Tensor] = backbone.upscale
        self.mlps = nn.ModuleList(deepcopy(found.hypernetwork) for _ in range(classes))
        self.image_skip = _layers_for_the_image(skip, found.channels, backbone, generator) if skip else None

    def forward(
        self, tokens: Tensor, image: Tensor, features: Sequence[Tensor] = (), seen: Tensor | None = None
    ) -> Tensor:
        """Class logits `[B, C, 4h, 4w]`, or `[B, C, 8h, 8w]` with a U-Net for the image.

        Args:
            tokens: the transformer's output for the class tokens, `[B, C, e]`.
            image: the transformer's output for the image, `[B, e, h, w]`.
            features: the backbone's high-resolution features, if it has any.
            seen: the image itself, `[B, image_skip.CHANNELS, 4h, 4w]`, if there are layers for it.
        """
        weights = torch.stack([mlp(tokens[:, i]) for i, mlp in enumerate(self.mlps)], dim=1)
        image = self._upscale(self, image, features)
        if self.image_skip is not None:
            image = self.image_skip(seen, image)
        return torch.einsum("bcd,bdhw->bchw", weights, image)


def _layers_for_the_image(
    skip: ImageSkipOptions, channels: int, backbone: Backbone, generator: torch.Generator
) -> nn.Module:
    """Layers that change the features `[B, channels, 4h, 4w]` by the image, `[B, image_skip.CHANNELS, 4h, 4w]`."""
    if skip.channels is None:
        return _TwoConvolutions(channels, generator)
    scale = backbone.image_size // (backbone.grid[0] * image_skip.CELLS * image_skip.FINER)
    check_side(backbone.image_size, len(skip.channels), key="model.image_skip.channels", scale=scale)
    return _ImageUNet(skip.channels, channels, generator)


class _ImageUNet(nn.Module):
    """A U-Net over the image and the features, at half the resolution of the image, and a layer from its output, which starts at zero."""

    def __init__(self, levels: Sequence[int], channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.unet = random_unet(3 + channels, _HIDDEN, levels, 1, generator)
        self.last = nn.Conv2d(_HIDDEN, channels, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, seen: Tensor, features: Tensor) -> Tensor:
        """Features `[B, channels, 8h, 8w]` from the image `[B, image_skip.CHANNELS, 4h, 4w]` and features `[B, channels, 4h, 4w]`."""
        pixels = F.pixel_shuffle(seen, image_skip.FINER)
        scaled = F.interpolate(features, size=pixels.shape[-2:], mode="bilinear", align_corners=False)
        return scaled + self.last(self.unet(torch.cat([pixels, scaled], dim=1)))  # type: ignore[no-any-return]


class _TwoConvolutions(nn.Sequential):
    """Two convolutions over the image, the second of which starts at zero."""

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        first = nn.Conv2d(image_skip.CHANNELS, _HIDDEN, 3, padding=1)
        last = nn.Conv2d(_HIDDEN, channels, 3, padding=1)
        with torch.no_grad():
            first.weight.normal_(0, (9 * image_skip.CHANNELS) ** -0.5, generator=generator)
            for parameter in (first.bias, last.weight, last.bias):
                nn.init.zeros_(parameter)  # type: ignore[arg-type]
        super().__init__(first, nn.GELU(), last)

    def forward(self, seen: Tensor, features: Tensor) -> Tensor:  # type: ignore[override]
        """Features `[B, channels, 4h, 4w]` from the image `[B, image_skip.CHANNELS, 4h, 4w]` and features of the same shape."""
        return features + super().forward(seen)


class OutputLayers(Component):
    """The output layers with which the shared and the personal model start."""

    groups = ("output_layers",)

    def __init__(self, image_skip: ImageSkipOptions | None) -> None:
        """Output layers with these layers for the image as a second input; None: without it."""
        self.image_skip = image_skip

    def attach(self, assembly: Assembly) -> dict[str, list[str]]:
        """New copies of the backbone's layers.

        Raises:
            OptionError: the layers for the image do not fit the size of the images.
        """
        head = MaskHead(assembly.backbone, assembly.classes, self.image_skip, assembly.generator)
        self._mlps = {
            f"output_layers.mlps.{index}.{name}": (index + 1,)
            for index, mlp in enumerate(head.mlps)
            for name, _ in mlp.named_parameters()
        }
        return {"output_layers": assembly.add("output_layers", head)}

    def class_numbers(self) -> dict[str, tuple[int, ...]]:
        """The class number of each class's MLP; up-scaling and the layers for the image are used by all classes."""
        return dict(self._mlps)
