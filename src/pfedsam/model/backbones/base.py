"""What a backbone is: a frozen segmentation network as the personal model needs it.

No code outside `pfedsam.model.backbones` knows the attributes of a network of `transformers`. A backbone computes with its network, whose
parameters keep their publisher's names, and tells the components which layers they may adapt, copy or train.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor, nn

from pfedsam.core.tensors import digest

PIXEL_MEAN = (123.675 / 255, 116.28 / 255, 103.53 / 255)
"""Mean of R, G, B in 0..1 that every SAM was trained with."""
PIXEL_STD = (58.395 / 255, 57.12 / 255, 57.375 / 255)
"""Standard deviation of R, G, B in 0..1 that every SAM was trained with."""


@dataclass(frozen=True)
class MaskLayers:
    """New copies of the decoder's layers that turn the output of its transformer into masks."""

    layers: Mapping[str, nn.Module]
    """By name, the layers that `Backbone.upscale` uses."""
    hypernetwork: nn.Module
    """From the output for a class token, `[B, d]`, to the weights of that class's mask, `[B, c]`."""
    channels: int
    """c, the channels of the features that masks are made of."""


class Backbone(ABC):
    """A frozen network: an image encoder of blocks over tokens, and a mask decoder.

    Letters: B images, S the image's side in pixels, h x w tokens of d channels, e channels of the image embedding, C classes.
    """

    model_type: ClassVar[str]
    """The `model_type` in the `config.json` that `transformers` writes."""
    config_class: ClassVar[type[Any]]
    network_class: ClassVar[type[Any]]

    network: nn.Module
    """Holds all parameters, under its publisher's names."""
    blocks: nn.ModuleList
    """The encoder's blocks in order; each takes and gives tokens `[B, h, w, d]`, see `pfedsam.model.backbones.encoder.EncoderBlock`."""
    width: int
    """d."""
    grid: tuple[int, int]
    """(h, w)."""
    image_size: int
    """S."""
    stages: tuple[int, ...] = ()
    """The blocks whose output `finish` needs besides that of the last one, in order."""
    token_offset: int
    """The place of the first class token among the decoder's output tokens."""
    parts: ClassVar[Mapping[str, tuple[str, ...]]]
    """By component (`encoder`, `decoder`, `no_prompt`), what the names of the network's parameters start with that belong to it."""

    @cached_property
    def hash(self) -> str:
        """SHA-256 over names, shapes and bytes of all weights, which a study's sites compare; to be asked for before anything is added."""
        return digest(dict(self.network.state_dict()))

    @classmethod
    @abstractmethod
    def check_config(cls, config: Any) -> None:  # noqa: ANN401 - one of config_class
        """Refuse a configuration that this backbone cannot compute with.

        Raises:
            ValueError: it says what does not fit.
        """

    @abstractmethod
    def embed(self, pixels: Tensor) -> Tensor:
        """Pixels `[B, 3, S, S]` in 0..1 to the tokens `[B, h, w, d]` that the first block takes."""

    @abstractmethod
    def finish(self, tokens: Tensor, stages: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """From the encoder's blocks to what the decoder takes.

        Args:
            tokens: the output of the last block, `[B, h, w, d]`.
            stages: the outputs of the blocks in `stages`, `[B, h, w, d]` each.

        Returns:
            The image embedding `[B, e, h, w]`, float32, and the high-resolution features that `upscale` takes; none for SAM.
        """

    @abstractmethod
    def decode(self, embedding: Tensor, class_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's transformer without a prompt.

        Args:
            embedding: `[B, e, h, w]`.
            class_tokens: `[C, e]`.

        Returns:
            The output for the class tokens, `[B, C, e]`, and for the image, `[B, e, h, w]`.
        """

    @staticmethod
    @abstractmethod
    def upscale(layers: Any, image: Tensor, features: Sequence[Tensor]) -> Tensor:  # noqa: ANN401 - a module with MaskLayers.layers as attributes
        """The features that masks are made of.

        Args:
            layers: a module that has the layers of `mask_layers` as its attributes.
            image: from `decode`, `[B, e, h, w]`.
            features: from `finish`.

        Returns:
            `[B, c, 4 h, 4 w]`.
        """

    @abstractmethod
    def class_token(self) -> Tensor:
        """`[1, e]`: the decoder's own mask token that a class token starts as."""

    @abstractmethod
    def mask_layers(self) -> MaskLayers:
        """New copies of the decoder's output layers."""

    @abstractmethod
    def lora_targets(self, first_block: int, *, output_projection: bool, decoder: bool) -> list[str]:
        """The names in `network` of the linear layers that get a low-rank update.

        Args:
            first_block: the first encoder block whose attention is adapted.
            output_projection: also the output projection of the encoder's attention.
            decoder: also the linear layers of the decoder's transformer.
        """

    @abstractmethod
    def normed(self, first_block: int) -> dict[str, nn.Module]:
        """By name in `network`, the modules whose LayerNorms a site may have for itself: all that follows the frozen blocks."""


def standardise(pixels: Tensor) -> Tensor:
    """Pixels `[B, 3, S, S]` in 0..1 to what SAM was trained on: minus mean, divided by standard deviation."""
    mean = pixels.new_tensor(PIXEL_MEAN).view(3, 1, 1)
    std = pixels.new_tensor(PIXEL_STD).view(3, 1, 1)
    return (pixels - mean) / std
