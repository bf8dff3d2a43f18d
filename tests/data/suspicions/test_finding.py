import pytest

from pfedsam.data.suspicions.finding import Finding, at_each_site


@pytest.mark.parametrize(
    ("cases", "named"),
    [
        ((), ""),
        (("a",), ", case 'a'"),
        (("a", "b", "c"), ", 3 cases 'a', 'b', 'c'"),
        (("a", "b", "c", "d"), ", 4 cases such as 'a', 'b', 'c'"),
    ],
)
def test_at_most_three_cases_are_named(cases, named):
    assert str(Finding("north", "kind", "text", cases)) == f"site 'north'{named}: text"


def test_a_check_of_one_site_is_applied_to_each_site_in_order():
    check = at_each_site(lambda facts, study: iter([f"{facts} of {study}"]))
    assert list(check(["north", "south"], "study")) == ["north of study", "south of study"]
