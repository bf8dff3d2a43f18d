"""A plain 2-D U-Net from random weights, the model that users compare a fine-tuned SAM with.

It is MONAI's residual U-Net (Kerfoot et al., "Left-Ventricle Quantification Using Residual U-Net", STACOM 2018; Ronneberger et al., 2015)
with instance normalisation as in nnU-Net. No part of it is frozen, and it has no part that only a personal model uses; a method may keep
its normalisation layers local (FedBN).
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from monai.networks.nets.unet import UNet
from pydantic import Field
from torch import Tensor, nn

from pfedsam.core.errors import OptionError
from pfedsam.core.options import Options
from pfedsam.model.backbones.base import standardise
from pfedsam.model.components.routing import Routing
from pfedsam.model.segmenter import Declared, Segmenter

_IMAGE_SIZE = 256
"""Side in pixels of the images if no other is given: that of the shipped SAM."""
_LARGEST_SEED = 2**62
_NETWORK = "unet"


class UNetOptions(Options):
    """The U-Net's size."""

    channels: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field(
        default=(16, 32, 64, 128, 256),
        min_length=2,
        max_length=7,
        description="Channels of each level from the top to the bottom; each level halves the resolution.",
    )
    residual_units: int = Field(
        default=2,
        ge=0,
        le=4,
        description="Number of residual units in a level; 0 is refused if the network is shared and a site does not annotate all classes.",
    )


class UNetLayers(Declared):
    """All layers except for the normalisation."""

    groups = ("unet",)
    addition = True


class UNetNorms(Declared):
    """Scale and shift of the normalisation layers."""

    groups = ("unet_norms",)
    addition = True


PARTS: Sequence[Declared] = (UNetLayers(), UNetNorms())
"""The components of every U-Net."""


def check_side(side: int, levels: int, *, key: str, scale: int = 1) -> None:
    """Check that every level of a U-Net but the last halves the side of its input.

    Args:
        side: side of the images in pixels.
        levels: number of levels.
        key: the option that sets the levels.
        scale: side of the images, divided by that of the U-Net's input.

    Raises:
        OptionError: a level gets an odd number of rows.
    """
    step = scale * 2 ** (levels - 1)
    if side % step:
        raise OptionError(
            f"{key} has {levels} levels, which need images whose side is a multiple of {step} pixels, but model.image_size is {side}: "
            f"choose {side - side % step or step}, or fewer levels."
        )


def random_unet(
    inputs: int, outputs: int, channels: Sequence[int], residual_units: int, generator: torch.Generator
) -> UNet:
    """A U-Net with random weights; the state of torch's global generator is left as it is.

    Args:
        inputs: channels of its input.
        outputs: channels of its output, which has the resolution of the input.
        channels: channels of each level; each level but the last halves the resolution.
        residual_units: number of residual units in a level.
        generator: source of the random values.
    """
    seed = int(torch.randint(_LARGEST_SEED, (1,), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet(
            spatial_dims=2,
            in_channels=inputs,
            out_channels=outputs,
            channels=channels,
            strides=[2] * (len(channels) - 1),
            num_res_units=residual_units,
            norm=("instance", {"affine": True}),
        )


class UNetSegmenter(Segmenter):
    """MONAI's 2-D U-Net with one output channel per class; the background has logit 0."""

    def __init__(
        self, options: UNetOptions, classes: int, generator: torch.Generator, *, image_size: int | None = None
    ) -> None:
        """Build a U-Net with random weights.

        Args:
            options: its size.
            classes: number of classes, without the background.
            generator: source of the random initial values.
            image_size: side of the square input in pixels; None for 256.

        Raises:
            OptionError: the levels do not fit the side of the image.
        """
        super().__init__()
        side = image_size or _IMAGE_SIZE
        check_side(side, len(options.channels), key="model.unet.channels")
        self.classes, self.image_size = classes, side
        self.from_pixels, self.frozen_dtype, self.first_adapted = True, torch.float32, 0
        self.add_module(_NETWORK, random_unet(3, classes, options.channels, options.residual_units, generator))
        norms = tuple(f"{name}." for name, module in self.named_modules() if isinstance(module, nn.InstanceNorm2d))
        names = [name for name, _ in self.named_parameters()]
        of_norms = tuple(name for name in names if name.startswith(norms))
        self._components = {"unet": tuple(name for name in names if name not in of_norms), "unet_norms": of_norms}

    @property
    def declarations(self) -> Sequence[Declared]:
        """The layers and the normalisation."""
        return PARTS

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.parameters()).device

    def class_numbers(self) -> dict[str, tuple[int, ...]]:
        """The class number of each row of the last convolution.

        The layers before it have one channel for each class too, but the last convolution combines these channels, so that all classes use
        them. Without residual units the last layer is a transposed convolution, which has no row for a class; the result is then empty.
        """
        *_, (name, last) = ((n, m) for n, m in self.named_modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d))
        if isinstance(last, nn.ConvTranspose2d):
            return {}
        return {f"{name}.{own}": tuple(range(1, self.classes + 1)) for own, _ in last.named_parameters()}

    @property
    def prefix_shape(self) -> tuple[int, int, int]:
        """(3, S, S): nothing is frozen."""
        return (3, self.image_size, self.image_size)

    def prefix(self, pixels: Tensor) -> Tensor:
        """The pixels `[B, 3, S, S]` themselves."""
        return pixels

    def from_prefix(
        self, tokens: Tensor, *, personal: bool = True, routings: dict[str, Routing] | None = None
    ) -> Tensor:
        """Class logits `[B, C, S, S]` of pixels `[B, 3, S, S]` in 0..1; the personal and the shared model are the same."""
        return self.get_submodule(_NETWORK)(standardise(tokens.to(self.device)))  # type: ignore[no-any-return]
