"""What holds for every method: what is placed is trained, what is not stays as it is, to the bit."""

import re
from dataclasses import replace
from itertools import product

import pytest
import torch

from pfedsam.core.errors import OptionError
from pfedsam.experiment.build import build_method
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.methods import METHODS, find_method, registered
from pfedsam.federation.methods.base import plain, shared_training, split_steps
from pfedsam.model.build import present
from pfedsam.model.options import ModelOptions
from pfedsam.training.options import TrainingOptions
from pfedsam.training.phases import PhaseSpec


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_round_changes_what_is_placed_and_nothing_else(name, make, train) -> None:
    made = make(name)
    before = made.values()
    result = train(made, global_share=0.5)  # two steps for each phase: some layers move only after others have
    after = {**result.shared, **result.state.local}
    assert set(result.shared) == made.shared
    assert set(result.state.local) == made.local
    for component, members in made.partition.components.items():
        still = [n for n in members if torch.equal(after[n], before[n])]
        assert not still, (component, still[:3])
    now = made.values()
    assert [n for n in made.partition.frozen if not torch.equal(now[n], before[n])] == []
    assert not made.model.training
    assert not any(p.requires_grad for p in made.model.parameters())


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_adds_nothing_that_it_does_not_train(name, make) -> None:
    made = make(name)
    added = {n for n, _ in made.model.named_parameters() if not n.startswith(("sam.", "class_tokens", "output_layers"))}
    assert added <= made.shared | made.local


def test_baselines_ignore_the_switches_of_pfedsam() -> None:
    options = ModelOptions(norms="local", local_lora=3, personal_copy=True, output_layers="local")
    assert present(plain(options)) == {"lora_a", "lora_b", "class_tokens", "output_layers", "decoder", "no_prompt"}
    assert plain(ModelOptions(output_layers="frozen")).output_layers == "frozen"


@pytest.mark.parametrize("name", sorted(METHODS))
def test_no_placement_names_what_is_not_there(name, make) -> None:
    made = make(name, output_layers="frozen", lora=None)
    assert not {n for n in made.shared | made.local if n.startswith(("output_layers", "personal_output"))}
    assert not any(".lora_" in n for n, _ in made.model.named_parameters())


@pytest.mark.parametrize(("share", "steps", "expected"), [(0.5, 24, (12, 12)), (0.01, 10, (1, 9)), (0.99, 2, (1, 1))])
def test_both_phases_get_a_step(share, steps, expected) -> None:
    assert split_steps(TrainingOptions(global_share=share, steps_per_round=steps)) == expected


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_makes_as_many_steps_in_a_round(name) -> None:
    options = TrainingOptions(steps_per_round=10, final_steps=7, fine_tuning_rounds=3)
    assert sum(phase.steps for phase in METHODS[name].phases(options)) == 10
    assert sum(phase.steps for phase in METHODS[name].final(options)) in (0, 7, 30)
    assert METHODS[name].final(TrainingOptions(final_steps=0, fine_tuning_rounds=0)) == ()


def test_two_phases_of_one_name_in_a_round_are_refused(make, train) -> None:
    made = make("fedavg")
    made.method = replace(made.method, phases=lambda options: 2 * shared_training(options))
    with pytest.raises(OptionError, match="global, global: give each phase of a method a name of its own"):
        train(made)


GLOBAL = PhaseSpec("global", ("shared",), ("shared",))


@pytest.mark.parametrize(
    ("functions", "says"),
    [
        ({"phases": GLOBAL}, "'phases' of the method fedavg gives a PhaseSpec; it has to give a tuple of phases"),
        ({"final": None}, "'final' of the method fedavg gives a NoneType;"),
        ({"warmup": ("global",)}, "'warmup' of the method fedavg gives a tuple with a str;"),
        ({"phases": ()}, "The method fedavg has no phase in a round"),
        ({"phases": (GLOBAL,)}, "'phases' of the method fedavg gives phases with 1 steps together, and a round has 4"),
        ({"warmup": (replace(GLOBAL, steps=8),)}, "'warmup' of the method fedavg gives phases with 8 steps together"),
        (
            {"final": (replace(GLOBAL, name="fine_tuning", fine_tunes_after="golbal"),)},
            "The phase fine_tuning of the method fedavg begins with the optimiser state of 'golbal', and the phases of a round are global.",
        ),
        (
            {"final": (replace(GLOBAL, trains=("shared", "local")),)},
            "continues the optimiser state of 'global', a phase of a round, which trains ('shared',), and trains ('shared', 'local')",
        ),
    ],
)
def test_phases_that_cannot_be_run_are_refused_before_any_round(
    functions: dict[str, object], says: str, toy_options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = replace(METHODS["fedavg"], **{name: lambda _, given=given: given for name, given in functions.items()})
    monkeypatch.setattr("pfedsam.experiment.build.configured", lambda name, own: wrong)
    with pytest.raises(OptionError, match=re.escape(says)):
        build_method(toy_options.model_copy(update={"training": TrainingOptions(shared_warmup_rounds=1)}))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_phases_of_every_method_can_be_run(name: str) -> None:
    for form, order, warm_up, tuned in product(
        ("coupled", "decoupled", "joint", "halves", "coupled-halves"),
        ("global-first", "local-first"),
        (0, 2),
        (0, 1, None),
    ):
        METHODS[name].check_phases(
            TrainingOptions(phases=form, order=order, shared_warmup_rounds=warm_up, fine_tuning_rounds=tuned)
        )


@pytest.mark.parametrize(
    ("training", "rounds"), [({}, 15), ({"patience": None}, 200), ({"rounds": 9}, 4), ({"rounds": 1}, 0)]
)
def test_fine_tuning_takes_half_as_long_as_the_learning_rate_decreases(training, rounds) -> None:
    options = TrainingOptions.model_validate(training)
    assert sum(phase.steps for phase in METHODS["fedavg-finetuned"].final(options)) == rounds * options.steps_per_round


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(OptionError, match="known: pfedsam"):
        find_method("fedfoo")


def test_a_method_made_from_another_one_is_not_replaced_by_it() -> None:
    mine = replace(METHODS["pfedsam"], name="mine", server=METHODS["fedadam"].server)
    with pytest.raises(
        OptionError, match=r"'configure' of the method 'mine' makes the method 'pfedsam'.*configure=None"
    ):
        registered([mine])
    assert registered([replace(mine, configure=None)])["mine"].server == METHODS["fedadam"].server


def test_two_methods_of_one_name_are_refused() -> None:
    with pytest.raises(OptionError, match="Two files define the method 'fedavg'"):
        registered([METHODS["fedavg"], replace(METHODS["fedprox"], name="fedavg", configure=None)])
