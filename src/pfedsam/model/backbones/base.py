"""The interface of a backbone, the frozen segmentation network of the personal model.

Only code in `pfedsam.model.backbones` uses attributes of the networks of `transformers`. The parameters of a network keep their
publisher's names. A backbone defines which layers the components may adapt, copy or train.
"""

import hashlib
import json
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
    """Name -> layer, for the layers that `Backbone.upscale` uses."""
    hypernetwork: nn.Module
    """The hyper-network from the output for a class token, `[B, d]`, to the weights of that class's mask, `[B, c]`."""
    channels: int
    """c, the number of channels of the features from which masks are computed."""


class Backbone(ABC):
    """A frozen network: an image encoder of blocks over tokens, and a mask decoder.

    Letters: B images, S the image's side in pixels, h x w tokens of d channels, e channels of the image embedding, C classes.
    """

    model_type: ClassVar[str]
    """The `model_type` in the `config.json` that `transformers` writes."""
    config_class: ClassVar[type[Any]]
    network_class: ClassVar[type[Any]]

    network: nn.Module
    """The network with all parameters, under its publisher's names."""
    blocks: nn.ModuleList
    """The encoder's blocks in order, each from and to tokens `[B, h, w, d]`; see `pfedsam.model.backbones.encoder.EncoderBlock`."""
    width: int
    """Channels d of a token."""
    grid: tuple[int, int]
    """Rows and columns of tokens, (h, w)."""
    image_size: int
    """Side S of the input image in pixels."""
    stages: tuple[int, ...] = ()
    """Indices of the blocks whose outputs `finish` needs in addition to that of the last block, in order."""
    token_offset: int
    """Index of the first class token among the decoder's output tokens."""
    parts: ClassVar[Mapping[str, tuple[str, ...]]]
    """Component (`encoder`, `decoder`, `no_prompt`) -> prefixes of the names of its parameters in the network."""

    @cached_property
    def hash(self) -> str:
        """SHA-256 of what the network computes, which the sites of a study compare; call it before components are attached.

        It is the digest of names, shapes and bytes of all weights, and of the values in `unusual` if there are any.
        """
        weights, values = digest(dict(self.network.state_dict())), self.unusual()
        return hashlib.sha256(json.dumps([weights, values], sort_keys=True).encode()).hexdigest() if values else weights

    @abstractmethod
    def unusual(self) -> dict[str, Any]:
        """The values of the configuration that are not the usual ones, and change what is computed but no name or shape of a weight.

        Usual values must not be named: the hashes of the published backbones are stored in studies and in caches of features.
        """

    @classmethod
    @abstractmethod
    def check_config(cls, config: Any) -> None:  # noqa: ANN401 - one of config_class
        """Refuse a configuration that this backbone does not support.

        Raises:
            ValueError: the configuration is not supported; the message says why.
        """

    @abstractmethod
    def embed(self, pixels: Tensor) -> Tensor:
        """From pixels `[B, 3, S, S]` in 0..1 to tokens `[B, h, w, d]`, the input of the first block."""

    @abstractmethod
    def finish(self, tokens: Tensor, stages: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """From the outputs of the encoder's blocks to the input of the decoder.

        Args:
            tokens: the output of the last block, `[B, h, w, d]`.
            stages: the outputs of the blocks in `stages`, `[B, h, w, d]` each.

        Returns:
            The image embedding `[B, e, h, w]`, float32, and the high-resolution features for `upscale`; SAM has none.
        """

    @abstractmethod
    def decode(self, embedding: Tensor, class_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Run the decoder's transformer without a prompt.

        Args:
            embedding: image embedding, `[B, e, h, w]`.
            class_tokens: class tokens, `[C, e]`.

        Returns:
            The outputs for the class tokens, `[B, C, e]`, and for the image, `[B, e, h, w]`.
        """

    @staticmethod
    @abstractmethod
    def upscale(layers: Any, image: Tensor, features: Sequence[Tensor]) -> Tensor:  # noqa: ANN401 - a module with MaskLayers.layers as attributes
        """The features from which masks are computed.

        Args:
            layers: a module that has the layers of `mask_layers` as its attributes.
            image: the decoder's output for the image, `[B, e, h, w]`.
            features: the high-resolution features that `finish` returns.

        Returns:
            Features of shape `[B, c, 4 h, 4 w]`.
        """

    @abstractmethod
    def class_token(self) -> Tensor:
        """The decoder's own mask token, `[1, e]`, with which a class token starts."""

    @abstractmethod
    def mask_layers(self) -> MaskLayers:
        """New copies of the decoder's output layers."""

    @abstractmethod
    def lora_targets(self, first_block: int, *, output_projection: bool, mlp: bool, decoder: bool) -> list[str]:
        """The names in `network` of the linear layers that get a low-rank update.

        Args:
            first_block: the first encoder block that is adapted.
            output_projection: whether to include the output projection of the encoder's attention.
            mlp: whether to include the MLP of the encoder's blocks.
            decoder: whether to include the linear layers of the decoder's transformer.
        """

    @abstractmethod
    def normed(self, first_block: int) -> dict[str, nn.Module]:
        """Name in `network` -> module, for the modules whose LayerNorms may be local: all that follow the frozen blocks."""


def standardise(pixels: Tensor) -> Tensor:
    """Pixels `[B, 3, S, S]` in 0..1, standardised as in SAM's training: minus mean, divided by standard deviation."""
    mean = pixels.new_tensor(PIXEL_MEAN).view(3, 1, 1)
    std = pixels.new_tensor(PIXEL_STD).view(3, 1, 1)
    return (pixels - mean) / std
