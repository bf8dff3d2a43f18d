"""LayerNorm of tokens on a GPU in one pass (Triton), without gradients; in half precision torch's own takes twice as long.

`pfedsam.model.kernels` decides where this kernel is used.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


def normalise(tokens: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis (Ba et al., 2016), computed in float32: `[..., d]` to `[..., d]`.

    Args:
        tokens: `[..., d]`, in half precision.
        weight: scale, `[d]`.
        bias: shift, `[d]`.
        eps: value that is added to the variance.
    """
    tokens = tokens.contiguous()
    normalised, width = torch.empty_like(tokens), tokens.shape[-1]
    filled = triton.next_power_of_2(width)
    _kernel[(tokens.numel() // width,)](tokens, weight, bias, normalised, eps, WIDTH=width, FILLED=filled, num_warps=1)
    return normalised


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(tokens, weight, bias, normalised, eps, WIDTH: tl.constexpr, FILLED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Normalise one token, whose channels are padded to `FILLED`."""
    channel = tl.arange(0, FILLED)
    exists = channel < WIDTH
    at = tl.program_id(0).to(tl.int64) * WIDTH + channel
    value = tl.load(tokens + at, mask=exists, other=0.0).to(tl.float32)
    centred = tl.where(exists, value - tl.sum(value, 0) / WIDTH, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 0) / WIDTH + eps)
    slope = tl.load(weight + channel, mask=exists, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=exists, other=0.0).to(tl.float32)
    tl.store(normalised + at, (centred * scale * slope + shift).to(normalised.dtype.element_ty), mask=exists)
