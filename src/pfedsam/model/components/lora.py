"""LoRA (Hu et al., 2022): the shared low-rank updates, added to the backbone by `peft`.

They are on the attention projections of the adapted encoder blocks (SAM's fused `qkv` and, as options, `proj` and the MLP) and on the
linear layers of the mask decoder's transformer.
"""

from pathlib import Path
from typing import Final

import torch
from peft import LoraConfig, inject_adapter_in_model
from pydantic import Field
from torch import nn

from pfedsam.core import tensors
from pfedsam.core.options import Options
from pfedsam.core.tensors import NamedTensors
from pfedsam.model.components.base import NETWORK, Assembly, Component
from pfedsam.model.lora_linear import LoraLinear

MAX_RANK: Final = 1024


class LoraOptions(Options):
    """Rank, scale and layers of the shared low-rank updates."""

    rank: int = Field(default=4, ge=1, le=MAX_RANK, description="Rank: the number of columns of B and of rows of A.")
    alpha: float = Field(default=4.0, gt=0, description="The update is scaled by alpha / rank.")
    output_projection: bool = Field(
        default=False, description="Whether to adapt also the output projection of the encoder's attention."
    )
    mlp: bool = Field(default=False, description="Whether to adapt also the MLP of the encoder's adapted blocks.")
    decoder: bool = Field(
        default=True, description="Whether to adapt also the linear layers of the mask decoder's transformer."
    )


class Lora(Component):
    """The low-rank updates; A and B are separate groups, because some methods average only one of them."""

    groups = ("lora_a", "lora_b")

    def __init__(self, options: LoraOptions) -> None:
        """Updates of this rank and scale."""
        self.options = options

    def attach(self, assembly: Assembly) -> dict[str, list[str]]:
        """The updates of the adapted encoder blocks and of the decoder."""
        options = self.options
        targets = assembly.backbone.lora_targets(
            assembly.first_adapted,
            output_projection=options.output_projection,
            mlp=options.mlp,
            decoder=options.decoder,
        )
        a_names, b_names = add_lora(assembly.backbone.network, options, targets, assembly.generator)
        return {
            "lora_a": [f"{NETWORK}.{name}" for name in a_names],
            "lora_b": [f"{NETWORK}.{name}" for name in b_names],
        }


def add_lora(
    network: nn.Module, options: LoraOptions, targets: list[str], generator: torch.Generator
) -> tuple[list[str], list[str]]:
    """Add LoRA to the linear layers `targets` of a network, in place; B starts at zero, so that the network's output does not change.

    Returns:
        The names, in `network`, of all A matrices and of all B matrices.
    """
    config = _config(options, targets)
    config._register_custom_module({nn.Linear: LoraLinear})
    inject_adapter_in_model(config, network)
    parameters = dict(network.named_parameters())
    a_names = [name for name in parameters if ".lora_A." in name]
    with torch.no_grad():
        for name in a_names:
            # The same distribution as in peft (Kaiming uniform with a = sqrt(5)), but drawn from our generator.
            bound = parameters[name].shape[1] ** -0.5
            parameters[name].uniform_(-bound, bound, generator=generator)
    return a_names, [name.replace(".lora_A.", ".lora_B.") for name in a_names]


def save_adapter(folder: Path, options: LoraOptions, lora: NamedTensors) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`, which `peft.PeftModel.from_pretrained` reads over the same network.

    Args:
        folder: an existing folder.
        options: the options of `lora`.
        lora: the matrices A and B by their names in the network (`<layer>.lora_A.default.weight`).
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
