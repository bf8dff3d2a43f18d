"""The second LoRA beside the shared one: one product, the sum of both."""

import torch
from torch import nn

from pfedsam.core import rng
from pfedsam.model.components.local_lora import LoraPairs


def test_two_loras_in_one_product_are_the_sum_of_both() -> None:
    net = nn.ModuleDict({"lora_A": nn.Linear(5, 2, bias=False), "lora_B": nn.Linear(2, 4, bias=False)})
    layer = nn.ModuleDict({"layer": net})
    pair = ("layer.lora_A.weight", "layer.lora_B.weight")
    own = LoraPairs(layer, [pair], 3, rng.generator(0))
    assert own.get_parameter("layer-b").count_nonzero() == 0
    with torch.no_grad():
        own.get_parameter("layer-b").normal_()
    a, b = (layer.get_parameter(name) for name in pair)
    found = own.values(layer.get_parameter)
    alpha, joined = 6.0, found[pair[1]] @ found[pair[0]]
    expected = alpha / 2 * b @ a + alpha / 3 * own.get_parameter("layer-b") @ own.get_parameter("layer-a")
    torch.testing.assert_close(alpha / 2 * joined, expected)
