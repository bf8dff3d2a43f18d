"""What the shipped weights keep of an image, by linear regression from the embedding."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pfedsam.model.backbones.checkpoint import load_network
from pfedsam.model.backbones.encoder import encode, use_fast_blocks
from pretraining.dead_leaves import scene


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    """Ten generated scenes, `[10, 3, 256, 256]`."""
    generator = np.random.default_rng(11)
    scenes = np.stack([scene(256, generator).pixels for _ in range(10)])
    return torch.from_numpy(scenes).permute(0, 3, 1, 2)


def explained(name: str, pixels: Tensor) -> float:
    """Share of the variance of the tokens' mean colours in the last two scenes that a ridge regression fitted to the others explains."""
    with torch.no_grad():
        embedding = encode(use_fast_blocks(load_network(name)), pixels).permute(0, 2, 3, 1)  # type: ignore[type-var]
    ones = torch.ones(*embedding.shape[:-1], 1)
    inputs = torch.cat([embedding, ones], dim=-1).double()
    colours = F.avg_pool2d(pixels, 16).permute(0, 2, 3, 1).double()
    (fit_x, test_x), (fit_y, test_y) = ((part[:8].flatten(0, 2), part[8:].flatten(0, 2)) for part in (inputs, colours))
    weights = torch.linalg.solve(fit_x.T @ fit_x + 0.1 * torch.eye(fit_x.shape[1]), fit_x.T @ fit_y)
    rest = (test_y - test_x @ weights).square().sum() / (test_y - test_y.mean(dim=0)).square().sum()
    return 1 - float(rest)


def test_the_second_edition_keeps_colours(pixels: Tensor) -> None:
    second = explained("sam-tiny-2", pixels)
    assert second > 0.9
    assert second > explained("sam-tiny", pixels) + 0.05
