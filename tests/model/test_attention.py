"""Each way to compute the attention gives what the formula gives, forward and backward, and the choice follows its rules."""

import pytest
import torch
from torch import Tensor

from pfedsam.core import rng
from pfedsam.model import attention
from pfedsam.model.attention import choose_core, folded, fused, relative, row_blocked

CORES = [folded, fused, row_blocked]


def inputs(dtype: torch.dtype, sizes: tuple[int, int], side: int) -> list[Tensor]:
    """Two grids of `side` x `side` places, three heads of 8 channels; `sizes` are the tokens' rows and columns, the rest is padding."""
    tokens = sizes[0] * sizes[1]
    keys = tokens + (tokens < side * side)
    shapes = [(2, 3, *sizes, 8), (2, 3, keys, 8), (2, 3, keys, 8), (sizes[0], side, 8), (sizes[1], side, 8)]
    return [
        torch.randn(shape, generator=rng.generator(i), dtype=torch.float64).to(dtype).requires_grad_()
        for i, shape in enumerate(shapes)
    ]


def everywhere(tokens: Tensor, sizes: tuple[int, int], side: int) -> Tensor:
    """Keys or values `[G, n, N, c]` at every place of the grid, `[G, n, side * side, c]`: the last one wherever there is no token."""
    places = tokens[..., -1:, :].expand(-1, -1, side * side, -1).unflatten(2, (side, side)).clone()
    places[:, :, : sizes[0], : sizes[1]] = tokens[..., : sizes[0] * sizes[1], :].unflatten(2, sizes)
    return places.flatten(2, 3)


def plain(query: Tensor, key: Tensor, value: Tensor, rel_h: Tensor, rel_w: Tensor, scale: float) -> Tensor:
    """segment-anything's `add_decomposed_rel_pos` and softmax, written with all terms (Li et al., 2022, eq. 4) and every padded place."""
    grids, heads, height, width, _ = query.shape
    key, value = (everywhere(part, (height, width), rel_h.shape[1]) for part in (key, value))
    logits = torch.einsum("gnhwc,gnkc->gnhwk", query * scale, key)
    logits = logits.unflatten(-1, (rel_h.shape[1], rel_w.shape[1]))
    logits = logits + torch.einsum("gnhwc,hic->gnhwi", query, rel_h)[..., None]
    logits = logits + torch.einsum("gnhwc,wjc->gnhwj", query, rel_w)[..., None, :]
    weights = logits.flatten(-2).softmax(-1).view(grids, heads, height * width, -1)
    return weights @ value


WHOLE = (5, 5)
CASES = [
    *((core, WHOLE) for core in CORES),
    *((core, padded) for core in (folded, fused) for padded in [(5, 2), (2, 5), (1, 3)]),
]


@pytest.mark.parametrize(("core", "sizes"), CASES)
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
        # torch's fused kernel for processors, which is not chosen, approximates the exponential; padding takes weight from the tokens.
        assert (a.double() - b).norm() <= tolerance * b.norm() * (8 if core is fused or sizes != WHOLE else 1)


def test_the_row_blocked_derivative_by_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "ROWS", 4)
    assert torch.autograd.gradcheck(lambda *t: row_blocked(*t, 0.5), inputs(torch.float64, (3, 3), 3), fast_mode=True)


@pytest.mark.parametrize(("core", "sizes"), CASES)
def test_bfloat16_is_near(core: attention.Core, sizes: tuple[int, int]) -> None:
    expected = plain(*inputs(torch.float64, sizes, 5), 0.5)
    found = core(*(t.detach() for t in inputs(torch.bfloat16, sizes, 5)), 0.5)
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
        ("cpu", torch.float32, 28, 28, False, folded),
        ("cpu", torch.float32, 168, 169, False, folded),  # padded
        ("cpu", torch.float32, 4000, 4001, True, folded),
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
