"""Each way to compute the attention gives what the formula gives, forward and backward, and the choice follows its rules."""

import pytest
import torch
from torch import Tensor

from pfedsam.core import rng
from pfedsam.model import attention
from pfedsam.model.attention import choose_core, folded, fused, relative, row_blocked

CORES = [folded, fused, row_blocked]


def inputs(dtype: torch.dtype, sizes: tuple[int, int], side: int) -> list[Tensor]:
    """Two grids, three heads of 8 channels; `sizes` are the queries' rows and columns."""
    shapes = [
        (2, 3, *sizes, 8),
        (2, 3, side * side, 8),
        (2, 3, side * side, 8),
        (sizes[0], side, 8),
        (sizes[1], side, 8),
    ]
    return [
        torch.randn(shape, generator=rng.generator(i), dtype=torch.float64).to(dtype).requires_grad_()
        for i, shape in enumerate(shapes)
    ]


def plain(query: Tensor, key: Tensor, value: Tensor, rel_h: Tensor, rel_w: Tensor, scale: float) -> Tensor:
    """segment-anything's `add_decomposed_rel_pos` and softmax, written with all N x N terms (Li et al., 2022, eq. 4)."""
    grids, heads, height, width, _ = query.shape
    logits = torch.einsum("gnhwc,gnkc->gnhwk", query * scale, key)
    logits = logits.unflatten(-1, (rel_h.shape[1], rel_w.shape[1]))
    logits = logits + torch.einsum("gnhwc,hic->gnhwi", query, rel_h)[..., None]
    logits = logits + torch.einsum("gnhwc,wjc->gnhwj", query, rel_w)[..., None, :]
    weights = logits.flatten(-2).softmax(-1).view(grids, heads, height * width, -1)
    return weights @ value


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("sizes", [(5, 5), (5, 2), (1, 3)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_forward_and_gradients_are_those_of_the_formula(
    monkeypatch: pytest.MonkeyPatch, core: attention.Core, sizes: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    monkeypatch.setattr(attention, "ROWS", 4)  # several blocks, the last one shorter
    ours, exact = inputs(dtype, sizes, 5), inputs(torch.float64, sizes, 5)
    found, expected = core(*ours, 0.5), plain(*exact, 0.5)
    assert found.dtype == dtype
    weight = torch.randn(expected.shape, generator=rng.generator(9), dtype=torch.float64)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    pairs = [(found, expected), *((a.grad, b.grad) for a, b in zip(ours, exact, strict=True))]
    for a, b in pairs:
        assert a is not None
        assert b is not None
        # torch's fused kernel for processors, which is not chosen, approximates the exponential.
        assert (a.double() - b).norm() <= tolerance * b.norm() * (4 if core is fused else 1)


def test_the_row_blocked_derivative_by_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "ROWS", 4)
    assert torch.autograd.gradcheck(lambda *t: row_blocked(*t, 0.5), inputs(torch.float64, (2, 3), 3), fast_mode=True)


def test_bfloat16_is_near() -> None:
    expected = plain(*inputs(torch.float64, (5, 5), 5), 0.5)
    for core in CORES:
        found = core(*(t.detach() for t in inputs(torch.bfloat16, (5, 5), 5)), 0.5)
        assert found.dtype == torch.bfloat16
        assert (found.double() - expected).norm() < 0.02 * expected.norm()


def test_relative_positions_of_a_smaller_grid_lie_in_the_middle_of_the_table() -> None:
    table = torch.arange(7.0)[:, None]  # offsets -3 .. 3
    assert relative(table, 2, 3)[..., 0].tolist() == [[3.0, 2.0, 1.0], [4.0, 3.0, 2.0]]


@pytest.mark.parametrize(
    ("device", "dtype", "queries", "keys", "gradients", "core"),
    [
        ("cpu", torch.float32, 4096, 4096, True, row_blocked),
        ("cpu", torch.bfloat16, 4096, 4096, True, row_blocked),
        ("cpu", torch.float32, 196, 196, False, row_blocked),
        ("cpu", torch.float32, 28, 196, False, folded),
        ("cpu", torch.float32, 196, 196, True, folded),
        ("cpu", torch.bfloat16, 196, 196, False, folded),
        ("cuda", torch.bfloat16, 4096, 4096, True, fused),
        ("cuda", torch.float32, 4096, 4096, False, folded),
    ],
)
def test_the_choice(
    device: str, dtype: torch.dtype, queries: int, keys: int, gradients: bool, core: attention.Core
) -> None:
    assert choose_core(device, dtype, queries, keys, gradients) is core
