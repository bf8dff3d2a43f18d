"""How products are computed on this machine: threads, and fp32 products on the faster path where that costs no precision."""

from functools import lru_cache
from typing import Literal, TypeAlias

import torch

from pfedsam.core.errors import OptionError

Precision: TypeAlias = Literal["float32", "bfloat16", "auto"]
"""Of frozen weights: as asked, or `auto` for what is fast here."""
_SIZE = 384
_SAME_CLASS = 4.0


def configure_numerics(threads: int) -> None:
    """Set torch's thread count, and take the faster fp32 path where `faster_precision` finds one."""
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(faster_precision())


@lru_cache(maxsize=1)
def faster_precision() -> Literal["highest", "medium"]:
    """`medium` when its error is that of fp32 on this processor, else `highest`.

    On CPUs without AMX, `medium` sends fp32 products to oneDNN, which computes them in fp32; with AMX it means bf16. The choice
    looks at the error alone, never at the time, so that equal processors choose alike.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(_SIZE, _SIZE, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    before = torch.get_float32_matmul_precision()
    errors = {}
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        errors[precision] = (a @ b - exact).abs().max().item()
    torch.set_float32_matmul_precision(before)
    return "medium" if errors["medium"] <= _SAME_CLASS * errors["highest"] else "highest"


def fast_bfloat16() -> bool:
    """Whether this processor has instructions for bf16 products; one that lacks them emulates them, 50 times slower than fp32."""
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def frozen_dtype(precision: Precision) -> torch.dtype:
    """The type that frozen weights are held in.

    Raises:
        OptionError: bfloat16 is wanted of a processor that would have to emulate it.
    """
    if precision == "auto":
        return torch.bfloat16 if fast_bfloat16() else torch.float32
    if precision == "bfloat16" and not fast_bfloat16():
        raise OptionError(
            "model.precision is bfloat16, but this processor has no instructions for it (avx512_bf16, amx_bf16) and would be "
            "50 times slower than in float32; set model.precision to float32, or to auto for sites whose machines differ."
        )
    return torch.bfloat16 if precision == "bfloat16" else torch.float32
