"""FFA-LoRA (Sun et al., "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024, arXiv:2403.12313): A frozen, B averaged.

A is drawn once from the run's seed and is equal at every site, so that the mean of the products BA equals the product of the mean of B with
A. Ours differs: class tokens and output layers are trained and averaged with B, because they have to learn the classes; no differential
privacy.
"""

from dataclasses import replace

from pfedsam.federation.methods import fedavg
from pfedsam.federation.methods.base import HEAD, place
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Placement


def placement(options: ModelOptions) -> Placement:
    """LoRA's B and the head are shared; A is frozen."""
    return place(options, shared=("lora_b", *HEAD))


METHOD = replace(
    fedavg.METHOD,
    name="ffa-lora",
    summary="LoRA's A frozen and equal everywhere, B and the head averaged (Sun et al., 2024); nothing is personal",
    placement=placement,
)
