import pytest
import torch
from transformers import SamConfig

from pfedsam.core.errors import OptionError
from pfedsam.model.backbones.compact import compact_config
from pfedsam.model.backbones.resize import config_at, tensors_at

GRID = "vision_encoder.pos_embed"


def test_ramps_stay_ramps() -> None:
    # Linear interpolation of 0, 1, 2, 3 at half the points, centres of pixels aligned: 0.5 and 2.5.
    config = config_at(compact_config("sam-toy"), 32)  # 4 tokens a side become 2; block 1 is global
    ramp = torch.arange(4.0)
    lines = torch.arange(7.0)[:, None].expand(7, 16)
    resized = tensors_at(
        {
            GRID: ramp[None, :, None, None].expand(1, 4, 4, 32),
            "vision_encoder.layers.0.attn.rel_pos_h": torch.ones(5, 16),
            "vision_encoder.layers.1.attn.rel_pos_h": lines,
            "vision_encoder.layers.1.attn.rel_pos_w": lines,
        },
        config,
    )
    assert resized[GRID].shape == (1, 2, 2, 32)
    assert resized[GRID][0, :, 0, 0].tolist() == [0.5, 2.5]
    assert resized["vision_encoder.layers.0.attn.rel_pos_h"].shape == (5, 16)
    # 7 points to 3: at (i + 1/2) * 7/3 - 1/2 = 2/3, 3, 16/3.
    assert resized["vision_encoder.layers.1.attn.rel_pos_w"][:, 0] == pytest.approx([2 / 3, 3, 16 / 3])


def test_same_size_changes_nothing() -> None:
    tensors = {GRID: torch.randn(1, 4, 4, 32), "vision_encoder.layers.1.attn.rel_pos_h": torch.randn(7, 16)}
    resized = tensors_at(tensors, compact_config("sam-toy"))
    assert all(resized[name] is tensors[name] for name in tensors)


@pytest.mark.parametrize("side", [256, 512, 1024])
def test_config_follows_in_every_part(side: int) -> None:
    original = SamConfig()
    config = config_at(original, side)
    assert config.vision_config.image_size == config.prompt_encoder_config.image_size == side
    assert config.prompt_encoder_config.image_embedding_size == side // 16
    assert original.vision_config.image_size == 1024
    assert config.vision_config.window_size == 14


@pytest.mark.parametrize("side", [0, -256, 8, 250, 8192])
def test_sizes_that_are_not_allowed(side: int) -> None:
    with pytest.raises(OptionError, match="multiples of 16"):
        config_at(SamConfig(), side)
