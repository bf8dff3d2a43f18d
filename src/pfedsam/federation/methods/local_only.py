"""Local only: every site trains the same parameters by itself and nothing is sent. The baseline that a federation must beat."""

from pfedsam.federation.methods.base import Method, local_end, local_training
from pfedsam.model.partition import Placement
from pfedsam.model.personal import ModelOptions


def adapt(options: ModelOptions) -> ModelOptions:
    """One set of output layers, the site's own, unless they are frozen."""
    return options if options.output_layers == "frozen" else options.model_copy(update={"output_layers": "local"})


def placement(options: ModelOptions) -> Placement:
    """Everything that is trained stays."""
    placed: dict[str, str] = {"lora_a": "local", "lora_b": "local", "class_tokens": "local"}
    if options.output_layers != "frozen":
        placed["output_layers"] = "local"
    if options.experts:
        placed["experts"] = "local"
    return placed  # type: ignore[return-value]


METHOD = Method(
    name="local-only",
    summary="every site trains LoRA, experts and output layers alone; nothing is sent",
    adapt=adapt,
    placement=placement,
    phases=local_training,
    final=local_end,
)
