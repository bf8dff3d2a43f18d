"""The personal SAM: a frozen backbone with shared and local components, in one module.

With `personal=False` the local components are switched off and the module is the *shared model* of the federation: the backbone with the
shared parameters. Teacher and student of the distillation are therefore the same module, whose weights are in memory only once.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import reduce

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pfedsam.model import image_skip
from pfedsam.model.backbones.base import Backbone
from pfedsam.model.components.base import NETWORK, AfterAttention, Assembly, BesideMlp, Component, attach_component
from pfedsam.model.components.output_layers import MaskHead
from pfedsam.model.components.routing import Routing
from pfedsam.model.local_values import swapped_parameters
from pfedsam.model.segmenter import Declared, Segmenter


class PersonalSam(Segmenter):
    """A backbone with shared and local components; see `Segmenter` for its logits."""

    class_tokens: nn.Parameter
    output_layers: MaskHead

    def __init__(
        self,
        backbone: Backbone,
        parts: Sequence[Component],
        classes: int,
        generator: torch.Generator,
        *,
        first_adapted: int,
        precision: torch.dtype = torch.float32,
        recompute: bool = False,
    ) -> None:
        """Attach `parts` to `backbone`, whose network is changed in place.

        Args:
            backbone: the loaded backbone.
            parts: the components, among them class tokens and output layers, in the order in which they are attached.
            classes: number of classes, without the background.
            generator: source of the random initial values.
            first_adapted: the first encoder block that components change; the blocks before it are computed once per image.
            precision: precision of the encoder's frozen weights and of the products with them.
            recompute: whether the adapted blocks are recomputed in the backward pass instead of storing their activations.

        Raises:
            PartitionError: the parameters of a part cannot be placed; see `attach_component`.
        """
        super().__init__()
        self._by_name: dict[str, nn.Module] = {}
        self.backbone, self.parts = backbone, tuple(parts)
        self.first_adapted, self.recompute, self.classes = first_adapted, recompute, classes
        self.image_size = backbone.image_size
        self.from_pixels = any(part.from_pixels for part in parts)
        self.add_module(NETWORK, backbone.network.requires_grad_(False))
        assembly = Assembly(self, backbone, first_adapted, classes, generator)
        for part in parts:
            attach_component(part, assembly)
        self._components = {group: names for group, names in assembly.declared.items() if names}
        self._by_name = dict(self.named_modules())
        self.hold_frozen_encoder_in(precision)

    def hold_frozen_encoder_in(self, dtype: torch.dtype) -> None:
        """Convert the frozen weights of the encoder; the decoder, which is a few percent of the computation, stays in float32."""
        self.frozen_dtype = dtype
        trained = {name for names in self._components.values() for name in names}
        starts = tuple(f"{NETWORK}.{start}" for start in self.backbone.parts["encoder"])
        for name, parameter in self.named_parameters():
            if name.startswith(starts) and name not in trained:
                parameter.data = parameter.data.to(dtype)

    @property
    def device(self) -> torch.device:
        """The device of the model, to which `prefix` and `from_prefix` move their inputs."""
        return self.class_tokens.device

    def get_submodule(self, target: str) -> nn.Module:
        """The module `target`; the result is cached, because a round needs hundreds of look-ups."""
        found = self._by_name.get(target)
        return super().get_submodule(target) if found is None else found

    @property
    def declarations(self) -> Sequence[Declared]:
        """The components in the order in which they were attached."""
        return self.parts

    @property
    def prefix_shape(self) -> tuple[int, int, int]:
        """Shape of the frozen features of one image: (h, w, channels), or (3, S, S) if the encoder is trained."""
        if self.from_pixels:
            return (3, self.image_size, self.image_size)
        channels = self.backbone.width * (1 + len(self._early_stages))
        return (*self.backbone.grid, channels + (image_skip.FOLDED if self._has_image_skip else 0))

    @property
    def _has_image_skip(self) -> bool:
        return self.output_layers.image_skip is not None

    @property
    def _early_stages(self) -> tuple[int, ...]:
        """The frozen blocks, before the first adapted one, whose output the backbone needs again after the last block."""
        return () if self.from_pixels else tuple(i for i in self.backbone.stages if i < self.first_adapted)

    @torch.no_grad()
    def prefix(self, pixels: Tensor) -> Tensor:
        """The frozen features: the output of the blocks before the first adapted one.

        Pixels `[B, 3, S, S]` in 0..1 give tokens `[B, h, w, d]`, followed along the channels by the outputs of earlier blocks that the
        backbone needs again and, if the output layers use it, by the image itself, folded into the tokens' grid. Images are processed one
        by one, so that each result depends bit for bit only on its image and can be cached. If the encoder is trained, no block is frozen
        and the pixels themselves are returned.
        """
        if self.from_pixels:
            return pixels
        return torch.cat([self._prefix_of_one(image[None]) for image in pixels.to(self.device)])

    def _prefix_of_one(self, pixels: Tensor) -> Tensor:
        """The frozen features `[1, h, w, d]` of one image `[1, 3, S, S]`."""
        tokens = self.backbone.embed(pixels.to(self.frozen_dtype))
        kept = []
        for i in range(self.first_adapted):
            tokens = self.backbone.blocks[i](tokens)
            if i in self.backbone.stages:
                kept.append(tokens)
        if self._has_image_skip:
            kept.append(image_skip.fold(pixels, self.backbone.grid).to(tokens.dtype))
        return torch.cat([tokens, *kept], dim=-1) if kept else tokens

    def from_prefix(
        self, tokens: Tensor, *, personal: bool = True, routings: dict[str, Routing] | None = None
    ) -> Tensor:
        """Class logits `[B, C, S/4, S/4]` from the frozen features, or `[B, C, S/2, S/2]` if the output layers get the image by a U-Net.

        Args:
            tokens: the result of `prefix`.
            personal: whether to use the local part; without it this is the shared model.
            routings: if given, the routing of each adapted block is added to it.
        """
        parts = [part for part in self.parts if personal or not part.local_only]
        own = self._own_values(parts)
        with swapped_parameters(self, own):
            tokens, stages, seen = self._begin(tokens)
            for i in range(0 if self.from_pixels else self.first_adapted, len(self.backbone.blocks)):
                tokens = self._block(i, own, tokens, _beside_mlp(parts, i, routings), _after_attention(parts, i))
                if i in self.backbone.stages:
                    stages.append(tokens)
            embedding, features = self.backbone.finish(tokens, stages)
            mixed, image = self.backbone.decode(embedding, self.class_tokens)
            return self.output_layers(mixed, image, features, seen)  # type: ignore[no-any-return]

    def _block(
        self,
        index: int,
        own: Mapping[str, Tensor],
        tokens: Tensor,
        beside: BesideMlp | None,
        after: AfterAttention | None,
    ) -> Tensor:
        """An encoder block's output `[B, h, w, d]`; if it is recomputed in the backward pass, the local values `own` are in place."""
        block = self.backbone.blocks[index]
        if not (self.recompute and torch.is_grad_enabled()):
            return block(tokens, beside, after)  # type: ignore[no-any-return]
        again = swapped_parameters(self, own)
        return checkpoint(  # type: ignore[no-any-return]
            block, tokens, beside, after, use_reentrant=False, context_fn=lambda: (nullcontext(), again)
        )

    def _begin(self, given: Tensor) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """Split the result of `prefix` into tokens `[B, h, w, d]`, outputs of earlier blocks, and the image for the output layers."""
        given, width, early = given.to(self.device), self.backbone.width, len(self._early_stages)
        if self.from_pixels:
            tokens, rest = self.backbone.embed(given), image_skip.fold(given, self.backbone.grid)
        else:
            tokens, rest = given[..., :width], given[..., width:]
        stages = [rest[..., i * width : (i + 1) * width].to(self.frozen_dtype) for i in range(early)]
        seen = image_skip.unfold(rest[..., early * width :]) if self._has_image_skip else None
        return tokens.to(self.frozen_dtype), stages, seen

    def _own_values(self, parts: Sequence[Component]) -> dict[str, Tensor]:
        """The values of these components, by the names of the parameters that they replace and in their shapes."""
        values: dict[str, Tensor] = {}

        def read(name: str) -> Tensor:
            """The value of a parameter in its own shape, after the components before it."""
            return values[name] if name in values else self.get_parameter(name)

        for part in parts:
            values |= part.swapped(read)
        return values


def _beside_mlp(parts: Sequence[Component], block: int, routings: dict[str, Routing] | None) -> BesideMlp | None:
    """A function that adds the outputs of the components to a block's output, in order."""
    chain = [found for part in parts if (found := part.beside_mlp(block, routings)) is not None]
    if not chain:
        return None
    return lambda onto, normalised: reduce(lambda sum_, add: add(sum_, normalised), chain, onto)


def _after_attention(parts: Sequence[Component], block: int) -> AfterAttention | None:
    """A function that applies the components to the output of a block's attention, in order."""
    chain = [found for part in parts if (found := part.after_attention(block)) is not None]
    if not chain:
        return None
    return lambda mixed: reduce(lambda value, change: change(value), chain, mixed)
