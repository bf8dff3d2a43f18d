import sys
from pathlib import Path

import pytest
import torch

from pfedsam.model import checkpoint
from pfedsam.model.checkpoint import Architecture

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
