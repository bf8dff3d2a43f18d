"""Counts that may leave a site, each counted by hand."""

import pytest

from pfedsam.core.small_numbers import publishable_count, publishable_counts, rounded_up


@pytest.mark.parametrize(
    ("count", "of", "shown"),
    [(10, 10, 10), (9, 9, None), (0, 30, None), (12, 14, None), (20, 30, 20), (25, 30, None), (10, None, 10)],
)
def test_a_count_is_told_where_it_and_its_rest_are_large_enough_or_there_is_no_rest(count, of, shown) -> None:
    assert publishable_count(count, of, 10) == shown
    assert publishable_count(count, of, 1) == count


def test_a_weight_is_rounded_up() -> None:
    assert (rounded_up(3, 10), rounded_up(10, 10), rounded_up(11, 10), rounded_up(3, 1)) == (10, 10, 11, 3)


@pytest.mark.parametrize(
    ("counts", "shown"),
    [
        ((20, 12, 5), (20, None, None)),  # 37 less 20 and 12 would be 5
        ((20, 12, 5, 6), (20, 12, None, None)),  # the two together are 11
        ((30, 0, 0), (30, None, None)),  # that nobody is left is known from the total
        ((12, 1), (None, None)),
        ((), ()),
    ],
)
def test_no_small_part_follows_from_the_others_and_the_total(counts, shown) -> None:
    assert tuple(publishable_counts(dict(enumerate(counts)), 10).values()) == shown
    assert tuple(publishable_counts(dict(enumerate(counts)), 1).values()) == counts
