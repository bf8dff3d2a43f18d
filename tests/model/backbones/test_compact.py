"""The configurations of our own sizes, and random weights from which training can start."""

import pytest
import torch
from torch import nn
from transformers import SamConfig

from pfedsam.core.errors import OptionError
from pfedsam.model.backbones.compact import compact_config, new_network, sam_config


def test_sam_vit_b_is_the_default_of_transformers() -> None:
    # transformers' own defaults are those of SAM ViT-B (Kirillov et al., 2023).
    ours = sam_config(
        image_size=1024,
        width=768,
        depth=12,
        heads=12,
        window=14,
        global_blocks=(2, 5, 8, 11),
        decoder_width=256,
        decoder_mlp=2048,
    )
    for part in ("vision_config", "prompt_encoder_config", "mask_decoder_config"):
        found, expected = getattr(ours, part).to_dict(), getattr(SamConfig(), part).to_dict()
        assert {k: v for k, v in found.items() if v != expected[k]} == {}


@pytest.mark.parametrize(("name", "millions"), [("sam-tiny", 6.5), ("sam-toy", 0.1)])
def test_sizes(name: str, millions: float) -> None:
    with torch.device("meta"):
        network = new_network(compact_config(name), None)  # type: ignore[arg-type]  # nothing is drawn on this device
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(millions * 1e6, rel=0.3)


def test_a_size_that_is_not_ours() -> None:
    with pytest.raises(OptionError, match="sam-tiny, sam-toy"):
        compact_config("sam-huge")


def test_weights_are_drawn_from_the_generator_alone_and_are_large_enough_to_train() -> None:
    one, other = (new_network(compact_config("sam-toy"), torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    linear = [module for module in one.modules() if isinstance(module, nn.Linear)]
    spread = torch.cat([module.weight.flatten() for module in linear]).std().item()
    # `trunc_normal_` cuts at -2 and 2, which are 100 standard deviations, so the spread is that of the normal.
    assert spread == pytest.approx(0.02, rel=0.05)
    assert all(not module.bias.any() for module in linear if module.bias is not None)
    tied = one.prompt_encoder.shared_embedding.positional_embedding
    assert tied is one.shared_image_embedding.positional_embedding
