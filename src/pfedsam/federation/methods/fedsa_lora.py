"""FedSA-LoRA (Guo et al., "Selective Aggregation for Low-Rank Adaptation in Federated Learning", ICLR 2025, arXiv:2410.01463).

A and B are both trained, but only A is averaged: the paper finds that A learns general and B site-specific knowledge. Ours differs: a
segmentation head (class tokens and output layers) has to be trained too; it is local like B, so that only A is averaged, as in the paper.
"""

from pfedsam.federation.methods.base import HEAD, Method, joint_training, local_end, place, plain
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Placement


def adapt(options: ModelOptions) -> ModelOptions:
    """The model with local output layers."""
    options = plain(options)
    return options if options.output_layers == "frozen" else options.model_copy(update={"output_layers": "local"})


def placement(options: ModelOptions) -> Placement:
    """LoRA's A is shared, all other trained components are local."""
    return place(options, shared=("lora_a",), local=("lora_b", *HEAD))


METHOD = Method(
    name="fedsa-lora",
    summary="LoRA's A averaged; B, class tokens and output layers local (Guo et al., 2025)",
    adapt=adapt,
    placement=placement,
    phases=joint_training,
    final=local_end,
)
