"""The image beside the tokens: folded without loss, and without effect before it is trained."""

import torch

from pfedsam.core import rng
from pfedsam.model import image_skip
from pfedsam.model.backbones.base import PIXEL_MEAN, PIXEL_STD
from pfedsam.model.backbones.compact import compact_config, new_network
from pfedsam.model.backbones.sam import SamBackbone
from pfedsam.model.build import build_personal
from pfedsam.model.options import ModelOptions
from pfedsam.model.personal import PersonalSam


def make(**changes: object) -> PersonalSam:
    options = ModelOptions.model_validate({"backbone": "sam-toy", "adapt_last": 1, **changes})
    return build_personal(
        SamBackbone(new_network(compact_config("sam-toy"), rng.generator(0))), options, 2, rng.generator(1)
    ).eval()


def test_unfolding_gives_each_mask_value_the_mean_colours_of_its_quarters() -> None:
    pixels = torch.rand(1, 3, 64, 64, generator=rng.generator(3))
    seen = image_skip.unfold(image_skip.fold(pixels, (4, 4)))
    assert seen.shape == (1, 12, 16, 16)  # a mask value stands for 4 x 4 pixels: four quarters of 2 x 2
    colour, row, column = 1, 5, 9
    quarter = pixels[0, colour, 4 * row + 2 : 4 * row + 4, 4 * column : 4 * column + 2].mean()  # below, left
    expected = (quarter - PIXEL_MEAN[colour]) / PIXEL_STD[colour]
    assert torch.isclose(seen[0, 4 * colour + 2, row, column], expected, atol=1e-5)


def test_masks_start_as_without_the_image() -> None:
    pixels = torch.rand(2, 3, 64, 64, generator=rng.generator(3))
    with_image, without = make(image_skip={"channels": None}), make(image_skip=None)
    assert with_image.prefix_shape == (4, 4, 32 + image_skip.FOLDED)
    assert without.prefix_shape == (4, 4, 32)
    assert torch.equal(with_image(pixels, personal=False), without(pixels, personal=False))


def test_the_image_reaches_the_masks_once_its_layers_are_trained() -> None:
    model, pixels = make(image_skip={"channels": None}), torch.rand(2, 3, 64, 64, generator=rng.generator(3))
    before = model(pixels, personal=False)
    with torch.no_grad():
        model.output_layers.image_skip[2].weight.fill_(0.1)
    assert not torch.equal(model(pixels, personal=False), before)
