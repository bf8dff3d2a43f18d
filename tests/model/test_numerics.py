"""The choice of precision follows the error and the processor's own list of instructions."""

import torch

from pfedsam.model.numerics import configure_numerics, fast_bfloat16, faster_precision


def test_the_chosen_precision_has_the_error_of_fp32() -> None:
    a, b = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(1)).unbind()
    configure_numerics(1)
    error = (a @ b - (a.double() @ b.double())).abs().max().item()
    # 256 products of unit normals, each with a relative error of 2**-24: a sum has less than 256 * 16 * 2**-24.
    assert error < 256 * 16 * 2**-24
    assert torch.get_float32_matmul_precision() == faster_precision()


def test_bf16_is_used_only_where_the_processor_has_instructions_for_it(monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    assert not fast_bfloat16()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": True})
    assert fast_bfloat16()
