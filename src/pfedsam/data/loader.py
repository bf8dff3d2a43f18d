"""Pictures to model input: the images and labels of a site, their views, and which of them a step trains on.

Whatever is wrong with a file is told here with the site and the case that it belongs to.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pfedsam.core import rng
from pfedsam.core.errors import DataError
from pfedsam.data.about import about
from pfedsam.data.examples import Example, PictureExamples, fitting
from pfedsam.data.images import MAX_MEGAPIXELS, ImageOptions, normalise_contrast, read_image, read_mask
from pfedsam.data.labels import LabelMap
from pfedsam.data.manifest import Case
from pfedsam.data.transforms import AugmentOptions, apply_view, labels_to_frame, to_frame
from pfedsam.data.volume_case import load_volume_truth, open_case
from pfedsam.data.volume_options import VolumeOptions

_KEPT_MEGABYTES: Final = 512
"""Memory for the prepared pictures of a site; beyond it pictures are read again."""


def load_examples(
    cases: Sequence[Case],
    *,
    labels: Mapping[str, LabelMap],
    image: ImageOptions,
    side: int,
    most: int | None = None,
) -> Sequence[Example]:
    """The cases with their pixels and labels in frames of the given side, in the order given; each is read when it is asked for.

    An access raises `DataError` if a picture cannot be read, or a mask has another size than its image or an unknown label.

    Args:
        cases: pictures, with or without masks.
        labels: site to what the ids in its masks mean.
        image: how pictures are read.
        side: S, of the model's frame.
        most: how many prepared pictures are kept in memory; None for as many as fit into 512 MiB.
    """

    def make(case: Case) -> Example:
        native = load_image(case, image)
        pixels, frame = to_frame(native, side)
        classes = None
        if case.mask is not None:
            truth = load_truth(case, labels[case.site], max_megapixels=image.max_megapixels)
            check_sizes(case, frame.native, truth.shape)
            classes = labels_to_frame(truth, side)
        return Example(case, pixels, classes, frame)

    return PictureExamples(cases, make, fitting(side, _KEPT_MEGABYTES) if most is None else most)


def load_image(case: Case, options: ImageOptions) -> npt.NDArray[np.float32]:
    """The native picture [H, W, 3], 0..1, with the contrast that the options say.

    Raises:
        DataError: It cannot be read.
    """
    with about(case):
        return normalise_contrast(read_image(case.image, max_megapixels=options.max_megapixels), options)


def load_ids(case: Case, *, max_megapixels: float = MAX_MEGAPIXELS) -> npt.NDArray[np.int64]:
    """The ids [H, W] of the case's mask file.

    Raises:
        DataError: There is no mask, or it cannot be read.
    """
    with about(case):
        if case.mask is None:
            raise DataError("the image has no mask; add a mask of the same name to masks/, or take the image out")
        return read_mask(case.mask, max_megapixels=max_megapixels)


def load_truth(case: Case, labels: LabelMap, *, max_megapixels: float = MAX_MEGAPIXELS) -> npt.NDArray[np.uint8]:
    """The classes 0..C of the native pixels [H, W].

    Raises:
        DataError: There is no mask, it cannot be read or has an unknown label.
    """
    ids = load_ids(case, max_megapixels=max_megapixels)
    with about(case):
        return labels.to_classes(ids)


@dataclass(frozen=True)
class CaseTruth:
    """What a case is scored against."""

    classes: npt.NDArray[np.uint8]
    """0..C of the native pixels: [H, W] of a picture or of a volume of one slice, [D, H, W] of a volume."""
    spacing_mm: tuple[float, float] | tuple[float, float, float] | None
    """Along the axes of `classes`; None where it is not known."""
    picture: Callable[[int], npt.NDArray[np.float32]]
    """Slice number to what is shown of it, [H, W, 3] in 0..1."""
    directions: str | None = None
    """Where slice, row and column numbers of a volume increase to, as `volume.Slicing`; None if it is not known."""


def load_case_truth(case: Case, labels: LabelMap, image: ImageOptions, options: VolumeOptions) -> CaseTruth:
    """The true classes of a picture or volume, with the spacing that distances are measured in.

    Raises:
        DataError: The mask cannot be read, does not fit its image, or has an unknown label.
    """
    if not case.volume:
        classes = load_truth(case, labels, max_megapixels=image.max_megapixels)
        pixel = (case.spacing_mm[0], case.spacing_mm[-1]) if case.spacing_mm else None
        return CaseTruth(classes, pixel, lambda _: load_image(case, image))
    volume = open_case(case, image, options)
    classes, spacing = load_volume_truth(case, volume, labels, options), volume.spacing_mm
    if len(classes) == 1:
        return CaseTruth(classes[0], (spacing[1], spacing[2]) if spacing else None, lambda _: volume.picture(0))
    return CaseTruth(classes, spacing, volume.picture, volume.slicing.directions)


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
    part = part if example.slice is None else ("slice", example.slice)
    generator = rng.generator(seed, case.site, case.id, "view", view, renewal, *part)
    return apply_view(
        example.pixels, example.labels, view=view, generator=generator, options=options, frame=example.frame
    )


def batches(
    examples: int,
    views: int,
    *,
    batch_size: int,
    steps: int,
    generator: torch.Generator,
    foreground: Sequence[tuple[int, ...]] = (),
    share: float = 0.0,
) -> Iterator[list[tuple[int, int]]]:
    """For each step its (index of the example, view) pairs, always `batch_size` of them.

    Every example comes once before any comes again; a batch may reach over from one pass into the next. The view is
    drawn anew each time. Where it is known which classes each example holds, at least `share` of all that are drawn hold one: that part is
    drawn for each class in turn, from the examples that hold it (each once before any again), so that a rare class is drawn as often as a
    common one; the rest is drawn from all examples, so that empty ones stay in.

    Raises:
        DataError: There are no examples.
    """
    if examples < 1:
        raise DataError(
            "there are no training cases to draw batches from; give the site's train part at least one case"
        )
    holders = [
        [index for index, held in enumerate(foreground) if number in held]
        for number in sorted({number for held in foreground for number in held})
    ]
    share = share if holders else 0.0
    waiting: list[int] = []
    chosen: list[list[int]] = [[] for _ in holders]
    turn = int(torch.randint(len(holders), (1,), generator=generator)) if len(holders) > 1 else 0
    for step in range(steps):
        sure = int((step + 1) * batch_size * share + 1e-9) - int(step * batch_size * share + 1e-9)
        while len(waiting) < batch_size - sure:
            waiting += torch.randperm(examples, generator=generator).tolist()
        drawn = []
        for _ in range(sure):
            mine, queue = holders[turn % len(holders)], chosen[turn % len(holders)]
            if not queue:
                queue += [mine[index] for index in torch.randperm(len(mine), generator=generator).tolist()]
            drawn.append(queue.pop(0))
            turn += 1
        drawn += waiting[: batch_size - sure]
        waiting = waiting[batch_size - sure :]
        yield list(zip(drawn, torch.randint(views, (batch_size,), generator=generator).tolist(), strict=True))
