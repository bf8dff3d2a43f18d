"""Pictures as model input: the images and labels of a site, their views, and the batches of a training step.

Error messages about a file name the site and the case that it belongs to.
"""

from collections import defaultdict
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
from pfedsam.data.manifest import MASK_REMEDY, Case
from pfedsam.data.readers import kind_of
from pfedsam.data.transforms import FOR_PICTURES, FOR_SLICES, AugmentOptions, apply_view, labels_to_frame, to_frame
from pfedsam.data.volume_case import load_volume_truth, open_case
from pfedsam.data.volume_options import VolumeOptions

_KEPT_MEGABYTES: Final = 512
"""Memory for the prepared pictures of a site; beyond it pictures are read again."""


def load_examples(
    cases: Sequence[Case],
    *,
    labels: Mapping[str, LabelMap] | None,
    image: ImageOptions,
    side: int,
    most: int | None = None,
) -> Sequence[Example]:
    """The cases with their pixels and labels in frames of the given side, in the order given; each is read on access.

    An access raises `DataError` if a picture cannot be read, or a mask has another size than its image or an unknown label.

    Args:
        cases: pictures, with or without masks.
        labels: site to what the ids in its masks mean; None: examples have no labels, and no mask is read.
        image: how pictures are read.
        side: S, of the model's frame.
        most: how many prepared pictures are kept in memory; None for as many as fit into 512 MiB.
    """

    def make(case: Case) -> Example:
        native = load_image(case, image)
        pixels, frame = to_frame(native, side)
        classes = None
        if labels is not None and case.mask is not None:
            truth = load_truth(case, labels[case.site], max_megapixels=image.max_megapixels)
            check_sizes(case, frame.native, truth.shape)
            classes = labels_to_frame(truth, side)
        return Example(case, pixels, classes, frame)

    return PictureExamples(cases, make, fitting(side, _KEPT_MEGABYTES) if most is None else most)


def load_image(case: Case, options: ImageOptions) -> npt.NDArray[np.float32]:
    """The native picture [H, W, 3] in 0..1, with the contrast set by the options.

    Raises:
        DataError: the picture cannot be read.
    """
    with about(case):
        return normalise_contrast(read_image(case.image, max_megapixels=options.max_megapixels), options)


def load_ids(case: Case, *, max_megapixels: float = MAX_MEGAPIXELS) -> npt.NDArray[np.int64]:
    """The ids [H, W] of the case's mask file.

    Raises:
        DataError: there is no mask, it is no picture, or it cannot be read.
    """
    with about(case, mask=True):
        if case.mask is None:
            raise DataError(f"the image has no mask; {MASK_REMEDY}")
        if case.mask.is_dir() or kind_of(case.mask) in ("nifti", "dicom"):
            raise DataError(
                f"its mask {case.mask.name!r} is a volume or a folder, and its image a picture; save the mask as grey or palette PNG of "
                "the size of the image, with one id per class"
            )
        return read_mask(case.mask, max_megapixels=max_megapixels)


def load_truth(case: Case, labels: LabelMap, *, max_megapixels: float = MAX_MEGAPIXELS) -> npt.NDArray[np.uint8]:
    """The classes 0..C of the native pixels [H, W].

    Raises:
        DataError: there is no mask, it cannot be read or has an unknown label.
    """
    ids = load_ids(case, max_megapixels=max_megapixels)
    with about(case):
        return labels.to_classes(ids)


@dataclass(frozen=True)
class CaseTruth:
    """The true classes of a case, against which a prediction is scored."""

    classes: npt.NDArray[np.uint8]
    """Classes 0..C of the native pixels: [H, W] of a picture or of a volume of one slice, [D, H, W] of a volume."""
    spacing_mm: tuple[float, float] | tuple[float, float, float] | None
    """Along the axes of `classes`; None if it is not known."""
    picture: Callable[[int], npt.NDArray[np.float32]]
    """Returns the image of a slice for display, [H, W, 3] in 0..1."""
    directions: str | None = None
    """Directions of ascending slice, row and column numbers, as in `volume.Slicing`; None if they are not known."""


