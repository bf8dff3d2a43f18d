"""The options of the model: the backbone and what is added to it."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pfedsam.core.options import Options
from pfedsam.model.components.adapters import AdapterOptions
from pfedsam.model.components.experts import ExpertOptions
from pfedsam.model.components.lora import LoraOptions
from pfedsam.model.numerics import Precision


@dataclass(frozen=True)
class Addition:
    """Marks the option of a part that is added to the model."""

    off: object
    """The value that leaves the part out."""


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
    experts: Annotated[ExpertOptions | None, Addition(off=None)] = Field(
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
    norms: Annotated[Literal["frozen", "local"], Addition(off="frozen")] = Field(
        default="frozen",
        description="local: the personal model has LayerNorms of the site's own in the adapted blocks, neck and decoder.",
    )
    local_lora: Annotated[int | None, Addition(off=None)] = Field(
        default=None,
        ge=0,
        description="Rank of a second LoRA, local, on the layers of the shared one; 0 = none; empty = the method's choice (pfedsam and "
        "feddpa: the shared one's rank; others: none).",
    )
    personal_copy: Annotated[bool, Addition(off=False)] = Field(
        default=False,
        description="The personal model has its own copy of LoRA and class tokens in place of the shared ones (ditto sets it).",
    )
    adapters: Annotated[AdapterOptions | None, Addition(off=None)] = Field(
        default=None, description="Two adapters in each adapted block; empty = none (fedmsa sets it)."
    )
    recompute: bool = Field(
        default=False,
        description="Compute the adapted blocks once more on the way back instead of keeping what they computed: less memory, slower "
        "steps, the same results.",
    )
    train_encoder: Annotated[bool, Addition(off=False)] = Field(
        default=False,
        description="Train SAM's encoder itself, from the pixels on; nothing is cached then (fedsam sets it).",
    )

    @model_validator(mode="after")
    def _local_lora_beside_a_shared_one(self) -> "ModelOptions":
        if self.local_lora and not self.lora:
            raise ValueError("local_lora lies beside lora, but lora is empty; give both or neither")
        return self

    def without_additions(self) -> "ModelOptions":
        """The same without all that is marked as an addition, and with one set of output layers, shared unless they are frozen."""
        marks = {
            n: m for n, field in type(self).model_fields.items() for m in field.metadata if isinstance(m, Addition)
        }
        layers = "frozen" if self.output_layers == "frozen" else "shared"
        return self.model_copy(update={**{n: mark.off for n, mark in marks.items()}, "output_layers": layers})
