"""The learning rate over the rounds, by hand."""

import pytest

from pfedsam.training.client_round import learning_rate
from pfedsam.training.options import TrainingOptions
from pfedsam.training.phases import OptimizerOptions


def rates(rounds: int, warm_up: float) -> list[float]:
    optimizer = OptimizerOptions(learning_rate=1.0, final_fraction=0.1, warm_up=warm_up)
    options = TrainingOptions(rounds=rounds, optimizer=optimizer)
    return [learning_rate(options, round_) for round_ in range(rounds + 2)]


def test_a_cosine_from_the_peak_to_its_final_fraction_which_later_rounds_keep() -> None:
    assert rates(5, 0) == pytest.approx(
        [1.0, 0.1 + 0.9 * (0.5 + 0.5 * 2**-0.5), 0.55, 0.1 + 0.9 * (0.5 - 0.5 * 2**-0.5), 0.1, 0.1, 0.1]
    )


def test_it_rises_in_equal_steps_over_the_first_part_of_the_rounds() -> None:
    warmed, plain = rates(20, 0.2), rates(20, 0)
    assert [a / b for a, b in zip(warmed[:5], plain[:5], strict=True)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert warmed[4:] == plain[4:]


def test_one_round_is_not_slowed_down() -> None:
    assert rates(1, 0.2)[0] == 1.0
