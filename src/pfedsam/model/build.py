"""Builds the model that its options describe: the personal SAM from its components, or a U-Net."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from pfedsam.core.errors import OptionError
from pfedsam.core.tensors import digest
from pfedsam.model import unet
from pfedsam.model.backbones.base import Backbone
from pfedsam.model.backbones.checkpoint import load_backbone
from pfedsam.model.components.adapters import Adapters
from pfedsam.model.components.base import Component
from pfedsam.model.components.class_tokens import ClassTokens
from pfedsam.model.components.experts import Experts
from pfedsam.model.components.local_lora import LocalLora
from pfedsam.model.components.lora import Lora
from pfedsam.model.components.norms import Norms
from pfedsam.model.components.output_layers import OutputLayers
from pfedsam.model.components.personal_copy import PersonalCopy
from pfedsam.model.components.personal_output_layers import PersonalOutputLayers
from pfedsam.model.components.pretrained import Decoder, Encoder, NoPrompt
from pfedsam.model.numerics import CPU, frozen_dtype
from pfedsam.model.options import ModelOptions
from pfedsam.model.personal import PersonalSam
from pfedsam.model.segmenter import Declared, Segmenter
from pfedsam.model.unet import UNetSegmenter

O = TypeVar("O")  # noqa: E741 - options of a component


def components_of(options: ModelOptions) -> list[Component]:
    """The components of a model with these options, in the order in which they are attached and draw random numbers.

    A component that replaces parameters of others comes after them, and the second LoRA after all that replace the first.
    """
    found: list[Component | None] = [
        ClassTokens(),
        OutputLayers(options.image_skip),
        PersonalOutputLayers(copy=options.personal_copy) if options.output_layers == "both" else None,
        _with_options(Lora, options.lora),
        _with_options(Experts, options.experts),
        _with_options(Adapters, options.adapters),
        PersonalCopy() if options.personal_copy else None,
        Norms() if options.norms == "local" else None,
        _with_options(LocalLora, options.local_lora),
        Encoder() if options.train_encoder else None,
        Decoder(),
        NoPrompt(),
    ]
    return [component for component in found if component is not None]


def _with_options(kind: Callable[[O], Component], options: O | None) -> Component | None:
    """A component that a model has if its options are given."""
    return kind(options) if options else None


def declared_by(options: ModelOptions) -> Sequence[Declared]:
    """What the components of a model with these options declare."""
    return unet.PARTS if options.unet else components_of(options)


def present(options: ModelOptions, *, local_only: bool = False) -> frozenset[str]:
    """The groups of parameters of a model with these options; with `local_only` only those that just the personal model uses."""
    return frozenset(group for c in declared_by(options) if c.local_only or not local_only for group in c.groups)


@dataclass(frozen=True)
class Built:
    """A model before training, and what it starts from."""

    model: Segmenter
    start: str
    """The hash of the backbone; for a U-Net, SHA-256 of its random initial weights."""


def build_segmenter(
    options: ModelOptions,
    classes: int,
    generator: torch.Generator,
    device: torch.device = CPU,
    *,
    may_download: bool = True,
) -> Built:
    """Build the model that the options describe.

    Args:
        options: options of the model.
        classes: number of classes, without the background.
        generator: source of the random initial values, which are the same on every device.
        device: device of the model.
        may_download: whether to download a backbone with a hub name that is not on this machine; otherwise it is refused.

    Raises:
        CheckpointError: the backbone cannot be loaded.
        OptionError: the options do not fit the backbone, or the size of the images does not fit the U-Net.
    """
    if options.unet:
        network = UNetSegmenter(options.unet, classes, generator, image_size=options.image_size)
        return Built(network.to(device), digest(dict(network.state_dict())))
    backbone = load_backbone(options.backbone, image_size=options.image_size, may_download=may_download)
    start = backbone.hash
    # Layers of torch in a component draw their initial values from the global generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        return Built(build_personal(backbone, options, classes, generator, device), start)


def build_personal(
    backbone: Backbone,
    options: ModelOptions,
    classes: int,
    generator: torch.Generator,
    device: torch.device = CPU,
) -> PersonalSam:
    """Build the personal SAM that the options describe on `backbone`, whose network is changed in place.

    Args:
        backbone: the loaded backbone.
        options: options of the model; the fields `backbone` and `image_size` are not used.
        classes: number of classes, without the background.
        generator: source of the random initial values, which are the same on every device.
        device: device of the model.

    Raises:
        OptionError: the backbone has fewer encoder blocks than are to be adapted, or the processor does not support bfloat16.
    """
    depth = len(backbone.blocks)
    adapted = depth if options.adapt_last is None else options.adapt_last
    if adapted > depth:
        raise OptionError(
            f"model.adapt_last is {adapted}, but this backbone has {depth} encoder blocks: give 1 to {depth}."
        )
    components = components_of(options)
    from_pixels = any(component.from_pixels for component in components)
    model = PersonalSam(
        backbone,
        components,
        classes,
        generator,
        first_adapted=depth - adapted,
        precision=torch.float32 if from_pixels else frozen_dtype(options.precision, device),
        recompute=options.recompute,
    )
    return model.to(device)