def load_case_truth(case: Case, labels: LabelMap, image: ImageOptions, options: VolumeOptions) -> CaseTruth:
    """The true classes of a picture or volume, with the spacing that distances are measured in.

    Raises:
        DataError: the mask cannot be read, does not fit its image, or has an unknown label.
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
    """Refuse a mask that has another size (H, W) than its image.

    Raises:
        DataError: the sizes differ.
    """
    if image == mask:
        return
    turned = (
        " (does the image have an EXIF orientation that was ignored when the mask was drawn?)"
        if image == mask[::-1]
        else ""
    )
    raise DataError(
        f"site {case.site!r}, case {case.id!r}: the image has {image[1]} x {image[0]} pixels, "
        f"its mask {mask[1]} x {mask[0]}{turned}; export the mask again at the size of the image"
    )


def view_of(
    example: Example, view: int, *, seed: int, options: AugmentOptions, renewal: int = 0
) -> tuple[Tensor, Tensor]:
    """Pixels [3, S, S] and labels [S, S] of one view of a case, or of a tile of it.

    The view depends on the arguments only, not on earlier random draws, so that it can be made again. `renewal` is the number of times
    that the views of the study have been replaced by new ones.

    Raises:
        DataError: the case has no labels, which a view needs.
    """
    case = example.case
    if example.labels is None:
        raise DataError(f"site {case.site!r}, case {case.id!r}: the image has no mask; only cases with one have views")
    part = () if example.tile is None else ("tile", example.tile)
    part = part if example.slice is None else ("slice", example.slice)
    generator = rng.generator(seed, case.site, case.id, "view", view, renewal, *part)
    usual = FOR_PICTURES if example.slice is None else FOR_SLICES
    return apply_view(
        example.pixels,
        example.labels,
        view=view,
        generator=generator,
        options=options,
        usual=usual,
        frame=example.frame,
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
    """Pairs (index of an example, view), `batch_size` of them for each step.

    Every example is drawn once before any is drawn again; a batch may contain the end of one pass and the beginning of the next. The view
    is drawn anew each time.

    Args:
        examples: number of examples.
        views: number of views of each.
        batch_size: pairs per step.
        steps: number of batches.
        generator: source of all random draws.
        foreground: the classes that each example contains; empty if they are not known.
        share: least share of all draws that contain a class, in the mean over many calls. These are drawn for each class in turn (see
            `_ClassRotation`), the others from all examples, so that those without foreground are drawn as well. They are divided between
            the two halves of a batch, each of which gets each class in turn, because a step may train two models on one half each
            (`training.phases`).

    Raises:
        DataError: there are no examples.
    """
    if examples < 1:
        raise DataError(
            "there are no training cases to draw batches from; give the site's train part at least one case"
        )
    members = _examples_by_class(foreground)
    rotation = _ClassRotation(members, generator)
    share = share if members else 0.0
    # A call may have a single step: what is rounded, and the half that gets one draw more, must not be the same in every call.
    offset = float(torch.rand((), generator=generator)) if share else 0.0
    turn = int(torch.randint(2, (1,), generator=generator)) if share else 0
    waiting: list[int] = []
    middle = batch_size - batch_size // 2
    for step in range(steps):
        begun = _quota(step * batch_size, share, offset)
        certain = _quota((step + 1) * batch_size, share, offset) - begun
        others = batch_size - certain
        while len(waiting) < others:
            waiting += torch.randperm(examples, generator=generator).tolist()
        # Of an odd number one more goes to each half in turn, by the number of such draws before.
        in_first = min(middle, max(certain - batch_size // 2, (certain + 1 - (begun + turn) % 2) // 2))
        of_classes = [rotation.draw(0 if number < in_first else 1) for number in range(certain)]
        rest = middle - in_first
        drawn = [*of_classes[:in_first], *waiting[:rest], *of_classes[in_first:], *waiting[rest:others]]
        waiting = waiting[others:]
        yield list(zip(drawn, torch.randint(views, (batch_size,), generator=generator).tolist(), strict=True))


def _examples_by_class(foreground: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """The indices of the examples that contain a class, for each class that occurs."""
    members: dict[int, list[int]] = defaultdict(list)
    for index, classes in enumerate(foreground):
        for number in classes:
            members[number].append(index)
    return [members[number] for number in sorted(members)]


class _ClassRotation:
    """Draws an example of each class in turn for each half of the batches, so that a rare class is drawn as often as a common one.

    Of one class every example is drawn once before any is drawn again.
    """

    def __init__(self, members: Sequence[Sequence[int]], generator: torch.Generator) -> None:
        self._members, self._generator = members, generator
        self._waiting: list[list[int]] = [[] for _ in members]
        first = int(torch.randint(len(members), (1,), generator=generator)) if len(members) > 1 else 0
        # The halves begin with different classes, so that a batch has as many classes as possible.
        self._turns = [first, first + len(members) // 2]

    def draw(self, half: int) -> int:
        """The index of an example of the next class of a half of the batch, 0 or 1."""
        number = self._turns[half] % len(self._members)
        self._turns[half] += 1
        members, waiting = self._members[number], self._waiting[number]
        if not waiting:
            waiting += [members[index] for index in torch.randperm(len(members), generator=self._generator).tolist()]
        return waiting.pop(0)


def _quota(draws: int, share: float, offset: float) -> int:
    """A share of a number of draws plus an offset in 0..1, rounded down.

    With a random offset its mean is the exact share. A product that is whole but for floating-point error counts as whole.
    """
    return int(draws * share + min(offset, 1 - 1e-6) + 1e-9)
