"""FedSAM: every weight of SAM that an answer without a prompt depends on is trained and averaged, from the pixels on."""

import torch

from pfedsam.core import rng
from pfedsam.federation.methods import METHODS
from pfedsam.model.backbones.compact import compact_config, new_network

UNUSED = (
    "shared_image_embedding",  # a fixed random code
    "prompt_encoder.point_embed",
    "prompt_encoder.not_a_point_embed",
    "prompt_encoder.mask_embed",
    "mask_decoder.iou_prediction_head",
)
REPLACED = ("mask_decoder.upscale", "mask_decoder.output_hypernetworks_mlps")
"""SAM's output layers; ours start as copies of them."""


def test_all_of_sam_is_averaged(make) -> None:
    made = make("fedsam", image_skip={"channels": None})
    sam = dict(new_network(compact_config("sam-toy"), rng.generator(0)).named_parameters())
    kept = {f"sam.{name}" for name in sam if not name.startswith(UNUSED + REPLACED)}
    assert made.shared == kept | made.names("class_tokens", "output_layers.")
    assert made.local == set()
    # A hyper-network is one of SAM's four, and there is one for each of the two classes; a class token is one of the mask tokens.
    mlp = sum(v.numel() for n, v in sam.items() if n.startswith("mask_decoder.output_hypernetworks_mlps.0."))
    used = sum(v.numel() for n, v in sam.items() if not n.startswith(UNUSED)) - 4 * mlp + 2 * mlp + 2 * 32
    seen = (12 * 16 * 9 + 16) + (16 * 4 * 9 + 4)  # the two convolutions over the image: 12 to 16, 16 to 4 channels
    assert sum(made.model.get_parameter(name).numel() for name in made.shared) == used + seen


def test_it_starts_from_pixels_and_computes_the_same(make) -> None:
    trained, frozen = make("fedsam").model, make("fedavg").model
    pixels = torch.rand(2, 3, 64, 64, generator=rng.generator(2))
    assert trained.prefix(pixels).shape[1:] == trained.prefix_shape == (3, 64, 64)
    torch.testing.assert_close(trained(pixels), frozen(pixels), atol=1e-6, rtol=1e-5)


def test_the_gradient_reaches_the_first_layer(make) -> None:
    model = make("fedsam").model.requires_grad_(True)
    model(torch.rand(1, 3, 64, 64, generator=rng.generator(2))).sum().backward()
    assert model.sam.vision_encoder.patch_embed.projection.weight.grad.abs().sum() > 0
    assert model.sam.vision_encoder.pos_embed.grad.abs().sum() > 0


def test_sams_own_weights_learn_slower_than_what_was_added(make, train) -> None:
    made = make("fedsam")
    before = made.values()
    after = train(made, steps_per_round=2, optimizer={"learning_rate": 0.01, "pretrained_fraction": 0.1}).shared
    name = "sam.vision_encoder.patch_embed.projection.bias"
    # The first step of AdamW is as long as the learning rate, the second is not longer (biases start at 0: no decay).
    assert 0.0005 < (after[name] - before[name]).abs().max() <= 0.0021
    assert (after["output_layers.upscale_conv1.bias"] - before["output_layers.upscale_conv1.bias"]).abs().max() > 0.005


def test_nothing_happens_at_a_site_alone() -> None:
    assert METHODS["fedsam"].final.__name__ == "no_phases"
