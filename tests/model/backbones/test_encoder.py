"""The fast blocks compute what the `transformers` blocks compute, forward and backward."""

from copy import deepcopy

import torch

from pfedsam.core import rng
from pfedsam.model.backbones.base import standardise
from pfedsam.model.backbones.compact import compact_config, new_network
from pfedsam.model.backbones.encoder import encode, use_fast_blocks


def test_forward_and_gradients_equal_the_reference() -> None:
    reference = new_network(compact_config("sam-toy"), rng.generator(0))  # windows of 3 on a 4 x 4 grid: with padding
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if "rel_pos" in name or name.endswith("bias"):
                parameter.normal_(std=0.3, generator=rng.generator(1))
    fast = use_fast_blocks(deepcopy(reference))
    pixels = torch.rand(2, 3, 64, 64, generator=rng.generator(2))
    expected = reference.vision_encoder(standardise(pixels)).last_hidden_state
    found = encode(fast, pixels)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    target = torch.randn(expected.shape, generator=rng.generator(3))
    ((expected - target) ** 2).mean().backward()
    ((found - target) ** 2).mean().backward()
    gradients = dict(fast.vision_encoder.named_parameters())
    for name, parameter in reference.vision_encoder.named_parameters():
        torch.testing.assert_close(gradients[name].grad, parameter.grad, atol=1e-5, rtol=1e-4, msg=name)
    assert set(fast.state_dict()) == set(reference.state_dict())
