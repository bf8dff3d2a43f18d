"""Adapters: where they lie, how large they are, and that they start as nothing."""

import torch

from pfedsam.core import rng
from pfedsam.model.components.adapters import AdapterOptions, BlockAdapters


def test_twelve_blocks_of_vit_b_have_as_many_parameters_as_medical_sam_adapters() -> None:
    # 768 wide, 192 hidden, two linear layers with biases an adapter: 295 872, times two, times twelve.
    block = BlockAdapters(768, AdapterOptions(), rng.generator(0))
    assert 12 * sum(p.numel() for p in block.parameters()) == 7_100_928


def test_they_start_as_nothing() -> None:
    block, tokens = BlockAdapters(8, AdapterOptions(), rng.generator(0)), torch.randn(2, 3, 3, 8)
    assert torch.equal(block.after_attention(tokens), tokens)
    assert torch.equal(block.beside_mlp(tokens, tokens + 1), tokens)


def test_by_hand() -> None:
    block = BlockAdapters(1, AdapterOptions(ratio=1.0, scale=0.5), rng.generator(0))
    with torch.no_grad():
        for part in (block.attention, block.mlp):
            part.down.fill_(1.0)
            part.up.fill_(2.0)
            part.up_bias.fill_(1.0)
    x = torch.tensor([100.0])  # GELU(100) = 100
    assert block.after_attention(x).item() == 100 + 2 * 100 + 1
    assert block.beside_mlp(torch.tensor([7.0]), x).item() == 7 + 0.5 * (2 * 100 + 1)
