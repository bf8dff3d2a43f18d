"""Our own GPU kernels, which are used in half precision if no backward pass follows (docs/decisions/0013).

They need Triton, which is part of torch's builds for CUDA on Linux, a C compiler, and a GPU that Triton supports. If one of these is
missing, or a kernel computes wrong values, a warning is logged and torch's own operations are used.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pfedsam.core import rng
from pfedsam.core.log import get_logger
from pfedsam.model.attention import folded, relative

_LOG = get_logger(__name__)
HEAD_CHANNELS = (16, 32, 64, 128)
"""The numbers of channels of a head that `Kernels.attend` supports: Triton's blocks are powers of two."""


class Kernels(NamedTuple):
    """The available kernels; for their arguments see the functions themselves."""

    attend: Callable[[Tensor, Tensor, Tensor, Tensor, int, tuple[int, int], float], Tensor]
    """Windowed attention of a block: `pfedsam.model.attention_kernel.attend`."""
    normalise: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    """LayerNorm: `pfedsam.model.norm_kernel.normalise`."""


def kernels_for(tokens: Tensor, *parameters: Tensor) -> Kernels | None:
    """The kernels, if they support a computation from these tokens and parameters, whatever their shapes."""
    in_half = tokens.dtype in (torch.bfloat16, torch.float16)
    if not tokens.is_cuda or not in_half or any(has_backward(tensor) for tensor in (tokens, *parameters)):
        return None
    return _tried(tokens.device)


def has_backward(tensor: Tensor) -> bool:
    """Whether a backward pass can follow a computation from this tensor of any shape."""
    return torch.is_grad_enabled() and tensor.requires_grad


@cache
def _tried(device: torch.device) -> Kernels | None:
    """The kernels if they can be built on this machine and give torch's results; otherwise None, with the reason in the log."""
    try:
        from pfedsam.model.attention_kernel import attend
        from pfedsam.model.norm_kernel import normalise

        kernels = Kernels(attend, normalise)
        error = max(_error_of_attend(kernels, device), _error_of_normalise(kernels, device))
    except Exception as problem:  # noqa: BLE001 - compilers and drivers raise many types, and torch's operations always work
        _LOG.warning(
            "The GPU kernels cannot be used on %s (%s: %s); torch's slower operations are used.",
            device,
            type(problem).__name__,
            problem,
        )
        return None
    if error > 0.1:
        _LOG.warning("The GPU kernels have an error of %.2g on %s; torch's slower operations are used.", error, device)
        return None
    return kernels


def _error_of_attend(kernels: Kernels, device: torch.device, side: int = 4) -> float:
    channels = HEAD_CHANNELS[0]
    projected, table = _draw(device, (1, side, side, 3 * channels), (2 * side - 1, channels))
    found = kernels.attend(projected, projected[0, 0, 0], table, table, 1, (side, side), 0.25)
    query, key, value = projected.view(1, side * side, 3, 1, channels).permute(2, 0, 3, 1, 4)
    bias = relative(table, side, side)
    expected = folded(query.unflatten(2, (side, side)), key, value, bias, bias, 0.25)
    return (found.view(expected.shape) - expected).abs().max().item()


def _error_of_normalise(kernels: Kernels, device: torch.device, width: int = 24) -> float:
    tokens, weight, bias = _draw(device, (3, width), (width,), (width,))
    expected = F.layer_norm(tokens, (width,), weight, bias, 1e-6)
    return (kernels.normalise(tokens, weight, bias, 1e-6) - expected).abs().max().item()


def _draw(device: torch.device, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Random bfloat16 tensors of these shapes."""
    generator = rng.generator(0, "kernels")
    return [torch.randn(shape, generator=generator).to(device, torch.bfloat16) for shape in shapes]
