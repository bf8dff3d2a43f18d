"""pFedSAM (after Wang et al., arXiv:2509.15638; our reading, docs/method.md): LoRA is averaged, the experts are local.

In the paper a client round has two decoupled phases: the global phase trains the shared parameters with the local part off; the local
phase trains the experts with the shared part fixed, on labels and by distillation from the shared model (`training.phases=decoupled`).
After the last aggregation each site trains one more local phase on the final shared parameters.

Ours differs by default (docs/decisions/0011, 0020 and 0022): both parts are trained in every step. The shared model learns from the labels
of one half of the batch, and the personal model from those of the other half. In the first step of a round, both models learn from the same
half, and the personal model also from the shared one, whose parameters are then those that the server sent. Both models are fully trained
when the rounds end, so that no last phase is needed.
"""

from dataclasses import replace
from typing import Final, Literal

from pydantic import Field

from pfedsam.core.options import Options
from pfedsam.federation.methods.base import HEAD, Method, fine_tuning, place, shared_training, split_steps
from pfedsam.federation.methods.fedavgm import MomentumStep
from pfedsam.federation.server import WeightedMean
from pfedsam.model.build import present
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Placement
from pfedsam.training.options import TrainingOptions
from pfedsam.training.phases import Model, PhaseSpec

_IN_ONE_STEP: Final[dict[str, Literal["coupled", "decoupled"] | None]] = {
    "coupled": None,
    "coupled-halves": "coupled",
    "halves": "decoupled",
}
"""The values of `training.phases` in which both models learn in every step -> how the two halves of a batch are used; None: no halves."""


class PFedSAMOptions(Options):
    """Options of pFedSAM's server step."""

    server_momentum: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Momentum of the server's step, as in fedavgm: the share of the last round's change of the shared parameters that is "
        "added to the mean change of a round. 0: the shared parameters are the mean of the sites', as in the paper.",
    )


def adapt(options: ModelOptions) -> ModelOptions:
    """The configured model; if `model.local_lora` is empty, with a second, local LoRA of the shared one's rank."""
    if options.local_lora is not None:
        return options
    rank = options.lora.rank if options.lora and not options.personal_copy else 0
    return options.model_copy(update={"local_lora": rank})


def placement(options: ModelOptions) -> Placement:
    """LoRA and class tokens are shared, experts and other local-only components are local, output layers as configured."""
    shared, local = ["lora_a", "lora_b", *HEAD], [*present(options, local_only=True)]
    if options.output_layers == "local":
        shared.remove("output_layers")
        local.append("output_layers")
    return place(options, shared=shared, local=local)


def phases(options: TrainingOptions) -> tuple[PhaseSpec, ...]:
    """One phase in which both models learn, or a global and a local phase in the configured order."""
    direction = options.distillation.direction
    if options.phases in _IN_ONE_STEP:
        return (_coupled_phase(options),)
    global_steps, local_steps = split_steps(options)
    global_phase = PhaseSpec(
        "global",
        trains=("shared",),
        supervised=("personal",) if options.frozen_local else ("shared",),
        # With frozen local parameters the phase minimises the loss of the personal model, which is the teacher.
        taught="shared" if direction in ("reversed", "mutual") and not options.frozen_local else None,
        steps=global_steps,
    )
    if options.phases == "joint":
        second = PhaseSpec("joint", ("shared", "local"), ("personal",), steps=local_steps)
    else:
        second = _local_phase(options, local_steps)
    return (global_phase, second) if options.order == "global-first" else (second, global_phase)


def final(options: TrainingOptions) -> tuple[PhaseSpec, ...]:
    """With decoupled phases one more local phase; if both models learn in one step, local fine-tuning if it is set."""
    if options.phases in _IN_ONE_STEP:
        return fine_tuning(options, _coupled_phase(options)) if options.fine_tuning_rounds else ()
    if options.phases != "decoupled" or not options.final_steps:
        return ()
    return (_local_phase(options, options.final_steps),)


def _coupled_phase(options: TrainingOptions) -> PhaseSpec:
    """One phase in which both models learn in every step, from the whole batch or each from one half of it.

    A batch of one image has no halves; with `coupled-halves` both models learn from it.
    """
    models: dict[str, Model] = {"forward": "personal", "reversed": "shared"}
    taught = models.get(options.distillation.direction)
    halves = _IN_ONE_STEP[options.phases] if options.batch_size > 1 else None
    return PhaseSpec(
        "coupled" if halves is None else "halves",
        trains=("shared", "local"),
        supervised=("shared", "personal"),
        taught=taught,
        steps=options.steps_per_round,
        halves=halves,
        taught_steps=options.distillation.steps if halves and taught else "all",
        shared_share=1.0 if halves else options.shared_share,
    )


def _local_phase(options: TrainingOptions, steps: int) -> PhaseSpec:
    spec = PhaseSpec("local", ("local",), ("personal",), shared_from=options.distillation.teacher, steps=steps)
    return replace(spec, taught="personal") if options.distillation.direction in ("forward", "mutual") else spec


def configure(own: PFedSAMOptions) -> Method:
    """The method with these options."""
    return Method(
        name="pfedsam",
        summary="LoRA shared, mixture of experts local; shared and personal model learn in the same steps (after Wang et al., 2025)",
        adapt=adapt,
        placement=placement,
        phases=phases,
        final=final,
        warmup=shared_training,
        server=MomentumStep(own.server_momentum) if own.server_momentum else WeightedMean(),
        own=own,
        configure=configure,
    )


METHOD = configure(PFedSAMOptions())
