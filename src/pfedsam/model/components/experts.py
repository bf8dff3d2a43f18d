"""L-MoE: the mixture of experts that is local to a site (design after Wang et al., arXiv:2509.15638; our reading, docs/method.md).

Beside the MLP of an encoder block: y = MLP(h) + sum_e g_e(h) E_e(h), with E_e a bottleneck adapter (down, GELU, up; Houlsby et
al., 2019) and g the softmax of a linear router, per token, of which the k largest are kept (Fedus et al., 2021, for k = 1).
The gates are not renormalised, so that the router also learns when k = 1.
"""

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from pfedsam.core.options import Options
from pfedsam.model.components.base import Assembly, BesideMlp, Component
from pfedsam.model.components.routing import Routing


class ExpertOptions(Options):
    """Size and routing of the local mixture of experts."""

    count: int = Field(default=4, ge=1, le=64, description="Number of experts beside each adapted block.")
    width: int = Field(default=16, ge=1, le=1024, description="Number of hidden units of one expert.")
    top_k: int = Field(default=2, ge=1, description="Number of experts used per token, at most `count`.")
    balance: float = Field(
        default=0.01, ge=0, description="Weight of the load-balancing term (Fedus et al., 2021, eq. 4)."
    )

    @model_validator(mode="after")
    def _top_k_within_count(self) -> "ExpertOptions":
        if self.top_k > self.count:
            raise ValueError(f"top_k is {self.top_k}, but there are only {self.count} experts; give 1 to {self.count}")
        return self


class LMoE(nn.Module):
    """Experts and router of one block, computed as one dense product over all experts with masked gates.

    The experts' matrices are kept concatenated (E experts of width b: `down` is `[E * b, d]`, `up` is `[d, E * b]`) and the gate
    multiplies the hidden units. This gives the same result as a loop over the selected experts, with two matrix products and without
    gathering tokens. `up` starts at zero, so that the personal model of a new site starts as the shared model.
    """

    def __init__(self, width: int, options: ExpertOptions, generator: torch.Generator) -> None:
        super().__init__()
        hidden = options.count * options.width
        self.top_k, self.expert_width = options.top_k, options.width
        self.router = nn.Parameter(torch.randn(options.count, width, generator=generator) * 0.02)
        self.down = nn.Parameter(torch.randn(hidden, width, generator=generator) * width**-0.5)
        self.down_bias = nn.Parameter(torch.zeros(hidden))
        self.up = nn.Parameter(torch.zeros(width, hidden))

    def forward(self, onto: Tensor, tokens: Tensor) -> tuple[Tensor, Routing]:
        """The sum of `onto` and the experts' output for the tokens, all `[..., d]`, and the routing.

        The sum is part of the last product, which saves one pass over the tokens, forward and backward. The router computes in float32 for
        any precision of the tokens, so that rounding does not decide which k experts are selected.
        """
        probabilities = F.linear(tokens.float(), self.router).softmax(dim=-1)
        best = probabilities.topk(self.top_k, dim=-1).indices
        selected = torch.zeros_like(probabilities, dtype=torch.bool).scatter_(-1, best, True)
        gates = (probabilities * selected).repeat_interleave(self.expert_width, dim=-1)
        down, bias, up, gates = (value.to(tokens.dtype) for value in (self.down, self.down_bias, self.up, gates))
        hidden = F.gelu(F.linear(tokens, down, bias))
        gated = (hidden * gates).view(-1, up.shape[1])
        added = torch.addmm(onto.reshape(-1, up.shape[0]), gated, up.t())
        return added.view(onto.shape), Routing(probabilities, selected)


class Experts(Component):
    """A local L-MoE beside the MLP of each adapted block."""

    groups = ("experts",)
    local_only = True
    addition = True

    def __init__(self, options: ExpertOptions) -> None:
        """Experts of this number and size."""
        self.options = options

    def attach(self, assembly: Assembly) -> dict[str, list[str]]:
        """Experts and a router for each adapted block."""
        width = assembly.backbone.width
        self._blocks = {str(i): LMoE(width, self.options, assembly.generator) for i in assembly.adapted}
        return {"experts": assembly.add("experts", nn.ModuleDict(self._blocks))}

    def beside_mlp(self, block: int, routings: dict[str, Routing] | None) -> BesideMlp | None:
        """The function that adds the experts' output for the MLP's input to the block's output `[B, h, w, d]`; it fills `routings`."""
        experts = self._blocks.get(str(block))
        if experts is None:
            return None

        def add(onto: Tensor, normalised: Tensor) -> Tensor:
            """The sum of `onto` and the experts' output for `normalised`, both `[B, h, w, d]`."""
            added, routing = experts(onto, normalised)
            if routings is not None:
                routings[str(block)] = routing
            return added  # type: ignore[no-any-return]

        return add

    def routers(self) -> dict[str, int]:
        """Encoder block with experts -> their number."""
        return dict.fromkeys(self._blocks, self.options.count)
