"""How products are computed on this machine: threads, and fp32 products on the faster path where that costs no precision."""

from functools import lru_cache
from typing import Literal

import torch

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
