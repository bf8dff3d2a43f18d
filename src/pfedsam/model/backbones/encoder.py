"""A faster implementation of SAM's image encoder with the same weights and the same results.

It differs from the encoder block of `transformers` (which is that of segment-anything) in three ways that do not change the result:

* Queries, keys and values are computed before the windows are padded. A padded token is zero after the first LayerNorm, so its
  projection is the bias of the projection, and no padding is needed (with 256 px, windows of 14 would pad 16 x 16 tokens to 28 x 28).
* Padded tokens are dropped as queries, because their output would be cut off; their identical keys are merged into one per window, with a
  log-sum-exp bias. Windows at the right and lower edge, which have fewer tokens than the others, are processed separately.
* The implementation of attention and LayerNorm depends on device, precision and size (`pfedsam.model.attention`, `pfedsam.model.kernels`).
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SamHQModel, SamModel
from transformers.models.sam.modeling_sam import SamVisionLayer
from transformers.models.sam_hq.modeling_sam_hq import SamHQVisionLayer

from pfedsam.model.attention import choose_core, relative
from pfedsam.model.backbones.base import standardise
from pfedsam.model.kernels import HEAD_CHANNELS, has_backward, kernels_for

Network: TypeAlias = SamModel | SamHQModel
"""The supported networks, which have the same encoder."""
_N = TypeVar("_N", SamModel, SamHQModel)


class EncoderBlock(nn.Module):
    """One encoder block with the parameters, and the parameter names, of the `transformers` block that it replaces."""

    def __init__(self, layer: SamVisionLayer | SamHQVisionLayer) -> None:
        super().__init__()
        self.layer_norm1 = layer.layer_norm1
        self.attn = layer.attn
        self.layer_norm2 = layer.layer_norm2
        self.mlp = layer.mlp
        self.window = layer.window_size

    def forward(
        self,
        hidden: Tensor,
        beside_mlp: Callable[[Tensor, Tensor], Tensor] | None = None,
        after_attention: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Tokens `[B, h, w, d]` to tokens `[B, h, w, d]`.

        Args:
            hidden: the tokens.
            beside_mlp: function from the block's output and the MLP's input to the new output of the block.
            after_attention: function that is applied to the attention's output before it is added to the tokens.
        """
        mixed = self.attend(_normalise(self.layer_norm1, hidden))
        hidden = hidden + (mixed if after_attention is None else after_attention(mixed))
        normalised = _normalise(self.layer_norm2, hidden)
        hidden = hidden + self.mlp(normalised)
        return hidden if beside_mlp is None else beside_mlp(hidden, normalised)

    def attend(self, hidden: Tensor) -> Tensor:
        """Windowed or global attention over normalised tokens `[B, h, w, d]`."""
        (_, height, width, _), projected = hidden.shape, self.attn.qkv(hidden)
        sides = (self.window, self.window) if self.window else (height, width)
        heads, channels = self.attn.num_attention_heads, projected.shape[-1] // (3 * self.attn.num_attention_heads)
        kernels = kernels_for(projected)
        if kernels and channels in HEAD_CHANNELS:
            tables = self.attn.rel_pos_h, self.attn.rel_pos_w
            return self.attn.proj(kernels.attend(projected, self.attn.qkv.bias, *tables, heads, sides, self.attn.scale))
        rows = []
        for down in _spans(height, sides[0]):
            row = [
                self._mix(projected[:, down.tokens, across.tokens], (down.size, across.size), sides)
                for across in _spans(width, sides[1])
            ]
            rows.append(row[0] if len(row) == 1 else torch.cat(row, dim=2))
        return self.attn.proj(rows[0] if len(rows) == 1 else torch.cat(rows, dim=1))  # type: ignore[no-any-return]

    def _mix(self, projected: Tensor, sizes: tuple[int, int], sides: tuple[int, int]) -> Tensor:
        """Attention in grids of the same size.

        Args:
            projected: query, key and value of the tokens of several adjacent grids, `[B, h, w, 3 d]`.
            sizes: rows and columns of tokens in a grid.
            sides: rows and columns of positions in a grid; if there are more positions than tokens, the grid is padded.

        Returns:
            Tokens `[B, h, w, d]`, contiguous.
        """
        batch, height, width, _ = projected.shape
        down, across, heads = height // sizes[0], width // sizes[1], self.attn.num_attention_heads
        query, key, value = _grids(projected, sizes, 3 * heads).chunk(3, dim=1)
        if sizes != sides:
            _, *padding = self.attn.qkv.bias.view(3, 1, heads, 1, -1).expand(-1, len(query), -1, -1, -1)
            key, value = (torch.cat([part, one], dim=2) for part, one in zip((key, value), padding, strict=True))
        rel_h = relative(self.attn.rel_pos_h, sizes[0], sides[0])
        rel_w = relative(self.attn.rel_pos_w, sizes[1], sides[1])
        core = choose_core(query.device.type, query.dtype, query.shape[2], key.shape[2], has_backward(key))
        mixed = core(query.unflatten(2, sizes), key, value, rel_h, rel_w, self.attn.scale)
        mixed = mixed.view(batch, down, across, heads, *sizes, -1).permute(0, 1, 4, 2, 5, 3, 6)
        return mixed.reshape(batch, height, width, -1)


