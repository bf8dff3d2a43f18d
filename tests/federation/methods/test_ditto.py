"""Ditto: one set is averaged, its copy stays and is pulled to what was received."""

import torch

from pfedsam.federation.methods import ditto
from pfedsam.training.options import TrainingOptions


def test_one_set_is_averaged_and_one_stays(make) -> None:
    made = make("ditto")
    assert made.shared == made.lora("lora_A") | made.lora("lora_B") | made.names("class_tokens", "output_layers.")
    assert made.local == made.names("personal_copy.", "personal_output_layers.")
    # The copy is of all that is shared, and starts as it.
    origins = made.model.origins()
    assert set(origins) == made.local
    assert set(origins.values()) == made.shared
    assert all(torch.equal(made.model.get_parameter(o), made.model.get_parameter(n)) for o, n in origins.items())


def test_the_shared_phase_is_fedavgs_and_the_copy_is_pulled() -> None:
    method = ditto.configure(ditto.DittoOptions(proximal_weight=0.3))
    first, second = method.phases(TrainingOptions(steps_per_round=10, global_share=0.4))
    assert (first.trains, first.supervised, first.steps, first.proximal) == (("shared",), ("shared",), 4, 0.0)
    assert (second.trains, second.supervised, second.steps, second.proximal) == (("local",), ("personal",), 6, 0.3)


def test_a_strong_pull_keeps_the_copy_near_what_was_received(make, train) -> None:
    def distance(strength: float) -> float:
        made = make("ditto", own={"proximal_weight": strength})
        received = {name: made.model.get_parameter(name).clone() for name in made.shared}
        local = train(made, steps_per_round=8).state.local
        return sum((local[o] - received[n]).square().sum().item() for o, n in made.model.origins().items())

    assert distance(1000.0) < 0.5 * distance(0.0)


def test_the_shared_set_does_not_depend_on_the_copy(make, train) -> None:
    first = train(make("ditto", own={"proximal_weight": 0.0})).shared
    second = train(make("ditto", own={"proximal_weight": 5.0})).shared
    assert all(torch.equal(first[name], second[name]) for name in first)
