import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pfedsam.model.attention import relative
from pfedsam.model.backbones import checkpoint
from pfedsam.model.backbones.checkpoint import Architecture

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from reference.segment_anything_modeling import SMALL, build_reference, randomise


@pytest.fixture(scope="session")
def small_state() -> dict[str, torch.Tensor]:
    """A state_dict by the `segment-anything` package for 256 px; do not change its tensors."""
    return dict(randomise(build_reference(**SMALL, image_size=256), seed=0).state_dict())


@pytest.fixture
def small_official(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_state: dict[str, torch.Tensor]) -> Path:
    """That state_dict in a file; the loader knows the small architecture beside the three official ones."""
    known = {**checkpoint.ARCHITECTURES, "small": Architecture(**SMALL)}
    monkeypatch.setattr(checkpoint, "ARCHITECTURES", known)
    torch.save(small_state, tmp_path / "small.pth")
    return tmp_path / "small.pth"


@pytest.fixture(scope="session")
def attention_formula() -> Callable[..., Tensor]:
    """What `Kernels.attend` has to compute."""
    return _attention_formula


def _attention_formula(
    projected: Tensor, padding: Tensor, rel_h: Tensor, rel_w: Tensor, heads: int, sides: tuple[int, int], scale: float
) -> Tensor:
    """segment-anything's windowed attention with every padded place written out, in float64 (Li et al., 2022, eq. 4)."""
    projected, padding, rel_h, rel_w = (part.double() for part in (projected, padding, rel_h, rel_w))
    batch, height, width, _ = projected.shape
    down, across = -(-height // sides[0]), -(-width // sides[1])
    places = padding.expand(batch, down * sides[0], across * sides[1], -1).clone()
    places[:, :height, :width] = projected
    grids = places.view(batch, down, sides[0], across, sides[1], 3, heads, -1).permute(5, 0, 1, 3, 6, 2, 4, 7)
    query, key, value = grids.reshape(3, batch * down * across, heads, *sides, -1)
    logits = torch.einsum("gnhwc,gnijc->gnhwij", query * scale, key)
    logits += torch.einsum("gnhwc,hic->gnhwi", query, relative(rel_h, sides[0], sides[0]))[..., None]
    logits += torch.einsum("gnhwc,wjc->gnhwj", query, relative(rel_w, sides[1], sides[1]))[..., None, :]
    weights = logits.flatten(-2).softmax(-1)
    mixed = torch.einsum("gnhwm,gnmc->gnhwc", weights, value.flatten(2, 3))
    mixed = mixed.view(batch, down, across, heads, *sides, -1).permute(0, 1, 4, 2, 5, 3, 6)
    return mixed.reshape(batch, down * sides[0], across * sides[1], -1)[:, :height, :width]
