"""FedProx on LoRA (Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020): FedAvg with a proximal term.

Each site adds mu / 2 ||w - w_t||^2 over the shared parameters to its loss (eq. 2), where w_t are the received parameters. Ours differs: the
shared parameters are those of our `fedavg`; AdamW instead of SGD, which also rescales the gradient of the proximal term; every site does
all its steps.
"""

from dataclasses import replace

from pydantic import Field

from pfedsam.core.options import Options
from pfedsam.federation.methods import fedavg
from pfedsam.federation.methods.base import Method, shared_training
from pfedsam.training.options import TrainingOptions
from pfedsam.training.phases import PhaseSpec


class FedProxOptions(Options):
    """Options of FedProx."""

    mu: float = Field(
        default=0.01,
        ge=0,
        description="Mu, the weight of the proximal term, which penalises the distance from the received parameters.",
    )


def configure(own: FedProxOptions) -> Method:
    """FedProx with these options."""

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
