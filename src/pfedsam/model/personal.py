"""The personal SAM: frozen SAM, shared low-rank updates, and what a site keeps to itself, in one module.

With `personal=False` the local part is switched off and the module is the *shared model*: SAM + shared parameters, one for the
whole federation. Teacher and student of the distillation are therefore the same module, its weights resident once.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import SamModel

from pfedsam.core.errors import OptionError
from pfedsam.core.options import Options
from pfedsam.model import image_skip
from pfedsam.model.adapters import AdapterOptions, BlockAdapters
from pfedsam.model.backbone import positions, vision_config
from pfedsam.model.encoder import embed_patches, use_fast_blocks
from pfedsam.model.head import OutputLayers, class_tokens, decode
from pfedsam.model.local_values import LocalCopy, LocalDelta, LocalLora, norm_names, swapped_parameters
from pfedsam.model.lora import LoraOptions, add_lora
from pfedsam.model.moe import ExpertOptions, LMoE, Routing
from pfedsam.model.numerics import CPU, Precision, frozen_dtype


class ModelOptions(Options):
    """The backbone and what is added to it."""

    backbone: str = Field(
        default="sam-tiny",
        description="A shipped SAM (sam-tiny), a file of official weights (.pth), a transformers folder, or a hub name.",
    )
    image_size: int | None = Field(
        default=None, ge=16, description="Side in pixels that images are resized to; empty = the backbone's own."
    )
    adapt_last: int | None = Field(
        default=4,
        ge=1,
        description="LoRA and experts go into the last n encoder blocks; empty = all. The blocks before run once per image.",
    )
    lora: LoraOptions | None = Field(default=LoraOptions(), description="The shared low-rank updates; empty = none.")
    experts: ExpertOptions | None = Field(
        default=ExpertOptions(), description="The local mixture of experts; empty = none."
    )
    precision: Precision = Field(
        default="float32",
        description="Of the encoder's frozen weights and of the products with them: float32, bfloat16 (half the memory, faster "
        "where the processor has instructions for it, refused elsewhere), or auto (bfloat16 where it is fast). What is trained "
        "stays float32.",
    )
    output_layers: Literal["both", "shared", "local", "frozen"] = Field(
        default="both",
        description="Who trains the decoder's output layers: shared, local, or both (a shared version and a local one beside it).",
    )
    image_skip: bool = Field(
        default=True,
        description="The output layers also look at the image itself, at the masks' resolution (after HQ-SAM, Ke et al., 2023).",
    )
    norms: Literal["frozen", "local"] = Field(
        default="frozen",
        description="local: the personal model has LayerNorms of the site's own in the adapted blocks, neck and decoder.",
    )
    local_lora: int | None = Field(
        default=None,
        ge=0,
        description="Rank of a second LoRA, local, on the layers of the shared one; 0 = none; empty = the method's choice (pfedsam and "
        "feddpa: the shared one's rank; others: none).",
    )
    personal_copy: bool = Field(
        default=False,
        description="The personal model has its own copy of LoRA and class tokens in place of the shared ones (ditto sets it).",
    )
    adapters: AdapterOptions | None = Field(
        default=None, description="Two adapters in each adapted block; empty = none (fedmsa sets it)."
    )
    recompute: bool = Field(
        default=False,
        description="Compute the adapted blocks once more on the way back instead of keeping what they computed: less memory, slower "
        "steps, the same results.",
    )
    train_encoder: bool = Field(
        default=False,
        description="Train SAM's encoder itself, from the pixels on; nothing is cached then (fedsam sets it).",
    )

    @model_validator(mode="after")
    def _local_lora_beside_a_shared_one(self) -> "ModelOptions":
        if self.local_lora and not self.lora:
            raise ValueError("local_lora lies beside lora, but lora is empty; give both or neither")
        return self


SWITCHED = frozenset({"experts", "personal_output_layers", "norms", "local_lora", "personal_copy"})
"""Components that only the personal model computes with. Where all that is local is of these there is a shared model."""
PRETRAINED = frozenset({"encoder", "decoder", "no_prompt"})
"""Components that are SAM's own weights."""


