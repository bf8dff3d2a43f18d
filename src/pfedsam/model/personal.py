"""The personal SAM: frozen SAM, shared low-rank updates, and what a site keeps to itself, in one module.

With `personal=False` the local part is switched off and the module is the *shared model*: SAM + shared parameters, one for the
whole federation. Teacher and student of the distillation are therefore the same module, its weights resident once.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import SamModel

from pfedsam.core.errors import OptionError
from pfedsam.core.options import Options
from pfedsam.model.backbone import positions, vision_config
from pfedsam.model.encoder import embed_patches, use_fast_blocks
from pfedsam.model.head import OutputLayers, class_tokens, decode
from pfedsam.model.lora import LoraOptions, add_lora
from pfedsam.model.moe import ExpertOptions, LMoE, Routing
from pfedsam.model.numerics import Precision, frozen_dtype


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
    lora: LoraOptions = Field(default=LoraOptions(), description="The shared low-rank updates.")
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


class PersonalSam(nn.Module):
    """SAM with shared and local parameters; gives one mask per class without a prompt.

    Background has logit 0 and classes exclude each other: probabilities are the softmax over `[0, z_1 .. z_C]`.
    """

    def __init__(self, sam: SamModel, options: ModelOptions, classes: int, generator: torch.Generator) -> None:
        """Take over `sam` (it is changed in place) for so many classes.

        Raises:
            OptionError: when there are fewer encoder blocks than are to be adapted, or bfloat16 is wanted of a processor without it.
        """
        super().__init__()
        depth = len(sam.vision_encoder.layers)
        adapted = depth if options.adapt_last is None else options.adapt_last
        if adapted > depth:
            raise OptionError(
                f"model.adapt_last is {adapted}, but this backbone has {depth} encoder blocks: give 1 to {depth}."
            )
        self.first_adapted = depth - adapted
        self.classes = classes
        self.sam = use_fast_blocks(sam).requires_grad_(False)
        self.class_tokens = class_tokens(sam.mask_decoder, classes)
        self.output_layers = OutputLayers(sam.mask_decoder, classes)
        self.personal_output_layers = (
            OutputLayers(sam.mask_decoder, classes) if options.output_layers == "both" else None
        )
        self._lora_names = add_lora(sam, options.lora, self.first_adapted, generator)
        width = vision_config(sam).hidden_size
        self.experts = nn.ModuleDict(
            {str(i): LMoE(width, options.experts, generator) for i in range(self.first_adapted, depth)}
            if options.experts
            else {}
        )
        self.frozen_dtype = torch.float32
        self.hold_frozen_encoder_in(frozen_dtype(options.precision))

    def hold_frozen_encoder_in(self, dtype: torch.dtype) -> None:
        """Convert what is never trained of the encoder; the decoder, a few percent of the work, stays in float32."""
        self.frozen_dtype = dtype
        trained = {name for names in self.components().values() for name in names}
        for name, parameter in self.named_parameters():
            if name.startswith("sam.vision_encoder.") and name not in trained:
                parameter.data = parameter.data.to(dtype)

    @property
    def image_size(self) -> int:
        """Side S in pixels of the square input."""
        return int(vision_config(self.sam).image_size)  # type: ignore[arg-type]

    def components(self) -> dict[str, tuple[str, ...]]:
        """Named groups of the parameters that can be trained; `Partition` places them."""
        a_names, b_names = ([f"sam.{name}" for name in names] for names in self._lora_names)
        groups = {"lora_a": a_names, "lora_b": b_names, "class_tokens": ["class_tokens"]}
        for component in ("output_layers", "personal_output_layers", "experts"):
            module = getattr(self, component)
            if module is not None and any(True for _ in module.parameters()):
                groups[component] = [f"{component}.{name}" for name, _ in module.named_parameters()]
        return {component: tuple(names) for component, names in groups.items()}

    @property
    def prefix_shape(self) -> tuple[int, int, int]:
        """(h, w, d) of one image's tokens."""
        _, height, width, channels = positions(self.sam).shape
        return (int(height), int(width), int(channels))

    @torch.no_grad()
    def prefix(self, pixels: Tensor) -> Tensor:
        """What the frozen blocks before the first adapted one compute: pixels `[B, 3, S, S]` in 0..1 to tokens `[B, h, w, d]`.

        Image by image, so that the result depends on the image alone, to the bit, and may be kept.
        """
        return torch.cat([self._prefix_of_one(image[None]) for image in pixels])

    def _prefix_of_one(self, pixels: Tensor) -> Tensor:
        tokens = embed_patches(self.sam, pixels.to(self.frozen_dtype))
        for block in self.sam.vision_encoder.layers[: self.first_adapted]:
            tokens = block(tokens)
        return tokens

    def from_prefix(
        self, tokens: Tensor, *, personal: bool = True, routings: dict[str, Routing] | None = None
    ) -> Tensor:
        """Class logits `[B, C, S/4, S/4]` from the frozen blocks' tokens `[B, h, w, d]`.

        Args:
            tokens: from `prefix`.
            personal: use the local part; without it this is the shared model.
            routings: receives, for each adapted block, where its router sent the tokens.
        """
        tokens = tokens.to(self.frozen_dtype)
        for i in range(self.first_adapted, len(self.sam.vision_encoder.layers)):
            experts = self.experts[str(i)] if personal and self.experts else None
            tokens = self.sam.vision_encoder.layers[i](tokens, _beside(experts, str(i), routings))
        embedding = self.sam.vision_encoder.neck(tokens).float()
        own = self.personal_output_layers if personal else None
        return decode(self.sam, embedding, self.class_tokens, own or self.output_layers)

    def forward(self, pixels: Tensor, *, personal: bool = True) -> Tensor:
        """Class logits `[B, C, S/4, S/4]` of pixels `[B, 3, S, S]` in 0..1."""
        return self.from_prefix(self.prefix(pixels), personal=personal)


class _Beside:
    """What experts add to a block's MLP, noting where the tokens went."""

    def __init__(self, experts: nn.Module, block: str, routings: dict[str, Routing] | None) -> None:
        self.experts, self.block, self.routings = experts, block, routings

    def __call__(self, tokens: Tensor) -> Tensor:
        added, routing = self.experts(tokens)
        if self.routings is not None:
            self.routings[self.block] = routing
        return added  # type: ignore[no-any-return]


def _beside(experts: nn.Module | None, block: str, routings: dict[str, Routing] | None) -> _Beside | None:
    return None if experts is None else _Beside(experts, block, routings)
