"""SAM (Kirillov et al., 2023, "Segment Anything") as `transformers.SamModel`, without a prompt."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SamConfig, SamModel

from pfedsam.model.backbones.base import Backbone, MaskLayers
from pfedsam.model.backbones.encoder import embed_patches, positions, use_fast_blocks


class SamBackbone(Backbone):
    """SAM, with the class tokens in place of the single-mask token."""

    model_type = "sam"
    config_class: ClassVar[type[Any]] = SamConfig
    network_class: ClassVar[type[Any]] = SamModel
    token_offset = 1  # after the token of the IoU prediction
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "encoder": ("vision_encoder.",),
        # The decoder's other parts, its own output layers and the IoU prediction head, are not used.
        "decoder": ("mask_decoder.transformer.", "mask_decoder.iou_token.", "mask_decoder.mask_tokens."),
        "no_prompt": ("prompt_encoder.no_mask_embed.",),
    }

    usual_decoder_eps: ClassVar[tuple[float, ...]] = (1e-6, 1e-5)
    """The `layer_norm_eps` of published decoders.

    The same weights are published as a `.pth` file, with 1e-5, and as a `transformers` folder, with 1e-6. Both have one hash, because
    studies with either are stored, and with trained weights the decoder's outputs differ by some 2e-4 of their standard deviation.
    """

    def __init__(self, network: Any) -> None:  # noqa: ANN401 - of network_class; the layers of transformers have no types
        """Use a network of `network_class`, whose encoder blocks are replaced in place by faster ones."""
        self.network: Any = use_fast_blocks(network)
        self.blocks: nn.ModuleList = self.network.vision_encoder.layers
        vision = self.network.config.vision_config
        self.width, self.image_size = int(vision.hidden_size), int(vision.image_size)
        _, height, width, _ = positions(self.network).shape
        self.grid = (int(height), int(width))

    @classmethod
    def check_config(cls, config: Any) -> None:  # noqa: ANN401 - see Backbone
        """Refuse a configuration whose parts do not fit together, or that lacks a part that every SAM has.

        Raises:
            ValueError: it is one; the message names the values.
        """
        vision, prompts, decoder = config.vision_config, config.prompt_encoder_config, config.mask_decoder_config
        if vision.num_channels != 3:
            raise ValueError(
                f"its encoder's num_channels is {vision.num_channels}; allowed is 3, for red, green and blue"
            )
        if vision.hidden_size % vision.num_attention_heads:
            raise ValueError(
                f"its encoder's hidden_size is {vision.hidden_size}, which is not a multiple of its num_attention_heads, "
                f"{vision.num_attention_heads}"
            )
        missing = [name for name in ("qkv_bias", "use_abs_pos", "use_rel_pos") if not getattr(vision, name)]
        if missing:
            raise ValueError(f"its encoder has {' and '.join(missing)} switched off; allowed are encoders that have it")
        widths = {
            "the encoder's output_channels": vision.output_channels,
            "twice num_pos_feats": 2 * vision.num_pos_feats,
            "the prompts' hidden_size": prompts.hidden_size,
            "the decoder's hidden_size": decoder.hidden_size,
        }
        if len(set(widths.values())) > 1 or decoder.hidden_size < 8:
            found = ", ".join(f"{name} is {width}" for name, width in widths.items())
            raise ValueError(f"{found}; allowed is one number for all, 8 or more")

    def unusual(self) -> dict[str, Any]:
        """Activations, epsilons of LayerNorms and heads of the decoder; see `Backbone.unusual`.

        The other values change a shape (such as the windows and heads of the encoder, whose relative positions have their sizes), or are
        not used: the prompt encoder's layers, its vector for "no mask" excepted, and the dropout of the encoder's attention.
        """
        vision, decoder = self.network.config.vision_config, self.network.config.mask_decoder_config
        values = {
            # Name -> value, and the usual ones. SAM's decoder has 8 heads, and that of `sam-toy`, with 32 channels, has 2.
            "vision_config.hidden_act": (vision.hidden_act, ("gelu",)),
            "vision_config.layer_norm_eps": (vision.layer_norm_eps, (1e-6,)),
            "mask_decoder_config.hidden_act": (decoder.hidden_act, ("relu",)),
            "mask_decoder_config.layer_norm_eps": (decoder.layer_norm_eps, self.usual_decoder_eps),
            "mask_decoder_config.num_attention_heads": (
                decoder.num_attention_heads,
                (min(8, decoder.hidden_size // 16),),
            ),
        }
        return {name: value for name, (value, usual) in values.items() if value not in usual}

    def embed(self, pixels: Tensor) -> Tensor:
        """Pixels `[B, 3, S, S]` in 0..1 to tokens `[B, h, w, d]` with their absolute positions."""
        return embed_patches(self.network, pixels)

    def finish(self, tokens: Tensor, stages: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Tokens `[B, h, w, d]` to the image embedding `[B, e, h, w]`; SAM has no high-resolution features."""
        return self.network.vision_encoder.neck(tokens).float(), ()

    def decode(self, embedding: Tensor, class_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Image embedding `[B, e, h, w]` and class tokens `[C, e]` to their outputs `[B, C, e]` and `[B, e, h, w]`."""
        decoder = self.network.mask_decoder
        return self._transform(embedding, self._queries(decoder, class_tokens), len(class_tokens))

    def _queries(self, decoder: Any, class_tokens: Tensor) -> Tensor:  # noqa: ANN401 - a decoder of transformers
        """All of the decoder's tokens in order, `[T, e]`."""
        return torch.cat([decoder.iou_token.weight, class_tokens, decoder.mask_tokens.weight[1:]])

    def _transform(self, embedding: Tensor, queries: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """The outputs `[B, C, e]` for class tokens and `[B, e, h, w]` for the image, from the image embedding and all tokens `[T, e]`."""
        network: Any = self.network
        batch, channels, height, width = embedding.shape
        no_mask = network.prompt_encoder.no_mask_embed.weight.view(1, channels, 1, 1)
        mixed, image = network.mask_decoder.transformer(
            point_embeddings=queries.expand(batch, 1, -1, -1),
            image_embeddings=embedding + no_mask,
            image_positional_embeddings=network.get_image_wide_positional_embeddings().expand(batch, -1, -1, -1),
            attention_similarity=None,
        )
        image = image.transpose(2, 3).reshape(batch, channels, height, width)
        return mixed[:, 0, self.token_offset : self.token_offset + classes], image

    @staticmethod
    def upscale(layers: Any, image: Tensor, features: Sequence[Tensor]) -> Tensor:  # noqa: ANN401 - see Backbone
        """From the decoder's output for the image, `[B, e, h, w]`, in two steps to features `[B, c, 4 h, 4 w]`."""
        image = F.gelu(layers.upscale_layer_norm(layers.upscale_conv1(image)))
        return F.gelu(layers.upscale_conv2(image))

    def class_token(self) -> Tensor:
        """SAM's single-mask token, `[1, e]`."""
        return self.network.mask_decoder.mask_tokens.weight[:1].detach()

    def mask_layers(self) -> MaskLayers:
        """The two up-scaling steps and the hyper-network of the single-mask token."""
        decoder: Any = self.network.mask_decoder
        names = ("upscale_conv1", "upscale_layer_norm", "upscale_conv2")
        return MaskLayers(
            {name: deepcopy(getattr(decoder, name)) for name in names},
            decoder.output_hypernetworks_mlps[0],
            decoder.upscale_conv2.out_channels,
        )

    def lora_targets(self, first_block: int, *, output_projection: bool, mlp: bool, decoder: bool) -> list[str]:
        """The encoder's fused `qkv` and, as requested, `proj`, MLP and the decoder's transformer; see `Backbone.lora_targets`."""
        parts = ["attn.qkv", *["attn.proj"] * output_projection, *["mlp.lin1", "mlp.lin2"] * mlp]
        names = [f"vision_encoder.layers.{i}.{part}" for i in range(first_block, len(self.blocks)) for part in parts]
        if decoder:
            transformer = self.network.mask_decoder.transformer.named_modules(prefix="mask_decoder.transformer")
            names += [name for name, module in transformer if isinstance(module, nn.Linear)]
        return names

    def normed(self, first_block: int) -> dict[str, nn.Module]:
        """The blocks from `first_block` on, the neck and the decoder's transformer."""
        blocks = {f"vision_encoder.layers.{i}": self.blocks[i] for i in range(first_block, len(self.blocks))}
        return blocks | {
            "vision_encoder.neck": self.network.vision_encoder.neck,
            "mask_decoder.transformer": self.network.mask_decoder.transformer,
        }
