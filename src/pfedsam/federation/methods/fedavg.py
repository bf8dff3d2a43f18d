"""FedAvg on LoRA: LoRA, class tokens and output layers are trained by every site and averaged; nothing is personal.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017, with steps instead of
epochs, and AdamW's moments kept at the sites between rounds.
"""

from pfedsam.federation.methods.base import HEAD, Method, no_phases, place, plain, shared_training
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Placement


def placement(options: ModelOptions) -> Placement:
    """Everything that is trained is averaged."""
    return place(options, shared=("lora_a", "lora_b", *HEAD))


METHOD = Method(
    name="fedavg",
    summary="LoRA, class tokens and output layers averaged (McMahan et al., 2017); nothing is personal",
    adapt=plain,
    placement=placement,
    phases=shared_training,
    final=no_phases,
)
