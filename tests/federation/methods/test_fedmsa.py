"""FedMSA: two adapters in every block and the decoder."""

from pfedsam.core import rng
from pfedsam.model.backbones.compact import compact_config, new_network

NOT_USED = ("mask_decoder.iou_prediction_head", "mask_decoder.upscale", "mask_decoder.output_hypernetworks_mlps")
"""The last two start the output layers, which are averaged in their place."""


def test_adapters_and_decoder_are_averaged(make) -> None:
    made = make("fedmsa")
    sam = dict(new_network(compact_config("sam-toy"), rng.generator(0)).named_parameters())
    decoder = {f"sam.{n}" for n in sam if n.startswith("mask_decoder.") and not n.startswith(NOT_USED)}
    adapters = made.names("adapters.")
    assert made.shared == decoder | adapters | made.names("class_tokens", "output_layers.")
    assert made.local == set()
    # Toy: width 32, so 8 hidden units; two layers with biases an adapter, two adapters a block, both blocks.
    assert sum(made.model.get_parameter(n).numel() for n in adapters) == 2 * 2 * (32 * 8 + 8 + 8 * 32 + 32)


def test_the_encoder_is_frozen_and_has_no_lora(make) -> None:
    made = make("fedmsa")
    assert made.names("sam.vision_encoder.") <= set(made.partition.frozen)
    assert not any(".lora_" in n for n, _ in made.model.named_parameters())


def test_the_ratio_can_be_chosen(make) -> None:
    assert make("fedmsa", adapters={"ratio": 0.5}).model.adapters["0"].mlp.down.shape == (16, 32)
