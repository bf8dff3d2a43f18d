"""Adapts weights to another image size, as fine-tuned versions of SAM do (SAMed, Zhang and Liu, 2023, arXiv:2304.13785).

The absolute position embedding is interpolated bilinearly, the relative positions of the *global* blocks linearly. Windows keep
their size, so that their relative positions do not change. Nothing else in SAM depends on the size of the image.
"""

import copy
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers import SamConfig, SamHQConfig

from pfedsam.core.errors import OptionError
from pfedsam.core.tensors import NamedTensors

MAX_IMAGE_SIZE = 4096
"""Largest image side; at 4096 pixels global attention compares 65,536 tokens with one another."""


def config_at(config: SamConfig | SamHQConfig, image_size: int) -> SamConfig | SamHQConfig:
    """The configuration of the same network for square images of `image_size` pixels (S).

    Raises:
        OptionError: `image_size` is not a multiple of the patch size between one patch and 4096 pixels.
    """
    resized = copy.deepcopy(config)
    vision: Any = resized.vision_config  # transformers declares the parts as optional and the sizes as number or list
    prompts: Any = resized.prompt_encoder_config
    patch = vision.patch_size
    if image_size % patch or not patch <= image_size <= MAX_IMAGE_SIZE:
        raise OptionError(
            f"image_size is {image_size}; allowed are multiples of {patch} (the patch size) up to {MAX_IMAGE_SIZE}, "
            f"such as {16 * patch}, {32 * patch} or {64 * patch}."
        )
    vision.image_size = image_size
    prompts.image_size = image_size
    prompts.image_embedding_size = image_size // patch
    return resized


def tensors_at(tensors: NamedTensors, config: SamConfig | SamHQConfig) -> dict[str, Tensor]:
    """The tensors, by their names in `transformers`, for the image size of `config`; those that fit already are not changed.

    Args:
        tensors: all tensors of a SAM that differs from `config` at most in the image size.
        config: the configuration of the resulting SAM, with N tokens per side.

    Returns:
        The same names: `vision_encoder.pos_embed` is `[1, N, N, width]`, the relative positions of global blocks are
        `[2 N - 1, head width]`.
    """
    vision: Any = config.vision_config
    side = vision.image_size // vision.patch_size
    lines = {f"vision_encoder.layers.{i}.attn.rel_pos_{axis}" for i in vision.global_attn_indexes for axis in "hw"}
    resized = dict(tensors)
    for name, tensor in tensors.items():
        if name == "vision_encoder.pos_embed":
            resized[name] = _resize_grid(tensor, side)
        elif name in lines:
            resized[name] = _resize_line(tensor, 2 * side - 1)
    return resized


def _resize_grid(grid: Tensor, side: int) -> Tensor:
    """`[1, n, n, C]` to `[1, side, side, C]`, bilinearly."""
    if grid.shape[1] == side:
        return grid
    channels_first = grid.float().permute(0, 3, 1, 2)
    return F.interpolate(channels_first, (side, side), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)


def _resize_line(line: Tensor, length: int) -> Tensor:
    """`[n, C]` to `[length, C]`, linearly."""
    if line.shape[0] == length:
        return line
    return F.interpolate(line.float().T.unsqueeze(0), length, mode="linear", align_corners=False).squeeze(0).T
