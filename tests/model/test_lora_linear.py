"""The fused layer computes what peft's own does, and leaves to peft what peft alone can."""

import pytest
import torch
from peft.tuners.lora import Linear

from pfedsam.core import rng
from pfedsam.model.backbones.compact import compact_config, new_network
from pfedsam.model.backbones.sam import SamBackbone
from pfedsam.model.components.lora import LoraOptions, add_lora
from pfedsam.model.lora_linear import LoraLinear


def layer() -> LoraLinear:
    sam = new_network(compact_config("sam-toy"), rng.generator(0))
    targets = SamBackbone(sam).lora_targets(1, output_projection=False, mlp=False, decoder=True)
    add_lora(sam, LoraOptions(rank=2, alpha=6.0), targets, rng.generator(1))
    found = sam.vision_encoder.layers[1].attn.qkv
    torch.nn.init.normal_(found.lora_B["default"].weight, generator=rng.generator(2))
    return found.requires_grad_(False)


def test_values_and_gradients_are_peft_s() -> None:
    found = layer()
    assert isinstance(found, LoraLinear)
    trained = [found.lora_A["default"].weight, found.lora_B["default"].weight]
    x = torch.randn(2, 3, 3, 32, generator=rng.generator(3), requires_grad=True)
    for parameter in trained:
        parameter.requires_grad_()
    ours, theirs = found(x), Linear.forward(found, x)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    for a, b in zip(
        torch.autograd.grad(ours.square().sum(), [x, *trained]),
        torch.autograd.grad(theirs.square().sum(), [x, *trained]),
        strict=True,
    ):
        assert (a - b).norm() <= 1e-6 * b.norm()


def test_a_frozen_matrix_in_bf16_takes_an_update_in_fp32() -> None:
    found, x = layer(), torch.randn(5, 32, generator=rng.generator(3))
    exact = found(x)
    found.base_layer.to(torch.bfloat16)
    for parameter in (found.lora_A["default"].weight, found.lora_B["default"].weight):
        parameter.requires_grad_()
    y = found(x.bfloat16())
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert (y.float() - exact).norm() < 0.02 * exact.norm()
    assert found.lora_A["default"].weight.grad.dtype == torch.float32


@pytest.mark.parametrize("change", ["disable", "merge"])
def test_what_peft_can_do_with_a_layer_still_works(change: str) -> None:
    found, x = layer(), torch.randn(5, 32, generator=rng.generator(3))
    expected = found.base_layer(x) if change == "disable" else found(x)
    if change == "disable":
        found.enable_adapters(False)
    else:
        found.merge()
    torch.testing.assert_close(found(x), expected, atol=1e-6, rtol=1e-5)
