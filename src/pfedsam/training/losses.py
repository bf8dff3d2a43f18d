"""The segmentation loss: Dice + cross-entropy over background and classes, MONAI's implementation."""

import torch
import torch.nn.functional as F
from monai.losses.dice import DiceCELoss
from torch import Tensor

_DICE_CE = DiceCELoss(
    include_background=False, softmax=True, to_onehot_y=True, batch=True, smooth_nr=1.0, smooth_dr=1.0
)


def with_background(logits: Tensor) -> Tensor:
    """Class logits `[B, C, h, w]` with the background's, which is 0, in front: `[B, C + 1, h, w]`."""
    return torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1)


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Dice (classes, over the whole batch) + cross-entropy (classes and background), at the labels' resolution.

    Args:
        logits: of the classes, `[B, C, h, w]`; scaled up bilinearly.
        labels: 0 background, 1..C classes, `[B, S, S]`.
    """
    logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    return _DICE_CE(with_background(logits), labels[:, None])  # type: ignore[no-any-return]
