"""SAM behind the backbone protocol, against `transformers.SamModel`; `test_parity.py` compares it with the authors' code."""

import torch
from toy_model import toy_backbone

from pfedsam.core import rng
from pfedsam.model.backbones.base import standardise
from pfedsam.model.backbones.compact import compact_config, new_network


def test_the_ends_of_the_encoder_give_what_transformers_gives() -> None:
    reference = new_network(compact_config("sam-toy"), rng.generator(0))
    backbone = toy_backbone()
    pixels = torch.rand(2, 3, 64, 64, generator=rng.generator(2))
    tokens, encoder = backbone.embed(pixels), reference.vision_encoder
    torch.testing.assert_close(tokens, encoder.patch_embed(standardise(pixels)) + encoder.pos_embed)
    assert tokens.shape == (2, *backbone.grid, backbone.width)
    embedding, features = backbone.finish(tokens, [])
    torch.testing.assert_close(embedding, encoder.neck(tokens))
    assert features == ()


def test_the_class_token_is_a_copy_of_the_single_mask_token() -> None:
    backbone = toy_backbone()
    token = backbone.class_token()
    assert torch.equal(token, backbone.network.mask_decoder.mask_tokens.weight[:1])
    assert not token.requires_grad


def test_mask_layers_are_copies() -> None:
    backbone = toy_backbone()
    layers = backbone.mask_layers().layers
    with torch.no_grad():
        layers["upscale_conv1"].weight.zero_()
    assert backbone.network.mask_decoder.upscale_conv1.weight.any()


def test_targets_of_lora_by_hand() -> None:
    backbone = toy_backbone()
    assert backbone.lora_targets(1, output_projection=False, mlp=False, decoder=False) == [
        "vision_encoder.layers.1.attn.qkv"
    ]
    both = backbone.lora_targets(0, output_projection=True, mlp=False, decoder=False)
    assert both == [f"vision_encoder.layers.{i}.attn.{part}" for i in (0, 1) for part in ("qkv", "proj")]
    mlp = backbone.lora_targets(1, output_projection=False, mlp=True, decoder=False)
    assert mlp == [f"vision_encoder.layers.1.{part}" for part in ("attn.qkv", "mlp.lin1", "mlp.lin2")]
    decoder = set(backbone.lora_targets(2, output_projection=False, mlp=False, decoder=True))
    assert decoder
    assert all(name.startswith("mask_decoder.transformer.") for name in decoder)
    assert list(backbone.normed(1)) == ["vision_encoder.layers.1", "vision_encoder.neck", "mask_decoder.transformer"]
