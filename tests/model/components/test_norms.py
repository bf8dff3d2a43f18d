"""Local LayerNorms replace the backbone's in the personal model alone."""

import torch
from toy_model import toy_personal

from pfedsam.core import rng


def test_they_start_as_copies_and_change_the_personal_model_alone() -> None:
    model, pixels = toy_personal(norms="local"), torch.rand(1, 3, 64, 64, generator=rng.generator(2))
    shared, personal = model(pixels, personal=False), model(pixels)
    assert torch.equal(shared, personal)
    with torch.no_grad():
        for name in model.components()["norms"]:
            model.get_parameter(name).add_(0.5)
    assert torch.equal(model(pixels, personal=False), shared)
    assert not torch.allclose(model(pixels), personal)


def test_norms_of_frozen_blocks_are_not_copied() -> None:
    names = toy_personal(norms="local", adapt_last=1).components()["norms"]
    assert any("vision_encoder-layers-1-" in name for name in names)
    assert not any("vision_encoder-layers-0-" in name for name in names)
    assert len(names) == len(set(names))
