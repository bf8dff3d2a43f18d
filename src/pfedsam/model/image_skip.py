"""The image as a second input of the output layers (a skip connection), at the resolution of the masks.

A token covers 16 x 16 pixels, for which a mask has 4 x 4 values. HQ-SAM (Ke et al., 2023, arXiv:2306.01567) adds features of the
encoder's first layers to those from which masks are computed, because the last layers have lost details of borders. Here the
standardised image is used instead, folded into the tokens' grid so that it is stored with the frozen features.
"""

import torch.nn.functional as F
from torch import Tensor

from pfedsam.model.backbones.base import standardise

CELLS = 4
"""Values of a mask along a token's side."""
FINER = 2
"""Image values along a mask value's side."""
CHANNELS = 3 * FINER * FINER
"""Image values for each value of a mask."""
FOLDED = CHANNELS * CELLS * CELLS
"""Image values for each token."""


def fold(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Pixels `[B, 3, S, S]` in 0..1 to `[B, h, w, FOLDED]` for a grid of tokens (h, w)."""
    height, width = grid
    side = CELLS * FINER
    small = F.adaptive_avg_pool2d(standardise(pixels.float()), (side * height, side * width))
    return F.pixel_unshuffle(small, side).permute(0, 2, 3, 1)


def unfold(folded: Tensor) -> Tensor:
    """Unfold `[B, h, w, FOLDED]` to float32 of shape `[B, CHANNELS, CELLS * h, CELLS * w]`."""
    return F.pixel_unshuffle(F.pixel_shuffle(folded.float().permute(0, 3, 1, 2), CELLS * FINER), FINER)
