"""Trimmed mean (Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018, arXiv:1803.01498, definition 2), robust to faulty sites.

For every coordinate the server discards the largest and the smallest values, a share beta of the sites at each end, and takes the
unweighted mean of the rest. So a faulty site cannot move a coordinate beyond the values that other sites sent. Shared parameters and
training at the sites are those of our `fedavg`. Ours differs: parameters are averaged once per round instead of gradients. As in the
paper, sites are not weighted by their numbers of cases, which a faulty site could state wrongly.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import Field
from torch import Tensor

from pfedsam.core.options import Options
from pfedsam.federation.methods import fedavg
from pfedsam.federation.methods.base import Method
from pfedsam.federation.server import ServerState, WeightedMean
from pfedsam.federation.update import Update

_ROUNDING = 1e-9
"""Added before rounding down, so that a share of 0.29 of 100 sites gives 29; in floating point the product is slightly smaller."""


class TrimmedMeanOptions(Options):
    """Options of the trimmed mean."""

    trimmed_share: float = Field(
        default=0.25,
        gt=0,
        lt=0.5,
        description="Beta, the share of the sites, rounded down, whose values are discarded at each end of a coordinate. It must be at "
        "least one site, so 0.25 needs four sites.",
    )


@dataclass(frozen=True)
class TrimmedMeanStep(WeightedMean):
    """Definition 2 of the paper, applied to the sites' parameters."""

    own: TrimmedMeanOptions

    @property
    def least_updates(self) -> int:
        """The smallest number of updates for which at least one is discarded at each end."""
        return math.ceil(1 / self.own.trimmed_share - _ROUNDING)

    def apply(self, state: ServerState, updates: Sequence[Update]) -> ServerState:
        """The mean of the remaining values of each coordinate, in float64 and sorted, so that the order of the updates has no effect."""
        shared = {}
        for name, received in state.shared.items():
            values = torch.stack([update.tensors[name].double() for update in updates])
            shared[name] = self.combine(values, [1.0] * len(updates)).to(received.dtype)
        return replace(state, round=state.round + 1, shared=shared)

    def combine(self, values: Tensor, weights: Sequence[float]) -> Tensor:
        """The trimmed mean; the weights have no effect."""
        trimmed = math.floor(self.own.trimmed_share * len(values) + _ROUNDING)
        return values.sort(dim=0).values[trimmed : len(values) - trimmed].mean(dim=0)


def configure(own: TrimmedMeanOptions) -> Method:
    """The trimmed mean with these options."""
    return replace(
        fedavg.METHOD,
        name="trimmed-mean",
        summary="fedavg with a trimmed mean of each coordinate (Yin et al., 2018), robust to faulty sites; nothing is personal",
        server=TrimmedMeanStep(own),
        own=own,
        configure=configure,
    )


METHOD = configure(TrimmedMeanOptions())
