"""SAM's attention with its decomposed relative position bias (MViTv2, Li et al., 2022), in several exact implementations.

All compute softmax(scale q k^T + r_h + r_w) v, where r_h and r_w are products of the query with tables of relative rows and columns. The
fastest implementation depends on the device, the precision, the number of tokens and whether gradients are needed: on GPUs
`pfedsam.model.kernels` may have a single kernel, otherwise `choose_core` decides. Letters: G grids (windows) times images, n heads, c
channels of a head; a grid of H x W positions has h x w tokens, M = h w, and is padded if these are fewer. Padded tokens are dropped as
queries. Their keys and values are identical and are merged into one key with a log-sum-exp bias (`_beyond`), so there are N = M or N = M +
1 keys.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

ROWS = 256
"""Number of queries whose logits are in memory at a time in `row_blocked`: 4 MB for 4096 keys in float32, which fits into a cache."""
MANY_KEYS = 1024
"""With more keys, the logits no longer fit into the processor's caches, and all of them together need more memory than all else."""
KERNELS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""Torch's fused kernels, the fastest first (benchmarks/attention.py); torch skips those that do not support a type or a width."""
FEW_QUERIES = 128
"""With fewer queries, the loop over heads costs more time than it saves."""

Core: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]
"""A function from query `[G, n, h, w, c]` (at the upper left of each grid), key and value `[G, n, N, c]` (in a padded grid the padding's
key is the last), relative positions `[h, H, c]` and `[w, W, c]`, and scale to `[G, n, M, c]`."""


def choose_core(device: str, dtype: torch.dtype, queries: int, keys: int, gradients: bool) -> Core:
    """The fastest implementation; all give the same result up to floating-point rounding, because the order of summation differs.

    Args:
        device: type of the device.
        dtype: type of query, key and value.
        queries: number M of queries.
        keys: number N of keys, more than M in a padded grid.
        gradients: whether a backward pass follows.
    """
    if device == "cuda":
        # In float32 the kernel that stores no logits is slower than products with all logits (docs/decisions/0010).
        return folded if dtype == torch.float32 else fused
    if keys > queries:
        return folded
    # Adding the bias in place is fast only in float32, and for small blocks the loop costs more than it saves.
    blocks_win = dtype == torch.float32 and not gradients and queries >= FEW_QUERIES
    return row_blocked if keys > MANY_KEYS or blocks_win else folded


def folded(query: Tensor, key: Tensor, value: Tensor, rel_h: Tensor, rel_w: Tensor, scale: float) -> Tensor:
    """Attention with the bias folded into the product (see `_fold`); shapes as in `Core`. Only the softmax passes over the logits."""
    query, key = _fold(query, key, rel_h, rel_w, scale)
    return torch.softmax(query @ key.transpose(-2, -1), dim=-1) @ value


def fused(query: Tensor, key: Tensor, value: Tensor, rel_h: Tensor, rel_w: Tensor, scale: float) -> Tensor:
    """Attention like `folded`, by torch's fused kernels, which do not store the logits; shapes as in `Core`."""
    query, key = _fold(query, key, rel_h, rel_w, scale)
    channels, folded_channels = value.shape[-1], query.shape[-1]
    wide = folded_channels + -folded_channels % 8  # the kernels require multiples of 8
    query, key, value = (F.pad(part, (0, wide - part.shape[-1])) for part in (query, key, value))
    with sdpa_kernel(KERNELS, set_priority=True):
        return F.scaled_dot_product_attention(query, key, value, scale=1.0)[..., :channels]


def row_blocked(query: Tensor, key: Tensor, value: Tensor, rel_h: Tensor, rel_w: Tensor, scale: float) -> Tensor:
    """Attention head by head for `ROWS` queries at a time, without padding; shapes as in `Core`. Logits are recomputed in backward."""
    bias_h, bias_w = _biases(query, rel_h, rel_w)
    return _RowBlocked.apply(query.flatten(2, 3), key, value, bias_h, bias_w, scale)  # type: ignore[no-any-return]


