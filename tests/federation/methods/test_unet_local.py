"""The U-Net that every site trains alone: nothing is sent."""

import torch

from pfedsam.model.options import ModelOptions
from pfedsam.model.unet import UNetOptions

SMALL = {"unet": {"channels": [4, 8], "residual_units": 1}}


def test_all_layers_are_local(make) -> None:
    made = make("unet-local", **SMALL)
    assert made.local == {name for name, _ in made.model.named_parameters()}
    assert made.shared == set()


def test_options_of_sam_have_no_effect_on_its_model(make) -> None:
    made = make("unet-local", **SMALL)
    plain = made.method.adapt(ModelOptions(image_size=128))
    assert made.method.adapt(ModelOptions(image_size=128, adapt_last=2, precision="bfloat16")) == plain
    assert (plain.image_size, plain.unet) == (128, UNetOptions())


def test_a_round_changes_every_kernel_and_sends_nothing(make, train) -> None:
    made = make("unet-local", **SMALL)
    before = made.values()
    result = train(made)
    assert result.shared == {}
    changed = {name for name, value in result.state.local.items() if not torch.equal(value, before[name])}
    assert changed >= {name for name in before if name.endswith("weight") and before[name].dim() == 4}
