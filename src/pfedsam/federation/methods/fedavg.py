"""FedAvg on LoRA: LoRA, class tokens and output layers are trained by every site and averaged; nothing is personal.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017, with steps instead of
epochs, and AdamW's moments kept at the sites between rounds.
"""

from pfedsam.federation.methods.base import Method, no_phases
from pfedsam.model.partition import Placement
from pfedsam.model.personal import ModelOptions
from pfedsam.training.options import TrainingOptions
from pfedsam.training.phases import PhaseSpec


def adapt(options: ModelOptions) -> ModelOptions:
    """No local part: no experts, one set of output layers."""
    layers = "frozen" if options.output_layers == "frozen" else "shared"
    return options.model_copy(update={"experts": None, "output_layers": layers})


def placement(options: ModelOptions) -> Placement:
    """Everything that is trained is averaged."""
    placed: dict[str, str] = {"lora_a": "shared", "lora_b": "shared", "class_tokens": "shared"}
    if options.output_layers != "frozen":
        placed["output_layers"] = "shared"
    return placed  # type: ignore[return-value]


def phases(options: TrainingOptions) -> tuple[PhaseSpec, ...]:
    """One phase on the shared parameters."""
    return (PhaseSpec("global", ("shared",), ("shared",), steps=options.steps_per_round),)


METHOD = Method(
    name="fedavg",
    summary="LoRA, class tokens and output layers averaged (McMahan et al., 2017); nothing is personal",
    adapt=adapt,
    placement=placement,
    phases=phases,
    final=no_phases,
)
