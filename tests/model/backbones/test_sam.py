"""SAM behind the backbone protocol, against `transformers.SamModel`; `test_parity.py` compares it with the authors' code."""

import pytest
import torch
from toy_model import toy_backbone
from transformers import SamModel

from pfedsam.core import rng
from pfedsam.core.tensors import digest
from pfedsam.model.backbones.base import standardise
from pfedsam.model.backbones.checkpoint import load_backbone
from pfedsam.model.backbones.compact import compact_config, new_network
from pfedsam.model.backbones.sam import SamBackbone


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


# As stored in studies and caches of features.
SHIPPED = {
    "sam-tiny": "fa3a40eec0240a3f367a196d7f00b2ba29363790749e01ef02e720572f353c57",
    "sam-tiny-2": "97081fd1654880804594c88f72beb3d00cde0272c1ff7606f40175954772f377",
}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_hashes_of_the_shipped_backbones_stay(name: str) -> None:
    assert load_backbone(name).hash == SHIPPED[name]


def with_values(part: str, **values: object) -> SamBackbone:
    """The toy network, with the same weights and other values in a part of its configuration."""
    config = compact_config("sam-toy")
    for name, value in values.items():
        setattr(getattr(config, part), name, value)
    network = SamModel(config).eval()
    network.load_state_dict(new_network(compact_config("sam-toy"), rng.generator(0)).state_dict())
    return SamBackbone(network)


def outputs(backbone: SamBackbone) -> list[torch.Tensor]:
    """What the toy network computes from a random image: the embedding, and the decoder's outputs."""
    tokens = backbone.embed(torch.rand(1, 3, 64, 64, generator=rng.generator(2)))
    with torch.no_grad():
        for block in backbone.blocks:
            tokens = block(tokens)
        embedding, _ = backbone.finish(tokens, [])
        return [embedding, *backbone.decode(embedding, backbone.class_token())]


CHANGES = [
    ("vision_config", "hidden_act", "relu"),
    ("vision_config", "layer_norm_eps", 1e-2),
    ("vision_config", "attention_dropout", 0.5),
    ("vision_config", "global_attn_indexes", [1, 7]),
    ("prompt_encoder_config", "hidden_act", "relu"),
    ("prompt_encoder_config", "layer_norm_eps", 1e-2),
    ("mask_decoder_config", "hidden_act", "gelu"),
    ("mask_decoder_config", "layer_norm_eps", 1e-2),
    ("mask_decoder_config", "num_attention_heads", 1),
]


@pytest.mark.parametrize(("part", "name", "value"), CHANGES)
def test_networks_of_the_same_weights_have_one_hash_if_they_compute_the_same(
    part: str, name: str, value: object
) -> None:
    usual, other = with_values(part), with_values(part, **{name: value})
    assert usual.hash == digest(dict(usual.network.state_dict()))
    same = all(torch.equal(a, b) for a, b in zip(outputs(usual), outputs(other), strict=True))
    assert (other.hash == usual.hash) is same


def test_both_epsilons_of_published_decoders_give_one_hash_and_nearly_the_same_outputs() -> None:
    assert len({with_values("mask_decoder_config", layer_norm_eps=eps).hash for eps in (1e-6, 1e-5)}) == 1
    backbone = load_backbone("sam-tiny-2")  # trained, so that the variances are far above both epsilons
    embedding = torch.randn(1, 128, 16, 16, generator=rng.generator(2))
    before = backbone.decode(embedding, backbone.class_token())[0]
    for module in backbone.network.mask_decoder.transformer.layers.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5
    after = backbone.decode(embedding, backbone.class_token())[0]
    assert not torch.equal(before, after)
    assert (before - after).abs().max() < 1e-3 * before.std()
