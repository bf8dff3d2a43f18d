"""The options of the model: the backbone and what is added to it."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pfedsam.core.options import Options
from pfedsam.model.components.adapters import AdapterOptions
from pfedsam.model.components.experts import ExpertOptions
from pfedsam.model.components.lora import MAX_RANK, LoraOptions
from pfedsam.model.components.output_layers import ImageSkipOptions
from pfedsam.model.numerics import Precision
from pfedsam.model.unet import UNetOptions


@dataclass(frozen=True)
class Addition:
    """Marks the option of a component that is added to the model."""

    off: object
    """The value of the option that leaves the component out."""


class ModelOptions(Options):
    """The backbone and what is added to it."""

    backbone: str = Field(
        default="sam-tiny-2",
        description="A shipped SAM (sam-tiny-2, or its first edition sam-tiny), a file of official weights (.pth), a transformers folder, "
        "or a hub name.",
    )
    image_size: int | None = Field(
        default=None,
        ge=32,
        le=4096,
        description="Side in pixels of the resized square images; empty: that of the backbone.",
    )
    adapt_last: int | None = Field(
        default=4,
        ge=1,
        description="Number of last encoder blocks that get LoRA and experts; empty: all. The outputs of the blocks before them are "
        "computed once for each view of an image and stored (prefix, data.augment.views).",
    )
    lora: LoraOptions | None = Field(
        default=LoraOptions(), description="The shared low-rank updates (LoRA); empty: none."
    )
    experts: Annotated[ExpertOptions | None, Addition(off=None)] = Field(
        default=ExpertOptions(), description="The local mixture of experts; empty: none."
    )
    precision: Precision = Field(
        default="float32",
        description="Precision of the encoder's frozen weights and of the products with them: float32, bfloat16 (half the memory; "
        "refused if the processor has no instructions for it), or auto (bfloat16 if it is fast). Trained parameters are always float32.",
    )
    output_layers: Literal["both", "shared", "local", "frozen"] = Field(
        default="both",
        description="Kind of the decoder's output layers: shared, local, frozen, or both (shared ones with a local difference).",
    )
    image_skip: ImageSkipOptions | None = Field(
        default=ImageSkipOptions(),
        description="The layers through which the output layers get the image itself (after HQ-SAM, Ke et al., 2023); empty: none.",
    )
    norms: Annotated[Literal["frozen", "local"], Addition(off="frozen")] = Field(
        default="frozen",
        description="local: the personal model has local normalisation layers in the adapted blocks, the neck, the decoder and the output "
        "layers.",
    )
    local_lora: Annotated[int | None, Addition(off=0)] = Field(
        default=0,
        ge=0,
        le=MAX_RANK,
        description="Rank of a second, local LoRA on the layers of the shared one; 0: none, except with feddpa, which always has one; "
        "empty: with pfedsam and feddpa the rank of the shared one, else none.",
    )
    personal_copy: Annotated[bool, Addition(off=False)] = Field(
        default=False,
        description="Whether the personal model has a local copy of LoRA and class tokens instead of the shared ones (set by ditto).",
    )
    adapters: Annotated[AdapterOptions | None, Addition(off=None)] = Field(
        default=None, description="Two adapters in each adapted block; empty: none (set by fedmsa)."
    )
    recompute: bool = Field(
        default=False,
        description="Whether the adapted blocks are recomputed in the backward pass instead of storing their activations: less memory, "
        "slower steps, the same results.",
    )
    unet: Annotated[UNetOptions | None, Addition(off=None)] = Field(
        default=None,
        description="A plain U-Net from random weights in place of SAM; empty: SAM (set by unet-local, unet-fedavg and unet-fedbn).",
    )
    train_encoder: Annotated[bool, Addition(off=False)] = Field(
        default=False,
        description="Whether SAM's whole encoder is trained; there are then no frozen features to cache (set by fedsam).",
    )

    @field_validator("image_skip", mode="before")
    @classmethod
    def _as_a_switch(cls, value: object) -> object:
        """Until version 0.2 the option was true, for two convolutions, or false; the stored configurations of such runs have it."""
        return {True: {"channels": None}, False: None}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _local_lora_beside_a_shared_one(self) -> "ModelOptions":
        if self.local_lora and not self.lora:
            raise ValueError("local_lora needs lora, but lora is empty; give both or neither")
        return self

    def without_additions(self) -> "ModelOptions":
        """The same options without all additions, and with a single set of output layers, shared unless they are frozen."""
        marks = {
            n: m for n, field in type(self).model_fields.items() for m in field.metadata if isinstance(m, Addition)
        }
        layers = "frozen" if self.output_layers == "frozen" else "shared"
        return self.model_copy(update={**{n: mark.off for n, mark in marks.items()}, "output_layers": layers})
