"""The `segment-anything` package as the reference that we are compared with: its modelling code without torchvision.

The package's `__init__` imports torchvision, which its modelling code does not need and which we do not install. So an
empty package of the same name is put in its place, and the modules below it are imported as they are.
"""

import importlib
import importlib.util
import sys
from functools import partial
from types import ModuleType

import torch
from torch import nn


def _modeling() -> ModuleType:
    if "segment_anything" not in sys.modules:
        spec = importlib.util.find_spec("segment_anything")
        if spec is None or spec.submodule_search_locations is None:
            raise ModuleNotFoundError("The reference is missing: pip install segment-anything")
        bare = ModuleType("segment_anything")
        bare.__path__ = list(spec.submodule_search_locations)
        sys.modules["segment_anything"] = bare
    return importlib.import_module("segment_anything.modeling")


OFFICIAL = {
    "ViT-B": {"width": 768, "depth": 12, "heads": 12, "global_blocks": (2, 5, 8, 11)},
    "ViT-L": {"width": 1024, "depth": 24, "heads": 16, "global_blocks": (5, 11, 17, 23)},
    "ViT-H": {"width": 1280, "depth": 32, "heads": 16, "global_blocks": (7, 15, 23, 31)},
}
"""The arguments of `segment_anything.build_sam` for the three official models."""

SMALL = {"width": 32, "depth": 3, "heads": 2, "global_blocks": (1,)}
"""Segment Anything's decoder on a small encoder, for tests; 256 px are 16 tokens a side, so windows are padded."""


_UNIT = (
    "_token.weight",
    "_tokens.weight",
    "_embed.weight",
    "gaussian_matrix",
    *(f"point_embeddings.{i}.weight" for i in range(4)),
)
"""Endings of the names of learned vectors that are used as they are, so that they have about unit size."""


def build_reference(
    *, width: int, depth: int, heads: int, global_blocks: tuple[int, ...], image_size: int = 1024
) -> nn.Module:
    """A `segment_anything.modeling.Sam`, put together as `segment_anything.build_sam` does, of any size."""
    modeling = _modeling()
    tokens = image_size // 16
    sam = modeling.Sam(
        image_encoder=modeling.ImageEncoderViT(
            depth=depth,
            embed_dim=width,
            img_size=image_size,
            mlp_ratio=4,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            num_heads=heads,
            patch_size=16,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=global_blocks,
            window_size=14,
            out_chans=256,
        ),
        prompt_encoder=modeling.PromptEncoder(
            embed_dim=256,
            image_embedding_size=(tokens, tokens),
            input_image_size=(image_size, image_size),
            mask_in_chans=16,
        ),
        mask_decoder=modeling.MaskDecoder(
            num_multimask_outputs=3,
            transformer=modeling.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
            transformer_dim=256,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        ),
    )
    return sam.eval().requires_grad_(False)


def randomise(sam: nn.Module, seed: int) -> nn.Module:
    """The same model with weights in which every parameter matters, also those that start at zero or one.

    Matrices keep the size of what goes through them; attention that is sharper than a trained model's would turn the
    last bits of float32 into visible differences.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sam.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
            fan_in = tensor[0].numel() if tensor.dim() > 1 else 1
            if "rel_pos" in name or "pos_embed" in name:
                tensor.copy_(0.3 * noise)
            elif tensor.dim() == 1:
                tensor.copy_(noise * 0.1 + (1.0 if name.endswith("weight") else 0.0))
            elif name.endswith(_UNIT):
                tensor.copy_(noise)
            else:
                tensor.copy_(noise / fan_in**0.5)
    return sam
