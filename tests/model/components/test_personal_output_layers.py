"""The site's own output layers: a difference follows the shared ones, a copy does not."""

import pytest
import torch
from toy_model import toy_personal

from pfedsam.core import rng


@pytest.mark.parametrize(("copy", "follows"), [(False, True), (True, False)])
def test_a_difference_follows_the_shared_layers_and_a_copy_does_not(copy: bool, follows: bool) -> None:
    model = toy_personal(output_layers="both", personal_copy=copy)
    pixels = torch.rand(1, 3, 64, 64, generator=rng.generator(2))
    before = model(pixels)
    assert torch.equal(before, model(pixels, personal=False))
    with torch.no_grad():
        for name in model.components()["output_layers"]:
            model.get_parameter(name).mul_(1.5)
    assert torch.equal(model(pixels), model(pixels, personal=False)) is follows
    assert torch.equal(model(pixels), before) is not follows


def test_a_difference_has_no_origin_and_a_copy_has_one_for_each_parameter() -> None:
    for copy, count in [(False, 0), (True, 1)]:
        model = toy_personal(output_layers="both", personal_copy=copy)
        own = model.components()["personal_output_layers"]
        assert sum(name in model.origins() for name in own) == count * len(own)
