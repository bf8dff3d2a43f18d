"""FedAdam (Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv:2003.00295, algorithm 2): Adam at the server, over the rounds.

The mean of the sites' changes, Delta_t, is taken as a gradient: m_t = beta1 m_{t-1} + (1 - beta1) Delta_t,
v_t = beta2 v_{t-1} + (1 - beta2) Delta_t^2, x_{t+1} = x_t + eta m_t / (sqrt(v_t) + tau), from m_{-1} = 0 and v_{-1} = tau^2, without
bias correction, as in the paper. Shared parameters and training at the sites are those of our `fedavg`. Ours differs: sites are weighted by
their training cases, and they train with AdamW instead of SGD. The defaults of beta1, beta2 and tau are the paper's; eta was not tuned.
"""

import math
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


class FedAdamOptions(Options):
    """Options of FedAdam."""

    learning_rate: float = Field(default=0.01, gt=0, description="Eta, the server's learning rate.")
    beta1: float = Field(
        default=0.9,
        ge=0,
        lt=1,
        description="Decay rate of the first moment: the share of the mean change of earlier rounds that is kept.",
    )
    beta2: float = Field(
        default=0.99,
        ge=0,
        lt=1,
        description="Decay rate of the second moment: the share of the squared mean change that is kept.",
    )
    tau: float = Field(
        default=1e-3,
        gt=0,
        description="Tau, the adaptivity: values with changes far below it are scaled down, and none is scaled up by more than 1 / tau.",
    )


@dataclass(frozen=True)
class FedAdamStep(WeightedMean):
    """The server's step of algorithm 2; the moments are stored in float64 as `m:<parameter>` and `v:<parameter>`."""

    own: FedAdamOptions

    def init(self, shared: NamedTensors) -> ServerState:
        """The initial state, with first moment 0 and second moment tau^2."""
        m = {f"m:{name}": torch.zeros_like(value, dtype=torch.float64) for name, value in shared.items()}
        v = {
            f"v:{name}": torch.full_like(value, self.own.tau**2, dtype=torch.float64) for name, value in shared.items()
        }
        return ServerState(0, shared, m | v)

    def apply(self, state: ServerState, updates: Sequence[Update]) -> ServerState:
        """One step of Adam along the weighted mean of the sites' changes."""
        own, mean = self.own, weighted_mean(updates)
        shared: dict[str, Tensor] = {}
        memory: dict[str, Tensor] = {}
        for name, received in state.shared.items():
            change = mean[name].double() - received.double()
            m = own.beta1 * state.memory[f"m:{name}"] + (1 - own.beta1) * change
            v = own.beta2 * state.memory[f"v:{name}"] + (1 - own.beta2) * change.square()
            shared[name] = (received.double() + own.learning_rate * m / (v.sqrt() + own.tau)).to(received.dtype)
            memory |= {f"m:{name}": m, f"v:{name}": v}
        return ServerState(state.round + 1, shared, memory)

    def largest_change(self, of_a_site: float, values: int) -> float:
        """The bound by Cauchy and Schwarz: |m| / sqrt(v) <= (1 - beta1) / sqrt((1 - beta2) (1 - beta1^2 / beta2)) for every value.

        It holds if beta1^2 < beta2. The other bound is the norm of m, which is at most that of a site's change, divided by tau.
        """
        own = self.own
        if own.beta1**2 >= own.beta2:
            return max(of_a_site, own.learning_rate * of_a_site / own.tau)
        most = (1 - own.beta1) / math.sqrt((1 - own.beta2) * (1 - own.beta1**2 / own.beta2))
        return max(of_a_site, own.learning_rate * most * math.sqrt(max(1, values)))


def configure(own: FedAdamOptions) -> Method:
    """FedAdam with these options."""
    return replace(
        fedavg.METHOD,
        name="fedadam",
        summary="fedavg with Adam at the server (Reddi et al., 2021); nothing is personal",
        server=FedAdamStep(own),
        own=own,
        configure=configure,
    )


METHOD = configure(FedAdamOptions())