def relative(table: Tensor, queries: int, keys: int) -> Tensor:
    """Relative positions of shape `[queries, keys, c]` from their table of shape `[2 * n - 1, c]`; the grid may be smaller than n."""
    query, key = torch.arange(queries, device=table.device), torch.arange(keys, device=table.device)
    return table[query[:, None] - key[None, :] + table.shape[0] // 2]


def _fold(query: Tensor, key: Tensor, rel_h: Tensor, rel_w: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Queries q' = [scale q, r_h, r_w] and k' = [k, onehot(row), onehot(column)], so that q' k'^T is scale q k^T + r_h + r_w.

    In a padded grid both have one more channel, in which only the padding's key is 1.
    """
    (height, width), (bias_h, bias_w) = query.shape[2:4], _biases(query, rel_h, rel_w)
    padded = key.shape[2] > height * width
    beyond = [_beyond(bias_h, bias_w, height, width)] if padded else []
    place = _places(height, width, padded, key.dtype, key.device).expand(*key.shape[:2], -1, -1)
    queries = [query.flatten(2, 3) * scale, bias_h[..., :height], bias_w[..., :width], *beyond]
    return torch.cat(queries, dim=-1), torch.cat([key, place], dim=-1)


def _beyond(bias_h: Tensor, bias_w: Tensor, height: int, width: int) -> Tensor:
    """The bias of the merged padding key instead of r_h + r_w, `[G, n, M, 1]`: log sum exp(r_h + r_w) over the padded positions.

    With this bias, the merged key has the same weight in the softmax as all padded positions together. These are the positions to the right
    of the tokens and those below them; over a rectangle, the sum is the product of a sum over rows and a sum over columns.
    """
    dtype, exact = bias_h.dtype, torch.promote_types(bias_h.dtype, torch.float32)
    bias_h, bias_w = bias_h.to(exact), bias_w.to(exact)
    right = bias_h[..., :height].logsumexp(-1, keepdim=True) + bias_w[..., width:].logsumexp(-1, keepdim=True)
    below = bias_h[..., height:].logsumexp(-1, keepdim=True) + bias_w.logsumexp(-1, keepdim=True)
    return torch.logaddexp(right, below).to(dtype)


def _biases(query: Tensor, rel_h: Tensor, rel_w: Tensor) -> tuple[Tensor, Tensor]:
    """r_h `[G, n, M, H]` and r_w `[G, n, M, W]`."""
    bias_h = torch.einsum("gnhwc,hkc->gnhwk", query, rel_h).flatten(2, 3)
    bias_w = torch.einsum("gnhwc,wkc->gnhwk", query, rel_w).flatten(2, 3)
    return bias_h, bias_w


@lru_cache(maxsize=32)
def _places(height: int, width: int, padded: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Row and column of each of height * width tokens, one-hot: `[M, height + width]`; with padding one more row and channel."""
    rows = torch.eye(height, dtype=dtype, device=device).repeat_interleave(width, dim=0)
    columns = torch.eye(width, dtype=dtype, device=device).repeat(height, 1)
    places = torch.cat([rows, columns], dim=1)
    return torch.block_diag(places, torch.ones(1, 1, dtype=dtype, device=device)) if padded else places


class _RowBlocked(torch.autograd.Function):
    """Query `[G, n, M, c]`, key, value `[G, n, N, c]`, biases `[G, n, M, H]` and `[G, n, M, W]` to `[G, n, M, c]`."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias_h: Tensor,
        bias_w: Tensor,
        scale: float,
    ) -> Tensor:
        mixed = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        buffer = query.new_empty(min(ROWS, query.shape[2]), key.shape[2])
        for g, n, rows in _blocks(query):
            scaled, bias = query[g, n, rows] * scale, (bias_h[g, n, rows], bias_w[g, n, rows])
            weights = _weights(scaled, key[g, n], *bias, buffer)
            torch.mm(weights, value[g, n], out=mixed[g, n, rows])
        ctx.save_for_backward(query, key, value, bias_h, bias_w)
        ctx.scale = scale
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Gradients of the inputs of `forward`, in their shapes."""
        query, key, value, bias_h, bias_w = ctx.saved_tensors
        (gradient,) = gradients
        to_query, to_key, to_value = (torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in (query, key, value))
        to_h, to_w = torch.empty_like(bias_h), torch.empty_like(bias_w)
        shape = (min(ROWS, query.shape[2]), key.shape[2])
        buffer, second = query.new_empty(shape), query.new_empty(shape)
        for g, n, rows in _blocks(query):
            scaled, bias, above = (
                query[g, n, rows] * ctx.scale,
                (bias_h[g, n, rows], bias_w[g, n, rows]),
                gradient[g, n, rows],
            )
            weights = _weights(scaled, key[g, n], *bias, buffer)
            to_value[g, n].addmm_(weights.t(), above)
            to_weights = torch.mm(above, value[g, n].t(), out=second[: len(scaled)])
            to_logits = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype)
            grid = to_logits.view(-1, bias_h.shape[-1], bias_w.shape[-1])
            torch.sum(grid, dim=-1, out=to_h[g, n, rows])
            torch.sum(grid, dim=-2, out=to_w[g, n, rows])
            torch.mm(to_logits, key[g, n], out=to_query[g, n, rows]).mul_(ctx.scale)
            to_key[g, n].addmm_(to_logits.t(), scaled)
        return to_query, to_key, to_value, to_h, to_w, None


def _blocks(query: Tensor) -> list[tuple[int, int, slice]]:
    """Grid, head and rows of each block of `query`, shape `[G, n, M, c]`."""
    grids, heads, length = query.shape[:3]
    starts = range(0, length, ROWS)
    return [
        (g, n, slice(start, min(start + ROWS, length))) for g in range(grids) for n in range(heads) for start in starts
    ]


def _weights(scaled: Tensor, key: Tensor, bias_h: Tensor, bias_w: Tensor, buffer: Tensor) -> Tensor:
    """The attention of some queries `[m, c]` to all keys `[N, c]`, written into the buffer: `[m, N]`."""
    logits = torch.mm(scaled, key.t(), out=buffer[: len(scaled)])
    grid = logits.view(len(scaled), bias_h.shape[-1], bias_w.shape[-1])
    grid.add_(bias_h[:, :, None]).add_(bias_w[:, None, :])
    return torch.softmax(logits, dim=-1, out=logits)
