"""SAM's image encoder over the same weights, made fast without changing the numbers.

Two exact rewrites of `transformers`' encoder block (itself segment-anything's):

* queries, keys and values are computed before the windows are padded. A padded token is zero after the first LayerNorm, so
  its projection *is* the bias of the projection (at 256 px windows of 14 pad 16 x 16 tokens to 28 x 28);
* the decomposed relative position bias (MViTv2, Li et al., 2022) is folded into the product: with
  q' = [q / sqrt(d), r_h, r_w] and k' = [k, onehot(row), onehot(column)], q' k'^T already holds the bias.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from transformers import SamModel
from transformers.models.sam.modeling_sam import SamVisionLayer

from pfedsam.model.backbone import positions, standardise


class EncoderBlock(nn.Module):
    """One encoder block with the parameters, and the parameter names, of the `transformers` block that it replaces."""

    def __init__(self, layer: SamVisionLayer) -> None:
        super().__init__()
        self.layer_norm1 = layer.layer_norm1
        self.attn = layer.attn
        self.layer_norm2 = layer.layer_norm2
        self.mlp = layer.mlp
        self.window = layer.window_size

    def forward(
        self,
        hidden: Tensor,
        beside_mlp: Callable[[Tensor], Tensor] | None = None,
        after_attention: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Tokens `[B, h, w, d]` to tokens `[B, h, w, d]`.

        Args:
            hidden: the tokens.
            beside_mlp: adds to the MLP's output, from the MLP's input.
            after_attention: changes the attention's output, before it is added.
        """
        mixed = self.attend(self.layer_norm1(hidden))
        hidden = hidden + (mixed if after_attention is None else after_attention(mixed))
        normalised = self.layer_norm2(hidden)
        hidden = hidden + self.mlp(normalised)
        return hidden if beside_mlp is None else hidden + beside_mlp(normalised)

    def attend(self, hidden: Tensor) -> Tensor:
        """Windowed or global attention over normalised tokens `[B, h, w, d]`."""
        batch, height, width, _ = hidden.shape
        qkv = self.attn.qkv(hidden)
        side = self.window
        if side:
            qkv = _partition(_pad(qkv, side, self.attn.qkv.bias), side)
        mixed = _attention(
            qkv, self.attn.rel_pos_h, self.attn.rel_pos_w, heads=self.attn.num_attention_heads, scale=self.attn.scale
        )
        if side:
            mixed = _unpartition(mixed, side, batch, height, width)
        return self.attn.proj(mixed)  # type: ignore[no-any-return]


def embed_patches(model: SamModel, pixels: Tensor, origin: tuple[int, int] = (0, 0)) -> Tensor:
    """Pixels `[B, 3, H, W]` in 0..1 to tokens `[B, h, w, d]` with their absolute positions.

    Args:
        model: the backbone.
        pixels: of the model's size, or a part of such an image.
        origin: (row, column) in tokens at which the part lies in the whole.
    """
    tokens = model.vision_encoder.patch_embed.projection(standardise(pixels)).permute(0, 2, 3, 1)
    (top, left), (height, width) = origin, tokens.shape[1:3]
    return tokens + positions(model)[:, top : top + height, left : left + width]  # type: ignore[no-any-return]


def encode(model: SamModel, pixels: Tensor, origin: tuple[int, int] = (0, 0)) -> Tensor:
    """The image embedding `[B, d, h, w]` of pixels `[B, 3, H, W]` in 0..1; see `embed_patches`."""
    tokens = embed_patches(model, pixels, origin)
    for block in model.vision_encoder.layers:
        tokens = block(tokens)
    return model.vision_encoder.neck(tokens)  # type: ignore[no-any-return]


def use_fast_blocks(model: SamModel) -> SamModel:
    """Replace every encoder block of `model` in place by an `EncoderBlock`; names in the state dict stay as they were."""
    layers = model.vision_encoder.layers
    for i, layer in enumerate(layers):
        if isinstance(layer, SamVisionLayer):
            layers[i] = EncoderBlock(layer)
    return model


def _pad(qkv: Tensor, side: int, bias: Tensor) -> Tensor:
    """`[B, h, w, 3d]` padded right and below with the bias `[3d]` to multiples of `side`."""
    batch, height, width, _ = qkv.shape
    below, right = -height % side, -width % side
    if right:
        qkv = torch.cat([qkv, bias.expand(batch, height, right, -1)], dim=2)
    if below:
        qkv = torch.cat([qkv, bias.expand(batch, below, width + right, -1)], dim=1)
    return qkv


def _partition(tokens: Tensor, side: int) -> Tensor:
    """`[B, h, w, c]` to windows `[B * n, side, side, c]`."""
    batch, height, width, channels = tokens.shape
    tokens = tokens.view(batch, height // side, side, width // side, side, channels)
    return tokens.permute(0, 1, 3, 2, 4, 5).reshape(-1, side, side, channels)


def _unpartition(windows: Tensor, side: int, batch: int, height: int, width: int) -> Tensor:
    """Windows `[B * n, side, side, c]` to `[B, height, width, c]`, the padding cut off."""
    down, across = -(-height // side), -(-width // side)
    tokens = windows.view(batch, down, across, side, side, -1).permute(0, 1, 3, 2, 4, 5)
    tokens = tokens.reshape(batch, down * side, across * side, -1)
    # Contiguous: nn.Linear on a sliced 4-D tensor would take a path that copies its weight.
    return tokens[:, :height, :width].contiguous()


def _attention(qkv: Tensor, rel_h: Tensor, rel_w: Tensor, *, heads: int, scale: float) -> Tensor:
    """Attention within each grid: `[B, h, w, 3d]` to `[B, h, w, d]`, relative position bias folded into the product."""
    batch, height, width, channels = qkv.shape
    split = qkv.view(batch, height * width, 3, heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = split.unbind(0)  # each [B, heads, N, d / heads]
    grid = query.reshape(batch, heads, height, width, -1)
    bias_h = torch.einsum("bnhwc,hkc->bnhwk", grid, _relative(rel_h, height)).flatten(2, 3)
    bias_w = torch.einsum("bnhwc,wkc->bnhwk", grid, _relative(rel_w, width)).flatten(2, 3)
    query = torch.cat([query * scale, bias_h, bias_w], dim=-1)
    place = _one_hot_grid(height, width, key.dtype, key.device).expand(batch, heads, -1, -1)
    key = torch.cat([key, place], dim=-1)
    weights = torch.softmax(query @ key.transpose(-2, -1), dim=-1)
    mixed = weights @ value
    return mixed.transpose(1, 2).reshape(batch, height, width, channels // 3)


def _relative(table: Tensor, size: int) -> Tensor:
    """The table of relative positions `[2 * n - 1, c]` as `[size queries, size keys, c]`; the grid may be smaller than n."""
    index = torch.arange(size, device=table.device)
    return table[index[:, None] - index[None, :] + table.shape[0] // 2]


@lru_cache(maxsize=32)
def _one_hot_grid(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """For each of N = height * width places its row and its column, one-hot: `[N, height + width]`."""
    rows = torch.eye(height, dtype=dtype, device=device).repeat_interleave(width, dim=0)
    columns = torch.eye(width, dtype=dtype, device=device).repeat(height, 1)
    return torch.cat([rows, columns], dim=1)
