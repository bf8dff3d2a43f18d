"""SAM in other sizes: the configurations of our own sizes, and networks with random weights.

The official sizes are loaded from checkpoints (`pfedsam.model.backbones.checkpoint`).
"""

from collections.abc import Mapping
from typing import overload

import torch
from torch import nn
from transformers import (
    SamConfig,
    SamHQConfig,
    SamHQModel,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
)
from transformers.models.sam.modeling_sam import SamPositionalEmbedding
from transformers.models.sam_hq.modeling_sam_hq import SamHQPositionalEmbedding

from pfedsam.core.errors import OptionError
from pfedsam.model.backbones.encoder import positions


def sam_config(
    *,
    image_size: int,
    patch_size: int = 16,
    width: int,
    depth: int,
    heads: int,
    window: int,
    global_blocks: tuple[int, ...],
    decoder_width: int,
    decoder_heads: int = 8,
    decoder_mlp: int | None = None,
) -> SamConfig:
    """The `transformers` configuration of a SAM with these sizes; `image_size` and `patch_size` are in pixels, `window` in tokens."""
    vision = SamVisionConfig(
        hidden_size=width,
        output_channels=decoder_width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        image_size=image_size,
        patch_size=patch_size,
        window_size=window,
        global_attn_indexes=list(global_blocks),
        num_pos_feats=decoder_width // 2,
    )
    prompt = SamPromptEncoderConfig(hidden_size=decoder_width, image_size=image_size, patch_size=patch_size)
    decoder = SamMaskDecoderConfig(
        hidden_size=decoder_width,
        mlp_dim=decoder_mlp or 4 * decoder_width,
        num_attention_heads=decoder_heads,
        iou_head_hidden_dim=decoder_width,
    )
    return SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)


_COMPACT: Mapping[str, dict[str, object]] = {
    # Windows of 8 tile the 16 x 16 token grid without padding; SAM's own 14 would pad it to 28 x 28.
    "sam-tiny": {
        "image_size": 256,
        "width": 192,
        "depth": 12,
        "heads": 3,
        "window": 8,
        "global_blocks": (2, 5, 8, 11),
        "decoder_width": 128,
    },
    "sam-toy": {
        "image_size": 64,
        "width": 32,
        "depth": 2,
        "heads": 2,
        "window": 3,
        "global_blocks": (1,),
        "decoder_width": 32,
        "decoder_heads": 2,
    },
}


def compact_config(name: str) -> SamConfig:
    """The configuration of one of our own sizes.

    Args:
        name: `sam-tiny` (6.5 M parameters, 256 px, the CPU default) or `sam-toy` (2 blocks, 64 px, for tests).

    Raises:
        OptionError: there is no such size.
    """
    if name not in _COMPACT:
        raise OptionError(f"There is no small SAM called {name!r}; the known ones are {', '.join(sorted(_COMPACT))}.")
    return sam_config(**_COMPACT[name])  # type: ignore[arg-type]


@overload
def new_network(config: SamConfig, generator: torch.Generator) -> SamModel: ...
@overload
def new_network(config: SamHQConfig, generator: torch.Generator) -> SamHQModel: ...
def new_network(config: SamConfig | SamHQConfig, generator: torch.Generator) -> SamModel | SamHQModel:
    """A SAM or SAM-HQ with random weights that can be trained.

    The initial values of `transformers` are only meant to be overwritten by a checkpoint: `SamVisionConfig.initializer_range` is 1e-10, and
    the random positional embedding is scaled by half the hidden size instead of 1; with either, training makes no progress. So all matrices
    are drawn here from a truncated normal distribution with standard deviation 0.02, as in ViT (Dosovitskiy et al., 2021).
    """
    model = SamModel(config) if isinstance(config, SamConfig) else SamHQModel(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if isinstance(module, SamPositionalEmbedding | SamHQPositionalEmbedding):
                module.positional_embedding.normal_(generator=generator)
        nn.init.trunc_normal_(positions(model), std=0.02, generator=generator)
        # Image and prompts use the same positional encoding (SAM ties them; loading from a file ties them again).
        model.prompt_encoder.shared_embedding.positional_embedding = model.shared_image_embedding.positional_embedding
    return model.eval()
