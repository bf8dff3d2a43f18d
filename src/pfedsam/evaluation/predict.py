"""From pixels to class maps at the size of the image file (design, section 7).

The network answers with class logits z_1..z_C on a coarse grid; the background has the fixed logit 0 and the classes
exclude one another. Logits, not masks, are resized to native size, so that contours do not inherit the coarse steps.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pfedsam.data.loader import Example
from pfedsam.data.transforms import Frame, logits_to_native

Forward: TypeAlias = Callable[[Tensor], Tensor]
"""Pixels [B, 3, S, S] in 0..1 to class logits [B, C, h, w]: a personal or a shared model, or what behaves like one."""


def logits_to_classes(logits: Tensor, frame: Frame) -> npt.NDArray[np.uint8]:
    """The class of every pixel, uint8 [H, W] with 0 for background, from logits [C, h, w] of one image.

    Equals the argmax over (0, z_1, .., z_C): a pixel is background unless some class has a logit above 0.
    """
    best, index = logits_to_native(logits.float(), frame).max(dim=0)
    classes: npt.NDArray[np.uint8] = torch.where(best > 0, index + 1, 0).to(torch.uint8).cpu().numpy()
    return classes


def predict(
    forward: Forward, examples: Sequence[Example], *, batch_size: int
) -> Iterator[tuple[Example, npt.NDArray[np.uint8]]]:
    """Each example with its predicted class map, uint8 [H, W] at native size, in the order given.

    The caller puts the model in evaluation mode and the examples' pixels on its device; no gradient is recorded.

    Args:
        forward: Pixels [B, 3, S, S] to logits [B, C, h, w].
        examples: What to predict; labels are never looked at.
        batch_size: Images a forward pass; at least 1.
    """
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        with torch.inference_mode():
            logits = forward(torch.stack([example.pixels for example in batch]))
            maps = [logits_to_classes(one, example.frame) for one, example in zip(logits, batch, strict=True)]
        yield from zip(batch, maps, strict=True)
