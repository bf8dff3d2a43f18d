"""The GPU kernel gives what the formula gives, on a GPU, or with Triton and TRITON_INTERPRET=1 on any processor; skipped elsewhere.

What chooses it is tested everywhere (`test_kernels.py`).
"""

import os

import pytest
import torch
from torch import Tensor

from pfedsam.core import rng
from pfedsam.model.attention import relative

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


def draw(number: int, *shape: int, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape, generator=rng.generator(number))).to(torch.float16).to(DEVICE)


def formula(
    projected: Tensor, padding: Tensor, rel_h: Tensor, rel_w: Tensor, heads: int, sides: tuple[int, int], scale: float
) -> Tensor:
    """segment-anything's windowed attention with every padded place written out, in float64 (Li et al., 2022, eq. 4)."""
    projected, padding, rel_h, rel_w = (part.double() for part in (projected, padding, rel_h, rel_w))
    batch, height, width, _ = projected.shape
    down, across = -(-height // sides[0]), -(-width // sides[1])
    places = padding.expand(batch, down * sides[0], across * sides[1], -1).clone()
    places[:, :height, :width] = projected
    grids = places.view(batch, down, sides[0], across, sides[1], 3, heads, -1).permute(5, 0, 1, 3, 6, 2, 4, 7)
    query, key, value = grids.reshape(3, batch * down * across, heads, *sides, -1)
    logits = torch.einsum("gnhwc,gnijc->gnhwij", query * scale, key)
    logits += torch.einsum("gnhwc,hic->gnhwi", query, relative(rel_h, sides[0], sides[0]))[..., None]
    logits += torch.einsum("gnhwc,wjc->gnhwj", query, relative(rel_w, sides[1], sides[1]))[..., None, :]
    weights = logits.flatten(-2).softmax(-1)
    mixed = torch.einsum("gnhwm,gnmc->gnhwc", weights, value.flatten(2, 3))
    mixed = mixed.view(batch, down, across, heads, *sides, -1).permute(0, 1, 4, 2, 5, 3, 6)
    return mixed.reshape(batch, down * sides[0], across * sides[1], -1)[:, :height, :width]


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
    tokens: tuple[int, int], sides: tuple[int, int], heads: int, channels: int
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

    found, expected = attend(*given), formula(*given)
    assert found.dtype == torch.float16
    assert (found.double() - expected).norm() < 1e-3 * expected.norm()
