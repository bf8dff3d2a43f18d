"""Ditto (Li et al., "Fair and Robust Federated Learning Through Personalization", ICML 2021): a regularised personal copy.

The shared parameters are trained and averaged as in FedAvg. In addition each site trains its own copy of all of them with the loss
L(v) + lambda / 2 ||v - w_t||^2, where w_t are the received parameters (algorithm 1). Ours differs: both sets consist of LoRA, class tokens
and output layers; the round's steps are divided between the two (`training.global_share`); AdamW instead of SGD.
"""

from pydantic import Field

from pfedsam.core.options import Options
from pfedsam.federation.methods.base import HEAD, Method, place, plain, split_steps
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Placement
from pfedsam.training.options import TrainingOptions
from pfedsam.training.phases import PhaseSpec


class DittoOptions(Options):
    """Options of Ditto."""

    proximal_weight: float = Field(
        default=0.1,
        ge=0,
        description="Lambda, the weight of the penalty on the distance of the personal copy from the received shared parameters.",
    )


def adapt(options: ModelOptions) -> ModelOptions:
    """The model with a second, personal set of all trained parameters."""
    layers = "frozen" if options.output_layers == "frozen" else "both"
    return plain(options).model_copy(update={"personal_copy": True, "output_layers": layers})


def placement(options: ModelOptions) -> Placement:
    """One set is averaged, its personal copy is local."""
    return place(options, shared=("lora_a", "lora_b", *HEAD), local=("personal_copy", "personal_output_layers"))


def configure(own: DittoOptions) -> Method:
    """Ditto with these options."""

    def copy(steps: int) -> PhaseSpec:
        return PhaseSpec("local", ("local",), ("personal",), steps=steps, proximal=own.proximal_weight)

    def phases(options: TrainingOptions) -> tuple[PhaseSpec, ...]:
        """One phase for the shared set, then one for the personal copy."""
        global_steps, local_steps = split_steps(options)
        return PhaseSpec("global", ("shared",), ("shared",), steps=global_steps), copy(local_steps)

    def final(options: TrainingOptions) -> tuple[PhaseSpec, ...]:
        """One more phase for the personal copy, regularised towards the final shared parameters."""
        return (copy(options.final_steps),) if options.final_steps else ()

    return Method(
        name="ditto",
        summary="fedavg, and at each site a personal copy regularised towards the shared parameters (Li et al., 2021)",
        adapt=adapt,
        placement=placement,
        phases=phases,
        final=final,
        own=own,
        configure=configure,
    )


METHOD = configure(DittoOptions())
