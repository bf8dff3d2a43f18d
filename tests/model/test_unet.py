"""The U-Net as a model of a federation."""

import pytest
import torch
from monai.networks.nets.unet import UNet
from pydantic import ValidationError
from torch import nn

from pfedsam.core import rng
from pfedsam.core.errors import OptionError
from pfedsam.model.unet import UNetOptions, UNetSegmenter

SMALL = UNetOptions(channels=[4, 8, 16], residual_units=1)


def small(seed: int = 0, **changes: object) -> UNetSegmenter:
    return UNetSegmenter(SMALL.model_copy(update=changes), 2, rng.generator(seed), image_size=32)


def test_one_channel_for_each_class_at_the_resolution_of_the_image() -> None:
    model = small()
    assert model(torch.rand(3, 3, 32, 32)).shape == (3, 2, 32, 32)
    assert model.prefix_shape == (3, 32, 32)


def test_the_default_has_the_size_that_the_evidence_names() -> None:
    # MONAI's own: channels 16 to 256 with two residual units are 1.6 million parameters.
    model = UNetSegmenter(UNetOptions(), 3, rng.generator(0))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 1.6


def test_its_network_is_monais_on_standardised_pixels() -> None:
    model, pixels = small(), torch.rand(1, 3, 32, 32)
    reference = UNet(2, 3, 2, [4, 8, 16], [2, 2], num_res_units=1, norm=("instance", {"affine": True}))
    reference.load_state_dict({name.removeprefix("unet."): value for name, value in model.state_dict().items()})
    mean, std = (torch.tensor(v).view(3, 1, 1) / 255 for v in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))
    # The reference standardises in another order of operations, whose rounding the layers multiply.
    assert torch.allclose(model(pixels), reference((pixels - mean) / std), atol=1e-4)


def test_the_generator_decides_its_weights_and_no_other_source_is_touched() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = small(1), small(1), small(2)
    assert torch.equal(torch.rand(1), expected)
    values = [model.state_dict() for model in (first, again, other)]
    assert all(torch.equal(values[0][name], values[1][name]) for name in values[0])
    assert any(not torch.equal(values[0][name], values[2][name]) for name in values[0])


def test_every_parameter_has_one_group() -> None:
    model = small()
    groups = model.components()
    assert sorted(name for names in groups.values() for name in names) == sorted(n for n, _ in model.named_parameters())
    modules = dict(model.named_modules())
    assert all(isinstance(modules[name.rpartition(".")[0]], nn.InstanceNorm2d) for name in groups["unet_norms"])


def test_personal_and_shared_model_are_the_same_and_nothing_is_pretrained() -> None:
    model, pixels = small(), torch.rand(1, 3, 32, 32)
    assert torch.equal(model(pixels, personal=True), model(pixels, personal=False))
    assert (model.pretrained(), model.origins(), model.routers()) == (frozenset(), {}, {})


@pytest.mark.parametrize("changes", [{}, {"residual_units": 3}, {"channels": (4, 8)}])
def test_the_rows_of_the_last_convolution_belong_to_one_class_each(changes: dict[str, object]) -> None:
    """A change of the rows of a class changes the logits of this class and of no other."""
    model, pixels = small(**changes), torch.rand(1, 3, 32, 32)
    numbers, before = model.class_numbers(), model(pixels)
    # Two classes: a 3 x 3 convolution from two channels to two, and its bias.
    assert {tuple(model.get_parameter(name).shape): rows for name, rows in numbers.items()} == {
        (2, 2, 3, 3): (1, 2),
        (2,): (1, 2),
    }
    for name, rows in numbers.items():
        with torch.no_grad():
            model.get_parameter(name)[rows.index(2)] += 1
    changed = (model(pixels) != before).flatten(2).any(dim=2)
    assert changed.tolist() == [[False, True]]


def test_without_residual_units_no_row_belongs_to_one_class() -> None:
    # The last layer is a transposed convolution, whose weight is [inputs, classes, 3, 3].
    assert small(residual_units=0).class_numbers() == {}


def test_a_side_that_its_levels_do_not_divide_is_refused() -> None:
    with pytest.raises(OptionError, match=r"multiple of 4 pixels, but model.image_size is 30: choose 28"):
        UNetSegmenter(SMALL, 2, rng.generator(0), image_size=30)


@pytest.mark.parametrize("channels", [[16], [16, 0], [16, 10**9], [4] * 8])
def test_sizes_that_no_unet_has_are_refused(channels: list[int]) -> None:
    with pytest.raises(ValidationError, match="channels"):
        UNetOptions(channels=channels)
