"""FFA-LoRA (Sun et al., "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024, arXiv:2403.12313): A frozen, B averaged.

A is drawn once from the run's seed and is equal at every site, so that the mean of the products BA is the product of the mean of B. Ours
differs: the head has to learn the classes, so class tokens and output layers are trained and averaged with B; no differential privacy.
"""

from dataclasses import replace

from pfedsam.federation.methods import fedavg
from pfedsam.federation.methods.base import HEAD, place
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Placement


def placement(options: ModelOptions) -> Placement:
    """B and the head are averaged; A is not trained."""
    return place(options, shared=("lora_b", *HEAD))


METHOD = replace(
    fedavg.METHOD,
    name="ffa-lora",
    summary="LoRA's A frozen and equal everywhere, B and the head averaged (Sun et al., 2024); nothing is personal",
    placement=placement,
)
