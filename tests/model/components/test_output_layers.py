"""The mask head: with one class and no image skip it computes the masks of the backbone's decoder."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn
from toy_model import toy_backbone, toy_personal

from pfedsam.core import rng
from pfedsam.core.errors import OptionError
from pfedsam.model.backbones.checkpoint import load_backbone
from pfedsam.model.components.output_layers import ImageSkipOptions, MaskHead


def test_logits_are_the_product_of_each_class_weights_and_the_upscaled_image() -> None:
    backbone = toy_backbone()
    generator = rng.generator(3)
    head = MaskHead(backbone, classes=2, skip=None, generator=generator)
    tokens, image = torch.randn(1, 2, 32, generator=generator), torch.randn(1, 32, 4, 4, generator=generator)
    logits = head(tokens, image)
    decoder = backbone.network.mask_decoder
    upscaled = decoder.upscale_layer_norm(decoder.upscale_conv1(image))
    upscaled = nn.functional.gelu(decoder.upscale_conv2(nn.functional.gelu(upscaled)))
    weights = decoder.output_hypernetworks_mlps[0](tokens[0])  # transformers' MLP of the single-mask token, [2, c]
    expected = (weights @ upscaled[0].flatten(1)).reshape(1, 2, 16, 16)
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-5)


def test_convolutions_over_the_image_start_without_effect() -> None:
    pixels = torch.rand(1, 3, 64, 64, generator=rng.generator(2))
    torch.testing.assert_close(
        toy_personal(image_skip={"channels": None})(pixels), toy_personal(image_skip=None)(pixels)
    )


def test_with_a_unet_masks_have_half_the_resolution_of_the_image_and_start_as_those_without() -> None:
    pixels = torch.rand(1, 3, 64, 64, generator=rng.generator(2))
    plain = toy_personal(image_skip=None)(pixels)
    expected = F.interpolate(plain, size=(32, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(toy_personal(image_skip={"channels": [4, 8]})(pixels), expected)


def test_a_trained_unet_sees_structures_of_two_pixels() -> None:
    model = toy_personal(image_skip={"channels": [4, 8]})
    with torch.no_grad():
        model.output_layers.image_skip.last.weight.fill_(0.5)
    plain = torch.rand(1, 3, 64, 64, generator=rng.generator(2))
    marked = plain.clone()
    marked[..., 20:22, 40:42] = 5
    difference = (model(marked) - model(plain))[0, 0].abs()
    row, column = divmod(int(difference.argmax()), 32)
    assert abs(row - 10) <= 1  # row 20 and column 40 of the image, at half its resolution
    assert abs(column - 20) <= 1


def test_a_trained_unet_sees_the_features_of_the_decoder() -> None:
    """The same image with other features gets another correction, which the layer for the image alone could not give."""
    head = toy_personal(image_skip={"channels": [4, 8]}).output_layers.image_skip
    with torch.no_grad():
        head.last.weight.fill_(0.5)
    seen = torch.rand(1, 12, 16, 16, generator=rng.generator(2))
    features = torch.rand(1, head.last.out_channels, 16, 16, generator=rng.generator(3))
    flat = torch.zeros_like(features)
    scaled = F.interpolate(features, size=(32, 32), mode="bilinear", align_corners=False)
    assert (head(seen, features) - scaled - head(seen, flat)).abs().max() > 0.01


@pytest.mark.parametrize("channels", [[16], [16, 0], [16, 10**9], [4] * 6])
def test_sizes_that_no_unet_has_are_refused(channels: list[int]) -> None:
    with pytest.raises(ValidationError, match="channels"):
        ImageSkipOptions(channels=channels)


def test_more_levels_than_the_image_can_be_halved_are_refused() -> None:
    with pytest.raises(
        OptionError, match=r"5 levels, which need images whose side is a multiple of 32 .* is 48: choose 32"
    ):
        MaskHead(load_backbone("sam-tiny", image_size=48), 1, ImageSkipOptions(channels=[4] * 5), rng.generator(0))


def test_the_mlp_of_each_class_belongs_to_it() -> None:
    numbers = toy_personal(classes=2).class_numbers()
    assert {name.split(".")[2]: found for name, found in numbers.items() if ".mlps." in name} == {"0": (1,), "1": (2,)}
    assert not any("upscale" in name for name in numbers)
