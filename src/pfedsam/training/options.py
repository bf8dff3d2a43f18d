"""Options of the training: rounds, steps, optimiser and distillation."""

from typing import Literal

from pydantic import Field, model_validator

from pfedsam.core.options import Options
from pfedsam.training.distillation import DistillationOptions
from pfedsam.training.losses import LossName
from pfedsam.training.phases import OptimizerOptions


class TrainingOptions(Options):
    """The schedule of the training of a run."""

    rounds: int = Field(
        default=400,
        ge=1,
        description="Largest number of rounds, each with broadcast, client round and aggregation; see patience.",
    )
    patience: int | None = Field(
        default=30,
        ge=1,
        description="Number of rounds without a gain in validation Dice (0.002 or more) at any site, after which the learning rate, "
        "constant until then, decreases; training ends after as many rounds more, at the latest after training.rounds. Without "
        "validation: exactly training.rounds rounds. Empty: the same, with a learning rate that decreases over all rounds.",
    )
    steps_per_round: int = Field(
        default=4,
        ge=2,
        description="Number of optimiser steps of a site in a round, over all its phases. Averaging works better with few steps "
        "(docs/decisions/0007).",
    )
    global_share: float = Field(
        default=0.25,
        gt=0,
        lt=1,
        description="Fraction of the steps of a round in the global phase, for methods with two phases (pfedsam, fedrep, ditto, feddpa).",
    )
    final_steps: int = Field(
        default=24,
        ge=0,
        description="Number of steps of final local fine-tuning, after the last aggregation, for methods that have it.",
    )
    fine_tuning_rounds: int | None = Field(
        default=None,
        ge=0,
        description="Length, in rounds, of local fine-tuning after the last aggregation (fedavg-finetuned, and pfedsam with coupled, "
        "coupled-halves or halves): each site trains its own copy of all trained parameters alone; 0: none. Empty: none with pfedsam; with "
        "fedavg-finetuned half of training.patience or of training.rounds, whichever is less (compare and bench: at most a third of the "
        "rounds).",
    )
    batch_size: int = Field(
        default=4, ge=1, le=1024, description="Number of images in a step. The comparisons of docs/evidence.md have 4."
    )
    phases: Literal["coupled", "decoupled", "joint", "halves", "coupled-halves"] = Field(
        default="coupled-halves",
        description="How pfedsam trains in a round. coupled-halves: in each step one half of the batch trains the shared model, and the "
        "other half the personal model, on labels and by distillation from the shared one. coupled: the same with the whole batch for "
        "both models, at one and a half times the cost. halves: in each step, one half of the batch trains the shared parameters "
        "without the local ones, and the other half the local parameters with the shared model as fixed teacher; with distillation "
        "forward or off, local parameters do not affect shared ones. decoupled (the paper): first the shared parameters are "
        "trained, then the local ones with the shared ones fixed, on labels and by distillation; the local phase is repeated after "
        "the last aggregation. joint: first the shared parameters, then both kinds in the personal model.",
    )
    shared_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of the images of a batch from which the shared model learns in a coupled step of pfedsam, beside the personal "
        "model, which learns from all of them; at least one image. What it saves and costs: docs/decisions/0018.",
    )
    shared_warmup_rounds: int = Field(
        default=0,
        ge=0,
        description="Number of first rounds in which pfedsam trains only the shared parameters; 0: none.",
    )
    order: Literal["global-first", "local-first"] = Field(
        default="global-first", description="Which of its two phases pfedsam runs first."
    )
    frozen_local: bool = Field(
        default=False,
        description="Whether pfedsam keeps the local parameters frozen in the model during the global phase instead of switching them off.",
    )
    loss: LossName = Field(
        default="dice_ce",
        description="Loss that is added to the cross-entropy: Dice, or focal Tversky for structures that fill a small part of the image.",
    )
    optimizer: OptimizerOptions = Field(default=OptimizerOptions(), description="The optimiser, AdamW.")
    distillation: DistillationOptions = Field(
        default=DistillationOptions(), description="Distillation between the shared and the personal model."
    )

    @property
    def images_per_round(self) -> int:
        """Number of training images that a site draws in a round; an image that is drawn twice counts twice."""
        return self.steps_per_round * self.batch_size

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
    def _teacher_is_another_model(self) -> "TrainingOptions":
        if self.frozen_local and self.distillation.direction == "reversed":
            raise ValueError(
                "distillation.direction is reversed, but with frozen_local the global phase trains the personal model, which would be its "
                "own teacher: set training.distillation.direction to forward or off, or training.frozen_local to false"
            )
        return self

    @model_validator(mode="after")
    def _two_halves(self) -> "TrainingOptions":
        if self.phases == "halves" and self.batch_size < 2:
            raise ValueError(
                "phases is halves, and a batch of one image has no halves: set training.batch_size to 2 or more"
            )
        return self
