"""A site's training images as batches of frozen features, which are computed once for each view (augmentation) of an image."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import Final

import torch
from torch import Tensor

from pfedsam.core.rng import generator
from pfedsam.data.examples import Example
from pfedsam.data.loader import batches, view_of
from pfedsam.data.transforms import AugmentOptions
from pfedsam.model.prefix import PrefixCache
from pfedsam.model.segmenter import Segmenter
from pfedsam.training.losses import ALL_ANNOTATED, LabelForm

_KEPT_BYTES: Final = 32 * 2**20
"""Memory for the views of a site's images that were drawn last."""


@dataclass(frozen=True)
class Batch:
    """The input of one training step, on the model's device."""

    tokens: Tensor
    """`[B, h, w, d]`, after the frozen blocks."""
    labels: Tensor
    """`[B, S, S]` uint8."""
    keys: tuple[tuple[int, int], ...]
    """(example, view) of each image, used as the key of values that are kept per image and view, such as a teacher's logits."""


@dataclass(frozen=True)
class SiteData:
    """The training data of a site."""

    name: str
    examples: Sequence[Example]
    cache: PrefixCache
    augment: AugmentOptions
    seed: int
    foreground: Sequence[tuple[int, ...]] = ()
    """For each example the classes that it contains; empty if examples are drawn regardless of them."""
    foreground_share: float = 0.0
    """Smallest share of the drawn examples that contain a class."""
    form: LabelForm = ALL_ANNOTATED
    """The meaning of the labels, and the classes that they contain."""

    def draw(self, model: Segmenter, *, round_: int, phase: str, batch_size: int, steps: int) -> Iterator[Batch]:
        """The batches of one phase, which depend only on seed, site, round and phase."""
        order = generator(self.seed, self.name, round_, phase, "batches")
        renewal = round_ // self.augment.renew_every if self.augment.renew_every else 0
        for pairs in batches(
            len(self.examples),
            self.augment.views,
            batch_size=batch_size,
            steps=steps,
            generator=order,
            foreground=self.foreground,
            share=self.foreground_share,
        ):
            drawn = [self._recent_view(model, index, view, renewal) for index, view in pairs]
            tokens, labels = (torch.stack(parts).to(model.device) for parts in zip(*drawn, strict=True))
            yield Batch(tokens, labels, tuple(pairs))

    @cached_property
    def _recent_view(self) -> Callable[[Segmenter, int, int, int], tuple[Tensor, Tensor]]:
        """As `_view`; the views that were drawn last are kept, because making and hashing views takes 3 % of a round."""
        size = prod(self.cache.shape) * torch.float32.itemsize
        return lru_cache(maxsize=_KEPT_BYTES // size)(self._view)

    def _view(self, model: Segmenter, index: int, view: int, renewal: int) -> tuple[Tensor, Tensor]:
        """The tokens [h, w, d] and the labels [h, w] of one view of an image."""
        pixels, labels = view_of(self.examples[index], view, seed=self.seed, options=self.augment, renewal=renewal)
        return self.cache.tokens(pixels, model.prefix), labels
