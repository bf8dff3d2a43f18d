"""FedSA-LoRA (Guo et al., "Selective Aggregation for Low-Rank Adaptation in Federated Learning", ICLR 2025, arXiv:2410.01463).

A and B are both trained, only A is averaged: it is found to hold what is general, B what is a site's own. Ours differs: there is
a head to be trained, class tokens and output layers; it stays with B, so that what travels is what the paper averages and no more.
"""

from pfedsam.federation.methods.base import HEAD, Method, joint_training, local_end, place, plain
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Placement


def adapt(options: ModelOptions) -> ModelOptions:
    """The output layers are the site's own."""
    options = plain(options)
    return options if options.output_layers == "frozen" else options.model_copy(update={"output_layers": "local"})


def placement(options: ModelOptions) -> Placement:
    """A travels, all else stays."""
    return place(options, shared=("lora_a",), local=("lora_b", *HEAD))


METHOD = Method(
    name="fedsa-lora",
    summary="LoRA's A averaged; B, class tokens and output layers local (Guo et al., 2025)",
    adapt=adapt,
    placement=placement,
    phases=joint_training,
    final=local_end,
)
