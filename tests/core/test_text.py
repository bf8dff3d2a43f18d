import pytest

from pfedsam.core.text import short_repr, some_of


@pytest.mark.parametrize(
    ("words", "text"), [([], ""), (["a"], "a"), (["a", "b"], "a, b"), ([1, 2, 3], "1, 2 and 1 more")]
)
def test_the_first_words_and_how_many_more_there_are(words: list[object], text: str) -> None:
    assert some_of(words, 2) == text


def test_a_long_value_is_cut():
    assert short_repr({"a": 1}) == "{'a': 1}"
    assert short_repr("x" * 100, 10) == "'xxxxxx..."
