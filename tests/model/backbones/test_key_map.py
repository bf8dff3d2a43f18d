import torch
from reference.segment_anything_modeling import OFFICIAL, build_reference
from transformers import SamConfig, SamModel

from pfedsam.model.backbones.key_map import KEY_MAP, TIED, to_official, to_transformers


def test_every_tensor_of_both_libraries_has_its_counterpart() -> None:
    with torch.device("meta"):
        official = build_reference(**OFFICIAL["ViT-B"]).state_dict()
        ours = SamModel(SamConfig()).state_dict()
    assert TIED[0] in ours
    assert {to_transformers(name) for name in official} == ours.keys() - {TIED[0]}
    assert all(to_official(to_transformers(name) or "") == name for name in official)


def test_no_row_of_the_table_is_idle() -> None:
    with torch.device("meta"):
        official = build_reference(**OFFICIAL["ViT-B"]).state_dict()
    for row in KEY_MAP:
        names = {to_transformers(row[0].replace("*", "7"))}
        assert names == {row[1].replace("*", "7")}
    assert len({row[0] for row in KEY_MAP}) == len({row[1] for row in KEY_MAP}) == len(KEY_MAP)
    assert len(official) == 314


def test_unknown_names_have_none() -> None:
    assert to_transformers("image_encoder.blocks.0.adapter.weight") is None
    assert to_transformers("module.image_encoder.pos_embed") is None
    assert to_official("prompt_encoder.shared_embedding.positional_embedding") is None
