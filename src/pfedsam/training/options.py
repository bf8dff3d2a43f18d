"""How a federation trains: rounds, steps, optimiser, distillation."""

from typing import Literal

from pydantic import Field, model_validator

from pfedsam.core.options import Options
from pfedsam.training.distillation import DistillationOptions
from pfedsam.training.losses import LossName
from pfedsam.training.phases import OptimizerOptions


class TrainingOptions(Options):
    """The schedule of a run."""

    rounds: int = Field(default=60, ge=1, description="Rounds of broadcast, client round and aggregation.")
    steps_per_round: int = Field(
        default=4,
        ge=2,
        description="Optimiser steps of a site in a round, over all its phases. Few: averaging needs it (docs/decisions/0007).",
    )
    global_share: float = Field(
        default=0.25,
        gt=0,
        lt=1,
        description="Part of a round's steps that the global phase gets, where a method has two (pfedsam, fedrep, ditto, feddpa).",
    )
    final_steps: int = Field(
        default=24,
        ge=0,
        description="Steps of the last local phase, after the last aggregation, where a method has one.",
    )
    batch_size: int = Field(default=8, ge=1, description="Images per step.")
    phases: Literal["coupled", "decoupled", "joint", "halves", "coupled-halves"] = Field(
        default="coupled",
        description="pfedsam: how a round trains. coupled: in each step the shared and the personal model both learn from the labels of "
        "the same images, and the personal one from the shared one. decoupled: first the shared part, then the local part with the "
        "shared one fixed, on labels and by distillation (the paper), and once more after the last aggregation. joint: first the "
        "shared part, then both inside the personal model. halves: in each step half of the batch trains the shared part with the "
        "local part off, the other half the local part with the shared one fixed and as its teacher; nothing local touches what is shared "
        "(with distillation forward or off). coupled-halves: as coupled, with half of the batch for each model.",
    )
    shared_warmup_rounds: int = Field(
        default=0, ge=0, description="pfedsam: rounds at the start that train the shared part alone; 0 = none."
    )
    order: Literal["global-first", "local-first"] = Field(
        default="global-first", description="pfedsam: which of two phases comes first."
    )
    frozen_local: bool = Field(
        default=False,
        description="pfedsam: keep the local part in place, frozen, during the global phase, instead of switching it off.",
    )
    loss: LossName = Field(
        default="dice_ce",
        description="Beside the cross-entropy: Dice, or focal Tversky for structures that fill a small part of the image.",
    )
    optimizer: OptimizerOptions = Field(default=OptimizerOptions(), description="AdamW.")
    distillation: DistillationOptions = Field(
        default=DistillationOptions(), description="Between shared and personal model."
    )

    @model_validator(mode="after")
    def _rounds_after_the_warmup(self) -> "TrainingOptions":
        if self.shared_warmup_rounds >= self.rounds:
            raise ValueError(
                f"shared_warmup_rounds is {self.shared_warmup_rounds} of {self.rounds} rounds, so that no round trains the local part: "
                "give fewer than training.rounds"
            )
        return self

    @model_validator(mode="after")
    def _one_teacher_in_one_phase(self) -> "TrainingOptions":
        if self.phases in ("coupled", "halves", "coupled-halves") and self.distillation.direction == "mutual":
            raise ValueError(
                f"distillation.direction is mutual, but with phases {self.phases} one model teaches the other: set training.phases to "
                "decoupled"
            )
        return self

    @model_validator(mode="after")
    def _two_halves(self) -> "TrainingOptions":
        if self.phases in ("halves", "coupled-halves") and self.batch_size < 2:
            raise ValueError(
                f"phases is {self.phases}, and a batch of one image has no halves: set training.batch_size to 2 or more"
            )
        return self
