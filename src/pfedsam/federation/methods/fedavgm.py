"""FedAvgM (Hsu et al., "Measuring the Effects of Non-Identical Data Distribution", 2019, arXiv:1909.06335): momentum at the server.

The mean of the sites' changes, Delta_t, is added to a velocity: v_t = beta v_{t-1} + Delta_t, x_{t+1} = x_t + v_t, from v_{-1} = 0. With
beta = 0 this is FedAvg. Shared parameters and training at the sites are those of our `fedavg`. Ours differs: sites train with AdamW instead
of SGD and keep its moments. Beta is 0.5 instead of the paper's 0.9; other values were not tried (docs/decisions/0029).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import Field
from torch import Tensor

from pfedsam.core.options import Options
from pfedsam.core.tensors import NamedTensors
from pfedsam.federation.aggregation import weighted_mean
from pfedsam.federation.methods import fedavg
from pfedsam.federation.methods.base import Method
from pfedsam.federation.server import ServerState, WeightedMean
from pfedsam.federation.update import Update


class FedAvgMOptions(Options):
    """Options of FedAvgM."""

    momentum: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="Beta, the share of the last round's change of the shared parameters that is added to the mean change of a round.",
    )


@dataclass(frozen=True)
class MomentumStep(WeightedMean):
    """The server's step of FedAvgM; the velocity is stored in float64 as `v:<parameter>`."""

    momentum: float

    def init(self, shared: NamedTensors) -> ServerState:
        """The initial state, with velocity 0."""
        velocity = {f"v:{name}": torch.zeros_like(value, dtype=torch.float64) for name, value in shared.items()}
        return ServerState(0, shared, velocity)

    def apply(self, state: ServerState, updates: Sequence[Update]) -> ServerState:
        """One step along the weighted mean of the sites' changes and the changes of earlier rounds."""
        mean = weighted_mean(updates)
        shared: dict[str, Tensor] = {}
        memory: dict[str, Tensor] = {}
        for name, received in state.shared.items():
            change = mean[name].double() - received.double()
            velocity = self.momentum * state.memory[f"v:{name}"] + change
            shared[name] = (received.double() + velocity).to(received.dtype)
            memory[f"v:{name}"] = velocity
        return ServerState(state.round + 1, shared, memory)

    def largest_change(self, of_a_site: float, values: int) -> float:
        """The sum of all earlier changes, each multiplied by the momentum once for every round since: a geometric series."""
        return of_a_site / (1 - self.momentum)


def configure(own: FedAvgMOptions) -> Method:
    """FedAvgM with these options."""
    return replace(
        fedavg.METHOD,
        name="fedavgm",
        summary="fedavg with momentum at the server (Hsu et al., 2019); nothing is personal",
        server=MomentumStep(own.momentum),
        own=own,
        configure=configure,
    )


METHOD = configure(FedAvgMOptions())
