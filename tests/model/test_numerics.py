"""The choice of precision follows the error and the processor's own list of instructions."""

import pytest
import torch

from pfedsam.core.errors import OptionError
from pfedsam.model.numerics import configure_numerics, fast_bfloat16, faster_precision, find_device, frozen_dtype


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


def test_auto_is_the_gpu_that_torch_finds(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert find_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("auto") == torch.device("cuda")
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize(("name", "there", "said"), [("cuda", 0, "finds no GPU"), ("cuda:1", 1, "finds 1 GPU")])
def test_a_gpu_that_is_not_there_is_refused_with_what_to_do(monkeypatch, name: str, there: int, said: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    with pytest.raises(OptionError, match=said) as refused:
        find_device(name)
    assert name in str(refused.value)
    assert "nvidia-smi" in str(refused.value)


def test_whether_bf16_is_fast_is_asked_of_the_device_that_computes(monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    gpu = torch.device("cuda")
    assert frozen_dtype("auto", gpu) == frozen_dtype("bfloat16", gpu) == torch.bfloat16
    assert frozen_dtype("auto") == torch.float32
    with pytest.raises(OptionError, match=r"model\.precision"):
        frozen_dtype("bfloat16")
