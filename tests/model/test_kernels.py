"""Where the GPU kernels are used, shown with stand-ins: what they compute has tests of its own."""

import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pfedsam.model import kernels
from pfedsam.model.kernels import Kernels, kernels_for


class OnGpu:
    """What `kernels_for` asks of tokens, of some on a GPU."""

    is_cuda, device = True, torch.device("cuda", 0)

    def __init__(self, dtype: torch.dtype, requires_grad: bool = False) -> None:
        self.dtype, self.requires_grad = dtype, requires_grad


def test_they_serve_gpus_in_half_precision_without_a_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = object()
    monkeypatch.setattr(kernels, "_tried", lambda device: chosen)
    assert kernels_for(OnGpu(torch.bfloat16)) is chosen
    assert kernels_for(OnGpu(torch.bfloat16, requires_grad=True)) is None
    trained = OnGpu(torch.bfloat16, requires_grad=True)
    assert kernels_for(OnGpu(torch.bfloat16), trained) is None  # a LayerNorm of the site's own on frozen tokens
    assert kernels_for(OnGpu(torch.float32)) is None
    assert kernels_for(torch.zeros(1, dtype=torch.bfloat16)) is None
    with torch.no_grad():
        assert kernels_for(OnGpu(torch.float16, requires_grad=True)) is chosen


@pytest.fixture
def attend(attention_formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda projected, *given: attention_formula(projected, *given).to(projected.dtype)


def normalise(tokens: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], weight, bias, eps)


def tried(
    monkeypatch: pytest.MonkeyPatch, attend: Callable[..., Tensor] | None, normalise: Callable[..., Tensor] | None
) -> Kernels | None:
    """What is chosen where the kernels' modules hold these, or cannot be imported."""
    for module, name, function in (("attention_kernel", "attend", attend), ("norm_kernel", "normalise", normalise)):
        holder = SimpleNamespace(**{name: function}) if function else None
        monkeypatch.setitem(sys.modules, f"pfedsam.model.{module}", holder)
    kernels._tried.cache_clear()
    try:
        return kernels._tried(torch.device("cpu"))
    finally:
        kernels._tried.cache_clear()


def test_kernels_that_are_right_are_taken(monkeypatch: pytest.MonkeyPatch, attend: Callable[..., Tensor]) -> None:
    assert tried(monkeypatch, attend, normalise) == Kernels(attend, normalise)


def test_kernels_of_which_one_is_wrong_or_missing_are_not_taken_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, attend: Callable[..., Tensor]
) -> None:
    assert tried(monkeypatch, lambda *given: attend(*given) + 1, normalise) is None
    assert tried(monkeypatch, attend, lambda *given: normalise(*given) + 2) is None
    assert "an error of 1 on cpu" in caplog.text
    assert "an error of 2 on cpu" in caplog.text
    assert tried(monkeypatch, attend, None) is None
    assert "cannot be used" in caplog.text
