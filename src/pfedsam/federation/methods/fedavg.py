"""FedAvg on LoRA: every site trains LoRA, class tokens and output layers, and all of them are averaged; nothing is personal.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017. Ours counts steps instead of
epochs, and AdamW's moments stay at the sites between rounds.
"""

from pfedsam.federation.methods.base import HEAD, Method, no_phases, place, plain, shared_training
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Placement


def placement(options: ModelOptions) -> Placement:
    """All trained components are shared."""
    return place(options, shared=("lora_a", "lora_b", *HEAD))


METHOD = Method(
    name="fedavg",
    summary="LoRA, class tokens and output layers averaged (McMahan et al., 2017); nothing is personal",
    adapt=plain,
    placement=placement,
    phases=shared_training,
    final=no_phases,
)
