"""The U-Net of which every layer is averaged."""

SMALL = {"unet": {"channels": [4, 8], "residual_units": 1}}


def test_all_layers_are_shared(make) -> None:
    made = make("unet-fedavg", **SMALL)
    assert made.shared == {name for name, _ in made.model.named_parameters()}
    assert made.local == set()


def test_a_round_returns_every_layer(make, train) -> None:
    made = make("unet-fedavg", **SMALL)
    assert set(train(made).shared) == made.shared
