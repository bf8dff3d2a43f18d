"""The backbone's own weights: named for the methods that train them, without what other components declared."""

from toy_model import toy_personal


def test_the_parts_of_the_backbone_do_not_overlap_with_other_components() -> None:
    groups = toy_personal(train_encoder=True, norms="local").components()
    names = [name for own in groups.values() for name in own]
    assert len(names) == len(set(names))
    assert all(name.startswith("sam.vision_encoder.") for name in groups["encoder"])
    assert groups["no_prompt"] == ("sam.prompt_encoder.no_mask_embed.weight",)


def test_what_a_prediction_without_a_prompt_does_not_use_is_not_named() -> None:
    decoder = toy_personal().components()["decoder"]
    assert not any("iou_prediction_head" in name or "hypernetworks" in name or "lora" in name for name in decoder)
    assert any(name.startswith("sam.mask_decoder.transformer.") for name in decoder)


def test_the_encoder_is_named_only_where_it_is_trained() -> None:
    assert "encoder" not in toy_personal().components()
    assert toy_personal(train_encoder=True).from_pixels
