"""A site's own copy of LoRA and class tokens starts as the shared values and does not follow them."""

import torch
from toy_model import toy_personal

from pfedsam.core import rng


def test_a_copy_keeps_its_values_when_the_shared_ones_change() -> None:
    model, pixels = (
        toy_personal(personal_copy=True, output_layers="shared"),
        torch.rand(1, 3, 64, 64, generator=rng.generator(2)),
    )
    personal, shared = model(pixels), model(pixels, personal=False)
    assert torch.equal(personal, shared)
    with torch.no_grad():
        model.get_parameter("class_tokens").add_(1.0)
    assert torch.equal(model(pixels), personal)
    assert not torch.allclose(model(pixels, personal=False), shared)


def test_each_copy_names_the_parameter_that_it_came_from() -> None:
    model = toy_personal(personal_copy=True, output_layers="shared")
    groups = model.components()
    origins = {name: origin for name, origin in model.origins().items() if name in groups["personal_copy"]}
    assert sorted(origins) == sorted(groups["personal_copy"])
    assert sorted(origins.values()) == sorted((*groups["lora_a"], *groups["lora_b"], *groups["class_tokens"]))
