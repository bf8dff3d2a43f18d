"""The names of SAM's tensors in Segment Anything (`.pth` files, also of MedSAM) and in `transformers`.

One table is used in both directions, so that a message can give a tensor's name in the user's file.
"""

import re
from collections.abc import Iterable

KEY_MAP: tuple[tuple[str, str], ...] = (
    ("image_encoder.pos_embed", "vision_encoder.pos_embed"),
    ("image_encoder.patch_embed.proj.*", "vision_encoder.patch_embed.projection.*"),
    ("image_encoder.blocks.*.norm1.*", "vision_encoder.layers.*.layer_norm1.*"),
    ("image_encoder.blocks.*.attn.rel_pos_h", "vision_encoder.layers.*.attn.rel_pos_h"),
    ("image_encoder.blocks.*.attn.rel_pos_w", "vision_encoder.layers.*.attn.rel_pos_w"),
    ("image_encoder.blocks.*.attn.qkv.*", "vision_encoder.layers.*.attn.qkv.*"),
    ("image_encoder.blocks.*.attn.proj.*", "vision_encoder.layers.*.attn.proj.*"),
    ("image_encoder.blocks.*.norm2.*", "vision_encoder.layers.*.layer_norm2.*"),
    ("image_encoder.blocks.*.mlp.lin1.*", "vision_encoder.layers.*.mlp.lin1.*"),
    ("image_encoder.blocks.*.mlp.lin2.*", "vision_encoder.layers.*.mlp.lin2.*"),
    ("image_encoder.neck.0.*", "vision_encoder.neck.conv1.*"),
    ("image_encoder.neck.1.*", "vision_encoder.neck.layer_norm1.*"),
    ("image_encoder.neck.2.*", "vision_encoder.neck.conv2.*"),
    ("image_encoder.neck.3.*", "vision_encoder.neck.layer_norm2.*"),
    # transformers has two names for this tensor (the positional encoding of image and prompts); see `TIED`.
    ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", "shared_image_embedding.positional_embedding"),
    ("prompt_encoder.point_embeddings.*.weight", "prompt_encoder.point_embed.*.weight"),
    ("prompt_encoder.not_a_point_embed.weight", "prompt_encoder.not_a_point_embed.weight"),
    ("prompt_encoder.no_mask_embed.weight", "prompt_encoder.no_mask_embed.weight"),
    ("prompt_encoder.mask_downscaling.0.*", "prompt_encoder.mask_embed.conv1.*"),
    ("prompt_encoder.mask_downscaling.1.*", "prompt_encoder.mask_embed.layer_norm1.*"),
    ("prompt_encoder.mask_downscaling.3.*", "prompt_encoder.mask_embed.conv2.*"),
    ("prompt_encoder.mask_downscaling.4.*", "prompt_encoder.mask_embed.layer_norm2.*"),
    ("prompt_encoder.mask_downscaling.6.*", "prompt_encoder.mask_embed.conv3.*"),
    ("mask_decoder.iou_token.weight", "mask_decoder.iou_token.weight"),
    ("mask_decoder.mask_tokens.weight", "mask_decoder.mask_tokens.weight"),
    ("mask_decoder.transformer.layers.*.self_attn.*.*", "mask_decoder.transformer.layers.*.self_attn.*.*"),
    (
        "mask_decoder.transformer.layers.*.cross_attn_token_to_image.*.*",
        "mask_decoder.transformer.layers.*.cross_attn_token_to_image.*.*",
    ),
    (
        "mask_decoder.transformer.layers.*.cross_attn_image_to_token.*.*",
        "mask_decoder.transformer.layers.*.cross_attn_image_to_token.*.*",
    ),
    ("mask_decoder.transformer.layers.*.mlp.*.*", "mask_decoder.transformer.layers.*.mlp.*.*"),
    ("mask_decoder.transformer.layers.*.norm1.*", "mask_decoder.transformer.layers.*.layer_norm1.*"),
    ("mask_decoder.transformer.layers.*.norm2.*", "mask_decoder.transformer.layers.*.layer_norm2.*"),
    ("mask_decoder.transformer.layers.*.norm3.*", "mask_decoder.transformer.layers.*.layer_norm3.*"),
    ("mask_decoder.transformer.layers.*.norm4.*", "mask_decoder.transformer.layers.*.layer_norm4.*"),
    (
        "mask_decoder.transformer.final_attn_token_to_image.*.*",
        "mask_decoder.transformer.final_attn_token_to_image.*.*",
    ),
    ("mask_decoder.transformer.norm_final_attn.*", "mask_decoder.transformer.layer_norm_final_attn.*"),
    ("mask_decoder.output_upscaling.0.*", "mask_decoder.upscale_conv1.*"),
    ("mask_decoder.output_upscaling.1.*", "mask_decoder.upscale_layer_norm.*"),
    ("mask_decoder.output_upscaling.3.*", "mask_decoder.upscale_conv2.*"),
    # Both MLPs have three layers in every Segment Anything model: input, one hidden, output.
    ("mask_decoder.output_hypernetworks_mlps.*.layers.0.*", "mask_decoder.output_hypernetworks_mlps.*.proj_in.*"),
    ("mask_decoder.output_hypernetworks_mlps.*.layers.1.*", "mask_decoder.output_hypernetworks_mlps.*.layers.0.*"),
    ("mask_decoder.output_hypernetworks_mlps.*.layers.2.*", "mask_decoder.output_hypernetworks_mlps.*.proj_out.*"),
    ("mask_decoder.iou_prediction_head.layers.0.*", "mask_decoder.iou_prediction_head.proj_in.*"),
    ("mask_decoder.iou_prediction_head.layers.1.*", "mask_decoder.iou_prediction_head.layers.0.*"),
    ("mask_decoder.iou_prediction_head.layers.2.*", "mask_decoder.iou_prediction_head.proj_out.*"),
)
"""Pairs of the name in Segment Anything and the name in `transformers`; `*` is one part between dots, which is equal in both."""

TIED = ("prompt_encoder.shared_embedding.positional_embedding", "shared_image_embedding.positional_embedding")
"""Two names in `transformers` for the same parameter; this package uses the second."""


def _compile(source: str, target: str) -> tuple[re.Pattern[str], str]:
    return re.compile(re.escape(source).replace(r"\*", r"([^.]+)")), target.replace("*", "{}")


_TO_TRANSFORMERS = [_compile(official, theirs) for official, theirs in KEY_MAP]
_TO_OFFICIAL = [_compile(theirs, official) for official, theirs in KEY_MAP]


def to_transformers(name: str) -> str | None:
    """The name in `transformers` of a Segment Anything tensor; None when SAM has no such tensor."""
    return _rename(name, _TO_TRANSFORMERS)


def to_official(name: str) -> str | None:
    """The name in Segment Anything of a `transformers` tensor; None when SAM has no such tensor."""
    return _rename(name, _TO_OFFICIAL)


def _rename(name: str, rows: Iterable[tuple[re.Pattern[str], str]]) -> str | None:
    for source, target in rows:
        match = source.fullmatch(name)
        if match:
            return target.format(*match.groups())
    return None
