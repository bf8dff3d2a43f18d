"""FedProx on LoRA (Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020): FedAvg with a pull to what was received.

Each site adds mu / 2 ||w - w_t||^2 over the shared parameters to its loss (eq. 2). Ours differs: what is averaged is what our `fedavg`
averages; AdamW instead of SGD, so that the pull passes through its scaling; every site does all its steps.
"""

from dataclasses import replace

from pydantic import Field

from pfedsam.core.options import Options
from pfedsam.federation.methods import fedavg
from pfedsam.federation.methods.base import Method, shared_training
from pfedsam.training.options import TrainingOptions
from pfedsam.training.phases import PhaseSpec


class FedProxOptions(Options):
    """FedProx's own."""

    mu: float = Field(default=0.01, ge=0, description="Weight of the pull to the received parameters.")


def configure(own: FedProxOptions) -> Method:
    """The method with these options."""

    def phases(options: TrainingOptions) -> tuple[PhaseSpec, ...]:
        """FedAvg's phase with the proximal term."""
        return tuple(replace(phase, proximal=own.mu) for phase in shared_training(options))

    return replace(
        fedavg.METHOD,
        name="fedprox",
        summary="fedavg with a proximal term to the received parameters (Li et al., 2020); nothing is personal",
        phases=phases,
        own=own,
        configure=configure,
    )


METHOD = configure(FedProxOptions())
