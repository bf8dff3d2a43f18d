"""Conversion of a picture of any size to the model's square frame and back, and the views of a training image.

The frame is SAM's: the longer side becomes S pixels, the aspect ratio is kept, and the right and the bottom are padded with zeros.
Predictions are converted back to native pixels and scored there.

A *view* is one augmented form of an image. Each image has a few views, and each view can be made again from its generator alone, so that
features and teacher logits can be stored per (image, view). View 0 is the image itself.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pfedsam.core.options import Options


@dataclass(frozen=True)
class Frame:
    """The position of a native picture in the model's square."""

    native: tuple[int, int]
    """H, W of the file's picture."""
    resized: tuple[int, int]
    """Height and width in the frame; the rest, at the right and at the bottom, is padding."""
    side: int
    """S, the side of the square."""

    @classmethod
    def of(cls, native: tuple[int, int], side: int) -> "Frame":
        """The frame in which the longer side of a native picture (H, W) becomes `side`."""
        scale = side / max(native)
        height, width = (max(1, int(length * scale + 0.5)) for length in native)
        return cls(native, (height, width), side)


class AugmentOptions(Options):
    """The views of a training image; values are drawn uniformly from each range."""

    views: int = Field(
        default=4,
        ge=1,
        le=1024,
        description="Number of versions of each training image, including the unchanged one; 1: no augmentation.",
    )
    renew_every: int = Field(
        default=0, ge=0, description="Number of rounds after which these versions are replaced by new ones; 0: never."
    )
    flips: bool | None = Field(
        default=None,
        description="Whether images are mirrored at random; empty: pictures are, and slices of volumes are not, because a body lies the "
        "same way in all of them.",
    )
    rotations: bool | None = Field(
        default=None,
        description="Whether images are rotated at random by multiples of 90 degrees; empty: pictures are, slices of volumes are not.",
    )
    angle: float | None = Field(
        default=None,
        ge=0,
        le=180,
        description="Largest random rotation in degrees, in both directions; empty: 0 for pictures, 15 for slices of volumes.",
    )
    zoom: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Images are scaled by a random factor between exp(-zoom) and exp(zoom); empty: 0 for pictures, 0.15 for slices of "
        "volumes.",
    )
    brightness: float = Field(
        default=0.1, ge=0, le=1, description="A random constant between -brightness and brightness is added."
    )
    contrast: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="The difference to the mean of the image is multiplied by a random factor between 1 - contrast and 1 + contrast.",
    )
    gamma: float = Field(
        default=0.2, ge=0, le=2, description="Values are raised to a random power between exp(-gamma) and exp(gamma)."
    )
    noise: float = Field(
        default=0.02, ge=0, le=1, description="Largest standard deviation of the normal noise that is added."
    )


@dataclass(frozen=True)
class Moves:
    """How images are moved at random; the fields are as in `AugmentOptions`."""

    flips: bool
    rotations: bool
    angle: float
    zoom: float

    @classmethod
    def of(cls, options: AugmentOptions, usual: "Moves") -> "Moves":
        """Those of the options, and the usual ones where an option is empty."""
        asked = {field.name: getattr(options, field.name) for field in fields(usual)}
        return replace(usual, **{name: value for name, value in asked.items() if value is not None})


FOR_PICTURES: Final = Moves(flips=True, rotations=True, angle=0.0, zoom=0.0)
"""A picture may show its objects in any direction, as a microscope does."""
FOR_SLICES: Final = Moves(flips=False, rotations=False, angle=15.0, zoom=0.15)
"""A body lies the same way in all volumes: its left side is not its right (`docs/decisions/0023`)."""


def to_frame(image: npt.NDArray[np.float32], side: int, frame: Frame | None = None) -> tuple[Tensor, Frame]:
    """The image [H, W, 3] in 0..1 as pixels [3, S, S] in 0..1, float32, and its frame: `frame`, or the one that fills the square."""
    height, width = image.shape[:2]
    frame = frame or Frame.of((height, width), side)
    pixels = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32)).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, size=frame.resized, mode="bilinear", align_corners=False, antialias=True)
    return _pad(resized[0].clamp(0, 1), frame), frame


def labels_to_frame(classes: npt.NDArray[np.uint8], side: int, frame: Frame | None = None) -> Tensor:
    """The classes [H, W] as labels [S, S], uint8, by the nearest pixel; padding is background."""
    height, width = classes.shape
    frame = frame or Frame.of((height, width), side)
    labels = torch.from_numpy(np.ascontiguousarray(classes))[None, None]
    # "nearest" would take pixel corners and shift the labels against the pixels; "nearest-exact" takes centres.
    return _pad(F.interpolate(labels, size=frame.resized, mode="nearest-exact")[0, 0], frame)


