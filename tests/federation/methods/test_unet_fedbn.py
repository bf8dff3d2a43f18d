"""The U-Net whose normalisation stays at its site."""

from torch import nn

SMALL = {"unet": {"channels": [4, 8], "residual_units": 1}}


def test_scales_and_shifts_of_the_normalisation_are_local(make) -> None:
    made = make("unet-fedbn", **SMALL)
    modules = dict(made.model.named_modules())
    of_norms = {
        n for n, _ in made.model.named_parameters() if isinstance(modules[n.rpartition(".")[0]], nn.InstanceNorm2d)
    }
    assert of_norms
    assert made.local == of_norms
    assert made.shared == {name for name, _ in made.model.named_parameters()} - of_norms
