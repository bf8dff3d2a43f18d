"""The phases of a round under every switch."""

import pytest

from pfedsam.federation.methods import pfedsam
from pfedsam.model.personal import ModelOptions
from pfedsam.training.options import TrainingOptions


def options(**changes: object) -> TrainingOptions:
    return TrainingOptions.model_validate({"steps_per_round": 10, "final_steps": 3, **changes})


def test_two_decoupled_phases_by_default() -> None:
    global_phase, local_phase = pfedsam.phases(options(global_share=0.3))
    assert (global_phase.trains, global_phase.supervised, global_phase.taught) == (("shared",), ("shared",), None)
    assert (local_phase.trains, local_phase.supervised, local_phase.taught) == (("local",), ("personal",), "personal")
    assert (global_phase.steps, local_phase.steps) == (3, 7)
    assert local_phase.shared_from == "received"
    assert [phase.steps for phase in pfedsam.final(options())] == [3]


@pytest.mark.parametrize(
    ("direction", "taught"),
    [
        ("off", (None, None)),
        ("forward", (None, "personal")),
        ("reversed", ("shared", None)),
        ("mutual", ("shared", "personal")),
    ],
)
def test_who_is_taught(direction: str, taught: tuple[str | None, str | None]) -> None:
    phases = pfedsam.phases(options(distillation={"direction": direction}))
    assert tuple(phase.taught for phase in phases) == taught


def test_the_other_switches() -> None:
    assert [phase.name for phase in pfedsam.phases(options(order="local-first"))] == ["local", "global"]
    (coupled,) = pfedsam.phases(options(coupled=True))
    assert (coupled.trains, coupled.steps) == (("shared", "local"), 10)
    assert pfedsam.phases(options(frozen_local=True))[0].supervised == ("personal",)
    assert pfedsam.phases(options(distillation={"teacher": "own"}))[1].shared_from == "own"
    assert pfedsam.placement(ModelOptions(output_layers="local"))["output_layers"] == "local"
    assert "experts" not in pfedsam.placement(ModelOptions(experts=None))
