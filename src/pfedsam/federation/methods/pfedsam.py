"""pFedSAM (after Wang et al., arXiv:2509.15638; our reading, docs/method.md): LoRA is averaged, the experts stay.

In the paper a client round has two decoupled phases: the global phase trains the shared parameters with the local part off; the local
phase trains the experts with the shared part fixed, on labels and by distillation from the shared model (`training.local_phase=local`).
After the last aggregation each site trains one more local phase on the final shared parameters.

Ours differs by default (docs/decisions/0006 to 0008): the local part has a second LoRA, so that a site can undo what does not fit it; the
first half of the rounds trains the shared part alone; and the second phase of the others trains both parts inside the personal model,
which needs no last phase.
"""

from dataclasses import replace

from pfedsam.federation.methods.base import HEAD, LOCAL_PARTS, Method, place, shared_training, split_steps
from pfedsam.model.partition import Placement
from pfedsam.model.personal import ModelOptions
from pfedsam.training.options import TrainingOptions
from pfedsam.training.phases import PhaseSpec


def adapt(options: ModelOptions) -> ModelOptions:
    """The model as configured; unless it says otherwise, with a second LoRA at the site, of the shared one's rank."""
    if options.local_lora is not None:
        return options
    rank = options.lora.rank if options.lora and not options.personal_copy else 0
    return options.model_copy(update={"local_lora": rank})


def placement(options: ModelOptions) -> Placement:
    """LoRA and class tokens travel, experts (and what else is local) stay; the output layers as configured."""
    shared, local = ["lora_a", "lora_b", *HEAD], ["personal_output_layers", *LOCAL_PARTS]
    if options.output_layers == "local":
        shared.remove("output_layers")
        local.append("output_layers")
    return place(options, shared=shared, local=local)


def phases(options: TrainingOptions) -> tuple[PhaseSpec, ...]:
    """Global and local phase in the configured order, or one coupled phase."""
    direction = options.distillation.direction
    if options.coupled:
        taught = {"off": None, "reversed": "shared"}.get(direction, "personal")
        both = ("shared", "personal")
        return (PhaseSpec("coupled", ("shared", "local"), both, taught, steps=options.steps_per_round),)  # type: ignore[arg-type]
    global_steps, local_steps = split_steps(options)
    global_phase = PhaseSpec(
        "global",
        trains=("shared",),
        supervised=("personal",) if options.frozen_local else ("shared",),
        taught="shared" if direction in ("reversed", "mutual") else None,
        steps=global_steps,
    )
    if options.local_phase == "joint":
        second = PhaseSpec("joint", ("shared", "local"), ("personal",), steps=local_steps)
    else:
        second = _local_phase(options, local_steps)
    return (global_phase, second) if options.order == "global-first" else (second, global_phase)


def final(options: TrainingOptions) -> tuple[PhaseSpec, ...]:
    """One more local phase, so that the local part fits the shared parameters it will be used with; none after joint ones."""
    if options.local_phase == "joint" or not options.final_steps:
        return ()
    return (_local_phase(options, options.final_steps),)


def _local_phase(options: TrainingOptions, steps: int) -> PhaseSpec:
    spec = PhaseSpec("local", ("local",), ("personal",), shared_from=options.distillation.teacher, steps=steps)
    return replace(spec, taught="personal") if options.distillation.direction in ("forward", "mutual") else spec


METHOD = Method(
    name="pfedsam",
    summary="LoRA shared, mixture of experts local; opened together, then both trained in the personal model (after Wang et al., 2025)",
    adapt=adapt,
    placement=placement,
    phases=phases,
    final=final,
    opening=shared_training,
)
