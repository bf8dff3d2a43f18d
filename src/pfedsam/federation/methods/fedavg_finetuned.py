"""FedAvg, then local fine-tuning: after the last aggregation each site trains its own copy of the averaged parameters alone.

The simplest method with a personal model, and often a strong one (Cheng et al., "Fine-tuning is Fine in Federated Learning",
arXiv:2108.07313; Collins et al., "FedAvg with Fine Tuning: Local Updates Lead to Representation Learning", NeurIPS 2022).
"""

from dataclasses import replace

from pfedsam.federation.methods import fedavg
from pfedsam.federation.methods.base import fine_tuning, shared_training
from pfedsam.training.options import TrainingOptions
from pfedsam.training.phases import PhaseSpec


def final(options: TrainingOptions) -> tuple[PhaseSpec, ...]:
    """Local fine-tuning of all parameters."""
    return fine_tuning(options, shared_training(options)[0])


METHOD = replace(
    fedavg.METHOD,
    name="fedavg-finetuned",
    summary="fedavg, and after the last aggregation each site trains its own copy of all parameters alone",
    final=final,
)
