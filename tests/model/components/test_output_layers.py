"""The mask head: with one class and no image skip it computes the masks of the backbone's decoder."""

import torch
from torch import nn
from toy_model import toy_backbone, toy_personal

from pfedsam.core import rng
from pfedsam.model.components.output_layers import MaskHead


def test_logits_are_the_product_of_each_class_weights_and_the_upscaled_image() -> None:
    backbone = toy_backbone()
    head = MaskHead(backbone, classes=2)
    generator = rng.generator(3)
    tokens, image = torch.randn(1, 2, 32, generator=generator), torch.randn(1, 32, 4, 4, generator=generator)
    logits = head(tokens, image)
    decoder = backbone.network.mask_decoder
    upscaled = decoder.upscale_layer_norm(decoder.upscale_conv1(image))
    upscaled = nn.functional.gelu(decoder.upscale_conv2(nn.functional.gelu(upscaled)))
    weights = decoder.output_hypernetworks_mlps[0](tokens[0])  # transformers' MLP of the single-mask token, [2, c]
    expected = (weights @ upscaled[0].flatten(1)).reshape(1, 2, 16, 16)
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-5)


def test_the_image_skip_starts_without_effect() -> None:
    pixels = torch.rand(1, 3, 64, 64, generator=rng.generator(2))
    torch.testing.assert_close(toy_personal(image_skip=True)(pixels), toy_personal(image_skip=False)(pixels))


def test_the_mlp_of_each_class_belongs_to_it() -> None:
    numbers = toy_personal(classes=2).class_numbers()
    assert {name.split(".")[2]: found for name, found in numbers.items() if ".mlps." in name} == {"0": (1,), "1": (2,)}
    assert not any("upscale" in name for name in numbers)
