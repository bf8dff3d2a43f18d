import pytest
from pydantic import Field, ValidationError

from pfedsam.core.options import Options


class Rank(Options):
    rank: int = Field(4, ge=1, description="Columns of A and rows of B.")


def test_a_default_and_a_value():
    assert Rank().rank == 4
    assert Rank(rank=2).rank == 2


@pytest.mark.parametrize("given", [{"rank": 0}, {"rank": "four"}, {"ranks": 4}])
def test_a_bad_value_or_an_unknown_key_is_refused(given):
    with pytest.raises(ValidationError):
        Rank(**given)


def test_options_do_not_change():
    with pytest.raises(ValidationError):
        Rank().rank = 5


class Several(Options):
    number: float | None = None
    table: dict[str, list[int]] = Field(default={})
    switch: bool | int = False
    text: str = ""


@pytest.mark.parametrize("given", [{"number": True}, {"number": False}, {"table": {"a": [1, True]}}])
def test_truth_values_are_no_numbers(given):
    with pytest.raises(ValidationError, match="true and false are not numbers"):
        Several(**given)


def test_numbers_may_be_written_in_other_forms():
    found = Several(number=1, table={"a": [4.0, "5"]}, switch=True, text="true")
    assert (found.number, found.table, found.switch) == (1.0, {"a": [4, 5]}, True)
    assert Several(number="1e-3").number == 0.001
