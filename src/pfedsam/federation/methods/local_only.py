"""Local only: every site trains its model alone and nothing is sent. This is the baseline that a federation must beat."""

from pfedsam.federation.methods.base import HEAD, Method, local_end, local_training, place
from pfedsam.model.build import present
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Placement


def adapt(options: ModelOptions) -> ModelOptions:
    """The model with one local set of each component; the output layers are local too, unless they are frozen."""
    layers = "frozen" if options.output_layers == "frozen" else "local"
    return options.model_copy(update={"output_layers": layers, "personal_copy": False})


def placement(options: ModelOptions) -> Placement:
    """All trained components are local."""
    additions = present(options, local_only=True)
    return place(options, local=("lora_a", "lora_b", *HEAD, *additions, "adapters", "encoder"))


METHOD = Method(
    name="local-only",
    summary="every site trains LoRA, experts and output layers alone; nothing is sent",
    adapt=adapt,
    placement=placement,
    phases=local_training,
    final=local_end,
)
