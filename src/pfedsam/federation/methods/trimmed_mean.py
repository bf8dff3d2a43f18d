"""Trimmed mean (Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018, arXiv:1803.01498, definition 2): robust to a few bad sites.

For every coordinate the server leaves out the largest and the smallest values, a share beta of the sites at each end, and takes the
plain mean of the rest, so that a site that sends anything at all moves no coordinate beyond what other sites sent. What is shared and
how sites train is our `fedavg`. Ours differs: parameters are averaged instead of gradients, once a round. As in the paper, sites are
not weighted by their cases, which a site says of itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import Field

from pfedsam.core.options import Options
from pfedsam.federation.methods import fedavg
from pfedsam.federation.methods.base import Method
from pfedsam.federation.server import ServerState, WeightedMean
from pfedsam.federation.update import Update

_ROUNDING = 1e-9
"""So that a share of 0.29 of 100 sites is 29 of them, which in floating point it is not."""


class TrimmedMeanOptions(Options):
    """The trimmed mean's own."""

    trimmed_share: float = Field(
        default=0.25,
        gt=0,
        lt=0.5,
        description="Beta: of a coordinate's values this share of the sites, rounded down, is left out at each end. It has to be one "
        "site at least, so 0.25 needs four sites.",
    )


@dataclass(frozen=True)
class TrimmedMeanStep(WeightedMean):
    """Definition 2 of the paper, over the sites' parameters."""

    own: TrimmedMeanOptions

    @property
    def least_updates(self) -> int:
        """As many as let one be left out at each end."""
        return math.ceil(1 / self.own.trimmed_share - _ROUNDING)

    def apply(self, state: ServerState, updates: Sequence[Update]) -> ServerState:
        """The mean of what is left of each coordinate; in float64, sorted, so that the order of the updates changes no bit."""
        trimmed = math.floor(self.own.trimmed_share * len(updates) + _ROUNDING)
        shared = {}
        for name, received in state.shared.items():
            values = torch.stack([update.tensors[name].double() for update in updates]).sort(dim=0).values
            shared[name] = values[trimmed : len(updates) - trimmed].mean(dim=0).to(received.dtype)
        return replace(state, round=state.round + 1, shared=shared)


def configure(own: TrimmedMeanOptions) -> Method:
    """The method with these options."""
    return replace(
        fedavg.METHOD,
        name="trimmed-mean",
        summary="fedavg with a trimmed mean of each coordinate (Yin et al., 2018), robust to bad sites; nothing is personal",
        server=TrimmedMeanStep(own),
        own=own,
        configure=configure,
    )


METHOD = configure(TrimmedMeanOptions())
