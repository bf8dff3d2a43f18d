import pytest

from pfedsam.core.text import as_cell, from_cell, name_cases, percent, short_repr, some_of


@pytest.mark.parametrize(
    ("words", "text"), [([], ""), (["a"], "a"), (["a", "b"], "a, b"), ([1, 2, 3], "1, 2 and 1 more")]
)
def test_the_first_words_and_how_many_more_there_are(words: list[object], text: str) -> None:
    assert some_of(words, 2) == text


def test_at_most_three_cases_are_named():
    assert name_cases(["a"]) == "case 'a'"
    assert name_cases(["a", "b", "c"]) == "3 cases 'a', 'b', 'c'"
    assert name_cases(["a", "b", "c", "d"]) == "4 cases such as 'a', 'b', 'c'"


def test_a_share_is_a_percentage_of_two_digits():
    assert [percent(share) for share in (0, 0.031, 0.5)] == ["0 %", "3.1 %", "50 %"]


def test_a_long_value_is_cut():
    assert short_repr({"a": 1}) == "{'a': 1}"
    assert short_repr("x" * 100, 10) == "'xxxxxx..."


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "''@x"])
def test_what_a_spreadsheet_takes_for_a_formula_gets_a_quote_before_it(text: str) -> None:
    assert as_cell(text) == f"'{text}"
    assert from_cell(as_cell(text)) == text


@pytest.mark.parametrize("text", ["", "case 1", "p1-2", "a=b", "'quoted'", "1e-05"])
def test_other_texts_are_cells_as_they_are(text: str) -> None:
    assert as_cell(text) == from_cell(text) == text
