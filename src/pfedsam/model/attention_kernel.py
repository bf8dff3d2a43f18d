"""SAM's attention on a GPU in one kernel (Triton), with windows, padding and relative positions, without gradients.

The kernel reads queries, keys and values in the layout of the projection's output and writes tokens in the layout of the next projection's
input, so that no windows, padding or copies are made in memory. The bias r_h + r_w (MViTv2, Li et al., 2022) is added to the logits as they
are computed: the products of each query with the tables of relative positions are computed beforehand, and the kernel looks up those for a
key's row and column. Keys are processed in blocks of whole rows of the grid, so that r_w is looked up once for all rows. In windows both
are looked up by row and by column and spread over the keys by products with ones, which is faster than a look-up for each key. The softmax
is computed block by block (FlashAttention, Dao et al., 2022). `pfedsam.model.kernels` decides where this kernel is used.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor


class Blocks(NamedTuple):
    """Block sizes and launch parameters of the kernel, chosen by measurement with `benchmarks/attention.py --tune`."""

    queries: int
    keys: int
    warps: int
    stages: int


WINDOWS = Blocks(queries=64, keys=128, warps=4, stages=3)
WHOLE = Blocks(queries=64, keys=64, warps=4, stages=4)
FEW_PLACES = 1024
"""A grid with at most this many positions counts as a window."""
SPREAD = 16
"""Inner length of a product that spreads r_h or r_w: the smallest for tensor cores, and the largest number of key rows in a block."""


def attend(
    projected: Tensor,
    padding: Tensor,
    rel_pos_h: Tensor,
    rel_pos_w: Tensor,
    heads: int,
    sides: tuple[int, int],
    scale: float,
    blocks: Blocks | None = None,
) -> Tensor:
    """Attention in grids of `sides` positions, from `[B, h, w, 3 d]` (query, key and value of each token) to `[B, h, w, d]`.

    Args:
        projected: query, key and value, contiguous and in half precision; the channels of a head are a power of two, at least 16.
        padding: `[3 d]`, query, key and value of a position without a token.
        rel_pos_h: table of relative rows, `[2 n - 1, c]`.
        rel_pos_w: table of relative columns, `[2 n - 1, c]`.
        heads: number of heads.
        sides: rows and columns of positions in a grid.
        scale: factor of the products of query and key.
        blocks: block sizes; None: the fastest known ones.
    """
    batch, height, width, _ = projected.shape
    channels = projected.shape[-1] // (3 * heads)
    query = projected.view(-1, 3, heads, channels)[:, 0].transpose(0, 1)
    # Neighbouring queries need the same relative row and different columns, so values that are needed together are stored together.
    by_row = torch.bmm(rel_pos_h.expand(heads, -1, -1), query.transpose(1, 2))
    by_column = torch.bmm(query, F.pad(rel_pos_w, (0, 0, 0, -len(rel_pos_w) % 8)).t().expand(heads, -1, -1))
    mixed = projected.new_empty(batch, height, width, heads * channels)
    down, across = (-(-length // side) for length, side in zip((height, width), sides, strict=True))
    chosen = blocks or (WINDOWS if sides[0] * sides[1] <= FEW_PLACES else WHOLE)
    row = triton.next_power_of_2(sides[1])
    _kernel[(triton.cdiv(sides[0] * sides[1], chosen.queries), heads, batch * down * across)](
        projected,
        by_row,
        by_column,
        padding,
        mixed,
        batch * height * width,
        height,
        width,
        down,
        across,
        scale,
        HEADS=heads,
        CHANNELS=channels,
        SIDE_H=sides[0],
        SIDE_W=sides[1],
        LENGTH_H=len(rel_pos_h),
        LENGTH_W=len(rel_pos_w),
        COLUMNS=by_column.shape[-1],
        PADDED=(height % sides[0] != 0) or (width % sides[1] != 0),
        QUERIES=chosen.queries,
        ROW=row,
        ROWS=min(max(1, chosen.keys // row), SPREAD),
        SPREAD=SPREAD,
        num_warps=chosen.warps,
        num_stages=chosen.stages,
    )
    return mixed


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    projected,
    by_row,
    by_column,
    padding,
    mixed,
    tokens,
    height,
    width,
    grids_down,
    grids_across,
    scale,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    SIDE_H: tl.constexpr,
    SIDE_W: tl.constexpr,
    LENGTH_H: tl.constexpr,
    LENGTH_W: tl.constexpr,
    COLUMNS: tl.constexpr,
    PADDED: tl.constexpr,
    QUERIES: tl.constexpr,
    ROW: tl.constexpr,
    ROWS: tl.constexpr,
    SPREAD: tl.constexpr,
):
    """Process a block of queries of one head in one grid; keys are loaded in `ROWS` grid rows at a time, each padded to `ROW` positions."""
    LOG2E: tl.constexpr = 1.4426950408889634
    FAR: tl.constexpr = (
        -30000.0
    )  # bias of rows and columns that do not exist: their weight is 0, and half precision can represent it
    WIDTH: tl.constexpr = HEADS * CHANNELS
    FULL: tl.constexpr = not PADDED and SIDE_W == ROW and SIDE_H % ROWS == 0
    head, grid = tl.program_id(1), tl.program_id(2)
    image = grid // (grids_down * grids_across)
    top = grid // grids_across % grids_down * SIDE_H
    left = grid % grids_across * SIDE_W
    corner = ((image * height + top) * width + left).to(tl.int64)
    projected += corner * (3 * WIDTH) + head * CHANNELS
    by_row += (head * LENGTH_H).to(tl.int64) * tokens + corner
    by_column += (head * tokens + corner) * COLUMNS
    mixed += corner * WIDTH + head * CHANNELS
    channel = tl.arange(0, CHANNELS)[None, :]

    place = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    row, column = place // SIDE_W, place % SIDE_W
    if top + tl.program_id(0) * QUERIES // SIDE_W >= height:
        return
    asks = (row < SIDE_H) & (top + row < height) & (left + column < width)
    token = row * width + column
    query = tl.load(projected + token[:, None] * (3 * WIDTH) + channel, mask=asks[:, None], other=0.0)
    own_h = by_row + token + (row + LENGTH_H // 2).to(tl.int64) * tokens
    own_w = by_column + token * COLUMNS + column + LENGTH_W // 2

    slot = tl.arange(0, ROWS * ROW)
    key_column = slot % ROW
    nearby = tl.arange(0, SPREAD)
    over_rows = (nearby[:, None] == (slot // ROW)[None, :]).to(query.dtype)
    if ROW <= SPREAD:
        in_row = (nearby < SIDE_W)[None, :]
        near_w = tl.load(own_w[:, None] - nearby[None, :], mask=asks[:, None] & in_row, other=0.0)
        near_w = tl.where(in_row, near_w, FAR).to(query.dtype)
        bias_w = tl.dot(near_w, (nearby[:, None] == key_column[None, :]).to(query.dtype)) * LOG2E
    else:
        in_row = (key_column < SIDE_W)[None, :]
        bias_w = tl.load(own_w[:, None] - key_column[None, :], mask=asks[:, None] & in_row, other=0.0).to(tl.float32)
        bias_w = tl.where(in_row, bias_w * LOG2E, -float("inf"))
    if PADDED:
        fill_key = tl.load(padding + WIDTH + head * CHANNELS + channel)
        fill_value = tl.load(padding + 2 * WIDTH + head * CHANNELS + channel)

    best = tl.full([QUERIES], -float("inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    sums = tl.zeros([QUERIES, CHANNELS], tl.float32)
    for first in range(0, SIDE_H, ROWS):
        key_row = first + slot // ROW
        there = projected + (key_row * width + key_column)[:, None] * (3 * WIDTH) + channel
        if FULL:
            key, value = tl.load(there + WIDTH), tl.load(there + 2 * WIDTH)
        else:
            inside = (key_column < SIDE_W) & (key_row < SIDE_H)
            inside = (inside & (top + key_row < height) & (left + key_column < width))[:, None]
            key = tl.load(there + WIDTH, mask=inside, other=0.0)
            value = tl.load(there + 2 * WIDTH, mask=inside, other=0.0)
            if PADDED:
                key, value = tl.where(inside, key, fill_key), tl.where(inside, value, fill_value)
        logits = tl.dot(query, tl.trans(key)) * (scale * LOG2E) + bias_w
        if ROWS == 1:  # one r_h for each query: it is added in the step that subtracts the largest logit
            bias_h = tl.load(own_h - first * tokens, mask=asks, other=0.0).to(tl.float32) * LOG2E
        else:
            near_row = (first + nearby)[None, :]
            exists = (near_row < SIDE_H) & (nearby < ROWS)[None, :]
            near_h = tl.load(own_h[:, None] - near_row * tokens, mask=asks[:, None] & exists, other=0.0)
            near_h = tl.where(near_row < SIDE_H, near_h, FAR).to(query.dtype)
            logits += tl.dot(near_h, over_rows) * LOG2E
            bias_h = tl.zeros([QUERIES], tl.float32)
        new = tl.maximum(best, tl.max(logits, 1) + bias_h)
        weights = tl.exp2(logits + (bias_h - new)[:, None])
        shrink = tl.exp2(best - new)
        total = total * shrink + tl.sum(weights, 1)
        sums = tl.dot(weights.to(value.dtype), value, sums * shrink[:, None])
        best = new
    found = (sums / total[:, None]).to(mixed.dtype.element_ty)
    tl.store(mixed + token[:, None] * WIDTH + channel, found, mask=asks[:, None])
