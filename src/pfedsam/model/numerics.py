"""Device, number of threads and precision of matrix products on this machine."""

from functools import cache
from threading import RLock
from typing import Final, Literal, TypeAlias

import torch

from pfedsam.core.errors import OptionError
from pfedsam.core.options import Device

Precision: TypeAlias = Literal["float32", "bfloat16", "auto"]
"""Precision of frozen weights; `auto` is bfloat16 if this machine computes it fast, else float32."""
CPU: Final = torch.device("cpu")
COMPUTING: Final = RLock()
"""Held by a thread while it computes with a model, so that several threads of a program compute one after the other.

Threads, precision and kernels are settings of torch for the whole process, and all sites of a run write their parameters into one model.
"""
_SIZE = 384
"""Rows and columns of the matrices with which the precisions are compared."""
_SAME_CLASS = 4.0
"""Ratio of two errors up to which they count as those of the same precision."""


def find_device(name: Device) -> torch.device:
    """The device with this name, as in the option `runtime.device`.

    Raises:
        OptionError: torch does not find the named GPU.
    """
    found = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if found else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= found:
        raise OptionError(
            f"The device is {name}, but torch {torch.__version__} finds {found or 'no'} GPU{'s' if found > 1 else ''} here. Check the "
            "driver (nvidia-smi) and that torch was built for CUDA, or set the device to cpu, or to auto (a GPU if there is one)."
        )
    return device


def describe(device: torch.device) -> str:
    """The device as text, for a GPU with its model."""
    return "the processor" if device.type == "cpu" else f"{device}, {torch.cuda.get_device_name(device)}"


def configure_numerics(threads: int, name: Device = "cpu") -> torch.device:
    """Set torch's number of threads and its precision of fp32 products (`faster_precision`), and return the device of that name.

    Raises:
        OptionError: torch does not find the named GPU.
    """
    device = find_device(name)
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(faster_precision(device))
    torch.backends.cudnn.allow_tf32 = False
    return device


@cache
def faster_precision(device: torch.device = CPU) -> Literal["highest", "medium"]:
    """`medium` if its error on this processor is that of fp32, else `highest`.

    On a GPU the result is `highest`, because the faster mode (TF32) keeps only ten bits of the mantissa of a product's factors.

    On CPUs without AMX, `medium` lets oneDNN compute fp32 products, in fp32; with AMX it computes them in bf16. The choice
    depends only on the error and not on the time, so that equal processors make the same choice.
    """
    if device.type != "cpu":
        return "highest"
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


def fast_bfloat16(device: torch.device = CPU) -> bool:
    """Whether the device has instructions for bf16 products; a processor that lacks them emulates them, 50 times slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def frozen_dtype(precision: Precision, device: torch.device = CPU) -> torch.dtype:
    """The data type of frozen weights.

    Raises:
        OptionError: the precision is bfloat16, but the device would have to emulate it.
    """
    if precision == "auto":
        return torch.bfloat16 if fast_bfloat16(device) else torch.float32
    if precision == "bfloat16" and not fast_bfloat16(device):
        raise OptionError(
            "model.precision is bfloat16, but this processor has no instructions for it (avx512_bf16, amx_bf16; a GPU from Ampere "
            "on) and would be 50 times slower than with float32; set model.precision to float32, or to auto if the sites have different "
            "machines."
        )
    return torch.bfloat16 if precision == "bfloat16" else torch.float32
