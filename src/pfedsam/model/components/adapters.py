"""Adapters in the encoder's blocks, as Medical SAM Adapter places them (Wu et al., 2023, arXiv:2304.12620).

Each block has two bottlenecks: one after the attention, with a skip connection, and one beside the MLP, scaled by one half. They are used
as in FedFMS (Liu et al., MICCAI 2024), without the third, unused one for depth. Ours start at zero (`up`), so that the model starts as SAM;
those of FedFMS start at random.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pfedsam.core.options import Options
from pfedsam.model.components.base import AfterAttention, Assembly, BesideMlp, Component
from pfedsam.model.components.routing import Routing


class AdapterOptions(Options):
    """Size of the adapters."""

    ratio: float = Field(default=0.25, gt=0, le=4, description="Hidden units, as a fraction of the encoder's width.")
    scale: float = Field(default=0.5, gt=0, description="Weight of the adapter beside the MLP.")


class Bottleneck(nn.Module):
    """Linear layer down, GELU, linear layer up; `up` starts at zero."""

    def __init__(self, width: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(hidden, width, generator=generator) * width**-0.5)
        self.down_bias = nn.Parameter(torch.zeros(hidden))
        self.up = nn.Parameter(torch.zeros(width, hidden))
        self.up_bias = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """From tokens `[..., d]` to the values that are added to them, `[..., d]`."""
        down, down_bias, up, up_bias = (
            value.to(tokens.dtype) for value in (self.down, self.down_bias, self.up, self.up_bias)
        )
        return F.linear(F.gelu(F.linear(tokens, down, down_bias)), up, up_bias)


class BlockAdapters(nn.Module):
    """The two adapters of one encoder block."""

    def __init__(self, width: int, options: AdapterOptions, generator: torch.Generator) -> None:
        super().__init__()
        hidden = max(1, int(options.ratio * width))
        self.scale = options.scale
        self.attention = Bottleneck(width, hidden, generator)
        self.mlp = Bottleneck(width, hidden, generator)

    def after_attention(self, mixed: Tensor) -> Tensor:
        """The attention's output `[B, h, w, d]`, adapted."""
        return mixed + self.attention(mixed)  # type: ignore[no-any-return]

    def beside_mlp(self, onto: Tensor, normalised: Tensor) -> Tensor:
        """The block's output plus the adapter's output for the MLP's input; both `[B, h, w, d]`."""
        return onto + self.scale * self.mlp(normalised)  # type: ignore[no-any-return]


class Adapters(Component):
    """Two adapters in each adapted block, used by the shared and the personal model."""

    groups = ("adapters",)
    addition = True

    def __init__(self, options: AdapterOptions) -> None:
        """Adapters of this size."""
        self.options = options

    def attach(self, assembly: Assembly) -> dict[str, list[str]]:
        """The adapters of each adapted block."""
        width = assembly.backbone.width
        self._blocks = {str(i): BlockAdapters(width, self.options, assembly.generator) for i in assembly.adapted}
        return {"adapters": assembly.add("adapters", nn.ModuleDict(self._blocks))}

    def after_attention(self, block: int) -> AfterAttention | None:
        """The first adapter of a block."""
        found = self._blocks.get(str(block))
        return None if found is None else found.after_attention

    def beside_mlp(self, block: int, routings: dict[str, Routing] | None) -> BesideMlp | None:
        """The second adapter of a block."""
        found = self._blocks.get(str(block))
        return None if found is None else found.beside_mlp
