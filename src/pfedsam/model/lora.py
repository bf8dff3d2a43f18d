"""LoRA (Hu et al., 2022): the low-rank updates that sites share, put into SAM by `peft`.

On the attention projections of the adapted encoder blocks (SAM's fused `qkv`, and `proj` when asked) and on the linear layers
of the mask decoder's transformer.
"""

from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from pydantic import Field
from torch import nn
from transformers import SamModel

from pfedsam.core import tensors
from pfedsam.core.options import Options
from pfedsam.core.tensors import NamedTensors
from pfedsam.model.lora_linear import LoraLinear


class LoraOptions(Options):
    """Rank, scale and place of the shared low-rank updates."""

    rank: int = Field(default=4, ge=1, description="Columns of B, rows of A.")
    alpha: float = Field(default=4.0, gt=0, description="The update is scaled by alpha / rank.")
    output_projection: bool = Field(
        default=False, description="Also adapt the output projection of the encoder's attention."
    )
    decoder: bool = Field(default=True, description="Also adapt the linear layers of the mask decoder's transformer.")


def target_names(model: SamModel, options: LoraOptions, first_block: int) -> list[str]:
    """The names of the linear layers that get an update, encoder blocks from `first_block` on."""
    parts = ("qkv", "proj") if options.output_projection else ("qkv",)
    depth = len(model.vision_encoder.layers)
    names = [f"vision_encoder.layers.{i}.attn.{part}" for i in range(first_block, depth) for part in parts]
    if options.decoder:
        transformer = model.mask_decoder.transformer.named_modules(prefix="mask_decoder.transformer")
        names += [name for name, module in transformer if isinstance(module, nn.Linear)]
    return names


def add_lora(
    model: SamModel, options: LoraOptions, first_block: int, generator: torch.Generator
) -> tuple[list[str], list[str]]:
    """Put LoRA into `model` in place; B starts at zero, so the model computes what it did before.

    Returns:
        The names, in `model`, of all A matrices and of all B matrices.
    """
    config = _config(options, target_names(model, options, first_block))
    config._register_custom_module({nn.Linear: LoraLinear})
    inject_adapter_in_model(config, model)
    a_names = [name for name, _ in model.named_parameters() if ".lora_A." in name]
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in a_names:
            # As peft does (Kaiming uniform with a = sqrt(5)), but from our generator.
            bound = parameters[name].shape[1] ** -0.5
            parameters[name].uniform_(-bound, bound, generator=generator)
    return a_names, [name.replace(".lora_A.", ".lora_B.") for name in a_names]


def save_adapter(folder: Path, options: LoraOptions, lora: NamedTensors) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`, which `peft.PeftModel.from_pretrained` reads over a `SamModel`.

    Args:
        folder: is there already.
        options: the rank and scale that `lora` was made with.
        lora: A and B by their names in the `SamModel` (`<layer>.lora_A.default.weight`).
    """
    layers = sorted({name.split(".lora_")[0] for name in lora})
    _config(options, layers).save_pretrained(str(folder))
    tensors.save(
        folder / "adapter_model.safetensors",
        {f"base_model.model.{name.replace('.default.', '.')}": value for name, value in lora.items()},
        {"format": "pt"},
    )


def _config(options: LoraOptions, layers: list[str]) -> LoraConfig:
    return LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]  # peft's annotation says int; it only divides by it
        target_modules=layers,
        lora_dropout=0.0,
    )
