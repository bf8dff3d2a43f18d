"""From pixels to class maps at the size of the image file (docs/evidence.md).

The network returns class logits z_1..z_C on a coarse grid. The background has the fixed logit 0, and the classes exclude one another.
Logits, not masks, are resized to native size, because resized masks would have contours with the steps of the coarse grid.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from monai.inferers.utils import sliding_window_inference
from torch import Tensor

from pfedsam.data.examples import Example
from pfedsam.data.tiling import TilingOptions
from pfedsam.data.transforms import Frame, logits_to_native

Forward: TypeAlias = Callable[[Tensor], Tensor]
"""A function from pixels [B, 3, S, S] in 0..1 to class logits [B, C, h, w], for example a personal or a shared model."""


def logits_to_classes(logits: Tensor, frame: Frame, *, overlap: bool = False) -> npt.NDArray[np.uint8]:
    """The label of every pixel, uint8 [H, W] with 0 for background, from logits [C, h, w] of one image.

    The result equals the argmax over (0, z_1, .., z_C): a pixel is background unless a class has a logit above 0. Where classes overlap, a
    pixel has the bit of each class with a logit above 0.
    """
    return _to_classes(logits_to_native(logits.float(), frame), overlap=overlap)


def _to_classes(logits: Tensor, *, overlap: bool) -> npt.NDArray[np.uint8]:
    """Logits [C, H, W] to labels [H, W]."""
    if overlap:
        bits = (logits > 0).to(torch.uint8).cpu().numpy()
        together: npt.NDArray[np.uint8] = np.packbits(bits, axis=0, bitorder="little")[0]
        return together
    best, index = logits.max(dim=0)
    classes: npt.NDArray[np.uint8] = torch.where(best > 0, index + 1, 0).to(torch.uint8).cpu().numpy()
    return classes


def predict_tiled(
    forward: Forward,
    pictures: Sequence[Example],
    *,
    side: int,
    tiling: TilingOptions,
    batch_size: int,
    overlap: bool = False,
) -> Iterator[tuple[Example, npt.NDArray[np.uint8]]]:
    """Predict pictures at native size tile by tile, and blend the logits of the tiles at native pixels; returns the same as `predict`.

    Args:
        forward: function from pixels [B, 3, S, S] to logits [B, C, h, w].
        pictures: pictures with pixels [3, H, W], as `load_pictures` returns them.
        side: side S of the model's input.
        tiling: side of a tile and overlap of the tiles.
        batch_size: number of tiles in a forward pass.
        overlap: whether classes overlap, so that labels are sets of bits.
    """
    for picture in pictures:
        with torch.inference_mode():
            logits = tiled_logits(forward, picture.pixels, side=side, tiling=tiling, batch_size=batch_size)
            found = _to_classes(logits, overlap=overlap)
        yield picture, found


def tiled_logits(forward: Forward, pixels: Tensor, *, side: int, tiling: TilingOptions, batch_size: int) -> Tensor:
    """Logits [C, H, W] of a picture's pixels [3, H, W]; the other arguments are those of `predict_tiled`.

    The logits are computed by MONAI's sliding window: those of a pixel are a weighted mean over the tiles that cover it, where a tile's
    weights are a Gaussian around its centre (as in nnU-Net, Isensee et al., 2021).
    """
    tile = Frame.of((tiling.side, tiling.side), side)

    def of_tiles(pixels: Tensor) -> Tensor:
        """Logits [n, C, t, t] of native tiles [n, 3, t, t]."""
        scaled = F.interpolate(pixels, size=(side, side), mode="bilinear", align_corners=False, antialias=True)
        answers = [logits_to_native(one.float(), tile) for one in forward(scaled.clamp(0, 1))]
        return torch.stack(answers).to(pixels.device)  # the device on which the tiles are combined

    height, width = pixels.shape[-2:]
    padding = (0, max(0, tiling.side - width), 0, max(0, tiling.side - height))
    logits = sliding_window_inference(
        F.pad(pixels, padding)[None],
        roi_size=(tiling.side, tiling.side),
        sw_batch_size=batch_size,
        predictor=of_tiles,
        overlap=tiling.overlap,
        mode="gaussian",
    )
    return torch.as_tensor(logits)[0, :, :height, :width]


def whole_cases(
    found: Iterable[tuple[Example, npt.NDArray[np.uint8]]],
) -> Iterator[tuple[Example, npt.NDArray[np.uint8]]]:
    """Group the slices of a volume into one class map [D, H, W], returned with the volume's last slice; images pass unchanged.

    The slices of a volume must follow one another in order. Only one volume's classes are in memory at a time.
    """
    volume: npt.NDArray[np.uint8] | None = None
    for example, classes in found:
        if example.slice is None:
            yield example, classes
            continue
        if volume is None or example.slice == 0:
            volume = np.empty((example.depth, *classes.shape), dtype=np.uint8)
        volume[example.slice] = classes
        if example.slice == example.depth - 1:
            yield example, volume
            volume = None


def predict(
    forward: Forward, examples: Sequence[Example], *, batch_size: int, overlap: bool = False
) -> Iterator[tuple[Example, npt.NDArray[np.uint8]]]:
    """Each example with its predicted class map, uint8 [H, W] at native size, in the given order.

    The caller puts the model in evaluation mode; no gradient is recorded.

    Args:
        forward: function from pixels [B, 3, S, S] to logits [B, C, h, w].
        examples: examples to predict; their labels are not used.
        batch_size: number of images in a forward pass, at least 1.
        overlap: whether classes overlap, so that labels are sets of bits.
    """
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        with torch.inference_mode():
            logits = forward(torch.stack([example.pixels for example in batch]))
            maps = [
                logits_to_classes(one, example.frame, overlap=overlap)
                for one, example in zip(logits, batch, strict=True)
            ]
        yield from zip(batch, maps, strict=True)


def flip_mean(forward: Forward) -> Forward:
    """A forward function that averages the logits over the picture, its two mirror images and both at once (test-time augmentation)."""

    def averaged(pixels: Tensor) -> Tensor:
        found = [forward(pixels)]
        for axes in ((-1,), (-2,), (-2, -1)):
            found.append(forward(pixels.flip(axes)).flip(axes))
        return torch.stack(found).mean(dim=0)

    return averaged


def _probabilities(logits: Tensor, *, overlap: bool) -> Tensor:
    """The probabilities [C, H, W] of the classes from their logits [C, H, W]."""
    if overlap:
        return logits.sigmoid()
    return torch.softmax(torch.cat([torch.zeros_like(logits[:1]), logits]), dim=0)[1:]


@dataclass(frozen=True)
class WholePrediction:
    """The prediction of a model for one volume."""

    classes: npt.NDArray[np.uint8]
    """Class numbers 0..C, or sets of bits if classes overlap, shape [D, H, W]."""
    probabilities: npt.NDArray[np.float32] | None
    """Probabilities of the C classes, shape [D, H, W, C]; None if not requested. Unless classes overlap, they and the background's add up
    to 1."""


def predict_volume(
    forward: Forward,
    slices: Sequence[Example],
    *,
    batch_size: int,
    probabilities: bool = False,
    overlap: bool = False,
    tell: Callable[[int, int], None] | None = None,
) -> WholePrediction:
    """Predict a whole volume at native size, slice by slice, with only the result and one batch in memory.

    Args:
        forward: function from pixels [B, 3, S, S] to logits [B, C, h, w].
        slices: the slices of the volume, in order.
        batch_size: number of slices in a forward pass.
        probabilities: whether to return also the probabilities: the softmax over background and classes, or the sigmoid of each class.
        overlap: whether classes overlap.
        tell: called with the number of finished slices and the number of all slices.
    """
    size = slices[0].frame.native
    classes = np.empty((len(slices), *size), dtype=np.uint8)
    kept: npt.NDArray[np.float32] | None = None
    for start in range(0, len(slices), batch_size):
        batch = slices[start : start + batch_size]
        with torch.inference_mode():
            logits = forward(torch.stack([one.pixels for one in batch]))
            for number, (one, example) in enumerate(zip(logits, batch, strict=True), start=start):
                native = logits_to_native(one.float(), example.frame)
                classes[number] = _to_classes(native, overlap=overlap)
                if probabilities:
                    if kept is None:
                        kept = np.empty((len(slices), *size, len(native)), dtype=np.float32)
                    kept[number] = _probabilities(native, overlap=overlap).permute(1, 2, 0).cpu().numpy()
        if tell:
            tell(start + len(batch), len(slices))
    return WholePrediction(classes, kept)
