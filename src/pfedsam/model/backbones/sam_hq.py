"""SAM-HQ (Ke et al., 2023, arXiv:2306.01567) as `transformers.SamHQModel`, without a prompt.

The encoder is that of SAM. The decoder has one more token (the high-quality token), and its finer masks also use the output of the first
encoder block with global attention. Each class token starts as that token, so that the personal model starts with SAM-HQ's own fine mask
(`hq_token_only=True` in `transformers`). The decoder follows the authors' code and not `SamHQMaskDecoder.forward` of transformers 5.23,
which computes masks from the image embedding before the decoder's transformer.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import SamHQConfig, SamHQModel

from pfedsam.model.backbones.base import MaskLayers
from pfedsam.model.backbones.sam import SamBackbone

_FUSION = (
    "encoder_conv1",
    "encoder_norm",
    "encoder_conv2",
    "compress_vit_conv1",
    "compress_vit_norm",
    "compress_vit_conv2",
)


class SamHqBackbone(SamBackbone):
    """SAM-HQ, with the class tokens in place of the high-quality token, behind SAM's own mask tokens."""

    model_type = "sam_hq"
    config_class: ClassVar[type[Any]] = SamHQConfig
    network_class: ClassVar[type[Any]] = SamHQModel
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **SamBackbone.parts,
        "decoder": (*SamBackbone.parts["decoder"], *(f"mask_decoder.{name}." for name in _FUSION)),
    }

    usual_decoder_eps: ClassVar[tuple[float, ...]] = (1e-6,)

    def __init__(self, network: SamHQModel) -> None:
        """Use a `SamHQModel`, whose encoder blocks are replaced in place by faster ones."""
        super().__init__(network)
        # transformers passes the outputs of all blocks with global attention to the decoder, which uses only the first.
        global_blocks = [i for i, block in enumerate(self.blocks) if not block.window]
        self.stages = tuple(global_blocks[:1])
        self.token_offset = 1 + self.network.mask_decoder.mask_tokens.num_embeddings

    @classmethod
    def check_config(cls, config: Any) -> None:  # noqa: ANN401 - see Backbone
        """Refuse a configuration whose decoder does not fit its encoder.

        Raises:
            ValueError: as for SAM, or the decoder expects tokens of another width than the encoder's.
        """
        super().check_config(config)
        width, expected = config.vision_config.hidden_size, config.mask_decoder_config.vit_dim
        if width != expected:
            raise ValueError(f"its encoder's hidden_size is {width}, but its decoder's vit_dim is {expected}")

    def unusual(self) -> dict[str, Any]:
        """As for SAM, and the first block with global attention, whose output the decoder uses, unless the shapes of weights determine it.

        A window as large as the image has the relative positions of global attention. The usual block is the last of the first quarter.
        """
        vision = self.network.config.vision_config
        determined = vision.window_size not in self.grid or self.stages == (len(self.blocks) // 4 - 1,)
        return super().unusual() | ({} if determined else {"stages": list(self.stages)})

    def finish(self, tokens: Tensor, stages: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Tokens and the stage, `[B, h, w, d]` each, to the image embedding `[B, e, h, w]` and features `[B, c, 4 h, 4 w]`."""
        embedding, _ = super().finish(tokens, ())
        decoder: Any = self.network.mask_decoder
        found = decoder.encoder_conv2(F.gelu(decoder.encoder_norm(decoder.encoder_conv1(embedding))))
        for stage in stages:
            early = decoder.compress_vit_conv1(stage.float().permute(0, 3, 1, 2).contiguous())
            found = found + decoder.compress_vit_conv2(F.gelu(decoder.compress_vit_norm(early)))
        return embedding, (found,)

    def _queries(self, decoder: Any, class_tokens: Tensor) -> Tensor:  # noqa: ANN401 - a decoder of transformers
        """All tokens of the decoder in order, `[T, e]`."""
        return torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight, class_tokens])

    @staticmethod
    def upscale(layers: Any, image: Tensor, features: Sequence[Tensor]) -> Tensor:  # noqa: ANN401 - see Backbone
        """The image's output `[B, e, h, w]`, up-scaled and refined, with the features `[B, c, 4 h, 4 w]` added."""
        image = SamBackbone.upscale(layers, image, ())
        image = layers.mask_conv2(F.gelu(layers.mask_norm(layers.mask_conv1(image))))
        return image + features[0]

    def class_token(self) -> Tensor:
        """The high-quality token, `[1, e]`."""
        return self.network.mask_decoder.hq_token.weight.detach()

    def mask_layers(self) -> MaskLayers:
        """The up-scaling steps, the two convolutions after them, and the hyper-network of the high-quality token."""
        decoder, plain = self.network.mask_decoder, super().mask_layers()
        refining = {name: deepcopy(getattr(decoder, name)) for name in ("mask_conv1", "mask_norm", "mask_conv2")}
        return MaskLayers({**plain.layers, **refining}, decoder.hq_mask_mlp, plain.channels)