class PersonalSam(nn.Module):
    """SAM with shared and local parameters; gives one mask per class without a prompt.

    Background has logit 0 and classes exclude each other: probabilities are the softmax over `[0, z_1 .. z_C]`.
    """

    def __init__(
        self,
        sam: SamModel,
        options: ModelOptions,
        classes: int,
        generator: torch.Generator,
        device: torch.device = CPU,
    ) -> None:
        """Take over `sam` (it is changed in place) for so many classes; what is drawn is the same on every device.

        Raises:
            OptionError: when there are fewer encoder blocks than are to be adapted, or bfloat16 is wanted of a processor without it.
        """
        super().__init__()
        self._by_name: dict[str, nn.Module] = {}
        depth = len(sam.vision_encoder.layers)
        adapted = depth if options.adapt_last is None else options.adapt_last
        if adapted > depth:
            raise OptionError(
                f"model.adapt_last is {adapted}, but this backbone has {depth} encoder blocks: give 1 to {depth}."
            )
        self.first_adapted = depth - adapted
        self.from_pixels = options.train_encoder
        self.recompute = options.recompute
        self.classes = classes
        self.sam = use_fast_blocks(sam).requires_grad_(False)
        self.class_tokens = class_tokens(sam.mask_decoder, classes)
        self.output_layers = OutputLayers(sam.mask_decoder, classes, generator if options.image_skip else None)
        names = [f"output_layers.{name}" for name, _ in self.output_layers.named_parameters()]
        both = LocalCopy if options.personal_copy else LocalDelta
        self.personal_output_layers = both(self, names) if options.output_layers == "both" else None
        a_names, b_names = add_lora(sam, options.lora, self.first_adapted, generator) if options.lora else ([], [])
        self._lora_names = [f"sam.{name}" for name in a_names], [f"sam.{name}" for name in b_names]
        width, blocks = vision_config(sam).hidden_size, range(self.first_adapted, depth)
        self.experts = nn.ModuleDict(
            {str(i): LMoE(width, options.experts, generator) for i in blocks} if options.experts else {}
        )
        self.adapters = nn.ModuleDict(
            {str(i): BlockAdapters(width, options.adapters, generator) for i in blocks} if options.adapters else {}
        )
        pairs = zip(*self._lora_names, strict=True)
        self.local_lora = LocalLora(self, pairs, options.local_lora, generator) if options.local_lora else None
        copied = [*self._lora_names[0], *self._lora_names[1], "class_tokens"]
        self.personal_copy = LocalCopy(self, copied) if options.personal_copy else None
        self.norms = LocalCopy(self, norm_names(self._normed())) if options.norms == "local" else None
        self._by_name = dict(self.named_modules())
        self._components = self._named_groups()
        self.hold_frozen_encoder_in(torch.float32 if self.from_pixels else frozen_dtype(options.precision, device))
        self.to(device)

    def hold_frozen_encoder_in(self, dtype: torch.dtype) -> None:
        """Convert what is never trained of the encoder; the decoder, a few percent of the work, stays in float32."""
        self.frozen_dtype = dtype
        trained = {name for names in self.components().values() for name in names}
        for name, parameter in self.named_parameters():
            if name.startswith("sam.vision_encoder.") and name not in trained:
                parameter.data = parameter.data.to(dtype)

    def _normed(self) -> dict[str, nn.Module]:
        """By name, the modules whose LayerNorms a site may have for itself: all that follows the frozen prefix."""
        encoder = self.sam.vision_encoder
        modules = {
            f"sam.vision_encoder.layers.{i}": encoder.layers[i] for i in range(self.first_adapted, len(encoder.layers))
        }
        modules |= {
            "sam.vision_encoder.neck": encoder.neck,
            "sam.mask_decoder.transformer": self.sam.mask_decoder.transformer,
        }
        return modules if self.personal_output_layers else modules | {"output_layers": self.output_layers}

    @property
    def device(self) -> torch.device:
        """Where it computes; what `prefix` and `from_prefix` are given is brought there."""
        return self.class_tokens.device

    @property
    def image_size(self) -> int:
        """Side S in pixels of the square input."""
        return int(vision_config(self.sam).image_size)  # type: ignore[arg-type]

    def get_submodule(self, target: str) -> nn.Module:
        """The module called `target`; a round asks for hundreds, so they are looked up once."""
        found = self._by_name.get(target)
        return super().get_submodule(target) if found is None else found

    def components(self) -> dict[str, tuple[str, ...]]:
        """Named groups of the parameters that can be trained; `Partition` places them."""
        return dict(self._components)

    def _named_groups(self) -> dict[str, tuple[str, ...]]:
        a_names, b_names = self._lora_names
        groups: dict[str, Iterable[str]] = {"lora_a": a_names, "lora_b": b_names, "class_tokens": ["class_tokens"]}
        for component in ("output_layers", "personal_output_layers", "experts", "adapters", *_OWN):
            module = getattr(self, component)
            groups[component] = [f"{component}.{name}" for name, _ in module.named_parameters()] if module else []
        own_norms = set(self.norms.origins.values()) if self.norms else set()
        groups["output_layers"] = [name for name in groups["output_layers"] if name not in own_norms]
        groups |= {component: self._pretrained(starts) for component, starts in _SAM_PARTS.items()}
        if not self.from_pixels:
            del groups["encoder"]  # what lies before the first adapted block is not even computed again
        return {component: tuple(names) for component, names in groups.items() if names}

    def _pretrained(self, starts: tuple[str, ...]) -> list[str]:
        lora = {*self._lora_names[0], *self._lora_names[1]}
        return [name for name, _ in self.named_parameters() if name.startswith(starts) and name not in lora]

    def origins(self) -> dict[str, str]:
        """The personal parameters that stand in the place of shared ones, each with that one's name."""
        if self.personal_copy is None:
            return {}
        copies = {"personal_copy": self.personal_copy, "personal_output_layers": self.personal_output_layers}
        return {f"{part}.{n}": o for part, own in copies.items() if own is not None for n, o in own.origins.items()}

    @property
    def prefix_shape(self) -> tuple[int, int, int]:
        """Shape of what `prefix` gives for one image: (h, w, d), or (3, S, S) where the encoder is trained."""
        if self.from_pixels:
            return (3, self.image_size, self.image_size)
        _, height, width, channels = positions(self.sam).shape
        return (int(height), int(width), int(channels) + (image_skip.FOLDED if self._has_image_skip else 0))

    @property
    def _has_image_skip(self) -> bool:
        return self.output_layers.image_skip is not None

    @torch.no_grad()
    def prefix(self, pixels: Tensor) -> Tensor:
        """What the frozen blocks before the first adapted one compute: pixels `[B, 3, S, S]` in 0..1 to tokens `[B, h, w, d]`.

        Where the output layers look at the image itself, it is folded into further channels. Image by image, so that the result
        depends on the image alone, to the bit, and may be kept. Where the encoder is trained there is no such block: then the pixels
        themselves are given back.
        """
        if self.from_pixels:
            return pixels
        return torch.cat([self._prefix_of_one(image[None]) for image in pixels.to(self.device)])

    def _prefix_of_one(self, pixels: Tensor) -> Tensor:
        tokens = embed_patches(self.sam, pixels.to(self.frozen_dtype))
        for block in self.sam.vision_encoder.layers[: self.first_adapted]:
            tokens = block(tokens)
        if not self._has_image_skip:
            return tokens
        return torch.cat([tokens, image_skip.fold(pixels, tokens.shape[1:3]).to(tokens.dtype)], dim=-1)  # type: ignore[arg-type]

    def from_prefix(
        self, tokens: Tensor, *, personal: bool = True, routings: dict[str, Routing] | None = None
    ) -> Tensor:
        """Class logits `[B, C, S/4, S/4]` from the frozen blocks' tokens `[B, h, w, d]`.

        Args:
            tokens: from `prefix`.
            personal: use the local part; without it this is the shared model.
            routings: receives, for each adapted block, where its router sent the tokens.
        """
        own = self._own_values() if personal else {}
        with swapped_parameters(self, own):
            tokens, seen = self._begin(tokens)
            for i in range(0 if self.from_pixels else self.first_adapted, len(self.sam.vision_encoder.layers)):
                experts = self.experts[str(i)] if personal and str(i) in self.experts else None
                adapters = _adapters(self.adapters, str(i))
                beside = _beside(experts, adapters, str(i), routings)
                over = None if adapters is None else adapters.after_attention
                tokens = self._block(i, own, tokens, beside, over)
            embedding = self.sam.vision_encoder.neck(tokens).float()
            return decode(self.sam, embedding, self.class_tokens, self.output_layers, seen)

    def _block(self, index: int, own: Mapping[str, Tensor], *given: Tensor | Callable[..., Tensor] | None) -> Tensor:
        """An encoder block's answer; where it is computed again in the backward pass the site's own values are in place once more."""
        block = self.sam.vision_encoder.layers[index]
        if not (self.recompute and torch.is_grad_enabled()):
            return block(*given)  # type: ignore[no-any-return]
        again = swapped_parameters(self, own)
        return checkpoint(block, *given, use_reentrant=False, context_fn=lambda: (nullcontext(), again))  # type: ignore[no-any-return]

    def _begin(self, given: Tensor) -> tuple[Tensor, Tensor | None]:
        """What `prefix` gave, as tokens for the adapted blocks and the image for the output layers."""
        seen, given = None, given.to(self.device)
        if self.from_pixels:
            tokens = embed_patches(self.sam, given)
            folded = image_skip.fold(given, tokens.shape[1:3])  # type: ignore[arg-type]
        else:
            width = vision_config(self.sam).hidden_size
            tokens, folded = given[..., :width], given[..., width:]
        if self._has_image_skip:
            seen = image_skip.unfold(folded)
        return tokens.to(self.frozen_dtype), seen

    def _own_values(self) -> dict[str, Tensor]:
        """The site's own values by the names of the shared ones in whose place they stand."""
        values: dict[str, Tensor] = {}
        for own in (self.personal_copy, self.norms, self.personal_output_layers):
            if own is not None:
                values |= own.values(self)
        if self.local_lora is not None:
            first = {name: self.get_parameter(name) for pair in self.local_lora.pairs.values() for name in pair}
            values |= self.local_lora.values({**first, **values})
        return values

    def forward(self, pixels: Tensor, *, personal: bool = True) -> Tensor:
        """Class logits `[B, C, S/4, S/4]` of pixels `[B, 3, S, S]` in 0..1."""
        return self.from_prefix(self.prefix(pixels), personal=personal)