def _normalise(norm: nn.LayerNorm, tokens: Tensor) -> Tensor:
    """Tokens `[B, h, w, d]` after a LayerNorm."""
    kernels = kernels_for(tokens, norm.weight, norm.bias)
    return kernels.normalise(tokens, norm.weight, norm.bias, norm.eps) if kernels else norm(tokens)


class _Span(NamedTuple):
    """Grids of the same size along an axis: either the complete ones, or the last one with fewer than `side` tokens."""

    tokens: slice
    size: int
    """Number of tokens in each grid."""


def _spans(length: int, side: int) -> list[_Span]:
    """The grids with `side` positions that cover `length` tokens."""
    whole, rest = divmod(length, side)
    spans = [_Span(slice(0, whole * side), side)] if whole else []
    return spans + ([_Span(slice(whole * side, length), rest)] if rest else [])


def positions(model: Network) -> nn.Parameter:
    """The absolute position embedding of the tokens, `[1, h, w, d]`."""
    embedding: nn.Parameter = model.vision_encoder.pos_embed  # type: ignore[assignment]
    return embedding


def embed_patches(model: Network, pixels: Tensor, origin: tuple[int, int] = (0, 0)) -> Tensor:
    """Pixels `[B, 3, H, W]` in 0..1 to tokens `[B, h, w, d]` with their absolute positions.

    Args:
        model: the backbone.
        pixels: an image of the model's size, or a part of one.
        origin: (row, column) in tokens of the part's upper left corner in the image.
    """
    tokens = _project(model.vision_encoder.patch_embed.projection, standardise(pixels))
    (top, left), (height, width) = origin, tokens.shape[1:3]
    return tokens + positions(model)[:, top : top + height, left : left + width]  # type: ignore[no-any-return]


def _project(projection: nn.Conv2d, pixels: Tensor) -> Tensor:
    """Pixels `[B, 3, H, W]` to tokens `[B, h, w, d]`, contiguous, so that later operations need not copy them."""
    if not pixels.is_cuda:
        return projection(pixels).permute(0, 2, 3, 1).contiguous()
    # For patches that do not overlap, cuDNN's convolution is 20 times slower than a matrix product.
    side = projection.kernel_size[0]
    patches = pixels.unflatten(3, (-1, side)).unflatten(2, (-1, side)).permute(0, 2, 4, 1, 3, 5)
    return F.linear(patches.flatten(3), projection.weight.flatten(1), projection.bias)


def encode(model: Network, pixels: Tensor, origin: tuple[int, int] = (0, 0)) -> Tensor:
    """The image embedding `[B, d, h, w]` of pixels `[B, 3, H, W]` in 0..1; see `embed_patches`."""
    tokens = embed_patches(model, pixels, origin)
    for block in model.vision_encoder.layers:
        tokens = block(tokens)
    return model.vision_encoder.neck(tokens)  # type: ignore[no-any-return]


def use_fast_blocks(model: _N) -> _N:
    """Replace every encoder block of a SAM or SAM-HQ in place by an `EncoderBlock`; names in the state dict stay as they were."""
    layers = model.vision_encoder.layers
    for i, layer in enumerate(layers):
        if isinstance(layer, SamVisionLayer | SamHQVisionLayer):
            layers[i] = EncoderBlock(layer)
    return model


def _grids(tokens: Tensor, sizes: tuple[int, int], heads: int) -> Tensor:
    """Tokens of shape `[B, h, w, heads * c]` as `[G, heads, M, c]`, in grids with `sizes` tokens."""
    batch, height, width, _ = tokens.shape
    tokens = tokens.reshape(batch, height // sizes[0], sizes[0], width // sizes[1], sizes[1], heads, -1)
    return tokens.permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, heads, sizes[0] * sizes[1], tokens.shape[-1])
