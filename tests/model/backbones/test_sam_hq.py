"""SAM-HQ under the backbone protocol computes what `transformers.SamHQModel` computes."""

from pathlib import Path

import pytest
import torch
from transformers import SamHQConfig, SamHQModel

from pfedsam.core import rng
from pfedsam.core.errors import CheckpointError
from pfedsam.core.tensors import digest
from pfedsam.model.backbones.base import standardise
from pfedsam.model.backbones.checkpoint import load_backbone
from pfedsam.model.backbones.compact import new_network
from pfedsam.model.backbones.sam_hq import SamHqBackbone
from pfedsam.model.build import build_personal
from pfedsam.model.options import ModelOptions
from pfedsam.model.personal import PersonalSam


def config(vit_dim: int = 32, window: int = 3, global_blocks: tuple[int, ...] = (1, 3)) -> SamHQConfig:
    """Four blocks, of which the second and the last attend globally unless others are given."""
    return SamHQConfig(
        vision_config={
            "hidden_size": 32,
            "output_channels": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": 64,
            "window_size": window,
            "global_attn_indexes": list(global_blocks),
            "num_pos_feats": 16,
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": 64},
        mask_decoder_config={
            "hidden_size": 32,
            "mlp_dim": 64,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 32,
            "vit_dim": vit_dim,
        },
    )


def network() -> SamHQModel:
    """Random weights, large enough for masks to differ from place to place."""
    drawn = new_network(config(), rng.generator(0))
    with torch.no_grad():
        for parameter in drawn.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return drawn


def personal(adapt_last: int, classes: int = 1, **changes: object) -> PersonalSam:
    options = ModelOptions.model_validate({"adapt_last": adapt_last, **changes})
    return build_personal(SamHqBackbone(network()), options, classes, rng.generator(1)).eval()


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=rng.generator(2))


@torch.no_grad()
def test_the_encoder_gives_the_embedding_and_the_stage_that_the_decoder_reads(pixels: torch.Tensor) -> None:
    embedding, intermediate = network().get_image_embeddings(standardise(pixels))
    backbone = SamHqBackbone(network())
    tokens, stages = backbone.embed(pixels), []
    for i, block in enumerate(backbone.blocks):
        tokens = block(tokens)
        if i in backbone.stages:
            stages.append(tokens)
    assert backbone.stages == (1,)
    torch.testing.assert_close(stages[0], intermediate[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(backbone.finish(tokens, stages)[0], embedding, atol=1e-5, rtol=1e-5)


def decoded_as_sam_hq(reference: SamHQModel) -> SamHQModel:
    """`transformers`' model with one line of its decoder set right.

    Version 5.23 makes masks of the image embedding that goes into the decoder's transformer; SAM-HQ, as SAM, makes them of what comes out
    of it (`hs, src = self.transformer(...)` in segment_anything/modeling/mask_decoder_hq.py of its authors).
    """
    mixed: list[torch.Tensor] = []
    decoder = reference.mask_decoder
    decoder.transformer.register_forward_hook(lambda module, given, found: mixed.append(found[1]))
    decoder.upscale_conv1.register_forward_pre_hook(
        lambda module, given: (mixed[-1].transpose(2, 3).reshape(given[0].shape),)
    )
    return reference


@pytest.mark.parametrize("adapt_last", [1, 3, 4])
@torch.no_grad()
def test_the_personal_model_starts_as_the_high_quality_mask_of_transformers(
    pixels: torch.Tensor, adapt_last: int
) -> None:
    """With one adapted block the stage is among the frozen features, with three or four it is not."""
    reference = decoded_as_sam_hq(network())
    expected = reference(standardise(pixels), multimask_output=False, hq_token_only=True).pred_masks[:, 0]
    assert expected.std() > 0.01
    found = personal(adapt_last, image_skip={"channels": None})(pixels)
    torch.testing.assert_close(found / expected.std(), expected / expected.std(), atol=1e-5, rtol=0)


def test_frozen_features_hold_the_stage_only_where_a_frozen_block_gives_it() -> None:
    assert personal(1, image_skip=None).prefix_shape == (4, 4, 64)
    assert personal(3, image_skip=None).prefix_shape == (4, 4, 32)


def test_all_that_is_added_is_trained_and_gradients_reach_the_fusion_layers(pixels: torch.Tensor) -> None:
    model = personal(4, classes=2, lora=None, experts=None, train_encoder=True)
    model.requires_grad_(True)
    model(pixels).square().mean().backward()
    names = [
        name for group in ("encoder", "decoder", "class_tokens", "output_layers") for name in model.components()[group]
    ]
    assert "sam.mask_decoder.compress_vit_conv1.weight" in names
    assert [name for name in names if model.get_parameter(name).grad is None] == []


def test_a_folder_is_read_by_its_model_type(tmp_path: Path) -> None:
    network().save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    assert isinstance(backbone, SamHqBackbone)
    assert backbone.hash == SamHqBackbone(network()).hash
    assert load_backbone(tmp_path, image_size=96).grid == (6, 6)


def test_the_block_that_the_decoder_uses_belongs_to_the_hash_where_no_shape_tells_it() -> None:
    def backbone(*global_blocks: int) -> SamHqBackbone:
        drawn = new_network(config(window=4, global_blocks=global_blocks), rng.generator(0))
        return SamHqBackbone(drawn)

    usual, later = backbone(0, 3), backbone(1, 3)
    assert (usual.stages, later.stages) == ((0,), (1,))
    assert digest(dict(usual.network.state_dict())) == digest(dict(later.network.state_dict())) == usual.hash
    assert later.hash != usual.hash
    assert backbone(0).hash == usual.hash  # windows of the size of the image attend globally
    assert SamHqBackbone(network()).hash == digest(dict(network().state_dict()))


def test_a_decoder_for_another_encoder_is_refused(tmp_path: Path) -> None:
    new_network(config(), rng.generator(0)).save_pretrained(tmp_path)
    config(vit_dim=48).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="hidden_size is 32, but its decoder's vit_dim is 48"):
        load_backbone(tmp_path)
