"""The learning rate over the rounds and the end of the training, by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfedsam.training.options import TrainingOptions
from pfedsam.training.phases import OptimizerOptions
from pfedsam.training.schedule import end_of_training, fine_tuning_rates, learning_rate


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


def test_fine_tuning_begins_at_half_of_the_peak_and_ends_where_the_rounds_do() -> None:
    optimizer = OptimizerOptions(learning_rate=1.0, final_fraction=0.1)
    assert fine_tuning_rates(optimizer, 5) == pytest.approx(
        [0.5, 0.1 + 0.4 * (0.5 + 0.5 * 2**-0.5), 0.3, 0.1 + 0.4 * (0.5 - 0.5 * 2**-0.5), 0.1]
    )
    assert fine_tuning_rates(optimizer, 1) == [0.5]
    assert fine_tuning_rates(optimizer.model_copy(update={"final_fraction": 1.0}), 2) == [1.0, 1.0]


def patient(rounds: int, patience: int, warm_up: float = 0.0) -> TrainingOptions:
    optimizer = OptimizerOptions(learning_rate=1.0, final_fraction=0.1, warm_up=warm_up)
    return TrainingOptions(rounds=rounds, patience=patience, optimizer=optimizer)


def test_with_patience_it_is_constant_until_the_last_rounds() -> None:
    found = [learning_rate(patient(10, 4), round_) for round_ in range(11)]
    assert found[:6] == [1.0] * 6
    assert found[6:] == pytest.approx(
        [1.0, 0.1 + 0.9 * 0.75, 0.1 + 0.9 * 0.25, 0.1, 0.1]
    )  # cosines of 60 and 120 degrees


def test_patience_changes_nothing_in_a_study_that_is_no_longer_than_it() -> None:
    without = TrainingOptions(rounds=8, patience=None)
    with_it = TrainingOptions(rounds=8, patience=8)
    assert [learning_rate(with_it, r) for r in range(10)] == [learning_rate(without, r) for r in range(10)]


def test_it_follows_an_end_that_is_found_later() -> None:
    options = patient(100, 5)
    assert learning_rate(options, 15) == 1.0
    assert [learning_rate(options, round_, ends=20) for round_ in (15, 17, 19)] == pytest.approx([1.0, 0.55, 0.1])


def test_it_warms_up_over_a_part_of_the_patience() -> None:
    assert [learning_rate(patient(100, 10, 0.2), round_) for round_ in range(3)] == [0.5, 1.0, 1.0]


def scores(*north: float, south: float = 0.5) -> dict[int, dict[str, float]]:
    """A validation after every second round: that of the north, and a south that never changes."""
    return {2 * i + 1: {"north": dice, "south": south} for i, dice in enumerate(north)}


def test_training_ends_a_patience_after_no_site_has_gained_for_a_patience() -> None:
    options = patient(100, 4)
    # The north gains last after round 3 (counted from 0); after round 7 that is four rounds ago, so that 8 + 4 rounds are trained.
    assert end_of_training(options, scores(0.5, 0.6, 0.6)) == 100
    assert end_of_training(options, scores(0.5, 0.6, 0.6, 0.59)) == 12
    assert end_of_training(options, scores(0.5, 0.6, 0.6, 0.59, 0.9)) == 12


def test_one_site_that_gains_is_enough_to_go_on() -> None:
    found = scores(0.5, 0.5, 0.5, 0.5)
    found[5]["south"] = 0.7
    assert end_of_training(patient(100, 4), found) == 100


def test_gains_count_once_they_add_up() -> None:
    slow = scores(0.5, 0.501, 0.5025, 0.503, 0.505)
    assert end_of_training(patient(100, 4), slow) == 100
    assert end_of_training(patient(100, 4), scores(0.5, 0.501, 0.5015, 0.5019)) == 10


def test_the_end_is_never_after_the_last_round_and_without_scores_it_is_the_last_round() -> None:
    assert end_of_training(patient(9, 4), scores(0.5, 0.5, 0.5)) == 9
    assert end_of_training(patient(30, 4), {}) == 30
    assert end_of_training(patient(30, 4), {1: {}, 20: {}}) == 30
    assert end_of_training(TrainingOptions(rounds=30, patience=None), scores(*[0.5] * 30)) == 30


VALIDATIONS = st.dictionaries(
    st.integers(0, 30), st.dictionaries(st.sampled_from(["north", "south"]), st.floats(0, 1)), max_size=31
)


@given(patience=st.integers(1, 12), rounds=st.integers(1, 30), found=VALIDATIONS)
def test_an_earlier_end_is_after_more_than_twice_the_patience(
    patience: int, rounds: int, found: dict[int, dict[str, float]]
) -> None:
    """Sites refuse an end that breaks this (`federation.request_history.may_end_after`)."""
    ends = end_of_training(patient(rounds, patience), found)
    assert ends == rounds or 2 * patience < ends < rounds
