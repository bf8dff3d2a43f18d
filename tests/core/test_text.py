import pytest

from pfedsam.core.text import some_of


@pytest.mark.parametrize(
    ("words", "text"), [([], ""), (["a"], "a"), (["a", "b"], "a, b"), ([1, 2, 3], "1, 2 and 1 more")]
)
def test_the_first_words_and_how_many_more_there_are(words: list[object], text: str) -> None:
    assert some_of(words, 2) == text