def logits_to_native(logits: Tensor, frame: Frame) -> Tensor:
    """Logits [C, h, w] of the whole frame as logits [C, H, W] of the native picture; the padding is cut off."""
    square = _resize(logits, (frame.side, frame.side))
    height, width = frame.resized
    return _resize(square[:, :height, :width], frame.native)


def apply_view(
    pixels: Tensor,
    labels: Tensor,
    *,
    view: int,
    generator: torch.Generator,
    options: AugmentOptions,
    usual: Moves = FOR_PICTURES,
    frame: Frame | None = None,
) -> tuple[Tensor, Tensor]:
    """One view of pixels [3, S, S] and labels [S, S].

    Both are turned, mirrored and enlarged alike, about the centre of the square; what comes from outside of it is zero, as padding is. The
    intensities of the pixels are changed too.

    Args:
        pixels: values in 0..1; those of the result are in 0..1 too.
        labels: classes.
        view: number of the view; 0 returns both unchanged and draws nothing.
        generator: the only source of randomness: the same state gives the same view, bit for bit.
        options: kinds and strengths of the changes.
        usual: how images are moved where an option is empty.
        frame: the frame of the picture; if given, the padding keeps its zeros.
    """
    if view == 0:
        return pixels, labels
    moves = Moves.of(options, usual)
    choices = _dihedral(moves)
    turns, mirrored = choices[int(torch.randint(len(choices), (), generator=generator))]
    height, width = frame.resized if frame else pixels.shape[-2:]
    changed = pixels.clone()
    changed[:, :height, :width] = _intensity(pixels[:, :height, :width], generator, options)
    changed, labels = _turn(changed, turns, mirrored), _turn(labels, turns, mirrored)
    if not (moves.angle or moves.zoom):
        return changed, labels
    angle, zoom = (2 * torch.rand(2, generator=generator) - 1).tolist()
    moved = math.radians(angle * moves.angle), math.exp(zoom * moves.zoom)
    return _move(changed, *moved, "bilinear"), _move(labels[None], *moved, "nearest")[0]


def _move(image: Tensor, angle: float, zoom: float, mode: str) -> Tensor:
    """Turn an image [C, S, S] clockwise by an angle in radians and enlarge it, about its centre."""
    sine, cosine = math.sin(angle) / zoom, math.cos(angle) / zoom
    to_source = torch.tensor([[[cosine, sine, 0.0], [-sine, cosine, 0.0]]])
    grid = F.affine_grid(to_source, [1, *image.shape], align_corners=False)
    moved = F.grid_sample(image[None].float(), grid, mode=mode, padding_mode="zeros", align_corners=False)
    return moved[0].to(image.dtype)


def _dihedral(moves: Moves) -> list[tuple[int, bool]]:
    """The allowed (quarter turns, mirrored) of the square's eight symmetries."""
    if moves.rotations:
        return [(turns, mirrored) for turns in range(4) for mirrored in (False, True)[: 1 + moves.flips]]
    if moves.flips:
        return [(0, False), (0, True), (2, False), (2, True)]  # both flips together are a half turn
    return [(0, False)]


def _turn(image: Tensor, turns: int, mirrored: bool) -> Tensor:
    """Rotate an image [..., H, W] by a number of quarter turns, and mirror it if `mirrored`."""
    turned = torch.rot90(image, turns, dims=(-2, -1))
    return (turned.flip(-1) if mirrored else turned).contiguous()


def _intensity(pixels: Tensor, generator: torch.Generator, options: AugmentOptions) -> Tensor:
    """Change gamma, contrast, brightness and noise of pixels [3, H, W] at random; the result is in 0..1."""
    # All four are always drawn, so that switching one off does not change the others.
    gamma, contrast, brightness, noise = (2 * torch.rand(4, generator=generator) - 1).tolist()
    # One field for all three channels, because noise must not add colour to grey images.
    field = torch.randn(pixels.shape[-2:], generator=generator)
    changed: Tensor = pixels.clamp(0, 1).pow(math.exp(gamma * options.gamma))
    mean = changed.mean()
    changed = mean + (changed - mean) * (1 + contrast * options.contrast) + brightness * options.brightness
    changed = changed + field * (abs(noise) * options.noise)
    return changed.clamp(0, 1)


def _pad(image: Tensor, frame: Frame) -> Tensor:
    """Pad an image [..., h, w] at the right and at the bottom to [..., S, S]."""
    height, width = frame.resized
    padded: Tensor = F.pad(image, (0, frame.side - width, 0, frame.side - height))
    return padded


def _resize(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize logits [C, h, w] to [C, H, W] for the given size (H, W), bilinearly."""
    resized: Tensor = F.interpolate(logits[None].float(), size=size, mode="bilinear", align_corners=False)
    return resized[0]
