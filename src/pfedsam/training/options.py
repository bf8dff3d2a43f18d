"""How a federation trains: rounds, steps, optimiser, distillation."""

from typing import Literal

from pydantic import Field

from pfedsam.core.options import Options
from pfedsam.training.distillation import DistillationOptions
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
    coupled: bool = Field(
        default=False, description="pfedsam: train shared and local parameters in one phase instead of two."
    )
    opening: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="pfedsam: part of the rounds, at the start, that train the shared part alone; 0 = none.",
    )
    local_phase: Literal["local", "joint"] = Field(
        default="joint",
        description="pfedsam: what the second phase of a round trains. local: the local part alone, with the shared one fixed, on "
        "labels and by distillation (the paper), and once more after the last aggregation. joint: both, inside the personal model, on "
        "labels; no last phase.",
    )
    order: Literal["global-first", "local-first"] = Field(
        default="global-first", description="pfedsam: which phase comes first."
    )
    frozen_local: bool = Field(
        default=False,
        description="pfedsam: keep the local part in place, frozen, during the global phase, instead of switching it off.",
    )
    fedprox_mu: float = Field(default=0.01, ge=0, description="fedprox: weight of the pull to the received parameters.")
    ditto_lambda: float = Field(
        default=0.1, ge=0, description="ditto: weight of the personal copy's pull to the received shared parameters."
    )
    optimizer: OptimizerOptions = Field(default=OptimizerOptions(), description="AdamW.")
    distillation: DistillationOptions = Field(
        default=DistillationOptions(), description="Between shared and personal model."
    )

    @property
    def steps(self) -> int:
        """Optimiser steps of a training site over a whole run, where its method has a last phase."""
        return self.rounds * self.steps_per_round + self.final_steps
