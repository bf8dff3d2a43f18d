from pathlib import Path

import pytest

from pfedsam.core.errors import DataError, StoreError
from pfedsam.data.about import about
from pfedsam.data.manifest import Case

CASE = Case("north", "p1", Path("images/p1.png"), None, "p1")


def test_an_error_about_a_file_gets_site_and_case_and_keeps_its_cause():
    cause = DataError("'p1.png' is damaged")
    with pytest.raises(DataError) as caught, about(CASE):
        raise cause
    assert str(caught.value) == "site 'north', case 'p1': 'p1.png' is damaged"
    assert caught.value.__cause__ is cause


def test_a_message_that_begins_with_the_name_of_a_mask_says_that_it_is_a_mask():
    for text, expected in (
        ("'p1.png' is damaged", "its mask 'p1.png' is damaged"),
        ("its mask is grey", "its mask is grey"),
    ):
        with pytest.raises(DataError) as caught, about(CASE, mask=True):
            raise DataError(text)
        assert str(caught.value) == f"site 'north', case 'p1': {expected}"


def test_other_errors_and_no_error_pass_through():
    with pytest.raises(StoreError, match=r"^full$"), about(CASE):
        raise StoreError("full")
    with about(CASE):
        pass
