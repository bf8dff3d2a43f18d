"""Where the GPU kernels are used, shown with stand-ins: what they compute has tests of its own."""

import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pfedsam.model import kernels
from pfedsam.model.attention import folded, relative
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


def attend(
    projected: Tensor, padding: Tensor, rel_h: Tensor, rel_w: Tensor, heads: int, sides: tuple[int, int], scale: float
) -> Tensor:
    """One grid without padding, by the formula."""
    query, key, value = projected.view(1, sides[0] * sides[1], 3, heads, -1).permute(2, 0, 3, 1, 4)
    biases = relative(rel_h, sides[0], sides[0]), relative(rel_w, sides[1], sides[1])
    return folded(query.unflatten(2, sides), key, value, *biases, scale)


def normalise(tokens: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], weight, bias, eps)


def tried(
    monkeypatch: pytest.MonkeyPatch, attend: Callable[..., Tensor] | None, normalise: Callable[..., Tensor] | None
) -> Kernels | None:
    """What is chosen where the kernels' modules hold these, or cannot be imported."""
    for name, function in (("attend", attend), ("normalise", normalise)):
        module = ModuleType({"attend": "attention", "normalise": "norm"}[name] + "_kernel")
        setattr(module, name, function)
        monkeypatch.setitem(sys.modules, f"pfedsam.model.{module.__name__}", module if function else None)
    kernels._tried.cache_clear()
    try:
        return kernels._tried(torch.device("cpu"))
    finally:
        kernels._tried.cache_clear()


def test_kernels_that_are_right_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tried(monkeypatch, attend, normalise) == Kernels(attend, normalise)


def test_kernels_of_which_one_is_wrong_or_missing_are_not_taken_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert tried(monkeypatch, lambda *given: attend(*given) + 1, normalise) is None
    assert tried(monkeypatch, attend, lambda *given: normalise(*given) + 2) is None
    assert "wrong by 1" in caplog.text
    assert "wrong by 2" in caplog.text
    assert tried(monkeypatch, attend, None) is None
    assert "cannot be used" in caplog.text
