"""The shapes of a forward pass, without values, tell whether the parts of a network fit together."""

import pytest
import torch
from transformers import SamConfig, SamHQConfig, SamHQModel, SamModel

from pfedsam.model.backbones.checkpoint import ARCHITECTURES, official_config
from pfedsam.model.backbones.compact import compact_config
from pfedsam.model.backbones.sam import SamBackbone
from pfedsam.model.backbones.sam_hq import SamHqBackbone
from pfedsam.model.backbones.shapes import mask_shape


def shape_of(config: SamConfig | SamHQConfig) -> tuple[int, ...]:
    with torch.device("meta"), torch.no_grad():
        if isinstance(config, SamHQConfig):
            return tuple(mask_shape(SamHqBackbone(SamHQModel(config).eval())))
        return tuple(mask_shape(SamBackbone(SamModel(config).eval())))


def test_a_mask_has_a_quarter_of_the_side_of_the_image() -> None:
    assert shape_of(compact_config("sam-toy")) == (1, 16, 16)
    assert shape_of(SamHQConfig()) == (1, 256, 256)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_official_architectures_fit(name: str) -> None:
    assert shape_of(official_config(ARCHITECTURES[name], 1024)) == (1, 256, 256)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("vision_config.output_channels", 16),
        ("vision_config.num_channels", 1),
        ("vision_config.num_pos_feats", 8),
        ("vision_config.num_attention_heads", 3),
        ("prompt_encoder_config.hidden_size", 16),
        ("mask_decoder_config.hidden_size", 64),
    ],
)
def test_parts_that_do_not_fit_are_noticed(part: str, value: int) -> None:
    config = compact_config("sam-toy")
    holder, name = part.split(".")
    setattr(getattr(config, holder), name, value)
    with pytest.raises(RuntimeError):
        shape_of(config)