def present(options: ModelOptions) -> frozenset[str]:
    """The components that a model with these options has."""
    optional = {
        "lora_a": options.lora,
        "lora_b": options.lora,
        "personal_output_layers": options.output_layers == "both",
        "experts": options.experts,
        "adapters": options.adapters,
        "norms": options.norms == "local",
        "local_lora": options.local_lora,
        "personal_copy": options.personal_copy,
        "encoder": options.train_encoder,
    }
    always = {"class_tokens", "output_layers", "decoder", "no_prompt"}
    return frozenset(always | {component for component, there in optional.items() if there})


_OWN = ("norms", "local_lora", "personal_copy")
_SAM_PARTS: Mapping[str, tuple[str, ...]] = {
    "encoder": ("sam.vision_encoder.",),
    # The decoder's other parts, its own output layers and the head that guesses an IoU, are not used without a prompt.
    "decoder": ("sam.mask_decoder.transformer.", "sam.mask_decoder.iou_token.", "sam.mask_decoder.mask_tokens."),
    "no_prompt": ("sam.prompt_encoder.no_mask_embed.",),
}


class _Beside:
    """Adds what experts and adapters make of the MLP's input to a block's output, noting where the tokens went."""

    def __init__(
        self, experts: nn.Module, adapters: BlockAdapters | None, block: str, routings: dict[str, Routing] | None
    ) -> None:
        self.experts, self.adapters, self.block, self.routings = experts, adapters, block, routings

    def __call__(self, onto: Tensor, normalised: Tensor) -> Tensor:
        added, routing = self.experts(onto, normalised)
        if self.routings is not None:
            self.routings[self.block] = routing
        return added if self.adapters is None else self.adapters.beside_mlp(added, normalised)


def _adapters(blocks: nn.ModuleDict, block: str) -> BlockAdapters | None:
    found = blocks[block] if block in blocks else None  # noqa: SIM401 - a ModuleDict has no get
    return found if isinstance(found, BlockAdapters) else None


def _beside(
    experts: nn.Module | None, adapters: BlockAdapters | None, block: str, routings: dict[str, Routing] | None
) -> Callable[[Tensor, Tensor], Tensor] | None:
    if experts is not None:
        return _Beside(experts, adapters, block, routings)
    return None if adapters is None else adapters.beside_mlp
