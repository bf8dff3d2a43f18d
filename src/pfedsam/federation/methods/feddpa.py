"""After FedDPA (Yang et al., "Dual-Personalizing Adapter for Federated Foundation Models", NeurIPS 2024, arXiv:2403.19211): two LoRAs.

One LoRA is averaged. A second one on the same layers is local and is trained with the first one fixed: the two phases of pfedsam
without experts and without distillation. Ours differs: both are added with equal weight (the paper weights them for each image by its
similarity to the site's training images); class tokens and output layers are shared with the first LoRA.
"""

from pfedsam.federation.methods.base import HEAD, Method, local_end, place, plain, split_steps
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Placement
from pfedsam.training.options import TrainingOptions
from pfedsam.training.phases import PhaseSpec


def adapt(options: ModelOptions) -> ModelOptions:
    """The model with a second LoRA, whose rank is `model.local_lora` or else that of the first."""
    rank = options.local_lora or (options.lora.rank if options.lora else None)
    return plain(options).model_copy(update={"local_lora": rank})


def placement(options: ModelOptions) -> Placement:
    """One LoRA and the head are shared, the second LoRA is local."""
    return place(options, shared=("lora_a", "lora_b", *HEAD), local=("local_lora",))


def phases(options: TrainingOptions) -> tuple[PhaseSpec, ...]:
    """One phase for the shared LoRA with the local one off, then one for the local LoRA with the received shared one."""
    global_steps, local_steps = split_steps(options)
    shared = PhaseSpec("global", ("shared",), ("shared",), steps=global_steps)
    return shared, PhaseSpec("local", ("local",), ("personal",), shared_from="received", steps=local_steps)


METHOD = Method(
    name="feddpa",
    summary="a shared LoRA averaged, a second LoRA local (after FedDPA: Yang et al., 2024)",
    adapt=adapt,
    placement=placement,
    phases=phases,
    final=local_end,
)
