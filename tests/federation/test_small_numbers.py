"""The check of counts at the gate of a site."""

import pytest

from pfedsam.core.errors import UpdateError
from pfedsam.federation.small_numbers import check_small_numbers, is_count

WITHHELD = {"test.shared.cases": None, "test.shared.unit": 0, "test.shared.mean.dice": None}


@pytest.mark.parametrize(
    "reply",
    [
        {"cases": 9},
        {"test.shared.patients": 3},
        {"test.shared.class.organ.missed": 0},
        {"test.shared.class.organ.undefined_dice": 2},
        {"test.shared.class.organ.absent": None, "test.shared.class.organ.undefined_dice": 12},
        {"test.shared.class.organ.missed": None, "test.shared.class.organ.undefined_hd95": 17},
        {"test.shared.class.organ.undefined_iou": None, "test.shared.mean.undefined_iou": 12},
        {**WITHHELD, "test.shared.mean.dice": 0.5},
        {**WITHHELD, "test.shared.class.organ.nsd": 0.5},
    ],
)
def test_a_number_of_few_cases_is_refused(reply) -> None:
    with pytest.raises(UpdateError, match="must not leave the site"):
        check_small_numbers(reply, 10)
    check_small_numbers(reply, 1)


def test_what_stands_for_enough_cases_passes() -> None:
    check_small_numbers({"cases": 10, "annotates.organ": 1, "kept_round": 3, "dice.shared": 0.5}, 10)
    check_small_numbers({"test.shared.cases": 12, "test.shared.mean.dice": 0.5, "test.shared.class.a.missed": None}, 10)
    check_small_numbers(WITHHELD, 10)
    check_small_numbers({"test.shared.class.a.missed": None, "test.shared.class.a.undefined_dice": 12}, 10)
    check_small_numbers({"test.shared.class.a.missed": None, "test.shared.class.b.undefined_hd95": 12}, 10)


def test_a_class_called_like_a_count_is_none() -> None:
    assert not is_count("annotates.cases")
    assert not is_count("test.shared.class.cases.dice")
