"""After FedDPA (Yang et al., "Dual-Personalizing Adapter for Federated Foundation Models", NeurIPS 2024, arXiv:2403.19211): two LoRAs.

One LoRA is averaged, a second one on the same layers stays at the site and is trained with the first one fixed: pfedsam's two phases
without experts and without distillation. Ours differs: both are added with equal weight (the paper weighs them for each image by its
likeness to the site's training images); class tokens and output layers belong to the shared LoRA.
"""

from pfedsam.federation.methods.base import HEAD, Method, local_end, place, plain, split_steps
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Placement
from pfedsam.training.options import TrainingOptions
from pfedsam.training.phases import PhaseSpec


def adapt(options: ModelOptions) -> ModelOptions:
    """A second LoRA, of the first one's rank unless `model.local_lora` says another."""
    rank = options.local_lora or (options.lora.rank if options.lora else None)
    return plain(options).model_copy(update={"local_lora": rank})


def placement(options: ModelOptions) -> Placement:
    """One LoRA is averaged, the other stays."""
    return place(options, shared=("lora_a", "lora_b", *HEAD), local=("local_lora",))


def phases(options: TrainingOptions) -> tuple[PhaseSpec, ...]:
    """The shared LoRA with the local one off, then the local one over the received shared one."""
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
