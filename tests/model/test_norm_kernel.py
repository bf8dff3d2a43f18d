"""The GPU kernel is LayerNorm, on a GPU, or with Triton and TRITON_INTERPRET=1 on any processor; skipped elsewhere."""

import os

import pytest
import torch
import torch.nn.functional as F

from pfedsam.core import rng

GPU = torch.cuda.is_available()


@pytest.mark.skipif(not GPU and os.environ.get("TRITON_INTERPRET") != "1", reason="torch finds no GPU here")
@pytest.mark.parametrize("width", [32, 48, 768])
@pytest.mark.parametrize("contiguous", [True, False])
def test_the_kernel_is_layer_norm(width: int, contiguous: bool) -> None:
    from pfedsam.model.norm_kernel import normalise

    generator, device = rng.generator(0), "cuda" if GPU else "cpu"
    tokens, weight, bias = (
        torch.randn(shape, generator=generator).to(device, torch.float16)
        for shape in ((2, 3, 5, width + 8), (width,), (width,))
    )
    tokens = 3 * tokens[..., :width] + 1
    found = normalise(tokens.contiguous() if contiguous else tokens, weight, bias, 1e-6)
    expected = F.layer_norm(tokens.double(), (width,), weight.double(), bias.double(), 1e-6)
    assert (found.double() - expected).norm() < 1e-3 * expected.norm()
