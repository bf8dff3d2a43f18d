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
