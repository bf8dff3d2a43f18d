"""Cases to model input: the images and labels of a site in memory, their views, and which of them a step trains on.

Whatever is wrong with a file is told here with the site and the case that it belongs to.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pfedsam.core import rng
from pfedsam.core.errors import DataError
from pfedsam.data.images import MAX_MEGAPIXELS, ImageOptions, normalise_contrast, read_image, read_mask
from pfedsam.data.labels import LabelMap
from pfedsam.data.manifest import Case
from pfedsam.data.transforms import AugmentOptions, Frame, apply_view, labels_to_frame, to_frame


@dataclass(frozen=True)
class Example:
    """A case in the model's frame."""

    case: Case
    pixels: Tensor
    """[3, S, S], float32, 0..1, zeros in the padding."""
    labels: Tensor | None
    """[S, S], uint8, classes 0..C; None for a case without a mask."""
    frame: Frame
    tile: int | None = None
    """Which part of the picture this is; None for the whole one."""


def load_examples(cases: Sequence[Case], *, labels: LabelMap, image: ImageOptions, side: int) -> list[Example]:
    """The cases with their pixels and labels in frames of the given side, in the order given.

    Raises:
        DataError: A picture cannot be read, a mask has another size than its image or an unknown label.
    """
    examples = []
    for case in cases:
        native = load_image(case, image)
        pixels, frame = to_frame(native, side)
        classes = None
        if case.mask is not None:
            truth = load_truth(case, labels, max_megapixels=image.max_megapixels)
            check_sizes(case, frame.native, truth.shape)
            classes = labels_to_frame(truth, side)
        examples.append(Example(case, pixels, classes, frame))
    return examples


def load_image(case: Case, options: ImageOptions) -> npt.NDArray[np.float32]:
    """The native picture [H, W, 3], 0..1, with the contrast that the options say.

    Raises:
        DataError: It cannot be read.
    """
    with _about(case):
        return normalise_contrast(read_image(case.image, max_megapixels=options.max_megapixels), options)


def load_ids(case: Case, *, max_megapixels: float = MAX_MEGAPIXELS) -> npt.NDArray[np.int64]:
    """The ids [H, W] of the case's mask file.

    Raises:
        DataError: There is no mask, or it cannot be read.
    """
    with _about(case):
        if case.mask is None:
            raise DataError("the image has no mask; add a mask of the same name to masks/, or take the image out")
        return read_mask(case.mask, max_megapixels=max_megapixels)


def load_truth(case: Case, labels: LabelMap, *, max_megapixels: float = MAX_MEGAPIXELS) -> npt.NDArray[np.uint8]:
    """The classes 0..C of the native pixels [H, W].

    Raises:
        DataError: There is no mask, it cannot be read or has an unknown label.
    """
    ids = load_ids(case, max_megapixels=max_megapixels)
    with _about(case):
        return labels.to_classes(ids)


def check_sizes(case: Case, image: tuple[int, ...], mask: tuple[int, ...]) -> None:
    """Refuses a mask that has another (H, W) than its image.

    Raises:
        DataError: They differ.
    """
    if image == mask:
        return
    turned = (
        " (does the image carry an EXIF orientation that the mask was not drawn with?)" if image == mask[::-1] else ""
    )
    raise DataError(
        f"site {case.site!r}, case {case.id!r}: the image has {image[1]} x {image[0]} pixels, "
        f"its mask {mask[1]} x {mask[0]}{turned}; export the mask again at the size of the image"
    )


def view_of(
    example: Example, view: int, *, seed: int, options: AugmentOptions, renewal: int = 0
) -> tuple[Tensor, Tensor]:
    """Pixels [3, S, S] and labels [S, S] of one view of a case, or of a tile of it.

    The view depends on the arguments alone, never on what was drawn before: whoever keeps something per view can make
    the view again. `renewal` counts how often the views of the study have been replaced by fresh ones.

    Raises:
        DataError: The case has no labels to turn along.
    """
    case = example.case
    if example.labels is None:
        raise DataError(f"site {case.site!r}, case {case.id!r}: the image has no mask; only cases with one have views")
    part = () if example.tile is None else ("tile", example.tile)
    generator = rng.generator(seed, case.site, case.id, "view", view, renewal, *part)
    return apply_view(
        example.pixels, example.labels, view=view, generator=generator, options=options, frame=example.frame
    )


def batches(
    examples: int, views: int, *, batch_size: int, steps: int, generator: torch.Generator
) -> Iterator[list[tuple[int, int]]]:
    """For each step its (index of the example, view) pairs, always `batch_size` of them.

    Every example comes once before any comes again; a batch may reach over from one pass into the next. The view is
    drawn anew each time.

    Raises:
        DataError: There are no examples.
    """
    if examples < 1:
        raise DataError(
            "there are no training cases to draw batches from; give the site's train part at least one case"
        )
    waiting: list[int] = []
    for _ in range(steps):
        while len(waiting) < batch_size:
            waiting += torch.randperm(examples, generator=generator).tolist()
        drawn, waiting = waiting[:batch_size], waiting[batch_size:]
        yield list(zip(drawn, torch.randint(views, (batch_size,), generator=generator).tolist(), strict=True))


@contextmanager
def _about(case: Case) -> Iterator[None]:
    """Adds to an error about a file which case of which site it belongs to.

    Raises:
        DataError: What came from within, with site and case.
    """
    try:
        yield
    except DataError as exc:
        raise DataError(f"site {case.site!r}, case {case.id!r}: {exc}") from exc
