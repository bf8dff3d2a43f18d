"""Local only: every site trains the same parameters by itself and nothing is sent. The baseline that a federation must beat."""

from pfedsam.federation.methods.base import HEAD, Method, local_end, local_training, place
from pfedsam.model.build import present
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Placement


def adapt(options: ModelOptions) -> ModelOptions:
    """One set of each, the site's own; the output layers unless they are frozen."""
    layers = "frozen" if options.output_layers == "frozen" else "local"
    return options.model_copy(update={"output_layers": layers, "personal_copy": False})


def placement(options: ModelOptions) -> Placement:
    """Everything that is trained stays."""
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
