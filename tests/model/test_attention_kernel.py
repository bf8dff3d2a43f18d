"""The GPU kernel gives what the formula gives, on a GPU, or with Triton and TRITON_INTERPRET=1 on any processor; skipped elsewhere.

What chooses it is tested everywhere (`test_kernels.py`).
"""

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pfedsam.core import rng

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


def draw(number: int, *shape: int, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape, generator=rng.generator(number))).to(torch.float16).to(DEVICE)


@pytest.mark.skipif(not GPU and os.environ.get("TRITON_INTERPRET") != "1", reason="torch finds no GPU here")
@pytest.mark.parametrize(
    ("tokens", "sides", "heads", "channels"),
    [
        ((8, 8), (8, 8), 2, 16),  # one grid
        ((16, 8), (8, 8), 2, 32),  # windows without padding
        ((16, 16), (14, 14), 1, 32),  # SAM's windows at 256 px, padded to 28 x 28
        ((10, 9), (4, 4), 2, 16),  # rows and columns short of different numbers
        ((9, 20), (9, 20), 1, 64),  # neither a square nor powers of two
    ],
)
def test_the_kernel_computes_the_formula(
    attention_formula: Callable[..., Tensor], tokens: tuple[int, int], sides: tuple[int, int], heads: int, channels: int
) -> None:
    given = (
        draw(0, 2, *tokens, 3 * heads * channels),
        draw(1, 3 * heads * channels),
        draw(2, 2 * sides[0] - 1, channels, scale=0.3),
        draw(3, 2 * sides[1] - 1, channels, scale=0.3),
        heads,
        sides,
        channels**-0.5,
    )
    from pfedsam.model.attention_kernel import attend

    found, expected = attend(*given), attention_formula(*given)
    assert found.dtype == torch.float16
    assert (found.double() - expected).norm() < 1e-3 * expected.norm()
