"""The phases of a round under every switch."""

import pytest
from pydantic import ValidationError

from pfedsam.federation.methods import pfedsam
from pfedsam.model.options import ModelOptions
from pfedsam.training.options import TrainingOptions


def options(**changes: object) -> TrainingOptions:
    return TrainingOptions.model_validate({"steps_per_round": 10, "final_steps": 3, **changes})


def test_two_decoupled_phases() -> None:
    global_phase, local_phase = pfedsam.phases(options(global_share=0.3, phases="decoupled"))
    assert (global_phase.trains, global_phase.supervised, global_phase.taught) == (("shared",), ("shared",), None)
    assert (local_phase.trains, local_phase.supervised, local_phase.taught) == (("local",), ("personal",), "personal")
    assert (global_phase.steps, local_phase.steps) == (3, 7)
    assert local_phase.shared_from == "received"
    (last,) = pfedsam.final(options(phases="decoupled"))
    assert (last.name, last.trains, last.taught, last.steps) == ("local", ("local",), "personal", 3)
    assert pfedsam.final(options(phases="decoupled", final_steps=0)) == ()


def test_by_default_both_models_learn_in_every_step() -> None:
    (halves,) = pfedsam.phases(options())
    assert (halves.name, halves.trains, halves.steps) == ("halves", ("shared", "local"), 10)
    assert (halves.supervised, halves.taught, halves.halves) == (("shared", "personal"), "personal", "coupled")
    assert pfedsam.final(options()) == ()
    assert pfedsam.METHOD.phases_of(options(rounds=8), 0) == (halves,)


def test_a_second_phase_that_trains_both_parts_inside_the_personal_model() -> None:
    _, joint = pfedsam.phases(options(global_share=0.3, phases="joint"))
    assert (joint.name, joint.trains, joint.supervised) == ("joint", ("shared", "local"), ("personal",))
    assert (joint.taught, joint.shared_from, joint.steps) == (None, "own", 7)
    assert pfedsam.final(options(phases="joint")) == ()


def test_the_first_rounds_train_the_shared_part_alone() -> None:
    set_to = options(rounds=8, shared_warmup_rounds=2, phases="joint")
    found = [[phase.name for phase in pfedsam.METHOD.phases_of(set_to, i)] for i in range(3)]
    assert found == [["global"], ["global"], ["global", "joint"]]
    assert {sum(p.steps for p in pfedsam.METHOD.phases_of(set_to, i)) for i in range(8)} == {10}
    assert [phase.name for phase in (*pfedsam.METHOD.round_phases(set_to), *pfedsam.final(set_to))] == [
        "global",
        "global",
        "joint",
    ]


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
    phases = pfedsam.phases(options(phases="decoupled", distillation={"direction": direction}))
    assert tuple(phase.taught for phase in phases) == taught


@pytest.mark.parametrize(("direction", "taught"), [("off", None), ("forward", "personal"), ("reversed", "shared")])
def test_who_is_taught_in_a_coupled_phase(direction: str, taught: str | None) -> None:
    for form in ("coupled", "coupled-halves"):
        (phase,) = pfedsam.phases(options(phases=form, distillation={"direction": direction}))
        assert phase.taught == taught


def test_the_share_of_the_shared_model_belongs_to_coupled_steps_of_whole_batches() -> None:
    assert pfedsam.phases(options(shared_share=0.5, phases="coupled"))[0].shared_share == 0.5
    assert pfedsam.phases(options(shared_share=0.5, phases="halves"))[0].shared_share == 1.0


def test_no_warmup_has_no_warmup_phases_and_a_run_of_warmup_alone_is_refused() -> None:
    assert [phase.name for phase in pfedsam.METHOD.round_phases(options())] == ["halves"]
    with pytest.raises(ValidationError, match=r"give fewer than training\.rounds"):
        options(rounds=8, shared_warmup_rounds=8)


@pytest.mark.parametrize(("form", "halves"), [("halves", "decoupled"), ("coupled-halves", "coupled")])
def test_halves_train_both_parts_in_one_phase(form: str, halves: str) -> None:
    set_to = options(phases=form)
    (phase,) = pfedsam.phases(set_to)
    assert (phase.name, phase.trains, phase.supervised) == ("halves", ("shared", "local"), ("shared", "personal"))
    assert (phase.taught, phase.halves, phase.steps) == ("personal", halves, 10)
    with pytest.raises(ValidationError, match=f"with phases {form} one model teaches the other"):
        options(phases=form, distillation={"direction": "mutual"})


@pytest.mark.parametrize(("form", "name"), [("coupled", "coupled"), ("coupled-halves", "halves"), ("halves", "halves")])
def test_after_steps_of_both_models_the_personal_one_can_be_fine_tuned(form: str, name: str) -> None:
    (last,) = pfedsam.final(options(phases=form, fine_tuning_rounds=2))
    assert (last.trains, last.supervised, last.steps) == (("shared", "local"), ("personal",), 20)
    assert (last.taught, last.halves, last.fine_tunes_after) == (None, None, name)
    assert pfedsam.final(options(phases=form, fine_tuning_rounds=0)) == ()


def test_with_halves_the_personal_model_is_taught_in_the_first_step_of_a_round_or_in_all() -> None:
    assert pfedsam.phases(options())[0].taught_steps == "first"
    assert pfedsam.phases(options(distillation={"steps": "all"}))[0].taught_steps == "all"
    assert pfedsam.phases(options(phases="coupled"))[0].taught_steps == "all"


def test_from_a_batch_of_one_image_both_models_learn_unless_nothing_local_may_touch_what_is_shared() -> None:
    (phase,) = pfedsam.phases(options(batch_size=1))
    assert (phase.name, phase.halves, phase.supervised) == ("coupled", None, ("shared", "personal"))
    with pytest.raises(ValidationError, match="a batch of one image has no halves"):
        options(phases="halves", batch_size=1)


def test_nobody_teaches_in_both_directions_in_one_phase() -> None:
    with pytest.raises(ValidationError, match="training\\.phases to decoupled"):
        options(distillation={"direction": "mutual"})


@pytest.mark.parametrize("form", ["decoupled", "joint"])
def test_no_model_is_its_own_teacher(form: str) -> None:
    with pytest.raises(
        ValidationError, match=r"would be its own teacher: set training\.distillation\.direction to forward"
    ):
        options(phases=form, frozen_local=True, distillation={"direction": "reversed"})


def test_the_other_switches() -> None:
    turned = pfedsam.phases(options(phases="joint", order="local-first"))
    assert [phase.name for phase in turned] == ["joint", "global"]
    assert pfedsam.phases(options(phases="decoupled", frozen_local=True))[0].supervised == ("personal",)
    assert pfedsam.phases(options(phases="decoupled", distillation={"teacher": "own"}))[1].shared_from == "own"
    assert pfedsam.placement(ModelOptions(output_layers="local"))["output_layers"] == "local"
    assert "experts" not in pfedsam.placement(ModelOptions(experts=None))
